"""Start, log and connections: open files, what goes to stderr, idle connections, slow heads."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gevent
import gevent.socket
import pytest
from gunicorn.config import Config

from harness import chat
from harness.app import App, AppFactory
from harness.poll import PATIENCE
from wrapper.auth import digest
from wrapper.config import Server, Settings, load
from wrapper.config.loading import prepare_keys
from wrapper.config.prepared import Prepared
from wrapper.metering.pricing import Prices
from wrapper.runtime import Runtime
from wrapper.server import connection, lifecycle, room
from wrapper.server.connection import Connection, Connections
from wrapper.server.logging import JsonFormatter, TextFormatter, formatter
from wrapper.server.malformed import malformed_response
from wrapper.server.reload import ConfigReloader
from wrapper.server.response import Response
from wrapper.steps import STEP
from wrapper.store import StoreError

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize("in_dotenv", [False, True])
def test_no_process_of_the_gateway_holds_the_admin_key(
    monkeypatch: pytest.MonkeyPatch, in_dotenv: bool
) -> None:
    environ = {"GROQ_API_KEY": "gsk-x"}
    monkeypatch.setattr(os, "environ", {} if in_dotenv else {"OPENAI_ADMIN_KEY": "sk-admin-x"})
    if in_dotenv:
        environ["OPENAI_ADMIN_KEY"] = "sk-admin-x"
    lifecycle._set_environment(environ)
    assert os.environ == {"GROQ_API_KEY": "gsk-x"}


@pytest.mark.parametrize(
    ("soft", "hard", "refused", "then", "warns"),
    [
        (1024, 1_000_000, 0, 65536, False),
        (1024, 20_000, 0, 20_000, False),
        (1024, 4096, 0, 4096, True),
        (1024, 1024, 0, 1024, True),
        (256, INFINITE, 0, 65536, False),
        (256, INFINITE, 65536, 10240, False),  # macOS
        (100_000, 200_000, 0, 100_000, False),
        (INFINITE, INFINITE, 0, INFINITE, False),
    ],
)
def test_as_many_open_files_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, refused: int, then: int, warns: bool
) -> None:
    now = [soft]
    warnings: list[object] = []

    def set_limit(_: int, limits: tuple[int, int]) -> None:
        if limits[0] == refused:
            raise ValueError("not allowed to raise maximum limit")
        now[0] = limits[0]

    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    monkeypatch.setattr(room, "memory", lambda: 24 << 30)
    monkeypatch.setattr(room.log, "warning", lambda *args: warnings.append(args))
    room.raise_open_file_limit()
    assert (now[0], bool(warnings)) == (then, warns)


@pytest.mark.parametrize(
    ("soft", "connections"),
    [(INFINITE, 6000), (65536, 6000), (4096, 2418), (1024, 576), (256, 114)],
)
def test_a_worker_accepts_as_many_connections_as_it_has_files_for(
    monkeypatch: pytest.MonkeyPatch, soft: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, INFINITE))
    monkeypatch.setattr(room, "memory", lambda: 24 << 30)
    assert room.worker_connections() == connections


@pytest.mark.parametrize(
    ("size", "workers", "places"),
    [(24 << 30, 4, 4000), (4 << 30, 4, 4000), (2 << 30, 4, 2048), (1 << 28, 1, 1024), (1, 9, 1)],
)
def test_a_worker_serves_as_many_requests_as_its_part_of_the_memory_allows(
    monkeypatch: pytest.MonkeyPatch, size: int, workers: int, places: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (INFINITE, INFINITE))
    monkeypatch.setattr(room, "memory", lambda: size)
    assert room.most_in_flight(workers) == places


def test_the_memory_is_that_of_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = room.memory()
    limit, none, gone = tmp_path / "limit", tmp_path / "none", tmp_path / "gone"
    limit.write_text("1000000\n")
    none.write_text("max\n")
    monkeypatch.setattr(room, "CGROUP_LIMITS", (gone, none))
    assert room.memory() >= machine
    monkeypatch.setattr(room, "CGROUP_LIMITS", (gone, none, limit))
    assert room.memory() == 1_000_000


# --- stderr ------------------------------------------------------------------------------------

NOISE = """\
from gevent import monkey
monkey.patch_all()
import logging, threading, warnings
import gevent
from gunicorn.config import Config
from wrapper.server.logging import GunicornLogger, set_up_logging

set_up_logging("info")

def fail():
    raise OSError("one\\ntwo \\x9b \\u202e")

class Broken:
    def __del__(self):
        fail()

