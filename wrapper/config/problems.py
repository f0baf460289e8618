"""What is wrong with a configuration, all of it at once.

The rule protected here: a person who runs the check once sees everything there is to mend, each
with its file, its key path and what would be right; and nothing that could be a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wrapper.config.settings import ApiKey

ENVIRONMENT = "environment"
"""Stands in `Problem.file` where the mistake is in a variable and not in a file."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SECRET_PREFIX = "sk-"
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: `file` and `key_path` say where, `hint` says what would be right."""

    file: str
    key_path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: {self.key_path}" if self.key_path else self.file
        return f"{where}: {self.message}" + (f"; {self.hint}" if self.hint else "")


class ConfigError(Exception):
    """The configuration cannot be used. `str()` prints one problem per line.

    `files` is everything that was looked at (whoever waits for the mistake to be mended watches
    these); `keys` is what the keys file says where that file itself is without a mistake.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        files: tuple[Path, ...] = (),
        keys: Mapping[str, ApiKey] | None = None,
    ) -> None:
        self.problems = tuple(problems)
        self.files = files
        self.keys = keys
        super().__init__("\n".join(str(problem) for problem in self.problems))


def quoted_key(key: str) -> str:
    """`key` as TOML spells it: bare where it may be, else a basic string."""
    return key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=True)


def joined(path: str, key: str) -> str:
    """A key path. A key that looks like a secret put in the wrong place is not repeated."""
    if key.startswith(_SECRET_PREFIX):
        key = "sk-..."
    part = quoted_key(key if len(key) <= _SHOWN else key[:_SHOWN] + "...")
    return f"{path}.{part}" if path else part


def shown(value: object) -> str:
    """A value for a message: one line, never long."""
    text = repr(value) if isinstance(value, str) else str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def similar(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the choices when nothing is close."""
    from difflib import get_close_matches  # only when there is a mistake

    choices = sorted(known)
    close = get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are: {', '.join(choices)}" if choices else ""
