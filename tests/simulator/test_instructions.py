"""The syntax of `x-sim` instructions, without a socket."""

import pytest

from wrapper.simulator.instructions import (
    FRAMINGS,
    HELP,
    BadInstruction,
    Instructions,
    parse,
    split_model,
)


def test_instructions_are_read_with_and_without_values() -> None:
    found = parse("status=429; retry-after=7; stamp; gap=0.02; cached; set=X-A: b=c")
    assert found == Instructions(
        status=429, retry_after="7", stamp=True, gap=0.02, cached=-1, set=(("X-A", "b=c"),)
    )


def test_a_later_source_overrides_an_earlier_one() -> None:
    found = parse("gap=1; events=3", "gap=2", "", "gap=3")
    assert (found.gap, found.events) == (3, 3)


@pytest.mark.parametrize(
    "misspelt",
    [
        *("stutus=429", "status", "status=abc", "gap=-1", "gap=nan", "framing=odd", "stamp=1"),
        *("set=x", "tool=calculator:1", "tool=web_search", "tier"),
    ],
)
def test_an_unknown_or_malformed_instruction_is_refused(misspelt: str) -> None:
    with pytest.raises(BadInstruction):
        parse(misspelt)


def test_a_model_name_carries_instructions_after_a_question_mark() -> None:
    name, text = split_model("sim-model?status=307&redirect=http%3A%2F%2Fx%2Fy;stamp")
    assert name == "sim-model"
    assert parse(text) == Instructions(status=307, redirect="http://x/y", stamp=True)


def test_a_plain_model_name_carries_none() -> None:
    assert split_model("meta/llama-3:8b") == ("meta/llama-3:8b", "")


@pytest.mark.parametrize("name", sorted(Instructions.__slots__))
def test_every_instruction_is_explained(name: str) -> None:
    assert name.replace("_", "-") in HELP


@pytest.mark.parametrize("name", sorted(FRAMINGS))
def test_every_framing_is_explained(name: str) -> None:
    assert name in HELP.split("framing=")[1]
