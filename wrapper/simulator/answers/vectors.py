"""Vector stores, their files and their (made-up) search."""

from __future__ import annotations

from typing import Any

from wrapper.simulator.answers.call import Call
from wrapper.simulator.answers.text import SENTENCE
from wrapper.simulator.replies import Reply, json_reply

_KIND = "vector_stores"


def _counts(completed: int) -> dict[str, int]:
    none = {"in_progress": 0, "failed": 0, "cancelled": 0}
    return {**none, "completed": completed, "total": completed}


def create(call: Call) -> Reply:
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
    call.shelf.put(_KIND, made)
    return json_reply(made)


def listed(call: Call) -> Reply:
    """`GET vector_stores`."""
    return json_reply(call.shelf.page(_KIND, call.request.query))


def get(call: Call) -> Reply:
    """`GET vector_stores/{id}`."""
    return json_reply(call.shelf.get(_KIND, call.arguments[0]))


def modify(call: Call) -> Reply:
    """`POST vector_stores/{id}`."""
    made = call.shelf.get(_KIND, call.arguments[0])
    made |= {name: call.json[name] for name in ("name", "metadata") if name in call.json}
    return json_reply(made)


def delete(call: Call) -> Reply:
    """`DELETE vector_stores/{id}`."""
    call.shelf.delete(_KIND, call.arguments[0])
    name = call.arguments[0]
    return json_reply({"id": name, "object": "vector_store.deleted", "deleted": True})


def search(call: Call) -> Reply:
    """`POST vector_stores/{id}/search`."""
    call.shelf.get(_KIND, call.arguments[0])
    call.need("query")
    found = {
        "file_id": "file-simulated",
        "filename": "simulated.txt",
        "score": 0.5,
        "attributes": {},
        "content": [{"type": "text", "text": SENTENCE}],
    }
    query = call.json["query"]
    return json_reply(
        {
            "object": "vector_store.search_results.page",
            "search_query": query if isinstance(query, list) else [query],
            "data": [found],
            "has_more": False,
            "next_page": None,
        }
    )


def _files(call: Call) -> str:
    call.shelf.get(_KIND, call.arguments[0])
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


def add_file(call: Call) -> Reply:
    """`POST vector_stores/{id}/files`."""
    call.need("file_id")
    made = _entry(call, str(call.json["file_id"]))
    call.shelf.put(_files(call), made)
    return json_reply(made)


def list_files(call: Call) -> Reply:
    """`GET vector_stores/{id}/files`."""
    return json_reply(call.shelf.page(_files(call), call.request.query))


def get_file(call: Call) -> Reply:
    """`GET vector_stores/{id}/files/{file}`."""
    return json_reply(call.shelf.get(_files(call), call.arguments[1]))


def delete_file(call: Call) -> Reply:
    """`DELETE vector_stores/{id}/files/{file}`."""
    name = call.arguments[1]
    call.shelf.delete(_files(call), name)
    return json_reply({"id": name, "object": "vector_store.file.deleted", "deleted": True})


def add_batch(call: Call) -> Reply:
    """`POST vector_stores/{id}/file_batches`."""
    call.need("file_ids")
    for name in call.json["file_ids"]:
        call.shelf.put(_files(call), _entry(call, str(name)))
    made = {
        "id": f"vsfb_{call.id}",
        "object": "vector_store.file_batch",
        "created_at": call.created,
        "vector_store_id": call.arguments[0],
        "status": "completed",
        "file_counts": _counts(len(call.json["file_ids"])),
    }
    call.shelf.put("file_batches", made)
    return json_reply(made)


def get_batch(call: Call) -> Reply:
    """`GET vector_stores/{id}/file_batches/{batch}`."""
    return json_reply(call.shelf.get("file_batches", call.arguments[1]))
