"""The cut of a stream into sends: by event, in the middle of events, several at once, by byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from wrapper.simulator.orders import Orders
from wrapper.simulator.replies import Usage


class Piece(NamedTuple):
    """What leaves in one send: its bytes, and the use and the events that it completes."""

    data: bytes
    usage: Usage | None
    events: int
    paced: bool  # whether the stream's gap follows; never behind the last one


def packed(pieces: Iterator[Piece], orders: Orders) -> Iterator[Piece]:
    """The same bytes, cut as the orders say."""
    if orders.merge:
        pieces = _merged(pieces, orders.merge)
    if orders.split:
        pieces = _split(pieces)
    if orders.drip is not None:
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
