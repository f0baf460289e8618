"""WebSockets: relayed byte for byte, metered event by event, ended cleanly."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import openai
import pytest

from harness import raw
from harness.defaults import KEYS, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.poll import eventually
from harness.websocket import (
    BINARY,
    DEADLINE,
    PING,
    PONG,
    TEXT,
    Client,
    End,
    Provider,
    close,
    connect,
    frame,
    text,
)
from wrapper.proxy.websocket import MAX_WAITING

if TYPE_CHECKING:
    from harness.gateway import GatewayFactory, LogLine
    from harness.simulator import Simulator

CONFIG = """\
[server]
max_body_bytes = 200_000
body_memory_bytes = 1_048_576
body_timeout = 200

[tags]
header = "x-wrapper-tag"

[providers.openai]
base_url = "{simulator}/v1"
api_key = { env = "OPENAI_API_KEY" }
client_credentials = true

[providers.groq]
base_url = "{simulator}/openai/v1"
api_key = { env = "GROQ_API_KEY" }

[providers.other]
base_url = "{simulator}/v1"

[providers.raw]
base_url = "http://127.0.0.1:{raw}/v1"
api_key = { env = "OPENAI_API_KEY" }

[providers.idle]
base_url = "http://127.0.0.1:{raw}/v1"
idle_timeout = 0.5

[providers.short]
base_url = "http://127.0.0.1:{raw}/v1"
total_timeout = 0.5

[providers.refusing]
base_url = "http://127.0.0.1:9/v1"

[[routes]]
model = "voice"
targets = ["refusing", "openai:gpt-realtime"]

[[routes]]
model = "fast"
targets = ["openai:gpt-6-luna"]

[[routes]]
model = "nowhere"
targets = ["refusing"]

[[routes]]
model = "llama-*"
targets = ["groq"]

[[routes]]
model = "*"
targets = ["openai"]

[prices."priced"]
input = 1.0
output = 1.0
"""
LIMITED: dict[str, dict[str, Any]] = {
    **KEYS,
    "single": {"max_concurrent": 1},
    "poor": {"budget_usd": 0.01, "budget_period": "total"},
    "voice-only": {"models": ["gpt-realtime", "fast", "gpt-6-*"]},
    "paced": {"requests_per_minute": 2},
    "frugal": {"budget_usd": 10},
    "leaving": {},
}
REALTIME = "/v1/realtime?model=gpt-realtime"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(simulator: Simulator, provider: Provider) -> Iterator[Gateway]:
    config = CONFIG.replace("{simulator}", simulator.url).replace("{raw}", str(provider.port))
    with Gateway(config, keys=LIMITED, env=PROVIDER_KEYS) as running:
        yield running


@pytest.fixture
def book() -> str:
    return f"socket-{uuid4()}"


def told(book: str, orders: str = "") -> dict[str, str]:
    return {"x-sim-book": book, "x-sim": orders}


@contextmanager
def ends(
    gateway: Gateway, provider: Provider, key: str, at: str = "raw/v1/realtime?model=m"
) -> Iterator[tuple[Client, End]]:
    """Both ends of one session with the provider that the test plays."""
    with ExitStack() as held, ThreadPoolExecutor() as beside:
        client = beside.submit(connect, gateway.port, f"/{at}", key=key)
        end, _ = held.enter_context(provider.session())
        yield held.enter_context(client.result(DEADLINE)), end


def lines_of(gateway: Gateway, client: Client | str, count: int) -> list[LogLine]:
    """The log lines of a session: its responses in their order, then its own."""
    name = client if isinstance(client, str) else client.answer.header("x-request-id") or ""
    (own,) = gateway.log_lines(
        lambda line: name in (line["request_id"], line["upstream_request_id"]), DEADLINE
    )
    prefix = own["request_id"] + "-"
    found = (
        gateway.log_lines(lambda line: line["request_id"].startswith(prefix), DEADLINE, count=count)
        if count
        else []
    )
    assert len(found) == count
    return [*found, own]


def asks(model: str = "gpt-6-luna", **more: Any) -> dict[str, Any]:
    return {"type": "response.create", "model": model, "input": "how are you", **more}


# --- the official client -------------------------------------------------------------------------


def agrees(gateway: Gateway, simulator: Simulator, book: str, key: str = "web-app") -> None:
    """What the provider's ledger has of the responses is what the gateway has booked, each once."""
    seen = [each for each in simulator.requests(book=book) if "/" in each["endpoint"]]
    (socket,) = [each for each in simulator.requests(book=book) if "/" not in each["endpoint"]]
    *lines, own = lines_of(gateway, f"req_{socket['id']}", len(seen))
    assert (own["status"], own["outcome"], own["api_key"]) == (101, "completed", key)
    assert own["prompt_tokens"] is None
    for line, booked in zip(lines, seen, strict=True):
        usage = booked["usage"]
        assert (line["model"], line["method"], line["status"]) == (
            *(booked["model"], "WEBSOCKET", 200),
        )
        assert (line["prompt_tokens"], line["completion_tokens"], line["cached_tokens"]) == (
            *(usage["prompt"], usage["completion"], usage["cached"]),
        )
        assert (line["outcome"], line["unmetered"]) == ("completed", None)


