"""`langchain-groq`: `ChatGroq` at Groq's own paths."""

from __future__ import annotations

from langchain_groq import ChatGroq

from conversation import GROQ_MODEL, KEY, URL, City, check, run
from langchain_checks import ask_with_a_tool, joined

chat = ChatGroq(base_url=f"{URL}/groq", api_key=KEY, model=GROQ_MODEL)


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
def schema_parse():
    return chat.with_structured_output(City, method="json_schema").invoke("how are you")


run()
