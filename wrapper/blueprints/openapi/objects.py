"""Files, uploads in parts, batches and vector stores: objects that a provider keeps."""

from __future__ import annotations

from wrapper.blueprints.openapi.calls import answer, json_answer, json_call, operation
from wrapper.blueprints.openapi.parts import (
    MODEL,
    Json,
    file,
    form_request,
    in_path,
    in_query,
    integer,
    text,
)

_FILES, _UPLOADS, _BATCHES, _STORES = "Files", "Uploads in parts", "Batches", "Vector stores"

_FILE = {
    "id": "file-abc123",
    "object": "file",
    "bytes": 120000,
    "created_at": 1767225600,
    "filename": "batch.jsonl",
    "purpose": "batch",
}
_UPLOAD = {
    "id": "upload_abc123",
    "object": "upload",
    "bytes": 120000,
    "created_at": 1767225600,
    "filename": "big.jsonl",
    "purpose": "batch",
    "status": "pending",
}
_BATCH = {
    "id": "batch_abc123",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-abc123",
    "completion_window": "24h",
    "status": "validating",
    "created_at": 1767225600,
}
_STORE = {
    "id": "vs_abc123",
    "object": "vector_store",
    "created_at": 1767225600,
    "name": "Handbook",
    "status": "completed",
    "file_counts": {"total": 1, "completed": 1},
}
_STORE_FILE = {
    "id": "file-abc123",
    "object": "vector_store.file",
    "vector_store_id": "vs_abc123",
    "status": "completed",
}
_FOUND = {
    "object": "vector_store.search_results.page",
    "search_query": ["How do I begin?"],
    "data": [{"file_id": "file-abc123", "filename": "handbook.txt", "score": 0.87}],
    "has_more": False,
}

