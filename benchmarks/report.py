"""The results as Markdown (`RESULTS.md`) and as ratios for `make bench-check` (`results.json`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from benchmarks import measures, summary
from benchmarks.ledgers import Counted, verdict
from benchmarks.measures import Held, Mixed, Profile
from benchmarks.sampler import by_layer
from benchmarks.summary import Round
from benchmarks.variants import FEATURES

GATEWAY, BASELINE, DIRECT = "gateway", "naive", "(direct)"
# Written by hand: what follows this heading stays when the tables are written anew.
LEFT = "## What is left, and why"

# value, heading, decimals
COSTS = (
    ("call", "CPU of a call, ms", 3),
    ("stream", f"CPU of a short stream ({measures.BURST} events at once), ms", 3),
    ("event", "CPU of an event (one every 20 ms), ms", 4),
    ("start", "start to first response, ms", 0),
    ("idle rss", "largest process, RSS idle, MiB", 1),
    ("loaded rss", "largest process, RSS after load, MiB", 1),
    ("idle pss", "all processes, PSS idle, MiB", 1),
    ("loaded pss", "all processes, PSS after load, MiB", 1),
)
# The name in results.json → the value that is compared with naive's.
CHECKED = {
    "CPU: a call": "call",
    "CPU: a short stream": "stream",
    "CPU: an event": "event",
    "memory: RSS after load": "loaded rss",
    "start: to the first response": "start",
}
HOW = """\
All variants run at the same time, one worker each, their processes on one core, the provider (a
simulator) and the load generator on the other; one at a time has load, in slices that take turns.
CPU is the kernel's clock of all processes of a relay. A slice from which the hypervisor took more
than 0.02 cores is dropped. A round is the median of its slices and begins with fresh processes; a
number is the median of the rounds, and × is the median of the rounds' ratios to naive: compare
ratios, milliseconds are this machine's.

- **gateway**: this project as shipped, with everything on: a key with limits of requests, tokens
  and concurrency and a budget, metering with prices, metrics, log, ledger in SQLite.
- **naive**: a minimal relay with Flask, gevent and `requests` (`benchmarks/naive.py`) that counts
  nothing.
- **older** (`--against COMMIT`): the version at that commit, with the same interpreter and packages
  and with everything that it has.
- **(direct)**: no relay, so what provider and load generator take themselves.
- **nginx** relays and writes an access log. **LiteLLM** runs without a database: one master key, no
  budgets, a callback that counts. **Portkey** is the open-source gateway: no keys, no counting;
  with the libraries of its time, since its streams fail with today's
  (`benchmarks/peers/package.json`).
- Bifrost's npm package downloads a binary, and one-api is not on PyPI or npm: not measured.
"""
DELAYS = f"""\
## Delay

{measures.STREAMS_PER_SECOND:.0f} streams a second begin at random times, with {measures.EVENTS}
events each, one every 20 ms. Open loop: the time to the first event counts from when the request
was due. The delay of an event is from the provider's sending to the client's receipt. A relay that
needs more than its core for this rate has a queue that grows.
"""
FEATURES_TEXT = """\
## What each feature costs

The gateway with it beside the gateway without it and otherwise the same. With everything a call
takes {everything} ms, without what can be left out {bare} ms. Redis runs beside, its CPU is not
counted. The gateway has no OpenTelemetry, so that there is no row for it.
"""
HELD = f"""\
## Many streams in one worker

{measures.OPENED_PER_SECOND} a second are opened, with an event every {measures.HELD_GAP} s, and
read to their end; an error is one that was not complete half a minute after it should have been.
Memory is PSS of all processes while they are open, less that before.
"""
WORKERS = """\
## Workers

64 connections, and nothing is held to a core: workers, provider and load generator share them all.
So the gain of a worker is told by CPU: n workers with a core each serve n times the CPU of a call
in one worker over that in n. The rates are what the whole machine gave, generator and provider
included.
"""
MIXED = f"""\
## Mixed traffic at a fixed rate

{measures.MIXED_RATE:.0f} requests a second at random times, half calls and half streams, to a
provider that takes {1e3 * measures.LATENCY:.0f} ms; of a hundred, one is left by its client and one
fails at the provider. Open loop: latencies count from when a request was due.
"""
COUNTED = """\
## Who counts right

