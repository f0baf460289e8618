"""A stream that breaks off ends with an error event of its own."""

from __future__ import annotations

import gc
import json
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from wrapper import errors
from wrapper.cancellation import CancelScope, Scopes
from wrapper.endpoints import OTHER
from wrapper.formats import sse
from wrapper.metering import NullExtractor
from wrapper.proxy.response import StreamingBody
from wrapper.record import RequestRecord


class Broken:
    """A response of these pieces that then breaks off."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.body = SimpleNamespace(complete=False)
        self._pieces = iter(pieces)

    def read1(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise errors.UpstreamInterrupted("The response broke off.")


def sent(pieces: list[bytes]) -> bytes:
    """What a client gets of such a response, up to where the connection is cut."""
    made: Any = SimpleNamespace(record=RequestRecord("POST"), scope=CancelScope(Scopes(), None))
    forwarded: Any = SimpleNamespace(attempt=None, response=Broken(pieces), first=b"")
    request: Any = None
    body = StreamingBody(made, request, forwarded, NullExtractor(), error_event=True)
    down: list[bytes] = []
    with pytest.raises(ConnectionResetError):
        down.extend(body)
    return b"".join(down)


def test_what_served_a_stream_is_freed_without_a_garbage_collection() -> None:
    """Thousands of streams that end at the same moment would be hundred thousands of objects."""
    record = RequestRecord("POST")
    record.stream = True
    request: Any = SimpleNamespace(named_model="", endpoint=OTHER)
    server = SimpleNamespace(metering=False)
    made: Any = SimpleNamespace(
        record=record,
        scope=CancelScope(Scopes(), None),
        snapshot=SimpleNamespace(settings=SimpleNamespace(server=server)),
    )
    response = SimpleNamespace(body=SimpleNamespace(complete=False), close=lambda: None)
    forwarded: Any = SimpleNamespace(attempt=None, response=response, first=b": comment\n\n")
    body = StreamingBody(made, request, forwarded, NullExtractor(), error_event=True)
    next(body)  # no content has come
    body.close()
    left = weakref.ref(body)
    gc.disable()
    try:
        del body
        assert left() is None
    finally:
        gc.enable()


def data_of(stream: bytes) -> list[bytes]:
    found = [sse.payload(span.raw, first=not n) for n, span in enumerate(sse.Reader().feed(stream))]
    return [data for data in found if data is not None]


@pytest.mark.parametrize("pieces", [1, 3, 1000], ids=lambda size: f"{size} bytes a piece")
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["lf", "cr", "crlf"])
@pytest.mark.parametrize(
    ("events", "whole"),
    [
        ([], 0),
        ([b"data: 1", b""], 1),
        ([b"data: 1", b"", b"data: 2"], 2),
        ([b"data: 1", b"", b"data: 2", b""], 2),
    ],
    ids=["nothing", "an event", "one line of the second", "two events"],
)
def test_a_half_sent_event_does_not_swallow_the_error_event(
    events: list[bytes], whole: int, end: bytes, pieces: int
) -> None:
    stream = b"".join(line + end for line in events)
    down = sent([stream[at : at + pieces] for at in range(0, len(stream), pieces)])
    assert down.startswith(stream)
    *before, last = data_of(down)
    assert before == [b"1", b"2"][:whole]
    assert json.loads(last)["error"]["code"] == "upstream_interrupted"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["lf", "cr", "crlf"])
def test_nothing_is_put_between_a_whole_event_and_the_error_event(end: bytes) -> None:
    for stream in (b"", b"data: 1" + end + end):
        assert sent([stream] if stream else []).startswith(stream + b'data: {"error"')
