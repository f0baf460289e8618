"""How streams end, when they begin, and what is counted, with a provider that is scripted here.

The provider answers by the model's name; each connection to it is counted.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import raw
from harness.gateway import Gateway
from harness.poll import PATIENCE, eventually

AFTER = 0.03  # seconds between the leaving of a client and the end of the provider's body
USAGE = {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29}
DONE = b"data: [DONE]\n\n"
Script = Callable[["Provider", Any], None]


def event(**data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


HELLO = event(model="m", choices=[{"delta": {"content": "hello"}}])
REPORT = event(model="m", choices=[], usage=USAGE)
CHAT = (HELLO, REPORT, DONE)
RESPONSES = (
    event(type="response.output_text.delta", delta="hello"),
    event(type="response.completed", response={"model": "m", "usage": {"input_tokens": 19}}),
)
MESSAGES = (
    event(type="message_start", message={"model": "m", "usage": {"input_tokens": 19}}),
    event(type="content_block_delta", delta={"text": "hello"}),
    event(type="message_delta", usage={"output_tokens": 10}),
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
ENDS = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES}
PATHS = {"chat": "chat/completions", "responses": "responses", "messages": "messages"}


class Provider:
    """Answers by hand; `left` is set when the gateway has cut a connection.

    Until `go_on` is set, streams do not end.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.left = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.port = 0

    def handle(self, sock: Any) -> None:
        self.connections += 1
        while request := sock.recv(65536):
            head, _, body = request.partition(b"\r\n\r\n")
            while b"Expect" not in head and len(body) < _length(head):
                body += sock.recv(65536)
            model = json.loads(body)["model"] if body.startswith(b"{") else "form"
            SCRIPTS[model](self, sock)
        self.left.set()


def _length(head: bytes) -> int:
    found = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(found[0].split(b":")[1]) if found else 0


def begin(sock: Any, kind: str = "text/event-stream") -> None:
    sock.sendall(
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )


def send(sock: Any, *pieces: bytes) -> None:
    for piece in pieces:
        sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))


def end(sock: Any) -> None:
    sock.sendall(b"0\r\n\r\n")


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def stream(*events: bytes) -> Script:
    def script(provider: Provider, sock: Any) -> None:
        begin(sock)
        send(sock, *events)
        provider.go_on.wait(PATIENCE)
        end(sock)

    return script


def never_ends(provider: Provider, sock: Any) -> None:
    provider.left.clear()
    begin(sock)
    send(sock, *CHAT)


def breaks_before_its_end(_: Provider, sock: Any) -> None:
    begin(sock)
    send(sock, HELLO)
    sock.recv(1)  # the gateway cuts the connection
    send(sock, REPORT, DONE)
    end(sock)


def waits_before_its_content(_: Provider, sock: Any) -> None:
    begin(sock)
    send(sock, b": keep-alive\n\n")
    send(sock, event(model="m", choices=[{"delta": {"role": "assistant", "content": ""}}]))
    wait(0.3)
    send(sock, *CHAT)
    end(sock)


