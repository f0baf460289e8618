"""`make bench`: everything that is measured, in one run; writes `RESULTS.md` and `results.json`.

    make bench                                 all of it, in a quarter of an hour
    make bench ARGS="--quick"                  small numbers in some two minutes, on the screen only
    make bench ARGS="--against c29da9f"        beside an older version too
    make bench ARGS="--only cpu,profile"       some parts, on the screen only
    make bench-check                           compare a short run with the last results.json

`measures` says how; `make bench-peers` installs more to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks import check, machine, measures, peers, report, variants
from benchmarks.summary import Round
from benchmarks.variants import Variant
from harness.simulator import Simulator

RESULTS = Path(__file__).with_name("RESULTS.md")
RATIOS = Path(__file__).with_name("results.json")
PARTS = ("cpu", "features", "streams", "workers", "mixed", "profile")
Compared = tuple[dict[str, Variant], list[str]]  # variants, and what is not installed
MOST_FOR_PEERS = 1000  # streams at once: more would only tell how long a queue is


def main() -> int:
    """Measure, print, and write or compare."""
    options = _options()
    machine.open_many_files()
    parts = PARTS if options.only is None else options.only
    sizes = measures.QUICK if options.quick else measures.Sizes()
    if options.check:
        if not RATIOS.exists():
            sys.exit(f"there is no {RATIOS} to compare with: run make bench first")
        sizes, parts = replace(sizes, rounds=3, turns=2), ("cpu", "features")
    with ExitStack() as stack:
        compared = _compared(stack, options)
        with machine.on_cores(machine.REST):
            simulator = stack.enter_context(Simulator())
            results = _measure(simulator, compared, parts, sizes)
    whole = parts == PARTS and not options.quick
    results.command = "make bench" + (f' ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "")
    text = report.markdown(results, _left())
    print(text)
    if options.check:
        return _check(results)
    if whole:
        RESULTS.write_text(text)
        found = {"conditions": results.conditions, "ratios": report.ratios(results)}
        RATIOS.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return 0


def _compared(stack: ExitStack, options: argparse.Namespace) -> Compared:
    """The variants beside the gateway, and a line for each peer that is missing."""
    found: dict[str, Variant] = {
        report.DIRECT: variants.direct,
        report.BASELINE: variants.naive,
        report.GATEWAY: variants.gateway,
    }
    if options.against:
        root = stack.enter_context(variants.checkout(options.against))
        found[f"older {options.against}"] = variants.older(root)
    if options.check or options.quick:
        return found, []
    others, missing = peers.installed()
    return found | others, missing


def _measure(
    simulator: Simulator,
    compared: Compared,
    parts: Iterable[str],
    sizes: measures.Sizes,
) -> report.Results:
    beside, notes = compared
    busy = f"The load average was {os.getloadavg()[0]:.1f} when it began."
    results = report.Results(machine.description(), notes=[busy, *notes])
    url = simulator.url
    fewer = replace(sizes, turns=min(sizes.turns, 2))
    if "cpu" in parts:
        results.rounds = _rounds(
            "cost and delay", measures.duel(beside, url, sizes, notes=results.notes)
        )
    if "features" in parts:
        featured = _featured(results.notes)
        duel = measures.duel(featured, url, fewer, measures.CHEAP, notes=results.notes, fresh=False)
        results.features = _rounds("features", duel)
    if "streams" in parts:
        results.held = _held(beside, url, sizes, results.notes)
    if "mixed" in parts:
        _progress("mixed traffic")
        results.mixed = measures.mixed(beside, simulator, sizes, results.notes)
    if "profile" in parts:
        for name, stream in (("a call", False), ("a short stream", True)):
            _progress(f"profile of {name}")
            profile = measures.profile(url, sizes.profile_seconds, stream=stream)
            results.profiles[name] = profile
    if "workers" in parts:
        machine.hold(simulator.pid, machine.CORES)
        with machine.on_cores(machine.CORES):
            results.workers = _rounds("workers", measures.throughput(variants.WORKERS, url, fewer))
    _progress("")
    return results


def _featured(notes: list[str]) -> dict[str, Variant]:
    if shutil.which("redis-server") or shutil.which("valkey-server"):
        return variants.FEATURED
    notes.append("redis-server is not installed: no rows for Redis.")
    return {name: each for name, each in variants.FEATURED.items() if "Redis" not in name}


def _held(
    beside: Mapping[str, Variant], url: str, sizes: measures.Sizes, notes: list[str]
) -> dict[str, list[measures.Held]]:
    found: dict[str, list[measures.Held]] = {}
    for name, variant in beside.items():
        if name == report.DIRECT:
            continue
        ours = name in (report.BASELINE, report.GATEWAY) or name.startswith(("older", "nginx"))
        for streams in sizes.held:
            if ours or streams <= MOST_FOR_PEERS:
                _progress(f"{streams} streams through {name}")
                with measures.noted(name, notes):
                    found.setdefault(name, []).append(measures.hold(variant, url, streams))
    return found


def _rounds(what: str, rounds: Iterable[Round]) -> list[Round]:
    found = []
    _progress(f"{what}, round 1")
    for each in rounds:
        found.append(each)
        _progress(f"{what}, round {len(found) + 1}")
    return found


def _left() -> str:
    """The part of RESULTS.md that is written by hand."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    _, found, rest = text.partition(report.LEFT)
    return found + rest


def _check(results: report.Results) -> int:
    committed = json.loads(RATIOS.read_text())
    for line in check.conditions(committed["conditions"], results.conditions):
        print(f"other conditions: {line}")
    lines = check.verdict(committed["ratios"], report.ratios(results))
    for line in lines:
        print(f"WORSE {line}")
    if not lines:
        print(f"{len(committed['ratios'])} ratios are no worse than in {RATIOS.name}")
    return 1 if lines else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def parts(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(PARTS):
            raise argparse.ArgumentTypeError(f"{unknown} is not in {', '.join(PARTS)}")
        return names

    parser.add_argument("--against", metavar="COMMIT", help="an older version to compare with")
    parser.add_argument("--only", type=parts, metavar="LIST", help=f"of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small numbers, without peers")
    parser.add_argument("--check", action="store_true", help="compare with results.json")
    return parser.parse_args()


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
