"""What `FieldFinder` finds is what other multipart readers find, and nothing when they differ."""

from __future__ import annotations

import io
import re
import tracemalloc
from email.parser import BytesParser
from email.policy import HTTP
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.formparser import parse_form_data

from harness import effort
from wrapper.formats.multipart import MAX_HEADERS, MAX_PARTS, MAX_VALUE, FieldFinder

BOUNDARY = "----WebKitFormBoundary7MA4YWxk"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
MODEL = 'Content-Disposition: form-data; name="model"'
AUDIO = 'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg'


def form(*parts: tuple[str, bytes], boundary: str = BOUNDARY) -> bytes:
    """A form of (headers, content) parts, as a browser writes it."""
    pieces = [
        f"--{boundary}\r\n{headers}\r\n\r\n".encode() + content + b"\r\n"
        for headers, content in parts
    ]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def find(
    body: bytes,
    *cuts: int,
    content_type: str = CONTENT_TYPE,
    name: str = "model",
    scan_all: bool = True,
) -> FieldFinder:
    """Feeds the body, cut at these places, and ends."""
    finder = FieldFinder(content_type, name, scan_all=scan_all)
    edges = [0, *sorted(cuts), len(body)]
    for start, end in pairwise(edges):
        finder.feed(body[start:end])
    finder.end()
    return finder


def test_the_field_is_found_wherever_it_stands() -> None:
    for body in (
        form((MODEL, b"whisper-1"), (AUDIO, b"\x00\xff" * 999)),
        form((AUDIO, b"\r\n--\r\n" * 99), (MODEL, b"whisper-1")),
        form(('Content-Disposition: form-data; name="n"', b"1"), (MODEL, b"whisper-1")),
    ):
        finder = find(body)
        assert (finder.value, finder.problem) == ("whisper-1", None)
        assert [body[start:end] for start, end in finder.spans] == [b"whisper-1"]


def test_every_cut_of_the_stream_gives_the_same_answer() -> None:
    body = b"preamble\r\n" + form((AUDIO, b"\r\n--\r\n-"), (MODEL, b"whisper-1")) + b"epilogue"
    for cut in range(len(body)):
        finder = find(body, cut)
        assert (finder.value, finder.problem) == ("whisper-1", None)
        assert [body[start:end] for start, end in finder.spans] == [b"whisper-1"]
    by_byte = find(body, *range(len(body)))
    assert (by_byte.value, by_byte.problem) == ("whisper-1", None)


def test_reading_stops_as_soon_as_the_value_is_known() -> None:
    finder = FieldFinder(CONTENT_TYPE, "model")
    body = form((MODEL, b"whisper-1"), (AUDIO, b"..."))
    finder.feed(body[: body.index(b"\r\n--", 5) + 4 + len(BOUNDARY)])
    assert finder.done
    assert finder.value == "whisper-1"


def test_a_form_without_the_field_has_no_value_and_no_problem() -> None:
    finder = find(form((AUDIO, b'name="model"')))
    assert (finder.value, finder.problem, finder.done) == (None, None, True)


def test_an_empty_form_and_an_empty_field_are_read() -> None:
    assert find(f"--{BOUNDARY}--\r\n".encode()).problem is None
    assert find(form((MODEL, b""))).value == ""
    shared_line_end = f"--{BOUNDARY}\r\n{MODEL}\r\n\r\n--{BOUNDARY}--".encode()
    assert find(shared_line_end).value == ""


def test_a_second_field_that_says_the_same_is_a_duplicate_only() -> None:
    body = form((MODEL, b"a"), (MODEL, b"a"))
    finder = find(body)
    assert (finder.value, finder.problem) == ("a", None)
    assert [body[start:end] for start, end in finder.spans] == [b"a", b"a"]


def test_a_second_field_that_says_something_else_is_a_problem() -> None:
    finder = find(form((MODEL, b"a"), (AUDIO, b"."), (MODEL, b"b")))
    assert finder.value is None
    assert finder.problem == "the form field 'model' is given twice"


