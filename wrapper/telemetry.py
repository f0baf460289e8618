"""What the world is told of a finished exchange: Prometheus instruments and one JSON log line.

The rules protected here. Labels are bounded whatever strangers send: keys by their configured
names, paths by their patterns, methods by HTTP's own, models by what the configuration names or
a provider has answered for. A counter that is right in one worker is right in all: values live
in memory-mapped files (prometheus_client's multi-process mode) that outlive a killed worker.
No secret, query string or body ever gets here.

Bucket bounds of the `gen_ai_*` histograms are OpenTelemetry's
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

from wrapper.exchange import NO_KEY, REJECTED, UNMATCHED, Exchange
from wrapper.store import Sums

log = logging.getLogger("wrapper")

METHODS = frozenset(
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]
)
OTHER = "other"
MAX_MODELS = 200
MAX_MODEL_LENGTH = 200  # characters of a name in the log; a caller may send megabytes
MAX_ID_LENGTH = 200  # a line longer than a pipe takes at once mixes with another worker's
PICO = 1e12

# Prometheus takes a counter that is lower than before, be it by the last bit of a float, for a
# reset and counts all of it again. The workers' values are added up in any order, and after a
# restart from sums. So times are added in multiples of a power of two, whose sums are exact, and
# money is counted in whole pico-USD and turned into dollars when it is told (`_Families`).
USD_DECIMALS = 10  # that are told: a price per million tokens has four at most
SECOND_GRAINS = 2**20  # in a second; exact for three hundred years

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_DURATION = tuple(0.01 * 2**n for n in range(14))
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 30, 60),
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_OVERHEAD = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1)

_KEY_LABELS = ("api_key", "provider", "model")
_GEN_AI = ("provider", "model")

REQUESTS = Counter("http_requests", "HTTP requests answered.", ("method", "path", "status"))
DURATION = Histogram(
    "http_request_duration_seconds",
    "From the request's head to the answer's last byte.",
    ("method", "path"),
    buckets=_SECONDS,
)
IN_FLIGHT = Gauge("requests_in_flight", "Requests being served now.", multiprocess_mode="livesum")
UNSETTLED = Gauge(
    "api_requests_unsettled",
    "Calls admitted and not settled yet.",
    multiprocess_mode="livesum",
)
LOST = Counter("unsettled_requests", "Calls whose worker died before they could be settled.")
CALLS = Counter("api_key_requests", "Calls by key and outcome.", (*_KEY_LABELS, "outcome"))
PROMPT = Counter("token_usage_prompt", "Prompt tokens by key.", _KEY_LABELS)
COMPLETION = Counter("token_usage_completion", "Completion tokens by key.", _KEY_LABELS)
TOKENS = Counter("token_usage", "All tokens by key.", _KEY_LABELS)
CACHED = Counter("token_usage_cached", "Prompt tokens that came from a cache.", _KEY_LABELS)
COST_FAMILY = "api_key_cost_usd"
COST = Counter(COST_FAMILY, "Cost in US dollars by key.", _KEY_LABELS)
REJECTIONS = Counter("api_key_rejections", "Calls that the gateway refused.", ("api_key", "reason"))
UNMETERED = Counter(
    "unmetered_responses", "2xx answers whose use could not be read.", ("provider", "reason")
)
UNPRICED = Counter(
    "unpriced_responses", "Metered answers whose price is not known.", ("provider", "model")
)
FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "From sending the call to the first byte of the answer's body.",
    _GEN_AI,
    buckets=_FIRST_TOKEN,
)
PER_TOKEN = Histogram(
    "gen_ai_server_time_per_output_token_seconds",
    "Time per output token after the first.",
    _GEN_AI,
    buckets=_PER_TOKEN,
)
GEN_AI_DURATION = Histogram(
    "gen_ai_server_request_duration_seconds",
    "Time spent with the provider.",
    _GEN_AI,
    buckets=_DURATION,
)
OVERHEAD = Histogram(
    "gateway_overhead_seconds",
    "Time in the gateway itself: the provider's and the caller's share taken out.",
    ("path",),
    buckets=_OVERHEAD,
)
UPSTREAM_ERRORS = Counter(
    "upstream_errors", "Failures of providers by reason.", ("provider", "reason")
)
COOLDOWN = Gauge(
    "provider_cooldown",
    "1 while a provider is left out of routing.",
    ("provider",),
    multiprocess_mode="livemax",
)


class Telemetry:
    """`begin` and `record` an exchange; the only place that counts."""

    def __init__(self, log_level: str = "info") -> None:
        self._known: set[str] = set()  # models that the configuration or the price list names
        self._models: set[str] = set()  # models that are labels
        self._children: dict[tuple[Any, ...], Any] = {}
        self._log_failing = False
        self._quiet = {"debug": 0, "info": 0, "warning": 400, "error": 500}.get(log_level, 0)

    def know(self, models: Iterable[str], providers: Iterable[str]) -> None:
        """Take the configuration's own names as labels."""
        self._known.update(models)
        for provider in providers:
            COOLDOWN.labels(provider).set(0)

    def begin(self, exchange: Exchange, *, looks: bool) -> None:
        """A request has come; one that only looks at the gateway (a scrape) is not in flight."""
        exchange.in_flight = not looks
        if exchange.in_flight:
            IN_FLIGHT.inc()

    def admit(self) -> None:
        """A call that will be settled: it is owed until its `end`."""
        UNSETTLED.inc()

    def end(self, exchange: Exchange, *, call: bool) -> None:
        """The request is over: it is neither in flight nor owed any more."""
        if exchange.in_flight:
            IN_FLIGHT.dec()
        if call:
            UNSETTLED.dec()

    def model(self, exchange: Exchange) -> str:
        """The label for an exchange's model."""
        name = exchange.model
        if not name:
            return "none"
        if name in self._models:
            return name
        answered = exchange.relayed and 200 <= exchange.status < 300
        if (answered or name in self._known) and len(self._models) < MAX_MODELS:
            self._models.add(name)
            return name
        return OTHER

    def record(self, exchange: Exchange, *, call: bool, metering: bool) -> None:
        """Count a finished exchange.

        `call` says that a key's call was made or refused, `metering` that it is metered.
        """
        self._record_request(exchange)
        for provider, reason in exchange.upstream_errors:
            self._child(UPSTREAM_ERRORS, provider, reason).inc()
        if call and metering:
            self._record_call(exchange)

    def _record_request(self, exchange: Exchange) -> None:
        """Every request. A refused stranger makes no series at will: no histogram, and no method
        where his path is whatever he typed.
        """
        method = exchange.method if exchange.method in METHODS else OTHER
        stranger = exchange.api_key == NO_KEY and exchange.status >= 400
        if stranger and (exchange.path == UNMATCHED or "<" in exchange.path):
            method = OTHER
        self._child(REQUESTS, method, exchange.path, str(exchange.status)).inc()
        if not stranger:
            self._child(DURATION, method, exchange.path).observe(_seconds(exchange.duration))
            self._child(OVERHEAD, exchange.path).observe(_seconds(exchange.overhead))

    def _record_call(self, exchange: Exchange) -> None:
        model, provider = self.model(exchange), exchange.provider or "none"
        labels = (exchange.api_key, provider, model)
        self._child(CALLS, *labels, exchange.outcome).inc()
        if exchange.outcome == REJECTED and not exchange.relayed:
            self._child(REJECTIONS, exchange.api_key, exchange.error_code or OTHER).inc()
        if exchange.unmetered:
            self._child(UNMETERED, provider, exchange.unmetered).inc()
        usage = exchange.usage
        if usage is not None:
            self._add(usage.prompt, PROMPT, *labels)
            self._add(usage.completion, COMPLETION, *labels)
            self._add(usage.total, TOKENS, *labels)
            self._add(usage.cached, CACHED, *labels)
            if exchange.cost is None:
                self._child(UNPRICED, provider, model).inc()
            else:
                self._add(exchange.cost, COST, *labels)
        if exchange.relayed and 200 <= exchange.status < 300:
            self._record_speed(exchange, provider, model)

    def _record_speed(self, exchange: Exchange, provider: str, model: str) -> None:
        self._child(GEN_AI_DURATION, provider, model).observe(_seconds(exchange.upstream))
        if exchange.ttft is None or not exchange.stream:
            return
        self._child(FIRST_TOKEN, provider, model).observe(_seconds(exchange.ttft))
        if exchange.usage is not None and exchange.usage.completion > 1:
            rest = max(0.0, exchange.upstream - exchange.ttft)
            per_token = rest / (exchange.usage.completion - 1)
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

    def log(self, exchange: Exchange) -> None:
        """Write the request's line. What is at the other end of stdout is nobody's fault who calls:
        a full disk or a reader that has gone costs the line, and is told once.
        """
        if exchange.status < self._quiet:
            return
        try:
            os.write(1, _encode(_line(exchange)) + b"\n")
        except OSError as error:
            if not self._log_failing:
                log.error("request lines cannot be written to stdout: %s", error.strerror)
            self._log_failing = True
        else:
            self._log_failing = False


