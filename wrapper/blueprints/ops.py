"""What is not relayed: health, readiness, metrics, and the calling key's own usage."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import msgspec
from flask import Blueprint, Response, current_app, request

from wrapper import errors
from wrapper.auth import bearer
from wrapper.cancellation import in_thread
from wrapper.config import ApiKey
from wrapper.proxy import authenticate
from wrapper.runtime import RequestContext, current_runtime, request_context
from wrapper.store import PICO, Standing, StoreError, Sums, UsageStore
from wrapper.store.spans import iso, months_start, since
from wrapper.telemetry.limits import key_families, limit_families

bp = Blueprint("ops", __name__)

T = TypeVar("T")


@bp.get("/healthz")
def healthz() -> Response:
    """Alive: the process responds."""
    return _json({"status": "ok"})


@bp.get("/readyz")
def readyz() -> Response:
    """Ready: the configuration is loaded and at least one provider can be called.

    A failing store makes it not unready: keys without limits are served all the same.
    """
    runtime = current_runtime()
    usable = runtime.snapshot.settings.usable
    if usable:
        store = "failing" if runtime.store_failing else "ok"
        return _json({"status": "ready", "providers": list(usable), "store": store})
    return _json({"status": "not ready", "reason": "no provider has a credential"}, 503)


@bp.get("/metrics")
def metrics() -> Response:
    """All workers' metrics as Prometheus text."""
    context = request_context()
    settings = context.snapshot.settings
    token = settings.server.metrics_token
    if token is not None and not hmac.compare_digest(
        bearer(request.headers.get("Authorization"), "metrics token").encode(),
        token.reveal().encode(),
    ):
        raise errors.InvalidApiKey(
            "The metrics token is wrong: /metrics needs the one of metrics_token in gateway.toml."
        )
    current_app.extensions["model_lists"].look_for_dates(context.snapshot.upstreams)
    standings: list[Standing] = []
    try:
        subjects = list(context.snapshot.limits)
        if subjects:
            standings = _read(context.runtime.store, lambda store: store.standing(subjects))
    except StoreError as error:  # the other metrics are there all the same
        context.runtime.store_failed(error)
    context.runtime.show_cooldowns()
    context.runtime.telemetry.publish()
    # Generators: what they make of thousands of keys is made by the child of the exporter.
    further = chain(key_families(settings.keys.values()), limit_families(standings))
    text, content_type = current_app.extensions["exporter"].generate_metrics(
        request.headers.get("Accept"), request.args.getlist("name[]") or None, further
    )
    return Response(text, content_type=content_type)


@bp.get("/usage")
def usage() -> Response:
    """The calling key's own usage, its limits and what is left of its budget.

    `since` is such as 24h, 7d or 2026-11-01.
    """
    context = request_context()
    key = context.snapshot.settings.keys[authenticate(context).name]
    store, name = context.runtime.store, key.name
    now = time.time()
    begin = _since(request.args.get("since"), now)
    try:
        totals, rows = _totals(store, begin, name)
        limits = _limits(context, key)
    except StoreError as error:
        context.runtime.store_failed(error)
        raise errors.StoreUnavailable() from None
    return _json(
        {
            "object": "usage",
            "api_key": name,
            "since": iso(begin),
            "until": iso(now),
            "totals": _sums(totals[0] if totals else None),
            "by_model": [
                {"provider": row.group[0], "model": row.group[1], **_sums(row)} for row in rows
            ],
            "limits": limits,
        }
    )


@bp.get("/usage/requests/<request_id>")
def usage_of_request(request_id: str) -> Response:
    """What one of the calling key's last requests has used, by the id that its response had."""
    context = request_context()
    key = context.snapshot.settings.keys[authenticate(context).name]
    try:
        found = _read(context.runtime.store, lambda store: store.recent(key.name, request_id))
    except StoreError as error:
        context.runtime.store_failed(error)
        raise errors.StoreUnavailable() from None
    if found is None:
        raise errors.UnknownUrl(
            "No request of this API key with this id has used anything in the last 7 days."
        )
    return Response(found, mimetype="application/json")


