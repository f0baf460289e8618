"""Whether a worker that is attacked goes on serving others, on a machine that may stand still."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from . import processes, raw
from .gateway import Gateway

LONGEST = 1.0
"""CPU seconds of the worker that a health check may wait: right is some hundredths, wrong is what
the whole attack takes."""


@contextlib.contextmanager
def health_checks(gateway: Gateway) -> Iterator[list[float]]:
    """The waits of health checks on a connection that is open already, one after the other.

    A wait is measured by what the only worker has worked in it, so that time in which the machine
    or the worker stands still does not count. (Where this process alone stands still, the worker
    works on beside a response that was sent long ago: a single wait may be too long.)
    """
    [worker] = gateway.workers()
    waits: list[float] = []
    over = threading.Event()
    request = raw.request(gateway.port, "GET", "/healthz")

    def ask() -> None:
        with raw.Connection(gateway.port) as connection:
            while not over.wait(0.01):
                began = processes.cpu_seconds(worker)
                assert connection.send(request).read().status == 200
                waits.append(processes.cpu_seconds(worker) - began)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield waits
    finally:
        over.set()
        asking.join()
    assert waits, "no health check was answered"


@contextlib.contextmanager
def others_are_served(gateway: Gateway) -> Iterator[None]:
    """No health check waits for LONGEST meanwhile; or the worker, which measures its event loop,
    does not say that it stood still.
    """
    before = _standstills(gateway)
    with health_checks(gateway) as waits:
        yield
    assert max(waits) < LONGEST or _standstills(gateway) == before


def _standstills(gateway: Gateway) -> float:
    """How often the worker's event loop has stood still for a second or longer."""
    name, scrape = "event_loop_lag_seconds", gateway.metrics()
    return scrape.value(f"{name}_count") - scrape.value(f"{name}_bucket", le="1.0")
