"""Metrics of the configuration and the store: what each limit is and how much of it is in use.

They are not counted in workers but read when they are asked for, so they are the same from every
worker, and from every host that shares a store: a query takes `max by (scope, name, kind)`, not
`sum`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from wrapper.config import ApiKey
from wrapper.metering import PICO
from wrapper.store import Standing


def limit_families(standings: Iterable[Standing]) -> Iterator[Metric]:
    """`limit`, `limit_used`, `limit_remaining` by scope (key, group, provider), name, kind."""
    labels = ("scope", "name", "kind")
    limit = GaugeMetricFamily("limit", "The limit; USD for a budget.", labels=labels)
    used = GaugeMetricFamily("limit_used", "How much of the limit is in use.", labels=labels)
    left = GaugeMetricFamily("limit_remaining", "What is left of the limit.", labels=labels)
    for standing in standings:
        scope, _, name = standing.subject.name.partition(":")
        limits = standing.subject.limits
        rows = (
            ("requests", limits.requests_per_minute, standing.requests),
            ("tokens", limits.tokens_per_minute, standing.tokens),
            ("concurrency", limits.max_concurrent, standing.concurrent),
            ("budget_usd", limits.budget, standing.spent + standing.reserved),
        )
        for kind, most, taken in rows:
            if most is None:
                continue
            unit = PICO if kind == "budget_usd" else 1
            limit.add_metric((scope, name, kind), most / unit)
            used.add_metric((scope, name, kind), taken / unit)
            left.add_metric((scope, name, kind), max(0, most - taken) / unit)
    yield from (limit, used, left)


def key_families(keys: Iterable[ApiKey]) -> Iterator[Metric]:
    """`api_key_info`, to join group and owner, and `api_key_expiry_timestamp_seconds`."""
    info = GaugeMetricFamily(
        "api_key_info", "A key's group and owner.", labels=("api_key", "group", "owner")
    )
    expiry = GaugeMetricFamily(
        "api_key_expiry_timestamp_seconds", "When a key expires.", labels=("api_key",)
    )
    for key in keys:
        info.add_metric((key.name, key.group or "", key.owner or ""), 1)
        if (at := key.expires_at) is not None:
            expiry.add_metric((key.name,), at)
    yield from (info, expiry)
