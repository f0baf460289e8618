"""Keys and configuration follow their files in every worker; a mistake changes nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness import chat
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.gateway import Gateway, GatewayFactory
from harness.poll import eventually

if TYPE_CHECKING:
    from harness.raw import Answer
    from harness.simulator import Simulator

ENOUGH = 12  # calls on new connections: both workers get some


@pytest.fixture(scope="module")
def reloading(simulator: Simulator) -> Iterator[Gateway]:
    """Two workers whose files this module changes."""
    config = CONFIG.replace("{simulator}", simulator.url)
    with Gateway(config, workers=2, keys=KEYS, env=PROVIDER_KEYS) as running:
        yield running


@pytest.fixture
def gateway(reloading: Gateway, simulator: Simulator) -> Iterator[Gateway]:
    """The same gateway for every test, with the first configuration in force again.

    A test before may have replaced the workers: those that are still leaving read the files too.
    """
    eventually(lambda: len(reloading.workers()) == 2, what="two workers and no other")
    first = reloading.config_file.read_text()
    yield reloading
    eventually(lambda: len(reloading.workers()) == 2, what="two workers and no other")
    if reloading.config_file.read_text() != first:
        # Something is always new in it, so that each worker reloads whatever it serves now.
        unused = f'\n[prices."unused-{chat.mark()}"]\ninput = 1\noutput = 1\n'
        reloading.reconfigure(CONFIG.replace("{simulator}", simulator.url) + unused)


def statuses(gateway: Gateway, **how: str) -> set[int]:
    return {chat.call(gateway, **how).status for _ in range(ENOUGH)}


def providers(gateway: Gateway, model: str) -> set[str | None]:
    return {chat.call(gateway, model=model).header("x-wrapper-provider") for _ in range(ENOUGH)}


def said(gateway: Gateway) -> int:
    return gateway.stderr().count('"configuration reloaded')


def problems(gateway: Gateway) -> int:
    return gateway.stderr().count("configuration not reloaded")


def test_a_new_key_is_taken_and_a_revoked_one_refused_in_every_worker(
    gateway: Gateway,
) -> None:
    gateway.key("new")
    secret = gateway.key("newer")
    assert statuses(gateway, key="newer") == {200}
    gateway.revoke("newer")
    assert statuses(gateway, key=secret) == {401}
    assert statuses(gateway, key="new") == {200}


def test_a_changed_limit_of_a_key_is_in_force_in_every_worker(gateway: Gateway) -> None:
    secret = gateway.key("changing")
    assert statuses(gateway, key=secret) == {200}
    gateway.revoke("changing")
    gateway.key("changing", models=["gpt-*"])
    assert statuses(gateway, key="changing") == {403}
    assert statuses(gateway, key="changing", model="gpt-6-sol") == {200}


def test_a_changed_route_is_in_force_in_every_worker(gateway: Gateway) -> None:
    assert providers(gateway, "llama-x") == {"groq"}
    gateway.reconfigure(gateway.config_file.read_text().replace('"gpt-*"', '"llama-x"'))
    assert providers(gateway, "llama-x") == {"openai"}


def test_changed_origins_and_limits_of_the_server_are_in_force(gateway: Gateway) -> None:
    server = '[server]\ncors_origins = ["https://a.example"]\nmax_body_bytes = 2000\n\n'
    gateway.reconfigure(server + gateway.config_file.read_text())
    for _ in range(ENOUGH):
        allowed = chat.call(gateway, headers=(("Origin", "https://a.example"),))
        assert allowed.header("access-control-allow-origin") == "https://a.example"
        other = chat.call(gateway, headers=(("Origin", "https://b.example"),))
        assert other.header("access-control-allow-origin") is None
        assert chat.call(gateway, chat.body(filler="x" * 2000)).status == 413


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("[providers.groq\n", "gateway.toml"),
        ('[providers.groq]\nbase_url = "ftp://nowhere"\n', "providers.groq.base_url"),
        ('[[routes]]\nmodel = "x"\ntargets = ["nobody"]\n', "nobody"),
    ],
)
def test_a_mistake_in_the_configuration_changes_nothing_and_is_reported(
    gateway: Gateway, mistake: str, told: str
) -> None:
    before, length = problems(gateway), len(gateway.stderr())
    gateway.write_config(mistake)
    eventually(lambda: problems(gateway) >= before + 2, what="both workers saying so")
    assert told in gateway.stderr()[length:]
    assert statuses(gateway) == {200}
    assert providers(gateway, "gpt-6-sol") == {"openai"}
    assert statuses(gateway, key="expired") == {401}


def test_a_mistake_in_the_keys_changes_nothing_and_is_reported(gateway: Gateway) -> None:
    good = gateway.keys_file.read_text()
    before, length = problems(gateway), len(gateway.stderr())
    gateway.write_keys(good + '\n[keys.bad]\nsha256 = "too short"\n')
    eventually(lambda: problems(gateway) >= before + 2, what="both workers saying so")
    said = gateway.stderr()[length:]
    assert "keys.toml" in said
    assert "keys.bad.sha256" in said
    assert "too short" not in said
    assert statuses(gateway) == {200}
    gateway.write_keys(good)


def test_a_mistake_elsewhere_does_not_keep_a_revoked_key_alive(gateway: Gateway) -> None:
    secret = gateway.key("leaving")
    gateway.write_config("[broken")
    gateway.revoke("leaving")
    assert statuses(gateway, key=secret) == {401}
    assert statuses(gateway) == {200}


def test_a_call_that_runs_finishes_with_the_configuration_it_began_with(
    gateway: Gateway, simulator: Simulator
) -> None:
    secret = gateway.key("streaming")
    orders = "events=40; gap=0.05"
    with chat.begin(gateway, key=secret, orders=orders, stream=True) as connection:
        answer = connection.read_head()
        gateway.revoke("streaming")
        gateway.reconfigure(
            gateway.config_file.read_text().replace("/openai/v1", "/openai/v1/elsewhere")
        )
        for _ in connection.body(answer):
            pass
    assert answer.clean_end
    assert chat.events(answer.body)[-1] == b"[DONE]"
    assert len(chat.events(answer.body)) > 40


def test_a_worker_that_starts_while_the_files_are_broken_serves_what_was_in_force(
    gateway: Gateway,
) -> None:
    secret = gateway.key("kept")
    before = problems(gateway)
    gateway.write_config("[broken")
    good = gateway.keys_file.read_text()
    gateway.write_keys("broken too")
    eventually(lambda: problems(gateway) >= before + 2, what="both workers saying so")
    for worker in gateway.workers():
        os.kill(worker, signal.SIGKILL)
        others = {worker}
        eventually(
            lambda gone=others: len(set(gateway.workers()) - gone) == 2,
            what="a new worker",
        )
    eventually(lambda: gateway.get("/healthz")[0] == 200, retry_on=(OSError,))
    assert statuses(gateway, key=secret) == {200}
    assert providers(gateway, "gpt-6-sol") == {"openai"}
    gateway.write_keys(good)


def test_after_sighup_new_workers_serve_and_streams_in_flight_are_whole(
    gateway: Gateway, simulator: Simulator
) -> None:
    old, book = set(gateway.workers()), chat.mark()
    answers: list[Answer] = []

    def stream() -> None:
        orders = "events=60; gap=0.05"
        answers.append(chat.call(gateway, orders=orders, book=book, stream=True))

    streams = [threading.Thread(target=stream) for _ in range(8)]
    for thread in streams:
        thread.start()
    eventually(lambda: len(simulator.requests(book=book)) == 8, what="eight streams")
    gateway.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(set(gateway.workers()) - old) == 2, what="new workers")
    assert chat.call(gateway).status == 200
    for thread in streams:
        thread.join()
    assert all(answer.clean_end for answer in answers)
    assert {chat.events(answer.body)[-1] for answer in answers} == {b"[DONE]"}
    eventually(lambda: not old & set(gateway.workers()), what="the old ones' end")
    assert statuses(gateway) == {200}


def test_sighup_puts_changed_files_in_force(gateway: Gateway) -> None:
    old = set(gateway.workers())
    text = gateway.config_file.read_text().replace('"gpt-*"', '"llama-x"')
    gateway.write_config(text)
    gateway.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(set(gateway.workers()) - old) == 2, what="new workers")
    eventually(lambda: providers(gateway, "llama-x") == {"openai"}, what="the new route")


def test_sighup_with_broken_files_changes_nothing(gateway: Gateway) -> None:
    old = set(gateway.workers())
    (gateway.directory / ".env").write_text("this is no assignment\n")
    gateway.write_config("[broken")
    gateway.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(set(gateway.workers()) - old) == 2, what="new workers")
    (gateway.directory / ".env").unlink()
    assert statuses(gateway) == {200}
    assert gateway.process.poll() is None


def test_each_worker_counts_its_reloads_and_refused_mistakes(
    gateway_factory: GatewayFactory,
) -> None:
    """A gateway of its own: here workers may still take over what another test has changed."""
    gateway = gateway_factory(workers=2)

    def counted() -> dict[tuple[str, ...], float]:
        return gateway.metrics().by("config_reloads_total", "result")

    text = gateway.config_file.read_text()
    gateway.reconfigure(text + "\n[server]\nmax_in_flight = 200\n")  # both workers have started
    assert counted() == {("failure",): 0, ("success",): 2}
    began = time.time()
    gateway.write_config("[")
    eventually(lambda: counted()["failure",] == 2, what="both workers' mistakes")
    gateway.write_config(text + "\n[server]\nmax_in_flight = 300\n")
    eventually(lambda: counted()["success",] == 4, what="both workers' reloads")
    assert counted() == {("failure",): 2, ("success",): 4}
    eventually(lambda: problems(gateway) == 2 and said(gateway) == 4, what="the log's lines")
    assert gateway.metrics().value("config_last_reload_timestamp_seconds") >= began - 0.001


def test_a_reload_says_what_cannot_be_used_any_more(gateway: Gateway) -> None:
    secret = gateway.directory / "secret"
    secret.write_text("sk-of-a-provider")
    config = (
        gateway.config_file.read_text()
        + f"""
[providers.filed]
base_url = "http://127.0.0.1:9/v1"
api_key = {{ file = "{secret}" }}
"""
    )
    config = config.replace('targets = ["openai"]', 'targets = ["filed"]')
    gateway.reconfigure(config)
    assert "not configured any more" not in gateway.stderr()
    before = gateway.reloads()
    secret.unlink()
    gateway.wait_for_reload(before)
    eventually(  # a moment after the reload is reported, by each worker
        lambda: gateway.stderr().count("requests for gpt-* get 502") >= 2,
        what="the routes that cannot be used any more",
    )
    text = gateway.stderr()
    assert text.count("provider 'filed' not configured any more") == 2
    assert text.count("requests for gpt-* get 502") == 2
    assert "sk-of-a-provider" not in text
