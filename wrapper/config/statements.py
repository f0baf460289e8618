"""Where the statements of a TOML text are: to name the line of a mistake, and to edit a file
without changing anything else in it.

The text must be valid TOML, as `parse_toml` has found. A statement is `key = value`, `[table]` or
`[[table]]`; all others of a text are empty lines and comments.
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
    """One statement: `text[start:end]` are its lines, `text[value:stop]` is its value.

    `path` begins at the top of the file: it has the names of the table around the statement. The
    comment behind a value is in the lines and not in the value.
    """

    path: Names
    is_table: bool
    is_array: bool  # [[table]]
    line: int
    start: int
    value: int
    stop: int
    end: int


def statements(text: str) -> Iterator[Statement]:
    """The statements in their order."""
    around: Names = ()
    start, line, lines = 0, 1, 1  # where the current line, or statement of several, begins
    depth, equals, stop = 0, 0, 0
    for token in _TOKEN.finditer(text if text.endswith("\n") else text + "\n"):
        what = token[0]
        lines += what.count("\n")
        if what == "\n" and not depth:
            if stop:
                found = _statement(text, around, line, start, equals, stop, token.end())
                around = found.path if found.is_table else around
                yield found
            start, line, equals, stop = token.end(), lines, 0, 0
        elif what[0] == "#" or not what.strip():
            continue
        else:
            if what == "=" and not depth:
                equals = equals or token.end()
            depth += (what in "[{") - (what in "]}")
            stop = token.start() + len(what.rstrip())


def _statement(
    text: str, around: Names, line: int, start: int, equals: int, stop: int, end: int
) -> Statement:
    end = min(end, len(text))
    if not equals:
        header = text[start:stop].strip()
        is_array = header.startswith("[[")
        name = header[2:-2] if is_array else header[1:-1]
        return Statement(_path(name), True, is_array, line, start, stop, stop, end)
    value = equals + len(text[equals:stop]) - len(text[equals:stop].lstrip())
    path = around + _path(text[start : equals - 1])
    return Statement(path, False, False, line, start, value, stop, end)


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
    """The problems with their lines."""
    found = list(problems)
    if not found:
        return found
    lines = _lines(text)
    return [replace(problem, line=_line(problem.key_path, lines)) for problem in found]


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
