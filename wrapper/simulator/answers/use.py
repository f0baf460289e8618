"""How each dialect writes the use of tokens into its answers."""

from __future__ import annotations

from typing import Any

from wrapper.simulator.answers.call import Call
from wrapper.simulator.replies import Usage


def chat_use(call: Call, usage: Usage) -> dict[str, Any]:
    """`usage` of chat completions, with Groq's timings or OpenAI's details."""
    made: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    if call.groq:
        made |= {
            "queue_time": 0.00012,
            "prompt_time": 0.00034,
            "completion_time": 0.00056,
            "total_time": 0.0009,
        }
        if usage.cached:
            made["prompt_tokens_details"] = {"cached_tokens": usage.cached}
        if usage.reasoning:
            made["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
        return made
    return made | {
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def responses_use(usage: Usage) -> dict[str, Any]:
    """`usage` of the responses API."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def media_use(usage: Usage) -> dict[str, Any]:
    """`usage` of images and of speech."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"text_tokens": usage.prompt, "image_tokens": 0},
        "output_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def transcription_use(usage: Usage) -> dict[str, Any]:
    """`usage` of a transcription: seconds where there are any, else tokens."""
    if usage.seconds:
        return {"type": "duration", "seconds": usage.seconds}
    return {
        "type": "tokens",
        "input_tokens": usage.prompt,
        "input_token_details": {"text_tokens": 0, "audio_tokens": usage.prompt},
        "output_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def put_use(
    call: Call, into: dict[str, Any], usage: Usage, written: dict[str, Any]
) -> Usage | None:
    """Write `usage` into an answer, unless the orders forbid it; returns what it now carries."""
    if call.orders.no_usage:
        return None
    if call.orders.usage_null:
        into["usage"] = None
        return None
    into["usage"] = written
    return usage
