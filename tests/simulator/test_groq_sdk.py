"""Groq's shapes, seen by the real `groq` package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import groq
import pytest

if TYPE_CHECKING:
    from harness.simulator import Simulator

QUESTION: Any = [{"role": "user", "content": "how are you"}]


@pytest.fixture
def client(simulator: Simulator) -> Iterator[groq.Groq]:
    with groq.Groq(base_url=simulator.url, api_key="any", max_retries=0) as made:
        yield made


def test_an_answer_has_timings_and_no_use_in_x_groq(client: groq.Groq) -> None:
    answer = client.chat.completions.create(model="llama", messages=QUESTION)
    assert answer.usage is not None
    assert answer.usage.total_time
    assert answer.x_groq is not None
    assert answer.x_groq.id
    assert answer.x_groq.usage is None


def test_a_stream_tells_its_use_unasked_in_the_last_chunk(client: groq.Groq) -> None:
    chunks = list(client.chat.completions.create(model="llama", messages=QUESTION, stream=True))
    assert chunks[0].x_groq is not None
    assert chunks[0].x_groq.id
    assert all(chunk.usage is None for chunk in chunks)
    last = chunks[-1]
    assert last.choices[0].finish_reason == "stop"
    assert last.x_groq is not None
    assert last.x_groq.usage is not None
    assert last.x_groq.usage.completion_tokens == len(chunks) - 2


def test_asked_for_its_use_a_stream_tells_it_three_times(client: groq.Groq) -> None:
    options: Any = {"stream_options": {"include_usage": True}}
    chunks = list(
        client.chat.completions.create(
            model="llama", messages=QUESTION, stream=True, extra_body=options
        )
    )
    finish, last = chunks[-2:]
    assert finish.x_groq is not None
    assert finish.x_groq.usage == finish.usage == last.usage
    assert last.choices == []


def test_reasoning_comes_before_the_content(client: groq.Groq) -> None:
    chunks = list(
        client.chat.completions.create(
            model="llama?reasoning=3&events=2", messages=QUESTION, stream=True
        )
    )
    kinds = [
        "reasoning" if chunk.choices[0].delta.reasoning else "content" for chunk in chunks[1:-1]
    ]
    assert kinds == ["reasoning"] * 3 + ["content"] * 2
    last = chunks[-1].x_groq
    assert last is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == 5
    answer = client.chat.completions.create(
        model="llama", messages=QUESTION, reasoning_format="parsed"
    )
    assert answer.choices[0].message.reasoning == "This is simulated reasoning"


def test_an_error_can_stand_where_the_use_would_be(client: groq.Groq) -> None:
    chunks = list(
        client.chat.completions.create(model="llama?groq-error", messages=QUESTION, stream=True)
    )
    assert chunks[-1].x_groq is not None
    assert chunks[-1].x_groq.error
    assert chunks[-1].x_groq.usage is None


def test_rate_limits_are_reported_as_groq_does(client: groq.Groq) -> None:
    raw = client.chat.completions.with_raw_response.create(model="llama", messages=QUESTION)
    assert raw.headers["x-ratelimit-reset-requests"] == "2m59.56s"
    with pytest.raises(groq.RateLimitError) as caught:
        client.chat.completions.create(model="llama?status=429&retry-after=2", messages=QUESTION)
    assert caught.value.response.headers["retry-after"] == "2"


def test_the_other_endpoints(client: groq.Groq) -> None:
    assert client.models.list().data
    assert client.embeddings.create(model="e", input="a b").usage.prompt_tokens == 2
    heard = client.audio.transcriptions.create(model="whisper-large-v3", file=("a.wav", b"0000"))
    assert "simulated" in heard.text
    assert client.audio.speech.create(model="s", voice="v", input="hi").read()
    made = client.files.create(file=("b.jsonl", b"{}"), purpose="batch")
    assert made.id is not None
    assert client.files.info(made.id).filename == "b.jsonl"
