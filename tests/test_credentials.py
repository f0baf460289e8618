"""Who sees which secret: the caller's key stays below the gateway, the provider's above it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness import raw
from harness.defaults import PROVIDER_KEYS

if TYPE_CHECKING:
    from harness.app import App
    from harness.gateway import Gateway
    from harness.simulator import Simulator

PATH = "/v1/chat/completions"
MODELS = {"openai/gpt-oss-20b": "GROQ_API_KEY", "gpt-6-luna": "OPENAI_API_KEY"}
# Everything that can come back: an answer, a stream, errors, a broken stream, garbage.
ORDERS = [
    "",
    "status=400",
    "status=401",
    "status=429; retry-after=1",
    "status=500",
    "cut=2; events=9",
    "reset=0",
    "framing=garbage",
]


def body(model: str, *, stream: bool = False) -> bytes:
    messages = [{"role": "user", "content": "Hello!"}]
    return json.dumps({"model": model, "messages": messages, "stream": stream}).encode()


@pytest.mark.parametrize("model", MODELS)
def test_the_provider_sees_its_own_credential_and_never_the_callers(
    app: App, simulator: Simulator, model: str
) -> None:
    key = app.secrets["web-app"]
    headers = (
        ("x-sim-book", f"credentials-{model}"),
        ("api-key", key),
        ("X-Api-Key", key),
        ("Cookie", f"session={key}"),
    )
    answer = app.exchange(
        raw.request(app.port, "POST", PATH, body(model), key=key, headers=headers)
    )
    assert answer.status == 200
    (seen,) = simulator.requests(book=f"credentials-{model}")
    bearers = [value for name, value in seen["headers"] if name.lower() == "authorization"]
    assert bearers == [f"Bearer {PROVIDER_KEYS[MODELS[model]]}"]
    assert key not in json.dumps(seen)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("orders", ORDERS)
def test_the_providers_credential_never_comes_down(
    gateway: Gateway, key: str, model: str, orders: str, stream: bool
) -> None:
    headers = (("x-sim", orders),) if orders else ()
    answer = raw.post(gateway.port, PATH, body(model, stream=stream), key=key, headers=headers)
    everything = repr(answer).encode() + answer.body
    assert b"PROVIDERS-OWN-KEY" not in everything
    assert b"Set-Cookie" not in everything
    assert b"openai-organization" not in everything


def test_no_secret_is_ever_written_to_the_log(gateway: Gateway, key: str) -> None:
    """Not even one that stands where it does not belong: in the path or in the query."""
    wrong = "sk-wr-this-one-is-unknown-but-a-secret-all-the-same"
    for target in (
        f"/v1/chat/completions?api_key={key}",
        f"/v1/{key}/completions",
        f"/nowhere/{key}",
        f"/groq/openai/v1/models?key={key}",
    ):
        raw.post(gateway.port, target, body("openai/gpt-oss-20b"), key=key)
        raw.post(gateway.port, target, body("openai/gpt-oss-20b"), key=wrong)
    last = gateway.exchange(raw.request(gateway.port, "GET", "/usage", key=key))
    gateway.log_line(last.header("x-request-id") or "")
    written = gateway.stdout() + gateway.stderr()
    for secret in (*gateway.secrets.values(), *PROVIDER_KEYS.values(), wrong):
        assert secret not in written


def test_the_metrics_name_keys_and_show_no_part_of_them(gateway: Gateway, key: str) -> None:
    raw.post(gateway.port, PATH, body("openai/gpt-oss-20b"), key=key)
    text = gateway.metrics().text
    for secret in (*gateway.secrets.values(), *PROVIDER_KEYS.values()):
        assert secret[6:14] not in text
