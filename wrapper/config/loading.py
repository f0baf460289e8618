"""Loads the settings: both files, the secrets they refer to, and the environment.

The rule protected here: either everything is right and there are `Settings`, or there is one
`ConfigError` with every problem there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from wrapper.config.env import read_listen, read_store_url
from wrapper.config.fields import Table
from wrapper.config.files import ProblemFound, Sources, Unreadable, open_toml
from wrapper.config.gateway import Gateway, read_gateway
from wrapper.config.keysfile import read_keys
from wrapper.config.problems import ENVIRONMENT, ConfigError, Problem, shown
from wrapper.config.secrets import SecretReader
from wrapper.config.settings import ApiKey, Provider, Route, Server, Settings, Target, frozen

DEFAULT_CONFIG = "config/gateway.toml"
DEFAULT_KEYS = "config/keys.toml"
PRICES = "prices.toml"
DEMO = "demo"


def config_path(environ: Mapping[str, str]) -> Path:
    """gateway.toml: WRAPPER_CONFIG, relative to the current directory."""
    return Path(environ.get("WRAPPER_CONFIG") or DEFAULT_CONFIG)


def keys_path(environ: Mapping[str, str]) -> Path:
    """keys.toml: WRAPPER_KEYS, relative to the current directory."""
    return Path(environ.get("WRAPPER_KEYS") or DEFAULT_KEYS)


def prices_path(environ: Mapping[str, str]) -> Path:
    """The price table beside gateway.toml, else the one that comes with the gateway."""
    beside = config_path(environ).with_name(PRICES)
    shipped = Path(__file__).resolve().parents[2] / "config" / PRICES
    return beside if beside.exists() or not shipped.exists() else shipped


def load(
    environ: Mapping[str, str],
    demo_url: str | None = None,
    *,
    instead: Mapping[Path, Path] | None = None,
) -> Settings:
    """The settings of `environ`. Raises `ConfigError` with all problems.

    With `demo_url` the simulator there answers in place of the providers that lack their
    credential, for as long as no provider has one.
    `instead` names files to read in place of others (a snapshot of what was last in force).
    """
    sources = Sources(instead)
    problems: list[Problem] = []
    gateway = _gateway(environ, sources, problems)
    in_keys: list[Problem] = []
    keys = _keys(environ, sources, in_keys)
    for path in (config_path(environ).with_name(PRICES), prices_path(environ)):
        sources.watch(path)
    in_environ: list[Problem] = []
    read_listen(environ, in_environ)
    store = read_store_url(environ, in_environ)
    _check_demo(environ, in_environ)
    problems = [*in_environ, *problems, *in_keys]
    if problems:
        raise ConfigError(problems, sources.files, None if in_keys else frozen(keys))
    settings = Settings(
        server=gateway.server,
        providers=frozen(gateway.providers),
        routes=gateway.routes,
        keys=frozen(keys),
        prices=frozen(gateway.prices),
        files=sources.files,
        stamps=sources.stamps,
        store=store,
    )
    return settings if demo_url is None or not _wants_demo(settings) else _demo(settings, demo_url)


def _gateway(environ: Mapping[str, str], sources: Sources, problems: list[Problem]) -> Gateway:
    path = config_path(environ)
    try:
        data = open_toml(sources, path, "set WRAPPER_CONFIG to the path of gateway.toml")
    except ProblemFound as found:
        problems.append(found.problem)
        return Gateway(Server(), {}, (), {})
    secrets = SecretReader(environ, sources, path.parent)
    watch: list[Path] = []
    gateway = read_gateway(Table(data, "", str(path), problems), secrets, watch)
    for file in watch:
        sources.watch(file)
    return gateway


def _keys(
    environ: Mapping[str, str], sources: Sources, problems: list[Problem]
) -> dict[str, ApiKey]:
    """No keys file is no keys: the first start has none."""
    path = keys_path(environ)
    try:
        data = open_toml(sources, path, "")
    except ProblemFound as found:
        cause = found.__cause__
        if not (isinstance(cause, Unreadable) and cause.missing):
            problems.append(found.problem)
        return {}
    return read_keys(Table(data, "", str(path), problems))


def load_keys(environ: Mapping[str, str]) -> Mapping[str, ApiKey]:
    """The keys alone. Raises `ConfigError`."""
    problems: list[Problem] = []
    sources = Sources()
    keys = _keys(environ, sources, problems)
    if problems:
        raise ConfigError(problems, sources.files)
    return frozen(keys)


def _check_demo(environ: Mapping[str, str], problems: list[Problem]) -> None:
    value = environ.get("WRAPPER_DEMO") or "0"
    if value not in ("0", "1"):
        problems.append(Problem(ENVIRONMENT, "WRAPPER_DEMO", f"is {shown(value)}", "write 0 or 1"))


def needs_demo(environ: Mapping[str, str]) -> bool:
    """Whether WRAPPER_DEMO=1 asks for the simulator where no provider has a key.

    False when the configuration is wrong: `load` then says what is wrong.
    """
    if environ.get("WRAPPER_DEMO") != "1":
        return False
    try:
        return _wants_demo(load(environ))
    except ConfigError:
        return False


def _wants_demo(settings: Settings) -> bool:
    """Whether no provider has a key, though one wants it: a server that needs none is no reason
    to leave the models of the others unanswered.
    """
    providers = settings.providers.values()
    return all(p.api_key is None for p in providers) and not all(p.usable for p in providers)


def _demo(settings: Settings, url: str) -> Settings:
    """The same models, aliases and addresses; where no target is usable the simulator answers."""
    demo = (Target(DEMO),)
    routes = [
        Route(route.model, tuple(t for t in route.targets if t.provider in settings.usable) or demo)
        for route in settings.routes
    ]
    if not any(route.model == "*" for route in routes):
        routes.append(Route("*", demo))
    provider = Provider(name=DEMO, base_url=url.rstrip("/") + "/v1")
    providers = frozen({**settings.providers, DEMO: provider})
    return replace(settings, providers=providers, routes=tuple(routes), stand_in=DEMO)
