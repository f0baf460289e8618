"""Deferred work: what goes on after its request, remembered when it starts and booked when it ends.

A background response, a batch or a video is created by one request, and what it used is known only
later. The creating request is finalized as any other, without usage; the record that is made of it
keeps the money that was reserved. Whoever sees the end (a GET, a list, a resumed stream, the answer
to a cancellation, or the gateway itself: `asker`) books it:

    remember     at creation, before the client learns the id       a record in the store
    saw          a response shows that objects have ended
    book         usage → price → ledger → metrics → log, once

Invariant: each object is booked once, at the price that was served, for the key that created it.
(`store.deferred` says how, over all workers and hosts.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, unquote_plus

from msgspec.structs import replace

from wrapper.metering import ExtractedUsage, Sight, Usage
from wrapper.metering.batch_output import BATCH_TIER
from wrapper.metering.sights import ENDED, PENDING, Shown
from wrapper.metering.usage import NO_USAGE, added
from wrapper.proxy.batches import BATCH, input_of
from wrapper.proxy.recent import recent_request
from wrapper.proxy.request import ProxyRequest
from wrapper.proxy.targets import UpstreamAttempt
from wrapper.record import COMPLETED, MAX_NAME, NO_MODEL, RequestRecord
from wrapper.runtime import MAX_UNREMEMBERED, RequestContext, Runtime, Snapshot
from wrapper.store import Deferred, Demand, Entry, Lease, StoreError

# Reasons of `unmetered_responses_total`, beside those of `wrapper.metering.usage`.
NEVER_FINISHED: Final = "never_finished"  # not within 31 days
NOT_FOUND: Final = "not_found"  # the provider does not have it any more

VIDEO: Final = "video"
# Where the objects of a kind are: the end of the path that creates and lists them.
COLLECTIONS: Final = {"response": "/responses", BATCH: "/batches", VIDEO: "/videos"}
PATH: Final = "(deferred)"  # of a booking's log line
# How a query asks for another form of an object.
_OTHER_FORMS: Final = frozenset(["stream", "starting_after", "include", "include_obfuscation"])
MAX_SIGHTS: Final = 100  # objects of one response that are looked up

_FAILED: Final = "failed"

log = logging.getLogger("wrapper")


class Booking(NamedTuple):
    """One row of what an object used: a model, and its usage or the reason why there is none."""

    model: str
    usage: Usage | None
    cost: int | None = None
    served: str = ""
    unpriced: str | None = None
    unmetered: str | None = None
    cost_by_kind: tuple[int, int, int, int] = (0, 0, 0, 0)


def remember(
    context: RequestContext, request: ProxyRequest, attempt: UpstreamAttempt, created: Shown
) -> None:
    """Remember what the request has started, where it is not over yet."""
    kind = request.endpoint.creates
    if kind not in COLLECTIONS or not context.snapshot.settings.server.metering:
        return
    # A stream shows its response unfinished at first, and ends it unless it is in the background.
    goes_on = created.background is True if context.record.stream else created.status in PENDING
    if not goes_on:
        return
    record, runtime = context.record, context.runtime
    lease: Lease | None = record.lease
    model = attempt.model or request.named_model
    if kind == BATCH:
        found = input_of(context, request, attempt.upstream)
        model = found.only_model if found else ""
    deferred = Deferred(
        provider=attempt.upstream.provider.name,
        id=created.id,
        kind=kind,
        key=record.api_key,
        model=model[:MAX_NAME],
        target=attempt.target,
        created=time.time(),
        cost=runtime.admission.bound(lease),
        tag=record.tag,
    )
    record.deferred = deferred
    try:
        runtime.store.remember(deferred, lease, context.snapshot.settings.server.deferred_poll)
    except StoreError as error:
        runtime.store_failed(error)
        if len(runtime.unremembered) == MAX_UNREMEMBERED:
            lost = runtime.unremembered.popleft()[0]
            log.error("too much waits for the store: %s %s is not metered", lost.kind, lost.id)
        runtime.unremembered.append((deferred, lease))
    if lease is not None:
        lease.demand = Demand(lease.demand.tokens, 0)


def remember_waiting(runtime: Runtime) -> None:
    """Remember what the store did not take at its creation."""
    while runtime.unremembered:
        deferred, lease = runtime.unremembered.popleft()
        delay = runtime.snapshot.settings.server.deferred_poll
        try:
            runtime.store.remember(deferred, lease, delay)
        except StoreError as error:
            runtime.unremembered.appendleft((deferred, lease))
            runtime.store_failed(error)
            return


def object_target(deferred: Deferred) -> str:
    """The raw path and query of the object at its provider."""
    return collection_target(deferred, COLLECTIONS[deferred.kind], deferred.id)


def collection_target(deferred: Deferred, collection: str, object_id: str, rest: str = "") -> str:
    """The same of an object beside it, in another `collection`.

    The query of the caller goes along, as it may choose the API (`api-version`), but for what asks
    for another response: with `stream=true` it would be a stream, in which no end is found.
    """
    path, _, query = deferred.target.partition("?")
    parts, name = path.split("/"), COLLECTIONS[deferred.kind][1:]
    # As `endpoints` reads a path: a caller may have sent `/respons%65s`.
    known = [n for n, part in enumerate(parts) if unquote(part).partition(";")[0].lower() == name]
    before = "/".join(parts[: known[-1] if known else -1])
    kept = [each for each in query.split("&") if each and not _asks_for_another(each)]
    more = "?" + "&".join(kept) if kept else ""
    return f"{before}{collection}/{quote(object_id, safe='')}{rest}{more}"


def _asks_for_another(parameter: str) -> bool:
    name = unquote_plus(parameter.partition("=")[0])
    return name.partition("[")[0].strip().lower() in _OTHER_FORMS


def saw_end_of_request(
    context: RequestContext, request: ProxyRequest, found: ExtractedUsage
) -> None:
    """The response of a request that has started work, or shows some, is over."""
    record, snapshot = context.record, context.snapshot
    if not 200 <= record.status < 300 or not snapshot.settings.server.metering:
        return
    sights: Sequence[Sight] = found.sights
    if record.stream:
        object_id = record.deferred.id if record.deferred else _last_segment(request.target)
        sights = _sight_of_stream(object_id, found)
    if record.deferred is None:
        saw(context.runtime, snapshot, record.provider, sights)
    elif record.stream:
        for sight in sights:
            _try_to_book(context.runtime, snapshot, record.deferred, sight)


def saw(runtime: Runtime, snapshot: Snapshot, provider: str, sights: Sequence[Sight]) -> None:
    """Book those of the objects that have ended and are not booked yet."""
    ended = {sight.id: sight for sight in sights[:MAX_SIGHTS] if sight.status in ENDED}
    if not ended:
        return
    try:
        pending = runtime.store.pending(provider, list(ended))
    except StoreError as error:
        runtime.store_failed(error)
        return
    for deferred in pending:
        _try_to_book(runtime, snapshot, deferred, ended[deferred.id])


def _try_to_book(runtime: Runtime, snapshot: Snapshot, deferred: Deferred, sight: Sight) -> None:
    """Book an object that has ended. Where that needs more than its sight, or the store fails, the
    gateway asks for it itself.
    """
    try:
        bookings = bookings_of(snapshot, deferred, sight)
        if bookings is None:
            runtime.store.hasten(deferred)
        else:
            book(runtime, deferred, bookings, sight.ended)
    except StoreError as error:
        runtime.store_failed(error)


def bookings_of(snapshot: Snapshot, deferred: Deferred, sight: Sight) -> list[Booking] | None:
    """What an object that has ended used, empty where it used nothing; None where its output has to
    be read for that.
    """
    if deferred.kind == BATCH:
        return _bookings_of_batch(snapshot, deferred, sight)
    if sight.status == _FAILED or (deferred.kind == VIDEO and sight.status != COMPLETED):
        return [priced(snapshot, deferred, sight.usage, sight.model)] if _is_billed(sight) else []
    if sight.usage is None:
        return [unmetered(deferred, NO_USAGE)]
    return [priced(snapshot, deferred, sight.usage, sight.model)]


def _is_billed(sight: Sight) -> bool:
    """Whether something that failed reports tokens all the same. A video's length is no such."""
    return sight.usage is not None and sight.usage.total > 0


