"""What responses of real providers cost, to the pico-USD, with the prices that are shipped.

Each cost is worked out by hand from the provider's price page, as genai-prices 0.2.3 (PyPI) has it:
OpenAI's https://developers.openai.com/api/docs/pricing (flex, priority and fast of 2026-10-12,
batch of 2026-10-14), Groq's https://console.groq.com/docs/models and /docs/batch (2026-10-14),
Anthropic's https://platform.claude.com/docs/en/about-claude/pricing (2026-10-14); other sources
stand beside the case. All were read on 2026-11-26. `usd` adds up tokens × USD per million tokens.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from harness.metering import extractor_for
from wrapper.metering.price_table import Priced
from wrapper.metering.pricing import Prices

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "prices.toml"
TUNED = "ft:gpt-4o-mini-2024-07-18:acme::7p4lURel"
OPENAI, GROQ, ANTHROPIC = "api.openai.com", "api.groq.com", "api.anthropic.com"


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices.load(SHIPPED, {})


def usd(*parts: tuple[int, str], also: str = "0") -> int:
    """Pico-USD of tokens at USD per million, and of USD beside them."""
    tokens = sum((Decimal(n) * Decimal(price) for n, price in parts), Decimal(0)) / 10**6
    pico = (tokens + Decimal(also)) * 10**12
    assert pico == int(pico)
    return int(pico)


def price(prices: Prices, host: str, asked: str, *answer: dict[str, Any]) -> Priced:
    """The price of a JSON response, or of a stream where there are several events."""
    stream = len(answer) > 1
    extractor = extractor_for("text/event-stream" if stream else "application/json", None)
    for each in answer:
        body = json.dumps(each).encode()
        extractor.feed(b"data: " + body + b"\n\n" if stream else body)
    extractor.flush()
    extracted = extractor.extracted()
    assert extracted.usage is not None, extracted.reason
    found = prices.price("any", host, asked, extracted.model or "", extracted.usage)
    assert sum(found.kinds) <= (found.cost or 0)
    return Priced(found.cost, found.unpriced)


def chat(model: str, prompt: int, completion: int, cached: int = 0, **rest: Any) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
    return {"object": "chat.completion", "model": model, "choices": [{}], "usage": usage, **rest}


def details(answer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**answer, "usage": {**answer["usage"], **changes}}


def response(model: str, **rest: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 12_000,
        "input_tokens_details": {"cached_tokens": 8_000, "cache_write_tokens": 1_000},
        "output_tokens": 900,
        "output_tokens_details": {"reasoning_tokens": 640},
        "total_tokens": 12_900,
    }
    return {"object": "response", "model": model, "output": [], "usage": usage, **rest}


def message(model: str, **usage: Any) -> dict[str, Any]:
    return {"type": "message", "model": model, "usage": {"input_tokens": 0, **usage}}


CACHED = {
    "input_tokens": 50,
    "cache_creation_input_tokens": 1_000,
    "cache_read_input_tokens": 20_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 400},
    "output_tokens": 300,
}

CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "chat, dated name, cached input": (
        *(OPENAI, "gpt-4o", chat("gpt-4o-2024-08-06", 2_006, 300, 1_920)),
        usd((86, "2.50"), (1_920, "1.25"), (300, "10.00")),
    ),
    "chat, a version with a price of its own": (
        *(OPENAI, "gpt-4o", chat("gpt-4o-2024-05-13", 1_000, 100)),
        usd((1_000, "5.00"), (100, "15.00")),
    ),
    "chat, fine-tuned": (
        *(OPENAI, TUNED, chat(TUNED, 120, 35)),
        usd((120, "0.30"), (35, "1.20")),
    ),
    "chat, another model answered": (
        *(OPENAI, "gpt-4o", chat("gpt-4.1-nano-2025-04-14", 100, 10)),
        usd((100, "0.10"), (10, "0.40")),
    ),
    "chat, flex": (
        *(OPENAI, "gpt-5-mini", chat("gpt-5-mini", 1_024, 200, 512, service_tier="flex")),
        usd((512, "0.125"), (512, "0.0125"), (200, "1.00")),
    ),
    "chat, priority": (
        *(OPENAI, "gpt-4.1", chat("gpt-4.1", 1_000, 500, service_tier="priority")),
        usd((1_000, "3.50"), (500, "14.00")),
    ),
    "chat, asked for priority and served by default": (
        *(OPENAI, "gpt-4.1", chat("gpt-4.1", 1_000, 500, service_tier="default")),
        usd((1_000, "2.00"), (500, "8.00")),
    ),
    "chat, batch": (
        *(OPENAI, "gpt-4o", chat("gpt-4o", 1_000, 500, service_tier="batch")),
        usd((1_000, "1.25"), (500, "5.00")),
    ),
    "responses, cached and written": (
        *(OPENAI, "gpt-6-luna", response("gpt-6-luna")),
        usd((3_000, "0.10"), (8_000, "0.01"), (1_000, "0.125"), (900, "0.50")),
    ),
    "responses, web and file search": (
        *(OPENAI, "gpt-6.1-sol"),
        response(
            "gpt-6.1-sol",
            output=[
                {"type": "web_search_call", "action": {"type": "search"}},
                {"type": "web_search_call", "action": {"type": "open_page"}},
                {"type": "file_search_call"},
            ],
        ),
        # 10 USD per 1,000 searches of the web, 2.50 USD per 1,000 of files.
        usd((3_000, "2"), (8_000, "0.10"), (1_000, "2.5"), (900, "10"), also="0.0125"),
    ),
    "chat, long context": (
        *(OPENAI, "gpt-6-luna", chat("gpt-6-luna", 300_000, 1_000, 100_000)),
        usd((200_000, "0.20"), (100_000, "0.02"), (1_000, "0.75")),
    ),
    "chat, long context, flex": (
        *(OPENAI, "gpt-6-luna", chat("gpt-6-luna", 300_000, 1_000, service_tier="flex")),
        usd((300_000, "0.10"), (1_000, "0.375")),
    ),
    "chat, audio in and out": (
        *(OPENAI, "gpt-audio"),
        details(
            chat("gpt-audio", 400, 250),
            prompt_tokens_details={"text_tokens": 100, "audio_tokens": 300},
            completion_tokens_details={"text_tokens": 50, "audio_tokens": 200},
        ),
        usd((100, "2.50"), (300, "32.00"), (50, "10.00"), (200, "64.00")),
    ),
    "transcription by tokens": (
        *(OPENAI, "gpt-4o-transcribe"),
        {
            "text": "hello",
            "usage": {
                "type": "tokens",
                "input_tokens": 114,
                "input_token_details": {"text_tokens": 14, "audio_tokens": 100},
                "output_tokens": 45,
                "total_tokens": 159,
            },
        },
        usd((14, "2.50"), (100, "6.00"), (45, "10.00")),
    ),
    "transcription by length": (
        *(OPENAI, "whisper-1", {"text": "x", "usage": {"type": "duration", "seconds": 90}}),
        usd(also="0.009"),  # 0.006 USD per minute
    ),
    "image by tokens": (
        *(OPENAI, "gpt-image-1"),
        {
            "created": 1,
            "data": [{}],
            "usage": {
                "input_tokens": 350,
                "input_tokens_details": {"text_tokens": 27, "image_tokens": 323},
                "output_tokens": 1_056,  # 1024x1024, medium
                "total_tokens": 1_406,
            },
        },
        usd((27, "5.00"), (323, "10.00"), (1_056, "40.00")),
    ),
    "embeddings": (
        *(OPENAI, "text-embedding-3-small"),
        {"object": "list", "usage": {"prompt_tokens": 8, "total_tokens": 8}},
        usd((8, "0.02")),
    ),
    # https://developers.openai.com/api/docs/models/sora-2 (shut down on 2026-09-24)
    "video": (
        *(OPENAI, "sora-2"),
        {"object": "video", "model": "sora-2", "seconds": "8", "size": "720x1280"},
        usd(also="0.80"),
    ),
    "Groq chat, cached": (
        *(GROQ, "openai/gpt-oss-120b", chat("openai/gpt-oss-120b", 1_100, 90, 1_024)),
        usd((76, "0.15"), (1_024, "0.075"), (90, "0.60")),
    ),
    # https://console.groq.com/docs/flex-processing: "Pricing matches the on-demand tier."
    "Groq chat, flex": (
        *(GROQ, "llama-3.3-70b-versatile"),
        chat("llama-3.3-70b-versatile", 44, 86, service_tier="flex"),
        usd((44, "0.59"), (86, "0.79")),
    ),
    # Batch does not stack with cached input, which costs as much as any: /docs/batch.
    "Groq chat, batch": (
        *(GROQ, "openai/gpt-oss-20b"),
        chat("openai/gpt-oss-20b", 1_100, 90, 1_024, service_tier="batch"),
        usd((1_100, "0.0375"), (90, "0.15")),
    ),
    "Groq compound, by the models that worked": (
        *(GROQ, "groq/compound"),
        {
            **chat("groq/compound", 1_107, 222),
            "usage_breakdown": {
                "models": [
                    {
                        "model": "openai/gpt-oss-120b",
                        "usage": {"prompt_tokens": 1_000, "completion_tokens": 200},
                    },
                    {
                        "model": "llama-3.3-70b-versatile",
                        "usage": {"prompt_tokens": 107, "completion_tokens": 22},
                    },
                ]
            },
        },
        usd((1_000, "0.15"), (200, "0.60"), (107, "0.59"), (22, "0.79")),
    ),
    # Groq bills ten seconds at the least (genai-prices).
    "Groq transcription": (
        *(GROQ, "whisper-large-v3-turbo", {"task": "transcribe", "duration": 45, "text": "x"}),
        usd(also="0.0005"),
    ),
    "Groq transcription, a short one": (
        *(GROQ, "whisper-large-v3", {"task": "transcribe", "duration": 3.2, "text": "x"}),
        10_000 * 111_000_000_000 // 3_600_000,
    ),
    "Anthropic, cache reads and writes of both kinds": (
        *(ANTHROPIC, "claude-opus-5", message("claude-opus-5-20260801", **CACHED)),
        usd((50, "5"), (600, "6.25"), (400, "10"), (20_000, "0.50"), (300, "25")),
    ),
    "Anthropic, web search": (
        *(ANTHROPIC, "claude-sonnet-4-5"),
        message(
            "claude-sonnet-4-5-20250929",
            input_tokens=105,
            output_tokens=600,
            server_tool_use={"web_search_requests": 3},
        ),
        usd((105, "3"), (600, "15"), also="0.03"),
    ),
    "Anthropic, fast mode": (
        *(ANTHROPIC, "claude-opus-5"),
        message("claude-opus-5", input_tokens=100, output_tokens=10, speed="fast"),
        usd((100, "10"), (10, "50")),
    ),
    "Anthropic, batch": (
        *(ANTHROPIC, "claude-opus-5"),
        message("claude-opus-5", **CACHED, service_tier="batch"),
        usd((50, "2.5"), (600, "3.125"), (400, "5"), (20_000, "0.25"), (300, "12.5")),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_response_costs_what_the_price_page_says(prices: Prices, name: str) -> None:
    host, asked, answer, pico = CASES[name]
    assert price(prices, host, asked, answer) == Priced(pico)


def test_a_stream_of_anthropic_costs_as_much_as_the_message(prices: Prices) -> None:
    start = {**CACHED, "output_tokens": 3}
    events = (
        {"type": "message_start", "message": {"model": "claude-opus-5", "usage": start}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 300}},
        {"type": "message_stop"},
    )
    expected = CASES["Anthropic, cache reads and writes of both kinds"][3]
    assert price(prices, ANTHROPIC, "claude-opus-5", *events) == Priced(expected)


UNPRICED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a tier without a published price": (
        *(OPENAI, "gpt-4o", chat("gpt-4o", 1, 1, service_tier="scale")),
        "service_tier=scale",
    ),
    "flex of a model that has none": (
        *(OPENAI, "gpt-4o", chat("gpt-4o", 1, 1, service_tier="flex")),
        "service_tier=flex",
    ),
    "an unknown model answered": (
        *(OPENAI, "gpt-4o", chat("someone-elses-model", 1, 1)),
        "model",
    ),
    "a model of a later name": (*(OPENAI, "gpt-4", chat("gpt-4.9-super", 1, 1)), "model"),
    "audio without a price": (
        *(OPENAI, "gpt-4o-audio-preview"),
        details(chat("gpt-4o-audio-preview", 9, 9), prompt_tokens_details={"audio_tokens": 5}),
        "audio_input",
    ),
    "image output of which nothing is said": (
        *(OPENAI, "gpt-image-1.5"),
        {
            "usage": {
                "input_tokens": 5,
                "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
                "output_tokens": 1_056,
            }
        },
        "image_output",
    ),
    "seconds beside tokens": (
        *(OPENAI, "gpt-4o-transcribe"),
        {"usage": {"input_tokens": 0, "output_tokens": 45, "seconds": 3}},
        "seconds",
    ),
    "a container": (
        *(OPENAI, "gpt-6-luna"),
        response("gpt-6-luna", output=[{"type": "code_interpreter_call", "container_id": "c"}]),
        "container",
    ),
    "written tokens of a model without such a price": (
        *(OPENAI, "gpt-5", response("gpt-5")),
        "cache_write",
    ),
    "tools of a compound system": (
        *(GROQ, "openai/gpt-oss-20b"),
        chat("openai/gpt-oss-20b", 1, 1)
        | {"choices": [{"message": {"executed_tools": [{"type": "search"}]}}]},
        "executed_tool search",
    ),
    "images in a response, not counted by the provider": (
        *(OPENAI, "gpt-6-luna"),
        response("gpt-6-luna", output=[{"type": "image_generation_call"}]),
        "image_generation",
    ),
    "a detail that cannot be read": (
        *(OPENAI, "gpt-4o", details(chat("gpt-4o", 1, 1), cached_tokens="3")),
        "cached_tokens",
    ),
    "written tokens that are kept for long": (
        *(OPENAI, "gpt-6-luna"),
        {
            "usage": {
                "input_tokens": 2_000,
                "input_tokens_details": {
                    "cache_write_tokens": 1_000,
                    "cache_write_tokens_details": {"ttl_12h_tokens": 1_000},
                },
                "output_tokens": 1,
            }
        },
        "cache_write_long",
    ),
}


@pytest.mark.parametrize("name", UNPRICED)
def test_a_part_without_a_known_price_is_named_and_nothing_is_zero(
    prices: Prices, name: str
) -> None:
    host, asked, answer, part = UNPRICED[name]
    assert price(prices, host, asked, answer) == Priced(None, part)


def test_a_detail_that_changes_no_price_may_be_unreadable(prices: Prices) -> None:
    answer = details(chat("gpt-4o", 10, 5), completion_tokens_details={"reasoning_tokens": -1})
    assert price(prices, OPENAI, "gpt-4o", answer) == Priced(usd((10, "2.50"), (5, "10")))


def test_speech_is_billed_by_the_character_where_the_list_says_so(prices: Prices) -> None:
    for model, expected in (("tts-1", True), ("tts-1-hd", True), ("gpt-4o-mini-tts", False)):
        assert prices.has_unit("any", OPENAI, model, "character") is expected
