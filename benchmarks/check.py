"""`make bench-check`: is a short run worse than the last committed one (`results.json`)?

Only ratios are compared, to the naive relay and to the gateway without features, which the machine
changes little. Another Python build or processor changes them more: the check says so.
"""

from __future__ import annotations

from collections.abc import Mapping

# By how much a ratio may be worse, by the kind of measure that its name begins with.
TOLERANCES = {"CPU": 0.10, "memory": 0.10, "start": 0.30}


def verdict(committed: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """A line for each ratio that is worse than its tolerance allows, or missing."""
    lines = []
    for name, before in committed.items():
        tolerance = TOLERANCES[name.partition(":")[0]]
        now = found.get(name)
        if now is None:
            lines.append(f"{name}: was not measured (×{before:.2f} before)")
        elif now > before * (1 + tolerance):
            lines.append(f"{name}: ×{now:.2f}, ×{before:.2f} before (+{tolerance:.0%} is allowed)")
    return lines


def conditions(committed: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """A line for each condition that differs."""
    return [
        f"{name}: {here.get(name)}, in results.json {before}"
        for name, before in committed.items()
        if here.get(name) != before
    ]
