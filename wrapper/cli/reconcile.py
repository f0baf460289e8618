"""`reconcile FILE`: compares a provider's usage export with the usage table, per day and model.

Invariant: both sides are compared as they are. Every drift is printed; what may explain it
(unmetered responses, unpriced requests) is printed beside it and not subtracted.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wrapper.cli import CommandError, cell_of_csv, columns, count, examples
from wrapper.cli.exports import COLUMNS, NUMBERS, Export, ExportError, Total, read_export
from wrapper.metering.pricing import undated
from wrapper.record import NO_MODEL
from wrapper.store import PICO, StoreError, Sums, UsageStore, open_store

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

MAX_BYTES = 64 << 20
OVER = 3  # the exit code for a drift over the tolerance; 2 is argparse's own

# A provider's export has no request that the provider refused.
_WORKED_ON = ("completed", "client_abort", "drained")
_BY = ("day", "provider", "model", "outcome")
_HEADER = ("day", "model", "what", "theirs", "ours", "drift", "drift_pct")


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


class Ours(NamedTuple):
    """The usage table's sums for the days of an export."""

    totals: Export
    unmetered: int
    unpriced: int


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command and its options."""
    known = "; ".join(f"{name}: {', '.join(names)}" for name, names in COLUMNS.items())
    parser = subparsers.add_parser(
        "reconcile",
        help="compare a provider's usage export with the usage table",
        description="FILE is a usage export of OpenAI or Groq by day (UTC) and model: JSON of"
        " OpenAI's usage API (group_by=model), a JSON list of objects, or CSV with a header."
        f" Columns that are read: {known}. Others are ignored. Requests that the provider"
        " refused are not counted, since they are in no export; tokens and cost all are.",
        epilog=examples(
            ("reconcile export.csv --provider openai", "exit code 3 if a drift is over 1 %"),
            ("reconcile export.json --tolerance 0.1 --format csv", "for a nightly job"),
        ),
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the export; - is standard input")
    parser.add_argument(
        "--provider",
        metavar="NAME",
        help="the provider, as in gateway.toml; default: those that served a model of the file",
    )
    parser.add_argument(
        "--tolerance",
        type=_percent,
        default=Decimal(1),
        metavar="PCT",
        help="exit with 3 if a drift is more than this many percent (default: 1)",
    )
    parser.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="default: table"
    )
    parser.set_defaults(run=run)


def _percent(text: str) -> Decimal:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?%?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage: write 0.5")
    return Decimal(text.removesuffix("%"))


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the comparison. Returns 0, or 3 if a drift is over the tolerance."""
    from wrapper.config import store_url

    theirs = _read(args.file)
    try:
        store = open_store(store_url(environ))
        ours = _ours(store, theirs, args.provider)
        store.close()
    except StoreError as error:
        raise CommandError(str(error)) from error
    lines = compare(theirs, ours.totals)
    over = [line for line in lines if _is_over(line, args.tolerance)]
    {"table": _print_table, "json": _print_json, "csv": _print_csv}[args.format](lines)
    if args.format == "table":
        _print_notes(ours, over, args.tolerance)
    return OVER if over else 0


def _read(path: Path) -> Export:
    """`-` is standard input."""
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise CommandError(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
    try:
        return read_export(data)
    except ExportError as error:
        raise CommandError(f"{path}: {error}") from error


def _ours(store: UsageStore, theirs: Export, provider: str | None) -> Ours:
    """Our sums for the days from the first to the last of the export."""
    days = sorted(day for day, _ in theirs)
    start, end = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (days[0], days[-1]))
    rows = store.totals(start.timestamp(), (end + timedelta(days=1)).timestamp(), _BY)
    models = {undated(model.lower()) for _, model in theirs}
    served = {row.group[1] for row in rows if undated(row.group[2].lower()) in models}
    wanted = {provider} if provider else served
    if provider and provider not in {row.group[1] for row in rows}:
        note = f"note: the usage table has no request to provider {provider!r} on these days"
        print(note, file=sys.stderr)
    totals: Export = {}
    unmetered = unpriced = 0
    for row in rows:
        day, name, model, outcome = row.group
        if name in wanted and model != NO_MODEL:  # lists and files are in no export
            _add(totals.setdefault((day, model), _zero()), row, outcome)
            unmetered += row.unmetered
            unpriced += row.unpriced
    return Ours(totals, unmetered, unpriced)


def _zero() -> Total:
    return Total(*(Decimal(0) for _ in NUMBERS))


def _add(total: Total, row: Sums, outcome: str) -> None:
    total.add("requests", Decimal(row.requests if outcome in _WORKED_ON else 0))
    total.add("prompt", Decimal(row.prompt))
    total.add("completion", Decimal(row.completion))
    total.add("cached", Decimal(row.cached))
    total.add("cost", Decimal(row.cost) / PICO)


def compare(theirs: Export, ours: Export) -> list[Line]:
    """One line per day, model and number that the export has, sorted.

    Where only one side names a model with its date, the date is ignored.
    """
    both = {model.lower() for _, model in theirs} & {model.lower() for _, model in ours}
    left, right = _by_name(theirs, both), _by_name(ours, both)
    given = [name for name in NUMBERS if any(getattr(t, name) is not None for t in theirs.values())]
    lines = []
    for key in sorted({*left, *right}):
        their, our = left.get(key, Total()), right.get(key, Total())
        for name in given:
            pair = (getattr(their, name) or Decimal(0), getattr(our, name) or Decimal(0))
            if key in left or any(pair):
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


def _is_over(line: Line, tolerance: Decimal) -> bool:
    return line.percent is None or abs(line.percent) > tolerance


def _text(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _percent_text(line: Line) -> str:
    return "" if line.percent is None else f"{line.percent:.3f}"


def _row(line: Line) -> list[str]:
    numbers = (line.theirs, line.ours, line.drift)
    return [line.day, line.model, line.what, *map(_text, numbers), _percent_text(line)]


def _print_table(lines: list[Line]) -> None:
    print(columns(_HEADER, map(_row, lines), names=3))


def _print_csv(lines: list[Line]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_HEADER)
    for line in lines:
        day, model, what, *numbers = _row(line)
        writer.writerow((day, cell_of_csv(model), what, *numbers))


def _print_json(lines: list[Line]) -> None:
    rows = [
        {
            "day": line.day,
            "model": line.model,
            "what": line.what,
            "theirs": float(line.theirs),
            "ours": float(line.ours),
            "drift": float(line.drift),
            "drift_pct": None if line.percent is None else round(float(line.percent), 6),
        }
        for line in lines
    ]
    print(json.dumps({"rows": rows}, indent=2, ensure_ascii=False))


def _print_notes(ours: Ours, over: list[Line], tolerance: Decimal) -> None:
    if ours.unmetered:
        number = count(ours.unmetered, "response")
        print(f"unmetered here: {number}; their tokens are missing from ours")
    if ours.unpriced:
        print(f"unpriced here: {count(ours.unpriced, 'request')}; their cost is missing from ours")
    if over:
        print(f"over the tolerance of {tolerance} %: {len(over)} of the numbers above")
