"""Headers: what passes, what stays, and who names a request.

What the server itself adds or takes away, and some of each kind, runs over a socket.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw
from harness.defaults import CONFIG

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.gateway import Gateway
    from harness.raw import Answer
    from harness.simulator import Simulator

OURS = re.compile(r"req_[0-9a-f]{24}")
PATHS = pytest.mark.parametrize(
    "target", [chat.PATH, "/groq/openai/v1/chat/completions"], ids=["unified", "passthrough"]
)


def up(
    app: App | Gateway, simulator: Simulator, target: str, *headers: tuple[str, str]
) -> dict[str, list[str]]:
    """The headers as they arrived at the provider, by lower-case name."""
    book = chat.mark()
    answer = chat.call(app, headers=headers, book=book, target=target)
    assert answer.status == 200
    (seen,) = simulator.requests(book=book)
    found: dict[str, list[str]] = {}
    for name, value in seen["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


@PATHS
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OpenAI-Beta", "assistants=v2"),
        ("Idempotency-Key", "once-1"),
        ("x-request-id", "mine-1"),
        ("X-Client-Request-Id", "mine-2"),
        ("User-Agent", "tests/1.0"),
        ("Accept", "application/json"),
        ("Accept-Language", "de, en;q=0.5"),
        ("X-Stainless-Retry-Count", "0"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("X-Odd", 'a "quoted; text", =?, \t b'),
        ("X-Latin", "caf\xe9"),
        ("X-Empty", ""),
        ("Range", "bytes=0-1"),
        ("If-None-Match", '"x"'),
        ("cf-aig-metadata", "{}"),
    ],
)
def test_a_header_of_the_caller_goes_up(
    app: App, simulator: Simulator, target: str, name: str, value: str
) -> None:
    assert up(app, simulator, target, (name, value))[name.lower()] == [value]


@PATHS
@pytest.mark.parametrize(
    "name",
    [
        "Cookie",
        "api-key",
        "x-api-key",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Prefix",
        "Proxy-Authorization",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "HTTP2-Settings",
        "Proxy-Connection",
        "x-goog-api-key",
    ],
)
def test_hop_by_hop_and_private_headers_of_the_caller_do_not_go_up(
    app: App, simulator: Simulator, target: str, name: str
) -> None:
    assert name.lower() not in up(app, simulator, target, (name, "private"))


@PATHS
@pytest.mark.parametrize(
    "name",
    [
        "Origin",
        "Referer",
        "Sec-Fetch-Site",
        "Via",
        "CDN-Loop",
        "CF-Connecting-IP",
        "CF-Ray",
        "True-Client-IP",
        "Fastly-Client-IP",
        "Fly-Client-IP",
        "X-Client-IP",
        "X-Cluster-Client-IP",
        "X-Real-IP",
        "X-Forwarded",
        "X-Original-Host",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Envoy-External-Address",
        "X-Amzn-Trace-Id",
        "X-Azure-ClientIP",
        "CloudFront-Viewer-Address",
    ],
)
def test_a_header_that_tells_of_the_way_here_does_not_go_up(
    app: App, simulator: Simulator, target: str, name: str
) -> None:
    """A page in a browser calls a local model server, which refuses the page's Origin."""
    assert name.lower() not in up(app, simulator, target, (name, "192.0.2.1"))


ACCOUNT = ["OpenAI-Organization", "OpenAI-Project", "ChatGPT-Account-Id", "X-Goog-User-Project"]


@PATHS
@pytest.mark.parametrize("name", ACCOUNT)
def test_with_the_gateways_credential_the_callers_account_stays_behind(
    app: App, simulator: Simulator, target: str, name: str
) -> None:
    """OpenAI refuses a key that is not of the organization that the request names."""
    assert name.lower() not in up(app, simulator, target, (name, "org-1"))


@pytest.mark.parametrize("name", ACCOUNT)
def test_with_the_callers_own_credential_their_account_goes_up(
    app: App, simulator: Simulator, name: str
) -> None:
    book = chat.mark()
    how = {"target": "/openai/v1/chat/completions", "key": "sk-callers-own"}
    assert chat.call(app, book=book, headers=((name, "org-1"),), **how).status == 200
    (seen,) = simulator.requests(book=book)
    assert "org-1" in [value for header, value in seen["headers"] if header.lower() == name.lower()]


