"""Edits of a JSON body that leave every other byte alone, against the standard library."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import effort
from wrapper.formats import jsonbytes
from wrapper.formats.jsonbytes import (
    _skip_brackets,
    has_duplicate,
    insert_member,
    members,
    replace_value,
    skip_value,
)
from wrapper.metering import set_include_usage

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["model", "stream", "}", "{", '"', "\\", '{"model":', "\u2028", "é", "model\\", ","]
)
NUMBERS = st.sampled_from(["0", "-0.0", "1e5", "12345678901234567890123", "1.50", "-1E-7"])


def spaced(draw: st.DrawFn) -> str:
    return draw(st.sampled_from(["", "", " ", "\n", "\t ", "\r\n  "]))


def quote(draw: st.DrawFn, text: str) -> str:
    """A JSON string, some characters escaped without need."""
    if draw(st.booleans()):
        return json.dumps(text, ensure_ascii=draw(st.booleans()))
    units = text.encode("utf-16-be")
    return (
        '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2)) + '"'
    )


@st.composite
def values(draw: st.DrawFn, depth: int = 3) -> str:
    kind = draw(st.integers(0, 5 if depth else 3))
    if kind == 0:
        return draw(st.sampled_from(["true", "false", "null"]))
    if kind == 1:
        return draw(NUMBERS)
    if kind <= 3:
        return quote(draw, draw(TEXT))
    items = draw(st.lists(values(depth=depth - 1), max_size=3))
    if kind == 4:
        return "[" + ",".join(spaced(draw) + item + spaced(draw) for item in items) + "]"
    return "{" + ",".join(f"{quote(draw, draw(TEXT))}:{item}" for item in items) + "}"


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    pairs = draw(st.lists(st.tuples(TEXT, values()), max_size=6))
    parts = [
        f"{spaced(draw)}{quote(draw, key)}{spaced(draw)}:{spaced(draw)}{value}{spaced(draw)}"
        for key, value in pairs
    ]
    inner = ",".join(parts) if parts else spaced(draw)
    return f"{spaced(draw)}{{{inner}}}{spaced(draw)}".encode()


def pairs_of(body: bytes) -> list[tuple[str, Any]]:
    class Pairs(list[tuple[str, Any]]):
        pass

    top: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=Pairs)
    return top


@given(objects())
def test_members_are_those_of_the_standard_library(body: bytes) -> None:
    found = members(body)
    assert [member.key for member in found] == [key for key, _ in pairs_of(body)]
    for member, (_, value) in zip(found, pairs_of(body), strict=True):
        text = body[member.value_start : member.value_end]
        assert text == text.strip()
        assert pairs_of(b'{"v":' + text + b"}") == [("v", value)]


@given(objects())
def test_the_fast_way_and_the_plain_scan_agree(body: bytes) -> None:
    for member in members(body):
        if body[member.value_start] in b"[{":
            assert member.value_end == _skip_brackets(body, member.value_start)


@given(objects(), TEXT, values())
def test_replacing_a_value_changes_that_value_and_no_other_byte(
    body: bytes, key: str, new: str
) -> None:
    changed = replace_value(body, key, new.encode())
    assert [(name, None if name == key else value) for name, value in pairs_of(changed)] == [
        (name, None if name == key else value) for name, value in pairs_of(body)
    ]
    outside, at = b"", 0
    for member in members(body):
        if member.key == key:
            outside += body[at : member.value_start] + new.encode()
            at = member.value_end
    assert changed == outside + body[at:]


@given(objects(), values())
def test_an_inserted_member_stands_first_and_the_rest_is_as_it_was(body: bytes, new: str) -> None:
    changed = insert_member(body, "stream_options", new.encode())
    assert pairs_of(changed)[0][0] == "stream_options"
    assert pairs_of(changed)[1:] == pairs_of(body)
    brace = body.index(b"{") + 1
    assert changed.startswith(body[:brace])
    assert changed.endswith(body[brace:])


KEYS = frozenset({"model", "stream"})
SPELLINGS = st.sampled_from(["model", "MODEL", "Model", "stream", "\u017ftream", "streaM", "x"])


@given(st.lists(SPELLINGS, max_size=3), st.data())
def test_duplicates_are_found_however_they_are_spelled(
    keys: list[str], data: st.DataObject
) -> None:
    pairs = [f"{quote(data.draw, key)}: {data.draw(values())}" for key in keys]
    folded = [key.casefold() for key in keys]
    odd = [key for key in keys if key != "x" and key not in KEYS]
    twice = [key for key in KEYS if folded.count(key) > 1]
    assert has_duplicate(f"{{{','.join(pairs)}}}".encode(), KEYS) == bool(odd or twice)


@pytest.mark.parametrize("window", [1, 5, 8, 20])
@pytest.mark.parametrize(
    ("members", "found"),
    [
        ('"model":1', False),
        ('"model":1,"stream":2', False),
        ('"model":1,"model":2', True),
        ('"model":1,"x":{"model":2}', False),
        ('"MODEL":1', True),
        ('"model":1,"Stream":2', True),
        ('"modell":1,"streams":2', False),
        (r'"model":1,"mod\u0065l":2', True),
        ('"\u017ftream":1', True),
    ],
)
def test_a_large_body_is_looked_through_in_windows_with_pauses(
    monkeypatch: pytest.MonkeyPatch, window: int, members: str, found: bool
) -> None:
    monkeypatch.setattr(jsonbytes, "WINDOW", window)
    keys = frozenset({"model", "stream"})
    pauses: list[int] = []
    for before in range(12):
        body = f'{{"{"x" * before}":0,{members},"y":"{"z" * 20}"}}'.encode()
        pauses.clear()
        assert has_duplicate(body, keys, lambda: pauses.append(1)) is found
        assert len(pauses) == -(-len(body) // window) or not members.isascii() or "\\" in members


def test_an_escaped_spelling_is_a_duplicate() -> None:
    body = rb'{"model":"a","mod\u0065l":"b"}'
    assert has_duplicate(body, frozenset({"model"}))
    assert replace_value(body, "model", b'"c"') == rb'{"model":"c","mod\u0065l":"c"}'


def test_the_same_word_in_a_text_or_deeper_is_no_duplicate() -> None:
    body = rb'{"model":"a","x":{"model":"b"},"y":"\"model\"","z":["model"]}'
    assert not has_duplicate(body, frozenset({"model"}))


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"1", b"null", b'{"a":1', b'{"a"}', b"{,}"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a JSON"):
        members(body)


def test_the_decoders_limit_of_depth_is_not_ours() -> None:
    deep = b"[" * 5000 + b"]" * 5000
    assert [member.key for member in members(b'{"a":' + deep + b',"b":1}')] == ["a", "b"]


def test_a_value_that_does_not_end_is_refused() -> None:
    for text in (b'"abc', b'"abc\\"', b"[1,2", b'{"a":"}"', b""):
        with pytest.raises(ValueError, match="not a JSON value"):
            skip_value(text, 0)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m"}', b'{"stream_options":{"include_usage":true},"model":"m"}'),
        (b" { } ", b' {"stream_options":{"include_usage":true} } '),
        (b'{"stream_options":null}', b'{"stream_options":{"include_usage":true}}'),
        (b'{"stream_options": {} }', b'{"stream_options": {"include_usage":true} }'),
        (
            b'{"stream_options":{"include_usage": false, "x":1}}',
            b'{"stream_options":{"include_usage": true, "x":1}}',
        ),
        (b'{"stream_options":{"x":1}}', b'{"stream_options":{"include_usage":true,"x":1}}'),
        (b'{"stream_options":"yes"}', b'{"stream_options":"yes"}'),
        (
            rb'{"stream_option\u0073":{"include_usage":null}}',
            rb'{"stream_option\u0073":{"include_usage":true}}',
        ),
        (
            b'{"x":"stream_options"}',
            b'{"stream_options":{"include_usage":true},"x":"stream_options"}',
        ),
    ],
)
def test_usage_is_asked_for_and_nothing_else_is_changed(body: bytes, expected: bytes) -> None:
    assert set_include_usage(body) == expected


def test_a_body_that_asks_already_is_given_back_itself() -> None:
    body = b'{"stream_options":{"a":1,"include_usage":true}}'
    assert set_include_usage(body) is body


@given(objects())
def test_after_asking_every_reader_finds_the_flag(body: bytes) -> None:
    asked = json.loads(set_include_usage(body))
    before = json.loads(body)
    assert asked.pop("stream_options") == {"include_usage": True}
    before.pop("stream_options", None)
    assert asked == before


def test_a_megabyte_is_edited_without_a_step_for_each_of_its_parts() -> None:
    message = {"role": "user", "content": 'some "quoted" text {with braces} é ' * 8}
    body = json.dumps({"messages": [message] * 3000, "model": "m"}).encode()
    assert len(body) > 900_000

    def edit() -> None:
        replace_value(body, "model", b'"n"')
        set_include_usage(body)
        has_duplicate(body, frozenset({"model", "stream"}))

    assert effort.calls(edit) < 200
