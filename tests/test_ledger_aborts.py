"""Calls that clients give up at random points: their use lies between the bounds that are booked.

The provider (the simulator) knows what each of them has used, whether or not it could say so. For
every one, what the gateway says is the same number, or has it between its low and its high end.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, raw
from harness.defaults import CONFIG
from harness.gateway import Gateway
from harness.poll import eventually
from wrapper.store import SqliteStore, Sums

if TYPE_CHECKING:
    from harness.simulator import Simulator

CALLS = 96
CLIENTS = 8
MODELS = {
    # USD per million tokens are pico-USD per token times 1e-6: input, output.
    "openai/gpt-oss-20b": (75_000, 300_000),
    "gpt-6-sol": (2_000_000, 10_000_000),
}
PRICES = "".join(
    f'\n[prices."{name}"]\ninput = {i / 1e6}\ncached_input = {i / 2e6}\noutput = {o / 1e6}\n'
    for name, (i, o) in MODELS.items()
)
FOR_EVER = "gap=0.01"  # it goes on until the client leaves or it is over


@pytest.fixture(scope="module")
def gateway(simulator: Simulator) -> Iterator[Gateway]:
    config = CONFIG.replace("{simulator}", simulator.url) + PRICES
    env = {"GROQ_API_KEY": "g", "OPENAI_API_KEY": "o"}
    keys = {"open": {}, "capped": {"budget_usd": 1000.0, "tokens_per_minute": 10**9}}
    with Gateway(config, workers=2, keys=keys, env=env) as running:
        yield running
        running.assert_clean()


def calls(seed: int) -> Iterator[tuple[str, dict[str, Any], str]]:
    """An endless mix of dialects, limits and paces: path, body, orders."""
    dice = random.Random(seed)
    while True:
        words = " ".join(dice.choices(("one", "two", "three", "räder", "☃"), k=dice.randint(1, 40)))
        model = dice.choice(list(MODELS))
        stream = dice.random() < 0.7
        body: dict[str, Any] = {"model": model}
        if stream:
            body["stream"] = True
        path = dice.choice(("chat/completions", "chat/completions", "responses", "completions"))
        limit = {"responses": "max_output_tokens", "completions": "max_tokens"}.get(path)
        if dice.random() < 0.6:
            body[limit or dice.choice(("max_tokens", "max_completion_tokens"))] = dice.randint(
                1, 30
            )
        if path == "completions":
            body["model"] = "gpt-6-sol"  # Groq has none
        if path == "chat/completions":
            body["messages"] = [{"role": "user", "content": words}]
            body |= {"n": dice.randint(2, 3)} if dice.random() < 0.2 else {}
            body |= {"reasoning_effort": "high"} if dice.random() < 0.2 else {}
            body |= {"stream_options": {"include_usage": True}} if dice.random() < 0.2 else {}
        else:
            body["input" if path == "responses" else "prompt"] = words
        orders = f"events={dice.randint(1, 40)}; " + dice.choice((FOR_EVER, FOR_EVER, "delay=0.2"))
        orders += dice.choice(("", "", "; split", "; merge=3", "; crlf", "; comment=2"))
        orders += dice.choice(("", "", f"; cut={dice.randint(1, 12)}"))
        yield path, body, orders


def give_up(gateway: Gateway, key: str, call: tuple[str, dict[str, Any], str], at: int) -> str:
    """Make the call and leave after about `at` bytes of the response: its book."""
    path, body, orders = call
    book = chat.mark()
    asked = chat.request(
        gateway,
        json.dumps(body).encode(),
        target=f"/v1/{path}",
        key=key,
        orders=orders,
        book=book,
        headers=(("Connection", "close"),),
    )
    with raw.Connection(gateway.port).send(asked) as connection:
        seen = 0
        while seen < at:
            try:
                data = connection.socket.recv(min(at - seen, 4096))
            except ConnectionResetError:
                break
            if not data:
                break
            seen += len(data)
    return book


def test_what_a_call_that_is_given_up_has_used_lies_between_its_bounds(
    gateway: Gateway, simulator: Simulator
) -> None:
    made: list[str] = []

    def client(number: int) -> None:
        dice, mix = random.Random(number), calls(number)
        for _ in range(CALLS // CLIENTS):
            key = dice.choice(("open", "capped"))
            at = dice.choice((0, 1, dice.randint(1, 9000), dice.randint(1, 9000)))
            made.append(give_up(gateway, key, next(mix), at))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gateway.idle()
    eventually(lambda: simulator.stats()["open"] == 0, what="no open upstream request")
    lines = {line["upstream_request_id"]: line for line in gateway.log() if line["provider"]}
    kinds: dict[str, int] = {"metered": 0, "bounded": 0}
    known = [request for book in made for request in simulator.requests(book=book)]
    for request in known:
        line = lines.get(f"req_{request['id']}")
        if line is not None:  # else it was given up before its head
            kinds[compare(line, request)] += 1
    assert min(kinds.values()) > 0, kinds
    sums = the_table_has_the_same(gateway)
    used = sum(sum(true(request)) for request in known)
    assert sums.total + sums.tokens_low <= used <= sums.total + sums.tokens_high


# More than the sockets between the gateway and a client that reads nothing take: what a client that
# leaves has not read, the gateway has not sent.
LARGE = "events=40; size=250000"
DRAIN = 'on_abort = "drain"\ndrain_timeout = {}'


@pytest.fixture(scope="module")
def draining(simulator: Simulator) -> Iterator[Gateway]:
    config = CONFIG.replace("{simulator}", simulator.url) + PRICES
    config = config.replace("[providers.groq]", "[providers.groq]\n" + DRAIN.format(60))
    config = config.replace("[providers.openai]", "[providers.openai]\n" + DRAIN.format(0.2))
    env = {"GROQ_API_KEY": "g", "OPENAI_API_KEY": "o"}
    with Gateway(config, keys={"open": {}}, env=env) as running:
        yield running
        running.assert_clean()


def left(
    gateway: Gateway, simulator: Simulator, prefix: str, orders: str, *, stream: bool, at: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The log line of a call whose client leaves, and the provider's record of it."""
    book = chat.mark()
    model = f"{prefix}-{book}"
    orders = f"any-model; {orders}"
    asked = chat.request(gateway, model=model, stream=stream, key="open", orders=orders, book=book)
    with raw.Connection(gateway.port) as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.send(asked)
        eventually(lambda: simulator.requests(book=book), what="the call at the provider")
        if at:
            connection.socket.recv(at)
    [line] = gateway.log_lines(lambda line: line["model"] == model)

    def over() -> dict[str, Any] | None:
        [request] = simulator.requests(book=book)
        return request if request["outcome"] is not None else None

    return line, eventually(over, what="the end of the provider's work")


