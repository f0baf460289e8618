"""Numbers out of slices: what was stolen from is dropped, a round is the median of its slices, a
result the median of the rounds; ratios are made within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MOST_STEAL = 0.02  # cores, of a slice that counts


@dataclass(frozen=True)
class Slice:
    """One slice of load: stolen cores meanwhile, values, and samples of which tails are made."""

    steal: float
    values: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)


Round = dict[str, list[Slice]]  # by variant


def kept(slices: Iterable[Slice]) -> list[Slice]:
    """Those that the hypervisor left alone."""
    return [each for each in slices if each.steal <= MOST_STEAL]


def dropped(rounds: Iterable[Round]) -> tuple[int, int]:
    """How many slices were dropped, and of how many."""
    slices = [each for found in rounds for every in found.values() for each in every]
    return len(slices) - len(kept(slices)), len(slices)


def value(slices: Iterable[Slice], name: str) -> float | None:
    """The median of a round's slices; None where none is left."""
    found = [each.values[name] for each in kept(slices) if name in each.values]
    return statistics.median(found) if found else None


def tail(slices: Iterable[Slice], name: str, share: float) -> float | None:
    """The value that a `share` of the samples of a round's slices stays below."""
    found = sorted(sample for each in kept(slices) for sample in each.samples.get(name, ()))
    return found[min(int(len(found) * share), len(found) - 1)] if found else None


def median(found: Iterable[float | None]) -> float | None:
    """The median over the rounds that have a number."""
    numbers = [each for each in found if each is not None]
    return statistics.median(numbers) if numbers else None


def of_rounds(rounds: Sequence[Round], variant: str, name: str) -> float | None:
    """The result for a variant."""
    return median(value(each.get(variant, ()), name) for each in rounds)


def tail_of_rounds(rounds: Sequence[Round], variant: str, name: str, share: float) -> float | None:
    """The same for a tail."""
    return median(tail(each.get(variant, ()), name, share) for each in rounds)


def pairs(rounds: Sequence[Round], variant: str, base: str, name: str) -> list[tuple[float, float]]:
    """The value of a variant and that of another one, for each round that has both."""
    both = (
        (value(each.get(variant, ()), name), value(each.get(base, ()), name)) for each in rounds
    )
    return [(a, b) for a, b in both if a is not None and b is not None]


def ratio(rounds: Sequence[Round], variant: str, base: str, name: str) -> float | None:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in pairs(rounds, variant, base, name) if b)


def difference(rounds: Sequence[Round], variant: str, base: str, name: str) -> float | None:
    """The median of the rounds' differences."""
    return median(a - b for a, b in pairs(rounds, variant, base, name))
