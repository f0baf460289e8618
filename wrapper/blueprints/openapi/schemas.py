"""Schemas and headers that several operations share.

The schemas name what OpenAI's and Groq's references name and close nothing off: the gateway
passes unknown fields through, so the description does too.
"""

from __future__ import annotations

from wrapper.blueprints.openapi.parts import (
    Json,
    boolean,
    integer,
    model,
    number,
    open_object,
    ref,
    text,
)


def _nullable(schema: Json) -> Json:
    return schema | {"type": [schema["type"], "null"]}


def _array(items: Json, description: str) -> Json:
    return {"type": "array", "items": items, "description": description}


def _header(description: str, value: str | int, kind: str = "string") -> Json:
    return {"description": description, "schema": {"type": kind}, "example": value}


def headers() -> Json:
    """`components.headers`."""
    made = {
        "x-request-id": _header(
            "Names this request in the log; the provider's own where it sent one.",
            "req_01jbd6g2qdfw2adyrt2az8hz4w",
        ),
        "x-wrapper-provider": _header("The provider that answered.", "groq"),
        "Server-Timing": _header(
            "Where the time went, in milliseconds: the gateway's own share, the provider's, and "
            "until its first token (W3C Server Timing).",
            "gateway;dur=0.6, upstream;dur=412.3, ttft;dur=98.1",
        ),
        "Retry-After": _header("Seconds to wait before the next try.", 12, "integer"),
        "Allow": _header("The methods that the route takes (RFC 9110).", "POST"),
        "WWW-Authenticate": _header("How to authenticate (RFC 9110).", "Bearer"),
    }
    for unit, limit, left, reset in (
        ("requests", "14400", "14370", "2m59.56s"),
        ("tokens", "18000", "17997", "547ms"),
    ):
        made[f"x-ratelimit-limit-{unit}"] = _header(f"How many {unit} are allowed.", limit)
        made[f"x-ratelimit-remaining-{unit}"] = _header(f"How many {unit} are left.", left)
        made[f"x-ratelimit-reset-{unit}"] = _header(f"When the {unit} are full again.", reset)
    return made


def answer_headers() -> Json:
    """The headers of every answer that came from a provider."""
    return {
        name: ref("headers", name)
        for name in headers()
        if name not in ("Allow", "Retry-After", "WWW-Authenticate")
    }


def _error() -> Json:
    fields = {
        "message": text("What was wrong, and what would be right."),
        "type": text(
            "The kind of error.",
            enum=[
                "invalid_request_error",
                "rate_limit_error",
                "insufficient_quota",
                "api_error",
                "internal_error",
            ],
        ),
        "param": _nullable(text("The field it is about, where there is one.")),
        "code": _nullable(text("The error's name, for programs.")),
    }
    inner = {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "description": "OpenAI's error shape: the SDKs raise their usual exceptions.",
        "properties": {"error": inner},
        "required": ["error"],
    }


def _provider_error() -> Json:
    inner = open_object({"message": text("What the provider says.")})
    return open_object({"error": inner}) | {"description": "As the provider sent it."}


def _usage() -> Json:
    fields = {
        "prompt_tokens": integer("Tokens of the question."),
        "completion_tokens": integer("Tokens of the answer."),
        "total_tokens": integer("Both."),
    }
    return open_object(fields) | {"description": "What the call used."}


def _message() -> Json:
    content = {
        "description": "The text, or parts: text, images, audio.",
        "type": ["string", "array", "null"],
        "items": {"type": "object", "additionalProperties": True},
    }
    fields = {
        "role": text("Who speaks.", examples=["system", "user", "assistant", "tool"]),
        "content": content,
        "name": text("Tells speakers of one role apart."),
        "tool_calls": _array({"type": "object"}, "What the assistant asked to be called."),
        "tool_call_id": text("The call that a `tool` message answers."),
    }
    return open_object(fields, ["role"])