def test_the_realtime_client_is_relayed_and_metered(
    gateway: Gateway, simulator: Simulator, key: str, book: str
) -> None:
    sound = base64.b64encode(bytes(150_000)).decode()
    before = gateway.metrics()
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key) as client,
        client.realtime.connect(
            model="gpt-realtime", extra_headers=told(book, "cached=1")
        ) as connection,
    ):
        assert connection.recv().type == "session.created"
        for transcriber in ("gpt-4o-transcribe", "whisper-1"):
            transcription = {"model": transcriber}
            audio: Any = {"input": {"transcription": transcription}}
            connection.session.update(session={"type": "realtime", "audio": audio})
            until(connection, "session.updated")
            connection.input_audio_buffer.append(audio=sound)
            connection.input_audio_buffer.commit()
            heard = until(connection, "conversation.item.input_audio_transcription.completed")
            assert heard.transcript == "simulated words"
        content: Any = [{"type": "input_text", "text": "hello there"}]
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": content}
        )
        for _ in range(2):
            connection.response.create()
            assert until(connection, "response.done").response.usage.input_tokens > 2
    agrees(gateway, simulator, book)
    booked = [each for each in simulator.requests(book=book) if "/" in each["endpoint"]]
    assert [each["model"] for each in booked] == [
        *("gpt-4o-transcribe", "whisper-1", "gpt-realtime", "gpt-realtime")
    ]
    after = gateway.metrics()
    for metric, kind in (("prompt", "prompt"), ("completion", "completion")):
        name = f"token_usage_{metric}_total"
        grown = after.value(name, api_key="web-app") - before.value(name, api_key="web-app")
        assert grown == sum(each["usage"][kind] for each in booked)


def until(connection: Any, kind: str) -> Any:
    while (event := connection.recv()).type != kind:
        assert event.type != "error", event
    return event


def test_the_async_realtime_client_works_too(
    gateway: Gateway, simulator: Simulator, key: str, book: str
) -> None:
    async def talk() -> list[str]:
        async with (
            openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=key) as client,
            client.realtime.connect(model="gpt-realtime", extra_headers=told(book)) as connection,
        ):
            await connection.response.create()
            kinds = []
            async for event in connection:
                kinds.append(event.type)
                if event.type == "response.done":
                    break
            return kinds

    kinds = asyncio.run(talk())
    assert kinds[:2] == ["session.created", "response.created"]
    agrees(gateway, simulator, book)


def test_the_clients_responses_over_a_websocket_are_metered(
    gateway: Gateway, simulator: Simulator, key: str, book: str
) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key) as client,
        client.responses.connect(extra_headers=told(book)) as connection,
    ):
        for model in ("gpt-6-luna", "gpt-6-sol"):
            connection.response.create(model=model, input="how are you")
            response = until(connection, "response.completed").response
            assert response.model == model
    agrees(gateway, simulator, book)
    asked = raw.request(gateway.port, "GET", f"/usage/requests/{response.id}", key=key)
    used = json.loads(gateway.exchange(asked).body)
    assert (used["model"], used["total_tokens"]) == (model, response.usage.total_tokens)


def test_a_sessions_tag_is_that_of_its_responses(gateway: Gateway, key: str) -> None:
    with connect(gateway.port, REALTIME, ("X-Wrapper-Tag", "search"), key=key) as client:
        client.send(text({"type": "response.create"}, masked=True))
        client.event("response.done")
        client.send(close(1000, masked=True))
        client.closed()
    assert [line["tag"] for line in lines_of(gateway, client, 1)] == ["search", "search"]


def test_a_response_over_a_websocket_is_found_at_its_provider(gateway: Gateway, key: str) -> None:
    """Its id names no model: the route `*` would lead elsewhere."""
    at = "/other/v1/responses"
    with connect(gateway.port, at, key=key) as client:
        client.send(text(asks(), masked=True))
        name = client.event("response.completed")["response"]["id"]
        client.send(close(1000, masked=True))
        client.closed()
    found = gateway.exchange(raw.request(gateway.port, "GET", f"/v1/responses/{name}", key=key))
    assert (found.status, found.header("x-wrapper-provider")) == (200, "other")


# --- byte for byte -------------------------------------------------------------------------------


def session_bytes(*, masked: bool, last: bool = True) -> bytes:
    """Frames of every kind, with a Close frame at the end."""
    dice = random.Random(7)
    frames = [
        frame(TEXT, b'{"type":', fin=False, masked=masked),
        frame(PING, b"between", masked=masked),
        frame(0, b' "x", "y": ', fin=False, masked=masked),
        frame(0, b'"\xc3\xa4"}', masked=masked),
        frame(BINARY, dice.randbytes(1 << 20), masked=masked),
        frame(TEXT, b"", masked=masked),
        frame(PONG, b"nobody asked", masked=masked),
        frame(BINARY, dice.randbytes(300), fin=False, masked=masked),
        frame(0, b"", masked=masked),
        frame(TEXT, b"not JSON", masked=masked),
    ]
    return b"".join(frames) + (close(4001, "enough \u2026", masked=masked) if last else b"")


