"""Chat through the gateway with the real `openai` package, two workers, real sockets."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import openai
import pytest

from harness.poll import eventually

if TYPE_CHECKING:
    from harness.gateway import Gateway
    from harness.simulator import Simulator

# The route `*` leads to groq, `gpt-*` to openai: both dialects through one SDK.
MODELS = ["openai/gpt-oss-20b", "gpt-6-luna"]
HELLO: list[Any] = [{"role": "user", "content": "Say hello to the two of us."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}},
            "required": ["town"],
        },
    },
}


def orders(text: str, book: str = "") -> dict[str, str]:
    """Request headers that order the simulator about, and mark the request."""
    headers = {"x-sim": text, "x-sim-book": book}
    return {name: value for name, value in headers.items() if value}


@pytest.fixture
def book() -> str:
    """A mark to find this test's requests at the simulator."""
    return secrets.token_hex(8)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_question_gets_its_answer_and_its_token_counts(
    openai_client: openai.OpenAI, model: str
) -> None:
    answer = openai_client.chat.completions.create(model=model, messages=HELLO)
    assert "simulated" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_as_the_whole_answer(
    openai_client: openai.OpenAI, model: str
) -> None:
    whole = openai_client.chat.completions.create(model=model, messages=HELLO)
    with openai_client.chat.completions.create(model=model, messages=HELLO, stream=True) as stream:
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert text == whole.choices[0].message.content


def test_a_chunk_is_seen_while_the_provider_is_still_at_the_next(
    openai_client: openai.OpenAI, simulator: Simulator, model: str, book: str
) -> None:
    """The provider stalls after three events: nothing but passing them on at once shows them."""
    stream = openai_client.chat.completions.create(
        model=model, messages=HELLO, stream=True, extra_headers=orders("events=50; stall=3", book)
    )
    chunks: Iterator[Any] = iter(stream)
    assert [next(chunks) for _ in range(3)]
    assert simulator.requests(book=book)[0]["outcome"] is None
    stream.close()
    eventually(lambda: simulator.requests(book=book)[0]["outcome"] == "aborted")


def test_a_stream_tells_its_use_when_asked_and_only_then(
    openai_client: openai.OpenAI,
) -> None:
    def usages(**extra: Any) -> list[Any]:
        stream = openai_client.chat.completions.create(
            model="gpt-6-luna", messages=HELLO, stream=True, **extra
        )
        with stream:
            return [chunk.usage for chunk in stream if chunk.usage]

    assert len(usages(stream_options={"include_usage": True})) == 1
    assert usages() == []


