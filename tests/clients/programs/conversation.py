"""What each program asks its client for, and how it hands back what it got.

A program makes checks: functions that return a text or an object. The last word of a check's
name says what it asks for: `unary` and `stream` ask QUESTION, `tool` asks it with the tool and
hands in the tool's result, `parse` wants a `City`. `run` makes all checks and prints one JSON
object: for each name `{"got": …}`, or `{"failed": …}` with the traceback.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

URL = os.environ["GATEWAY_URL"]
KEY = os.environ["GATEWAY_KEY"]
OPENAI_MODEL = "gpt-6-luna"
GROQ_MODEL = "openai/gpt-oss-20b"
QUESTION = "how are you"


class City(BaseModel):
    """A city."""

    name: str
    population: int


def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Where.
    """
    return f"sunny in {city}"


PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}

Check = Callable[[], Any]
_checks: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Make this function, sync or async, a check under its name."""
    _checks[function.__name__] = function
    return function


def user(text: str = QUESTION) -> dict[str, str]:
    """A message of the user."""
    return {"role": "user", "content": text}


def tool_result(name: str, arguments: str) -> str:
    """Call the tool that the model asked for."""
    assert name == "get_weather", name
    return get_weather(**json.loads(arguments))


def run() -> None:
    """Make all checks in one event loop and print what came of them."""
    print(json.dumps(asyncio.run(_all())))


async def _all() -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for name, function in _checks.items():
        try:
            is_async = inspect.iscoroutinefunction(function)
            got = await (function() if is_async else asyncio.to_thread(function))
            got = got.model_dump() if isinstance(got, BaseModel) else got
            results[name] = {"got": got}
        except Exception:  # noqa: BLE001
            results[name] = {"failed": traceback.format_exc()}
    return results
