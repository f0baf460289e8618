"""What the caller asks for: the raw target, the headers, the body, and the two fields we read.

A body is held in memory only where a field of it decides (JSON: `model`, `stream`), goes to a
temporary file where a form field may stand behind a large file part, and otherwise flows
through. Whatever is read here is read beside the bytes; the bytes stay the caller's.

The rule protected here: nothing ambiguous reaches a provider. A target with two readings, a
JSON object with two `model`s, a body shorter than its length are refused before anything is
sent, in words that say what was wrong.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, Final
from urllib.parse import unquote

import msgspec
from gunicorn.http.errors import ParseException

from wrapper import errors, jsonbytes
from wrapper.multipart import FieldFinder
from wrapper.usage import set_include_usage
from wrapper.watch import TURN, take_turns

PIECE: Final = 65536
# Chunks may be of one byte each, and cost a microsecond or two then: a piece of a chunked body is
# smaller, and one that took long is followed by the others' turn.
CHUNKED_PIECE: Final = 16384
LONG: Final = 0.005  # seconds
SLOWEST_BYTES_PER_SECOND: Final = 32768
_METHOD_OVERRIDES: Final = (
    "HTTP_X_HTTP_METHOD_OVERRIDE",
    "HTTP_X_HTTP_METHOD",
    "HTTP_X_METHOD_OVERRIDE",
)
_READ_FIELDS: Final = frozenset({"model", "stream", "stream_options"})


class _Fields(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None


_decode = msgspec.json.Decoder(_Fields).decode

# Characters and sequences of a path that one reader takes for something else than another:
# dot segments, empty segments, encoded slashes, backslashes, dots and controls.
_AMBIGUOUS = re.compile(
    r"//|\\|[\x00-\x20\x7f-\xff#]|%(?![0-9a-fA-F]{2})|%(?:2[fF]|5[cC]|[01][0-9a-fA-F]|7[fF])"
    r"|/(?:\.|%2[eE]){1,2}(?:/|;|%3[bB]|$)"
)
_ENCODED_SLASH = re.compile("%2[fF]")
_BAD_QUERY = re.compile(r"[\x00-\x20\x7f#]")


class RawBody:
    """The request's body as it comes from the server, with limit, length and time checked.

    Iterating gives pieces of up to 64 KiB. Raises RequestTooLarge, IncompleteBody or
    RequestTimeout, each with the connection marked for closing.
    """

    def __init__(self, environ: Mapping[str, Any], limit: int) -> None:
        self._environ = environ
        self._input = environ["wsgi.input"]
        self._limit = limit
        self.length = content_length(environ)
        self.received = 0
        self._moved = 0  # bytes since the others had their turn
        self.waited = 0.0  # seconds spent waiting for the sender
        self.on_end: Callable[[], None] | None = None
        self.reader: Callable[[bytes], None] | None = None  # stands beside the bytes
        self.ended = not has_body(environ)
        if self.length is not None and self.length > limit:
            raise self._too_large()

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(PIECE):
            yield piece

    def read(self, size: int) -> bytes:
        """At most `size` bytes; empty at the end."""
        if self.ended:
            return b""
        if self.length is None:
            size = min(size, CHUNKED_PIECE)
        began = time.perf_counter()
        try:
            data: bytes = self._input.read(size)
        except TimeoutError:
            raise self._closing(
                errors.RequestTimeout("The request body did not arrive in time.")
            ) from None
        except (OSError, ParseException, ValueError):
            raise self._closing(
                errors.IncompleteBody("The request body broke off or is badly framed.")
            ) from None
        finally:
            took = time.perf_counter() - began
            self.waited += took
        self.received += len(data)
        self._moved = take_turns(TURN if took > LONG else self._moved + len(data))
        if self.received > self._limit:
            raise self._too_large()
        if self.reader is not None:
            self.reader(data)
        self._check_end(data)
        return data

    def _check_end(self, data: bytes) -> None:
        if self.length is not None and self.received >= self.length:
            self.ended = True
        elif not data:
            self.ended = True
            if self.length is not None:
                raise self._closing(
                    errors.IncompleteBody(
                        f"The body ended after {self.received} bytes; Content-Length said "
                        f"{self.length}."
                    )
                )
        if self.ended and self.on_end is not None:
            self.on_end()

    def read_all(self) -> bytes:
        """The whole body in memory."""
        if self.length is not None:
            data = self.read(self.length) if self.length else b""
            if len(data) == self.length:
                return data
            return data + b"".join(self)
        return b"".join(self)

    def _too_large(self) -> errors.GatewayError:
        return self._closing(
            errors.RequestTooLarge(
                f"The request body is larger than the {self._limit} bytes allowed here."
            )
        )

    def _closing(self, error: errors.GatewayError) -> errors.GatewayError:
        close_after(self._environ)
        return error


class Spooled:
    """A form kept in a temporary file, to be sent from its start with a known length.

    `spans` are the places of the `model` field's value, which `with_text` can change.
    """

    def __init__(
        self, file: IO[bytes], length: int, spans: list[tuple[int, int]], text: bytes | None = None
    ) -> None:
        self._file = file
        self._size = length
        self._spans = spans
        self._text = text
        self.length = length
        if text is not None:
            self.length += sum(len(text) - (end - start) for start, end in spans)

    def with_text(self, text: str) -> Spooled:
        """The same form with another value of the field, and nothing else of it changed."""
        return Spooled(self._file, self._size, self._spans, text.encode())

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        position = 0
        for start, end in self._spans if self._text is not None else ():
            yield from self._pieces(start - position)
            yield self._text or b""
            self._file.seek(end)
            position = end
        yield from self._pieces(self._size - position)

    def _pieces(self, count: int) -> Iterator[bytes]:
        moved = 0
        while count and (piece := self._file.read(min(PIECE, count))):
            count -= len(piece)
            yield piece
            moved = take_turns(moved + len(piece))

    def close(self) -> None:
        self._file.close()


class Call:
    """One request as the relay needs it.

    `model` is None where none could be read. `target` is the raw path, `path` the one by which
    things are decided: decoded, in lower case and without a slash at the end, as the most lenient
    provider may read it. `strip_usage` says that the stream's use was asked for in the caller's
    place, so that he must not see it.
    """

    __slots__ = (
        *("_finder", "body", "environ", "is_json", "method", "model", "path", "query"),
        *("raw", "stream", "strip_usage", "target"),
    )

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.target, self.query = split_target(environ)
        self.path = unquote(self.target).rstrip("/").lower()
        self._finder: FieldFinder | None = None
        self.raw: RawBody | None = None
        self.body: bytes | Iterable[bytes] | None = None
        self.is_json = False
        self.model: str | None = None
        self.stream = False
        self.strip_usage = False

    def read_json(self, limit: int, *, may_be_empty: bool = False) -> None:
        """Take the body as a JSON object and read `model` and `stream` from it."""
        self.raw = RawBody(self.environ, limit)
        body = self.raw.read_all()
        if not body and may_be_empty:
            self.body = body
            return
        _check_utf8(body)
        try:
            fields = _decode(body)
        except msgspec.ValidationError as error:
            raise _wrong_field(str(error)) from None
        except msgspec.DecodeError as error:
            raise errors.InvalidJson(f"The body is not valid JSON: {error}.") from None
        except RecursionError:
            raise errors.InvalidJson("The body is nested too deep.") from None
        if _is_ambiguous_object(body):
            raise errors.InvalidBody(
                "A field is given twice, or in capitals: 'model', 'stream' or 'stream_options'."
            )
        self.body, self.is_json = body, True
        self.model, self.stream = fields.model, bool(fields.stream)

    def read_any(
        self,
        json_limit: int,
        upload_limit: int,
        *,
        need_model: bool,
        only_readable: bool,
        only_json: bool = False,
    ) -> None:
        """Take a body of any kind; `need_model` says that a form's `model` field decides.

        JSON is read as in `read_json`. With `only_readable` everything that is neither JSON nor
        a form is taken for JSON too, whatever its type says: there are providers that do. With
        `only_json` a form is taken for JSON as well.
        """
        content_type = self.environ.get("CONTENT_TYPE", "").lower()
        is_form = content_type.startswith("multipart/form-data") and not only_json
        if not has_body(self.environ):
            # An explicit Content-Length: 0 is repeated, a missing one stays missing.
            self.body = b"" if self.environ.get("CONTENT_LENGTH") else None
        elif only_json or is_json_type(content_type) or (only_readable and not is_form):
            self.read_json(json_limit, may_be_empty=True)
        elif need_model and is_form:
            self._read_form(upload_limit)
        else:
            self.body = self.raw = RawBody(self.environ, upload_limit)
            if is_form:
                self._finder = FieldFinder(self.environ["CONTENT_TYPE"], "model")
                self.raw.reader = self._finder.feed

    @property
    def told_model(self) -> str:
        """The `model` that is known once the body has flowed by; empty where there is none."""
        return self.model or (self._finder.value if self._finder else None) or ""

    def _read_form(self, limit: int) -> None:
        """Find the form's `model`, wherever it stands, with the file parts on disk."""
        raw = self.raw = RawBody(self.environ, limit)
        finder = FieldFinder(self.environ["CONTENT_TYPE"], "model", scan_all=True)
        file: IO[bytes] = tempfile.SpooledTemporaryFile(1 << 20)  # noqa: SIM115  # relay closes it
        begins = b""
        try:
            for piece in raw:
                begins = begins or piece.lstrip()[:1]
                finder.feed(piece)
                file.write(piece)
                if finder.problem:
                    break
            finder.end()
        except BaseException:
            file.close()
            raise
        self.body = Spooled(file, raw.received, finder.spans)
        problem = finder.problem
        if begins == b"{":  # what stands before a form is nothing, but not to a reader of JSON
            problem = "it begins as a JSON object does"
        if problem:
            file.close()
            if not raw.ended:
                close_after(self.environ)
            raise errors.InvalidBody(f"The form cannot be read: {problem}.")
        self.model = finder.value

    @property
    def waited(self) -> float:
        """Seconds spent waiting for the caller to send."""
        return self.raw.waited if self.raw is not None else 0.0

    def body_for(
        self, rename: str | None, headers: dict[str, str], *, ask_usage: bool
    ) -> tuple[bytes | Iterable[bytes] | None, dict[str, str]]:
        """Body and headers for one target: `model` renamed, a stream's use asked for.

        Exactly that is changed. A stream whose usage event has to be taken out again must come
        uncompressed.
        """
        try:
            return self._body_for(rename, headers, ask_usage=ask_usage)
        except ValueError as error:
            raise errors.InvalidBody(f"The body cannot be changed: {error}.") from None

    def _body_for(
        self, rename: str | None, headers: dict[str, str], *, ask_usage: bool
    ) -> tuple[bytes | Iterable[bytes] | None, dict[str, str]]:
        body = self.body
        if rename is not None:
            value = msgspec.json.encode(rename)
            if isinstance(body, bytes):
                body = jsonbytes.replace_value(body, "model", value)
            elif isinstance(body, Spooled):
                body = body.with_text(rename)
        self.strip_usage = False
        if ask_usage and isinstance(body, bytes):
            asking = set_include_usage(body)
            if asking is not body:
                body, self.strip_usage = asking, True
                headers = {**headers, "Accept-Encoding": "identity"}
        return body, headers


