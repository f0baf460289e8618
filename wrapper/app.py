"""The application: what it is made of, and what happens before and after every request.

`create_app` is the table of contents. Invariant: every request is recorded exactly once, when its
last byte has left, whatever responded to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache, partial
from types import SimpleNamespace
from typing import Any

from flask import Flask, Request, Response, g, request
from flask.ctx import AppContext
from flask.globals import _cv_app, _cv_request
from flask_cors.core import get_cors_options, set_cors_headers
from werkzeug.datastructures import EnvironHeaders
from werkzeug.exceptions import HTTPException

from wrapper import errors
from wrapper.blueprints import chat, models, openai, openapi, ops, passthrough
from wrapper.cancellation import CancelScope, in_pieces
from wrapper.config import Settings
from wrapper.metering.pricing import Prices
from wrapper.proxy.body import PIECE, close_after, content_length
from wrapper.proxy.finalize import finalize
from wrapper.proxy.request import split_target
from wrapper.proxy.response import StreamedResponse
from wrapper.record import UNMATCHED, RequestRecord
from wrapper.runtime import RequestContext, Runtime, request_context
from wrapper.store import open_store
from wrapper.telemetry import Exporter, Telemetry

log = logging.getLogger("wrapper")

# What SDKs read, by name for browsers that do not know "*" yet; which covers all as no credentials
# are allowed (https://fetch.spec.whatwg.org/#http-access-control-expose-headers).
EXPOSED = [
    *(
        "*",
        "x-request-id",
        "x-wrapper-provider",
        "x-wrapper-cost-usd",
        "Server-Timing",
        "Retry-After",
        "retry-after-ms",
    ),
    *(
        "x-should-retry",
        "openai-processing-ms",
        "openai-version",
        "openai-model",
        "Content-Disposition",
    ),
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
]
DRAINED_BYTES = 65536


class GatewayRequest(Request):
    """A request that reads its environment when it is asked: Flask's reads all of it at once, which
    takes longer than what is done with it here.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ
        self.shallow = False
        self.method = environ["REQUEST_METHOD"].upper()

    @cached_property
    def headers(self) -> EnvironHeaders:  # type: ignore[override]
        """The client's headers."""
        return EnvironHeaders(self.environ)

    @cached_property
    def path(self) -> str:  # type: ignore[override]
        """The decoded path."""
        return "/" + _decoded(self.environ.get("PATH_INFO", "")).lstrip("/")

    @cached_property
    def query_string(self) -> bytes:  # type: ignore[override]
        """What follows the question mark."""
        return bytes(self.environ.get("QUERY_STRING", ""), "latin-1")


