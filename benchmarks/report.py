"""The results as Markdown tables: medians over the rounds, and each as a ratio to naive."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.measures import Cost, Delay, Rate, Start

# field, heading, unit, decimals
COSTS = (
    ("unary_cpu", "CPU per unary request", "ms", 3),
    ("event_cpu", "CPU per streamed event", "ms", 4),
)
STARTS = (
    ("start_up", "start to first response", "ms", 0),
    ("idle_rss", "worker's RSS, idle", "MiB", 1),
    ("idle_pss", "worker's PSS, idle", "MiB", 1),
    ("loaded_rss", "worker's RSS, after load", "MiB", 1),
    ("loaded_pss", "worker's PSS, after load", "MiB", 1),
)
BASELINE = "naive"
LEGEND = """\
## Legend

- **naive**: a minimal relay with Flask, gevent and `requests` (`benchmarks/naive.py`).
  **gateway**: this project as shipped. **(direct)**: no relay; the delay of provider and load
  generator themselves.
- The gateway costs less per request although it does more: it sends through its own adapter
  (`wrapper/upstream`) in place of a `requests.Session`, and prepares per configuration what does
  not change per request.
- **limits**: the key has every kind of limit, so that each request is admitted and settled in one
  atomic step each. With Redis settlement is a round trip where it is a local write with SQLite:
  compare "limits, Redis" with "no limits, Redis" for admission alone.
- CPU is that of the relay's worker process, from the system's accounting. RSS is its memory, PSS
  its memory with shared pages divided among the processes that share them.\
"""


def variants(costs: Mapping[str, Sequence[Cost]], starts: Mapping[str, Sequence[Start]]) -> str:
    """One row per measure, one column per variant."""
    names = list(costs)
    lines = [_row(["", *names]), _row(["---", *["---:"] * len(names)])]
    rows = [*((costs, row) for row in COSTS), *((starts, row) for row in STARTS)]
    for samples, (field, heading, unit, decimals) in rows:
        middle = {n: statistics.median(getattr(s, field) for s in samples[n]) for n in names}
        cells = []
        for name in names:
            cell = f"{middle[name]:.{decimals}f}"
            if name != BASELINE and BASELINE in middle:
                cell += f" (×{middle[name] / middle[BASELINE]:.2f})"
            cells.append(cell)
        lines.append(_row([f"{heading}, {unit}", *cells]))
    return "\n".join(lines)


def metering(costs: Mapping[str, Sequence[Cost]], on: str, off: str) -> str:
    """The cost of metering: the median of the slices' differences."""
    pairs = list(zip(costs[on], costs[off], strict=True))
    unary = statistics.median(a.unary_cpu - b.unary_cpu for a, b in pairs)
    event = statistics.median(a.event_cpu - b.event_cpu for a, b in pairs)
    return f"Metering costs {unary:.3f} ms CPU per unary request and {event:.4f} ms per event."


def limits(costs: Mapping[str, Sequence[Cost]]) -> str:
    """What limits cost: the median of the slices' differences to the gateway without them."""
    lines = [_row(["", "CPU per unary request, ms", "more than without limits, ms"])]
    lines.append(_row(["---", "---:", "---:"]))
    plain = costs["gateway"]
    for name, found in costs.items():
        middle = statistics.median(cost.unary_cpu for cost in found)
        pairs = zip(found, plain, strict=True)
        more = statistics.median(a.unary_cpu - b.unary_cpu for a, b in pairs)
        lines.append(_row([name, f"{middle:.3f}", f"{more:+.3f}" if found is not plain else ""]))
    return "\n".join(lines)


def rates(found: Mapping[str, Sequence[Rate]]) -> str:
    """Throughput and CPU: medians, and the median of the slices' ratios to the first variant."""
    lines = [
        _row(["", "requests per second", "×", "CPU of all workers per request, ms", "×"]),
        _row(["---", *["---:"] * 4]),
    ]
    plain = next(iter(found.values()))
    for name, each in found.items():
        pairs = list(zip(each, plain, strict=True))
        cells = [name]
        for field, decimals in (("per_second", 0), ("cpu", 3)):
            middle = statistics.median(getattr(rate, field) for rate in each)
            ratio = statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs)
            cells += [f"{middle:.{decimals}f}", f"{ratio:.2f}"]
        lines.append(_row(cells))
    return "\n".join(lines)


def delays(results: Mapping[tuple[str, int], Delay]) -> str:
    """The delay of events from the provider's send to the client's receive."""
    lines = [
        _row(["through", "streams at once", "events", "median, ms", "99 %, ms", "longest, ms"]),
        _row(["---", *["---:"] * 5]),
    ]
    for (name, streams), d in results.items():
        numbers = [f"{value:.2f}" for value in (d.median, d.p99, d.longest)]
        lines.append(_row([name, str(streams), str(d.events), *numbers]))
    return "\n".join(lines)


def conditions(slices: int, requests: int, rounds: int) -> str:
    """The machine and the versions of the measurement."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("gunicorn", "gevent", "flask", "requests"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {platform.system()} "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}, {packages}. "
        f"{slices} slices of {requests} requests for the CPU, {rounds} starts, "
        "alternating variants."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
