"""Admission of a request: its limits and budgets.

For a key, its group and the provider of the first target that has room, one atomic step reserves an
upper estimate of what the request may use, or refuses the request. Without limits nothing is
estimated and no store is asked. Callers with their own provider key have no limits here.

Invariant: a request that reaches a provider has a lease in every limit that holds for it, except
where the store is out of reach and the key has no limits itself (its provider's account has), or
says `store_failure = "allow"`; the lease is on the
record, and `finalize` settles it, whatever happens in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from wrapper import errors
from wrapper.admission import KeyLimits, output_limit
from wrapper.auth import Principal
from wrapper.config.problems import quote
from wrapper.endpoints import Endpoint
from wrapper.metering import PICO
from wrapper.metering.bounds import MEDIA_BYTES_PER_SECOND, MEDIA_BYTES_PER_TOKEN, whole
from wrapper.metering.dialects import DECODING_ERRORS
from wrapper.proxy.batches import BATCH, demand_of_batch
from wrapper.proxy.body import Body
from wrapper.proxy.deferred import VIDEO
from wrapper.proxy.model_access import not_priced
from wrapper.proxy.request import ProxyRequest
from wrapper.proxy.targets import UpstreamAttempt
from wrapper.runtime import RequestContext
from wrapper.store import Demand, Lease, Refused, Standing, StoreError
from wrapper.upstream import Upstream

_NO_DEMAND: Final = Demand()
_OF_REQUESTS, _OF_TOKENS = (
    tuple([f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset")])
    for unit in ("requests", "tokens")
)
MAX_VIDEO_SECONDS: Final = 12  # of those that OpenAI makes


class _Video(msgspec.Struct):
    seconds: Any = None


_decode_video = msgspec.json.Decoder(_Video).decode


def admit(
    context: RequestContext,
    principal: Principal,
    request: ProxyRequest,
    attempts: list[UpstreamAttempt],
) -> list[UpstreamAttempt]:
    """The attempts that may be made, from the first one whose provider has room.

    Raises RateLimitExceeded, InsufficientQuota, ModelNotPriced, StoreUnavailable.
    """
    key = principal.key
    limits = None if key is None else context.snapshot.limits.for_key(key.name)
    if key is None or limits is None:
        return attempts
    own, at = limits.own, limits.at
    places, need_estimate = [own], own.need_estimate
    if at:
        places = [at.get(attempt.upstream.provider.name, own) for attempt in attempts]
        need_estimate = any(place.need_estimate for place in places)
    demand = _NO_DEMAND
    if need_estimate:
        priced = limits.has_budget and key.unpriced == "refuse"
        demand = _demand(context, request, attempts, limits if priced else None)
    full: list[Refused] = []
    for index, place in enumerate(places):
        if not place.subjects:
            return attempts[index:]
        try:
            lease = context.runtime.admission.admit(place.subjects, demand)
        except Refused as refusal:
            if refusal.subject is not place.account:
                raise limit_exceeded(refusal, request.endpoint) from None
            full.append(refusal)
            continue
        except StoreError as error:
            context.runtime.store_failed(error)
            if key.store_failure == "allow" or not own.subjects:
                return attempts[index:]
            raise errors.StoreUnavailable() from None
        context.record.lease = lease
        context.record.dry_run += [_code(violation.reason) for violation in lease.dry_run]
        return attempts[index:]
    raise limit_exceeded(min(full, key=_lasts), request.endpoint)


def move(context: RequestContext, attempt: UpstreamAttempt) -> None:
    """Before a failover: reserve in the next target's provider what the lease holds.

    Raises UpstreamFull where that provider's account has no room in its limits, StoreUnavailable.
    """
    lease = context.record.lease
    if lease is None:
        return
    snapshot = context.snapshot
    provider = snapshot.limits.of_provider(attempt.upstream.provider.name)
    try:
        context.runtime.admission.move(lease, provider)
    except Refused:
        raise errors.UpstreamFull(
            "The provider's account has no room; try again shortly."
        ) from None
    except StoreError as error:
        context.runtime.store_failed(error)
        key = snapshot.settings.keys[context.record.api_key]
        if key.store_failure != "allow" and snapshot.limits.of_key(key.name):
            raise errors.StoreUnavailable() from None


def limit_exceeded(refusal: Refused, endpoint: Endpoint) -> errors.GatewayError:
    """The error for a refusal, with the headers that tell the client when to come again.

    What the account of a provider has left is told to nobody: it is the operator's.
    """
    kind, _, name = refusal.subject.name.partition(":")
    of = {
        "key": "this API key",
        "group": f"the group {name!r}",
        "provider": f"the gateway's account at {name!r}",
    }[kind]
    account = kind == "provider"
    field = endpoint.output_limit
    smaller = "send less" if field is None else f"limit its output ({field})"
    if refusal.reason == "budget":
        return _budget_exceeded(refusal, of, smaller, account=account)
    what = {
        "requests": "requests per minute",
        "tokens": "tokens per minute",
        "concurrency": "concurrent requests",
    }[refusal.reason]
    if refusal.never:
        again = f"The request alone may use more: {smaller}."
    else:
        again = f"Try again in {refusal.retry_after} s."
    use = what if account else f"{refusal.used} of {refusal.limit} {what} in use"
    retry = ("x-should-retry", "false")
    if refusal.retry_after is not None:
        retry = ("Retry-After", str(refusal.retry_after))
    return errors.RateLimitExceeded(
        f"Rate limit of {of}: {use}. {again}",
        headers=(retry, *rate_limit_headers(refusal.standings)),
    )


def _budget_exceeded(
    refusal: Refused, of: str, smaller: str, *, account: bool
) -> errors.InsufficientQuota:
    use = f"{_usd(refusal.used)} of {_usd(refusal.limit)} USD in use"
    retry_after = None
    if refusal.reserved:
        spent = refusal.used - refusal.reserved
        use = f"{_usd(spent)} of {_usd(refusal.limit)} USD spent, {_usd(refusal.reserved)} reserved"
        use += " by requests in progress"
        again, retry_after = " Try again shortly.", refusal.retry_after
    elif refusal.never:
        again = f" This request alone may cost more: {smaller}."
    elif refusal.retry_after is not None:
        # Periods begin at midnight, UTC; the seconds until then are rounded.
        midnight = round((time.time() + refusal.retry_after) / 86_400) * 86_400
        again = f" It begins anew on {datetime.fromtimestamp(midnight, UTC):%Y-%m-%d %H:%M} UTC."
    else:
        again = ""
    said = "" if account else f": {use}"
    return errors.InsufficientQuota(f"The budget of {of} has no room{said}.{again}", retry_after)


def _usd(pico: int) -> str:
    return f"{pico / PICO:.6f}"


def rate_limit_headers(standings: Iterable[Standing]) -> list[tuple[str, str]]:
    """`x-ratelimit-*` in OpenAI's form, of the limit with the least left; empty without limits.

    A provider's account is nothing that a key owner can act on, and a dry run must not slow a
    client down: only the enforced limits of keys and groups count.
    """
    requests: tuple[int, int, float] | None = None  # left, limit, reset
    tokens = requests
    for standing in standings:
        limits = standing.subject.limits
        if not limits.enforce or standing.subject.is_account:
            continue
        limit = limits.requests_per_minute
        if limit is not None and (requests is None or limit - standing.requests < requests[0]):
            requests = limit - standing.requests, limit, standing.requests_reset
        limit = limits.tokens_per_minute
        if limit is not None and (tokens is None or limit - standing.tokens < tokens[0]):
            tokens = limit - standing.tokens, limit, standing.tokens_reset
    headers: list[tuple[str, str]] = []
    for (limit_, remaining, reset_), found in ((_OF_REQUESTS, requests), (_OF_TOKENS, tokens)):
        if found is not None:
            left, limit, reset = found
            headers += (
                (limit_, str(limit)),
                (remaining, str(max(0, left))),
                (reset_, _duration(math.ceil(reset))),
            )
    return headers


def with_rate_limits(
    headers: list[tuple[str, str]], standings: Iterable[Standing]
) -> list[tuple[str, str]]:
    """A provider's headers, with the gateway's `x-ratelimit-*` in place of its own."""
    own = rate_limit_headers(standings)
    if not own:
        return headers
    names = dict(own)
    return [pair for pair in headers if pair[0].lower() not in names] + own


@lru_cache(128)
def _duration(seconds: int) -> str:
    """Seconds as OpenAI writes them: `1m1s`, `59s`."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _lasts(refusal: Refused) -> float:
    return math.inf if refusal.retry_after is None else refusal.retry_after


