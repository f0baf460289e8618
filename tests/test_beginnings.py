"""The beginning of a response decides whether there is one, before its head goes down."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import brotli
import pytest

from harness import chat, raw
from harness.raw import response

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.raw import Answer, Scripted
    from harness.simulator import Simulator

EVENTS = "Content-Type: text/event-stream"
JSON = "Content-Type: application/json"
ERROR = {"error": {"message": "no capacity", "type": "server_error", "code": "overloaded"}}
GOOD = b'data: {"choices": [{"delta": {"content": "hello"}}]}\n\ndata: [DONE]\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}\n\n'

Serve = Callable[[Callable[[bytes], bytes]], "Scripted"]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as held:
        yield lambda respond: held.enter_context(raw.scripted(respond))


def behind(app_factory: AppFactory, provider: Scripted, settings: str = "") -> App:
    """A gateway with this provider first, and the simulator as the second target."""
    return app_factory(f"""\
[providers.first]
base_url = "{provider.url}/v1"
first_byte_timeout = 60
idle_timeout = 20
{settings}

[providers.second]
base_url = "{{simulator}}/v1"

[[routes]]
model = "both"
targets = ["first", "second:sim-model"]

[[routes]]
model = "*"
targets = ["first"]
""")


def event(data: Any, name: str = "") -> bytes:
    named = f"event: {name}\n" if name else ""
    return f"{named}data: {json.dumps(data)}\n\n".encode()


# --- an error as the first event -----------------------------------------------------------------

FAILURES = {
    "error": event(ERROR),
    "named": event(ERROR, "error"),
    "named-without-object": b"event: error\ndata: overloaded\n\n",
    "named-last": b'data: {"message": "x"}\nevent:error\n\n',
    "typed": event({"type": "error", "message": "x"}),
    "anthropic": event({"type": "error", "error": {"type": "overloaded_error"}}, "error"),
    "failed": event({"type": "response.failed", "response": {"error": {"code": "server_error"}}}),
    "crlf": event(ERROR).replace(b"\n", b"\r\n"),
    "cr": event(ERROR).replace(b"\n", b"\r"),
    "no-space": event(ERROR).replace(b"data: ", b"data:"),
    "bom": b"\xef\xbb\xbf" + event(ERROR),
    "multi-data": b'data: {"error":\ndata: {"message": "x"}}\n\n',
    "without-blank-line": event(ERROR).rstrip(b"\n"),
    "after-a-comment": b": keep-alive\n\n" + event(ERROR),
    "more-follows": event(ERROR) + GOOD,
    "code-429": event({"error": {"message": "x", "code": 429}}),
    "code-502": event({"error": {"message": "x", "code": 502, "status": "502"}}),
}
BEGUN = {
    "content": GOOD,
    "later": GOOD[:-14] + event(ERROR),
    "null": event({"error": None, "choices": []}) + GOOD,
    "in-text": event({"choices": [{"delta": {"content": '"error": {"message"'}}]}),
    "the-callers": event({"error": {"type": "invalid_request_error", "message": "too long"}}),
    "code-400": event({"error": {"code": 400, "message": "x"}}),
    "code-413": event({"error": {"code": "413", "message": "x"}}),
    "comment": b": error\n\n",
    "nothing": b"",
    "not-json": b"data: error\n\n",
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_as_the_first_event_leads_to_the_next_target(
    app_factory: AppFactory, serve: Serve, name: str
) -> None:
    provider = serve(lambda _: response(FAILURES[name], EVENTS))
    app = behind(app_factory, provider)
    answer = chat.call(app, model="both", stream=True)
    assert (answer.status, answer.header("x-wrapper-provider")) == (200, "second")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b"capacity" not in answer.body
    alone = chat.call(app, model="alone", stream=True)
    assert (alone.status, alone.body) == (200, FAILURES[name])
    assert len(provider.requests) == 2


@pytest.mark.parametrize("name", BEGUN)
def test_anything_else_is_a_stream_that_has_begun(
    app_factory: AppFactory, serve: Serve, name: str
) -> None:
    provider = serve(lambda _: response(BEGUN[name], EVENTS))
    answer = chat.call(behind(app_factory, provider), model="both", stream=True)
    assert answer.header("x-wrapper-provider") == "first"
    assert (answer.status, answer.body) == (200, BEGUN[name])


def test_a_body_that_was_streamed_through_leads_to_no_other_target(
    app_factory: AppFactory, serve: Serve, simulator: Simulator
) -> None:
    provider = serve(lambda _: response(FAILURES["error"], EVENTS))
    app = app_factory(f"""\
[providers.first]
base_url = "{provider.url}/v1"

[providers.second]
base_url = "{{simulator}}/v1"