gevent.spawn(fail).join()
gevent.get_hub().loop.run_callback(fail)
gevent.sleep(0.01)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
gevent.get_hub().threadpool.spawn(fail).wait()
Broken()
warnings.warn("of a library", stacklevel=1)
logging.getLogger("of.a.library").warning("a\\nb")
logging.getLogger("wrapper.x").info("ours")
GunicornLogger(Config()).info("Listening at: %s", "here")
GunicornLogger(Config()).exception("of gunicorn")
fail()
"""


def test_on_a_terminal_a_message_is_a_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(formatter(), JsonFormatter)
    monkeypatch.setattr("wrapper.server.logging.is_terminal", lambda fd: fd == 2)
    assert isinstance(formatter(), TextFormatter)
    made = [
        logging.LogRecord("x", level, "f", 1, "told %s", ("\x1b[2J\n",), None)
        for level in (logging.INFO, logging.WARNING)
    ]
    told = [TextFormatter().format(record)[8:] for record in made]
    assert told == [" told \\x1b[2J\\n", " warning: told \\x1b[2J\\n"]


def test_the_demo_provider_is_no_provider_of_the_configuration(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "gateway.toml").write_text(
        '[providers.groq]\nbase_url = "https://api.groq.com/openai/v1"\n'
        'api_key = { env = "GROQ_API_KEY" }\n[[routes]]\nmodel = "*"\ntargets = ["groq"]\n'
    )
    environ = {
        "WRAPPER_CONFIG": str(tmp_path / "gateway.toml"),
        "WRAPPER_KEYS": str(tmp_path / "keys.toml"),
    }
    settings = load(environ, "http://127.0.0.1:1")
    assert settings.stand_in in settings.providers
    reloader = object.__new__(ConfigReloader)
    snapshot = SimpleNamespace(settings=settings)
    reloader._runtime = SimpleNamespace(snapshot=snapshot, apply=lambda *_: None)  # type: ignore[assignment]
    reloader._prices, reloader._environ = Prices({}, {}), environ
    reloader._accepted = tmp_path / "accepted"
    with caplog.at_level(logging.INFO, "wrapper"):
        reloader._apply(settings)
    assert "configuration reloaded: 1 providers, 0 keys" in caplog.messages


def test_requests_go_on_while_many_keys_come_into_force(
    app_factory: AppFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = '[providers.local]\nbase_url = "http://127.0.0.1:1"\n'
    app = app_factory(gateway, keys={"alice": {}})
    environ, prepared = app._environ(), Prepared(app.directory / "accepted")
    runtime: Runtime = app.runtime
    digests = (digest(str(n)) for n in range(10 * STEP))
    text = "".join(f'[keys.k{n}]\nsha256 = "{found}"\n' for n, found in enumerate(digests))
    (app.directory / "keys.toml").write_text(text)
    prepare_keys(environ, prepared)
    in_force: list[int] = []
    monkeypatch.setattr(
        "wrapper.server.reload.yield_if_due",
        lambda: in_force.append(len(runtime.snapshot.settings.keys)),
    )
    reloader = ConfigReloader(runtime, environ, app.directory / "accepted", None)
    assert len(runtime.snapshot.settings.keys) == 10 * STEP
    # The constructor itself takes keys that are new: into the keyring, and twice into the limits.
    assert len(in_force) >= 3 * 10
    assert set(in_force) == {1}  # a request in between sees all that was in force before
    in_force.clear()
    (app.directory / "keys.toml").write_text(text + "# another state\n")
    prepare_keys(environ, prepared)
    assert reloader._reloader.poll(force=True)
    assert len(in_force) >= 4 * 10  # and they are taken from the prepared file
    assert set(in_force) == {10 * STEP}


def test_whatever_happens_at_a_heartbeat_there_is_another_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Over(BaseException):
        """Ends the thread, which never returns."""

    done: list[str] = []

    def sleep(seconds: float) -> None:
        done.append("sleep")
        if done.count("sleep") > 3:
            raise Over

    def show_cooldowns() -> None:
        if done.count("sleep") == 1:
            raise RuntimeError("no metrics")

    def heartbeat() -> None:
        if done.count("sleep") == 2:
            raise ValueError("not a store's error")
        done.append("heartbeat")

    settings = SimpleNamespace(server=SimpleNamespace(metering=True))
    runtime: Any = SimpleNamespace(
        show_cooldowns=show_cooldowns,
        snapshot=SimpleNamespace(limits=SimpleNamespace(any=True), settings=settings),
        admission=SimpleNamespace(heartbeat=heartbeat),
        store_failing=False,
    )
    monkeypatch.setattr(lifecycle, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(Over):
        lifecycle._heartbeat(runtime)
    assert done == ["sleep", "sleep", "sleep", "heartbeat", "sleep"]
    assert caplog.messages.count("unhandled exception at a heartbeat") == 2


def test_what_the_start_has_not_checked_is_checked_once_and_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[bool] = []

    def damaged() -> None:
        raise StoreError("usage.db: damaged")

    runtime: Any = SimpleNamespace(
        store=SimpleNamespace(check_rest=damaged),
        telemetry=SimpleNamespace(store_failed=lambda: failed.append(True)),
    )
    monkeypatch.setattr(lifecycle, "time", SimpleNamespace(sleep=lambda seconds: None))
    lifecycle._check(runtime)
    assert caplog.messages == ["the store has a problem: usage.db: damaged"]
    assert failed == [True]


def test_whatever_goes_to_stderr_is_one_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", NOISE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.stderr.isascii()
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    said = [line["message"] for line in lines]
    assert said.count("uncaught exception: OSError") >= 6
    assert any("of a library" in message for message in said)
    assert {"a\nb", "ours", "Listening at: here", "of gunicorn"} <= set(said)


# --- keep-alive and the head's timeout -----------------------------------------------------------

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
WITH_BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
LONG = 600.0  # seconds that no test waits
SHORT = 0.02


class Served:
    """A connection that is served as a worker does; its application says ok to everything."""

    def __init__(self, head: float = LONG, keepalive: float = LONG) -> None:
        self.client, server = gevent.socket.socketpair()
        self.connections = Connections(10)
        self.requests: list[str] = []
        self.pause = 0.0  # seconds that the application waits
        self.greenlet = gevent.spawn(self._serve, server, head, keepalive)
        gevent.spawn(self._look)

    def _serve(self, server: Any, head: float, keepalive: float) -> None:
        settings = Settings(Server(), {}, (), {})
        worker: Any = SimpleNamespace(
            cfg=Config(),
            runtime=SimpleNamespace(snapshot=SimpleNamespace(settings=settings)),
            application=self._application,
            alive=True,
            nr=0,
            max_requests=100,
        )
        worker.cfg.set("header_map", "dangerous")
        addresses = ("127.0.0.1", 1), ("127.0.0.1", 80)
        made = Connection(worker, self.connections, server, *addresses)
        made._head_seconds, made._keepalive = head, keepalive  # type: ignore[assignment]
        self.connections.opened(made)
        try:
            made.serve()
        finally:
            self.connections.closed(made)
            server.close()

    def _application(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.requests.append(environ["REQUEST_METHOD"])
        if self.pause:
            gevent.sleep(self.pause)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def _look(self) -> None:
        """As a worker does several times a second."""
        while not self.greenlet.dead:
            self.connections.sweep(0.0)
            gevent.sleep(SHORT / 10)

    def responds(self, count: int) -> None:
        """Read so many responses."""
        received = b""
        self.client.settimeout(PATIENCE)
        while received.count(b"\r\n\r\nok") < count:
            data = self.client.recv(65536)
            assert data, received
            received += data
        assert received.count(b"HTTP/1.1 200") + received.count(b"HTTP/1.0 200") == count

    def ends(self, seconds: float = PATIENCE) -> bool:
        """Whether the connection is closed within that time."""
        self.greenlet.join(seconds)
        if self.greenlet.dead:
            self.client.close()
        return bool(self.greenlet.dead)


def test_a_kept_connection_may_idle_longer_than_a_head_may_take() -> None:
    served = Served(SHORT, LONG)
    for number in (1, 2, 3):
        served.client.sendall(REQUEST)
        served.responds(1)
        assert not served.ends(10 * SHORT)
        assert len(served.requests) == number
    served.client.sendall(REQUEST[:5])
    assert served.ends()
    assert len(served.requests) == 3


def test_a_new_connection_has_the_heads_time_only() -> None:
    assert Served(SHORT, LONG).ends()


def test_an_idle_connection_ends_after_its_time() -> None:
    served = Served(LONG, SHORT)
    served.client.sendall(REQUEST)
    assert served.ends()
    assert len(served.requests) == 1


@pytest.mark.parametrize("kind", [REQUEST, CHUNKED, OLD], ids=["usual", "chunked", "old"])
@pytest.mark.parametrize("options", ["close", "Close", "keep-alive, close", "close ,x"])
def test_a_client_that_says_close_sends_no_more(
    monkeypatch: pytest.MonkeyPatch, kind: bytes, options: str
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", SHORT)
    head, _, rest = kind.partition(b"\r\n")
    served = Served()
    served.client.sendall(head + b"\r\nConnection: " + options.encode() + b"\r\n" + rest)
    served.responds(1)
    assert served.ends()


def test_a_client_that_never_stops_sending_is_left_after_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", SHORT)
    deadline = time.monotonic() + PATIENCE

    def receive(size: int) -> bytes:
        assert time.monotonic() < deadline
        return b"x" * size

    connection.linger(SimpleNamespace(shutdown=lambda _: None, recv=receive))


def test_time_in_which_the_worker_did_not_run_is_not_the_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(connection, "clock", lambda: now)
    connections, ended = Connections(10), mock.Mock()
    each: Any = mock.Mock(deadline=now + 15)
    each.greenlet.throw = ended
    connections.waiting[each] = None
    now += 60
    connections.sweep(60 - 0.1)
    gevent.sleep(0)
    now += 14
    connections.sweep(0.0)
    gevent.sleep(0)
    assert not ended.called
    now += 2
    connections.sweep(0.0)
    with gevent.Timeout(PATIENCE):
        while not ended.called:
            gevent.sleep(SHORT / 10)


def idle(served: Served) -> Connection:
    """The connection, once it has waited for a request longer than a head takes to come."""
    with gevent.Timeout(PATIENCE):
        while not served.connections.waiting:
            gevent.sleep(SHORT / 10)
    (found,) = served.connections.waiting
    found.since -= LONG
    return found


@pytest.mark.parametrize("requests", [0, 1], ids=["new", "kept"])
def test_a_worker_that_stops_ends_idle_connections(requests: int) -> None:
    served = Served()
    served.client.sendall(REQUEST * requests)
    served.responds(requests)
    idle(served)
    served.connections.close_idle()
    assert served.ends()
    assert len(served.requests) == requests


def test_a_request_that_comes_as_idle_connections_are_closed_is_served() -> None:
    served = Served()
    served.pause = SHORT
    idle(served)
    at_stop = gevent.get_hub().loop.timer(SHORT)
    at_stop.start(served.connections.close_idle)
    served.client.sendall(REQUEST)
    due = time.monotonic() + 2 * SHORT
    while time.monotonic() < due:  # the stop and the request are found in one turn of the loop
        pass
    served.responds(1)
    at_stop.close()
    served.client.close()
    assert served.ends()


@pytest.mark.parametrize("requests", [0, 1], ids=["new", "kept"])
def test_a_head_that_is_being_sent_as_idle_connections_are_closed_is_read(
    monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", LONG / 2)
    served = Served()
    served.client.sendall(REQUEST * requests)
    served.responds(requests)
    waiting = idle(served)
    since = waiting.since
    served.client.sendall(REQUEST[:9])
    with gevent.Timeout(PATIENCE):
        while waiting.since == since:
            gevent.sleep(SHORT / 10)
    served.connections.close_idle()
    gevent.sleep(0)
    served.client.sendall(REQUEST[9:])
    served.responds(1)
    served.client.close()
    assert served.ends()


@pytest.mark.parametrize("header", [("X-A", "a\r\nb: c"), ("X A", "a")], ids=["value", "name"])
def test_a_response_with_a_bad_header_is_the_gateways_fault(
    app: App, header: tuple[str, str]
) -> None:
    client: Any = SimpleNamespace(method="GET", version="HTTP/1.1", keeps=True)
    with pytest.raises(ValueError) as caught:
        Response(client, closes=False).start_response("200 OK", [header])
    sent = malformed_response(app.runtime, caught.value, "", Config())
    assert sent.startswith(b"HTTP/1.1 500 ")
    assert b"internal_error" in sent


def test_a_response_that_cannot_begin_is_closed_and_recorded(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("wrapper.proxy.response.StreamedResponse.__call__", fail)
    with pytest.raises(ZeroDivisionError):
        chat.call(app, orders="stall=1; events=2", stream=True)
    app.assert_clean()


def test_requests_that_wait_in_a_row_are_all_served_and_the_waits_are_over() -> None:
    """Whoever has read their heads, and whether their bodies were read or not."""
    kinds = [REQUEST, WITH_BODY, CHUNKED, OLD, WITH_BODY, REQUEST, OLD, OLD, CHUNKED, CHUNKED]
    served = Served()
    served.client.sendall(b"".join(kinds) * 3)
    served.responds(3 * len(kinds))
    served.client.close()
    assert served.ends()
    assert served.requests == [kind.split()[0].decode() for kind in kinds] * 3
    assert not served.connections.waiting
    assert not len(served.connections)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_requests_are_read_however_their_bytes_are_cut(size: int) -> None:
    sent = (REQUEST + WITH_BODY + CHUNKED + OLD) * 2
    served = Served()
    for at in range(0, len(sent), size):
        served.client.sendall(sent[at : at + size])
        gevent.sleep(0)
    served.responds(8)
    served.client.close()
    assert served.ends()


def test_those_who_wait_longest_make_room_first() -> None:
    connections = Connections(2)
    woken: list[int] = []
    made: list[Any] = []
    for number in range(4):
        each: Any = mock.Mock(since=number, greenlet=number)
        each.wake.side_effect = partial(woken.append, number)
        made.append(each)
        connections.opened(each)
    connections.waiting.update({made[2]: None})
    connections.make_room(lambda: {1})
    assert woken == [2, 0]  # the waiting one, then the longest response that no provider makes
    assert len(connections) == 2
    connections.make_room(lambda: {1})
    assert woken == [2, 0]
