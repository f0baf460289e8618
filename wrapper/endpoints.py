"""The table of OpenAI-dialect endpoints: what the gateway knows about each kind of request.

Whoever asks "what kind of request is this" reads this table: authorization (may it name models that
the gateway cannot see?), reading the body, metering, routing of stored objects, and the tables of
the documentation. A new endpoint is one row.

A row is matched by the end of the path, so that it holds below `/v1` and below any provider's own
prefix alike. Paths are compared as the most lenient provider may read them: percent-decoded, in
lower case, without parameters (RFC 3986 section 3.3) and without a slash at the end. The first row
that matches wins; what no row matches is `OTHER`.

Sources: https://platform.openai.com/docs/api-reference and https://console.groq.com/docs/api-reference
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

# Reasons of `unmetered_responses_total`, beside those of `wrapper.metering.usage`.
NO_USAGE: Final = "no_usage"
NOT_REPORTED: Final = "not_reported"  # the format that was asked for reports none
DEFERRED: Final = "deferred"  # the work is done later; what it uses is reported elsewhere
UNKNOWN: Final = "unknown_endpoint"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One kind of request.

    `path` is the end of the path; `{id}` is one segment, `{rest}` any number of them or none.
    """

    path: str
    method: str = "POST"
    # The body is JSON whatever its Content-Type says: what a provider that does not look at the
    # type reads must not be hidden from the gateway in something else.
    json_body: bool = False
    # A 2xx reports what the request used; one without a readable report is counted as unmetered.
    metered: bool = False
    # The reason that a 2xx without a report is counted under, where that is to be expected. Such a
    # request is counted though it is not `metered`: it costs something, or may.
    unreported: str = ""
    # Billed by the characters of `input`, where the model has such a price.
    by_character: bool = False
    # The usage in a response is that of a stored object and was counted when that was made.
    reports_stored_usage: bool = False
    # A stream reports its usage only when `stream_options.include_usage` asks for it.
    ask_stream_usage: bool = False
    # The provider chooses a model, at a price, where the request names none.
    default_model: bool = False
    # Models are named where the gateway does not look: in a file, in a stored object, in a session.
    hidden_models: bool = False
    # The kind of object that is created and then lives at the provider that created it.
    creates: str | None = None


