"""`keys create | list | revoke`.

Invariant: `create` prints the secret once; it is not stored.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from wrapper.auth import digest, expired, new_secret
from wrapper.cli import NOT_ENFORCED, CommandError, columns
from wrapper.config import ApiKey, ConfigError, keyfile, keys_path, load_keys
from wrapper.config.keys import wrong_name
from wrapper.config.settings import BUDGET_PERIODS, is_broken_glob

if TYPE_CHECKING:
    from wrapper.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Adds `keys` and its actions."""
    parser = subparsers.add_parser("keys", help="create, list and revoke gateway keys")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_create(actions)
    lister = actions.add_parser("list", help="list all keys, without their secrets")
    lister.add_argument("--format", choices=("table", "json"), default="table")
    lister.set_defaults(run=run_list)
    revoker = actions.add_parser("revoke", help="remove a key; it is refused within two seconds")
    revoker.add_argument("name", metavar="NAME")
    revoker.set_defaults(run=run_revoke)


def _add_create(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "create",
        help="create a key and print its secret once",
        description="Creates a key and prints its secret once; the keys file gets its SHA-256."
        f" Note: {NOT_ENFORCED}.",
    )
    parser.add_argument("name", metavar="NAME", type=_name)
    parser.add_argument(
        "--models",
        nargs="+",
        type=_models,
        default=[],
        metavar="MODEL",
        help="models, aliases and globs that the key may call, such as 'gpt-*' (default: all)",
    )
    parser.add_argument("--rpm", type=_limit, metavar="N", help="requests per minute")
    parser.add_argument("--tpm", type=_limit, metavar="N", help="tokens per minute")
    parser.add_argument("--concurrency", type=_limit, metavar="N", help="requests at once")
    parser.add_argument("--budget", type=_budget, metavar="USD", help="budget per day or month")
    parser.add_argument(
        "--per", choices=BUDGET_PERIODS, help="period of --budget, in UTC (default: month)"
    )
    parser.add_argument(
        "--expires",
        type=_date,
        metavar="DATE",
        help="refused from 00:00 UTC of DATE, such as 2027-01-31",
    )
    parser.add_argument("--quiet", action="store_true", help="print the secret and nothing else")
    parser.set_defaults(run=run_create)


def _name(text: str) -> str:
    why = wrong_name(text)
    if why:
        raise argparse.ArgumentTypeError(f"the name {why}")
    return text


def _models(text: str) -> list[str]:
    models = [model.strip() for model in text.split(",")]
    if not all(model and model.isprintable() for model in models):
        raise argparse.ArgumentTypeError("a model's name is empty or cannot be printed")
    if any(map(is_broken_glob, models)):
        raise argparse.ArgumentTypeError("a bracket is not closed")
    return models


def _limit(text: str) -> int:
    digits = text.replace("_", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16 and int(digits) > 0):
        raise argparse.ArgumentTypeError("not a whole number above 0")
    return int(digits)


def _budget(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and Decimal("0.000001") <= amount <= Decimal(10**9)):
        raise argparse.ArgumentTypeError("not an amount above 0, such as 20 or 0.50")
    return amount


def _date(text: str) -> datetime.date:
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not a date such as 2027-01-31") from None
    if date <= datetime.datetime.now(datetime.UTC).date():
        raise argparse.ArgumentTypeError("the key would be expired at once")
    return date


def run_create(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Creates one key."""
    if args.per and args.budget is None:
        raise CommandError("--per is the period of --budget: give --budget too")
    models = tuple(dict.fromkeys(model for group in args.models for model in group))
    key = ApiKey(
        sha256="",
        name=args.name,
        models=models or ("*",),
        requests_per_minute=args.rpm,
        tokens_per_minute=args.tpm,
        max_concurrent=args.concurrency,
        budget_usd=args.budget,
        budget_period=args.per or "month",
        expires=args.expires,
    )
    secret = create_key(environ, key)
    if args.quiet:
        print(secret)
    else:
        print(f"{args.name}: {secret}")
        print(f"It is shown only now: {keys_path(environ)} holds only its SHA-256.")
        print("A running gateway accepts it within two seconds, without a restart.")
    if key.limited:
        print(f"note: {NOT_ENFORCED}", file=sys.stderr)
    _warn(environ, "the gateway does not accept the new key until this is corrected:")
    return 0


def create_key(environ: Mapping[str, str], key: ApiKey) -> str:
    """Makes a secret for `key`, writes its digest to the keys file and returns the secret."""
    secret = new_secret()
    try:
        keyfile.create(keys_path(environ), replace(key, sha256=digest(secret)))
    except keyfile.KeyFileError as error:
        raise CommandError(str(error)) from None
    return secret


def run_revoke(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Removes one key."""
    try:
        keyfile.revoke(keys_path(environ), args.name)
    except keyfile.KeyFileError as error:
        raise CommandError(str(error)) from None
    print(f"{args.name} is revoked: a running gateway refuses it within two seconds.")
    _warn(environ, "the gateway accepts the key until this is corrected:")
    return 0


def _warn(environ: Mapping[str, str], consequence: str) -> None:
    """Warns when the file has other problems: then it does not come into force."""
    try:
        load_keys(environ)
    except ConfigError as error:
        print(f"warning: {consequence}\n{error}", file=sys.stderr)


def run_list(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints all keys."""
    keys = load_keys(environ)
    if args.format == "json":
        found = [{**_fields(key), "expired": expired(key)} for key in keys.values()]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    if not keys:
        print(f"no keys in {keys_path(environ)}: python -m wrapper keys create NAME")
        return 0
    rows = [
        (
            key.name,
            " ".join(key.models),
            _limits(key) or "-",
            key.expires.isoformat() if key.expires else "never",
            "expired" if expired(key) else "active",
        )
        for key in keys.values()
    ]
    print(columns(("NAME", "MODELS", "LIMITS", "EXPIRES", "STATE"), rows))
    if any(key.limited for key in keys.values()):
        print(f"note: {NOT_ENFORCED}", file=sys.stderr)
    return 0


def _fields(key: ApiKey) -> dict[str, object]:
    return {
        "name": key.name,
        "models": list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_concurrent": key.max_concurrent,
        "budget_usd": None if key.budget_usd is None else float(key.budget_usd),
        "budget_period": None if key.budget_usd is None else key.budget_period,
        "expires": key.expires.isoformat() if key.expires else None,
    }


def _limits(key: ApiKey) -> str:
    parts = (
        (key.requests_per_minute, "requests/min"),
        (key.tokens_per_minute, "tokens/min"),
        (key.max_concurrent, "at once"),
        (key.budget_usd, f"USD/{key.budget_period}"),
    )
    return ", ".join(f"{value} {unit}" for value, unit in parts if value is not None)