def split_target(environ: Mapping[str, Any]) -> tuple[str, str]:
    """The raw path and `?query` of the request line, refused where they have two readings.

    RFC 3986 section 3.3 and 6.2.2; RFC 9112 section 3.2: only the origin form is served.
    """
    raw: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    path, mark, query = raw.partition("?")
    if not path.startswith("/") or _is_ambiguous(path) or _BAD_QUERY.search(query):
        raise errors.InvalidPath(
            "The path could be read in two ways: no dot segments, encoded slashes, '//', "
            "backslashes, malformed percent-encodings or control characters."
        )
    return path, mark + query


def _is_ambiguous(path: str) -> bool:
    """Whether readers could differ on where the path leads.

    A model's name is all that stands behind `/models/`, with slashes or, as the SDKs write them
    there, with encoded ones: both readings are the same, so both are taken.
    """
    before, models, name = path.partition("/models/")
    plain = before + models + _ENCODED_SLASH.sub("/", name)
    return _AMBIGUOUS.search(plain) is not None


def content_length(environ: Mapping[str, Any]) -> int | None:
    """The declared length of the body, None where there is none (chunked or no body)."""
    text = environ.get("CONTENT_LENGTH")
    return int(text) if text else None


def has_body(environ: Mapping[str, Any]) -> bool:
    """Whether body bytes follow the head (RFC 9112 section 6.3)."""
    return bool(content_length(environ)) or "HTTP_TRANSFER_ENCODING" in environ


