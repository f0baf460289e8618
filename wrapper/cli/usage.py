"""`usage`: the usage and cost of each key, from the usage table.

Invariant: responses that could not be metered or priced are counted beside the sums, so that an
incomplete sum is recognizable.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wrapper.cli import ArgumentError, CommandError, cell_of_csv, columns, examples, focus
from wrapper.config import ApiKey, load_keys, store_url
from wrapper.config.problems import suggest
from wrapper.metering import exact_usd
from wrapper.store import DIMENSIONS, PICO, StoreError, Sums, UsageStore, open_existing, spans

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

NUMBERS = (
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "audio_seconds",
    "cost_usd",
    "unmetered",
    "unpriced",
    "bounded",
    "bounded_tokens_low",
    "bounded_tokens_high",
    "bounded_cost_usd_low",
    "bounded_cost_usd_high",
    "cost_usd_input",
    "cost_usd_cached_input",
    "cost_usd_cache_write",
    "cost_usd_output",
    "cost_usd_other",
)


_OF_KEYS = ("group", "owner")
COLUMNS = (*DIMENSIONS, *_OF_KEYS)
NONE = "-"


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command and its options."""
    parser = subparsers.add_parser(
        "usage",
        help="usage and cost by key, model and other columns",
        description="Sums of the usage table. Days and hours are UTC, and an hour counts as a"
        " whole. unmetered: responses whose usage is not known; their tokens are missing from the"
        " sums. bounded: requests that were given up or broke off; their tokens and cost are not in"
        " the sums but between two bounds beside them. unpriced: requests whose model has no known"
        " price; their cost is missing."
        " group and owner are those of the keys file now; '-' where a key has none or is gone.",
        epilog=examples(
            ("usage", "the last week, by key and model"),
            ("usage --since 2026-11-01 --by group,day", "each team, day by day (UTC)"),
            ("usage --since 24h --by owner --format csv", "for a spreadsheet"),
            ("usage --key web-app --by model --format json", "one key, for a program"),
            ("usage --since 2026-11-01 --format focus", "for a FinOps tool (FOCUS 1.2)"),
        ),
    )
    parser.add_argument(
        "--since",
        type=since,
        default="7d",
        metavar="TIME",
        help="24h, 7d, 4w, or a date such as 2026-11-01 (UTC); default 7d",
    )
    parser.add_argument(
        "--by",
        type=dimensions,
        default="key,model",
        metavar="LIST",
        help=f"any of {', '.join(COLUMNS)}, separated by commas; default key,model",
    )
    parser.add_argument("--key", metavar="NAME", help="only this key")
    parser.add_argument(
        "--format",
        choices=("table", "json", "csv", "focus"),
        default="table",
        help="default: table; focus: FOCUS 1.2 CSV, by day, key, provider, model and tag",
    )
    parser.set_defaults(run=run)


def since(text: str) -> float:
    """The Unix time of a span back from now, or of a date in UTC."""
    try:
        return spans.since(text, time.time())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time: write 24h, 7d, 4w or 2026-11-01"
        ) from None


def dimensions(text: str) -> tuple[str, ...]:
    """The columns to group by."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in COLUMNS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(COLUMNS)}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError("names a column twice")
    return names


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the sums. Raises CommandError when the table cannot be read."""
    try:
        store = open_existing(store_url(environ))
        if args.format == "focus":
            daily = store.totals(args.since, None, focus.BY, args.key)
            store.close()
            focus.write(daily, load_keys(environ), sys.stdout)
            return 0
        if args.key is not None:
            _check_key(args.key, store, environ)
        rows = _totals(store, args, environ)
        total = store.totals(args.since, None, (), args.key)[0]
        store.close()
    except StoreError as error:
        raise CommandError(str(error)) from error
    if args.format == "json":
        _print_json(args, rows, total)
    elif args.format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow((*args.by, *NUMBERS))
        writer.writerows((*map(cell_of_csv, row.group), *_exact(row)) for row in rows)
    else:
        _print_table(args, rows, total)
    return 0


def _check_key(name: str, store: UsageStore, environ: Mapping[str, str]) -> None:
    """Raises ArgumentError for a key that is neither in the keys file nor in the table."""
    keys = load_keys(environ)
    if name in keys or store.totals(key=name)[0].requests:
        return
    known = {*keys, *(row.group[0] for row in store.totals(by=("key",)))}
    hint = suggest(name, known)
    raise ArgumentError(f"--key {name}: there is no such key" + (f"; {hint}" if hint else ""))