def send_in_pieces(end: End, data: bytes) -> None:
    dice, start = random.Random(3), 0
    while start < len(data):
        size = dice.choice((1, 2, 3, 7, 100, 5000, 70_000))
        end.send(data[start : start + size])
        start += size


def test_the_clients_bytes_reach_the_provider_as_they_are(
    gateway: Gateway, provider: Provider, key: str
) -> None:
    sent = session_bytes(masked=True)
    with ends(gateway, provider, key) as (client, end), ThreadPoolExecutor() as beside:
        sending = beside.submit(send_in_pieces, client, sent)
        assert end.exactly(len(sent)) == sent
        sending.result(DEADLINE)
        answer = close(4001, masked=False)
        end.send(answer)
        assert client.exactly(len(answer)) == answer
        assert client.to_end() == b""
    (line,) = lines_of(gateway, client, 0)
    assert (line["outcome"], line["bytes_in"], line["bytes_out"]) == (
        *("completed", len(sent), len(answer)),
    )


def test_the_providers_bytes_reach_the_client_as_they_are(
    gateway: Gateway, provider: Provider, key: str
) -> None:
    sent = session_bytes(masked=False)
    with ends(gateway, provider, key) as (client, end), ThreadPoolExecutor() as beside:
        sending = beside.submit(send_in_pieces, end, sent)
        assert client.exactly(len(sent)) == sent
        sending.result(DEADLINE)
        answer = close(4001, masked=True)
        client.send(answer)
        assert end.exactly(len(answer)) == answer
    assert lines_of(gateway, client, 0)[0]["outcome"] == "completed"


def test_messages_that_are_read_first_pass_as_they_are_too(
    gateway: Gateway, provider: Provider, key: str
) -> None:
    """Those of the Responses API: the gateway has to know their model."""
    sent = b"".join(
        [
            frame(PING, b"first", masked=True),
            frame(TEXT, b'{"type": "response.cre', fin=False, masked=True),
            frame(PING, b"between", masked=True),
            frame(0, b'ate", "model": "m"}', masked=True),
            frame(BINARY, bytes(100_000), masked=True),
            frame(TEXT, b"not JSON", masked=True),
            close(1000, masked=True),
        ]
    )
    with (
        ends(gateway, provider, key, "raw/v1/responses") as (client, end),
        ThreadPoolExecutor() as beside,
    ):
        sending = beside.submit(send_in_pieces, client, sent)
        assert end.exactly(len(sent)) == sent
        sending.result(DEADLINE)
        end.send(close(1000, masked=False))
        assert client.closed().code == 1000
    assert lines_of(gateway, client, 0)[0]["outcome"] == "completed"


def test_what_either_side_sends_with_its_handshake_arrives(
    gateway: Gateway, provider: Provider, key: str
) -> None:
    early, greeting = frame(TEXT, b"early", masked=True), frame(TEXT, b"hello", masked=False)
    with ThreadPoolExecutor() as beside:
        at = "/raw/v1/realtime?model=m"
        connecting = beside.submit(connect, gateway.port, at, key=key, early=early)
        with provider.session(early=greeting) as (end, _), connecting.result(DEADLINE) as client:
            assert end.exactly(len(early)) == early
            assert client.exactly(len(greeting)) == greeting
            client.send(close(1000, masked=True))
            assert end.closed().code == 1000
            end.send(close(1000, masked=False))
            assert client.closed().code == 1000


