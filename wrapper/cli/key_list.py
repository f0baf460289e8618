"""`keys list`: all keys with their limits and state; and how keys and limits are described."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from wrapper.auth import expired
from wrapper.cli import CommandError, columns, count, examples
from wrapper.config import (
    ApiKey,
    ConfigError,
    Group,
    KeyFile,
    keys_path,
    load_key_file,
    store_url,
)
from wrapper.store import StoreError, open_store

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

SOON_DAYS = 14
"""An expiry is announced this long before."""

_DAY = 86_400


def add_parser(actions: Subparsers) -> None:
    """Adds `keys list`."""
    parser = actions.add_parser(
        "list",
        help="list all keys, without their secrets",
        description=f"Lists keys and groups with their limits. The state says which keys expire"
        f" within {SOON_DAYS} days, are unused, or still have an old secret.",
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
    used = used_since(environ, time.time() - args.unused_days * _DAY)
    if args.format == "json":
        document = [
            {**_fields(key), "expired": expired(key), "unused": _unused(key, used)}
            for key in found.keys.values()
        ]
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return 0
    if not found.keys:
        print(f"no keys in {keys_path(environ)}: python -m wrapper keys create NAME")
        return 0
    print(_table(found, used, args.unused_days))
    if found.groups:
        rows = [
            (
                group.name,
                str(sum(key.group == group.name for key in found.keys.values())),
                limits_text(group) or "-",
                group.description or "",
            )
            for group in found.groups.values()
        ]
        print("\n" + columns(("GROUP", "KEYS", "LIMITS OF ALL ITS KEYS TOGETHER", ""), rows))
    return 0


def _table(found: KeyFile, used: Collection[str] | None, days: int) -> str:
    """Columns that are empty for every key are left out."""
    header = ("NAME", "GROUP", "OWNER", "MODELS", "LIMITS", "EXPIRES", "STATE")
    rows = [
        (
            key.name,
            key.group or "",
            key.owner or "",
            " ".join(key.models),
            limits_text(key) or "-",
            key.expires.isoformat() if key.expires else "never",
            ", ".join(_states(key, used, days)),
        )
        for key in found.keys.values()
    ]
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return columns([header[i] for i in shown], [[row[i] for i in shown] for row in rows])


def used_since(environ: Mapping[str, str], since: float) -> Collection[str] | None:
    """The keys that the usage table has requests of; None where it cannot be read or is empty."""
    try:
        store = open_store(store_url(environ))
        rows = store.totals(since, None, ("key",))
        is_empty = not rows and not store.totals(None, None, ("key",))
        store.close()
    except (ConfigError, StoreError):
        return None
    return None if is_empty else {row.group[0] for row in rows}


def _unused(key: ApiKey, used: Collection[str] | None) -> bool | None:
    return None if used is None else key.name not in used


def _states(key: ApiKey, used: Collection[str] | None, days: int) -> Iterator[str]:
    """What there is to know about a key; `active` alone where there is nothing."""
    now = datetime.datetime.now(datetime.UTC)
    if expired(key):
        yield "expired"
        return
    yield "active"
    if key.expires is not None and (left := (key.expires - now.date()).days) <= SOON_DAYS:
        yield f"expires in {count(left, 'day')}"
    if _unused(key, used):
        yield f"no request in {count(days, 'day')}"
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
        f"{value} {unit}"
        for value, unit in (
            (holder.requests_per_minute, "requests/min"),
            (holder.tokens_per_minute, "tokens/min"),
            (holder.max_concurrent, "at once"),
        )
        if value is not None
    ]
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
