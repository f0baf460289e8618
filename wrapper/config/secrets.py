"""Secrets are references: `{ env = "NAME" }` or `{ file = "path" }`.

The rule protected here: a secret never stands in a file that can be committed, and no message
repeats one, nor what could be one that was put in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from wrapper.config.fields import Table, kind
from wrapper.config.files import Sources, Unreadable
from wrapper.config.settings import Secret

WANTED = 'write { env = "NAME_OF_A_VARIABLE" } or { file = "/path/of/a/file" }'

# Capitals only: keys such as gsk_... are lower case, so one that was put here by mistake is
# refused and not printed as the name of a variable that is not set.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


class SecretReader:
    """Resolves references against an environment, and files relative to `base`."""

    def __init__(self, environ: Mapping[str, str], sources: Sources, base: Path) -> None:
        self._environ = environ
        self._sources = sources
        self.base = base

    def read(self, table: Table, key: str) -> tuple[Secret | None, str | None]:
        """The secret at `key`, or None and why there is none.

        No reference at all gives (None, None). What a person can mend only in the file, and a
        value that no HTTP header can carry, is noted as a problem.
        """
        value = table.get(key)
        if value is None:
            return None, None
        if isinstance(value, str):
            table.problem(key, "is a literal secret", WANTED)
        elif not isinstance(value, dict):
            table.problem(key, f"is {kind(value)}", WANTED)
        elif value.keys() == {"env", "file"}:
            table.problem(key, "names both a variable and a file", "give one of the two")
        elif len(value) != 1 or not value.keys() <= {"env", "file"}:
            table.problem(key, "is not a reference to a secret", WANTED)
        else:
            return self._resolve(table, key, *next(iter(value.items())))
        return None, "the reference is wrong"

    def _resolve(
        self, table: Table, key: str, source: str, name: object
    ) -> tuple[Secret | None, str | None]:
        if not isinstance(name, str) or not name:
            table.problem(key, f"{source} is not the name of anything", WANTED)
            return None, "the reference is wrong"
        if source == "file":
            return self._from_file(table, key, name)
        if not _VARIABLE.fullmatch(name):
            table.problem(
                key,
                "env is not the name of an environment variable",
                "write its name in capitals, such as GROQ_API_KEY, not the secret itself",
            )
            return None, "the reference is wrong"
        value = self._environ.get(name, "").strip()
        if not value:
            return None, f"environment variable {name} is not set"
        return self._checked(table, key, value, f"environment variable {name}")

    def _from_file(self, table: Table, key: str, name: str) -> tuple[Secret | None, str | None]:
        path = self.base / name
        if not name.isprintable():
            table.problem(key, "file has a name that cannot be printed", WANTED)
            return None, "the reference is wrong"
        try:
            value = self._sources.read(path).strip()
        except Unreadable as error:
            if not error.missing:
                table.problem(key, f"file {path} {error.reason}", error.hint)
            return None, f"file {path}: {error.reason}"
        if not value:
            table.problem(key, f"file {path} is empty", "write the secret into it")
            return None, "the file is empty"
        return self._checked(table, key, value, f"file {path}")

    def _checked(
        self, table: Table, key: str, value: str, where: str
    ) -> tuple[Secret | None, str | None]:
        if _HEADER_VALUE.fullmatch(value) and len(value) <= 8192:
            return Secret(value), None
        message = f"{where} holds what no HTTP header can carry"
        table.problem(key, message, "one word of printable ASCII characters is right")
        return None, message
