"""The caller sees what a request has cost: in a header, and by its id when it is over."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, raw
from harness.defaults import CONFIG
from wrapper.store import Entry, StoreError
from wrapper.store.redis import RedisStore
from wrapper.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.raw import Answer
    from harness.redisserver import RedisServer

MODEL = "gpt-6-sol"
PRICES = f'\n[prices."{MODEL}"]\ninput = 2.0\ncached_input = 0.2\noutput = 10.0\n'
USE = "prompt=1000; cached=400; completion=37"
COST = Decimal(600 * 2_000_000 + 400 * 200_000 + 37 * 10_000_000) / 10**12
HEADER = "x-wrapper-cost-usd"


@pytest.fixture(params=["sqlite", "redis"])
def app(request: pytest.FixtureRequest, app_factory: AppFactory) -> App:
    """An application on either store."""
    env = {}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        env["WRAPPER_STORE"] = server.url
    return app_factory(CONFIG + PRICES, keys={"web": {}, "another": {}}, env=env)


def call(app: App, **how: Any) -> Answer:
    return chat.call(app, **{"key": "web", "model": MODEL, "orders": USE, **how})


def found(app: App, request_id: str | None, key: str = "web") -> tuple[int, dict[str, Any]]:
    target = f"/usage/requests/{request_id}"
    secret = app.secrets.get(key)
    answer = app.exchange(raw.request(app.port, "GET", target, key=secret))
    return answer.status, json.loads(answer.body)


def test_a_whole_response_says_what_it_has_cost(app: App) -> None:
    answer = call(app)
    assert Decimal(answer.header(HEADER) or 0) == COST
    assert answer.header(HEADER) == "0.00165"
    status, use = found(app, answer.header("x-request-id"))
    assert status == 200
    assert use["cost_usd"] == float(COST)
    assert (use["prompt_tokens"], use["completion_tokens"], use["cached_tokens"]) == (1000, 37, 400)
    assert (use["outcome"], use["status"], use["provider"]) == ("completed", 200, "openai")
    assert (use["object"], use["model"]) == ("usage.request", MODEL)
    assert "bounded" not in use


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_compressed_response_says_it_too(app: App, encoding: str) -> None:
    headers = (("Accept-Encoding", encoding),)
    answer = call(app, orders=f"{USE}; encoding={encoding}", headers=headers)
    assert answer.header("content-encoding") == encoding
    assert answer.header(HEADER) == "0.00165"


def test_a_stream_and_a_large_response_are_found_by_their_id(app: App) -> None:
    for how in ({"stream": True}, {"orders": f"{USE}; size=100000; events=1"}):
        answer = call(app, **how)
        assert answer.header(HEADER) is None
        status, use = found(app, answer.header("x-request-id"))
        assert (status, use["cost_usd"], use["prompt_tokens"]) == (200, float(COST), 1000)


def test_a_request_that_was_given_up_has_bounds(app: App) -> None:
    content = chat.body(MODEL, stream=True, max_tokens=50)
    request = chat.request(app, content, key="web", orders="events=9; gap=0.01")
    with app.holding(request) as answer:
        pass
    status, use = found(app, answer.header("x-request-id"))
    assert (status, use["outcome"], use["bounded"]) == (200, "client_abort", "aborted")
    assert use["bounded_tokens_low"] == 0
    assert use["bounded_tokens_high"] == len(content) + 50
    assert use["bounded_cost_usd_high"] > use["bounded_cost_usd_low"] == 0
    assert not use.keys() & {"cost_usd", "prompt_tokens"}


def test_what_has_no_known_price_names_it_and_has_no_header(app: App) -> None:
    answer = call(app, model="of-no-known-price", orders=f"{USE}; any-model")
    assert answer.header(HEADER) is None
    _, use = found(app, answer.header("x-request-id"))
    assert (use["unpriced"], use["prompt_tokens"]) == ("model", 1000)
    assert "cost_usd" not in use
    answer = call(app, orders="no-usage")
    assert answer.header(HEADER) is None
    assert found(app, answer.header("x-request-id"))[1]["unmetered"] == "no_usage"


def test_the_header_is_the_gateways_own(app: App) -> None:
    for name in (HEADER, "X_Wrapper_Cost_Usd"):
        spoofed = f"set={name}: 0.5"
        answer = call(app, orders=f"no-usage; {spoofed}")
        assert answer.header(HEADER) is answer.header(name) is None
    assert call(app, orders=f"{USE}; {spoofed}").header(HEADER) == "0.00165"
    assert call(app, orders=f"status=400; {spoofed}").header(HEADER) is None


def test_only_the_key_itself_finds_its_requests(app: App) -> None:
    request_id = call(app).header("x-request-id")
    assert found(app, request_id)[0] == 200
    for other, status in (("another", 404), ("none", 401)):
        got, answer = found(app, request_id, other)
        assert got == status
        assert answer["error"]["message"]
    status, answer = found(app, "req_unknown")
    assert (status, answer["error"]["code"]) == (404, "unknown_url")


def test_a_store_that_is_away_is_a_503_as_for_the_sums(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("not in reach")

    for store in (SqliteStore, RedisStore):
        monkeypatch.setattr(store, "recent", fail)
    status, answer = found(app, "req_1")
    assert (status, answer["error"]["code"]) == (503, "store_unavailable")


def test_what_uses_nothing_is_not_kept(app: App) -> None:
    answers = [
        app.exchange(raw.request(app.port, "GET", "/openai/v1/models", key=app.secrets["web"])),
        call(app, orders="status=400"),
    ]
    for answer in answers:
        assert answer.header(HEADER) is None
        assert found(app, answer.header("x-request-id"))[0] == 404


def test_the_id_of_an_object_that_has_ended_finds_its_use(app: App) -> None:
    """An id that a caller has twice means what was written last."""
    for tokens in (1, 2):
        store = app.runtime.store
        text = json.dumps({"tokens": tokens})
        entry = Entry(store._wall(), "web", "openai", MODEL, "completed", recent=("resp_1", text))
        store.settle(entry)
        assert found(app, "resp_1") == (200, {"tokens": tokens})
