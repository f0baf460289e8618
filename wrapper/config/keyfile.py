"""Edits keys.toml one key at a time. `wrapper.config.keys` reads it.

People edit the file too, so it is never written from what was read: a new key is appended, and
the lines or values of another are replaced where they stand. Invariants:

- An edit leaves every other byte as it was, comments included. The new text is parsed and compared
  with what it must say before it replaces the old one; a spelling that cannot be edited so is
  refused.
- The file is replaced as a whole, and two commands at once wait for each other.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from wrapper.config.fields import Table
from wrapper.config.files import ProblemFound, Unreadable, parse_toml, read_text, replace_file
from wrapper.config.keys import NOTHING, read_keys
from wrapper.config.problems import ConfigError, Problem, quote
from wrapper.config.settings import ApiKey, Group
from wrapper.config.statements import located, statements

Tables = dict[str, object]
Value = str | bool | int | Decimal | datetime.date | tuple[str, ...]
Changes = dict[str, Value | None]
"""Settings of a key and their new values; None removes one."""

_HEAD = """\
# The gateway's keys. A key's secret is not in here, only its SHA-256.
# `python -m wrapper keys create NAME` adds one; a change is in force within two seconds.
"""

_SETTINGS = (
    "group",
    "owner",
    "description",
    "models",
    "endpoints",
    "requests_per_minute",
    "tokens_per_minute",
    "max_concurrent",
    "budget_usd",
    "budget_period",
    "unpriced",
    "store_failure",
    "enforce",
    "expires",
)
"""What a new key can have beside its digest, in the order of the file."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class KeyFileError(Exception):
    """The file stays as it was; the message says why and what to do."""


def add(
    path: Path,
    keys: Sequence[ApiKey],
    groups: Sequence[Group] = (),
    *,
    defaults: ApiKey = NOTHING,
) -> None:
    """Appends keys and groups; what is as in `defaults` is not written.

    Raises `KeyFileError`, or `ConfigError` for a file that is not TOML.
    """
    with _locked(path) as target:
        text = _read(target)
        tables, _ = _parsed(text or "", path)
        result = _HEAD if text is None else text
        for kind, named in (("group", groups), ("key", keys)):
            if not named:
                continue
            before = tables.get(f"{kind}s", {})
            if not isinstance(before, dict):
                hint = f"write [{kind}s.NAME] tables"
                raise KeyFileError(f"{path}: {kind}s is not a table: {hint}")
            for each in named:
                if each.name in before:
                    raise KeyFileError(
                        f"{path}: there is a {kind} {quote(each.name)} already: remove it first,"
                        " or choose another name"
                    )
                added = render(each, defaults)
                result = _append(result, added)
                before = {**before, **_named(parse_toml(added, str(path)))}
            tables = {**tables, f"{kind}s": before}
        _check(path, result, tables, "it has no room for another [keys.NAME] table")
        replace_file(target, result.encode())


def _named(tables: Tables) -> Tables:
    """What is in the only table of `tables`."""
    (inner,) = tables.values()
    return inner if isinstance(inner, dict) else {}


def revoke(path: Path, name: str) -> None:
    """Removes key `name`. Raises as `create` does."""
    with _locked(path) as target:
        text = _read(target) or ""
        tables, keys = _parsed(text, path)
        if not keys or name not in keys:
            raise _missing(path, name, keys or ())
        wanted = {**tables, "keys": {key: value for key, value in keys.items() if key != name}}
        result = _without(text, name)
        _check(path, result, wanted, f"remove {quote(name)} with an editor")
        replace_file(target, result.encode())


def change(path: Path, name: str, changes_of: Callable[[ApiKey], Changes]) -> ApiKey:
    """Changes settings of key `name` and returns the key as it is then.

    `changes_of` gets the key with the defaults that hold for it. Raises as `create` does, and
    `ConfigError` for a file with any mistake.
    """
    with _locked(path) as target:
        text = _read(target) or ""
        tables, keys = _parsed(text, path)
        changes = changes_of(_one_key(path, text, tables, name))
        table = (keys or {}).get(name)
        new = dict(table) if isinstance(table, dict) else {}
        for setting, value in changes.items():
            new.pop(setting, None)
            if value is not None:
                new.update(parse_toml(f"{setting} = {literal(value)}", str(path)))
        wanted = {**tables, "keys": {**(keys or {}), name: new}}
        result = _changed(text, name, changes)
        _check(path, result, wanted, f"change {quote(name)} with an editor: {_described(changes)}")
        key = _one_key(path, result, wanted, name)
        replace_file(target, result.encode())
        return key


