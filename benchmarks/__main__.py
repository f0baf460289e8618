"""`make bench`: all measurements, as tables on the screen and in `benchmarks/results.md`.

A quick run (`--quick`) takes a minute and prints its tables on the screen only.

The variants alternate (A B C, A B C, …), so that a machine that gets slower or busier affects all
of them.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from benchmarks import measures, report
from benchmarks.variants import HAMMERED, LIMITED, NAIVE_KEY, VARIANTS, Relay, Variant
from harness.simulator import Simulator

RESULTS = Path(__file__).with_name("results.md")
# "(direct)" is without a relay: the delay of provider and load generator themselves.
DELAYS_THROUGH = ("(direct)", "naive", "gateway")


def main() -> None:
    """Measure, print and write the results."""
    options = _options()
    conditions = report.conditions(options.slices, options.requests, options.rounds)
    sections = ["# Benchmark results", conditions]
    with Simulator() as simulator:
        costs = _costs(VARIANTS, simulator, options)
        starts = _starts(simulator, options)
        sections += [
            "## Cost (median; × is the ratio to naive)",
            report.variants(costs, starts),
            report.metering(costs, "gateway", "gateway, metering off"),
        ]
        limited = _costs(LIMITED, simulator, options)
        sections += ["## Limits and budgets", report.limits(limited)]
        sections += [report.rates(_rates(simulator, options))]
        print("\n\n".join(sections), flush=True)
        late = [
            "## Delay of streamed events, one every 20 ms",
            report.delays(_delays(simulator, options)),
        ]
        print("\n" + "\n\n".join(late))
    if options.output:
        options.output.write_text("\n\n".join([*sections, *late, report.LEGEND]) + "\n")


def _costs(
    variants: dict[str, Variant], simulator: Simulator, options: argparse.Namespace
) -> dict[str, list[measures.Cost]]:
    costs: dict[str, list[measures.Cost]] = {name: [] for name in variants}
    turns = measures.costs(
        variants, simulator.url, slices=options.slices, requests=options.requests
    )
    for number, turn in enumerate(turns):
        _progress(f"slice {number + 1} of {options.slices}")
        for name, cost in turn.items():
            costs[name].append(cost)
    _progress("")
    return costs


def _rates(simulator: Simulator, options: argparse.Namespace) -> dict[str, list[measures.Rate]]:
    rates: dict[str, list[measures.Rate]] = {name: [] for name in HAMMERED}
    turns = measures.rates(
        HAMMERED, simulator.url, slices=options.slices, requests=options.requests
    )
    for number, turn in enumerate(turns):
        _progress(f"slice {number + 1} of {options.slices}")
        for name, rate in turn.items():
            rates[name].append(rate)
    _progress("")
    return rates


def _starts(simulator: Simulator, options: argparse.Namespace) -> dict[str, list[measures.Start]]:
    starts: dict[str, list[measures.Start]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds):
        for name, variant in VARIANTS.items():
            _progress(f"start {number + 1} of {options.rounds}: {name}")
            starts[name].append(measures.start(variant, simulator.url, requests=options.requests))
    _progress("")
    return starts


def _delays(
    simulator: Simulator, options: argparse.Namespace
) -> dict[tuple[str, int], measures.Delay]:
    delays: dict[tuple[str, int], measures.Delay] = {}
    for streams in (1, options.streams):
        for name in DELAYS_THROUGH:
            _progress(f"delay of {options.events} events in {streams} streams: {name}")
            relay = (
                VARIANTS[name](simulator.url)
                if name in VARIANTS
                else nullcontext(Relay(simulator.port, NAIVE_KEY))
            )
            delays[name, streams] = measures.delay(relay, streams=streams, events=options.events)
    _progress("")
    return delays


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--slices", type=int, default=20, help="slices of the CPU measurement")
    parser.add_argument("--requests", type=int, default=500, help="unary requests in a slice")
    parser.add_argument(
        "--rounds", type=int, default=5, help="starts, for start-up time and memory"
    )
    parser.add_argument(
        "--streams", type=int, default=300, help="concurrent streams, for the delay"
    )
    parser.add_argument("--events", type=int, default=500, help="events in such a stream")
    parser.add_argument("--quick", action="store_true", help="small numbers, in a minute")
    parser.add_argument("--output", type=Path, help="default: results.md; none with --quick")
    options = parser.parse_args()
    if not options.quick:
        options.output = options.output or RESULTS
    else:
        options.slices, options.requests, options.rounds = 4, 250, 2
        options.streams, options.events = 50, 100
    return options


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
