"""`check`: every problem of the configuration, and notes.

Problems go to stderr and the exit code is 1; notes go to stdout and do not change it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from wrapper.auth import expired
from wrapper.cli import NOT_ENFORCED, count
from wrapper.config import (
    ConfigError,
    Problem,
    Provider,
    Settings,
    config_path,
    ignored_proxies,
    keys_path,
    load,
    prices_path,
)

if TYPE_CHECKING:
    from wrapper.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Adds `check`."""
    parser = subparsers.add_parser(
        "check",
        help="list every problem of the configuration",
        description="Reads the configuration as the gateway would. Exit code 1 if anything is"
        " wrong; each problem is listed with its file, its key path and what would be right.",
    )
    parser.set_defaults(run=run)


def run(_args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints a summary. Raises `ConfigError` with all problems, those of prices.toml too."""
    settings = _checked(environ)
    providers, routes = len(settings.providers), len(settings.routes)
    print(f"{config_path(environ)}: {count(providers, 'provider')}, {count(routes, 'route')}")
    print(f"{keys_path(environ)}: {count(len(settings.keys), 'key')}")
    for note in notes(settings, environ):
        print(f"note: {note}")
    print("no problems")
    return 0


def _checked(environ: Mapping[str, str]) -> Settings:
    from wrapper.metering.pricing import Prices

    problems: list[Problem] = []
    settings = None
    try:
        settings = load(environ)
    except ConfigError as error:
        problems += error.problems
    try:
        Prices.load(prices_path(environ), {} if settings is None else settings.prices)
    except ConfigError as error:
        problems += error.problems
    if settings is None or problems:
        raise ConfigError(problems)
    return settings


def _client_credentials(provider: Provider) -> str:
    """What still works without a credential of the gateway."""
    if not provider.client_credentials:
        return ""
    return f" (callers with their own provider key can still use /{provider.name}/…)"


def notes(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """What is valid, but may not be intended."""
    for name, provider in settings.providers.items():
        if not provider.usable:
            why = f"{provider.api_key_problem}{_client_credentials(provider)}"
            yield f"providers.{name} is not used: {why}"
    if settings.dead_routes:
        names = ", ".join(settings.dead_routes)
        yield f"requests for {names} get 502: no target of these routes has a credential"
    if not settings.usable:
        yield "no provider can be used: WRAPPER_DEMO=1 serves a simulated one"
    if settings.server.metrics_token_problem:
        yield f"/metrics is open to everyone: {settings.server.metrics_token_problem}"
    if not any(route.model == "*" for route in settings.routes):
        yield 'there is no route for "*": requests without a model at /v1/… are refused'
    for name in ignored_proxies(environ):
        yield f"{name} is set and not used: providers are called directly"
    yield from _key_notes(settings, environ)


def _key_notes(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    if not settings.keys:
        yield f"there are no keys in {keys_path(environ)}: python -m wrapper keys create NAME"
    for name, key in settings.keys.items():
        if expired(key):
            yield f"keys.{name} has expired"
    limited = [name for name, key in settings.keys.items() if key.limited]
    if limited:
        yield f"{NOT_ENFORCED} (keys: {', '.join(limited)})"
