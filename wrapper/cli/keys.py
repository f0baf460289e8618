"""`keys`: create, change, list and revoke keys, and say what a change to keys.toml means.

Invariant: `create` and `rotate` print a secret once; it is not stored.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrapper.auth import digest, expired, new_secret
from wrapper.cli import CommandError, examples, key_diff, key_list, litellm
from wrapper.cli.key_list import limits_text, moment
from wrapper.config import ApiKey, ConfigError, keyfile, keys_path, load_key_file
from wrapper.config.keys import NOTHING, SHORT_LINE, is_endpoint, is_short_line, wrong_name
from wrapper.config.limits import MAX_BUDGET, MAX_LIMITS, MIN_BUDGET
from wrapper.config.settings import BUDGET_PERIODS, is_broken_glob

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

DEFAULT_OVERLAP = datetime.timedelta(days=7)
MAX_OVERLAP = datetime.timedelta(days=366)

_SPAN = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def add_parser(subparsers: Subparsers) -> None:
    """Adds `keys` and its actions."""
    parser = subparsers.add_parser(
        "keys",
        help="create, change, list and revoke gateway keys",
        description="Edits and reads the keys file. A running gateway follows a change within two"
        " seconds.",
        epilog=examples(
            ("keys create web-app --models 'gpt-*' fast", "prints the secret once"),
            ("keys create batch --budget 100 --per total", "a prepaid key"),
            ("keys topup batch 50", "adds to it"),
            ("keys rotate web-app --overlap 7d", "a new secret; the old one for another week"),
            ("keys list", "limits, state and use of all keys"),
            ("keys diff old.toml config/keys.toml", "what a change means"),
        ),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION")

    def show_help(_args: argparse.Namespace, _environ: Mapping[str, str]) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=show_help)
    _add_create(actions)
    key_list.add_parser(actions)
    _add_topup(actions)
    _add_rotate(actions)
    revoker = actions.add_parser(
        "revoke",
        help="remove a key; it is refused within two seconds",
        epilog=examples(("keys revoke web-app", "its secret is refused from then on")),
    )
    revoker.add_argument("name", metavar="NAME", help="the key")
    revoker.set_defaults(run=run_revoke)
    _add_check(actions)
    key_diff.add_parser(actions)
    litellm.add_parser(actions)


def _add_create(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "create",
        usage="%(prog)s NAME [options]",  # NAME first: options with several words swallow it
        help="create a key and print its secret once",
        description="Creates a key and prints its secret once; the keys file gets its SHA-256."
        " What is not given is as in [defaults] of the keys file.",
        epilog=examples(
            ("keys create web-app", "may call everything, without a limit"),
            ("keys create web-app --models 'gpt-*' fast --rpm 60", "some models, 60 requests/min"),
            ("keys create ci --group team-a --owner ann@example.com", "a key of [groups.team-a]"),
            ("keys create shop --budget 20 --per month", "20 USD a month"),
            ("keys create trial --budget 5 --per total", "5 USD, until `keys topup` adds more"),
            ("keys create new --rpm 10 --dry-run", "count what a limit would refuse"),
        ),
    )
    parser.add_argument("name", metavar="NAME", type=_name, help="the key's name, also in metrics")
    for option, setting, what in (
        ("--rpm", "requests_per_minute", "requests per minute"),
        ("--tpm", "tokens_per_minute", "tokens per minute"),
        ("--concurrency", "max_concurrent", "requests at once"),
    ):
        limit = _limit(MAX_LIMITS[setting])
        parser.add_argument(option, dest=setting, type=limit, metavar="N", help=what)
    parser.add_argument("--budget", dest="budget_usd", type=_usd, metavar="USD", help="a budget")
    parser.add_argument(
        "--per",
        dest="budget_period",
        choices=BUDGET_PERIODS,
        help="period of --budget, in UTC (default: month); total: prepaid, see `keys topup`",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        type=_models,
        metavar="MODEL",
        help="models, aliases and globs that the key may call, such as 'gpt-*' (default: all)",
    )
    parser.add_argument(
        "--endpoints",
        nargs="+",
        type=_endpoints,
        metavar="NAME",
        help="endpoints that need permission, such as realtime",
    )
    parser.add_argument("--group", type=_name, metavar="GROUP", help="a group of the keys file")
    parser.add_argument("--owner", type=_line, metavar="TEXT", help="who answers for the key")
    parser.add_argument("--description", type=_line, metavar="TEXT", help="what the key is for")
    parser.add_argument(
        "--unpriced",
        choices=("refuse", "allow"),
        help="models without a known price, for keys with a budget (default: refuse)",
    )
    parser.add_argument(
        "--store-failure",
        choices=("refuse", "allow"),
        help="requests while the store of limits cannot be reached (default: refuse)",
    )
    parser.add_argument(
        "--dry-run",
        dest="enforce",
        action="store_const",
        const=False,
        help="the key's limits refuse nothing: what they would refuse is counted and logged",
    )
    parser.add_argument(
        "--expires",
        type=_date,
        metavar="DATE",
        help="refused from 00:00 UTC of DATE, such as 2027-01-31",
    )
    parser.add_argument("--quiet", action="store_true", help="print the secret and nothing else")
    parser.set_defaults(run=run_create)


_CREATED = (
    *("group", "owner", "description", "requests_per_minute", "tokens_per_minute"),
    *("max_concurrent", "budget_usd", "budget_period", "unpriced", "store_failure", "enforce"),
    "expires",
)


def _add_topup(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "topup",
        help="add to the budget of a prepaid key",
        description='Adds to the budget of a key with budget_period = "total".',
        epilog=examples(("keys topup batch 50", "the key may spend 50 USD more")),
    )
    parser.add_argument("name", metavar="NAME", help="the key")
    parser.add_argument("amount", metavar="USD", type=_usd, help="how much to add, such as 50")
    parser.set_defaults(run=run_topup)


def _add_rotate(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "rotate",
        help="give a key a new secret; the old one stays valid for some time",
        description="Prints a new secret once. The old one is valid until the overlap ends, and"
        " refused from then on, without another change of the file.",
        epilog=examples(
            ("keys rotate web-app", "the old secret is valid for 7 more days"),
            ("keys rotate web-app --overlap 12h", "... for 12 more hours"),
            ("keys rotate web-app --overlap 0", "refuse the old secret at once: it has leaked"),
            ("keys rotate web-app --end", "all callers have the new one: end the overlap"),
        ),
    )
    parser.add_argument("name", metavar="NAME", help="the key")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--overlap",
        type=_overlap,
        default=DEFAULT_OVERLAP,
        metavar="SPAN",
        help="how long the old secret stays valid: 12h, 7d, 2w, 0 (default: 7d)",
    )
    how.add_argument("--end", action="store_true", help="make no secret; refuse the old one now")
    parser.add_argument("--quiet", action="store_true", help="print the secret and nothing else")
    parser.set_defaults(run=run_rotate)


def _add_check(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "check",
        help="list every problem of the keys file",
        description="Reads the keys file alone. Exit code 1 if anything is wrong; `check` without"
        " `keys` checks the whole configuration.",
        epilog=examples(
            ("keys check", "the file of WRAPPER_KEYS"),
            ("keys check new.toml", "another one"),
        ),
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="another keys file")
    parser.set_defaults(run=run_check)


# --- what options accept ---


def _name(text: str) -> str:
    why = wrong_name(text)
    if why:
        raise argparse.ArgumentTypeError(f"the name {why}")
    return text


def _line(text: str) -> str:
    if not is_short_line(text):
        raise argparse.ArgumentTypeError(f"not {SHORT_LINE}")
    return text


def _models(text: str) -> list[str]:
    models = [model.strip() for model in text.split(",")]
    if not all(model and model.isprintable() for model in models):
        raise argparse.ArgumentTypeError("a model's name is empty or cannot be printed")
    if any(map(is_broken_glob, models)):
        raise argparse.ArgumentTypeError("a bracket is not closed")
    return models


def _endpoints(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(map(is_endpoint, names)):
        raise argparse.ArgumentTypeError("not the name of an endpoint, such as realtime")
    return names


def _limit(high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        digits = text.replace("_", "")
        if digits.isascii() and digits.isdigit() and len(digits) < 16 and 0 < int(digits) <= high:
            return int(digits)
        raise argparse.ArgumentTypeError(f"not an integer from 1 to {high}")

    return read


def _usd(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and MIN_BUDGET <= amount <= MAX_BUDGET):
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


def _overlap(text: str) -> datetime.timedelta:
    if text == "0":
        return datetime.timedelta()
    span = _SPAN.fullmatch(text)
    overlap = datetime.timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else None
    if overlap is None or overlap > MAX_OVERLAP:
        raise argparse.ArgumentTypeError("not a span of at most a year: write 12h, 7d, 2w or 0")
    return overlap


# --- what actions do ---


def run_create(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Creates one key."""
    given: dict[str, Any] = {
        setting: value for setting in _CREATED if (value := getattr(args, setting)) is not None
    }
    for setting in ("models", "endpoints"):
        groups = getattr(args, setting)
        if groups is not None:
            given[setting] = tuple(dict.fromkeys(name for group in groups for name in group))
    try:
        found = load_key_file(environ)
    except ConfigError as error:  # a new key would not come into force
        raise CommandError(f"no key was created: correct this first\n{error}") from None
    key = replace(found.defaults, name=args.name, **given)
    if args.budget_period and key.budget_usd is None:
        raise CommandError("--per is the period of --budget: give --budget too")
    if key.group is not None and key.group not in found.groups:
        known = f" (there are: {', '.join(found.groups)})" if found.groups else ""
        raise CommandError(
            f"{keys_path(environ)}: there is no group {key.group!r}{known}: write a table"
            f" [groups.{key.group}] with its limits first"
        )
    secret = create_key(environ, key, found.defaults)
    if args.quiet:
        print(secret)
        return 0
    print(f"{args.name}: {secret}")
    print(f"It is shown only now: {keys_path(environ)} holds only its SHA-256.")
    print("A running gateway accepts it within two seconds, without a restart.")
    if key.limited:
        print(f"Its limits: {limits_text(key)}{'' if key.enforce else ' (not enforced: dry run)'}")
    return 0


