"""`litellm` as a client."""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched at the import

import litellm

from conversation import KEY, OPENAI_MODEL, TOOL, URL, City, check, run, tool_result, user

ASKED = {"model": f"openai/{OPENAI_MODEL}", "api_base": f"{URL}/v1", "api_key": KEY}


@check
def unary():
    return litellm.completion(**ASKED, messages=[user()]).choices[0].message.content


@check
async def async_unary():
    answer = await litellm.acompletion(**ASKED, messages=[user()])
    return answer.choices[0].message.content


@check
def stream():
    chunks = litellm.completion(**ASKED, messages=[user()], stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@check
def tool():
    message = litellm.completion(**ASKED, messages=[user()], tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    result = tool_result(call.function.name, call.function.arguments)
    messages = [user(), message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    answer = litellm.completion(**ASKED, messages=messages, tools=[TOOL])
    return answer.choices[0].message.content


@check
def parse():
    answer = litellm.completion(**ASKED, messages=[user()], response_format=City)
    return City.model_validate_json(answer.choices[0].message.content)


@check
def responses_unary():
    answer = litellm.responses(**ASKED, input="how are you")
    return answer.output[0].content[0].text


@check
def responses_stream():
    events = litellm.responses(**ASKED, input="how are you", stream=True)
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


run()
