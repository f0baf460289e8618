"""Counts every finished record and logs it: Prometheus instruments and one JSON line.

Invariant: labels are bounded whatever unauthenticated clients send. Keys are labelled by their
configured names, paths by their patterns, methods by HTTP's own, models as in `labels`, tags where
the configuration lists them. Values live in memory-mapped files (prometheus_client's multi-process
mode) that outlive a killed worker. No secret, query string or body gets here.

`instruments` has the metrics, `labels` the model labels, `request_log` the log line, `exposition`
the text of `/metrics`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from wrapper import __version__
from wrapper.auth import CLIENT
from wrapper.metering.bounds import Bounds
from wrapper.record import (
    NO_KEY,
    NO_MODEL,
    NO_PROVIDER,
    REJECTED,
    UNMATCHED,
    WEBSOCKET,
    RequestRecord,
)
from wrapper.store import Sums
from wrapper.telemetry import instruments as metrics
from wrapper.telemetry.exposition import (
    Exporter,
    measure_worker,
    resident_memory,
    seed,
    usd,
    worker_exited,
    worker_started,
)
from wrapper.telemetry.instruments import METHODS, OTHER
from wrapper.telemetry.labels import KeyTags, Labels, UsageSeries
from wrapper.telemetry.request_log import RequestLog

__all__ = [
    "Exporter",
    "Telemetry",
    "measure_worker",
    "reloaded",
    "resident_memory",
    "usd",
    "worker_exited",
    "worker_started",
]

# Durations are rounded to these steps in a second: then their sums are exact for 300 years, in
# whatever order the workers' values are added.
STEPS = 2**20
MAX_SHUTDOWNS = 300  # of one provider; OpenAI names some ninety
_USING = frozenset(("POST", WEBSOCKET))  # methods of requests that may use something


class Telemetry:
    """The only place that counts."""

    def __init__(self, log_level: str = "info") -> None:
        self._known: set[str] = set()
        self._tag_labels: frozenset[str] = frozenset()
        self.models = Labels()
        self._tags = KeyTags()
        self._series = UsageSeries()
        self._times: dict[str, list[float]] = defaultdict(_no_times)
        self.log = RequestLog(log_level)
        metrics.BUILD_INFO.labels(__version__).set(1)
        for result in ("success", "failure"):
            metrics.RELOADS[result,].inc(0)

    def register(
        self,
        models: Iterable[str],
        providers: Iterable[str],
        priced: Iterable[str] = (),
        tags: Iterable[str] = (),
    ) -> None:
        """Note the names of a configuration: its own models, which are always labels, its
        providers, the models of the price list, which are labels while there is a place, and the
        tags that are labels.
        """
        reserved = set(models)
        self.models.reserve(reserved)
        self._known = reserved.union(priced)
        for provider in providers:
            self.cooldown(provider, is_on=False)
        self._tag_labels = frozenset(tags)
        for tag in self._tag_labels:  # from zero, for `increase()` to see the first request
            for metric in (metrics.TAG_REQUESTS, metrics.TAG_TOKENS, metrics.TAG_COST):
                metric[tag,].inc(0)

    def cooldown(self, provider: str, *, is_on: bool) -> None:
        """Note whether the provider is asked last in this worker."""
        metrics.COOLDOWN[provider,].set(is_on)

    def models_shut_down(self, provider: str, times: Mapping[str, float]) -> None:
        """Note when a provider shuts models down (Unix time); of many models, some."""
        for model in sorted(times)[:MAX_SHUTDOWNS]:
            metrics.SHUTDOWN[provider, model].set(times[model])

    def restore(
        self, totals: list[Sums], labels: Path | None = None, keys: Container[str] = ()
    ) -> None:
        """Start the counters from the usage table, once, before the workers start.

        `totals` is the store's `all_time`, `labels` the file that keeps the model labels, `keys`
        the names of those in force. What has no series of its own is added to `other`: sums over
        all stay equal.
        """
        requests: Counter[str] = Counter()
        for row in totals:
            requests[row.group[2]] += row.requests
        named = {name: count for name, count in requests.items() if name not in (NO_MODEL, OTHER)}
        self.models.restore(named, labels)
        rows = [row if self._has_label(row.group[2]) else _as_other(row) for row in totals]
        used: Counter[tuple[str, str, str]] = Counter()
        for row in rows:
            key, provider, model, _ = row.group
            used[key, provider, model] += row.requests
        self._series.restore(used, keys, labels)
        seed(self._in_series(row) for row in rows)

    def _in_series(self, row: Sums) -> Sums:
        key, provider, model, outcome = row.group
        return row._replace(group=(*self._series[key, provider, model], outcome))

    def _has_label(self, model: str) -> bool:
        return model == NO_MODEL or model in self.models

    def event_loop_lagged(self, seconds: float) -> None:
        """The worker's event loop went on that much later than asked."""
        metrics.LOOP_LAG.observe(round(seconds * STEPS) / STEPS)

    def lines_lost(self, count: int) -> None:
        """So many lines of stderr could not be written."""
        metrics.LOST_LINES["stderr",].inc(count)

    def request_started(self, record: RequestRecord, *, is_probe: bool) -> None:
        """A request has arrived; a probe (health check, scrape) is not counted as in flight."""
        record.in_flight = not is_probe
        if record.in_flight:
            metrics.IN_FLIGHT.inc(1)

    def proxy_request_started(self) -> None:
        """A proxy request has started: it is unsettled until `request_ended`."""
        metrics.UNSETTLED.inc(1)

    def request_ended(self, record: RequestRecord, *, proxy_request: bool) -> None:
        """The request is neither in flight nor unsettled any more."""
        if record.in_flight:
            metrics.IN_FLIGHT.inc(-1)
        if proxy_request:
            metrics.UNSETTLED.inc(-1)

    def ledger_model(self, record: RequestRecord) -> str:
        """The model as the usage table records it.

        The true name where a provider responded 2xx, where the configuration or the price list
        has the name, or where it is a metric label already. `other` for any other name, so that
        failing requests with made-up names do not add rows; `none` without a name.
        No migration: `other` rows of earlier versions, which recorded the label, stay as they are.
        """
        name = record.model
        if not name:
            return NO_MODEL
        if record.relayed and record.method in _USING and 200 <= record.status < 300:
            return name
        if record.api_key == CLIENT:  # unauthenticated until the provider accepts its key
            return OTHER
        return name if name in self.models or name in self._known else OTHER

    def model_label(self, name: str) -> str:
        """A model of the ledger as a metric label: `other` where there is no place left."""
        return name if name in (NO_MODEL, OTHER) or self.models.add(name) else OTHER

    def tag(self, key: str, tag: str) -> str:
        """The tag of a key's request in the ledger: `other` beyond what a key may have."""
        return self._tags.of(key, tag)

    def store_failed(self) -> None:
        """The store could not be used."""
        metrics.STORE_FAILURES.inc(1)

    def count(
        self, record: RequestRecord, model: str, *, proxy_request: bool, metering: bool
    ) -> None:
        """Count a finished record, whose model the ledger records as `model`.

        `proxy_request`: a caller's request for a provider was forwarded or refused. `metering`:
        usage is metered.
        """
        # Unauthenticated requests must not create time series at will: no method label where the
        # path is arbitrary, and histograms only for reads of what is open to everyone.
        method, path = record.method if record.method in METHODS else OTHER, record.path
        # No valid key, or one of a provider that did not accept it.
        unauthenticated = record.api_key == NO_KEY or (
            record.api_key == CLIENT and record.status >= 400
        )
        if unauthenticated and (path == UNMATCHED or "<" in path):
            method = OTHER
        metrics.REQUESTS[method, path, str(record.status)].inc(1)
        # How long a WebSocket is open is no duration of a request.
        if record.status != 101 and (
            not unauthenticated or (method == "GET" and record.status < 400)
        ):
            duration = round(record.duration * STEPS) / STEPS
            total, counts, bounds = metrics.DURATION[method, path]
            total.inc(duration)
            counts[bisect_left(bounds, duration)].inc(1)
            overhead = round(record.overhead * STEPS) / STEPS
            total, counts, bounds = metrics.OVERHEAD[path,]
            total.inc(overhead)
            counts[bisect_left(bounds, overhead)].inc(1)
        if record.upstream_errors:
            for failure in record.upstream_errors:
                metrics.UPSTREAM_ERRORS[failure].inc(1)
            for failure in record.failovers:
                metrics.FAILOVERS[failure].inc(1)
        if proxy_request and metering:
            label = model if model in self.models.names else self.model_label(model)
            self._count_proxy_request(record, label)

    def _count_proxy_request(self, record: RequestRecord, model: str) -> None:
        provider = record.provider or NO_PROVIDER
        labels = self._series[record.api_key, provider, model]
        metrics.CALLS[*labels, record.outcome].inc(1)
        if record.api_key not in (NO_KEY, CLIENT):
            metrics.LAST_USED[labels[0],].set(int(record.at))
        usage, cost = record.usage, record.cost
        if record.outcome == REJECTED or record.dry_run or usage is None or cost is None:
            self._count_missing(record, labels, model)
        if usage is not None:
            prompt, completion, tokens, cached = metrics.USED[labels]
            prompt.inc(usage.prompt)
            completion.inc(usage.completion)
            tokens.inc(usage.total)
            cached.inc(usage.cached)
        if cost is not None:
            metrics.COST[labels].inc(cost)
            # As `_count_kinds`; in line it saves a call for each request.
            for kind, part in zip(metrics.KINDS, record.cost_by_kind, strict=False):
                if part:
                    metrics.BY_KIND[labels[0], kind].inc(part)
                    cost -= part
            if cost:
                metrics.BY_KIND[labels[0], "other"].inc(cost)
        if record.tag in self._tag_labels:
            metrics.TAG_REQUESTS[record.tag,].inc(1)
            _count_tag(record)
        if record.relayed and 200 <= record.status < 300:
            self._observe_speed(record, (provider, model), self._times[labels[0]])

    def _count_missing(
        self, record: RequestRecord, labels: tuple[str, str, str], model: str
    ) -> None:
        """Count what was refused, or would have been, and why usage or cost is not known."""
        provider = record.provider or NO_PROVIDER
        if record.outcome == REJECTED:
            metrics.REJECTIONS[record.api_key, record.error_code or OTHER].inc(1)
        for code in dict.fromkeys(record.dry_run):  # as a refusal, which has one code
            metrics.REJECTIONS[record.api_key, f"{code}_dry_run"].inc(1)
        if record.unmetered:
            metrics.UNMETERED[provider, record.unmetered].inc(1)
        if record.unpriced is not None:
            metrics.UNPRICED[provider, model].inc(1)
        if record.bounds is not None:
            _count_bounds(labels, record.bounds)

    def booked(self, record: RequestRecord, model: str) -> None:
        """Count and log what deferred work used, which is no request.

        The ledger records the model as `model`.
        """
        model = self.model_label(model)
        labels = self._series[record.api_key, record.provider, model]
        usage = record.usage
        if usage is not None:
            prompt, completion, tokens, cached = metrics.USED[labels]
            prompt.inc(usage.prompt)
            completion.inc(usage.completion)
            tokens.inc(usage.total)
            cached.inc(usage.cached)
            if record.cost is None:
                metrics.UNPRICED[record.provider, model].inc(1)
        if record.unmetered:
            metrics.UNMETERED[record.provider, record.unmetered].inc(1)
        if record.cost is not None:
            metrics.COST[labels].inc(record.cost)
            _count_kinds(labels[0], record.cost, record.cost_by_kind)
        if record.tag in self._tag_labels:
            _count_tag(record)
        self.log.write(record)

    def _observe_speed(
        self, record: RequestRecord, labels: tuple[str, str], times: list[float]
    ) -> None:
        duration = round(record.upstream * STEPS) / STEPS
        total, counts, bounds = metrics.GEN_AI_DURATION[labels]
        total.inc(duration)
        counts[bisect_left(bounds, duration)].inc(1)
        times[0] += 1
        times[1] += duration
        if record.ttft is None or not record.stream:
            return
        first = round(record.ttft * STEPS) / STEPS
        total, counts, bounds = metrics.FIRST_TOKEN[labels]
        total.inc(first)
        counts[bisect_left(bounds, first)].inc(1)
        times[2] += 1
        times[3] += first
        if record.usage is not None and record.usage.completion > 1:
            per_token = (record.upstream - record.ttft) / (record.usage.completion - 1)
            per_token = round(max(0.0, per_token) * STEPS) / STEPS
            total, counts, bounds = metrics.PER_TOKEN[labels]
            total.inc(per_token)
            counts[bisect_left(bounds, per_token)].inc(1)

    def publish(self) -> None:
        """Add the times by key to the metrics: once a second, before a scrape, and at the end.

        Why: a request then adds four numbers and writes nothing.
        """
        for key, times in list(self._times.items()):
            requests, seconds, streams, first = times
            times[:] = _no_times()
            if requests:
                metrics.add(metrics.KEY_DURATION[key,], requests, seconds)
            if streams:
                metrics.add(metrics.KEY_FIRST_TOKEN[key,], streams, first)


