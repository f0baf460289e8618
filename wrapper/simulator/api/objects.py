"""Objects that calls create and read: files, uploads in parts, vector stores.

Of the content of a file the first MiB is kept, its length always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wrapper.simulator.api.call import Call
from wrapper.simulator.api.content import SENTENCE
from wrapper.simulator.api.echo import PATTERN, download
from wrapper.simulator.response import Response, json_response

_KEPT = 1 << 20


def listing(kind: str) -> Callable[[Call], Response]:
    """`GET {kind}`: a page of the objects of a kind."""
    return lambda call: json_response(call.objects.page(kind, call.request.query))


def retrieval(kind: str) -> Callable[[Call], Response]:
    """`GET {kind}/{id}`. It reports no usage again, so none is recorded."""
    return lambda call: json_response(call.objects.get(kind, call.arguments[-1]))


def deletion(kind: str, name: str) -> Callable[[Call], Response]:
    """`DELETE {kind}/{id}`, with the object's name in the response."""

    def delete(call: Call) -> Response:
        found = call.arguments[0]
        call.objects.delete(kind, found)
        return json_response({"id": found, "object": name, "deleted": True})

    return delete


def _created(call: Call, kind: str, made: dict[str, Any]) -> Response:
    call.objects.put(kind, made)
    return json_response(made)


# --- files and uploads ---


def _file(call: Call, filename: str, purpose: str, size: int) -> dict[str, Any]:
    return {
        "id": f"file-{call.id}",
        "object": "file",
        "bytes": size,
        "created_at": call.created,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "expires_at": None,
    }


def create_file(call: Call) -> Response:
    """`POST files` (multipart)."""
    part = call.file()
    purpose = call.form("purpose", "user_data")
    made = _file(call, part.filename or "file", purpose, part.size)
    call.objects.put("files", made, bytes(part.data), part.size)
    return json_response(made)


def created_file(call: Call, content: bytes, name: str) -> str:
    """The id of a file that the provider itself has made."""
    made = _file(call, f"{name}.jsonl", "batch_output", len(content))
    made["id"] += f"-{name}"
    call.objects.put("files", made, content, len(content))
    found: str = made["id"]
    return found


def file_content(call: Call) -> Response:
    """`GET files/{id}/content`: what was uploaded; beyond 1 MiB, the known pattern."""
    call.objects.get("files", call.arguments[0])
    kept, size = call.objects.content(call.arguments[0])
    return download(call, size, kept if 0 < size <= _KEPT else PATTERN)


def create_upload(call: Call) -> Response:
    """`POST uploads`: begins an upload in parts."""
    call.need("filename", "purpose", "bytes")
    made = {
        "id": f"upload_{call.id}",
        "object": "upload",
        "bytes": call.json["bytes"],
        "created_at": call.created,
        "expires_at": call.created + 3600,
        "filename": call.json["filename"],
        "purpose": call.json["purpose"],
        "status": "pending",
        "file": None,
    }
    return _created(call, "uploads", made)


def add_part(call: Call) -> Response:
    """`POST uploads/{id}/parts` (multipart)."""
    name = call.arguments[0]
    call.objects.get("uploads", name)
    part = call.file("data")
    made = {
        "id": f"part_{call.id}",
        "object": "upload.part",
        "created_at": call.created,
        "upload_id": name,
    }
    call.objects.put(f"uploads/{name}/parts", made, bytes(part.data), part.size)
    return json_response(made)


def complete_upload(call: Call) -> Response:
    """`POST uploads/{id}/complete`: the parts, in the given order, become a file."""
    call.need("part_ids")
    upload = call.objects.get("uploads", call.arguments[0])
    kept, size = b"", 0
    for name in call.json["part_ids"]:
        call.objects.get(f"uploads/{call.arguments[0]}/parts", name)
        data, length = call.objects.content(name)
        kept, size = (kept + data)[: _KEPT + 1], size + length
    made = _file(call, upload["filename"], upload["purpose"], size)
    call.objects.put("files", made, kept, size)
    upload |= {"status": "completed", "file": made}
    return json_response(upload)


def cancellation(kind: str, status: str) -> Callable[[Call], Response]:
    """`POST {kind}/{id}/cancel`, with the status that the object then has."""

    def cancel(call: Call) -> Response:
        made = call.objects.get(kind, call.arguments[0])
        made["status"] = status
        return json_response(made)

    return cancel


# --- vector stores, their files and their made-up search ---


def _counts(completed: int) -> dict[str, int]:
    none = {"in_progress": 0, "failed": 0, "cancelled": 0}
    return {**none, "completed": completed, "total": completed}


def create_store(call: Call) -> Response:
    """`POST vector_stores`."""
    made = {
        "id": f"vs_{call.id}",
        "object": "vector_store",
        "created_at": call.created,
        "name": call.json.get("name"),
        "usage_bytes": 0,
        "file_counts": _counts(0),
        "status": "completed",
        "last_active_at": call.created,
        "metadata": call.json.get("metadata") or {},
    }
    return _created(call, "vector_stores", made)


def modify_store(call: Call) -> Response:
    """`POST vector_stores/{id}`."""
    made = call.objects.get("vector_stores", call.arguments[0])
    made |= {name: call.json[name] for name in ("name", "metadata") if name in call.json}
    return json_response(made)


def search_store(call: Call) -> Response:
    """`POST vector_stores/{id}/search`."""
    call.objects.get("vector_stores", call.arguments[0])
    call.need("query")
    found = {
        "file_id": "file-simulated",
        "filename": "simulated.txt",
        "score": 0.5,
        "attributes": {},
        "content": [{"type": "text", "text": SENTENCE}],
    }
    query = call.json["query"]
    return json_response(
        {
            "object": "vector_store.search_results.page",
            "search_query": query if isinstance(query, list) else [query],
            "data": [found],
            "has_more": False,
            "next_page": None,
        }
    )


def _files(call: Call) -> str:
    """The kind of the files in a vector store."""
    call.objects.get("vector_stores", call.arguments[0])
    return f"vector_stores/{call.arguments[0]}/files"


def _entry(call: Call, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "vector_store.file",
        "usage_bytes": 0,
        "created_at": call.created,
        "vector_store_id": call.arguments[0],
        "status": "completed",
        "last_error": None,
        "attributes": call.json.get("attributes") or {},
    }


def add_store_file(call: Call) -> Response:
    """`POST vector_stores/{id}/files`."""
    call.need("file_id")
    return _created(call, _files(call), _entry(call, str(call.json["file_id"])))


def list_store_files(call: Call) -> Response:
    """`GET vector_stores/{id}/files`."""
    return listing(_files(call))(call)


def get_store_file(call: Call) -> Response:
    """`GET vector_stores/{id}/files/{file}`."""
    return retrieval(_files(call))(call)


def delete_store_file(call: Call) -> Response:
    """`DELETE vector_stores/{id}/files/{file}`."""
    name = call.arguments[1]
    call.objects.delete(_files(call), name)
    return json_response({"id": name, "object": "vector_store.file.deleted", "deleted": True})


def add_store_batch(call: Call) -> Response:
    """`POST vector_stores/{id}/file_batches`."""
    call.need("file_ids")
    for name in call.json["file_ids"]:
        call.objects.put(_files(call), _entry(call, str(name)))
    made = {
        "id": f"vsfb_{call.id}",
        "object": "vector_store.file_batch",
        "created_at": call.created,
        "vector_store_id": call.arguments[0],
        "status": "completed",
        "file_counts": _counts(len(call.json["file_ids"])),
    }
    return _created(call, "file_batches", made)
