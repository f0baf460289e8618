"""Reloads the configuration when its files change; a mistake in them changes nothing.

Invariants:

- A file is read only when its stamp (mtime, size, inode) has changed.
- A file that was written within the last moments is read again at the next poll, because a second
  write in the same tick of the clock leaves the same stamp.
- A mistake changes nothing and is reported once per change of the file that has it. Exception:
  keys of a keys file without a mistake come into force in any case, so that a mistake elsewhere
  does not keep a revoked key valid.
- Copies of the files in force are kept, so that a worker that starts while the files are broken
  serves the same configuration as the others.

There is no thread here: the caller polls once a second.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from wrapper.config.files import TICK_NS, replace_file, stamp
from wrapper.config.loading import config_path, keys_path, load
from wrapper.config.prepared import Prepared
from wrapper.config.problems import ConfigError
from wrapper.config.settings import Settings, Stamp

GATEWAY_COPY = "gateway.toml"
KEYS_COPY = "keys.toml"


class Reloader:
    """Calls `load` when a file changed, then `on_change` or `on_problem`.

    `current` are the settings in force; without them the first poll loads.
    """

    def __init__(
        self,
        load: Callable[[], Settings],
        on_change: Callable[[Settings], None],
        on_problem: Callable[[ConfigError], None],
        current: Settings | None = None,
    ) -> None:
        self._load = load
        self._on_change = on_change
        self._on_problem = on_problem
        self._current = current
        self._failed: object = None
        files = () if current is None else current.files
        stamps = () if current is None else current.stamps
        self._seen: dict[Path, Stamp] = dict(zip(files, stamps, strict=True))
        self._again = current is None or _fresh(stamps)

    def poll(self, *, force: bool = False) -> bool:
        """Checks the files once; returns whether `on_change` was called."""
        now = {path: stamp(path) for path in self._seen}
        if now == self._seen and not self._again and not force:
            return False
        self._seen = now
        try:
            settings = self._load()
        except ConfigError as error:
            return self._keep(error)
        self._failed = None
        self._seen = dict(zip(settings.files, settings.stamps, strict=True))
        self._again = _fresh(settings.stamps)
        return self._take(settings)

    def _keep(self, error: ConfigError) -> bool:
        for path in error.files:
            self._seen.setdefault(path, stamp(path))
        self._again = _fresh(tuple(self._seen.values()))
        wrong = {problem.file for problem in error.problems}
        state = (error.problems, {p: found for p, found in self._seen.items() if str(p) in wrong})
        if state != self._failed:
            self._failed = state
            self._on_problem(error)
        if error.key_file is None or self._current is None:
            return False
        found = error.key_file
        return self._take(replace(self._current, keys=found.keys, groups=found.groups))

    def _take(self, settings: Settings) -> bool:
        if settings == self._current:
            return False
        try:
            self._on_change(settings)
        except BaseException:
            self._again = True  # not in force yet
            raise
        self._current = settings
        return True


def _fresh(stamps: tuple[Stamp, ...]) -> bool:
    # A stamp in the future (of a copied file, or a clock that was wrong) says nothing about now.
    now = time.time_ns()
    return any(found is not None and abs(now - found[0]) < TICK_NS for found in stamps)


def accept(settings: Settings, environ: Mapping[str, str], directory: Path) -> bool:
    """Copies the files that `settings` came from into `directory`, readable by the owner only.

    Returns False, and copies nothing, when a file has changed since: the next reload copies it.
    Raises `OSError` when the directory cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = dict(zip(settings.files, settings.stamps, strict=True))
    pairs = ((config_path(environ), GATEWAY_COPY), (keys_path(environ), KEYS_COPY))
    contents = [(path, name, _bytes(path)) for path, name in pairs]
    if any(stamp(path) != known.get(path) for path, _, _ in contents):
        return False
    for _, name, data in contents:
        if data is None:
            (directory / name).unlink(missing_ok=True)
        else:
            replace_file(directory / name, data)
    return True


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def load_or_last_good(
    environ: Mapping[str, str], directory: Path, demo_url: str | None = None
) -> tuple[Settings, ConfigError | None]:
    """The settings, and what is wrong with the files, if anything is.

    In place of a broken file its copy in `directory` is read, and where that is not enough both
    copies. Raises the files' `ConfigError` when no copy helps.
    """
    try:
        return load(environ, demo_url, prepared=Prepared(directory)), None
    except ConfigError as error:
        broken = {problem.file for problem in error.problems}
        copies = {
            config_path(environ): directory / GATEWAY_COPY,
            keys_path(environ): directory / KEYS_COPY,
        }
        only = {path: copy for path, copy in copies.items() if str(path) in broken}
        if not (directory / GATEWAY_COPY).is_file():
            raise
        for instead in (only, copies):
            with contextlib.suppress(ConfigError):
                return load(environ, demo_url, instead=instead), error
        raise
