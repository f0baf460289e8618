"""What the counters add up to: the same in any order, and never less after a restart."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from wrapper.telemetry import USD_GRAINS, usd

costs = st.lists(st.integers(0, 10**14), max_size=50)  # pico-USD: up to a hundred dollars a call


@given(costs, st.randoms())
def test_costs_add_up_to_the_same_sum_in_any_order(picos: list[int], random: Random) -> None:
    added = [usd(pico) for pico in picos]
    shuffled = list(added)
    random.shuffle(shuffled)
    assert sum(added) == sum(shuffled)


@given(costs)
def test_the_sum_on_record_is_never_below_what_was_counted(picos: list[int]) -> None:
    assert usd(sum(picos)) >= sum(usd(pico) for pico in picos)


@given(st.integers(0, 10**14))
def test_a_cost_is_off_by_less_than_a_grain(pico: int) -> None:
    assert 0 <= Fraction(pico, 10**12) - Fraction(usd(pico)) < Fraction(1, USD_GRAINS)
