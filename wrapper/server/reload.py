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
from wrapper.config import ConfigError, KeyFile, Settings, load
from wrapper.config.watch import Reloader, accept, load_or_last_good
from wrapper.metering.pricing import Prices
from wrapper.runtime import Runtime, load_prices

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
        self._demo_url = demo_url
        self._prices: Prices = runtime.snapshot.prices
        in_force = runtime.snapshot.settings
        with contextlib.suppress(ConfigError):
            settings, _ = load_or_last_good(environ, accepted, demo_url)
            if settings != in_force:
                self._prices = load_prices(settings, environ)
                self._apply(settings)
                in_force = settings
        self._reloader = Reloader(self._load, self._apply, self._report, in_force)

    def run(self) -> None:
        while True:
            time.sleep(POLL_SECONDS)
            telemetry.measure_worker()
            try:
                self._reloader.poll()
            except Exception:  # the next change of the keys must still come into force
                log.exception("unhandled exception while reloading the configuration")

    def _load(self) -> Settings:
        settings = load(self._environ, self._demo_url)
        try:
            self._prices = load_prices(settings, self._environ)
        except ConfigError as error:
            key_file = KeyFile(settings.keys, settings.groups)
            # With the keys, so that a revoked one is refused although the prices are broken.
            raise ConfigError(error.problems, settings.files, key_file) from None
        return settings

    def _apply(self, settings: Settings) -> None:
        before = self._runtime.snapshot.settings
        self._runtime.apply(settings, self._prices)
        with contextlib.suppress(OSError):
            accept(settings, self._environ, self._accepted)
        providers, keys = len(settings.providers), len(settings.keys)
        telemetry.reloaded(success=True)
        log.info("configuration reloaded: %d providers, %d keys", providers, keys)
        if before.stand_in and not settings.stand_in:
            log.warning("demo provider removed: a provider has a credential")
        if before.keys and not settings.keys:
            log.warning("no keys configured: every request is refused")

    def _report(self, error: ConfigError) -> None:
        telemetry.reloaded(success=False)
        log.error("configuration not reloaded: %s", error)
