"""The frames of a WebSocket, however its bytes are cut; and what its events say."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.websocket import BINARY, CLOSE, PING, TEXT, frame
from wrapper import errors
from wrapper.endpoints import find_socket
from wrapper.formats.websocket import Close, FrameReader, Message, accept_of, close_code, text_frame
from wrapper.metering.events import SocketEvent, read_event
from wrapper.metering.usage import ExtractedUsage, Usage
from wrapper.proxy.handshake import asked_for, authorization_of, model_of, with_query_model

frames = st.lists(
    st.one_of(
        st.tuples(st.just("message"), st.lists(st.binary(max_size=300), min_size=1, max_size=3)),
        st.tuples(st.just("ping"), st.just([b"x"])),
    ),
    max_size=6,
)


def bytes_of(script: list[tuple[str, list[bytes]]], *, masked: bool) -> tuple[bytes, list[int]]:
    """The bytes, and where a message has ended."""
    data, ends = b"", []
    for kind, parts in script:
        if kind == "ping":
            data += frame(PING, parts[0], masked=masked)
            continue
        for number, part in enumerate(parts):
            opcode = 0 if number else BINARY
            data += frame(opcode, part, fin=number == len(parts) - 1, masked=masked)
        ends.append(len(data))
    return data, ends


@given(frames, st.booleans(), st.lists(st.integers(0, 2000), max_size=8))
def test_messages_are_the_same_however_the_bytes_are_cut(
    script: list[tuple[str, list[bytes]]], masked: bool, cuts: list[int]
) -> None:
    data, ends = bytes_of(script, masked=masked)
    reader = FrameReader(masked=masked, limit=10_000)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found: list[Message] = []
    for start, end in pairwise(places):
        found += reader.feed(data[start:end])
    messages = [b"".join(parts) for kind, parts in script if kind == "message"]
    assert [message.data for message in found] == messages
    assert [message.end for message in found] == ends
    assert reader.at_message_end
    assert not reader.broken


@given(st.binary(max_size=200), st.integers(0, 400))
def test_nothing_may_be_put_inside_of_a_frame(payload: bytes, cut: int) -> None:
    data = frame(TEXT, payload, masked=True)
    cut = min(cut, len(data))
    reader = FrameReader(masked=True, limit=1000)
    list(reader.feed(data[:cut]))
    assert reader.at_frame_end == (cut in (0, len(data)))


def test_a_message_that_is_not_whole_leaves_room_for_control_frames_only() -> None:
    reader = FrameReader(masked=False, limit=10)
    list(reader.feed(frame(TEXT, b"a", fin=False, masked=False)))
    assert (reader.at_frame_end, reader.at_message_end) == (True, False)


def test_of_a_message_that_is_too_large_the_beginning_is_kept() -> None:
    reader = FrameReader(masked=False, limit=10)
    parts = [frame(TEXT, b"12345678", fin=False, masked=False)]
    parts += [frame(0, b"9" * 8, fin=False, masked=False)] * 50
    parts.append(frame(0, b"", masked=False))
    (message,) = reader.feed(b"".join(parts))
    assert (message.data, message.head) == (None, b"12345678" + b"9" * 400)
    (next_message,) = reader.feed(frame(TEXT, b"x", masked=False))
    assert next_message.data == b"x"


@pytest.mark.parametrize(
    "wrong",
    [
        frame(3, masked=False),  # an opcode that is not defined
        frame(0, masked=False),  # a continuation of nothing
        frame(TEXT, fin=False, masked=False) * 2,
        frame(TEXT, masked=True),  # a server's frames are not masked
        frame(PING, fin=False, masked=False),
        b"\xc1\x00",  # a reserved bit: an extension that was not agreed on
    ],
    ids=["opcode", "continuation", "two beginnings", "masked", "ping in parts", "reserved"],
)
def test_what_is_no_frame_is_not_read_on(wrong: bytes) -> None:
    reader = FrameReader(masked=False, limit=10)
    assert list(reader.feed(wrong + frame(TEXT, b"x", masked=False))) == []
    assert reader.broken
    assert not reader.at_frame_end


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_a_text_frame_can_be_read(masked: bool, size: int) -> None:
    (message,) = FrameReader(masked=masked, limit=size).feed(text_frame(b"x" * size, masked=masked))
    assert message.data == b"x" * size


def test_a_reason_is_cut_between_two_characters() -> None:
    written = Close(1012, "ä" * 100).frame(masked=False)
    (message,) = FrameReader(masked=False, limit=10).feed(written)
    assert message.opcode == CLOSE
    assert close_code(message.head) == 1012
    assert message.head[2:].decode() == "ä" * 61
    assert close_code(b"") == 1005


def test_the_accept_of_the_standards_example() -> None:
    assert accept_of("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


# --- events --------------------------------------------------------------------------------------


def read(event: Any) -> SocketEvent | None:
    return read_event(json.dumps(event).encode(), b"")


REALTIME_USAGE = {
    "total_tokens": 30,
    "input_tokens": 20,
    "output_tokens": 10,
    "input_token_details": {
        "text_tokens": 8,
        "audio_tokens": 12,
        "cached_tokens": 5,
        "cached_tokens_details": {"text_tokens": 2, "audio_tokens": 3},
    },
    "output_token_details": {"text_tokens": 4, "audio_tokens": 6},
}


def test_a_realtime_response_reports_text_and_sound() -> None:
    response = {"id": "resp_1", "status": "completed", "usage": REALTIME_USAGE}
    usage = Usage(
        *(20, 10, 30),
        cached=5,
        audio_prompt=12,
        audio_completion=6,
        cached_audio=3,
        prompt_split=True,
        completion_split=True,
        cached_split=True,
    )
    extracted = ExtractedUsage(usage, None, None, terminal=True)
    found = read({"type": "response.done", "response": response})
    assert found == SocketEvent("ended", "resp_1", extracted=extracted)


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_a_response_of_the_responses_api_ends_with_its_usage(kind: str) -> None:
    usage = {"input_tokens": 2, "output_tokens": 3, "total_tokens": 5}
    response = {"id": "resp_1", "model": "m-2026", "status": kind, "usage": usage}
    found = read({"type": f"response.{kind}", "response": response})
    assert found is not None
    assert (found.kind, found.id, found.model) == ("ended", "resp_1", "m-2026")
    assert found.extracted.usage == Usage(2, 3, 5)
    assert found.extracted.error == (kind == "failed")


def test_a_transcription_reports_tokens_or_seconds() -> None:
    kind = "conversation.item.input_audio_transcription.completed"
    for usage, expected in (
        ({"type": "duration", "seconds": 2.5}, Usage(0, 0, 0, seconds=2.5)),
        (
            {"type": "tokens", "input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
            Usage(5, 2, 7),
        ),
    ):
        found = read({"type": kind, "item_id": "i", "transcript": "x", "usage": usage})
        assert found is not None
        assert (found.kind, found.extracted.usage) == ("transcribed", expected)


@pytest.mark.parametrize(
    "session",
    [
        {"audio": {"input": {"transcription": {"model": "whisper-1"}}}},
        {"input_audio_transcription": {"model": "whisper-1"}},
    ],
)
@pytest.mark.parametrize("kind", ["session.created", "transcription_session.updated"])
def test_a_session_names_its_models(kind: str, session: dict[str, Any]) -> None:
    found = read({"type": kind, "session": {"model": "gpt-realtime", **session}})
    assert found == SocketEvent("session", model="gpt-realtime", transcriber="whisper-1")


@pytest.mark.parametrize(
    "session", [None, "x", {"model": 7}, {"audio": {"input": {"transcription": None}}}]
)
def test_a_session_may_name_no_model(session: Any) -> None:
    assert read({"type": "session.updated", "session": session}) == SocketEvent("session")


@pytest.mark.parametrize("kind", ["session.updated", "response.created", "response.done"])
def test_what_a_client_has_put_into_a_session_is_not_decoded(kind: str) -> None:
    """The provider repeats it: decoded it would take more than twenty times its size."""
    inner = {"id": "r", "model": "m", "tools": [[]] * 100_000}
    text = json.dumps({"type": kind, "session": inner, "response": inner}).encode()
    tracemalloc.start()
    try:
        found = read_event(text, b"")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found.model == "m"
    assert peak < 4 * len(text)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.output_audio.delta", "delta": "AAAA"},
        {"type": "conversation.item.added", "item": {"text": '"type": "response.done"'}},
        {"type": 7, "response": {"type": "response.done"}},
        {"type": "else", "inner": {"type": "response.done"}},
    ],
)
def test_other_events_say_nothing_of_use(event: Any) -> None:
    assert read(event) is None


@pytest.mark.parametrize(
    ("text", "head", "reason"),
    [
        (b'{"type": "response.done", "response": {"usage": ', b"", "unreadable"),
        (b'{"type": "response.done", "response": {"usage": {"input_tokens": -1}}}', b"", None),
        (b'{"type": "response.done", "response": {}}', b"", "no_usage"),
        (None, b'{"type": "response.done", "response": {', "too_large"),
    ],
)
def test_an_end_without_a_usage_has_a_reason(
    text: bytes | None, head: bytes, reason: str | None
) -> None:
    found = read_event(text, head)
    assert found is not None
    assert (found.kind, found.extracted.usage) == ("ended", None)
    assert found.extracted.reason == (reason or "unreadable")


def test_of_a_large_message_only_an_end_counts() -> None:
    assert read_event(None, b'{"type": "response.output_audio.delta", "delta": "AA') is None


# --- the handshake -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1/realtime", "/realtime"),
        ("/openai/v1/Realtime/", "/realtime"),
        ("/v1/responses;x", "/responses"),
        ("/v1/respons%65s", "/responses"),
        ("/v1/responses/resp_1", None),
        ("/v1/chat/completions", None),
    ],
)
def test_the_sockets_are_found_as_endpoints_are(target: str, path: str | None) -> None:
    found = find_socket(target)
    assert (found.path if found else None) == path


def test_a_key_among_the_subprotocols_is_a_bearer() -> None:
    assert authorization_of("realtime, openai-insecure-api-key.sk-1 ,x") == "Bearer sk-1"
    assert authorization_of("realtime") is None
    assert authorization_of("openai-insecure-api-key.a,openai-insecure-api-key.b") is None


@pytest.mark.parametrize(
    ("query", "model", "changed"),
    [
        ("?model=a&x=1", "a", "?model=b%2F1&x=1"),
        ("?x=%20&Model=a%2Fb", "a/b", "?x=%20&Model=b%2F1"),
        ("?x=1", None, "?x=1"),
        ("", None, "?"),
    ],
)
def test_the_model_of_a_query_can_be_changed(query: str, model: str | None, changed: str) -> None:
    assert model_of(query) == model
    assert with_query_model(query, "b/1") == changed


def test_a_request_without_an_upgrade_is_no_handshake() -> None:
    environ = {"REQUEST_METHOD": "GET", "HTTP_UPGRADE": "websocket"}
    assert asked_for(environ, "/v1/realtime") is None
    environ["HTTP_CONNECTION"] = "keep-alive, Upgrade"
    with pytest.raises(errors.UpgradeRequired):  # there is no socket that could be taken over
        asked_for(environ, "/v1/realtime")
