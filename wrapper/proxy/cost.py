"""What a request has cost: the price of its usage, or the bounds of what it may have cost."""

from __future__ import annotations

from wrapper.metering import Usage
from wrapper.metering.bounds import Asked, bounds
from wrapper.record import MAX_NAME, RequestRecord
from wrapper.runtime import Snapshot


def price(record: RequestRecord, snapshot: Snapshot, usage: Usage, served: str) -> None:
    """Price the usage of a response that is whole; `served` is the model that it names."""
    host = snapshot.upstreams[record.provider].host
    found = snapshot.prices.price(record.provider, host, record.model, served, usage)
    record.cost, record.unpriced, record.cost_by_kind = found.cost, found.unpriced, found.kinds


def bound(record: RequestRecord, snapshot: Snapshot) -> None:
    """Between what the request has used that was given up, or whose response broke off."""
    upstream, served = snapshot.upstreams[record.provider], ""
    if record.seen is not None:
        served = (record.seen.model or "")[:MAX_NAME]
    unpriced: list[str] = []

    def cost(usage: Usage) -> int | None:
        found = snapshot.prices.price(record.provider, upstream.host, record.model, served, usage)
        if found.unpriced is not None:
            unpriced.append(found.unpriced)
        return found.cost

    default = upstream.provider.default_output_tokens
    record.bounds = bounds(
        Asked(record.bytes_in, record.output_fields, record.media, record.endpoint.input_only),
        record.seen,
        snapshot.settings.server.default_output_tokens if default is None else default,
        cost,
    )
    if record.bounds.cost_high is None:
        record.unpriced = unpriced[0]
