"""Batches: admitted as the requests in their input file would be.

A batch names a file and no model. Where the file was uploaded through the gateway it is known what
its requests name and may use (`batch_input`), so that a key's list of models and its budget hold
for them, too. Where it is not known, such a key needs `endpoints = ["batches"]`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from wrapper import errors
from wrapper.auth import Principal
from wrapper.formats import jsonbytes
from wrapper.metering import Usage
from wrapper.metering.batch_output import BATCH_TIER
from wrapper.metering.dialects import DECODING_ERRORS
from wrapper.proxy.batch_input import BatchInput, ModelDemand, read_batch_input
from wrapper.proxy.model_access import check_endpoint, not_priced
from wrapper.proxy.request import ProxyRequest
from wrapper.runtime import RequestContext
from wrapper.store import Demand, StoreError
from wrapper.store.limits import MAX_TOKENS, bounded
from wrapper.upstream import Upstream

BATCH: Final = "batch"
FILE: Final = "file"
# What a batch is made of. Other dialects have members of their own, in which they name files.
_MEMBERS: Final = frozenset(
    ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")
)


class _Batch(msgspec.Struct):
    input_file_id: str


_decode = msgspec.json.Decoder(_Batch).decode


def remember_file(
    context: RequestContext, request: ProxyRequest, upstream: Upstream, file_id: str
) -> None:
    """Keep what is known of an uploaded file that may be a batch's input."""
    found = request.batch_input
    if found is None:
        return
    content = msgspec.json.encode(found).decode()
    try:
        context.runtime.store.remember_file(upstream.provider.name, file_id, content)
    except StoreError as error:
        context.runtime.store_failed(error)


def input_of(
    context: RequestContext, request: ProxyRequest, upstream: Upstream
) -> BatchInput | None:
    """What is known of the file that a batch names; None where it is not known, or where a provider
    may find another one in the request.
    """
    try:
        body = request.body if isinstance(request.body, bytes) else b""
        file_id = _decode(body).input_file_id
        keys = [member.key for member in jsonbytes.members(body)]
        if len(set(keys)) < len(keys) or not _MEMBERS.issuperset(keys):
            return None
    except DECODING_ERRORS:
        return None
    try:
        content = context.runtime.store.file(upstream.provider.name, file_id)
    except StoreError as error:
        context.runtime.store_failed(error)
        return None
    return None if content is None else read_batch_input(content)


def check_batch(
    context: RequestContext, principal: Principal, request: ProxyRequest, upstream: Upstream
) -> None:
    """Raises ModelNotAllowed where a request of the batch names a model that the key may not use,
    EndpointNotAllowed where that matters and is not known.
    """
    key = principal.key
    if key is None:
        return
    has_budget = context.snapshot.limits.has_budget(key.name)
    if not (principal.is_restricted or has_budget):
        return
    found = input_of(context, request, upstream)
    if found is None:
        check_endpoint(context, principal, request)
    elif not all(map(principal.may_use, found.names)):
        raise errors.ModelNotAllowed(
            "The batch's input file names a model that this API key may not call:"
            " GET /v1/models lists those it may.",
            param="input_file_id",
        )


def demand_of_batch(
    context: RequestContext, request: ProxyRequest, upstream: Upstream, *, refuse: bool
) -> Demand:
    """The money that all requests of a batch may cost. Their tokens count in no minute.

    `refuse`: raises ModelNotPriced where a price is not known.
    """
    found = input_of(context, request, upstream)
    cost = 0
    for model, demand in found.models.items() if found else ():
        priced = _cost(context, upstream, model, demand)
        if priced is None and refuse:
            raise not_priced(model, " in the batch's input file", param="input_file_id")
        cost += priced or 0
    return bounded(Demand(0, cost))


def _cost(
    context: RequestContext, upstream: Upstream, model: str, demand: ModelDemand
) -> int | None:
    server = context.snapshot.settings.server
    default = upstream.provider.default_output_tokens or server.default_output_tokens
    output = min(demand.output_tokens + demand.unlimited * default, MAX_TOKENS)
    size = min(demand.input_bytes, MAX_TOKENS)
    usage = Usage(size, output, size + output, service_tier=BATCH_TIER)
    return context.snapshot.prices.cost(upstream.provider.name, upstream.host, model, usage)
