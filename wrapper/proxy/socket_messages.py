"""What a client says over a WebSocket, where that decides something.

A key that may use some models only must not name another one in an event, and an event of the
Responses API (`response.create`) names the model, which has to be served by the provider that the
socket leads to. Such messages are held until they are whole, read, and only then sent on.

Everything else is not looked at: `Messages.are_read` is false, and its bytes pass as they come.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from wrapper import errors
from wrapper.auth import Principal
from wrapper.cancellation import yield_if_due
from wrapper.endpoints import find_endpoint
from wrapper.formats import jsonbytes
from wrapper.formats.websocket import Message, Opcode
from wrapper.proxy.admit import check_prices
from wrapper.proxy.forward import Forwarded
from wrapper.proxy.request import ProxyRequest, read_json
from wrapper.proxy.targets import UpstreamAttempt, resolve, resolve_provider
from wrapper.runtime import RequestContext

_CREATE: Final = "response.create"
_TYPE: Final = frozenset({"type"})


class Checked(NamedTuple):
    """A message that may go on: `text` in its place, where that is not None.

    `creates`: it is a `response.create`. Then `model` is the one at the provider, and
    `output_fields` are those of a request.
    """

    creates: bool = False
    text: bytes | None = None
    model: str = ""
    output_fields: tuple[bytes, ...] = ()


class _Event(msgspec.Struct):
    type: str | None = None


_decode = msgspec.json.Decoder(_Event).decode
_AS_IT_IS: Final = Checked()


class Messages:
    """The rules for the client's messages of one socket. `routed`: their model decides where a
    request goes, so that it has to lead to the socket's provider.
    """

    def __init__(
        self,
        context: RequestContext,
        principal: Principal,
        request: ProxyRequest,
        forwarded: Forwarded,
        *,
        routed: bool,
        path: str | None = None,
    ) -> None:
        self._context = context
        self._principal = principal
        self._request = request
        self._upstream = forwarded.attempt.upstream
        self._routed = routed
        self._path = path
        self._by_event = not request.endpoint.default_model  # each event names its model
        self.are_read = self._by_event or principal.is_restricted
        # A budget is kept where each model has a price, so each has to be seen.
        has_budget = context.snapshot.limits.has_budget(principal.name)
        self._must_be_json = principal.is_restricted or (self._by_event and has_budget)

    def check(self, message: Message) -> Checked:
        """Whether and how a message may go on.

        Raises the error that the client is told in place of a response.
        """
        text = message.data if message.opcode is Opcode.TEXT else None
        try:
            kind = _decode(text or b"").type
            twice = text is not None and jsonbytes.has_duplicate(text, _TYPE)
        except (ValueError, RecursionError):
            if self._must_be_json:
                raise errors.InvalidJson(
                    "This API key has a budget or a list of models: each message has to be a JSON"
                    " object with a 'type', as text."
                ) from None
            return _AS_IT_IS
        if twice or text is None:
            raise errors.InvalidBody("'type' is given twice, or in capitals.")
        yield_if_due()
        if self._by_event and kind == _CREATE:
            return self._check_create(text)
        if self._principal.is_restricted:
            request = replace(self._request, method="POST", query="", body=text)
            self._attempts(request)
        return _AS_IT_IS

    def _check_create(self, text: bytes) -> Checked:
        """A `response.create` is a POST to the same path."""
        at = self._request.target
        request = ProxyRequest("POST", at, "", find_endpoint("POST", at))
        request = read_json(request, text, "")
        if self._routed and not request.model:
            self._attempts(request)  # a restricted key has to name its model
            return Checked(True, None, "", request.output_fields)
        here = [each for each in self._attempts(request) if each.upstream is self._upstream]
        if not here:
            raise errors.InvalidBody(
                "This model is served by another provider than this WebSocket leads to: use HTTP.",
                param="model",
            )
        check_prices(self._context, self._principal, request, here[:1])
        rename = here[0].model if here[0].rename else None
        changed = None
        if rename is not None:
            changed = jsonbytes.replace_value(text, "model", msgspec.json.encode(rename))
        return Checked(True, changed, here[0].model, request.output_fields)

    def _attempts(self, request: ProxyRequest) -> list[UpstreamAttempt]:
        context, principal = self._context, self._principal
        if self._routed:
            return resolve(context, principal, request, path=self._path)
        return resolve_provider(context, principal, request, self._upstream.provider.name)
