"""`GET /v1/models`: what a key may call, over all providers and aliases.

Invariant: a model is listed exactly when a request with its name would be routed to the provider
that has it and the key may make that request.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import msgspec
from flask import Blueprint, Flask, Response, current_app

from wrapper import errors
from wrapper.auth import Principal
from wrapper.metering.dialects import DECODING_ERRORS
from wrapper.proxy import authenticate
from wrapper.runtime import Snapshot, request_context
from wrapper.upstream import Upstream

bp = Blueprint("models", __name__)

FRESH = 60.0  # seconds
RETRY = 10.0  # seconds after a failure
TIMEOUT = 5.0  # seconds; the list is not worth a longer wait
MAX_LIST = 4 << 20  # bytes
MAX_MODELS = 5000  # of one provider; some have hundreds
MAX_NAME = 256
DATES_FRESH = 6 * 3600.0  # seconds; shutdowns are announced months ahead
DATES_FIRST = 600.0  # seconds after the start: lists are not what a start should wait for
MAX_OBJECTS = 50_000  # in one list: decoding them takes some ten milliseconds

Model = dict[str, Any]


log = logging.getLogger("wrapper")


class _List(msgspec.Struct):
    """OpenAI's list, or that of Ollama, Cohere, Gemini and others."""

    data: list[Any] | None = None
    models: list[Any] | None = None


_decode = msgspec.json.Decoder(_List | list[Any]).decode


@bp.get("/models")
@bp.get("/v1/models")
def list_models() -> Response:
    """The models this key may call, in OpenAI's list format."""
    return _json({"object": "list", "data": list(_callable().values())})


@bp.get("/models/<path:model>")
@bp.get("/v1/models/<path:model>")
def get_model(model: str) -> Response:
    """One of them."""
    found = _callable().get(model)
    if found is None:
        raise errors.ModelNotFound(
            "No such model, or this API key may not call it: GET /v1/models lists those it may.",
            param="model",
        )
    return _json(found)


class ModelLists:
    """The providers' lists in this worker.

    Each provider is asked at most once a minute, beside the callers but for the first; one that
    cannot respond keeps the list it gave last and is not asked again for some seconds. `on_dates`
    gets a provider's name and when its models are shut down, where its list says so.
    """

    def __init__(self, on_dates: Callable[[str, Mapping[str, float]], None]) -> None:
        self._on_dates = on_dates
        self._dates_until = time.monotonic() + DATES_FIRST
        self._known: dict[Upstream, tuple[float, list[Model]]] = {}  # when to ask again, the list
        self._failing: set[Upstream] = set()  # those of which the log has been told
        self._asking: dict[Upstream, threading.Event] = {}

    def init_app(self, app: Flask) -> None:
        """Make these the lists of this application."""
        app.extensions["model_lists"] = self

    def of(self, upstreams: dict[str, Upstream]) -> dict[str, list[Model]]:
        """Every usable provider's list; those that are not fresh are asked at the same time.

        A provider without a list yet is waited for; where there is an older list, the next request
        sees the new one.
        """
        now = time.monotonic()
        usable = {name: up for name, up in upstreams.items() if up.provider.usable}
        stale = [up for up in usable.values() if up not in self._known or self._known[up][0] < now]
        asked = {upstream: self._asking.get(upstream) or self._ask(upstream) for upstream in stale}
        for upstream, responded in asked.items():
            if upstream not in self._known:
                responded.wait(TIMEOUT + 1)
        for upstream in set(self._known) - set(upstreams.values()):
            del self._known[upstream]
        self._failing.intersection_update(upstreams.values())
        return {name: self._known[up][1] for name, up in usable.items() if up in self._known}

    def look_for_dates(self, upstreams: dict[str, Upstream]) -> None:
        """Ask for lists that are hours old; does not wait. For /metrics, which shows the dates."""
        now = time.monotonic()
        if now < self._dates_until:
            return
        self._dates_until = now + DATES_FRESH
        for upstream in upstreams.values():
            if upstream.provider.usable and upstream not in self._asking:
                self._ask(upstream)

    def _ask(self, upstream: Upstream) -> threading.Event:
        """Ask a provider once for all requests that come until it has responded."""
        responded = self._asking[upstream] = threading.Event()

        def ask() -> None:
            try:
                self._refresh(upstream)
            finally:
                del self._asking[upstream]
                responded.set()

        threading.Thread(target=ask).start()
        return responded

    def _refresh(self, upstream: Upstream) -> None:
        until = time.monotonic() + FRESH
        try:
            text = upstream.fetch("/models", timeout=TIMEOUT, limit=MAX_LIST)
            models = read_list(text, upstream.provider.name)
        except (errors.UpstreamError, *DECODING_ERRORS) as error:
            until = time.monotonic() + RETRY
            models = self._known[upstream][1] if upstream in self._known else []
            if upstream not in self._failing:
                name = upstream.provider.name
                log.warning("cannot list the models of provider '%s': %s", name, error)
            self._failing.add(upstream)
        else:
            self._failing.discard(upstream)
            self._on_dates(upstream.provider.name, shutdowns(models))
        self._known[upstream] = (until, models)


