"""`keys topup`, `keys rotate` and `keys revoke`: what changes a key that is there.

Invariant: `rotate` prints a secret once; it is not stored.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from wrapper.auth import digest, expired, new_secret
from wrapper.cli import CommandError, examples
from wrapper.cli.key_list import moment
from wrapper.cli.key_options import overlap, usd
from wrapper.config import ApiKey, ConfigError, keyfile, keys_path, load_key_file
from wrapper.config.limits import MAX_BUDGET

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

DEFAULT_OVERLAP = datetime.timedelta(days=7)


def add_parsers(actions: Subparsers) -> None:
    """Adds the three actions."""
    _add_topup(actions)
    _add_rotate(actions)
    parser = actions.add_parser(
        "revoke",
        help="remove a key; it is refused within two seconds",
        epilog=examples(("keys revoke web-app", "its secret is refused from then on")),
    )
    parser.add_argument("name", metavar="NAME", help="the key")
    parser.set_defaults(run=run_revoke)


def _add_topup(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "topup",
        help="add to the budget of a prepaid key",
        description='Adds to the budget of a key with budget_period = "total".',
        epilog=examples(("keys topup batch 50", "the key may spend 50 USD more")),
    )
    parser.add_argument("name", metavar="NAME", help="the key")
    parser.add_argument("amount", metavar="USD", type=usd, help="how much to add, such as 50")
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
        type=overlap,
        default=DEFAULT_OVERLAP,
        metavar="SPAN",
        help="how long the old secret stays valid: 12h, 7d, 2w, 0 (default: 7d)",
    )
    how.add_argument("--end", action="store_true", help="make no secret; refuse the old one now")
    parser.add_argument("--quiet", action="store_true", help="print the secret and nothing else")
    parser.set_defaults(run=run_rotate)


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
