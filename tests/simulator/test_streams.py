"""How streams are written: line ends, cuts, compression, stamps. The events stay the same."""

from __future__ import annotations

import json
import re
import time
import zlib
from typing import TYPE_CHECKING, Any

import brotli
import pytest

from harness import raw

if TYPE_CHECKING:
    from harness.simulator import Simulator

SAID = ["This", " is", " a", " simulated", " answer"]


def stream(
    simulator: Simulator, instructions: str, path: str = "/v1/chat/completions"
) -> raw.Answer:
    body = json.dumps(
        {
            "model": "m",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": "hello"}],
        }
    ).encode()
    headers = (("x-sim", f"events=5; {instructions}"),)
    return raw.post(simulator.port, path, body, headers=headers)


def payloads(body: bytes) -> list[Any]:
    """The data of all events, read as the WHATWG's rules say."""
    text = re.sub(r"\r\n|\r", "\n", body.decode())
    found = []
    for event in text.split("\n\n"):
        data = [line[5:].removeprefix(" ") for line in event.split("\n") if line[:5] == "data:"]
        if data and data != ["[DONE]"]:
            found.append(json.loads("\n".join(data)))
    return found


def said(body: bytes) -> list[str]:
    deltas = [e["choices"][0]["delta"] for e in payloads(body) if e["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


@pytest.mark.parametrize(
    "instructions",
    ["crlf", "cr", "comment", "comment=2; crlf", "no-space", "multi-data", "split; crlf"],
)
def test_every_spelling_has_the_same_events(simulator: Simulator, instructions: str) -> None:
    answer = stream(simulator, instructions)
    assert said(answer.body) == SAID
    assert payloads(answer.body)[-1]["usage"]["completion_tokens"] == 5


def test_the_spellings_differ(simulator: Simulator) -> None:
    assert b"\r\n\r\n" in stream(simulator, "crlf").body
    assert b"\r\r" in stream(simulator, "cr").body
    assert stream(simulator, "comment").body.count(b": keep-alive\n\n") == 9
    assert b"data:{" in stream(simulator, "no-space").body
    assert b"data: {\ndata: " in stream(simulator, "multi-data").body
    assert b"[DONE]" not in stream(simulator, "no-done").body


def test_split_sends_end_in_the_middle_of_events(simulator: Simulator) -> None:
    answer = stream(simulator, "split")
    assert said(answer.body) == SAID
    inner = [chunk for _, chunk in answer.chunks][:-2]
    assert all(not chunk.endswith(b"\n\n") or chunk.count(b"\n\n") != 1 for chunk in inner)


def test_merged_sends_hold_several_events(simulator: Simulator) -> None:
    answer = stream(simulator, "merge=4")
    assert said(answer.body) == SAID
    assert [chunk.count(b"\n\n") for _, chunk in answer.chunks] == [4, 4, 1]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_stream_can_be_read_event_by_event(
    simulator: Simulator, encoding: str
) -> None:
    answer = stream(simulator, f"encoding={encoding}")
    assert answer.header("content-encoding") == encoding
    reader: Any = brotli.Decompressor() if encoding == "br" else zlib.decompressobj(wbits=47)
    read = reader.process if encoding == "br" else reader.decompress
    pieces = [read(chunk) for _, chunk in answer.chunks]
    assert said(b"".join(pieces)) == SAID
    assert all(piece.count(b"\n\n") == 1 for piece in pieces[:9])


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_whole_answer_is_compressed_too(simulator: Simulator, encoding: str) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
    headers = (("x-sim", f"encoding={encoding}"),)
    answer = raw.post(simulator.port, "/v1/chat/completions", body, headers=headers)
    plain = brotli.decompress(answer.body) if encoding == "br" else zlib.decompress(answer.body, 47)
    assert json.loads(plain)["object"] == "chat.completion"


def test_stamps_give_the_time_each_event_was_sent(simulator: Simulator) -> None:
    begun = time.time()
    stamps = [event["sim_t"] for event in payloads(stream(simulator, "stamp; gap=0.02").body)]
    assert begun <= stamps[0]
    assert stamps[-1] <= time.time()
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] > 0.02 * (len(stamps) - 1) - 0.01


def test_pieces_can_be_made_long(simulator: Simulator) -> None:
    assert {len(piece) for piece in said(stream(simulator, "size=5000").body)} == {5000}


def test_each_path_has_its_own_dialect(simulator: Simulator) -> None:
    groq = stream(simulator, "", "/openai/v1/chat/completions")
    assert groq.header("content-type") == "text/event-stream"
    assert "x_groq" in payloads(groq.body)[0]
    ours = stream(simulator, "style=openai", "/openai/v1/chat/completions")
    assert ours.header("content-type") == "text/event-stream; charset=utf-8"
    assert "x_groq" not in payloads(ours.body)[0]


def test_a_stream_without_a_length_still_comes_event_by_event(simulator: Simulator) -> None:
    body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
    headers = (("x-sim", "framing=no-length; stall=3"),)  # after the third nothing more comes
    asked = raw.request(simulator.port, "POST", "/v1/chat/completions", body, headers=headers)
    with raw.Connection(simulator.port).send(asked) as connection:
        answer = connection.read_head()
        pieces = connection.body(answer)
        while answer.body.count(b"\n\n") < 3:
            next(pieces)
    assert answer.header("transfer-encoding") is None
