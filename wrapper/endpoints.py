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
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
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
    # The model writes nothing: there is no output to reserve.
    input_only: bool = False
    # It names models where the gateway does not look, hands out a credential, or starts work that
    # no request of the key will show: keys with a budget or a model list need this name in their
    # `endpoints`.
    surface: str | None = None
    # The kind of object that the response shows, or a list of such: where one is known as deferred
    # work (proxy.deferred), its end is seen here, whoever asks.
    shows: str | None = None
    # The kind of object that is created and then lives at the provider that created it.
    creates: str | None = None
    # A WebSocket: what passes over it is metered event by event.
    socket: bool = False

    @property
    def output_limit(self) -> str | None:
        """The member of a request that says how many tokens the model may write; None where there
        is none.
        """
        media = self.by_character or self.creates == "video"
        if self.input_only or media or self.path.startswith(("/audio/", "/images/")):
            return None
        return _OUTPUT_LIMITS.get(self.path, "max_completion_tokens")

    @property
    def usage(self) -> str:
        """How a 2xx response to such a request is metered, for documentation."""
        if self.creates == "batch":
            return "metered when the batch has ended"
        if self.creates == "video":
            return "metered when the video is there"
        if self.creates == "response":
            return "metered; in the background when it has ended"
        if self.reports_stored_usage:
            return "not metered: the usage of a stored object was counted when it was created"
        return "metered" if self.metered else "metered where the response reports usage"

    @property
    def priced(self) -> str:
        """What of such a request has a price, for documentation."""
        if self.reports_stored_usage and not self.creates:
            return "–"
        return _PRICED.get(self.path, "tokens" if self.metered else "what is reported")


_OUTPUT_LIMITS: Final = {
    "/completions": "max_tokens",
    "/messages": "max_tokens",
    "/responses": "max_output_tokens",
}
_PRICED: Final = {
    "/chat/completions": "tokens (cached, written to a cache, audio), hosted tools by the call",
    "/responses": "tokens (cached, written to a cache), hosted tools and containers by the call",
    "/realtime": "tokens (cached, audio, images)",
    "/audio/transcriptions": "seconds, or tokens where the provider reports those",
    "/audio/translations": "seconds, or tokens where the provider reports those",
    "/audio/speech": "characters, or tokens where the provider reports those",
    "/images/generations": "tokens of text and images",
    "/images/edits": "tokens of text and images",
    "/images/variations": "tokens of text and images",
    "/rerank": "searches, or tokens",
    "/videos": "seconds, by their size",
    "/videos/edits": "seconds, by their size",
    "/videos/extensions": "seconds, by their size",
    "/remix": "seconds, by their size",
    "/batches": "tokens, at the batch price",
    "/messages": "tokens (cached, written to a cache), hosted tools by the call",
}


