"""Background responses and videos: booked once, whoever sees their end, at what they used."""

from __future__ import annotations

import gzip
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest

from harness import raw
from harness.raw import response
from wrapper.metering.usage import Usage
from wrapper.proxy.asker import Asker
from wrapper.server.worker import Worker
from wrapper.store import StoreError

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.raw import Answer, Scripted

JSON = "Content-Type: application/json"
EVENTS = "Content-Type: text/event-stream"
MODEL = "gpt-6-luna"
# USD per million tokens are pico-USD per token times 1e-6.
PRICES = '\n[prices."gpt-6-luna"]\ninput = 0.1\ncached_input = 0.01\noutput = 0.5\n'
CONFIG = (
    """\
[server]
deferred_poll = 0.001

[tags]
user = true

[providers.openai]
base_url = "{provider}/v1"
api_key = { env = "OPENAI_API_KEY" }
client_credentials = true

[[routes]]
model = "*"
targets = ["openai"]
"""
    + PRICES
)
USED = {
    "input_tokens": 300,
    "input_tokens_details": {"cached_tokens": 100},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 350,
}
COST = 200 * 100_000 + 100 * 10_000 + 50 * 500_000
BODY = {"model": MODEL, "input": "Tell me a tale.", "background": True, "max_output_tokens": 900}


class World:
    """A gateway before a provider that sends what the test says."""

    def __init__(self, app_factory: AppFactory, held: ExitStack) -> None:
        self.send: Callable[[bytes], bytes] = lambda _: response(b"{}", JSON)
        self.provider: Scripted = held.enter_context(raw.scripted(lambda sent: self.send(sent)))
        self.app: App = app_factory(
            CONFIG.replace("{provider}", self.provider.url),
            keys={"web-app": {}, "paid": {"budget_usd": 1}, "thrifty": {"budget_usd": 0.0001}},
        )

    def call(self, method: str, path: str, body: Any = None, *, key: str = "web-app") -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        secret = self.app.secrets.get(key, key)
        return self.app.exchange(raw.request(self.app.port, method, path, content, key=secret))

    def answers(self, code: int = 200, **made: Any) -> None:
        """From now on the provider sends this object."""
        sent = response(json.dumps(made).encode(), JSON, status=f"{code} OK")
        self.send = lambda _: sent

    def create(self, *, key: str = "web-app", name: str = "resp_1", tag: str = "") -> None:
        self.answers(id=name, object="response", status="queued", background=True, usage=None)
        body = {**BODY, "user": tag}
        assert self.call("POST", "/v1/responses", body, key=key).status == 200

    def sums(self, key: str = "web-app") -> Any:
        """The rows of the ledger by model."""
        return {row.group[0]: row for row in self.app.runtime.store.totals(by=("model",), key=key)}

    def asker(self) -> Asker:
        return Asker(self.app.runtime)

    def ask(self) -> None:
        """Ask until nothing is due: at most one question a second, so time is moved on."""
        store = self.app.runtime.store
        store._wall = lambda: time.time() + 100.0 * len(self.provider.requests)
        while self.asker().ask_once():
            store._wall = lambda: time.time() + 100.0 * len(self.provider.requests)


@pytest.fixture
def world(app_factory: AppFactory) -> Iterator[World]:
    with ExitStack() as held:
        yield World(app_factory, held)


def test_its_key_finds_what_it_used_by_the_id_of_the_object(world: World) -> None:
    def found(request_id: str | None) -> tuple[int, Any]:
        answer = world.call("GET", f"/usage/requests/{request_id}")
        return answer.status, json.loads(answer.body)

    world.answers(id="resp_1", object="response", status="queued", background=True, usage=None)
    created = world.call("POST", "/v1/responses", BODY)
    status, use = found(created.header("x-request-id"))
    assert (status, use["deferred"], "cost_usd" in use) == (200, "resp_1", False)
    assert found("resp_1")[0] == 404
    world.answers(**ended())
    assert world.call("GET", "/v1/responses/resp_1").status == 200
    status, use = found("resp_1")
    assert (status, use["cost_usd"], use["prompt_tokens"]) == (200, COST / 10**12, 300)


def ended(name: str = "resp_1", **changes: Any) -> dict[str, Any]:
    made = {"id": name, "object": "response", "status": "completed", "model": f"{MODEL}-2026-01-01"}
    return {**made, "usage": USED, **changes}


