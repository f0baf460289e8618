"""The upper estimate of a request, and budget periods."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrapper.admission import estimate
from wrapper.metering import Usage
from wrapper.store import Demand, Limits, Subject
from wrapper.store.spans import PERIODS, period
from wrapper.store.window import EMPTY, SLOTS, Window, correct, count


def price(prompt: int, completion: int) -> int | None:
    return prompt * 2 + completion * 3


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ({}, 500),
        (None, 500),
        ({"max_tokens": 20}, 20),
        ({"max_completion_tokens": 20}, 20),
        ({"max_output_tokens": 20}, 20),
        ({"max_tokens": 20, "max_completion_tokens": 30}, 30),
        ({"max_tokens": 20, "n": 3}, 60),
        ({"n": 3}, 1500),
        ({"max_tokens": 20, "n": 2, "best_of": 5}, 100),
        ({"max_tokens": True, "n": "3"}, 500),
        ({"max_tokens": -1, "n": 0}, 500),
        ({"max_tokens": 1.5, "n": None}, 500),
        ({"max_tokens": [], "best_of": {}}, 500),
    ],
)
def test_output_is_what_is_asked_for_or_the_default(body: Any, output: int) -> None:
    assert estimate(1000, body, price, 500) == Demand(1000 + output, 2000 + 3 * output)


def test_a_price_that_is_not_known_costs_nothing() -> None:
    assert estimate(10, {}, lambda _prompt, _completion: None, 5) == Demand(15, 0)


def test_absurd_numbers_are_bounded() -> None:
    demand = estimate(10**15, {"max_tokens": 10**100, "n": 10**9}, price, 5)
    assert demand == Demand(10**12, 5 * 10**12)
    assert estimate(1, {}, lambda _p, _c: 10**30, 5).cost == 2**62


@given(
    words=st.lists(st.sampled_from(["hello", "é", "日本", '"', "\\", " "]), max_size=50),
    limit=st.integers(1, 1000),
    choices=st.integers(1, 5),
)
def test_the_estimate_is_never_below_the_truth(words: list[str], limit: int, choices: int) -> None:
    """As if each byte of the text were a token, and each completion came to its limit."""
    text = "".join(words)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": limit, "n": choices}
    size = len(json.dumps(body, ensure_ascii=False).encode())
    truth = Usage(len(text.encode()), limit * choices, len(text.encode()) + limit * choices)
    demand = estimate(size, body, price, 5)
    assert demand.tokens >= truth.total
    assert demand.cost >= (price(truth.prompt, truth.completion) or 0)


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
    now, data, plain = 1000, EMPTY, dict[int, list[int]]()
    newest = now
    for step, tokens, change in steps:
        now += step
        data = count(newest, data, now, tokens)
        newest = now
        plain = {at: bucket for at, bucket in plain.items() if now - SLOTS < at <= now}
        bucket = plain.setdefault(now, [0, 0])
        bucket[0] += 1
        bucket[1] += tokens
        bucket[1] = max(0, bucket[1] + change)
        data = correct(newest, data, now, change)
        data = correct(newest, data, now - SLOTS, 10**6)
        data = correct(newest, data, now + 1, 10**6)
        window = Window(newest, data)
        assert window.requests == sum(bucket[0] for bucket in plain.values())
        assert window.tokens == sum(bucket[1] for bucket in plain.values())
        assert window.pack() == data
        assert window.empties()[0] == now + SLOTS
        assert window.frees_requests(1) == min(plain) + SLOTS
