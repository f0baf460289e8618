"""The commands of `python -m wrapper`.

Each module named in `COMMANDS` has `add_parser(subparsers)`, which adds its parser and sets `run`
on it (`parser.set_defaults(run=run)`), and `run(args, environ) -> int`, which returns the exit
code. Modules import what is expensive inside `run`, so that `--help` is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

COMMANDS = ("serve", "check", "keys", "usage", "reconcile", "demo_key")
"""Modules of this package, in the order of `--help`."""


class CommandError(Exception):
    """A command cannot be carried out; the message says why and what to do."""

    code = 1  # the exit code


class ArgumentError(CommandError):
    """The arguments are wrong, which shows only beside other arguments or the configuration."""

    code = 2


def examples(*lines: tuple[str, str]) -> str:
    """The end of a command's help: command lines, and what each does."""
    commands = [(f"  python -m wrapper {command}", what) for command, what in lines]
    width = max(len(command) for command, _ in commands)
    return "\n".join(("examples:", *(f"{each:{width}}   # {what}" for each, what in commands)))


def count(number: int, what: str) -> str:
    """`1 key`, `2 keys`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def columns(header: Sequence[str], rows: Iterable[Sequence[str]], names: int | None = None) -> str:
    """A table as text. The first `names` columns (default: all) are left-aligned, the others
    right-aligned.
    """
    body = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    left = len(header) if names is None else names
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *body)
    )


def cell_of_csv(text: str) -> str:
    """Text for a spreadsheet: names that callers choose must not be read as formulas."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _printable(text: str) -> str:
    """Callers choose model names: their control characters must not reach a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]
