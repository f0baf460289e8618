"""What a store does, whatever keeps it: the ledger, and the reservations of running requests.

Use is kept as sums, not as rows: per hour, key, provider, model and outcome. That stays small,
and reports, limits and budgets read the same numbers. Beside them are the reservations
(`store.limits` has the words): `admit` reserves an upper estimate before the request, `settle`
puts the truth in its place together with the ledger's row.

Invariant: `admit`, `move` and `settle` are one atomic step each, shared by all workers, and what
`settle` has acknowledged a killed worker cannot take back. (A power failure may cost the last
moments, never the store.) Hence no method hands out a cursor, takes a callback or needs two calls
for one fact, and an `Entry` carries its own time instead of asking the store's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from wrapper.metering import Usage
from wrapper.metering.bounds import Bounds
from wrapper.store.deferred import Deferred
from wrapper.store.limits import MAX_TOKENS, Demand, Lease, Standing, Subject

# What `totals` can group by. `day` and `hour` are UTC; `tag` is "-" where a request has none.
DIMENSIONS = ("key", "provider", "model", "outcome", "tag", "day", "hour")


def check_dimensions(by: tuple[str, ...]) -> None:
    """Raises ValueError for what sums cannot be grouped by."""
    unknown = [name for name in by if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"cannot group by {unknown[0]!r}; one of {', '.join(DIMENSIONS)}")


class StoreError(Exception):
    """The store cannot be used. The text says what is wrong, where, and what would be right."""


class Entry(NamedTuple):
    """One settled request.

    `at` is the Unix time in seconds at which it ended, `key` the key's name, `cost` is in
    pico-USD (1e-12) and None where the price is unknown; `cost_by_kind` are the parts of it that
    are tokens: input, cached input, cache writes, output. `unmetered`: it was answered, and its
    use could not be read. `bounds`: it was given up or broke off, and its use lies between them.
    `recent`: the request's id as the caller knows it, and what it used, as JSON.
    `tag`: who inside the key it is for.
    `deferred`: it has started work whose use is booked later, by an entry with 0 `requests`.
    """

    at: float
    key: str
    provider: str
    model: str
    outcome: str
    usage: Usage | None = None
    cost: int | None = None
    unmetered: bool = False
    requests: int = 1
    deferred: bool = False
    cost_by_kind: tuple[int, int, int, int] = (0, 0, 0, 0)
    bounds: Bounds | None = None
    recent: tuple[str, str] | None = None
    tag: str = ""


class Sums(NamedTuple):
    """The sums of one group. `group` has one text for each dimension asked for, in that order:
    names as they are, days as 2026-11-21, hours as 2026-11-21T22:00Z.

    `cost` is in pico-USD, `seconds` is audio that is billed by length. `unmetered` requests are
    not in the tokens, `unpriced` ones are in the tokens and not in the cost. `bounded` requests are
    neither in the tokens nor in the cost: theirs lie between `…_low` and `…_high`, and budgets
    count the high end. `cost_input` and what follows are the parts of `cost`; the table
    did not always have them.
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
    bounded: int = 0
    tokens_low: int = 0
    tokens_high: int = 0
    cost_low: int = 0
    cost_high: int = 0
    cost_input: int = 0
    cost_cached: int = 0
    cost_cache_write: int = 0
    cost_output: int = 0
    cost_other: int = 0

    @property
    def cost_by_kind(self) -> tuple[int, ...]:
        """The parts of the cost: of input, cached input, cache writes, output, other units."""
        return self[-5:]


ALL_TIME_BY: Final = ("key", "provider", "model", "outcome")  # the groups of `all_time`


