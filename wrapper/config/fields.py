"""Reads typed values and secrets from a TOML table and records what is wrong with them.

Invariants:

- A reader that recorded a problem returns the default, so that reading continues and finds the
  next one. A key that was not read is a problem too: a misspelt limit must not go unnoticed.
- Secrets are references, `{ env = "NAME" }` or `{ file = "path" }`. A file that can be committed
  never holds one, and no message repeats one, nor a value that could be a misplaced one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from wrapper.config.files import Sources, Unreadable
from wrapper.config.problems import Problem, join_path, quote, suggest
from wrapper.config.settings import ADMIN_KEY, Secret

T = TypeVar("T")
C = TypeVar("C", bound=str)

SECRET_WANTED = 'write { env = "NAME_OF_A_VARIABLE" } or { file = "/path/of/a/file" }'

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (Decimal, "a number"),
    (str, "a string"),
    (list, "an array"),
    (dict, "a table"),
)

# Capitals only: keys such as gsk_... are lower case, so a key that was written here by mistake is
# refused and not printed as the name of a variable that is not set.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


def kind(value: object) -> str:
    """The type of a TOML value, for a message."""
    return next((name for type_, name in _KINDS if isinstance(value, type_)), "a date or time")


class Table:
    """One table of a file. `path` is its key path; `problems` collects what is wrong."""

    def __init__(
        self, data: dict[str, object], path: str, file: str, problems: list[Problem]
    ) -> None:
        self.data = data
        self.path = path
        self.file = file
        self.problems = problems
        self._known: set[str] = set()

    def problem(self, key: str, message: str, hint: str = "", *, index: int | None = None) -> None:
        path = join_path(self.path, key) if key else self.path
        if index is not None:
            path = f"{path}[{index}]"
        self.problems.append(Problem(self.file, path, message, hint))

    def get(self, key: str) -> object | None:
        """The raw value; None where there is none (TOML has no null). Marks the key as known."""
        self._known.add(key)
        return self.data.get(key)

    def close(self) -> None:
        """Records a problem for every key that was not read."""
        for key in self.data.keys() - self._known:
            self.problem(key, "unknown key", suggest(key, self._known))

    def _wrong_kind(self, key: str, value: object, wanted: str) -> None:
        self.problem(key, f"is {kind(value)}", f"write {wanted}")

    def text(
        self, key: str, default: T, *, pattern: re.Pattern[str] | None = None, wanted: str
    ) -> str | T:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self._wrong_kind(key, value, wanted)
        elif not value:
            self.problem(key, "is empty", f"write {wanted}")
        elif pattern is not None and not pattern.fullmatch(value):
            self.problem(key, f"is {quote(value)}", f"write {wanted}")
        else:
            return value
        return default

    def choice(self, key: str, default: C, choices: Collection[C]) -> C:
        """One of some words."""
        value = self.get(key)
        if value is None:
            return default
        *most, last = (f'"{choice}"' for choice in choices)
        wanted = f"{', '.join(most)} or {last}"
        for choice in choices:
            if value == choice:
                return choice
        if isinstance(value, str):
            self.problem(key, f"is {quote(value)}", f"write {wanted}")
        else:
            self._wrong_kind(key, value, wanted)
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self._wrong_kind(key, value, "true or false")
        return default

    def whole(self, key: str, default: T, *, low: int = 1, high: int = 2**53) -> int | T:
        value = self.get(key)
        wanted = f"an integer from {low} to {high}"
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong_kind(key, value, wanted)
        elif not low <= value <= high:
            self.problem(key, "is out of range", f"write {wanted}")
        else:
            return value
        return default

    def number(
        self, key: str, default: T, *, low: str = "0", high: str = "1e9", above: bool = False
    ) -> Decimal | T:
        """A finite number from `low` (or above it) to `high`."""
        value = self.get(key)
        wanted = f"a number {'above' if above else 'from'} {low} {'and up ' if above else ''}to"
        wanted = f"{wanted} {high}"
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            self._wrong_kind(key, value, wanted)
            return default
        number = Decimal(value)
        inside = number.is_finite() and Decimal(low) <= number <= Decimal(high)
        if not inside or (above and number == Decimal(low)):
            self.problem(key, "is out of range", f"write {wanted}")
            return default
        return number

    def seconds(self, key: str, default: float) -> float:
        """A duration: above 0, at most a day."""
        number = self.number(key, None, low="0", high="86400", above=True)
        if number is None or float(number) == 0.0:
            return default
        return float(number)

    def texts(self, key: str, default: tuple[str, ...], *, wanted: str) -> tuple[str, ...]:
        """A non-empty array of strings, none of them empty or repeated."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, list):
            self._wrong_kind(key, value, f"an array: {wanted}")
            return default
        if not value:
            self.problem(key, "is empty", f"write {wanted}")
        good: list[str] = []
        for index, item in enumerate(value):
            if not isinstance(item, str) or not item:
                what = "is empty" if isinstance(item, str) else f"is {kind(item)}"
                self.problem(key, what, f"write {wanted}", index=index)
            elif item in good:
                self.problem(key, f"{quote(item)} is there twice", "remove one", index=index)
            else:
                good.append(item)
        return tuple(good) or default

    def table(self, key: str) -> Table | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self._wrong_kind(key, value, f"a table: [{join_path(self.path, key)}]")
            return None
        return Table(value, join_path(self.path, key), self.file, self.problems)

    def named_tables(self, key: str) -> Iterator[tuple[str, Table]]:
        """The tables inside table `key`, by name. The caller checks the names."""
        outer = self.table(key)
        if outer is None:
            return
        for name in outer.data:
            inner = outer.table(name)
            if inner is not None:
                yield name, inner

    def tables(self, key: str) -> Iterator[Table]:
        """The tables of an array of tables."""
        value = self.get(key)
        if value is None:
            return
        path = join_path(self.path, key)
        if not isinstance(value, list):
            self._wrong_kind(key, value, f"an array of tables: [[{path}]]")
            return
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield Table(item, f"{path}[{index}]", self.file, self.problems)
            else:
                self.problem(key, f"is {kind(item)}", f"write a table: [[{path}]]", index=index)


