"""All workers' values as Prometheus' text, and their files when processes start and exit.

Invariant: a counter never goes down, be it by the last bit of a float: Prometheus would take it
for a reset and count all of it again. The workers' values are added in any order, and after a
restart from sums. So durations are rounded to multiples of a power of two, whose sums are exact,
and cost is counted in whole pico-USD and converted to dollars in `_Families`.
"""

from __future__ import annotations

import copy
import fcntl
import os
import re
import resource
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import starmap
from operator import add
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.values import MutexValue, ValueClass
from prometheus_flask_exporter import PrometheusMetrics

from wrapper.child import in_child
from wrapper.metering import PICO
from wrapper.store import Sums
from wrapper.telemetry import instruments as metrics
from wrapper.telemetry.mapped import MappedValues

# A malformed version makes prometheus_client raise.
_MALFORMED_VERSION = re.compile(
    r"version[ \t]*=[ \t]*(?!\d{1,9}(?:\.\d{1,9}){0,3}[ \t]*(?:[;,]|$))"
)
LAYOUT_SECONDS = 1.0  # for a worker that is creating its files
USD_DECIMALS = 10  # in the exposition: a price per million tokens has four at most


# prometheus_client decided when it was imported, by the same variable as `_directory`.
_SINGLE_PROCESS = ValueClass is MutexValue


class Exporter(PrometheusMetrics):  # type: ignore[misc]  # has no types
    """prometheus-flask-exporter's endpoint over all workers' values.

    Why a forked child adds up the workers' files: with many series it takes a noticeable part of
    a second, and streams in this worker must go on meanwhile. Without PROMETHEUS_MULTIPROC_DIR (no
    gunicorn) the values are this process's own.
    """

    def __init__(self) -> None:
        super().__init__(app=None, path=None, export_defaults=False)
        self._lock = threading.Lock()

    def generate_metrics(
        self,
        accept_header: str | None = None,
        names: list[str] | None = None,
        further: Iterable[Metric] = (),
    ) -> tuple[str, str]:
        """The exposition text and its content type, OpenMetrics where `accept_header` has it.

        `names` (the query's `name[]`) keeps the samples and families of these names only.
        `further` are families that are no workers' sums.
        """
        accept = accept_header or ""
        encoder, content_type = choose_encoder("" if _MALFORMED_VERSION.search(accept) else accept)
        families = _Families(names, further)
        with self._lock:  # one scrape at a time in a worker
            text = encoder(families) if _SINGLE_PROCESS else in_child(lambda: encoder(families))
        return text.decode("utf-8"), content_type


_mark_dead: Any = mark_process_dead
_values: Any = MmapedDict.read_all_values_from_file  # untyped
_Collector: Any = MultiProcessCollector


class _Families:
    """All workers' metric families, as the registry that an encoder expects."""

    def __init__(self, names: list[str] | None, further: Iterable[Metric]) -> None:
        self._names = frozenset(names or ())
        self._further = further

    def collect(self) -> Iterable[Metric]:
        for family in (*_collected(), *self._further):
            if self._names and family.name not in self._names:
                family.samples = [s for s in family.samples if s.name in self._names]
                if not family.samples:
                    continue
            if family.name in metrics.USD_FAMILIES:
                family.samples = [s._replace(value=usd(s.value)) for s in family.samples]
            if family.name == metrics.WORKER_CPU_FAMILY:
                family.type = "counter"
                family.samples = [s._replace(name=f"{s.name}_total") for s in family.samples]
            yield family


def _collected() -> Iterable[Metric]:
    """All workers' families.

    A starting worker creates its files empty and lays them out a moment later; until then they
    cannot be read, so reading is repeated.
    """
    if _SINGLE_PROCESS:  # copies: a collector may keep its families, and `_Families` changes them
        return [copy.copy(family) for family in REGISTRY.collect()]
    with _locked(fcntl.LOCK_SH):
        deadline = time.monotonic() + LAYOUT_SECONDS
        while True:
            try:
                return list(_Collector(None).collect())
            except struct.error:
                if time.monotonic() > deadline:
                    raise
            os.sched_yield()  # not sleep: it is gevent's, and the child has closed its event loop


def _directory() -> Path:
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


@contextmanager
def _locked(how: int) -> Iterator[None]:
    """Excludes a scrape and the merge of a dead worker's files from each other (flock(2))."""
    with (_directory() / "lock").open("a") as file:
        fcntl.flock(file, how)
        yield


def usd(pico: float) -> float:
    """Dollars, to 100 pico-USD, of a sum of whole pico-USD.

    A float holds such a sum exactly up to 9,000 dollars in one series, and beyond that to a few
    pico-USD, which the rounding takes away.
    """
    return round(pico / PICO, USD_DECIMALS)


