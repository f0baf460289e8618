"""Times as people write them: how far back, or since which day; and how they are told."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

_SPAN = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_UNITS = {"h": 3600, "d": 86_400, "w": 604_800}


def since(text: str, now: float) -> float:
    """The Unix time that `text` means: a span back from `now`, such as 24h, 7d or 4w, or a day or
    a moment in ISO 8601, UTC where it names no zone.

    ValueError for anything else, and for what no clock shows.
    """
    if span := _SPAN.fullmatch(text):
        return max(0.0, now - int(span[1]) * _UNITS[span[2]])
    at = datetime.fromisoformat(text)
    try:
        found = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        datetime.fromtimestamp(found, UTC)
    except OverflowError as error:
        raise ValueError("out of range") from error
    return max(0.0, found)


def months_start(now: float) -> float:
    """When the month began, UTC."""
    today = datetime.fromtimestamp(now, UTC)
    return today.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


def iso(at: float) -> str:
    """RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


PERIODS = ("day", "week", "month", "total")


def period(name: str, now: float) -> tuple[int, int | None]:
    """The calendar period of a budget that `now` is in, UTC: when it began, and when the next
    one begins (None: "total" has no next). A week begins on Monday.
    """
    return _period(name, int(now // 86_400))


@lru_cache(64)
def _period(name: str, day: int) -> tuple[int, int | None]:
    if name == "total":
        return 0, None
    if name == "week":
        day -= (day + 3) % 7  # 1970-01-01 was a Thursday
        return day * 86_400, (day + 7) * 86_400
    if name == "day":
        return day * 86_400, (day + 1) * 86_400
    start = int(months_start(day * 86_400))
    return start, int(months_start(start + 32 * 86_400))
