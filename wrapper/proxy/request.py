"""The proxy request: what the client asks for, as far as the gateway has to know it.

A body is held in memory only where a field of it decides (JSON: `model`, `stream`), is kept in a
file (a small one in memory) where a form field may follow a large file part, and otherwise streams
through. Fields are read beside the bytes; the bytes stay the client's.

Invariant: nothing ambiguous reaches a provider. A target with two readings, a JSON object with two
`model`s, a body shorter than its length are refused, with a message that says what was wrong. That
is before anything is sent, except for a body that streams through, which is broken off then.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from wrapper import errors
from wrapper.auth import Credential, Principal
from wrapper.cancellation import TIMEOUT, Interrupted, yield_if_due
from wrapper.capacity import HOLDERS_PART, UNAUTHENTICATED_PART, Holding
from wrapper.endpoints import Endpoint, find_endpoint
from wrapper.formats import jsonbytes
from wrapper.formats.lookup import Lookup
from wrapper.formats.media import is_json, media_type
from wrapper.formats.multipart import FieldFinder, FileFinder
from wrapper.metering import set_include_usage
from wrapper.metering.bounds import OUTPUT_FIELDS
from wrapper.proxy import handshake, timeouts
from wrapper.proxy.batch_input import BatchInput, BatchLines
from wrapper.proxy.body import (
    PIECE,
    SMALL,
    Body,
    RequestBody,
    SpooledForm,
    content_length,
    overloaded,
    spool_form,
)
from wrapper.proxy.tags import tag_of
from wrapper.record import MAX_NAME
from wrapper.runtime import RequestContext

_METHOD_OVERRIDES: Final = (
    "HTTP_X_HTTP_METHOD_OVERRIDE",
    "HTTP_X_HTTP_METHOD",
    "HTTP_X_METHOD_OVERRIDE",
)
_CODINGS: Final = (
    ("HTTP_CONTENT_ENCODING", ("", "identity"), "Content-Encoding"),
    ("HTTP_TRANSFER_ENCODING", ("", "chunked"), "a Transfer-Encoding other than chunked"),
)
_UNUSUAL: Final = frozenset(  # headers that most requests do not have
    [
        *("HTTP_UPGRADE", "HTTP_SEC_WEBSOCKET_KEY"),
        *(name for name, _, _ in _CODINGS),
        *_METHOD_OVERRIDES,
    ]
)
_CHARSET: Final = re.compile(r";[ \t]*charset[ \t]*=[ \t]*\"?([^\";, \t]*)")
_READ_FIELDS: Final = frozenset({"model", "models", "stream", "stream_options"})

# Characters and sequences of a path that one reader takes for something else than another:
# dot segments, empty segments, encoded slashes, backslashes, dots and controls.
_AMBIGUOUS: Final = re.compile(
    r"//|\\|[\x00-\x20\x7f-\xff#]|%(?![0-9a-fA-F]{2})|%(?:2[fF]|5[cC]|[01][0-9a-fA-F]|7[fF])"
    r"|/(?:\.|%2[eE]){1,2}(?:/|;|%3[bB]|$)"
)
_ENCODED_SLASH: Final = re.compile("%2[fF]")
MAX_KNOWN: Final = 256  # characters of a target that is looked up
_BAD_QUERY: Final = re.compile(r"[\x00-\x20\x7f#]")


_NOTHING: Final = msgspec.Raw(b"")


class _Identified(msgspec.Struct):
    id: str = ""


class _Fields(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    # Stored objects that the request builds on.
    previous_response_id: msgspec.Raw = _NOTHING
    conversation: msgspec.Raw = _NOTHING
    input_file_id: msgspec.Raw = _NOTHING
    training_file: msgspec.Raw = _NOTHING
    assistant_id: msgspec.Raw = _NOTHING
    file_id: msgspec.Raw = _NOTHING
    # OUTPUT_FIELDS
    max_completion_tokens: msgspec.Raw = _NOTHING
    max_tokens: msgspec.Raw = _NOTHING
    max_output_tokens: msgspec.Raw = _NOTHING
    n: msgspec.Raw = _NOTHING
    best_of: msgspec.Raw = _NOTHING
    service_tier: msgspec.Raw = _NOTHING


_OUTPUT: Final = attrgetter(*OUTPUT_FIELDS)
_UNLIMITED: Final = (_NOTHING,) * len(OUTPUT_FIELDS)
_OBJECTS: Final = attrgetter(
    *("previous_response_id", "conversation", "input_file_id", "training_file"),
    *("assistant_id", "file_id"),
)
_MAX_ID: Final = 300  # bytes of a field that can be an object's id, or an object with one
_decode_id = msgspec.json.Decoder(str | _Identified).decode
_decode = msgspec.json.Decoder(_Fields).decode


class Prepared(msgspec.Struct, frozen=True, eq=False):
    """Body and headers for one target. `strip_usage`: the stream's usage is asked for in the
    client's place, so the client must not see it.
    """

    body: Body
    headers: dict[str, str]
    strip_usage: bool = False


class ProxyRequest(msgspec.Struct, frozen=True, eq=False):
    """One request as the relay needs it.

    `target` is the raw path, `query` the raw `?query`. `model` is None where none could be read,
    `objects` are the fields of the body that may name stored objects, `output_fields` those that
    bound its output. `media`: its body is a form or a file. `form` reads beside a form that
    streams through; `lines` are those of an uploaded file that may be a batch's input.
    """

    method: str
    target: str
    query: str
    endpoint: Endpoint
    body: Body = None
    model: str | None = None
    stream: bool = False
    form: FieldFinder | None = None
    objects: tuple[msgspec.Raw, ...] = ()
    output_fields: tuple[bytes, ...] = ()
    media: bool = False
    lines: BatchLines | None = None

    @property
    def object_ids(self) -> list[str]:
        """The ids of stored objects that the body names."""
        ids = []
        for text in self.objects:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                named = _decode_id(text) if 2 < len(bytes(text)) < _MAX_ID else ""
                ids.append(named if isinstance(named, str) else named.id)
        return [name for name in ids if name]

    @property
    def batch_input(self) -> BatchInput | None:
        """What an uploaded file asks for, where it is a batch's input; known once it was sent."""
        if self.lines is None or not isinstance(self.form, FileFinder) or not self.form.has_file:
            return None
        return self.lines.result()

    @property
    def named_model(self) -> str:
        """The model that is known once the body has been sent; empty where there is none."""
        return self.model or (self.form.value if self.form else None) or ""

    @property
    def body_is_consumed(self) -> bool:
        """Whether the body has been streamed and cannot be sent again."""
        return isinstance(self.body, RequestBody) and self.body.received > 0

    def prepare(self, rename: str | None, headers: dict[str, str], *, ask_usage: bool) -> Prepared:
        """What goes to one target: `model` renamed, a stream's usage asked for, nothing else
        changed.

        A stream whose usage event has to be removed again must come uncompressed.
        """
        body = self.body
        try:
            if rename is not None and isinstance(body, bytes):
                body = jsonbytes.replace_value(body, "model", msgspec.json.encode(rename))
            elif rename is not None and isinstance(body, SpooledForm):
                body = body.with_text(rename)
            if ask_usage and isinstance(body, bytes):
                asking = set_include_usage(body)
                if asking is not body:
                    return Prepared(asking, {**headers, "Accept-Encoding": "identity"}, True)
        except ValueError as error:
            raise errors.InvalidBody(f"The body cannot be changed: {error}.") from None
        return Prepared(body, headers)


