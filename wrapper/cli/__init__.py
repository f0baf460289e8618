"""The commands of `python -m wrapper`.

Each module named in `COMMANDS` offers `add_parser(subparsers)`, which adds its parser and sets
`run` on it (`parser.set_defaults(run=run)`), and `run(args, environ) -> int`, the exit code. The
rule protected here: a command is cheap to list, so modules import what they need inside `run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

COMMANDS = ("check", "keys", "usage", "reconcile", "demo_key")
"""Modules of this package, in the order of `--help`."""

NOT_ENFORCED = "limits and budgets are recorded but not yet enforced by this version"


class CommandError(Exception):
    """A command cannot do what it was told to; the message says why and what to do."""


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as text, columns as wide as their widest cell."""
    # A model's name may be the caller's choice: no control character of his reaches a terminal.
    lines = [header, *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
