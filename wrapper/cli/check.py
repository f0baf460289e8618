"""`check`: everything that is wrong with the configuration, and what is worth knowing.

Problems go to stderr and make the exit code 1; notes go to stdout and do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from wrapper.auth import expired
from wrapper.cli import NOT_ENFORCED
from wrapper.config import (
    ConfigError,
    Problem,
    Provider,
    Settings,
    config_path,
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
        " wrong: each problem with its file, its key path and what would be right.",
    )
    parser.set_defaults(run=run)


def run(_args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints what was found. Raises `ConfigError` with all problems, those of the prices too."""
    settings = _checked(environ)
    providers, routes = len(settings.providers), len(settings.routes)
    print(f"{config_path(environ)}: {_count(providers, 'provider')}, {_count(routes, 'route')}")
    print(f"{keys_path(environ)}: {_count(len(settings.keys), 'key')}")
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


def _own(provider: Provider) -> str:
    """What still passes where the gateway has no credential of its own."""
    if not provider.client_credentials:
        return ""
    return f" (callers with a credential of their own are let through at /{provider.name}/…)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def notes(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """What is not wrong, but may not be what was meant."""
    for name, provider in settings.providers.items():
        if not provider.usable:
            yield f"providers.{name} is passed over: {provider.api_key_problem}{_own(provider)}"
    if settings.dead_routes:
        names = ", ".join(settings.dead_routes)
        yield f"calls for {names} end in a 502: no target of theirs has a credential"
    if not settings.usable:
        yield "no provider can be used: WRAPPER_DEMO=1 serves the simulated one"
    if settings.server.metrics_token_problem:
        yield f"/metrics is open to everyone: {settings.server.metrics_token_problem}"
    if not any(route.model == "*" for route in settings.routes):
        yield 'there is no route for "*": /v1 paths without a model lead nowhere'
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
