"""WebSocket frames (RFC 6455): read beside the bytes with wsproto, and a few that are written.

`FrameReader` is fed one direction of a connection, however it is cut into pieces, and says which
whole messages have passed and where the bytes stand: at the end of a frame, of a message. Nothing
may be put between the bytes anywhere else.

Extensions are never agreed on, so every frame is as it looks (no compression).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from wsproto.frame_protocol import FrameDecoder, ParseFailed, XorMaskerSimple
from wsproto.frame_protocol import Opcode as Opcode

VERSION: Final = "13"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
HEAD: Final = 1024  # bytes of a message that are kept where it is too large
_MAX_REASON: Final = 123  # bytes beside the code: a control frame has 125

GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
RESTART: Final = 1012
TRY_LATER: Final = 1013


def accept_of(key: str) -> str:
    """`Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2)."""
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def is_key(text: str) -> bool:
    """Whether it is a `Sec-WebSocket-Key`: 16 bytes in base64."""
    try:
        return len(base64.b64decode(text, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


class Message(NamedTuple):
    """A whole message, or a Close frame. `data` is None where there was more than is kept: then
    `head` has its beginning. `end` is how many bytes of the direction had passed with it.
    """

    opcode: Opcode
    data: bytes | None
    head: bytes
    end: int


class FrameReader:
    """Reads one direction: the client's, whose frames are `masked`, or the server's.

    A message of more than `limit` bytes is not kept. `broken`: the bytes are no frames any more;
    nothing is read from then on.
    """

    def __init__(self, *, masked: bool, limit: int) -> None:
        self._decoder = FrameDecoder(client=not masked)
        self._limit = limit
        self._opcode: Opcode | None = None  # of the message that has begun
        self._kept = bytearray()
        self._size = 0
        self._fed = 0
        self.broken = False

    @property
    def at_frame_end(self) -> bool:
        """Whether a control frame may follow the bytes so far."""
        return not self.broken and self._decoder.header is None and not self._decoder.buffer

    @property
    def at_message_end(self) -> bool:
        """Whether a message may follow the bytes so far."""
        return self.at_frame_end and self._opcode is None

    @property
    def kept(self) -> int:
        """How many bytes are kept of a message that is not whole yet."""
        return len(self._kept)

    def drop(self) -> None:
        """Keep no more of the present message than its beginning."""
        self._size = max(self._size, self._limit + 1)
        del self._kept[HEAD:]

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take the next bytes; yields the messages and Close frames that are whole with them.

        A frame whose payload comes in pieces is several frames to wsproto, all but the first
        continuations.
        """
        if self.broken:
            return
        self._fed += len(data)
        self._decoder.receive_bytes(data)
        while True:
            try:
                frame = self._decoder.process_buffer()
            except ParseFailed:
                self.broken = True
                return
            if frame is None:
                return
            payload = bytes(frame.payload)  # type: ignore[arg-type]  # as it has come
            end = self._fed - len(self._decoder.buffer)
            if frame.opcode.iscontrol():
                if frame.opcode is Opcode.CLOSE:
                    yield Message(Opcode.CLOSE, payload, payload, end)
                continue
            begins = frame.opcode is not Opcode.CONTINUATION
            if begins != (self._opcode is None):
                self.broken = True
                return
            self._opcode = self._opcode or frame.opcode
            message = self._take(
                payload, end, whole=frame.frame_finished and frame.message_finished
            )
            if message is not None:
                yield message

    def _take(self, payload: bytes, end: int, *, whole: bool) -> Message | None:
        self._size += len(payload)
        if self._size <= self._limit:
            self._kept += payload
        else:  # too much to keep: its beginning will do
            self._kept += payload[:HEAD]
            del self._kept[HEAD:]
        if not whole or self._opcode is None:
            return None
        kept, fits = bytes(self._kept), self._size <= self._limit
        message = Message(self._opcode, kept if fits else None, kept[:HEAD], end)
        self._opcode, self._size = None, 0
        self._kept.clear()
        return message


class Close(NamedTuple):
    """What a Close frame says (RFC 6455 section 5.5.1)."""

    code: int
    reason: str

    def frame(self, *, masked: bool) -> bytes:
        """The frame; one to a server has to be `masked`."""
        reason = self.reason.encode()[:_MAX_REASON].decode(errors="ignore").encode()
        return _frame(Opcode.CLOSE, struct.pack("!H", self.code) + reason, masked=masked)


def close_code(payload: bytes) -> int:
    """The code in a Close frame's payload; 1005 where there is none (RFC 6455 section 7.1.5)."""
    return int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005


def text_frame(text: bytes, *, masked: bool) -> bytes:
    """A message of one frame; `text` is UTF-8."""
    return _frame(Opcode.TEXT, text, masked=masked)


def _frame(opcode: Opcode, payload: bytes, *, masked: bool) -> bytes:
    mark, size = 0x80 if masked else 0, len(payload)
    head = bytes([0x80 | opcode])
    if size < 126:
        head += bytes([mark | size])
    elif size < 1 << 16:
        head += bytes([mark | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mark | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(XorMaskerSimple(mask).process(bytearray(payload)))
