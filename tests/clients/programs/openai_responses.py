"""`openai`: the responses API."""

from __future__ import annotations

from openai import OpenAI

from conversation import (
    FUNCTION,
    KEY,
    OPENAI_MODEL,
    QUESTION,
    URL,
    City,
    check,
    run,
    tool_result,
    user,
)

responses = OpenAI(base_url=f"{URL}/v1", api_key=KEY).responses
TOOLS = [{"type": "function", "strict": True, **FUNCTION}]


@check
def unary():
    return responses.create(model=OPENAI_MODEL, input=QUESTION).output_text


@check
def stream():
    events = responses.create(model=OPENAI_MODEL, input=QUESTION, stream=True)
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


@check
def helper_stream():
    with responses.stream(model=OPENAI_MODEL, input=QUESTION) as events:
        kinds = [event.type for event in events]
        assert kinds[-1] == "response.completed", kinds
        return events.get_final_response().output_text


@check
def tool():
    first = responses.create(model=OPENAI_MODEL, input=QUESTION, tools=TOOLS)
    (call,) = first.output
    output = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": tool_result(call.name, call.arguments),
    }
    return responses.create(
        model=OPENAI_MODEL, input=[output], previous_response_id=first.id, tools=TOOLS
    ).output_text


@check
def stream_of_a_tool():
    with responses.stream(model=OPENAI_MODEL, input=[user()], tools=TOOLS) as events:
        (call,) = events.get_final_response().output
    output = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": tool_result(call.name, call.arguments),
    }
    given = [user(), call.model_dump(exclude={"parsed_arguments"}), output]
    with responses.stream(model=OPENAI_MODEL, input=given, tools=TOOLS) as events:
        return events.get_final_response().output_text


@check
def parse():
    return responses.parse(model=OPENAI_MODEL, input=QUESTION, text_format=City).output_parsed


@check
def helper_parse():
    with responses.stream(model=OPENAI_MODEL, input=QUESTION, text_format=City) as events:
        return events.get_final_response().output_parsed


run()
