"""The body of a request: read with its limits checked, or kept aside, or let flow through.

The rule protected here: a body is whole and within its limits, or the call is refused and the
connection closed, for where the next request begins is then not known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Final

from gunicorn.http.errors import ParseException

from wrapper import errors
from wrapper.cancellation import TURN, take_turns

PIECE: Final = 65536
SLOWEST_BYTES_PER_SECOND: Final = 32768
# Chunks may be of one byte each, and cost a microsecond or two then: a piece of a chunked body is
# smaller, and one that took long is followed by the others' turn.
CHUNKED_PIECE: Final = 16384
LONG: Final = 0.005  # seconds


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


def content_length(environ: Mapping[str, Any]) -> int | None:
    """The declared length of the body, None where there is none (chunked or no body)."""
    text = environ.get("CONTENT_LENGTH")
    return int(text) if text else None


def has_body(environ: Mapping[str, Any]) -> bool:
    """Whether body bytes follow the head (RFC 9112 section 6.3)."""
    return bool(content_length(environ)) or "HTTP_TRANSFER_ENCODING" in environ


def close_after(environ: Mapping[str, Any]) -> None:
    """Close the connection after this answer: where the next request begins is not known."""
    force_close = getattr(environ["wsgi.input"], "force_close", None)
    if force_close is not None:
        force_close()


def body_seconds(environ: Mapping[str, Any], timeout: float, limit: int) -> float:
    """How long a body may take in all: a grace period, then a slow modem's pace."""
    length = content_length(environ)
    return timeout + (limit if length is None else min(length, limit)) / SLOWEST_BYTES_PER_SECOND