@pytest.mark.parametrize(
    ("stream", "orders", "at"),
    [
        (True, LARGE, 50),
        (True, f"{LARGE}; delay=0.1", 0),
        (False, LARGE, 50),
        (False, f"{LARGE}; delay=0.1", 0),
    ],
)
def test_a_response_is_read_on_for_its_usage_where_its_provider_says_drain(
    draining: Gateway, simulator: Simulator, stream: bool, orders: str, at: int
) -> None:
    line, request = left(draining, simulator, "llama", orders, stream=stream, at=at)
    assert request["outcome"] == "completed"
    assert (line["outcome"], line["bounded"], line["unmetered"]) == ("client_abort", None, None)
    assert (line["prompt_tokens"], line["completion_tokens"]) == true(request)


@pytest.mark.parametrize(("stream", "at"), [(True, 50), (False, 0)])
def test_a_response_that_does_not_end_is_read_on_for_a_bounded_time(
    draining: Gateway, simulator: Simulator, stream: bool, at: int
) -> None:
    orders = "events=9; stall=3" if stream else "stall-before"
    line, request = left(draining, simulator, "gpt", orders, stream=stream, at=at)
    assert request["outcome"] == "aborted"
    assert (line["outcome"], line["bounded"]) == ("client_abort", "aborted")


def true(request: dict[str, Any]) -> tuple[int, int]:
    """The tokens of prompt and completion that the provider has used, said or not; none where it
    was given up before it had read the request.
    """
    usage = request["usage"] or request["unsent"] or {"prompt": 0, "completion": 0}
    return usage["prompt"], usage["completion"]


def compare(line: dict[str, Any], request: dict[str, Any]) -> str:
    """Hold what the gateway says against what the provider knows; which kind of end it was."""
    prompt, completion = true(request)
    total = prompt + completion
    fresh, output = MODELS[request["model"]]
    cost = prompt * fresh + completion * output
    where = f"{line} {request}"
    assert line["unmetered"] is None, where
    if line["bounded"] is None:
        assert line["prompt_tokens"] + line["completion_tokens"] == total, where
        assert round(line["cost_usd"] * 1e12) == cost, where
        return "metered"
    assert line["bounded"] in ("aborted", "truncated"), where
    assert line["prompt_tokens"] is None, where
    assert line["tokens_low"] <= total <= line["tokens_high"], where
    assert line["tokens_low"] <= 1 + request["events_sent"], where
    assert round(line["cost_usd_low"] * 1e12) <= cost <= round(line["cost_usd_high"] * 1e12), where
    return "bounded"


def the_table_has_the_same(gateway: Gateway) -> Sums:
    """The usage table, the budget, the metrics and the log agree on the bounds."""
    lines = [line for line in gateway.log() if line["bounded"]]
    store = SqliteStore(gateway.directory / "usage.db")
    [sums] = store.totals()
    by_key = {row.group[0]: row for row in store.totals(by=("key",))}
    store.close()
    assert sums.bounded == len(lines)
    assert sums.tokens_low == sum(line["tokens_low"] for line in lines)
    assert sums.tokens_high == sum(line["tokens_high"] for line in lines)
    assert sums.cost_high == sum(round(line["cost_usd_high"] * 1e12) for line in lines)
    metrics = gateway.metrics()
    for bound, tokens, cost in (
        ("low", sums.tokens_low, sums.cost_low),
        ("high", sums.tokens_high, sums.cost_high),
    ):
        assert metrics.value("token_usage_bounded_total", bound=bound) == tokens
        shown = metrics.value("api_key_cost_bounded_usd_total", bound=bound)
        assert shown == pytest.approx(cost / 1e12, abs=1e-9)
    spent = metrics.value("limit_used", scope="key", name="capped", kind="budget_usd")
    capped = by_key["capped"]
    assert spent == pytest.approx((capped.cost + capped.cost_high) / 1e12, abs=1e-9)
    return sums
