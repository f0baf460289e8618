"""Work that goes on after its request: background responses, batches and videos.

An object is `begun` with what it will be in the end. Each time it is asked for it comes nearer to
that: `polls` says how many answers show it unfinished. Its usage is billed when it ends, once,
whether anybody reads it or not, to the book of the request that created it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from wrapper.simulator.api import chat, embeddings, responses
from wrapper.simulator.api.call import Call, responses_usage
from wrapper.simulator.api.objects import created_file
from wrapper.simulator.instructions import parse, split_model
from wrapper.simulator.response import ApiError, Event, Response, Usage, encode, json_response

_POLLS = 2
_UNFINISHED = "in_progress"


@dataclass(slots=True)
class Work:
    """What is left of an object: `final` are the members that its end changes."""

    made: dict[str, Any]
    final: dict[str, Any]
    polls: int
    book: str
    endpoint: str
    usage: list[tuple[str, Usage]] = field(default_factory=list)


def _begin(call: Call, kind: str, work: Work) -> None:
    call.objects.put(kind, work.made)
    call.objects.works[work.made["id"]] = work


def _polls(call: Call) -> int:
    return _POLLS if call.instructions.polls is None else call.instructions.polls


def _look(call: Call, kind: str) -> dict[str, Any]:
    """The object as it is now; asking brings it nearer to its end."""
    made = call.objects.get(kind, call.arguments[0])
    work = call.objects.works.get(made["id"])
    if work is not None and work.polls > 0:
        work.polls -= 1
        if made["status"] != "cancelling":
            made["status"] = _UNFINISHED
    elif work is not None:
        _end(call, work)
    return made


def _end(call: Call, work: Work) -> None:
    if call.objects.works.pop(work.made["id"], None) is None:
        return
    work.made.update(work.final)
    for model, usage in work.usage:
        call.ledger.bill(work.book, model, work.endpoint, usage)


def retrieve(kind: str) -> Any:
    """`GET {kind}/{id}`."""
    return lambda call: json_response(_look(call, kind))


# --- background responses ---


def create_response(call: Call) -> Response:
    """`POST responses`; with `background` it is queued, or goes on without its stream's client."""
    if call.json.get("background") is not True:
        return responses.create(call)
    finished, usage = responses.finished(call)
    ends = call.instructions.ends
    final = {**finished, "status": ends or finished["status"]}
    if ends in ("failed", "cancelled"):
        final |= {"output": [], "usage": None}
        usage = None
    if ends == "failed":
        final["error"] = {"code": "server_error", "message": "This is a simulated failure."}
    made = {**finished, "status": "queued", "output": [], "usage": None}
    billed = [(call.model, usage)] if usage is not None else []
    work = Work(made, final, _polls(call), call.book, "responses", billed)
    _begin(call, "responses", work)
    if call.json.get("stream"):
        return _events(call, work, after=-1)
    return json_response(made)


def _events(
    call: Call, work: Work | None, after: int, made: dict[str, Any] | None = None
) -> Response:
    final = {**work.made, **work.final} if work is not None else dict(made or {})

    def events() -> Iterator[Event]:
        for number, event in enumerate(responses.events_of(final)):
            if number > after:
                if event.name == f"response.{final['status']}".encode() and work is not None:
                    _end(call, work)
                yield event

    return Response(content_type="text/event-stream; charset=utf-8", events=events())


def retrieve_response(call: Call) -> Response:
    """`GET responses/{id}`; with `stream=true` the events after `starting_after`."""
    if call.request.query.get("stream") != "true":
        return json_response(_look(call, "responses"))
    made = call.objects.get("responses", call.arguments[0])
    after = int(call.request.query.get("starting_after", "-1"))
    return _events(call, call.objects.works.get(made["id"]), after, made)


def cancel_response(call: Call) -> Response:
    """`POST responses/{id}/cancel`: what has not ended is cancelled, without usage."""
    made = call.objects.get("responses", call.arguments[0])
    if call.objects.works.pop(made["id"], None) is not None or not made.get("background"):
        made["status"] = "cancelled"
    return json_response(made)


# --- batches ---