def read_list(text: bytes, provider: str) -> list[Model]:
    """The models in a provider's list: OpenAI's format, a bare array, or `{"models": [...]}`.

    An entry is an object with an `id`, `name` or `model`, or a name alone; what OpenAI's format
    wants beside that is filled in. Raises DECODING_ERRORS where there is no list that can be read.
    """
    if text.count(b"{") > MAX_OBJECTS or text.count(b",") > 100 * MAX_MODELS:
        raise ValueError("it is too long")
    found = _decode(text)
    entries = found if isinstance(found, list) else found.data
    if entries is None and isinstance(found, _List):
        entries = found.models
    if entries is None:
        raise ValueError("its response has neither 'data' nor 'models'")
    models = [_model(entry, provider) for entry in entries]
    readable = [model for model in models if model is not None]
    if entries and not readable:
        raise ValueError("its entries have neither 'id' nor 'name'")
    return readable[:MAX_MODELS]


def shutdowns(models: Iterable[Model]) -> dict[str, float]:
    """The Unix times of the models whose provider says when it shuts them down.

    OpenAI has `shutdown_date` as a day (https://platform.openai.com/docs/api-reference/models).
    """
    found = {}
    for model in models:
        try:
            day = datetime.datetime.fromisoformat(model.get("shutdown_date") or "")
            at = day if day.tzinfo else day.replace(tzinfo=datetime.UTC)
            if len(model["id"]) <= MAX_NAME:
                found[model["id"]] = at.timestamp()
        except (TypeError, ValueError, OverflowError):  # none, or none that can be read
            continue
    return found


def _model(entry: Any, provider: str) -> Model | None:
    fields = {"id": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict):
        return None
    named = [fields.get(key) for key in ("id", "name", "model")]
    name = next((value for value in named if isinstance(value, str) and value), None)
    if name is None:
        return None
    if name != named[0]:
        name = name.removeprefix("models/")  # Gemini's own list
    return {"object": "model", "created": 0, "owned_by": provider, **fields, "id": name}


def _callable() -> dict[str, Model]:
    context = request_context()
    principal = authenticate(context)
    snapshot = context.snapshot
    models = _aliases(snapshot, principal)
    began = time.perf_counter()
    lists = cast(ModelLists, current_app.extensions["model_lists"]).of(snapshot.upstreams)
    context.record.upstream += time.perf_counter() - began
    for provider, listed in lists.items():
        for model in listed:
            name = model["id"]
            if name in models or not principal.may_use(name):
                continue
            if _is_routed_to(snapshot, name, provider):
                models[name] = model
    return models


def _aliases(snapshot: Snapshot, principal: Principal) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for name in snapshot.routes.exact_names:
        targets = snapshot.routes.for_model(name)
        usable = any(snapshot.upstreams[t.provider].provider.usable for t in targets)
        if usable and principal.may_use(name):
            owner = targets[0].provider
            models[name] = {"id": name, "object": "model", "created": 0, "owned_by": owner}
    return models


def _is_routed_to(snapshot: Snapshot, model: str, provider: str) -> bool:
    try:
        targets = snapshot.routes.for_model(model)
    except errors.ModelNotFound:
        return False
    return any(t.provider == provider and t.model in (None, model) for t in targets)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), mimetype="application/json")
