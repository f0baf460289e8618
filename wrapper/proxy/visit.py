"""One relayed request on its way through a handler: who calls, what is asked, who is asked.

A handler makes a `Visit`, and says with it in one sentence what it does. The rule protected
here: the order. The caller is known before the body is read, the body is whole before a provider
hears of it, and whatever was admitted is settled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response, current_app, g, request
from werkzeug.datastructures import Headers

from wrapper import errors
from wrapper.auth import CLIENT, Principal, bearer, is_gateway_key
from wrapper.cancellation import TIMEOUT, Interrupted, Watch, active
from wrapper.config import Server, Target
from wrapper.metering import NullExtractor, extractor_for
from wrapper.proxy.forward import Attempt, Relayed, ask, read_use, release
from wrapper.proxy.model_access import is_metered, uses_something, with_model
from wrapper.proxy.request import (
    Call,
    RawBody,
    body_seconds,
    close_after,
    content_length,
    has_body,
    refuse_compressed,
    refuse_other_method,
)
from wrapper.record import DRAINED, MAX_NAME, RequestRecord
from wrapper.runtime import Gateway, State

_ASKED_STREAMS = ("/chat/completions", "/completions")
# Nobody has vouched yet for callers with a credential of their own: of their larger bodies only so
# many are read at once in a worker.
_LARGE = 1 << 20  # bytes
_LARGE_AT_ONCE = 8
_large_of_others: set[Visit] = set()


class Visit:
    """One request on its way through a handler: the configuration it sees and what it carries.

    `counted` says that it is a call in the sense of the key's metrics and the usage table.
    """

    def __init__(self, *, counted: bool = True) -> None:
        self.gateway: Gateway = current_app.extensions["gateway"]
        self.state: State = self.gateway.current
        self.metering = self.state.settings.server.metering
        self.record: RequestRecord = g.record
        self.environ: dict[str, Any] = request.environ
        self.watch = Watch(self.environ.get("gunicorn.socket"))
        self.credential: str | None = None
        self.call: Call
        self.raw: RawBody | None = None
        self.counted = counted
        if counted:
            self.gateway.telemetry.proxy_request_started()
        g.visit = self

    def principal(self, *, client_credentials: bool = False) -> Principal:
        """Who calls, found before anything of the body is read, and let in where there is room."""
        authorization = self.environ.get("HTTP_AUTHORIZATION")
        try:
            principal = self.state.keyring.authenticate(authorization)
        except errors.InvalidApiKey:
            if not client_credentials or is_gateway_key(bearer(authorization)):
                raise
            principal, self.credential = CLIENT, authorization
        self.record.api_key = principal.name
        if self.counted and active() >= self.state.settings.server.max_in_flight:
            raise _full()
        return principal

    def read(self, reader: Callable[[Call, Server], None]) -> Call:
        """Read the call within the time that a body of its size may take."""
        server = self.state.settings.server
        environ = self.environ
        refuse_compressed(environ)
        refuse_other_method(environ)
        sock = environ.get("gunicorn.socket")
        if sock is not None:
            sock.settimeout(server.body_timeout)
        seconds = body_seconds(environ, server.body_timeout, server.max_upload_bytes)
        self.call = call = Call(environ, seconds)
        if self.credential is not None and has_body(environ):
            self._take_place(content_length(environ))
        self.watch.deadline(seconds)
        try:
            with self.watch.reading():
                reader(call, server)
        except Interrupted as interruption:
            if interruption.reason != TIMEOUT:
                self.record.outcome = DRAINED
                raise errors.Drained() from None
            raise errors.RequestTimeout("The request body did not arrive in time.") from None
        finally:
            _large_of_others.discard(self)
            self.watch.deadline(None)  # a refused call leaves no timer behind
            self.raw = call.raw
            self.record.waited_for_client += call.waited
        self.record.model = (call.model or "")[:MAX_NAME]
        self.record.stream = call.stream
        return call

    def _take_place(self, length: int | None) -> None:
        if length is not None and length <= _LARGE:
            return
        if len(_large_of_others) >= _LARGE_AT_ONCE:
            raise _full()
        _large_of_others.add(self)

    def unified(self, target: Target, path: str, asked: str) -> Attempt:
        """An attempt at a route's target, `path` being below the provider's base URL.

        Where the target calls the model `asked` by another name, that one value is changed, in
        the body or, where the body has none, in the path.
        """
        base = self.state.upstreams[target.provider].provider.base_path
        model = target.model or asked
        rename = model != asked
        if rename and self.call.model is None:
            path = with_model(path, model)
        return self.attempt(target.provider, base + path, model, rename=rename)

    def attempt(self, provider: str, path: str, model: str, *, rename: bool) -> Attempt:
        """An attempt at `path` on a provider's origin."""
        upstreams, stand_in = self.state.upstreams, self.state.settings.stand_in
        upstream = upstreams[provider]
        if stand_in and self.credential is None and not upstream.provider.usable:
            upstream = upstreams[stand_in]
        call = self.call
        asks = (
            call.stream
            and call.method == "POST"
            and call.path.endswith(_ASKED_STREAMS)
            and self.metering
            and upstream.provider.stream_usage == "ask"
        )
        return Attempt(upstream, path + call.query, model, rename, self.credential, asks)

    def relay(self, attempts: list[Attempt]) -> Response:
        """Ask, and answer with what comes."""
        call, record, watch = self.call, self.record, self.watch
        if self.raw is not None and not self.raw.ended:
            self.raw.on_end = watch.uploaded
            watch.start(uploading=True)
        else:
            watch.start()
        try:
            attempt, answer, first = ask(record, call, attempts, watch)
        except BaseException:
            watch.stop()
            release(call)
            raise
        finally:
            record.bytes_in = self.raw.received if self.raw is not None else 0
        if self.raw is not None and not self.raw.ended:
            close_after(self.environ)  # the provider answered before it had the whole body
        content_type = answer.get("content-type").lower()
        encoding = answer.get("content-encoding").lower()
        record.status = answer.status
        record.stream = content_type.startswith("text/event-stream")
        strip = call.strip_usage and record.stream and not encoding
        tap = (
            extractor_for(content_type, encoding, strip_usage=strip)
            if self.metering
            else NullExtractor()
        )
        promised = answer.length is not None and not strip and answer.status != 204
        in_words = record.stream and encoding in ("", "identity") and not promised
        relayed = Relayed(record, answer, first, tap, watch, self.settle, in_words=in_words)
        response = Verbatim(relayed, direct_passthrough=True)
        response.status = f"{answer.status} {answer.reason}".rstrip()
        headers = response.headers
        headers.clear()
        for name, value in answer.headers:
            headers.add(name, value)
        if promised:
            headers["Content-Length"] = str(answer.length)
        record.upstream_request_id = answer.request_id
        if not answer.request_id:
            headers["x-request-id"] = record.request_id
        headers["x-wrapper-provider"] = attempt.upstream.provider.name
        headers.add("Server-Timing", record.server_timing())
        return response

    def settle(self, relayed: Relayed) -> None:
        """The call is over: read its use, then book and count it."""
        call = self.call
        try:
            release(call)
            self.record.model = self.record.model or call.told_model[:MAX_NAME]
            expected = self.metering and is_metered(call)
            read_use(relayed, used=uses_something(call), expected=expected)
        finally:
            self.gateway.settle(self.record, self.state, call=True)


def _full() -> errors.Overloaded:
    return errors.Overloaded(
        "The gateway is serving as many calls as it can; try again shortly.",
        headers=(("Retry-After", "1"),),
    )


class Verbatim(Response):
    """A provider's answer: no header of it is put right, taken out or added by the framework."""

    def get_wsgi_headers(self, environ: Any) -> Headers:
        """The headers as they are."""
        return self.headers
