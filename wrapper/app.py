"""The application: what it is made of, and what happens before and after every request.

`create_app` is the table of contents. The rule protected here: every request is recorded
exactly once, when its last byte has left, whoever answered it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from flask import Flask, Response, g, request
from flask_cors.core import get_cors_options, set_cors_headers
from werkzeug.exceptions import HTTPException

from wrapper import errors
from wrapper.blueprints import models, openapi, ops, passthrough
from wrapper.config import Settings
from wrapper.metering.pricing import Prices
from wrapper.proxy.forward import Relayed
from wrapper.proxy.request import close_after, content_length, has_body, split_target
from wrapper.record import UNMATCHED, RequestRecord
from wrapper.runtime import Gateway
from wrapper.store import open_store
from wrapper.telemetry import Exporter, Telemetry

log = logging.getLogger("wrapper")

EXPOSED = [
    *("x-request-id", "x-wrapper-provider", "Server-Timing", "Retry-After"),
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
]
DRAINED_BYTES = 65536


class GatewayApp(Flask):
    """Flask without its question, several times a request, whether a function is a coroutine."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def create_app(settings: Settings, prices: Prices, log_level: str = "info") -> GatewayApp:
    """The gateway as a WSGI application."""
    app = GatewayApp("wrapper", static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # what is no preflight is the provider's
    gateway = Gateway(settings, prices, open_store(settings.store), Telemetry(log_level))
    app.extensions["gateway"] = gateway
    app.extensions["exporter"] = Exporter()
    _answer_errors(app)
    _record_requests(app, gateway)
    _allow_origins(app, gateway)
    app.register_blueprint(ops.bp)
    app.register_blueprint(openapi.bp)
    app.register_blueprint(models.bp)
    app.register_blueprint(passthrough.bp)
    return app


def _allow_origins(app: Flask, gateway: Gateway) -> None:
    """CORS without credentials: a browser app sends its key itself, never a cookie.

    flask-cors' own extension would keep the origins it was made with over every reload.
    """

    @lru_cache(maxsize=2)
    def options(origins: tuple[str, ...]) -> Any:
        return get_cors_options(
            app,
            {
                "origins": list(origins),
                "methods": passthrough.ANY_METHOD,
                "expose_headers": EXPOSED,
                "supports_credentials": False,
                "send_wildcard": True,
                "always_send": False,
                "allow_private_network": False,
                "max_age": 600,
            },
        )

    @app.after_request
    def allow(response: Response) -> Response:
        if request.path == "/metrics":
            return response  # whatever page is open in a browser shall not read the keys' names
        return set_cors_headers(response, options(gateway.current.settings.server.cors_origins))


def _record_requests(app: Flask, gateway: Gateway) -> None:
    @app.before_request
    def begin() -> Response | None:
        environ = request.environ
        rule = request.url_rule
        g.record = RequestRecord(
            method=request.method,
            path=rule.rule.replace("<path:rest>", "<path>") if rule else UNMATCHED,
            client=environ.get("REMOTE_ADDR", ""),
        )
        is_probe = request.blueprint == ops.bp.name
        gateway.telemetry.request_started(g.record, is_probe=is_probe)
        split_target(environ)
        if request.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
            return Response(status=204)
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        record: RequestRecord = g.record
        if isinstance(response.response, Relayed):
            return response
        record.status = response.status_code
        record.bytes_out = response.content_length or 0
        response.headers.setdefault("x-request-id", record.request_id)
        state, call = gateway.current, "visit" in g and g.visit.counted
        _take_leftover(request.environ)
        response.call_on_close(lambda: gateway.settle(record, state, call=call))
        return response


def _take_leftover(environ: dict[str, Any]) -> None:
    """A body that nobody read stands between this answer and the next request.

    A small one is read away by gunicorn before that request, and the answer does not wait for
    it; for a large one the connection is closed after the answer.
    """
    raw = g.visit.raw if "visit" in g else None
    if not has_body(environ) or (raw is not None and raw.ended):
        return
    length = content_length(environ)
    if raw is not None or length is None or length > DRAINED_BYTES:
        close_after(environ)


def _answer_errors(app: Flask) -> None:
    @app.errorhandler(errors.GatewayError)
    def gateway_error(error: errors.GatewayError) -> Response:
        g.record.refuse(error.status, error.label or error.code)
        if isinstance(error, errors.Drained):
            close_after(request.environ)  # coming again on this connection would be too late
        if isinstance(error, errors.UnknownUrl | errors.MethodNotAllowed | errors.InvalidPath):
            g.record.path = UNMATCHED
        response = Response(error.body(), error.status, mimetype="application/json")
        response.headers.extend(list(error.headers))
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        if error.code == 405:
            valid = getattr(error, "valid_methods", None) or ()
            refusal: errors.GatewayError = errors.MethodNotAllowed(
                f"This URL does not take {request.method[:16]}.",
                headers=(("Allow", ", ".join(sorted(valid))),),
            )
        else:
            refusal = errors.UnknownUrl("There is no such URL here; see /docs.")
        return gateway_error(refusal)

    @app.errorhandler(Exception)
    def bug(error: Exception) -> Response:
        log.error("a bug: %s", g.record.request_id, exc_info=error)
        return gateway_error(
            errors.InternalError("An internal error; the log has it under this request's id.")
        )
