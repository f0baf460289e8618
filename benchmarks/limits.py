"""What limits cost in a process: CPU per request of admission and settlement, without a gateway.

    python -m benchmarks.limits [sqlite:///path | redis://host:port/db]

Each line is compared with `settle` without a lease, in alternating slices, so that a machine that
changes its speed changes it for both. The last lines grow the number of keys and leases: they
should cost what few do.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable

from wrapper.metering import Usage
from wrapper.store import Demand, Entry, Limits, Subject, UsageStore, open_store

ROUNDS = 15
REQUESTS = 300
LIMITS = Limits(10**6, 10**9, 10**5, 10**18)
KEY = Subject("key:web", LIMITS)
GROUP = Subject("group:team", LIMITS, ("web", "batch"))
PROVIDER = Subject("provider:groq", LIMITS)


def entry() -> Entry:
    """A request of the usual size."""
    usage = Usage(100, 10, 110)
    return Entry(time.time(), "web", "groq", "llama", "completed", usage, 7_000_000)


def microseconds(work: Callable[[], None]) -> float:
    """CPU of this process per call."""
    start = time.process_time()
    for _ in range(REQUESTS):
        work()
    return (time.process_time() - start) / REQUESTS * 1e6


def compare(store: UsageStore, name: str, subjects: tuple[Subject, ...]) -> None:
    """Print what admission and settlement cost beside a settlement alone."""

    def plain() -> None:
        store.settle(entry())

    def limited() -> None:
        store.settle(entry(), store.admit(subjects, Demand(500, 10**7)))

    pairs = [(microseconds(plain), microseconds(limited)) for _ in range(ROUNDS)]
    without, with_ = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"{name:34} {without:6.0f} µs → {with_:6.0f} µs, +{with_ - without:4.0f} µs, {ratio:.2f}×"
    )


def grow(store: UsageStore, keys: int, leases: int) -> None:
    """Leases in flight of many keys."""
    for number in range(leases):
        subject = Subject(f"key:{number % keys}", LIMITS)
        store.admit((subject, GROUP, PROVIDER), Demand(5, 5))


def main() -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as directory:
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{directory}/usage.db"
        store = open_store(url)
        print(f"{url.partition(':')[0]}: settlement alone → with admission")
        compare(store, "key", (KEY,))
        compare(store, "key, group", (KEY, GROUP))
        compare(store, "key, group, provider", (KEY, GROUP, PROVIDER))
        for keys, leases in ((2, 10), (2000, 10_000)):
            grow(store, keys, leases)
            name = f"{keys} keys, {leases} leases"
            compare(store, name, (KEY, GROUP, PROVIDER))
        store.close()


if __name__ == "__main__":
    main()