def read_request(context: RequestContext, principal: Principal, *, routed: bool) -> ProxyRequest:
    """Read the request, within the time that a body of its size may take.

    `routed`: the request's model decides where it goes, so that it has to be found. Raises
    Overloaded where the worker has no room for the request, UpgradeRequired, Drained,
    RequestTimeout, and the errors of a body that cannot be read.
    """
    environ, scope = context.environ, context.scope
    server = context.snapshot.settings.server
    in_flight = len(context.runtime.scopes)
    if in_flight >= server.max_in_flight or in_flight >= context.runtime.capacity.places:
        raise overloaded()
    if principal.credential is not None:
        _take_newcomers_place(context, principal.credential)
    scope.open()
    length = content_length(environ)
    if not environ.keys().isdisjoint(_UNUSUAL):
        _refuse_ambiguous_head(environ)
        socket = handshake.asked_for(environ, context.target[0])
        if socket is not None:
            return _socket_request(context, socket, length)
    # What has come with the head, as most bodies do, is not waited for.
    waits = scope.reason is not None or not getattr(environ["wsgi.input"], "has_come", False)
    read = _read_in_time if waits else _read_body
    request = read(context, principal, length, routed=routed)
    context.record.model = (request.model or "")[:MAX_NAME]
    context.record.stream = request.stream
    context.record.output_fields, context.record.media = request.output_fields, request.media
    context.record.endpoint = request.endpoint
    if (tags := context.snapshot.settings.tags) is not None:
        context.record.tag = tag_of(context, tags, request.body)
    return request


