"""The text endpoints of the unified API (`/v1/...`), each by its name."""

from __future__ import annotations

from wrapper.blueprints.openapi.calls import json_answer, json_call, operation, with_stream
from wrapper.blueprints.openapi.chat import events
from wrapper.blueprints.openapi.failures import responses
from wrapper.blueprints.openapi.parts import (
    MODEL,
    Json,
    boolean,
    example,
    in_path,
    integer,
    json_content,
    model,
    ref,
    text,
)

_RESPONSE = {
    "id": "resp_67cb",
    "object": "response",
    "created_at": 1767225600,
    "status": "completed",
    "model": MODEL,
    "output": [
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello!"}],
        }
    ],
    "usage": {"input_tokens": 16, "output_tokens": 8, "total_tokens": 24},
}
_RESPONSE_STREAM = "".join(
    f"event: {event['type']}\n{events(event, end='')}"
    for event in (
        {"type": "response.output_text.delta", "delta": "Hello!"},
        {"type": "response.completed", "response": {"id": "resp_67cb", "status": "completed"}},
    )
)
_COMPLETION = {
    "id": "cmpl-7d1c",
    "object": "text_completion",
    "created": 1767225600,
    "model": "gpt-3.5-turbo-instruct",
    "choices": [{"index": 0, "text": " there was a gateway.", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10},
}
_MODERATION = {
    "id": "modr-1",
    "model": "omni-moderation-latest",
    "results": [{"flagged": False, "categories": {"violence": False}}],
}
_EMBEDDINGS = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456, 0.0789]}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}
_RESPONSE_ID = in_path("response_id", "The response's id.", "resp_67cb")
_MODEL = {"id": MODEL, "object": "model", "created": 1767225600, "owned_by": "Meta"}


def _text_or_texts(description: str) -> Json:
    return {"description": description, "type": ["string", "array"], "items": {}}


def _completions() -> Json:
    fields = {
        "model": model(),
        "prompt": _text_or_texts("The text to go on with."),
        "max_tokens": integer("The longest answer, in tokens.", minimum=1),
        "stream": boolean("Send the answer in pieces."),
    }
    request = json_call(
        fields,
        ["model"],
        text={"model": MODEL, "prompt": "Once upon a time", "max_tokens": 32},
    )
    stream = events(_COMPLETION | {"choices": [{"index": 0, "text": " there"}]})
    return operation(
        "createCompletion",
        "Text",
        "Complete a text (the older API)",
        with_stream(json_answer(_COMPLETION), stream),
        request=request,
    )


def _embeddings() -> Json:
    fields = {
        "model": model(),
        "input": _text_or_texts("A text, or several."),
        "encoding_format": text("How numbers are written.", enum=["float", "base64"]),
        "dimensions": integer("How many numbers.", minimum=1),
    }
    one = {"model": "text-embedding-3-small", "input": "A sentence"}
    several = one | {"input": ["A sentence", "Another"]}
    return operation(
        "createEmbedding",
        "Text",
        "Turn text into vectors",
        json_answer(_EMBEDDINGS),
        request=json_call(fields, ["model", "input"], one_text=one, several_texts=several),
    )


def _responses() -> Json:
    fields = {
        "model": model(),
        "input": _text_or_texts("A text, or a list of items."),
        "instructions": text("What the model should keep in mind."),
        "previous_response_id": text("The response to go on from."),
        "stream": boolean("Send the answer as typed events."),
        "tools": {"type": "array", "items": {"type": "object"}},
    }
    hello = {"model": MODEL, "input": "Say hello in one short sentence."}
    request = json_call(fields, ["model"], unary=hello, streaming=hello | {"stream": True})
    create = operation(
        "createResponse",
        "Text",
        "Ask a model (OpenAI's Responses API)",
        with_stream(json_answer(_RESPONSE), _RESPONSE_STREAM),
        request=request,
    )
    get = operation(
        "getResponse",
        "Text",
        "Fetch a stored response",
        json_answer(_RESPONSE),
        parameters=[_RESPONSE_ID],
    )
    delete = operation(
        "deleteResponse",
        "Text",
        "Delete a stored response",
        json_answer({"id": "resp_67cb", "object": "response", "deleted": True}),
        parameters=[_RESPONSE_ID],
    )
    cancel = operation(
        "cancelResponse",
        "Text",
        "Cancel a response that runs in the background",
        json_answer(_RESPONSE | {"status": "cancelled"}),
        parameters=[_RESPONSE_ID],
    )
    return {
        "/v1/responses": {"post": create},
        "/v1/responses/{response_id}": {"get": get, "delete": delete},
        "/v1/responses/{response_id}/cancel": {"post": cancel},
    }


def _moderations() -> Json:
    fields = {"model": model("omni-moderation-latest"), "input": _text_or_texts("What to judge.")}
    request = json_call(
        fields, ["input"], text={"model": "omni-moderation-latest", "input": "A kind sentence"}
    )
    return operation(
        "createModeration", "Text", "Judge a text", json_answer(_MODERATION), request=request
    )


def _models() -> Json:
    gateway_made = responses("InvalidPath", "Unauthorized", "TooManyRequests", "InternalError")
    listing = {
        "operationId": "listModels",
        "tags": ["Models"],
        "summary": "The models your key may call",
        "description": "Over all providers and aliases of this gateway. Remembered for a while; "
        "a provider that is down does not spoil the list.",
        "responses": {
            "200": {
                "description": "OpenAI's list format.",
                "headers": {"x-request-id": ref("headers", "x-request-id")},
                "content": json_content(
                    ref("schemas", "ModelList"),
                    {"models": example("Models", {"object": "list", "data": [_MODEL]})},
                ),
            },
            **gateway_made,
        },
    }
    one = {
        "operationId": "getModel",
        "tags": ["Models"],
        "summary": "One model",
        "parameters": [in_path("model", "The model's name, or an alias.", MODEL)],
        "responses": {
            "200": {
                "description": "The model.",
                "headers": {"x-request-id": ref("headers", "x-request-id")},
                "content": json_content(
                    ref("schemas", "Anything"), {"model": example("A model", _MODEL)}
                ),
            },
            **gateway_made,
            **responses("ModelNotFound"),
        },
    }
    return {"/v1/models": {"get": listing}, "/v1/models/{model}": {"get": one}}


def paths() -> Json:
    """Text in, text or numbers out; and the list of models."""
    return {
        **_models(),
        **_responses(),
        "/v1/completions": {"post": _completions()},
        "/v1/embeddings": {"post": _embeddings()},
        "/v1/moderations": {"post": _moderations()},
    }