ENDPOINTS: Final = (
    Endpoint("/chat/completions", json_body=True, metered=True, ask_stream_usage=True),
    Endpoint("/chat/completions/{id}", reports_stored_usage=True),
    Endpoint("/completions", json_body=True, metered=True, ask_stream_usage=True),
    Endpoint("/responses", json_body=True, metered=True, creates="response"),
    Endpoint("/responses/compact", json_body=True, metered=True),
    Endpoint("/responses/input_tokens", input_only=True),
    Endpoint("/responses/{id}/cancel", reports_stored_usage=True, shows="response"),
    Endpoint("/embeddings", json_body=True, metered=True, input_only=True),
    Endpoint("/audio/transcriptions", metered=True, unreported=NOT_REPORTED),
    Endpoint("/audio/translations", metered=True, unreported=NOT_REPORTED),
    Endpoint("/audio/speech", json_body=True, metered=True, by_character=True),
    Endpoint("/images/generations", json_body=True, metered=True),
    Endpoint("/images/edits", metered=True),
    Endpoint("/images/variations", metered=True),
    Endpoint("/moderations", input_only=True),
    Endpoint("/rerank", json_body=True, metered=True, input_only=True),
    Endpoint("/videos", metered=True, default_model=True, creates="video"),
    Endpoint("/videos/edits", metered=True, surface="videos", creates="video"),
    Endpoint("/videos/extensions", metered=True, surface="videos", creates="video"),
    Endpoint("/remix", metered=True, surface="videos", creates="video"),
    Endpoint("/files", creates="file", input_only=True),
    Endpoint("/uploads", creates="upload", input_only=True),
    Endpoint("/uploads/{rest}", input_only=True),
    Endpoint("/vector_stores", creates="vector_store", input_only=True),
    Endpoint("/vector_stores/{id}", input_only=True),
    Endpoint("/vector_stores/{id}/files/{rest}", input_only=True),
    Endpoint("/vector_stores/{id}/file_batches/{rest}", input_only=True),
    Endpoint("/conversations", creates="conversation", input_only=True),
    Endpoint("/conversations/{rest}", input_only=True),
    Endpoint(
        "/containers",
        surface="containers",
        unreported=NO_USAGE,
        creates="container",
        input_only=True,
    ),
    Endpoint("/containers/{rest}", input_only=True),
    Endpoint("/assistants", creates="assistant"),
    Endpoint("/assistants/{id}"),
    Endpoint(
        "/fine_tuning/jobs", surface="fine_tuning", unreported=DEFERRED, creates="fine_tuning_job"
    ),
    Endpoint("/fine_tuning/jobs/{rest}"),
    Endpoint("/evals", surface="evals", creates="eval"),
    Endpoint("/evals/{id}"),
    Endpoint("/messages/count_tokens", json_body=True, input_only=True),
    Endpoint(
        "/messages/batches", surface="batches", reports_stored_usage=True, unreported=DEFERRED
    ),
    Endpoint("/threads/{id}/messages", input_only=True),
    Endpoint("/threads/{id}/messages/{id}", input_only=True),
    Endpoint("/messages", json_body=True, metered=True),
    Endpoint(
        "/batches",
        surface="batches",
        reports_stored_usage=True,
        unreported=DEFERRED,
        creates="batch",
    ),
    Endpoint("/batches/{rest}", reports_stored_usage=True, shows="batch"),
    Endpoint("/runs", surface="assistants", unreported=DEFERRED, creates="run"),
    Endpoint("/runs/{id}", reports_stored_usage=True),
    Endpoint("/runs/{id}/cancel", reports_stored_usage=True),
    Endpoint("/threads", creates="thread", input_only=True),
    Endpoint("/threads/{id}", input_only=True),
    Endpoint("/graders/run", surface="graders", unreported=NO_USAGE),
    Endpoint("/chatkit/sessions", surface="chatkit", unreported=NO_USAGE),
    Endpoint("/realtime", surface="realtime", unreported=NO_USAGE),
    Endpoint("/realtime/calls", surface="realtime", unreported=NO_USAGE),
    Endpoint("/realtime/client_secrets", surface="realtime", unreported=NO_USAGE),
    Endpoint("/realtime/sessions", surface="realtime", unreported=NO_USAGE),
    Endpoint("/realtime/transcription_sessions", surface="realtime", unreported=NO_USAGE),
    Endpoint("/realtime/calls/{rest}", surface="realtime", unreported=NO_USAGE),
    Endpoint("/realtime/translations/client_secrets", surface="realtime", unreported=NO_USAGE),
    Endpoint("/live/sessions/{rest}", surface="realtime", unreported=NO_USAGE),
    Endpoint("/decisions", json_body=True, metered=True),
    Endpoint("/agents/{rest}", surface="agents", unreported=DEFERRED),
    # They cost nothing.
    Endpoint("/audio/voices"),
    Endpoint("/audio/voice_consents/{rest}"),
    Endpoint("/chatkit/sessions/{id}/cancel"),
    Endpoint("/fine_tuning/alpha/graders/validate"),
    Endpoint("/fine_tuning/checkpoints/{rest}"),
    Endpoint("/skills/{rest}"),
    Endpoint("/vaults/{rest}"),
    Endpoint("/webhook_endpoints/{rest}"),
    # Ollama's own API, which a local provider may speak beside OpenAI's.
    Endpoint("/api/chat", json_body=True, metered=True),
    Endpoint("/api/generate", json_body=True, metered=True),
    Endpoint("/api/embed", json_body=True, metered=True, input_only=True),
    Endpoint("/api/embeddings", json_body=True, unreported=NOT_REPORTED, input_only=True),
    Endpoint("/api/show"),
    Endpoint("/api/pull"),
    Endpoint("/api/push"),
    Endpoint("/api/copy", surface="ollama"),
    Endpoint("/api/create", surface="ollama"),
)

SOCKETS: Final = (
    # Its events name no other model than the query does.
    Endpoint("/realtime", method="GET", default_model=True, socket=True),
    # Each `response.create` names its model.
    Endpoint("/responses", method="GET", creates="response", socket=True),
)
"""What is relayed as a WebSocket; a handshake on any other path is refused."""

FIRST_SEGMENTS: Final = frozenset(
    [
        *("assistants", "audio", "batches", "chat", "chatkit", "completions", "containers"),
        *("conversations", "edits", "embeddings", "engines", "evals", "files", "fine_tuning"),
        *("images", "messages", "models", "moderations", "realtime", "rerank", "responses"),
        *("threads", "uploads", "vector_stores", "videos"),
    ]
)
"""How the paths of the OpenAI API begin below `/v1`, which a client may leave out."""

WITHOUT_MODEL: Final = FIRST_SEGMENTS - frozenset(
    [
        *("audio", "completions", "edits", "embeddings", "engines", "images", "messages"),
        *("realtime", "rerank"),
    ]
)
"""Those below which a request may name no model, because it uses none: stored objects and lists."""

