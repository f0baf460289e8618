"""The body of a response without its content coding, where bytes inside of it have to change.

Invariant: broken compression, or a body that unfolds beyond measure, ends as a broken response
does; it never looks complete.
"""

from __future__ import annotations

from collections.abc import Iterator

from wrapper.formats.http1 import Body, Disconnected, ProtocolError
from wrapper.metering.decoding import FREE_BYTES, MAX_RATIO, Decoder, DecompressionError


class UnfoldedBody(Body):
    """The decoded bytes of `inner`; `complete` once there are none left."""

    __slots__ = ("_decoder", "_inner", "_pieces", "_received", "_unfolded")

    def __init__(self, inner: Body, decoder: Decoder) -> None:
        self.connection = inner.connection
        self.complete = False
        self._inner = inner
        self._decoder = decoder
        self._pieces: Iterator[bytes] = iter(())
        self._received = 0
        self._unfolded = 0

    def read1(self) -> bytes:
        while not self.complete:
            try:
                piece = next(self._pieces, b"")
            except DecompressionError:
                raise ProtocolError("its compression cannot be read") from None
            if piece:
                self._unfolded += len(piece)
                if self._unfolded > FREE_BYTES + MAX_RATIO * self._received:
                    raise ProtocolError("it unfolds to more than is relayed")
                return piece
            data = self._inner.read1()
            if data:
                self._received += len(data)
                self._pieces = self._decoder.decode(data)
            elif not self._decoder.at_end:
                raise Disconnected("its compressed body ends early")
            else:
                self.complete = True
        return b""
