"""The books balance for what is used after its request: background responses, batches, videos.

The simulator bills each of them once, when it ends, whether anybody reads it or not. What the
gateway says in its table, its metrics and its log must be the same numbers, to the token and to the
pico-USD, however often and wherever they are asked for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from harness import raw
from harness.defaults import CONFIG
from harness.gateway import Gateway
from harness.poll import eventually
from harness.simulator import Simulator
from wrapper.store import Limits, SqliteStore, Subject

MODEL = "gpt-6-luna"
FRESH, CACHED, OUTPUT = 100_000, 10_000, 500_000  # pico-USD per token
PRICED = '\n[prices."gpt-6-luna"]\ninput = 0.1\ncached_input = 0.01\noutput = 0.5\n'
SERVER = "[server]\ndeferred_poll = 0.2\n\n"
NAMES = ("prompt", "completion", "cached")
KEYS = ("polled", "alone", "paid", "film")
_numbers = count(1)


@pytest.fixture(scope="module")
def running(simulator: Simulator) -> Iterator[Gateway]:
    config = SERVER + CONFIG.replace("{simulator}", simulator.url) + PRICED
    env = {"GROQ_API_KEY": "g", "OPENAI_API_KEY": "o"}
    keys: dict[str, dict[str, Any]] = {key: {} for key in KEYS}
    keys["paid"] = {"budget_usd": 5}
    with Gateway(config, workers=2, keys=keys, env=env) as gateway:
        yield gateway
        gateway.assert_clean()


def send(
    gateway: Gateway, key: str, method: str, path: str, body: Any = None, orders: str = ""
) -> bytes:
    """The body of the response, over a connection of its own: any of the workers takes it."""
    content = b"" if body is None else json.dumps(body).encode()
    return exchange(gateway, key, method, path, content, orders)


def exchange(
    gateway: Gateway, key: str, method: str, path: str, content: bytes, orders: str
) -> bytes:
    headers = (("x-sim", orders), ("x-sim-book", key))
    sent = raw.request(
        gateway.port, method, path, content, key=gateway.secrets[key], headers=headers
    )
    if content.startswith(b"--b"):
        sent = sent.replace(b"application/json", b"multipart/form-data; boundary=b", 1)
    answer = raw.exchange(gateway.port, sent)
    assert answer.status == 200, answer
    return answer.body


def start(gateway: Gateway, key: str, orders: str = "", **fields: Any) -> bytes:
    """Start a background response."""
    body = {"model": MODEL, "input": "a long tale", "background": True, **fields}
    number = next(_numbers)
    use = f"prompt={100 + number}; completion={10 + number}; cached={number}"
    return send(gateway, key, "POST", "/v1/responses", body, f"{use}; {orders}")


class Books:
    """The accounts of one key: the provider's, and the gateway's three."""

    def __init__(self, gateway: Gateway, simulator: Simulator, key: str) -> None:
        self.theirs: Counter[str] = Counter()
        for line in simulator.books(book=key):
            self.theirs["requests"] += line["requests"]
            for name in NAMES:
                self.theirs[name] += line[name]
            self.theirs["cost"] += (
                (line["prompt"] - line["cached"]) * FRESH
                + line["cached"] * CACHED
                + line["completion"] * OUTPUT
            )
        self.table = self._table(gateway, key)
        self.metrics = self._metrics(gateway, key)
        self.log = self._log(gateway, key)

    def _table(self, gateway: Gateway, key: str) -> Counter[str]:
        store = SqliteStore(gateway.directory / "usage.db")
        [sums] = store.totals(key=key)
        store.close()
        return Counter({name: getattr(sums, name) for name in ("requests", "cost", *NAMES)})

    def _metrics(self, gateway: Gateway, key: str) -> Counter[str]:
        scrape, found = gateway.metrics(), Counter[str]()
        for name, metric in (
            ("requests", "api_key_requests_total"),
            ("prompt", "token_usage_prompt_total"),
            ("completion", "token_usage_completion_total"),
            ("cached", "token_usage_cached_total"),
            ("cost", "api_key_cost_usd_total"),
        ):
            scale = 1e12 if name == "cost" else 1
            found[name] = round(scrape.by(metric, "api_key").get((key,), 0) * scale)
        return found

    def _log(self, gateway: Gateway, key: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for line in gateway.log():
            if line["api_key"] == key:
                found["requests"] += line["path"] != "(deferred)"
                for name in NAMES:
                    found[name] += line[f"{name}_tokens"] or 0
                found["cost"] += round((line["cost_usd"] or 0) * 1e12)
        return found


def must_balance(gateway: Gateway, simulator: Simulator, key: str, requests: int) -> None:
    """In the end: the line and the counters of a booking come a moment after its row."""

    def balanced() -> bool:
        books = Books(gateway, simulator, key)
        assert books.theirs == books.table == books.metrics == books.log, vars(books)
        assert books.table["requests"] == requests
        return books.table["cost"] > 0

    eventually(balanced)


def test_what_is_polled_fifty_times_by_two_workers_is_booked_once(
    running: Gateway, simulator: Simulator
) -> None:
    ids = [json.loads(start(running, "polled", f"polls={n}"))["id"] for n in (0, 3)]
    assert b"response.completed" in start(running, "polled", stream=True)

    def poll(number: int) -> str:
        path = f"/v1/responses/{ids[number % 2]}"
        status: str = json.loads(send(running, "polled", "GET", path))["status"]
        return status

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(poll, range(100)))
    assert statuses[-1] == "completed"
    must_balance(running, simulator, "polled", 103)


def test_what_is_never_polled_is_booked_all_the_same(
    running: Gateway, simulator: Simulator
) -> None:
    start(running, "alone", "polls=0; ends=failed")
    start(running, "alone", "polls=0")
    must_balance(running, simulator, "alone", 2)


def test_videos_cost_their_seconds_and_nothing_where_they_fail(
    running: Gateway, simulator: Simulator
) -> None:
    ids = []
    for orders in ("", "ends=failed"):
        video = {"model": "sora-2", "prompt": "a cat", "seconds": "8", "size": "1280x720"}
        sent = send(running, "film", "POST", "/openai/v1/videos", video, f"polls=0; {orders}")
        ids.append(json.loads(sent)["id"])
    for name in ids:
        for _ in range(2):
            send(running, "film", "GET", f"/openai/v1/videos/{name}")
    [billed] = [line["seconds"] for line in simulator.books(book="film") if line["seconds"]]
    store = SqliteStore(running.directory / "usage.db")
    [sums] = store.totals(by=("model",), key="film")[-1:]
    store.close()
    assert sums.group == ("sora-2",)
    assert (sums.requests, sums.cost, sums.unpriced, sums.unmetered) == (2, billed * 10**11, 0, 0)


def start_batch(gateway: Gateway, key: str, orders: str) -> str:
    """Upload the file of a batch of four requests, and create it: its id."""
    lines = [
        {
            "custom_id": str(n),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 50,
                "x_sim": f"prompt={next(_numbers)}; completion={n + 1}; cached={n}",
            },
        }
        for n in range(4)
    ]
    content = b"\n".join(json.dumps(line).encode() for line in lines)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    form = head + content + b"\r\n--b--\r\n"
    file = json.loads(exchange(gateway, key, "POST", "/v1/files", form, ""))
    body = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = send(gateway, key, "POST", "/v1/batches", body, f"polls=0; {orders}")
    found: str = json.loads(batch)["id"]
    return found


def test_batches_are_booked_by_their_object_or_their_output(
    running: Gateway, simulator: Simulator
) -> None:
    """With usage and without, cancelled half way, and one that nobody asks for."""
    seen = start_batch(running, "paid", "")
    without = start_batch(running, "paid", "no-usage")
    cancelled = start_batch(running, "paid", "no-usage")
    start_batch(running, "paid", "")
    send(running, "paid", "POST", f"/v1/batches/{cancelled}/cancel", {})
    for name in (seen, without, cancelled):
        send(running, "paid", "GET", f"/v1/batches/{name}")
    store = SqliteStore(running.directory / "usage.db")
    paid = Subject("key:paid", Limits(budget=5 * 10**12))
    eventually(lambda: store.standing([paid])[0].reserved == 0, what="no money is held")
    must_balance(running, simulator, "paid", 12)
    [standing] = store.standing([paid])
    store.close()
    assert standing.spent == Books(running, simulator, "paid").theirs["cost"]
