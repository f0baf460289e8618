"""`groq`, sync and async, at Groq's own paths."""

from __future__ import annotations

from groq import AsyncGroq, Groq

from conversation import GROQ_MODEL, KEY, TOOL, URL, City, check, run, tool_result, user

chat = Groq(base_url=f"{URL}/groq", api_key=KEY).chat.completions
async_chat = AsyncGroq(base_url=f"{URL}/groq", api_key=KEY).chat.completions


@check
def unary():
    return chat.create(model=GROQ_MODEL, messages=[user()]).choices[0].message.content


@check
async def async_unary():
    answer = await async_chat.create(model=GROQ_MODEL, messages=[user()])
    return answer.choices[0].message.content


@check
def stream():
    chunks = chat.create(model=GROQ_MODEL, messages=[user()], stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@check
async def async_stream():
    chunks = await async_chat.create(model=GROQ_MODEL, messages=[user()], stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


@check
def tool():
    message = chat.create(model=GROQ_MODEL, messages=[user()], tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    result = tool_result(call.function.name, call.function.arguments)
    asked = {"role": "assistant", "tool_calls": [call.model_dump()]}
    messages = [user(), asked, {"role": "tool", "tool_call_id": call.id, "content": result}]
    return chat.create(model=GROQ_MODEL, messages=messages).choices[0].message.content


@check
def parse():
    wanted = {"name": "city", "schema": City.model_json_schema()}
    answer = chat.create(
        model=GROQ_MODEL,
        messages=[user()],
        response_format={"type": "json_schema", "json_schema": wanted},
    )
    return City.model_validate_json(answer.choices[0].message.content)


run()
