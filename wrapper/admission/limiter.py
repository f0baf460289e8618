"""Admission over a store. Keys without limits never touch it.

The limits themselves are checked inside the store, in one atomic step: in `store.accounts` for
SQLite, in `store/lua` for Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from wrapper.store import Demand, Entry, Lease, Standing, Subject, UsageStore

_IS_LIMITED: Final = attrgetter("is_limited")


class Admission:
    """Admits requests and settles them.

    Whoever runs the worker's loop calls `heartbeat` every 5 seconds: a worker without one for 20
    seconds is taken for dead, and the others end its leases.
    """

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    def admit(self, subjects: Iterable[Subject], demand: Demand) -> Lease:
        """Reserve `demand` in all of `subjects` that have limits, or in none.

        Raises `Refused`, or StoreError where the store cannot be reached. Without any limit the
        lease is empty, and nothing asks the store.
        """
        limited = [*filter(_IS_LIMITED, subjects)]
        if not limited:
            return Lease(0, "", demand)
        return self._store.admit(limited, demand)

    def move(self, lease: Lease, provider: Subject | None) -> None:
        """Reserve in `provider` what the lease holds in its present provider, before a failover.

        Where it raises, `Refused` or StoreError, the lease is as before.
        """
        if provider is not None and not provider.limits:
            provider = None
        if provider is not None or lease.provider is not None:
            self._store.move(lease, provider)

    def settle(self, entry: Entry, lease: Lease | None = None) -> None:
        """Book `entry` and end the lease. A second time nothing happens.

        The tokens of a response whose use is unknown (`unmetered`) stay as they were reserved; its
        cost is what `bound` says.
        """
        self._store.settle(entry, lease)

    def bound(self, lease: Lease | None) -> int | None:
        """What a request of unknown use costs: the estimate, where it was reserved in a budget."""
        if lease is None or all(subject.limits.budget is None for subject in lease.subjects):
            return None
        return lease.demand.cost

    def release(self, lease: Lease) -> None:
        """End the lease of a request that was never made: only its count stays."""
        if lease.subjects:
            self._store.release(lease)

    def standing(self, subjects: Sequence[Subject]) -> list[Standing]:
        """How much each of `subjects` uses of its limits."""
        return self._store.standing(subjects) if subjects else []

    def heartbeat(self) -> None:
        """Renew this worker's leases, end those of dead workers, write what waits."""
        self._store.heartbeat()
