"""What the programs for LangChain share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool

from conversation import QUESTION, get_weather

weather = tool(get_weather)


def joined(chunks: Iterable[Any]) -> str:
    """The text of a stream."""
    return "".join(chunk.text for chunk in chunks)


def ask_with_a_tool(model: Any) -> str:
    """Ask, run the tool, and return what the model makes of its result."""
    bound = model.bind_tools([weather])
    messages: list[Any] = [HumanMessage(QUESTION)]
    messages.append(bound.invoke(messages))
    for call in messages[-1].tool_calls:
        result = weather.invoke(call["args"])
        messages.append(ToolMessage(result, tool_call_id=call["id"]))
    text: str = bound.invoke(messages).text
    return text