def _totals(store: UsageStore, begin: float, key: str) -> tuple[list[Sums], list[Sums]]:
    """The key's sums, in all and by model. They may take a while, and any key may ask for them."""

    def read(asked: UsageStore) -> tuple[list[Sums], list[Sums]]:
        totals = asked.totals(since=begin, key=key)
        return totals, asked.totals(since=begin, by=("provider", "model"), key=key)

    return _read(store, read)


def _read(store: UsageStore, read: Callable[[UsageStore], T]) -> T:
    """What `read` finds in the store, while the other requests go on."""
    reader = store.reader()
    if reader is None:
        return read(store)
    try:
        return in_thread(lambda: read(reader))
    finally:
        in_thread(reader.close)


def _sums(row: Sums | None) -> dict[str, object]:
    return {
        "requests": row.requests if row else 0,
        "prompt_tokens": row.prompt if row else 0,
        "completion_tokens": row.completion if row else 0,
        "total_tokens": row.total if row else 0,
        "cached_tokens": row.cached if row else 0,
        "reasoning_tokens": row.reasoning if row else 0,
        "audio_seconds": row.seconds if row else 0.0,
        "cost_usd": row.cost / PICO if row else 0.0,
        "unmetered": row.unmetered if row else 0,
        "unpriced": row.unpriced if row else 0,
        "bounded": row.bounded if row else 0,
        "bounded_tokens_low": row.tokens_low if row else 0,
        "bounded_tokens_high": row.tokens_high if row else 0,
        "bounded_cost_usd_low": row.cost_low / PICO if row else 0.0,
        "bounded_cost_usd_high": row.cost_high / PICO if row else 0.0,
    }


def _limits(context: RequestContext, key: ApiKey) -> dict[str, object]:
    """The key's own limits, and how much of each limit that holds for it is in use."""
    standings = context.runtime.admission.standing(context.snapshot.limits.of_key(key.name))
    own = next((each for each in standings if each.subject.name.startswith("key:")), None)
    left = None if own is None else own.budget_left
    budget = None if key.budget_usd is None else float(key.budget_usd)
    return {
        "models": list(key.models),
        "endpoints": list(key.endpoints),
        "group": key.group,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_concurrent": key.max_concurrent,
        "budget_usd": budget,
        "budget_period": None if budget is None else key.budget_period,
        "budget_left_usd": None if left is None else left / PICO,
        "enforced": key.enforce,
        "expires": key.expires.isoformat() if key.expires else None,
        "in_use": [_standing(standing) for standing in standings],
    }


def _standing(standing: Standing) -> dict[str, object]:
    scope, _, name = standing.subject.name.partition(":")
    limits = standing.subject.limits
    rows: list[tuple[str, float | None, float, float | None, float | None]] = [
        (
            "requests",
            limits.requests_per_minute,
            standing.requests,
            standing.requests_left,
            standing.requests_reset,
        ),
        (
            "tokens",
            limits.tokens_per_minute,
            standing.tokens,
            standing.tokens_left,
            standing.tokens_reset,
        ),
        (
            "concurrency",
            limits.max_concurrent,
            standing.concurrent,
            standing.concurrent_left,
            None,
        ),
        (
            "budget_usd",
            _usd(limits.budget),
            (standing.spent + standing.reserved) / PICO,
            _usd(standing.budget_left),
            standing.budget_reset,
        ),
    ]
    return {
        "scope": scope,
        "name": name,
        **{
            kind: {
                "limit": limit,
                "used": used,
                "left": left,
                "resets_in_seconds": None if reset is None else math.ceil(reset * 10) / 10,
            }
            for kind, limit, used, left, reset in rows
            if limit is not None
        },
    }


def _usd(pico: int | None) -> float | None:
    return None if pico is None else pico / PICO


def _since(text: str | None, now: float) -> float:
    """Unix seconds. Without a text the start of the current month, UTC."""
    if not text:
        return months_start(now)
    try:
        return since(text, now)
    except ValueError:
        raise errors.InvalidQuery(
            "'since' is such as 24h, 7d, 4w or 2026-11-01.", param="since"
        ) from None


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, mimetype="application/json")
