"""WebSockets: the Realtime API and the Responses API, with the instructions of `x-sim`.

Each response and each transcription is a record of its own in the ledger (endpoints
`realtime/response`, `realtime/transcription`, `responses/response`), beside that of the connection.
Instructions come with the handshake; those in an event's field `x_sim` override them.

Invariant: usage counts as sent once the system has taken the last byte of the event that carries
it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gevent
import msgspec
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping, TextMessage
from wsproto.utilities import RemoteProtocolError

from wrapper.simulator.api import responses
from wrapper.simulator.api.call import Call, Pace, prompt_words
from wrapper.simulator.api.content import pieces
from wrapper.simulator.http import Request
from wrapper.simulator.instructions import Instructions, parse
from wrapper.simulator.ledger import Ledger, Record
from wrapper.simulator.response import ApiError, Event, Usage, encode, error_body

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BYTES_PER_SECOND = 48_000  # of 16-bit sound at 24 kHz
_CLOSE_SECONDS = 5.0


def asks_for_socket(request: Request) -> bool:
    """Whether the request is a handshake at one of the two paths."""
    name = request.path.rstrip("/").rpartition("/")[2]
    return (
        request.method == "GET"
        and request.header("upgrade").lower() == "websocket"
        and name in ("realtime", "responses")
    )


def accepted(request: Request, request_id: str, *, wrong: bool = False) -> bytes:
    """The head of the 101. `wrong`: it accepts another handshake."""
    key = b"" if wrong else request.header("sec-websocket-key").encode()
    digest = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    head = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + digest,
        b"x-request-id: " + request_id.encode(),
        b"openai-organization: simulated-organization",
        b"Set-Cookie: simulated=cookie; path=/; HttpOnly",
    ]
    offered = request.header("sec-websocket-protocol").split(",")[0].strip()
    if offered:
        head.append(b"Sec-WebSocket-Protocol: " + offered.encode())
    return b"\r\n".join([*head, b"", b""])


class Cut(Exception):
    """The connection ends without a Close frame, as instructed."""


class Session:
    """One open WebSocket."""

    def __init__(
        self,
        sock: socket.socket,
        record: Record,
        ledger: Ledger,
        pace: Pace,
        instructions: Instructions,
        call: Call,
    ) -> None:
        self._sock = sock
        self._record = record
        self._ledger = ledger
        self._pace = pace
        self._instructions = instructions
        self._call = call
        self._frames = Connection(ConnectionType.SERVER)
        self._realtime = record.request.path.rstrip("/").endswith("/realtime")
        self._model = record.request.query.get("model", "")
        self._session: dict[str, Any] = {
            "id": f"sess_{record.id}",
            "object": "realtime.session",
            "type": "realtime",
            "model": self._model,
            "output_modalities": ["audio"],
        }
        self._items: list[Any] = []
        self._text: list[str] = []  # of a message that is not whole
        self._sound = 0  # bytes in the buffer
        self._count = 0

    def run(self, early: bytes) -> str:
        """Serve it to its end; the outcome for the ledger. `early`: bytes that are here already."""
        try:
            if self._realtime:
                self._send({"type": "session.created", "session": self._session})
            data = early or self._sock.recv(65536)
            while data:
                self._frames.receive_data(data)
                for event in self._frames.events():
                    if isinstance(event, Ping):
                        self._write(self._frames.send(event.response()))
                    elif isinstance(event, CloseConnection):
                        with contextlib.suppress(OSError):
                            self._write(self._frames.send(event.response()))
                        return "completed"
                    elif isinstance(event, Message):
                        self._take(event)
                data = self._sock.recv(65536)
        except Cut:
            return "broken"
        except (OSError, RemoteProtocolError):
            pass
        return "aborted"

    def _take(self, message: Message[Any]) -> None:
        if isinstance(message, TextMessage):
            self._text.append(message.data)
        if message.message_finished:
            whole, self._text = "".join(self._text), []
            self._receive(whole)

    def _receive(self, text: str) -> None:
        try:
            event = msgspec.json.decode(text)
        except msgspec.DecodeError:
            event = None
        if not isinstance(event, dict):
            self._fail(ApiError(400, "The message is not a JSON object."))
            return
        self._record.events += 1
        kind = event.get("type")
        try:
            if kind == "response.create":
                self._respond(event)
            elif self._realtime:
                self._change(str(kind), event)
            else:
                raise ApiError(400, f"Unknown event: {kind}.")
        except ApiError as problem:
            self._fail(problem)

    def _change(self, kind: str, event: dict[str, Any]) -> None:
        match kind:
            case "session.update":
                self._session |= event.get("session") or {}
                self._send({"type": "session.updated", "session": self._session})
            case "conversation.item.create":
                item = {"id": f"item_{secrets.token_hex(6)}", **(event.get("item") or {})}
                self._items.append(item)
                self._send({"type": "conversation.item.added", "item": item})
                self._send({"type": "conversation.item.done", "item": item})
            case "input_audio_buffer.append":
                try:
                    self._sound += len(base64.b64decode(event.get("audio", "")))
                except (binascii.Error, TypeError):
                    raise ApiError(400, "The audio is not base64.") from None
            case "input_audio_buffer.commit":
                self._commit()
            case _:
                raise ApiError(400, f"Unknown event: {kind}.")

    def _commit(self) -> None:
        """The sound in the buffer becomes an item, and a transcription where that is asked for."""
        seconds, self._sound = max(1, self._sound // _BYTES_PER_SECOND), 0
        item = f"item_{secrets.token_hex(6)}"
        self._items.append("sound " * seconds)
        self._send({"type": "input_audio_buffer.committed", "item_id": item})
        wanted: Any = self._session.get("audio") or {}
        transcription = (wanted.get("input") or {}).get("transcription")
        if not transcription:
            return
        model = transcription.get("model", "")
        text = "simulated words"
        kind = "conversation.item.input_audio_transcription"
        last: dict[str, Any] = {
            "type": f"{kind}.completed",
            "item_id": item,
            "content_index": 0,
            "transcript": text,
        }
        if "whisper" in model:
            usage = Usage(seconds=seconds)
            last["usage"] = {"type": "duration", "seconds": seconds}
        else:
            usage = Usage(prompt=10 * seconds, completion=2)
            last["usage"] = {
                "type": "tokens",
                "input_tokens": usage.prompt,
                "input_token_details": {"text_tokens": 0, "audio_tokens": usage.prompt},
                "output_tokens": usage.completion,
                "total_tokens": usage.prompt + usage.completion,
            }
        delta = {"type": f"{kind}.delta", "item_id": item, "content_index": 0, "delta": text}
        events = iter([Event(encode(delta)), Event(encode(last), usage)])
        self._stream(events, usage, "realtime/transcription", model, self._instructions)

    def _respond(self, event: dict[str, Any]) -> None:
        wanted = self._instructions
        inner = event.get("response") if self._realtime else event
        own = inner.pop("x_sim", "") if isinstance(inner, dict) else ""
        if own:
            wanted = replace(wanted, **_differing(parse(own)))
        self._count += 1
        call = replace(
            self._call, id=f"{self._record.id}{self._count}", instructions=wanted, json=dict(event)
        )
        if self._realtime:
            call.model = self._model
            usage = self._realtime_usage(call)
            events = self._realtime_events(call, usage)
            self._stream(events, usage, "realtime/response", self._model, wanted)
            return
        call.model = str(event.get("model", ""))
        call.json |= {"stream": True}
        made = responses.create(call)
        assert made.events is not None  # noqa: S101
        self._stream(made.events, made.planned, "responses/response", call.model, wanted)

    def _realtime_usage(self, call: Call) -> Usage:
        said = [self._session.get("instructions"), *self._items]
        return call.usage(prompt_words(*said), len(pieces(call, "")))

    def _realtime_events(self, call: Call, usage: Usage) -> Iterator[Event]:
        name = f"resp_{call.id}"
        at = {"response_id": name, "item_id": f"item_{call.id}", "output_index": 0}
        content = pieces(call, "")
        whole = "".join(content)
        item = {"id": at["item_id"], "type": "message", "role": "assistant", "status": "completed"}
        response: dict[str, Any] = {
            "id": name,
            "object": "realtime.response",
            "status": "in_progress",
            "output": [],
            "usage": None,
        }
        self._items.append(whole)
        yield Event(encode({"type": "response.created", "response": response}))
        yield Event(encode({"type": "response.output_item.added", **at, "item": item}))
        text = {**at, "content_index": 0}
        for piece in content:
            yield Event(encode({"type": "response.output_text.delta", **text, "delta": piece}))
        yield Event(encode({"type": "response.output_text.done", **text, "text": whole}))
        yield Event(encode({"type": "response.output_item.done", **at, "item": item}))
        made = {**response, "status": "completed", "output": [item]}
        carried = None if call.instructions.no_usage else usage
        if carried is not None:
            made["usage"] = _realtime_usage(carried)
        yield Event(encode({"type": "response.done", "response": made}), carried)

    def _stream(
        self,
        events: Iterator[Event],
        planned: Usage | None,
        endpoint: str,
        model: str,
        wanted: Instructions,
    ) -> None:
        """Send the events of one response, which is a record of its own."""
        record = Record(
            id=secrets.token_hex(12),
            request=self._record.request,
            connection=self._record.connection,
            nth=self._count,
            begun=time.time(),
            book=self._record.book,
            model=model,
            tier=wanted.tier or "",
            endpoint=endpoint,
            stream=True,
            status=200,
            unsent=planned,
            outcome="aborted",
        )
        gap = self._pace.gap if wanted.gap is None else wanted.gap
        self._ledger.begin(record)
        try:
            for number, event in enumerate(events):
                if number and gap:
                    gevent.sleep(gap)
                if number == wanted.cut:
                    record.outcome = "broken"
                    raise Cut
                if number == wanted.stall:
                    self._stall()
                self._write(self._frames.send(TextMessage(data=event.data.decode())))
                record.events += 1
                if event.usage is not None:
                    record.usage, record.unsent = event.usage, None
            record.outcome = "completed"
        finally:
            self._ledger.end(record)
        if wanted.close_code is not None:
            self._close(wanted.close_code)

    def _stall(self) -> None:
        """Send nothing more until the client has gone."""
        while self._sock.recv(65536):
            pass
        raise OSError("the client has gone")

    def _close(self, code: int) -> None:
        self._write(self._frames.send(CloseConnection(code=code, reason="as instructed")))
        self._sock.settimeout(_CLOSE_SECONDS)
        while self._sock.recv(65536):
            pass
        raise Cut

    def _fail(self, problem: ApiError) -> None:
        inner = error_body(problem.status, str(problem))
        self._send({"type": "error", "status": problem.status, **inner})

    def _send(self, event: dict[str, Any]) -> None:
        named = {"event_id": f"event_{secrets.token_hex(6)}", **event}
        self._write(self._frames.send(TextMessage(data=encode(named).decode())))

    def _write(self, data: bytes) -> None:
        self._sock.sendall(data)
        self._record.bytes += len(data)


def _differing(wanted: Instructions) -> dict[str, Any]:
    """The instructions that are not the default."""
    usual = Instructions()
    return {
        name: value
        for name in Instructions.__slots__
        if (value := getattr(wanted, name)) != getattr(usual, name)
    }


def _realtime_usage(usage: Usage) -> dict[str, Any]:
    """Half of the tokens that did not come from a cache are sound."""
    heard, spoken = (usage.prompt - usage.cached) // 2, usage.completion // 2
    return {
        "total_tokens": usage.prompt + usage.completion,
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "input_token_details": {
            "text_tokens": usage.prompt - heard,
            "audio_tokens": heard,
            "image_tokens": 0,
            "cached_tokens": usage.cached,
            "cached_tokens_details": {"text_tokens": usage.cached, "audio_tokens": 0},
        },
        "output_token_details": {
            "text_tokens": usage.completion - spoken,
            "audio_tokens": spoken,
        },
    }
