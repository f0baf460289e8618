"""A gateway that is full says so at once, and still answers whether it is alive."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.poll import eventually

if TYPE_CHECKING:
    from harness.app import App
    from harness.gateway import GatewayFactory
    from harness.simulator import Simulator

PLACES = 4


@pytest.fixture(scope="module")
def gateway(simulator: Simulator) -> Iterator[Gateway]:
    """One worker with a few places, and a provider with fewer."""
    config = f"[server]\nmax_in_flight = {PLACES}\n\n" + CONFIG.replace(
        "client_credentials = true", "max_connections = 2"
    )
    config += '\n[[routes]]\nmodel = "openai-first"\ntargets = ["openai", "groq"]\n'
    config = config.replace('[[routes]]\nmodel = "*"\ntargets = ["groq"]\n', "") + (
        '\n[[routes]]\nmodel = "*"\ntargets = ["groq"]\n'
    )
    with Gateway(config.replace("{simulator}", simulator.url), keys=KEYS, env=PROVIDER_KEYS) as g:
        yield g


def hold(gateway: Gateway, held: ExitStack, simulator: Simulator, count: int, model: str) -> None:
    """Calls that stay until `held` is closed."""
    book = chat.mark()
    for _ in range(count):
        held.enter_context(chat.begin(gateway, orders="stall-before", book=book, model=model))
    eventually(lambda: len(simulator.requests(book=book)) == count, what="calls under way")


def test_a_full_gateway_refuses_calls_and_not_health_checks(
    gateway: Gateway, simulator: Simulator
) -> None:
    with ExitStack() as held:
        hold(gateway, held, simulator, PLACES, "llama-x")
        answer = chat.call(gateway)
        details = chat.error(answer)
        assert (answer.status, details["type"], details["code"]) == (503, "api_error", "overloaded")
        assert int(answer.header("retry-after") or 0) >= 1
        assert gateway.get("/healthz")[0] == 200
        assert gateway.get("/readyz")[0] == 200
        scrape = gateway.metrics()
        assert scrape.value("requests_in_flight") >= PLACES
        # What the alert GatewayFull is made of.
        assert scrape.value("api_key_rejections_total", api_key="web-app", reason="overloaded") == 1
    eventually(lambda: chat.call(gateway).status == 200, what="places are free again")


def test_calls_whose_bodies_are_still_coming_fill_a_gateway_too(gateway: Gateway) -> None:
    asked = chat.request(gateway)
    with ExitStack() as held:
        for _ in range(PLACES):
            held.enter_context(raw.Connection(gateway.port)).send(asked[:-5])
        eventually(lambda: chat.call(gateway).status == 503, what="the gateway is full")
        assert gateway.get("/healthz")[0] == 200
    eventually(lambda: chat.call(gateway).status == 200, what="places are free again")


def test_the_next_target_answers_where_the_first_has_no_free_connection(
    gateway: Gateway, simulator: Simulator
) -> None:
    with ExitStack() as held:
        hold(gateway, held, simulator, 2, "gpt-x")
        answer = chat.call(gateway, model="openai-first")
        assert (answer.status, answer.header("x-wrapper-provider")) == (200, "groq")
        assert gateway.metrics().value("upstream_errors_total", reason="full") >= 1


def test_a_provider_without_a_free_connection_is_a_503_and_others_still_serve(
    gateway: Gateway, simulator: Simulator
) -> None:
    with ExitStack() as held:
        hold(gateway, held, simulator, 2, "gpt-x")
        answer = chat.call(gateway, model="gpt-x")
        assert (answer.status, chat.error(answer)["code"]) == (503, "overloaded")
        assert int(answer.header("retry-after") or 0) >= 1
        full = {"api_key": "web-app", "reason": "upstream_full"}
        assert gateway.metrics().value("api_key_rejections_total", **full) == 1
        assert chat.call(gateway, model="llama-x").status == 200
    eventually(lambda: chat.call(gateway, model="gpt-x").status == 200, what="one is free again")


@pytest.mark.parametrize(
    ("method", "orders"), [("HEAD", ""), ("HEAD", "status=404"), ("GET", "status=204")]
)
def test_responses_without_a_body_give_their_connection_back(
    gateway: Gateway, method: str, orders: str
) -> None:
    """Of the provider's two connections each would hold one for ever."""
    key = gateway.secrets["web-app"]
    headers = chat.told(orders)
    asked = raw.request(gateway.port, method, "/openai/v1/models", key=key, headers=headers)
    answers = [gateway.exchange(asked, head_only=method == "HEAD").status for _ in range(5)]
    assert 503 not in answers
    assert chat.call(gateway, model="gpt-x").status == 200