ENDPOINTS: Final = (
    Endpoint("/chat/completions", json_body=True, metered=True, ask_stream_usage=True),
    Endpoint("/chat/completions/{id}", reports_stored_usage=True),
    Endpoint("/completions", json_body=True, metered=True, ask_stream_usage=True),
    Endpoint("/responses", json_body=True, metered=True, creates="response"),
    Endpoint("/responses/compact", json_body=True, metered=True),
    Endpoint("/responses/input_tokens"),
    Endpoint("/responses/{id}/cancel", reports_stored_usage=True),
    Endpoint("/embeddings", json_body=True, metered=True),
    Endpoint("/audio/transcriptions", metered=True, unreported=NOT_REPORTED),
    Endpoint("/audio/translations", metered=True, unreported=NOT_REPORTED),
    Endpoint("/audio/speech", json_body=True, metered=True, by_character=True),
    Endpoint("/images/generations", json_body=True, metered=True),
    Endpoint("/images/edits", metered=True),
    Endpoint("/images/variations", metered=True),
    Endpoint("/moderations"),
    Endpoint("/rerank", json_body=True, metered=True),
    Endpoint("/videos", metered=True, default_model=True, creates="video"),
    Endpoint("/videos/edits", metered=True, hidden_models=True, creates="video"),
    Endpoint("/videos/extensions", metered=True, hidden_models=True, creates="video"),
    Endpoint("/remix", metered=True, hidden_models=True, creates="video"),
    Endpoint("/files", creates="file"),
    Endpoint("/uploads", creates="upload"),
    Endpoint("/uploads/{rest}"),
    Endpoint("/vector_stores", creates="vector_store"),
    Endpoint("/vector_stores/{id}"),
    Endpoint("/vector_stores/{id}/files/{rest}"),
    Endpoint("/vector_stores/{id}/file_batches/{rest}"),
    Endpoint("/conversations", creates="conversation"),
    Endpoint("/conversations/{rest}"),
    Endpoint("/containers", unreported=NO_USAGE, creates="container"),
    Endpoint("/containers/{rest}"),
    Endpoint("/assistants", creates="assistant"),
    Endpoint("/assistants/{id}"),
    Endpoint("/fine_tuning/jobs", unreported=DEFERRED, creates="fine_tuning_job"),
    Endpoint("/fine_tuning/jobs/{rest}"),
    Endpoint("/evals", creates="eval"),
    Endpoint("/evals/{id}"),
    Endpoint("/messages/count_tokens", json_body=True),
    Endpoint(
        "/messages/batches", hidden_models=True, reports_stored_usage=True, unreported=DEFERRED
    ),
    Endpoint("/threads/{id}/messages"),
    Endpoint("/threads/{id}/messages/{id}"),
    Endpoint("/messages", json_body=True, metered=True),
    Endpoint(
        "/batches",
        hidden_models=True,
        reports_stored_usage=True,
        unreported=DEFERRED,
        creates="batch",
    ),
    Endpoint("/batches/{rest}", reports_stored_usage=True),
    Endpoint("/threads", creates="thread"),
    Endpoint("/threads/{id}"),
    Endpoint("/runs", hidden_models=True, unreported=DEFERRED, creates="run"),
    Endpoint("/runs/{id}", reports_stored_usage=True),
    Endpoint("/runs/{id}/cancel", reports_stored_usage=True),
    Endpoint("/graders/run", hidden_models=True, unreported=NO_USAGE),
    Endpoint("/chatkit/sessions", hidden_models=True, unreported=NO_USAGE),
    Endpoint("/realtime/calls", hidden_models=True, unreported=NO_USAGE),
    Endpoint("/realtime/client_secrets", hidden_models=True, unreported=NO_USAGE),
    Endpoint("/realtime/sessions", hidden_models=True, unreported=NO_USAGE),
    Endpoint("/realtime/transcription_sessions", hidden_models=True, unreported=NO_USAGE),
    # Ollama's own API, which a local provider may speak beside OpenAI's.
    Endpoint("/api/chat", json_body=True, metered=True),
    Endpoint("/api/generate", json_body=True, metered=True),
    Endpoint("/api/embed", json_body=True, metered=True),
    Endpoint("/api/embeddings", json_body=True, unreported=NOT_REPORTED),
    Endpoint("/api/show"),
    Endpoint("/api/pull"),
    Endpoint("/api/push"),
    Endpoint("/api/copy", hidden_models=True),
    Endpoint("/api/create", hidden_models=True),
)

OTHER: Final = Endpoint("", method="", unreported=UNKNOWN)
"""Any other request: its usage is read where it reports one. A JSON response without one is counted
as unmetered, because it may have cost something.
"""

READS: Final = Endpoint("", method="", reports_stored_usage=True)
"""A request that is no POST: it uses nothing by itself."""


_PARAMETERS: Final = re.compile("[;?#][^/]*")


def _matcher(path: str) -> Callable[[str], object]:
    """Whether a request's path ends with `path`."""
    if "{" not in path:
        return lambda requested: requested.endswith(path)
    # `{rest}` and the slash before it may be missing.
    pattern = re.escape(path).replace(r"\{id\}", "[^/]+").replace(r"/\{rest\}", "(?:/.*)?")
    return re.compile(rf"{pattern}\Z", re.DOTALL).search


_MATCHERS = tuple((endpoint, _matcher(endpoint.path)) for endpoint in ENDPOINTS)


@lru_cache(maxsize=4096)
def find_endpoint(method: str, target: str) -> Endpoint:
    """The row for a request; `target` is its raw path."""
    if method != "POST":
        return READS
    path = _PARAMETERS.sub("", unquote(target)).rstrip("/").lower()
    return next((endpoint for endpoint, matches in _MATCHERS if matches(path)), OTHER)