def _bookings_of_batch(
    snapshot: Snapshot, deferred: Deferred, sight: Sight
) -> list[Booking] | None:
    if sight.status == _FAILED or not (_is_billed(sight) or sight.output_file):
        return []
    model = deferred.model or sight.model
    if sight.usage is not None and model and _is_billed(sight):
        usage = replace(sight.usage, service_tier=BATCH_TIER)
        upstream = snapshot.upstreams.get(deferred.provider)
        host = upstream.host if upstream else ""
        # Prices that depend on a request's length cannot be told from the sum of many.
        if not (sight.output_file and snapshot.prices.has_tiers(deferred.provider, host, model)):
            return [priced(snapshot, deferred, usage, sight.model, model)]
    return None if sight.output_file else []


def priced(
    snapshot: Snapshot, deferred: Deferred, usage: Usage | None, served: str, model: str = ""
) -> Booking:
    """What this usage cost."""
    if usage is None:
        return unmetered(deferred, NO_USAGE)
    model = model or deferred.model or served
    upstream = snapshot.upstreams.get(deferred.provider)
    host = upstream.host if upstream else ""
    found = snapshot.prices.price(deferred.provider, host, model, served, usage)
    return Booking(
        *(model[:MAX_NAME], usage, found.cost, served[:MAX_NAME], found.unpriced),
        cost_by_kind=found.kinds,
    )


