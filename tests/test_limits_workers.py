"""Limits over workers, hosts and crashes: exact while clients hammer, whole again afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import resource
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from harness import chat
from harness.gateway import Gateway
from harness.poll import PATIENCE, eventually
from harness.redisserver import RedisServer

if TYPE_CHECKING:
    from harness.raw import Answer, Connection
    from harness.simulator import Simulator

KINDS: dict[str, dict[str, Any]] = {
    "requests": {"requests_per_minute": 10},
    "concurrency": {"max_concurrent": 10},
    "tokens": {"tokens_per_minute": 1500},
    "budget_usd": {"budget_usd": 0.002, "budget_period": "total"},
}
SCOPES = ("key", "group", "provider")
CLIENTS = 8
CALLS = 100
# Pico-USD per token.
INPUT, OUTPUT = 1_000_000, 2_000_000
PRICED = '[prices."sim-*"]\ninput = 1.0\noutput = 2.0\n'
ENV = {"GROQ_API_KEY": "g"}


def provider(name: str, simulator: Simulator, **limits: Any) -> str:
    lines = [f"{limit} = {json.dumps(value)}" for limit, value in limits.items()]
    url = f'base_url = "{simulator.url}/v1"\napi_key = {{ env = "GROQ_API_KEY" }}'
    return "\n".join([f"[providers.{name}]", url, *lines, ""])


def config(simulator: Simulator) -> str:
    limited = [provider(f"limits-{kind}", simulator, **limits) for kind, limits in KINDS.items()]
    route = '[[routes]]\nmodel = "*"\ntargets = ["free"]\n'
    return "\n".join([provider("free", simulator), *limited, route, PRICED])


def names(scope: str, kind: str) -> tuple[str, str]:
    """Of whom the limit is, and the path that it holds for."""
    if scope == "provider":
        return f"limits-{kind}", f"/limits-{kind}/v1/chat/completions"
    return f"{scope}-{kind}", "/v1/chat/completions"


def keys() -> tuple[dict[str, Any], dict[str, Any]]:
    """A key for each kind of limit, two in a group of each kind, and two without any."""
    made: dict[str, Any] = {f"key-{kind}": limits for kind, limits in KINDS.items()}
    for kind in KINDS:
        made |= {f"group-{kind}-{n}": {"group": f"group-{kind}"} for n in range(2)}
        made |= {f"provider-{kind}-{n}": {} for n in range(2)}
    return made, {f"group-{kind}": limits for kind, limits in KINDS.items()}


@contextlib.contextmanager
def deployment(kind: str, simulator: Simulator, tmp_path: Path) -> Iterator[list[Gateway]]:
    """Four workers: of one gateway on either store, or of two gateways on one Redis."""
    made, groups = keys()
    with contextlib.ExitStack() as stack:
        env = ENV
        if kind != "sqlite":
            redis = RedisServer(tmp_path)
            stack.callback(redis.close)
            env = {**ENV, "WRAPPER_STORE": redis.start().patient_url}
        first = Gateway(
            config(simulator),
            workers=2 if kind == "hosts" else 4,
            keys=made,
            groups=groups,
            env=env,
        )
        gateways = [stack.enter_context(first)]
        if kind == "hosts":
            second = Gateway(config(simulator), workers=2, groups=groups, env=env)
            second.secrets = first.secrets
            second.write_keys(first.keys_file.read_text())
            gateways.append(stack.enter_context(second))
        yield gateways
        for gateway in gateways:
            gateway.assert_clean()


def begin(
    gateway: Gateway, key: str, orders: str, *, book: str = "", path: str = chat.PATH
) -> Connection:
    """A call on a connection of its own; a stream where the orders are to stall."""
    body = chat.body("sim-model", max_tokens=100, stream="stall" in orders)
    return chat.begin(gateway, body, key=key, orders=orders, book=book, target=path)


def call(gateway: Gateway, key: str, orders: str, **how: str) -> Answer:
    with begin(gateway, key, orders, **how) as connection:
        return connection.read()


def hammer(gateways: list[Gateway], scope: str, kind: str, book: str) -> Counter[int]:
    """What the statuses of the calls are; those that are held are held until all have come."""
    _, path = names(scope, kind)
    dice = random.Random(book)

    def one(number: int) -> int:
        key = f"key-{kind}" if scope == "key" else f"{scope}-{kind}-{number % 2}"
        use = f"prompt={dice.randint(1, 90)}; completion={dice.randint(1, 90)}"
        sim = "stall=1" if kind == "concurrency" else use
        gateway = gateways[number % len(gateways)]
        if kind != "concurrency":
            return call(gateway, key, sim, book=book, path=path).status
        held = begin(gateway, key, sim, book=book, path=path)
        open_.callback(held.close)
        return held.read_head().status

    with contextlib.ExitStack() as open_, ThreadPoolExecutor(CLIENTS) as pool:
        return Counter(pool.map(one, range(CALLS)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "redis", "hosts"])
def test_four_workers_hammered_at_ten_times_the_limit_keep_it_exactly(
    simulator: Simulator, tmp_path: Path, kind: str
) -> None:
    with deployment(kind, simulator, tmp_path) as gateways:
        run = chat.mark()
        for scope in SCOPES:
            for limit in KINDS:
                _hammer_and_check(gateways, simulator, scope, limit, f"{run}-{scope}-{limit}")


def _hammer_and_check(
    gateways: list[Gateway], simulator: Simulator, scope: str, kind: str, book: str
) -> None:
    statuses = hammer(gateways, scope, kind, book)
    eventually(lambda: simulator.stats()["open"] == 0, what="no open upstream request")
    for gateway in gateways:
        gateway.idle()
    where = f"{scope} {kind}: {statuses}"
    assert statuses.keys() == {200, 429}, where
    prompt = sum(row["prompt"] for row in simulator.books(book=book))
    completion = sum(row["completion"] for row in simulator.books(book=book))
    name, _ = names(scope, kind)
    for gateway in gateways:  # each of them says the same
        metrics = gateway.metrics()
        at = {"scope": scope, "name": name, "kind": kind}
        most, used = metrics.value("limit", **at), metrics.value("limit_used", **at)
        if kind == "requests":
            assert statuses[200] == used == most == 10, where
        elif kind == "concurrency":
            assert (statuses[200], used, most) == (10, 0, 10), where
        elif kind == "tokens":
            assert used == prompt + completion <= most, where
            assert used > most - 300, where
        else:
            cost = prompt * INPUT + completion * OUTPUT
            assert round(used * 1e12) == cost <= round(most * 1e12), where
            assert cost > most * 1e12 - 500_000_000, where


# --- kill -9 ------------------------------------------------------------------------------------

HELD = {
    "web": {"max_concurrent": 5, "tokens_per_minute": 10**6, "budget_usd": 1.0},
}


def used(gateway: Gateway) -> dict[str, float]:
    found = gateway.metrics().by("limit_used", "kind")
    return {kind: value for (kind,), value in found.items()}


@pytest.mark.slow
def test_what_a_killed_worker_held_is_given_back(simulator: Simulator, tmp_path: Path) -> None:
    settings = "\n".join([provider("free", simulator), PRICED])
    settings += '\n[[routes]]\nmodel = "*"\ntargets = ["free"]\n'
    with contextlib.ExitStack() as stack:
        redis = RedisServer(tmp_path)
        stack.callback(redis.close)
        stores: list[dict[str, str]] = [{}, {"WRAPPER_STORE": redis.start().patient_url}]
        gateways = [
            stack.enter_context(Gateway(settings, workers=1, keys=HELD, env={**ENV, **store}))
            for store in stores
        ]
        sim = "prompt=50; completion=10"
        for gateway in gateways:
            assert call(gateway, "web", sim).status == 200
            for _ in range(5):
                held = stack.enter_context(begin(gateway, "web", "stall=2"))
                assert held.read_head().status == 200
            assert call(gateway, "web", sim).status == 429
            assert used(gateway)["concurrency"] == 5
        for gateway in gateways:
            [worker] = gateway.workers()
            os.kill(worker, signal.SIGKILL)
        cost = (50 * INPUT + 10 * OUTPUT) / 1e12

        def is_given_back(gateway: Gateway) -> bool:
            found = used(gateway)
            assert found["tokens"] in (60, 0) or found["concurrency"] > 0  # 0 when a minute is over
            return (found["concurrency"], found["budget_usd"]) == (0, pytest.approx(cost))

        for gateway in gateways:
            eventually(
                lambda gateway=gateway: is_given_back(gateway),  # type: ignore[misc]
                what="everything is given back",
                retry_on=(AssertionError, OSError, http.client.HTTPException),
            )
            assert call(gateway, "web", sim).status == 200


# --- a store that goes away under load ----------------------------------------------------------


class Outage(NamedTuple):
    env: dict[str, str]
    begin: Callable[[Gateway], Any]
    end: Callable[[Gateway], Any]


@contextlib.contextmanager
def redis_outage(directory: Path) -> Iterator[Outage]:
    """A Redis that keeps what it has acknowledged, and that is killed and started again."""
    redis = RedisServer(directory, "--appendonly", "yes", "--appendfsync", "always")
    try:
        yield Outage(
            {"WRAPPER_STORE": redis.start().url}, lambda _: redis.stop(), lambda _: redis.start()
        )
    finally:
        redis.close()


@contextlib.contextmanager
def sqlite_outage(_: Path) -> Iterator[Outage]:
    """Another program that begins to write and does not end it."""
    locks: list[sqlite3.Connection] = []

    def begin(gateway: Gateway) -> None:
        lock = sqlite3.connect(
            gateway.directory / "usage.db", isolation_level=None, check_same_thread=False
        )
        locks.append(lock)
        eventually(lambda: lock.execute("BEGIN IMMEDIATE"), retry_on=(sqlite3.OperationalError,))

    def end(_: Gateway) -> None:
        locks[0].execute("ROLLBACK")
        locks[0].close()

    yield Outage({}, begin, end)


@contextlib.contextmanager
def full_disk(_: Path) -> Iterator[Outage]:
    """The workers can make no file larger than the database's log is, as on a disk without room."""

    def limit(gateway: Gateway, size: int | None) -> None:
        for worker in gateway.workers():
            _, most = resource.prlimit(worker, resource.RLIMIT_FSIZE)
            now = (most if size is None else size, most)
            resource.prlimit(worker, resource.RLIMIT_FSIZE, now)

    def begin(gateway: Gateway) -> None:
        limit(gateway, (gateway.directory / "usage.db-wal").stat().st_size)

    yield Outage({}, begin, lambda gateway: limit(gateway, None))


