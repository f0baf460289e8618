"""Reads the configuration's files, remembers the state of each, and replaces a file as a whole.

Invariant: a stamp is taken before the file is read. A later write differs from the stamp, so no
change is missed. Whatever a path turns out to be (a directory, a pipe, ten megabytes, Latin-1),
the result is a problem and not a traceback.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import reduce
from pathlib import Path

from wrapper.config.problems import Problem, join_path
from wrapper.config.settings import Stamp

MAX_BYTES = 4 * 1024 * 1024
"""Enough for some ten thousand keys."""

TICK_NS = 100_000_000
"""Longer than a tick of any file system's clock."""

REPLACED: Stamp = (0, 0, 0)
"""The stamp of a file in whose place a copy was read."""


# What tomllib says of a second [table].
_TWICE = re.compile(r"Cannot declare (\(.*\)) twice")


class Unreadable(Exception):
    """Why a file cannot be read; `missing` if there is no such file."""

    def __init__(self, reason: str, hint: str = "", *, missing: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.missing = missing


class ProblemFound(Exception):
    """Carries one problem from where it was found to where problems are collected."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def stamp(path: Path) -> Stamp:
    """The state of `path` now; None if it cannot be read."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Sources:
    """All files of one loading. `instead` names snapshots to read in place of some of them."""

    def __init__(self, instead: Mapping[Path, Path] | None = None) -> None:
        self._instead = dict(instead or {})
        self._stamps: dict[Path, Stamp] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self._stamps)

    @property
    def stamps(self) -> tuple[Stamp, ...]:
        return tuple(self._stamps.values())

    def watch(self, path: Path) -> Stamp:
        """Remembers the state of a file; that of a replaced file is always `REPLACED`."""
        return self._stamps.setdefault(path, REPLACED if path in self._instead else stamp(path))

    def read(self, path: Path) -> str:
        """The text of a file. Raises `Unreadable`."""
        self.watch(path)
        return read_text(self._instead.get(path, path))


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file of at most `MAX_BYTES`, line ends as they are.

    Raises `Unreadable`.
    """
    try:
        # Not blocking: opening a pipe without a writer must not hold up the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unreadable("there is no such file", missing=True) from None
    except (OSError, ValueError) as error:
        raise _unreadable(error) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable("is not a regular file", "name a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(error) from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise Unreadable(f"is larger than {MAX_BYTES} bytes", "is it the right file?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 (byte {error.start + 1})", "save it in UTF-8") from None


def _unreadable(error: OSError | ValueError) -> Unreadable:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return Unreadable(f"cannot be read: {reason}", "name a file that can be read")


def open_toml(sources: Sources, path: Path, hint: str) -> tuple[dict[str, object], str]:
    """A TOML file's tables and its text. Raises `ProblemFound`; `hint` is for a missing file."""
    try:
        text = sources.read(path)
    except Unreadable as error:
        wanted = hint if error.missing else error.hint
        raise ProblemFound(Problem(str(path), "", error.reason, wanted)) from error
    return parse_toml(text, str(path)), text


def parse_toml(text: str, file: str) -> dict[str, object]:
    """The tables of a TOML text, floats as `Decimal`. Raises `ProblemFound`."""
    if text.startswith("\ufeff"):
        raise ProblemFound(
            Problem(file, "line 1", "starts with a byte order mark", "save it without one")
        )
    try:
        return tomllib.loads(text, parse_float=_number)
    except RecursionError:
        raise ProblemFound(Problem(file, "", "is nested too deeply")) from None
    except ValueError as error:  # tomllib's own error, and that of integers of 4300 digits
        message, line = _split_place(str(error), text)
        raise ProblemFound(
            Problem(file, line, f"is not TOML: {message}", "see https://toml.io")
        ) from None


def _number(text: str) -> Decimal:
    """Floats as decimals, so that a price is exact. Exponents out of range become infinite."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")


def _split_place(message: str, text: str) -> tuple[str, str]:
    """Splits tomllib's `message (at line 3, column 5)` into message and line."""
    message = message if message.isprintable() else ascii(message)
    what, at, place = message.rpartition(" (at ")
    if not at:
        return message, ""
    if (twice := _TWICE.match(what)) is not None:
        names: tuple[str, ...] = ast.literal_eval(twice[1])
        what = f"[{reduce(join_path, names, '')}] is there twice"
    elif what == "Cannot overwrite a value":
        what = "this name has a value already"
    if place.startswith("end of document"):
        return f"{what} (at the end of the file)", f"line {text.count(chr(10)) + 1}"
    line, _, column = place.rstrip(")").partition(", ")
    return f"{what} ({column})" if column else what, line


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Writes `data` to a temporary file beside `path`, syncs it and renames it to `path`.

    No reader ever sees a part of it. A new file has `mode`; an old one keeps its mode and, as
    far as that is permitted, its owner. Raises `OSError`; the old file is then unchanged.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _copy_mode(path, file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _copy_mode(path: Path, descriptor: int, mode: int) -> None:
    try:
        old = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, mode)
        return
    os.fchmod(descriptor, old.st_mode & 0o777)
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, old.st_uid, old.st_gid)
