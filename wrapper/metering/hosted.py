"""What a response says of tools and models that the provider ran and bills apart."""

from __future__ import annotations

from collections import Counter

import msgspec
from msgspec.structs import replace

from wrapper.metering.raw import NOTHING, count_of, opens, text_of
from wrapper.metering.reports import read_usage
from wrapper.metering.usage import Usage


class Item(msgspec.Struct):
    """An item of `output`, a tool, a choice, or a model of a breakdown; whatever is there."""

    type: msgspec.Raw = NOTHING
    action: msgspec.Raw = NOTHING
    container_id: msgspec.Raw = NOTHING
    model: msgspec.Raw = NOTHING
    usage: msgspec.Raw = NOTHING
    message: msgspec.Raw = NOTHING
    delta: msgspec.Raw = NOTHING
    index: msgspec.Raw = NOTHING
    executed_tools: msgspec.Raw = NOTHING
    models: msgspec.Raw = NOTHING
    image_gen: msgspec.Raw = NOTHING
    web_search: msgspec.Raw = NOTHING
    num_requests: msgspec.Raw = NOTHING
    billed_units: msgspec.Raw = NOTHING


decode_item = msgspec.json.Decoder(Item).decode
decode_items = msgspec.json.Decoder(list[Item]).decode


def breakdown(breakdown: msgspec.Raw) -> tuple[tuple[str, Usage], ...]:
    """Groq's compound systems: the usage of each model that worked."""
    if not opens(breakdown, b"{"):
        return ()
    models = decode_item(breakdown).models
    found = []
    for each in decode_items(models) if opens(models, b"[") else ():
        usage = read_usage(bytes(each.usage))
        if usage is not None:
            found.append((text_of(each.model), usage))
    return tuple(found)


def with_executed(usage: Usage, executed: dict[str, str]) -> Usage:
    """`usage` with the tools that Groq has executed as units, by their type."""
    if not executed:
        return usage
    tools = Counter(f"executed_tool {kind}" for kind in executed.values())
    return replace(usage, units=(*usage.units, *sorted(tools.items())))


def read_executed(choices: msgspec.Raw, executed: dict[str, str]) -> None:
    """A stream names a tool more than once: when it is called, and with what it returned."""
    for number, choice in enumerate(decode_items(choices)):
        inner = choice.message or choice.delta
        if not opens(inner, b"{"):
            continue
        tools = decode_item(inner).executed_tools
        for place, tool in enumerate(decode_items(tools) if opens(tools, b"[") else ()):
            key = f"{number}.{bytes(tool.index).decode() or place}"
            executed[key] = text_of(tool.type) or executed.get(key, "")


def hosted_tools(
    output: msgspec.Raw,
    tool_usage: msgspec.Raw,
    tools: msgspec.Raw,
    units: Counter[str],
    usage: Usage,
) -> tuple[tuple[str, Usage], ...]:
    """Counts the calls of tools that the Responses API runs and bills apart from the tokens.

    Returns `usage` and that of an image model by model, where the response has the second.
    """
    calls: Counter[str] = Counter()
    containers = set()
    if b'_call"' in bytes(output):
        for item in decode_items(output):
            kind = text_of(item.type)
            calls[kind] += kind != "web_search_call" or _is_search(item.action)
            if kind in ("code_interpreter_call", "shell_call_output") or item.container_id:
                containers.add(bytes(item.container_id))
    told = decode_item(tool_usage) if opens(tool_usage, b"{") else Item()
    searches = calls["web_search_call"]
    if opens(told.web_search, b"{"):
        searches = count_of(decode_item(told.web_search).num_requests)
    images = read_usage(bytes(told.image_gen)) if opens(told.image_gen, b"{") else None
    for unit, number in (
        ("web_search", searches),
        ("file_search", calls["file_search_call"]),
        ("container", len(containers)),
    ):
        if number:
            units[unit] += number
    if images is not None and images.total:
        return (("", usage), (_image_model(tools), images))
    if calls["image_generation_call"]:
        units["image_generation"] += calls["image_generation_call"]
    return ()


def _is_search(action: msgspec.Raw) -> bool:
    """Opening a page and looking in it are not billed; only searches are."""
    return not opens(action, b"{") or text_of(decode_item(action).type) in ("", "search")


def _image_model(tools: msgspec.Raw) -> str:
    for tool in decode_items(tools) if opens(tools, b"[") else ():
        if text_of(tool.type) == "image_generation":
            return text_of(tool.model) or "image_generation"
    return "image_generation"
