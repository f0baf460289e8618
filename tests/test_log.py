"""The request log: one JSON line per request, with the contract's fields and no secrets."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, raw
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.poll import eventually
from wrapper.output import ROOM

if TYPE_CHECKING:
    from harness.gateway import LogLine
    from harness.simulator import Simulator

FIELDS = {
    *("time", "level", "request_id", "upstream_request_id", "client", "method", "path"),
    *("status", "outcome", "api_key", "provider", "model", "stream", "prompt_tokens"),
    *("completion_tokens", "cost_usd", "ttft_ms", "upstream_ms", "overhead_ms", "duration_ms"),
    *("bytes_in", "bytes_out"),
}
SECRET_WORD = "do-not-write-this-down"


def line_of(gateway: Gateway, **how: Any) -> LogLine:
    answer = chat.call(gateway, **how)
    request_id = answer.header("x-request-id")
    assert request_id
    return gateway.log_line(request_id)


def test_a_call_is_one_line_with_every_field(gateway: Gateway) -> None:
    content = chat.body()
    answer = chat.call(gateway, content, orders="prompt=7; completion=9; delay=0.05")
    request_id = answer.header("x-request-id")
    assert request_id
    line = gateway.log_line(request_id)
    assert line.keys() >= FIELDS
    assert line["request_id"] != line["upstream_request_id"] == request_id
    age = datetime.now(UTC) - datetime.fromisoformat(line["time"])
    assert -1 < age.total_seconds() < 600
    wanted = {
        "level": "info",
        "client": "127.0.0.1",
        "method": "POST",
        "path": chat.PATH,
        "endpoint": "/chat/completions",
        "status": 200,
        "outcome": "completed",
        "api_key": "web-app",
        "provider": "groq",
        "model": chat.MODEL,
        "stream": False,
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "bytes_in": len(content),
        "bytes_out": len(answer.body),
    }
    assert {name: line[name] for name in wanted} == wanted
    assert line["cost_usd"] > 0
    assert 50 <= line["ttft_ms"] <= line["duration_ms"]
    assert 50 <= line["upstream_ms"] <= line["duration_ms"]
    assert 0 < line["overhead_ms"] < line["duration_ms"]
    lines = [x for x in gateway.log() if x["upstream_request_id"] == request_id]
    assert len(lines) == 1


def test_a_streams_line_is_written_at_its_end_and_has_its_usage(gateway: Gateway) -> None:
    line = line_of(gateway, stream=True, orders="prompt=7; completion=5; events=5; gap=0.02")
    assert line["stream"] is True
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 5)
    assert line["duration_ms"] >= 100
    assert line["ttft_ms"] < line["duration_ms"]
    assert line["bytes_out"] > 500


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (
            {"key": "sk-wr-nobody"},
            {"status": 401, "outcome": "rejected", "api_key": "none", "provider": None},
        ),
        ({"key": "expired"}, {"status": 401, "outcome": "rejected", "provider": None}),
        (
            {"key": "narrow", "model": "gpt-6-sol"},
            {"status": 403, "outcome": "rejected", "api_key": "narrow"},
        ),
        ({"content": b"no"}, {"status": 400, "outcome": "client_error", "api_key": "web-app"}),
        ({"target": "/v1/../x"}, {"status": 400, "outcome": "client_error"}),
        ({"target": "/nothing/at/all"}, {"status": 404, "outcome": "client_error"}),
        ({"orders": "status=404"}, {"status": 404, "outcome": "client_error", "provider": "groq"}),
        ({"orders": "status=429"}, {"status": 429, "outcome": "upstream_error"}),
        ({"orders": "status=503"}, {"status": 503, "outcome": "upstream_error"}),
        ({"orders": "reset=0"}, {"status": 502, "outcome": "upstream_error", "provider": "groq"}),
        (
            {"orders": "cut=3; events=9", "stream": True},
            {"status": 200, "outcome": "upstream_error", "stream": True},
        ),
    ],
)
def test_the_outcome_shows_whose_fault_it_was(
    gateway: Gateway, how: dict[str, Any], wanted: dict[str, Any]
) -> None:
    line = line_of(gateway, **how)
    assert {name: line[name] for name in wanted} == wanted
    assert line.keys() >= FIELDS


def test_the_path_is_the_routes_pattern_and_never_the_requested_one(gateway: Gateway) -> None:
    for target in (
        f"/v1/{SECRET_WORD}",
        f"/groq/openai/v1/{SECRET_WORD}?{SECRET_WORD}=1",
        f"/{SECRET_WORD}/x",
        f"/{SECRET_WORD}",
        f"/v1//{SECRET_WORD}",
    ):
        line = line_of(gateway, target=target)
        assert SECRET_WORD not in json.dumps(line)


def test_the_endpoint_is_named_at_every_address(gateway: Gateway) -> None:
    for target in ("/v1/embeddings", "/groq/openai/v1/embeddings?x=1"):
        assert line_of(gateway, target=target)["endpoint"] == "/embeddings"
    assert line_of(gateway, target=f"/v1/{SECRET_WORD}")["endpoint"] is None


def test_no_secret_query_or_body_is_written_whatever_happens(gateway: Gateway, key: str) -> None:
    private = (
        ("Cookie", f"session={SECRET_WORD}"),
        ("X-Private", SECRET_WORD),
        ("User-Agent", SECRET_WORD),
        ("Referer", f"http://{SECRET_WORD}/"),
        ("OpenAI-Organization", SECRET_WORD),
    )
    content = json.dumps(
        {"model": chat.MODEL, "messages": [{"role": "user", "content": SECRET_WORD}]}
    ).encode()
    target = f"{chat.PATH}?token={SECRET_WORD}"
    for orders in ("", "status=400", "status=500", "reset=0", "framing=garbage", "malformed-json"):
        chat.call(gateway, content, target=target, headers=private, orders=orders)
    for broken in (content[:-1], content + SECRET_WORD.encode(), b"\xff" + content):
        chat.call(gateway, broken, target=target, headers=private)
    chunked = f"Transfer-Encoding: chunked\r\n\r\n{SECRET_WORD}\r\n"
    for bad in (
        f"GET /{SECRET_WORD} HTTP/9.9\r\n\r\n",
        f"GET /x HTTP/1.1\r\nHost: a\r\n{SECRET_WORD} : x\r\n\r\n",
        f"GET /x HTTP/1.1\r\nHost: a\r\nX: {SECRET_WORD}\0\r\n\r\n",
        f"{SECRET_WORD} \r\n\r\n",
        f"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: {SECRET_WORD}\r\n\r\n",
        f"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {SECRET_WORD}\r\n\r\n",
        f"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\n\r\n\r\n",
        f"POST {chat.PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n{chunked}",
    ):
        with raw.Connection(gateway.port) as connection:
            connection.send(bad.encode("latin-1"))
            connection.is_closed_by_peer()
    settled(gateway)
    written = gateway.stdout() + gateway.stderr()
    for secret in (SECRET_WORD, *gateway.secrets.values(), *PROVIDER_KEYS.values()):
        assert secret not in written


def settled(gateway: Gateway) -> None:
    """Every call's line has been written."""
    line_of(gateway)
    gateway.idle()