def _socket_request(context: RequestContext, socket: Endpoint, length: int | None) -> ProxyRequest:
    """A handshake: it names its model in the query, and has no body."""
    if length != 0:
        raise errors.BadRequest("A WebSocket handshake has no body.")
    target, query = context.target
    model = handshake.model_of(query)
    context.record.model = (model or "")[:MAX_NAME]
    context.record.endpoint = socket
    if (tags := context.snapshot.settings.tags) is not None:
        context.record.tag = tag_of(context, tags, None)
    return ProxyRequest("GET", target, query, socket, model=model)


def _take_newcomers_place(context: RequestContext, credential: Credential) -> None:
    """Callers whom nothing has authenticated yet have few places: they must not keep key owners
    out. A credential that a provider has accepted lately is no newcomer's.
    """
    newcomers, server = context.runtime.capacity.newcomers, context.snapshot.settings.server
    if not newcomers.is_known(credential):
        if len(newcomers) >= server.max_in_flight_unauthenticated:
            raise overloaded()
        newcomers.add(context.scope)


def _read_in_time(
    context: RequestContext, principal: Principal, length: int | None, *, routed: bool
) -> ProxyRequest:
    """As `_read_body`, for a body that is to come."""
    timeouts.arm_request_body(context.scope, length, context.snapshot.settings.server)
    try:
        with context.scope:
            return _read_body(context, principal, length, routed=routed)
    except Interrupted as interruption:
        if interruption.reason != TIMEOUT:
            context.record.drained()
            raise errors.Drained() from None
        raise errors.RequestTimeout("The request body did not arrive in time.") from None


def _read_body(
    context: RequestContext, principal: Principal, length: int | None, *, routed: bool
) -> ProxyRequest:
    """The request with its body. How that is read follows from the endpoint, the body's type, and
    whether its model matters.
    """
    environ, server = context.environ, context.snapshot.settings.server
    method: str = environ["REQUEST_METHOD"]
    target, query = context.target
    request = ProxyRequest(method, target, query, find_endpoint(method, target))
    if length == 0:
        # An explicit Content-Length: 0 is repeated, a missing one stays missing.
        return replace(request, body=b"" if environ.get("CONTENT_LENGTH") else None)
    content_type: str = environ.get("CONTENT_TYPE", "")
    kind = content_type.lower()
    is_form = kind.startswith("multipart/form-data") and not request.endpoint.json_body
    # There are providers that take anything for JSON, whatever its type says.
    as_json = principal.is_restricted or (routed and request.endpoint.metered)
    if request.endpoint.json_body or is_json_type(kind) or (as_json and not is_form):
        content = context.record.content = RequestBody(environ, length, server.max_body_bytes)
        counted = length is None or length > SMALL
        memory = _memory(context, principal) if counted else None
        return read_json(request, content.read_all(memory), kind)
    # A budget can only be kept where the model, and so the price, is known before it is sent.
    budget = context.snapshot.limits.has_budget(principal.name) and request.endpoint.metered
    spooled = is_form and (routed or principal.is_restricted or budget)
    if is_form and request.endpoint.creates == "file" and principal.credential is None:
        lines = BatchLines()
        found = FileFinder(content_type, "model", lines.feed, scan_all=True)
        request = replace(request, form=found, lines=lines)
    elif is_form:
        request = replace(request, form=FieldFinder(content_type, "model", scan_all=spooled))
    if spooled and request.form is not None:
        content = context.record.content = RequestBody(environ, length, server.max_upload_bytes)
        memory, disk = _memory(context, principal), _disk(context, principal)
        form = spool_form(content, request.form, memory, disk)
        return replace(request, body=form, model=request.form.value, media=True)
    content = RequestBody(environ, length, server.max_upload_bytes, request.form)
    context.record.content = content
    return replace(request, body=content, media=True)


def _memory(context: RequestContext, principal: Principal) -> Holding:
    limit = context.snapshot.settings.server.body_memory_bytes
    return Holding(context.runtime.capacity.memory, principal.name, limit, _part(context))


def _disk(context: RequestContext, principal: Principal) -> Holding:
    limit = context.snapshot.settings.server.upload_disk_bytes
    return Holding(context.runtime.capacity.disk, principal.name, limit, _part(context))


def _part(context: RequestContext) -> int:
    is_newcomer = context.scope in context.runtime.capacity.newcomers
    return UNAUTHENTICATED_PART if is_newcomer else HOLDERS_PART


