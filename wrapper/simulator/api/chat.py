"""Chat completions and the legacy completions, in one piece and as streams.

OpenAI reports the usage of a stream only when `stream_options.include_usage` is true: a last chunk
without choices, and `usage: null` in every other. Groq reports it unasked in `x_groq` of the last
chunk; when asked for too, in three places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wrapper.simulator.api.call import Call, chat_usage, prompt_words, put_usage, streamed
from wrapper.simulator.api.content import (
    Texts,
    cut,
    encoded,
    instance,
    last_text,
    limited,
    pieces,
    thoughts,
)
from wrapper.simulator.response import ApiError, Event, Response, Usage, encode, json_response

DONE = Event(b"[DONE]")


@dataclass(slots=True)
class Plan:
    """The content of one chat completion, before it is sent whole or as a stream."""

    content: Texts
    reasoning: Texts
    tool: dict[str, Any] | None
    finish: str
    choices: int
    usage: Usage


def chat(call: Call) -> Response:
    """`POST chat/completions`."""
    call.need("model", "messages")
    if not isinstance(call.json["messages"], list) or not call.json["messages"]:
        raise ApiError(400, "Invalid 'messages': expected a list with at least one message.")
    plan = _plan(call)
    if call.json.get("stream"):
        events = _stream(call, plan)
        response = streamed(call, events, plan.usage)
        response.parts = _parts(call, plan.usage)
        return response
    return _unary(call, plan)


def _plan(call: Call) -> Plan:
    body = call.json
    messages = body["messages"]
    tool = _tool(body)
    if tool is not None:
        content = cut(encode(instance(tool.get("parameters"))).decode())
    else:
        content = _json_content(body) or pieces(call, last_text(messages))
    wanted = body.get("include_reasoning") or body.get("reasoning_format")
    reasoning = thoughts(call, wanted or body.get("reasoning_effort") not in (None, "none"))
    limit = call.limit("max_completion_tokens", "max_tokens")
    reasoning, content, truncated = limited(limit, reasoning, content)
    finish = "length" if truncated else "tool_calls" if tool else "stop"
    choices = call.number("n", 1, 128)
    usage = call.usage(prompt_words(messages), len(content) * choices, len(reasoning))
    return Plan(content, reasoning, tool, finish, choices, usage)


def _tool(body: dict[str, Any]) -> dict[str, Any] | None:
    """The function to call: the one that `tool_choice` names, else the first."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not isinstance(tools, list) or not tools or choice == "none":
        return None
    last = body["messages"][-1]
    if isinstance(last, dict) and last.get("role") == "tool":
        return None
    functions = [
        tool["function"]
        for tool in tools
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    if isinstance(choice, dict):
        wanted = choice.get("function", {}).get("name")
        functions = [function for function in functions if function.get("name") == wanted]
    return functions[0] if functions else None


def _json_content(body: dict[str, Any]) -> tuple[str, ...]:
    wanted = body.get("response_format")
    if not isinstance(wanted, dict):
        return ()
    kind = wanted.get("type")
    if kind == "json_object":
        return cut(encode({"simulated": True, "answer": "a simulated answer"}).decode())
    if kind == "json_schema":
        return cut(encode(instance(wanted["json_schema"].get("schema"))).decode())
    return ()


def _unary(call: Call, plan: Plan) -> Response:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(plan.content)}
    if plan.tool is not None:
        arguments = message["content"]
        message["content"] = None
        message["tool_calls"] = [_tool_call(call, plan.tool, arguments)]
    if plan.reasoning and call.groq:
        message["reasoning"] = "".join(plan.reasoning)
    if not call.groq:
        message |= {"error": None, "annotations": []}
    made: dict[str, Any] = {
        "id": f"chatcmpl-{call.id}",
        "object": "chat.completion",
        "created": call.created,
        "model": call.answered_model,
        "choices": [
            {"index": n, "message": message, "logprobs": None, "finish_reason": plan.finish}
            for n in range(plan.choices)
        ],
    }
    carried = put_usage(call, made, plan.usage, chat_usage(call, plan.usage))
    if call.groq:
        made |= {"usage_breakdown": _breakdown(call, plan), "x_groq": {"id": call.id}}
    tier = call.instructions.tier or "default"
    made |= {"system_fingerprint": "fp_simulated", "service_tier": tier}
    response = json_response(made, carried, planned=plan.usage)
    response.parts = _parts(call, plan.usage)
    return response


