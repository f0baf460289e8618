"""Bad input: an error that says what is wrong, never a 5xx, and nothing reaches a provider.

Most run in this process; the last ones repeat one of each kind over a socket.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, raw

if TYPE_CHECKING:
    from harness.app import App
    from harness.gateway import Gateway
    from harness.simulator import Simulator

DEEP = 100_000


@pytest.fixture
def nothing_sent(simulator: Simulator) -> Iterator[str]:
    """A book of which no request may have reached the provider when the test is over."""
    book = chat.mark()
    yield book
    assert simulator.requests(book=book) == []


def refused(
    app: App | Gateway, content: bytes, book: str, *, target: str = chat.PATH
) -> tuple[int, dict[str, Any]]:
    answer = chat.call(app, content, book=book, target=target)
    details = chat.error(answer)
    assert details["type"] == "invalid_request_error"
    assert answer.header("x-request-id")
    return answer.status, details


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b"{",
        b'{"model": "m", "messages": []',
        b'{"model": "m", "messages": []} trailing',
        b'{"model": "m"}{"model": "m"}',
        b'{"model": "m", "messages": [], }',
        b"{'model': 'm'}",
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "temperature": Infinity}',
        b'{"model": "m", "seed": 012}',
        b'{"model": "m", "a": "\n"}',
        b'{"model": "m", "a": "\\x"}',
        b'\xef\xbb\xbf{"model": "m"}',
        '{"model": "m", "a": "ü"}'.encode("latin-1"),
        '{"model": "m"}'.encode("utf-16"),
        '{"model": "m"}'.encode("utf-16-le"),
        '{"model": "m"}'.encode("utf-32"),
        b'{"model": "m", "a": "\xed\xa0\x80"}',
        b'{"model": "m", "a": "\xc0\xaf"}',
        b" ",
        b"\0",
        b'{"model": "m", "a": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"model": "m", "a": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    ],
    ids=lambda content: repr(content[:32]),
)
def test_a_body_that_is_not_json_is_refused(app: App, nothing_sent: str, content: bytes) -> None:
    status, details = refused(app, content, nothing_sent)
    assert (status, details["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b'"text"', b"1", b"true", b'[{"model": "m"}]', b"[" * DEEP],
    ids=lambda content: repr(content[:32]),
)
def test_json_that_is_no_object_is_refused(app: App, nothing_sent: str, content: bytes) -> None:
    status, details = refused(app, content, nothing_sent)
    assert (status, details["code"]) == (400, "invalid_body")
    assert re.fullmatch("The body is .*; write an object.", details["message"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": 5}', "'model' is a number; write a string."),
        ('{"model": ["m"]}', "'model' is an array; write a string."),
        ('{"model": "m", "stream": "yes"}', "'stream' is a string; write a boolean."),
        ("null", "The body is null; write an object."),
    ],
)
def test_a_wrong_type_is_told_in_the_words_of_json(
    app: App, nothing_sent: str, text: str, message: str
) -> None:
    assert refused(app, text.encode(), nothing_sent)[1]["message"] == message


@pytest.mark.parametrize("value", [1, 1.5, True, [], {}, ["m"], {"name": "m"}])
def test_a_model_that_is_no_string_is_named_in_the_error(
    app: App, nothing_sent: str, value: object
) -> None:
    content = json.dumps({"model": value, "messages": []}).encode()
    status, details = refused(app, content, nothing_sent)
    assert (status, details["code"], details["param"]) == (400, "invalid_body", "model")


@pytest.mark.parametrize("fields", [{}, {"model": None}, {"model": ""}])
def test_chat_without_a_model_is_refused(
    app: App, nothing_sent: str, fields: dict[str, Any]
) -> None:
    content = json.dumps({"messages": [], **fields}).encode()
    status, details = refused(app, content, nothing_sent)
    assert (status, details["code"], details["param"]) == (400, "invalid_body", "model")


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}, 1.0])
def test_a_stream_that_is_no_boolean_is_named_in_the_error(
    app: App, nothing_sent: str, value: object
) -> None:
    content = json.dumps({"model": "m", "messages": [], "stream": value}).encode()
    status, details = refused(app, content, nothing_sent)
    assert (status, details["code"], details["param"]) == (400, "invalid_body", "stream")


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "a", "model": "b", "messages": []}',
        b'{"model": "a", "mod\\u0065l": "b", "messages": []}',
        b'{"stream": false, "model": "a", "stream": true}',
        b'{"model": "a", "stream": true, "stream_options": {}, "stream_options": {}}',
    ],
)
def test_a_field_that_two_readers_could_read_differently_is_refused(
    app: App, nothing_sent: str, content: bytes
) -> None:
    status, details = refused(app, content, nothing_sent)
    assert (status, details["code"]) == (400, "invalid_body")


@pytest.mark.parametrize("value", ["5", "[]", '"yes"', "true", "null", '{"include_usage": "no"}'])
def test_odd_stream_options_are_the_providers_to_judge(
    app: App, simulator: Simulator, value: str
) -> None:
    """What is not ours to read passes as it came: the provider knows what it takes."""
    book = chat.mark()
    content = (
        b'{"model": "gpt-6-luna", "messages": [{"role": "user", "content": "Hi"}],'
        b' "stream": true, "stream_options": %b}' % value.encode()
    )
    answer = chat.call(app, content, book=book)
    assert answer.status < 500
    assert len(simulator.requests(book=book)) == 1


@pytest.mark.parametrize("target", ["/chat/completions", "/v1/chat/completions"])
def test_an_empty_body_is_refused(app: App, nothing_sent: str, target: str) -> None:
    headers = (
        ("Content-Type", "application/json"),
        ("Content-Length", "0"),
        ("x-sim-book", nothing_sent),
    )
    key = app.secrets["web-app"]
    asked = raw.request(app.port, "POST", target, key=key, headers=headers)
    answer = app.exchange(asked)
    assert answer.status == 400
    assert chat.error(answer)["code"] in {"invalid_json", "invalid_body"}


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/x/", 404, "unknown_url"),
        ("GET", "/nothing", 404, "unknown_url"),
        ("POST", "/nobody/v1/chat/completions", 404, "unknown_url"),
        ("GET", "/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/chat/completions", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
        ("PUT", "/usage", 405, "method_not_allowed"),
        ("BREW", "/v1/models", 405, "method_not_allowed"),
        ("TRACE", "/v1/models", 405, "method_not_allowed"),
        ("BREW", "/groq/openai/v1/models", 405, "method_not_allowed"),
    ],
)
def test_an_unknown_url_or_method_is_an_error_in_openais_format(
    app: App, nothing_sent: str, method: str, target: str, status: int, code: str
) -> None:
    headers = chat.told(book=nothing_sent)
    key = app.secrets["web-app"]
    asked = raw.request(app.port, method, target, key=key, headers=headers)
    answer = app.exchange(asked)
    details = chat.error(answer)
    assert (answer.status, details["code"]) == (status, code)
    assert details["type"] == "invalid_request_error"
    assert (answer.header("allow") is not None) == (status == 405)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "GZIP"])
def test_a_compressed_body_is_refused(app: App, nothing_sent: str, coding: str) -> None:
    headers = (("Content-Encoding", coding),)
    answer = chat.call(app, book=nothing_sent, headers=headers)
    assert (answer.status, chat.error(answer)["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    ("header", "value", "without"),
    [
        ("Content-Encoding", "gzip", "Content-Encoding."),
        ("Transfer-Encoding", "gzip, chunked", "a Transfer-Encoding other than chunked."),
    ],
)
def test_the_header_that_says_a_body_is_compressed_is_named(
    app: App, nothing_sent: str, header: str, value: str, without: str
) -> None:
    headers = (*chat.told(book=nothing_sent), (header, value))
    key = app.secrets["web-app"]
    answer = app.exchange(raw.request(app.port, "POST", chat.PATH, key=key, headers=headers))
    details = chat.error(answer)
    assert (answer.status, details["code"]) == (415, "unsupported_encoding")
    assert details["message"].endswith(f"without {without}")


def test_a_body_that_says_it_is_not_compressed_passes(app: App) -> None:
    assert chat.call(app, headers=(("Content-Encoding", "identity"),)).status == 200


@pytest.mark.parametrize("cut", [1, 20])
def test_a_body_shorter_than_its_length_is_refused(
    gateway: Gateway, nothing_sent: str, cut: int
) -> None:
    asked = chat.request(gateway, book=nothing_sent)
    with raw.Connection(gateway.port) as connection:
        connection.send(asked[:-cut])
        connection.socket.shutdown(socket.SHUT_WR)
        answer = connection.read()
    assert (answer.status, chat.error(answer)["code"]) == (400, "incomplete_body")


@pytest.mark.parametrize(
    "value",
    [
        "llama-3.1\n8b",
        "\x7f",
        "../../etc/passwd",
        "a" * 10_000,
        "💥",
        "%00",
        "model?status=oops",
        "groq:llama",
    ],
)
def test_a_strange_model_is_the_providers_to_judge(app: App, value: str) -> None:
    answer = chat.call(app, chat.body(value))
    assert answer.status < 500


def test_large_numbers_of_unknown_fields_are_not_judged(app: App, simulator: Simulator) -> None:
    content = b'{"model": "m", "messages": [], "seed": 1%s, "b": 1e400, "c": -0.0}' % (b"0" * 400)
    book = chat.mark()
    answer = chat.call(app, content, book=book, target="/v1/of-tomorrow", orders="echo=raw")
    assert answer.status == 200
    assert answer.body == content
    assert len(simulator.requests(book=book)) == 1


def test_messages_repeat_neither_the_body_nor_the_query(app: App) -> None:
    for content in (b'{"secret-word', b'{"model": ["secret-word"]}', b'"secret-word"'):
        answer = chat.call(app, content, target=chat.PATH + "?secret-word=1")
        assert answer.status == 400
        assert b"secret-word" not in answer.body


# --- over a socket -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"not json", "invalid_json"),
        (b"\0", "invalid_json"),
        (b'{"model": "m", "a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "invalid_json"),
        (b"[]", "invalid_body"),
        (b'{"model": 1, "messages": []}', "invalid_body"),
        (b'{"model": "a", "model": "b", "messages": []}', "invalid_body"),
    ],
    ids=lambda content: repr(content[:32]),
)
def test_a_worker_refuses_bad_bodies_in_the_same_way(
    gateway: Gateway, nothing_sent: str, content: bytes, code: str
) -> None:
    status, details = refused(gateway, content, nothing_sent)
    assert (status, details["code"]) == (400, code)


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/chat/completions", 405, "method_not_allowed"),
        ("BREW", "/groq/openai/v1/models", 405, "method_not_allowed"),
    ],
)
def test_a_worker_refuses_urls_and_methods_in_the_same_way(
    gateway: Gateway, nothing_sent: str, method: str, target: str, status: int, code: str
) -> None:
    headers = chat.told(book=nothing_sent)
    key = gateway.secrets["web-app"]
    answer = gateway.exchange(raw.request(gateway.port, method, target, key=key, headers=headers))
    assert (answer.status, chat.error(answer)["code"]) == (status, code)


def test_a_worker_refuses_a_compressed_body(gateway: Gateway, nothing_sent: str) -> None:
    answer = chat.call(gateway, book=nothing_sent, headers=(("Content-Encoding", "gzip"),))
    assert (answer.status, chat.error(answer)["code"]) == (415, "unsupported_encoding")
