"""The books balance: some thousands of mixed calls, two killed workers, a reload.

The provider (the simulator) keeps its own books by key and model. What the gateway says in its
metrics, in its usage table and in its log must be the same numbers. Only what a killed worker
had taken on and not settled may be missing, and it must be counted as such.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.defaults import CONFIG
from harness.gateway import Gateway
from harness.poll import PATIENCE, eventually
from harness.simulator import Simulator
from wrapper.store import SqliteStore

CALLS = 2400
CLIENTS = 16
KEYS = ("app-a", "app-b", "batch", "chat-ui", "research")
# USD per million tokens are pico-USD per token times 1e-6: input, cached input, output.
PRICES = {
    "openai/gpt-oss-20b": (75_000, 37_500, 300_000),
    "gpt-6-luna": (100_000, 10_000, 500_000),
    "gpt-6-sol": (2_000_000, 200_000, 10_000_000),
}
MODELS = tuple(PRICES)
# Its embeddings are too long for the gateway to wait for their end: the client gets a beginning.
LONG = ["x"] * 400
ALIAS = "fast"  # at its first target that is the first of them
PRICED = "".join(
    f'\n[prices."{name}"]\ninput = {i / 1e6}\ncached_input = {c / 1e6}\noutput = {o / 1e6}\n'
    for name, (i, c, o) in PRICES.items()
)


@dataclass
class Tally:
    """What the clients saw. `lost` were cut by a dying worker, before or after it settled; a
    client that had left (`unsure`) cannot tell.
    """

    answered: Counter[str] = field(default_factory=Counter)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    unsure: Counter[tuple[str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, at: tuple[str, str], lost: bool) -> None:
        with self.lock:
            if lost:
                self.lost[at] += 1
            else:
                self.answered[kind] += 1
                self.unsure[at] += kind == "leaver"


@dataclass(frozen=True)
class Job:
    """One call: where, what, which orders for the simulator, and whether the client leaves."""

    kind: str
    path: str
    body: dict[str, Any]
    orders: str = ""
    leaves: bool = False


def jobs(seed: int) -> Iterator[Job]:
    """An endless mix of every dialect, error and break, the same for the same seed."""
    dice = random.Random(seed)
    while True:
        model = dice.choice(MODELS)
        use = f"prompt={dice.randint(1, 900)}; completion={dice.randint(1, 400)}"
        if dice.random() < 0.3:
            use += f"; cached={dice.randint(0, 1) and 1}"
        chat = {"model": model, "messages": [{"role": "user", "content": "hello there"}]}
        stream = {**chat, "stream": True}
        asked = {**stream, "stream_options": {"include_usage": True}}
        answer = {"model": model, "input": "hi"}
        events = dice.randint(2, 12)
        yield dice.choice(
            [
                Job("unary", "/v1/chat/completions", chat, use),
                Job("unary", "/chat/completions", chat, f"{use}; encoding=gzip"),
                Job("unary", "/v1/chat/completions", {**chat, "model": ALIAS}, use),
                Job("stream", "/v1/chat/completions", {**stream, "model": ALIAS}, use),
                Job("unary", "/openai/v1/chat/completions", chat, use),
                Job("stream", "/v1/chat/completions", stream, f"{use}; events={events}"),
                Job("stream", "/v1/chat/completions", asked, f"{use}; events={events}; split"),
                Job("stream", "/groq/openai/v1/chat/completions", stream, f"{use}; merge=3"),
                Job("stream", "/openai/v1/chat/completions", stream, f"{use}; crlf"),
                Job("unary", "/v1/completions", {"model": model, "prompt": "a b"}, use),
                Job("unary", "/v1/embeddings", {"model": model, "input": "a b c"}, use),
                Job("unary", "/v1/responses", answer, use),
                Job(
                    "stream", "/v1/responses", {"model": model, "input": "hi", "stream": True}, use
                ),
                Job("error", "/v1/chat/completions", chat, f"status={dice.choice([400, 404])}"),
                Job("error", "/v1/chat/completions", stream, f"status={dice.choice([429, 500])}"),
                Job("cut", "/v1/chat/completions", stream, f"{use}; events=9; cut={events % 8}"),
                Job("no usage", "/v1/chat/completions", chat, "no-usage"),
                Job(
                    "leaver", "/v1/chat/completions", stream, f"{use}; stall={events}", leaves=True
                ),
                Job("leaver", "/v1/embeddings", {"model": model, "input": LONG}, "stall=20", True),
            ]
        )


def call(gateway: Gateway, key: str, job: Job) -> bool:
    """Make one call; whether it ended as it should (False: the worker died on it)."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    headers = {
        "Authorization": f"Bearer {gateway.secrets[key]}",
        "Content-Type": "application/json",
        "x-sim": job.orders,
        "x-sim-book": key,
    }
    try:
        connection.request("POST", job.path, json.dumps(job.body), headers)
        response = connection.getresponse()
        if job.leaves:
            response.read1(10)
            return response.status == 200
        return response.status > 0 and bool(response.read() or True)
    except http.client.IncompleteRead as error:
        return job.kind == "cut" and b"upstream_interrupted" in error.partial
    except (http.client.HTTPException, OSError):
        return False
    finally:
        connection.close()