def _chat_request() -> Json:
    fields = {
        "model": model(),
        "messages": _array(ref("schemas", "Message"), "The conversation so far.") | {"minItems": 1},
        "stream": boolean("Send the answer in pieces, as server-sent events.", default=False),
        "stream_options": open_object(
            {"include_usage": boolean("End the stream with a chunk that holds the use.")}
        ),
        "temperature": number("0 is sober, 2 is wild.", minimum=0, maximum=2),
        "top_p": number("Consider only the likeliest tokens up to this share.", maximum=1),
        "max_completion_tokens": integer("The longest answer, in tokens.", minimum=1),
        "max_tokens": integer("The older name of it.", deprecated=True),
        "n": integer("How many answers.", minimum=1),
        "stop": {"description": "Where to stop.", "type": ["string", "array", "null"]}
        | {"items": {"type": "string"}},
        "seed": integer("The same seed asks for the same answer."),
        "presence_penalty": number("Above 0: new subjects.", minimum=-2, maximum=2),
        "frequency_penalty": number("Above 0: fewer repetitions.", minimum=-2, maximum=2),
        "logit_bias": open_object({}),
        "logprobs": boolean("Send the tokens' probabilities, too."),
        "top_logprobs": integer("And of so many alternatives."),
        "user": text("Your own name for the end user."),
        "tools": _array({"type": "object"}, "Functions that the model may ask for."),
        "tool_choice": {"description": '`"none"`, `"auto"`, `"required"`, or one function.'},
        "parallel_tool_calls": boolean("Whether it may ask for several at once."),
        "response_format": open_object({"type": text("`text`, `json_object`, `json_schema`.")}),
        "reasoning_effort": text("How long the model may think: `low`, `medium`, `high`, …"),
        "service_tier": text("`auto`, `default`, `flex`, …: the provider's classes of service."),
    }
    groq = {
        "reasoning_format": text("Groq: `hidden`, `raw` or `parsed`."),
        "include_reasoning": boolean("Groq: whether the answer holds the reasoning."),
        "search_settings": open_object({}),
        "documents": _array({"type": "object"}, "Groq: texts to answer from."),
        "citation_options": text("Groq: `enabled` or `disabled`."),
        "compound_custom": open_object({}),
        "disable_tool_validation": boolean("Groq: take tool calls as the model writes them."),
    }
    return open_object(fields | groq, ["model", "messages"])


def _chat_answer(part: str, description: str) -> Json:
    choice = open_object(
        {
            "index": integer("Which of the `n` answers."),
            part: ref("schemas", "Message") if part == "message" else open_object({}),
            "finish_reason": _nullable(text("`stop`, `length`, `tool_calls`, …")),
        }
    )
    fields = {
        "id": text("The answer's name."),
        "object": text("The kind of object."),
        "created": integer("When, in seconds since 1970."),
        "model": text("The model that answered."),
        "choices": _array(choice, "The answers."),
        "usage": ref("schemas", "Usage"),
    }
    return open_object(fields, ["id", "object", "choices"]) | {"description": description}


def _model_list() -> Json:
    entry = open_object(
        {
            "id": text("What to write in `model`."),
            "object": text("Always `model`."),
            "created": integer("When, in seconds since 1970."),
            "owned_by": text("Who made it, or who serves it."),
        },
        ["id", "object"],
    )
    return open_object({"object": text("Always `list`."), "data": _array(entry, "The models.")})


def schemas() -> Json:
    """`components.schemas`."""
    return {
        "Error": _error(),
        "ProviderError": _provider_error(),
        "Usage": _usage(),
        "Message": _message(),
        "ChatRequest": _chat_request(),
        "ChatCompletion": _chat_answer("message", "A whole answer."),
        "ChatChunk": _chat_answer("delta", "The `data:` of one event of a stream."),
        "ModelList": _model_list(),
        "Anything": open_object({}) | {"description": "As the provider documents it."},
        "EventStream": text(
            "Server-sent events: lines `data: {json}`, an empty line after each, at the end "
            "`data: [DONE]`. Every event arrives as soon as the provider sends it. Should the "
            'stream break off, its last event is `data: {"error": …}` with the code '
            "`upstream_interrupted`, and no `[DONE]` follows."
        ),
    }
