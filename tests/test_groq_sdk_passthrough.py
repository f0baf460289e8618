"""The real `groq` package with its base at /groq: it adds /openai/v1/… itself, nothing changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import groq
import pytest

if TYPE_CHECKING:
    from harness.gateway import Gateway
    from harness.simulator import Simulator

MODEL = "openai/gpt-oss-20b"
QUESTION: Any = [{"role": "user", "content": "how are you"}]
SECOND_OF_SOUND = b"\0\1" * 16_000


def test_chat_with_the_providers_own_extras(groq_client: groq.Groq) -> None:
    answer = groq_client.chat.completions.create(
        model=MODEL, messages=QUESTION, reasoning_format="parsed", service_tier="flex"
    )
    assert answer.choices[0].message.reasoning == "This is simulated reasoning"
    assert answer.x_groq is not None
    assert answer.usage is not None
    assert answer.usage.total_time


def test_a_stream_carries_its_use_in_x_groq_and_is_metered(
    groq_client: groq.Groq, gateway: Gateway
) -> None:
    raw = groq_client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, stream=True
    )
    chunks = list(raw.parse())
    assert all(chunk.usage is None for chunk in chunks)
    told = chunks[-1].x_groq
    assert told is not None
    assert told.usage is not None
    line = gateway.log_line(raw.headers["x-request-id"])
    assert (line["provider"], line["model"], line["outcome"]) == ("groq", MODEL, "completed")
    assert line["completion_tokens"] == told.usage.completion_tokens


def test_the_path_goes_to_the_providers_origin_as_it_came(
    groq_client: groq.Groq, simulator: Simulator
) -> None:
    groq_client.models.list(extra_headers={"x-sim-book": "groq-path"})
    (seen,) = simulator.requests(book="groq-path")
    assert (seen["method"], seen["target"]) == ("GET", "/openai/v1/models")
    assert ["X-Sim-Book", "groq-path"] in seen["headers"]


def test_models_embeddings_audio_files_and_batches(groq_client: groq.Groq) -> None:
    assert groq_client.models.list().data
    assert groq_client.models.retrieve("openai/gpt-oss-120b").id == "openai/gpt-oss-120b"
    assert groq_client.embeddings.create(model="e", input="a b").usage.prompt_tokens == 2
    sound = ("a.wav", SECOND_OF_SOUND)
    heard = groq_client.audio.transcriptions.create(model="whisper-large-v3", file=sound)
    assert "simulated" in heard.text
    assert groq_client.audio.translations.create(model="whisper-large-v3", file=sound).text
    assert groq_client.audio.speech.create(model="s", voice="v", input="hi").read()
    made = groq_client.files.create(file=("b.jsonl", b'{"a": 1}'), purpose="batch")
    assert made.id is not None
    assert groq_client.files.info(made.id).filename == "b.jsonl"
    assert groq_client.files.content(made.id).read() == b'{"a": 1}'
    assert groq_client.files.delete(made.id).deleted
    batch = groq_client.batches.create(
        input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert groq_client.batches.retrieve(batch.id).status == "validating"
    assert groq_client.batches.list().data


def test_rate_limits_and_refusals_are_the_packages_own(groq_client: groq.Groq) -> None:
    raw = groq_client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION)
    assert raw.headers["x-ratelimit-reset-requests"] == "2m59.56s"
    with pytest.raises(groq.RateLimitError) as caught:
        groq_client.chat.completions.create(
            model=f"{MODEL}?status=429&retry-after=2", messages=QUESTION
        )
    assert caught.value.response.headers["retry-after"] == "2"
    with pytest.raises(groq.APIStatusError) as flex:
        groq_client.chat.completions.create(model=f"{MODEL}?status=498", messages=QUESTION)
    assert flex.value.status_code == 498


def test_a_revoked_key_and_no_key_are_refused_by_the_gateway_itself(gateway: Gateway) -> None:
    with (
        groq.Groq(base_url=f"{gateway.url}/groq", api_key="sk-wr-x", max_retries=0) as client,
        pytest.raises(groq.AuthenticationError) as caught,
    ):
        client.models.list()
    assert json.loads(caught.value.response.content)["error"]["code"] == "invalid_api_key"