def _code(reason: str) -> str:
    return "insufficient_quota" if reason == "budget" else "rate_limit_exceeded"


def dry_run_codes(lease: Lease) -> list[str]:
    """The codes of the refusals that were not enforced."""
    return [_code(violation.reason) for violation in lease.dry_run]


def check_prices(
    context: RequestContext,
    principal: Principal,
    request: ProxyRequest,
    attempts: list[UpstreamAttempt],
) -> None:
    """Raises ModelNotPriced where the key's budget could not count what the request costs."""
    key = principal.key
    limits = None if key is None else context.snapshot.limits.for_key(key.name)
    if limits is not None and limits.has_budget and key is not None and key.unpriced == "refuse":
        _demand(context, request, attempts, limits)


def _demand(
    context: RequestContext,
    request: ProxyRequest,
    attempts: list[UpstreamAttempt],
    budgets: KeyLimits | None,
) -> Demand:
    """The upper estimate of the request at the dearest of its targets; nothing for a request that
    uses nothing by itself, such as a GET.

    With `budgets` a model whose price is unknown is refused: its cost could not be counted.
    """
    endpoint = request.endpoint
    if endpoint.creates == BATCH:
        return _demand_of_batch(context, request, attempts[0].upstream, budgets)
    if endpoint.reports_stored_usage:
        return _NO_DEMAND
    body, asks = request.body, output_limit(request.output_fields)
    size, seconds = 0, 0.0
    if isinstance(body, bytes):
        size = len(body)
    elif body is not None:  # a recording or an image
        length = body.length or 0
        size, seconds = length // MEDIA_BYTES_PER_TOKEN, length / MEDIA_BYTES_PER_SECOND
    stated = endpoint.input_only or asks.tokens is not None
    output = asks.total(0 if stated else _default_output(context, attempts))
    characters = size if endpoint.by_character else 0
    video_seconds = _video_seconds(body) if endpoint.creates == VIDEO else 0
    # Embeddings and transcriptions have no price of what they write.
    answers = not endpoint.input_only and not seconds
    cost = 0
    for attempt in attempts:
        upstream = attempt.upstream
        ceiling = context.snapshot.prices.ceiling(
            upstream.provider.name, upstream.host, attempt.model, asks.tier
        )
        if ceiling is not None:
            cost = max(cost, ceiling.cost(size, output, seconds, characters, video_seconds))
            if ceiling.answers or not answers:
                continue
        if budgets and (attempt.model or endpoint.metered or endpoint.default_model):
            if budgets.enforced:
                asked = f" (asked for as {quote(request.named_model)})" if attempt.rename else ""
                raise not_priced(attempt.model, asked)
            context.record.dry_run.append(errors.ModelNotPriced.code)
            budgets = None
    return Demand(size + output, cost)


def _video_seconds(body: Body) -> int:
    """How long the video is that a request asks for; of a form, the longest that there is."""
    try:
        asked = whole(_decode_video(body).seconds) if isinstance(body, bytes) else 0
    except DECODING_ERRORS:
        asked = 0
    return asked or MAX_VIDEO_SECONDS


def _default_output(context: RequestContext, attempts: list[UpstreamAttempt]) -> int:
    server = context.snapshot.settings.server
    return max(
        [
            a.upstream.provider.default_output_tokens or server.default_output_tokens
            for a in attempts
        ]
    )


def _demand_of_batch(
    context: RequestContext, request: ProxyRequest, upstream: Upstream, budgets: KeyLimits | None
) -> Demand:
    try:
        return demand_of_batch(context, request, upstream, refuse=budgets is not None)
    except errors.ModelNotPriced as error:
        if budgets and budgets.enforced:
            raise
        context.record.dry_run.append(error.code)
        return demand_of_batch(context, request, upstream, refuse=False)