def _one_key(path: Path, text: str, tables: Tables, name: str) -> ApiKey:
    """Raises `ConfigError` with the problems of the file, or `KeyFileError`."""
    problems: list[Problem] = []
    keys = read_keys(Table(tables, "", str(path), problems)).keys
    if problems:
        raise ConfigError(located(problems, text), (path,))
    if name not in keys:
        raise _missing(path, name, keys)
    return keys[name]


def _missing(path: Path, name: str, keys: Iterable[str]) -> KeyFileError:
    known = ", ".join(keys)
    others = f" (there are: {known})" if known else ""
    return KeyFileError(f"{path}: there is no key {quote(name)}{others}")


def _described(changes: Changes) -> str:
    return ", ".join(
        f"remove {setting}" if value is None else f"{setting} = {literal(value)}"
        for setting, value in changes.items()
    )


def render(of: ApiKey | Group, defaults: ApiKey = NOTHING) -> str:
    """The table of a key or a group; a key's settings that are as in `defaults` are left out."""
    name = of.name if _BARE.fullmatch(of.name) else literal(of.name)
    if isinstance(of, ApiKey):
        plain: ApiKey | Group = defaults
        lines = [f"[keys.{name}]", f"sha256 = {literal(of.sha256)}"]
    else:
        plain = Group("")
        lines = [f"[groups.{name}]"]
    for setting in _SETTINGS:
        if setting == "budget_period" and of.budget_usd is None:
            continue  # a period needs a budget
        value = getattr(of, setting, None)
        if value is not None and value != getattr(plain, setting, None):
            lines.append(f"{setting} = {literal(value)}")
    return "\n".join((*lines, ""))


def literal(value: Value) -> str:
    """A value in TOML's spelling."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{"".join(map(_escaped, value))}"'
        case Decimal():
            amount = format(value, "f")  # never with an exponent
            return amount if "." in amount else f"{amount}.0"
        case datetime.datetime():
            return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case datetime.date():
            return value.isoformat()
        case tuple():
            return f"[{', '.join(map(literal, value))}]"
    return str(value)


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _append(text: str, table: str) -> str:
    """The whole old text, an empty line, the table."""
    if text and not text.endswith("\n"):
        text += "\n"
    empty_line = "" if not text or text.endswith(("\n\n", "\n\r\n")) else "\n"
    return text + empty_line + table


def _without(text: str, name: str) -> str:
    """The text without the lines of `keys.NAME`; comments behind its last line stay."""
    kept: list[str] = []
    begin = 0  # of the text that is not yet kept
    inside = False  # below a header of the key: comments between its lines are its own
    for statement in statements(text):
        if statement.path[:2] != ("keys", name):
            inside = False
            continue
        if not inside:
            kept.append(text[begin : statement.start])
        begin = statement.end
        inside = inside or statement.is_table
    return "".join((*kept, text[begin:]))


def _changed(text: str, name: str, changes: Changes) -> str:
    """The text with `changes` in `keys.NAME`; a setting that is new there follows `sha256`."""
    found = {each.path: each for each in statements(text)}
    digest = found.get(("keys", name, "sha256"))
    edits: list[tuple[int, int, str]] = []
    for setting, value in changes.items():
        old = found.get(("keys", name, setting))
        if old is not None and value is not None:
            edits.append((old.value, old.stop, literal(value)))
        elif old is not None:
            edits.append((old.start, old.end, ""))
        elif digest is not None and value is not None:
            before, _, after = text[digest.start : digest.value].rpartition("sha256")
            newline = "\r\n" if text.startswith("\r\n", digest.end - 2) else "\n"
            line = f"{before}{setting}{after}{literal(value)}{newline}"
            is_last = not text[: digest.end].endswith("\n")
            edits.append((digest.end, digest.end, newline + line if is_last else line))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


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