def test_unusual_names_stay_on_their_line_and_are_json(gateway: Gateway) -> None:
    forged, unprintable = '"}\n{"level": "forged"', "\x85\x9b\u2028\u202e\u2066\x7f"
    for model in (forged, "a\r\nb", "\x1b[31mred", f"ü{unprintable}💥", "x" * 5000):
        line = line_of(gateway, model=model)
        assert line["level"] != "forged"
        assert len(json.dumps(line)) < 7000
    assert not set(unprintable) & set(gateway.stdout())
    assert all(line["level"] in ("info", "warning", "error") for line in gateway.log())


def test_an_unknown_method_is_written_as_other(gateway: Gateway) -> None:
    asked = raw.request(gateway.port, "BREWCOFFEE", "/v1/models")
    answer = raw.exchange(gateway.port, asked)
    request_id = answer.header("x-request-id")
    assert request_id
    assert gateway.log_line(request_id)["method"] == "other"


def test_the_level_follows_the_status(gateway: Gateway) -> None:
    levels = [
        line_of(gateway, orders=orders)["level"] for orders in ("", "status=404", "status=503")
    ]
    assert levels == ["info", "warning", "error"]


def test_health_checks_and_the_models_list_are_logged_too(gateway: Gateway, key: str) -> None:
    asked = raw.request(gateway.port, "GET", "/v1/models", key=key)
    request_id = raw.exchange(gateway.port, asked).header("x-request-id") or ""
    line = gateway.log_line(request_id)
    assert (line["path"], line["api_key"], line["status"]) == ("/v1/models", "web-app", 200)
    assert re.fullmatch(r"req_[0-9a-f]{24}", request_id)


def test_a_log_reader_that_does_not_read_delays_no_request(simulator: Simulator) -> None:
    config = CONFIG.replace("{simulator}", simulator.url)
    with Gateway.prepared(config, keys=KEYS, env=PROVIDER_KEYS) as gateway:
        os.mkfifo(gateway.stdout_file)
        asleep = os.open(gateway.stdout_file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            gateway.start()
            health = raw.request(gateway.port, "GET", "/healthz")
            with raw.Connection(gateway.port, deadline=60) as connection:
                for _ in range((ROOM + 65536) // 300):  # lines have more bytes than that
                    assert connection.send(health).read().status == 200
            eventually(lambda: "lines cannot be written to stdout" in gateway.stderr())
            lost = {"stream": "stdout"}
            assert gateway.metrics().value("log_lines_lost_total", **lost) > 0
            assert len(os.read(asleep, 65536)) > 50_000
            assert gateway.get("/healthz")[0] == 200
            eventually(lambda: b'"path":"/healthz"' in os.read(asleep, 65536), retry_on=(OSError,))
        finally:
            gateway.stop()
            os.close(asleep)
