"""Where the statements of a TOML text are."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrapper.config.statements import statements

VALUES = st.sampled_from(
    [
        "1",
        "2027-01-01T00:00:00Z",
        '"a # b = [c]"',
        r'"\\"',
        r'"\""',
        "'\\'",
        "''",
        '"""\n[x]\n""\\" # """""',
        "'''\n= ''[\n'''''",
        '""""""',
        "[ # ]\n  1, # x = 1\n  [2],\n]",
        '{ a = 1, b.c = ["}"] }',
    ]
)
KEYS = st.sampled_from(["a", '"b c"', "'d'", 'e . "f=g"', '"h[]#"', '"i\\u0041"', "- . _"])
TRIVIA = st.sampled_from(["", "\n", "# [x]\n", "  # '\n", "\r\n"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Tables with statements in many spellings."""
    pieces = []
    for table in range(draw(st.integers(0, 3))):
        form = draw(st.sampled_from(["[t{}]", "[[t{}]]", ' [ "t{}" . x ] # [y]', "[ t{}.'x]' ]"]))
        pieces += [form.format(table), draw(st.sampled_from(["\n", "\r\n"]))]
        for key in draw(st.lists(KEYS, unique=True, max_size=4)):
            pieces += [draw(TRIVIA), f"{key} = {draw(VALUES)}"]
            pieces.append(draw(st.sampled_from(["\n", " # c\n", "\t\r\n"])))
    text = "".join(pieces)
    return text.rstrip("\r\n") if draw(st.booleans()) else text


@settings(max_examples=200, deadline=None)
@given(texts())
def test_every_value_is_found_where_it_stands(text: str) -> None:
    whole = tomllib.loads(text)
    for found in statements(text):
        value: object = whole
        for name in found.path:
            value = value[0] if isinstance(value, list) else value
            assert isinstance(value, dict)
            value = value[name]
        if not found.is_table:
            assert tomllib.loads(f"x = {text[found.value : found.stop]}")["x"] == value
        assert text[: found.start].count("\n") == found.line - 1
        assert tomllib.loads(text[found.start : found.end])


@settings(max_examples=200, deadline=None)
@given(texts())
def test_between_the_statements_there_is_nothing_but_comments(text: str) -> None:
    begin = 0
    for found in statements(text):
        assert tomllib.loads(text[begin : found.start]) == {}
        begin = found.end
    assert tomllib.loads(text[begin:]) == {}


@pytest.mark.parametrize("text", ["", "\n", "# x", "a = 1", "a = 1\n# b\n[c]"])
def test_short_texts_have_their_statements(text: str) -> None:
    assert [found.path for found in statements(text)] == [(key,) for key in tomllib.loads(text)]
