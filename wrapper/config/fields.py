"""Reads typed values out of a TOML table and notes what is wrong with them.

The rule protected here: every reader returns something usable (the default) after it noted a
problem, so that reading goes on and finds the next one; and a key that nobody asked for is a
problem too, because a misspelt limit must not be a limit that does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import TypeVar

from wrapper.config.problems import Problem, joined, shown, similar

T = TypeVar("T")

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (Decimal, "a number"),
    (str, "a string"),
    (list, "an array"),
    (dict, "a table"),
)


def kind(value: object) -> str:
    """What a TOML value is, in words."""
    return next((name for type_, name in _KINDS if isinstance(value, type_)), "a date or time")


class Table:
    """One table of a file. `path` is its key path, `problems` where mistakes are noted."""

    def __init__(
        self, data: dict[str, object], path: str, file: str, problems: list[Problem]
    ) -> None:
        self.data = data
        self.path = path
        self.file = file
        self.problems = problems
        self._known: set[str] = set()

    def problem(self, key: str, message: str, hint: str = "", *, index: int | None = None) -> None:
        path = joined(self.path, key) if key else self.path
        if index is not None:
            path = f"{path}[{index}]"
        self.problems.append(Problem(self.file, path, message, hint))

    def get(self, key: str) -> object | None:
        """The raw value; None where there is none (TOML has no null)."""
        self._known.add(key)
        return self.data.get(key)

    def close(self) -> None:
        """Notes every key that was not asked for."""
        for key in self.data.keys() - self._known:
            self.problem(key, "unknown key", similar(key, self._known))

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
            self.problem(key, f"is {shown(value)}", f"write {wanted}")
        else:
            return value
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
        """An array of strings, not empty, none of them empty or there twice."""
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
                self.problem(key, f"{shown(item)} is there twice", "remove one", index=index)
            else:
                good.append(item)
        return tuple(good) or default

    def table(self, key: str) -> Table | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self._wrong_kind(key, value, f"a table: [{joined(self.path, key)}]")
            return None
        return Table(value, joined(self.path, key), self.file, self.problems)

    def named_tables(self, key: str) -> Iterator[tuple[str, Table]]:
        """The tables inside table `key`, by name; names are the caller's to judge."""
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
        path = joined(self.path, key)
        if not isinstance(value, list):
            self._wrong_kind(key, value, f"an array of tables: [[{path}]]")
            return
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield Table(item, f"{path}[{index}]", self.file, self.problems)
            else:
                self.problem(key, f"is {kind(item)}", f"write a table: [[{path}]]", index=index)
