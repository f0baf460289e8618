"""Usage in a compressed response.

The client gets the compressed bytes unchanged; another extractor reads a decompressed copy (RFC
9110 section 8.4.1: gzip, deflate with and without the zlib header; br is RFC 7932).

Invariant: a decompression bomb costs neither memory nor much time, and broken compression is a
reason, not an exception.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

import brotli
from msgspec.structs import replace

from wrapper.metering.usage import TOO_LARGE, UNREADABLE, ExtractedUsage, UsageExtractor

# The copy is decompressed in pieces of this size …
PIECE_BYTES = 64 * 1024
# … up to this size plus this many times the compressed size.
FREE_BYTES = 8 << 20
MAX_RATIO = 200


class DecompressionError(Exception):
    """The compressed data cannot be read."""


class Decoder(Protocol):
    """Decompresses one stream."""

    @property
    def at_end(self) -> bool:
        """Whether the stream may end here."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """The decompressed pieces of `data`. Raises DecompressionError."""


class Inflate:
    """gzip with any number of members, zlib or raw deflate."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._start = b""
        self._inflate = zlib.decompressobj(wbits=31) if gzip else None
        self.at_end = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            data = self._start + data
            if len(data) < 2:
                self._start = data
                return
            self._inflate = zlib.decompressobj(wbits=15 if _has_zlib_header(data) else -15)
        while data:
            try:
                piece = self._inflate.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise DecompressionError(str(error)) from error
            if piece:
                yield piece
            data = self._inflate.unconsumed_tail
            self.at_end = self._inflate.eof
            if self._inflate.eof:
                data = self._inflate.unused_data
                # Data after the last member is padding (gzip(1) ignores it too).
                if not self._gzip or data[:1] not in (b"", b"\x1f"):
                    return
                self._inflate = zlib.decompressobj(wbits=31)


class Brotli:
    """br."""

    def __init__(self) -> None:
        self._decompressor = brotli.Decompressor()

    @property
    def at_end(self) -> bool:
        return bool(self._decompressor.is_finished())

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._decompressor.is_finished():
            return
        try:
            while True:
                piece = self._decompressor.process(data, output_buffer_limit=PIECE_BYTES)
                if piece:
                    yield piece
                data = b""
                if self._decompressor.is_finished() or self._decompressor.can_accept_more_data():
                    return
        except brotli.error as error:
            raise DecompressionError(str(error)) from error


def _has_zlib_header(data: bytes) -> bool:
    # RFC 1950 section 2.2: the method is 8, and the first two bytes are a multiple of 31.
    return data[0] & 0x0F == 8 and (data[0] * 256 + data[1]) % 31 == 0


class DecodingExtractor:
    """Feeds a decompressed copy to `inner`; the compressed bytes pass through unchanged."""

    __slots__ = ("_compressed", "_decoder", "_decompressed", "_inner", "_reason")

    def __init__(self, decoder: Decoder, inner: UsageExtractor) -> None:
        self._decoder = decoder
        self._inner = inner
        self._compressed = 0
        self._decompressed = 0
        self._reason: str | None = None

    def feed(self, data: bytes) -> bytes:
        if self._reason is None:
            self._compressed += len(data)
            try:
                self._decode(data)
            except DecompressionError:
                self._reason = UNREADABLE
        return data

    def _decode(self, data: bytes) -> None:
        # Here, because commands of the command line import this module and not gevent.
        from wrapper.cancellation import yield_if_due

        for piece in self._decoder.decode(data):
            self._decompressed += len(piece)
            if self._decompressed > FREE_BYTES + MAX_RATIO * self._compressed:
                self._reason = TOO_LARGE
                return
            self._inner.feed(piece)
            yield_if_due()

    def flush(self) -> bytes:
        if self._reason is None:
            self._inner.flush()
        return b""

    def extracted(self) -> ExtractedUsage:
        extracted = self._inner.extracted()
        if extracted.usage is not None or self._reason is None:
            return extracted
        return replace(extracted, reason=self._reason)


def decoder_for(encoding: str) -> Decoder | None:
    """The decoder of one content coding (in lower case), None where there is none."""
    if encoding in ("gzip", "x-gzip"):
        return Inflate(gzip=True)
    if encoding == "deflate":
        return Inflate(gzip=False)
    if encoding == "br":
        return Brotli()
    return None
