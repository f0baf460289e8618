"""`keys diff OLD NEW`: what a change to keys.toml means, for a review.

Invariant: two files without a difference in meaning have no lines: order, comments and what is
said in `[defaults]` instead of in each key make no difference.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wrapper.cli import examples
from wrapper.cli.key_list import budget_text, limits_text, moment, read_file
from wrapper.config import ApiKey, Group, KeyFile

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

_LIMITS = {
    "requests_per_minute": "requests per minute",
    "tokens_per_minute": "tokens per minute",
    "max_concurrent": "requests at once",
}


def add_parser(actions: Subparsers) -> None:
    """Adds `keys diff`."""
    parser = actions.add_parser(
        "diff",
        help="say in words what a change to the keys file means",
        description="Compares two keys files: which keys are new or gone, whose limits rise or"
        " fall, which secrets change. Exit code 0, or 1 for a file with a mistake.",
        epilog=examples(
            ("keys diff config/keys.toml new.toml", "before it is put in place"),
            ("keys diff main/keys.toml branch/keys.toml", "in a pull request"),
        ),
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="the file before the change")
    parser.add_argument("new", type=Path, metavar="NEW", help="the file after it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    """Prints one line per change of meaning."""
    lines = list(differences(read_file(args.old), read_file(args.new)))
    print("\n".join(lines) if lines else "nothing changes for any key")
    return 0


def differences(old: KeyFile, new: KeyFile) -> Iterator[str]:
    """One line per change of meaning."""
    for name, group in new.groups.items():
        if name not in old.groups:
            yield f"group {name} is new: {limits_text(group) or 'no limit'}{_dry(group)}"
        else:
            yield from (f"group {name}: {line}" for line in _limits(old.groups[name], group))
    for name in old.groups.keys() - new.groups.keys():
        yield f"group {name} is gone: its limits end"
    moved = {key.sha256: key.name for key in new.keys.values() if key.name not in old.keys}
    for name, key in old.keys.items():
        if name not in new.keys and key.sha256 in moved:
            yield (
                f"key {name} is now called {moved[key.sha256]}: same secret; what it has used"
                " stays with the old name"
            )
        elif name not in new.keys:
            yield f"key {name} is gone: its secret is refused"
    for name, key in new.keys.items():
        if name in old.keys:
            yield from (f"key {name}: {line}" for line in _changes(old.keys[name], key))
        else:
            yield f"key {name} is new: {', '.join(_described(key))}{_dry(key)}"


def _dry(holder: ApiKey | Group) -> str:
    return "" if holder.enforce else ", not enforced (dry run)"


def _described(key: ApiKey) -> Iterator[str]:
    yield "all models" if key.models == ("*",) else f"models {' '.join(key.models)}"
    yield limits_text(key) or "no limit of its own"
    for what in ("group", "owner", "expires"):
        if value := getattr(key, what):
            yield f"{what} {value}"


def _changes(old: ApiKey, new: ApiKey) -> Iterator[str]:
    yield from _secrets(old, new)
    yield from _limits(old, new)
    for what in ("models", "endpoints"):
        before, after = getattr(old, what), getattr(new, what)
        more = [name for name in after if name not in before]
        fewer = [name for name in before if name not in after]
        if more:
            yield f"may use {what} {' '.join(more)} from now on"
        if fewer:
            yield f"{what} {' '.join(fewer)} no longer in its list"
    if old.expires != new.expires:
        yield f"expires {new.expires or 'never'} (before: {old.expires or 'never'})"
    for what in ("group", "owner", "description"):
        before, after = getattr(old, what), getattr(new, what)
        if before != after:
            yield f"{what} is {after or 'not set'} (before: {before or 'not set'})"
    meanings = {
        "unpriced": "models without a known price",
        "store_failure": "requests while the store cannot be reached",
    }
    for setting, what in meanings.items():
        after = getattr(new, setting)
        if getattr(old, setting) != after:
            yield f"{what} are {'allowed' if after == 'allow' else 'refused'} from now on"


def _secrets(old: ApiKey, new: ApiKey) -> Iterator[str]:
    gone = set(old.sha256s) - set(new.sha256s)
    come = set(new.sha256s) - set(old.sha256s)
    if come:
        yield "a new secret"
    if gone:
        yield "the secret before is refused" if come else "an old secret is refused"
    if new.old_sha256 and (come or old.rotated_until != new.rotated_until):
        until = f"until {moment(new.rotated_until)}" if new.rotated_until else "without an end"
        over = new.rotated_until and new.rotated_until <= datetime.datetime.now(datetime.UTC)
        yield "the overlap is over" if over else f"the old secret is valid {until}"


def _limits(old: ApiKey | Group, new: ApiKey | Group) -> Iterator[str]:
    for setting, what in _LIMITS.items():
        before, after = getattr(old, setting), getattr(new, setting)
        if before is None and after is not None:
            yield f"{what} are limited to {after} from now on"
        elif before is not None and after is None:
            yield f"{what} are no longer limited (before: {before})"
        elif before != after:
            yield f"{what} {'rise' if after > before else 'fall'} from {before} to {after}"
    yield from _budgets(old, new)
    if old.enforce != new.enforce:
        yield "limits are enforced from now on" if new.enforce else "limits are only a dry run now"


def _budgets(old: ApiKey | Group, new: ApiKey | Group) -> Iterator[str]:
    before = None if old.budget_usd is None else budget_text(old.budget_usd, old.budget_period)
    after = None if new.budget_usd is None else budget_text(new.budget_usd, new.budget_period)
    if old.budget_usd is None or new.budget_usd is None:
        if after:
            yield f"a budget from now on: {after}"
        elif before:
            yield f"no budget any more (before: {before})"
    elif old.budget_period != new.budget_period:
        yield f"the budget changes from {before} to {after}"
    elif old.budget_usd != new.budget_usd:
        word = "rises" if new.budget_usd > old.budget_usd else "falls"
        yield f"the budget {word} from {before} to {after}"
