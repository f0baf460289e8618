"""The usage of every dialect is read from its place, and from nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrapper.metering import ExtractedUsage, Usage, extractor_for

CHAT = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 7, "audio_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 1},
}


def read_json(answer: Any, *, kind: str = "application/json") -> ExtractedUsage:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    extractor = extractor_for(kind, None)
    assert extractor.feed(body) == body
    assert extractor.flush() == b""
    return extractor.extracted()


def read_stream(*events: Any) -> ExtractedUsage:
    extractor = extractor_for("text/event-stream; charset=utf-8", None)
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        piece = f"data: {data}\n\n".encode()
        assert extractor.feed(piece) == piece
    extractor.flush()
    return extractor.extracted()


ANSWERS: dict[str, tuple[dict[str, Any], Usage]] = {
    "chat": (
        {"object": "chat.completion", "model": "gpt-6-luna", "choices": [{}], "usage": CHAT},
        Usage(
            *(19, 10, 29, 7, 3),
            audio_prompt=2,
            audio_completion=1,
            prompt_split=True,
            completion_split=True,
        ),
    ),
    "old completions": (
        {"object": "text_completion", "model": "davinci-002", "choices": [{"text": "x"}]}
        | {"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}},
        Usage(5, 7, 12),
    ),
    "embeddings": (
        {"object": "list", "data": [], "model": "text-embedding-3-small"}
        | {"usage": {"prompt_tokens": 8, "total_tokens": 8}},
        Usage(8, 0, 8),
    ),
    "responses": (
        {"object": "response", "model": "gpt-6.1-sol", "error": None, "output": []}
        | {
            "usage": {
                "input_tokens": 36,
                "input_tokens_details": {"cached_tokens": 30},
                "output_tokens": 87,
                "output_tokens_details": {"reasoning_tokens": 64},
                "total_tokens": 123,
            }
        },
        Usage(36, 87, 123, 30, 64),
    ),
    "transcription by tokens": (
        {
            "text": "hello",
            "usage": {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
                "output_tokens": 45,
                "total_tokens": 59,
            },
        },
        Usage(14, 45, 59, audio_prompt=14, prompt_split=True),
    ),
    "transcription by length": (
        {"text": "hello", "usage": {"type": "duration", "seconds": 12.5}},
        Usage(0, 0, 0, seconds=12.5),
    ),
    "images": (
        {
            "created": 1,
            "data": [{"b64_json": "AAAA"}],
            "usage": {
                "input_tokens": 50,
                "output_tokens": 4160,
                "total_tokens": 4210,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            },
        },
        Usage(50, 4160, 4210, image_prompt=40, prompt_split=True),
    ),
    "groq chat": (
        {
            "model": "llama-3.1-8b-instant",
            "choices": [{}],
            "usage": {
                "queue_time": 0.03,
                "prompt_tokens": 38,
                "prompt_time": 0.002,
                "completion_tokens": 12,
                "completion_time": 0.01,
                "total_tokens": 50,
                "total_time": 0.012,
                "prompt_tokens_details": {"cached_tokens": 32},
            },
            "usage_breakdown": None,
            "x_groq": {"id": "req_1", "usage": {"dram_cached_tokens": 0, "sram_cached_tokens": 9}},
        },
        Usage(38, 12, 50, 32),
    ),
    "a total that is missing": (
        {"usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        Usage(3, 4, 7),
    ),
    "details that are null": (
        {"usage": {"prompt_tokens": 3, "total_tokens": 3, "prompt_tokens_details": None}},
        Usage(3, 0, 3),
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_json_response_is_read(name: str) -> None:
    answer, usage = ANSWERS[name]
    assert read_json(answer) == ExtractedUsage(usage, answer.get("model"), None)


def test_json_is_read_under_any_of_its_media_types() -> None:
    answer, usage = ANSWERS["chat"]
    for kind in ("Application/JSON", "application/json;charset=utf-8", "application/x+json"):
        assert read_json(answer, kind=kind).usage == usage


def test_a_stream_of_openai_ends_with_its_usage() -> None:
    extracted = read_stream(
        {"model": "gpt-6-luna", "choices": [{"delta": {"content": "hi"}}], "usage": None},
        {"model": "gpt-6-luna", "choices": [], "usage": CHAT},
        "[DONE]",
    )
    assert extracted == ExtractedUsage(ANSWERS["chat"][1], "gpt-6-luna", None, terminal=True)


def test_groq_reports_usage_three_times_and_the_last_one_counts() -> None:
    first = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    extracted = read_stream(
        {"model": "llama", "x_groq": {"id": "req_1"}, "choices": [{"delta": {}}]},
        {"model": "llama", "choices": [{"finish_reason": "stop"}], "x_groq": {"usage": first}},
        {"model": "llama", "choices": [{"finish_reason": "stop"}], "usage": first},
        {"model": "llama", "choices": [], "usage": CHAT},
        "[DONE]",
    )
    assert extracted.usage == ANSWERS["chat"][1]


def test_x_groq_usage_is_enough() -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    extracted = read_stream(
        {"model": "llama", "choices": [{"finish_reason": "stop"}], "x_groq": {"usage": usage}},
    )
    assert extracted == ExtractedUsage(Usage(4, 5, 9), "llama", None)


def test_an_error_in_x_groq_is_an_error() -> None:
    extracted = read_stream({"model": "llama", "choices": [], "x_groq": {"error": "over capacity"}})
    assert extracted == ExtractedUsage(None, "llama", "no_usage", error=True)


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_a_stream_of_responses_is_read(kind: str) -> None:
    answer, usage = ANSWERS["responses"]
    extracted = read_stream(
        {"type": "response.created", "response": {**answer, "usage": None, "error": None}},
        {"type": "response.output_text.delta", "delta": "hi"},
        {"type": f"response.{kind}", "response": answer},
    )
    assert extracted == ExtractedUsage(
        usage, "gpt-6.1-sol", None, error=kind == "failed", terminal=True
    )


@pytest.mark.parametrize("kind", ["transcript.text.done", "image_generation.completed"])
def test_a_stream_of_audio_or_images_carries_it_in_its_last_event(kind: str) -> None:
    extracted = read_stream(
        {"type": "transcript.text.delta", "delta": "he"},
        {"type": kind, "text": "hello", "usage": {"input_tokens": 14, "output_tokens": 45}},
    )
    assert extracted.usage == Usage(14, 45, 59)


@pytest.mark.parametrize(
    "event",
    [
        {"error": {"message": "boom", "type": "server_error"}},
        {"type": "error", "code": "server_error", "message": "boom"},
        {"type": "response.failed", "response": {"error": {"code": "server_error"}}},
    ],
)
def test_an_error_event_is_detected(event: dict[str, Any]) -> None:
    assert read_stream({"model": "m", "choices": [{}]}, event).error


def test_an_error_that_is_null_is_none() -> None:
    assert not read_stream({"model": "m", "error": None, "usage": CHAT}).error
    assert not read_json({"model": "m", "error": None, "usage": CHAT}).error


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": 1.5},
        {"prompt_tokens": 1.0},
        {"prompt_tokens": "12"},
        {"prompt_tokens": True},
        {"prompt_tokens": 10**13},
        {"prompt_tokens": 10**40},
        {"prompt_tokens": [1]},
        {"seconds": -3},
        {"prompt_tokens": -1, "prompt_tokens_details": {"cached_tokens": "3"}},
        {"prompt_tokens": 1, "total_tokens": "2"},
        [1, 2],
        "many",
        7,
        True,
    ],
)
def test_numbers_that_cannot_be_counts_are_unreadable_and_never_repaired(usage: Any) -> None:
    assert read_json({"model": "m", "usage": usage}) == ExtractedUsage(None, "m", "unreadable")
    stream = read_stream({"model": "m", "choices": [], "usage": usage})
    assert stream == ExtractedUsage(None, "m", "unreadable")


@pytest.mark.parametrize("usage", [None, {}, {"queue_time": 0.1}])
def test_a_usage_without_numbers_is_none(usage: Any) -> None:
    assert read_json({"model": "m", "usage": usage}) == ExtractedUsage(None, "m", "no_usage")


def test_what_merely_looks_like_a_usage_is_not_taken() -> None:
    fake = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    text = json.dumps({"usage": fake})
    answer = {"model": "m", "choices": [{"message": {"content": text, "usage": fake}}]}
    assert read_json(answer).usage is None
    assert read_stream(answer).usage is None


@pytest.mark.parametrize("model", [None, 7, "", ["m"], {"a": 1}])
def test_a_model_that_is_no_name_is_none(model: Any) -> None:
    assert read_json({"model": model, "usage": CHAT}).model is None


def test_a_name_with_escapes_is_decoded_and_broken_utf_8_is_none() -> None:
    assert read_json(rb'{"model":"\u006dodel"}').model == "model"
    assert read_json(b'{"model":"\xff"}').model is None
    assert read_json(rb'{"model":"\ud800"}').model is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no_usage"),
        (b"[]", "unreadable"),
        (b"null", "unreadable"),
        (b"<html>", "unreadable"),
        (b'{"model":"m"', "unreadable"),
        (b"[" * 100_000, "unreadable"),
        (b'{"a":' * 50_000, "unreadable"),
    ],
)
def test_a_body_without_usage_has_a_reason(body: bytes, reason: str) -> None:
    assert read_json(body).reason == reason


def test_a_response_that_broke_off_is_truncated_and_not_empty() -> None:
    for kind in ("application/json", "text/event-stream"):
        extractor = extractor_for(kind, None)
        extractor.feed(b'{"model":"m","usa' if "json" in kind else b'data: {"model":"m"}\n\n')
        assert extractor.extracted().reason == "truncated"


def test_a_stream_that_broke_off_keeps_the_usage_reported_before() -> None:
    extractor = extractor_for("text/event-stream", None)
    extractor.feed(
        b'data: {"model":"m","usage":{"prompt_tokens":5,"completion_tokens":1}}\n\ndata: {"mo'
    )
    assert extractor.extracted() == ExtractedUsage(Usage(5, 1, 6), "m", None)


def test_an_unreadable_event_does_not_hide_a_later_usage() -> None:
    extracted = read_stream('{"usage": {broken', {"model": "m", "choices": [], "usage": CHAT})
    assert extracted == ExtractedUsage(ANSWERS["chat"][1], "m", None)
    assert read_stream('{"usage": {broken').reason == "unreadable"


def test_types_that_report_no_usage_are_the_reason() -> None:
    for kind in (None, "", "audio/mpeg", "application/octet-stream", "text/plain", "text/html"):
        extractor = extractor_for(kind, None)
        assert extractor.feed(b"\x00\xff") == b"\x00\xff"
        assert extractor.flush() == b""
        assert extractor.extracted() == ExtractedUsage(None, None, "not_metered_type")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "usage",
                        "model",
                        "x_groq",
                        "response",
                        "choices",
                        "error",
                        "prompt_tokens",
                        "input_tokens_details",
                        "type",
                    ]
                ),
                inner,
            )
        ),
    )
)
def test_no_json_makes_an_extractor_raise(answer: Any) -> None:
    read_json(answer)
    read_stream(answer)
