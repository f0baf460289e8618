"""The environment: `.env`, where to listen, where to keep the books.

The rule protected here: the real environment always wins over `.env`, an empty variable counts
as one that is not set, and what is wrong with a variable is told like any other problem.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wrapper.config.files import Unreadable, read_text
from wrapper.config.problems import ENVIRONMENT, ConfigError, Problem, shown, similar
from wrapper.config.storeurl import REDIS_FORMS, is_redis, parse_redis

LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT_STORE = "sqlite:///data/usage.db"

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how the server listens. Port 0 lets the system choose."""

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 2
    log_level: str = "info"
    graceful_timeout: int = 30  # seconds

    @property
    def bind(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def environment(
    cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables that are set: those of `.env` in `cwd`, and the real ones over them.

    Values in `.env` are taken as they stand: `${...}` in a secret is part of the secret.
    Raises `ConfigError` when there is a `.env` that cannot be read.
    """
    from dotenv.parser import parse_stream  # only where `.env` is read

    path = (cwd or Path()) / ".env"
    found: dict[str, str] = {}
    problems: list[Problem] = []
    try:
        text = read_text(path)
    except Unreadable as error:
        if not error.missing:
            problems.append(Problem(str(path), "", error.reason, error.hint))
        text = ""
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            line = f"line {binding.original.line}"
            problems.append(Problem(str(path), line, "is not NAME=value", "mend or remove it"))
        elif binding.key and binding.value:
            found[binding.key] = binding.value
    if problems:
        raise ConfigError(problems, (path,))
    real = os.environ if environ is None else environ
    found.update((name, value) for name, value in real.items() if value)
    return found


def default_workers() -> int:
    """Two to four workers, by the processors that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # Linux
    count = len(usable(0)) if usable else os.cpu_count() or 1
    return min(4, max(2, count))


def listen(environ: Mapping[str, str]) -> Listen:
    """HOST, PORT, WEB_CONCURRENCY, LOG_LEVEL and GRACEFUL_TIMEOUT. Raises `ConfigError`."""
    problems: list[Problem] = []
    found = read_listen(environ, problems)
    if problems:
        raise ConfigError(problems)
    return found


def read_listen(environ: Mapping[str, str], problems: list[Problem]) -> Listen:
    """As `listen`, but notes what is wrong."""
    host = environ.get("HOST") or "127.0.0.1"
    if not _HOST.fullmatch(host):
        wanted = "write a host name or an address, without a port"
        problems.append(Problem(ENVIRONMENT, "HOST", f"is {shown(host)}", wanted))
    level = (environ.get("LOG_LEVEL") or "info").lower()
    if level not in LOG_LEVELS:
        wanted = similar(level, LOG_LEVELS)
        problems.append(Problem(ENVIRONMENT, "LOG_LEVEL", f"is {shown(level)}", wanted))
    return Listen(
        host=host,
        port=_whole(environ, "PORT", 8080, 0, 65535, problems),
        workers=_whole(environ, "WEB_CONCURRENCY", default_workers(), 1, 256, problems),
        log_level=level,
        graceful_timeout=_whole(environ, "GRACEFUL_TIMEOUT", 30, 1, 3600, problems),
    )


def _whole(
    environ: Mapping[str, str], name: str, default: int, low: int, high: int, out: list[Problem]
) -> int:
    text = (environ.get(name) or str(default)).strip()
    if re.fullmatch(r"[0-9]{1,6}", text) and low <= int(text) <= high:
        return int(text)
    wanted = f"write an integer from {low} to {high}"
    out.append(Problem(ENVIRONMENT, name, f"is {shown(text)}", wanted))
    return default


def store_url(environ: Mapping[str, str]) -> str:
    """WRAPPER_STORE: where the usage table is. Raises `ConfigError`."""
    problems: list[Problem] = []
    url = read_store_url(environ, problems)
    if problems:
        raise ConfigError(problems)
    return url


def read_store_url(environ: Mapping[str, str], problems: list[Problem]) -> str:
    """As `store_url`, but notes what is wrong. The value may hold a password: not repeated."""
    url = environ.get("WRAPPER_STORE") or DEFAULT_STORE
    wanted = "write sqlite:///path/of/the/file.db or redis://host:6379/0"
    if is_redis(url):
        try:
            parse_redis(url)
        except ValueError as error:
            wrong, wanted = str(error), REDIS_FORMS
        else:
            return url
    elif not url.startswith("sqlite:///"):
        wrong = "is not the address of a store"
    elif not url.removeprefix("sqlite:///").strip("/") or not url.isprintable() or "?" in url:
        wrong = "names no file"
    elif url.endswith(":memory:"):
        wrong = "several workers cannot share memory"
    else:
        return url
    problems.append(Problem(ENVIRONMENT, "WRAPPER_STORE", wrong, wanted))
    return DEFAULT_STORE
