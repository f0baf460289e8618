"""Usage within the limits of the request, and models that the provider does not have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from harness import raw
from harness.simulator import Simulator as Process

if TYPE_CHECKING:
    from harness.simulator import Simulator

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "how are you"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}}}
JSON_OBJECT = {"response_format": {"type": "json_object"}}
LIMITED = {
    "max_tokens": ("chat/completions", {**CHAT, "max_tokens": 3}, 3),
    "max_completion_tokens": ("chat/completions", {**CHAT, "max_completion_tokens": 3}, 3),
    "the lower of both": (
        "chat/completions",
        {**CHAT, "max_completion_tokens": 3, "max_tokens": 9},
        3,
    ),
    "choices": ("chat/completions", {**CHAT, "max_tokens": 3, "n": 4}, 12),
    "reasoning": ("chat/completions", {**CHAT, "max_tokens": 6, "reasoning_effort": "low"}, 6),
    "only reasoning": ("chat/completions", {**CHAT, "max_tokens": 2, "reasoning_effort": "low"}, 2),
    "a tool call": ("chat/completions", {**CHAT, "max_tokens": 1, "tools": [TOOL]}, 1),
    "JSON": ("chat/completions", {**CHAT, "max_tokens": 2, **JSON_OBJECT}, 2),
    "legacy completions": ("completions", {"prompt": "one two", "max_tokens": 3, "n": 2}, 6),
    "responses": ("responses", {"input": "one two", "max_output_tokens": 3}, 3),
}


def ask(
    simulator: Simulator, path: str, body: dict[str, Any], instructions: str = ""
) -> raw.Answer:
    data = json.dumps({"model": "sim-model", **body}).encode()
    headers = (("x-sim", instructions), ("x-sim-book", "limits"))
    return raw.post(simulator.port, f"/v1/{path}", data, headers=headers)


def usage_of(body: dict[str, Any]) -> tuple[int, int]:
    usage = body["usage"]
    found = [usage.get(f"{name}_tokens") for name in ("prompt", "input", "completion", "output")]
    prompt, completion = [number for number in found if number is not None]
    return prompt, completion


def events(answer: raw.Answer) -> list[dict[str, Any]]:
    lines = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("case", LIMITED)
def test_the_output_limit_bounds_the_completion(simulator: Simulator, case: str) -> None:
    path, asked, most = LIMITED[case]
    body = json.loads(ask(simulator, path, asked).body)
    assert usage_of(body)[1] == most
    if path == "responses":
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    else:
        assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}


@pytest.mark.parametrize("case", LIMITED)
def test_a_stream_is_bounded_like_the_whole_response(simulator: Simulator, case: str) -> None:
    path, asked, most = LIMITED[case]
    options = {} if path == "responses" else {"stream_options": {"include_usage": True}}
    found = events(ask(simulator, path, {**asked, "stream": True, **options}))
    if path == "responses":
        assert found[-1]["type"] == "response.incomplete"
        assert usage_of(found[-1]["response"])[1] == most
        return
    assert usage_of(found[-1])[1] == most
    choices = [choice for event in found for choice in event["choices"]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert reasons == ["length"] * asked.get("n", 1)


@pytest.mark.parametrize(
    ("path", "asked", "end"),
    [
        ("chat/completions", {**CHAT, "max_tokens": 4}, "stop"),
        ("chat/completions", {**CHAT, "max_tokens": 100, "tools": [TOOL]}, "tool_calls"),
        ("completions", {"prompt": "x", "max_tokens": 4}, "stop"),
    ],
)
def test_a_response_within_the_limit_is_complete(
    simulator: Simulator, path: str, asked: dict[str, Any], end: str
) -> None:
    body = json.loads(ask(simulator, path, asked, "events=4").body)
    assert body["choices"][0]["finish_reason"] == end


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("chat/completions", {"messages": [{}]}),
        ("chat/completions", {"messages": [{"content": [{}, {}, {"text": "a b c d"}]}] * 50}),
        ("chat/completions", {"messages": [{"content": "\u2003".join("abc")}]}),
        ("completions", {"prompt": [1, 2, 3, None, [4, 5]]}),
        ("embeddings", {"input": [[1, 2], [3]]}),
        ("embeddings", {"input": ""}),
        ("responses", {"input": [{}] * 20, "instructions": "a b c"}),
        ("images/generations", {"prompt": "a b c"}),
        ("audio/speech", {"input": "a b c", "stream_format": "sse"}),
    ],
)
def test_the_prompt_never_exceeds_the_bytes_of_the_body(
    simulator: Simulator, path: str, asked: dict[str, Any]
) -> None:
    simulator.reset()
    assert ask(simulator, path, asked).status == 200
    (record,) = simulator.requests(book="limits")
    assert record["usage"]["prompt"] <= record["body_length"]


# --- models ---


@pytest.fixture(scope="module")
def strict() -> Iterator[Simulator]:
    with Process(any_model=False) as running:
        yield running


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-oss-20b",
        "gpt-6-luna",
        "gpt-6-luna-2026-09-22",
        "ft:gpt-6-luna:team::id",
        "sim-model",
        "gpt-6-luna?events=2",
    ],
)
def test_a_known_model_responds(strict: Simulator, model: str) -> None:
    assert ask(strict, "chat/completions", {**CHAT, "model": model}).status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", CHAT),
        ("embeddings", {"input": "x"}),
        ("responses", {"input": "x"}),
        ("images/generations", {"prompt": "x"}),
        ("audio/speech", {"input": "x"}),
    ],
)
def test_an_unknown_model_is_a_404(strict: Simulator, path: str, body: dict[str, Any]) -> None:
    answer = ask(strict, path, {**body, "model": "made-up"})
    error = json.loads(answer.body)["error"]
    assert answer.status == 404
    assert (error["type"], error["code"]) == ("invalid_request_error", "model_not_found")
    assert "`made-up` does not exist" in error["message"]
    assert "This is a simulated provider" in error["message"]


def test_one_request_can_ask_for_any_model(strict: Simulator) -> None:
    assert ask(strict, "chat/completions", {**CHAT, "model": "made-up?any-model"}).status == 200
    assert ask(strict, "embeddings", {"model": "x", "input": "x"}, "any-model").status == 200
    assert ask(strict, "_echo", {"model": "x"}).status == 200


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "openai%2Fgpt-oss-20b"])
def test_a_model_with_a_slash_is_found_in_either_spelling(strict: Simulator, name: str) -> None:
    request = raw.request(strict.port, "GET", f"/openai/v1/models/{name}")
    assert json.loads(raw.exchange(strict.port, request).body)["id"] == "openai/gpt-oss-20b"
    request = raw.request(strict.port, "GET", "/openai/v1/models/made/up")
    assert raw.exchange(strict.port, request).status == 404
