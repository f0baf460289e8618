"""What is relayed: chat, the unified OpenAI paths, and each provider's own.

Each handler reads as the sentence it is: who calls, what is asked, who can answer, relay.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from flask import Blueprint, Response, current_app, g, request

from wrapper import errors
from wrapper.call import Call, RawBody, body_seconds, close_after, refuse_compressed
from wrapper.config import Target
from wrapper.exchange import Exchange
from wrapper.gateway import Gateway, State
from wrapper.keys import CLIENT, Principal, bearer, is_gateway_key
from wrapper.relay import Attempt, Relayed, ask, read_use, release
from wrapper.usage import tap_for
from wrapper.watch import TIMEOUT, Interrupted, Watch

bp = Blueprint("api", __name__)

ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

# Where a POST's answer reports what it used. Others (files, batches, …) use nothing by themselves.
_METERED = (
    "/chat/completions",
    "/completions",
    "/responses",
    "/embeddings",
    "/audio/transcriptions",
    "/audio/translations",
    "/audio/speech",
    "/images/generations",
    "/images/edits",
    "/images/variations",
)
_ASKED_STREAMS = ("/chat/completions", "/completions")


@bp.post("/chat/completions")
@bp.post("/v1/chat/completions")
def chat() -> Response:
    """Chat, routed by `model`."""
    visit = Visit()
    principal = visit.principal()
    call = visit.read(lambda call, limit: call.read_json(limit.max_body_bytes))
    if not call.model:
        raise errors.InvalidBody("'model' is missing: name the model to call.", param="model")
    allow(principal, call.model)
    targets = visit.state.routes.for_model(call.model)
    return visit.relay([visit.unified(target, "/chat/completions") for target in targets])


@bp.route("/v1/<path:rest>", methods=ANY_METHOD, provide_automatic_options=False)
def unified(rest: str) -> Response:
    """The OpenAI API, routed by `model` where the body has one, else to the `*` route."""
    visit = Visit()
    principal = visit.principal()
    call = visit.read(
        lambda call, limit: call.read_any(
            limit.max_body_bytes, limit.max_upload_bytes, need_model=True
        )
    )
    path = call.target[len("/v1") :]
    call.model = call.model or model_in_path(path)
    if call.model:
        allow(principal, call.model)
        targets = visit.state.routes.for_model(call.model)
    else:
        targets = visit.state.routes.catch_all()
    if not targets:
        raise errors.UnknownUrl("No route leads there: the configuration has no '*' route.")
    return visit.relay([visit.unified(target, path) for target in targets])


@bp.route("/<provider>/<path:rest>", methods=ANY_METHOD, provide_automatic_options=False)
def passthrough(provider: str, rest: str) -> Response:
    """A provider's own API, byte for byte."""
    visit = Visit()
    upstream = visit.state.upstreams.get(provider)
    if upstream is None:
        raise errors.UnknownUrl(f"Unknown request URL: {request.method} {unknown(provider)}.")
    principal = visit.principal(client_credentials=upstream.provider.client_credentials)
    restricted = principal.models != ("*",)
    call = visit.read(
        lambda call, limit: call.read_any(
            limit.max_body_bytes, limit.max_upload_bytes, need_model=restricted
        )
    )
    path = call.target[len(provider) + 1 :]
    call.model = call.model or model_in_path(path)
    if call.model:
        allow(principal, call.model)
    attempt = visit.attempt(provider, path, call.model or "", rename=False)
    return visit.relay([attempt])


