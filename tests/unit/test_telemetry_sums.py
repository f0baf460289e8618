"""Sums of the cost counters: the same in any order, and never less after a restart."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from wrapper.telemetry import usd

costs = st.lists(st.integers(0, 10**14), max_size=50)  # pico-USD: up to a hundred dollars a call


@given(costs, st.randoms())
def test_costs_add_up_to_the_same_sum_in_any_order(picos: list[int], random: Random) -> None:
    shuffled = list(picos)
    random.shuffle(shuffled)
    assert usd(sum(map(float, picos))) == usd(sum(map(float, shuffled)))


@given(st.integers(0, 10**16), st.integers(0, 10**14))
def test_a_sum_that_grows_is_never_reported_as_less(total: int, more: int) -> None:
    assert usd(total + more) >= usd(total)


@given(st.integers(0, 9 * 10**15))
def test_a_reported_sum_is_right_to_a_hundred_pico_dollars(pico: int) -> None:
    assert abs(usd(pico) * 10**12 - pico) <= 51
