"""Routing: from a model's name to the targets that serve it.

Invariant: the first route that matches wins, in the order of the file, and nothing else decides. A
target whose provider has no credential is skipped as long as another target of the route has one.
When the next target of a route is asked is decided in `proxy.failover_and_retry`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate

from wrapper.config import Provider, Settings, Target
from wrapper.config.problems import quote
from wrapper.errors import ModelNotFound

Targets = tuple[Target, ...]


class Routes:
    """The routes of one `Settings`."""

    def __init__(self, settings: Settings) -> None:
        self._routes = tuple(
            (
                re.compile(translate(route.model)).match,
                _configured(route.targets, settings.providers),
            )
            for route in settings.routes
        )
        self.replaceable = frozenset(
            target.provider
            for _, targets in self._routes
            if len({target.provider for target in targets}) > 1
            for target in targets
        )
        """The providers that are one of several in a route."""
        self.exact_names = tuple(route.model for route in settings.routes if route.exact)
        """The models that routes name in full: the aliases, in the order of the file."""
        everything = (
            targets
            for (_, targets), route in zip(self._routes, settings.routes, strict=True)
            if route.model == "*"
        )
        self._catch_all: Targets = next(everything, ())

    def for_model(self, model: str) -> Targets:
        """The targets of the first route that matches. Raises `ModelNotFound`."""
        for matches, targets in self._routes:
            if matches(model):
                return targets
        raise ModelNotFound(
            f"No route leads to the model {quote(model)}: GET /v1/models lists those there are.",
            param="model",
        )

    def catch_all(self) -> Targets:
        """The targets of the `*` route; empty where there is none."""
        return self._catch_all


def _configured(targets: Targets, providers: Mapping[str, Provider]) -> Targets:
    """The targets whose providers have a credential; all of them where none has."""
    configured = (t for t in targets if (found := providers.get(t.provider)) and found.usable)
    return tuple(configured) or targets