def test_the_handshake_goes_up_with_the_providers_credential_and_without_extensions(
    gateway: Gateway, provider: Provider
) -> None:
    key = gateway.secrets["web-app"]
    headers = (
        ("Sec-WebSocket-Protocol", f"realtime, openai-insecure-api-key.{key}"),
        ("Sec-WebSocket-Protocol", "openai-organization.org-mine, other"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        ("OpenAI-Beta", "realtime=v1"),
        ("Origin", "https://page.example"),
    )
    with ThreadPoolExecutor() as beside:
        at = "/raw/v1/realtime?model=a%2Fb&x=1"
        connecting = beside.submit(connect, gateway.port, at, *headers)
        chosen = ("Sec-WebSocket-Protocol: realtime", "X-Trace: 1")
        with provider.session(*chosen) as (end, head), connecting.result(DEADLINE) as client:
            client.send(close(1000, masked=True))
            end.send(close(1000, masked=False))
            assert client.closed().code == 1000
    lower = head.lower()
    assert head.startswith("GET /v1/realtime?model=a%2Fb&x=1 HTTP/1.1\r\n")
    assert f"authorization: bearer {PROVIDER_KEYS['OPENAI_API_KEY'].lower()}\r\n" in lower
    assert "sec-websocket-protocol: realtime, other\r\n" in lower
    assert "openai-beta: realtime=v1\r\n" in lower
    assert "upgrade: websocket\r\nconnection: upgrade\r\n" in lower
    assert "extensions" not in lower
    assert "origin" not in lower
    assert key not in head
    answer = client.answer
    assert answer.header("sec-websocket-protocol") == "realtime"
    assert answer.header("x-trace") == "1"
    assert answer.header("x-wrapper-provider") == "raw"
    assert (answer.header("upgrade"), answer.header("connection")) == ("websocket", "upgrade")
    assert lines_of(gateway, client, 0)[0]["api_key"] == "web-app"
    assert key not in gateway.stdout() + gateway.stderr()


def test_the_callers_own_credential_goes_up(
    gateway: Gateway, simulator: Simulator, book: str
) -> None:
    for how in (
        ("Authorization", "Bearer sk-mine"),
        ("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key.sk-mine"),
    ):
        mine = f"{book}-{how[0]}"
        at = "/openai/v1/realtime?model=m"
        with connect(gateway.port, at, how, *told(mine).items()) as client:
            assert client.event("session.created")["session"]["model"] == "m"
            client.send(close(1000, masked=True))
            assert client.closed().code == 1000
        (seen,) = simulator.requests(book=mine)
        assert ["Authorization", "Bearer sk-mine"] in seen["headers"]
        assert "insecure" not in json.dumps(seen)
        assert lines_of(gateway, client, 0)[0]["api_key"] == "client"


# --- refused before the upgrade ------------------------------------------------------------------


def refusal(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.answer.body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@pytest.mark.parametrize(
    ("at", "headers", "who", "status", "code"),
    [
        (REALTIME, [], None, 401, "invalid_api_key"),
        (REALTIME, [], "sk-wr-unknown", 401, "invalid_api_key"),
        (REALTIME, [], "expired", 401, "api_key_expired"),
        (
            *(REALTIME, [("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key.sk-wr-x")]),
            *(None, 401, "invalid_api_key"),
        ),
        (
            REALTIME,
            [("Sec-WebSocket-Protocol", "openai-insecure-api-key.a, openai-insecure-api-key.b")],
            *(None, 401, "invalid_api_key"),
        ),
        (REALTIME, [], "narrow", 403, "model_not_allowed"),
        ("/openai/v1/realtime?model=gpt-realtime", [], "narrow", 403, "model_not_allowed"),
        ("/v1/realtime", [], "voice-only", 400, "invalid_body"),
        ("/v1/realtime?model=a&model=b", [], "web-app", 400, "invalid_body"),
        (REALTIME, [("Sec-WebSocket-Version", "8")], "web-app", 426, "websocket_not_supported"),
        (REALTIME, [("Sec-WebSocket-Key", "c2hvcnQ=")], "web-app", 400, "invalid_body"),
        (REALTIME, [("Content-Length", "2")], "web-app", 400, "invalid_body"),
        ("/v1/chat/completions", [], "web-app", 426, "websocket_not_supported"),
        ("/v1/realtime?model=llama-1", [], "web-app", 426, "websocket_not_supported"),
        ("/groq/openai/v1/responses", [], "web-app", 426, "websocket_not_supported"),
        ("/v1/realtime?model=nowhere", [], "web-app", 502, "upstream_unreachable"),
    ],
)
def test_a_handshake_is_refused_as_a_request_is(
    gateway: Gateway,
    simulator: Simulator,
    book: str,
    at: str,
    headers: list[tuple[str, str]],
    who: str | None,
    status: int,
    code: str,
) -> None:
    key = gateway.secrets.get(who or "", who)
    mine = [*headers, *told(book).items()]
    with connect(gateway.port, at, *mine, key=key) as client:
        assert (client.answer.status, refusal(client)["code"]) == (status, code)
    assert simulator.requests(book=book) == []


def test_a_socket_counts_as_a_concurrent_request(gateway: Gateway, book: str) -> None:
    key = gateway.secrets["single"]
    with connect(gateway.port, REALTIME, *told(book).items(), key=key) as first:
        first.event("session.created")
        with connect(gateway.port, REALTIME, key=key) as second:
            assert (second.answer.status, refusal(second)["code"]) == (429, "rate_limit_exceeded")
        for _ in range(2):  # a response does not need a place of its own
            first.send(text({"type": "response.create"}, masked=True))
            first.event("response.done")
        first.send(close(1000, masked=True))
        assert first.closed().code == 1000
    lines_of(gateway, first, 2)
    with connect(gateway.port, REALTIME, key=key) as third:
        third.event("session.created")
        third.send(close(1000, masked=True))
        third.closed()


@pytest.mark.parametrize(
    ("orders", "status", "code"),
    [
        ("status=403; code=no_realtime", 403, "no_realtime"),
        ("status=429", 429, "rate_limit_exceeded"),
        ("status=401", 502, "upstream_auth"),
        ("wrong-accept", 502, "upstream_protocol_error"),
    ],
)
def test_the_providers_refusal_is_relayed(
    gateway: Gateway, key: str, book: str, orders: str, status: int, code: str
) -> None:
    with connect(gateway.port, REALTIME, *told(book, orders).items(), key=key) as client:
        assert client.answer.status == status
        assert json.loads(client.answer.body)["error"]["code"] == code
    assert lines_of(gateway, client, 0)[0]["status"] == status


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_a_provider_without_websockets_makes_clients_use_http(
    gateway: Gateway, key: str, book: str, status: int
) -> None:
    """Where there is the same over HTTP: with 426 they change over at once."""
    orders = told(book, f"status={status}")
    with connect(gateway.port, "/v1/responses", *orders.items(), key=key) as client:
        assert (client.answer.status, refusal(client)["code"]) == (426, "websocket_not_supported")
    with connect(gateway.port, REALTIME, *orders.items(), key=key) as client:
        assert client.answer.status == status


@pytest.mark.parametrize(
    "header", ["Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: else"]
)
def test_a_101_that_agrees_on_what_was_not_offered_is_a_502(
    gateway: Gateway, provider: Provider, key: str, header: str
) -> None:
    with ThreadPoolExecutor() as beside:
        connecting = beside.submit(connect, gateway.port, "/raw/v1/realtime?model=m", key=key)
        with provider.session(header) as (end, _), connecting.result(DEADLINE) as client:
            assert client.answer.status == 502
            assert end.to_end() == b""


def test_a_route_fails_over_and_an_alias_changes_the_query(
    gateway: Gateway, simulator: Simulator, key: str, book: str
) -> None:
    at = "/v1/realtime?x=1&model=voice&y=2"
    with connect(gateway.port, at, *told(book).items(), key=key) as client:
        assert client.event("session.created")["session"]["model"] == "gpt-realtime"
        client.send(close(1000, masked=True))
        client.closed()
    (seen,) = simulator.requests(book=book)
    assert seen["target"] == "/v1/realtime?x=1&model=gpt-realtime&y=2"


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "outcome"), [(1000, "completed"), (4000, "completed"), (1011, "upstream_error")]
)
def test_the_providers_close_code_comes_down(
    gateway: Gateway, key: str, book: str, code: int, outcome: str
) -> None:
    orders = told(book, f"close-code={code}")
    with connect(gateway.port, REALTIME, *orders.items(), key=key) as client:
        client.send(text({"type": "response.create"}, masked=True))
        client.event("response.done")
        closed = client.closed()
        assert (closed.code, closed.reason) == (code, "as instructed")
        client.send(close(code, masked=True))
        assert client.to_end() == b""
    response, own = lines_of(gateway, client, 1)
    assert (response["outcome"], own["outcome"]) == ("completed", outcome)