@pytest.mark.parametrize(
    "content_type",
    [
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"Multipart/Form-Data;boundary={BOUNDARY};charset=utf-8",
        f"multipart/form-data ; charset=utf-8 ; Boundary={BOUNDARY} ;",
    ],
)
def test_a_boundary_may_be_quoted_and_stand_anywhere(content_type: str) -> None:
    assert find(form((MODEL, b"m")), content_type=content_type).value == "m"


@pytest.mark.parametrize(
    "boundary", ["x", "a b", "----=_Part_1_2.3", "a:b/c?d", "'()+_,-./:=?", "b" * 70]
)
def test_every_boundary_that_rfc_2046_allows_is_read(boundary: str) -> None:
    body = form((MODEL, b"m"), boundary=boundary)
    assert find(body, content_type=f'multipart/form-data; boundary="{boundary}"').value == "m"


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        f"multipart/mixed; boundary={BOUNDARY}",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary="ends in a space "',
        'multipart/form-data; boundary="not closed',
        f"multipart/form-data; boundary={'b' * 71}",
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=a, multipart/form-data; boundary=b",
        "multipart/form-data; boundary=ümlaut",
    ],
)
def test_a_content_type_without_one_boundary_is_a_problem_at_once(content_type: str) -> None:
    finder = FieldFinder(content_type, "model")
    assert finder.done
    assert finder.problem
    assert re.search(r"Content-Type|boundary", finder.problem)


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=model",
        'form-data;name="model"',
        'FORM-DATA; Name="model";',
        'form-data; foo="a\\"b; name=x"; name="model"',
    ],
)
def test_every_usual_way_to_write_the_name_is_read(disposition: str) -> None:
    assert find(form((f"content-disposition: {disposition}", b"m"))).value == "m"


@pytest.mark.parametrize(
    "charset",
    [
        *("ISO-8859-1", '"iso-8859-15"', "iso8859-2", "latin1", "windows-1252", "cp1251"),
        *("US-ASCII", "utf-8", "UTF8", "koi8-r", "euc-jp", "gb18030", "Big5"),
        "us-ascii; charset=iso-8859-1",
    ],
)
@pytest.mark.parametrize("encoding", ["7bit", "8bit", "BINARY"])
def test_an_ascii_value_is_read_in_every_charset_that_agrees_on_it(
    charset: str, encoding: str
) -> None:
    """Apache HttpClient sends text fields as ISO-8859-1 in 8bit, unless it is told otherwise."""
    headers = f"{MODEL}\r\nContent-Type: text/plain; charset={charset}"
    headers += f"\r\nContent-Transfer-Encoding: {encoding}"
    assert find(form((headers, b"whisper-1"))).value == "whisper-1"
    beyond = find(form((headers, "wh\xefsper".encode())))
    assert (beyond.value is None) == (charset.lower() not in ("utf-8", "utf8", "us-ascii"))


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="file"; filename="name=\\"model\\""',
        'form-data; name="file"; filename="; name=model; "',
        'form-data; name="file"; filename="C:\\dir\\a.txt"',
        'form-data; filename="model"; name="other"',
        'form-data; name="model[]"',
        'form-data; name="Model"',
        'form-data; name="x-model"',
        'form-data; name=" model"',
        "form-data; name=\"file\"; filename*=UTF-8''model",
    ],
)
def test_another_fields_name_is_not_taken_for_it(disposition: str) -> None:
    finder = find(form((f"Content-Disposition: {disposition}", b"m")))
    assert (finder.value, finder.problem) == (None, None)


