"""`pydantic-ai`: its models for OpenAI's chat completions and responses, and for Groq."""

from __future__ import annotations

from groq import AsyncGroq
from pydantic_ai import Agent
from pydantic_ai.models.groq import GroqModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.groq import GroqProvider
from pydantic_ai.providers.openai import OpenAIProvider

from conversation import GROQ_MODEL, KEY, OPENAI_MODEL, QUESTION, URL, City, check, get_weather, run

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)
groq_provider = GroqProvider(groq_client=AsyncGroq(base_url=f"{URL}/groq", api_key=KEY))
CHAT = OpenAIChatModel(OPENAI_MODEL, provider=provider)
RESPONSES = OpenAIResponsesModel(OPENAI_MODEL, provider=provider)
GROQ = GroqModel(GROQ_MODEL, provider=groq_provider)


async def answer(model, **options):
    return (await Agent(model, **options).run(QUESTION)).output


async def events(model, **options):
    async with Agent(model, **options).run_stream(QUESTION) as result:
        return "".join([text async for text in result.stream_text(delta=True)])


@check
async def chat_unary():
    return await answer(CHAT)


@check
async def chat_stream():
    return await events(CHAT)


@check
async def chat_tool():
    return await answer(CHAT, tools=[get_weather])


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
async def responses_tool():
    return await answer(RESPONSES, tools=[get_weather])


@check
async def groq_unary():
    return await answer(GROQ)


@check
async def groq_stream():
    return await events(GROQ)


@check
async def groq_tool():
    return await answer(GROQ, tools=[get_weather])


run()