def unmetered(deferred: Deferred, reason: str) -> Booking:
    """What it used is not known: its cost is what was reserved, where the key has a budget."""
    return Booking(deferred.model, None, deferred.cost, unmetered=reason)


def book(
    runtime: Runtime, deferred: Deferred, bookings: Sequence[Booking], ended: float = 0.0
) -> bool:
    """Book an object once: False where it was booked already. Raises StoreError.

    `ended`: when it ended, as its provider says, and as its invoice counts it.
    """
    now = time.time()
    at = ended if deferred.created <= ended <= now else now
    entries = [
        Entry(
            at=at,
            key=deferred.key,
            provider=deferred.provider,
            model=booking.model or NO_MODEL,
            outcome=COMPLETED,
            usage=booking.usage,
            cost=booking.cost,
            unmetered=booking.unmetered is not None,
            requests=0,
            cost_by_kind=booking.cost_by_kind,
            tag=deferred.tag,
        )
        for booking in bookings
    ]
    if entries:
        entries[-1] = entries[-1]._replace(recent=_recent(deferred, bookings))
    if not runtime.store.book(deferred, entries):
        return False
    for booking in bookings:
        record = RequestRecord("", PATH, request_id=deferred.id[:MAX_NAME])
        record.api_key, record.provider, record.model = (
            deferred.key,
            deferred.provider,
            booking.model,
        )
        record.usage, record.served_model, record.cost = booking.usage, booking.served, booking.cost
        record.unpriced, record.unmetered = booking.unpriced, booking.unmetered
        record.cost_by_kind = booking.cost_by_kind
        record.outcome, record.tag = COMPLETED, deferred.tag
        runtime.telemetry.booked(record, booking.model or NO_MODEL)
    return True


def _recent(deferred: Deferred, bookings: Sequence[Booking]) -> tuple[str, str] | None:
    """What the object has used in all, for its key."""
    record = RequestRecord("", PATH, request_id=deferred.id[:MAX_NAME], outcome=COMPLETED)
    record.provider, record.tag = deferred.provider, deferred.tag
    record.model = bookings[0].model if len(bookings) == 1 else ""
    cost: int | None = 0
    for booking in bookings:
        if booking.usage is not None:
            record.usage = added(record.usage, booking.usage) if record.usage else booking.usage
        record.unmetered = record.unmetered or booking.unmetered
        record.unpriced = record.unpriced or booking.unpriced
        cost = None if cost is None or booking.cost is None else cost + booking.cost
    record.cost = cost
    return recent_request(record)


def _sight_of_stream(object_id: str, found: ExtractedUsage) -> Sequence[Sight]:
    """What the last event of a response's stream says of it."""
    if not found.terminal:
        return ()
    status = COMPLETED if found.usage is not None or not found.error else _FAILED
    return (Sight(object_id, status, found.usage, found.model or ""),)


def _last_segment(target: str) -> str:
    return target.rstrip("/").rpartition("/")[2]