_FILE_ID = in_path("file_id", "The file's id.", "file-abc123")
_UPLOAD_ID = in_path("upload_id", "The upload's id.", "upload_abc123")
_BATCH_ID = in_path("batch_id", "The batch's id.", "batch_abc123")
_STORE_ID = in_path("vector_store_id", "The vector store's id.", "vs_abc123")
_PAGE = [
    in_query("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 100}),
    in_query("after", "Go on after the object with this id."),
    in_query("order", "By the time of creation.", {"type": "string", "enum": ["asc", "desc"]}),
]


def _list_of(item: Json) -> Json:
    return {
        "object": "list",
        "data": [item],
        "first_id": item["id"],
        "last_id": item["id"],
        "has_more": False,
    }


def _deleted(item: Json) -> Json:
    return {"id": item["id"], "object": f"{item['object']}.deleted", "deleted": True}


def _files() -> Json:
    form = form_request(
        {"purpose": text("What for.", examples=["batch"]), "file": file("The file.")},
        ["purpose", "file"],
    )
    content = answer(
        "The file's bytes. `Range` works where the provider knows it.",
        {"application/octet-stream": {}, "application/jsonl": {}},
    )
    return {
        "/v1/files": {
            "post": operation(
                "createFile",
                _FILES,
                "Upload a file",
                json_answer(_FILE),
                request=form,
                description="Uploads flow through without being held in memory as a whole.",
            ),
            "get": operation(
                "listFiles",
                _FILES,
                "List the files",
                json_answer(_list_of(_FILE)),
                parameters=[in_query("purpose", "Only files for this."), *_PAGE],
            ),
        },
        "/v1/files/{file_id}": {
            "get": operation(
                "getFile", _FILES, "About a file", json_answer(_FILE), parameters=[_FILE_ID]
            ),
            "delete": operation(
                "deleteFile",
                _FILES,
                "Delete a file",
                json_answer(_deleted(_FILE)),
                parameters=[_FILE_ID],
            ),
        },
        "/v1/files/{file_id}/content": {
            "get": operation(
                "getFileContent", _FILES, "Download a file", content, parameters=[_FILE_ID]
            )
        },
    }


def _uploads() -> Json:
    fields = {
        "filename": text("The file's name."),
        "purpose": text("What for."),
        "bytes": integer("Its length.", minimum=0),
        "mime_type": text("Its media type."),
    }
    start = {
        "filename": "big.jsonl",
        "purpose": "batch",
        "bytes": 120000,
        "mime_type": "application/jsonl",
    }
    parts = {"type": "array", "items": {"type": "string"}, "description": "The parts in order."}
    done = json_call({"part_ids": parts}, ["part_ids"], parts={"part_ids": ["part_1", "part_2"]})
    part = {"id": "part_1", "object": "upload.part", "upload_id": "upload_abc123"}
    return {
        "/v1/uploads": {
            "post": operation(
                "createUpload",
                _UPLOADS,
                "Begin an upload",
                json_answer(_UPLOAD),
                request=json_call(fields, list(fields), upload=start),
            )
        },
        "/v1/uploads/{upload_id}/parts": {
            "post": operation(
                "addUploadPart",
                _UPLOADS,
                "Upload a part",
                json_answer(part),
                request=form_request({"data": file("The part's bytes.")}, ["data"]),
                parameters=[_UPLOAD_ID],
            )
        },
        "/v1/uploads/{upload_id}/complete": {
            "post": operation(
                "completeUpload",
                _UPLOADS,
                "Put the parts together",
                json_answer(_UPLOAD | {"status": "completed", "file": _FILE}),
                request=done,
                parameters=[_UPLOAD_ID],
            )
        },
        "/v1/uploads/{upload_id}/cancel": {
            "post": operation(
                "cancelUpload",
                _UPLOADS,
                "Give an upload up",
                json_answer(_UPLOAD | {"status": "cancelled"}),
                parameters=[_UPLOAD_ID],
            )
        },
    }


def _batches() -> Json:
    fields = {
        "input_file_id": text("The file with one request per line."),
        "endpoint": text("Where each of them goes."),
        "completion_window": text("How long it may take.", examples=["24h"]),
    }
    create = {
        "input_file_id": "file-abc123",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    return {
        "/v1/batches": {
            "post": operation(
                "createBatch",
                _BATCHES,
                "Start a batch",
                json_answer(_BATCH),
                request=json_call(fields, list(fields), batch=create),
                description=f"Each line of the file is a call such as a chat with `{MODEL}`.",
            ),
            "get": operation(
                "listBatches",
                _BATCHES,
                "List the batches",
                json_answer(_list_of(_BATCH)),
                parameters=_PAGE[:2],
            ),
        },
        "/v1/batches/{batch_id}": {
            "get": operation(
                "getBatch", _BATCHES, "About a batch", json_answer(_BATCH), parameters=[_BATCH_ID]
            )
        },
        "/v1/batches/{batch_id}/cancel": {
            "post": operation(
                "cancelBatch",
                _BATCHES,
                "Stop a batch",
                json_answer(_BATCH | {"status": "cancelling"}),
                parameters=[_BATCH_ID],
            )
        },
    }


def _vector_stores() -> Json:
    fields = {"name": text("Its name."), "file_ids": {"type": "array", "items": {"type": "string"}}}
    create = json_call(fields, [], store={"name": "Handbook", "file_ids": ["file-abc123"]})
    rename = json_call({"name": text("Its name.")}, [], store={"name": "Handbook 2"})
    return {
        "/v1/vector_stores": {
            "post": operation(
                "createVectorStore",
                _STORES,
                "Make a vector store",
                json_answer(_STORE),
                request=create,
            ),
            "get": operation(
                "listVectorStores",
                _STORES,
                "List the vector stores",
                json_answer(_list_of(_STORE)),
                parameters=_PAGE,
            ),
        },
        "/v1/vector_stores/{vector_store_id}": {
            "get": operation(
                "getVectorStore",
                _STORES,
                "About a vector store",
                json_answer(_STORE),
                parameters=[_STORE_ID],
            ),
            "post": operation(
                "updateVectorStore",
                _STORES,
                "Change a vector store",
                json_answer(_STORE),
                request=rename,
                parameters=[_STORE_ID],
            ),
            "delete": operation(
                "deleteVectorStore",
                _STORES,
                "Delete a vector store",
                json_answer(_deleted(_STORE)),
                parameters=[_STORE_ID],
            ),
        },
        **_vector_store_files(),
    }


def _vector_store_files() -> Json:
    attach = json_call({"file_id": text("The file.")}, ["file_id"], file={"file_id": "file-abc123"})
    search = json_call(
        {"query": text("What to look for."), "max_num_results": integer("How many.", minimum=1)},
        ["query"],
        search={"query": "How do I begin?", "max_num_results": 5},
    )
    return {
        "/v1/vector_stores/{vector_store_id}/search": {
            "post": operation(
                "searchVectorStore",
                _STORES,
                "Search a vector store",
                json_answer(_FOUND),
                request=search,
                parameters=[_STORE_ID],
            )
        },
        "/v1/vector_stores/{vector_store_id}/files": {
            "post": operation(
                "addVectorStoreFile",
                _STORES,
                "Add a file",
                json_answer(_STORE_FILE),
                request=attach,
                parameters=[_STORE_ID],
            ),
            "get": operation(
                "listVectorStoreFiles",
                _STORES,
                "List its files",
                json_answer(_list_of(_STORE_FILE)),
                parameters=[_STORE_ID, *_PAGE],
            ),
        },
        "/v1/vector_stores/{vector_store_id}/files/{file_id}": {
            "get": operation(
                "getVectorStoreFile",
                _STORES,
                "About one of its files",
                json_answer(_STORE_FILE),
                parameters=[_STORE_ID, _FILE_ID],
            ),
            "delete": operation(
                "removeVectorStoreFile",
                _STORES,
                "Take a file out",
                json_answer(_deleted(_STORE_FILE)),
                parameters=[_STORE_ID, _FILE_ID],
            ),
        },
    }


def paths() -> Json:
    """What is kept and looked up again by its id."""
    return {**_files(), **_uploads(), **_batches(), **_vector_stores()}
