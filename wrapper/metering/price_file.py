"""Reads config/prices.toml: the tables of the providers that are configured.

The layout is described in `wrapper.metering.pricing`. Parsing TOML is slow, a hundred milliseconds
for the whole file, and most of its models are those of a few large providers. So the file is cut
where tables begin, and of the tables that are not needed only the hosts are read. A file that is
laid out in another way is parsed as a whole.

Invariant: a price that cannot be read is a problem with a file and a key path, never a price of
zero.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Final

from wrapper.config import ConfigError, Problem
from wrapper.metering.price_table import PER_TOKEN, ModelPrices, Rate, Rates, Region, Table, pico
from wrapper.metering.usage import PICO
from wrapper.steps import Pause, in_steps, no_pause

_OF_RATE = frozenset((*PER_TOKEN, "audio_hour", "tiers", "above"))
_OF_MODEL = _OF_RATE | {"service_tiers", "units", "minimum_seconds", "uncounted"}

SLICE: Final = 50  # lines that are parsed at once: two milliseconds of work
_HEADER = re.compile(r"^[ \t]*\[.*", re.MULTILINE)
_OWN_HEADER = re.compile(r"\[providers\.([A-Za-z0-9_-]+)(\.models)?\]\s*")

Needed = Callable[[str, "tuple[str, ...]"], bool]
"""Whether the table of this name and these hosts is needed."""


def every(name: str, hosts: tuple[str, ...]) -> bool:
    """All tables are needed."""
    return True


_files: dict[tuple[str, int, int, int], _File] = {}


def read(path: Path, needed: Needed = every, pause: Pause = no_pause) -> dict[str, Table]:
    """The needed tables of the file at `path`, none without a file. Raises ConfigError.

    `pause` lets others run in between.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError([_unreadable(path, error)]) from error
    stamp = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
    # Why: most reloads of the configuration do not change the prices.
    file = _files.get(stamp) or _File(path)
    tables = file.tables(needed, pause)
    _files.clear()
    _files[stamp] = file
    return tables


class _OtherLayout(Exception):
    """The file cannot be read a table at a time."""


class _File:
    """One state of the file, and what has been read of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[str, Table] = {}
        self._is_whole = False
        try:
            self._text = path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError([_unreadable(path, error)]) from error

    def tables(self, needed: Needed, pause: Pause) -> dict[str, Table]:
        """Raises ConfigError."""
        problems: list[Problem] = []
        reader = _Reader(str(self._path), problems, pause)
        tables = self._read
        if not self._is_whole:
            try:
                tables = self._read_parts(reader, needed)
            except (_OtherLayout, ValueError, ArithmeticError, RecursionError):
                # A mistake is found once more, for the number of its line.
                problems.clear()
                tables = self._read_whole(reader)
        if problems:
            raise ConfigError(problems)
        self._read = tables
        return {name: table for name, table in tables.items() if needed(name, table.hosts)}

    def _read_parts(self, reader: _Reader, needed: Needed) -> dict[str, Table]:
        found = dict(self._read)
        for name, (content, lines) in self._parts.items():
            where = f"providers.{name}"
            hosts = reader.hosts(content, where)
            if name in found or not needed(name, hosts):
                continue
            models: dict[str, object] = {}
            for first in range(0, len(lines), SLICE):
                some = _parsed("".join(lines[first : first + SLICE]))
                if not models.keys().isdisjoint(some):
                    raise _OtherLayout
                models.update(some)
                reader.pause()
            if lines and "models" in content:
                raise _OtherLayout
            found[name] = reader.table({"models": models, **content}, where, hosts)
        return found

    def _read_whole(self, reader: _Reader) -> dict[str, Table]:
        try:
            data = _parsed(self._text)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise ConfigError([_unreadable(self._path, error)]) from error
        tables = reader.tables(data)
        self._is_whole = True
        return tables

    @cached_property
    def _parts(self) -> dict[str, tuple[dict[str, object], list[str]]]:
        """Each provider's own table, and the lines of its models."""
        parts: dict[str, tuple[dict[str, object], list[str]]] = {}
        seen: set[str] = set()
        headers = [*_HEADER.finditer(self._text)]
        ends = [header.start() for header in headers[1:]] + [len(self._text)]
        if headers and _parsed(self._text[: headers[0].start()]):
            raise _OtherLayout
        for header, end in zip(headers, ends, strict=True):
            match = _OWN_HEADER.fullmatch(header[0])
            if match is None or header[0] in seen:
                raise _OtherLayout
            seen.add(header[0])
            text, name = self._text[header.end() : end], match[1]
            own, lines = parts.get(name, ({}, []))
            if match[2]:
                parts[name] = own, text.splitlines(keepends=True)
            else:
                parts[name] = _parsed(text), lines
        if not headers:
            raise _OtherLayout
        return parts


def _parsed(text: str) -> dict[str, object]:
    return tomllib.loads(text, parse_float=Decimal)


def _unreadable(path: Path, error: Exception) -> Problem:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return Problem(str(path), "", f"cannot be read: {reason}", "`make prices` writes a new one")


