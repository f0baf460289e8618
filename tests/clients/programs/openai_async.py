"""`openai`: the asynchronous client, chat and responses."""

from __future__ import annotations

from openai import AsyncOpenAI

from conversation import KEY, OPENAI_MODEL, TOOL, URL, City, check, run, tool_result, user

client = AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY)
chat = client.chat.completions


@check
async def unary():
    answer = await chat.create(model=OPENAI_MODEL, messages=[user()])
    return answer.choices[0].message.content


@check
async def stream():
    chunks = await chat.create(model=OPENAI_MODEL, messages=[user()], stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


@check
async def tool():
    answer = await chat.create(model=OPENAI_MODEL, messages=[user()], tools=[TOOL])
    message = answer.choices[0].message
    (call,) = message.tool_calls
    result = tool_result(call.function.name, call.function.arguments)
    messages = [user(), message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    answer = await chat.create(model=OPENAI_MODEL, messages=messages)
    return answer.choices[0].message.content


@check
async def parse():
    answer = await chat.parse(model=OPENAI_MODEL, messages=[user()], response_format=City)
    return answer.choices[0].message.parsed


@check
async def responses_stream():
    async with client.responses.stream(model=OPENAI_MODEL, input="how are you") as events:
        return (await events.get_final_response()).output_text


run()