class UsageStore(Protocol):
    """Shared by all workers. Every method may raise StoreError."""

    def check(self) -> None:
        """Whether the store can be used, found out at the start and not at the first request."""

    def check_rest(self) -> None:
        """What `check` leaves out because it takes long: in a worker, beside its requests."""

    def settle(self, entry: Entry, lease: Lease | None = None) -> None:
        """Add one request to the sums, and end its lease.

        The tokens of `entry` take the place of the lease's estimate, which stays where they are
        unknown (`unmetered` or `bounds`). A lease is settled once: a second time nothing happens.
        One that was ended in between, because its worker seemed dead, gives nothing back twice.

        Raises StoreError where it is not written yet, or where it is known that it will be lost.
        What is not written yet is written with a later request, a heartbeat or at `close`.
        """

    def admit(self, subjects: Sequence[Subject], demand: Demand) -> Lease:
        """Reserve `demand` in all of `subjects` (at most 4), or in none.

        Raises `Refused` where a limit is exceeded, and StoreError where the store cannot be
        reached, within a second.
        """

    def move(self, lease: Lease, provider: Subject | None) -> None:
        """Give back the share of the lease's provider and reserve it in `provider` instead.

        None: the new provider has no limits. Requests stay counted where they were made. A lease
        that was ended in between is admitted anew. Raises as `admit`; then nothing has changed.
        """

    def release(self, lease: Lease) -> None:
        """As `settle`, without an entry: the lease ends, and no token of it is counted."""

    def standing(self, subjects: Sequence[Subject]) -> list[Standing]:
        """How much each of `subjects` uses of its limits. One read, which changes nothing."""

    def heartbeat(self) -> None:
        """Renew the leases of this process, end those of dead ones, write what waits.

        To be called every 5 seconds or so in each process that admits. Where it has not been
        for 20 seconds, other processes end its leases.
        """

    def reap(self) -> int:
        """End the leases of processes without a heartbeat: how many. `heartbeat` does it too."""

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

    def all_time(self) -> list[Sums]:
        """Everything ever settled by key, provider, model and outcome: what counters start from.

        Not for a running worker: it may take a second of its event loop.
        """

    def remember(self, deferred: Deferred, lease: Lease | None, delay: float) -> None:
        """Keep a record of deferred work, which is asked about after `delay` seconds.

        The money that `lease` holds is held by the record from now on. Of an object that is known
        already, pending or booked, nothing changes: this may be repeated.
        """

    def pending(self, provider: str, ids: Sequence[str]) -> list[Deferred]:
        """Which of these objects (at most 100) are known and not booked yet. One read."""

    def book(self, deferred: Deferred, entries: Sequence[Entry]) -> bool:
        """Book a record: with it `entries` get into the ledger, and its money is given back.

        False where it is not pending: then nothing happens.
        """

    def take(self, first: float) -> Deferred | None:
        """The record that this process is to ask about now; None where there is none to ask about.

        See `store.deferred`. The pauses between the questions begin with `first` seconds.
        """

    def hasten(self, deferred: Deferred) -> None:
        """Ask about a pending record next."""

    def remember_file(self, provider: str, file_id: str, content: str) -> None:
        """Keep what is known of an uploaded file, for 31 days."""

    def file(self, provider: str, file_id: str) -> str | None:
        """What is known of an uploaded file."""

    def recent(self, key: str, request_id: str) -> str | None:
        """What one of the last requests of this key has used (`Entry.recent`), None where it is
        not known, or no more (`store.recent`).
        """

    def close(self) -> None:
        """Write what still waits, end the leases of this process and give back what it holds."""

    def reader(self) -> UsageStore | None:
        """A store of its own for `totals` in another thread, to be closed afterwards; None where
        `totals` waits for a peer and so holds nothing up.
        """


def true_tokens(entry: Entry, lease: Lease) -> int:
    """What the lease's tokens turn into: those of `entry`, the estimate where they are unknown."""
    if entry.usage is not None:
        return min(entry.usage.total, MAX_TOKENS)
    unknown = entry.unmetered or entry.deferred or entry.bounds is not None
    return lease.demand.tokens if unknown else 0
