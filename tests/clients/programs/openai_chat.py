"""`openai`: chat completions."""

from __future__ import annotations

from openai import OpenAI, pydantic_function_tool

from conversation import (
    KEY,
    OPENAI_MODEL,
    TOOL,
    URL,
    City,
    check,
    run,
    tool_result,
    user,
)

chat = OpenAI(base_url=f"{URL}/v1", api_key=KEY).chat.completions


@check
def unary():
    return chat.create(model=OPENAI_MODEL, messages=[user()]).choices[0].message.content


@check
def stream():
    chunks = chat.create(model=OPENAI_MODEL, messages=[user()], stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@check
def helper_stream():
    with chat.stream(model=OPENAI_MODEL, messages=[user()]) as events:
        return events.get_final_completion().choices[0].message.content


@check
def tool():
    message = chat.create(model=OPENAI_MODEL, messages=[user()], tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    result = tool_result(call.function.name, call.function.arguments)
    messages = [user(), message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    answer = chat.create(model=OPENAI_MODEL, messages=messages, tools=[TOOL])
    return answer.choices[0].message.content


@check
def stream_of_a_tool():
    with chat.stream(model=OPENAI_MODEL, messages=[user()], tools=[TOOL]) as events:
        call = events.get_final_completion().choices[0].message.tool_calls[0]
    asked = call.model_dump(exclude={"function": {"parsed_arguments"}})
    result = tool_result(call.function.name, call.function.arguments)
    messages = [
        user(),
        {"role": "assistant", "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    chunks = chat.create(model=OPENAI_MODEL, messages=messages, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@check
def parse():
    answer = chat.parse(model=OPENAI_MODEL, messages=[user()], response_format=City)
    return answer.choices[0].message.parsed


@check
def parsed_arguments_parse():
    tools = [pydantic_function_tool(City)]
    answer = chat.parse(model=OPENAI_MODEL, messages=[user()], tools=tools)
    return answer.choices[0].message.tool_calls[0].function.parsed_arguments


run()
