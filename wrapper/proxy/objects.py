"""Stored objects: a request for one goes to the provider that has created it.

A response, file, batch or other object exists at one provider only. Where one is created its id is
remembered (`store.objects`); a request that names it, in its path or in a field of its body, goes
there if the model's route leads there. Where the id is not known, the route of the model or the
route `*` decides.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from wrapper.config import Target
from wrapper.metering.decoding import DecompressionError, decoder_for
from wrapper.metering.sights import Shown, shown_in
from wrapper.proxy.beginning import MAX_BEGINNING, FirstEvent
from wrapper.proxy.request import ProxyRequest
from wrapper.routing import Targets
from wrapper.runtime import RequestContext

if TYPE_CHECKING:
    from wrapper.proxy.forward import Forwarded

MAX_ID: Final = 256  # characters


def remember_created(
    context: RequestContext, request: ProxyRequest, forwarded: Forwarded
) -> Shown | None:
    """Note where the object lives that the request has created: what its response shows of it.

    None for one that a caller's own credential has created: it is in the caller's account.
    """
    attempt, kind = forwarded.attempt, request.endpoint.creates
    if kind is None or forwarded.response.status >= 300 or attempt.credential is not None:
        return None
    created = _created(forwarded)
    if not isinstance(created.id, str) or not 0 < len(created.id) <= MAX_ID:
        return None
    context.runtime.objects.remember(created.id, kind, attempt.upstream.provider.name)
    return created


def targets_of_object(
    context: RequestContext, request: ProxyRequest, path: str, targets: Targets, model: str
) -> Targets:
    """Of `targets` those at the provider of the object that the request names, if it names one.

    A request without a `model` goes there even if its route does not lead there.
    """
    named = request.object_ids or ([] if model else _ids_in_path(path))
    upstreams = context.snapshot.upstreams
    for object_id in named:
        home = context.runtime.objects.find(object_id, upstreams)
        if home is not None:
            there = tuple(target for target in targets if target.provider == home)
            return there or (targets if model else (Target(home),))
    return targets


def _ids_in_path(path: str) -> list[str]:
    """What may be ids: `/threads/{id}/runs/{id}`. The first segment never is one."""
    return [part for part in path.split("/")[2:10] if 3 < len(part) <= MAX_ID]


def _created(forwarded: Forwarded) -> Shown:
    """The object in the beginning of a response; without an id where none can be read."""
    text = forwarded.first[:MAX_BEGINNING]
    response = forwarded.response
    if response.coding:
        decoder = decoder_for(response.coding)
        if decoder is None:
            return Shown()
        try:
            text = b"".join(islice(decoder.decode(text), 1))  # 64 KiB at most
        except DecompressionError:
            return Shown()
    if response.is_event_stream:
        event = FirstEvent()
        event.is_enough(text)
        text = event.data
    return shown_in(text)
