"""Addresses that clients try: without `/v1`, a provider's root, the root, WebSockets, a prefix."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest

from harness import chat, raw
from harness.defaults import CONFIG

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.gateway import Gateway, GatewayFactory
    from harness.raw import Answer
    from harness.simulator import Simulator

MODEL = f'"model":"{chat.MODEL}"'
HANDSHAKE = (
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
)


def call(
    app: App | Gateway,
    method: str,
    target: str,
    body: str = "",
    *,
    key: str = "web-app",
    headers: tuple[tuple[str, str], ...] = (),
) -> Answer:
    secret = app.secrets.get(key, key)
    asked = raw.request(app.port, method, target, body.encode(), key=secret, headers=headers)
    return app.exchange(asked, head_only=method == "HEAD")


# --- without /v1 ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/completions", f'{{{MODEL},"prompt":"a"}}'),
        ("POST", "/embeddings", f'{{{MODEL},"input":"a"}}'),
        ("POST", "/responses", f'{{{MODEL},"input":"a"}}'),
        ("POST", "/responses?a=%20b", '{"model":"gpt-6-luna","input":"a"}'),
        ("GET", "/responses/resp_1", ""),
        ("POST", "/responses/resp_1/cancel", ""),
        ("POST", "/moderations", f'{{{MODEL},"input":"a"}}'),
        ("POST", "/images/generations", f'{{{MODEL},"prompt":"a"}}'),
        ("POST", "/audio/speech", f'{{{MODEL},"input":"a","voice":"v"}}'),
        ("GET", "/files", ""),
        ("HEAD", "/files", ""),
        ("DELETE", "/files/file-1", ""),
        ("GET", "/batches?limit=1", ""),
        ("GET", "/vector_stores/vs_1/files", ""),
        ("GET", "/chat/completions/chatcmpl-1", ""),
        ("DELETE", "/models/ft:one", ""),
        ("POST", "/embeddings", '{"model":"fast","input":"a"}'),
        ("POST", "/embeddings", '{"model":'),
    ],
)
def test_a_path_without_v1_is_the_same_as_with_it(
    app: App, simulator: Simulator, method: str, path: str, body: str
) -> None:
    answers = []
    for target in (path, "/v1" + path):
        book = chat.mark()
        told = chat.told("" if body else "status=200", book)
        answer = call(app, method, target, body, headers=told)
        seen = [(r["method"], r["target"], r["body_base64"]) for r in simulator.requests(book=book)]
        answers.append((answer.status, answer.header("x-wrapper-provider"), seen))
    assert answers[0] == answers[1]
    assert answers[0][0] != 404


@pytest.mark.parametrize("path", ["/models", f"/models/{chat.MODEL}", "/models/no-such-model"])
@pytest.mark.parametrize("key", ["web-app", "narrow", "sk-wr-nobody"])
def test_models_without_v1_are_the_same_as_with_it(app: App, path: str, key: str) -> None:
    short, long = (call(app, "GET", prefix + path, key=key) for prefix in ("", "/v1"))
    assert (short.status, short.body) == (long.status, long.body)


def test_a_path_without_v1_is_counted_as_the_one_with_it(gateway: Gateway) -> None:
    name, labels = "http_requests_total", {"path": "/v1/<path>", "method": "POST", "status": "200"}
    before = gateway.metrics().value(name, **labels)
    answer = call(gateway, "POST", "/embeddings", f'{{{MODEL},"input":"a"}}')
    assert answer.status == 200
    line = gateway.log_line(answer.header("x-request-id") or "")
    assert (line["path"], line["api_key"]) == ("/v1/<path>", "web-app")
    assert gateway.metrics().value(name, **labels) == before + 1


def test_a_path_without_v1_needs_a_key(app: App) -> None:
    assert call(app, "POST", "/embeddings", "{}", key="sk-wr-nobody").status == 401
    body = '{"model":"gpt-6-luna","input":"a"}'
    assert call(app, "POST", "/embeddings", body, key="narrow").status == 403


def test_a_provider_that_is_called_as_a_path_of_the_api_keeps_its_name(
    app_factory: AppFactory, simulator: Simulator
) -> None:
    app = app_factory(CONFIG + '[providers.files]\nbase_url = "{simulator}/v1"\n')
    book = chat.mark()
    answer = call(app, "GET", "/files/v1/models", headers=chat.told(book=book))
    assert (answer.status, answer.header("x-wrapper-provider")) == (200, "files")
    assert simulator.requests(book=book)[0]["target"] == "/v1/models"
    assert call(app, "GET", "/batches").header("x-wrapper-provider") == "groq"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/chat/completions", 405, "POST"),
        ("POST", "/healthz", 405, "GET"),
        ("POST", "/", 405, "GET"),
        ("POST", "/usage", 405, "GET"),
        ("GET", "/nothing", 404, None),
        ("GET", "/nothing/", 404, None),
        ("GET", "/Embeddings", 404, None),
        ("GET", "/embedding", 404, None),
        ("GET", "/v2/models", 404, None),
    ],
)
def test_what_is_no_address_is_still_none(
    app: App, method: str, path: str, status: int, allow: str | None
) -> None:
    answer = call(app, method, path)
    assert answer.status == status
    assert chat.error(answer)["code"] == {404: "unknown_url", 405: "method_not_allowed"}[status]
    assert allow is None or allow in (answer.header("allow") or "").split(", ")


# --- a provider's root ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    ("path", "arrives"), [("/groq", "/"), ("/groq/", "/"), ("/groq?a=b", "/?a=b")]
)
def test_a_providers_root_is_relayed(
    app: App, simulator: Simulator, method: str, path: str, arrives: str
) -> None:
    """Ollama's clients ask with HEAD / whether it is there."""
    book = chat.mark()
    answer = call(app, method, path, headers=chat.told("status=200", book))
    assert (answer.status, answer.header("x-wrapper-provider")) == (200, "groq")
    (seen,) = simulator.requests(book=book)
    assert (seen["method"], seen["target"]) == (method, arrives)


