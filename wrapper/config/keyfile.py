"""Writes keys.toml: adds one key, removes one key, touches nothing else.

The file is a person's: it has comments and an order. So it is never written from what was read.
A new key is appended; a revoked one loses exactly its own lines. The rules protected here:

- Every other byte stays. The result is parsed again and compared with what it must say before it
  takes the place of the old file; a spelling that cannot be edited so is refused in words.
- The file is replaced as a whole (a temporary file beside it, fsync, rename), so that no reader
  ever sees half of it, and two commands at once wait for each other.
- A new file is readable by its owner alone; an old one keeps its mode.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from wrapper.config import ApiKey, ConfigError, Problem
from wrapper.config.files import ProblemFound, Unreadable, parse_toml, read_text
from wrapper.config.problems import quoted_key, shown
from wrapper.config.tomllines import Statement, statements

_HEAD = """\
# The gateway's keys. A key's secret is not in here, only its SHA-256.
# `python -m wrapper keys create NAME` adds one; a change is in force within two seconds.
"""

Tables = dict[str, object]


class KeyFileError(Exception):
    """The file stays as it was; the message says why and what to do."""


def create(path: Path, key: ApiKey) -> None:
    """Appends `key`. Raises `KeyFileError`, or `ConfigError` for a file that is no TOML."""
    with _locked(path) as target:
        text = _read(target)
        tables = parse(text or "", path)
        keys = tables.get("keys", {})
        if not isinstance(keys, dict):
            raise KeyFileError(f"{path}: keys is not a table: write [keys.NAME] tables")
        if key.name in keys:
            raise KeyFileError(
                f"{path}: there is a key {shown(key.name)} already: revoke it first, or choose"
                " another name"
            )
        table = render(key)
        result = _appended(_HEAD if text is None else text, table)
        wanted = {**tables, "keys": {**keys, **_parsed_key(table)}}
        _check(path, result, wanted, "it has no room for another [keys.NAME] table")
        _replace(target, result)


def revoke(path: Path, name: str) -> None:
    """Removes the lines of key `name`. Raises as `create` does."""
    with _locked(path) as target:
        text = _read(target)
        tables = parse(text or "", path)
        keys = tables.get("keys", {})
        if not isinstance(keys, dict) or name not in keys:
            known = ", ".join(map(str, keys)) if isinstance(keys, dict) else ""
            raise KeyFileError(
                f"{path}: there is no key {shown(name)}"
                + (f" (there are: {known})" if known else "")
            )
        result = _without(text or "", name)
        wanted = {**tables, "keys": {key: value for key, value in keys.items() if key != name}}
        _check(path, result, wanted, f"remove {shown(name)} with an editor")
        _replace(target, result)


def render(key: ApiKey) -> str:
    """The canonical table of a key; what is at its default is left out."""
    lines = [f"[keys.{quoted_key(key.name)}]", f'sha256 = "{key.sha256}"']
    if key.models != ("*",):
        lines.append(f"models = [{', '.join(_string(model) for model in key.models)}]")
    for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent"):
        limit = getattr(key, name)
        if limit is not None:
            lines.append(f"{name} = {limit}")
    if key.budget_usd is not None:
        lines.append(f"budget_usd = {_decimal(key.budget_usd)}")
        lines.append(f'budget_period = "{key.budget_period}"')
    if key.expires is not None:
        lines.append(f"expires = {key.expires.isoformat()}")
    return "\n".join(lines) + "\n"


def parse(text: str, path: Path) -> Tables:
    """The tables of a keys file. Raises `ConfigError`."""
    try:
        return parse_toml(text, str(path))
    except ProblemFound as found:
        raise ConfigError([found.problem], (path,)) from None


def _string(text: str) -> str:
    """A TOML basic string."""
    escaped = (
        char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in text
    )
    return f'"{"".join(escaped)}"'


def _decimal(number: Decimal) -> str:
    """Never with an exponent; with a point, so that it reads as money."""
    text = format(number, "f")
    return text if "." in text else f"{text}.0"


def _parsed_key(table: str) -> Tables:
    keys = parse_toml(table, "")["keys"]
    return keys if isinstance(keys, dict) else {}


def _appended(text: str, table: str) -> str:
    """The old text, whole, an empty line, the table."""
    if text and not text.endswith("\n"):
        text += "\n"
    empty_line = "" if not text or text.endswith(("\n\n", "\n\r\n")) else "\n"
    return text + empty_line + table


def _without(text: str, name: str) -> str:
    """The text without the statements of `keys.NAME` and the lines between these."""
    kept: list[str] = []
    position = 0
    removing = False
    for statement in statements(text):
        mine = _belongs(statement, name)
        if not (mine and removing):
            kept.append(text[position : statement.start])
        if not mine:
            kept.append(text[statement.start : statement.end])
        removing = mine
        position = statement.end
    kept.append(text[position:])
    return "".join(kept)


def _belongs(statement: Statement, name: str) -> bool:
    """Whether a statement says something about `keys.NAME`."""
    table = statement.table
    if len(table) >= 2 or statement.header:
        return table[:2] == ("keys", name)
    if table not in ((), ("keys",)):
        return False
    found: object = tomllib.loads(statement.text)
    for part in ("keys", name)[len(table) :]:
        if not isinstance(found, dict) or list(found) != [part]:
            return False
        found = found[part]
    return True


def _check(path: Path, result: str, wanted: Tables, hint: str) -> None:
    """Compares what the new text says with what it must say."""
    try:
        tables = parse_toml(result, str(path))
    except ProblemFound:
        tables = {}
    for side in (tables, wanted):
        if not side.get("keys"):
            side.pop("keys", None)
    if tables != wanted:
        raise KeyFileError(f"{path}: is written in a form that this command cannot edit: {hint}")


def _read(path: Path) -> str | None:
    """The text, None for a file that is not there. Line ends stay as they are."""
    try:
        return read_text(path)
    except Unreadable as error:
        if error.missing:
            return None
        raise ConfigError([Problem(str(path), "", error.reason, error.hint)], (path,)) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Holds the directory's lock (no lock file stays behind); yields the file behind links."""
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


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            _like(path, file.fileno())
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _like(path: Path, descriptor: int) -> None:
    """Gives the new file the old one's mode and owner, as far as that is allowed."""
    try:
        old = path.stat()
    except FileNotFoundError:
        return
    os.fchmod(descriptor, old.st_mode & 0o777)
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, old.st_uid, old.st_gid)
