"""The application: what it is made of, and what happens before and after every request.

`create_app` is the table of contents. Invariant: every request is recorded exactly once, when its
last byte has left, whatever responded to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

from flask import Flask, Request, Response
from flask.ctx import AppContext
from flask.globals import _cv_app, _cv_request
from flask_cors.core import get_cors_headers, get_cors_options
from werkzeug.datastructures import EnvironHeaders
from werkzeug.exceptions import HTTPException

from wrapper import errors
from wrapper.blueprints import chat, models, openai, openapi, ops, passthrough
from wrapper.cancellation import PIECE, CancelScope, in_pieces
from wrapper.config import Settings
from wrapper.metering.pricing import Prices
from wrapper.proxy.body import close_after, content_length
from wrapper.proxy.finalize import finalize
from wrapper.proxy.request import split_target
from wrapper.proxy.response import StreamedResponse
from wrapper.record import UNMATCHED, RequestRecord
from wrapper.runtime import RequestContext, Runtime
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
DISCARDED_BYTES = 65536
_VARY = [("Vary", "Origin")]


class GatewayRequest(Request):
    """A request that reads its environment when it is asked: Flask's reads all of it at once, which
    takes longer than what is done with it here.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ
        self.shallow = False
        self.method = environ["REQUEST_METHOD"]

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


class FlaskContext(RequestContext):
    """The context of a request as Flask's `request` looks for it: nothing that is passed through
    does.
    """

    _request: Request | None = None

    @property
    def request(self) -> Request:
        """The request, made when somebody asks."""
        if self._request is None:
            self._request = GatewayRequest(self.environ)
        return self._request


View = Callable[[], Response | StreamedResponse]


class Handler(NamedTuple):
    """What a path and a method lead to; `path` is the rule, for metrics and the log."""

    view: View
    path: str
    is_probe: bool


class GatewayApp(Flask):
    """Flask, with a record for every request: begun here before its handler, finalized when its
    response is closed.

    `wsgi_app` does as Flask's, in a tenth of the time: without signals, sessions, hooks and error
    handlers that are looked up, which nothing here uses, with the matches of the URL map kept, and
    without a response object of Werkzeug for what is passed through.
    """

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Handle one request."""
        runtime: Runtime = self.extensions["wrapper"]
        method: str = environ["REQUEST_METHOD"]
        try:
            view, path, is_probe = self._find(environ["PATH_INFO"], method)
        except HTTPException as unmatched:
            view, path, is_probe = _refusing(unmatched), UNMATCHED, False
        record = RequestRecord(method, path, environ.get("REMOTE_ADDR", ""))
        runtime.telemetry.request_started(record, is_probe=is_probe)
        if method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
            view = _preflight
        try:
            target = split_target(environ)
        except errors.InvalidPath as ambiguous:
            target, view = ("", ""), _refusing(ambiguous)
        scope = CancelScope(runtime.scopes, environ.get("gunicorn.socket"))
        context = FlaskContext(environ, target, record, runtime, runtime.snapshot, scope)
        if _cv_app.get(None) is not self._app_context:  # else it stays, for the next request
            _cv_app.set(self._app_context)
        token = _cv_request.set(context)  # type: ignore[arg-type]
        try:
            try:
                response = _with_record(context, view())
            except Exception as error:  # noqa: BLE001
                response = _with_record(context, _refusal(context, error))
            try:
                return response(environ, start_response)
            except Exception:
                record.refused(errors.InternalError.status, errors.InternalError.code)
                response.close()  # the server has got nothing that it could close
                raise
        finally:
            _cv_request.reset(token)

    @cached_property
    def _app_context(self) -> AppContext:
        """That of Flask's `current_app`: one for all requests, for nothing is kept in it."""
        return AppContext(self)

    @cached_property
    def _find(self) -> Callable[[str, str], Handler]:
        """The handler for a path and a method. Raises NotFound, MethodNotAllowed.

        A WebSocket handshake matches as any request does: its handler refuses it, for its key and
        under its path.
        """
        adapter = self.url_map.bind("localhost")

        @lru_cache(maxsize=256)
        def find(path: str, method: str) -> Handler:
            rule, arguments = adapter.match(
                _decoded(path), method, return_rule=True, websocket=False
            )
            view: Any = partial(self.view_functions[rule.endpoint], **arguments)
            pattern = rule.rule.replace("<path:rest>", "<path>")
            return Handler(view, pattern, rule.endpoint.startswith(f"{ops.bp.name}."))

        return find


