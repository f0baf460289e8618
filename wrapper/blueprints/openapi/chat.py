"""`POST /chat/completions`: the one call everybody starts with, told by examples."""

from __future__ import annotations

import json
from typing import Any

from wrapper.blueprints.openapi.failures import SAMPLES, relayed
from wrapper.blueprints.openapi.parts import MODEL, Json, example, json_content, json_request, ref
from wrapper.blueprints.openapi.schemas import answer_headers

_HELLO: list[Json] = [{"role": "user", "content": "Say hello in one short sentence."}]
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}},
            "required": ["town"],
        },
    },
}
_USAGE = {"prompt_tokens": 16, "completion_tokens": 8, "total_tokens": 24}


def _ask(**more: Any) -> Json:
    return {"model": MODEL, "messages": _HELLO, **more}


def _requests() -> Json:
    return {
        "unary": example("One answer, whole", _ask()),
        "streaming": example(
            "Streaming: the answer in pieces, as it is written", _ask(stream=True)
        ),
        "streaming_with_usage": example(
            "Streaming, with the use at the end",
            _ask(stream=True, stream_options={"include_usage": True}),
        ),
        "tools": example(
            "Tools: the model may ask for a function",
            _ask(
                messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
                tools=[_WEATHER],
                tool_choice="auto",
            ),
        ),
        "json_mode": example(
            "JSON mode: the answer is one JSON object",
            _ask(
                messages=[
                    {"role": "system", "content": "Answer as JSON with the field 'greeting'."},
                    *_HELLO,
                ],
                response_format={"type": "json_object"},
            ),
        ),
        "image": example(
            "An image beside the text (needs a model that can see)",
            _ask(
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What is in this picture?"},
                            {
                                "type": "image_url",
                                "image_url": {"url": "https://example.com/cat.png"},
                            },
                        ],
                    }
                ]
            ),
        ),
        "groq_extras": example(
            "Groq's own fields (reasoning models)",
            {
                "model": "openai/gpt-oss-20b",
                "messages": _HELLO,
                "reasoning_effort": "low",
                "include_reasoning": True,
                "service_tier": "auto",
                "max_completion_tokens": 512,
            },
        ),
    }


def _completion(message: Json, finish_reason: str = "stop") -> Json:
    return {
        "id": "chatcmpl-7d1c",
        "object": "chat.completion",
        "created": 1767225600,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", **message},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": _USAGE,
    }


def _answers() -> Json:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"town":"Oslo"}'},
    }
    return {
        "unary": example("An answer", _completion({"content": "Hello, nice to meet you!"})),
        "tools": example(
            "The model asks for a function",
            _completion({"content": None, "tool_calls": [call]}, "tool_calls"),
        ),
        "json_mode": example("JSON mode", _completion({"content": '{"greeting":"Hello!"}'})),
    }


def _chunk(delta: Json, **more: Any) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
    return {
        "id": "chatcmpl-7d1c",
        "object": "chat.completion.chunk",
        "created": 1767225600,
        "model": MODEL,
        "choices": [choice],
        **more,
    }


def events(*payloads: Json, end: str = "data: [DONE]\n\n") -> str:
    """Server-sent events as they stand on the wire."""
    lines = [f"data: {json.dumps(payload, separators=(',', ':'))}\n\n" for payload in payloads]
    return "".join(lines) + end


def _streams() -> Json:
    first = _chunk({"role": "assistant", "content": ""})
    broken = json.loads(SAMPLES["upstream_interrupted"][1].body())
    return {
        "stream": example(
            "A stream",
            events(
                first,
                _chunk({"content": "Hello"}),
                _chunk({"content": "!"}),
                _chunk({}, finish_reason="stop"),
            ),
        ),
        "with_usage": example(
            "With stream_options.include_usage",
            events(
                first,
                _chunk({"content": "Hello!"}),
                _chunk({}, finish_reason="stop"),
                _chunk({}) | {"choices": [], "usage": _USAGE},
            ),
        ),
        "upstream_interrupted": example(
            "A stream that broke off", events(first, _chunk({"content": "Hel"}), broken, end="")
        ),
    }


def _operation(path: str, operation_id: str) -> Json:
    return {
        "operationId": operation_id,
        "tags": ["Chat"],
        "summary": "Ask a model",
        "description": (
            "OpenAI's chat completions. `model` decides which provider answers; the body goes "
            "there as you wrote it, fields this page does not list included.\n\n"
            "With `stream: true` the answer is a stream of events. This page shows a stream when "
            "it is over; see it arrive in a terminal:\n\n"
            f"```sh\ncurl -N $GATEWAY{path} \\\n"
            '  -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\\n'
            f'  -d \'{{"model": "{MODEL}", "stream": true, '
            '"messages": [{"role": "user", "content": "Hello!"}]}\'\n```\n'
        ),
        "requestBody": json_request(ref("schemas", "ChatRequest"), _requests()),
        "responses": {
            "200": {
                "description": "The answer: one JSON object, or a stream of events.",
                "headers": answer_headers(),
                "content": {
                    **json_content(ref("schemas", "ChatCompletion"), _answers()),
                    "text/event-stream": {
                        "schema": ref("schemas", "EventStream"),
                        "examples": _streams(),
                    },
                },
            },
            **relayed(body=True, model=True),
        },
    }


def paths() -> Json:
    """Both addresses of the chat."""
    return {
        "/v1/chat/completions": {"post": _operation("/v1/chat/completions", "createChat")},
        "/chat/completions": {
            "post": _operation("/chat/completions", "createChatShort")
            | {"summary": "Ask a model (the same, without /v1)"}
        },
    }
