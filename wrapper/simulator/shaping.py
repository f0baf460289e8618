"""Orders that change what is answered: statuses, headers, broken JSON, errors within a stream."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from functools import lru_cache

from wrapper.simulator.orders import Orders
from wrapper.simulator.replies import Event, Reply, encode, error_body
from wrapper.simulator.wire import whole_compressed

_ALWAYS = [
    ("Server", "simulator"),
    ("openai-version", "2020-10-01"),
    ("openai-processing-ms", "7"),
    ("openai-organization", "simulated-organization"),
    ("openai-project", "simulated-project"),
    ("Set-Cookie", "simulated=cookie; path=/; HttpOnly"),
    ("x-ratelimit-limit-requests", "14400"),
    ("x-ratelimit-limit-tokens", "18000"),
    ("x-ratelimit-remaining-requests", "14399"),
    ("x-ratelimit-remaining-tokens", "17997"),
    ("x-ratelimit-reset-requests", "2m59.56s"),
    ("x-ratelimit-reset-tokens", "547ms"),
]


def shaped(reply: Reply, orders: Orders, request_id: str) -> Reply:
    """The reply with all orders in force and its headers complete (but for the length)."""
    if orders.status is not None:
        reply = _with_status(reply, orders, orders.status)
    if orders.redirect:
        reply = Reply(status=307, headers=[("Location", orders.redirect)])
    if orders.malformed_json:
        _malform(reply)
    if orders.error_event is not None and reply.events is not None:
        reply.events = _interrupted(reply.events, orders.error_event)
    _compress(reply, orders)
    reply.headers = [
        ("Date", _date(int(time.time()))),
        *_content_type(reply, orders),
        ("x-request-id", request_id),
        *_ALWAYS,
        *reply.headers,
        *_ordered(orders),
    ]
    return reply


def _with_status(reply: Reply, orders: Orders, status: int) -> Reply:
    if status >= 400:
        body = error_body(status, orders.message or "", kind=orders.type, code=orders.code)
        return Reply(status=status, body=encode(body))
    if status in (204, 304):
        return Reply(status=status)
    reply.status = status
    return reply


def _malform(reply: Reply) -> None:
    if reply.events is not None:
        reply.events = _one_malformed(reply.events)
    elif reply.body:
        reply.body, reply.usage = reply.body[: len(reply.body) * 2 // 3], None


def _one_malformed(events: Iterator[Event]) -> Iterator[Event]:
    for number, event in enumerate(events):
        yield event._replace(data=event.data[: len(event.data) // 2]) if number == 1 else event


def _interrupted(events: Iterator[Event], after: int) -> Iterator[Event]:
    for number, event in enumerate(events):
        if number == after:
            yield _error_event(number, typed=bool(event.name))
            return
        yield event


def _error_event(number: int, typed: bool) -> Event:
    """The error in the middle of a stream; typed, as in the responses API, where all are."""
    message = "This is a simulated error in the middle of a stream."
    if not typed:
        return Event(encode(error_body(500, message)))
    told = {"type": "error", "code": "server_error", "message": message, "param": None}
    return Event(encode({**told, "sequence_number": number}), None, b"error")


def _compress(reply: Reply, orders: Orders) -> None:
    """Whole bodies are compressed here, streams while they are sent."""
    if orders.encoding is None:
        return
    if reply.blocks is not None:
        reply.body, reply.blocks = b"".join(reply.blocks), None
    if reply.events is None and not reply.body:
        return
    reply.headers.append(("Content-Encoding", orders.encoding))
    if reply.events is None:
        reply.body = whole_compressed(reply.body, orders.encoding)


def _content_type(reply: Reply, orders: Orders) -> list[tuple[str, str]]:
    if reply.status in (204, 304):
        return []
    return [("Content-Type", orders.content_type or reply.content_type)]


def _ordered(orders: Orders) -> list[tuple[str, str]]:
    made = list(orders.set)
    if orders.retry_after:
        made.append(("retry-after", orders.retry_after))
    if orders.should_retry:
        made.append(("x-should-retry", orders.should_retry))
    return made


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
