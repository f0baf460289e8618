"""Anthropic's SDK through `/anthropic`, unchanged: its base URL and its key are the gateway's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anthropic
import pytest

from harness import raw
from harness.defaults import KEYS
from harness.gateway import Gateway

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.simulator import Simulator

MODEL = "claude-sonnet-5"
SECRET = "sk-ant-PROVIDERS-OWN-KEY-anthropic"
ENV = {"ANTHROPIC_API_KEY": SECRET}
CONFIG = """\
[providers.anthropic]
base_url = "{simulator}/v1"
api_key = { env = "ANTHROPIC_API_KEY" }
auth = "x-api-key"
client_credentials = true

[providers.closed]
base_url = "{simulator}/v1"
api_key = { env = "ANTHROPIC_API_KEY" }
auth = "x-api-key"

[providers.azure]
base_url = "{simulator}/v1"
api_key = { env = "ANTHROPIC_API_KEY" }
auth = "api-key"

[[routes]]
model = "claude-*"
targets = ["anthropic"]
"""
ASKED: Any = {
    "model": MODEL,
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "how are you"}],
}
ECHO = "/anthropic/v1/echo"
OWN = "sk-ant-the-callers-own"


@pytest.fixture(scope="module")
def gateway(simulator: Simulator) -> Iterator[Gateway]:
    config = CONFIG.replace("{simulator}", simulator.url)
    with Gateway(config, keys=KEYS, env=ENV) as running:
        yield running


@pytest.fixture
def app(app_factory: AppFactory) -> App:
    return app_factory(CONFIG, env=ENV)


@pytest.fixture
def book() -> str:
    return f"anthropic-{uuid4()}"


def sdk(gateway: Gateway, book: str, orders: str = "", **key: str | None) -> anthropic.Anthropic:
    key = {"api_key": None, "auth_token": None, **key}
    return anthropic.Anthropic(
        base_url=f"{gateway.url}/anthropic",
        default_headers={"x-sim-book": book, "x-sim": orders},
        max_retries=0,
        **key,
    )


def sent(request: dict[str, Any], name: str) -> list[str]:
    return [value for found, value in request["headers"] if found.lower() == name]


def agrees(line: dict[str, Any], simulator: Simulator, book: str) -> None:
    """The log line says what the provider's ledger says, and that saw its own credential alone."""
    (seen,) = simulator.requests(book=book)
    usage = seen["usage"]
    assert [line[f"{kind}_tokens"] for kind in ("prompt", "completion", "cached")] == [
        usage[kind] for kind in ("prompt", "completion", "cached")
    ]
    assert (line["api_key"], line["model"], line["provider"]) == ("web-app", MODEL, "anthropic")
    assert sent(seen, "x-api-key") == [SECRET]
    assert sent(seen, "authorization") == []


# --- the SDK -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["api_key", "auth_token"])
def test_a_message_is_relayed_and_metered(
    gateway: Gateway, simulator: Simulator, key: str, book: str, how: str
) -> None:
    with sdk(gateway, book, "prompt=40; cached=10", **{how: key}) as client:
        answer = client.messages.with_raw_response.create(**ASKED)
    message = answer.parse()
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (30, 10)
    agrees(gateway.log_line(answer.headers["x-request-id"]), simulator, book)


def test_a_stream_is_relayed_and_metered(
    gateway: Gateway, simulator: Simulator, key: str, book: str
) -> None:
    with (
        sdk(gateway, book, "cached; prompt=9", api_key=key) as client,
        client.messages.stream(**ASKED) as stream,
    ):
        text = "".join(stream.text_stream)
        request_id = stream.response.headers["x-request-id"]
        usage = stream.get_final_message().usage
    assert text.startswith("This is a simulated answer")
    line = gateway.log_line(request_id)
    agrees(line, simulator, book)
    assert line["completion_tokens"] == usage.output_tokens
    assert line["stream"]


def test_counting_tokens_costs_nothing(gateway: Gateway, key: str, book: str) -> None:
    asked = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    before = gateway.metrics().value("unmetered_responses_total")
    with sdk(gateway, book, api_key=key) as client:
        answer = client.messages.with_raw_response.count_tokens(**asked)
    assert answer.parse().input_tokens == 3
    line = gateway.log_line(answer.headers["x-request-id"])
    assert (line["prompt_tokens"], line["unmetered"], line["cost_usd"]) == (None, None, None)
    assert gateway.metrics().value("unmetered_responses_total") == before


def test_models_are_listed(gateway: Gateway, key: str, book: str) -> None:
    with sdk(gateway, book, api_key=key) as client:
        assert "sim-model" in [model.id for model in client.models.list().data]