class GatewayApp(Flask):
    """Flask, with a record for every request: begun here before its handler, finalized when its
    response is closed.

    `wsgi_app` does as Flask's, in a third of the time: without signals, sessions and teardown
    functions, which nothing here uses, and with the matches of the URL map kept.
    """

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Handle one request."""
        request = GatewayRequest(environ)
        # As much of Flask's contexts as `request`, `g` and `current_app` read.
        context: Any = SimpleNamespace(app=self, request=request)
        tokens = _cv_app.set(AppContext(self)), _cv_request.set(context)
        try:
            try:
                response = self._respond(request)
            except Exception as error:  # noqa: BLE001
                response = self.handle_exception(error)
            return response(environ, start_response)
        finally:
            _cv_app.reset(tokens[0])
            _cv_request.reset(tokens[1])

    def _respond(self, request: Request) -> Response:
        try:
            try:
                found = self._find(request.environ["PATH_INFO"], request.method)
                request.url_rule, request.view_args = rule, arguments = found
            except HTTPException as error:
                request.routing_exception = error
            rv: Any = self._begin(request)
            if rv is None:
                if request.routing_exception is not None:
                    self.raise_routing_exception(request)
                rv = self.view_functions[rule.endpoint](**arguments)
        except Exception as error:  # noqa: BLE001  # there are handlers for all
            rv = self.handle_user_exception(error)
        return self.process_response(self.make_response(rv))

    @cached_property
    def _find(self) -> Callable[[str, str], Any]:
        """The rule for a path and a method, and its arguments. Raises NotFound, MethodNotAllowed.

        A WebSocket handshake matches as any request does: its handler refuses it, for its key and
        under its path.
        """
        adapter = self.url_map.bind("localhost")

        @lru_cache(maxsize=256)
        def find(path: str, method: str) -> Any:
            return adapter.match(_decoded(path), method, return_rule=True, websocket=False)

        return find

    def _begin(self, request: Request) -> Response | None:
        """Begin the request's record. In place of Flask's hooks, which nothing here registers."""
        runtime: Runtime = self.extensions["wrapper"]
        environ, rule = request.environ, request.url_rule
        record = RequestRecord(
            method=request.method,
            path=rule.rule.replace("<path:rest>", "<path>") if rule else UNMATCHED,
            client=environ.get("REMOTE_ADDR", ""),
        )
        is_probe = request.blueprint == ops.bp.name
        runtime.telemetry.request_started(record, is_probe=is_probe)
        scope = CancelScope(runtime.scopes, environ.get("gunicorn.socket"))
        target, refusal = ("", ""), None
        try:
            target = split_target(environ)
        except errors.InvalidPath as error:
            refusal = error
        g.context = RequestContext(environ, target, record, runtime, runtime.snapshot, scope)
        if refusal is not None:
            raise refusal
        if request.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
            return Response(status=204)
        return None

    def process_response(self, response: Response) -> Response:
        """What every response has, and the end of its record."""
        context: RequestContext = g.context
        record = context.record
        if not isinstance(response, StreamedResponse):  # which counts its own bytes
            record.status = response.status_code
            record.bytes_out = response.content_length or 0
            if record.bytes_out > PIECE and request.method != "HEAD":
                response.response = in_pieces(response.get_data())
                response.content_length = record.bytes_out
            response.headers.setdefault("x-request-id", record.request_id)
        if record.content is None or not record.content.ended:
            _discard_body(context)
        response.call_on_close(
            partial(finalize, record, context.runtime, context.snapshot, context.scope)
        )
        origins = context.snapshot.settings.server.cors_origins
        if origins and record.path != "/metrics":  # no page may read the keys' names
            response.headers.add("Vary", "Origin")  # without an Origin there are no CORS headers
            if "HTTP_ORIGIN" in context.environ:
                set_cors_headers(response, _cors_options(origins))
        return response


def _decoded(text: str) -> str:
    """A string of a WSGI environment, whose characters are bytes."""
    return text if text.isascii() else text.encode("latin-1").decode(errors="replace")


def create_app(settings: Settings, prices: Prices, log_level: str = "info") -> GatewayApp:
    """The gateway as a WSGI application."""
    app = GatewayApp("wrapper", static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # an OPTIONS that is no preflight is relayed
    runtime = Runtime(settings, prices, open_store(settings.store), Telemetry(log_level))
    runtime.init_app(app)
    models.ModelLists(runtime.telemetry.models_shut_down).init_app(app)
    app.extensions["exporter"] = Exporter()
    _handle_errors(app)
    for blueprint in (ops.bp, openapi.bp, models.bp, chat.bp, openai.bp, passthrough.bp):
        app.register_blueprint(blueprint)
    return app


def _discard_body(context: RequestContext) -> None:
    """A body that was not read to its end stands between this response and the next request.

    One that was begun closes the connection after the response, and so does a large one. A small
    one is read and discarded by gunicorn before the next request, and the response does not wait
    for it.
    """
    if context.record.content is not None:
        close_after(context.environ)
        return
    length = content_length(context.environ)
    if length is None or length > DRAINED_BYTES:
        close_after(context.environ)


def _handle_errors(app: Flask) -> None:
    """Every error in OpenAI's shape."""

    @app.errorhandler(errors.GatewayError)
    def gateway_error(error: errors.GatewayError) -> Response:
        record = request_context().record
        record.refused(error.status, error.label or error.code)
        if isinstance(error, errors.Drained):
            close_after(request.environ)  # another request on this connection would be too late
        if isinstance(error, errors.UnknownUrl | errors.MethodNotAllowed | errors.InvalidPath):
            record.path = UNMATCHED
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
    def unhandled(error: Exception) -> Response:
        request_id = request_context().record.request_id
        log.error("unhandled exception: %s", request_id, exc_info=error)
        return gateway_error(
            errors.InternalError("An internal error; the log has it under this request's id.")
        )


@lru_cache(maxsize=2)
def _cors_options(origins: tuple[str, ...]) -> Any:
    """CORS without credentials: a browser app sends its key itself, never a cookie.

    flask-cors' own extension would keep the origins it was made with over every reload.
    """
    return get_cors_options(
        None,
        {
            "origins": list(origins),
            "methods": openai.ANY_METHOD,
            "expose_headers": EXPOSED,
            "supports_credentials": False,
            "send_wildcard": True,
            "vary_header": False,
            "always_send": False,
            "allow_private_network": False,
            "max_age": 600,
        },
    )
