"""Edits keys.toml one key at a time. `wrapper.config.keys` reads it.

People edit the file too, so it is never written from what was read: a new key is
appended, and a revoked one is taken out of tomlkit's document. Invariants:

- An edit leaves every other byte as it was, comments included. The new text is parsed and compared
  with what it must say before it replaces the old one; a spelling that cannot be edited so is
  refused.
- The file is replaced as a whole, and two commands at once wait for each other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wrapper.config.files import ProblemFound, Unreadable, parse_toml, read_text, replace_file
from wrapper.config.problems import ConfigError, Problem, quote
from wrapper.config.settings import ApiKey

if TYPE_CHECKING:
    from tomlkit.items import Item, Key

    Body = list[tuple[Key | None, Item]]

Tables = dict[str, object]

_HEAD = """\
# The gateway's keys. A key's secret is not in here, only its SHA-256.
# `python -m wrapper keys create NAME` adds one; a change is in force within two seconds.
"""


class KeyFileError(Exception):
    """The file stays as it was; the message says why and what to do."""


def create(path: Path, key: ApiKey) -> None:
    """Appends `key`. Raises `KeyFileError`, or `ConfigError` for a file that is not TOML."""
    with _locked(path) as target:
        text = _read(target)
        tables, keys = _parsed(text or "", path)
        if keys is None:
            raise KeyFileError(f"{path}: keys is not a table: write [keys.NAME] tables")
        if key.name in keys:
            raise KeyFileError(
                f"{path}: there is a key {quote(key.name)} already: revoke it first, or choose"
                " another name"
            )
        added = render(key)
        _, new = _parsed(added, path)
        wanted = {**tables, "keys": {**keys, **(new or {})}}
        result = _append(_HEAD if text is None else text, added)
        _check(path, result, wanted, "it has no room for another [keys.NAME] table")
        replace_file(target, result.encode())


def revoke(path: Path, name: str) -> None:
    """Removes key `name`. Raises as `create` does."""
    with _locked(path) as target:
        text = _read(target) or ""
        tables, keys = _parsed(text, path)
        if not keys or name not in keys:
            known = f" (there are: {', '.join(keys)})" if keys else ""
            raise KeyFileError(f"{path}: there is no key {quote(name)}{known}")
        wanted = {**tables, "keys": {key: value for key, value in keys.items() if key != name}}
        result = _without(text, name)
        _check(path, result, wanted, f"remove {quote(name)} with an editor")
        replace_file(target, result.encode())


def render(key: ApiKey) -> str:
    """The table of a key; settings at their default are left out."""
    import tomlkit  # only what writes the file imports it

    table = tomlkit.table()
    table["sha256"] = key.sha256
    if key.models != ("*",):
        table["models"] = list(key.models)
    for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent"):
        limit = getattr(key, name)
        if limit is not None:
            table[name] = limit
    if key.budget_usd is not None:
        amount = format(key.budget_usd, "f")  # never with an exponent
        table["budget_usd"] = tomlkit.value(amount if "." in amount else f"{amount}.0")
        table["budget_period"] = key.budget_period
    if key.expires is not None:
        table["expires"] = key.expires
    keys = tomlkit.table(is_super_table=True)
    keys[key.name] = table
    return tomlkit.dumps({"keys": keys})


def _append(text: str, table: str) -> str:
    """The whole old text, an empty line, the table."""
    if text and not text.endswith("\n"):
        text += "\n"
    empty_line = "" if not text or text.endswith(("\n\n", "\n\r\n")) else "\n"
    return text + empty_line + table


def _without(text: str, name: str) -> str:
    """The text without the lines of `keys.NAME`; comments behind its last line stay.

    tomlkit says which lines these are. The others are taken from `text`, since tomlkit loses a
    space behind a date in an inline table.
    """
    from tomlkit import parse
    from tomlkit.exceptions import TOMLKitError

    try:
        document = parse(text)
    except (TOMLKitError, RecursionError):
        return text  # `_check` refuses it
    before = document.as_string().splitlines(keepends=True)
    _remove(document.body, ("keys", name))
    after = document.as_string().splitlines(keepends=True)
    kept: list[str] = []
    for original, line in zip(text.splitlines(keepends=True), before, strict=False):
        if after[len(kept) : len(kept) + 1] == [line]:
            kept.append(original)
    return "".join(kept)


def _remove(body: Body, path: tuple[str, ...]) -> None:
    from tomlkit import items, ws

    kept: Body = []
    for key, item in body:
        if key is None or key.key != path[0]:
            kept.append((key, item))
        elif path[1:]:
            if isinstance(item, items.Table):
                _remove(item.value.body, path[1:])
            kept.append((key, item))
        elif isinstance(item, items.Table):
            # As white space: a comment would give the table around it a header.
            kept.append((None, ws("".join(each.as_string() for each in _trailing(item)))))
    body[:] = kept


def _trailing(table: Item) -> list[Item]:
    """The comments and empty lines behind the last statement of a table."""
    from tomlkit import items

    if not isinstance(table, items.Table):
        return []
    found: list[Item] = []
    for key, item in table.value.body:
        found = [*found, item] if key is None else _trailing(item)
    return found


def _parsed(text: str, path: Path) -> tuple[Tables, Tables | None]:
    """All tables of a text, and the one of keys, None where `keys` is something else.

    Raises `ConfigError`.
    """
    try:
        tables = parse_toml(text, str(path))
    except ProblemFound as found:
        raise ConfigError([found.problem], (path,)) from None
    keys = tables.get("keys", {})
    return tables, keys if isinstance(keys, dict) else None


def _check(path: Path, result: str, wanted: Tables, hint: str) -> None:
    """Compares what the new text says with what it must say."""
    try:
        tables, _ = _parsed(result, path)
    except ConfigError:
        tables = {}
    for side in (tables, wanted):
        if not side.get("keys"):
            side.pop("keys", None)
    if tables != wanted:
        raise KeyFileError(f"{path}: is written in a form that this command cannot edit: {hint}")


def _read(path: Path) -> str | None:
    """The text, None for a file that is not there."""
    try:
        return read_text(path)
    except Unreadable as error:
        if error.missing:
            return None
        raise ConfigError([Problem(str(path), "", error.reason, error.hint)], (path,)) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Holds a lock on the directory (there is no lock file); yields the file that links lead to."""
    target = Path(os.path.realpath(path))
    try:
        descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileError(f"{path}: {target.parent}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield target
        with contextlib.suppress(OSError):  # some file systems cannot sync a directory
            os.fsync(descriptor)
    except OSError as error:
        hint = ""
        if error.errno == errno.EBUSY:
            hint = " (mount its directory into the container, not the file alone)"
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}{hint}") from None
    finally:
        os.close(descriptor)