@pytest.mark.slow
def test_the_provider_the_metrics_the_table_and_the_log_agree_to_the_token(
    simulator: Simulator,
) -> None:
    simulator.reset()
    config = CONFIG.replace("{simulator}", simulator.url) + PRICED
    env = {"GROQ_API_KEY": "g", "OPENAI_API_KEY": "o"}
    with Gateway(config, workers=4, keys={key: {} for key in KEYS}, env=env) as gateway:
        tally = Tally()
        _run(gateway, tally)
        eventually(lambda: simulator.stats()["open"] == 0, what="no open upstream request")
        gateway.idle(20)
        assert tally.answered["unary"] > CALLS / 8, tally
        assert tally.answered["leaver"] > CALLS / 30, tally
        Books(gateway, simulator, tally).must_balance()


def _run(gateway: Gateway, tally: Tally) -> None:
    """`CLIENTS` threads make their calls; at a third and two thirds a worker is killed."""
    todo = iter(range(CALLS))
    lock = threading.Lock()
    breaks = {CALLS // 3: _kill_one, CALLS // 2: _reload, 2 * CALLS // 3: _kill_one}

    def client(number: int) -> None:
        stream = jobs(number)
        dice = random.Random(1000 + number)
        while True:
            with lock:
                turn = next(todo, None)
            if turn is None:
                return
            if turn in breaks:
                breaks[turn](gateway)
            job, key = next(stream), dice.choice(KEYS)
            done = call(gateway, key, job)
            model = MODELS[0] if job.body["model"] == ALIAS else job.body["model"]
            tally.note(job.kind, (key, model), lost=not done)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _kill_one(gateway: Gateway) -> None:
    victim = gateway.workers()[0]
    os.kill(victim, signal.SIGKILL)


def _reload(gateway: Gateway) -> None:
    before = gateway.reloads()
    text = gateway.config_file.read_text()
    gateway.write_config(
        text.replace(
            "[[routes]]", "[[routes]]\nmodel = 'gpt-6.1*'\ntargets = ['openai']\n\n[[routes]]", 1
        )
    )
    gateway.wait_for_reload(before)


class Books:
    """The four accounts, by key and model, and their comparison."""

    NAMES = ("requests", "prompt", "completion", "cached")

    def __init__(self, gateway: Gateway, simulator: Simulator, tally: Tally) -> None:
        self.tally = tally
        self.scrape = gateway.metrics()
        self.unsettled = self.scrape.value("unsettled_requests_total")
        self.theirs = self._provider(simulator)
        self.metrics = self._metrics()
        self.table = self._table(gateway)
        self.log = self._log(gateway)

    def must_balance(self) -> None:
        self.excused = self.tally.lost + self.tally.unsure
        assert self.unsettled <= sum(self.excused.values())
        for name in (*self.NAMES, "cost", "outcomes"):
            self._same(name, self.metrics, self.table)
            self._same(name, self.metrics, self.log)
        missing = self._difference("requests", self.theirs, self.metrics)
        assert sum(missing.values()) <= self.unsettled, (missing, self.unsettled)
        for name in (*self.NAMES, "cost"):
            for at in self._difference(name, self.theirs, self.metrics):
                assert self.excused[at], f"{name} of {at} differ and no call was lost there"
        outcomes = self.scrape.by("api_key_requests_total", "outcome")
        for outcome in ("completed", "client_error", "client_abort", "upstream_error"):
            assert outcomes[(outcome,)] > 0

    def _same(self, name: str, one: Any, other: Any) -> None:
        """Equal, but for calls that a killed worker was just settling."""
        different = {
            at for at in one[name].keys() | other[name].keys() if one[name][at] != other[name][at]
        }
        assert len(different) <= self.unsettled, (name, different)
        assert all(self.excused[at[:2]] for at in different), (name, different, self.excused)

    def _difference(self, name: str, one: Any, other: Any) -> dict[tuple[str, str], int]:
        found = {
            at: one[name][at] - other[name][at] for at in one[name].keys() | other[name].keys()
        }
        assert all(value >= 0 for value in found.values()), (name, found)
        return {at: value for at, value in found.items() if value}

    def _provider(self, simulator: Simulator) -> Any:
        sums: Any = defaultdict(Counter)
        for line in simulator.books():
            if line["book"] not in KEYS:
                continue
            at = (line["book"], line["model"])
            for name in self.NAMES:
                sums[name][at] += line[name]
            fresh, cached, output = PRICES[line["model"]]
            sums["cost"][at] += (
                (line["prompt"] - line["cached"]) * fresh
                + line["cached"] * cached
                + line["completion"] * output
            )
        return sums

    def _metrics(self) -> Any:
        names = {
            "requests": "api_key_requests_total",
            "prompt": "token_usage_prompt_total",
            "completion": "token_usage_completion_total",
            "cached": "token_usage_cached_total",
            "cost": "api_key_cost_usd_total",
        }
        sums: Any = defaultdict(Counter)
        for name, metric in names.items():
            scale = 1e12 if name == "cost" else 1
            for at, value in self.scrape.by(metric, "api_key", "model").items():
                if at[0] in KEYS:
                    sums[name][at] = round(value * scale)
        by_outcome = self.scrape.by(names["requests"], "api_key", "model", "outcome")
        sums["outcomes"].update({at: int(v) for at, v in by_outcome.items() if at[0] in KEYS})
        return sums

    def _table(self, gateway: Gateway) -> Any:
        store = SqliteStore(gateway.directory / "usage.db")
        sums: Any = defaultdict(Counter)
        for row in store.totals(by=("key", "model")):
            for name in (*self.NAMES, "cost"):
                sums[name][row.group] = getattr(row, name)
        for row in store.totals(by=("key", "model", "outcome")):
            sums["outcomes"][row.group] = row.requests
        store.close()
        return sums

    def _log(self, gateway: Gateway) -> Any:
        sums: Any = defaultdict(Counter)
        for line in gateway.log():
            if line["api_key"] not in KEYS or not line["provider"]:
                continue
            at = (line["api_key"], line["model"])
            sums["requests"][at] += 1
            sums["outcomes"][*at, line["outcome"]] += 1
            for name in ("prompt", "completion", "cached"):
                sums[name][at] += line[f"{name}_tokens"] or 0
            sums["cost"][at] += round((line["cost_usd"] or 0) * 1e12)
        return sums