def metric(name: str, **labels: str) -> float:
    return prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_background_response_is_booked_when_it_is_seen_to_have_ended(world: World) -> None:
    labels = {"api_key": "web-app", "provider": "openai", "model": MODEL}
    before = metric("token_usage_total", **labels)
    world.create()
    [row] = world.sums().values()
    assert (row.requests, row.total, row.unmetered) == (1, 0, 0)
    world.answers(**ended(status="in_progress", usage=None))
    world.call("GET", "/v1/responses/resp_1")
    assert world.sums()[MODEL].total == 0
    world.answers(**ended())
    for _ in range(5):
        assert world.call("GET", "/v1/responses/resp_1").status == 200
    row = world.sums()[MODEL]
    assert (row.requests, row.prompt, row.completion, row.cached) == (1, 300, 50, 100)
    assert (row.reasoning, row.cost, row.unmetered, row.unpriced) == (20, COST, 0, 0)
    assert world.sums()["none"].requests == 6
    assert metric("token_usage_total", **labels) - before == 350


def test_who_sees_it_first_need_not_be_who_has_started_it(world: World) -> None:
    world.create(key="paid")
    world.answers(**ended())
    world.call("GET", "/openai/v1/responses/resp_1", key="web-app")
    assert world.sums("paid")[MODEL].total == 350
    assert MODEL not in world.sums("web-app")


@pytest.mark.parametrize("coding", ["", "gzip"])
def test_a_large_one_is_read_at_its_ends(world: World, coding: str) -> None:
    world.create()
    body = json.dumps({**ended(usage=None), "output": ["x" * 300_000]})
    content = body.replace('"usage": null, ', "")[:-1].encode()
    content += b', "usage": ' + json.dumps(USED).encode() + b"}"
    headers = [JSON, f"Content-Encoding: {coding}"] if coding else [JSON]
    sent = response(gzip.compress(content) if coding else content, *headers)
    world.send = lambda _: sent
    world.call("GET", "/v1/responses/resp_1")
    assert world.sums()[MODEL].total == 350


def test_it_is_booked_in_the_hour_in_which_it_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    seen, readable = now + 7200, now + 3600
    times = ((readable, readable), (now + 9000, seen), ("x", seen), (10**400, seen), (-1, seen))
    for number, (ended_at, at) in enumerate(times):
        world.create(name=f"resp_{number}")
        world.answers(**ended(f"resp_{number}", completed_at=ended_at))
        hour = {"since": at // 3600 * 3600, "until": at}
        [before] = world.app.runtime.store.totals(**hour)
        with monkeypatch.context() as later:
            later.setattr(time, "time", lambda: seen)
            world.call("GET", f"/v1/responses/resp_{number}")
        [after] = world.app.runtime.store.totals(**hour)
        assert after.total - before.total == 350


def test_a_plain_response_is_metered_as_ever(world: World) -> None:
    world.answers(**ended())
    world.call("POST", "/v1/responses", {**BODY, "background": False})
    assert world.sums()[MODEL].total == 350
    world.call("GET", "/v1/responses/resp_1")
    assert world.sums()[MODEL].total == 350


def stream(*events: dict[str, Any]) -> bytes:
    text = b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode())
        for event in events
    )
    return response(text, EVENTS)


def event(kind: str, **changes: Any) -> dict[str, Any]:
    made = {"background": True, **ended(status=kind, usage=None), **changes}
    return {"type": f"response.{kind}", "response": made}


def test_a_plain_stream_is_metered_as_ever(world: World) -> None:
    sent = stream(
        event("created", status="in_progress", background=False),
        event("completed", usage=USED, background=False),
    )
    world.send = lambda _: sent
    world.call("POST", "/v1/responses", {**BODY, "background": False, "stream": True})
    assert world.sums()[MODEL].total == 350
    world.app.runtime.store._wall = lambda: time.time() + 1000
    assert not world.asker().ask_once()


def test_a_background_stream_that_ends_is_booked_once(world: World) -> None:
    sent = stream(event("created", status="queued"), event("completed", usage=USED))
    world.send = lambda _: sent
    world.call("POST", "/v1/responses", {**BODY, "stream": True}, key="paid")
    row = world.sums("paid")[MODEL]
    assert (row.requests, row.total, row.cost) == (1, 350, COST)
    world.answers(**ended())
    world.call("GET", "/v1/responses/resp_1", key="paid")
    world.ask()
    assert world.sums("paid")[MODEL].total == 350