def read_json(request: ProxyRequest, body: bytes, content_type: str) -> ProxyRequest:
    """Take the body as a JSON object and read `model` and `stream` from it; it may be empty."""
    charset = _CHARSET.search(content_type)
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii", "ascii"):
        # RFC 8259 section 8.1. Another charset that is named is one that another reader may use.
        raise errors.InvalidJson("JSON is UTF-8: leave the charset out of Content-Type.")
    if not body:
        return replace(request, body=body)
    fields, ambiguous = _fields(body)
    if ambiguous:
        raise errors.InvalidBody(
            "A field is given twice, or in capitals: 'model', 'models', 'stream' or "
            "'stream_options'."
        )
    output = _OUTPUT(fields)
    if len(body) > PIECE:
        output = tuple(each if len(bytes(each)) < _MAX_ID else _NOTHING for each in output)
    builds = request.endpoint.creates is not None or fields.model is None
    return ProxyRequest(
        request.method,
        request.target,
        request.query,
        request.endpoint,
        body,
        fields.model,
        bool(fields.stream),
        objects=_OBJECTS(fields) if builds else (),
        # Copies: what msgspec gives holds the whole body, and streams last for minutes.
        output_fields=()
        if output == _UNLIMITED
        else tuple([bytes(each) if each else b"" for each in output]),
    )


def _fields(body: bytes) -> tuple[_Fields, bool]:
    """The fields of a JSON body, and whether two readers could find different ones."""
    try:
        if not body.isascii():
            body.decode("utf-8")
        if len(body) > PIECE:  # each step takes some ten milliseconds for the largest body
            yield_if_due()
        fields = _decode(body)
        if len(body) <= PIECE:
            return fields, jsonbytes.has_duplicate(body, _READ_FIELDS)
        yield_if_due()
        return fields, jsonbytes.has_duplicate(body, _READ_FIELDS, yield_if_due)
    except UnicodeDecodeError as error:
        raise errors.InvalidJson(f"The body is not UTF-8 (byte {error.start}).") from None
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except msgspec.DecodeError as error:
        raise errors.InvalidJson(f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        raise errors.InvalidJson("The body is nested too deep.") from None
    except ValueError as error:
        raise errors.InvalidBody(f"The body cannot be read: {error}.") from None


def split_target(environ: Mapping[str, Any]) -> tuple[str, str]:
    """The raw path and `?query` of the request line, refused where they have two readings.

    RFC 3986 sections 3.3 and 6.2.2; RFC 9112 section 3.2: only the origin form is served.
    """
    raw: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    return _KNOWN_TARGETS[raw] if len(raw) < MAX_KNOWN and "?" not in raw else _split(raw)


def _split(raw: str) -> tuple[str, str]:
    path, mark, query = raw.partition("?")
    # A model's name is all that follows `/models/`, with slashes or, as the SDKs write them there,
    # with encoded ones: both readings are the same, so both are taken.
    before, models, name = path.partition("/models/")
    plain = before + models + _ENCODED_SLASH.sub("/", name) if models else path
    if not path.startswith("/") or _AMBIGUOUS.search(plain) or _BAD_QUERY.search(query):
        raise errors.InvalidPath(
            "The path could be read in two ways: no dot segments, encoded slashes, '//', "
            "backslashes, malformed percent-encodings or control characters."
        )
    return path, mark + query


# Without a query only: it may hold a secret, and is rarely the same again.
_KNOWN_TARGETS: Final = Lookup(_split, 256)


def is_json_type(content_type: str) -> bool:
    """`application/json` and its `+json` relatives."""
    return is_json(media_type(content_type))


def _refuse_ambiguous_head(environ: Mapping[str, Any]) -> None:
    """Refuse what the gateway and a provider could read in two ways.

    A compressed body cannot be read beside the bytes (RFC 9110 section 15.5.16); a header may
    replace the method for readers that know it.
    """
    for name, usual, header in _CODINGS:
        if name in environ and environ[name].strip().lower() not in usual:
            raise errors.UnsupportedEncoding(
                f"Compressed request bodies are not accepted: send the body without {header}."
            )
    for name in _METHOD_OVERRIDES:
        if name in environ and environ[name].strip().upper() != environ["REQUEST_METHOD"]:
            raise errors.BadRequest("The request names two methods: send the one you mean.")


# The types of msgspec's messages, as JSON calls them.
_KINDS: Final = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "null": "null",
    "array": "an array",
    "object": "an object",
}
_WRONG_TYPE: Final = re.compile(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`")


def _wrong_field(problem: str) -> errors.GatewayError:
    """Msgspec says `Expected `str | null`, got `int` - at `$.model``."""
    what, _, where = problem.partition(" - at `$.")
    field = where.rstrip("`") or None
    name = f"'{field}'" if field else "The body"
    found = _WRONG_TYPE.fullmatch(what)
    if found is None:
        return errors.InvalidBody(f"{name}: {what.replace('`', '')}.", param=field)
    wanted, got = (_KINDS.get(kind, kind) for kind in found.groups())
    return errors.InvalidBody(f"{name} is {got}; write {wanted}.", param=field)
