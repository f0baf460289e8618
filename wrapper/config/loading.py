"""Loads the settings from the environment, `.env`, gateway.toml, keys.toml and secret files.

Invariants: the result is either complete `Settings` or one `ConfigError` with every problem. The
real environment takes precedence over `.env`, and an empty variable counts as not set.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wrapper.config.fields import SecretReader, Table
from wrapper.config.files import ProblemFound, Sources, Unreadable, open_toml, read_text
from wrapper.config.gateway import Gateway, read_gateway
from wrapper.config.keys import KeyFile, read_keys
from wrapper.config.prepared import Prepared
from wrapper.config.problems import ENVIRONMENT, ConfigError, Problem, quote, suggest
from wrapper.config.settings import (
    DEFAULT_STORE,
    ApiKey,
    Provider,
    Route,
    Server,
    Settings,
    Target,
    frozen,
)
from wrapper.config.shutdowns import read_shutdowns
from wrapper.config.statements import located
from wrapper.config.storeurl import REDIS_FORMS, is_redis, parse_redis
from wrapper.steps import STEP

DEFAULT_CONFIG = "config/gateway.toml"
DEFAULT_KEYS = "config/keys.toml"
PRICES = "prices.toml"
MODELS = "models.toml"
DEMO = "demo"
HINT_FD = "WRAPPER_HINT_FD"
"""Names a descriptor, of a pipe with what `demo-key` has to say once the gateway listens."""
LOG_LEVELS = ("debug", "info", "warning", "error")

_PROXIES = frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"))

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how the server listens. Port 0 lets the system choose."""

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 2
    log_level: str = "info"
    graceful_timeout: int = 30  # seconds
    keepalive: int = 75  # seconds

    @property
    def bind(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def environment(
    cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables of the environment and, where it has none, those of `.env` in `cwd`.

    `${...}` in a value of `.env` is part of the value. Raises `ConfigError` when there is a `.env`
    that cannot be read.
    """
    from dotenv.parser import parse_stream  # workers do not read `.env`

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
            problems.append(Problem(str(path), line, "is not NAME=value", "correct or remove it"))
        elif binding.key and binding.value:
            found[binding.key] = binding.value
    if problems:
        raise ConfigError(problems, (path,))
    real = os.environ if environ is None else environ
    found.update((name, value) for name, value in real.items() if value)
    return found


def default_workers() -> int:
    """Two to four workers, by the number of processors available to this process."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(4, max(2, count))


def listen(environ: Mapping[str, str]) -> Listen:
    """HOST, PORT, WEB_CONCURRENCY, LOG_LEVEL, GRACEFUL_TIMEOUT, KEEPALIVE. Raises `ConfigError`."""
    problems: list[Problem] = []
    found = read_listen(environ, problems)
    if problems:
        raise ConfigError(problems)
    return found


def read_listen(environ: Mapping[str, str], problems: list[Problem]) -> Listen:
    """As `listen`, but adds to `problems`."""
    host = environ.get("HOST") or "127.0.0.1"
    if not _HOST.fullmatch(host):
        wanted = "write a host name or an address, without a port"
        problems.append(Problem(ENVIRONMENT, "HOST", f"is {quote(host)}", wanted))
    level = (environ.get("LOG_LEVEL") or "info").lower()
    if level not in LOG_LEVELS:
        wanted = suggest(level, LOG_LEVELS)
        problems.append(Problem(ENVIRONMENT, "LOG_LEVEL", f"is {quote(level)}", wanted))
    return Listen(
        host=host,
        port=_whole(environ, "PORT", 8080, 0, 65535, problems),
        workers=_whole(environ, "WEB_CONCURRENCY", default_workers(), 1, 256, problems),
        log_level=level,
        graceful_timeout=_whole(environ, "GRACEFUL_TIMEOUT", 30, 1, 3600, problems),
        keepalive=_whole(environ, "KEEPALIVE", 75, 1, 3600, problems),
    )


def _whole(
    environ: Mapping[str, str], name: str, default: int, low: int, high: int, out: list[Problem]
) -> int:
    text = (environ.get(name) or str(default)).strip()
    if re.fullmatch(r"[0-9]{1,6}", text) and low <= int(text) <= high:
        return int(text)
    wanted = f"write an integer from {low} to {high}"
    out.append(Problem(ENVIRONMENT, name, f"is {quote(text)}", wanted))
    return default


def ignored_proxies(environ: Mapping[str, str]) -> list[str]:
    """The variables that name an outgoing proxy; the gateway uses none. The value may hold a
    password, so it is not shown.
    """
    return [name for name in environ if environ[name] and name.upper() in _PROXIES]


def store_url(environ: Mapping[str, str]) -> str:
    """WRAPPER_STORE: the URL of the usage table. Raises `ConfigError`."""
    problems: list[Problem] = []
    url = read_store_url(environ, problems)
    if problems:
        raise ConfigError(problems)
    return url


def read_store_url(environ: Mapping[str, str], problems: list[Problem]) -> str:
    """As `store_url`, but adds to `problems`. Does not repeat the value: it may hold a password."""
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


def config_path(environ: Mapping[str, str]) -> Path:
    """gateway.toml: WRAPPER_CONFIG, relative to the current directory."""
    return Path(environ.get("WRAPPER_CONFIG") or DEFAULT_CONFIG)


def keys_path(environ: Mapping[str, str]) -> Path:
    """keys.toml: WRAPPER_KEYS, relative to the current directory."""
    return Path(environ.get("WRAPPER_KEYS") or DEFAULT_KEYS)


def missing_keys(environ: Mapping[str, str]) -> str | None:
    """What it means that there is no keys file, which is valid; None where there is one."""
    path = keys_path(environ)
    if path.exists():
        return None
    return f"keys file {path} does not exist: every key is refused"


def prices_path(environ: Mapping[str, str]) -> Path:
    """prices.toml beside gateway.toml, else the one that is shipped with the gateway."""
    return _beside_or_shipped(environ, PRICES)


def _beside_or_shipped(environ: Mapping[str, str], name: str) -> Path:
    beside = config_path(environ).with_name(name)
    shipped = Path(__file__).resolve().parents[2] / "config" / name
    return beside if beside.exists() or not shipped.exists() else shipped


def load(
    environ: Mapping[str, str],
    demo_url: str | None = None,
    *,
    instead: Mapping[Path, Path] | None = None,
    prepared: Prepared | None = None,
) -> Settings:
    """The settings of `environ`. Raises `ConfigError` with all problems.

    `prepared` may have the keys already. `demo_url` is the simulator: it serves the models of the
    providers that lack their credential, as long as no provider has one. `instead` names files to
    read in place of others (copies of the configuration last in force).
    """
    sources = Sources(instead)
    problems: list[Problem] = []
    gateway = _gateway(environ, sources, problems)
    in_keys: list[Problem] = []
    keys = _prepared_keys(environ, sources, in_keys, prepared)
    for path in (config_path(environ).with_name(PRICES), prices_path(environ)):
        sources.watch(path)
    in_models: list[Problem] = []
    models = _beside_or_shipped(environ, MODELS)
    sources.watch(config_path(environ).with_name(MODELS))
    shutdowns = read_shutdowns(models, sources, gateway.providers, in_models)
    in_environ: list[Problem] = []
    read_listen(environ, in_environ)
    store = read_store_url(environ, in_environ)
    _check_demo(environ, in_environ)
    problems = [*in_environ, *problems, *in_models, *in_keys]
    if problems:
        raise ConfigError(problems, sources.files, None if in_keys else keys)
    settings = Settings(
        server=gateway.server,
        providers=frozen(gateway.providers),
        routes=gateway.routes,
        keys=keys.keys,
        groups=keys.groups,
        prices=frozen(gateway.prices),
        tags=gateway.tags,
        shutdowns=shutdowns,
        files=sources.files,
        stamps=sources.stamps,
        store=store,
    )
    return settings if demo_url is None or not _wants_demo(settings) else _demo(settings, demo_url)


def _gateway(environ: Mapping[str, str], sources: Sources, problems: list[Problem]) -> Gateway:
    path = config_path(environ)
    try:
        data, text = open_toml(sources, path, "set WRAPPER_CONFIG to the path of gateway.toml")
    except ProblemFound as found:
        problems.append(found.problem)
        return Gateway(Server(), {}, (), {})
    secrets = SecretReader(environ, sources, path.parent)
    watch: list[Path] = []
    found_here: list[Problem] = []
    gateway = read_gateway(Table(data, "", str(path), found_here), secrets, watch)
    problems += located(found_here, text)
    for file in watch:
        sources.watch(file)
    return gateway


def _keys(environ: Mapping[str, str], sources: Sources, problems: list[Problem]) -> KeyFile:
    """The keys and groups; none where there is no keys file, as on the first start."""
    path = keys_path(environ)
    try:
        data, text = open_toml(sources, path, "")
    except ProblemFound as found:
        cause = found.__cause__
        if not (isinstance(cause, Unreadable) and cause.missing):
            problems.append(found.problem)
        return KeyFile()
    found_here: list[Problem] = []
    keys = read_keys(Table(data, "", str(path), found_here))
    problems += located(found_here, text)
    return keys


def _prepared_keys(
    environ: Mapping[str, str],
    sources: Sources,
    problems: list[Problem],
    prepared: Prepared | None,
) -> KeyFile:
    """As `_keys`, from what another process has read where there is that."""
    path = keys_path(environ)
    found = prepared.get(sources.watch(path)) if prepared else None
    if found is None:
        return _keys(environ, sources, problems)
    key_file: KeyFile
    (key_file, known), *pieces = found
    problems += known
    keys: dict[str, ApiKey] = {}
    for piece in pieces:
        keys.update(piece)
    return replace(key_file, keys=frozen(keys))


def prepare_keys(environ: Mapping[str, str], prepared: Prepared) -> None:
    """Read a large keys file for this process and others; see `wrapper.config.prepared`."""

    def read() -> list[object]:
        problems: list[Problem] = []
        found = _keys(environ, Sources(), problems)
        keys = [*found.keys.items()]
        pieces = (dict(keys[start : start + STEP]) for start in range(0, len(keys), STEP))
        return [(replace(found, keys=frozen({})), problems), *pieces]

    prepared.prepare(keys_path(environ), read)


def load_keys(environ: Mapping[str, str]) -> Mapping[str, ApiKey]:
    """The keys only. Raises `ConfigError`."""
    return load_key_file(environ).keys


def load_key_file(environ: Mapping[str, str]) -> KeyFile:
    """The keys and groups only. Raises `ConfigError`."""
    problems: list[Problem] = []
    sources = Sources()
    found = _keys(environ, sources, problems)
    if problems:
        raise ConfigError(problems, sources.files)
    return found


def _check_demo(environ: Mapping[str, str], problems: list[Problem]) -> None:
    value = environ.get("WRAPPER_DEMO") or "0"
    if value not in ("0", "1"):
        problems.append(Problem(ENVIRONMENT, "WRAPPER_DEMO", f"is {quote(value)}", "write 0 or 1"))


def needs_demo(environ: Mapping[str, str]) -> bool:
    """Whether WRAPPER_DEMO=1 is set and no provider has a key. False for a wrong configuration."""
    if environ.get("WRAPPER_DEMO") != "1":
        return False
    try:
        return _wants_demo(load(environ))
    except ConfigError:
        return False


def _wants_demo(settings: Settings) -> bool:
    """Whether some provider wants a key and none has one. Providers that need none do not count."""
    providers = settings.providers.values()
    return all(p.api_key is None for p in providers) and not all(p.usable for p in providers)


def _demo(settings: Settings, url: str) -> Settings:
    """The same models and aliases; routes without a usable target lead to the simulator."""
    routes = []
    for route in settings.routes:
        usable = tuple(t for t in route.targets if t.provider in settings.usable)
        routes.append(Route(route.model, usable or (Target(DEMO, route.targets[0].model),)))
    if not any(route.model == "*" for route in routes):
        routes.append(Route("*", (Target(DEMO),)))
    provider = Provider(name=DEMO, base_url=url.rstrip("/") + "/v1")
    providers = frozen({**settings.providers, DEMO: provider})
    return replace(settings, providers=providers, routes=tuple(routes), stand_in=DEMO)
