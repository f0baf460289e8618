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
    # The usage in a response is that of a stored object and was counted when that was made.
    reports_stored_usage: bool = False
    # A stream reports its usage only when `stream_options.include_usage` asks for it.
    ask_stream_usage: bool = False
    # The provider chooses a model, at a price, where the request names none.
    default_model: bool = False
    # It names models where the gateway does not look, hands out a credential, or starts work that
    # no request of the key will show: keys with a budget or a model list need this name in their
    # `endpoints`.
    surface: str | None = None
    # The kind of object that is created and then lives at the provider that created it.
    creates: str | None = None

    @property
    def usage(self) -> str:
        """How a 2xx response to such a request is metered, for documentation."""
        if self.reports_stored_usage:
            return "not metered: the usage of a stored object was counted when it was created"
        return "metered" if self.metered else "metered where the response reports usage"


ENDPOINTS: Final = (
    Endpoint("/chat/completions", json_body=True, metered=True, ask_stream_usage=True),
    Endpoint("/chat/completions/{id}", reports_stored_usage=True),
    Endpoint("/completions", json_body=True, metered=True, ask_stream_usage=True),
    Endpoint("/responses", json_body=True, metered=True, creates="response"),
    Endpoint("/responses/compact", json_body=True, metered=True),
    Endpoint("/responses/{id}/cancel", reports_stored_usage=True),
    Endpoint("/embeddings", json_body=True, metered=True),
    Endpoint("/audio/transcriptions", metered=True),
    Endpoint("/audio/translations", metered=True),
    Endpoint("/audio/speech", json_body=True, metered=True),
    Endpoint("/images/generations", json_body=True, metered=True),
    Endpoint("/images/edits", metered=True),
    Endpoint("/images/variations", metered=True),
    Endpoint("/videos", default_model=True, creates="video"),
    Endpoint("/videos/edits", surface="videos", creates="video"),
    Endpoint("/videos/extensions", surface="videos", creates="video"),
    Endpoint("/remix", surface="videos", creates="video"),
    Endpoint("/files", creates="file"),
    Endpoint("/uploads", creates="upload"),
    Endpoint("/vector_stores", creates="vector_store"),
    Endpoint("/conversations", creates="conversation"),
    Endpoint("/containers", surface="containers", creates="container"),
    Endpoint("/assistants", creates="assistant"),
    Endpoint("/fine_tuning/jobs", surface="fine_tuning", creates="fine_tuning_job"),
    Endpoint("/evals", surface="evals", creates="eval"),
    Endpoint("/batches", surface="batches", reports_stored_usage=True, creates="batch"),
    Endpoint("/batches/{rest}", reports_stored_usage=True),
    Endpoint("/threads", creates="thread"),
    Endpoint("/runs", surface="assistants", creates="run"),
    Endpoint("/runs/{id}", reports_stored_usage=True),
    Endpoint("/runs/{id}/cancel", reports_stored_usage=True),
    Endpoint("/graders/run", surface="graders"),
    Endpoint("/chatkit/sessions", surface="chatkit"),
    Endpoint("/realtime", surface="realtime"),
    Endpoint("/realtime/calls", surface="realtime"),
    Endpoint("/realtime/client_secrets", surface="realtime"),
    Endpoint("/realtime/sessions", surface="realtime"),
    Endpoint("/realtime/transcription_sessions", surface="realtime"),
    # Ollama's own API, which a local provider may speak beside OpenAI's.
    Endpoint("/api/copy", surface="ollama"),
    Endpoint("/api/create", surface="ollama"),
)

FIRST_SEGMENTS: Final = frozenset(
    [
        *("assistants", "audio", "batches", "chat", "chatkit", "completions", "containers"),
        *("conversations", "edits", "embeddings", "engines", "evals", "files", "fine_tuning"),
        *("images", "models", "moderations", "realtime", "rerank", "responses", "threads"),
        *("uploads", "vector_stores", "videos"),
    ]
)
"""How the paths of the OpenAI API begin below `/v1`, which a client may leave out."""

WITHOUT_MODEL: Final = FIRST_SEGMENTS - frozenset(
    ["audio", "completions", "edits", "embeddings", "engines", "images", "realtime", "rerank"]
)
"""Those below which a request may name no model, because it uses none: stored objects and lists."""

OTHER: Final = Endpoint("", method="")
"""Any other request: its usage is read where it reports one, and none is expected."""

ADMIN: Final = Endpoint("/organization/{rest}", method="", surface="admin")
"""The account's own administration, whatever the method: no gateway key may use it."""

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


_ADMIN = re.compile(r"/organization(?:/|\Z)").search


@lru_cache(maxsize=4096)
def find_endpoint(method: str, target: str) -> Endpoint:
    """The row for a request; `target` is its raw path."""
    path = _PARAMETERS.sub("", unquote(target)).rstrip("/").lower()
    if "/organization" in path and _ADMIN(path):
        return ADMIN
    if method != "POST":
        return READS
    return next((endpoint for endpoint, matches in _MATCHERS if matches(path)), OTHER)


def endpoint_table() -> str:
    """The table of docs/usage.md, in Markdown; a test holds the two together."""
    lines = ["| POST to a path that ends with | usage |", "| --- | --- |"]
    lines += [f"| `{endpoint.path}` | {endpoint.usage} |" for endpoint in ENDPOINTS]
    lines.append(f"| any other | {OTHER.usage} |")
    return "\n".join(lines)