_encode = msgspec.json.Encoder().encode


def _line(exchange: Exchange) -> dict[str, Any]:
    usage = exchange.usage
    status = exchange.status
    level = "info" if status < 400 else "warning" if status < 500 else "error"
    return {
        "time": _timestamp(exchange.at),
        "level": level,
        "request_id": exchange.request_id,
        "upstream_request_id": (exchange.upstream_request_id or "")[:MAX_ID_LENGTH] or None,
        "client": exchange.client,
        "method": exchange.method if exchange.method in METHODS else OTHER,
        "path": exchange.path,
        "status": status,
        "outcome": exchange.outcome,
        "code": exchange.error_code,
        "api_key": exchange.api_key,
        "provider": exchange.provider or None,
        "model": exchange.model[:MAX_MODEL_LENGTH] or None,
        "stream": exchange.stream,
        "prompt_tokens": usage.prompt if usage else None,
        "completion_tokens": usage.completion if usage else None,
        "cached_tokens": usage.cached if usage else None,
        "cost_usd": exchange.cost / PICO if exchange.cost is not None else None,
        "unmetered": exchange.unmetered,
        "ttft_ms": _ms(exchange.ttft),
        "upstream_ms": _ms(exchange.upstream) if exchange.relayed else None,
        "overhead_ms": _ms(exchange.overhead),
        "duration_ms": _ms(exchange.duration),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _timestamp(at: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    whole = int(at)
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((at - whole) * 1000):03d}Z"
    )


