"""One function that writes an operation of the unified API, so that the lists read as lists."""

from __future__ import annotations

from typing import Any

from wrapper.blueprints.openapi.failures import relayed
from wrapper.blueprints.openapi.parts import (
    Json,
    example,
    json_content,
    json_request,
    open_object,
    ref,
)
from wrapper.blueprints.openapi.schemas import answer_headers


def answer(description: str, content: Json) -> Json:
    """A provider's 200."""
    return {"200": {"description": description, "headers": answer_headers(), "content": content}}


def json_answer(value: Any, schema: str = "Anything") -> Json:
    """A JSON object as the 200."""
    content = json_content(ref("schemas", schema), {"answer": example("An answer", value)})
    return answer("The provider's answer, unchanged.", content)


def binary_answer(description: str, *media_types: str) -> Json:
    """Bytes as the 200."""
    return answer(description, {name: {} for name in media_types})


def with_stream(made: Json, sample: str) -> Json:
    """Adds the stream that comes with `stream: true`."""
    made["200"]["content"]["text/event-stream"] = {
        "schema": ref("schemas", "EventStream"),
        "examples": {"stream": example("With stream: true", sample)},
    }
    return made


def json_call(fields: Json, required: list[str], **examples: Json) -> Json:
    """A JSON request body: its fields, which of them are needed, and examples by name."""
    named = {name: example(name.replace("_", " "), value) for name, value in examples.items()}
    return json_request(open_object(fields, required), named)


def operation(
    operation_id: str,
    tag: str,
    summary: str,
    responses: Json,
    *,
    request: Json | None = None,
    parameters: list[Json] | None = None,
    description: str = "",
) -> Json:
    """An operation that a provider answers, with every error that it can end in."""
    made: Json = {"operationId": operation_id, "tags": [tag], "summary": summary}
    if description:
        made["description"] = description
    if parameters:
        made["parameters"] = parameters
    if request:
        made["requestBody"] = request
    by_model = "model" in _fields(request)
    made["responses"] = {**responses, **relayed(body=request is not None, model=by_model)}
    return made


def _fields(request: Json | None) -> Json:
    if request is None:
        return {}
    content: Json = next(iter(request["content"].values()))
    fields: Json = content["schema"].get("properties", {})
    return fields