OTHER: Final = Endpoint("", method="", unreported=UNKNOWN)
"""Any other request: its usage is read where it reports one. A JSON response without one is counted
as unmetered, because it may have cost something.
"""

ADMIN: Final = Endpoint("/organization/{rest}", method="", surface="admin")
"""The account's own administration, whatever the method: no gateway key may use it."""

SURFACES: Final = tuple(sorted({row.surface for row in ENDPOINTS if row.surface}))
"""What the `endpoints` of a key can name."""

READS: Final = Endpoint("", method="", reports_stored_usage=True)
"""A request that is no POST: it uses nothing by itself. `find_endpoint` gives it with a `path`."""


_SHOWING: Final = (
    Endpoint("/responses/{id}", method="GET", reports_stored_usage=True, shows="response"),
    Endpoint("/batches", method="GET", reports_stored_usage=True, shows="batch"),
    Endpoint("/batches/{id}", method="GET", reports_stored_usage=True, shows="batch"),
    Endpoint("/videos", method="GET", reports_stored_usage=True, shows="video"),
    Endpoint("/videos/{id}", method="GET", reports_stored_usage=True, shows="video"),
)
"""Reads of what may be deferred work."""

_WORDS: Final = frozenset(
    [
        *FIRST_SEGMENTS,
        *(word for endpoint in ENDPOINTS for word in endpoint.path.split("/") if "{" not in word),
        *("alerts", "artifacts", "attach", "cases", "characters", "content", "credentials"),
        *("environments", "events", "fork", "input_items", "invocations", "items"),
        *("output_items", "permissions", "safety", "steps", "subagents", "templates", "traces"),
        *("tags", "turns", "versions", "webhook_event_types"),
    ]
) - {""}
"""Words of the API's paths. What else a path has is an id, or a model's name."""

_MAX_SEGMENTS: Final = 10
_PARAMETERS: Final = re.compile("[;?#][^/]*")


def _matcher(path: str) -> Callable[[str], object]:
    """Whether a request's path ends with `path`."""
    if "{" not in path:
        return lambda requested: requested.endswith(path)
    # `{rest}` and the slash before it may be missing.
    pattern = re.escape(path).replace(r"\{id\}", "[^/]+").replace(r"/\{rest\}", "(?:/.*)?")
    return re.compile(rf"{pattern}\Z", re.DOTALL).search


_MATCHERS = tuple((endpoint, _matcher(endpoint.path)) for endpoint in ENDPOINTS)
_SHOWN = tuple((endpoint, _matcher(endpoint.path)) for endpoint in _SHOWING)


_ADMIN = re.compile(r"/organization(?:/|\Z)|/projects/[^/]+/(?:groups|roles|users)(?:/|\Z)").search


@lru_cache(maxsize=4096)
def find_endpoint(method: str, target: str) -> Endpoint:
    """The row for a request; `target` is its raw path."""
    path = _PARAMETERS.sub("", unquote(target)).rstrip("/").lower()
    if ("/organization" in path or "/projects/" in path) and _ADMIN(path):
        return ADMIN
    if method == "POST":
        return next((endpoint for endpoint, matches in _MATCHERS if matches(path)), OTHER)
    shown = _SHOWN if method == "GET" else ()
    found = next((endpoint for endpoint, matches in shown if matches(path)), None)
    return found or _read(_pattern(path))


def _pattern(path: str) -> str:
    """The words of the API in a path, and `{id}` for what is none: an id, or a model's name, which
    may have slashes. Empty where there is no such word.

    Invariant: nothing that only the caller knows is in it.
    """
    segments = path.split("/")
    begin = next((at for at, segment in enumerate(segments) if segment in _WORDS), len(segments))
    words = [segment if segment in _WORDS else "{id}" for segment in segments[begin:]]
    pattern = "".join(f"/{word}" for word, _ in groupby(words))
    return pattern if len(words) <= _MAX_SEGMENTS else ""


@lru_cache(maxsize=256)
def _read(pattern: str) -> Endpoint:
    return replace(READS, path=pattern) if pattern else READS


@lru_cache(maxsize=64)
def find_socket(target: str) -> Endpoint | None:
    """The row for a WebSocket handshake; `target` is its raw path."""
    path = _PARAMETERS.sub("", unquote(target)).rstrip("/").lower()
    return next((socket for socket in SOCKETS if path.endswith(socket.path)), None)


def endpoint_table() -> str:
    """The table of docs/usage.md, in Markdown; a test holds the two together."""
    lines = ["| POST to a path that ends with | usage |", "| --- | --- |"]
    lines += [f"| `{endpoint.path}` | {endpoint.usage} |" for endpoint in ENDPOINTS]
    lines.append(f"| any other | {OTHER.usage} |")
    lines += [
        f"| WebSocket `{socket.path}` | metered, each response by itself |" for socket in SOCKETS
    ]
    return "\n".join(lines)
