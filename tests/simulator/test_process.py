"""The program: how it starts, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from harness import programs, raw
from harness.poll import PATIENCE
from harness.simulator import ROOT, Simulator

KEY = "sim-key-0123456789"


def test_with_a_key_no_other_is_accepted() -> None:
    with Simulator(api_key=KEY) as simulator:
        assert raw.post(simulator.port, "/v1/embeddings", b"{}", key="other").status == 401
        assert raw.post(simulator.port, "/v1/embeddings", b"{}").status == 401
        body = b'{"model": "m", "input": "x"}'
        assert raw.post(simulator.port, "/v1/embeddings", body, key=KEY).status == 200
        command_line = Path(f"/proc/{simulator.pid}/cmdline").read_bytes()
        assert KEY.encode() not in command_line


def test_it_serves_tls_and_still_notices_a_disconnect(tmp_path: Path) -> None:
    openssl = programs.require("openssl")
    pem = tmp_path / "simulator.pem"
    made = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1"
    made += " -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(pem), "-out", str(pem)]
    subprocess.run([openssl, *made.split(), *files], check=True, capture_output=True)
    with Simulator(certificate=pem) as simulator:
        context = ssl.create_default_context(cafile=str(pem))
        with (
            socket.create_connection(("127.0.0.1", simulator.port), timeout=PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
        ):
            sock.sendall(b"GET /tls HTTP/1.1\r\nHost: h\r\nx-sim: stall=10\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
        simulator.wait_for(lambda found: [r for r in found if r["outcome"] == "aborted"])
        with socket.create_connection(("127.0.0.1", simulator.port), timeout=PATIENCE) as plain:
            plain.sendall(b"GET /not-tls HTTP/1.1\r\n\r\n")
        assert [record["target"] for record in simulator.requests()] == ["/tls"]


def test_instructions_and_pace_hold_for_every_request() -> None:
    with Simulator("--x-sim", "status=503; retry-after=3", "--events", "4") as simulator:
        answer = raw.exchange(simulator.port, raw.request(simulator.port, "GET", "/v1/models"))
        assert (answer.status, answer.header("retry-after")) == (503, "3")


def test_reset_deletes_everything() -> None:
    with Simulator() as simulator:
        raw.exchange(simulator.port, raw.request(simulator.port, "GET", "/v1/models"))
        assert simulator.requests()
        assert simulator.books()
        simulator.reset()
        assert simulator.requests() == simulator.books() == []


@pytest.mark.parametrize("how", ["end of standard input", "SIGTERM", "SIGINT"])
def test_it_stops_without_output(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "wrapper.simulator", "--port", "0", "--exit-with-parent"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = json.loads(process.stdout.readline())
    assert line["event"] == "listening"
    with raw.Connection(line["port"]) as connection:
        asked = raw.request(line["port"], "GET", "/", headers=(("x-sim", "stall-before"),))
        connection.send(asked)
        if how.startswith("SIG"):
            os.kill(process.pid, signal.Signals[how])
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, b"", b"")


def test_a_port_in_use_is_one_line_on_stderr() -> None:
    with Simulator() as simulator:
        done = subprocess.run(
            [sys.executable, "-m", "wrapper.simulator", "--port", str(simulator.port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("simulator: cannot listen on 127.0.0.1:")
    assert done.stderr.count("\n") == 1


def test_without_the_echo_an_unknown_address_is_a_404_as_openais() -> None:
    with Simulator("--no-echo") as simulator:
        answer = raw.exchange(simulator.port, raw.request(simulator.port, "GET", "/v1/made/up"))
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["code"] == "unknown_url"


def test_misspelt_instructions_are_refused_at_the_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wrapper.simulator", "--x-sim", "stutus=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "stutus" in done.stderr
