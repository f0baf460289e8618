"""`llama-index`: its clients for OpenAI's API and for Groq."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.groq import Groq
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike

from conversation import GROQ_MODEL, KEY, OPENAI_MODEL, QUESTION, URL, City, check, get_weather, run

OPTIONS = {"api_key": KEY, "is_chat_model": True, "is_function_calling_model": True}
chat = OpenAILike(model=OPENAI_MODEL, api_base=f"{URL}/v1", **OPTIONS)
openai = OpenAI(model=OPENAI_MODEL, api_base=f"{URL}/v1", api_key=KEY)
responses = OpenAIResponses(model=OPENAI_MODEL, api_base=f"{URL}/v1", api_key=KEY)
groq = Groq(model=GROQ_MODEL, api_base=f"{URL}/groq/openai/v1", api_key=KEY)
weather = FunctionTool.from_defaults(get_weather)
MESSAGES = [ChatMessage(role="user", content=QUESTION)]


@check
def unary():
    return chat.chat(MESSAGES).message.content


@check
def complete_unary():
    return chat.complete(QUESTION).text


@check
def stream():
    return "".join(part.delta or "" for part in chat.stream_chat(MESSAGES))


@check
async def async_stream():
    return "".join([part.delta or "" async for part in await chat.astream_chat(MESSAGES)])


@check
def tool():
    answer = chat.chat_with_tools([weather], chat_history=MESSAGES)
    (call,) = chat.get_tool_calls_from_response(answer)
    result = ChatMessage(
        role="tool",
        content=str(weather(**call.tool_kwargs)),
        additional_kwargs={"tool_call_id": call.tool_id},
    )
    return chat.chat([*MESSAGES, answer.message, result]).message.content


@check
def parse():
    return chat.as_structured_llm(City).chat(MESSAGES).raw


@check
def groq_unary():
    return groq.chat(MESSAGES).message.content


@check
def groq_stream():
    return "".join(part.delta or "" for part in groq.stream_chat(MESSAGES))


@check
def openai_unary():
    return openai.chat(MESSAGES).message.content


@check
def openai_stream():
    return "".join(part.delta or "" for part in openai.stream_chat(MESSAGES))


@check
def responses_unary():
    return responses.chat(MESSAGES).message.content


@check
def responses_stream():
    return "".join(part.delta or "" for part in responses.stream_chat(MESSAGES))


run()
