"""Times as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrapper.store import spans

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86_400), ("7d", 604_800), ("4w", 2_419_200), ("1h", 3600)],
)
def test_a_span_goes_back_from_now(text: str, seconds: int) -> None:
    assert spans.since(text, NOW) == NOW - seconds


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-11-21", 1_795_219_200),
        ("2026-11-21T02:00+02:00", 1_795_219_200),
        ("999999w", 0),
        ("1900-01-01", 0),
    ],
)
def test_a_day_or_a_moment_is_itself_and_nothing_is_before_1970(text: str, at: int) -> None:
    assert spans.since(text, NOW) == at


@given(st.text() | st.from_regex(r"[0-9]{1,9}[hdwm]?") | st.datetimes().map(str))
def test_any_text_is_a_time_that_can_be_printed_or_a_value_error(text: str) -> None:
    try:
        found = spans.since(text, NOW)
    except ValueError:
        return
    assert spans.iso(found).endswith("Z")


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00+12:00", "0d", ""])
def test_what_no_clock_shows_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        spans.since(text, NOW)
