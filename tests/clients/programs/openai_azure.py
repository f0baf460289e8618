"""`openai`: the client for Azure, at the paths of a provider named azure.

The gateway takes its key as a bearer token, which this client sends as its `azure_ad_token`.
"""

from __future__ import annotations

from openai import AzureOpenAI

from conversation import KEY, OPENAI_MODEL, TOOL, URL, City, check, run, tool_result, user

chat = AzureOpenAI(
    azure_endpoint=f"{URL}/azure", azure_ad_token=KEY, api_version="2024-10-21"
).chat.completions


@check
def unary():
    return chat.create(model=OPENAI_MODEL, messages=[user()]).choices[0].message.content


@check
def stream():
    chunks = chat.create(model=OPENAI_MODEL, messages=[user()], stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@check
def tool():
    message = chat.create(model=OPENAI_MODEL, messages=[user()], tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    result = tool_result(call.function.name, call.function.arguments)
    messages = [user(), message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    return chat.create(model=OPENAI_MODEL, messages=messages).choices[0].message.content


@check
def parse():
    answer = chat.parse(model=OPENAI_MODEL, messages=[user()], response_format=City)
    return answer.choices[0].message.parsed


run()
