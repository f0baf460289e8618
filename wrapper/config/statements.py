"""Finds the line of a mistake in a TOML text.

The text must be valid TOML, as `parse_toml` has found. A statement is `key = value`, `[table]` or
`[[table]]`. Why a scanner: neither tomllib nor tomlkit says where a value is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from wrapper.config.problems import Problem, join_path

# Strings are one token each, so that what looks like TOML inside of one is not read as such.
_TOKEN = re.compile(
    r'''
    """(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}
    | \'\'\'(?:[^']++|'{1,2}(?!'))*+'{3,5}
    | "(?:[^"\\\n]++|\\.)*+"
    | '[^'\n]*'
    | \#[^\n]*
    | [\n\[\]{}=]
    | [^"'\#\n\[\]{}=]++
    ''',
    re.VERBOSE | re.DOTALL,
)
_BARE = re.compile(r"[A-Za-z0-9_\-. \t]+")

Names = tuple[str, ...]


class Statement(NamedTuple):
    """`path` begins at the top of the file: it has the names of the table around the statement."""

    path: Names
    is_array: bool  # [[table]]
    line: int


def statements(text: str) -> Iterator[Statement]:
    """The statements in their order."""
    around: Names = ()
    line = lines = 1  # where the current statement begins, and where the current token ends
    head, has_value, depth = "", False, 0
    for token in _TOKEN.findall(text + "\n"):
        lines += token.count("\n")
        if token == "\n" and not depth:
            head = head.strip()
            if has_value:
                yield Statement(around + _path(head), False, line)
            elif head:
                around = _path(head.strip("[]"))
                yield Statement(around, head.startswith("[["), line)
            line, head, has_value = lines, "", False
        elif token[0] != "#":
            depth += (token in "[{") - (token in "]}")
            has_value = has_value or (token == "=" and not depth)
            head += "" if has_value else token


def _path(key: str) -> Names:
    """The names in a key such as `keys."a.b"`."""
    if _BARE.fullmatch(key):
        return tuple(part.strip() for part in key.split("."))
    found: object = tomllib.loads(f"{key} = 0")
    names: list[str] = []
    while isinstance(found, dict):
        ((name, found),) = found.items()
        names.append(name)
    return tuple(names)


def located(problems: Iterable[Problem], text: str) -> list[Problem]:
    """The problems with their lines, in the order of these."""
    found = list(problems)
    if not found:
        return found
    lines = _lines(text)
    found = [replace(problem, line=_line(problem.key_path, lines)) for problem in found]
    return sorted(found, key=lambda problem: problem.line or 0)


def _lines(text: str) -> dict[str, int]:
    """The first line of each key path, as problems spell it."""
    lines: dict[str, int] = {}
    arrays: dict[str, int] = {}  # how many tables of an array there have been
    for statement in statements(text):
        spelt = ""
        for depth, name in enumerate(statement.path, 1):
            spelt = join_path(spelt, name)
            lines.setdefault(spelt, statement.line)
            if statement.is_array and depth == len(statement.path):
                arrays[spelt] = arrays.get(spelt, 0) + 1
            if spelt in arrays:
                spelt = f"{spelt}[{arrays[spelt] - 1}]"
                lines.setdefault(spelt, statement.line)
    return lines


def _line(path: str, lines: dict[str, int]) -> int | None:
    """The line of what `path` names, or of the table around it."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)
