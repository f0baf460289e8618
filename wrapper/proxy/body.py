"""The body of a request: read with its limits checked, kept in memory or a file, or streamed
through.

Invariant: a body is whole and within its limits, or the request is refused and the connection
closed, because where the next request begins is then unknown.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

from gunicorn.http.errors import ParseException

from wrapper import errors
from wrapper.cancellation import yield_if_due
from wrapper.capacity import Holding, has_room
from wrapper.formats.multipart import FieldFinder

PIECE: Final = 65536  # bytes of a body that are read at once
# Chunks may be of one byte each, and cost a microsecond or two then.
CHUNKED_PIECE: Final = 16384
IN_MEMORY: Final = 1 << 20  # bytes of a form that may be kept in memory
SMALL: Final = 65536  # a body up to this size is not counted: there are as many as requests
DISK_STEP: Final = 1 << 20  # bytes of an upload between two looks at the volume

log = logging.getLogger("wrapper")


class RequestBody:
    """The body as the server delivers it, with limit, length and time checked.

    Iterating gives pieces of up to 64 KiB, which `form` reads too. Raises RequestTooLarge,
    IncompleteBody or RequestTimeout, each with the connection marked for closing.
    """

    def __init__(
        self,
        environ: Mapping[str, Any],
        length: int | None,
        limit: int,
        form: FieldFinder | None = None,
    ) -> None:
        self._environ = environ
        self._input = environ["wsgi.input"]
        self._limit = limit
        self._form = form
        self._spool: IO[bytes] | None = None  # where the body is kept, if it is
        self.length = length  # None: chunked
        self.received = 0
        self.waited = 0.0  # seconds spent waiting for the client
        self.ended = length == 0
        self.holdings: tuple[Holding, ...] = ()
        if length is not None and length > limit:
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
                errors.IncompleteBody("The request body ended early or its framing is malformed.")
            ) from None
        finally:
            self.waited += time.perf_counter() - began
        self.received += len(data)
        if self.received >= CHUNKED_PIECE:
            yield_if_due()
        if self.received > self._limit:
            raise self._too_large()
        if self._form is not None:
            self._form.feed(data)
        self.ended = not data if self.length is None else self.received >= self.length
        if not data and not self.ended:
            self.ended = True
            raise self._closing(
                errors.IncompleteBody(
                    f"The body ended after {self.received} bytes; Content-Length said "
                    f"{self.length}."
                )
            )
        return data

    def read_all(self, memory: Holding | None = None) -> bytes:
        """The whole body in memory, counted in `memory` unless it is known to be small.

        Raises Overloaded where no memory is left.
        """
        if memory is None:
            data = self.read(self.length) if self.length else b""
            return data if self.ended else data + b"".join(self)
        self.holdings = (memory,)
        if self.length is not None and not memory.take(self.length):
            raise overloaded()
        pieces: list[bytes] = []
        for piece in self:
            pieces.append(piece)
            if self.length is None and self.received > SMALL and not memory.take(len(piece)):
                raise overloaded()
        return b"".join(pieces)

    def spool(self, *, in_memory: bool) -> IO[bytes]:
        """Where to keep the body until `close`: a temporary file, or one that is `in_memory`."""
        file = io.BytesIO() if in_memory else tempfile.TemporaryFile()  # noqa: SIM115  # see close()
        self._spool = file
        return file

    def close(self) -> None:
        """Give back what the body holds: its file, its part of memory and disk."""
        if self._spool is not None:
            with contextlib.suppress(OSError):  # of bytes that could not be written, as `keep` said
                self._spool.close()
        for holding in self.holdings:
            holding.release()

    def _too_large(self) -> errors.GatewayError:
        return self._closing(
            errors.RequestTooLarge(
                f"The request body is larger than the {self._limit} bytes allowed here."
            )
        )

    def _closing(self, error: errors.GatewayError) -> errors.GatewayError:
        close_after(self._environ)
        return error


class SpooledForm:
    """A form kept in a temporary file, or in memory where it is small, to be sent from its start
    with a known length.

    `spans` are the places of the `model` field's value, which `with_text` can change.
    """

    def __init__(
        self,
        file: IO[bytes],
        size: int,
        spans: list[tuple[int, int]],
        text: bytes | None = None,
    ) -> None:
        self._file = file
        self._size = size
        self._spans = spans
        self._text = text
        self.length = size
        if text is not None:
            self.length += sum(len(text) - (end - start) for start, end in spans)

    def with_text(self, text: str) -> SpooledForm:
        """The same form with another value of the field, and nothing else of it changed."""
        return SpooledForm(self._file, self._size, self._spans, text.encode())

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
        while count and (piece := self._file.read(min(PIECE, count))):
            count -= len(piece)
            yield piece
            yield_if_due()


Body = bytes | RequestBody | SpooledForm | None
"""The bytes in memory, the stream as it comes, a form that is kept, or no body at all."""


def spool_form(
    body: RequestBody, finder: FieldFinder, memory: Holding, disk: Holding
) -> SpooledForm:
    """Read a whole form into a temporary file, or into memory where it is known to be small and
    there is some, while `finder` looks for its field.

    Raises InvalidBody where two readers could disagree about the field, NoRoom where the disk is
    full or is needed for more important things.
    """
    body.holdings = (memory, disk)
    length = body.length
    in_memory = length is not None and length <= IN_MEMORY and memory.take(length)
    if not in_memory:
        _take_room(disk, length or 0, length or 0)
    file = body.spool(in_memory=in_memory)
    begins, written, looked = b"", 0, 0
    for piece in body:
        begins = begins or piece.lstrip()[:1]
        finder.feed(piece)
        if not in_memory:
            written += len(piece)
            if written - looked >= DISK_STEP:
                looked = written
                _take_room(disk, DISK_STEP if length is None else 0, DISK_STEP)
        keep(piece, file)
        if finder.problem:
            break
    finder.end()
    # Text before a form means nothing, except to a reader of JSON.
    problem = "it begins as a JSON object does" if begins == b"{" else finder.problem
    if problem:
        raise errors.InvalidBody(f"The form cannot be read: {problem}.")
    return SpooledForm(file, body.received, finder.spans)


def _take_room(disk: Holding, size: int, ahead: int) -> None:
    """Count `size` more bytes of uploads on the disk, and look for room for those `ahead`."""
    if not has_room(tempfile.gettempdir(), ahead) or not disk.take(size):
        raise no_room()


def keep(piece: bytes, file: IO[bytes]) -> None:
    """Write a piece of an upload. Raises NoRoom for a full disk."""
    try:
        file.write(piece)
        file.flush()  # else it would be written when it is read, for a provider
    except OSError as error:
        log.error("cannot keep an upload: %s", error.strerror)
        raise no_room() from None


def no_room() -> errors.NoRoom:
    """The response to an upload that cannot be kept."""
    return errors.NoRoom(
        "There is no room to keep the upload at the moment; try again later.",
        headers=(("Retry-After", "10"),),
    )


def overloaded() -> errors.Overloaded:
    """The response to a request that the worker has no room for."""
    return errors.Overloaded(
        "The gateway is serving as many requests as it can; try again shortly.",
        headers=(("Retry-After", "1"),),
    )


def content_length(environ: Mapping[str, Any]) -> int | None:
    """The length of the body after the head, None for a chunked one (RFC 9112 section 6.3)."""
    text = environ.get("CONTENT_LENGTH")
    if text:
        return int(text)
    return None if "HTTP_TRANSFER_ENCODING" in environ else 0


def close_after(environ: Mapping[str, Any]) -> None:
    """Close the connection after this response: where the next request begins is unknown."""
    force_close = getattr(environ["wsgi.input"], "force_close", None)
    if force_close is not None:
        force_close()
