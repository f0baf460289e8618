"""Anthropic's messages: in one piece, or events that report the usage at both ends.

`input_tokens` leaves out what was read from the cache. The credential stands in `x-api-key`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wrapper.simulator.api.call import Call, prompt_words, put_usage, streamed
from wrapper.simulator.api.content import Texts, last_text, limited, pieces
from wrapper.simulator.response import Event, Response, Usage, encode, json_response


def create(call: Call) -> Response:
    """`POST messages`."""
    call.need("model", "max_tokens", "messages")
    body = call.json
    _, content, truncated = limited(
        call.limit("max_tokens"), (), pieces(call, last_text(body["messages"]))
    )
    usage = call.tools(call.usage(prompt_words(body["messages"], body.get("system")), len(content)))
    made = {
        "id": f"msg_{call.id}",
        "type": "message",
        "role": "assistant",
        "model": call.answered_model,
        "content": [{"type": "text", "text": "".join(content)}],
        "stop_reason": "max_tokens" if truncated else "end_turn",
        "stop_sequence": None,
    }
    if body.get("stream"):
        return streamed(call, _stream(call, made, content, usage), usage)
    carried = put_usage(call, made, usage, _usage(call, usage))
    return json_response(made, carried, planned=usage)


def count_tokens(call: Call) -> Response:
    """`POST messages/count_tokens`: it costs nothing."""
    call.need("model", "messages")
    count = prompt_words(call.json["messages"], call.json.get("system"))
    return json_response({"input_tokens": count})


def _usage(call: Call, usage: Usage) -> dict[str, Any]:
    served = {"speed": "fast"} if call.instructions.tier == "fast" else call.served()
    searches = {"server_tool_use": {"web_search_requests": usage.web_search}}
    return {
        **(searches if usage.web_search else {}),
        **served,
        "input_tokens": usage.prompt - usage.cached - usage.cache_write,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }


def _stream(call: Call, made: dict[str, Any], content: Texts, usage: Usage) -> Iterator[Event]:
    begun = {**made, "content": [], "stop_reason": None}
    so_far = put_usage(call, begun, first := usage._replace(completion=1), _usage(call, first))
    yield _event("message_start", {"message": begun}, so_far)
    yield _event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    yield _event("ping", {})
    for text in content:
        yield _event("content_block_delta", {"index": 0, "delta": _text(text)})
    yield _event("content_block_stop", {"index": 0})
    ended: dict[str, Any] = {
        "delta": {"stop_reason": made["stop_reason"], "stop_sequence": None},
    }
    carried = put_usage(call, ended, usage, {"output_tokens": usage.completion})
    yield _event("message_delta", ended, carried)
    yield _event("message_stop", {})


def _text(text: str) -> dict[str, str]:
    return {"type": "text_delta", "text": text}


def _event(name: str, fields: dict[str, Any], carried: Usage | None = None) -> Event:
    return Event(encode({"type": name, **fields}), carried, name.encode())
