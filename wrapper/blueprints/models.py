"""`GET /v1/models`: what a key may call, over all providers and aliases.

Each provider is asked for its list at most once a minute in a worker, beside the callers but for
the first; one that cannot answer keeps the list it gave last and is left alone for some seconds.
The rule protected here: a model is listed exactly when a call with its name would be routed to
the provider that has it and the key may make that call.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
from flask import Blueprint, Response

from wrapper import errors
from wrapper.auth import Principal
from wrapper.cancellation import Interrupted, within
from wrapper.metering.dialects import DECODING_ERRORS
from wrapper.proxy.visit import Visit
from wrapper.runtime import State
from wrapper.upstream import Upstream

bp = Blueprint("models", __name__)

FRESH = 60.0  # seconds
RETRY = 10.0  # seconds after a failure
PATIENCE = 5.0  # seconds; the list is not worth a longer wait
MAX_LIST = 8 << 20  # bytes

Model = dict[str, Any]


class _List(msgspec.Struct):
    data: list[dict[str, Any]]


_decode = msgspec.json.Decoder(_List).decode
_known: dict[Upstream, tuple[float, list[Model]]] = {}  # when to ask again, the last list
_asking: dict[Upstream, threading.Event] = {}  # who is being asked just now


@bp.get("/v1/models")
def list_models() -> Response:
    """The models this key may call, in OpenAI's list format."""
    return _answer({"object": "list", "data": list(_callable().values())})


@bp.get("/v1/models/<path:model>")
def get_model(model: str) -> Response:
    """One of them."""
    found = _callable().get(model)
    if found is None:
        raise errors.ModelNotFound(
            "No such model, or this API key may not call it: GET /v1/models lists those it may.",
            param="model",
        )
    return _answer(found)


def _callable() -> dict[str, Model]:
    visit = Visit(counted=False)
    principal = visit.principal()
    state = visit.state
    models = _aliases(state, principal)
    began = time.perf_counter()
    lists = _ask_all(state)
    visit.record.upstream += time.perf_counter() - began
    for name, listed in lists.items():
        for model in listed:
            id_ = model["id"]
            if id_ not in models and principal.may_call(id_) and _leads_to(state, id_, name):
                models[id_] = model
    return models


def _aliases(state: State, principal: Principal) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for name in state.routes.exact_names:
        targets = state.routes.for_model(name)
        if principal.may_call(name) and any(_usable(state, t.provider) for t in targets):
            owner = targets[0].provider
            models[name] = {"id": name, "object": "model", "created": 0, "owned_by": owner}
    return models


def _leads_to(state: State, model: str, provider: str) -> bool:
    try:
        targets = state.routes.for_model(model)
    except errors.ModelNotFound:
        return False
    return any(t.provider == provider and t.model in (None, model) for t in targets)


def _usable(state: State, provider: str) -> bool:
    return state.upstreams[provider].provider.usable


def _ask_all(state: State) -> dict[str, list[Model]]:
    """Every usable provider's list; the ones that are not fresh are asked at the same time.

    Who has no list yet is waited for; where there is one from before, the next to ask sees the
    new one.
    """
    now = time.monotonic()
    usable = {name: up for name, up in state.upstreams.items() if up.provider.usable}
    stale = [up for up in usable.values() if up not in _known or _known[up][0] < now]
    asked = {up: _asking.get(up) or _start(up) for up in stale}
    for upstream, answered in asked.items():
        if upstream not in _known:
            answered.wait(PATIENCE + 1)
    for upstream in set(_known) - set(state.upstreams.values()):
        del _known[upstream]
    return {name: _known[up][1] for name, up in usable.items() if up in _known}


def _start(upstream: Upstream) -> threading.Event:
    """Ask a provider, for all who want to know it until it has answered."""
    answered = _asking[upstream] = threading.Event()

    def ask() -> None:
        try:
            _refresh(upstream)
        finally:
            del _asking[upstream]
            answered.set()

    threading.Thread(target=ask).start()
    return answered


def _refresh(upstream: Upstream) -> None:
    listed = _ask(upstream)
    now = time.monotonic()
    if listed is not None:
        _known[upstream] = (now + FRESH, [m for m in listed if isinstance(m.get("id"), str)])
    else:
        _known[upstream] = (now + RETRY, _known[upstream][1] if upstream in _known else [])


def _ask(upstream: Upstream) -> list[Model] | None:
    """The provider's list; None where it gave none in time."""
    path = upstream.provider.base_path + "/models"
    headers = {"Accept": "application/json", "User-Agent": "wrapper"}
    try:
        with within(PATIENCE):
            answer = upstream.send("GET", path, headers, None, first_byte_timeout=PATIENCE)
            try:
                answer.patience(PATIENCE)
                body = b""
                while len(body) < MAX_LIST and (piece := answer.read1()):
                    body += piece
            finally:
                answer.close()
        return _decode(body).data if answer.status == 200 else None
    except (errors.GatewayError, Interrupted, *DECODING_ERRORS):
        return None


def _answer(value: object) -> Response:
    return Response(msgspec.json.encode(value), mimetype="application/json")
