"""Endpoints that would get past a key's budget or models: refused unless allowed by name."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from harness import chat, raw
from harness.app import App
from harness.defaults import CONFIG, PROVIDER_KEYS
from harness.simulator import Simulator
from wrapper.endpoints import ENDPOINTS

KEYS = {
    "free": {},
    "budget": {"budget_usd": 5.0},
    "models": {"models": ["gpt-*"]},
    "allowed": {"budget_usd": 5.0, "endpoints": ["realtime", "batches"], "unpriced": "allow"},
}
SESSION = "/v1/realtime/client_secrets"


@pytest.fixture(scope="module")
def app(simulator: Simulator) -> Iterator[App]:
    with App(CONFIG.replace("{simulator}", simulator.url), keys=KEYS, env=PROVIDER_KEYS) as made:
        yield made


def post(app: App, target: str, key: str, method: str = "POST") -> raw.Answer:
    body = json.dumps({"session": {"type": "realtime"}}).encode() if method == "POST" else b""
    secret = app.secrets.get(key, key)
    return app.exchange(raw.request(app.port, method, target, body, key=secret))


@pytest.mark.parametrize("key", ["budget", "models"])
@pytest.mark.parametrize("surface", sorted({e.surface for e in ENDPOINTS if e.surface}))
def test_a_limited_key_needs_permission_by_name(app: App, key: str, surface: str) -> None:
    path = next(e.path for e in ENDPOINTS if e.surface == surface)
    for prefix in ("/v1", "/openai/v1"):
        answer = post(app, prefix + path, key)
        details = chat.error(answer)
        assert (answer.status, details["code"]) == (403, "endpoint_not_allowed")
        assert f'"{surface}"' in details["message"]


@pytest.mark.parametrize("key", ["free", "allowed"])
def test_an_unlimited_key_and_one_with_permission_are_relayed(app: App, key: str) -> None:
    assert post(app, SESSION, key).header("x-wrapper-provider") == "groq"


@pytest.mark.parametrize("key", ["free", "allowed"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/organization/costs",
        "/organization",
        "/Organization/usage/completions",
        "/projects/proj_1/users/user_1/roles",
    ],
)
def test_no_key_reaches_the_accounts_administration(
    app: App, path: str, method: str, key: str
) -> None:
    answer = post(app, f"/openai/v1{path}", key, method)
    assert (answer.status, chat.error(answer)["code"]) == (403, "endpoint_not_allowed")


def test_a_callers_own_credential_may_use_any_endpoint(app: App) -> None:
    answer = post(app, "/openai/v1/organization/costs", "sk-admin-of-their-own", "GET")
    assert answer.header("x-wrapper-provider") == "openai"
