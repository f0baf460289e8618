"""Admission of a request: its limits and budgets.

For a key, its group and the provider of the first target that has room, one atomic step reserves an
upper estimate of what the request may use, or refuses the request. Without limits nothing is
estimated and no store is asked. Callers with their own provider key have no limits here.

Invariant: a request that reaches a provider has a lease in every limit that holds for it, except
where the store is out of reach and the key says `store_failure = "allow"`; the lease is on the
record, and `finalize` settles it, whatever happens in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from wrapper import errors
from wrapper.admission import estimate
from wrapper.admission.estimate import COMPLETIONS, OUTPUT_LIMITS
from wrapper.auth import Principal
from wrapper.config.problems import quote
from wrapper.metering import Usage
from wrapper.proxy.batches import BATCH, demand_of_batch
from wrapper.proxy.request import ProxyRequest
from wrapper.proxy.targets import UpstreamAttempt
from wrapper.runtime import RequestContext
from wrapper.store import Demand, Limits, Refused, Standing, StoreError, Subject

# A form carries a recording or an image. Of speech at 16 kbit/s, which few formats go below, a
# second has 2000 bytes and some ten tokens.
MEDIA_BYTES_PER_SECOND: Final = 2000
MEDIA_BYTES_PER_TOKEN: Final = 200
_ONE_TOKEN: Final = Usage(1, 1, 2)


_OutputLimits = msgspec.defstruct(
    "_OutputLimits", [(name, Any, None) for name in (*OUTPUT_LIMITS, *COMPLETIONS)]
)
_decode = msgspec.json.Decoder(_OutputLimits).decode


def admit(
    context: RequestContext,
    principal: Principal,
    request: ProxyRequest,
    attempts: list[UpstreamAttempt],
) -> list[UpstreamAttempt]:
    """The attempts that may be made, from the first one whose provider has room.

    Raises RateLimitExceeded, InsufficientQuota, ModelNotPriced, StoreUnavailable.
    """
    key, limits = principal.key, context.snapshot.limits
    if key is None or not limits.any:
        return attempts
    own = limits.of_key(key.name)
    providers = [limits.of_provider(attempt.upstream.provider.name) for attempt in attempts]
    involved = [*own, *filter(None, providers)]
    if not involved:
        return attempts
    if key.unpriced == "refuse":
        _check_prices(context, own, request, attempts)
    demand = Demand()
    if any(subject.limits.need_estimate for subject in involved):
        demand = _demand(context, request, attempts)
    full: list[Refused] = []
    for index, provider in enumerate(providers):
        subjects = own if provider is None else (*own, provider)
        try:
            lease = context.runtime.admission.admit(subjects, demand)
        except Refused as refusal:
            if refusal.subject is not provider:
                raise limit_exceeded(refusal) from None
            full.append(refusal)
            continue
        except StoreError as error:
            context.runtime.store_failed(error)
            if key.store_failure == "allow":
                return attempts
            raise errors.StoreUnavailable() from None
        context.record.lease = lease
        context.record.dry_run += [_code(violation.reason) for violation in lease.dry_run]
        return attempts[index:]
    raise limit_exceeded(min(full, key=_lasts))


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
        if snapshot.settings.keys[context.record.api_key].store_failure != "allow":
            raise errors.StoreUnavailable() from None


def limit_exceeded(refusal: Refused) -> errors.GatewayError:
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
    if refusal.reason == "budget":
        again = "" if refusal.retry_after is None else f" It resets in {refusal.retry_after} s."
        if refusal.never:
            again = " This request alone may cost more: limit its output (max_completion_tokens)."
        use = f"{refusal.used / 1e12:.6f} of {refusal.limit / 1e12:.6f} USD in use"
        return errors.InsufficientQuota(
            f"The budget of {of} has no room{'' if account else f': {use}'}.{again}"
        )
    what = {
        "requests": "requests per minute",
        "tokens": "tokens per minute",
        "concurrency": "concurrent requests",
    }[refusal.reason]
    if refusal.never:
        again = "The request alone may use more: limit its output (max_completion_tokens)."
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


def rate_limit_headers(standings: Iterable[Standing]) -> list[tuple[str, str]]:
    """`x-ratelimit-*` in OpenAI's form, of the limit with the least left; empty without limits.

    A provider's account is nothing that a key owner can act on, and a dry run must not slow a
    client down: only the enforced limits of keys and groups count.
    """
    headers: list[tuple[str, str]] = []
    own = [
        standing
        for standing in standings
        if standing.subject.limits.enforce and not standing.subject.name.startswith("provider:")
    ]
    for unit in ("requests", "tokens"):
        limited = [
            (left, each) for each in own if (left := getattr(each, f"{unit}_left")) is not None
        ]
        if limited:
            left, standing = min(limited, key=lambda pair: pair[0])
            limit = getattr(standing.subject.limits, f"{unit}_per_minute")
            reset = getattr(standing, f"{unit}_reset")
            headers += [
                (f"x-ratelimit-limit-{unit}", str(limit)),
                (f"x-ratelimit-remaining-{unit}", str(left)),
                (f"x-ratelimit-reset-{unit}", _duration(reset)),
            ]
    return headers


def _duration(seconds: float) -> str:
    """Whole seconds as OpenAI writes them: `1m1s`, `59s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _lasts(refusal: Refused) -> float:
    return math.inf if refusal.retry_after is None else refusal.retry_after


def _code(reason: str) -> str:
    return "insufficient_quota" if reason == "budget" else "rate_limit_exceeded"


def _check_prices(
    context: RequestContext,
    own: tuple[Subject, ...],
    request: ProxyRequest,
    attempts: list[UpstreamAttempt],
) -> None:
    """A key with a budget may not use a model whose price is unknown: it could not be counted."""
    budgets = [subject.limits for subject in own if subject.limits.budget is not None]
    endpoint = request.endpoint
    if budgets and endpoint.creates == BATCH:
        _check_batch_prices(context, budgets, request, attempts[0])
        return
    if not budgets or endpoint.reports_stored_usage:
        return
    for attempt in attempts:
        if not attempt.model and not (endpoint.metered or endpoint.default_model):
            continue
        if _price(context, attempt, _ONE_TOKEN) is None:
            if not any(limits.enforce for limits in budgets):
                context.record.dry_run.append(errors.ModelNotPriced.code)
                return
            model = quote(attempt.model) if attempt.model else "a model that is not named"
            raise errors.ModelNotPriced(
                f"This API key has a budget, and the price of {model} is not known: add"
                ' [prices."MODEL"] to gateway.toml, or unpriced = "allow" to the key.',
                param="model",
            )


def _check_batch_prices(
    context: RequestContext,
    budgets: list[Limits],
    request: ProxyRequest,
    attempt: UpstreamAttempt,
) -> None:
    try:
        demand_of_batch(context, request, attempt.upstream, refuse=True)
    except errors.ModelNotPriced as error:
        if any(limits.enforce for limits in budgets):
            raise
        context.record.dry_run.append(error.code)


def _demand(
    context: RequestContext, request: ProxyRequest, attempts: list[UpstreamAttempt]
) -> Demand:
    """The upper estimate of the request at the dearest of its targets; nothing for a request that
    uses nothing by itself, such as a GET.
    """
    if request.endpoint.creates == BATCH:
        return demand_of_batch(context, request, attempts[0].upstream, refuse=False)
    if request.endpoint.reports_stored_usage:
        return Demand()
    body, fields = request.body, None
    size, seconds = 0, 0.0
    if isinstance(body, bytes):
        size, fields = len(body), _fields(body)
    elif body is not None:  # a recording or an image
        length = body.length or 0
        size, seconds = length // MEDIA_BYTES_PER_TOKEN, length / MEDIA_BYTES_PER_SECOND

    def price(input_tokens: int, output_tokens: int) -> int | None:
        used = [Usage(input_tokens, output_tokens, input_tokens + output_tokens)]
        if seconds:
            used.append(Usage(0, 0, 0, seconds=seconds))
        costs = [_price(context, attempt, each) for attempt in attempts for each in used]
        return max((cost for cost in costs if cost is not None), default=None)

    default = 0
    if not request.endpoint.input_only:
        default = max(
            attempt.upstream.provider.default_output_tokens
            or context.snapshot.settings.server.default_output_tokens
            for attempt in attempts
        )
    return estimate(size, fields, price, default)


def _fields(body: bytes) -> dict[str, Any] | None:
    """The output limits in a body; None where it is no JSON object, on a provider's own path."""
    try:
        return msgspec.structs.asdict(_decode(body))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _price(context: RequestContext, attempt: UpstreamAttempt, usage: Usage) -> int | None:
    upstream = attempt.upstream
    return context.snapshot.prices.cost(upstream.provider.name, upstream.host, attempt.model, usage)
