"""`/<provider>/<path>`: any method, any body, any answer goes through as it is.

The simulator answers unknown paths by telling what arrived, and remembers every request.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from harness import raw
from harness.defaults import PROVIDER_KEYS
from harness.programs import require

if TYPE_CHECKING:
    from harness.gateway import Gateway
    from harness.simulator import Simulator

Headers = tuple[tuple[str, str], ...]
ECHO = "/openai/v1/_echo"


class Talk:
    """Requests to the gateway that can be found again at the provider."""

    def __init__(self, gateway: Gateway, simulator: Simulator, key: str) -> None:
        self.gateway = gateway
        self._simulator = simulator
        self._key = key
        self.book = f"passthrough-{uuid4()}"

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Headers = (),
        *,
        key: str | None = None,
    ) -> raw.Answer:
        framing = () if not body else (("Content-Length", str(len(body))),)
        data = raw.request(
            self.gateway.port,
            method,
            target,
            key=key or self._key,
            headers=(("x-sim-book", self.book), *framing, *headers),
        )
        return raw.exchange(self.gateway.port, data + body, head_only=method == "HEAD")

    def arrived(self) -> list[dict[str, Any]]:
        """What the provider got of this."""
        return self._simulator.requests(book=self.book)

    def seen(self) -> dict[str, Any]:
        """The one request that the provider got."""
        (found,) = self.arrived()
        return found


@pytest.fixture
def talk(gateway: Gateway, simulator: Simulator, key: str) -> Talk:
    return Talk(gateway, simulator, key)


def header_names(seen: dict[str, Any]) -> set[str]:
    return {name.lower() for name, _ in seen["headers"]}


def header_of(seen: dict[str, Any], name: str) -> list[str]:
    return [value for key, value in seen["headers"] if key.lower() == name]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("base", ["/openai/v1", "/groq/openai/v1", "/v1"])
def test_every_method_reaches_the_provider(talk: Talk, base: str, method: str) -> None:
    answer = talk.ask(method, f"{base}/_echo/a?b=c")
    assert answer.status == 200
    assert talk.seen()["method"] == method
    assert talk.seen()["target"].endswith("/v1/_echo/a?b=c")
    if method == "HEAD":
        assert int(answer.header("content-length") or 0) > 0
    else:
        assert json.loads(answer.body)["method"] == method


def test_a_preflight_is_answered_by_the_gateway_and_never_goes_up(talk: Talk) -> None:
    answer = talk.ask(
        "OPTIONS",
        ECHO,
        headers=(
            ("Origin", "https://app.example.com"),
            ("Access-Control-Request-Method", "PATCH"),
            ("Access-Control-Request-Headers", "authorization,openai-beta"),
        ),
    )
    assert answer.status in (200, 204)
    assert answer.header("access-control-allow-origin") == "*"
    assert "PATCH" in (answer.header("access-control-allow-methods") or "")
    assert talk.arrived() == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_204_has_neither_body_nor_length(talk: Talk, method: str) -> None:
    answer = talk.ask(method, ECHO, headers=(("x-sim", "status=204; set=X-Told: yes"),))
    assert (answer.status, answer.header("x-told")) == (204, "yes")
    assert answer.header("content-length") is None
    assert answer.header("transfer-encoding") is None


def test_a_304_keeps_the_providers_headers(talk: Talk) -> None:
    orders = (
        "set=Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT; set=Content-Language: de;"
        " set=Content-Location: /v1/_bytes/a%2fb"
    )
    answer = talk.ask(
        "GET", "/openai/v1/_bytes/100", headers=(("If-None-Match", '"sim-100"'), ("x-sim", orders))
    )
    assert (answer.status, answer.body) == (304, b"")
    assert answer.header("etag") == '"sim-100"'
    assert answer.header("last-modified") == "Wed, 21 Oct 2015 07:28:00 GMT"
    assert answer.header("content-language") == "de"
    assert answer.header("content-location") == "/v1/_bytes/a%2fb"


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "length"),
    [
        ("bytes=10-19", 206, "bytes 10-19/100000", 10),
        ("bytes=99990-", 206, "bytes 99990-99999/100000", 10),
        ("bytes=-7", 206, "bytes 99993-99999/100000", 7),
        ("bytes=100000-", 416, "bytes */100000", 0),
    ],
)
def test_ranges_pass(
    talk: Talk, simulator: Simulator, asked: str, status: int, content_range: str, length: int
) -> None:
    headers = (("Range", asked),)
    answer = talk.ask("GET", "/openai/v1/_bytes/100000", headers=headers)
    assert (answer.status, answer.header("content-range")) == (status, content_range)
    assert len(answer.body) == length
    direct = raw.request(simulator.port, "GET", "/v1/_bytes/100000", headers=headers)
    assert answer.body == raw.exchange(simulator.port, direct).body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_shown_to_the_caller_and_never_followed(talk: Talk, status: int) -> None:
    elsewhere = "http://127.0.0.2:1/%7Euser/a%2Fb?x=%zz&y=\xe4"
    answer = talk.ask(
        "POST",
        ECHO,
        b"body",
        headers=(("x-sim", f"status={status}; set=Location: {elsewhere}"),),
    )
    assert answer.status == status
    assert answer.header("location") == elsewhere
    assert len(talk.arrived()) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_binary_download_is_the_same_bytes_with_the_same_length(
    talk: Talk, simulator: Simulator, method: str
) -> None:
    answer = talk.ask(method, "/openai/v1/_bytes/300000")
    direct = raw.request(simulator.port, "GET", "/v1/_bytes/300000")
    assert answer.header("content-length") == "300000"
    assert answer.header("content-type") == "application/octet-stream"
    if method == "GET":
        assert answer.body == raw.exchange(simulator.port, direct).body


@pytest.mark.parametrize(
    "stream",
    [
        b'event: a.b\ndata: {"x": 1}\n\nevent: done\ndata: {}\n\n',
        b"data: [DONE]\n\n",
        b": only a comment\n\n",
        b"id: 7\r\nretry: 10\r\ndata: one\r\ndata: two\r\n\r\n",
        b"data: \xff\xfe not UTF-8, and no end",
        b"",
    ],
)
def test_an_event_stream_of_any_dialect_passes_byte_for_byte(talk: Talk, stream: bytes) -> None:
    answer = talk.ask(
        "POST",
        "/openai/v1/anything",
        stream,
        headers=(
            ("Content-Type", "application/x-sim"),
            ("x-sim", "echo=raw; content-type=text/event-stream"),
        ),
    )
    assert answer.header("content-type") == "text/event-stream"
    assert answer.body == stream
    assert answer.clean_end


@pytest.mark.parametrize(
    "query",
    ["", "?", "?a=1&a=2&=&&b", "?a=%20+%2B%zz%", "?a=[1]{2}|^`\"<>'", "?q=a/../b//c\\d?e", "?%00"],
)
def test_query_strings_pass_as_they_are(talk: Talk, query: str) -> None:
    assert talk.ask("GET", ECHO + query).status == 200
    assert talk.seen()["target"] == "/v1/_echo" + query


@pytest.mark.parametrize(
    "path",
    ["/a%20b", "/a;b=c,d", "/%C3%A4", "/%ff", "/a%2eb", "/...", "/a:b@c", "/~", "/%7e/", "/"],
)
def test_paths_pass_in_the_callers_own_spelling(talk: Talk, path: str) -> None:
    assert talk.ask("GET", ECHO + path).status == 200
    assert talk.seen()["target"] == "/v1/_echo" + path


def test_the_first_segment_may_be_spelt_in_another_way_too(talk: Talk) -> None:
    assert talk.ask("GET", "/%6fpen%61i/v1/_echo").status == 200
    assert talk.ask("GET", "/%761/_echo").status == 200
    assert [seen["target"] for seen in talk.arrived()] == ["/v1/_echo", "/openai/v1/_echo"]


@pytest.mark.parametrize(
    ("method", "declared", "arrives"),
    [
        ("POST", True, ["0"]),
        ("POST", False, ["0"]),  # RFC 9110 section 8.6: a POST says so
        ("DELETE", True, ["0"]),
        ("DELETE", False, []),
        ("GET", False, []),
    ],
)
def test_an_empty_body_stays_empty(
    talk: Talk, method: str, declared: bool, arrives: list[str]
) -> None:
    headers = (("Content-Length", "0"),) if declared else ()
    assert talk.ask(method, ECHO, headers=headers).status == 200
    seen = talk.seen()
    assert header_of(seen, "content-length") == arrives
    assert "transfer-encoding" not in header_names(seen)
    assert "content-type" not in header_names(seen)
    assert seen["body_length"] == 0


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
@pytest.mark.parametrize("base", ["/openai/v1", "/v1"])
def test_a_body_may_be_missing_whatever_its_type_says(talk: Talk, base: str, kind: str) -> None:
    headers = (("Content-Type", kind), ("Content-Length", "0"))
    assert talk.ask("POST", f"{base}/_echo", headers=headers).status == 200
    assert talk.seen()["body_length"] == 0


def test_a_chunked_body_stays_chunked_and_the_same(talk: Talk) -> None:
    data = raw.request(
        talk.gateway.port,
        "PUT",
        ECHO,
        key=talk.gateway.secrets["web-app"],
        headers=(("Transfer-Encoding", "chunked"), ("x-sim-book", talk.book + "-chunked")),
    )
    pieces = b"3\r\nabc\r\n" + b"5;x=y\r\ndefgh\r\n" + b"0\r\nTrailer-Not-Sent: x\r\n\r\n"
    told = json.loads(raw.exchange(talk.gateway.port, data + pieces).body)
    assert told["body_sha256"] == hashlib.sha256(b"abcdefgh").hexdigest()
    assert ["Transfer-Encoding", "chunked"] in told["headers"]
    assert not any(name == "Trailer-Not-Sent" for name, _ in told["headers"])


@pytest.mark.parametrize(
    "body", [b"\0\xff not a form", b"--b\r\n\r\n", b"--b--", b"--b\n" * 9000, b""]
)
def test_on_a_providers_own_path_a_form_is_the_providers_to_judge(talk: Talk, body: bytes) -> None:
    headers = (("Content-Type", "multipart/form-data; boundary=b"),)
    assert talk.ask("POST", ECHO, body, headers).status == 200
    assert talk.seen()["body_sha256"] == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("base", ["/openai/v1", "/v1"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_an_empty_chunked_body_is_an_empty_body(talk: Talk, base: str, kind: str) -> None:
    book = ("x-sim-book", talk.book)
    chunked = (("Transfer-Encoding", "chunked"), ("Content-Type", kind), book)
    key, port = talk.gateway.secrets["web-app"], talk.gateway.port
    head = raw.request(port, "POST", f"{base}/_echo", key=key, headers=chunked)
    assert raw.exchange(port, head + b"0\r\n\r\n").status == 200
    assert talk.seen()["body_length"] == 0


@pytest.mark.parametrize("base", ["/openai/v1", "/v1"])
def test_a_form_encoded_body_passes(talk: Talk, base: str) -> None:
    body = b"model=x&a=%zz+1"
    headers = (("Content-Type", "application/x-www-form-urlencoded"),)
    talk.ask("POST", f"{base}/_echo", body, headers)
    assert talk.seen()["body_sha256"] == hashlib.sha256(body).hexdigest()
    assert header_of(talk.seen(), "content-type") == ["application/x-www-form-urlencoded"]


def test_headers_pass_but_for_those_that_the_contract_names(
    talk: Talk, simulator: Simulator
) -> None:
    passing = (
        ("OpenAI-Beta", "assistants=v2"),
        ("Idempotency-Key", "abc"),
        ("X-Request-Id", "mine"),
        ("User-Agent", "my own/1.0"),
        ("Accept", "*/*;q=0.1"),
        ("X-Stainless-Lang", "python"),
        ("Accept-Encoding", "gzip, br;q=0.5"),
        ("X-Latin", "\xe4\xf6\xfc"),
    )
    stopped = (
        ("Connection", "keep-alive, X-Only-For-You"),
        ("X-Only-For-You", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Proxy-Authorization", "Basic x"),
        ("Proxy-Connection", "keep-alive"),
        ("Cookie", "a=b"),
        ("api-key", "x"),
        ("X-Api-Key", "y"),
        ("OpenAI-Organization", "org-1"),
        ("OpenAI-Project", "proj-1"),
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Anything", "x"),
    )
    assert talk.ask("GET", ECHO, headers=passing + stopped).status == 200
    seen = talk.seen()
    for name, value in passing:
        assert header_of(seen, name.lower()) == [value]
    assert not header_names(seen) & {name.lower() for name, _ in stopped}
    assert header_of(seen, "host") == [f"127.0.0.1:{simulator.port}"]


def test_headers_come_down_but_for_those_that_the_contract_names(talk: Talk) -> None:
    orders = "; ".join(
        f"set={name}: {value}"
        for name, value in [
            ("Retry-After", "7"),
            ("X-Request-Id", "req-of-the-provider"),
            ("Content-Disposition", "attachment, filename=a.bin"),
            ("Link", "</a>, </b>"),
            ("X-Empty", ""),
            ("Cache-Control", "no-store"),
            ("Set-Cookie", "a=b"),
            ("openai-organization", "org-of-the-gateway"),
            ("openai-project", "proj-of-the-gateway"),
            ("Keep-Alive", "timeout=5"),
        ]
    )
    answer = talk.ask("GET", ECHO, headers=(("x-sim", orders),))
    assert answer.header("retry-after") == "7"
    assert answer.header("x-ratelimit-remaining-tokens") == "17997"
    assert "req-of-the-provider" in (answer.header("x-request-id") or "")
    assert answer.header("openai-processing-ms") == "7"
    assert answer.header("openai-version") == "2020-10-01"
    assert answer.header("content-disposition") == "attachment, filename=a.bin"
    assert answer.header("link") == "</a>, </b>"
    assert answer.header("x-empty") == ""
    assert answer.header("cache-control") == "no-store"
    assert answer.header("x-wrapper-provider") == "openai"
    for name in ("set-cookie", "openai-organization", "openai-project", "keep-alive"):
        assert answer.header(name) is None


# --- the caller's own credential ---------------------------------------------------------------


def test_the_ancestors_curl_works_with_the_callers_own_key(
    gateway: Gateway, simulator: Simulator
) -> None:
    book = f"ancestor-{uuid4()}"
    before = gateway.metrics().value("api_key_requests_total", api_key="client")
    done = subprocess.run(
        [
            require("curl"),
            *("--silent", "--show-error", "--max-time", "10", "-i"),
            *("-X", "POST", f"{gateway.url}/openai/v1/engines/davinci-codex/completions"),
            *("-H", "Authorization: Bearer sk-the-callers-own"),
            *("-H", "OpenAI-Organization: org-mine", "-H", "OpenAI-Project: proj-mine"),
            *("-H", "Content-Type: application/json", "-H", f"x-sim-book: {book}"),
            *("-d", '{ "prompt": "def hello():", "max_tokens": 5 }'),
        ],
        capture_output=True,
        check=True,
    )
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    answer = json.loads(body)
    assert (answer["object"], answer["model"]) == ("text_completion", "davinci-codex")
    (seen,) = simulator.requests(book=book)
    assert seen["target"] == "/v1/engines/davinci-codex/completions"
    assert header_of(seen, "authorization") == ["Bearer sk-the-callers-own"]
    assert header_of(seen, "openai-organization") == ["org-mine"]
    assert header_of(seen, "openai-project") == ["proj-mine"]
    request_id = next(
        line.split(b": ")[1].decode()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"x-request-id")
    )
    line = gateway.log_line(request_id)
    assert (line["api_key"], line["model"]) == ("client", "davinci-codex")
    assert line["completion_tokens"] == answer["usage"]["completion_tokens"]
    after = gateway.metrics().value("api_key_requests_total", api_key="client")
    assert after == before + 1


def test_a_401_for_the_callers_own_credential_comes_down_unchanged(talk: Talk) -> None:
    headers = (("x-sim", "status=401; message=no such key"),)
    answer = talk.ask("GET", ECHO, headers=headers, key="sk-the-callers-own")
    assert answer.status == 401
    assert json.loads(answer.body)["error"]["message"] == "no such key"


def test_a_gateway_key_is_exchanged_for_the_gateways_credential(talk: Talk) -> None:
    assert talk.ask("GET", ECHO).status == 200
    credential = f"Bearer {PROVIDER_KEYS['OPENAI_API_KEY']}"
    assert header_of(talk.seen(), "authorization") == [credential]
    assert talk.gateway.secrets["web-app"] not in json.dumps(talk.seen())


@pytest.mark.parametrize(
    "secret",
    [
        "sk-wr-" + "A" * 43,  # revoked, or never there
        "SK-WR-" + "A" * 43,
        "sk-wr-",
        "sk-wr-not-as-long",
    ],
)
def test_what_looks_like_a_gateway_key_never_goes_up(talk: Talk, secret: str) -> None:
    answer = talk.ask("GET", ECHO, key=secret)
    assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")
    assert json.loads(answer.body)["error"]["code"] == "invalid_api_key"
    assert talk.arrived() == []


def test_an_expired_gateway_key_never_goes_up(talk: Talk) -> None:
    answer = talk.ask("GET", ECHO, key=talk.gateway.secrets["expired"])
    assert answer.status == 401
    assert json.loads(answer.body)["error"]["code"] == "api_key_expired"
    assert talk.arrived() == []


@pytest.mark.parametrize("target", ["/groq/openai/v1/models", "/v1/_echo", "/v1/chat/completions"])
def test_a_credential_of_ones_own_is_taken_nowhere_else(talk: Talk, target: str) -> None:
    answer = talk.ask("POST", target, b"{}", key="sk-the-callers-own")
    assert answer.status == 401
    assert talk.arrived() == []


@pytest.mark.parametrize(
    "authorization",
    [
        (),
        ("Basic c2stdGhlOmNhbGxlcnM=",),
        ("Bearer",),
        ("Bearer  two-spaces",),
        ("Bearer a b",),
        ("Bearer sk-own", "Bearer sk-other"),
        ("Bearer sk-wr-gateway, Bearer sk-other",),
        ("Token sk-own",),
    ],
)
def test_only_one_well_formed_bearer_is_taken_for_the_callers_own(
    gateway: Gateway, simulator: Simulator, authorization: tuple[str, ...]
) -> None:
    book = f"bearer-{uuid4()}"
    headers = tuple(("Authorization", value) for value in authorization)
    data = raw.request(gateway.port, "GET", ECHO, headers=(("x-sim-book", book), *headers))
    answer = raw.exchange(gateway.port, data)
    assert answer.status == 401
    assert simulator.requests(book=book) == []


def test_no_such_provider_is_openais_404(talk: Talk) -> None:
    answer = talk.ask("GET", "/nobody/v1/models")
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_on_the_gateways_own_path_is_a_405_that_says_which(
    talk: Talk, method: str
) -> None:
    answer = talk.ask(method, "/chat/completions")
    assert answer.status == 405
    assert json.loads(answer.body)["error"]["code"] == "method_not_allowed"
    assert "POST" in (answer.header("allow") or "")
