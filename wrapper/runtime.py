"""What a worker serves with: everything that follows from one `Settings`, swapped as a whole.

The rule protected here: a request sees one configuration from its beginning to its end. It
takes `Gateway.current` once; a reload puts a new `State` in its place and the old one lives on
in the requests that hold it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from wrapper.auth import Keyring
from wrapper.config import Settings, prices_path
from wrapper.metering.pricing import Prices
from wrapper.record import NO_KEY, RequestRecord
from wrapper.routing import Routes
from wrapper.store import Entry, StoreError, UsageStore
from wrapper.telemetry import Telemetry
from wrapper.upstream import Upstream

log = logging.getLogger("wrapper")


@dataclass(frozen=True, slots=True)
class State:
    """One configuration in force."""

    settings: Settings
    keyring: Keyring
    routes: Routes
    upstreams: dict[str, Upstream]
    prices: Prices


class Gateway:
    """The current `State`, and what outlives every one: the usage store and the telemetry."""

    def __init__(
        self, settings: Settings, prices: Prices, store: UsageStore, telemetry: Telemetry
    ) -> None:
        self.store = store
        self.telemetry = telemetry
        self._store_failing = False
        self.current = self._state(settings, prices, {})

    def apply(self, settings: Settings, prices: Prices) -> None:
        """Put another configuration in force; providers that did not change keep connections."""
        old = self.current
        self.current = self._state(settings, prices, old.upstreams)
        for name, upstream in old.upstreams.items():
            if self.current.upstreams.get(name) is not upstream:
                upstream.close()

    def _state(self, settings: Settings, prices: Prices, kept: dict[str, Upstream]) -> State:
        upstreams = {}
        for name, provider in settings.providers.items():
            old = kept.get(name)
            upstreams[name] = old if old and old.provider == provider else Upstream(provider)
        routes = Routes(settings)
        models = {t.model for route in settings.routes for t in route.targets if t.model}
        models.update(routes.exact_names)
        models.update(name for name in settings.prices if not name.endswith("*"))
        priced = (prices.names(name, upstream.host) for name, upstream in upstreams.items())
        self.telemetry.register(models, upstreams, set().union(*priced))
        return State(settings, Keyring(settings.keys), routes, upstreams, prices)

    def settle(self, record: RequestRecord, state: State, *, call: bool) -> None:
        """The end of every request: price it, book it, count it, log it, in that order.

        A store that fails is told in the log and never to the caller, who has his answer.
        Whatever fails, the request is no longer in flight; one that is not is in all books.
        """
        record.finish()
        metering = state.settings.server.metering
        try:
            if call and metering:
                self._price(record, state)
                self._book(record)
        finally:
            try:
                self.telemetry.count(record, proxy_request=call, metering=metering)
                self.telemetry.log_request(record)
            finally:
                self.telemetry.request_ended(record, proxy_request=call)

    def _price(self, record: RequestRecord, state: State) -> None:
        if record.usage is None:
            return
        host = state.upstreams[record.provider].host
        record.cost = state.prices.cost(record.provider, host, record.model, record.usage)

    def _book(self, record: RequestRecord) -> None:
        if record.api_key == NO_KEY:
            return  # a stranger's refused call is nobody's use, and must not cost a write
        entry = Entry(
            at=time.time(),
            key=record.api_key,
            provider=record.provider or "none",
            model=self.telemetry.ledger_model(record),
            outcome=record.outcome,
            usage=record.usage,
            cost=record.cost,
            unmetered=record.unmetered is not None,
        )
        try:
            self.store.settle(entry)
        except StoreError as error:
            if not self._store_failing:
                log.error("usage is not being booked: %s", error)
            self._store_failing = True
        else:
            self._store_failing = False


def load_prices(settings: Settings, environ: Mapping[str, str]) -> Prices:
    """The price list beside the configuration, with the configuration's own prices over it.

    Raises ConfigError.
    """
    return Prices.load(prices_path(environ), settings.prices, settings.stand_in)
