"""What one request has used, as its caller may ask for it later (`GET /usage/requests/{id}`)."""

from __future__ import annotations

import msgspec

from wrapper.metering import PICO
from wrapper.record import MAX_NAME, RequestRecord


class RecentRequest(msgspec.Struct, omit_defaults=True):
    """What one request has used, for `GET /usage/requests/{id}`: what is not known is left out."""

    object: str
    id: str
    created: int  # Unix time
    outcome: str
    provider: str
    status: int | None = None
    model: str | None = None
    served_model: str | None = None
    service_tier: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_seconds: float | None = None
    units: dict[str, float] | None = None
    cost_usd: float | None = None
    unpriced: str | None = None
    unmetered: str | None = None
    bounded: str | None = None
    bounded_tokens_low: int | None = None
    bounded_tokens_high: int | None = None
    bounded_cost_usd_low: float | None = None
    bounded_cost_usd_high: float | None = None
    tag: str | None = None
    deferred: str | None = None  # the object whose use is booked later, under its own id


_encode = msgspec.json.Encoder().encode


def recent_request(record: RequestRecord) -> tuple[str, str] | None:
    """The request's id, as the caller knows it, and what it has used; None where it uses nothing
    by itself.
    """
    usage, bounds, deferred = record.usage, record.bounds, record.deferred
    if usage is None and bounds is None and deferred is None and record.unmetered is None:
        return None
    known = (record.upstream_request_id or record.request_id)[:MAX_NAME]
    # Assigned one by one: arguments with names take three times as long.
    found = RecentRequest("usage.request", known, int(record.at), record.outcome, record.provider)
    found.status = record.status or None
    found.model = record.model or None
    found.unpriced, found.unmetered = record.unpriced, record.unmetered
    found.bounded = record.bounded
    found.tag = record.tag or None
    if deferred is not None:
        found.deferred = deferred.id
    if record.served_model != record.model:
        found.served_model = record.served_model or None
    if usage is not None:
        found.service_tier = usage.service_tier or None
        found.prompt_tokens, found.completion_tokens = usage.prompt, usage.completion
        found.total_tokens, found.cached_tokens = usage.total, usage.cached
        found.reasoning_tokens = usage.reasoning
        found.audio_seconds = usage.seconds or None
        found.units = dict(usage.units) or None
    if record.cost is not None:
        found.cost_usd = record.cost / PICO
    if bounds is not None:
        found.bounded_tokens_low, found.bounded_tokens_high = bounds[:2]
        if bounds.cost_low is not None and bounds.cost_high is not None:
            found.bounded_cost_usd_low = bounds.cost_low / PICO
            found.bounded_cost_usd_high = bounds.cost_high / PICO
    return known, _encode(found).decode()
