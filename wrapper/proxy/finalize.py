"""The end of every request, whatever kind of response it got: price it, settle it, count it, log
it.

Invariant: every request is finalized exactly once, when its last byte has left; whatever fails
here, it is no longer in flight, and a metered request of a known caller has been handed to the
ledger.
"""

from __future__ import annotations

import time

from wrapper.auth import CLIENT
from wrapper.cancellation import CancelScope
from wrapper.proxy.cost import bound, price
from wrapper.proxy.recent import recent_request
from wrapper.record import NO_KEY, NO_PROVIDER, RequestRecord
from wrapper.runtime import Runtime, Snapshot
from wrapper.store import Entry, StoreError


def finalize(
    record: RequestRecord, runtime: Runtime, snapshot: Snapshot, scope: CancelScope | None = None
) -> None:
    """The response has been sent, or will never be; `scope` may still watch over its request."""
    if scope is not None and scope in runtime.scopes:
        scope.close()
    if record.api_key == CLIENT:
        runtime.capacity.newcomers.discard(scope)
    telemetry = runtime.telemetry
    metering, counts = snapshot.settings.server.metering, record.is_proxy_request
    try:
        record.finish()
        model = telemetry.ledger_model(record)
        try:
            if counts and metering:
                try:
                    if record.usage is not None:
                        if record.cost is None and record.unpriced is None:  # else known at once
                            price(record, snapshot, record.usage, record.served_model)
                    elif record.bounded is not None:
                        bound(record, snapshot)
                    elif record.unmetered is not None:
                        record.cost = runtime.admission.bound(record.lease)
                finally:
                    _settle(record, runtime, model)
            elif record.lease is not None:
                _release(record, runtime)
        finally:
            telemetry.count(record, model, proxy_request=counts, metering=metering)
            telemetry.log.write(record)
    finally:
        telemetry.request_ended(record, proxy_request=counts)


def _settle(record: RequestRecord, runtime: Runtime, model: str) -> None:
    """Write the request to the ledger and end its lease, in one step.

    A failing store is logged and never fails the request.
    """
    if record.api_key == NO_KEY:
        return  # an unauthenticated request belongs to no key, and must not cost a write
    entry = Entry(
        at=time.time(),
        key=record.api_key,
        provider=record.provider or NO_PROVIDER,
        model=model,
        outcome=record.outcome,
        usage=record.usage,
        cost=record.cost,
        unmetered=record.unmetered is not None,
        deferred=record.deferred is not None,
        cost_by_kind=record.cost_by_kind,
        bounds=record.bounds,
        tag=record.tag,
        recent=recent_request(record) if record.relayed and record.api_key != CLIENT else None,
    )
    try:
        runtime.admission.settle(entry, record.lease)
    except StoreError as error:
        runtime.store_failed(error)
    else:
        if runtime.store_failing:
            runtime.store_works()


def _release(record: RequestRecord, runtime: Runtime) -> None:
    """End the lease of a request that is not metered."""
    try:
        runtime.admission.release(record.lease)
    except StoreError as error:
        runtime.store_failed(error)