def _parts(call: Call, usage: Usage) -> tuple[tuple[str, Usage], ...]:
    """The usage of each model of a compound system: the first one has what is left over."""
    if not call.instructions.compound or not call.groq:
        return ()
    first, *others = call.instructions.compound.split(",")
    share = Usage(*(number // (1 + len(others)) for number in usage))
    left = Usage(*(a - b * len(others) for a, b in zip(usage, share, strict=True)))
    return ((first, left), *((name, share) for name in others))


def _breakdown(call: Call, plan: Plan) -> dict[str, Any] | None:
    parts = _parts(call, plan.usage)
    models = [{"model": model, "usage": chat_usage(call, usage)} for model, usage in parts]
    return {"models": models} if models else None


def _tool_call(call: Call, tool: dict[str, Any], arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{call.id}",
        "type": "function",
        "function": {"name": tool.get("name"), "arguments": arguments},
    }


@dataclass(slots=True)
class _Chunks:
    """Writes the chunks of one stream; what they share is encoded once."""

    start: bytes
    tail: bytes

    def content(self, index: int, field: bytes, text: bytes) -> bytes:
        return b'%b"choices":[{"index":%d,"delta":{"%b":%b},"logprobs":null,%b' % (
            self.start,
            index,
            field,
            text,
            self.tail,
        )

    def choice(
        self, index: int, delta: Any, finish: str | None = None, extra: bytes = b""
    ) -> bytes:
        return b'%b"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]%b}' % (
            self.start,
            index,
            encode(delta),
            encode(finish),
            extra,
        )


def _stream(call: Call, plan: Plan) -> Iterator[Event]:
    asked = usage_asked(call)
    null = b',"usage":null' if asked and not call.groq else b""
    head = encode(
        {
            "id": f"chatcmpl-{call.id}",
            "object": "chat.completion.chunk",
            "created": call.created,
            "model": call.answered_model,
            "system_fingerprint": "fp_simulated",
            **call.served(),
        }
    )
    chunks = _Chunks(head[:-1] + b",", b'"finish_reason":null}]' + null + b"}")
    yield from _opening(call, plan, chunks, null)
    for text in encoded(plan.reasoning if call.groq else ()):
        for index in range(plan.choices):
            yield Event(chunks.content(index, b"reasoning", text))
    if plan.tool is not None:
        yield from _tool_deltas(call, plan, chunks, null)
    else:
        for text in encoded(plan.content):
            for index in range(plan.choices):
                yield Event(chunks.content(index, b"content", text))
    yield from _closing(call, plan, chunks, asked)
    if not call.instructions.no_done:
        yield DONE


def usage_asked(call: Call) -> bool:
    """Whether the stream is to end with a chunk that reports its usage."""
    options = call.json.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _opening(call: Call, plan: Plan, chunks: _Chunks, null: bytes) -> Iterator[Event]:
    for index in range(plan.choices):
        delta: dict[str, Any] = {"role": "assistant", "content": ""}
        extra = null
        if call.groq:
            extra += b',"x_groq":' + encode({"id": call.id}) if not index else b""
        else:
            delta["error"] = None
        yield Event(chunks.choice(index, delta, None, extra))


def _tool_deltas(call: Call, plan: Plan, chunks: _Chunks, null: bytes) -> Iterator[Event]:
    """Groq sends a tool call whole, OpenAI its name first and then the arguments in pieces."""
    assert plan.tool is not None  # noqa: S101
    for index in range(plan.choices):
        whole = "".join(plan.content) if call.groq else ""
        first = {"index": 0, **_tool_call(call, plan.tool, whole)}
        yield Event(chunks.choice(index, {"tool_calls": [first]}, None, null))
    if not call.groq:
        for text in plan.content:
            part = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
            for index in range(plan.choices):
                yield Event(chunks.choice(index, part, None, null))


def _closing(call: Call, plan: Plan, chunks: _Chunks, asked: bool) -> Iterator[Event]:
    silent = call.instructions.no_usage or call.instructions.usage_null
    usage = encode(None if silent else chat_usage(call, plan.usage))
    carried = None if silent else plan.usage
    if not call.groq:
        null = b',"usage":null' if asked else b""
        for index in range(plan.choices):
            yield Event(chunks.choice(index, {}, plan.finish, null))
        if asked and not call.instructions.no_usage:
            yield Event(chunks.start + b'"choices":[],"usage":' + usage + b"}", carried)
        return
    extra = b',"x_groq":{"id":' + encode(call.id)
    if call.instructions.groq_error:
        extra += b',"error":"this is a simulated error"}'
        carried = None
    elif call.instructions.no_usage:
        extra += b"}"
    else:
        extra += b',"usage":' + usage
        breakdown = _breakdown(call, plan)
        extra += b',"usage_breakdown":' + encode(breakdown) + b"}" if breakdown else b"}"
    if asked and not call.instructions.no_usage:
        extra += b',"usage":' + usage
    for index in range(plan.choices - 1):
        yield Event(chunks.choice(index, {}, plan.finish))
    yield Event(chunks.choice(plan.choices - 1, {}, plan.finish, extra), carried)
    if asked and not call.instructions.no_usage:
        last = b'"choices":[],"usage":' + usage + b"}"
        yield Event(chunks.start + last, None if silent else plan.usage)


def completions(call: Call) -> Response:
    """`POST completions`, `POST engines/{model}/completions`."""
    call.need("prompt")
    body = call.json
    content = pieces(call, last_text(body["prompt"]))
    limit = call.limit("max_tokens")
    reasoning, content, truncated = limited(limit, thoughts(call, wanted=False), content)
    finish = "length" if truncated else "stop"
    choices = call.number("n", 1, 128)
    usage = call.usage(prompt_words(body["prompt"]), len(content) * choices, len(reasoning))
    if body.get("stream"):
        events = _completions_stream(call, content, finish, choices, usage)
        return streamed(call, events, usage)
    made = {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": call.created,
        "model": call.answered_model,
        "choices": [
            {"text": "".join(content), "index": n, "logprobs": None, "finish_reason": finish}
            for n in range(choices)
        ],
    }
    carried = put_usage(call, made, usage, chat_usage(call, usage))
    return json_response(made, carried, planned=usage)


def _completions_stream(
    call: Call, content: Texts, finish: str, choices: int, usage: Usage
) -> Iterator[Event]:
    asked = usage_asked(call)
    head = encode(
        {
            "id": f"cmpl-{call.id}",
            "object": "text_completion",
            "created": call.created,
            "model": call.answered_model,
        }
    )
    start = head[:-1] + b',"choices":['
    null = b',"usage":null}' if asked else b"}"
    for number, text in enumerate(encoded(content), 1):
        reason = encode(finish) if number == len(content) else b"null"
        for index in range(choices):
            yield Event(
                b'%b{"text":%b,"index":%d,"logprobs":null,"finish_reason":%b}]%b'
                % (start, text, index, reason, null)
            )
    if asked and not call.instructions.no_usage:
        silent = call.instructions.usage_null
        shown = encode(None if silent else chat_usage(call, usage))
        yield Event(start + b'],"usage":' + shown + b"}", None if silent else usage)
    if not call.instructions.no_done:
        yield DONE