def test_a_provider_that_breaks_off_is_a_1011(gateway: Gateway, key: str, book: str) -> None:
    with connect(gateway.port, REALTIME, *told(book, "cut=4").items(), key=key) as client:
        client.send(text({"type": "response.create"}, masked=True))
        assert client.closed().code == 1011
    response, own = lines_of(gateway, client, 1)
    assert (own["outcome"], own["code"]) == ("upstream_error", "upstream_interrupted")
    assert (response["outcome"], response["bounded"]) == ("upstream_error", "truncated")
    assert 0 < response["tokens_low"] < response["tokens_high"]


def test_a_provider_that_breaks_off_within_a_frame_leaves_no_close_frame(
    gateway: Gateway, provider: Provider, key: str
) -> None:
    """A Close frame would be read as a part of the frame."""
    half = frame(TEXT, bytes(1000), masked=False)[:500]
    with ends(gateway, provider, key) as (client, end):
        end.send(half)
        assert client.exactly(len(half)) == half
        end.socket.close()
        assert client.to_end() == b""
    assert lines_of(gateway, client, 0)[0]["outcome"] == "upstream_error"


def test_a_client_that_leaves_ends_the_session_and_the_open_response(
    gateway: Gateway, simulator: Simulator, key: str, book: str
) -> None:
    with connect(gateway.port, REALTIME, *told(book, "stall=4").items(), key=key) as client:
        client.send(text({"type": "response.create"}, masked=True))
        client.event("response.output_text.delta")
    response, own = lines_of(gateway, client, 1)
    assert (own["outcome"], own["bounded"], own["unmetered"]) == ("client_abort", None, None)
    assert (response["outcome"], response["bounded"]) == ("client_abort", "aborted")
    eventually(
        lambda: all(each["outcome"] for each in simulator.requests(book=book)),
        DEADLINE,
        what="the provider's end",
    )


