"""`keys`: the actions on the keys file, and the check of it alone.

`key_create` makes keys, `key_change` changes and revokes them, `key_list` lists them, `key_diff`
says what a change of the file means, `litellm` imports them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wrapper.cli import examples, key_change, key_create, key_diff, key_list, litellm
from wrapper.cli.key_options import endpoint_notes
from wrapper.config import keys_path

if TYPE_CHECKING:
    from wrapper.cli import Subparsers


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
    key_create.add_parser(actions)
    key_list.add_parser(actions)
    key_change.add_parsers(actions)
    _add_check(actions)
    key_diff.add_parser(actions)
    litellm.add_parser(actions)


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


def run_check(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Checks one keys file. Raises `ConfigError` with all problems."""
    path = args.file or keys_path(environ)
    found = key_list.read_file(path)
    print(f"{path}: {key_list.contents(found)}, no problems")
    for note in endpoint_notes(found.keys):
        print(f"note: {note}")
    return 0
