"""`keys list`: all keys with their limits and state; and how keys and limits are described."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wrapper.admission import Subjects
from wrapper.auth import expired
from wrapper.cli import CommandError, columns, count, examples
from wrapper.cli.usage import short_usd
from wrapper.config import (
    ApiKey,
    ConfigError,
    Group,
    KeyFile,
    Server,
    Settings,
    keys_path,
    load_key_file,
    store_url,
)
from wrapper.store import PICO, StoreError, open_existing

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

SOON_DAYS = 14
"""An expiry is announced this long before."""

LEFT = "BUDGET LEFT"

_DAY = 86_400


def add_parser(actions: Subparsers) -> None:
    """Adds `keys list`."""
    parser = actions.add_parser(
        "list",
        help="list all keys, without their secrets",
        description=f"Lists keys and groups with their limits, and what is left of their budgets in"
        f" this period. The state says which keys expire within {SOON_DAYS} days, are unused, or"
        " still have an old secret.",
        epilog=examples(
            ("keys list", "a table"),
            ("keys list --unused-days 90", "mark keys without a request in the last 90 days"),
            ("keys list --format json", "for programs"),
        ),
    )
    parser.add_argument(
        "--unused-days",
        type=_days,
        default=30,
        metavar="N",
        help="mark keys without a request in the last N days (default: 30)",
    )
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="default: table"
    )
    parser.set_defaults(run=run)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 5 and int(text) > 0):
        raise argparse.ArgumentTypeError("not a number of days from 1 to 9999")
    return int(text)


def read_file(path: Path) -> KeyFile:
    """A keys file that must be there. Raises `CommandError` and `ConfigError`."""
    if not path.exists():
        raise CommandError(f"{path}: there is no such file")
    return load_key_file({"WRAPPER_KEYS": str(path)})


def contents(found: KeyFile) -> str:
    """`2 keys, 1 group`."""
    return f"{count(len(found.keys), 'key')}, {count(len(found.groups), 'group')}"


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints all keys."""
    found = load_key_file(environ)
    use, unknown = None, ""
    try:
        use = use_of(found, environ, time.time() - args.unused_days * _DAY)
    except (ConfigError, StoreError) as error:
        unknown = str(error)
    if args.format == "json":
        document = [
            {
                **_fields(key),
                "budget_left_usd": None if (left := _left(key, use)) is None else left / PICO,
                "expired": expired(key),
                "unused": None if use is None else key.name not in use.lately,
            }
            for key in found.keys.values()
        ]
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return 0
    if not found.keys:
        print(f"no keys in {keys_path(environ)}: python -m wrapper keys create NAME")
        return 0
    print(_table_of_keys(found, use, args.unused_days))
    if found.groups:
        print("\n" + _table_of_groups(found, use))
    if unknown:
        print(f"\nuse of the keys is not known: {unknown}")
    return 0


def _table_of_keys(found: KeyFile, use: Use | None, days: int) -> str:
    header = ("NAME", "GROUP", "OWNER", "MODELS", "LIMITS", LEFT, "EXPIRES", "STATE")
    rows = [
        (
            key.name,
            key.group or "",
            key.owner or "",
            " ".join(key.models),
            limits_text(key) or "-",
            _left_text(key, use),
            key.expires.isoformat() if key.expires else "never",
            ", ".join(_states(key, use, days)),
        )
        for key in found.keys.values()
    ]
    return _table(header, rows)


