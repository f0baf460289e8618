"""Whatever is sent arrives, and whatever is answered comes back, byte for byte, both ways.

Random methods, paths, queries, headers and bodies, in random chunks and sends, go through the
gateway to a provider of a few lines that keeps what it got and answers what it is told to. What
may differ is what the contract names, and nothing else.
"""

from __future__ import annotations

import json
import re
import socket
import string
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import raw
from harness.defaults import KEYS, PROVIDER_KEYS
from harness.gateway import Gateway

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Headers = list[tuple[str, str]]

CONFIG = """\
[providers.openai]
base_url = "http://127.0.0.1:{port}/base/v1"
api_key = {{ env = "OPENAI_API_KEY" }}
client_credentials = true

[[routes]]
model = "*"
targets = ["openai"]
"""
CREDENTIAL = f"Bearer {PROVIDER_KEYS['OPENAI_API_KEY']}"

# What the contract names, and what frames a message: RFC 9110 section 7.6.1, RFC 9112 section 6.
HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
    *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length"),
}
NEVER_UP = HOP_BY_HOP | {
    *("host", "cookie", "authorization", "api-key", "x-api-key", "forwarded", "expect"),
    *("content-encoding", "accept-encoding", "access-control-request-method"),
    # where the caller is, and the way here
    *("origin", "referer", "via", "cdn-loop", "true-client-ip", "fastly-client-ip", "x-client-ip"),
    *("x-cluster-client-ip", "x-real-ip", "x-real-port", "x-remote-addr", "x-remote-ip", "x-host"),
    *("x-rewrite-url", "x-request-start", "x-queue-start", "x-amzn-trace-id", "x-arr-log-id"),
    *("x-cloud-trace-context", "x-arr-ssl", "x-site-deployment-id", "x-scheme", "alt-used"),
    *("x-proxyuser-ip", "x-goog-api-key", "x-forwarded"),
    # the caller's account
    *("openai-organization", "openai-project", "chatgpt-account-id", "x-goog-user-project"),
}
NEVER_UP_PREFIXES = (
    *("x-forwarded-", "x-original-", "x-envoy-", "x-azure-", "x-appengine-", "x-vercel-", "cf-"),
    *("cloudfront-", "fly-", "sec-fetch-", "sec-websocket-", "access-control-"),
)
NEVER_DOWN = HOP_BY_HOP | {
    *("set-cookie", "set-cookie2", "openai-organization", "openai-project"),
    # what a provider says about its own origin
    *("strict-transport-security", "public-key-pins", "public-key-pins-report-only", "expect-ct"),
    *("alt-svc", "clear-site-data", "nel", "report-to", "reporting-endpoints", "accept-ch"),
    *("critical-ch", "origin-agent-cluster", "service-worker-allowed", "set-login"),
    *("secure-session-registration", "sec-session-registration", "activate-storage-access"),
    "timing-allow-origin",
}
OWN = {  # the gateway's own words, and those of the server it runs in
    *("date", "server", "x-request-id", "x-wrapper-provider", "server-timing", "vary"),
    "x-accel-buffering",
}


# --- a provider of a few lines -------------------------------------------------------------------


@dataclass
class Request:
    method: str
    target: str
    headers: Headers
    body: bytes


