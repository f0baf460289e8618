"""Puts changed configuration files in force in a running worker.

`wrapper.config.watch` decides when to load; here the result is applied. Invariant: a mistake in
the files changes nothing, but a revoked key is refused whatever else is wrong.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from wrapper import telemetry
from wrapper.cancellation import yield_if_due
from wrapper.child import ChildFailed, in_child
from wrapper.config import ConfigError, KeyFile, Settings, keys_path, load
from wrapper.config.loading import prepare_keys
from wrapper.config.prepared import Prepared
from wrapper.config.watch import Reloader, accept, load_or_last_good
from wrapper.metering.pricing import Prices
from wrapper.runtime import Runtime, load_prices
from wrapper.server.lifecycle import log_dead_routes

POLL_SECONDS = 1.0

log = logging.getLogger("wrapper")


class ConfigReloader:
    """Checks the files once a second in `run`, which never returns, and measures the worker.

    `accepted` is the directory with copies of the files in force. The constructor itself may
    apply another configuration than the worker inherited: that may be out of date by now, and
    while the files are broken the copies have what the other workers serve.
    """

    def __init__(
        self, runtime: Runtime, environ: Mapping[str, str], accepted: Path, demo_url: str | None
    ) -> None:
        self._runtime = runtime
        self._environ = environ
        self._accepted = accepted
        self._prepared = Prepared(accepted, yield_if_due)
        self._demo_url = demo_url
        self._prices: Prices = runtime.snapshot.prices
        in_force = runtime.snapshot.settings
        with contextlib.suppress(ConfigError):
            settings, _ = load_or_last_good(environ, accepted, demo_url)
            if settings != in_force:
                self._prices = load_prices(settings, environ, yield_if_due)
                self._apply(settings)
                in_force = settings
        self._reloader = Reloader(self._load, self._apply, self._report, in_force)

    def run(self) -> None:
        while True:
            time.sleep(POLL_SECONDS)
            telemetry.measure_worker()
            self._runtime.telemetry.publish()
            try:
                self._reloader.poll()
            except Exception:  # the next change of the keys must still come into force
                log.exception("unhandled exception while reloading the configuration")

    def _load(self) -> Settings:
        keys = keys_path(self._environ)
        if self._prepared.is_needed(keys):
            with contextlib.suppress(ChildFailed):  # then it is read here
                in_child(self._prepare, niceness=5)
        settings = load(self._environ, self._demo_url, prepared=self._prepared)
        try:
            self._prices = load_prices(settings, self._environ, yield_if_due)
        except ConfigError as error:
            key_file = KeyFile(settings.keys, settings.groups)
            # With the keys, so that a revoked one is refused although the prices are broken.
            raise ConfigError(error.problems, settings.files, key_file) from None
        yield_if_due()
        return settings

    def _prepare(self) -> bytes:
        prepare_keys(self._environ, self._prepared)
        return b""

    def _apply(self, settings: Settings) -> None:
        yield_if_due()
        before = self._runtime.snapshot.settings
        self._runtime.apply(settings, self._prices, yield_if_due)
        with contextlib.suppress(OSError):
            accept(settings, self._environ, self._accepted)
        providers, keys = len(settings.providers), len(settings.keys)
        if settings.stand_in:  # it is no provider of the configuration
            providers -= 1
        telemetry.reloaded(success=True)
        log.info("configuration reloaded: %d providers, %d keys", providers, keys)
        if before.stand_in and not settings.stand_in:
            log.warning("demo provider removed: a provider has a credential")
        if before.keys and not settings.keys:
            log.warning("no keys configured: every request is refused")
        _log_lost(before, settings)

    def _report(self, error: ConfigError) -> None:
        telemetry.reloaded(success=False)
        log.error("configuration not reloaded: %s", error)


def _log_lost(before: Settings, now: Settings) -> None:
    """Log what could be used before and cannot any more, as the start does."""
    if before.usable and not now.usable:
        log.warning("no provider has a credential any more: every request gets 502")
    for name, provider in now.providers.items():
        if name in before.usable and not provider.usable:
            log.warning("provider '%s' not configured any more: %s", name, provider.api_key_problem)
    log_dead_routes([model for model in now.dead_routes if model not in before.dead_routes])
    if before.server.metrics_token and not now.server.metrics_token:
        log.warning("/metrics is open to everyone: it has no token any more")
