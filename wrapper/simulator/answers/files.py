"""Files and uploads in parts. Of a file's content the first MiB is kept, its length always."""

from __future__ import annotations

from typing import Any

from wrapper.simulator.answers.call import Call
from wrapper.simulator.answers.echo import PATTERN, download
from wrapper.simulator.replies import Reply, json_reply

_KIND = "files"
_UPLOADS = "uploads"
_KEPT = 1 << 20


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


def create(call: Call) -> Reply:
    """`POST files` (multipart)."""
    part = call.file()
    purpose = call.form("purpose", "user_data")
    made = _file(call, part.filename or "file", purpose, part.size)
    call.shelf.put(_KIND, made, bytes(part.data), part.size)
    return json_reply(made)


def listed(call: Call) -> Reply:
    """`GET files`."""
    return json_reply(call.shelf.page(_KIND, call.request.query))


def get(call: Call) -> Reply:
    """`GET files/{id}`."""
    return json_reply(call.shelf.get(_KIND, call.arguments[0]))


def content(call: Call) -> Reply:
    """`GET files/{id}/content`: what was uploaded; of more than 1 MiB, the known pattern."""
    call.shelf.get(_KIND, call.arguments[0])
    kept, size = call.shelf.content(call.arguments[0])
    return download(call, size, kept if 0 < size <= _KEPT else PATTERN)


def delete(call: Call) -> Reply:
    """`DELETE files/{id}`."""
    call.shelf.delete(_KIND, call.arguments[0])
    return json_reply({"id": call.arguments[0], "object": "file", "deleted": True})


def upload(call: Call) -> Reply:
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
    call.shelf.put(_UPLOADS, made)
    return json_reply(made)


def upload_part(call: Call) -> Reply:
    """`POST uploads/{id}/parts` (multipart)."""
    name = call.arguments[0]
    call.shelf.get(_UPLOADS, name)
    part = call.file("data")
    made = {
        "id": f"part_{call.id}",
        "object": "upload.part",
        "created_at": call.created,
        "upload_id": name,
    }
    call.shelf.put(f"uploads/{name}/parts", made, bytes(part.data), part.size)
    return json_reply(made)


def upload_complete(call: Call) -> Reply:
    """`POST uploads/{id}/complete`: the parts, in the order that is given, become a file."""
    call.need("part_ids")
    begun = call.shelf.get(_UPLOADS, call.arguments[0])
    kind = f"uploads/{call.arguments[0]}/parts"
    kept, size = b"", 0
    for name in call.json["part_ids"]:
        call.shelf.get(kind, name)
        data, length = call.shelf.content(name)
        kept, size = (kept + data)[: _KEPT + 1], size + length
    made = _file(call, begun["filename"], begun["purpose"], size)
    call.shelf.put(_KIND, made, kept, size)
    begun |= {"status": "completed", "file": made}
    return json_reply(begun)


def upload_cancel(call: Call) -> Reply:
    """`POST uploads/{id}/cancel`."""
    begun = call.shelf.get(_UPLOADS, call.arguments[0])
    begun["status"] = "cancelled"
    return json_reply(begun)
