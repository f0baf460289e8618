"""`check`: every problem of the configuration and the store, and notes; with `--online` what
providers say of it.

Problems go to stderr and the exit code is 1; notes go to stdout and do not change it.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wrapper.auth import Principal, expired
from wrapper.cli import count, examples
from wrapper.cli.check_models import (
    ask_all,
    named_models,
    online_problems,
    online_shutdowns,
    shutdown_notes,
    summary,
)
from wrapper.cli.key_list import contents
from wrapper.cli.key_options import endpoint_notes
from wrapper.config import (
    ApiKey,
    ConfigError,
    KeyFile,
    Problem,
    Provider,
    Settings,
    config_path,
    environment,
    ignored_proxies,
    keys_path,
    load,
    missing_keys,
    prices_path,
)
from wrapper.config.files import Sources, open_toml
from wrapper.config.problems import ENVIRONMENT
from wrapper.config.settings import GLOB_CHARACTERS
from wrapper.errors import ModelNotFound
from wrapper.metering.pricing import Prices
from wrapper.routing import Routes
from wrapper.store import StoreError, examine

VARIABLES = (
    *("HOST", "PORT", "WEB_CONCURRENCY", "GRACEFUL_TIMEOUT", "KEEPALIVE", "LOG_LEVEL"),
    *("WRAPPER_CONFIG", "WRAPPER_KEYS", "WRAPPER_STORE", "WRAPPER_DEMO"),
)
"""The variables that the gateway reads, beside those that gateway.toml names."""

_CLOSE = 0.9  # OPENAI_ADMIN_KEY is another name than OPENAI_API_KEY

if TYPE_CHECKING:
    from wrapper.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Adds `check`."""
    parser = subparsers.add_parser(
        "check",
        help="list every problem of the configuration",
        description="Reads the configuration as the gateway would. Exit code 1 if anything is"
        " wrong; each problem is listed with its file, line and key path and what would be right.",
        epilog=examples(
            ("check", "the files of WRAPPER_CONFIG and WRAPPER_KEYS"),
            ("check --online", "also the providers' credentials and models"),
            ("keys check", "the keys file alone"),
        ),
    )
    parser.add_argument(
        "--online",
        action="store_true",
        help="ask each provider whether the credential works and the models exist that routes and"
        " keys name",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints a summary. Raises `ConfigError` with all problems, those of prices.toml and the
    store too.
    """
    settings, prices = _checked(environ)
    named, shutdowns = named_models(settings), settings.shutdowns
    if args.online:
        lists = ask_all(settings)
        problems = list(online_problems(named, lists, environ))
        if problems:
            raise ConfigError(problems)
        shutdowns = online_shutdowns(lists, shutdowns)
    providers, routes = len(settings.providers), len(settings.routes)
    keys = contents(KeyFile(settings.keys, settings.groups))
    print(f"{config_path(environ)}: {count(providers, 'provider')}, {count(routes, 'route')}")
    print(f"{keys_path(environ)}: {keys}")
    if args.online:
        for line in summary(lists):
            print(line)
    for note in (*notes(settings, environ, prices), *shutdown_notes(named, shutdowns)):
        print(f"note: {note}")
    print("no problems")
    return 0


def _checked(environ: Mapping[str, str]) -> tuple[Settings, Prices]:
    problems: list[Problem] = []
    settings = prices = None
    try:
        settings = load(environ)
    except ConfigError as error:
        problems += error.problems
    try:
        prices = Prices.load(prices_path(environ), {} if settings is None else settings.prices)
    except ConfigError as error:
        problems += error.problems
    if settings is not None:
        try:
            examine(settings.store)
        except StoreError as error:
            problems.append(Problem(ENVIRONMENT, "WRAPPER_STORE", str(error)))
    if settings is None or prices is None or problems:
        raise ConfigError(problems)
    return settings, prices


def _client_credentials(provider: Provider) -> str:
    """What still works without a credential of the gateway."""
    if not provider.client_credentials:
        return ""
    return f" (callers with their own provider key can still use /{provider.name}/…)"


def notes(settings: Settings, environ: Mapping[str, str], prices: Prices) -> Iterator[str]:
    """What is valid, but may not be intended."""
    for name, provider in settings.providers.items():
        if not provider.usable:
            why = f"{provider.api_key_problem}{_client_credentials(provider)}"
            yield f"providers.{name} is not used: {why}"
    yield from _demo_notes(settings, environ)
    if settings.server.metrics_token_problem:
        yield f"/metrics is open to everyone: {settings.server.metrics_token_problem}"
    if not any(route.model == "*" for route in settings.routes):
        yield 'there is no route for "*": requests without a model at /v1/… are refused'
    for name in ignored_proxies(environ):
        yield f"{name} is set and not used: providers are called directly"
    yield from _key_notes(settings, environ)
    yield from _price_notes(settings, prices)
    yield from _misspelt_variables(environ)


def _misspelt_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """The variables of `.env` that nothing reads and that are called nearly as one that is not set.

    The environment has many variables that are not for the gateway; `.env` is.
    """
    document, _ = open_toml(Sources(), config_path(environ), "")
    read = {*VARIABLES, *_references(document)}
    missing = [name for name in read if name not in environ and f"{name}_FILE" not in environ]
    for name in environment(environ={}).keys() - read:
        for meant in get_close_matches(name, missing, n=1, cutoff=_CLOSE):
            yield f".env has {name}, which nothing reads; did you mean {meant}?"


def _references(value: object) -> Iterator[str]:
    """The variables that a file of the configuration names."""
    if isinstance(value, dict):
        if isinstance(name := value.get("env"), str):
            yield name
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            yield from _references(each)


def _demo_notes(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Which requests get 502, and which ones the simulated provider serves instead."""
    names = ", ".join(settings.dead_routes)
    if not settings.usable:
        names = "all models"
    if not names:
        return
    stands_in = load(environ, "http://127.0.0.1").stand_in is not None
    if not stands_in:
        yield f"requests for {names} get 502: no target of these routes has a credential"
    elif environ.get("WRAPPER_DEMO") == "1":
        yield f"WRAPPER_DEMO=1: the simulated provider serves {names}, until a provider has a key"
    else:
        yield (
            f"requests for {names} get 502, except with WRAPPER_DEMO=1, which `make run` sets: then"
            " the simulated provider serves them"
        )


def _key_notes(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    if not settings.keys:
        missing = missing_keys(environ) or f"there are no keys in {keys_path(environ)}"
        yield f"{missing}; to create one: python -m wrapper keys create NAME"
    now = datetime.datetime.now(datetime.UTC)
    for name, key in settings.keys.items():
        if expired(key):
            yield f"keys.{name} has expired"
        if key.rotated_until is not None and key.rotated_until <= now:
            yield f"keys.{name}: the old secret is refused: keys rotate {name} --end removes it"
        elif key.old_sha256 is not None and key.rotated_until is None:
            yield f"keys.{name} has two valid secrets without an end: write rotated_until"
    yield from endpoint_notes(settings.keys)
    for name, group in settings.groups.items():
        if not any(key.group == name for key in settings.keys.values()):
            yield f"groups.{name} has no keys"
        elif not group.limited:
            yield f"groups.{name} has no limits"


def _price_notes(settings: Settings, prices: Prices) -> Iterator[str]:
    """The models of the configuration that keys with a budget may not call."""
    for model, where in _unpriced(settings, prices).items():
        keys = [
            name
            for name, key in settings.keys.items()
            if key.unpriced == "refuse" and _has_budget(key, settings)
            if Principal(name, key.models).may_use(model)
        ]
        if keys:
            yield (
                f"no price is known for {where}: keys with a budget ({', '.join(keys)}) are refused"
                f' for {model}; write [prices."{where.partition(":")[2]}"], or unpriced = "allow"'
            )


def _has_budget(key: ApiKey, settings: Settings) -> bool:
    group = settings.groups.get(key.group or "")
    return key.budget_usd is not None or (group is not None and group.budget_usd is not None)


def _unpriced(settings: Settings, prices: Prices) -> dict[str, str]:
    """Models that the configuration names and `provider:model` of a target without a price."""
    routes = Routes(settings)
    names = {*routes.exact_names}
    for key in settings.keys.values():
        names.update(model for model in key.models if GLOB_CHARACTERS.isdisjoint(model))
    found: dict[str, str] = {}
    for name in sorted(names):
        try:
            targets = routes.for_model(name)
        except ModelNotFound:
            continue
        for target in targets:
            host = urlsplit(settings.providers[target.provider].base_url).hostname or ""
            model = target.model or name
            if not prices.knows(target.provider, host, model):
                found[name] = f"{target.provider}:{model}"
    return found
