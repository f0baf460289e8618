"""A provider behind TLS: its name is verified, and everything is as it is without."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import chat, programs, websocket
from harness.defaults import KEYS, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.poll import eventually
from harness.simulator import Simulator

CONFIG = """\
[providers.known]
base_url = "https://127.0.0.1:{port}/v1"
api_key = { env = "OPENAI_API_KEY" }
ca_file = "{pem}"

[providers.hasty]
base_url = "https://127.0.0.1:{port}/v1"
api_key = { env = "OPENAI_API_KEY" }
ca_file = "{pem}"
idle_timeout = 1

[providers.unknown]
base_url = "https://127.0.0.1:{port}/v1"
api_key = { env = "OPENAI_API_KEY" }

[providers.misnamed]
base_url = "https://localhost:{port}/v1"
api_key = { env = "OPENAI_API_KEY" }
ca_file = "{pem}"

[[routes]]
model = "unknown"
targets = ["unknown"]

[[routes]]
model = "misnamed"
targets = ["misnamed"]

[[routes]]
model = "hasty"
targets = ["hasty"]

[[routes]]
model = "*"
targets = ["known"]
"""


@dataclass
class Behind:
    """A gateway and its provider behind TLS, with the provider's certificate and key."""

    gateway: Gateway
    simulator: Simulator
    pem: Path


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    pem: Path = tmp_path_factory.mktemp("tls") / "provider.pem"
    made = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1"
    made += " -addext subjectAltName=IP:127.0.0.1"
    command = [programs.require("openssl"), *made.split(), "-keyout", str(pem), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    with Simulator(certificate=pem) as simulator:
        config = CONFIG.replace("{port}", str(simulator.port)).replace("{pem}", str(pem))
        with Gateway(config, keys=KEYS, env=PROVIDER_KEYS) as gateway:
            yield Behind(gateway, simulator, pem)
            gateway.assert_clean()


@pytest.mark.parametrize("stream", [False, True])
def test_calls_pass_and_the_connection_is_kept(tls: Behind, stream: bool) -> None:
    for _ in range(3):
        answer = chat.call(tls.gateway, stream=stream)
        assert answer.status == 200
        assert answer.clean_end
    assert tls.simulator.requests()[-1]["nth_on_connection"] > 0


def test_events_are_not_held_back_by_the_encryption(tls: Behind) -> None:
    with chat.begin(tls.gateway, orders="stall=2; events=9", stream=True) as connection:
        pieces = connection.body(connection.read_head())
        text = b""
        while text.count(b"data: ") < 2:
            text += next(pieces)


@pytest.mark.parametrize(("model", "told"), [("unknown", "self"), ("misnamed", "localhost")])
def test_a_certificate_that_is_not_known_or_of_another_name_is_refused(
    tls: Behind, model: str, told: str
) -> None:
    before = len(tls.simulator.requests())
    answer = chat.call(tls.gateway, model=model)
    details = chat.error(answer)
    assert (answer.status, details["code"]) == (502, "upstream_unreachable")
    assert "certificate" in details["message"]
    assert told in details["message"]
    assert len(tls.simulator.requests()) == before


def test_leaving_ends_the_providers_work_here_too(tls: Behind) -> None:
    book = chat.mark()
    connection = chat.begin(tls.gateway, orders="stall=2; events=9", book=book, stream=True)
    assert next(connection.body(connection.read_head()))
    connection.close()
    eventually(
        lambda: tls.simulator.requests(book=book)[0]["outcome"] == "aborted",
        what="the end of the provider's work",
    )


@pytest.mark.parametrize("orders", ["cut=3; events=9", "reset=3; events=9", "stall=3; events=9"])
def test_a_stream_that_breaks_never_ends_cleanly_here_either(tls: Behind, orders: str) -> None:
    model = "hasty" if "stall" in orders else chat.MODEL
    answer = chat.call(tls.gateway, model=model, orders=orders, stream=True)
    assert not answer.clean_end
    assert b"upstream_interrupted" in chat.events(answer.body)[-1]


def test_an_answer_until_close_that_is_cut_without_tls_own_end_is_no_whole_answer(
    tls: Behind,
) -> None:
    """Anybody on the way could have cut it: TLS says its end itself (RFC 8446 section 6.1)."""
    answer = chat.call(tls.gateway, orders="framing=no-length; reset=3; events=9", stream=True)
    assert not answer.clean_end


def test_a_websocket_to_a_provider_behind_tls(tls: Behind) -> None:
    """Large messages both ways at once, and no waiting for the provider when the client leaves."""
    book, size = chat.mark(), 400_000
    told = (("x-sim-book", book), ("x-sim", f"events=6; size={size}"))
    key, at = tls.gateway.secrets["web-app"], "/v1/realtime?model=m"
    with websocket.connect(tls.gateway.port, at, *told, key=key) as client:
        client.event("session.created")
        create = websocket.text({"type": "response.create"}, masked=True)
        sound = {"type": "input_audio_buffer.append", "audio": "A" * size}
        client.send(create + websocket.text(sound, masked=True) + create)
        for _ in range(2):
            assert len(client.event("response.output_text.done")["text"]) == 6 * size
            assert client.event("response.done")["response"]["status"] == "completed"
    eventually(
        lambda: all(each["outcome"] for each in tls.simulator.requests(book=book)),
        what="the end of the provider's session",
    )
    usages = [each["usage"] for each in tls.simulator.requests(book=book)]
    assert [usage and usage["completion"] for usage in usages] == [None, 6, 6]


def test_the_server_itself_may_speak_tls(tls: Behind) -> None:
    """With gunicorn's own options."""
    arguments = f"--certfile {tls.pem} --keyfile {tls.pem}"
    env = {**PROVIDER_KEYS, "GUNICORN_CMD_ARGS": arguments}
    config = CONFIG.replace("{port}", str(tls.simulator.port)).replace("{pem}", str(tls.pem))
    trusting = ssl.create_default_context(cafile=tls.pem)
    with Gateway.prepared(config, keys=KEYS, env=env) as gateway:
        gateway.launch()

        def connect() -> ssl.SSLSocket | None:
            try:
                made = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
                return trusting.wrap_socket(made, server_hostname="127.0.0.1")
            except OSError:
                return None

        connection = eventually(connect, what="it listens")
        assert connection is not None
        with connection:
            received = b""
            for number, stream in enumerate((False, True, False), 1):
                asked = chat.request(gateway, stream=stream)
                connection.sendall(asked[:50])
                connection.sendall(asked[50:])
                end = b"\r\n0" if stream else b"}"
                while received.count(b"HTTP/1.1 200 OK") < number or not received.strip().endswith(
                    end
                ):
                    data = connection.recv(65536)
                    assert data, received
                    received += data
