"""Batches: taken in, never worked on."""

from __future__ import annotations

from wrapper.simulator.answers.call import Call
from wrapper.simulator.replies import Reply, json_reply

_KIND = "batches"


def create(call: Call) -> Reply:
    """`POST batches`."""
    call.need("input_file_id", "endpoint", "completion_window")
    made = {
        "id": f"batch_{call.id}",
        "object": "batch",
        "endpoint": call.json["endpoint"],
        "errors": None,
        "input_file_id": call.json["input_file_id"],
        "completion_window": call.json["completion_window"],
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": call.created,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": call.json.get("metadata"),
    }
    call.shelf.put(_KIND, made)
    return json_reply(made)


def listed(call: Call) -> Reply:
    """`GET batches`."""
    return json_reply(call.shelf.page(_KIND, call.request.query))


def get(call: Call) -> Reply:
    """`GET batches/{id}`."""
    return json_reply(call.shelf.get(_KIND, call.arguments[0]))


def cancel(call: Call) -> Reply:
    """`POST batches/{id}/cancel`."""
    made = call.shelf.get(_KIND, call.arguments[0])
    made["status"] = "cancelling"
    return json_reply(made)