def test_a_client_that_has_sent_all_gets_what_is_under_way(
    gateway: Gateway, provider: Provider, key: str
) -> None:
    """Half closed: the end of the client's bytes goes up, and bytes still come down."""
    last = frame(TEXT, b"the last words", masked=False)
    with ends(gateway, provider, key) as (client, end):
        sent = frame(TEXT, b"bye", masked=True)
        client.send(sent)
        client.socket.shutdown(1)
        assert end.to_end() == sent
        end.send(last)
        end.socket.close()
        assert client.to_end() == last
    assert lines_of(gateway, client, 0)[0]["outcome"] == "client_abort"


@pytest.mark.parametrize(("name", "code"), [("idle", "idle_timeout"), ("short", "total_timeout")])
def test_a_session_has_an_idle_and_a_total_limit(
    gateway: Gateway, provider: Provider, key: str, name: str, code: str
) -> None:
    with established(gateway, provider, key, name) as (client, end):
        closed = client.closed()
        assert (closed.code, end.closed().code) == (1001, 1001)
        assert "0.5 s" in closed.reason
    line = lines_of(gateway, client, 0)[0]
    assert (line["outcome"], line["code"]) == ("completed", code)


@contextmanager
def established(
    gateway: Gateway, provider: Provider, key: str, name: str
) -> Iterator[tuple[Client, End]]:
    """A session at a provider whose total limit may end the handshake on a slow machine, too."""
    for _ in range(20):
        with ends(gateway, provider, key, f"{name}/v1/realtime?model=m") as (client, end):
            if client.answer.status == 101:
                yield client, end
                return
    pytest.fail("no handshake in time")


def flood(end: End) -> None:
    block = frame(BINARY, bytes(1 << 20), masked=False)
    while True:
        end.send(block)


def test_a_client_that_takes_nothing_does_not_put_off_the_end(
    gateway: Gateway, provider: Provider, key: str
) -> None:
    """The total limit ends the session, long before `body_timeout` does."""
    with established(gateway, provider, key, "short") as (client, end):
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            flood(end)
        client.to_end()
    assert lines_of(gateway, client, 0)[0]["code"] == "total_timeout"


def test_a_worker_that_stops_says_that_the_service_restarts(
    gateway_factory: GatewayFactory, simulator: Simulator, book: str
) -> None:
    gateway = gateway_factory(CONFIG.replace("{raw}", "9"), env={"GRACEFUL_TIMEOUT": "10"})
    key = gateway.secrets["web-app"]
    orders = told(book, "stall=4")
    with (
        connect(gateway.port, REALTIME, *told(f"{book}-2").items(), key=key) as quiet,
        connect(gateway.port, REALTIME, *orders.items(), key=key) as busy,
        ThreadPoolExecutor() as beside,
    ):
        quiet.event("session.created")
        busy.send(text({"type": "response.create"}, masked=True))
        busy.event("response.output_text.delta")
        stopping = beside.submit(gateway.stop)
        for client in (quiet, busy):
            closed = client.closed()
            assert (closed.code, closed.reason) == (1012, "service restart: connect again")
            client.send(close(1012, masked=True))
        assert stopping.result(DEADLINE) == 0
    assert lines_of(gateway, quiet, 0)[0]["outcome"] == "drained"
    response, own = lines_of(gateway, busy, 1)
    assert (own["outcome"], response["outcome"], response["bounded"]) == (
        *("drained", "drained", "aborted"),
    )
    # It was told by a Close frame, too.
    eventually(
        lambda: [each["outcome"] for each in simulator.requests(book=f"{book}-2")] == ["completed"],
        DEADLINE,
        what="the end of the provider's session",
    )


# --- limits, and what may be said ----------------------------------------------------------------


def test_a_budget_that_is_used_up_closes_the_socket(gateway: Gateway, book: str) -> None:
    key = gateway.secrets["poor"]
    at, orders = "/v1/realtime?model=priced", told(book, "prompt=3000; completion=1000")
    with connect(gateway.port, at, *orders.items(), key=key) as client:
        for _ in range(2):
            client.send(text({"type": "response.create"}, masked=True))
            client.event("response.done")
        closed = client.closed()
        assert closed.code == 1008
        assert closed.reason.startswith("insufficient_quota: ")
    *lines, own = lines_of(gateway, client, 2)
    assert (own["outcome"], own["code"]) == ("rejected", "insufficient_quota")
    # The second of two responses has no room beside the socket's estimate: 4096 tokens.
    assert [line["cost_usd"] for line in lines] == [0.004, 0.004]
    with connect(gateway.port, at, key=key) as again:
        assert (again.answer.status, refusal(again)["code"]) == (429, "insufficient_quota")


def test_each_response_counts_as_a_request_of_the_minute(gateway: Gateway, book: str) -> None:
    key = gateway.secrets["paced"]
    with connect(gateway.port, REALTIME, *told(book).items(), key=key) as client:
        client.send(text({"type": "response.create"}, masked=True))
        client.event("response.done")  # the second of two requests
        client.send(text({"type": "response.create"}, masked=True))
        closed = client.closed()
        assert (closed.code, closed.reason.split(":")[0]) == (1008, "rate_limit_exceeded")
    *_, own = lines_of(gateway, client, 2)
    assert own["outcome"] == "rejected"


