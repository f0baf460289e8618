"""`reconcile`: compares what a provider counted with the usage table, per day and model.

The provider's numbers are in a file, or `--fetch` asks for them. Invariant: both sides are compared
as they are. Every drift is printed; what may explain it (unmetered responses, unpriced requests) is
printed beside it and not subtracted.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wrapper.cli import ArgumentError, CommandError, cell_of_csv, columns, count, examples
from wrapper.cli.drift import ALL, Line, compare, metrics, totals
from wrapper.cli.exports import COLUMNS, NUMBERS, Export, ExportError, Total, read_export
from wrapper.cli.usage import since
from wrapper.config import ADMIN_KEY
from wrapper.metering.pricing import undated
from wrapper.record import NO_MODEL
from wrapper.store import PICO, StoreError, Sums, open_existing

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

MAX_BYTES = 64 << 20
OVER = 3  # the exit code for a drift over the tolerance; 2 is argparse's own

# A provider's export has no request that the provider refused.
_WORKED_ON = ("completed", "client_abort", "drained")
_BY = ("day", "provider", "model", "outcome")
_HEADER = ("day", "model", "what", "theirs", "ours", "drift", "drift_pct")


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
            ("reconcile export.json --tolerance 0.1 --format csv", "for a program"),
            ("reconcile --fetch --write-metrics /var/lib/node-exporter/ledger.prom", "each night"),
        ),
    )
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="the export; - is standard input"
    )
    parser.add_argument(
        "--provider",
        metavar="NAME",
        help="the provider, as in gateway.toml; default: those that served a model of the file,"
        " with --fetch openai",
    )
    _add_fetch(parser)
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


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    """The options of --fetch."""
    group = parser.add_argument_group(
        "without a file",
        "Asks the usage and costs APIs of OpenAI, with an admin key of the organization:"
        f" {ADMIN_KEY}, or --admin-key-file. The gateway must not hold that key. Cost is judged by"
        " the sum of each day, because line items for tools name no model.",
    )
    group.add_argument("--fetch", action="store_true", help="ask the provider")
    group.add_argument(
        "--since",
        type=_day,
        metavar="TIME",
        help="the first day: 7d, 4w, or a date such as 2026-11-01 (UTC); default 7d",
    )
    group.add_argument(
        "--until",
        type=_day,
        metavar="DATE",
        help="the day after the last one; default: today, whose numbers are not complete",
    )
    group.add_argument(
        "--project",
        action="append",
        default=[],
        metavar="ID",
        help="only this project of the organization (proj_...); may be given several times",
    )
    group.add_argument(
        "--admin-key-file", type=Path, metavar="FILE", help="the file that holds the admin key"
    )
    group.add_argument(
        "--write-metrics",
        type=Path,
        metavar="FILE",
        help="write the drift of each day for node-exporter's textfile collector",
    )


def _day(text: str) -> date:
    return datetime.fromtimestamp(since(text), UTC).date()


def _percent(text: str) -> Decimal:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?%?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage: write 0.5")
    return Decimal(text.removesuffix("%"))


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the comparison. Returns 0, or 3 if a drift is over the tolerance."""
    if args.fetch == (args.file is not None):
        raise ArgumentError("give either FILE or --fetch: reconcile --help")
    if not args.fetch:
        given = ("since", "until", "project", "admin_key_file", "write_metrics")
        for name in given:
            if getattr(args, name):
                raise ArgumentError(f"--{name.replace('_', '-')} goes with --fetch")
        theirs = _read(args.file)
        days = sorted(date.fromisoformat(day) for day, _ in theirs)
        ours = _ours(environ, theirs, args.provider, days[0], days[-1] + timedelta(days=1))
        lines = compare(theirs, ours.totals)
        return _report(args, ours, lines, lines)
    today = datetime.fromtimestamp(time.time(), UTC).date()
    first, end = args.since or today - timedelta(days=7), args.until or today
    if first >= end:
        raise ArgumentError(
            f"no day is from {first} up to {end}: --until is the day after the last"
        )
    provider = args.provider or "openai"
    theirs = _fetch(args, environ, provider, first, end)
    ours = _ours(environ, theirs, provider, first, end)
    lines = compare(theirs, ours.totals, NUMBERS)
    sums = totals(lines)
    if args.write_metrics:
        days = [first + timedelta(days=each) for each in range((end - first).days)]
        _write_metrics(args.write_metrics, metrics(provider, days, sums, time.time()))
    judged = [line for line in [*lines, *sums] if line.what != "cost" or line.model == ALL]
    return _report(args, ours, sorted([*lines, *sums]), judged)


def _fetch(
    args: argparse.Namespace, environ: Mapping[str, str], provider: str, first: date, end: date
) -> Export:
    from wrapper.cli.fetch import admin_key, fetch  # with the HTTP client
    from wrapper.config import load
    from wrapper.config.problems import suggest

    settings = load(environ)
    if provider not in settings.providers:
        hint = suggest(provider, settings.providers)
        raise ArgumentError(f"--provider {provider}: there is no such provider; {hint}")
    key = admin_key(settings, environ, args.admin_key_file)
    return fetch(settings.providers[provider], key, first, end, args.project)


def _write_metrics(path: Path, text: str) -> None:
    from wrapper.config.files import replace_file

    try:
        replace_file(path, text.encode(), 0o644)  # node-exporter is another user
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error


def _report(args: argparse.Namespace, ours: Ours, lines: list[Line], judged: list[Line]) -> int:
    """Prints `lines`; the exit code says whether one of `judged` is over the tolerance."""
    over = [line for line in judged if line.is_over(args.tolerance)]
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


def _ours(
    environ: Mapping[str, str], theirs: Export, provider: str | None, first: date, end: date
) -> Ours:
    """Our sums from `first` to the day before `end`."""
    from wrapper.config import store_url

    start, stop = (
        datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() for day in (first, end)
    )
    try:
        store = open_existing(store_url(environ))
        rows = store.totals(start, stop, _BY)
        store.close()
    except StoreError as error:
        raise CommandError(str(error)) from error
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