def _no_times() -> list[float]:
    """Of a key's requests since they were last published: requests, seconds, streams, seconds."""
    return [0, 0.0, 0, 0.0]


def _count_bounds(labels: tuple[str, str, str], bounds: Bounds) -> None:
    low, high, cost_low, cost_high = bounds
    metrics.BOUNDED[labels].inc(1)
    metrics.BOUNDED_TOKENS[*labels, "low"].inc(low)
    metrics.BOUNDED_TOKENS[*labels, "high"].inc(high)
    metrics.BOUNDED_COST[*labels, "low"].inc(cost_low or 0)
    metrics.BOUNDED_COST[*labels, "high"].inc(cost_high or 0)


def _count_kinds(key: str, cost: int, by_kind: tuple[int, int, int, int]) -> None:
    rest = cost
    for kind, part in zip(metrics.KINDS, by_kind, strict=False):
        if part:
            metrics.BY_KIND[key, kind].inc(part)
            rest -= part
    if rest:
        metrics.BY_KIND[key, "other"].inc(rest)


def _count_tag(record: RequestRecord) -> None:
    if record.usage is not None:
        metrics.TAG_TOKENS[record.tag,].inc(record.usage.total)
    if record.cost is not None:
        metrics.TAG_COST[record.tag,].inc(record.cost)


def reloaded(*, success: bool) -> None:
    """A worker has put a changed configuration in force, or refused it."""
    metrics.RELOADS["success" if success else "failure",].inc(1)
    if success:
        metrics.LAST_RELOAD.set(round(time.time(), 3))


def _as_other(row: Sums) -> Sums:
    key, provider, _, outcome = row.group
    return row._replace(group=(key, provider, OTHER, outcome))
