"""`GET /usage`: what the calling key has used, and no other key's use."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest

from harness import chat, raw
from harness.app import App
from harness.defaults import CONFIG
from harness.gateway import Gateway, GatewayFactory
from harness.simulator import Simulator
from wrapper.store.sqlite import SqliteStore

MODEL = "gpt-6-luna"


@pytest.fixture(scope="module")
def metered(simulator: Simulator) -> Iterator[App]:
    """An application whose keys no other test uses."""
    keys = {
        "web-app": {"requests_per_minute": 60, "budget_usd": 20.5, "expires": date(2099, 1, 1)},
        "another": {},
        "idle": {},
    }
    env = {"OPENAI_API_KEY": "o", "GROQ_API_KEY": "g"}
    with App(CONFIG.replace("{simulator}", simulator.url), keys=keys, env=env) as app:
        for name, orders in (
            ("web-app", "prompt=1000; completion=200; cached=400"),
            ("web-app", "prompt=1000; completion=300"),
            ("another", "prompt=5; completion=5"),
        ):
            assert chat.call(app, model=MODEL, key=name, orders=orders).status == 200
        yield app
        app.assert_clean()


def usage(app: App | Gateway, key: str, query: str = "") -> tuple[int, Any]:
    secret = app.secrets.get(key)
    answer = app.exchange(raw.request(app.port, "GET", "/usage" + query, key=secret))
    return answer.status, json.loads(answer.body)


def test_a_key_sees_its_own_use_and_cost(metered: App) -> None:
    status, answer = usage(metered, "web-app", "?since=24h")
    assert status == 200
    assert answer["api_key"] == "web-app"
    totals = answer["totals"]
    assert (totals["requests"], totals["prompt_tokens"], totals["completion_tokens"]) == (
        2,
        2000,
        500,
    )
    assert (totals["cached_tokens"], totals["total_tokens"]) == (400, 2500)
    # gpt-6-luna: 0.10 / 0.01 / 0.50 USD per million tokens.
    assert totals["cost_usd"] == pytest.approx((1600 * 0.1 + 400 * 0.01 + 500 * 0.5) / 1e6)
    assert [(row["provider"], row["model"]) for row in answer["by_model"]] == [
        ("openai", "gpt-6-luna")
    ]


def test_it_sees_what_its_limits_are(metered: App) -> None:
    limits = usage(metered, "web-app")[1]["limits"]
    assert limits["requests_per_minute"] == 60
    assert (limits["budget_usd"], limits["budget_period"]) == (20.5, "month")
    assert limits["expires"] == "2099-01-01"
    assert limits["max_concurrent"] is None
    spent = usage(metered, "web-app", "?since=24h")[1]["totals"]["cost_usd"]
    assert limits["budget_left_usd"] == pytest.approx(20.5 - spent)
    assert usage(metered, "another")[1]["limits"]["budget_left_usd"] is None


def test_a_key_that_was_never_used_sees_zeros(metered: App) -> None:
    answer = usage(metered, "idle")[1]
    assert answer["totals"]["requests"] == 0
    assert answer["by_model"] == []


@pytest.mark.parametrize(
    ("query", "days"), [("?since=24h", 1), ("?since=7d", 7), ("?since=4w", 28)]
)
def test_the_time_can_be_chosen(metered: App, query: str, days: int) -> None:
    status, answer = usage(metered, "web-app", query)
    assert status == 200
    since = datetime.fromisoformat(answer["since"])
    assert time.time() - since.timestamp() == pytest.approx(days * 86400, abs=60)


def test_by_itself_it_is_the_current_month(metered: App) -> None:
    before = datetime.now(UTC)
    since = datetime.fromisoformat(usage(metered, "web-app")[1]["since"])
    after = datetime.now(UTC)
    months = [
        at.replace(day=1, hour=0, minute=0, second=0, microsecond=0) for at in (before, after)
    ]
    assert since in months  # it may have turned meanwhile


@pytest.mark.parametrize("since", ["yesterday", "-1d", "0d", "7", "2026-13-01", "99999999d", "%00"])
def test_a_time_that_is_none_is_the_callers_mistake(metered: App, since: str) -> None:
    status, answer = usage(metered, "web-app", f"?since={since}")
    assert status == 400
    assert (answer["error"]["param"], answer["error"]["code"]) == ("since", "invalid_query")


def test_without_a_key_there_is_nothing_to_see(metered: App) -> None:
    status, answer = usage(metered, "")
    assert status == 401
    assert answer["error"]["code"] == "invalid_api_key"


def test_a_table_that_cannot_be_read_is_an_error_and_requests_still_get_their_response(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory()
    (gateway.directory / "usage.db").write_bytes(b"no database at all" * 1000)
    for more in ("-wal", "-shm"):
        (gateway.directory / f"usage.db{more}").unlink(missing_ok=True)
    status, answer = usage(gateway, "web-app")
    assert (status, answer["error"]["code"]) == (503, "store_unavailable")
    assert chat.call(gateway, model=MODEL).status == 200


def test_what_a_gateway_has_booked_is_there_after_all_its_processes_were_killed(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory(workers=2)
    for requests in (15, 30):
        for _ in range(15):
            assert chat.call(gateway, model=MODEL).status == 200
        gateway.idle(30)
        gateway.kill()
        gateway.restart()
        status, answer = usage(gateway, "web-app", "?since=24h")
        assert (status, answer["totals"]["requests"]) == (200, requests)


def test_a_worker_shows_a_key_its_own_use(gateway: Gateway) -> None:
    before = usage(gateway, "web-app", "?since=24h")[1]["totals"]["requests"]
    assert chat.call(gateway, model=MODEL).status == 200
    gateway.idle()
    assert usage(gateway, "web-app", "?since=24h")[1]["totals"]["requests"] == before + 1


def test_the_usage_table_is_read_beside_the_event_loop(
    metered: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    real = SqliteStore.totals

    def totals(store: SqliteStore, *asked: Any, **how: Any) -> Any:
        threads.add(threading.get_ident())
        return real(store, *asked, **how)

    monkeypatch.setattr(SqliteStore, "totals", totals)
    request = raw.request(metered.port, "GET", "/usage", key=metered.secrets["web-app"])
    answer = metered.exchange(request)
    assert (answer.status, json.loads(answer.body)["totals"]["requests"]) == (200, 2)
    assert len(threads) >= 1
    assert threading.get_ident() not in threads