def answer(body: bytes, kind: str = "application/json", status: int = 200) -> Script:
    def script(_: Provider, sock: Any) -> None:
        head = (
            f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sock.sendall(head.encode() + body)

    return script


LINES = b'{"model":"llama3.2","done":false}\n{"model":"llama3.2","done":true,"eval_count":7}\n'
SCRIPTS: dict[str, Script] = {
    **{name: stream(*events) for name, events in ENDS.items()},
    "never": never_ends,
    "breaks": breaks_before_its_end,
    "waits": waits_before_its_content,
    "empty": answer(b"{}"),
    "form": answer(b'{"text":"hello"}'),
    "verbose": answer(b'{"task":"transcribe","duration":7.5,"text":"hello"}'),
    "lines": answer(LINES, "application/x-ndjson"),
    "tts-1": answer(b"\xff\xfb", "audio/mpeg"),
    "tts-1-hd": answer(b'{"error":{"message":"no"}}', status=400),
    "gpt-4o-mini-tts": answer(b"\xff\xfb", "audio/mpeg"),
    "gpt-4o": answer(json.dumps({"model": "gpt-4.1-nano", "usage": USAGE}).encode()),
    "gpt-4.1": answer(json.dumps({"service_tier": "scale", "usage": USAGE}).encode()),
    "batch": answer(b'{"object":"batch","usage":{"input_tokens":0,"output_tokens":0}}'),
}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    made = Provider()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                made.handle(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_address[1]
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield made
        server.shutdown()
        serving.join()


@pytest.fixture(scope="module")
def scripted(provider: Provider) -> Iterator[Gateway]:
    """The provider is `openai`, so that its list prices hold."""
    config = f"""
[providers.openai]
base_url = "http://127.0.0.1:{provider.port}/v1"
api_key = {{ env = "OPENAI_API_KEY" }}
"""
    with Gateway(config, keys={"web-app": {}}, env={"OPENAI_API_KEY": "x"}) as running:
        yield running
        running.assert_clean()


def request(gateway: Gateway, path: str, model: str, **fields: Any) -> bytes:
    body = json.dumps({"model": model, **fields}).encode()
    return raw.request(
        gateway.port, "POST", f"/openai/{path}", body, key=gateway.secrets["web-app"]
    )


def call(gateway: Gateway, path: str, model: str, **fields: Any) -> dict[str, Any]:
    """The log line of a call that is read to its end."""
    got = raw.exchange(gateway.port, request(gateway, path, model, **fields))
    assert (got.status, got.clean_end) == (200, True)
    return gateway.log_line(got.header("x-request-id") or "")


def leave_after(
    gateway: Gateway, provider: Provider, path: str, model: str, last: bytes
) -> dict[str, Any]:
    """The log line of a call whose client leaves when it has read `last`."""
    provider.go_on.clear()
    with raw.Connection(gateway.port) as connection:
        connection.send(request(gateway, path, model, stream=True))
        got = connection.read_head()
        read = b""
        for piece in connection.body(got):
            read += piece
            if last in read:
                break
    wait(AFTER)  # for the gateway to notice; without it this holds, too
    provider.go_on.set()
    return gateway.log_line(got.header("x-request-id") or "")


@pytest.mark.parametrize("dialect", ENDS)
def test_a_client_that_leaves_at_the_last_event_has_the_whole_stream(
    scripted: Gateway, provider: Provider, dialect: str
) -> None:
    path, last = f"v1/{PATHS[dialect]}", ENDS[dialect][-1]
    call(scripted, path, dialect, stream=True)  # from now on there is a connection to the provider
    before = provider.connections
    for _ in range(5):
        line = leave_after(scripted, provider, path, dialect, last)
        assert (line["outcome"], line["unmetered"]) == ("completed", None)
        assert line["prompt_tokens"] == 19
    assert provider.connections == before


def test_a_body_that_goes_on_after_its_last_event_is_cut(
    scripted: Gateway, provider: Provider
) -> None:
    line = leave_after(scripted, provider, "v1/chat/completions", "never", DONE)
    assert line["outcome"] == "completed"
    eventually(provider.left.is_set, what="the end of the connection")


def test_a_client_that_leaves_before_the_last_event_has_not(
    scripted: Gateway, provider: Provider
) -> None:
    line = leave_after(scripted, provider, "v1/chat/completions", "breaks", HELLO)
    assert (line["outcome"], line["bounded"]) == ("client_abort", "aborted")
    assert (line["unmetered"], line["prompt_tokens"], line["cost_usd"]) == (None, None, None)
    # One event with content, and one token of the prompt at the least.
    assert line["tokens_low"] == 2


def test_the_first_event_with_content_ends_the_time_to_the_first_token(scripted: Gateway) -> None:
    line = call(scripted, "v1/chat/completions", "waits", stream=True)
    assert 295 < line["ttft_ms"] <= line["upstream_ms"]


@pytest.mark.parametrize(
    ("path", "model", "reason"),
    [
        ("v1/chat/completions", "empty", "no_usage"),
        ("v1/something/new", "empty", "unknown_endpoint"),
        ("v1/something/new", "tts-1", None),  # no JSON: nothing says that it cost something
        ("v1/something/new", "gpt-4o", None),  # it reports what it used
        ("v1/rerank", "empty", "no_usage"),
        ("v1/videos", "empty", "no_usage"),
        ("v1/batches", "batch", "deferred"),
        ("v1/fine_tuning/jobs", "empty", "deferred"),
        ("v1/fine_tuning/jobs/ftjob-1/pause", "empty", None),
        ("v1/containers", "empty", "no_usage"),
        ("v1/moderations", "empty", None),
        ("v1/messages/count_tokens", "empty", None),
        ("v1/audio/transcriptions", "form", "not_reported"),
        ("v1/audio/transcriptions", "verbose", None),
        ("api/chat", "lines", None),
        ("api/chat", "empty", "no_usage"),
    ],
)
def test_what_costs_something_is_metered_or_counted(
    scripted: Gateway, path: str, model: str, reason: str | None
) -> None:
    line = call(scripted, path, model)
    assert line["unmetered"] == reason


def test_a_transcription_is_billed_by_its_seconds(scripted: Gateway) -> None:
    line = call(scripted, "v1/audio/transcriptions", "verbose")
    assert (line["unmetered"], line["unpriced"]) == (None, "model")
    assert call(scripted, "api/chat", "lines")["completion_tokens"] == 7


def test_speech_is_billed_by_its_characters_where_its_model_is(scripted: Gateway) -> None:
    line = call(scripted, "v1/audio/speech", "tts-1", input="héllo wörld", voice="v")
    assert line["units"] == {"character": 11}
    assert line["cost_usd"] == pytest.approx(11 * 15 / 10**6)
    line = call(scripted, "v1/audio/speech", "gpt-4o-mini-tts", input="hello", voice="v")
    assert (line["unmetered"], line["units"]) == ("not_metered_type", None)
    got = raw.exchange(scripted.port, request(scripted, "v1/audio/speech", "tts-1-hd", input="no"))
    line = scripted.log_line(got.header("x-request-id") or "")
    assert (line["status"], line["units"], line["cost_usd"]) == (400, None, None)


def test_the_model_that_answered_is_priced_and_a_part_without_a_price_is_named(
    scripted: Gateway,
) -> None:
    line = call(scripted, "v1/chat/completions", "gpt-4o")
    assert (line["model"], line["served_model"]) == ("gpt-4o", "gpt-4.1-nano")
    assert line["cost_usd"] == pytest.approx((19 * 0.1 + 10 * 0.4) / 10**6)
    before = scripted.metrics().value("unpriced_responses_total", model="gpt-4.1")
    line = call(scripted, "v1/chat/completions", "gpt-4.1")
    assert (line["cost_usd"], line["unpriced"]) == (None, "service_tier=scale")
    assert scripted.metrics().value("unpriced_responses_total", model="gpt-4.1") == before + 1
