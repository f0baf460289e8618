"""What a store of usage does, whatever keeps it.

Use is kept as sums, not as rows: per hour, key, provider, model and outcome. That stays small
for ever, and reports, limits and budgets read the same numbers.

The rule protected here: `settle` is one atomic step, shared by all workers, and what it has
acknowledged a killed worker cannot take back. (A power failure may cost the last moments, never
the file.)

Room is left for limits and budgets. They need two more steps around the same sums::

    reserve(key, estimate, limits) -> Reservation | Refusal     before the call
    settle(entry, reservation)                                  after it: truth for estimate

A reservation carries an expiry, so that one that a crashed worker never settled gives way. Both
are one transaction in SQLite and one script in Redis: hence no method here hands out a cursor,
takes a callback or needs two calls for one fact, and an `Entry` carries its own time instead of
asking the store's clock.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from wrapper.metering import Usage

# What `totals` can group by. `day` and `hour` are UTC.
DIMENSIONS = ("key", "provider", "model", "outcome", "day", "hour")

PICO = 10**12  # pico-USD in a USD


class StoreError(Exception):
    """The store cannot be used. The text says what is wrong, where, and what would be right."""


class Entry(NamedTuple):
    """One settled request.

    `at` is the Unix time in seconds at which it ended, `key` the key's name, `cost` is in
    pico-USD (1e-12) and None where the price is unknown. `unmetered`: it was answered, and its
    use could not be read.
    """

    at: float
    key: str
    provider: str
    model: str
    outcome: str
    usage: Usage | None = None
    cost: int | None = None
    unmetered: bool = False


class Sums(NamedTuple):
    """The sums of one group. `group` has one text for each dimension asked for, in that order:
    names as they are, days as 2026-11-21, hours as 2026-11-21T22:00Z.

    `cost` is in pico-USD, `seconds` is audio that is billed by length. `unmetered` requests are
    not in the tokens, `unpriced` ones are in the tokens and not in the cost.
    """

    group: tuple[str, ...]
    requests: int
    prompt: int
    completion: int
    total: int
    cached: int
    reasoning: int
    seconds: float
    cost: int
    unmetered: int
    unpriced: int


class UsageStore(Protocol):
    """Shared by all workers. Every method may raise StoreError."""

    def check(self) -> None:
        """Whether the store can be used, found out at the start and not at the first request."""

    def settle(self, entry: Entry) -> None:
        """Adds one request to the sums.

        Raises StoreError where it is not written yet, or where it is known that it will be lost.
        What is not written yet is written with a later request or at `close`.
        """

    def totals(
        self,
        since: float | None = None,
        until: float | None = None,
        by: tuple[str, ...] = (),
        key: str | None = None,
    ) -> list[Sums]:
        """The sums from `since` up to `until` (Unix seconds; the whole hours that they touch),
        grouped by `by`, of one key or of all. ValueError for an unknown dimension.
        """

    def close(self) -> None:
        """Writes what still waits and gives back what this process holds."""


def all_time(store: UsageStore) -> list[Sums]:
    """Everything ever settled by key, provider, model and outcome: what counters start from."""
    return store.totals(by=("key", "provider", "model", "outcome"))
