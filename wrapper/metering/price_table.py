"""Reads config/prices.toml into rates, in pico-USD per token.

The layout is described in `wrapper.metering.pricing`.

Invariant: a price that cannot be read is a problem with a file and a key path, never a price of
zero.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from wrapper.config import ConfigError, Problem
from wrapper.metering.usage import PICO, Usage

_PICO_PER_MILLION = 10**6

_PER_TOKEN = (
    "input",
    "cached_input",
    "output",
    "audio_input",
    "image_input",
    "audio_output",
    "image_output",
)
_KNOWN = frozenset((*_PER_TOKEN, "audio_hour", "tiers", "above"))


class Rate(NamedTuple):
    """Pico-USD per token (`audio_hour`: per hour); None where there is no price.

    It applies to prompts of more than `above` tokens. `separate`: audio or image tokens have
    their own price.
    """

    above: int = -1
    input: int | None = None
    cached_input: int | None = None
    output: int | None = None
    audio_input: int | None = None
    image_input: int | None = None
    audio_output: int | None = None
    image_output: int | None = None
    audio_hour: int | None = None
    separate: bool = False

    def cost(self, usage: Usage) -> int | None:
        if usage.seconds and not usage.total:
            if self.audio_hour is None:
                return None
            return round(usage.seconds * 1000) * self.audio_hour // 3_600_000
        cached = min(usage.cached, usage.prompt)
        parts: tuple[tuple[int, int | None], ...] = (
            (usage.prompt - cached, self.input),
            (cached, self.cached_input),
            (usage.completion, self.output),
        )
        if self.separate:
            audio, image = usage.audio_prompt, usage.image_prompt
            if cached and (audio or image):
                return None  # how many of the cached tokens were text is unknown
            special = usage.audio_completion + usage.image_completion
            parts = (
                (max(usage.prompt - cached - audio - image, 0), self.input),
                (cached, self.cached_input),
                (audio, self.audio_input),
                (image, self.image_input),
                (max(usage.completion - special, 0), self.output),
                (usage.audio_completion, self.audio_output),
                (usage.image_completion, self.image_output),
            )
        total = 0
        for tokens, price in parts:
            if tokens:
                if price is None:
                    return None
                total += tokens * price
        return total


Rates = tuple[Rate, ...]  # the one with the highest `above` first


class Table(NamedTuple):
    """The prices of one provider."""

    hosts: tuple[str, ...]
    models: dict[str, Rates]


_read: dict[tuple[str, int, int, int], dict[str, Table]] = {}


def read(path: Path) -> dict[str, Table]:
    """The tables of the file at `path`, none without a file. Raises ConfigError."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError([_unreadable(path, error)]) from error
    stamp = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
    if stamp not in _read:
        tables = _parse(path)
        # Why: parsing would stop the worker at every reload of the configuration.
        _read.clear()
        _read[stamp] = tables
    return _read[stamp]


def _parse(path: Path) -> dict[str, Table]:
    try:
        data = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:
        raise ConfigError([_unreadable(path, error)]) from error
    problems: list[Problem] = []
    tables = _Reader(str(path), problems).tables(data)
    if problems:
        raise ConfigError(problems)
    return tables


def pico(per_million: Decimal) -> int:
    """USD per million tokens in pico-USD per token."""
    return round(per_million * _PICO_PER_MILLION)


def _unreadable(path: Path, error: Exception) -> Problem:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return Problem(str(path), "", f"cannot be read: {reason}", "`make prices` writes a new one")


class _Reader:
    """Reads the tables of the file and collects every problem."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems

    def tables(self, data: Mapping[str, object]) -> dict[str, Table]:
        found: dict[str, Table] = {}
        for name, table in self._table(data.get("providers", {}), "providers").items():
            where = f"providers.{name}"
            content = self._table(table, where)
            hosts = content.get("match", [])
            if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
                self._problem(f"{where}.match", "is not a list of host names")
                hosts = []
            models = self._table(content.get("models", {}), f"{where}.models")
            found[name] = Table(
                tuple(host.lower() for host in hosts),
                {
                    model.lower(): self._rates(entry, f'{where}.models."{model}"')
                    for model, entry in models.items()
                },
            )
        return found

    def _rates(self, entry: object, where: str) -> Rates:
        base = self._table(entry, where)
        tiers = base.get("tiers", [])
        if not isinstance(tiers, list):
            self._problem(f"{where}.tiers", "is not a list of tables")
            tiers = []
        rates = [self._rate(base, where)]
        rates += [self._rate(self._table(tier, f"{where}.tiers"), where) for tier in tiers]
        return tuple(sorted(rates, key=lambda rate: -rate.above))

    def _rate(self, entry: Mapping[str, object], where: str) -> Rate:
        for name in entry:
            if name not in _KNOWN:
                self._problem(
                    f"{where}.{name}", f"is not known; known are {', '.join(sorted(_KNOWN))}"
                )
        prices = {name: self._price(entry.get(name), f"{where}.{name}") for name in _PER_TOKEN}
        hour = self._number(entry.get("audio_hour"), f"{where}.audio_hour")
        above = self._number(entry.get("above"), f"{where}.above", 10**9)
        separate = any(prices[name] is not None for name in _PER_TOKEN[3:])
        if prices["cached_input"] is None:
            prices["cached_input"] = prices["input"]
        for kind in ("audio", "image"):
            for direction in ("input", "output"):
                if prices[f"{kind}_{direction}"] is None:
                    prices[f"{kind}_{direction}"] = prices[direction]
        return Rate(
            above=-1 if above is None else int(above),
            audio_hour=None if hour is None else round(hour * PICO),
            separate=separate,
            **prices,
        )

    def _price(self, value: object, where: str) -> int | None:
        number = self._number(value, where)
        return None if number is None else pico(number)

    def _number(self, value: object, where: str, high: int = 10**6) -> Decimal | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            self._problem(where, "is not a number")
            return None
        number = Decimal(value)
        if not number.is_finite() or not 0 <= number <= high:
            self._problem(where, f"is not between 0 and {high:,}")
            return None
        return number

    def _table(self, value: object, where: str) -> dict[str, object]:
        if isinstance(value, dict):
            return value
        self._problem(where, "is not a table")
        return {}

    def _problem(self, where: str, message: str) -> None:
        self._problems.append(Problem(self._file, where, message, "`make prices` writes a new one"))