@pytest.mark.parametrize(
    "headers",
    [
        'Content-Disposition: form-data; name="mo\\del"',
        'Content-Disposition: form-data; name="%6Dodel"',
        'Content-Disposition: form-data; name="other"; name="model"',
        "Content-Disposition: form-data; name=\"other\"; name*=UTF-8''model",
        "Content-Disposition: form-data; name=\"model\"; name*=UTF-8''other",
        'Content-Disposition: form-data; name*0="mo"; name*1="del"',
        'Content-Disposition: form-data; name="a\\"; name="model"; x="',
        'Content-Disposition: form-data; name="model"; filename="a.txt"',
        'Content-Disposition: attachment; name="model"',
        'Content-Disposition: form-data; name="model',
        'Content-Disposition: form-data; name = "model"',
        'Content-Disposition: form-data; name="model" x',
        "Content-Disposition: form-data",
        'Content-Disposition: form-data; name="other"\r\n' + MODEL,
        'Content-Disposition: form-data;\r\n name="model"',
        'Content-Disposition: form-data; name="mo\x00del"',
        'Content-Disposition : form-data; name="model"',
        "Content-Type: text/plain",
        f"{MODEL}\nX: y",
        f"{MODEL}\rX: y",
        f"{MODEL}\r\nno header",
        f"{MODEL}\r\n--{BOUNDARY}",
        f"{MODEL}\r\nContent-Transfer-Encoding: base64",
        f"{MODEL}\r\nContent-Transfer-Encoding: quoted-printable",
        f'{MODEL}\r\nContent-Type: text/plain; charset="utf-16"',
        f"{MODEL}\r\nContent-Type: text/plain; charset=utf-7",
        f"{MODEL}\r\nContent-Type: text/plain; charset=UTF-16LE",
        f"{MODEL}\r\nContent-Type: text/plain; charset=utf-32",
        f"{MODEL}\r\nContent-Type: text/plain; charset=iso-2022-jp",
        f"{MODEL}\r\nContent-Type: text/plain; charset=shift_jis",
        f"{MODEL}\r\nContent-Type: text/plain; charset=ibm037",
        f"{MODEL}\r\nContent-Type: text/plain; charset=",
        f"{MODEL}\r\nContent-Type: text/plain; charset=iso-8859-1; charset=utf-7",
    ],
)
def test_a_part_that_readers_could_take_in_two_ways_is_a_problem(headers: str) -> None:
    finder = find(form((headers, b"m")))
    assert finder.value is None
    assert finder.problem


