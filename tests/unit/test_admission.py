"""The upper estimate of a request, and budget periods."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrapper.admission import output_limit
from wrapper.admission.estimate import output_of
from wrapper.metering.bounds import OUTPUT_FIELDS
from wrapper.store import Demand, Limits, Subject, accounts, window
from wrapper.store.spans import PERIODS, period
from wrapper.store.window import SLOTS, Changes


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ({}, 500),
        ({"max_tokens": 20}, 20),
        ({"max_completion_tokens": 20}, 20),
        ({"max_output_tokens": 20}, 20),
        ({"max_tokens": 20, "max_completion_tokens": 30}, 30),
        ({"max_tokens": 20, "n": 3}, 60),
        ({"n": 3}, 1500),
        ({"max_tokens": 20, "n": 2, "best_of": 5}, 100),
        ({"max_tokens": True, "n": "x"}, 500),
        ({"max_tokens": 2e6, "n": "3"}, 6_000_000),
        ({"max_tokens": "20.0", "n": 2.0}, 40),
        ({"max_tokens": "inf", "n": "-3"}, 500),
        ({"max_tokens": -1, "n": 0}, 500),
        ({"max_tokens": 1.5, "n": None}, 500),
        ({"max_tokens": [], "best_of": {}}, 500),
        ({"max_tokens": 10**1000, "n": 10**9}, 10**12),
    ],
)
def test_output_is_what_is_asked_for_or_the_default(body: Any, output: int) -> None:
    fields = [json.dumps(body[name]).encode() if name in body else b"" for name in OUTPUT_FIELDS]
    assert output_limit(fields).total(500) == output


def test_the_requests_of_a_batch_are_read_likewise() -> None:
    assert output_of({"max_tokens": 2e6, "n": "3"}) == (2_000_000, 3)
    assert output_of({"max_tokens": 1.5, "n": None}) == (None, 1)


def test_a_service_tier_is_read() -> None:
    assert output_limit((b"", b"7", b"", b"", b"", b'"priority"')) == (7, 1, "priority")
    assert output_limit(()) == (None, 1, "")


@pytest.mark.parametrize("name", PERIODS)
@given(at=st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1)))  # noqa: DTZ001 made aware below
def test_periods_are_those_of_the_calendar(name: str, at: datetime) -> None:
    now = at.replace(tzinfo=UTC)
    start, end = period(name, now.timestamp())
    if name == "total":
        assert (start, end) == (0, None)
        return
    assert end is not None
    first = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if name == "week":
        first -= timedelta(days=now.weekday())
    if name == "month":
        first = first.replace(day=1)
    assert start == first.timestamp()
    assert start <= now.timestamp() < end
    assert period(name, end - 1) == (start, end)
    assert period(name, end)[0] == end


def test_a_period_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="budget_period: 'year' is none of"):
        Limits(budget=5, budget_period="year")


def test_limits_are_false_where_there_is_none() -> None:
    assert not Limits(enforce=False)
    for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent", "budget"):
        assert Limits(**{name: 0})


def test_a_groups_fingerprint_changes_with_its_members_alone() -> None:
    one = Subject("group:g", Limits(), ("a", "b"))
    assert one.fingerprint == Subject("group:g", Limits(budget=5), ("b", "a")).fingerprint
    assert one.fingerprint != Subject("group:g", Limits(), ("a",)).fingerprint
    assert one.sources == ("key:a", "key:b")
    assert Subject("key:a", Limits()).sources == ("key:a",)
    assert Subject("provider:p", Limits()).sources == ("provider:p",)


@given(
    st.lists(
        st.tuples(st.integers(-70, 70), st.integers(0, 100), st.integers(-150, 150)), max_size=40
    )
)
def test_a_window_is_its_last_sixty_one_seconds(steps: list[tuple[int, int, int]]) -> None:
    now, plain = 1000, dict[int, list[int]]()
    words = memoryview(bytearray(8 * (accounts.WORDS + 2))).cast("q")
    ring, web = 1 + accounts._WINDOW, Subject("key:web", Limits(max_concurrent=10**6))

    def make(changes: Changes) -> None:
        for index, value in changes.items():
            words[index] = value

    for step, tokens, change in steps:
        now += step
        moment = accounts.Moment(now + 0.5, 0.0)
        make(accounts.advance(words, 1, moment))
        held: Changes = {}
        standing = accounts.hold(words, 1, web, Demand(tokens), moment, 0, held)
        make(held)
        assert standing == accounts.standing(words, 1, web, moment)
        for second, more in ((now, change), (now - SLOTS, 10**6), (now + 1, 10**6)):
            corrected: Changes = {}
            window.correct(words, ring, second, more, corrected)
            make(corrected)
        plain = {at: bucket for at, bucket in plain.items() if now - SLOTS < at <= now}
        bucket = plain.setdefault(now, [0, 0])
        bucket[0] += 1
        bucket[1] += tokens
        bucket[1] = max(0, bucket[1] + change)
        used = [at for at, bucket in plain.items() if bucket[1]]
        assert words[ring + window.SECOND] == now
        assert words[ring + window.REQUESTS] == sum(bucket[0] for bucket in plain.values())
        assert words[ring + window.TOKENS] == sum(bucket[1] for bucket in plain.values())
        assert window.requests_empty(words, ring) == now + SLOTS
        assert window.tokens_empty(words, ring) == (max(used) + SLOTS if used else now)
        assert window.frees_requests(words, ring, 1) == min(plain) + SLOTS
        assert window.frees_tokens(words, ring, 1) == (min(used) if used else now) + SLOTS
        assert (words[0], words[accounts.WORDS + 1]) == (0, 0)
