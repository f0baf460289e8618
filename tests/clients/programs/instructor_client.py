"""`instructor`: objects from tool calls, from JSON schemas, and as they grow in a stream."""

from __future__ import annotations

import instructor
from openai import OpenAI

from conversation import KEY, OPENAI_MODEL, URL, City, check, run, user

openai = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
ASKED = {"model": OPENAI_MODEL, "messages": [user()], "response_model": City}


@check
def tool_parse():
    return instructor.from_openai(openai, mode=instructor.Mode.TOOLS).create(**ASKED)


@check
def schema_parse():
    return instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA).create(**ASKED)


@check
def stream_parse():
    client = instructor.from_openai(openai, mode=instructor.Mode.TOOLS)
    *_, last = client.create_partial(**ASKED)
    return last


@check
def completion_parse():
    client = instructor.from_openai(openai, mode=instructor.Mode.TOOLS)
    city, completion = client.create_with_completion(**ASKED)
    assert completion.usage.prompt_tokens == 3
    return city


run()
