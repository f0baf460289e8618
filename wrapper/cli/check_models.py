"""The models that the configuration names: when they end and, with `check --online`, if they exist.

Invariant: without `--online` nothing is sent anywhere.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from wrapper import errors
from wrapper.cli import count
from wrapper.config import Problem, Provider, Settings, Shutdown, config_path, keys_path
from wrapper.config.problems import quote, suggest
from wrapper.config.settings import GLOB_CHARACTERS
from wrapper.config.shutdowns import find_shutdown
from wrapper.errors import ModelNotFound
from wrapper.routing import Routes

if TYPE_CHECKING:
    from wrapper.blueprints.models import Model

TIMEOUT = 10.0  # seconds, for each provider
MAX_LIST = 4 << 20  # bytes

Named = Mapping[tuple[str, str], str]
"""The first place that names a model of a provider, by provider and model."""


class Listed(NamedTuple):
    """What a provider responds: its models, or why there is no list (`refused`: the credential)."""

    models: list[Model]
    problem: str | None = None
    refused: bool = False


def named_models(settings: Settings) -> Named:
    """The models that routes and keys name in full, each at the providers that would serve it."""
    routes = Routes(settings)
    names = [(f"routes[{n}]", route.model) for n, route in enumerate(settings.routes)]
    names += [
        (f"keys.{key.name}.models", model) for key in settings.keys.values() for model in key.models
    ]
    found: dict[tuple[str, str], str] = {}
    for where, name in names:
        if GLOB_CHARACTERS.isdisjoint(name):
            for provider, model in _targets(routes, name):
                found.setdefault((provider, model), where)
    for n, route in enumerate(settings.routes):  # also those of globs, and of unconfigured ones
        for target in route.targets:
            if target.model is not None:
                found.setdefault((target.provider, target.model), f"routes[{n}].targets")
    return found


def _targets(routes: Routes, name: str) -> Iterator[tuple[str, str]]:
    try:
        targets = routes.for_model(name)
    except ModelNotFound:
        return
    yield from ((target.provider, target.model or name) for target in targets)


def shutdown_notes(named: Named, shutdowns: Mapping[str, Mapping[str, Shutdown]]) -> Iterator[str]:
    """Which of the named models their provider shuts down, the next one first."""
    today = datetime.datetime.fromtimestamp(time.time(), datetime.UTC).date()
    ending = []
    for (provider, model), where in named.items():
        found = find_shutdown(shutdowns.get(provider, {}), model)
        if found is not None:
            ending.append((found.day, provider, model, where, found.replacement))
    for day, provider, model, where, replacement in sorted(ending, key=lambda each: each[:4]):
        left = (day - today).days
        when = f"shuts it down on {day}, {count(left, 'day')} left"
        if left <= 0:
            when = f"shut it down on {day}"
        instead = f"; it recommends {replacement}" if replacement else ""
        yield f"{where} names the model {model}: {provider} {when}{instead}"


def ask(provider: Provider) -> Listed:
    """Ask a provider for its models, with the gateway's credential."""
    from wrapper.blueprints.models import read_list
    from wrapper.metering.dialects import DECODING_ERRORS
    from wrapper.upstream import Upstream

    upstream = Upstream(provider)
    try:
        text = upstream.fetch("/models", timeout=TIMEOUT, limit=MAX_LIST)
        return Listed(read_list(text, provider.name))
    except errors.UpstreamAuth as error:
        return Listed([], f"the credential is refused: {error}", refused=True)
    except errors.UpstreamError as error:
        return Listed([], f"GET {provider.base_url}/models: {error}")
    except DECODING_ERRORS as error:
        return Listed([], f"GET {provider.base_url}/models: the list cannot be read: {error}")
    finally:
        upstream.close()


def ask_all(settings: Settings) -> dict[str, Listed]:
    """What every configured provider responds, one after the other."""
    return {name: ask(each) for name, each in settings.providers.items() if each.usable}


def online_problems(
    named: Named, lists: Mapping[str, Listed], environ: Mapping[str, str]
) -> Iterator[Problem]:
    """Credentials that are refused, providers that do not respond, models that do not exist."""
    config, keys = str(config_path(environ)), str(keys_path(environ))
    for name, listed in lists.items():
        if listed.problem is not None:
            hint = "renew it where api_key says" if listed.refused else ""
            yield Problem(config, f"providers.{name}", listed.problem, hint)
    for (provider, model), where in named.items():
        listed = lists.get(provider, Listed([], "not asked"))
        known = {each["id"].lower(): each["id"] for each in listed.models}
        if listed.problem is None and model.lower() not in known:
            message = f"{provider} has no model {quote(model)}"
            hint = suggest(model, known.values())
            close = hint if hint.startswith("did you mean") else ""
            yield Problem(keys if where.startswith("keys.") else config, where, message, close)


def online_shutdowns(
    lists: Mapping[str, Listed], known: Mapping[str, Mapping[str, Shutdown]]
) -> dict[str, Mapping[str, Shutdown]]:
    """The dates of models.toml, and over them those of the providers' own lists."""
    from wrapper.blueprints.models import shutdowns

    found = dict(known)
    for name, listed in lists.items():
        before = known.get(name, {})
        own = {model.lower(): at for model, at in shutdowns(listed.models).items()}
        dates = {
            model: datetime.datetime.fromtimestamp(at, datetime.UTC).date()
            for model, at in own.items()
        }
        told = {each["id"].lower() for each in listed.models if "shutdown_date" in each}
        kept = {model: each for model, each in before.items() if model not in told}
        found[name] = {
            **kept,
            **{model: Shutdown(day, _replacement(before, model)) for model, day in dates.items()},
        }
    return found


def _replacement(known: Mapping[str, Shutdown], model: str) -> str | None:
    return known[model].replacement if model in known else None


def summary(lists: Mapping[str, Listed]) -> Iterable[str]:
    """One line for each provider whose credential works."""
    for name, listed in lists.items():
        if listed.problem is None:
            yield f"providers.{name}: the credential works, {count(len(listed.models), 'model')}"
