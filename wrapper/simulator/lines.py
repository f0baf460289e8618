"""Events as lines of a `text/event-stream` (WHATWG HTML, 9.2), in every spelling it allows."""

from __future__ import annotations

import time
from collections.abc import Iterator

from wrapper.simulator.orders import Orders
from wrapper.simulator.packing import Piece
from wrapper.simulator.replies import Event


def written(events: Iterator[Event], orders: Orders) -> Iterator[Piece]:
    """Each event's bytes, made when they are about to be sent; the last is not paced."""
    odd = orders.crlf or orders.cr or orders.comment or orders.no_space or orders.multi_data
    if odd or orders.stamp:
        return _odd(events, orders)
    return _plain(events)


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


def _odd(events: Iterator[Event], orders: Orders) -> Iterator[Piece]:
    end = b"\r\n" if orders.crlf else b"\r" if orders.cr else b"\n"
    label = b"data:" if orders.no_space else b"data: "
    for number, ((plain, usage, name), more) in enumerate(_ahead(events)):
        data = plain
        if orders.stamp and data.startswith(b"{"):
            data = b'{"sim_t":%.6f,%b' % (time.time(), data[1:])
        lines = [b"event: " + name] if name else []
        if orders.comment and not number % orders.comment:
            lines = [b": keep-alive", b"", *lines]
        if orders.multi_data and data.startswith(b"{"):
            data = b"{\n" + data[1:]
        lines += [label + line for line in data.split(b"\n")]
        yield Piece(end.join([*lines, b"", b""]), usage, 1, more)