def test_a_background_stream_that_breaks_off_is_booked_where_it_goes_on(world: World) -> None:
    sent = stream(event("created", status="queued"))
    world.send = lambda _: sent
    world.call("POST", "/v1/responses", {**BODY, "stream": True})
    row = world.sums()[MODEL]
    assert (row.requests, row.total, row.unmetered) == (1, 0, 0)
    sent = stream(event("in_progress"), event("completed", usage=USED))
    world.send = lambda _: sent
    for _ in range(2):
        world.call("GET", "/v1/responses/resp_1?stream=true&starting_after=1")
    assert world.sums()[MODEL].total == 350


def test_what_nobody_asks_for_is_asked_by_the_gateway_with_its_own_credential(
    world: World,
) -> None:
    world.create()
    world.answers(**ended(status="in_progress", usage=None))
    store = world.app.runtime.store
    store._wall = lambda: time.time() + 10
    assert world.asker().ask_once()
    assert not world.asker().ask_once(), "the next question is due later"
    assert world.sums()[MODEL].total == 0
    world.answers(**ended())
    store._wall = lambda: time.time() + 100
    assert world.asker().ask_once()
    assert world.sums()[MODEL].total == 350
    store._wall = lambda: time.time() + 100_000
    assert not world.asker().ask_once()
    asked = [sent for sent in world.provider.requests if sent.startswith(b"GET ")]
    assert len(asked) == 2
    for sent in asked:
        assert sent.startswith(b"GET /v1/responses/resp_1 HTTP/1.1\r\n")
        assert b"Authorization: Bearer sk-PROVIDERS-OWN-KEY" in sent


@pytest.mark.parametrize(
    ("created", "asked"),
    [
        ("/v1/respons%65s", "/v1/responses/resp_1"),
        ("/openai/v1/Responses;x/", "/v1/responses/resp_1"),
        ("/v1/responses?stream=true&Stre%61m=1&include[]=x", "/v1/responses/resp_1"),
        ("/v1/responses?x=1&api-version=v1", "/v1/responses/resp_1?x=1&api-version=v1"),
    ],
)
def test_no_way_to_write_its_path_hides_it_from_the_gateway(
    world: World, created: str, asked: str
) -> None:
    world.answers(id="resp_1", object="response", status="queued", background=True, usage=None)
    assert world.call("POST", created, BODY).status == 200
    world.answers(**ended())
    world.ask()
    assert world.provider.requests[-1].startswith(f"GET {asked} HTTP/1.1\r\n".encode())
    assert world.sums()[MODEL].total == 350


def test_a_failed_or_unreachable_provider_is_asked_again(world: World) -> None:
    world.create()
    world.answers(503, error={"message": "busy"})
    store = world.app.runtime.store
    for seconds in (10, 20):
        store._wall = lambda seconds=seconds: time.time() + seconds
        assert world.asker().ask_once()
    assert world.sums()[MODEL].total == 0
    world.answers(**ended())
    world.ask()
    assert world.sums()[MODEL].total == 350


def test_the_reservation_is_held_until_it_is_booked(world: World) -> None:
    world.create(key="paid")
    limits = world.app.runtime.snapshot.limits
    [standing] = world.app.runtime.store.standing(limits.of_key("paid"))
    reserved = standing.reserved
    assert reserved > 900 * 500_000
    assert (standing.concurrent, standing.spent) == (0, 0)
    world.answers(**ended())
    world.ask()
    [standing] = world.app.runtime.store.standing(limits.of_key("paid"))
    assert (standing.reserved, standing.spent) == (0, COST)


def test_a_budget_has_no_room_for_more_than_it_holds(world: World) -> None:
    large = {**BODY, "max_output_tokens": 150}
    world.answers(id="resp_1", status="queued", background=True)
    assert world.call("POST", "/v1/responses", large, key="thrifty").status == 200
    refused = world.call("POST", "/v1/responses", large, key="thrifty")
    assert refused.status == 429
    assert b"insufficient_quota" in refused.body


@pytest.mark.parametrize(
    ("changes", "unmetered", "cost"),
    [
        ({"status": "failed", "usage": None}, 0, False),
        ({"status": "cancelled", "usage": None}, 1, True),
        ({"status": "completed", "usage": None}, 1, True),
    ],
)
def test_an_end_without_usage(
    world: World, changes: dict[str, Any], unmetered: int, cost: bool
) -> None:
    world.create(key="paid")
    limits = world.app.runtime.snapshot.limits
    [before] = world.app.runtime.store.standing(limits.of_key("paid"))
    world.answers(**ended(**changes))
    world.call("POST", "/v1/responses/resp_1/cancel", {}, key="paid")
    row = world.sums("paid")[MODEL]
    assert (row.requests, row.total, row.unmetered) == (1, 0, unmetered)
    assert row.cost == (before.reserved if cost else 0)
    [after] = world.app.runtime.store.standing(limits.of_key("paid"))
    assert (after.reserved, after.spent) == (0, row.cost)


