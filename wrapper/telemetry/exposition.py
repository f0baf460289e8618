"""All workers' values as Prometheus' text, and what happens to them when processes come and go.

The rule protected here: a sum that grows is never told as less. Prometheus would take it for a
reset and count all of it again.
"""

from __future__ import annotations

import copy
import fcntl
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.values import MutexValue, ValueClass
from prometheus_flask_exporter import PrometheusMetrics

from wrapper.store import Sums
from wrapper.telemetry.instruments import (
    CACHED,
    CALLS,
    COMPLETION,
    COST,
    COST_FAMILY,
    IN_FLIGHT,
    LOST,
    PICO,
    PROMPT,
    TOKENS,
)

# prometheus_client fails over a version that is none.
_ODD_VERSION = re.compile(r"version[ \t]*=[ \t]*(?!\d{1,9}(?:\.\d{1,9}){0,3}[ \t]*(?:[;,]|$))")
MOMENT = 1.0  # seconds, for a worker that begins

# Prometheus takes a counter that is lower than before, be it by the last bit of a float, for a
# reset and counts all of it again. The workers' values are added up in any order, and after a
# restart from sums. So times are added in multiples of a power of two, whose sums are exact, and
# money is counted in whole pico-USD and turned into dollars when it is told (`_Families`).
USD_DECIMALS = 10  # that are told: a price per million tokens has four at most


# prometheus_client decided when it was imported, by the same variable as `_directory`.
_SINGLE_PROCESS = ValueClass is MutexValue


class Exporter(PrometheusMetrics):  # type: ignore[misc]  # has no types
    """prometheus-flask-exporter's endpoint over all workers' values.

    Adding up the workers' files takes a noticeable part of a second with many series, so it is
    done in a forked child: streams in this worker go on meanwhile. Without
    PROMETHEUS_MULTIPROC_DIR (no gunicorn) the values are this process's own.
    """

    def __init__(self) -> None:
        super().__init__(app=None, path=None, export_defaults=False)
        self._lock = threading.Lock()

    def generate_metrics(
        self, accept_header: str | None = None, names: list[str] | None = None
    ) -> tuple[str, str]:
        """The exposition text and its content type, OpenMetrics where `accept_header` asks.

        `names` (the query's `name[]`) keeps the samples and families of these names only.
        """
        accept = accept_header or ""
        encoder, content_type = choose_encoder("" if _ODD_VERSION.search(accept) else accept)
        families = _Families(names)
        with self._lock:  # one scrape at a time in a worker
            text = encoder(families) if _SINGLE_PROCESS else _in_child(lambda: encoder(families))
        return text.decode("utf-8"), content_type


_mark_dead: Any = mark_process_dead
_values: Any = MmapedDict.read_all_values_from_file  # untyped
_Sums: Any = MmapedDict
_Collector: Any = MultiProcessCollector


class _Families:
    """All workers' metric families; what an encoder takes for a registry."""

    def __init__(self, names: list[str] | None) -> None:
        self._names = frozenset(names or ())

    def collect(self) -> Iterable[Metric]:
        for family in _collected():
            if self._names and family.name not in self._names:
                family.samples = [s for s in family.samples if s.name in self._names]
                if not family.samples:
                    continue
            if family.name == COST_FAMILY:
                family.samples = [s._replace(value=usd(s.value)) for s in family.samples]
            yield family


def _collected() -> Iterable[Metric]:
    """All workers' families. A worker that begins makes its files empty and then lays them out:
    for a moment between they cannot be read, so they are read again.
    """
    if _SINGLE_PROCESS:  # copies: a collector may keep its families, and `_Families` changes them
        return [copy.copy(family) for family in REGISTRY.collect()]
    with _locked(fcntl.LOCK_SH):
        until = time.monotonic() + MOMENT
        while True:
            try:
                return list(_Collector(None).collect())
            except struct.error:
                if time.monotonic() > until:
                    raise
            os.sched_yield()  # to sleep is gevent's, whose event loop the child has cut off


def _directory() -> Path:
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


@contextmanager
def _locked(how: int) -> Iterator[None]:
    """Between a scrape and the master, who moves a dead worker's sums (flock(2))."""
    with (_directory() / "lock").open("a") as file:
        fcntl.flock(file, how)
        yield


def _in_child(work: Callable[[], bytes]) -> bytes:
    """Do `work` in a forked child and give what it returns.

    The child closes every inherited connection first, so that none stays open on its account,
    and does nothing afterwards but compute and write.
    """
    reading, writing = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.nice(5)
            fd = os.dup2(writing.fileno(), 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            os.set_blocking(fd, True)
            data = memoryview(work())
            while data:
                data = data[os.write(fd, data) :]
            status = 0
        finally:
            os._exit(status)
    writing.close()
    with reading:
        pieces = list(iter(lambda: reading.recv(65536), b""))
    _, code = os.waitpid(pid, 0)
    if code:
        raise RuntimeError("the workers' metrics could not be added up")
    return b"".join(pieces)


def usd(pico: float) -> float:
    """Dollars, to 100 pico-USD, of a sum of whole pico-USD.

    A float holds such a sum exactly up to 9,000 dollars in one series, and beyond that to a few
    pico-USD, which the rounding takes away.
    """
    return round(pico / PICO, USD_DECIMALS)


def seed(totals: Iterable[Sums]) -> None:
    """Take up the counters where the usage table left them, once, before the workers start.

    So the plain sums by key go on over restarts. `totals` are grouped by key, provider, model and
    outcome.
    """
    for row in totals:
        *labels, outcome = row.group
        CALLS.labels(*labels, outcome).inc(row.requests)
        if row.total:  # what was never metered, or has no price, has no series and no zero
            PROMPT.labels(*labels).inc(row.prompt)
            COMPLETION.labels(*labels).inc(row.completion)
            TOKENS.labels(*labels).inc(row.total)
            CACHED.labels(*labels).inc(row.cached)
        if row.cost:
            COST.labels(*labels).inc(row.cost)


def worker_begins() -> None:
    """Lay out this worker's files for all series it inherited, before the first request waits."""
    IN_FLIGHT.inc(0)


def worker_gone(pid: int) -> None:
    """A worker has exited: its gauges end, its sums stay, what it owed is counted."""
    owed = 0.0
    path = _directory() / f"gauge_livesum_{pid}.db"
    if path.exists():
        for key, value, *_ in _values(str(path)):
            if "api_requests_unsettled" in key:
                owed += value
    if owed > 0:
        LOST.inc(owed)
    _mark_dead(pid)
    with _locked(fcntl.LOCK_EX):
        for kind in ("counter", "histogram"):
            _bury(_directory() / f"{kind}_{pid}.db", _directory() / f"{kind}_dead.db")


def _bury(worker: Path, dead: Path) -> None:
    """Add a worker's sums to those of all dead ones: each further file would cost every scrape
    time, and workers come and go with every SIGHUP.
    """
    try:
        values = list(_values(str(worker)))
    except OSError:  # there is none
        return
    except struct.error:  # never laid out, and in the way of every scrape
        values = []
    sums = _Sums(str(dead))
    for key, value, *_ in values:
        sums.write_value(key, sums.read_value(key)[0] + value, 0.0)
    sums.close()
    worker.unlink()