[[routes]]
model = "*"
targets = ["first", "second"]
""")
    book = chat.mark()
    headers = (
        ("Content-Type", "application/octet-stream"),
        ("Content-Length", "3"),
        *chat.told(book=book),
    )
    target, key = "/v1/engines/sim-model/of-tomorrow", app.secrets["web-app"]
    asked = raw.request(app.port, "POST", target, key=key, headers=headers)
    answer = app.exchange(asked + b"abc")
    assert (answer.header("x-wrapper-provider"), answer.body) == ("first", FAILURES["error"])
    assert simulator.requests(book=book) == []


def test_an_error_event_that_arrives_in_pieces_leads_to_the_next_target(
    app_factory: AppFactory,
) -> None:
    app = app_factory("""\
[providers.first]
base_url = "{simulator}/v1"
headers = { "x-sim" = "error-event=0; drip=0.0001" }

[providers.second]
base_url = "{simulator}/v1"

[[routes]]
model = "*"
targets = ["first", "second"]
""")
    answer = chat.call(app, model="sim-model", stream=True)
    assert answer.header("x-wrapper-provider") == "second"


# --- whole answers -------------------------------------------------------------------------------

WHOLE = b'{"object": "chat.completion", "choices": []}'


@pytest.mark.parametrize(
    ("headers", "sent", "whole"),
    [
        ((JSON, f"Content-Length: {len(WHOLE)}"), WHOLE, True),
        ((JSON, f"Content-Length: {len(WHOLE)}"), WHOLE[:-1], False),
        ((JSON, f"Content-Length: {len(WHOLE)}"), WHOLE[:1], False),
        ((JSON.upper(), f"Content-Length: {len(WHOLE)}"), WHOLE[:9], False),
        ((f"{JSON}; charset=utf-8", "Content-Length: 65536"), WHOLE, False),
        (("Content-Type: application/problem+json", "Content-Length: 99"), WHOLE, False),
        ((JSON, "Transfer-Encoding: chunked"), b"2\r\n{}\r\n0\r\n\r\n", True),
        ((JSON, "Transfer-Encoding: chunked"), b"2\r\n{}\r\n0\r\n", False),
        ((JSON, "Transfer-Encoding: chunked"), b"2\r\n{}\r\n", False),
        ((JSON,), WHOLE, True),
    ],
)
def test_a_small_json_answer_is_whole_or_an_error(
    app_factory: AppFactory, serve: Serve, headers: tuple[str, ...], sent: bytes, whole: bool
) -> None:
    provider = serve(lambda _: response(sent, *headers))
    answer = chat.call(behind(app_factory, provider), model="both")
    if whole:
        assert (answer.status, answer.header("x-wrapper-provider")) == (200, "first")
        assert answer.body in (WHOLE, b"{}")
    else:
        # What the provider did is unknown: no other one does it again, and the SDK does not either.
        details = chat.error(answer)
        assert (answer.status, details["code"]) == (502, "upstream_protocol_error")
        assert answer.header("x-should-retry") == "false"
    assert len(provider.requests) == 1


def test_a_small_error_that_is_cut_short_leads_to_the_next_target_as_any_5xx(
    app_factory: AppFactory, serve: Serve
) -> None:
    sent = response(b"{", JSON, "Content-Length: 30", status="503 Busy")
    answer = chat.call(behind(app_factory, serve(lambda _: sent)), model="both")
    assert (answer.status, answer.header("x-wrapper-provider")) == (200, "second")


# --- stream_options ------------------------------------------------------------------------------


def refuses(status: str, detail: bytes, seen: list[bool]) -> Callable[[bytes], bytes]:
    """A provider that does not know `stream_options`."""

    def respond(request: bytes) -> bytes:
        seen.append(b"stream_options" in request)
        if seen[-1]:
            return response(detail, JSON, status=status)
        return response(GOOD, EVENTS)

    return respond


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Entity"])
@pytest.mark.parametrize(
    "detail", [b'{"detail": [{"loc": ["body", "stream_options"]}]}', b'{"error": "bad"}', b""]
)
def test_stream_options_that_a_provider_refuses_are_asked_for_once(
    app_factory: AppFactory, serve: Serve, status: str, detail: bytes
) -> None:
    seen: list[bool] = []
    app = behind(app_factory, serve(refuses(status, detail, seen)))
    for _ in range(2):
        answer = chat.call(app, model="alone", stream=True)
        assert (answer.status, answer.body) == (200, GOOD)
    assert seen == [True, False, False]


def test_what_the_caller_asks_for_is_not_taken_out(app_factory: AppFactory, serve: Serve) -> None:
    seen: list[bool] = []
    app = behind(app_factory, serve(refuses("422 No", b'{"error": "stream_options"}', seen)))
    content = chat.body("alone", stream=True, stream_options={"include_usage": True})
    assert chat.call(app, content).status == 422
    assert seen == [True]


def test_a_refusal_for_another_reason_is_the_callers_and_changes_nothing(
    app_factory: AppFactory, serve: Serve
) -> None:
    """Until a stream was accepted the reason may be either; then it must be named."""
    answers = iter(
        [
            response(b'{"error": "bad"}', JSON, status="400 Bad Request"),
            response(b'{"error": "bad"}', JSON, status="400 Bad Request"),
            response(GOOD[:-14] + USAGE + GOOD[-14:], EVENTS),
            response(b'{"error": "bad"}', JSON, status="400 Bad Request"),
            response(b'{"error": "no stream_options"}', JSON, status="400 Bad Request"),
            response(GOOD, EVENTS),
        ]
    )
    provider = serve(lambda _: next(answers))
    app = behind(app_factory, provider)
    statuses = [chat.call(app, model="alone", stream=True).status for _ in range(4)]
    assert statuses == [400, 200, 400, 200]
    asked = [b"stream_options" in request for request in provider.requests]
    assert asked == [True, False, True, True, True, False]


# --- a compressed stream whose usage was asked for -----------------------------------------------

CODINGS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
}
ASKED = GOOD[:-14] + USAGE + GOOD[-14:]


@pytest.mark.parametrize("coding", CODINGS)
def test_a_stream_that_is_compressed_although_it_must_not_be_is_unfolded(
    app_factory: AppFactory, serve: Serve, coding: str
) -> None:
    sent = response(CODINGS[coding](ASKED), EVENTS, f"Content-Encoding: {coding}", "X-Other: stays")
    provider = serve(lambda _: sent)
    answer = chat.call(behind(app_factory, provider), model="alone", stream=True)
    assert (answer.status, answer.body) == (200, GOOD)
    assert answer.header("content-encoding") is None
    assert answer.header("x-other") == "stays"
    assert b"identity" in provider.requests[0]


def test_an_error_event_is_found_in_a_compressed_stream(
    app_factory: AppFactory, serve: Serve
) -> None:
    sent = response(gzip.compress(event(ERROR)), EVENTS, "Content-Encoding: gzip")
    answer = chat.call(behind(app_factory, serve(lambda _: sent)), model="both", stream=True)
    assert answer.header("x-wrapper-provider") == "second"


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_stream_that_the_caller_asked_for_stays_as_it_came(
    app_factory: AppFactory, serve: Serve, coding: str
) -> None:
    sent = CODINGS[coding](ASKED)
    provider = serve(lambda _: response(sent, EVENTS, f"Content-Encoding: {coding}"))
    content = chat.body("alone", stream=True, stream_options={"include_usage": True})
    answer = chat.call(behind(app_factory, provider), content)
    assert (answer.body, answer.header("content-encoding")) == (sent, coding)


@pytest.mark.parametrize(
    "sent",
    [
        gzip.compress(ASKED)[:-9],
        gzip.compress(ASKED)[:-1],
        gzip.compress(GOOD)[:15] + b"\xff" * 40,
        brotli.compress(ASKED)[:-1],
    ],
    ids=["cut", "cut-in-its-check", "broken", "brotli-cut"],
)
def test_broken_compression_ends_with_an_error(
    app_factory: AppFactory, serve: Serve, sent: bytes
) -> None:
    coding = "gzip" if sent.startswith(b"\x1f\x8b") else "br"
    provider = serve(lambda _: response(sent, EVENTS, f"Content-Encoding: {coding}"))
    app = behind(app_factory, provider)
    answer: Answer | None = None
    try:
        answer = chat.call(app, model="alone", stream=True)
    except ConnectionResetError:
        return  # the end of a stream in this process that broke off
    assert (answer.status, chat.error(answer)["code"]) == (502, "upstream_protocol_error")


# --- what the SDKs do with an error --------------------------------------------------------------


def test_the_sdks_do_not_send_again_what_a_provider_may_be_working_on(
    app_factory: AppFactory, serve: Serve, simulator: Simulator
) -> None:
    app = app_factory("""\
[providers.slow]
base_url = "{simulator}/v1"
headers = { "x-sim" = "stall-before" }
first_byte_timeout = 0.1

[[routes]]
model = "*"
targets = ["slow"]
""")
    book = chat.mark()
    answer = chat.call(app, model="sim-model", book=book)
    assert (answer.status, chat.error(answer)["code"]) == (504, "upstream_timeout")
    assert answer.header("x-should-retry") == "false"
    assert len(simulator.requests(book=book)) == 1
    asked = raw.request(app.port, "GET", "/slow/v1/x", key=app.secrets["web-app"])
    answer = app.exchange(asked)
    assert (answer.status, answer.header("x-should-retry")) == (504, None)