class _Reader:
    """Reads the tables of the file and collects every problem."""

    def __init__(self, file: str, problems: list[Problem], pause: Pause) -> None:
        self._file = file
        self._problems = problems
        self.pause = pause

    def tables(self, data: Mapping[str, object]) -> dict[str, Table]:
        """All tables of the file's content."""
        found = {}
        for name, table in self._table(data.get("providers", {}), "providers").items():
            where = f"providers.{name}"
            content = self._table(table, where)
            found[name] = self.table(content, where, self.hosts(content, where))
        return found

    def hosts(self, content: Mapping[str, object], where: str) -> tuple[str, ...]:
        """The hosts of a provider's table."""
        hosts = content.get("match", [])
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            self._problem(f"{where}.match", "is not a list of host names")
            hosts = []
        return tuple(host.lower() for host in hosts)

    def table(self, content: Mapping[str, object], where: str, hosts: tuple[str, ...]) -> Table:
        """A provider's table, from the content that it has in the file."""
        models = self._table(content.get("models", {}), f"{where}.models")
        regions = self._regions(content.get("regions", []), f"{where}.regions")
        priced = {
            model.lower(): self._model(entry, f'{where}.models."{model}"')
            for model, entry in in_steps(models.items(), self.pause)
        }
        return Table(hosts, priced, regions)

    def _regions(self, entries: object, where: str) -> tuple[Region, ...]:
        if not isinstance(entries, list):
            self._problem(where, "is not a list of tables")
            return ()
        found = []
        for entry in entries:
            table = self._table(entry, where)
            times = self._number(table.get("times"), f"{where}.times", 10)
            texts = {name: table.get(name, "") for name in ("host", "geo", "released")}
            models = table.get("models", [])
            if times is None or not all(isinstance(text, str) for text in texts.values()):
                self._problem(where, "needs times, and host or geo")
            elif not isinstance(models, list) or not all(isinstance(each, str) for each in models):
                self._problem(f"{where}.models", "is not a list of globs")
            else:
                names = {name: str(text).lower() for name, text in texts.items()}
                globs = tuple(each.lower() for each in models)
                found.append(Region(round(times * 100), models=globs, **names))
        return tuple(found)

    def _model(self, entry: object, where: str) -> ModelPrices:
        base = self._table(entry, where)
        tiers = self._table(base.get("service_tiers", {}), f"{where}.service_tiers")
        units = self._table(base.get("units", {}), f"{where}.units")
        minimum = self._number(base.get("minimum_seconds"), f"{where}.minimum_seconds", 3600)
        rates = {"standard": self._rates(base, where, _OF_MODEL)}
        for tier, entry_ in tiers.items():
            if not isinstance(entry_, str):
                rates[tier.lower()] = self._rates(entry_, f"{where}.service_tiers.{tier}")
            elif entry_ in rates:
                rates[tier.lower()] = rates[entry_]
            else:
                self._problem(f"{where}.service_tiers.{tier}", "is not a table nor a tier above")
        return ModelPrices(
            rates["standard"],
            rates,
            {
                unit: round((self._number(value, f"{where}.units.{unit}") or 0) * PICO)
                for unit, value in units.items()
            },
            int(minimum or 0),
            uncounted=self._text(base, "uncounted", where) if "uncounted" in base else "",
        )

    def _text(self, table: Mapping[str, object], name: str, where: str) -> str:
        value = table[name]
        if isinstance(value, str):
            return value
        self._problem(f"{where}.{name}", "is not a text")
        return ""

    def _rates(self, entry: object, where: str, known: frozenset[str] = _OF_RATE) -> Rates:
        base = self._table(entry, where)
        tiers = base.get("tiers", [])
        if not isinstance(tiers, list):
            self._problem(f"{where}.tiers", "is not a list of tables")
            tiers = []
        rates = [self._rate(base, where, known)]
        rates += [self._rate(self._table(tier, f"{where}.tiers"), where) for tier in tiers]
        return tuple(sorted(rates, key=lambda rate: -rate.above))

    def _rate(
        self, entry: Mapping[str, object], where: str, known: frozenset[str] = _OF_RATE
    ) -> Rate:
        for name in entry:
            if name not in known:
                self._problem(
                    f"{where}.{name}", f"is not known; known are {', '.join(sorted(known))}"
                )
        prices: dict[str, int | None] = dict.fromkeys(PER_TOKEN)
        for name in entry:  # few of them are there, of thousands of models
            if name in prices:
                prices[name] = self._price(entry[name], f"{where}.{name}")
        hour = self._number(entry.get("audio_hour"), f"{where}.audio_hour")
        above = self._number(entry.get("above"), f"{where}.above", 10**9)
        # Images in a prompt are text tokens to most models, and without a price of its own a cache
        # saves nothing. Nothing else costs what something else costs unless it is said.
        for name, same in (
            ("cached_input", "input"),
            ("image_input", "input"),
            ("cached_audio", "audio_input"),
            ("cached_image", "image_input" if entry.get("image_input") else "cached_input"),
        ):
            if prices[name] is None:
                prices[name] = prices[same]
        return Rate(
            above=-1 if above is None else int(above),
            audio_hour=None if hour is None else round(hour * PICO),
            plain=False,
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
