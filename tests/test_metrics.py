"""`/metrics`: every name, bounded labels, correct with many workers, fast to scrape."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import effort, processes, raw
from harness.app import App, AppFactory
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.gateway import Gateway, GatewayFactory
from harness.poll import PATIENCE, eventually
from harness.programs import require
from harness.simulator import Simulator
from wrapper.metering import Usage
from wrapper.store import Entry, SqliteStore
from wrapper.telemetry import Exporter

CONTRACT = {
    "http_requests_total": {"method", "path", "status"},
    "http_request_duration_seconds_bucket": {"method", "path", "le"},
    "api_key_requests_total": {"api_key", "provider", "model", "outcome"},
    "token_usage_prompt_total": {"api_key", "provider", "model"},
    "token_usage_completion_total": {"api_key", "provider", "model"},
    "token_usage_total": {"api_key", "provider", "model"},
    "token_usage_cached_total": {"api_key", "provider", "model"},
    "api_key_cost_usd_total": {"api_key", "provider", "model"},
    "api_key_cost_by_kind_usd_total": {"api_key", "kind"},
    "api_key_bounded_requests_total": {"api_key", "provider", "model"},
    "token_usage_bounded_total": {"api_key", "provider", "model", "bound"},
    "api_key_cost_bounded_usd_total": {"api_key", "provider", "model", "bound"},
    "api_key_rejections_total": {"api_key", "reason"},
    "unmetered_responses_total": {"provider", "reason"},
    "unpriced_responses_total": {"provider", "model"},
    "gen_ai_server_time_to_first_token_seconds_bucket": {"provider", "model", "le"},
    "gen_ai_server_time_per_output_token_seconds_bucket": {"provider", "model", "le"},
    "gen_ai_server_request_duration_seconds_bucket": {"provider", "model", "le"},
    "api_key_request_duration_seconds_sum": {"api_key"},
    "api_key_request_duration_seconds_count": {"api_key"},
    "api_key_time_to_first_token_seconds_sum": {"api_key"},
    "api_key_time_to_first_token_seconds_count": {"api_key"},
    "gateway_overhead_seconds_bucket": {"path", "le"},
    "requests_in_flight": set(),
    "upstream_errors_total": {"provider", "reason"},
    "provider_cooldown": {"provider"},
    "unsettled_requests_total": set(),
}


def post(
    gateway: Gateway, path: str, body: object, key: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One POST on a connection of its own: status, headers by lower-case name, body."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    sent = {k.replace("_", "-"): v for k, v in headers.items()}
    sent["Content-Type"] = "application/json"
    if key:
        sent["Authorization"] = f"Bearer {key}"
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), sent)
        response = connection.getresponse()
        try:
            answer = response.read()
        except http.client.IncompleteRead as broken:
            answer = broken.partial
        response.close()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, answer


def metrics_directory(gateway: Gateway) -> Path:
    """Where the workers' files are."""
    return gateway.run_directory() / "metrics"


