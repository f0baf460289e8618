"""Deferred work: what a request has started, and what is known to be used only later.

A background response, a batch or a video is remembered when it is created: its id, who has asked
for it, and the money that its estimate holds in the budgets of the caller. It is *booked* once,
when somebody has seen that it ended: one atomic step removes it from what is pending, adds its rows
to the ledger and gives the held money back.

Invariant: a record is booked at most once, whoever tries, in however many processes and on however
many hosts; and a process that is killed at any moment leaves it either pending or booked.

Whose turn it is to ask a provider needs no election: `take` gives out the most overdue record,
moves its next question into the future in the same step, and gives out none for a second
afterwards. So each question is asked by one process, at a bounded rate over all of them, and a
process that dies while it asks costs one question.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

# A second between two questions, over all processes.
GAP_SECONDS = 1.0
# The pause between two questions about one object doubles up to this.
LONGEST_PAUSE = 3600.0
# How long a booked record is remembered as such, and an uploaded file's content; in seconds.
KEPT_SECONDS = 31 * 86_400.0
# How many booked records and files are forgotten in one step.
FORGET_BATCH = 500


class Deferred(NamedTuple):
    """One object whose use is to be booked.

    `kind` is what the endpoint table's `creates` says, `target` the path and query at the provider
    of the request that created it. `created` is Unix time. `cost` is the estimate that is held in
    budgets, in pico-USD, None where the key has none. `asks` counts the gateway's own questions.
    `tag` is that of the request.
    """

    provider: str
    id: str
    kind: str
    key: str
    model: str
    target: str
    created: float
    cost: int | None = None
    asks: int = 0
    tag: str = ""


def pause(first: float, asks: int) -> float:
    """The seconds until the next question, after `asks` of them."""
    return min(first * 2.0 ** min(asks, 40), LONGEST_PAUSE)


class _Stored(msgspec.Struct, array_like=True):
    kind: str
    key: str
    model: str
    target: str
    created: float
    cost: int | None
    asks: int
    tag: str = ""


_decode = msgspec.json.Decoder(_Stored).decode
_decode_name = msgspec.json.Decoder(tuple[str, str]).decode


def object_name(provider: str, object_id: str) -> str:
    """One text for a provider's object."""
    return msgspec.json.encode((provider, object_id)).decode()


def stored(deferred: Deferred) -> str:
    """The record as a text, without its name."""
    return msgspec.json.encode(deferred[2:]).decode()


def restored(name: str, text: str) -> Deferred:
    """The record of that name."""
    found, (provider, ident) = _decode(text), _decode_name(name)
    return Deferred(
        *(provider, ident, found.kind, found.key, found.model, found.target),
        found.created,
        *(found.cost, found.asks, found.tag),
    )