def test_a_key_that_is_revoked_ends_its_session_with_the_next_response(
    gateway: Gateway, book: str
) -> None:
    key = gateway.secrets["leaving"]
    with connect(gateway.port, REALTIME, *told(book).items(), key=key) as client:
        client.event("session.created")
        gateway.revoke("leaving")
        client.send(text({"type": "response.create"}, masked=True))
        closed = client.closed()
        assert (closed.code, closed.reason.split(":")[0]) == (1008, "invalid_api_key")
    response, own = lines_of(gateway, client, 1)
    assert (response["outcome"], own["outcome"]) == ("completed", "rejected")
    assert response["prompt_tokens"] > 0


def test_each_response_has_a_model_of_this_provider(
    gateway: Gateway, simulator: Simulator, key: str, book: str
) -> None:
    """Another one gets an error event, and the session goes on; an alias becomes the model."""
    with connect(gateway.port, "/v1/responses", *told(book).items(), key=key) as client:
        for asked, code in (
            (asks("llama-3"), "invalid_body"),
            (asks("gpt-6-luna", MODEL="gpt-6-sol"), "invalid_body"),
            (asks(model=7), "invalid_body"),
        ):
            client.send(text(asked, masked=True))
            error = client.event("error")
            assert (error["error"]["code"], error["status"]) == (code, 400)
        client.send(text(asks("fast"), masked=True))
        assert client.event("response.completed")["response"]["model"] == "gpt-6-luna"
        client.send(close(1000, masked=True))
        client.closed()
    *refused, response, own = lines_of(gateway, client, 4)
    assert {line["outcome"] for line in refused} == {"client_error"}
    assert (response["outcome"], own["outcome"]) == ("completed", "completed")
    assert response["model"] == "gpt-6-luna"
    booked = [each["model"] for each in simulator.requests(book=book) if "/" in each["endpoint"]]
    assert booked == ["gpt-6-luna"]


@pytest.mark.parametrize("at", [REALTIME, "/openai/v1/realtime?model=gpt-realtime"])
def test_a_restricted_key_names_no_other_model_in_an_event(
    gateway: Gateway, simulator: Simulator, book: str, at: str
) -> None:
    key = gateway.secrets["voice-only"]
    audio = {"input": {"transcription": {"model": "whisper-1"}}}
    with connect(gateway.port, at, *told(book).items(), key=key) as client:
        client.send(text({"type": "session.update", "session": {"audio": audio}}, masked=True))
        error = client.event("error")
        assert (error["error"]["code"], error["status"]) == ("model_not_allowed", 403)
        client.send(frame(BINARY, b"{}", masked=True))
        assert client.event("error")["error"]["code"] == "invalid_json"
        client.send(text({"type": "response.create"}, masked=True))
        client.event("response.done")
        client.send(close(1000, masked=True))
        client.closed()
    first, second, response, _ = lines_of(gateway, client, 3)
    assert (first["status"], first["outcome"]) == (403, "rejected")
    assert second["status"] == 400
    assert response["outcome"] == "completed"
    kinds = [each["endpoint"] for each in simulator.requests(book=book)]
    assert kinds == ["realtime", "realtime/response"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(BINARY, bytes(300_000), masked=True), 1009),
        (
            frame(BINARY, bytes(150_000), fin=False, masked=True)
            + frame(0, bytes(150_000), masked=True),
            1009,
        ),
        (frame(3, b"x", masked=True), 1002),
        (frame(TEXT, b"x", masked=False), 1002),
        (frame(0, b"x", masked=True), 1002),
    ],
    ids=["one frame", "fragments", "no opcode", "not masked", "no beginning"],
)
def test_messages_that_are_read_have_to_be_frames_of_a_known_size(
    gateway: Gateway, simulator: Simulator, key: str, book: str, sent: bytes, code: int
) -> None:
    with connect(gateway.port, "/v1/responses", *told(book).items(), key=key) as client:
        client.send(sent)
        assert client.closed().code == code
    (line,) = lines_of(gateway, client, 0)
    assert (line["outcome"], line["code"]) == (
        "client_error",
        "request_too_large" if code == 1009 else "websocket_protocol_error",
    )


def test_an_event_of_the_gateway_waits_for_the_end_of_the_providers_message(
    gateway: Gateway, provider: Provider
) -> None:
    key = gateway.secrets["voice-only"]
    half, rest = (
        frame(TEXT, b'{"type": ', fin=False, masked=False),
        frame(0, b'"x"}', masked=False),
    )
    at = "raw/v1/realtime?model=gpt-realtime"
    with ends(gateway, provider, key, at) as (client, end):
        end.send(half)
        assert client.exactly(len(half)) == half
        client.send(text({"type": "x", "model": "other"}, masked=True))
        allowed = text({"type": "y"}, masked=True)
        client.send(allowed)
        assert end.exactly(len(allowed)) == allowed  # the first one was refused by now
        end.send(rest)
        assert client.exactly(len(rest)) == rest
        assert client.event("error")["error"]["code"] == "model_not_allowed"
        client.send(close(1000, masked=True))
        end.closed()
        end.send(close(1000, masked=False))
        client.closed()


