"""The grammar of orders, without a socket."""

import pytest

from wrapper.simulator.faults import FRAMINGS, BadOrder, orders, split_model
from wrapper.simulator.grammar import GRAMMAR
from wrapper.simulator.orders import Orders


def test_orders_are_read_with_and_without_values() -> None:
    found = orders("status=429; retry-after=7; stamp; gap=0.02; cached; set=X-A: b=c")
    assert found == Orders(
        status=429, retry_after="7", stamp=True, gap=0.02, cached=-1, set=(("X-A", "b=c"),)
    )


def test_a_later_source_wins_over_an_earlier_one() -> None:
    found = orders("gap=1; events=3", "gap=2", "", "gap=3")
    assert (found.gap, found.events) == (3, 3)


@pytest.mark.parametrize(
    "misspelt",
    ["stutus=429", "status", "status=abc", "gap=-1", "gap=nan", "framing=odd", "stamp=1", "set=x"],
)
def test_an_order_that_does_not_fit_is_refused(misspelt: str) -> None:
    with pytest.raises(BadOrder):
        orders(misspelt)


def test_a_models_name_carries_orders_behind_a_question_mark() -> None:
    name, text = split_model("sim-model?status=307&redirect=http%3A%2F%2Fx%2Fy;stamp")
    assert name == "sim-model"
    assert orders(text) == Orders(status=307, redirect="http://x/y", stamp=True)


def test_a_plain_model_carries_none() -> None:
    assert split_model("meta/llama-3:8b") == ("meta/llama-3:8b", "")


@pytest.mark.parametrize("name", sorted(Orders.__slots__))
def test_every_order_is_explained(name: str) -> None:
    assert name.replace("_", "-") in GRAMMAR


@pytest.mark.parametrize("name", sorted(FRAMINGS))
def test_every_framing_is_explained(name: str) -> None:
    assert name in GRAMMAR.split("framing=")[1]
