"""Chat through the gateway with the real `groq` package; its base is the gateway's /groq."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import groq
import pytest

from harness.poll import eventually

if TYPE_CHECKING:
    from harness.gateway import Gateway
    from harness.simulator import Simulator

MODEL = "openai/gpt-oss-20b"
HELLO: list[Any] = [{"role": "user", "content": "Say hello to the two of us."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}


def test_a_question_gets_its_answer_with_groqs_own_fields(groq_client: groq.Groq) -> None:
    answer = groq_client.chat.completions.create(model=MODEL, messages=HELLO)
    assert "simulated" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.queue_time is not None
    assert answer.x_groq is not None
    assert answer.x_groq.id


def test_a_stream_ends_with_groqs_usage_unasked(groq_client: groq.Groq) -> None:
    stream = groq_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with stream:
        chunks = list(stream)
    assert "simulated" in "".join(c.choices[0].delta.content or "" for c in chunks)
    assert chunks[0].x_groq is not None
    assert chunks[0].x_groq.id
    assert chunks[-1].x_groq is not None
    usage = chunks[-1].x_groq.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_reasoning_arrives_apart_from_the_answer(groq_client: groq.Groq) -> None:
    answer = groq_client.chat.completions.create(
        model=MODEL, messages=HELLO, reasoning_effort="low", reasoning_format="parsed"
    )
    assert answer.choices[0].message.reasoning


def test_a_tool_call_arrives_with_its_arguments(groq_client: groq.Groq) -> None:
    answer = groq_client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) is not None


def test_json_mode_gives_json(groq_client: groq.Groq) -> None:
    answer = groq_client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_wrong_key_is_an_authentication_error(gateway: Gateway) -> None:
    with (
        groq.Groq(base_url=f"{gateway.url}/groq", api_key="gsk_nobody", max_retries=0) as client,
        pytest.raises(groq.AuthenticationError) as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.body["error"]["code"] == "invalid_api_key"  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
def test_the_providers_rate_limit_is_a_rate_limit_error_with_its_retry_after(
    groq_client: groq.Groq, stream: bool
) -> None:
    with pytest.raises(groq.RateLimitError) as caught:
        groq_client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            stream=stream,
            extra_headers={"x-sim": "status=429; retry-after=7"},
        )
    assert caught.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, groq.BadRequestError),
        (404, groq.NotFoundError),
        (413, groq.APIStatusError),
        (422, groq.UnprocessableEntityError),
        (498, groq.APIStatusError),
        (503, groq.InternalServerError),
    ],
)
def test_a_providers_error_keeps_its_status(
    groq_client: groq.Groq, status: int, error: type[groq.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        groq_client.chat.completions.create(
            model=MODEL, messages=HELLO, extra_headers={"x-sim": f"status={status}"}
        )
    assert caught.value.status_code == status


def test_raw_responses_show_the_rate_limits(groq_client: groq.Groq) -> None:
    raw = groq_client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.headers["x-ratelimit-remaining-tokens"] == "17997"
    assert raw.headers["x-wrapper-provider"] == "groq"


def test_a_clients_timeout_ends_the_providers_work_too(
    groq_client: groq.Groq, gateway: Gateway, simulator: Simulator
) -> None:
    book = secrets.token_hex(8)
    model = f"left-{book}"
    with pytest.raises(groq.APITimeoutError):
        groq_client.with_options(timeout=0.3).chat.completions.create(
            model=model,
            messages=HELLO,
            extra_headers={"x-sim": "stall-before", "x-sim-book": book},
        )
    [line] = gateway.log_lines(lambda line: line["model"] == model)
    assert line["outcome"] == "client_abort"
    eventually(lambda: all(r["outcome"] == "aborted" for r in simulator.requests(book=book)))


def test_a_broken_stream_is_an_error_and_never_an_end(groq_client: groq.Groq) -> None:
    stream = groq_client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_headers={"x-sim": "events=20; cut=5"}
    )
    chunks: list[Any] = []
    with stream, pytest.raises((groq.APIError, groq.APIConnectionError)):
        chunks.extend(stream)
    assert len(chunks) == 5
