"""What is wrong with a configuration, all of it at once.

Invariant: one run of the check reports every problem, each with its file, its key path and what
would be right. No message repeats a value that could be a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wrapper.config.keys import KeyFile

ENVIRONMENT = "environment"
"""The value of `Problem.file` where the mistake is in a variable and not in a file."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SECRET_PREFIX = "sk-"
_MAX_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: `file`, `line` and `key_path` say where, `hint` says what would be right."""

    file: str
    key_path: str
    message: str
    hint: str = ""
    line: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f"line {self.line}"
        where = ": ".join(filter(None, (self.file, line, self.key_path)))
        return f"{where}: {self.message}" + (f"; {self.hint}" if self.hint else "")


class ConfigError(Exception):
    """The configuration cannot be used. `str()` gives one problem per line.

    `files` are all files that were read (watch these to see a correction); `key_file` is
    what the keys file says, where that file itself has no problem.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        files: tuple[Path, ...] = (),
        key_file: KeyFile | None = None,
    ) -> None:
        self.problems = tuple(problems)
        self.files = files
        self.key_file = key_file
        super().__init__("\n".join(str(problem) for problem in self.problems))


def join_path(path: str, key: str) -> str:
    """A key path in TOML's spelling. A key that looks like a misplaced secret is not repeated."""
    if key.startswith(_SECRET_PREFIX):
        key = "sk-..."
    key = key if len(key) <= _MAX_LENGTH else key[:_MAX_LENGTH] + "..."
    part = key if _BARE.fullmatch(key) else json.dumps(key)
    return f"{path}.{part}" if path else part


def quote(value: object) -> str:
    """A value for a message: printable, on one line, of limited length."""
    text = repr(value) if isinstance(value, str) else str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + "..."


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the choices when nothing is close."""
    from difflib import get_close_matches  # needed only after a mistake

    choices = sorted(known)
    close = get_close_matches(word, choices, n=1, cutoff=0.65)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are: {', '.join(choices)}" if choices else ""