OUTAGES = {"redis": redis_outage, "sqlite": sqlite_outage, "full disk": full_disk}
CALLERS = {
    "limited": {"requests_per_minute": 10**6, "tokens_per_minute": 10**9, "budget_usd": 1000.0},
    "allowed": {"max_concurrent": 10**4, "store_failure": "allow"},
    "free": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("store", OUTAGES)
def test_a_store_that_goes_away_under_load_and_comes_back(
    simulator: Simulator, tmp_path: Path, store: str
) -> None:
    settings = "\n".join([provider("free", simulator), PRICED])
    settings += '\n[[routes]]\nmodel = "*"\ntargets = ["free"]\n'
    seen: Counter[tuple[str, str, int, str]] = Counter()
    phase, book = "before", chat.mark()
    lock, stop = threading.Lock(), threading.Event()

    def client(key: str) -> None:
        while not stop.is_set():
            now = phase
            answer = call(gateway, key, "prompt=5; completion=3", book=f"{book}-{key}")
            code = ""
            if answer.status != 200:
                assert int(answer.header("retry-after") or 0) >= 1
                code = chat.error(answer)["code"]
            with lock:
                seen[key, now, answer.status, code] += 1
            time.sleep(0.01)

    with contextlib.ExitStack() as stack:
        outage = stack.enter_context(OUTAGES[store](tmp_path))
        options: dict[str, Any] = {"keys": CALLERS, "env": {**ENV, **outage.env}}
        gateway = stack.enter_context(Gateway(settings, workers=2, **options))
        pool = stack.enter_context(ThreadPoolExecutor(6))
        stack.callback(stop.set)
        clients = [pool.submit(client, key) for key in CALLERS for _ in range(2)]

        def passes(key: str, status: int, code: str = "", since: int = 0) -> None:
            eventually(
                lambda: seen[key, phase, status, code] > since + 5, what=f"{key} gets {status}"
            )

        for key in CALLERS:
            passes(key, 200)
        outage.begin(gateway)
        phase = "away"
        passes("limited", 503, "store_unavailable")
        passes("allowed", 200)
        passes("free", 200)
        ready = [json.loads(gateway.get("/readyz")[1])["store"] for _ in range(20)]
        assert "failing" in ready
        assert gateway.metrics().value("store_failures_total") > 0
        assert '"message": "cannot use the store: ' in gateway.stderr()
        outage.end(gateway)
        phase = "back"
        passes("limited", 200)
        eventually(
            lambda: all(json.loads(gateway.get("/readyz")[1])["store"] == "ok" for _ in range(10)),
            what="the store is used again by every worker",
        )
        stop.set()
        for each in clients:
            each.result(PATIENCE)
        gateway.idle()
        # Nothing is lost: what was served while the store was away is in the ledger too.
        for key in CALLERS:
            theirs = sum(
                row["prompt"] + row["completion"] for row in simulator.books(book=f"{book}-{key}")
            )
            headers = {"Authorization": f"Bearer {gateway.secrets[key]}"}
            eventually(
                lambda headers=headers, theirs=theirs: (
                    json.loads(  # type: ignore[misc]
                        gateway.get("/usage", headers=headers)[1]
                    )["totals"]["total_tokens"]
                    == theirs
                ),
                what=f"the ledger of {key} has all {theirs} tokens",
            )
        assert {code for (key, _, status, code) in seen if status != 200} == {"store_unavailable"}
        assert {key for (key, _, status, _) in seen if status != 200} == {"limited"}
        # Where the store admitted a request and its reply was lost, a heartbeat ends the lease.
        eventually(lambda: used(gateway)["concurrency"] == 0, what="every lease has ended")
        gateway.assert_clean()