def _preflight() -> Response:
    return Response(status=204)


def _refusing(error: Exception) -> View:
    """A handler that has nothing but this error for a response."""

    def refuse() -> Response:
        raise error

    return refuse


def _with_record(
    context: RequestContext, response: Response | StreamedResponse
) -> Response | StreamedResponse:
    """The response with what every one has, and with the end of its record at its own end."""
    record, environ = context.record, context.environ
    end = partial(finalize, record, context.runtime, context.snapshot, context.scope)
    if isinstance(response, StreamedResponse):  # which counts its own bytes
        response.on_close = end
    else:
        record.status = response.status_code
        record.bytes_out = response.content_length or 0
        if record.bytes_out > PIECE and environ["REQUEST_METHOD"] != "HEAD":
            response.response = in_pieces(response.get_data())
            response.content_length = record.bytes_out
        response.headers.setdefault("x-request-id", record.request_id)
        response.call_on_close(end)
    if record.content is None or not record.content.ended:
        _close_if_body_is_left(context)
    origins = context.snapshot.settings.server.cors_origins
    if origins and record.path != "/metrics":  # no page may read the keys' names
        response.headers.extend(_VARY)  # without an Origin there are no CORS headers
        if "HTTP_ORIGIN" in environ:
            response.headers.extend(_cors_headers(environ, origins))
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
    for blueprint in (ops.bp, openapi.bp, models.bp, chat.bp, openai.bp, passthrough.bp):
        app.register_blueprint(blueprint)
    return app


def _close_if_body_is_left(context: RequestContext) -> None:
    """Close the connection after the response where the request's body was not read to its end.

    A small one that was not begun is left: the server reads and discards it before the next
    request, and the response does not wait for it.
    """
    if context.record.content is not None:
        close_after(context.environ)
        return
    length = content_length(context.environ)
    if length is None or length > DISCARDED_BYTES:
        close_after(context.environ)


def _refusal(context: RequestContext, error: Exception) -> Response:
    """The response for whatever a handler raised, in OpenAI's shape."""
    record, method = context.record, context.environ["REQUEST_METHOD"]
    if isinstance(error, errors.GatewayError):
        shown = error
    elif not isinstance(error, HTTPException):
        log.error("unhandled exception: %s", record.request_id, exc_info=error)
        shown = errors.InternalError("An internal error; the log has it under this request's id.")
    elif error.code == 405:
        valid = getattr(error, "valid_methods", None) or ()
        shown = errors.MethodNotAllowed(
            f"This URL does not take {method[:16]}.",
            headers=(("Allow", ", ".join(sorted(valid))),),
        )
    else:
        shown = errors.UnknownUrl("There is no such URL here; see /docs.")
    record.refused(shown.status, shown.label or shown.code)
    if isinstance(shown, errors.Drained):
        close_after(context.environ)  # another request on this connection would be too late
    if isinstance(shown, errors.UnknownUrl | errors.MethodNotAllowed | errors.InvalidPath):
        record.path = UNMATCHED
    response = Response(shown.body(), shown.status, mimetype="application/json")
    response.headers.extend(list(shown.headers))
    return response


def _cors_headers(environ: dict[str, Any], origins: tuple[str, ...]) -> list[tuple[str, str]]:
    """What a page of another origin has to be told with a response."""
    method: str = environ["REQUEST_METHOD"]
    found = get_cors_headers(_cors_options(origins), EnvironHeaders(environ), method)
    return [(name, str(value)) for name, value in found.items()]


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