class Provider:
    """Keeps the requests it gets; answers each with the next of `answers`, a list of sends."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[Request] = []
        self.sends: list[bytes] = []
        self.closes = False

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        # A caller that resets has its own reasons.
        with suppress(OSError), connection, connection.makefile("rb") as file:
            while (request := _request(file)) is not None:
                self.requests.append(request)
                for piece in self.sends:
                    connection.sendall(piece)
                if self.closes:
                    return


def _request(file: Any) -> Request | None:
    line = file.readline().decode("latin-1")
    if not line:
        return None
    method, target, _ = line.removesuffix("\r\n").split(" ")
    headers: Headers = []
    while (line := file.readline().decode("latin-1")) != "\r\n":
        name, _, value = line.removesuffix("\r\n").partition(": ")
        headers.append((name, value))
    lower = {name.lower(): value for name, value in headers}
    if "transfer-encoding" in lower:
        pieces = []
        while size := int(file.readline(), 16):
            pieces.append(file.read(size))
            assert file.readline() == b"\r\n"
        assert file.readline() == b"\r\n"
        return Request(method, target, headers, b"".join(pieces))
    return Request(method, target, headers, file.read(int(lower.get("content-length", 0))))


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    made = Provider()
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop()
    thread.join()


@pytest.fixture(scope="module")
def relay(provider: Provider) -> Iterator[Gateway]:
    with Gateway(CONFIG.format(port=provider.port), keys=KEYS, env=PROVIDER_KEYS) as running:
        yield running
        running.assert_clean()


# --- anything that HTTP allows -------------------------------------------------------------------

UNRESERVED = string.ascii_letters + string.digits + "-._~"
TOKEN = "!#$%&'*+-.^`|~" + string.ascii_letters + string.digits  # and "_": see test_headers
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
AMBIGUOUS = {"2f", "5c", "7f", *(f"{code:02x}" for code in range(32))}

encoded = (
    st.integers(0, 255).map(lambda code: f"{code:02x}").filter(lambda code: code not in AMBIGUOUS)
)
encoded = st.builds(lambda code, up: "%" + (code.upper() if up else code), encoded, st.booleans())
segment = (
    st.lists(st.sampled_from(UNRESERVED + "!$&'()*+,;=:@") | encoded, min_size=1, max_size=8)
    .map("".join)
    .filter(lambda text: not re.match(r"(\.|%2e){1,2}(;|%3b|$)", text, re.IGNORECASE))
)
path = st.builds(
    lambda parts, slash: "/" + "/".join(parts) + slash,
    st.lists(segment, min_size=1, max_size=4),
    st.sampled_from(["", "/"]),
)
query_text = st.text("".join(chr(code) for code in range(33, 127) if chr(code) != "#"), max_size=30)
query = st.sampled_from(["", "?", "?&&", "?a=1&a=2", "?a=%zz%", "?x=../..//\\"]) | query_text.map(
    lambda text: "?" + text
)

value = st.text([chr(code) for code in (*range(32, 127), 9, *range(160, 256))], max_size=30).map(
    str.strip
)


def header_list(forbidden: set[str]) -> SearchStrategy[Headers]:
    name = st.text(TOKEN, min_size=1, max_size=12).filter(
        lambda name: (
            name.lower() not in forbidden | OWN | {"content-type"}
            and not name.lower().startswith(NEVER_UP_PREFIXES)
        )
    )
    known = st.sampled_from(
        [
            ("OpenAI-Beta", "assistants=v2"),
            ("Idempotency-Key", "k, with a comma"),
            ("Range", "bytes=0-1"),
            ("If-None-Match", 'W/"x", "y"'),
            ("User-Agent", "a b/c (d)"),
            ("Retry-After", "1"),
            ("Location", "//elsewhere/%zz"),
            ("Cache-Control", ""),
        ]
    )
    return st.lists(known | st.tuples(name, value), max_size=6)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces; places are taken modulo its length."""
    at = sorted({place % len(data) for place in places} - {0}) if data else []
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


@dataclass
class Body:
    """A message's content, how its length is told, and where the chunks and the sends end."""

    data: bytes
    framing: str  # "length", "chunked", "close" or "none"
    kind: str | None
    chunks: list[int] = field(default_factory=list)

    def framed(self) -> tuple[Headers, bytes]:
        headers: Headers = [("Content-Type", self.kind)] if self.kind is not None else []
        if self.framing == "length":
            return [*headers, ("Content-Length", str(len(self.data)))], self.data
        if self.framing == "chunked":
            parts = [piece for piece in cut(self.data, self.chunks) if piece]
            lines = [
                b"%x%b\r\n%b\r\n" % (len(p), b";a=b" * (n % 2), p) for n, p in enumerate(parts)
            ]
            end = b"0\r\n" + b"X-Trailer: 1\r\n" * (len(parts) % 2) + b"\r\n"
            return [*headers, ("Transfer-Encoding", "chunked")], b"".join(lines) + end
        return headers, self.data