def create_batch(call: Call) -> Response:
    """`POST batches`. It is worked off where `polls` is ordered and its file was uploaded here."""
    call.need("input_file_id", "endpoint", "completion_window")
    made: dict[str, Any] = {
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
    if call.instructions.polls is None:
        call.objects.put("batches", made)
        return json_response(made)
    content, _ = call.objects.content(str(call.json["input_file_id"]))
    lines = [msgspec.json.decode(line) for line in content.splitlines() if line.strip()]
    work = Work(made, {}, call.instructions.polls, call.book, "batches")
    _work_off(call, work, lines, call.instructions.ends or "completed")
    _begin(call, "batches", work)
    return json_response(made)


def cancel_batch(call: Call) -> Response:
    """`POST batches/{id}/cancel`: half of it has been done."""
    made = call.objects.get("batches", call.arguments[0])
    made["status"] = "cancelling"
    work = call.objects.works.get(made["id"])
    if work is not None:
        content, _ = call.objects.content(made["input_file_id"])
        lines = [msgspec.json.decode(line) for line in content.splitlines() if line.strip()]
        _work_off(call, work, lines, "cancelled")
    return json_response(made)


def _work_off(call: Call, work: Work, lines: list[dict[str, Any]], ends: str) -> None:
    """Fill in how the batch will end: its output files, its usage."""
    work.usage.clear()
    if ends == "failed":
        error = {"code": "invalid_json_line", "message": "simulated", "line": 1}
        work.final = {"status": ends, "errors": {"object": "list", "data": [error]}}
        return
    done = lines if ends == "completed" else lines[: len(lines) // 2]
    outputs: list[bytes] = []
    failures: list[bytes] = []
    for line in done:
        status, body, usage = _line(call, line)
        response = {"status_code": status, "request_id": "req", "body": body}
        sent = {"id": "batch_req", "custom_id": line.get("custom_id"), "response": response}
        (failures if status >= 400 else outputs).append(encode({**sent, "error": None}))
        if usage is not None:
            work.usage.append((_text(line["body"].get("model")), usage))
    total = Usage(*map(sum, zip(*(usage for _, usage in work.usage), strict=True)))
    models = {model for model, _ in work.usage}
    work.final = {
        "status": ends,
        f"{ends}_at": int(time.time()),
        "output_file_id": created_file(call, b"\n".join(outputs), "out") if outputs else None,
        "error_file_id": created_file(call, b"\n".join(failures), "err") if failures else None,
        "request_counts": {
            "total": len(lines),
            "completed": len(outputs),
            "failed": len(lines) - len(outputs),
        },
    }
    if not call.instructions.no_usage and len(models) == 1:
        work.final |= {"usage": responses_usage(total), "model": models.pop()}


_RESPOND = {
    "/v1/chat/completions": chat.chat,
    "/v1/completions": chat.completions,
    "/v1/embeddings": embeddings.embeddings,
    "/v1/responses": responses.create,
}


def _line(call: Call, line: dict[str, Any]) -> tuple[int, Any, Usage | None]:
    """The status, the body and the usage of one request of a batch."""
    body = line["body"]
    model, orders = split_model(_text(body.get("model")))
    instructions = parse(orders, _text(body.get("x_sim")))
    inner = replace(call, json=body, model=model, instructions=instructions)
    if instructions.status is not None and instructions.status >= 400:
        return instructions.status, {"error": {"message": "simulated", "code": None}}, None
    try:
        response = _RESPOND[line["url"]](inner)
    except ApiError as problem:
        return problem.status, {"error": {"message": str(problem)}}, None
    return 200, msgspec.json.decode(response.body), response.planned


# --- videos ---


def create_video(call: Call) -> Response:
    """`POST videos` and `POST videos/{id}/remix`, JSON or a form."""
    seconds = call.json.get("seconds") or call.form("seconds", "4")
    made: dict[str, Any] = {
        "id": f"video_{call.id}",
        "object": "video",
        "created_at": call.created,
        "status": "queued",
        "model": call.answered_model or "sora-2",
        "progress": 0,
        "seconds": str(seconds),
        "size": call.json.get("size") or call.form("size", "720x1280"),
        "error": None,
    }
    ends = call.instructions.ends or "completed"
    final: dict[str, Any] = {"status": ends, "progress": 100}
    usage = [(call.model, Usage(seconds=int(seconds)))]
    if ends == "failed":
        final = {"status": ends, "error": {"code": "simulated", "message": "simulated"}}
        usage = []
    _begin(call, "videos", Work(made, final, _polls(call), call.book, "videos", usage))
    return json_response(made)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
