"""`langchain-openai`: `ChatOpenAI` over chat completions and over responses."""

from __future__ import annotations

from langchain_openai import ChatOpenAI

from conversation import KEY, OPENAI_MODEL, URL, City, check, run
from langchain_checks import ask_with_a_tool, joined

OPTIONS = {"base_url": f"{URL}/v1", "api_key": KEY, "model": OPENAI_MODEL}
chat = ChatOpenAI(**OPTIONS, use_responses_api=False)
responses = ChatOpenAI(**OPTIONS, use_responses_api=True)


@check
def unary():
    return chat.invoke("how are you").text


@check
def stream():
    return joined(chat.stream("how are you"))


@check
async def async_stream():
    return "".join([chunk.text async for chunk in chat.astream("how are you")])


@check
def tool():
    return ask_with_a_tool(chat)


@check
def parse():
    return chat.with_structured_output(City).invoke("how are you")


@check
def function_parse():
    return chat.with_structured_output(City, method="function_calling").invoke("how are you")


@check
def responses_unary():
    return responses.invoke("how are you").text


@check
def responses_stream():
    return joined(responses.stream("how are you"))


@check
def responses_tool():
    return ask_with_a_tool(responses)


@check
def responses_parse():
    return responses.with_structured_output(City).invoke("how are you")


run()