places = st.lists(st.integers(0, 1 << 20), max_size=6)
data = st.binary(max_size=300) | st.builds(
    lambda piece, times: piece * times, st.binary(min_size=1, max_size=64), st.integers(1, 4000)
)
some_json = st.dictionaries(
    st.text(max_size=6),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
).filter(lambda made: not made.keys() & {"model", "stream", "stream_options"})
json_body = st.builds(
    lambda made, indent, ascii_only: json.dumps(
        made, indent=indent, ensure_ascii=ascii_only
    ).encode("utf-8", "replace"),
    some_json,
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
kinds_up = st.sampled_from(
    [None, "application/octet-stream", "text/plain; charset=x", "Application/X-NDJSON"]
)
kinds_down = st.sampled_from(
    [None, "application/json", "text/event-stream", "text/event-stream; charset=utf-8", "a/b"]
)
framed = st.sampled_from(["length", "chunked"])
body_up = (
    st.just(Body(b"", "none", None))
    | st.builds(Body, data, framed, kinds_up, places)
    | st.builds(Body, json_body, framed, st.just("application/json"), places)
)
body_down = st.builds(
    Body, data, st.sampled_from(["length", "chunked", "close"]), kinds_down, places
)
status = st.sampled_from([200, 200, 200, 201, 202, 206, 299, 307, 400, 403, 404, 418, 429, 500])


# --- what must hold ------------------------------------------------------------------------------


def once(headers: Headers) -> Counter[tuple[str, str]]:
    return Counter((name.lower(), text) for name, text in headers)


def joined(headers: Headers) -> Counter[tuple[str, str]]:
    """As they arrive: repeated ones may become one list (RFC 9110 section 5.3)."""
    lists: dict[str, list[str]] = {}
    for name, text in headers:
        lists.setdefault(name.lower(), []).append(text)
    return Counter((name, ",".join(texts)) for name, texts in lists.items())


def talk(relay: Gateway, message: bytes, sends: list[int], method: str) -> raw.Answer:
    with raw.Connection(relay.port) as connection:
        for piece in cut(message, sends):
            connection.send(piece)
        return connection.read(head_only=method == "HEAD")


FEW = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FEW
@given(
    method=st.sampled_from(METHODS),
    base=st.sampled_from([("/openai/v1/_echo", "/v1/_echo"), ("/v1/_echo", "/base/v1/_echo")]),
    path=path,
    query=query,
    headers=header_list(NEVER_UP),
    body=body_up,
    sends=places,
)
def test_a_request_arrives_as_it_was_sent(
    relay: Gateway,
    provider: Provider,
    method: str,
    base: tuple[str, str],
    path: str,
    query: str,
    headers: Headers,
    body: Body,
    sends: list[int],
) -> None:
    provider.requests.clear()
    provider.sends, provider.closes = [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], False
    own, content = body.framed()
    head = raw.request(
        relay.port,
        method,
        base[0] + path + query,
        key=relay.secrets["web-app"],
        headers=(*headers, *own),
    )
    answer = talk(relay, head + content, sends, method)
    assert answer.status == 200, answer.body
    (seen,) = provider.requests
    assert (seen.method, seen.target) == (method, base[1] + path + query)
    assert seen.body == body.data
    expected = joined([*headers, *own])
    expected += Counter([("host", f"127.0.0.1:{provider.port}"), ("authorization", CREDENTIAL)])
    chunks = ("transfer-encoding", "chunked")
    if chunks in expected and chunks not in once(seen.headers):
        # A body that was read before it was sent goes on with its length.
        del expected[chunks]
        expected["content-length", str(len(body.data))] += 1
    if body.framing == "none" and method in ("POST", "PUT", "PATCH"):
        expected["content-length", "0"] += 1
    assert once(seen.headers) == expected


@FEW
@given(
    method=st.sampled_from(METHODS),
    status=status,
    reason=st.text(string.ascii_letters + " '-", max_size=20).map(str.strip),
    headers=header_list(NEVER_DOWN),
    stopped=st.lists(
        st.sampled_from(
            [
                ("Set-Cookie", "a=b"),
                ("OpenAI-Organization", "org"),
                ("openai-project", "proj"),
                ("Keep-Alive", "timeout=5"),
                ("Connection", "X-Only-Here"),
                ("X-Only-Here", "1"),
            ]
        ),
        unique=True,
    ),
    body=body_down,
    sends=places,
)
def test_an_answer_comes_back_as_it_was_given(
    relay: Gateway,
    provider: Provider,
    method: str,
    status: int,
    reason: str,
    headers: Headers,
    stopped: Headers,
    body: Body,
    sends: list[int],
) -> None:
    if ("Connection", "X-Only-Here") not in stopped:
        stopped = [header for header in stopped if header[0] != "X-Only-Here"]
    own, content = body.framed()
    lines = [f"{name}: {text}\r\n" for name, text in [*headers, *stopped, *own]]
    head = f"HTTP/1.1 {status} {reason}\r\n{''.join(lines)}\r\n".encode("latin-1")
    message = head if method == "HEAD" else head + content
    provider.sends, provider.closes = cut(message, sends), body.framing == "close"
    answer = talk(
        relay,
        raw.request(relay.port, method, "/openai/x", key=relay.secrets["web-app"]),
        [],
        method,
    )
    assert (answer.status, answer.clean_end) == (status, True)
    if reason:
        assert answer.reason == reason
    if method != "HEAD":
        assert answer.body == body.data
    unframed = [header for header in own if header[0] == "Content-Type"]
    assert not set(stopped) & set(answer.headers)
    came = [
        (name, text)
        for name, text in answer.headers
        if name.lower() not in OWN | HOP_BY_HOP and not name.lower().startswith("access-control-")
    ]
    assert once(came) == once([*headers, *unframed])
    if body.framing == "length":
        assert answer.header("content-length") == str(len(body.data))


@FEW
@given(
    calls=st.lists(st.tuples(st.booleans(), st.booleans(), body_up, places), min_size=2, max_size=5)
)
def test_requests_on_one_connection_do_not_run_into_one_another(
    relay: Gateway, provider: Provider, calls: list[tuple[bool, bool, Body, list[int]]]
) -> None:
    """Nor where some are refused, before their body was read or after."""
    connection = raw.Connection(relay.port)
    try:
        for known, nowhere, body, sends in calls:
            provider.requests.clear()
            provider.sends, provider.closes = (
                [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"],
                False,
            )
            own, content = body.framed()
            target = "/nobody/x" if nowhere else "/openai/x"
            key = relay.secrets["web-app"] if known else "sk-wr-unknown"
            head = raw.request(relay.port, "POST", target, key=key, headers=tuple(own))
            for piece in cut(head + content, sends):
                connection.send(piece)
            answer = connection.read()
            expected = 404 if nowhere else 200 if known else 401
            assert answer.status == expected
            assert [seen.body for seen in provider.requests] == [body.data] * (expected == 200)
            if answer.header("connection") == "close":
                connection.close()
                connection = raw.Connection(relay.port)
    finally:
        connection.close()