def _table_of_groups(found: KeyFile, use: Use | None) -> str:
    rows = [
        (
            group.name,
            str(sum(key.group == group.name for key in found.keys.values())),
            limits_text(group) or "-",
            _left_text(group, use),
            group.description or "",
        )
        for group in found.groups.values()
    ]
    return _table(("GROUP", "KEYS", "LIMITS OF ALL ITS KEYS TOGETHER", LEFT, ""), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that are empty everywhere are left out."""
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return columns([header[i] for i in shown], [[row[i] for i in shown] for row in rows])


class Use(NamedTuple):
    """What the store says of the keys: which were used lately, and which at all; and what is left
    of budgets in this period, in pico-USD, by `key:NAME` or `group:NAME`.
    """

    lately: Collection[str]
    ever: Collection[str]
    left: Mapping[str, int]


def use_of(found: KeyFile, environ: Mapping[str, str], since: float) -> Use | None:
    """The use of these keys, lately: `since` then. None where nothing was used yet.

    Raises ConfigError and StoreError where it cannot be read.
    """
    subjects = Subjects(Settings(Server(), {}, (), found.keys, found.groups))
    limited = [subject for subject in subjects if subject.limits.budget is not None]
    store = open_existing(store_url(environ))
    ever = {row.group[0] for row in store.totals(by=("key",))}
    lately = {row.group[0] for row in store.totals(since, by=("key",))}
    standings = store.standing(limited) if limited else []
    store.close()
    left = {each.subject.name: each.budget_left or 0 for each in standings}
    return Use(lately, ever, left) if ever else None


def _left(holder: ApiKey | Group, use: Use | None) -> int | None:
    scope = "key" if isinstance(holder, ApiKey) else "group"
    return None if use is None else use.left.get(f"{scope}:{holder.name}")


def _left_text(holder: ApiKey | Group, use: Use | None) -> str:
    left = _left(holder, use)
    return "" if left is None else f"{short_usd(left)} USD"


def _states(key: ApiKey, use: Use | None, days: int) -> Iterator[str]:
    """What there is to know about a key; `active` alone where there is nothing."""
    now = datetime.datetime.now(datetime.UTC)
    if expired(key):
        yield "expired"
        return
    yield "active"
    if key.expires is not None and (key.expires - now.date()).days <= SOON_DAYS:
        yield f"expires in {time_until(key.expires, now)}"
    if use is not None and key.name not in use.lately:
        yield f"no request in {count(days, 'day')}" if key.name in use.ever else "never used"
    if not key.enforce:
        yield "dry run"
    if key.old_sha256 is None:
        return
    if key.rotated_until is None:
        yield "two secrets are valid"
    elif key.rotated_until > now:
        yield f"two secrets are valid until {moment(key.rotated_until)}"
    else:
        yield f"the old secret is refused: `keys rotate {key.name} --end` removes it"


def time_until(date: datetime.date, now: datetime.datetime) -> str:
    """The time until 00:00 UTC of a date, in days, hours or minutes, rounded up."""
    begin = datetime.datetime.combine(date, datetime.time(), datetime.UTC)
    seconds = (begin - now).total_seconds()
    for unit, length in (("day", _DAY), ("hour", 3600)):
        if seconds > length:
            return count(math.ceil(seconds / length), unit)
    return count(math.ceil(seconds / 60), "minute")


def _fields(key: ApiKey) -> dict[str, object]:
    return {
        "name": key.name,
        "group": key.group,
        "owner": key.owner,
        "description": key.description,
        "models": list(key.models),
        "endpoints": list(key.endpoints),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_concurrent": key.max_concurrent,
        "budget_usd": None if key.budget_usd is None else float(key.budget_usd),
        "budget_period": None if key.budget_usd is None else key.budget_period,
        "unpriced": key.unpriced,
        "store_failure": key.store_failure,
        "enforce": key.enforce,
        "expires": key.expires.isoformat() if key.expires else None,
        "rotated_until": key.rotated_until.isoformat() if key.rotated_until else None,
    }


def limits_text(holder: ApiKey | Group) -> str:
    """`60 requests/min, 20 USD/month`; empty without a limit."""
    parts = [
        f"{count(value, word)}{unit}"
        for value, word, unit in (
            (holder.requests_per_minute, "request", "/min"),
            (holder.tokens_per_minute, "token", "/min"),
        )
        if value is not None
    ]
    if holder.max_concurrent is not None:
        parts.append(f"{holder.max_concurrent} at once")
    if holder.budget_usd is not None:
        parts.append(budget_text(holder.budget_usd, holder.budget_period))
    return ", ".join(parts)


def budget_text(usd: Decimal, period: str) -> str:
    """`20 USD/month`, `20 USD in all`."""
    whole = usd == usd.to_integral_value()
    amount = f"{usd.quantize(Decimal(1)) if whole else usd:f} USD"
    return f"{amount} in all" if period == "total" else f"{amount}/{period}"


def moment(at: datetime.datetime) -> str:
    """A time for people, in UTC."""
    return at.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
