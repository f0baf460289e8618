"""`GET /usage`: what the calling key has used, and nobody else's use."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest

from harness.defaults import CONFIG
from harness.gateway import Gateway
from harness.poll import eventually
from harness.simulator import Simulator

CHAT = {"model": "gpt-6-luna", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def metered(simulator: Simulator) -> Iterator[Gateway]:
    """A gateway whose keys nobody else uses."""
    keys = {
        "web-app": {"requests_per_minute": 60, "budget_usd": 20.5, "expires": date(2099, 1, 1)},
        "another": {},
        "idle": {},
    }
    env = {"OPENAI_API_KEY": "o", "GROQ_API_KEY": "g"}
    with Gateway(CONFIG.replace("{simulator}", simulator.url), keys=keys, env=env) as running:
        for name, orders in (
            ("web-app", "prompt=1000; completion=200; cached=400"),
            ("web-app", "prompt=1000; completion=300"),
            ("another", "prompt=5; completion=5"),
        ):
            call(running, name, orders)
        eventually(lambda: running.metrics().value("api_key_requests_total") == 3)
        yield running
        running.assert_clean()


def call(gateway: Gateway, key: str, orders: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    headers = {
        "Authorization": f"Bearer {gateway.secrets[key]}",
        "Content-Type": "application/json",
        "x-sim": orders,
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), headers)
    assert connection.getresponse().read()
    connection.close()


def usage(gateway: Gateway, key: str, query: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {gateway.secrets[key]}"}
    status, body = gateway.get("/usage" + query, headers=headers)
    return status, json.loads(body)


def test_a_key_sees_its_own_use_and_cost(metered: Gateway) -> None:
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


def test_it_sees_what_its_limits_are(metered: Gateway) -> None:
    limits = usage(metered, "web-app")[1]["limits"]
    assert limits["requests_per_minute"] == 60
    assert (limits["budget_usd"], limits["budget_period"]) == (20.5, "month")
    assert limits["expires"] == "2099-01-01"
    assert limits["max_concurrent"] is None
    spent = usage(metered, "web-app", "?since=24h")[1]["totals"]["cost_usd"]
    assert limits["budget_left_usd"] == pytest.approx(20.5 - spent)
    assert usage(metered, "another")[1]["limits"]["budget_left_usd"] is None


def test_a_key_that_was_never_used_sees_zeros(metered: Gateway) -> None:
    answer = usage(metered, "idle")[1]
    assert answer["totals"]["requests"] == 0
    assert answer["by_model"] == []


@pytest.mark.parametrize(
    ("query", "days"), [("?since=24h", 1), ("?since=7d", 7), ("?since=4w", 28)]
)
def test_the_time_can_be_chosen(metered: Gateway, query: str, days: int) -> None:
    status, answer = usage(metered, "web-app", query)
    assert status == 200
    since = datetime.fromisoformat(answer["since"])
    assert time.time() - since.timestamp() == pytest.approx(days * 86400, abs=60)


def test_by_itself_it_is_the_current_month(metered: Gateway) -> None:
    before = datetime.now(UTC)
    since = datetime.fromisoformat(usage(metered, "web-app")[1]["since"])
    after = datetime.now(UTC)
    months = [
        at.replace(day=1, hour=0, minute=0, second=0, microsecond=0) for at in (before, after)
    ]
    assert since in months  # it may have turned meanwhile


@pytest.mark.parametrize("since", ["yesterday", "-1d", "0d", "7", "2026-13-01", "99999999d", "%00"])
def test_a_time_that_is_none_is_the_callers_mistake(metered: Gateway, since: str) -> None:
    status, answer = usage(metered, "web-app", f"?since={since}")
    assert status == 400
    assert answer["error"]["param"] == "since"


def test_without_a_key_there_is_nothing_to_see(metered: Gateway) -> None:
    status, body = metered.get("/usage")
    assert status == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


def test_a_table_that_cannot_be_read_is_told_in_words(simulator: Simulator) -> None:
    config = CONFIG.replace("{simulator}", simulator.url)
    with Gateway(config, keys={"web-app": {}}, env={"OPENAI_API_KEY": "o"}) as gateway:
        (gateway.directory / "usage.db").write_bytes(b"no database at all" * 1000)
        for more in ("-wal", "-shm"):
            (gateway.directory / f"usage.db{more}").unlink(missing_ok=True)
        status, answer = usage(gateway, "web-app")
        assert status == 500
        assert answer["error"]["code"] == "internal_error"
        call(gateway, "web-app", "")  # the caller still gets his answer
        gateway.assert_clean()