def test_a_providers_root_needs_a_key(app: App) -> None:
    assert call(app, "HEAD", "/groq/", key="sk-wr-nobody").status == 401


# --- WebSockets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["/v1/responses", "/v1/realtime?model=m", "/responses", "/groq/openai/v1/responses"]
)
def test_a_handshake_is_told_to_use_http_where_the_provider_takes_no_websockets(
    gateway: Gateway, target: str
) -> None:
    calls = {"api_key": "web-app", "outcome": "client_error"}
    before = gateway.metrics().value("api_key_requests_total", **calls)
    with raw.Connection(gateway.port) as connection:
        key = gateway.secrets["web-app"]
        sent = raw.request(gateway.port, "GET", target, key=key, headers=HANDSHAKE)
        answer = connection.send(sent).read()
        assert chat.error(answer)["code"] == "websocket_not_supported"
        assert (answer.status, answer.header("upgrade")) == (426, "HTTP/1.1")
        assert (answer.header("connection") or "").lower() == "upgrade"
        # The client goes on over HTTP, on the same connection if it likes.
        assert connection.send(chat.request(gateway)).read().status == 200
    line = gateway.log_line(answer.header("x-request-id") or "")
    assert (line["status"], line["api_key"], line["code"]) == (
        *(426, "web-app", "websocket_not_supported"),
    )
    assert line["path"] in ("/v1/<path>", "/<provider>/<path>")
    assert gateway.metrics().value("api_key_requests_total", **calls) == before + 1


