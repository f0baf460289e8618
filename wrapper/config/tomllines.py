"""Finds the statements of a TOML text: where each header and each key/value pair stands.

A parser throws away what an editor needs: which bytes said it. This reader knows just enough of
TOML 1.0 to find where statements end (strings of four kinds, brackets, comments). The rule
protected here: it is only given text that `tomllib` has accepted, and what is made with it is
parsed again.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

# What may stand inside of a statement, longest string forms first.
_PIECE = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'''
    r"""|'{3}(?:[^']|'{1,2}(?!'))*'{3,5}"""
    r'''|"(?:[^"\\\n]|\\.)*"'''
    r"""|'[^'\n]*'"""
    r"""|\#[^\n]*"""
    r"""|[\[\]{}\n]"""
    r"""|[^"'\#\[\]{}\n]+""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One header or key/value pair: whole lines `text[start:end]`, line end included.

    `table` is the path of the table it opens or stands in.
    """

    start: int
    end: int
    text: str
    table: tuple[str, ...]
    header: bool


def statements(text: str) -> Iterator[Statement]:
    """All statements in order; between them are only comments and empty lines."""
    position = 0
    table: tuple[str, ...] = ()
    while position < len(text):
        line_end = text.find("\n", position) + 1 or len(text)
        line = text[position:line_end].strip()
        if not line or line.startswith("#"):
            position = line_end
            continue
        end = _end(text, position)
        piece = text[position:end]
        header = line.startswith("[")
        if header:
            table = _path(piece)
        yield Statement(position, end, piece, table, header)
        position = end


def _end(text: str, position: int) -> int:
    """Behind the line end at which the statement that starts at `position` is complete."""
    depth = 0
    while (piece := _PIECE.match(text, position)) is not None:
        position = piece.end()
        found = piece[0]
        if found in ("[", "{"):
            depth += 1
        elif found in ("]", "}"):
            depth -= 1
        elif found == "\n" and depth <= 0:
            return position
    return len(text)


def _path(header: str) -> tuple[str, ...]:
    """`[keys."a.b"]` → ("keys", "a.b")."""
    path: list[str] = []
    inside: object = tomllib.loads(header)
    while isinstance(inside, dict) and inside:
        path.append(next(iter(inside)))
        inside = inside[path[-1]]
    return tuple(path)
