"""The usage of every dialect is read from its place, and from nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from harness import effort
from harness.metering import extractor_for
from wrapper.metering import ExtractedUsage, Usage, content_begins

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


# --- usage that other gateways misread ----------------------------------------------------------


def usage_of(usage: dict[str, Any], **rest: Any) -> Usage:
    found = read_json({"model": "m", "usage": usage, **rest}).usage
    assert found is not None
    return found


def test_reasoning_on_top_of_the_completion_is_output() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 40,
        "completion_tokens_details": {"reasoning_tokens": 25},
    }
    assert usage_of(usage) == Usage(10, 30, 40, reasoning=25)
    # Audio by its length has tokens in the total that are neither.
    mistral = {"prompt_tokens": 3, "completion_tokens": 635, "total_tokens": 3264}
    assert usage_of({**mistral, "prompt_audio_seconds": 254}) == Usage(3, 635, 3264, seconds=254)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 0, "input_tokens": 7, "output_tokens": 2}, Usage(7, 2, 9)),
        ({"prompt_tokens": 7, "input_tokens": 0, "completion_tokens": 2}, Usage(7, 2, 9)),
        ({"input_tokens": 7, "completion_tokens": 0, "output_tokens": 2}, Usage(7, 2, 9)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0, 0)),
    ],
)
def test_a_zero_beside_a_positive_twin_is_no_report(usage: dict[str, Any], expected: Usage) -> None:
    assert usage_of(usage) == expected


@pytest.mark.parametrize(
    "name",
    [
        "cached_tokens",
        "prompt_cache_hit_tokens",
        "cache_read_input_tokens",
        "cachedContentTokenCount",
    ],
)
def test_cached_tokens_are_read_under_each_of_their_names(name: str) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    assert usage_of({**usage, name: 80}) == Usage(100, 1, 101, cached=80)
    zero = {"prompt_tokens_details": {"cached_tokens": 0}}
    assert usage_of({**usage, **zero, name: 80}) == Usage(100, 1, 101, cached=80)


@pytest.mark.parametrize(
    ("details", "unreadable"),
    [
        ({"prompt_tokens_details": []}, ""),  # PHP's empty object
        ({"prompt_tokens_details": [1]}, "prompt_tokens_details"),
        ({"prompt_tokens_details": "none"}, "prompt_tokens_details"),
        ({"cached_tokens": "3"}, "cached_tokens"),
        (
            {"prompt_tokens_details": {"cached_tokens": "3", "audio_tokens": None}},
            "prompt_tokens_details.cached_tokens",
        ),
        (
            {"completion_tokens_details": {"reasoning_tokens": -1}},
            "completion_tokens_details.reasoning_tokens",
        ),
        ({"cache_creation": 7, "service_tier": 1}, "cache_creation,service_tier"),
    ],
)
def test_one_broken_detail_is_named_and_the_sound_numbers_count(
    details: dict[str, Any], unreadable: str
) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    assert usage_of({**usage, **details}) == Usage(9, 1, 10, unreadable=unreadable)


ANTHROPIC = {
    "input_tokens": 50,
    "cache_creation_input_tokens": 1000,
    "cache_read_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 400},
    "output_tokens": 30,
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    "service_tier": "standard",
}
ANTHROPIC_USAGE = Usage(
    *(3050, 30, 3080, 2000),
    cache_write=1000,
    cache_write_long=400,
    units=(("web_search", 2),),
    service_tier="standard",
)


def test_anthropic_counts_cached_and_written_tokens_beside_its_input() -> None:
    message = {"type": "message", "role": "assistant", "model": "claude-opus-5", "content": []}
    extracted = read_json({**message, "usage": ANTHROPIC})
    assert extracted == ExtractedUsage(ANTHROPIC_USAGE, "claude-opus-5", None)
    plain = {"input_tokens": 5, "output_tokens": 6}
    assert usage_of(plain) == Usage(5, 6, 11)
    fast = usage_of({**plain, "speed": "fast", "service_tier": "standard"})
    assert fast.service_tier == "fast"
    assert usage_of({**plain, "inference_geo": "global"}).service_tier == ""
    assert usage_of({**plain, "inference_geo": "us"}).service_tier == "standard in us"


def test_a_stream_of_anthropic_reports_in_two_events() -> None:
    start = {**ANTHROPIC, "output_tokens": 1, "server_tool_use": None}
    last = {"output_tokens": 30, "server_tool_use": ANTHROPIC["server_tool_use"]}
    events = [
        {"type": "message_start", "message": {"model": "claude-opus-5", "usage": start}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": last},
        {"type": "message_stop"},
    ]
    extracted = read_stream(*events)
    assert extracted == ExtractedUsage(ANTHROPIC_USAGE, "claude-opus-5", None, terminal=True)
    # What the second event repeats is not added up.
    events[4]["usage"] = {**ANTHROPIC, **last}
    assert read_stream(*events).usage == ANTHROPIC_USAGE
    # A stream that ends before it has not reported what it used.
    prompt = replace(ANTHROPIC_USAGE, completion=0, total=ANTHROPIC_USAGE.prompt, units=())
    begun = ExtractedUsage(None, "claude-opus-5", "no_usage", prompt=prompt)
    assert read_stream(*events[:4]) == begun


def read_lines(*lines: Any, size: int = 1 << 20, end: bytes = b"\n") -> ExtractedUsage:
    extractor = extractor_for("application/x-ndjson; charset=utf-8", None)
    body = b"\n".join(json.dumps(line).encode() for line in lines) + end
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        assert extractor.feed(piece) == piece
    extractor.flush()
    return extractor.extracted()


OLLAMA = {"model": "llama3.2", "done": True, "prompt_eval_count": 26, "eval_count": 298}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_ollama_reports_in_the_last_line(size: int, end: bytes) -> None:
    lines = [{"model": "llama3.2", "message": {"content": "hi"}, "done": False}] * 3
    extracted = read_lines(*lines, OLLAMA, size=size, end=end)
    assert extracted == ExtractedUsage(Usage(26, 298, 324), "llama3.2", None, terminal=True)
    assert read_lines(*lines, size=size, end=end) == ExtractedUsage(None, "llama3.2", "no_usage")
    assert read_lines(*lines, {"error": "out of memory"}, size=size, end=end).error


def test_ollama_reports_at_the_top_level_of_a_json_response() -> None:
    assert read_json(OLLAMA).usage == Usage(26, 298, 324)
    assert read_json({"model": "e", "prompt_eval_count": 8}).usage == Usage(8, 0, 8)
    vectors = json.dumps([[0.123456789] * 1000] * 40)
    large = f'{{"model":"e","embeddings":{vectors},"total_duration":1,"prompt_eval_count":8}}'
    assert len(large) > 300_000
    assert read_json(large.encode()) == ExtractedUsage(Usage(8, 0, 8), "e", None)


def test_lines_cost_nothing_and_their_memory_is_bounded() -> None:
    extractor = extractor_for("application/x-ndjson", None)
    line = json.dumps({"model": "m", "message": {"content": "hi"}}).encode() + b"\n"
    assert effort.calls(lambda: [extractor.feed(line) for _ in range(100)]) < 400
    extractor.feed(b'{"model":"' + b"x" * 3_000_000)
    assert extractor.extracted().reason == "too_large"


def test_the_service_tier_is_read_from_the_response() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    assert usage_of(usage, service_tier="flex").service_tier == "flex"
    assert usage_of(usage, service_tier=None).service_tier == ""
    response = {"model": "m", "service_tier": "priority", "usage": usage}
    found = read_stream({"type": "response.completed", "response": response}).usage
    assert found is not None
    assert found.service_tier == "priority"


OUTPUT = [
    {"type": "reasoning"},
    {"type": "web_search_call", "status": "completed", "action": {"type": "search"}},
    {"type": "web_search_call", "status": "completed", "action": {"type": "open_page"}},
    {"type": "web_search_call", "status": "completed"},
    {"type": "file_search_call"},
    {"type": "code_interpreter_call", "container_id": "c1"},
    {"type": "code_interpreter_call", "container_id": "c1"},
    {"type": "code_interpreter_call", "container_id": "c2"},
    {"type": "function_call"},
    {"type": "message", "content": [{"text": '"web_search_call"'}]},
]


def test_hosted_tools_are_counted_by_what_is_billed() -> None:
    usage = {"input_tokens": 10, "output_tokens": 5}
    counted = (("container", 2), ("file_search", 1), ("web_search", 2))
    assert usage_of(usage, output=OUTPUT) == Usage(10, 5, 15, units=counted)
    # The provider's own count of what it bills is better.
    told = {"web_search": {"num_requests": 1}, "image_gen": {"total_tokens": 0}}
    assert dict(usage_of(usage, output=OUTPUT, tool_usage=told).units)["web_search"] == 1
    response = {"model": "m", "output": OUTPUT, "usage": usage}
    stream = read_stream({"type": "response.completed", "response": response})
    assert stream.usage == Usage(10, 5, 15, units=counted)


@pytest.mark.parametrize(
    "rest",
    [
        {"output": ["web_search_call", 1]},
        {"tool_usage": {"web_search": {"num_requests": -1}}},
        {"usage_breakdown": {"models": [{"model": "m", "usage": {"prompt_tokens": "1"}}]}},
    ],
)
def test_tools_that_cannot_be_read_are_named_and_the_tokens_count(rest: dict[str, Any]) -> None:
    usage = {"input_tokens": 10, "output_tokens": 5}
    assert usage_of(usage, **rest) == Usage(10, 5, 15, unreadable="tools")


def test_images_in_a_response_are_priced_as_those_of_their_model() -> None:
    images = {
        "input_tokens": 50,
        "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
        "output_tokens": 4160,
        "total_tokens": 4210,
    }
    tools = [{"type": "web_search"}, {"type": "image_generation", "model": "gpt-image-1"}]
    answer = {
        "model": "gpt-5",
        "output": [{"type": "image_generation_call", "result": "AAAA"}],
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
    own = Usage(10, 5, 15)
    expected = (("", own), ("gpt-image-1", Usage(50, 4160, 4210, prompt_split=True)))
    told = {**answer, "tools": tools, "tool_usage": {"image_gen": images}}
    assert read_json(told).usage == replace(own, parts=expected)
    # Without the provider's count there is a unit without a price.
    assert read_json(answer).usage == replace(own, units=(("image_generation", 1),))
    # A large response is read at its two ends.
    large = {**told, "output": [{"type": "image_generation_call", "result": "A" * 400_000}]}
    ordered = {key: large[key] for key in ("model", "output", "tools", "tool_usage", "usage")}
    assert read_json(ordered).usage == replace(own, parts=expected)
    del ordered["tool_usage"]
    assert read_json(ordered).usage == replace(own, units=(("uncounted image_generation", 1),))


BREAKDOWN = {
    "models": [
        {"model": "openai/gpt-oss-120b", "usage": {"prompt_tokens": 100, "completion_tokens": 20}},
        {"model": "llama-3.3-70b-versatile", "usage": {"prompt_tokens": 7, "total_tokens": 9}},
    ]
}
PARTS = (("openai/gpt-oss-120b", Usage(100, 20, 120)), ("llama-3.3-70b-versatile", Usage(7, 2, 9)))


def test_compound_systems_are_read_by_model_and_executed_tool() -> None:
    tools = [{"index": 0, "type": "search"}, {"index": 1, "type": "python"}]
    usage = {"prompt_tokens": 107, "completion_tokens": 22, "total_tokens": 129}
    answer = {
        "model": "groq/compound",
        "choices": [{"message": {"content": "hi", "executed_tools": tools}}],
        "usage": usage,
        "usage_breakdown": BREAKDOWN,
    }
    units = (("executed_tool python", 1), ("executed_tool search", 1))
    assert read_json(answer).usage == Usage(107, 22, 129, parts=PARTS, units=units)
    # In a stream each tool comes when it is called, and again with what it returned.
    extracted = read_stream(
        {"model": "groq/compound", "choices": [{"delta": {"role": "assistant"}}]},
        {"model": "groq/compound", "choices": [{"delta": {"executed_tools": tools[:1]}}]},
        {"model": "groq/compound", "choices": [{"delta": {"executed_tools": tools}}]},
        {"choices": [{"delta": {}}], "x_groq": {"usage": usage, "usage_breakdown": BREAKDOWN}},
    )
    assert extracted.usage == Usage(107, 22, 129, parts=PARTS, units=units)


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        (
            {"task": "transcribe", "language": "english", "duration": 8.47, "text": "x"},
            Usage(0, 0, 0, seconds=8.47),
        ),
        ({"task": "translate", "duration": "8.5", "text": "x"}, Usage(0, 0, 0, seconds=8.5)),
        (
            {"task": "transcribe", "duration": 8.47, "usage": {"type": "duration", "seconds": 9}},
            Usage(0, 0, 0, seconds=9),
        ),
        (
            {"object": "video", "model": "sora-2", "seconds": "8", "size": "1280x720"},
            Usage(0, 0, 0, units=(("video_second 720x1280", 8),)),
        ),
        ({"results": [], "meta": {"billed_units": {"search_units": 1}}}, None),
    ],
)
def test_what_is_billed_beside_tokens_is_read(answer: dict[str, Any], usage: Usage | None) -> None:
    expected = usage or Usage(0, 0, 0, units=(("rerank_search", 1),))
    assert read_json(answer).usage == expected
    assert read_json({**answer, "task": None, "object": None, "meta": []}).usage in (
        None,
        *((expected,) if "usage" in answer else ()),
    )


@pytest.mark.parametrize(
    ("event", "content"),
    [
        (": keep-alive\n\n", False),
        ('data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n', False),
        (
            'data: {"choices":[{"delta":{"role":"assistant","content":null}}],"x_groq":{}}\n\n',
            False,
        ),
        ('data: {"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n', True),
        ('data: {"choices": [{"delta": {"reasoning": "hm"}}]}\n\n', True),
        ('data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n', True),
        ('data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', True),
        ('data: {"choices":[{"text":"x"}]}\n\n', True),
        ('data: {"type":"response.created","response":{"metadata":{"text":"x"}}}\n\n', False),
        ('data: {"type":"response.output_item.added","item":{"content":[]}}\n\n', False),
        ('data: {"type":"response.output_text.delta","delta":"h"}\n\n', True),
        ('data: {"type":"message_start","message":{"content":[]}}\n\n', False),
        ('data: {"type":"content_block_start","content_block":{"text":""}}\n\n', False),
        ('data: {"type":"content_block_delta","delta":{"text":"h"}}\n\n', True),
        (': x\n\ndata: {"choices":[{"delta":{"content":"hi"}}]}\n\n', True),
    ],
)
def test_an_event_with_content_is_told_from_others(event: str, content: bool) -> None:
    assert bool(content_begins(event.encode())) is content


@pytest.mark.parametrize(
    ("events", "terminal"),
    [
        (["data: [DONE]\n\n"], True),
        (["data: [DO", "NE]\n", "\n"], True),
        (["data: [DONE]\r\n\r", "\n"], True),
        (['data: {"model":"m"}\n\ndata: [DONE]\n\n'], True),
        (['data: {"model":"m"}\n\n'], False),
        (['data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n'], False),
        (['event: message_stop\ndata: {"type":"message_stop"}\n\n'], True),
        (['event: x\ndata: {"type": "message_stop" }\n\n'], True),
        (
            ['data: {"type":"response.incomplete","response":{"usage":{"input_tokens":1}}}\n\n'],
            True,
        ),
        (['data: {"type":"response.created","response":{"model":"m"}}\n\n'], False),
    ],
)
def test_the_event_that_ends_a_stream_is_seen(events: list[str], terminal: bool) -> None:
    for strip in (False, True):
        extractor = extractor_for("text/event-stream", None, strip_usage=strip)
        for event in events:
            extractor.feed(event.encode())
        assert extractor.extracted().terminal is terminal