def test_a_tool_call_arrives_with_its_arguments(openai_client: openai.OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.create(model=model, messages=HELLO, tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"town"}
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_streamed_tool_call_is_put_together_again(
    openai_client: openai.OpenAI, model: str
) -> None:
    name, arguments = "", ""
    stream = openai_client.chat.completions.create(
        model=model, messages=HELLO, tools=[WEATHER], stream=True
    )
    with stream:
        for chunk in stream:
            for choice in chunk.choices:
                for part in choice.delta.tool_calls or []:
                    assert part.function is not None
                    name += part.function.name or ""
                    arguments += part.function.arguments or ""
    assert name == "weather"
    assert set(json.loads(arguments)) == {"town"}


def test_json_mode_gives_json(openai_client: openai.OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.create(
        model=model, messages=HELLO, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_several_choices_come_apart(openai_client: openai.OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.create(model=model, messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@pytest.mark.parametrize(
    ("secret", "code"),
    [("sk-wr-of-nobody", "invalid_api_key"), ("expired", "api_key_expired")],
)
def test_a_wrong_key_is_an_authentication_error(
    gateway: Gateway, simulator: Simulator, secret: str, code: str
) -> None:
    before = len(simulator.requests(method="POST"))
    secret = gateway.secrets.get(secret, secret)
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=secret, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(model=MODELS[0], messages=HELLO)
    assert caught.value.code == code
    assert secret not in str(caught.value)
    assert caught.value.response.headers["www-authenticate"].startswith("Bearer")
    assert len(simulator.requests(method="POST")) == before


def test_a_model_that_the_key_may_not_call_is_a_permission_error(gateway: Gateway) -> None:
    secret = gateway.secrets["narrow"]
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=secret, max_retries=0) as client:
        assert client.chat.completions.create(model="openai/gpt-oss-20b", messages=HELLO)
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(model="gpt-6-luna", messages=HELLO)
    assert caught.value.code == "model_not_allowed"


@pytest.mark.parametrize("stream", [False, True])
def test_the_providers_rate_limit_is_a_rate_limit_error_with_its_retry_after(
    openai_client: openai.OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        openai_client.chat.completions.create(
            model=MODELS[0],
            messages=HELLO,
            stream=stream,
            extra_headers=orders("status=429; retry-after=7; code=rate_limit_exceeded"),
        )
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.code == "rate_limit_exceeded"


def test_an_unknown_model_at_the_provider_is_a_not_found_error(
    openai_client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.chat.completions.create(
            model=MODELS[0], messages=HELLO, extra_headers=orders("status=404")
        )
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (409, openai.ConflictError),
        (413, openai.APIStatusError),
        (422, openai.UnprocessableEntityError),
        (498, openai.APIStatusError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_a_providers_error_keeps_its_status_and_its_message(
    openai_client: openai.OpenAI, status: int, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        openai_client.chat.completions.create(
            model=MODELS[0],
            messages=HELLO,
            extra_headers=orders(f"status={status}; message=the provider's own words"),
        )
    assert caught.value.status_code == status
    assert "the provider's own words" in str(caught.value)


def test_a_refused_credential_of_the_gateway_is_not_the_callers_fault(
    openai_client: openai.OpenAI,
) -> None:
    """A 401 of the provider would make the caller doubt a key that is right."""
    with pytest.raises(openai.InternalServerError) as caught:
        openai_client.chat.completions.create(
            model=MODELS[0], messages=HELLO, extra_headers=orders("status=401")
        )
    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_auth"


def test_the_sdks_own_retries_work_and_reach_the_provider(
    gateway: Gateway, key: str, simulator: Simulator, book: str
) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=2) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.chat.completions.create(
            model=MODELS[0],
            messages=HELLO,
            extra_headers=orders("status=429; retry-after=0.01", book),
        )
    assert len(simulator.requests(book=book)) == 3


def test_raw_responses_show_the_providers_request_id_and_rate_limits(
    openai_client: openai.OpenAI, gateway: Gateway, simulator: Simulator, book: str
) -> None:
    raw = openai_client.chat.completions.with_raw_response.create(
        model=MODELS[0], messages=HELLO, extra_headers=orders("", book)
    )
    request_id = f"req_{simulator.requests(book=book)[0]['id']}"
    assert raw.headers["x-request-id"] == request_id
    assert raw.parse()._request_id == request_id
    assert raw.headers["x-ratelimit-remaining-tokens"] == "17997"
    assert raw.headers["x-ratelimit-reset-requests"] == "2m59.56s"
    assert raw.headers["x-wrapper-provider"] == "groq"
    assert gateway.log_line(request_id)["outcome"] == "completed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_clients_timeout_ends_the_providers_work_too(
    openai_client: openai.OpenAI, gateway: Gateway, simulator: Simulator, book: str, stream: bool
) -> None:
    model = f"left-{book}"
    with pytest.raises(openai.APITimeoutError):
        openai_client.with_options(timeout=0.3).chat.completions.create(
            model=model,
            messages=HELLO,
            stream=stream,
            extra_headers=orders("stall-before", book),
        )
    [line] = gateway.log_lines(lambda line: line["model"] == model)
    assert line["outcome"] == "client_abort"
    eventually(lambda: all(r["outcome"] == "aborted" for r in simulator.requests(book=book)))


def test_a_broken_stream_is_an_error_and_never_an_end(
    openai_client: openai.OpenAI, model: str
) -> None:
    stream = openai_client.chat.completions.create(
        model=model, messages=HELLO, stream=True, extra_headers=orders("events=20; cut=5")
    )
    chunks: list[Any] = []
    with stream, pytest.raises(openai.APIError):
        chunks.extend(stream)
    assert len(chunks) == 5


def test_unknown_fields_and_large_numbers_arrive_as_they_were_sent(
    openai_client: openai.OpenAI,
) -> None:
    sent = {
        "seed": 9007199254740993,
        "temperature": 0,
        "top_p": 0.1000000000000000055,
        "reasoning_effort": "low",
        "a_field_of_tomorrow": {"deep": [1, None, True, "ü \u2028"]},
    }
    answer = openai_client.post(
        "/chat/completions",
        cast_to=object,
        body={"model": MODELS[0], "messages": HELLO, **sent},
        options={"headers": orders("echo=raw")},
    )
    assert isinstance(answer, dict)
    assert {name: answer[name] for name in sent} == sent


def test_images_in_the_content_pass(openai_client: openai.OpenAI, model: str) -> None:
    picture = "data:image/png;base64," + "iVBORw0KGgo" * 2000
    content: list[Any] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    answer = openai_client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}]
    )
    assert answer.choices[0].message.content


async def _hello(client: openai.AsyncOpenAI) -> str:
    async with client:
        stream = await client.chat.completions.create(model=MODELS[0], messages=HELLO, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])


def test_the_asynchronous_client_streams_too(gateway: Gateway, key: str) -> None:
    import asyncio

    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)
    assert "simulated" in asyncio.run(_hello(client))
