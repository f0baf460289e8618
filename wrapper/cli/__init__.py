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

COMMANDS = ("check", "keys", "usage", "reconcile", "demo_key")
"""Modules of this package, in the order of `--help`."""

NOT_ENFORCED = "limits and budgets are recorded but not yet enforced by this version"


class CommandError(Exception):
    """A command cannot be carried out; the message says why and what to do."""


def count(number: int, what: str) -> str:
    """`1 key`, `2 keys`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def columns(header: Sequence[str], rows: Iterable[Sequence[str]], names: int | None = None) -> str:
    """A table as text. Cells of the first `names` columns (default: all) are left-aligned, those
    of the others right-aligned.
    """
    body = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    left = len(header) if names is None else names
    aligned = [
        [
            cell.rjust(width) if i >= left else cell
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in body
    ]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *aligned)
    )


def _printable(text: str) -> str:
    """Callers choose model names: their control characters must not reach a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]
