"""The old completions, under `completions` and under `engines/{model}/completions`."""

from __future__ import annotations

from collections.abc import Iterator

from wrapper.simulator.answers.call import Call, prompt_words, streamed
from wrapper.simulator.answers.chat import DONE, usage_asked
from wrapper.simulator.answers.text import encoded, last_text, pieces
from wrapper.simulator.answers.use import chat_use, put_use
from wrapper.simulator.replies import Event, Reply, Usage, encode, json_reply


def completions(call: Call) -> Reply:
    """`POST completions`, `POST engines/{model}/completions`."""
    call.need("prompt")
    body = call.json
    limit = body.get("max_tokens")
    content = pieces(call, last_text(body["prompt"]), limit if isinstance(limit, int) else None)
    choices = call.number("n", 1, 128)
    usage = call.usage(prompt_words(body["prompt"]), len(content) * choices)
    if body.get("stream"):
        events = _stream(call, content, choices, usage)
        return streamed(call, events, usage)
    made = {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": call.created,
        "model": call.answered_model,
        "choices": [
            {"text": "".join(content), "index": n, "logprobs": None, "finish_reason": "stop"}
            for n in range(choices)
        ],
    }
    carried = put_use(call, made, usage, chat_use(call, usage))
    return json_reply(made, carried, planned=usage)


def _stream(call: Call, content: tuple[str, ...], choices: int, usage: Usage) -> Iterator[Event]:
    asked = usage_asked(call)
    head = encode(
        {
            "id": f"cmpl-{call.id}",
            "object": "text_completion",
            "created": call.created,
            "model": call.answered_model,
        }
    )
    start = head[:-1] + b',"choices":['
    null = b',"usage":null}' if asked else b"}"
    for number, text in enumerate(encoded(content), 1):
        finish = b'"stop"' if number == len(content) else b"null"
        for index in range(choices):
            yield Event(
                b'%b{"text":%b,"index":%d,"logprobs":null,"finish_reason":%b}]%b'
                % (start, text, index, finish, null)
            )
    if asked and not call.orders.no_usage:
        silent = call.orders.usage_null
        told = encode(None if silent else chat_use(call, usage))
        yield Event(start + b'],"usage":' + told + b"}", None if silent else usage)
    if not call.orders.no_done:
        yield DONE
