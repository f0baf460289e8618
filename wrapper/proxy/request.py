"""What the caller asks for: the raw target, the headers, the body, and the two fields we read.

A body is held in memory only where a field of it decides (JSON: `model`, `stream`), goes to a
temporary file where a form field may stand behind a large file part, and otherwise flows
through. Whatever is read here is read beside the bytes; the bytes stay the caller's.

The rule protected here: nothing ambiguous reaches a provider. A target with two readings, a
JSON object with two `model`s, a body shorter than its length are refused before anything is
sent, in words that say what was wrong.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import IO, Any, Final
from urllib.parse import unquote

import msgspec

from wrapper import errors
from wrapper.formats import jsonbytes
from wrapper.formats.multipart import FieldFinder
from wrapper.metering import set_include_usage
from wrapper.proxy.body import RawBody, Spooled, body_seconds, close_after, content_length, has_body
from wrapper.proxy.target import split_target

__all__ = [
    "Call",
    "RawBody",
    "Spooled",
    "body_seconds",
    "close_after",
    "content_length",
    "has_body",
    "is_json_type",
    "refuse_compressed",
    "refuse_other_method",
    "split_target",
]


log = logging.getLogger("wrapper")

_METHOD_OVERRIDES: Final = (
    "HTTP_X_HTTP_METHOD_OVERRIDE",
    "HTTP_X_HTTP_METHOD",
    "HTTP_X_METHOD_OVERRIDE",
)
_PARAMETERS: Final = re.compile("[;?#][^/]*")  # RFC 3986 section 3.3: readers may leave them out
_CHARSET: Final = re.compile(r";[ \t]*charset[ \t]*=[ \t]*\"?([^\";, \t]*)")
_READ_FIELDS: Final = frozenset({"model", "models", "stream", "stream_options"})


class _Fields(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    models: msgspec.Raw = msgspec.Raw(b"[]")


_decode = msgspec.json.Decoder(_Fields).decode
_decode_names = msgspec.json.Decoder(list[str] | None).decode


class Call:
    """One request as the relay needs it.

    `model` is None where none could be read. `target` is the raw path, `path` the one by which
    things are decided: decoded, in lower case, without parameters and without a slash at the end,
    as the most lenient provider may read it. `body_seconds` is how long the body may take to come.
    `strip_usage` says that the stream's use was asked for in the caller's place, so that he must
    not see it.
    """

    __slots__ = (
        *(
            "_finder",
            "_models",
            "body",
            "body_seconds",
            "environ",
            "method",
            "model",
            "path",
            "query",
        ),
        *("raw", "stream", "strip_usage", "target"),
    )

    def __init__(self, environ: Mapping[str, Any], body_seconds: float = 0.0) -> None:
        self.environ = environ
        self.body_seconds = body_seconds
        self.method: str = environ["REQUEST_METHOD"]
        self.target, self.query = split_target(environ)
        self.path = _PARAMETERS.sub("", unquote(self.target)).rstrip("/").lower()
        self._finder: FieldFinder | None = None
        self.raw: RawBody | None = None
        self.body: bytes | Iterable[bytes] | None = None
        self.model: str | None = None
        self._models = msgspec.Raw(b"[]")
        self.stream = False
        self.strip_usage = False

    def read_json(self, limit: int, *, may_be_empty: bool = False) -> None:
        """Take the body as a JSON object and read `model` and `stream` from it."""
        self.raw = RawBody(self.environ, limit)
        body = self.raw.read_all()
        _check_charset(self.environ.get("CONTENT_TYPE", "").lower())
        if not body and may_be_empty:
            self.body = body
            return
        if not body:
            raise errors.InvalidJson("The body is empty: send a JSON object.")
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
                "A field is given twice, or in capitals: 'model', 'models', 'stream' or "
                "'stream_options'."
            )
        self.body = body
        self.model, self.stream = fields.model, bool(fields.stream)
        self._models = fields.models

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

    @property
    def further_models(self) -> list[str]:
        """Those that the body names in `models`, as OpenRouter takes them: to be tried in place of
        `model`. Raises InvalidBody where they cannot be read.
        """
        try:
            return _decode_names(self._models) or []
        except msgspec.DecodeError:
            raise errors.InvalidBody("'models' is not a list of names.", param="models") from None

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
                _keep(piece, file)
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


def _keep(piece: bytes, file: IO[bytes]) -> None:
    try:
        file.write(piece)
    except OSError as error:
        log.error("an upload cannot be kept: %s", error.strerror)
        raise errors.NoRoom(
            "There is no room to keep the upload at the moment; try again later.",
            headers=(("Retry-After", "10"),),
        ) from None


def is_json_type(content_type: str) -> bool:
    """`application/json` and its `+json` relatives."""
    kind = content_type.split(";", 1)[0].strip()
    return kind == "application/json" or kind.endswith("+json")


def refuse_compressed(environ: Mapping[str, Any]) -> None:
    """A compressed request body cannot be read beside the bytes (RFC 9110 section 15.5.16)."""
    encoding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    transfer = environ.get("HTTP_TRANSFER_ENCODING", "").strip().lower()
    if encoding not in ("", "identity") or transfer not in ("", "chunked"):
        raise errors.UnsupportedEncoding(
            "Compressed request bodies are not accepted: send the body without Content-Encoding."
        )


def refuse_other_method(environ: Mapping[str, Any]) -> None:
    """A header that makes another method of this one, for readers that know it, is refused."""
    method = environ["REQUEST_METHOD"]
    for name in _METHOD_OVERRIDES:
        if environ.get(name, method).strip().upper() != method:
            raise errors.BadRequest("The request names two methods: send the one you mean.")


def _check_charset(content_type: str) -> None:
    """RFC 8259 section 8.1. Another one named is one that another reader may go by."""
    named = _CHARSET.search(content_type)
    if named and named[1] not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise errors.InvalidJson("JSON is UTF-8: leave the charset out of Content-Type.")


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