def test_the_configured_account_belongs_to_the_gateways_credential(
    app_factory: AppFactory, simulator: Simulator
) -> None:
    headers = 'headers = { "OpenAI-Organization" = "org-ours", "X-Team" = "red" }\n\n[[routes]]'
    app = app_factory(CONFIG.replace("\n[[routes]]", headers, 1))
    for key, organization in (("web-app", "org-ours"), ("sk-callers-own", "org-theirs")):
        book = chat.mark()
        sent = (("OpenAI-Organization", "org-theirs"), ("X_Team", "blue"))
        target = "/openai/v1/chat/completions"
        assert chat.call(app, book=book, headers=sent, target=target, key=key).status == 200
        (request,) = simulator.requests(book=book)
        seen = {name.lower(): value for name, value in request["headers"]}
        assert seen["openai-organization"] == organization
        assert seen["x-team"] == "red"
        assert "x_team" not in seen


TCHAR = "!#$%&'*+-.^_`|~09AZaz"  # RFC 9110 section 5.6.2, of letters and digits the first and last


@pytest.mark.parametrize("char", TCHAR)
@PATHS
def test_every_character_that_a_headers_name_may_have_goes_up(
    app: App, simulator: Simulator, target: str, char: str
) -> None:
    name = f"X{char}Trace"
    assert up(app, simulator, target, (name, "1"))[name.lower()] == ["1"]
    name = f"{char}X-1{char}"
    assert up(app, simulator, target, (name, "1"))[name.lower()] == ["1"]


@PATHS
@pytest.mark.parametrize(
    ("sent", "arrive"),
    [
        (["X_Trace", "X-Trace"], ["x-trace"]),
        (["X-Trace", "x_trace"], ["x-trace"]),
        (["X_Trace-Id", "X-Trace_Id"], []),
        (["X_Trace_Id", "X-Trace_Id", "X-Trace-Id"], ["x-trace-id"]),
        (["X_Trace"], ["x_trace"]),
        (["Session_Id", "Conversation_id"], ["session_id", "conversation_id"]),
    ],
)
def test_of_names_that_differ_in_an_underscore_only_the_hyphened_one_goes_up(
    app: App, simulator: Simulator, target: str, sent: list[str], arrive: list[str]
) -> None:
    """To a provider that is itself a WSGI application they would be one header."""
    seen = up(app, simulator, target, *((name, f"of {name}") for name in sent))
    usual = {"host", "authorization", "content-type", "content-length", "x-sim-book"}
    assert seen.keys() - usual == set(arrive)
    for name in arrive:
        assert [value.lower() for value in seen[name]] == [f"of {name}"]


def test_a_name_with_an_underscore_may_come_twice(app: App, simulator: Simulator) -> None:
    assert up(app, simulator, chat.PATH, ("X_T", "1"), ("x_t", "2"))["x_t"] == ["1,2"]


@PATHS
@pytest.mark.parametrize(
    "name",
    [
        "X_Forwarded_For",
        "X-Forwarded_For",
        "Content_Type",
        "Content_Length",
        "Transfer_Encoding",
        "Content_Encoding",
        "Accept_Encoding",
        "X_HTTP_Method_Override",
        "Proxy_Authorization",
        "api_key",
        "X_Api_Key",
        "X_Real_IP",
        "OpenAI_Organization",
        "CF_Connecting_IP",
        "Keep_Alive",
        "X_Private",
    ],
)
def test_an_underscore_makes_no_header_pass_for_another(
    app: App, simulator: Simulator, target: str, name: str
) -> None:
    seen = up(app, simulator, target, (name, "1"), ("Connection", "x-private"))
    assert seen.keys() == {"host", "authorization", "content-type", "content-length", "x-sim-book"}
    assert seen["content-type"] == ["application/json"]


@PATHS
def test_headers_that_the_callers_connection_names_do_not_go_up(
    app: App, simulator: Simulator, target: str
) -> None:
    headers = (
        ("Connection", "keep-alive, X-Private-One ,x-private-two"),
        ("X-Private-One", "1"),
        ("X-Private-Two", "2"),
        ("X-Public", "3"),
    )
    seen = up(app, simulator, target, *headers)
    assert "x-private-one" not in seen
    assert "x-private-two" not in seen
    assert seen["x-public"] == ["3"]


@PATHS
def test_expect_does_not_go_up(gateway: Gateway, simulator: Simulator, target: str) -> None:
    book, content = chat.mark(), chat.body()
    headers = (*chat.told(book=book), ("Expect", "100-continue"))
    key = gateway.secrets["web-app"]
    asked = raw.request(gateway.port, "POST", target, content, key=key, headers=headers)
    with raw.Connection(gateway.port).send(asked) as connection:
        assert connection.read().status == 100
        assert connection.read().status == 200
    (seen,) = simulator.requests(book=book)
    assert "expect" not in {name.lower() for name, _ in seen["headers"]}


