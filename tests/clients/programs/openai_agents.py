"""`openai-agents`: an agent over chat completions and one over responses."""

from __future__ import annotations

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from conversation import KEY, OPENAI_MODEL, QUESTION, URL, City, check, get_weather, run

set_tracing_disabled(True)  # traces go to OpenAI
client = AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY)
CHAT = OpenAIChatCompletionsModel(model=OPENAI_MODEL, openai_client=client)
RESPONSES = OpenAIResponsesModel(model=OPENAI_MODEL, openai_client=client)


async def answer(model, **options):
    agent = Agent(name="agent", model=model, **options)
    return (await Runner.run(agent, QUESTION)).final_output


async def events(model, **options):
    result = Runner.run_streamed(Agent(name="agent", model=model, **options), QUESTION)
    texts = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(texts) == result.final_output
    return result.final_output


@check
async def chat_unary():
    return await answer(CHAT)


@check
async def chat_stream():
    return await events(CHAT)


@check
async def chat_tool():
    return await answer(CHAT, tools=[function_tool(get_weather)])


@check
async def chat_parse():
    return await answer(CHAT, output_type=City)


@check
async def responses_unary():
    return await answer(RESPONSES)


@check
async def responses_stream():
    return await events(RESPONSES)


@check
async def responses_stream_of_a_tool():
    return await events(RESPONSES, tools=[function_tool(get_weather)])


@check
async def responses_tool():
    return await answer(RESPONSES, tools=[function_tool(get_weather)])


@check
async def responses_parse():
    return await answer(RESPONSES, output_type=City)


run()
