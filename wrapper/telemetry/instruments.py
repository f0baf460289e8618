"""The instruments: names, labels and buckets of every metric.

Bucket bounds of the `gen_ai_*` histograms are OpenTelemetry's
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/), with some between and beyond
them: a quantile is no more exact than the bucket it is in.

Invariant: the names and labels that dashboards use are defined in this file, and those of limits
and keys in `limits`.
"""

from __future__ import annotations

import json
from functools import cached_property
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

from prometheus_client import Counter, Gauge, Histogram, Summary
from prometheus_client.mmap_dict import mmap_key

from wrapper.record import WEBSOCKET
from wrapper.telemetry import mapped as mapped  # before the first metric is made


class Series(dict[tuple[str, ...], Any]):
    """The labelled series of one metric, by their label values: `CALLS[key, provider, …].inc(1)`.

    What it saves: `metric.labels(…)` takes a lock and a few microseconds for each look-up, and a
    counter looks at each number before it adds it to its value. So these are the values.
    """

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self._metric = metric
        self.groups: list[Together] = []

    def __missing__(self, labels: tuple[str, ...]) -> Any:
        series = self[labels] = direct(self._metric.labels(*labels))
        return series

    # A metric is one thing, whatever series it has.
    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def key(self, labels: tuple[str, ...]) -> str:
        """What a counter of these labels is called in the files of the workers' values."""
        before, names, after = self._pieces
        values = map(encode_basestring_ascii, labels)
        pairs = sorted(zip(names, values, strict=True))
        return f"{before}{', '.join(f'{name}: {value}' for name, value in pairs)}{after}"

    @cached_property
    def _pieces(self) -> tuple[str, list[str], str]:
        """What is around the labels in a key, and their names. A start makes ten thousand keys,
        and prometheus_client would encode all of it for each.
        """
        name, help_text = self._metric._name, self._metric._documentation
        before, after = mmap_key(name, name + "_total", [], [], help_text).split("{}", 1)
        return f"{before}{{", [json.dumps(each) for each in self._metric._labelnames], f"}}{after}"

    def clear(self) -> None:
        """Forget all series, for tests."""
        super().clear()
        self._metric.clear()
        for group in self.groups:
            group.clear()


class Together(dict[tuple[str, ...], tuple[Any, ...]]):
    """The series of several metrics with the same labels, found by one look-up."""

    def __init__(self, *metrics: Series) -> None:
        super().__init__()
        self._metrics = metrics
        for metric in metrics:
            metric.groups.append(self)

    def __missing__(self, labels: tuple[str, ...]) -> tuple[Any, ...]:
        found = self[labels] = tuple(metric[labels] for metric in self._metrics)
        return found


class Buckets(NamedTuple):
    """A histogram: where its sum is, where the number of each bucket is, and the buckets' bounds.

    To observe a number takes a search by halves; the library tries one bound after the other.
    """

    total: Any
    counts: list[Any]
    bounds: list[float]


def direct(metric: Any) -> Any:
    """What counts for the metric with the least work."""
    if isinstance(metric, Histogram):
        return Buckets(metric._sum, metric._buckets, metric._upper_bounds)
    return metric._value if isinstance(metric, Counter | Gauge) else metric


def add(summary: Any, count: float, total: float) -> None:
    """Add several observations to a summary at once: their number and their sum."""
    summary._count.inc(count)
    summary._sum.inc(total)


