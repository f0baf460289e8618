"""A head that is read at once: only what gunicorn's parser takes, and as it takes it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser
from hypothesis import example, given
from hypothesis import strategies as st

from harness.app import _settings
from wrapper.server.head import LONGEST, MOST_FIELDS, read_head
from wrapper.server.strict_request import StrictRequest

CLIENT, SERVER = ("127.0.0.1", 5), ("10.0.0.1", 80)
BASE = {"SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http"}
USUAL = (
    b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\nHost: gateway:80\r\nContent-Type: a/b\r\n"
    b"Content-Length: 3\r\nX_Trace: 1\r\nX-Trace:2\r\nAuthorization: Bearer x"
)


def settings(parser: str) -> Config:
    config = _settings()
    config.set("http_parser", parser)
    return config


PARSERS = ["python", *(["fast"] if importlib.util.find_spec("gunicorn_h1c") else [])]
SETTINGS = [settings(parser) for parser in PARSERS]


def by_gunicorn(head: bytes, config: Config) -> dict[str, Any]:
    """The environment that gunicorn makes. Raises what it refuses a head with."""
    parser = RequestParser(config, [head + b"\r\n\r\n"], CLIENT)
    parser.mesg_class = StrictRequest
    request = next(parser)
    assert not request._expected_100_continue
    assert request.version == (1, 1)
    _, environ = wsgi.create(request, None, CLIENT, SERVER, config)
    made: dict[str, Any] = environ
    return made


def of_request(environ: dict[str, Any]) -> dict[str, Any]:
    """What of an environment comes from the request."""
    names = ("REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING", *BASE)
    return {
        name: value
        for name, value in environ.items()
        if name in names or name.startswith(("HTTP_", "CONTENT_"))
    }


def agree(head: bytes) -> bool:
    """Whether the head is read at once; what that gives is what each of gunicorn's parsers does."""
    environ = read_head(head, BASE, "")
    if environ is None:
        return False
    for config in SETTINGS:
        assert of_request(by_gunicorn(head, config)) == environ
    return True


byte = st.integers(0, 255).map(lambda code: bytes([code]))
odd = st.sampled_from(
    [
        b"",
        b" ",
        b"\t",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n ",
        b":",
        b"_",
        b"#",
        b"//",
        b"\0",
        b"\x7f",
        b"%",
    ]
)


@given(at=st.integers(0, len(USUAL)), cut=st.integers(0, 2), put=byte | odd)
@example(at=0, cut=0, put=b"\r\n")
@example(at=len(USUAL), cut=0, put=b"\r\nConnection")
@example(at=len(USUAL), cut=0, put=b"\r\nContent-Length: 4")
@example(at=len(USUAL), cut=0, put=b"\r\nTransfer-Encoding: chunked")
@example(at=len(USUAL), cut=0, put=b"\r\nExpect: 100-continue")
@example(at=len(USUAL), cut=0, put=b"\r\nHost: other")
def test_a_usual_head_with_any_change(at: int, cut: int, put: bytes) -> None:
    agree(USUAL[:at] + put + USUAL[at + cut :])


line = st.builds(
    lambda name, colon, value: name + colon + value,
    st.sampled_from([b"Host", b"X-A", b"x_a", b"Content-Length", b"Connection", b"Te", b"Expect"])
    | st.binary(max_size=4),
    st.sampled_from([b":", b": ", b" : ", b":\t", b"\t:", b""]),
    st.sampled_from(
        [b"a", b"3", b"a:80", b"[::1]", b"close", b"a ", b"a\t", b"\xe9", b"+3", b"\xb2"]
    )
    | st.binary(max_size=4),
)
start = st.builds(
    lambda method, target, version: b" ".join([method, target, version]),
    st.sampled_from([b"GET", b"POST", b"get", b"CONNECT", b"PURGE", b""]),
    st.sampled_from(
        [b"/", b"/a?b", b"/a?b?c", b"/%41", b"/%2", b"/a;b", b"/a#b", b"*", b"//a", b"/:1"]
    )
    | st.binary(max_size=4).map(lambda end: b"/" + end),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/1.1 ", b"http/1.1", b""]),
)


@given(first=start, lines=st.lists(line, max_size=5))
def test_any_head(first: bytes, lines: list[bytes]) -> None:
    agree(b"\r\n".join([first, b"Host: a", *lines]))
    agree(b"\r\n".join([first, *lines]))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_what_clients_send_is_read_at_once(method: str) -> None:
    assert agree(method.encode() + USUAL[len("POST") :])
    lines = b"".join(b"\r\nX-%d: \xe9 %d\t" % (number, number) for number in range(MOST_FIELDS - 6))
    assert agree(USUAL + lines)
    assert not agree(USUAL + lines + b"\r\nOne-More: x")
    assert len(USUAL + lines) < LONGEST


@pytest.mark.parametrize(
    ("target", "path"),
    [("/gw/a?b", "/a"), ("/gw", "/"), ("/gw?a", "/"), ("/gwx", "/gwx"), ("/a", "/a")],
)
def test_the_root_path_is_taken_off(target: str, path: str) -> None:
    environ = read_head(f"GET {target} HTTP/1.1\r\nHost: a".encode(), BASE, "/gw")
    assert environ is not None
    assert environ["PATH_INFO"] == path
    assert environ["RAW_URI"].partition("?")[0] == path
