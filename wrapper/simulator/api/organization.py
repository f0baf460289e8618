"""`GET organization/usage/…` and `GET organization/costs`: the ledger as OpenAI reports it.

Pages of buckets, one a day (UTC), as https://platform.openai.com/docs/api-reference/usage has them:
what a usage API does not group by is null, and a day without use has an empty bucket. Requests that
name no model are on no bill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from wrapper.simulator.api.call import Call
from wrapper.simulator.ledger import Totals
from wrapper.simulator.response import ApiError, Response, Usage, json_response

DAY = 86_400  # seconds
PRICES = {"input": 2.0, "cached input": 0.5, "output": 8.0}
"""USD per million tokens, of every model."""

_KINDS = {
    "completions": {"chat/completions", "completions", "engines/{}/completions", "responses"},
    "embeddings": {"embeddings"},
    "moderations": {"moderations"},
    "images": {"images/generations", "images/edits", "images/variations"},
    "audio_speeches": {"audio/speech"},
    "audio_transcriptions": {"audio/transcriptions", "audio/translations"},
}
"""The endpoints that each usage API reports."""

Results = list[dict[str, Any]]


def usage(call: Call) -> Response:
    """`organization/usage/{kind}`."""
    kind = call.arguments[0]
    if kind not in _KINDS:
        raise ApiError(404, f"Unknown request URL: GET {call.request.path[:100]}.")
    _only(call, "group_by", "model")
    return _page(call, most=31, results=lambda day: _usage(call, kind, day))


def costs(call: Call) -> Response:
    """`organization/costs`."""
    _only(call, "group_by", "line_item")
    return _page(call, most=180, results=lambda day: _costs(call, day))


def _asked(call: Call, name: str) -> str:
    query = call.request.query
    return query.get(name, query.get(f"{name}[]", ""))


def _only(call: Call, name: str, known: str) -> None:
    if _asked(call, name) not in ("", known):
        raise ApiError(400, f"Invalid '{name}': this simulator knows '{known}' only.")


def _whole(call: Call, name: str, default: int) -> int:
    text = call.request.query.get(name, str(default))
    if not text.isdecimal() or len(text) > 12:
        raise ApiError(400, f"Invalid '{name}': expected an integer.")
    return int(text)


def _page(call: Call, most: int, results: Callable[[int], Results]) -> Response:
    """The buckets of some days, `limit` of them at most."""
    if "start_time" not in call.request.query:
        raise ApiError(400, "Missing required parameter: 'start_time'.")
    _only(call, "bucket_width", "1d")
    first = _whole(call, "start_time", 0) // DAY
    end = -(-_whole(call, "end_time", call.created) // DAY)
    limit = _whole(call, "limit", 7)
    if not 1 <= limit <= most:
        raise ApiError(400, f"Invalid 'limit': expected 1 to {most}.")
    cursor = call.request.query.get("page", "")
    if cursor:
        first = _day_of(cursor)
    last = min(end, first + limit)
    return json_response(
        {
            "object": "page",
            "data": [
                {
                    "object": "bucket",
                    "start_time": day * DAY,
                    "end_time": (day + 1) * DAY,
                    "results": results(day),
                }
                for day in range(first, last)
            ],
            "has_more": last < end,
            "next_page": f"page_{last}" if last < end else None,
        }
    )


def _day_of(cursor: str) -> int:
    day = cursor.removeprefix("page_")
    if not day.isdecimal() or len(day) > 6:
        raise ApiError(400, "Invalid 'page'.")
    return int(day)


def _sums(call: Call, day: int) -> Iterator[tuple[str, str, Totals, Usage]]:
    """The endpoint, the model and the sums of each entry of a day."""
    for (booked, endpoint, model), sums in sorted(call.ledger.by_day.items()):
        if booked == day and model:
            yield endpoint, model, sums, Usage(*sums.sent)


def _usage(call: Call, kind: str, day: int) -> Results:
    by_model: dict[str | None, dict[str, Any]] = {}
    for endpoint, model, sums, sent in _sums(call, day):
        if endpoint not in _KINDS[kind]:
            continue
        name = model if _asked(call, "group_by") else None
        result = by_model.setdefault(name, {"num_model_requests": 0, **_counted(kind, Usage())})
        result["num_model_requests"] += sums.requests
        for field, number in _counted(kind, sent).items():
            result[field] += number
    others = ("project_id", "user_id", "api_key_id")
    return [
        {
            "object": f"organization.usage.{kind}.result",
            **result,
            "model": name,
            **dict.fromkeys(others),
        }
        for name, result in by_model.items()
    ]


def _counted(kind: str, sent: Usage) -> dict[str, int]:
    """What a usage API counts beside requests."""
    if kind == "completions":
        return {
            "input_tokens": sent.prompt,
            "output_tokens": sent.completion,
            "input_cached_tokens": sent.cached,
        }
    if kind in ("embeddings", "moderations"):
        return {"input_tokens": sent.prompt}
    return {"seconds": sent.seconds} if kind == "audio_transcriptions" else {}


def _costs(call: Call, day: int) -> Results:
    items: dict[str | None, float] = {}
    for _, model, _, sent in _sums(call, day):
        parts = {
            "input": sent.prompt - sent.cached,
            "cached input": sent.cached,
            "output": sent.completion,
        }
        for part, tokens in parts.items():
            name = f"{model}, {part}" if _asked(call, "group_by") else None
            if tokens:
                items[name] = items.get(name, 0.0) + tokens * PRICES[part] / 1e6
    return [
        {
            "object": "organization.costs.result",
            "amount": {"value": round(value, 9), "currency": "usd"},
            "line_item": name,
            "project_id": None,
        }
        for name, value in items.items()
    ]