_Labelled = tuple[metrics.Series, tuple[str, ...]]


def seed(totals: Iterable[Sums]) -> None:
    """Start the counters from the usage table, once, before the workers start.

    So the sums by key continue after a restart. `totals` are grouped by key, provider, model and
    outcome; rows of the same group are added.
    """
    sums: Counter[_Labelled] = Counter()
    for row in _merged(totals):
        *labels, outcome = row.group
        group = tuple(labels)
        sums[metrics.CALLS, (*group, outcome)] += row.requests
        if row.total:  # unmetered or unpriced rows create no series
            sums[metrics.PROMPT, group] += row.prompt
            sums[metrics.COMPLETION, group] += row.completion
            sums[metrics.TOKENS, group] += row.total
            sums[metrics.CACHED, group] += row.cached
        if row.cost:
            sums[metrics.COST, group] += row.cost
            for kind, cost in zip(metrics.KINDS, row.cost_by_kind, strict=True):
                if cost:
                    sums[metrics.BY_KIND, (group[0], kind)] += cost
        if row.bounded:
            sums.update(_bounded(row, group))
    if _SINGLE_PROCESS:
        for (series, group), value in sums.items():
            series[group].inc(value)
        return
    # With the sums of dead workers. Series of this process would be inherited by every worker: as
    # zeros, which take as much memory and as much of a scrape's time as the sums.
    with _locked(fcntl.LOCK_EX):
        values = MappedValues(str(_directory() / "counter_dead.db"))
        for (series, group), value in sums.items():
            key = series.key(group)
            values.write_value(key, values.read_value(key)[0] + value, 0.0)
        values.close()


def _merged(totals: Iterable[Sums]) -> Iterator[Sums]:
    """One row for each group: of thousands of rows, most are of the same few groups."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for group, *numbers in totals:
        before = groups.get(group)
        groups[group] = numbers if before is None else [*map(add, before, numbers)]
    return starmap(Sums, ((group, *numbers) for group, numbers in groups.items()))


def _bounded(row: Sums, group: tuple[str, ...]) -> dict[_Labelled, int]:
    low, high = (*group, "low"), (*group, "high")
    return {
        (metrics.BOUNDED, group): row.bounded,
        (metrics.BOUNDED_TOKENS, low): row.tokens_low,
        (metrics.BOUNDED_TOKENS, high): row.tokens_high,
        (metrics.BOUNDED_COST, low): row.cost_low,
        (metrics.BOUNDED_COST, high): row.cost_high,
    }


def worker_started() -> None:
    """Lay out this worker's files for all inherited series, before the first request."""
    metrics.IN_FLIGHT.inc(0)
    measure_worker()


def measure_worker() -> None:
    """Take the memory and CPU time of this worker; called now and then in each."""
    worker, used = str(os.getpid()), resource.getrusage(resource.RUSAGE_SELF)
    metrics.WORKER_CPU[worker,].set(used.ru_utime + used.ru_stime)
    metrics.WORKER_MEMORY[worker,].set(resident_memory())


def resident_memory() -> int:
    """Bytes of memory that this process has."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak, in KiB (in bytes on macOS)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)


def worker_exited(pid: int) -> None:
    """Remove an exited worker's gauges, keep its sums, and count its unsettled requests as lost."""
    metrics.WORKER_RESTARTS.inc()
    unsettled = 0.0
    path = _directory() / f"gauge_livesum_{pid}.db"
    if path.exists():
        for key, value, *_ in _values(str(path)):
            if metrics.UNSETTLED_FAMILY in key:
                unsettled += value
    if unsettled > 0:
        metrics.LOST_REQUESTS.inc(unsettled)
    _mark_dead(pid)
    with _locked(fcntl.LOCK_EX):
        for kind in ("counter", "histogram", "summary"):
            _merge(_directory() / f"{kind}_{pid}.db", _directory() / f"{kind}_dead.db")


def _merge(worker: Path, dead: Path) -> None:
    """Add a dead worker's sums to the file of all dead workers.

    Why: each additional file slows down every scrape, and every SIGHUP replaces all workers.
    """
    try:
        values = list(_values(str(worker)))
    except OSError:  # the worker had none
        return
    except struct.error:  # never laid out; left in place, it would break every scrape
        values = []
    sums = MappedValues(str(dead))
    before = {key: sums.read_value(key)[0] for key, *_ in values}
    if sums.full:  # the worker's file stays, and nothing is counted twice
        sums.close()
        return
    for key, value, *_ in values:
        sums.write_value(key, before[key] + value, 0.0)
    sums.close()
    worker.unlink()