def test_what_is_refused_while_the_providers_message_does_not_end_is_bounded(
    gateway: Gateway, provider: Provider
) -> None:
    key = gateway.secrets["voice-only"]
    half = frame(TEXT, b'{"type": ', fin=False, masked=False)
    with ends(gateway, provider, key, "raw/v1/realtime?model=gpt-realtime") as (client, end):
        end.send(half)
        assert client.exactly(len(half)) == half
        client.send(text({"type": "x", "model": "other"}, masked=True) * MAX_WAITING)
        assert client.closed().code == end.closed().code == 1013
    *refused, own = lines_of(gateway, client, MAX_WAITING)
    assert {line["status"] for line in refused} == {403}
    assert (own["outcome"], own["code"]) == ("rejected", "overloaded")


UNPRICED = b'{"type": "response.create", "model": "unheard-of"}'


@pytest.mark.parametrize(
    ("opcode", "sent"),
    [
        (BINARY, UNPRICED),
        (TEXT, b"\xef\xbb\xbf" + UNPRICED),
        (TEXT, b'{"type": [["response.create"]], "model": "unheard-of"}'),
    ],
    ids=["binary", "byte order mark", "no text"],
)
def test_a_key_with_a_budget_hides_no_model_from_its_prices(
    gateway: Gateway, book: str, opcode: int, sent: bytes
) -> None:
    """Some providers read binary messages, and a byte order mark, as JSON."""
    orders = told(book).items()
    with connect(gateway.port, "/v1/responses", *orders, key=gateway.secrets["frugal"]) as client:
        client.send(frame(TEXT, UNPRICED, masked=True))
        assert client.event("error")["error"]["code"] == "model_not_priced"
        client.send(frame(opcode, sent, masked=True))
        assert client.event("error")["error"]["code"] == "invalid_json"
        client.send(close(1000, masked=True))
        client.closed()
    assert [line["status"] for line in lines_of(gateway, client, 2)[:2]] == [403, 400]


def test_a_providers_message_is_read_in_memory_that_is_counted(
    gateway: Gateway, provider: Provider, key: str
) -> None:
    """What there is no room for passes, and its use is not known."""

    def ended(size: int) -> bytes:
        response = {"id": "r", "pad": "x" * size, "usage": {"input_tokens": 1, "output_tokens": 2}}
        return text({"type": "response.done", "response": response}, masked=False)

    begun = text({"type": "response.created", "response": {"id": "r"}}, masked=False)
    with ends(gateway, provider, key, "raw/v1/realtime?model=m") as (client, end):
        for sent in (begun + ended(900_000), begun + ended(100_000)):
            end.send(sent)
            assert client.exactly(len(sent)) == sent
        client.send(close(1000, masked=True))
        end.closed()
        end.send(close(1000, masked=False))
        client.closed()
    large, small, _ = lines_of(gateway, client, 2)
    assert (large["outcome"], large["unmetered"]) == ("completed", "too_large")
    assert (small["outcome"], small["completion_tokens"]) == ("completed", 2)


@pytest.mark.parametrize("said", [[], [{"type": "error", "error": {}}]])
def test_a_response_that_was_asked_for_and_not_begun_is_bounded(
    gateway: Gateway, provider: Provider, key: str, said: list[dict[str, Any]]
) -> None:
    """Its provider may work on it; one that was refused costs nothing."""
    create = text({"type": "response.create", "model": "m", "input": "x" * 100}, masked=True)
    with ends(gateway, provider, key, "raw/v1/responses") as (client, end):
        client.send(create)
        assert end.exactly(len(create)) == create
        for event in said:
            end.send(text(event, masked=False))
            client.event("error")
        client.send(close(1000, masked=True))
        end.closed()
        end.send(close(1000, masked=False))
        client.closed()
    *responses, _ = lines_of(gateway, client, 1 - len(said))
    assert [line["bounded"] for line in responses] == ["aborted"] * (1 - len(said))


def test_a_response_that_reports_nothing_costs_its_estimate(
    gateway: Gateway, provider: Provider
) -> None:
    """As over HTTP, also where it is too large to be read."""
    key, done = gateway.secrets["frugal"], {"type": "response.done", "response": {"id": "r"}}
    sent = text(done, masked=False) + text({**done, "pad": "x" * 900_000}, masked=False)
    with ends(gateway, provider, key, "raw/v1/realtime?model=priced") as (client, end):
        end.send(sent)
        assert client.exactly(len(sent)) == sent
        client.send(close(1000, masked=True))
        end.closed()
        end.send(close(1000, masked=False))
        client.closed()
    *responses, _ = lines_of(gateway, client, 2)
    assert [line["unmetered"] for line in responses] == ["no_usage", "too_large"]
    assert [line["cost_usd"] for line in responses] == [0.004096, 0.004096]
