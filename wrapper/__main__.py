"""`python -m wrapper`: keys, the check of the configuration, usage and cost.

Invariant: an error is one message on stderr and an exit code other than 0, never a traceback
(except for a bug).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from wrapper import __version__
from wrapper.cli import COMMANDS, CommandError, examples
from wrapper.config import ConfigError, environment


class _Formatter(argparse.HelpFormatter):
    """Wraps a description and leaves the lines of the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """Refuses abbreviated options: a new option must not change what an old command line means.

    Subparsers have their parent's class.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        if message.endswith("required: NAME"):
            # An option that takes several words has swallowed it.
            message += f"; NAME comes before the options: {self.prog} NAME ..."
        super().error(message)


def _show_help(parser: argparse.ArgumentParser) -> Callable[..., int]:
    def run(_args: argparse.Namespace, _environ: Mapping[str, str]) -> int:
        parser.print_help()
        return 0

    return run


def build_parser(commands: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser with these commands, by the names of their modules."""
    parser = _Parser(
        prog="python -m wrapper",
        description="The gateway's command line. `make run` installs it and starts the gateway.",
        epilog=examples(
            ("keys create web-app --models 'gpt-*' --budget 20", "a key; its secret is shown once"),
            ("keys list", "all keys, without their secrets"),
            ("check", "every problem of the configuration"),
            ("usage --since 24h --by key,model", "usage and cost"),
            ("keys create --help", "the options of a command"),
        ),
    )
    parser.add_argument("--version", action="version", version=f"wrapper {__version__}")
    parser.set_defaults(run=_show_help(parser))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name in commands:
        importlib.import_module(f"wrapper.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit code: 0 done, 1 refused, 2 wrong arguments, others by command."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    named = (sys.argv[1:] if argv is None else argv)[:1]
    # One that is named is imported alone: `serve` then takes half as long to become the gateway.
    only = [name for name in COMMANDS if name.replace("_", "-") in named]
    try:
        parser = build_parser(only or COMMANDS)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("wrapper"):
            raise
        print(
            f"error: the package {error.name!r} is not installed for {sys.executable}; after"
            " `make run` there is an interpreter with all packages: .venv/bin/python -m wrapper",
            file=sys.stderr,
        )
        return 1
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args, environment())
        sys.stdout.flush()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # `... | head` has closed the pipe: the interpreter's own flush must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
