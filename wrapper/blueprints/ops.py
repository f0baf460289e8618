"""What is not relayed: health, readiness, metrics, and the calling key's own usage."""

from __future__ import annotations

import hmac
import logging
import time

import msgspec
from flask import Blueprint, Response, current_app, request

from wrapper import errors
from wrapper.auth import bearer
from wrapper.config import ApiKey
from wrapper.proxy import authenticate
from wrapper.runtime import current_runtime, request_context
from wrapper.store import PICO, StoreError, Sums, UsageStore
from wrapper.store.spans import days_start, iso, months_start, since

bp = Blueprint("ops", __name__)
log = logging.getLogger("wrapper")


@bp.get("/healthz")
def healthz() -> Response:
    """Alive: the process responds."""
    return _json({"status": "ok"})


@bp.get("/readyz")
def readyz() -> Response:
    """Ready: the configuration is loaded and at least one provider can be called."""
    usable = current_runtime().snapshot.settings.usable
    if usable:
        return _json({"status": "ready", "providers": list(usable)})
    return _json({"status": "not ready", "reason": "no provider has a credential"}, 503)


@bp.get("/metrics")
def metrics() -> Response:
    """All workers' metrics as Prometheus text."""
    token = current_runtime().snapshot.settings.server.metrics_token
    if token is not None and not hmac.compare_digest(
        bearer(request.headers.get("Authorization"), "metrics token").encode(),
        token.reveal().encode(),
    ):
        raise errors.InvalidApiKey(
            "The metrics token is wrong: /metrics needs the one of metrics_token in gateway.toml."
        )
    text, content_type = current_app.extensions["exporter"].generate_metrics(
        request.headers.get("Accept"), request.args.getlist("name[]") or None
    )
    return Response(text, content_type=content_type)


@bp.get("/usage")
def usage() -> Response:
    """The calling key's own usage, its limits and what is left of its budget.

    `since` is such as 24h, 7d or 2026-11-01.
    """
    store, key = current_runtime().store, authenticate(request_context()).key
    name = key.name if key else ""
    now = time.time()
    begin = _since(request.args.get("since"), now)
    try:
        totals = store.totals(since=begin, key=name)
        rows = store.totals(since=begin, by=("provider", "model"), key=name)
        limits = _limits(key, store, now)
    except StoreError as error:
        log.error("cannot read the usage table: %s", error)
        raise errors.InternalError("The usage table cannot be read at the moment.") from None
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
    }


def _limits(key: ApiKey | None, store: UsageStore, now: float) -> dict[str, object]:
    if key is None:
        return {}
    budget = None if key.budget_usd is None else float(key.budget_usd)
    return {
        "models": list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_concurrent": key.max_concurrent,
        "budget_usd": budget,
        "budget_period": None if budget is None else key.budget_period,
        "budget_left_usd": None if budget is None else max(0.0, budget - _spent(key, store, now)),
        "expires": key.expires.isoformat() if key.expires else None,
    }


def _spent(key: ApiKey, store: UsageStore, now: float) -> float:
    """USD in the current period of the key's budget."""
    begin = days_start(now) if key.budget_period == "day" else months_start(now)
    return sum(row.cost for row in store.totals(since=begin, key=key.name)) / PICO


def _since(text: str | None, now: float) -> float:
    """Unix seconds. Without a text the start of the current month, UTC."""
    if not text:
        return months_start(now)
    try:
        return since(text, now)
    except ValueError:
        raise errors.InvalidBody(
            "'since' is such as 24h, 7d, 4w or 2026-11-01.", param="since"
        ) from None


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, mimetype="application/json")