class SecretReader:
    """Resolves references against an environment, and files relative to `base`.

    Where the variable NAME is not set, NAME_FILE may name a file that has the value.
    """

    def __init__(self, environ: Mapping[str, str], sources: Sources, base: Path) -> None:
        self._environ = environ
        self._sources = sources
        self.base = base

    def names_file(self, value: object) -> bool:
        """Whether this reference leads to a file, which is then expected to be there."""
        if not isinstance(value, dict):
            return False
        return "file" in value or bool(self._environ.get(f"{value.get('env')}_FILE"))

    def read(self, table: Table, key: str) -> tuple[Secret | None, str | None]:
        """The secret at `key`, or None and why there is none.

        Without a reference both are None. A wrong reference, and a value that no HTTP header can
        carry, is recorded as a problem; a variable that is not set is not.
        """
        value = table.get(key)
        if value is None:
            return None, None
        if isinstance(value, str):
            table.problem(key, "is a literal secret", SECRET_WANTED)
        elif not isinstance(value, dict):
            table.problem(key, f"is {kind(value)}", SECRET_WANTED)
        elif value.keys() == {"env", "file"}:
            table.problem(key, "names both a variable and a file", "give one of the two")
        elif len(value) != 1 or not value.keys() <= {"env", "file"}:
            table.problem(key, "is not a reference to a secret", SECRET_WANTED)
        else:
            return self._resolve(table, key, *next(iter(value.items())))
        return None, "the reference is wrong"

    def _resolve(
        self, table: Table, key: str, source: str, name: object
    ) -> tuple[Secret | None, str | None]:
        if not isinstance(name, str) or not name:
            table.problem(key, f"{source} is not the name of anything", SECRET_WANTED)
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
        if name == ADMIN_KEY:
            table.problem(
                key,
                f"{ADMIN_KEY} is the organization's admin key, which the gateway must not hold",
                "write the name of another variable",
            )
            return None, "the reference is wrong"
        value = self._environ.get(name, "").strip()
        file = self._environ.get(f"{name}_FILE", "")
        if not value and file:
            return self._from_file(table, key, file)
        if not value:
            return None, f"environment variable {name} is not set"
        return self._checked(table, key, value, f"environment variable {name}")

    def _from_file(self, table: Table, key: str, name: str) -> tuple[Secret | None, str | None]:
        path = self.base / name
        if not name.isprintable():
            table.problem(key, "file has a name that cannot be printed", SECRET_WANTED)
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