def is_json_type(content_type: str) -> bool:
    """`application/json` and its `+json` relatives."""
    kind = content_type.split(";", 1)[0].strip()
    return kind == "application/json" or kind.endswith("+json")


def refuse_compressed(environ: Mapping[str, Any]) -> None:
    """A compressed request body cannot be read beside the bytes (RFC 9110 section 15.5.16)."""
    encoding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding not in ("", "identity"):
        raise errors.UnsupportedEncoding(
            "Compressed request bodies are not accepted: send the body without Content-Encoding."
        )


def refuse_other_method(environ: Mapping[str, Any]) -> None:
    """A header that makes another method of this one, for readers that know it, is refused."""
    method = environ["REQUEST_METHOD"]
    for name in _METHOD_OVERRIDES:
        if environ.get(name, method).strip().upper() != method:
            raise errors.BadRequest("The request names two methods: send the one you mean.")


def close_after(environ: Mapping[str, Any]) -> None:
    """Close the connection after this answer: where the next request begins is not known."""
    force_close = getattr(environ["wsgi.input"], "force_close", None)
    if force_close is not None:
        force_close()


def body_seconds(environ: Mapping[str, Any], timeout: float, limit: int) -> float:
    """How long a body may take in all: a grace period, then a slow modem's pace."""
    length = content_length(environ)
    return timeout + (limit if length is None else min(length, limit)) / SLOWEST_BYTES_PER_SECOND


def _check_utf8(body: bytes) -> None:
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.InvalidJson(f"The body is not UTF-8 (byte {error.start}).") from None


def _is_ambiguous_object(body: bytes) -> bool:
    try:
        return jsonbytes.has_duplicate(body, _READ_FIELDS)
    except ValueError as error:
        raise errors.InvalidBody(f"The body cannot be read: {error}.") from None


def _wrong_field(problem: str) -> errors.GatewayError:
    """Msgspec says `Expected `str | null`, got `int` - at `$.model``."""
    what, _, where = problem.partition(" - at `$.")
    field = where.rstrip("`") or None
    name = f"'{field}': " if field else "The body: "
    return errors.InvalidBody(name + what.replace("`", "") + ".", param=field)
