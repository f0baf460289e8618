"""A provider's numbers beside ours, and how far apart they are.

Invariant: both sides are compared as they are. What one side does not say (a usage API without
tokens for images) is not compared, and never counts as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import NamedTuple

from wrapper.cli.exports import NUMBERS, Export, Total
from wrapper.metering.pricing import undated

ALL = "(all)"
"""In place of a model: a day's sum over all of them."""


class Line(NamedTuple):
    """One comparison. `cost` is in USD. `percent` is None where only theirs is zero."""

    day: str
    model: str
    what: str
    theirs: Decimal
    ours: Decimal

    @property
    def drift(self) -> Decimal:
        return self.ours - self.theirs

    @property
    def percent(self) -> Decimal | None:
        if not self.theirs:
            return None if self.ours else Decimal(0)
        return 100 * self.drift / abs(self.theirs)

    def is_over(self, tolerance: Decimal) -> bool:
        """Whether the drift is more than so many percent."""
        return self.percent is None or abs(self.percent) > tolerance


def compare(theirs: Export, ours: Export, asked: Sequence[str] = ()) -> list[Line]:
    """One line per day, model and number that the export has, or that was asked for; sorted.

    Where only one side names a model with its date, the date is ignored.
    """
    both = {model.lower() for _, model in theirs} & {model.lower() for _, model in ours}
    left, right = _by_name(theirs, both), _by_name(ours, both)
    told = {name for t in theirs.values() for name in NUMBERS if getattr(t, name) is not None}
    given = [name for name in NUMBERS if name in told or name in asked]
    lines = []
    for key in sorted({*left, *right}):
        their, our = left.get(key), right.get(key, Total())
        for name in given:
            number = Decimal(0) if their is None else getattr(their, name)
            pair = (number, getattr(our, name) or Decimal(0))
            if number is not None and (their is not None or any(pair)):
                lines.append(Line(*key, name, *pair))
    return lines


def _by_name(export: Export, both: Iterable[str]) -> Export:
    known = set(both)
    renamed: Export = {}
    for (day, model), total in export.items():
        name = model.lower() if model.lower() in known else undated(model.lower())
        sums = renamed.setdefault((day, name), Total())
        for number in NUMBERS:
            value = getattr(total, number)
            if value is not None:
                sums.add(number, value)
    return renamed


def totals(lines: Iterable[Line]) -> list[Line]:
    """The sums of each day over all models, by number; sorted."""
    sums: dict[tuple[str, str], Line] = {}
    for line in lines:
        before = sums.get((line.day, line.what))
        theirs = line.theirs + (before.theirs if before else 0)
        ours = line.ours + (before.ours if before else 0)
        sums[line.day, line.what] = Line(line.day, ALL, line.what, theirs, ours)
    return [sums[key] for key in sorted(sums, key=lambda key: (key[0], NUMBERS.index(key[1])))]


def metrics(provider: str, days: Sequence[date], lines: Iterable[Line], now: float) -> str:
    """The drift of each of `days` as Prometheus' text, for node-exporter's textfile collector.

    `lines` are those of `totals`. A ratio is (ours - theirs) / theirs: 0 where neither has
    anything, +Inf where only we have. `day_age` is 1 for yesterday (UTC).
    """
    drifts: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    for line in lines:
        what = "tokens" if line.what in ("prompt", "completion") else line.what
        if what in ("tokens", "cost"):
            theirs, ours = drifts.get((line.day, what), (Decimal(0), Decimal(0)))
            drifts[line.day, what] = (theirs + line.theirs, ours + line.ours)
    today = datetime.fromtimestamp(now, UTC).date()
    text = [
        "# HELP ledger_drift_ratio How far the usage table is from the provider's own numbers.",
        "# TYPE ledger_drift_ratio gauge",
    ]
    for day in days:
        for what in ("cost", "tokens"):
            labels = f'provider="{provider}",day_age="{(today - day).days}",what="{what}"'
            ratio = _ratio(*drifts.get((day.isoformat(), what), (Decimal(0), Decimal(0))))
            text.append(f"ledger_drift_ratio{{{labels}}} {ratio}")
    text += [
        "# HELP ledger_reconciled_timestamp_seconds When the usage table was last compared.",
        "# TYPE ledger_reconciled_timestamp_seconds gauge",
        f'ledger_reconciled_timestamp_seconds{{provider="{provider}"}} {now:.0f}',
    ]
    return "\n".join(text) + "\n"


def _ratio(theirs: Decimal, ours: Decimal) -> str:
    if not theirs:
        return "+Inf" if ours else "0"
    return f"{float((ours - theirs) / abs(theirs)):.9g}"
