"""Edits keys.toml one key at a time. `wrapper.config.keys` reads it.

People edit the file too, so it is never written from what was read: a new key is appended, and
another is changed or removed in tomlkit's document. Invariants:

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING

from wrapper.config.fields import Table
from wrapper.config.files import ProblemFound, Unreadable, parse_toml, read_text, replace_file
from wrapper.config.keys import NOTHING, read_keys
from wrapper.config.problems import ConfigError, Problem, quote
from wrapper.config.settings import ApiKey, Group
from wrapper.config.statements import located

if TYPE_CHECKING:  # only what writes the file imports tomlkit
    from tomlkit.items import Item, Key

    Body = list[tuple[Key | None, Item]]

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
                        f"{path}: there is a {kind} {quote(each.name)} already: revoke it first,"
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
        result = _edited(text, lambda body: _remove(body, name))
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
                new.update(parse_toml(f"{setting} = {_item(value).as_string()}", str(path)))
        wanted = {**tables, "keys": {**(keys or {}), name: new}}
        result = _edited(text, lambda body: _change(body, name, changes))
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
        f"remove {setting}" if value is None else f"{setting} = {_item(value).as_string()}"
        for setting, value in changes.items()
    )


def render(of: ApiKey | Group, defaults: ApiKey = NOTHING) -> str:
    """The table of a key or a group; a key's settings that are as in `defaults` are left out."""
    import tomlkit

    table = tomlkit.table()
    plain: ApiKey | Group = Group("")
    if isinstance(of, ApiKey):
        plain = defaults
        table["sha256"] = of.sha256
    for setting in _SETTINGS:
        if setting == "budget_period" and of.budget_usd is None:
            continue  # a period needs a budget
        value = getattr(of, setting, None)
        if value is not None and value != getattr(plain, setting, None):
            table[setting] = _item(value)
    tables = tomlkit.table(is_super_table=True)
    tables[of.name] = table
    return tomlkit.dumps({"keys" if isinstance(of, ApiKey) else "groups": tables})


def _item(value: Value) -> Item:
    import tomlkit

    if isinstance(value, Decimal):
        amount = format(value, "f")  # never with an exponent
        return tomlkit.value(amount if "." in amount else f"{amount}.0")
    return tomlkit.item(list(value) if isinstance(value, tuple) else value)


def _append(text: str, table: str) -> str:
    """The whole old text, an empty line, the table."""
    if text and not text.endswith("\n"):
        text += "\n"
    empty_line = "" if not text or text.endswith(("\n\n", "\n\r\n")) else "\n"
    return text + empty_line + table


def _edited(text: str, edit: Callable[[Body], None]) -> str:
    """The text after `edit` of tomlkit's document."""
    from tomlkit import parse
    from tomlkit.exceptions import TOMLKitError

    try:
        document = parse(text)
    except (TOMLKitError, RecursionError):
        return text  # `_check` refuses it
    before = document.as_string()
    edit(document.body)
    after = document.as_string()
    return after if before == text else _merged(text, before, after)


def _merged(text: str, before: str, after: str) -> str:
    """`after` with the lines of `text` for those of `before`.

    Why: tomlkit removes the space between a date and the end of an inline table.
    """
    lines, old, new = (each.splitlines(keepends=True) for each in (text, before, after))
    if len(lines) != len(old):
        return text  # `_check` refuses it
    kept: list[str] = []
    for tag, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        kept += lines[i:j] if tag == "equal" else new[k:m]
    return "".join(kept)


def _places(body: Body, *path: str) -> Iterator[tuple[Body, int]]:
    """Where `path` is in a document: a table can be in several parts."""
    from tomlkit.items import Table

    for index, (key, item) in enumerate(body):
        if key is None or key.key != path[0]:
            continue
        if not path[1:]:
            yield body, index
        elif isinstance(item, Table):
            yield from _places(item.value.body, *path[1:])


def _remove(body: Body, name: str) -> None:
    """Removes `keys.NAME`; comments behind its last line stay."""
    from tomlkit import ws

    for siblings, index in _places(body, "keys", name):
        # As white space: a comment would give the table around it a header.
        left = "".join(each.as_string() for each in _trailing(siblings[index][1]))
        siblings[index] = (None, ws(left))


def _trailing(table: Item) -> list[Item]:
    """The comments and empty lines behind the last statement of a table."""
    from tomlkit.items import Table

    if not isinstance(table, Table):
        return []
    found: list[Item] = []
    for key, item in table.value.body:
        found = [*found, item] if key is None else _trailing(item)
    return found


def _change(body: Body, name: str, changes: Changes) -> None:
    """Makes `changes` in `keys.NAME`; a setting that is new there follows `sha256`.

    Not by tomlkit's own assignment: it adds a setting behind the comment of the next table.
    """
    from tomlkit.items import SingleKey

    for setting, value in changes.items():
        old = next(_places(body, "keys", name, setting), None)
        siblings, index = old or next(_places(body, "keys", name, "sha256"), ([], 0))
        if old and value is None:
            del siblings[index]
        elif siblings and value is not None:
            key, item = siblings[index]
            new, around = _item(value), item.trivia
            if old:
                vars(new.trivia).update(vars(around))
                siblings[index] = (key, new)
            elif key:
                around.trail = around.trail or "\n"
                new.trivia.indent, new.trivia.trail = around.indent, around.trail
                spelt = key.as_string().replace("sha256", setting)
                siblings.insert(index + 1, (SingleKey(setting, sep=key.sep, original=spelt), new))


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