class Exporter(GunicornInternalPrometheusMetrics):  # type: ignore[misc]  # has no types
    """prometheus-flask-exporter's endpoint over all workers' values.

    Adding up the workers' files takes a noticeable part of a second with many series, so it is
    done in a forked child: streams in this worker go on meanwhile.
    """

    def __init__(self) -> None:
        super().__init__(app=None, export_defaults=False)
        self._lock = threading.Lock()

    def generate_metrics(
        self, accept_header: str | None = None, names: list[str] | None = None
    ) -> tuple[str, str]:
        """The exposition text and its content type, OpenMetrics where `accept_header` asks.

        `names` (the query's `name[]`) keeps the samples and families of these names only.
        """
        encoder, content_type = choose_encoder(accept_header or "")
        with self._lock:  # one scrape at a time in a worker
            text = _in_child(lambda: encoder(_Families(names)))
        return text.decode("utf-8"), content_type


_mark_dead: Any = mark_process_dead
_values: Any = MmapedDict.read_all_values_from_file  # untyped
_Collector: Any = MultiProcessCollector


class _Families:
    """All workers' metric families; what an encoder takes for a registry."""

    def __init__(self, names: list[str] | None) -> None:
        self._names = frozenset(names or ())

    def collect(self) -> Iterable[Metric]:
        for family in _Collector(None).collect():
            if self._names and family.name not in self._names:
                family.samples = [s for s in family.samples if s.name in self._names]
                if not family.samples:
                    continue
            if family.name == COST_FAMILY:
                family.samples = [s._replace(value=usd(s.value)) for s in family.samples]
            yield family


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


def _seconds(value: float) -> float:
    return round(value * SECOND_GRAINS) / SECOND_GRAINS


def seed(totals: Iterable[Sums]) -> None:
    """Take up the counters where the usage table left them, once, before the workers start.

    `totals` are grouped by key, provider, model and outcome.

    So the plain sums by key go on over restarts.
    """
    for row in totals:
        *labels, outcome = row.group
        CALLS.labels(*labels, outcome).inc(row.requests)
        PROMPT.labels(*labels).inc(row.prompt)
        COMPLETION.labels(*labels).inc(row.completion)
        TOKENS.labels(*labels).inc(row.total)
        CACHED.labels(*labels).inc(row.cached)
        COST.labels(*labels).inc(row.cost)


def worker_begins() -> None:
    """Lay out this worker's files for all series it inherited, before the first request waits."""
    IN_FLIGHT.inc(0)


def worker_gone(pid: int) -> None:
    """A worker has exited: its gauges end, its counters stay, what it owed is counted."""
    owed = 0.0
    path = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], f"gauge_livesum_{pid}.db")
    if path.exists():
        for key, value, *_ in _values(str(path)):
            if "api_requests_unsettled" in key:
                owed += value
    if owed > 0:
        LOST.inc(owed)
    _mark_dead(pid)
