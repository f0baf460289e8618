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
def others_are_served(gateway: Gateway) -> Iterator[None]:
    """No health check on a connection that is open already waits for LONGEST meanwhile.

    A wait is measured by what the only worker has worked in it, so that time in which the machine
    or the worker stands still does not count. Where this process alone stands still, the worker
    works on beside a response that was sent long ago: so its own measurements of its event loop
    must say the same.
    """
    [worker] = gateway.workers()
    waits: list[float] = []
    over = threading.Event()
    request = raw.request(gateway.port, "GET", "/healthz")
    before = _standstills(gateway)

    def ask() -> None:
        with raw.Connection(gateway.port) as connection:
            while not over.wait(0.01):
                began = processes.cpu_seconds(worker)
                assert connection.send(request).read().status == 200
                waits.append(processes.cpu_seconds(worker) - began)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
    assert waits, "no health check was answered"
    assert max(waits) < LONGEST or _standstills(gateway) == before


def _standstills(gateway: Gateway) -> float:
    """How often the worker's event loop has stood still for a second or longer."""
    name, scrape = "event_loop_lag_seconds", gateway.metrics()
    return scrape.value(f"{name}_count") - scrape.value(f"{name}_bucket", le="1.0")
