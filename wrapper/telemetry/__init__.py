"""What the world is told of a finished record: Prometheus instruments and one JSON log line.

The rules protected here. Labels are bounded whatever strangers send: keys by their configured
names, paths by their patterns, methods by HTTP's own, models by what the configuration names or
a provider has answered for. A counter that is right in one worker is right in all: values live
in memory-mapped files (prometheus_client's multi-process mode) that outlive a killed worker.
No secret, query string or body ever gets here.

`instruments` holds the metrics, `labels` the models among their labels, `logline` the line's
fields, `output` takes the line, `exposition` makes the text of `/metrics`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from wrapper.auth import CLIENT
from wrapper.record import NO_KEY, NO_MODEL, REJECTED, UNMATCHED, RequestRecord
from wrapper.store import Sums
from wrapper.telemetry.exposition import Exporter, seed, usd, worker_begins, worker_gone
from wrapper.telemetry.instruments import (
    CACHED,
    CALLS,
    COMPLETION,
    COOLDOWN,
    COST,
    DURATION,
    FIRST_TOKEN,
    GEN_AI_DURATION,
    IN_FLIGHT,
    METHODS,
    OTHER,
    OVERHEAD,
    PER_TOKEN,
    PROMPT,
    REJECTIONS,
    REQUESTS,
    TOKENS,
    UNMETERED,
    UNPRICED,
    UNSETTLED,
    UPSTREAM_ERRORS,
)
from wrapper.telemetry.labels import ModelLabels
from wrapper.telemetry.logline import encoded
from wrapper.telemetry.output import Output

__all__ = ["Exporter", "Telemetry", "usd", "worker_begins", "worker_gone"]

log = logging.getLogger("wrapper")
SECOND_GRAINS = 2**20  # in a second; exact for three hundred years


class Telemetry:
    """`begin` and `record` an record; the only place that counts."""

    def __init__(self, log_level: str = "info") -> None:
        self._known: set[str] = set()  # models that the configuration or the price list names
        self.models = ModelLabels()
        self._children: dict[tuple[Any, ...], Any] = {}
        self._output = Output()
        self._log_failing = False
        self._quiet = {"debug": 0, "info": 0, "warning": 400, "error": 500}.get(log_level, 0)

    def know(self, models: Iterable[str], providers: Iterable[str]) -> None:
        """Take the configuration's own names as labels."""
        self._known.update(models)
        for provider in providers:
            COOLDOWN.labels(provider).set(0)

    def take_up(self, totals: list[Sums]) -> None:
        """Go on where the usage table left off, once, before the workers start."""
        models = (model for _, _, model, _ in (row.group for row in totals))
        self.models.take_up(model for model in models if model not in (NO_MODEL, OTHER))
        seed(totals)

    def begin(self, record: RequestRecord, *, looks: bool) -> None:
        """A request has come; one that only looks at the gateway (a scrape) is not in flight."""
        record.in_flight = not looks
        if record.in_flight:
            IN_FLIGHT.inc()

    def admit(self) -> None:
        """A call that will be settled: it is owed until its `end`."""
        UNSETTLED.inc()

    def end(self, record: RequestRecord, *, call: bool) -> None:
        """The request is over: it is neither in flight nor owed any more."""
        if record.in_flight:
            IN_FLIGHT.dec()
        if call:
            UNSETTLED.dec()

    def model(self, record: RequestRecord) -> str:
        """The label for an record's model."""
        name = record.model
        if not name:
            return NO_MODEL
        answered = record.relayed and record.method == "POST" and 200 <= record.status < 300
        if record.api_key == CLIENT and not answered:
            return OTHER  # anybody may say so
        if name in self.models:
            return name
        return name if (answered or name in self._known) and self.models.add(name) else OTHER

    def record(self, record: RequestRecord, *, call: bool, metering: bool) -> None:
        """Count a finished record.

        `call` says that a key's call was made or refused, `metering` that it is metered.
        """
        self._record_request(record)
        for provider, reason in record.upstream_errors:
            self._child(UPSTREAM_ERRORS, provider, reason).inc()
        if call and metering:
            self._record_call(record)

    def _record_request(self, record: RequestRecord) -> None:
        """Every request. A stranger makes no series at will: no method where the path is whatever
        he typed, and a histogram only where he reads what is open to everyone.
        """
        method = record.method if record.method in METHODS else OTHER
        stranger = _is_strangers(record)
        if stranger and (record.path == UNMATCHED or "<" in record.path):
            method = OTHER
        self._child(REQUESTS, method, record.path, str(record.status)).inc()
        if not stranger or (method == "GET" and record.status < 400):
            self._child(DURATION, method, record.path).observe(_seconds(record.duration))
            self._child(OVERHEAD, record.path).observe(_seconds(record.overhead))

    def _record_call(self, record: RequestRecord) -> None:
        model, provider = self.model(record), record.provider or "none"
        labels = (record.api_key, provider, model)
        self._child(CALLS, *labels, record.outcome).inc()
        if record.outcome == REJECTED:
            self._child(REJECTIONS, record.api_key, record.error_code or OTHER).inc()
        if record.unmetered:
            self._child(UNMETERED, provider, record.unmetered).inc()
        usage = record.usage
        if usage is not None:
            self._add(usage.prompt, PROMPT, *labels)
            self._add(usage.completion, COMPLETION, *labels)
            self._add(usage.total, TOKENS, *labels)
            self._add(usage.cached, CACHED, *labels)
            if record.cost is None:
                self._child(UNPRICED, provider, model).inc()
            else:
                self._add(record.cost, COST, *labels)
        if record.relayed and 200 <= record.status < 300:
            self._record_speed(record, provider, model)

    def _record_speed(self, record: RequestRecord, provider: str, model: str) -> None:
        self._child(GEN_AI_DURATION, provider, model).observe(_seconds(record.upstream))
        if record.ttft is None or not record.stream:
            return
        self._child(FIRST_TOKEN, provider, model).observe(_seconds(record.ttft))
        if record.usage is not None and record.usage.completion > 1:
            rest = max(0.0, record.upstream - record.ttft)
            per_token = rest / (record.usage.completion - 1)
            self._child(PER_TOKEN, provider, model).observe(_seconds(per_token))

    def _add(self, amount: float, metric: Any, *labels: str) -> None:
        child = self._child(metric, *labels)  # the series is there even when all it has is zero
        if amount:
            child.inc(amount)

    def _child(self, metric: Any, *labels: str) -> Any:
        """`metric.labels(…)`, remembered: its own look-up takes a lock and a few microseconds."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def log(self, record: RequestRecord) -> None:
        """Write the request's line. What is at the other end of stdout is nobody's fault who calls:
        a full disk or a reader that is gone or asleep costs the line, and is told once.
        """
        if record.status < self._quiet:
            return
        try:
            self._output.write(encoded(record))
        except OSError as error:
            if not self._log_failing:
                log.error("request lines cannot be written to stdout: %s", error.strerror)
            self._log_failing = True
        else:
            self._log_failing = False


def _is_strangers(record: RequestRecord) -> bool:
    """Whether nobody has vouched for the caller: no key, or a provider's that it did not take."""
    return record.api_key == NO_KEY or (record.api_key == CLIENT and record.status >= 400)


def _seconds(value: float) -> float:
    return round(value * SECOND_GRAINS) / SECOND_GRAINS
