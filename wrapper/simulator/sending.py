"""Sending a response as instructed: pace, event lines, cut into sends, and every way of stopping.

The stages in order: events, their lines in a `text/event-stream` (WHATWG HTML, 9.2), compression,
the cut into sends, chunks. Plain streams skip the optional ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

import gevent

from wrapper.simulator.client import Client
from wrapper.simulator.framing import Framing, framing_for
from wrapper.simulator.http import Request
from wrapper.simulator.instructions import Instructions
from wrapper.simulator.ledger import Record
from wrapper.simulator.response import Compressor, Event, Response, Usage, compressor


class Piece(NamedTuple):
    """The bytes of one send, and the usage and the events that it completes."""

    data: bytes
    usage: Usage | None
    events: int
    paced: bool  # whether the gap of the stream follows; never after the last


def event_lines(events: Iterator[Event], instructions: Instructions) -> Iterator[Piece]:
    """The bytes of each event, made just before they are sent; the last is not paced."""
    wanted = instructions
    if wanted.crlf or wanted.cr or wanted.comment or wanted.no_space or wanted.multi_data:
        return _unusual(events, wanted)
    return _unusual(events, wanted) if wanted.stamp else _plain(events)


def _plain(events: Iterator[Event]) -> Iterator[Piece]:
    for (data, usage, name), more in _ahead(events):
        if name:
            yield Piece(b"event: %b\ndata: %b\n\n" % (name, data), usage, 1, more)
        else:
            yield Piece(b"data: %b\n\n" % data, usage, 1, more)


def _ahead(events: Iterator[Event]) -> Iterator[tuple[Event, bool]]:
    """Each event, and whether another follows."""
    held = next(events, None)
    while held is not None:
        following = next(events, None)
        yield held, following is not None
        held = following


def _unusual(events: Iterator[Event], instructions: Instructions) -> Iterator[Piece]:
    end = b"\r\n" if instructions.crlf else b"\r" if instructions.cr else b"\n"
    label = b"data:" if instructions.no_space else b"data: "
    for number, ((plain, usage, name), more) in enumerate(_ahead(events)):
        data = plain
        if instructions.stamp and data.startswith(b"{"):
            data = b'{"sim_t":%.6f,%b' % (time.time(), data[1:])
        lines = [b"event: " + name] if name else []
        if instructions.comment and not number % instructions.comment:
            lines = [b": keep-alive", b"", *lines]
        if instructions.multi_data and data.startswith(b"{"):
            data = b"{\n" + data[1:]
        lines += [label + line for line in data.split(b"\n")]
        yield Piece(end.join([*lines, b"", b""]), usage, 1, more)


def cut_into_sends(pieces: Iterator[Piece], instructions: Instructions) -> Iterator[Piece]:
    """The same bytes, cut as the instructions say."""
    if instructions.merge:
        pieces = _merged(pieces, instructions.merge)
    if instructions.split:
        pieces = _split(pieces)
    if instructions.drip is not None:
        pieces = _dripped(pieces)
    return pieces


def _merged(pieces: Iterator[Piece], count: int) -> Iterator[Piece]:
    data, usage, events, held = b"", None, 0, 0
    for piece in pieces:
        data += piece.data
        usage = piece.usage or usage
        events += piece.events
        held += 1
        if held == count:
            yield Piece(data, usage, events, True)
            data, usage, events, held = b"", None, 0, 0
    if held:
        yield Piece(data, usage, events, False)


def _split(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Each send holds the tail of one event and all but the tail of the next."""
    tail = Piece(b"", None, 0, False)
    for number, piece in enumerate(pieces):
        keep = min(len(piece.data), 1 + number * 7 % 23)
        cut = len(piece.data) - keep
        yield Piece(tail.data + piece.data[:cut], tail.usage, tail.events, True)
        tail = piece._replace(data=piece.data[cut:])
    yield tail._replace(paced=False)


