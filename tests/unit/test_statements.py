"""The lines of the statements of a TOML text."""

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
def test_every_statement_begins_at_its_line(text: str) -> None:
    whole = tomllib.loads(text)
    lines = text.splitlines(keepends=True)
    end = len(lines)
    for found in reversed(list(statements(text))):
        alone: object = tomllib.loads("".join(lines[found.line - 1 : end]))
        value: object = whole
        for name in found.path:
            value = value[0] if isinstance(value, list) else value
            assert isinstance(value, dict)
            value = value[name]
            if isinstance(alone, dict):  # it lacks the names of the table around it
                alone = alone.get(name, alone)
        assert alone in (value, {}, [{}])
        end = found.line - 1
    assert tomllib.loads("".join(lines[:end])) == {}


@pytest.mark.parametrize("text", ["", "\n", "# x", "a = 1", "a = 1\n# b\n[c]"])
def test_short_texts_have_their_statements(text: str) -> None:
    assert [found.path for found in statements(text)] == [(key,) for key in tomllib.loads(text)]
