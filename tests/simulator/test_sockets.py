"""The simulator's WebSockets, as the real SDKs see them, and Anthropic's messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anthropic
import openai
import pytest

from harness.poll import eventually

if TYPE_CHECKING:
    from harness.simulator import Simulator


@pytest.fixture
def client(simulator: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def until(connection: Any, kind: str) -> Any:
    while (event := connection.recv()).type != kind:
        pass
    return event


def test_a_realtime_response_counts_words_text_and_sound(
    simulator: Simulator, client: openai.OpenAI
) -> None:
    book = f"sim-{uuid4()}"
    headers = {"x-sim-book": book, "x-sim": "events=6; prompt=20; cached=4"}
    with client.realtime.connect(model="gpt-realtime", extra_headers=headers) as connection:
        assert connection.recv().type == "session.created"
        connection.response.create()
        usage = until(connection, "response.done").response.usage
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (20, 6, 26)
        details = usage.input_token_details
        assert (details.text_tokens, details.audio_tokens, details.cached_tokens) == (12, 8, 4)
        connection.send({"type": "nonsense"})
        assert "nonsense" in until(connection, "error").error.message
    response, *_ = simulator.books(book=book, endpoint="realtime/response")
    assert (response["requests"], response["prompt"], response["completion"]) == (1, 20, 6)
    eventually(
        lambda: simulator.books(book=book, endpoint="realtime", outcome="completed"),
        what="the end of the session",
    )


def test_responses_over_a_websocket_are_events_of_a_stream(client: openai.OpenAI) -> None:
    with client.responses.connect() as connection:
        connection.response.create(model="gpt-6-luna", input="how are you")
        done = until(connection, "response.completed").response
    assert done.usage.output_tokens == len(done.output_text.split())


def test_a_message_counts_what_came_from_the_cache_apart(simulator: Simulator) -> None:
    with anthropic.Anthropic(
        base_url=simulator.url, api_key="any", max_retries=0, default_headers={"x-sim": "cached=2"}
    ) as client:
        asked: Any = {"model": "claude", "messages": [{"role": "user", "content": "how are you"}]}
        usage = client.messages.create(max_tokens=3, **asked).usage
        with client.messages.stream(max_tokens=3, **asked) as stream:
            streamed = stream.get_final_message()
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (1, 2, 3)
    assert streamed.usage.output_tokens == 3
    assert streamed.stop_reason == "max_tokens"
