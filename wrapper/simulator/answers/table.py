"""Which answer belongs to which method and path, below `/v1` and `/openai/v1` alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from wrapper.simulator.answers import (
    audio,
    batches,
    chat,
    completions,
    echo,
    embeddings,
    files,
    images,
    models,
    responses,
    vectors,
)
from wrapper.simulator.answers.call import Call
from wrapper.simulator.http import segments
from wrapper.simulator.replies import Reply

Answer = Callable[[Call], Reply]

_ROUTES: tuple[tuple[str, str, Answer], ...] = (
    ("POST", "chat/completions", chat.chat),
    ("POST", "completions", completions.completions),
    ("POST", "engines/{}/completions", completions.completions),
    ("POST", "embeddings", embeddings.embeddings),
    ("POST", "moderations", embeddings.moderations),
    ("POST", "responses", responses.create),
    ("GET", "responses/{}", responses.get),
    ("DELETE", "responses/{}", responses.delete),
    ("POST", "responses/{}/cancel", responses.cancel),
    ("GET", "responses/{}/input_items", responses.input_items),
    ("GET", "models", models.model_list),
    ("GET", "models/{}", models.model),
    ("GET", "models/{}/{}", models.model),
    ("POST", "audio/transcriptions", audio.transcription),
    ("POST", "audio/translations", audio.transcription),
    ("POST", "audio/speech", audio.speech),
    ("POST", "images/generations", images.images),
    ("POST", "images/edits", images.images),
    ("POST", "images/variations", images.images),
    ("POST", "files", files.create),
    ("GET", "files", files.listed),
    ("GET", "files/{}", files.get),
    ("GET", "files/{}/content", files.content),
    ("DELETE", "files/{}", files.delete),
    ("POST", "uploads", files.upload),
    ("POST", "uploads/{}/parts", files.upload_part),
    ("POST", "uploads/{}/complete", files.upload_complete),
    ("POST", "uploads/{}/cancel", files.upload_cancel),
    ("POST", "batches", batches.create),
    ("GET", "batches", batches.listed),
    ("GET", "batches/{}", batches.get),
    ("POST", "batches/{}/cancel", batches.cancel),
    ("POST", "vector_stores", vectors.create),
    ("GET", "vector_stores", vectors.listed),
    ("GET", "vector_stores/{}", vectors.get),
    ("POST", "vector_stores/{}", vectors.modify),
    ("DELETE", "vector_stores/{}", vectors.delete),
    ("POST", "vector_stores/{}/search", vectors.search),
    ("POST", "vector_stores/{}/files", vectors.add_file),
    ("GET", "vector_stores/{}/files", vectors.list_files),
    ("GET", "vector_stores/{}/files/{}", vectors.get_file),
    ("DELETE", "vector_stores/{}/files/{}", vectors.delete_file),
    ("POST", "vector_stores/{}/file_batches", vectors.add_batch),
    ("GET", "vector_stores/{}/file_batches/{}", vectors.get_batch),
    ("GET", "_bytes/{}", echo.bytes_of_pattern),
)

_TABLE: dict[tuple[str, str, int], list[tuple[list[str], str, Answer]]] = {}
for _method, _pattern, _answer in _ROUTES:
    _parts = _pattern.split("/")
    _TABLE.setdefault((_method, _parts[0], len(_parts)), []).append((_parts, _pattern, _answer))


class Found(NamedTuple):
    """The answer for a path, the pattern it fits, what stands in the holes, whether Groq's."""

    answer: Answer
    endpoint: str
    arguments: list[str]
    groq: bool


def find(method: str, path: str) -> Found:
    """The answer for a method and a raw path. What is not known is echoed."""
    parts = segments(path)
    groq = parts[:2] == ["openai", "v1"]
    if groq or parts[0] == "v1":
        parts = parts[1 + groq :]
        method = "GET" if method == "HEAD" else method
        first = parts[0] if parts else ""
        for pattern, name, answer in _TABLE.get((method, first, len(parts)), ()):
            holes = _holes(pattern, parts)
            if holes is not None:
                return Found(answer, name, holes, groq)
    return Found(echo.echo, "echo", [], groq)


def _holes(pattern: list[str], parts: list[str]) -> list[str] | None:
    holes = []
    for wanted, found in zip(pattern, parts, strict=True):
        if wanted == "{}":
            holes.append(found)
        elif wanted != found:
            return None
    return holes
