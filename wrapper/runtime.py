"""What a worker serves with, and what one request is handled with.

Invariant: a request sees one configuration from its beginning to its end. It takes
`Runtime.snapshot` once; a reload puts a new `Snapshot` in its place, and the old one lives on in
the requests that hold it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
from flask import Flask, current_app
from flask.globals import _cv_request

from wrapper.admission import Admission, Subjects
from wrapper.auth import Keyring
from wrapper.cancellation import CancelScope, Scopes
from wrapper.capacity import Capacity
from wrapper.config import Settings, prices_path
from wrapper.metering.pricing import Prices
from wrapper.record import RequestRecord
from wrapper.routing import Routes
from wrapper.steps import Pause, no_pause
from wrapper.store import Deferred, Lease, StoreError, UsageStore, object_table
from wrapper.store.objects import ObjectPlaces
from wrapper.telemetry import Telemetry
from wrapper.upstream import Upstream

MAX_UNREMEMBERED = 1000

log = logging.getLogger("wrapper")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One configuration in force."""

    settings: Settings
    keyring: Keyring
    routes: Routes
    upstreams: dict[str, Upstream]
    prices: Prices
    limits: Subjects


class Runtime:
    """The present `Snapshot`, and what outlives every one: the ledger, the telemetry, the requests
    in progress.
    """

    def __init__(
        self, settings: Settings, prices: Prices, store: UsageStore, telemetry: Telemetry
    ) -> None:
        self.store = store
        self.admission = Admission(store)
        self.objects = ObjectPlaces(object_table(settings.store, store))
        self.telemetry = telemetry
        self.scopes = Scopes()
        self.capacity = Capacity()
        self.store_failing = False
        # Deferred work that the store has not taken yet, with the leases of its requests.
        self.unremembered: deque[tuple[Deferred, Lease | None]] = deque(maxlen=MAX_UNREMEMBERED)
        self.snapshot = self._snapshot(settings, prices, {}, no_pause)

    def init_app(self, app: Flask) -> None:
        """Make it the runtime of this application; see `runtime_of`."""
        app.extensions["wrapper"] = self

    def apply(self, settings: Settings, prices: Prices, pause: Pause = no_pause) -> None:
        """Put another configuration in force; providers that did not change keep connections.

        `pause` lets requests run in between, with the configuration before. Not to be called again
        until it has returned.
        """
        old = self.snapshot
        self.snapshot = self._snapshot(settings, prices, old.upstreams, pause)
        for name, upstream in old.upstreams.items():
            if self.snapshot.upstreams.get(name) is not upstream:
                upstream.close()

    def _snapshot(
        self, settings: Settings, prices: Prices, kept: dict[str, Upstream], pause: Pause
    ) -> Snapshot:
        upstreams = {}
        for name, provider in settings.providers.items():
            old = kept.get(name)
            upstreams[name] = old if old and old.provider == provider else Upstream(provider)
        routes = Routes(settings)
        models = {t.model for route in settings.routes for t in route.targets if t.model}
        models.update(routes.exact_names)
        models.update(name for name in settings.prices if not name.endswith("*"))
        priced = (prices.names(name, upstream.host) for name, upstream in upstreams.items())
        tags = settings.tags.labels if settings.tags is not None else ()
        self.telemetry.register(models, upstreams, set().union(*priced), tags)
        for name, shutdowns in settings.shutdowns.items():
            times = {model: shutdown.at for model, shutdown in shutdowns.items()}
            self.telemetry.models_shut_down(name, times)
        keyring, limits = Keyring(settings.keys, pause), Subjects(settings, pause)
        return Snapshot(settings, keyring, routes, upstreams, prices, limits)

    def show_cooldowns(self) -> None:
        """Bring the metric of cooldowns up to date: nothing else notices when one is over."""
        replaceable = self.snapshot.routes.replaceable
        for name, upstream in self.snapshot.upstreams.items():
            self.telemetry.cooldown(name, is_on=name in replaceable and upstream.cooldown.is_on)

    def store_failed(self, error: StoreError) -> None:
        """The store cannot be used: counted each time, logged the first time."""
        self.telemetry.store_failed()
        if not self.store_failing:
            log.error("cannot use the store: %s", error)
        self.store_failing = True

    def store_works(self) -> None:
        """The store has taken what it was given, after it had failed."""
        log.info("the store can be used again")
        self.store_failing = False


class RequestContext(msgspec.Struct, eq=False):
    """What one request is handled with; nothing of it is replaced.

    `target` is its raw path and its raw `?query`.
    """

    environ: dict[str, Any]
    target: tuple[str, str]
    record: RequestRecord
    runtime: Runtime
    snapshot: Snapshot
    scope: CancelScope


def runtime_of(app: Flask) -> Runtime:
    """The application's runtime."""
    return cast(Runtime, app.extensions["wrapper"])


def current_runtime() -> Runtime:
    """The runtime of the application that handles the present request."""
    return cast(Runtime, current_app.extensions["wrapper"])


def request_context() -> RequestContext:
    """The context of the present request."""
    return cast(RequestContext, _cv_request.get())


def load_prices(settings: Settings, environ: Mapping[str, str], pause: Pause = no_pause) -> Prices:
    """The price list beside the configuration, with the configuration's own prices over it.

    `pause` lets requests run in between. Raises ConfigError.
    """
    hosts = {
        name: urlsplit(provider.base_url).hostname or ""
        for name, provider in settings.providers.items()
    }
    path = prices_path(environ)
    return Prices.load(path, settings.prices, settings.stand_in, hosts, pause)
