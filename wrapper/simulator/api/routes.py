"""The endpoints by method and path, below `/v1`, `/openai/v1` (Groq's) and `/openai` (Azure's)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from wrapper.simulator.api import (
    chat,
    deferred,
    echo,
    embeddings,
    media,
    messages,
    models,
    objects,
    organization,
    responses,
)
from wrapper.simulator.api.call import Call
from wrapper.simulator.http import segments
from wrapper.simulator.response import Response

Endpoint = Callable[[Call], Response]

_ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "chat/completions", chat.chat),
    ("POST", "deployments/{}/chat/completions", chat.chat),
    ("POST", "completions", chat.completions),
    ("POST", "engines/{}/completions", chat.completions),
    ("POST", "embeddings", embeddings.embeddings),
    ("POST", "moderations", embeddings.moderations),
    ("POST", "messages", messages.create),
    ("POST", "messages/count_tokens", messages.count_tokens),
    ("POST", "responses", deferred.create_response),
    ("GET", "responses/{}", deferred.retrieve_response),
    ("DELETE", "responses/{}", objects.deletion("responses", "response")),
    ("POST", "responses/{}/cancel", deferred.cancel_response),
    ("GET", "responses/{}/input_items", responses.input_items),
    ("GET", "models", models.model_list),
    ("GET", "models/{}", models.model),
    ("GET", "models/{}/{}", models.model),
    ("POST", "audio/transcriptions", media.transcription),
    ("POST", "audio/translations", media.transcription),
    ("POST", "audio/speech", media.speech),
    ("POST", "images/generations", media.images),
    ("POST", "images/edits", media.images),
    ("POST", "images/variations", media.images),
    ("POST", "files", objects.create_file),
    ("GET", "files", objects.listing("files")),
    ("GET", "files/{}", objects.retrieval("files")),
    ("GET", "files/{}/content", objects.file_content),
    ("DELETE", "files/{}", objects.deletion("files", "file")),
    ("POST", "uploads", objects.create_upload),
    ("POST", "uploads/{}/parts", objects.add_part),
    ("POST", "uploads/{}/complete", objects.complete_upload),
    ("POST", "uploads/{}/cancel", objects.cancellation("uploads", "cancelled")),
    ("POST", "batches", deferred.create_batch),
    ("GET", "batches", objects.listing("batches")),
    ("GET", "batches/{}", deferred.retrieve("batches")),
    ("POST", "batches/{}/cancel", deferred.cancel_batch),
    ("POST", "videos", deferred.create_video),
    ("GET", "videos", objects.listing("videos")),
    ("GET", "videos/{}", deferred.retrieve("videos")),
    ("DELETE", "videos/{}", objects.deletion("videos", "video.deleted")),
    ("POST", "videos/{}/remix", deferred.create_video),
    ("POST", "vector_stores", objects.create_store),
    ("GET", "vector_stores", objects.listing("vector_stores")),
    ("GET", "vector_stores/{}", objects.retrieval("vector_stores")),
    ("POST", "vector_stores/{}", objects.modify_store),
    ("DELETE", "vector_stores/{}", objects.deletion("vector_stores", "vector_store.deleted")),
    ("POST", "vector_stores/{}/search", objects.search_store),
    ("POST", "vector_stores/{}/files", objects.add_store_file),
    ("GET", "vector_stores/{}/files", objects.list_store_files),
    ("GET", "vector_stores/{}/files/{}", objects.get_store_file),
    ("DELETE", "vector_stores/{}/files/{}", objects.delete_store_file),
    ("POST", "vector_stores/{}/file_batches", objects.add_store_batch),
    ("GET", "vector_stores/{}/file_batches/{}", objects.retrieval("file_batches")),
    ("GET", "organization/usage/{}", organization.usage),
    ("GET", "organization/costs", organization.costs),
    ("GET", "_bytes/{}", echo.bytes_of_pattern),
)

_TABLE: dict[tuple[str, str, int], list[tuple[list[str], str, Endpoint]]] = {}
for _method, _pattern, _endpoint in _ROUTES:
    _parts = _pattern.split("/")
    _TABLE.setdefault((_method, _parts[0], len(_parts)), []).append((_parts, _pattern, _endpoint))


class Match(NamedTuple):
    """The endpoint of a path, its pattern, the values of its `{}`, and whether it is Groq's."""

    respond: Endpoint
    endpoint: str
    arguments: list[str]
    groq: bool


def find(method: str, path: str) -> Match:
    """The endpoint for a method and a raw path; the echo for an unknown one."""
    parts = segments(path)
    groq = parts[:2] == ["openai", "v1"]
    azure = parts[:2] == ["openai", "deployments"]
    if groq or azure or parts[0] == "v1":
        parts = parts[1 + groq :]
        method = "GET" if method == "HEAD" else method
        first = parts[0] if parts else ""
        for pattern, name, endpoint in _TABLE.get((method, first, len(parts)), ()):
            values = _values(pattern, parts)
            if values is not None:
                return Match(endpoint, name, values, groq)
    return Match(echo.echo, "echo", [], groq)


def _values(pattern: list[str], parts: list[str]) -> list[str] | None:
    values = []
    for wanted, found in zip(pattern, parts, strict=True):
        if wanted == "{}":
            values.append(found)
        elif wanted != found:
            return None
    return values