METHODS = frozenset(
    [
        *("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"),
        WEBSOCKET,  # a response over a WebSocket
    ]
)
OTHER = "other"
# By method and path, which are few.
_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 3.5, 5, 7.5),
    *(10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600),
)
# By provider and model, which may be hundreds: each bound is a series for each of them.
_DURATION = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 0.96, 1.28, 1.92, 2.56, 3.84, 5.12, 7.68, 10.24),
    *(15.36, 20.48, 30.72, 40.96, 61.44, 81.92, 163.84, 327.68),
)
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1, 1.5, 2.5),
    *(3.5, 5, 7.5, 10, 15, 20, 30, 60),
)
_PER_TOKEN = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5),
)
_OVERHEAD = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_KEY_LABELS = ("api_key", "provider", "model")
_GEN_AI = ("provider", "model")
REQUESTS = Series(Counter("http_requests", "HTTP requests answered.", ("method", "path", "status")))
DURATION = Series(
    Histogram(
        "http_request_duration_seconds",
        "From the request's head to the response's last byte.",
        ("method", "path"),
        buckets=_SECONDS,
    )
)
IN_FLIGHT: Any = Gauge(
    "requests_in_flight", "Requests being served now.", multiprocess_mode="livesum"
)._value
UNSETTLED_FAMILY = "api_requests_unsettled"
UNSETTLED: Any = Gauge(
    UNSETTLED_FAMILY,
    "Proxy requests that are not settled yet.",
    multiprocess_mode="livesum",
)._value
LOST_LINES = Series(
    Counter("log_lines_lost", "Lines of the log that could not be written.", ("stream",))
)
LOOP_LAG = Histogram(
    "event_loop_lag_seconds",
    "How much later than asked a worker's event loop went on, measured ten times a second.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LOST_REQUESTS = Counter(
    "unsettled_requests", "Proxy requests whose worker died before they were settled."
)
CALLS = Series(
    Counter("api_key_requests", "Proxy requests by key and outcome.", (*_KEY_LABELS, "outcome"))
)
PROMPT = Series(Counter("token_usage_prompt", "Prompt tokens by key.", _KEY_LABELS))
COMPLETION = Series(Counter("token_usage_completion", "Completion tokens by key.", _KEY_LABELS))
TOKENS = Series(Counter("token_usage", "All tokens by key.", _KEY_LABELS))
CACHED = Series(Counter("token_usage_cached", "Prompt tokens that came from a cache.", _KEY_LABELS))
USED = Together(PROMPT, COMPLETION, TOKENS, CACHED)
COST_FAMILY = "api_key_cost_usd"
COST = Series(Counter(COST_FAMILY, "Cost in US dollars by key.", _KEY_LABELS))
BY_KIND_FAMILY = "api_key_cost_by_kind_usd"
BY_KIND = Series(
    Counter(BY_KIND_FAMILY, "Cost in US dollars by what it is for.", ("api_key", "kind"))
)
BOUNDED = Series(
    Counter(
        "api_key_bounded_requests",
        "Requests whose usage is not known but lies between bounds.",
        _KEY_LABELS,
    )
)
BOUNDED_TOKENS = Series(
    Counter(
        "token_usage_bounded",
        "The bounds of the tokens of such requests, which are in no other sum.",
        (*_KEY_LABELS, "bound"),
    )
)
BOUNDED_COST_FAMILY = "api_key_cost_bounded_usd"
BOUNDED_COST = Series(
    Counter(
        BOUNDED_COST_FAMILY,
        "The bounds of the cost of such requests, which is in no other sum.",
        (*_KEY_LABELS, "bound"),
    )
)
# Of the tags that the configuration lists.
_TAG = ("tag",)
TAG_REQUESTS = Series(Counter("tag_requests", "Proxy requests by listed tag.", _TAG))
TAG_TOKENS = Series(Counter("tag_tokens", "All tokens by listed tag.", _TAG))
TAG_COST_FAMILY = "tag_cost_usd"
TAG_COST = Series(Counter(TAG_COST_FAMILY, "Cost in US dollars by listed tag.", _TAG))
# Counted in whole pico-USD, and dollars in the exposition.
USD_FAMILIES = frozenset((COST_FAMILY, BY_KIND_FAMILY, BOUNDED_COST_FAMILY, TAG_COST_FAMILY))
KINDS = ("input", "cached_input", "cache_write", "output", "other")
REJECTIONS = Series(
    Counter("api_key_rejections", "Requests that the gateway refused.", ("api_key", "reason"))
)
UNMETERED = Series(
    Counter(
        "unmetered_responses",
        "2xx responses whose usage could not be read.",
        ("provider", "reason"),
    )
)
UNPRICED = Series(
    Counter("unpriced_responses", "Metered responses without a known price.", ("provider", "model"))
)
FIRST_TOKEN = Series(
    Histogram(
        "gen_ai_server_time_to_first_token_seconds",
        "From sending the request to the first event with content.",
        _GEN_AI,
        buckets=_FIRST_TOKEN,
    )
)
PER_TOKEN = Series(
    Histogram(
        "gen_ai_server_time_per_output_token_seconds",
        "Time per output token after the first.",
        _GEN_AI,
        buckets=_PER_TOKEN,
    )
)
GEN_AI_DURATION = Series(
    Histogram(
        "gen_ai_server_request_duration_seconds",
        "Time spent with the provider.",
        _GEN_AI,
        buckets=_DURATION,
    )
)
# Means by key: a histogram of each key and model would be too many series.
KEY_DURATION = Series(
    Summary("api_key_request_duration_seconds", "Time spent with the provider.", ("api_key",))
)
KEY_FIRST_TOKEN = Series(
    Summary(
        "api_key_time_to_first_token_seconds",
        "From sending the request to the first event with content.",
        ("api_key",),
    )
)
OVERHEAD = Series(
    Histogram(
        "gateway_overhead_seconds",
        "Time in the gateway itself, without waiting for the provider and the caller.",
        ("path",),
        buckets=_OVERHEAD,
    )
)
UPSTREAM_ERRORS = Series(
    Counter("upstream_errors", "Failures of providers by reason.", ("provider", "reason"))
)
FAILOVERS = Series(
    Counter(
        "failovers",
        "Requests that went on to the next target of their route.",
        ("provider", "reason"),
    )
)
COOLDOWN = Series(
    Gauge(
        "provider_cooldown",
        "1 while a provider keeps failing and is asked last in its routes.",
        ("provider",),
        multiprocess_mode="livemax",
    )
)
SHUTDOWN = Series(
    Gauge(
        "model_shutdown_timestamp_seconds",
        "When the provider shuts a model down.",
        ("provider", "model"),
        multiprocess_mode="livemax",
    )
)
LAST_USED = Series(
    Gauge(
        "api_key_last_used_timestamp_seconds",
        "When a key was last used by a worker that runs.",
        ("api_key",),
        multiprocess_mode="livemax",
    )
)
STORE_FAILURES = Counter("store_failures", "Failures of the store of usage and limits.")
BUILD_INFO = Gauge(
    "gateway_build_info",
    "1, with the gateway's version.",
    ("version",),
    multiprocess_mode="livemax",
)
RELOADS = Series(
    Counter("config_reloads", "Changed configurations, counted by each worker.", ("result",))
)
LAST_RELOAD = Gauge(
    "config_last_reload_timestamp_seconds",
    "When a worker last put a changed configuration in force; 0 since the start.",
    multiprocess_mode="livemax",
)
WORKER_RESTARTS = Counter("worker_restarts", "Workers that exited and were replaced.")
# The label is the process id; a dead worker's series go with its files.
WORKER_MEMORY = Series(
    Gauge(
        "gateway_worker_resident_memory_bytes",
        "Memory of each worker.",
        ("worker",),
        multiprocess_mode="livesum",
    )
)
WORKER_CPU_FAMILY = "gateway_worker_cpu_seconds"
WORKER_CPU = Series(  # a counter in the exposition
    Gauge(
        WORKER_CPU_FAMILY,
        "CPU time of each worker, user and system.",
        ("worker",),
        multiprocess_mode="livesum",
    )
)