@PATHS
def test_the_provider_is_addressed_by_its_own_name(
    app: App, simulator: Simulator, target: str
) -> None:
    seen = up(app, simulator, target)
    assert seen["host"] == [f"127.0.0.1:{simulator.port}"]
    assert seen["content-length"] == [str(len(chat.body()))]
    assert "transfer-encoding" not in seen


@PATHS
def test_nothing_is_added_that_the_caller_did_not_send(
    app: App, simulator: Simulator, target: str
) -> None:
    seen = up(app, simulator, target)
    assert seen.keys() == {"host", "authorization", "content-type", "content-length", "x-sim-book"}


@PATHS
def test_codings_that_cannot_be_metered_are_not_asked_for(
    app: App, simulator: Simulator, target: str
) -> None:
    sent = ("Accept-Encoding", "gzip, zstd;q=0.9, br;q=0.8, deflate, x-odd")
    (value,) = up(app, simulator, target, sent)["accept-encoding"]
    assert value == "gzip, br;q=0.8, deflate"
    (value,) = up(app, simulator, target, ("Accept-Encoding", "zstd"))["accept-encoding"]
    assert value == "identity"


# --- down -------------------------------------------------------------------------------------


def down(app: App | Gateway, target: str, *orders: str) -> Answer:
    return chat.call(app, target=target, orders="; ".join(orders))


@PATHS
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-ratelimit-limit-audio-seconds", "7200"),
        ("OpenAI-Version", "2020-10-01"),
        ("openai-model", "m"),
        ("Cache-Control", "no-store"),
        ("CF-Ray", "8a-FRA"),
        ("Vary", "Accept"),
        ("ETag", '"x"'),
        ("Location", "/v1/x y"),
        ("Link", "<https://a.example>"),
        ("X-Latin", "caf\xe9"),
        ("Content-Disposition", "attachment"),
        ("Content-Language", "de"),
        ("X-Accel-Buffering", "no"),
    ],
)
def test_a_header_of_the_provider_comes_down(app: App, target: str, name: str, value: str) -> None:
    answer = down(app, target, f"set={name}: {value}")
    assert value in (answer.header(name) or "").split(", ") or answer.header(name) == value


@PATHS
def test_rate_limit_and_timing_headers_come_down(app: App, target: str) -> None:
    answer = down(app, target, "retry-after=3", "status=200")
    assert answer.header("x-ratelimit-remaining-tokens") == "17997"
    assert answer.header("x-ratelimit-reset-requests") == "2m59.56s"
    assert answer.header("openai-processing-ms") == "7"
    assert answer.header("retry-after") == "3"


@PATHS
@pytest.mark.parametrize(
    "name",
    [
        "Set-Cookie",
        "openai-organization",
        "openai-project",
        "Proxy-Authenticate",
        "Upgrade",
        "Keep-Alive",
        "Proxy-Connection",
        "Trailer",
        "Strict-Transport-Security",
        "Alt-Svc",
        "Clear-Site-Data",
        "Public-Key-Pins",
        "Public-Key-Pins-Report-Only",
        "Expect-CT",
        "NEL",
        "Report-To",
        "Reporting-Endpoints",
        "Accept-CH",
        "Origin-Agent-Cluster",
        "Service-Worker-Allowed",
        "Timing-Allow-Origin",
    ],
)
def test_hop_by_hop_and_private_headers_of_the_provider_do_not_come_down(
    app: App, target: str, name: str
) -> None:
    assert down(app, target, f"set={name}: private").header(name) is None


@PATHS
def test_headers_that_the_providers_connection_names_do_not_come_down(
    app: App, target: str
) -> None:
    answer = down(app, target, "set=Connection: X-Private", "set=X-Private: 1", "set=X-B: 2")
    assert answer.header("x-private") is None
    assert answer.header("x-b") == "2"


@PATHS
def test_repeated_headers_come_down_as_often_as_they_came(app: App, target: str) -> None:
    answer = down(app, target, "set=X-Twice: 1", "set=X-Twice: 2")
    assert [value for name, value in answer.headers if name.lower() == "x-twice"] == ["1", "2"]


@PATHS
def test_each_of_the_servers_own_headers_is_there_once(gateway: Gateway, target: str) -> None:
    answer = down(gateway, target)
    names = [name.lower() for name, _ in answer.headers]
    for name in ("date", "server", "content-length", "content-type", "x-request-id"):
        assert names.count(name) == 1
    assert "simulator" not in (answer.header("server") or "")


