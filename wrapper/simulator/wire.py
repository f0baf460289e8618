"""Sending a reply as ordered: framing, pace, compression, and every way of breaking off.

The order of the stages is fixed: events, their lines (`lines`), compression, the cut into sends
(`packing`), chunks. Plain streams pass through none of the optional ones.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import brotli
import gevent

from wrapper.simulator.books import Record
from wrapper.simulator.caller import Caller
from wrapper.simulator.framing import Framing, framing_for
from wrapper.simulator.http import Request
from wrapper.simulator.lines import written
from wrapper.simulator.orders import Orders
from wrapper.simulator.packing import Piece, packed
from wrapper.simulator.replies import Event, Reply

BLOCK = 65536
_FAIR = 16  # sends without a pause between two turns of the loop


class Broken(Exception):
    """The answer was broken off as ordered; the connection must not be used again."""


class _Compressor(Protocol):
    def add(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...


class _Zlib:
    def __init__(self, gzip: bool) -> None:
        self._inner = zlib.compressobj(wbits=31 if gzip else 15)

    def add(self, data: bytes) -> bytes:
        return self._inner.compress(data) + self._inner.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._inner.flush(zlib.Z_FINISH)


class _Brotli:
    def __init__(self) -> None:
        self._inner = brotli.Compressor(quality=4)

    def add(self, data: bytes) -> bytes:
        return bytes(self._inner.process(data) + self._inner.flush())

    def end(self) -> bytes:
        return bytes(self._inner.finish())


def compressor(encoding: str) -> _Compressor:
    """A compressor whose every piece can be read at once."""
    return _Brotli() if encoding == "br" else _Zlib(encoding == "gzip")


@dataclass(slots=True)
class Sending:
    """One reply on its way to one caller."""

    caller: Caller
    orders: Orders
    record: Record
    gap: float
    framing: Framing = field(init=False)
    _breaks: bool = False

    def send(self, reply: Reply, request: Request) -> bool:
        """Send it all. Returns whether the connection may be used again.

        Raises `Left` when the caller leaves and `Broken` when the orders say so.
        """
        orders = self.orders
        if orders.reset == 0:
            self._break()
        self.framing = framing_for(orders, reply, request)
        if reply.events is not None:
            pieces = self._stream(reply.events)
        elif reply.blocks is not None:
            pieces = self._blocks(reply.blocks)
        else:
            pieces = self._whole(reply)
        if orders.drip is not None:
            pieces = packed(pieces, orders)
        head = self.framing.head
        if request.method == "HEAD" or reply.status in (204, 304):
            self._head(head)
            return self.framing.reusable
        if reply.events is None and reply.blocks is None and orders.header_drip is None:
            first = next(pieces, None)  # the head and a whole body leave in one send
            if first is not None:
                head, pieces = head + self.framing.wrap(first.data), _after(first, pieces, self)
        self._head(head)
        self._body(pieces)
        if self._breaks:
            self._break()
        if self.framing.end:
            self.caller.send(self.framing.end)
        return self.framing.reusable

    def _head(self, head: bytes) -> None:
        apart = self.orders.header_drip
        if apart is None:
            self.caller.send(head)
            return
        for place in range(len(head)):
            if place:
                self.caller.pause(apart)
            self.caller.send(head[place : place + 1])

    def _body(self, pieces: Iterator[Piece]) -> None:
        """Send the pieces at their pace.

        Nothing is waited for behind the last one: who has the whole answer may ask the books.
        """
        gap = self.orders.drip if self.orders.drip is not None else self.gap
        caller, wrap, record = self.caller, self.framing.wrap, self.record
        due = time.monotonic()
        count = 0
        for piece in pieces:
            if count == _FAIR:
                count = 0
                gevent.sleep(0)
            if piece.data:
                caller.send(wrap(piece.data))
            record.events += piece.events
            if piece.usage is not None and not self.framing.unreadable:
                record.usage, record.unsent = piece.usage, None
            if gap and piece.paced:
                due += gap
                now = time.monotonic()
                if due < now - 1:
                    due = now
                caller.wait(due)
            else:
                count += 1

    def _break(self) -> None:
        if self.orders.stall is not None and self._breaks:
            self.caller.stall()
        if self.orders.reset is not None:
            self.caller.reset()
        raise Broken

    def _limit(self) -> int | None:
        limits = (self.orders.stall, self.orders.reset, self.orders.cut)
        return min((limit for limit in limits if limit is not None), default=None)

    def _stream(self, events: Iterator[Event]) -> Iterator[Piece]:
        pieces = written(self._limited(events), self.orders)
        if self.orders.encoding:
            pieces = _compressed(pieces, compressor(self.orders.encoding))
        if self.orders.split or self.orders.merge:
            pieces = packed(pieces, self.orders)
        return pieces

    def _limited(self, events: Iterator[Event]) -> Iterator[Event]:
        limit = self._limit()
        if limit is None:
            return events
        return self._counted(events, limit)

    def _counted(self, events: Iterator[Event], limit: int) -> Iterator[Event]:
        count = 0
        for event in islice(events, limit):
            count += 1
            yield event
        self._breaks = count == limit

    def _whole(self, reply: Reply) -> Iterator[Piece]:
        body, usage = reply.body, reply.usage
        limit = self._limit()
        if limit is not None and limit <= len(body):
            self._breaks = True
            body, usage = body[:limit], None
        yield Piece(body, usage, 0, False)

    def _blocks(self, blocks: Iterable[bytes]) -> Iterator[Piece]:
        left = self._limit()
        for block in blocks:
            if left is not None and len(block) >= left:
                self._breaks = True
                yield Piece(block[:left], None, 0, False)
                return
            if left is not None:
                left -= len(block)
            yield Piece(block, None, 0, self.framing.paced)


def _after(first: Piece, rest: Iterator[Piece], sending: Sending) -> Iterator[Piece]:
    yield first._replace(data=b"")
    yield from rest


def _compressed(pieces: Iterator[Piece], how: _Compressor) -> Iterator[Piece]:
    for piece in pieces:
        yield piece._replace(data=how.add(piece.data))
    yield Piece(how.end(), None, 0, False)


def whole_compressed(body: bytes, encoding: str) -> bytes:
    """A body that is not a stream, compressed."""
    how = compressor(encoding)
    return how.add(body) + how.end()
