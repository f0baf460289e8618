"""CORS: a browser app brings its key itself; no origin ever gets credentials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw
from harness.app import App
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS

if TYPE_CHECKING:
    from harness.app import AppFactory
    from harness.gateway import Gateway
    from harness.raw import Answer
    from harness.simulator import Simulator

ORIGIN = "https://app.example"
PREFLIGHT = (
    ("Origin", ORIGIN),
    ("Access-Control-Request-Method", "POST"),
    ("Access-Control-Request-Headers", "authorization, content-type, x-stainless-lang"),
)


def preflight(app: App | Gateway, target: str, *headers: tuple[str, str]) -> Answer:
    asked = raw.request(app.port, "OPTIONS", target, headers=headers or PREFLIGHT)
    return app.exchange(asked)


def allowed(answer: Answer) -> str | None:
    assert answer.header("access-control-allow-credentials") is None
    return answer.header("access-control-allow-origin")


@pytest.mark.parametrize(
    "target",
    ["/chat/completions", "/v1/chat/completions", "/v1/models", "/groq/openai/v1/files", "/usage"],
)
def test_a_preflight_is_answered_without_a_key(app: App, target: str) -> None:
    answer = preflight(app, target)
    assert answer.status in (200, 204)
    assert allowed(answer) == "*"
    methods = answer.header("access-control-allow-methods") or ""
    assert {"GET", "POST", "DELETE"} <= set(methods.split(", "))
    headers = (answer.header("access-control-allow-headers") or "").lower()
    assert {"authorization", "content-type", "x-stainless-lang"} <= set(headers.split(", "))
    assert int(answer.header("access-control-max-age") or 0) > 0


def test_a_worker_answers_a_preflight_without_a_key(gateway: Gateway) -> None:
    answer = preflight(gateway, chat.PATH)
    assert (answer.status, allowed(answer)) == (204, "*")


def test_a_preflight_never_reaches_the_provider(app: App, simulator: Simulator) -> None:
    target = f"/groq/openai/v1/{chat.mark()}"
    assert preflight(app, target).status == 204
    assert simulator.requests(target=target.removeprefix("/groq")) == []


def test_a_browser_may_read_the_answer_and_the_headers_that_matter(app: App) -> None:
    answer = chat.call(app, headers=(("Origin", ORIGIN),))
    assert answer.status == 200
    assert allowed(answer) == "*"
    exposed = (answer.header("access-control-expose-headers") or "").lower().split(", ")
    for name in (
        "x-request-id",
        "retry-after",
        "x-wrapper-provider",
        "x-wrapper-cost-usd",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-requests",
        "x-ratelimit-limit-tokens",
        "x-should-retry",
        "retry-after-ms",
        "openai-processing-ms",
        "openai-version",
        "*",
    ):
        assert name in exposed


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"key": "sk-wr-nobody"}, 401),
        ({"content": b"no json"}, 400),
        ({"orders": "status=429"}, 429),
        ({"orders": "reset=0"}, 502),
        ({"target": "/nothing"}, 404),
        ({"target": "/v1/../x"}, 400),
    ],
)
def test_a_browser_may_read_errors_too(app: App, how: dict[str, str], status: int) -> None:
    answer = chat.call(app, headers=(("Origin", ORIGIN),), **how)  # type: ignore[arg-type]
    assert answer.status == status
    assert allowed(answer) == "*"


def test_a_stream_is_readable_for_a_browser(gateway: Gateway) -> None:
    answer = chat.call(gateway, headers=(("Origin", ORIGIN),), stream=True)
    assert allowed(answer) == "*"
    assert len([name for name, _ in answer.headers if name == "access-control-allow-origin"]) <= 1


def test_a_browser_may_read_the_errors_of_a_worker(gateway: Gateway) -> None:
    answer = chat.call(gateway, key="sk-wr-nobody", headers=(("Origin", ORIGIN),))
    assert (answer.status, allowed(answer)) == (401, "*")


def test_cors_headers_of_the_provider_do_not_come_down(app: App) -> None:
    orders = (
        "set=Access-Control-Allow-Origin: https://provider.example;"
        "set=Access-Control-Allow-Credentials: true"
    )
    answer = chat.call(app, orders=orders, headers=(("Origin", ORIGIN),))
    assert allowed(answer) == "*"
    assert allowed(chat.call(app, orders=orders)) is None


def varies(answer: Answer) -> list[str]:
    return [name.strip().lower() for name in (answer.header("vary") or "").split(",") if name]


@pytest.mark.parametrize(
    "origins", ['["*"]', '["https://app.example"]', '["https://app.example", "http://b.example"]']
)
@pytest.mark.parametrize("sent", [None, ORIGIN, "https://evil.example"])
def test_every_response_that_depends_on_the_origin_says_so(
    app_factory: AppFactory, origins: str, sent: str | None
) -> None:
    app = app_factory(f"[server]\ncors_origins = {origins}\n\n{CONFIG}")
    headers = (("Origin", sent),) if sent else ()
    key = app.secrets["web-app"]
    answers = [
        chat.call(app, headers=headers),
        chat.call(app, headers=headers, stream=True),
        chat.call(app, headers=headers, key="sk-wr-nobody"),
        chat.call(app, headers=headers, target="/nothing"),
        app.exchange(raw.request(app.port, "GET", "/v1/models", key=key, headers=headers)),
        app.exchange(raw.request(app.port, "GET", "/openapi.json", headers=headers)),
        preflight(app, chat.PATH, *headers, *PREFLIGHT[1:]),
    ]
    assert [varies(answer).count("origin") for answer in answers] == [1] * len(answers)


def test_what_the_provider_says_about_variants_stays(app: App) -> None:
    assert varies(chat.call(app, orders="set=Vary: Accept")) == ["accept", "origin"]


def test_where_no_origin_is_allowed_nothing_depends_on_it(app_factory: AppFactory) -> None:
    app = app_factory(f"[server]\ncors_origins = []\n\n{CONFIG}")
    answer = chat.call(app, headers=(("Origin", ORIGIN),))
    assert (allowed(answer), varies(answer)) == (None, [])


def test_without_an_origin_there_are_no_cors_headers(app: App) -> None:
    answer = chat.call(app)
    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control-")]


def test_a_public_page_gets_no_way_into_the_private_network(app: App) -> None:
    headers = (*PREFLIGHT, ("Access-Control-Request-Private-Network", "true"))
    answer = preflight(app, "/v1/models", *headers)
    assert answer.header("access-control-allow-private-network") != "true"


def test_an_options_that_is_no_preflight_goes_to_the_provider_with_a_key_only(
    app: App, simulator: Simulator
) -> None:
    key = app.secrets["web-app"]
    target = f"/openai/v1/{chat.mark()}"
    asked = raw.request(app.port, "OPTIONS", "/groq" + target)
    assert app.exchange(asked).status == 401
    asked = raw.request(app.port, "OPTIONS", "/groq" + target, key=key)
    assert app.exchange(asked).status == 200
    assert [r["method"] for r in simulator.requests(target=target)] == ["OPTIONS"]


@pytest.fixture(scope="module")
def strict(simulator: Simulator) -> Iterator[App]:
    """An application that lets two origins in."""
    server = '[server]\ncors_origins = ["https://app.example", "http://localhost:3000"]\n\n'
    config = server + CONFIG.replace("{simulator}", simulator.url)
    with App(config, keys=KEYS, env=PROVIDER_KEYS) as running:
        yield running


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_a_configured_origin_is_allowed_by_name(strict: App, origin: str) -> None:
    answer = chat.call(strict, headers=(("Origin", origin),))
    assert allowed(answer) == origin
    assert "origin" in (answer.header("vary") or "").lower()


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.evil",
        "https://appxexample",
        "http://app.example",
        "https://app.example:8443",
        "https://evil.example",
        "null",
        "*",
        "",
    ],
)
def test_any_other_origin_is_not_allowed(strict: App, origin: str) -> None:
    assert allowed(chat.call(strict, headers=(("Origin", origin),))) is None
    headers = (("Origin", origin), *PREFLIGHT[1:])
    assert allowed(preflight(strict, chat.PATH, *headers)) is None


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/chat/completions", "/v1/models"])
def test_an_options_request_that_is_no_preflight_needs_a_key(app: App, target: str) -> None:
    answer = app.exchange(raw.request(app.port, "OPTIONS", target))
    assert answer.status == (405 if target == "/chat/completions" else 401)