def test_callers_whom_nothing_has_authenticated_leave_room_for_key_owners(
    gateway_factory: GatewayFactory,
) -> None:
    config = "[server]\nmax_in_flight_unauthenticated = 4\n" + CONFIG
    gateway = gateway_factory(config, workers=1)

    def begin(key: str) -> raw.Connection:
        headers = (("Content-Type", "application/json"), ("Content-Length", "20000"))
        target = "/openai/v1/chat/completions"
        asked = raw.request(gateway.port, "POST", target, key=key, headers=headers)
        return raw.Connection(gateway.port).send(asked + b'{"model":"gpt-x","messages":"')

    def call(key: str) -> raw.Answer:
        return raw.post(gateway.port, "/openai/v1/chat/completions", chat.body(), key=key)

    assert call("sk-own-accepted-before").status == 200
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(begin("sk-own-made-up"))
        eventually(lambda: gateway.in_flight() == 4, what="the bodies are being read")
        answer = held.enter_context(begin("sk-own-made-up")).read()
        assert (answer.status, chat.error(answer)["code"]) == (503, "overloaded")
        assert call("sk-another").status == 503
        assert call("sk-own-accepted-before").status == 200
        assert chat.call(gateway).status == 200
    eventually(lambda: call("sk-own-made-up").status == 200, what="places are free again")


@pytest.mark.parametrize("size", [100, 20_000], ids=["found-at-its-end", "found-on-the-way"])
def test_an_upload_that_a_full_disk_does_not_take_is_a_503_and_is_recorded(
    app: App, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(
        "wrapper.proxy.body.tempfile.TemporaryFile",
        lambda: open("/dev/full", "r+b"),  # noqa: PTH123, SIM115  # closed by the application
    )
    book = chat.mark()
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-x\r\n'
    form += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    form += b"a" * size + b"\r\n--b--\r\n"
    headers = (
        ("Content-Type", "multipart/form-data; boundary=b"),
        ("Transfer-Encoding", "chunked"),
        *chat.told(book=book),
    )
    target, key = "/v1/audio/transcriptions", app.secrets["web-app"]
    asked = raw.request(app.port, "POST", target, key=key, headers=headers)
    answer = app.exchange(asked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(form), form))
    assert (answer.status, chat.error(answer)["code"]) == (503, "overloaded")
    assert answer.header("retry-after") == "10"
    assert simulator.requests(book=book) == []
    assert app.runtime.capacity.disk.held == 0
    app.assert_clean()


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2500,
    reason="the limit of open files is too low",
)
def test_one_worker_takes_1000_streams_as_it_is_shipped(
    gateway_factory: GatewayFactory, simulator: Simulator
) -> None:
    gateway = gateway_factory()
    book = chat.mark()
    with ExitStack() as held:
        streams = [
            held.enter_context(
                chat.begin(gateway, orders="stall=1; events=2", book=book, stream=True)
            )
            for _ in range(1000)
        ]
        assert {stream.read_head().status for stream in streams} == {200}
        assert gateway.get("/healthz")[0] == 200
        assert simulator.stats()["open"] == 1000
    eventually(lambda: simulator.stats()["open"] == 0, what="the end of the streams")