def _dripped(pieces: Iterator[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        last = len(piece.data) - 1
        for place in range(last):
            yield Piece(piece.data[place : place + 1], None, 0, True)
        yield piece._replace(data=piece.data[max(last, 0) :])


_YIELD_EVERY = 16  # sends without a pause; then other greenlets run


class Broken(Exception):
    """The response stopped early as instructed; the connection must not be used again."""


@dataclass(slots=True)
class Sender:
    """One response on its way to one client."""

    client: Client
    instructions: Instructions
    record: Record
    gap: float
    framing: Framing = field(init=False)
    _breaks: bool = False

    def send(self, response: Response, request: Request) -> bool:
        """Send all of it. Returns whether the connection may be used again.

        Raises `ClientGone` when the client disconnects, `Broken` when it is to stop early.
        """
        instructions = self.instructions
        if instructions.reset == 0:
            self._break()
        self.framing = framing_for(instructions, response, request)
        if response.events is not None:
            pieces = self._stream(response.events)
        elif response.blocks is not None:
            pieces = self._blocks(response.blocks, response.usage)
        else:
            pieces = self._whole(response)
        if instructions.drip is not None:
            pieces = cut_into_sends(pieces, instructions)
        head = self.framing.head
        if request.method == "HEAD" or response.status in (204, 304):
            self._head(head)
            return self.framing.reusable
        if response.events is None and response.blocks is None and instructions.header_drip is None:
            first = next(pieces, None)  # the head and a whole body leave in one send
            if first is not None:
                head += self.framing.wrap(first.data)
                pieces = chain([first._replace(data=b"")], pieces)
        self._head(head)
        self._body(pieces)
        if self._breaks:
            self._break()
        if self.framing.end:
            self.client.send(self.framing.end)
        return self.framing.reusable

    def _head(self, head: bytes) -> None:
        apart = self.instructions.header_drip
        if apart is None:
            self.client.send(head)
            return
        for place in range(len(head)):
            if place:
                self.client.pause(apart)
            self.client.send(head[place : place + 1])

    def _body(self, pieces: Iterator[Piece]) -> None:
        """Send the pieces at their pace.

        Invariant: no wait after the last one. A client with the whole response finds it in the
        ledger.
        """
        gap = self.instructions.drip if self.instructions.drip is not None else self.gap
        client, wrap, record = self.client, self.framing.wrap, self.record
        due = time.monotonic()
        count = 0
        for piece in pieces:
            if count == _YIELD_EVERY:
                count = 0
                gevent.sleep(0)
            if piece.data:
                client.send(wrap(piece.data))
            record.events += piece.events
            if piece.usage is not None and not self.framing.unreadable:
                record.usage, record.unsent = piece.usage, None
            if gap and piece.paced:
                due += gap
                now = time.monotonic()
                if due < now - 1:
                    due = now
                client.wait(due)
            else:
                count += 1

    def _break(self) -> None:
        if self.instructions.stall is not None and self._breaks:
            self.client.stall()
        if self.instructions.reset is not None:
            self.client.reset()
        raise Broken

    def _limit(self) -> int | None:
        limits = (self.instructions.stall, self.instructions.reset, self.instructions.cut)
        return min((limit for limit in limits if limit is not None), default=None)

    def _stream(self, events: Iterator[Event]) -> Iterator[Piece]:
        limit = self._limit()
        if limit is not None:
            events = self._counted(events, limit)
        pieces = event_lines(events, self.instructions)
        if self.instructions.encoding:
            pieces = _compressed(pieces, compressor(self.instructions.encoding))
        if self.instructions.split or self.instructions.merge:
            pieces = cut_into_sends(pieces, self.instructions)
        return pieces

    def _counted(self, events: Iterator[Event], limit: int) -> Iterator[Event]:
        count = 0
        for event in islice(events, limit):
            count += 1
            yield event
        self._breaks = count == limit

    def _whole(self, response: Response) -> Iterator[Piece]:
        body, usage = response.body, response.usage
        limit = self._limit()
        if limit is not None and limit <= len(body):
            self._breaks = True
            body, usage = body[:limit], None
        yield Piece(body, usage, 0, False)

    def _blocks(self, blocks: Iterable[bytes], usage: Usage | None) -> Iterator[Piece]:
        left = self._limit()
        for block in blocks:
            if left is not None and len(block) >= left:
                self._breaks = True
                yield Piece(block[:left], None, 0, False)
                return
            if left is not None:
                left -= len(block)
            yield Piece(block, None, 0, self.framing.paced)
        if usage is not None:
            yield Piece(b"", usage, 0, False)


def _compressed(pieces: Iterator[Piece], how: Compressor) -> Iterator[Piece]:
    for piece in pieces:
        yield piece._replace(data=how.add(piece.data))
    yield Piece(how.end(), None, 0, False)
