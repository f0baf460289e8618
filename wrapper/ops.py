"""What is not relayed: is it alive, is it ready, what has it counted, what has this key used."""

from __future__ import annotations

import datetime
import hmac
import logging
import re
import time

import msgspec
from flask import Blueprint, Response, current_app, g, request

from wrapper import errors
from wrapper.gateway import Gateway
from wrapper.keys import Principal, bearer
from wrapper.store import PICO, StoreError, Sums

bp = Blueprint("ops", __name__)
log = logging.getLogger("wrapper")

_SPAN = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_UNIT = {"h": 3600, "d": 86400, "w": 604800}


@bp.get("/healthz")
def healthz() -> Response:
    """Alive."""
    return _json({"status": "ok"})


@bp.get("/readyz")
def readyz() -> Response:
    """Ready: the configuration is loaded and at least one provider can be called."""
    usable = _gateway().current.settings.usable
    if usable:
        return _json({"status": "ready", "providers": list(usable)})
    return _json({"status": "not ready", "reason": "no provider has a credential"}, 503)


@bp.get("/metrics")
def metrics() -> Response:
    """Prometheus' text, all workers together."""
    token = _gateway().current.settings.server.metrics_token
    if token is not None and not hmac.compare_digest(
        bearer(request.headers.get("Authorization")).encode(), token.reveal().encode()
    ):
        raise errors.InvalidApiKey("The metrics token is not right.")
    text, content_type = current_app.extensions["exporter"].generate_metrics(
        request.headers.get("Accept"), request.args.getlist("name[]") or None
    )
    return Response(text, content_type=content_type)


@bp.get("/usage")
def usage() -> Response:
    """The calling key's own use and its limits; `since` is such as 24h, 7d or 2026-11-01."""
    gateway = _gateway()
    principal = gateway.current.keyring.authenticate(request.headers.get("Authorization"))
    g.exchange.api_key = principal.name
    until = time.time()
    since = _since(request.args.get("since"), until)
    try:
        totals = gateway.store.totals(since=since, key=principal.name)
        rows = gateway.store.totals(since=since, by=("provider", "model"), key=principal.name)
    except StoreError as error:
        log.error("the usage table cannot be read: %s", error)
        raise errors.InternalError("The usage table cannot be read at the moment.") from None
    return _json(
        {
            "object": "usage",
            "api_key": principal.name,
            "since": _iso(since),
            "until": _iso(until),
            "totals": _sums(totals[0] if totals else None),
            "by_model": [
                {"provider": row.group[0], "model": row.group[1], **_sums(row)} for row in rows
            ],
            "limits": _limits(principal),
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


def _limits(principal: Principal) -> dict[str, object]:
    key = principal.key
    if key is None:
        return {}
    return {
        "models": list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_concurrent": key.max_concurrent,
        "budget_usd": float(key.budget_usd) if key.budget_usd is not None else None,
        "budget_period": key.budget_period if key.budget_usd is not None else None,
        "expires": key.expires.isoformat() if key.expires else None,
    }


def _since(text: str | None, now: float) -> float:
    """Unix seconds. Without a text the start of the current month, UTC."""
    if not text:
        today = datetime.datetime.fromtimestamp(now, datetime.UTC)
        return today.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
    if span := _SPAN.fullmatch(text):
        return max(0.0, now - int(span[1]) * _UNIT[span[2]])
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise errors.InvalidBody(
            "'since' is such as 24h, 7d, 4w or 2026-11-01.", param="since"
        ) from None
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp()


def _iso(at: float) -> str:
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _gateway() -> Gateway:
    gateway: Gateway = current_app.extensions["gateway"]
    return gateway


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, mimetype="application/json")