The same traffic in the provider's ledger and in the relay's own count: whole responses, tokens of
prompt and completion in them, requests that their clients left. What those used is known to the
provider alone: a relay is right that names bounds around it.
"""
PROFILES = """\
## Profile by layer

Per cent of a worker's CPU time, by the innermost function of a package; a system call counts for
the function that makes it (`make bench ARGS="--only profile"`). The kernel's share: {system}.
"""


@dataclass
class Results:
    """All that was measured; what was not is empty."""

    conditions: dict[str, str]
    rounds: list[Round] = field(default_factory=list)
    features: list[Round] = field(default_factory=list)
    held: dict[str, list[Held]] = field(default_factory=dict)
    mixed: dict[str, Mixed] = field(default_factory=dict)
    workers: list[Round] = field(default_factory=list)
    profiles: dict[str, Profile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    command: str = "make bench"


def markdown(results: Results, left: str = "") -> str:
    """The whole report; `left` is the part that is written by hand."""
    sections = [
        f"# Benchmark results\n\n{_conditions(results)}\n\n{HOW.rstrip()}",
        costs(results.rounds),
        delays(results.rounds),
        features(results.features),
        held(results.held),
        workers(results.workers),
        mixed(results.mixed),
        counted(results.mixed),
        profiles(results.profiles),
        left or LEFT,
    ]
    return "\n\n".join(filter(None, sections)).rstrip() + "\n"


def ratios(results: Results) -> dict[str, float]:
    """What `make bench-check` compares. A feature that seems to cost less than nothing is taken to
    cost nothing, so that the check does not ask for luck.
    """
    found = {
        f"{name}, gateway to naive": summary.ratio(results.rounds, GATEWAY, BASELINE, value)
        for name, value in CHECKED.items()
    }
    for name, (with_it, without) in FEATURES.items():
        times = summary.ratio(results.features, with_it, without, "call")
        found[f"CPU: a call, {name}"] = None if times is None else max(times, 1.0)
    return {name: round(ratio, 3) for name, ratio in found.items() if ratio is not None}


def _conditions(results: Results) -> str:
    gone, all_ = summary.dropped([*results.rounds, *results.features, *results.workers])
    first = (
        f"Written by `{results.command}` on {datetime.now(UTC):%Y-%m-%d}:"
        f" {gone} of {all_} slices were dropped for stolen time."
    )
    lines = [
        first,
        "",
        *(f"- {name}: {what}" for name, what in results.conditions.items()),
        *(f"- {note}" for note in results.notes),
    ]
    return "\n".join(lines)


def costs(rounds: Sequence[Round]) -> str:
    """One row per measure, one column per variant."""
    if not rounds:
        return ""
    names = [name for name in rounds[0] if name != DIRECT]
    rows = []
    for value, heading, decimals in COSTS:
        cells = [heading]
        for name in names:
            cell = number(summary.of_rounds(rounds, name, value), decimals)
            times = summary.ratio(rounds, name, BASELINE, value) if name != BASELINE else None
            cells.append(f"{cell} (×{times:.2f})" if times is not None else cell)
        rows.append(cells)
    older = [
        f"Beside {name}: a call ×{_times(rounds, name, 'call')}, a short stream"
        f" ×{_times(rounds, name, 'stream')}, an event ×{_times(rounds, name, 'event')}."
        for name in names
        if name.startswith("older")
    ]
    return "\n\n".join(["## Cost", table(["", *names], rows), *older])


def _times(rounds: Sequence[Round], base: str, value: str) -> str:
    return number(summary.ratio(rounds, GATEWAY, base, value), 2)


def delays(rounds: Sequence[Round]) -> str:
    """Time to the first event, and the delay of each, at a fixed rate of streams."""
    if not rounds:
        return ""
    rows = []
    for name in rounds[0]:
        found = (
            summary.tail_of_rounds(rounds, name, sample, share)
            for sample in ("ttft", "delay")
            for share in (0.5, 0.99)
        )
        rows.append([name, *(number(each, 2) for each in found)])
    head = ["through", "TTFT median, ms", "99 %, ms", "event's delay median, ms", "99 %, ms"]
    return f"{DELAYS}\n{table(head, rows)}"


def features(rounds: Sequence[Round]) -> str:
    """The price of each feature: with it and without it, beside each other."""
    if not rounds:
        return ""
    rows = []
    for name, (with_it, without) in FEATURES.items():
        cells = [name]
        for value in ("call", "stream"):
            more = summary.difference(rounds, with_it, without, value)
            times = summary.ratio(rounds, with_it, without, value)
            cells += [number(more, 3, sign=True), number(times, 2)]
        rows.append(cells)
    everything = number(summary.of_rounds(rounds, "everything", "call"), 3)
    bare = number(summary.of_rounds(rounds, "bare", "call"), 3)
    head = ["feature", "a call, ms more", "×", "a short stream, ms more", "×"]
    text = FEATURES_TEXT.format(everything=everything, bare=bare)
    return f"{text}\n{table(head, rows)}"


def held(found: Mapping[str, Sequence[Held]]) -> str:
    """Streams at once in one worker."""
    if not found:
        return ""
    rows = [
        [name, f"{each.streams:,}", f"{each.errors:,}", number(each.kib, 1)]
        for name, every in found.items()
        for each in every
    ]
    return f"{HELD}\n{table(['through', 'streams', 'errors', 'KiB a stream'], rows)}"


def workers(rounds: Sequence[Round]) -> str:
    """More workers on the same cores."""
    if not rounds:
        return ""
    rows = []
    one = next(iter(rounds[0]))
    for name in rounds[0]:
        count = int(name.split()[0])
        cpu = summary.of_rounds(rounds, name, "fast cpu")
        times = summary.ratio(rounds, one, name, "fast cpu")
        rows.append(
            [
                name,
                number(cpu, 3),
                number(times * count if times else None, 2),
                *(
                    number(summary.of_rounds(rounds, name, each), 0)
                    for each in ("slow rate", "fast rate")
                ),
            ]
        )
    head = ["", "CPU of a call, ms", "capacity, × one worker"]
    head += ["calls a second, provider takes 50 ms", "provider responds at once"]
    return f"{WORKERS}\n{table(head, rows)}"


def mixed(found: Mapping[str, Mixed]) -> str:
    """Latencies of mixed traffic in an open loop."""
    if not found:
        return ""
    rows = []
    for name, each in found.items():
        tails = (
            summary.tail(each.slices, sample, share)
            for sample in ("call", "ttft")
            for share in (0.5, 0.99)
        )
        seen = ", ".join(f"{number} × {what}" for what, number in sorted(each.seen.items()))
        rows.append([name, *(number(value, 1) for value in tails), seen])
    head = ["through", "call median, ms", "99 %, ms", "TTFT median, ms", "99 %, ms", "clients saw"]
    return f"{MIXED}\n{table(head, rows)}"


def counted(found: Mapping[str, Mixed]) -> str:
    """Who has counted the mixed traffic right."""
    if not found:
        return ""
    rows = [
        [name, *_sums(each.provider), *_sums(each.relay), verdict(each.provider, each.relay)]
        for name, each in found.items()
        if name != DIRECT
    ]
    sums = ["whole", "prompt", "completion", "left"]
    head = ["relay", *(f"provider: {name}" for name in sums), *(f"relay: {name}" for name in sums)]
    return f"{COUNTED}\n{table([*head, 'the relay'], rows)}"


def _sums(found: Counted | None) -> list[str]:
    counted = found or Counted()
    numbers = (counted.completed, counted.prompt, counted.completion, counted.aborted)
    return ["–" if each is None else f"{each:,}" for each in numbers]


def profiles(found: Mapping[str, Profile]) -> str:
    """Where the CPU time of a worker goes."""
    if not found:
        return ""
    totals = {name: sum(each.samples.values()) or 1 for name, each in found.items()}
    layers = {name: by_layer(each.samples) for name, each in found.items()}
    names = sorted({layer for each in layers.values() for layer in each})
    names.sort(key=lambda layer: -next(iter(layers.values()))[layer])
    rows = [
        [layer, *(f"{100 * layers[name][layer] / totals[name]:.1f}" for name in found)]
        for layer in names
    ]
    places = next(iter(found.values())).samples
    first = sorted(places.items(), key=lambda item: -item[1])[:12]
    total = next(iter(totals.values()))
    functions = "\n".join(f"- {100 * many / total:.1f} % `{place}`" for place, many in first)
    system = "; ".join(f"{name} {100 * each.system:.0f} %" for name, each in found.items())
    shown = table(["layer", *(f"{name}, %" for name in found)], rows)
    text = PROFILES.format(system=system)
    return f"{text}\n{shown}\n\nThe functions with the most in a call:\n\n{functions}"


def number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A cell."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