@pytest.mark.parametrize(
    "body",
    [
        form((MODEL, b"m")).replace(b"\r\n", b"\n"),
        form((MODEL, b"m")).replace(b"\r\n", b"\r"),
        form((AUDIO, b"a\n--" + BOUNDARY.encode() + b"\n" + MODEL.encode() + b"\n\nm")),
        form((AUDIO, b"a\r--" + BOUNDARY.encode() + b"\r" + MODEL.encode() + b"\r\rm")),
        form((AUDIO, b"a\r\n--" + BOUNDARY.encode() + b"2\r\n" + MODEL.encode() + b"\r\n\r\nm")),
        form((AUDIO, b"a\r\n--" + BOUNDARY.encode() + b" \n" + MODEL.encode() + b"\r\n\r\nm")),
        b"preamble" + form((MODEL, b"m")),
        b"\n" + form((MODEL, b"m")),
        form((AUDIO, b"a")) + form((MODEL, b"m")),
        form((MODEL, b"m")) + form((AUDIO, b"a")),
        form((MODEL, b"m")).replace(b"--\r\n", b"\r\n"),
        form((MODEL, b"m"))[:-10],
        form((MODEL, b"m")).replace(b"\r\n", b" " * 300 + b"\r\n", 1),
        b"",
        b"model=m",
        form((MODEL, b"\xff")),
        form((MODEL, b"m" * (MAX_VALUE + 1))),
        form((MODEL, b"m" * 9 * MAX_VALUE)),
        form((f"{AUDIO}\r\nX: {'y' * MAX_HEADERS}", b"")),
        form(*[(AUDIO, b"")] * (MAX_PARTS + 1)),
        form(*[(MODEL, b"m")] * 100),
    ],
)
def test_a_body_that_breaks_the_rules_is_a_problem_however_it_is_cut(body: bytes) -> None:
    step = max(1, len(body) // 97)
    for finder in (find(body), find(body, *range(0, len(body), step))):
        assert finder.value is None
        assert finder.problem
        assert finder.done


def test_a_value_of_the_greatest_length_is_read() -> None:
    body = form((MODEL, b"m" * MAX_VALUE))
    assert find(body).value == find(body, *range(0, len(body), 7)).value == "m" * MAX_VALUE


names = st.sampled_from(["model", "file", "prompt", "n", "mödel", "models"])
tricky = st.sampled_from([b"\r\n", b"--", b"\r", b"\n", b"-", b'name="model"', BOUNDARY.encode()])
contents = st.lists(st.one_of(tricky, st.binary(max_size=9)), max_size=9).map(b"".join)
texts = st.text('abc-:/ ."\\%ü€𝄞', max_size=20)


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    parts = []
    for name in draw(st.lists(names, unique=True, max_size=5)):
        if draw(st.booleans()) and name != "model":
            headers = f'Content-Disposition: form-data; name="{name}"; filename="f"'
            parts.append((headers, draw(contents)))
        else:
            parts.append((f'Content-Disposition: form-data; name="{name}"', draw(texts).encode()))
    body = form(*parts)
    return body, draw(st.lists(st.integers(0, len(body)), max_size=12))


@given(forms())
def test_werkzeug_and_email_read_the_same_value(made: tuple[bytes, list[int]]) -> None:
    body, cuts = made
    finder = find(body, *cuts)
    if finder.problem is not None:
        # Only where the content holds the boundary itself, at what a lax reader calls a line.
        assert body.count(BOUNDARY.encode()) > body.count(b"Content-Disposition") + 1
        return
    environ = {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": CONTENT_TYPE,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    _, fields, files = parse_form_data(environ)
    for file in files.values():
        file.close()
    assert finder.value == fields.get("model")
    if body.count(b"Content-Disposition"):
        head = f"Content-Type: {CONTENT_TYPE}\r\n\r\n".encode()
        message = BytesParser(policy=HTTP).parsebytes(head + body)
        found = [
            part.get_payload(decode=True)
            for part in message.walk()
            if part.get_param("name", header="content-disposition") == "model"
        ]
        assert found == ([] if finder.value is None else [finder.value.encode()])


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_whatever_comes_never_raises_and_cuts_never_matter(noise: bytes, cuts: list[int]) -> None:
    body = form((MODEL, b"m"))
    for whole in (noise, body + noise, noise + body, body[: len(noise)] + noise):
        once, cut = find(whole), find(whole, *cuts)
        assert (once.value, once.problem, once.spans) == (cut.value, cut.problem, cut.spans)


def test_a_header_with_a_long_run_of_spaces_is_read_at_once() -> None:
    """Divided in every possible way, each of these would take seconds."""
    for _ in range(100):
        header = "Content-Disposition:" + " " * 16_000 + "\x01"
        assert find(form((header, b"m"))).problem


def test_a_large_upload_is_read_in_few_steps_and_in_little_memory() -> None:
    piece = bytes(range(256)) * 256  # 64 KiB
    head = form((AUDIO, b"")).removesuffix(f"\r\n--{BOUNDARY}--\r\n".encode())
    tail = b"\r\n" + form((MODEL, b"whisper-1"))
    finder = FieldFinder(CONTENT_TYPE, "model", scan_all=True)
    finder.feed(head)
    tracemalloc.start()
    try:
        for _ in range(160):
            finder.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(piece)
    taken = effort.calls(lambda: [finder.feed(piece) for _ in range(100)])
    finder.feed(tail)
    finder.end()
    assert (finder.value, finder.problem) == ("whisper-1", None)
    assert taken < 100 * 40
