"""The responses API: in one piece, or typed events with the usage in the last one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wrapper.simulator.api.call import Call, prompt_words, put_usage, responses_usage, streamed
from wrapper.simulator.api.content import (
    Texts,
    cut,
    instance,
    last_text,
    limited,
    pieces,
    thoughts,
)
from wrapper.simulator.response import Event, Response, Usage, encode, json_response


def create(call: Call) -> Response:
    """`POST responses`."""
    content, tool, made, usage = _made(call)
    carried = put_usage(call, made, usage, responses_usage(usage))
    if call.json.get("store") is not False:
        call.objects.put("responses", made)
    if call.json.get("stream"):
        events = _stream(call, content, tool, made, carried)
        return streamed(call, events, usage)
    return json_response(made, carried, planned=usage)


def finished(call: Call) -> tuple[dict[str, Any], Usage | None]:
    """A response as it will be in the end, and the usage that it then carries."""
    _, _, made, usage = _made(call)
    return made, put_usage(call, made, usage, responses_usage(usage))


def events_of(made: dict[str, Any]) -> Iterator[Event]:
    """The events of a response in the background. They carry no usage: it is billed at the end."""
    begun = {**made, "status": "queued", "output": [], "usage": None}
    events: list[tuple[str, dict[str, Any]]] = [
        (f"response.{name}", {"response": {**begun, "status": status}})
        for name, status in (("created", "queued"), ("queued", "queued"), ("in_progress",) * 2)
    ]
    for index, item in enumerate(made["output"]):
        place = {"item_id": item["id"], "output_index": index}
        for part in item.get("content", ()):
            for text in cut(part["text"]):
                delta = {**place, "content_index": 0, "logprobs": [], "delta": text}
                events.append(("response.output_text.delta", delta))
        events.append(("response.output_item.done", {"output_index": index, "item": item}))
    events.append((f"response.{made['status']}", {"response": made}))
    for number, (name, fields) in enumerate(events):
        data = encode({"type": name, "sequence_number": number, **fields})
        yield Event(data, None, name.encode())


def _made(call: Call) -> tuple[Texts, dict[str, Any] | None, dict[str, Any], Usage]:
    """The content, the tool that is called, the finished response, and the usage of it."""
    call.need("model", "input")
    body = call.json
    tool = _tool(body)
    if tool is not None:
        content = cut(encode(instance(tool.get("parameters"))).decode())
    else:
        content = _json_content(body) or pieces(call, last_text(body["input"]))
    effort = isinstance(body.get("reasoning"), dict) and body["reasoning"].get("effort")
    reasoning = thoughts(call, effort not in (None, False, "none"))
    limit = call.limit("max_output_tokens")
    reasoning, content, truncated = limited(limit, reasoning, content)
    prompt = prompt_words(body["input"], body.get("instructions"))
    usage = call.tools(call.usage(prompt, len(content), len(reasoning)))
    status = "incomplete" if truncated else "completed"
    item = _item(call, tool, "".join(content), status)
    made = _response(call, status, [*_hosted(call), item])
    if truncated:
        made["incomplete_details"] = {"reason": "max_output_tokens"}
    return content, tool, made, usage


def input_items(call: Call) -> Response:
    """`GET responses/{id}/input_items`: always an empty page."""
    call.objects.get("responses", call.arguments[0])
    return json_response(call.objects.page("nothing", call.request.query))


def _tool(body: dict[str, Any]) -> dict[str, Any] | None:
    tools = body.get("tools")
    if not isinstance(tools, list) or body.get("tool_choice") == "none":
        return None
    given = body["input"]
    last = given[-1] if isinstance(given, list) and given else None
    if isinstance(last, dict) and last.get("type") == "function_call_output":
        return None
    for tool in tools:
        if isinstance(tool, dict) and tool.get("type") == "function":
            return tool
    return None


def _json_content(body: dict[str, Any]) -> Texts:
    text = body.get("text")
    wanted = text.get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict) or wanted.get("type") not in ("json_object", "json_schema"):
        return ()
    made = instance(wanted["schema"]) if "schema" in wanted else {"simulated": True}
    return cut(encode(made).decode())


def _hosted(call: Call) -> list[dict[str, Any]]:
    """The calls of a tool that the provider has run."""
    name, count = call.instructions.tool or ("", 0)
    what: dict[str, Any] = {"queries": ["simulated"], "results": None}
    if name == "web_search":
        what = {"action": {"type": "search", "query": "simulated"}}
    return [
        {"id": f"ws_{call.id}_{n}", "type": f"{name}_call", "status": "completed", **what}
        for n in range(count)
    ]


def _item(call: Call, tool: dict[str, Any] | None, text: str, status: str) -> dict[str, Any]:
    if tool is not None:
        return {
            "id": f"fc_{call.id}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_{call.id}",
            "name": tool.get("name"),
            "arguments": text,
        }
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {
        "id": f"msg_{call.id}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content if text else [],
    }


def _response(call: Call, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"resp_{call.id}",
        "object": "response",
        "created_at": call.created,
        "status": status,
        "background": call.json.get("background") is True,
        "error": None,
        "incomplete_details": None,
        "instructions": call.json.get("instructions"),
        "max_output_tokens": call.json.get("max_output_tokens"),
        "model": call.answered_model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": call.json.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "store": call.json.get("store") is not False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        **call.served(),
        "metadata": call.json.get("metadata") or {},
    }


def _stream(
    call: Call,
    content: Texts,
    tool: dict[str, Any] | None,
    made: dict[str, Any],
    carried: Usage | None,
) -> Iterator[Event]:
    begun = _response(call, "in_progress", [])
    whole = "".join(content)
    item = {**_item(call, tool, "", "in_progress")}
    index = len(made["output"]) - 1
    place = {"item_id": item["id"], "output_index": index}
    kind = "response.function_call_arguments" if tool else "response.output_text"
    inner = {} if tool else {"content_index": 0, "logprobs": []}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    done = {"arguments": whole, "name": item.get("name")} if tool else {"text": whole}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
    ]
    for number, hosted in enumerate(made["output"][:-1]):
        begins = {"output_index": number, "item": {**hosted, "status": "in_progress"}}
        events.append(("response.output_item.added", begins))
        events.append(("response.output_item.done", {"output_index": number, "item": hosted}))
    events.append(("response.output_item.added", {"output_index": index, "item": item}))
    if not tool:
        events.append(("response.content_part.added", {**place, "content_index": 0, "part": part}))
    events += [(f"{kind}.delta", {**place, **inner, "delta": text}) for text in content]
    events.append((f"{kind}.done", {**place, **inner, **done}))
    if not tool:
        full = {**part, "text": whole}
        events.append(("response.content_part.done", {**place, "content_index": 0, "part": full}))
    last = {"output_index": index, "item": made["output"][-1]}
    events.append(("response.output_item.done", last))
    events.append((f"response.{made['status']}", {"response": made}))
    for number, (name, fields) in enumerate(events):
        data = encode({"type": name, "sequence_number": number, **fields})
        final = number == len(events) - 1
        yield Event(data, carried if final else None, name.encode())
