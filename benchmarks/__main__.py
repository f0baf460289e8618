"""`make bench`: all measurements, as tables on the screen and in `benchmarks/results.md`.

A quick run (`--quick`) is a first impression: its tables are on the screen alone.

Rounds alternate between the variants (A B C, A B C, …), each in a process started anew, so that
a machine that gets slower or busier does so for all of them.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from benchmarks import measures, report
from benchmarks.variants import NAIVE_KEY, VARIANTS, Relay
from harness.simulator import Simulator

RESULTS = Path(__file__).with_name("results.md")
# "(direct)" is no relay at all: what provider and load generator themselves take.
DELAYS_THROUGH = ("(direct)", "naive", "gateway")


def main() -> None:
    """Measure, print, write."""
    options = _options()
    sections = ["# Benchmark results", report.conditions(options.rounds, options.requests)]
    with Simulator() as simulator:
        samples = _samples(simulator, options)
        sections += [
            "## Cost (median; × is the ratio to naive)",
            report.costs(samples),
            report.metering(samples, "gateway", "gateway, metering off"),
        ]
        print("\n\n".join(sections), flush=True)
        late = [
            "## Delay of streamed events, one every 20 ms",
            report.delays(_delays(simulator, options)),
        ]
        print("\n" + "\n\n".join(late))
    if options.output:
        options.output.write_text("\n\n".join([*sections, *late, report.LEGEND]) + "\n")


def _samples(simulator: Simulator, options: argparse.Namespace) -> dict[str, list[measures.Sample]]:
    samples: dict[str, list[measures.Sample]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds):
        for name, variant in VARIANTS.items():
            _progress(f"round {number + 1} of {options.rounds}: {name}")
            samples[name].append(measures.sample(variant, simulator.url, requests=options.requests))
    _progress("")
    return samples


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000, help="unary calls in a round")
    parser.add_argument("--streams", type=int, default=300, help="streams at once, for the delay")
    parser.add_argument("--events", type=int, default=500, help="events in such a stream")
    parser.add_argument("--quick", action="store_true", help="a first impression in a minute")
    parser.add_argument("--output", type=Path, help="default: results.md, of a quick run none")
    options = parser.parse_args()
    if not options.quick:
        options.output = options.output or RESULTS
    else:
        options.rounds, options.requests = 2, 500
        options.streams, options.events = 50, 100
    return options


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
