"""`keys create`: makes a key and prints its secret once. Invariant: the secret is not stored."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wrapper.auth import digest, new_secret
from wrapper.cli import CommandError, examples
from wrapper.cli.key_list import limits_text
from wrapper.cli.key_options import (
    coming_date,
    endpoint_list,
    key_name,
    limit_up_to,
    model_list,
    short_line,
    usd,
)
from wrapper.config import ApiKey, ConfigError, keyfile, keys_path, load_key_file
from wrapper.config.keys import NOTHING
from wrapper.config.limits import MAX_LIMITS
from wrapper.config.settings import BUDGET_PERIODS
from wrapper.endpoints import SURFACES

if TYPE_CHECKING:
    from wrapper.cli import Subparsers


def add_parser(actions: Subparsers) -> None:
    """Adds `keys create`."""
    parser = actions.add_parser(
        "create",
        usage="%(prog)s NAME [options]",  # NAME first: options with several words swallow it
        help="create a key and print its secret once",
        description="Creates a key and prints its secret once; the keys file gets its SHA-256."
        " What is not given is as in [defaults] of the keys file. --rpm, --tpm, --concurrency,"
        " --budget and --per are requests_per_minute, tokens_per_minute, max_concurrent, budget_usd"
        " and budget_period there; the other options are called as their settings, and --dry-run is"
        " enforce = false.",
        epilog=examples(
            ("keys create web-app", "may call everything, without a limit"),
            ("keys create web-app --models 'gpt-*' fast --rpm 60", "some models, 60 requests/min"),
            ("keys create ci --group team-a --owner ann@example.com", "a key of [groups.team-a]"),
            ("keys create shop --budget 20 --per month", "20 USD a month"),
            ("keys create trial --budget 5 --per total", "5 USD, until `keys topup` adds more"),
            ("keys create new --rpm 10 --dry-run", "count what a limit would refuse"),
        ),
    )
    parser.add_argument(
        "name", metavar="NAME", type=key_name, help="the key's name, also in metrics"
    )
    for option, setting, what in (
        ("--rpm", "requests_per_minute", "requests per minute"),
        ("--tpm", "tokens_per_minute", "tokens per minute"),
        ("--concurrency", "max_concurrent", "requests at once"),
    ):
        limit = limit_up_to(MAX_LIMITS[setting])
        parser.add_argument(option, dest=setting, type=limit, metavar="N", help=what)
    parser.add_argument("--budget", dest="budget_usd", type=usd, metavar="USD", help="a budget")
    parser.add_argument(
        "--per",
        dest="budget_period",
        choices=BUDGET_PERIODS,
        help="period of --budget, in UTC (default: month); total: prepaid, see `keys topup`",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        type=model_list,
        metavar="MODEL",
        help="models, aliases and globs that the key may call, such as 'gpt-*' (default: all)",
    )
    parser.add_argument(
        "--endpoints",
        nargs="+",
        type=endpoint_list,
        metavar="NAME",
        help="endpoints that keys with a budget or a list of models may call only where they are"
        f" named: {', '.join(SURFACES)}",
    )
    parser.add_argument("--group", type=key_name, metavar="GROUP", help="a group of the keys file")
    parser.add_argument("--owner", type=short_line, metavar="TEXT", help="who answers for the key")
    parser.add_argument(
        "--description", type=short_line, metavar="TEXT", help="what the key is for"
    )
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
        type=coming_date,
        metavar="DATE",
        help="refused from 00:00 UTC of DATE, such as 2027-01-31",
    )
    parser.add_argument("--quiet", action="store_true", help="print the secret and nothing else")
    parser.set_defaults(run=run)


_CREATED = (
    *("group", "owner", "description", "requests_per_minute", "tokens_per_minute"),
    *("max_concurrent", "budget_usd", "budget_period", "unpriced", "store_failure", "enforce"),
    "expires",
)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
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