def test_a_refusal_raises_the_sdks_own_exceptions(gateway: Gateway, book: str) -> None:
    with (
        sdk(gateway, book, api_key="sk-wr-unknown") as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        client.messages.create(**ASKED)
    with (
        sdk(gateway, book, api_key=gateway.secrets["narrow"]) as client,
        pytest.raises(anthropic.PermissionDeniedError),
    ):
        client.messages.create(**ASKED)


def test_the_same_api_is_at_v1_by_the_name_of_the_model(
    gateway: Gateway, simulator: Simulator, key: str, book: str
) -> None:
    """There the key is a bearer, as everywhere below `/v1`."""
    body = json.dumps(ASKED).encode()
    answer = raw.post(gateway.port, "/v1/messages", body, key=key, headers=(("x-sim-book", book),))
    assert answer.status == 200
    agrees(gateway.log_line(answer.header("x-request-id") or ""), simulator, book)


# --- whose key, and in which header --------------------------------------------------------------


def ask(app: App, book: str, *headers: tuple[str, str], at: str = "anthropic") -> raw.Answer:
    target = f"/{at}/v1/echo"
    named = (*headers, ("x-sim-book", book))
    return app.exchange(raw.request(app.port, "GET", target, headers=named))


def credentials(simulator: Simulator, book: str) -> dict[str, list[str]]:
    """What the provider saw of them."""
    (seen,) = simulator.requests(book=book)
    names = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
    return {name: found for name in names if (found := sent(seen, name))}


@pytest.mark.parametrize(
    "headers",
    [
        [("x-api-key", "{key}")],
        [("X-API-KEY", "{key}"), ("Authorization", "")],
        [("Authorization", "Bearer {key}")],
        [("Authorization", "Bearer {key}"), ("x-api-key", "")],
        [("Authorization", "Bearer {key}"), ("x-api-key", "{key}")],
        [("Authorization", f"Bearer {OWN}"), ("x-api-key", "{key}")],
        [("Authorization", "Bearer {key}"), ("x-api-key", OWN)],
    ],
)
def test_a_gateway_key_is_found_and_exchanged_for_the_gateways_credential(
    app: App, simulator: Simulator, book: str, headers: list[tuple[str, str]]
) -> None:
    key = app.secrets["web-app"]
    answer = ask(app, book, *((name, value.replace("{key}", key)) for name, value in headers))
    assert answer.status == 200
    assert credentials(simulator, book) == {"x-api-key": [SECRET]}


def test_a_credential_can_go_in_other_headers(app: App, simulator: Simulator, book: str) -> None:
    assert ask(app, book, ("api-key", app.secrets["web-app"]), at="azure").status == 200
    assert credentials(simulator, book) == {"api-key": [SECRET]}


@pytest.mark.parametrize(
    ("header", "value"), [("x-api-key", OWN), ("Authorization", f"Bearer {OWN}")]
)
def test_the_callers_own_credential_goes_up_where_it_came(
    app: App, simulator: Simulator, book: str, header: str, value: str
) -> None:
    assert ask(app, book, (header, value)).status == 200
    assert credentials(simulator, book) == {header.lower(): [value]}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("x-api-key", "")],
        [("x-api-key", "sk-wr-" + "A" * 43)],
        [("x-api-key", "SK-WR-short")],
        [("x-api-key", "{key} ,{key}")],
        [("x-api-key", "{key}"), ("x-api-key", "{key}")],
        [("x-api-key", "Bearer {key}")],
        [("x-api-key", "k\xe9y")],
        [("api-key", "{key}")],
        [("x_api_key", "{key}")],
        [("x-api-key", "{key}"), ("Authorization", "Basic eA==")],
        [("x-api-key", "{key}"), ("Authorization", "Bearer {narrow}")],
        [("x-api-key", OWN), ("Authorization", f"Bearer {OWN}-2")],
        [("x-api-key", OWN), ("Authorization", "Bearer sk-wr-unknown")],
        [("x-api-key", "sk-wr-unknown"), ("Authorization", f"Bearer {OWN}")],
    ],
)
def test_anything_else_is_refused_and_nothing_is_sent(
    app: App, simulator: Simulator, book: str, headers: list[tuple[str, str]]
) -> None:
    filled = [
        (name, value.format(key=app.secrets["web-app"], narrow=app.secrets["narrow"]))
        for name, value in headers
    ]
    answer = ask(app, book, *filled)
    assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")
    error = json.loads(answer.body)["error"]
    assert error["code"] == "invalid_api_key"
    assert any(named in error["message"] for named in ("x-api-key", "Authorization", "unknown"))
    assert not any(secret in answer.body.decode() for secret in (*app.secrets.values(), OWN))
    assert simulator.requests(book=book) == []


def test_a_callers_own_credential_is_taken_only_where_the_provider_allows_it(
    app: App, simulator: Simulator, book: str
) -> None:
    assert ask(app, book, ("x-api-key", OWN), at="closed").status == 401
    assert simulator.requests(book=book) == []


def test_below_v1_the_providers_header_means_nothing(
    app: App, simulator: Simulator, book: str
) -> None:
    headers = (("x-api-key", app.secrets["web-app"]), ("x-sim-book", book))
    body = json.dumps(ASKED).encode()
    asked = raw.request(app.port, "POST", "/v1/messages", body, headers=headers)
    assert app.exchange(asked).status == 401
    assert simulator.requests(book=book) == []


def test_an_expired_key_in_the_providers_header_has_its_own_error(app: App, book: str) -> None:
    answer = ask(app, book, ("x-api-key", app.secrets["expired"]))
    assert answer.status == 401
    assert json.loads(answer.body)["error"]["code"] == "api_key_expired"


def test_the_providers_account_is_not_told(app: App, book: str) -> None:
    answer = ask(
        app,
        book,
        ("x-api-key", app.secrets["web-app"]),
        ("x-sim", "set=anthropic-organization-id:org-ours"),
    )
    assert (answer.status, answer.header("anthropic-organization-id")) == (200, None)