# --- who answered, and under which name -------------------------------------------------------


@PATHS
def test_the_request_id_is_the_providers_where_it_has_one(
    app: App, simulator: Simulator, target: str
) -> None:
    book = chat.mark()
    answer = chat.call(app, target=target, book=book, headers=(("x-request-id", "mine"),))
    (seen,) = simulator.requests(book=book)
    assert answer.header("x-request-id") == f"req_{seen['id']}"
    assert answer.header("x-wrapper-provider") == "groq"


@pytest.mark.parametrize(
    "how",
    [
        {"key": "sk-wr-nobody"},
        {"content": b"no json"},
        {"orders": "reset=0"},
        {"target": "/v1/../x"},
        {"target": "/nothing"},
        {"target": "/healthz"},
    ],
)
def test_else_the_request_id_is_the_gateways(gateway: Gateway, how: dict[str, str]) -> None:
    answer = chat.call(gateway, headers=(("x-request-id", "mine"),), **how)  # type: ignore[arg-type]
    request_id = answer.header("x-request-id")
    assert request_id
    assert OURS.fullmatch(request_id)
    assert answer.header("x-wrapper-provider") is None
    assert gateway.log_line(request_id)["request_id"] == request_id


def test_each_answer_of_the_gateway_has_an_id_of_its_own(app: App) -> None:
    ids = {chat.call(app, b"no json").header("x-request-id") for _ in range(20)}
    assert len(ids) == 20


def test_one_users_cookie_never_reaches_another(gateway: Gateway, simulator: Simulator) -> None:
    for _ in range(4):
        chat.call(gateway, orders="set=Set-Cookie: session=of-one-user")
    assert "cookie" not in up(gateway, simulator, chat.PATH)


@pytest.mark.parametrize(
    ("stream", "orders", "value"),
    [
        (True, "", "no"),
        (True, "set=X-Accel-Buffering: yes", "no"),
        (True, "status=500", None),
        (False, "", None),
        (False, "framing=no-length", None),
    ],
)
@PATHS
def test_a_proxy_in_front_is_asked_not_to_hold_back_a_stream(
    app: App, target: str, stream: bool, orders: str, value: str | None
) -> None:
    """nginx, as it comes, collects responses and sends a stream when it is over."""
    answer = chat.call(app, target=target, stream=stream, orders=orders)
    assert answer.header("x-accel-buffering") == value


def test_a_proxy_in_front_is_asked_not_to_hold_back_sound(app: App) -> None:
    body = b'{"model":"whisper-1","input":"hello","voice":"alloy"}'
    how = {"target": "/v1/audio/speech", "orders": "framing=no-length"}
    assert chat.call(app, body, **how).header("x-accel-buffering") == "no"


# --- over a socket ----------------------------------------------------------------------------


@PATHS
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X_Trace", "1"),
        ("X-Odd", 'a "quoted; text", =?, \t b'),
        ("X-Latin", "caf\xe9"),
        ("X-Empty", ""),
    ],
)
def test_a_worker_sends_a_header_of_the_caller_up(
    gateway: Gateway, simulator: Simulator, target: str, name: str, value: str
) -> None:
    assert up(gateway, simulator, target, (name, value))[name.lower()] == [value]


@PATHS
def test_a_worker_keeps_hop_by_hop_and_private_headers_of_the_caller(
    gateway: Gateway, simulator: Simulator, target: str
) -> None:
    private = (("Cookie", "a=b"), ("X-Forwarded-For", "1.2.3.4"), ("TE", "trailers"))
    seen = up(gateway, simulator, target, *private, ("Connection", "X-Private"), ("X-Private", "1"))
    assert seen.keys() == {"host", "authorization", "content-type", "content-length", "x-sim-book"}


@PATHS
@pytest.mark.parametrize(
    ("name", "value"), [("ETag", '"x"'), ("Link", "<https://a.example>"), ("X-Latin", "caf\xe9")]
)
def test_a_worker_sends_a_header_of_the_provider_down(
    gateway: Gateway, target: str, name: str, value: str
) -> None:
    assert down(gateway, target, f"set={name}: {value}").header(name) == value


@PATHS
@pytest.mark.parametrize("name", ["Set-Cookie", "Alt-Svc", "Keep-Alive", "Trailer"])
def test_a_worker_keeps_hop_by_hop_and_private_headers_of_the_provider(
    gateway: Gateway, target: str, name: str
) -> None:
    assert down(gateway, target, f"set={name}: private").header(name) is None