@pytest.mark.parametrize("headers", [HANDSHAKE, HANDSHAKE[:2], HANDSHAKE[2:]])
def test_a_handshake_is_known_by_its_upgrade_or_by_its_key(
    app: App, simulator: Simulator, headers: tuple[tuple[str, str], ...]
) -> None:
    """A proxy in front may have removed the headers of the connection, but not the others."""
    book = chat.mark()
    headers = (*headers, *chat.told(book=book))
    assert call(app, "GET", "/v1/responses", headers=headers).status == 426
    assert simulator.requests(book=book) == []


def test_an_unknown_key_learns_nothing_about_websockets(app: App) -> None:
    answer = call(app, "GET", "/v1/responses", key="sk-wr-nobody", headers=HANDSHAKE)
    assert answer.status == 401


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", (("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"))),
        ("GET", (("Upgrade", "websocket"),)),
        ("POST", HANDSHAKE[:2]),
    ],
)
def test_any_other_upgrade_is_ignored(
    gateway: Gateway, simulator: Simulator, method: str, headers: tuple[tuple[str, str], ...]
) -> None:
    book = chat.mark()
    told = (*chat.told("status=200", book), *headers)
    assert call(gateway, method, "/v1/files", headers=told).status == 200
    (seen,) = simulator.requests(book=book)
    assert not {"upgrade", "http2-settings"} & {name.lower() for name, _ in seen["headers"]}


@pytest.mark.parametrize("target", ["/healthz", "/docs", "/usage"])
def test_the_gateways_own_pages_ignore_a_handshake(app: App, target: str) -> None:
    assert call(app, "GET", target, headers=HANDSHAKE).status == 200


# --- the page, and a proxy in front that serves the gateway below a prefix ----------------------


@pytest.mark.parametrize("path", ["/", "/swagger", "/swagger/"])
@pytest.mark.parametrize("prefix", ["", "/llm", "/a/b"])
def test_a_browser_at_the_root_is_sent_to_the_page(app: App, path: str, prefix: str) -> None:
    answer = call(app, "GET", path)
    assert answer.status == 302
    location = answer.header("location") or ""
    assert urljoin(f"http://host{prefix}{path}", location) == f"http://host{prefix}/docs"


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/swagger/index.html"])
@pytest.mark.parametrize("prefix", ["", "/llm", "/a/b"])
def test_every_link_of_the_page_works_below_a_prefix(app: App, path: str, prefix: str) -> None:
    page = call(app, "GET", path).body.decode()
    links = [
        part.split('"')[0] for name in ("href=", "src=") for part in page.split(f'{name}"')[1:]
    ]
    assert len(links) == 6
    for link in links:
        there = urljoin(f"http://host{prefix}{path}", link).removeprefix(f"http://host{prefix}/")
        assert call(app, "GET", f"/{there}").status == 200
    described = call(app, "GET", "/openapi.json").body
    assert b'"servers":[{"url":"."' in described


def test_a_prefix_that_a_proxy_leaves_in_the_paths_is_taken_off(
    gateway_factory: GatewayFactory, simulator: Simulator
) -> None:
    gateway = gateway_factory('[server]\nroot_path = "/llm"\n\n' + CONFIG)
    book = chat.mark()
    for prefix in ("/llm", ""):  # health checks come without it
        assert call(gateway, "GET", f"{prefix}/healthz").status == 200
        assert call(gateway, "GET", f"{prefix}/docs").status == 200
        assert call(gateway, "GET", f"{prefix}/").status == 302
        assert chat.call(gateway, target=f"{prefix}{chat.PATH}?a=b", book=book).status == 200
        target = f"{prefix}/groq/llm/x%20y"
        told = chat.told("status=200", book)
        assert call(gateway, "GET", target, headers=told).status == 200
    assert call(gateway, "GET", "/llm").status == 302
    assert call(gateway, "GET", "/llm?a").status == 302
    assert call(gateway, "GET", "/llmx/healthz").status == 404
    assert call(gateway, "GET", "/llm//healthz").status == 400
    seen = {request["target"] for request in simulator.requests(book=book)}
    assert seen == {"/openai/v1/chat/completions?a=b", "/llm/x%20y"}