def test_what_the_provider_does_not_have_any_more_is_unmetered(world: World) -> None:
    world.create()
    before = metric("unmetered_responses_total", provider="openai", reason="not_found")
    world.answers(404, error={"message": "gone"})
    world.ask()
    assert world.sums()[MODEL].unmetered == 1
    after = metric("unmetered_responses_total", provider="openai", reason="not_found")
    assert after - before == 1
    assert len([sent for sent in world.provider.requests if sent.startswith(b"GET ")]) == 4


def test_what_never_ends_is_unmetered_after_31_days(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.create(key="paid")
    before = metric("unmetered_responses_total", provider="openai", reason="never_finished")
    later = time.time() + 31 * 86_400 + 60
    monkeypatch.setattr("wrapper.proxy.asker.time.time", lambda: later)
    world.app.runtime.store._wall = lambda: later
    assert world.asker().ask_once()
    row = world.sums("paid")[MODEL]
    assert row.unmetered == 1
    assert row.cost > 0
    after = metric("unmetered_responses_total", provider="openai", reason="never_finished")
    assert after - before == 1


def test_what_a_callers_own_credential_has_started_is_not_asked_for(world: World) -> None:
    world.answers(id="resp_1", status="queued", background=True)
    world.call("POST", "/openai/v1/responses", BODY, key="sk-their-own")
    world.app.runtime.store._wall = lambda: time.time() + 1000
    assert not world.asker().ask_once()


def test_a_store_that_fails_at_the_creation_learns_of_it_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("not in reach")

    with monkeypatch.context() as patched:
        patched.setattr(world.app.runtime.store, "remember", fail)
        world.create(key="paid")
    assert world.sums("paid")[MODEL].unmetered == 0
    world.answers(**ended())
    world.asker().ask_once()
    world.ask()
    assert world.sums("paid")[MODEL].total == 350
    [standing] = world.app.runtime.store.standing(world.app.runtime.snapshot.limits.of_key("paid"))
    assert (standing.reserved, standing.spent) == (0, COST)


def test_a_worker_that_exits_tells_the_store_what_it_has_not_learned_yet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("not in reach")

    store = world.app.runtime.store
    with monkeypatch.context() as patched:
        patched.setattr(store, "remember", fail)
        world.create(key="paid")
    assert not store.pending("openai", ["resp_1"])
    worker: Any = SimpleNamespace(wsgi=world.app, runtime=world.app.runtime)
    Worker.close(worker)
    [known] = store.pending("openai", ["resp_1"])
    assert known.key == "paid"


def test_what_the_store_never_learns_of_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("not in reach")

    monkeypatch.setattr(world.app.runtime.store, "remember", fail)
    monkeypatch.setattr("wrapper.proxy.deferred.MAX_UNREMEMBERED", 1)
    world.create(name="resp_1")
    world.create(name="resp_2")
    worker: Any = SimpleNamespace(wsgi=world.app, runtime=world.app.runtime)
    Worker.close(worker)
    assert [deferred.id for deferred, _ in world.app.runtime.unremembered] == ["resp_2"]
    told = [line.getMessage() for line in caplog.records]
    assert "too much waits for the store: response resp_1 is not metered" in told
    assert "deferred work that the store has not taken is not metered: 1" in told


def test_it_is_booked_under_the_tag_of_its_request(world: World) -> None:
    world.create(tag="search")
    world.answers(**ended())
    world.call("GET", "/v1/responses/resp_1")
    rows = {row.group[0]: row for row in world.app.runtime.store.totals(by=("tag",))}
    assert (rows["search"].requests, rows["search"].total, rows["-"].total) == (1, 350, 0)


def test_an_error_while_booking_does_not_end_the_asking(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.create()
    world.answers(**ended())
    world.app.runtime.store._wall = lambda: time.time() + 1000
    monkeypatch.setattr("wrapper.proxy.asker.book", lambda *_: 1 / 0)
    monkeypatch.setattr(logging.getLogger("wrapper"), "disabled", True)
    assert world.asker().ask_once()


def test_a_long_beginning_names_its_object_too(world: World) -> None:
    made = {"id": "resp_1", "object": "response", "status": "queued", "background": True}
    long = {**made, "instructions": "x" * 100_000, "usage": None}
    sent = response(json.dumps(long).encode(), JSON)
    world.send = lambda _: sent
    assert world.call("POST", "/v1/responses", BODY).status == 200
    world.answers(**ended())
    world.call("GET", "/v1/responses/resp_1")
    assert world.sums()[MODEL].total == 350


def test_a_booking_is_a_line_of_the_log(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.create()
    world.answers(**ended())
    written: list[bytes] = []
    world.app.runtime.telemetry.log._output.write = written.append
    world.call("GET", "/v1/responses/resp_1")
    lines = [json.loads(line) for line in written]
    [booking] = [line for line in lines if line["path"] == "(deferred)"]
    assert booking["request_id"] == "resp_1"
    assert booking["api_key"] == "web-app"
    assert booking["prompt_tokens"] == 300
    assert booking["cost_usd"] == COST / 1e12


def test_a_worker_that_stops_asks_no_more(world: World) -> None:
    world.create()
    world.answers(**ended())
    world.app.runtime.store._wall = lambda: time.time() + 1000
    asker = world.asker()
    asker.stop()
    asker.run()
    assert world.sums()[MODEL].total == 0
    asker, ask = world.asker(), world.asker().ask_once
    asker.ask_once = lambda: (ask(), asker.stop())[0]  # type: ignore[method-assign]
    asker.run()
    assert world.sums()[MODEL].total == 350


def test_an_error_while_asking_does_not_end_the_asking(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.create()
    world.app.runtime.store._wall = lambda: time.time() + 1000
    with monkeypatch.context() as broken:
        broken.setattr("wrapper.proxy.asker.object_target", lambda _: 1 / 0)
        logging.getLogger("wrapper").disabled = True
        try:
            assert world.asker().ask_once()
        finally:
            logging.getLogger("wrapper").disabled = False
    world.answers(**ended())
    world.app.runtime.store._wall = lambda: time.time() + 2000
    assert world.asker().ask_once()
    assert world.sums()[MODEL].total == 350


# Videos

VIDEO = {"id": "video_1", "object": "video", "model": "sora-2", "seconds": "4", "size": "720x1280"}
FOUR_SECONDS = 4 * 10**11


def test_a_video_is_booked_when_it_is_there_and_not_when_it_fails(world: World) -> None:
    for status, cost in (("failed", 0), ("completed", FOUR_SECONDS)):
        name = f"video_{status}"
        world.answers(**{**VIDEO, "id": name, "status": "queued"})
        world.call("POST", "/v1/videos", {"model": "sora-2", "prompt": "a cat"})
        assert world.sums()["sora-2"].cost == 0
        world.answers(data=[{**VIDEO, "id": name, "status": status}])
        for _ in range(2):
            world.call("GET", "/v1/videos")
        assert world.sums()["sora-2"].cost == cost
    assert world.sums()["sora-2"].requests == 2


def test_a_budget_has_no_room_for_more_videos_than_it_can_pay(world: World) -> None:
    def create(number: int, **asked: Any) -> int:
        world.answers(**{**VIDEO, "id": f"video_{number}", "status": "queued"})
        body = {"model": "sora-2", "prompt": "a cat", **asked}
        return world.call("POST", "/v1/videos", body, key="paid").status

    assert create(0) == 429, "without a length it may be the longest there is, which is 1.2 USD"
    assert [create(number, seconds="4") for number in (1, 2, 3)] == [200, 200, 429]
    [held] = world.app.runtime.store.standing(world.app.runtime.snapshot.limits.of_key("paid"))
    assert (held.reserved, held.spent) == (2 * FOUR_SECONDS, 0)
    world.answers(**{**VIDEO, "status": "completed"})
    world.call("GET", "/v1/videos/video_1", key="paid")
    [held] = world.app.runtime.store.standing(world.app.runtime.snapshot.limits.of_key("paid"))
    assert (held.reserved, held.spent) == (FOUR_SECONDS, FOUR_SECONDS)


def test_a_video_that_nobody_asks_for(world: World) -> None:
    world.answers(**VIDEO, status="queued")
    world.call("POST", "/v1/videos/video_0/remix", {"prompt": "a dog"})
    world.answers(**VIDEO, status="completed")
    world.ask()
    assert b"GET /v1/videos/video_1 HTTP/1.1" in world.provider.requests[-1]
    assert world.sums()["sora-2"].cost == FOUR_SECONDS


def test_usage_has_a_sum() -> None:
    from wrapper.metering.usage import added

    one = Usage(3, 2, 5, cached=1, units=(("web_search", 2),), service_tier="batch")
    assert added(one, one) == Usage(
        6, 4, 10, cached=2, units=(("web_search", 4),), service_tier="batch"
    )