def chat(model: str = "openai/gpt-oss-20b", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


@pytest.fixture(scope="module")
def metered(simulator: Simulator) -> Iterator[Gateway]:
    """A gateway with three workers that only this module uses."""
    config = CONFIG.replace("{simulator}", simulator.url)
    env = {"GROQ_API_KEY": "g", "OPENAI_API_KEY": "o"}
    with Gateway(
        config, workers=3, keys={"web-app": {}, "narrow": KEYS["narrow"]}, env=env
    ) as running:
        yield running
        running.assert_clean()


def change(gateway: Gateway, act: Callable[[], object], name: str, **labels: str) -> float:
    """By how much the counter grew while `act` was done."""
    gateway.idle()
    before = gateway.metrics().value(name, **labels)
    act()
    gateway.idle()
    return gateway.metrics().value(name, **labels) - before


def test_every_metric_of_the_contract_is_there_with_its_labels(metered: Gateway) -> None:
    key = metered.secrets["web-app"]
    post(metered, "/v1/chat/completions", chat(), key)
    post(metered, "/v1/chat/completions", chat(stream=True), key, x_sim="events=9; gap=0.001")
    post(metered, "/v1/chat/completions", chat("of-no-known-price"), key)
    post(metered, "/v1/chat/completions", chat(), key, x_sim="no-usage")
    post(metered, "/v1/chat/completions", chat(), key, x_sim="status=500")
    post(metered, "/v1/chat/completions", chat(stream=True), key, x_sim="events=9; cut=5")
    post(metered, "/v1/chat/completions", chat("gpt-6-sol"), metered.secrets["narrow"])
    metered.idle()
    # A worker publishes the times by key once a second.
    by_key = "api_key_time_to_first_token_seconds_sum"
    eventually(lambda: metered.metrics().find(by_key), what=by_key)
    scrape = metered.metrics()
    for name, labels in CONTRACT.items():
        samples = scrape.find(name)
        assert samples, f"{name} is not there"
        assert all(set(sample.labels) == labels for sample in samples), name


def test_all_workers_together_name_two_hundred_models_also_after_a_restart(
    gateway_factory: GatewayFactory,
) -> None:
    """A provider that accepts any name must not let a key owner create series at will.

    The names of the configuration are always labels, and the usage table has every true name.
    """
    gateway = gateway_factory(workers=3)
    configured = {"fast", "openai/gpt-oss-20b", "gpt-6-luna"}
    odd = [f"odd-{n}" for n in range(250)]

    def call(names: Iterable[str]) -> None:
        for name in names:
            status, _, _ = post(
                gateway, "/groq/openai/v1/embeddings", {"model": name, "input": "x"}, key
            )
            assert status == 200

    def counted() -> dict[str, float]:
        gateway.idle()
        samples = gateway.metrics().find("api_key_requests_total")
        return {sample.labels["model"]: sample.value for sample in samples}

    def booked() -> dict[str, int]:
        store = SqliteStore(gateway.directory / "usage.db")
        with contextlib.closing(store):
            return {row.group[0]: row.requests for row in store.totals(by=("model",))}

    key = gateway.secrets["web-app"]
    call(odd)
    for model in ("fast", "gpt-6-luna"):  # a fallback target, and the alias where it is refused
        assert post(gateway, "/v1/chat/completions", chat(model), key)[0] == 200
    assert post(gateway, "/v1/chat/completions", chat("fast"), gateway.secrets["narrow"])[0] == 403
    before = counted()
    assert len(before.keys() - {"other", "none"}) == 200
    assert before.keys() > configured
    assert before["other"] == 53
    assert booked() == dict.fromkeys([*odd, *configured], 1)
    gateway.stop()
    gateway.start()
    assert counted() == before
    call(f"odder-{n}" for n in range(20))
    after = counted()
    assert after.pop("other") == before.pop("other") + 20
    assert after == before
    assert len(booked()) == 273


def test_a_streams_duration_lasts_until_its_last_byte(metered: Gateway) -> None:
    def stream() -> None:
        post(
            metered,
            "/v1/chat/completions",
            chat(stream=True),
            metered.secrets["web-app"],
            x_sim="events=6; gap=0.1",
        )

    name = "http_request_duration_seconds_sum"
    assert change(metered, stream, name, path="/v1/chat/completions") > 0.45


def test_the_first_tokens_time_is_apart_from_the_time_of_each_further_one(metered: Gateway) -> None:
    metered.idle()
    before = metered.metrics()
    _, headers, _ = post(
        metered,
        "/v1/chat/completions",
        chat(stream=True),
        metered.secrets["web-app"],
        x_sim="delay=0.6; events=5; gap=0.05; completion=5",
    )
    line = metered.log_line(headers["x-request-id"])
    metered.idle()
    after = metered.metrics()
    first, each = (
        after.value(name) - before.value(name)
        for name in (
            "gen_ai_server_time_to_first_token_seconds_sum",
            "gen_ai_server_time_per_output_token_seconds_sum",
        )
    )
    assert first >= 0.6
    assert first == pytest.approx(line["ttft_ms"] / 1000, abs=0.001)
    # The rest of the time (four gaps, if the machine did not stand still), among four more tokens.
    assert 0 < each <= (line["duration_ms"] - line["ttft_ms"]) / 1000 / 4 + 0.001


def test_the_times_by_key_are_those_by_model_also_of_a_worker_that_has_exited(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory(workers=2)
    key = gateway.secrets["web-app"]
    for stream in (True, False, True):
        post(gateway, "/v1/chat/completions", chat(stream=stream), key)
    gateway.idle()

    def times(name: str) -> tuple[float, float]:
        scrape = gateway.metrics()
        return scrape.value(f"{name}_count"), scrape.value(f"{name}_sum")

    def agree() -> bool:
        """The worker that is not scraped publishes its own within a second."""
        every = times("gen_ai_server_request_duration_seconds")
        first = times("gen_ai_server_time_to_first_token_seconds")
        return (
            (every[0], first[0]) == (3, 2)
            and times("api_key_request_duration_seconds") == every
            and times("api_key_time_to_first_token_seconds") == first
        )

    eventually(agree, what="the same times by key and by model")
    victims = gateway.workers()
    for victim in victims:
        os.kill(victim, signal.SIGTERM)
    eventually(lambda: len(set(gateway.workers()) - set(victims)) == 2)
    eventually(agree, what="the same times after the workers have exited")


@pytest.mark.parametrize(
    ("orders", "stream", "reason"),
    [
        ("no-usage", False, "no_usage"),
        ("malformed-json", False, "unreadable"),
        ("no-usage", True, "no_usage"),
    ],
)
def test_a_2xx_without_readable_usage_is_counted_and_never_silently_zero(
    metered: Gateway, orders: str, stream: bool, reason: str
) -> None:
    def act() -> None:
        body = chat("gpt-6-sol", stream=stream)
        post(metered, "/v1/chat/completions", body, metered.secrets["web-app"], x_sim=orders)

    assert change(metered, act, "unmetered_responses_total", provider="openai", reason=reason) == 1


def test_a_stream_that_breaks_off_is_counted_between_bounds(metered: Gateway) -> None:
    metered.idle()
    labels = {"api_key": "web-app", "model": "gpt-6-sol"}
    sums = ("token_usage_total", "api_key_cost_usd_total", "unmetered_responses_total")
    bounded = {
        (name, bound): metered.metrics().value(name, **labels, bound=bound)
        for name in ("token_usage_bounded_total", "api_key_cost_bounded_usd_total")
        for bound in ("low", "high")
    }
    before = metered.metrics()
    body = chat("gpt-6-sol", stream=True, max_tokens=50)
    key = metered.secrets["web-app"]
    _, headers, _ = post(metered, "/v1/chat/completions", body, key, x_sim="cut=6; events=9")
    line = metered.log_line(headers["x-request-id"])
    assert (line["bounded"], line["unmetered"], line["cost_usd"]) == ("truncated", None, None)
    assert 1 < line["tokens_low"] <= 6 < line["tokens_high"] == line["bytes_in"] + 50
    after = metered.metrics()
    assert all(before.value(name) == after.value(name) for name in sums)
    name = "api_key_bounded_requests_total"
    assert after.value(name, **labels) == before.value(name, **labels) + 1
    for (name, bound), value in bounded.items():
        field = "tokens" if name.startswith("token") else "cost_usd"
        grown = after.value(name, **labels, bound=bound) - value
        assert grown == pytest.approx(line[f"{field}_{bound}"], abs=1e-10), (name, bound)


def test_the_cost_is_counted_by_what_it_is_for(metered: Gateway) -> None:
    def kinds() -> dict[str, float]:
        found = metered.metrics().by("api_key_cost_by_kind_usd_total", "api_key", "kind")
        return {kind: value for (key, kind), value in found.items() if key == "web-app"}

    metered.idle()
    before = kinds()
    orders = "prompt=1000; cached=200; completion=30"
    body = chat("gpt-6-sol")
    _, headers, _ = post(
        metered, "/v1/chat/completions", body, metered.secrets["web-app"], x_sim=orders
    )
    line = metered.log_line(headers["x-request-id"])
    grown = {kind: value - before.get(kind, 0) for kind, value in kinds().items()}
    assert set(grown) <= {"input", "cached_input", "cache_write", "output", "other"}
    assert grown["input"] > grown["cached_input"] > 0 < grown["output"]
    assert sum(grown.values()) == pytest.approx(line["cost_usd"], abs=1e-10)


@pytest.mark.parametrize("stream", [False, True])
def test_with_metering_off_no_usage_is_read_and_none_is_counted_as_missing(
    gateway_factory: GatewayFactory, stream: bool
) -> None:
    gateway = gateway_factory("[server]\nmetering = false\n" + CONFIG)
    key = gateway.secrets["web-app"]
    asked = chat("gpt-6-sol", stream=stream)
    status, headers, _ = post(gateway, "/v1/chat/completions", asked, key)
    assert status == 200
    assert gateway.log_line(headers["x-request-id"])["prompt_tokens"] is None
    names = {sample.name for sample in gateway.metrics().samples}
    assert "http_requests_total" in names
    assert not names & {"api_key_requests_total", "unmetered_responses_total"}


@pytest.mark.parametrize(
    "step", ["record.RequestRecord.finish", "telemetry.Telemetry.ledger_model"]
)
def test_a_request_whose_end_fails_is_no_longer_in_flight(
    app: App, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(f"wrapper.{step}", fail)
    with pytest.raises(ZeroDivisionError):
        app.exchange(raw.request(app.port, "GET", "/none"))
    app.assert_clean()


def test_an_unknown_price_is_counted_as_such(metered: Gateway) -> None:
    def act() -> None:
        post(metered, "/v1/chat/completions", chat("of-no-known-price"), metered.secrets["web-app"])

    assert change(metered, act, "unpriced_responses_total", model="of-no-known-price") == 1


def test_a_refused_call_is_counted_by_key_and_reason(metered: Gateway) -> None:
    def unauthenticated() -> None:
        assert post(metered, "/v1/chat/completions", chat(), "sk-wr-unknown")[0] == 401

    def narrow() -> None:
        assert (
            post(metered, "/v1/chat/completions", chat("gpt-6-sol"), metered.secrets["narrow"])[0]
            == 403
        )

    name = "api_key_rejections_total"
    assert change(metered, unauthenticated, name, api_key="none", reason="invalid_api_key") == 1
    assert change(metered, narrow, name, api_key="narrow", reason="model_not_allowed") == 1


def test_a_callers_mistake_is_no_upstream_error(metered: Gateway) -> None:
    def act() -> None:
        post(
            metered, "/v1/chat/completions", chat(), metered.secrets["web-app"], x_sim="status=400"
        )

    assert change(metered, act, "upstream_errors_total") == 0


def test_server_timing_reports_where_the_time_went(metered: Gateway) -> None:
    key = metered.secrets["web-app"]
    began = time.monotonic()
    _, headers, _ = post(metered, "/v1/chat/completions", chat(), key, x_sim="delay=0.2")
    took = (time.monotonic() - began) * 1000
    parts = dict(part.strip().split(";dur=") for part in headers["server-timing"].split(","))
    assert set(parts) == {"gateway", "upstream", "ttft"}
    assert float(parts["upstream"]) >= 200
    assert float(parts["gateway"]) + float(parts["upstream"]) <= took + 1  # and not twice


def test_five_hundred_unauthenticated_requests_add_at_most_ten_series(
    gateway_factory: GatewayFactory,
) -> None:
    """Whatever is sent, also where the provider checks the key."""
    dice = random.Random(4)
    word = lambda: "".join(dice.choices(string.ascii_letters + string.digits, k=12))  # noqa: E731
    with Simulator(api_key=PROVIDER_KEYS["OPENAI_API_KEY"]) as strict:
        gateway = gateway_factory(CONFIG.replace("{simulator}", strict.url), workers=1)
        gateway.metrics()  # a scrape makes series too
        before = {(s.name, *sorted(s.labels.items())) for s in gateway.metrics().samples}
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            for _ in range(500):
                odd = word().upper()
                method = dice.choice(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", odd])
                path = dice.choice(["/", "/v1/", "/openai/v1/", "/chat/", f"/{word()}/", "/usage/"])
                path += dice.choice([word(), "chat/completions"])
                body = json.dumps(chat(dice.choice([word(), "gpt-6-sol", "gpt-6-luna"])))
                key = dice.choice(["sk-wr-", "sk-"]) + word()
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
                sent = None if method in ("GET", "HEAD") else body
                connection.request(method, path, sent, headers)
                with connection.getresponse() as response:
                    response.read()
                assert 400 <= response.status < 500
        gateway.idle()
        added = {(s.name, *sorted(s.labels.items())) for s in gateway.metrics().samples} - before
    assert len(added) <= 10, sorted(added)


def test_promtool_finds_no_problem(metered: Gateway) -> None:
    promtool = require("promtool")
    text = metered.get("/metrics")[1]
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr.strip(), done.stderr.decode()


@pytest.mark.parametrize("version", ["foo", "x.y", "", "1..0", "1.0.0.0.0.0", "9" * 50])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_a_malformed_version_is_ignored(metered: Gateway, kind: str, version: str) -> None:
    accept = {"Accept": f"{kind}; version={version}, */*"}
    status, body = metered.get("/metrics", headers=accept)
    assert status == 200
    assert b"http_requests_total{" in body


def test_openmetrics_is_served_when_asked_for(metered: Gateway) -> None:
    status, body = metered.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert status == 200
    assert body.rstrip().endswith(b"# EOF")


def test_a_scrape_can_ask_for_some_names_only(metered: Gateway) -> None:
    status, body = metered.get("/metrics?name[]=requests_in_flight")
    assert status == 200
    names = {line.split(b" ")[0] for line in body.splitlines() if not line.startswith(b"#")}
    assert names == {b"requests_in_flight"}


def test_with_a_token_a_scrape_needs_it(simulator: Simulator) -> None:
    config = '[server]\nmetrics_token = { env = "METRICS_TOKEN" }\n' + CONFIG
    env = {"METRICS_TOKEN": "let-me-see", "GROQ_API_KEY": "g"}
    with Gateway(config.replace("{simulator}", simulator.url), env=env) as gateway:
        status, body = gateway.get("/metrics")
        assert status == 401
        assert b"No metrics token was given" in body
        assert gateway.get("/metrics", headers={"Authorization": "Bearer wrong"})[0] == 401
        assert gateway.get("/metrics", headers={"Authorization": "Bearer let-me-see"})[0] == 200


def test_the_sums_by_key_continue_after_a_restart_and_a_kill(
    simulator: Simulator,
) -> None:
    config = CONFIG.replace("{simulator}", simulator.url)
    env = {"GROQ_API_KEY": "g"}
    calls = "api_key_requests_total"
    with Gateway(config, workers=2, keys={"web-app": {}}, env=env) as gateway:
        key = gateway.secrets["web-app"]
        for _ in range(5):
            post(gateway, "/v1/chat/completions", chat(), key, x_sim="prompt=10; completion=20")
        gateway.stop()
        gateway.restart()
        post(gateway, "/v1/chat/completions", chat(), key, x_sim="prompt=10; completion=20")
        eventually(lambda: gateway.metrics().value(calls, api_key="web-app") == 6)
        gateway.kill()
        gateway.restart()
        scrape = gateway.metrics()
        assert scrape.value(calls, api_key="web-app") == 6
        assert scrape.value("token_usage_total", api_key="web-app") == 180


def test_dead_workers_leave_their_sums_and_no_files(gateway_factory: GatewayFactory) -> None:
    gateway = gateway_factory(workers=2)
    key = gateway.secrets["web-app"]
    name = "http_request_duration_seconds_count"

    directory = metrics_directory(gateway)

    def no_others() -> bool:
        living = {"dead", *map(str, (gateway.pid, *gateway.workers()))}
        return {path.stem.rpartition("_")[2] for path in directory.glob("*.db")} <= living

    def counts() -> tuple[float, float]:
        scrape = gateway.metrics()
        calls = scrape.value("api_key_requests_total", api_key="web-app")
        return calls, scrape.value(name, path="/v1/chat/completions", method="POST")

    for turn in range(1, 5):
        post(gateway, "/v1/chat/completions", chat(), key)
        gateway.idle()
        assert counts() == (turn, turn)
        victims = gateway.workers()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        eventually(lambda victims=victims: len(set(gateway.workers()) - set(victims)) == 2)
        assert counts() == (turn, turn)
        eventually(no_others, what="no files of dead workers")
        assert gateway.metrics().value("worker_restarts_total") == 2 * turn


def test_memory_and_cpu_are_those_of_each_living_worker(gateway: Gateway) -> None:
    workers = {(str(pid),) for pid in gateway.workers()}
    name = "gateway_worker_resident_memory_bytes"
    eventually(lambda: set(gateway.metrics().by(name, "worker")) == workers, what="all measured")
    scrape = gateway.metrics()
    memory = scrape.by(name, "worker")
    assert set(memory) == workers
    assert min(memory.values()) > 1_000_000
    assert set(scrape.by("gateway_worker_cpu_seconds_total", "worker")) == workers
    assert "# TYPE gateway_worker_cpu_seconds_total counter" in gateway.get("/metrics")[1].decode()
    assert list(scrape.by("gateway_build_info", "version").values()) == [1]


CREATING = """
import os, sys
from pathlib import Path
from wrapper.telemetry import exposition

begun = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / "counter_999999.db"
begun.touch()
looks = 0

def look():
    global looks
    looks += 1
    if looks == 3:
        begun.write_bytes(bytes(64))  # laid out, and nothing in it

os.sched_yield = look
exposition.LAYOUT_SECONDS = 600.0
list(exposition._collected())
print(looks)
"""


def test_a_scrape_waits_for_a_worker_that_is_creating_its_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CREATING],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n", done.stderr


def test_the_files_of_a_worker_that_died_creating_them_break_no_scrape(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory(workers=1)
    (victim,) = gateway.workers()
    left = metrics_directory(gateway) / f"histogram_{victim}.db"
    left.write_bytes(b"")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: gateway.workers() not in ([], [victim]), what="a new worker")
    eventually(lambda: not left.exists(), what="the dead worker's file is gone")
    assert gateway.get("/metrics")[0] == 200


def test_a_scrape_of_fifty_keys_and_twenty_models_is_the_work_of_a_child_that_delays_nobody(
    simulator: Simulator, tmp_path: Path
) -> None:
    config = CONFIG.replace("{simulator}", simulator.url)
    store = SqliteStore(tmp_path / "usage.db")
    for key in range(50):
        for model in range(20):
            entry = Entry(time.time(), f"key-{key}", "groq", f"model-{model}", "completed")
            store.settle(entry._replace(usage=Usage(3, 4, 7, 1), cost=10**6))
    store.close()
    env = {"GROQ_API_KEY": "g"}
    with Gateway(config, keys={"web-app": {}}, env=env, directory=tmp_path) as gateway:
        [worker] = gateway.workers()
        _scrape(gateway)
        own, childs = processes.cpu_seconds(worker), processes.child_cpu_seconds(worker)
        for _ in range(5):
            _scrape(gateway)
        own = processes.cpu_seconds(worker) - own
        childs = processes.child_cpu_seconds(worker) - childs
        assert own < childs / 2, (own, childs)
        with ThreadPoolExecutor(1) as scraping:
            scrape, child = eventually(lambda: _stopped(gateway, scraping), what="a scrape stops")
            try:
                assert gateway.get("/healthz")[0] == 200
                assert not scrape.done()
            finally:
                os.kill(child, signal.SIGCONT)
            scrape.result()


def _scrape(gateway: Gateway) -> None:
    status, body = gateway.get("/metrics")
    assert status == 200
    assert body.count(b"\napi_key_requests_total{") >= 1000


def _stopped(gateway: Gateway, scraping: ThreadPoolExecutor) -> tuple[Future[None], int] | None:
    """A scrape whose child is stopped in the middle of its work, and that child."""
    [worker] = gateway.workers()
    scrape = scraping.submit(_scrape, gateway)
    while not scrape.done():
        for child in processes.children(worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)
            while processes.state(child) not in {"T", "Z", ""}:
                time.sleep(0.001)
            if processes.state(child) == "T":
                return scrape, child
    return None


def test_what_a_scrape_says_of_many_keys_is_not_made_by_the_worker(
    app_factory: AppFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But by the child of the exporter: of 2,000 keys it takes 40 ms, in which others would wait.

    Counted in calls, of a scrape whose exporter does nothing.
    """
    monkeypatch.setattr(Exporter, "generate_metrics", lambda *_: ("", "text/plain"))

    def calls(keys: int) -> int:
        limits = {"requests_per_minute": 5, "tokens_per_minute": 100, "max_concurrent": 2}
        app = app_factory(CONFIG, keys={f"key-{number}": limits for number in range(keys)})
        request = raw.request(app.port, "GET", "/metrics")
        assert app.exchange(request).status == 200
        return effort.calls(lambda: app.exchange(request))

    assert calls(200) - calls(2) < 4 * 198