class Visit:
    """One request on its way through a handler: the configuration it sees and what it carries.

    `counted` says that it is a call in the sense of the key's metrics and the usage table.
    """

    def __init__(self, *, counted: bool = True) -> None:
        self.gateway: Gateway = current_app.extensions["gateway"]
        self.state: State = self.gateway.current
        self.exchange: Exchange = g.exchange
        self.environ: dict[str, Any] = request.environ
        self.watch = Watch(self.environ.get("gunicorn.socket"))
        self.credential: str | None = None
        self.call: Call
        self.raw: RawBody | None = None
        self.counted = counted
        if counted:
            self.gateway.telemetry.admit()
        g.visit = self

    def principal(self, *, client_credentials: bool = False) -> Principal:
        """Who calls, found before anything of the body is read."""
        authorization = self.environ.get("HTTP_AUTHORIZATION")
        try:
            principal = self.state.keyring.authenticate(authorization)
        except errors.InvalidApiKey:
            if not client_credentials or is_gateway_key(bearer(authorization)):
                raise
            principal, self.credential = CLIENT, authorization
        self.exchange.api_key = principal.name
        return principal

    def read(self, reader: Any) -> Call:
        """Read the call within the time that a body of its size may take."""
        server = self.state.settings.server
        environ = self.environ
        refuse_compressed(environ)
        sock = environ.get("gunicorn.socket")
        if sock is not None:
            sock.settimeout(server.body_timeout)
        self.call = call = Call(environ)
        self.watch.deadline(body_seconds(environ, server.body_timeout, server.max_upload_bytes))
        try:
            with self.watch:
                reader(call, server)
        except Interrupted as interruption:
            if interruption.reason != TIMEOUT:
                raise errors.Drained("The gateway is restarting; try again.") from None
            raise errors.RequestTimeout("The request body did not arrive in time.") from None
        finally:
            self.raw = call.raw
            self.exchange.waited_for_client += call.waited
        self.exchange.model = call.model or ""
        self.exchange.stream = call.stream
        return call

    def unified(self, target: Target, path: str) -> Attempt:
        """An attempt at a route's target, `path` being below the provider's base URL."""
        base = self.state.upstreams[target.provider].provider.base_path
        model = target.model or self.call.model or ""
        rename = bool(target.model) and model != self.call.model
        return self.attempt(target.provider, base + path, model, rename=rename)

    def attempt(self, provider: str, path: str, model: str, *, rename: bool) -> Attempt:
        """An attempt at `path` on a provider's origin."""
        upstream = self.state.upstreams[provider]
        call = self.call
        asks = (
            call.stream
            and call.method == "POST"
            and path.endswith(_ASKED_STREAMS)
            and self.state.settings.server.metering
            and upstream.provider.stream_usage == "ask"
        )
        return Attempt(upstream, path + call.query, model, rename, self.credential, asks)

    def relay(self, attempts: list[Attempt]) -> Response:
        """Ask, and answer with what comes."""
        call, exchange, watch = self.call, self.exchange, self.watch
        if self.raw is not None and not self.raw.ended:
            self.raw.on_end = watch.start
        else:
            watch.start()
        try:
            attempt, answer, first = ask(exchange, call, attempts, watch)
        except BaseException:
            watch.stop()
            release(call)
            raise
        finally:
            exchange.bytes_in = self.raw.received if self.raw is not None else 0
        if self.raw is not None and not self.raw.ended:
            close_after(self.environ)  # the provider answered before it had the whole body
        content_type = answer.get("content-type")
        encoding = answer.get("content-encoding")
        exchange.status = answer.status
        exchange.stream = content_type.startswith("text/event-stream")
        strip = call.strip_usage and exchange.stream and not encoding
        tap = tap_for(content_type, encoding, strip_usage=strip)
        relayed = Relayed(exchange, answer, first, tap, watch, self.settle)
        response = Response(relayed, direct_passthrough=True)
        response.status = f"{answer.status} {answer.reason}".rstrip()
        headers = response.headers
        headers.clear()
        for name, value in answer.headers:
            headers.add(name, value)
        if answer.length is not None and not strip:
            headers["Content-Length"] = str(answer.length)
        exchange.upstream_request_id = answer.request_id
        headers.setdefault("x-request-id", exchange.request_id)
        headers["x-wrapper-provider"] = attempt.upstream.provider.name
        headers.add("Server-Timing", exchange.server_timing())
        return response

    def settle(self, relayed: Relayed) -> None:
        """The call is over: read its use, then book and count it."""
        call = self.call
        release(call)
        read_use(relayed, expected=is_metered(call))
        self.gateway.settle(self.exchange, self.state, call=True)


def allow(principal: Principal, model: str) -> None:
    """Raises ModelNotAllowed where the key's `models` do not have it."""
    if not principal.may_call(model):
        raise errors.ModelNotAllowed(
            "This API key may not call that model: GET /v1/models lists those it may.",
            param="model",
        )


def is_metered(call: Call) -> bool:
    """Whether a 2xx to this call should say what it used."""
    return call.method == "POST" and (call.target.endswith(_METERED))


def model_in_path(path: str) -> str | None:
    """The model in old OpenAI and Azure paths: `/engines/{model}/…`, `/deployments/{model}/…`."""
    parts = path.split("/")
    for kind in ("engines", "deployments"):
        if kind in parts[:-2]:
            return unquote(parts[parts.index(kind) + 1]) or None
    return None


def unknown(text: str) -> str:
    """What the caller typed, short and on one line."""
    return ascii("/" + text[:60] + "/…")