def _totals(
    store: UsageStore, args: argparse.Namespace, environ: Mapping[str, str]
) -> Sequence[Sums]:
    """The sums by `args.by`. The table has keys, and the keys file says whose they are."""
    of_keys = [name for name in args.by if name in _OF_KEYS]
    if not of_keys:
        return store.totals(args.since, None, args.by, args.key)
    keys = load_keys(environ)
    by = tuple(dict.fromkeys(("key", *(name for name in args.by if name not in _OF_KEYS))))
    merged: dict[tuple[str, ...], Sums] = {}
    for row in store.totals(args.since, None, by, args.key):
        names = dict(zip(by, row.group, strict=True))
        key = keys.get(names["key"])
        names |= {name: _of_key(key, name) for name in of_keys}
        group = tuple(names[name] for name in args.by)
        before = merged.get(group)
        numbers = row[1:] if before is None else map(sum, zip(before[1:], row[1:], strict=True))
        merged[group] = Sums(group, *numbers)
    return sorted(merged.values())


def _of_key(key: ApiKey | None, name: str) -> str:
    """The group or the owner of a key; `-` where it has none or the keys file has no such key."""
    found = None if key is None else key.group if name == "group" else key.owner
    return found or NONE


def _exact(sums: Sums) -> tuple[str, ...]:
    """The numbers in the order of `NUMBERS`, not rounded."""
    numbers = (sums.requests, sums.prompt, sums.completion, sums.total, sums.cached, sums.reasoning)
    return (
        *map(str, numbers),
        f"{sums.seconds:g}",
        exact_usd(sums.cost),
        *map(str, (sums.unmetered, sums.unpriced)),
        *map(str, (sums.bounded, sums.tokens_low, sums.tokens_high)),
        *map(exact_usd, (sums.cost_low, sums.cost_high)),
        *map(exact_usd, sums.cost_by_kind),
    )


def _print_json(args: argparse.Namespace, rows: Sequence[Sums], total: Sums) -> None:
    def fields(sums: Sums) -> dict[str, float | int]:
        values = zip(NUMBERS, _exact(sums), strict=True)
        return {
            name: float(text) if name == "audio_seconds" or "cost" in name else int(text)
            for name, text in values
        }

    document = {
        "since": spans.iso(args.since),
        "by": list(args.by),
        "rows": [{**dict(zip(args.by, row.group, strict=True)), **fields(row)} for row in rows],
        "total": fields(total),
    }
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _print_table(args: argparse.Namespace, rows: Sequence[Sums], total: Sums) -> None:
    if not total.requests:
        print(f"nothing was used since {spans.iso(args.since)}")
        return
    header = [*args.by, "requests", "prompt", "cached", "completion", "reasoning", "total"]
    header += ["seconds"] if total.seconds else []
    header += ["cost USD", "unmetered", "unpriced"]
    header += ["bounded", "bounded USD"] if total.bounded else []
    lines = [[*row.group, *_cells(row, total)] for row in rows]
    if args.by:
        lines.append(["total", *[""] * (len(args.by) - 1), *_cells(total, total)])
    else:
        lines = [_cells(total, total)]
    print(columns(header, lines, names=len(args.by)))
    print(f"since {spans.iso(args.since)}")
    if total.unmetered:
        print(f"unmetered: {total.unmetered}: responses whose tokens are not known")
    if total.bounded:
        print(
            f"bounded: {total.bounded}: requests that were given up or broke off; they are in no"
            f" other sum, and used {total.tokens_low:,} to {total.tokens_high:,} tokens"
        )
    if total.unpriced:
        print(
            f"unpriced: {total.unpriced}: responses whose cost is not known. A price for their"
            ' model in [prices."MODEL"] of gateway.toml counts from then on'
        )


def _cells(sums: Sums, total: Sums) -> list[str]:
    tokens = (sums.requests, sums.prompt, sums.cached, sums.completion, sums.reasoning, sums.total)
    seconds = [f"{sums.seconds:,.1f}"] if total.seconds else []
    counts = [str(sums.unmetered), str(sums.unpriced)]
    if total.bounded:
        counts += [str(sums.bounded), f"{short_usd(sums.cost_low)} to {short_usd(sums.cost_high)}"]
    cost = "-" if sums.unpriced and not sums.cost else short_usd(sums.cost)
    return [*(f"{n:,}" for n in tokens), *seconds, cost, *counts]


def short_usd(pico: int) -> str:
    """USD rounded: to cents from a dollar on, below that to three significant digits."""
    if not pico:
        return "0"
    if pico >= PICO:
        return f"{pico / PICO:,.2f}"
    digits = 15 - len(str(pico))
    return f"{pico / PICO:.{digits}f}"