def create_key(environ: Mapping[str, str], key: ApiKey, defaults: ApiKey = NOTHING) -> str:
    """Makes a secret for `key`, writes its digest to the keys file and returns the secret."""
    secret = new_secret()
    try:
        keyfile.add(keys_path(environ), [replace(key, sha256=digest(secret))], defaults=defaults)
    except keyfile.KeyFileError as error:
        raise CommandError(str(error)) from None
    return secret


def _change(
    environ: Mapping[str, str], name: str, changes_of: Callable[[ApiKey], keyfile.Changes]
) -> ApiKey:
    try:
        return keyfile.change(keys_path(environ), name, changes_of)
    except keyfile.KeyFileError as error:
        raise CommandError(str(error)) from None
    except ConfigError as error:
        raise CommandError(f"{name} was not changed: correct this first\n{error}") from None


def run_topup(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Adds to a prepaid budget."""

    def changes_of(key: ApiKey) -> keyfile.Changes:
        if key.budget_usd is None:
            raise CommandError(
                f'{args.name} has no budget: write budget_usd and budget_period = "total"'
            )
        if key.budget_period != "total":
            raise CommandError(
                f"{args.name} has a budget per {key.budget_period}, which begins anew by itself:"
                ' `keys topup` is for budget_period = "total"'
            )
        total = key.budget_usd + args.amount
        if total > MAX_BUDGET:
            raise CommandError(f"a budget is at most {MAX_BUDGET} USD; {args.name} would have more")
        return {"budget_usd": total}

    key = _change(environ, args.name, changes_of)
    print(f"{args.name}: {args.amount:f} USD added; its budget is {key.budget_usd:f} USD in all.")
    return 0


def run_rotate(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Gives a key a new secret, or ends the overlap of the last rotation."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    if args.end:
        return _end_rotation(args.name, environ)
    secret = new_secret()

    def changes_of(key: ApiKey) -> keyfile.Changes:
        if expired(key):
            raise CommandError(f"{args.name} has expired: change `expires` first")
        if not args.overlap:
            return {"sha256": digest(secret), "rotated_until": None}
        if key.old_sha256 is not None and not (key.rotated_until and key.rotated_until <= now):
            until = f" until {moment(key.rotated_until)}" if key.rotated_until else ""
            raise CommandError(
                f"{args.name} has two valid secrets{until}: --end refuses the older one, --overlap"
                " 0 refuses both"
            )
        return {"sha256": (digest(secret), key.sha256), "rotated_until": now + args.overlap}

    key = _change(environ, args.name, changes_of)
    if args.quiet:
        print(secret)
        return 0
    print(f"{args.name}: {secret}")
    print("It is shown only now. A running gateway accepts it within two seconds.")
    if key.rotated_until:
        print(f"The old secret is valid until {moment(key.rotated_until)}.")
    else:
        print("The old secret is refused within two seconds.")
    return 0


def _end_rotation(name: str, environ: Mapping[str, str]) -> int:
    def changes_of(key: ApiKey) -> keyfile.Changes:
        if key.old_sha256 is None:
            raise CommandError(f"{name} has one secret: there is no rotation to end")
        return {"sha256": key.sha256, "rotated_until": None}

    _change(environ, name, changes_of)
    print(f"{name}: the old secret is removed; a running gateway refuses it within two seconds.")
    return 0


def run_revoke(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Removes one key. Returns 1 where another mistake keeps the change out of force."""
    try:
        keyfile.revoke(keys_path(environ), args.name)
    except keyfile.KeyFileError as error:
        raise CommandError(str(error)) from None
    try:
        load_key_file(environ)
    except ConfigError as error:
        print(
            f"warning: {args.name} is removed from the file, but the gateway accepts it until this"
            f" is corrected:\n{error}",
            file=sys.stderr,
        )
        return 1
    print(f"{args.name} is revoked: a running gateway refuses it within two seconds.")
    return 0


def run_check(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Checks one keys file. Raises `ConfigError` with all problems."""
    path = args.file or keys_path(environ)
    found = key_list.read_file(path)
    print(f"{path}: {key_list.contents(found)}, no problems")
    return 0
