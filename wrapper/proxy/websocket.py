"""A WebSocket between a client and a provider: bytes both ways as they came, use read beside them.

    request's greenlet   the 101 goes down, then it watches: idle, deadline, drain, the end
      ├─ down            provider → client; each message read for what was used (`socket_usage`)
      └─ up              client → provider; held and read where it decides (`socket_messages`)

Each direction ends with a Close frame, which the other side answers, or with its connection. Where
the gateway ends the session itself it sends a Close frame to both sides, between two frames:

======  ===========================================================================
code    why
======  ===========================================================================
1001    nothing passed for `idle_timeout`, or the session has lasted `total_timeout`
1002    bytes that are no WebSocket frames, from a client whose messages are read
1008    a limit or a budget of the key has no room for more, or the key is revoked
1009    a message that is read is larger than `max_body_bytes`
1011    the provider's connection broke off
1012    the worker stops: connect again
1013    the store of limits is out of reach, or the worker has no memory for a message
======  ===========================================================================

Invariant: what passes is what came, byte for byte, and nothing is ever put inside of a frame.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from os import urandom
from typing import Any, Final, NamedTuple

import msgspec

from wrapper import errors
from wrapper.auth import Principal
from wrapper.cancellation import DRAINED, Beside, Interrupted, yield_if_due
from wrapper.capacity import Holding
from wrapper.endpoints import OTHER
from wrapper.formats import websocket
from wrapper.formats.websocket import Close, FrameReader, Message, Opcode, close_code, text_frame
from wrapper.metering import ExtractedUsage
from wrapper.proxy.admit import with_rate_limits
from wrapper.proxy.body import SMALL, close_after
from wrapper.proxy.forward import Forwarded
from wrapper.proxy.handshake import check_accepted
from wrapper.proxy.request import ProxyRequest
from wrapper.proxy.response import StreamedResponse, stream
from wrapper.proxy.socket_messages import Messages
from wrapper.proxy.socket_usage import SocketUsage
from wrapper.runtime import RequestContext

READ_SIZE: Final = 65536
SLICE: Final = 4096  # bytes whose frames are read in one go
MAX_MESSAGE: Final = 16 << 20  # bytes of a provider's message that are kept to be read
MAX_WAITING: Final = 64  # frames of the gateway's own that wait for the end of a message
CLOSING: Final = 10.0  # seconds for the answer to a Close frame that one side has sent
HALF_CLOSED: Final = 10.0  # seconds that one side may go on after the other has gone
CLOSED: Final = 0.5  # seconds for the answers to the gateway's own Close frames
# Close codes with which a provider says that it has failed (RFC 6455 section 7.4, IANA).
_FAILURES: Final = frozenset({1002, 1011, 1012, 1013, 1014})

# What servers respond with that have no WebSocket there: uvicorn 403, others 404, 405, …
_UNKNOWN_HERE: Final = frozenset({200, 400, 403, 404, 405, 422, 501})

clock = time.perf_counter


def relay(
    context: RequestContext,
    principal: Principal,
    request: ProxyRequest,
    forwarded: Forwarded,
    *,
    routed: bool,
    path: str | None = None,
) -> StreamedResponse:
    """The client's 101 for that of a provider, or the response with which it refuses.

    Raises UpstreamProtocolError for a 101 that is not valid, and UpgradeRequired where HTTP will
    do: a provider that knows no WebSockets has many ways to say so, and clients would try again.
    """
    record, response = context.record, forwarded.response
    if response.status != 101:
        if request.endpoint.creates is None or response.status not in _UNKNOWN_HERE:
            return stream(context, request, forwarded)
        response.close()
        raise errors.UpgradeRequired(
            f"Provider {forwarded.attempt.upstream.provider.name!r} refused the WebSocket handshake"
            f" with status {response.status}: use HTTP."
        )
    try:
        check_accepted(context.environ, response.headers)
    except errors.UpstreamError as error:
        response.close()
        record.upstream_failed(error.reason)
        raise
    record.status = response.status
    record.upstream_request_id = response.request_id
    credential = forwarded.attempt.credential
    if credential is not None:
        context.runtime.capacity.newcomers.accepted(context.scope, credential)
    close_after(context.environ)  # what follows the session is no HTTP
    down = [*response.headers]
    if record.lease is not None:
        down = with_rate_limits(down, record.lease.standings)
    down += [("Upgrade", "websocket"), ("Connection", "upgrade")]
    if not response.request_id:
        down.append(("x-request-id", record.request_id))
    down.append(("x-wrapper-provider", forwarded.attempt.upstream.provider.name))
    down.append(("Server-Timing", record.server_timing()))
    messages = Messages(context, principal, request, forwarded, routed=routed, path=path)
    usage = SocketUsage(context, principal, request, forwarded)
    body = SocketBody(context, principal, forwarded, messages, usage)
    return StreamedResponse(body, "101 Switching Protocols", down)


class _End(NamedTuple):
    """Why the gateway ends a session, for its clients and for the log."""

    close: Close
    code: str


class Direction:
    """The way to one side. A frame of the gateway's own waits until a message has ended, a Close
    frame until a frame has.
    """

    def __init__(self, send: Callable[[bytes], object], reader: FrameReader) -> None:
        self.reader = reader
        self._send = send
        self._lock = threading.Lock()
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._over = False  # the gateway has sent its Close frame
        self.sent = 0
        self.ended = ""  # why nothing more comes: "close", "eof", "gone", "stuck" or "gateway"
        self.code = 0  # of the Close frame

    def forward(self, data: bytes) -> list[Message]:
        """Send bytes as they came; the messages that are whole with them. Raises OSError."""
        with self._lock:
            self._write(data)
            messages = [message for part in _slices(data) for message in self.reader.feed(part)]
            self._write_waiting()
        return messages

    def forward_read(self, data: bytes) -> None:
        """Send whole messages that have been read before."""
        with self._lock:
            self._write(data)

    def insert(self, frame: bytes, *, close: bool = False, whole: bool = False) -> None:
        """Send a frame of the gateway's own, now or when it may. `whole`: only whole messages are
        sent in this direction. A Close frame does not wait for a side that takes nothing.
        """
        if not self._lock.acquire(timeout=CLOSED if close else -1):
            return
        try:
            if close and self._waiting:
                self._write_waiting(whole=whole)
                self._waiting.clear()  # what needs the end of a message must not hold up the end
            self._waiting.append((frame, close))
            self._write_waiting(whole=whole)
        finally:
            self._lock.release()

    @property
    def is_full(self) -> bool:
        """Whether as many frames wait as may."""
        return len(self._waiting) >= MAX_WAITING

    def _write(self, data: bytes) -> None:
        if data and not self._over:
            self._send(data)
            self.sent += len(data)

    def _write_waiting(self, *, whole: bool = False) -> None:
        while self._waiting:
            frame, close = self._waiting[0]
            free = self.reader.at_frame_end if close else self.reader.at_message_end
            if not (free or whole):
                return
            self._waiting.popleft()
            self._write(frame)
            self._over = self._over or close


class SocketBody:
    """The 101's body: the session. An object with `close()`, as every response's body is."""

    def __init__(
        self,
        context: RequestContext,
        principal: Principal,
        forwarded: Forwarded,
        messages: Messages,
        usage: SocketUsage,
    ) -> None:
        server = context.snapshot.settings.server
        self._context = context
        self._response = forwarded.response
        self._provider = forwarded.attempt.upstream.provider
        self._client: Any = context.environ["gunicorn.socket"]
        self._messages = messages
        self._usage = usage
        self._limit = server.max_body_bytes
        quota, memory = context.runtime.capacity.memory, server.body_memory_bytes
        self._memory = Holding(quota, principal.name, memory)  # of the client's message
        self._read_memory = Holding(quota, principal.name, memory)  # of the provider's
        peer = forwarded.response.connection
        kept = self._limit if messages.are_read else 0
        self._down = Direction(self._client.sendall, FrameReader(masked=False, limit=MAX_MESSAGE))
        self._up = Direction(peer.sock.sendall, FrameReader(masked=True, limit=kept))
        self._pumps = Beside(self._pump_down, self._pump_up)
        self._last = clock()  # when bytes passed last
        self._end: _End | None = None
        self._steps = iter((self._begin, self._relay))
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._steps)()

    def _begin(self) -> bytes:
        """Nothing: with it the head goes down."""
        return b""

    def _relay(self) -> bytes:
        """The session, until it has ended."""
        began = clock()
        self._context.scope.stop_watching()
        try:
            with self._pumps as pumps:
                self._watch(pumps)
                self._finish(pumps)
        finally:
            self._context.record.upstream += clock() - began
        if self._down.ended != "close" and not self._down.reader.at_frame_end:
            raise ConnectionResetError(errno.ECONNRESET, "the session broke off within a frame")
        raise StopIteration

    # --- the two directions ------------------------------------------------------------------

    def _pump_down(self) -> None:
        connection = self._response.connection
        for data in self._pieces(connection.receive, self._down):
            for message in self._moved(self._down, data):
                if message.opcode is Opcode.CLOSE:
                    return
                error = self._usage.read(message)
                if error is not None:  # what still comes is booked, too
                    self._stop(self._down, websocket.POLICY, error)
            if not self._has_room(self._read_memory, self._down.reader.kept):
                self._down.reader.drop()
            if self._down.ended == "stuck":
                return

    def _pump_up(self) -> None:
        early: bytes = getattr(self._context.environ["wsgi.input"], "take_buffered", bytes)()
        pieces = self._pieces(lambda: self._client.recv(READ_SIZE), self._up, early)
        if self._messages.are_read:
            self._pump_read(pieces)
            return
        for data in pieces:
            self._moved(self._up, data)
            if self._up.ended:
                return

    def _pump_read(self, pieces: Iterator[bytes]) -> None:
        """As `_pump_up`, where a message is sent on only when it is whole and has been read."""
        reader, held, passed = self._up.reader, bytearray(), 0
        for piece in pieces:
            for data in _slices(piece):
                held += data
                for message in reader.feed(data):
                    size = message.end - passed
                    self._send_on(message, bytes(held[:size]))
                    del held[:size]
                    passed = message.end
                    if self._up.ended:
                        return
            if reader.broken:
                self._stop(self._up, websocket.PROTOCOL_ERROR, None)
            elif reader.at_message_end:  # a ping, for example
                self._checked(bytes(held))
                passed += len(held)
                held.clear()
            self._hold(len(held))
            if self._up.ended:
                return

    def _hold(self, size: int) -> None:
        """Hold so many bytes of a message that is not whole yet."""
        if size > self._limit + SMALL:
            self._stop(self._up, websocket.TOO_BIG, None)
        elif not self._has_room(self._memory, size):
            self._stop(self._up, websocket.TRY_LATER, None)

    def _has_room(self, memory: Holding, size: int) -> bool:
        """Whether so many bytes can be held; a message that has ended holds nothing."""
        if size <= SMALL:
            memory.release()
            return True
        return size <= memory.size or memory.take(size - memory.size)

    def _send_on(self, message: Message, raw: bytes) -> None:
        """Send a whole message to the provider, unless it asks for what the client may not have."""
        if message.opcode is Opcode.CLOSE:
            self._checked(raw)
            self._close_passed(self._up, message)
            return
        if message.data is None:
            self._stop(self._up, websocket.TOO_BIG, None)
            return
        try:
            checked = self._messages.check(message)
        except errors.GatewayError as error:
            self._usage.refused(error)
            self._down.insert(_error_event(error))
            if self._down.is_full:  # the provider's message does not end
                self._stop(self._up, websocket.TRY_LATER, None)
            return
        if checked.creates:
            self._usage.asks(checked.model, checked.output_fields)
        self._checked(raw if checked.text is None else text_frame(checked.text, masked=True))

    def _checked(self, data: bytes) -> None:
        try:
            self._up.forward_read(data)
        except OSError:
            self._up.ended = self._up.ended or "stuck"

    def _pieces(
        self, receive: Callable[[], bytes], direction: Direction, early: bytes = b""
    ) -> Iterator[bytes]:
        """The bytes of one side as they come, until it ends."""
        if early:
            yield early
        while True:
            try:
                data = receive()
            except TimeoutError:  # `_watch` says for how long nothing may come
                continue
            except OSError:
                direction.ended = direction.ended or "gone"
                return
            if not data:
                direction.ended = direction.ended or "eof"
                return
            self._last = clock()
            yield data
            yield_if_due()

    def _moved(self, direction: Direction, data: bytes) -> list[Message]:
        """Send bytes on; the messages that are whole with them."""
        try:
            messages = direction.forward(data)
        except OSError:
            direction.ended = direction.ended or "stuck"
            return []
        for message in messages:
            if message.opcode is Opcode.CLOSE:
                self._close_passed(direction, message)
        return messages

    def _close_passed(self, direction: Direction, message: Message) -> None:
        direction.ended = direction.ended or "close"
        direction.code = close_code(message.data or b"")

    def _stop(self, direction: Direction, code: int, error: errors.GatewayError | None) -> None:
        """The gateway ends the session because of what came in this direction."""
        direction.ended = direction.ended or "gateway"
        if isinstance(error, errors.StoreUnavailable):
            code = websocket.TRY_LATER
        if error is not None:
            self._end = self._end or _End(Close(code, f"{error.code}: {error.message}"), error.code)
        else:
            reason, name = _REASONS[code]
            self._end = self._end or _End(Close(code, reason), name)
        self._pumps.notice()

    # --- the session as a whole --------------------------------------------------------------

    def _watch(self, pumps: Beside) -> None:
        """Wait until a direction has ended, or the session has to end."""
        idle = self._provider.idle_timeout
        while not (self._down.ended or self._up.ended):
            left = self._last + idle - clock()
            if left <= 0:
                self._end = _End(
                    Close(websocket.GOING_AWAY, f"nothing passed for {idle:g} s"), "idle_timeout"
                )
                return
            try:
                with self._context.scope:
                    pumps.wait(left)
            except Interrupted as interruption:
                self._end = self._interrupted(interruption.reason)
                return

    def _interrupted(self, reason: str) -> _End:
        if reason == DRAINED:
            self._context.record.drained()
            return _End(Close(websocket.RESTART, "service restart: connect again"), "overloaded")
        limit = f"the session has lasted {self._provider.total_timeout:g} s"
        return _End(Close(websocket.GOING_AWAY, limit), "total_timeout")

    def _finish(self, pumps: Beside) -> None:
        """What is left to do once a direction has ended, or the session has to end."""
        record, up, down = self._context.record, self._up, self._down
        if self._end is None and down.ended in ("eof", "gone") and not up.ended:
            record.failed(errors.UpstreamInterrupted.reason)
            reason = "the provider's connection broke off"
            self._end = _End(Close(websocket.INTERNAL, reason), errors.UpstreamInterrupted.code)
        if self._end is not None:
            record.error_code = record.error_code or self._end.code
            if self._end.close.code in (websocket.PROTOCOL_ERROR, websocket.TOO_BIG):
                record.cut_off(self._end.code, by_client=True)
            elif self._end.close.code in (websocket.POLICY, websocket.TRY_LATER):
                record.cut_off(self._end.code)
            self._close_both(self._end.close)
            self._wait(pumps, CLOSED)
        elif "close" in (up.ended, down.ended):
            if down.code in _FAILURES and not up.ended:
                record.failed(errors.UpstreamInterrupted.reason)
            self._wait(pumps, CLOSING)
        else:  # the client has gone, or takes nothing
            record.aborted()
            with contextlib.suppress(OSError):
                if up.ended == "eof" and self._response.connection.half_close():
                    self._wait(pumps, HALF_CLOSED)

    def _close_both(self, close: Close) -> None:
        """Tell both sides, where their bytes stand between two frames now or in a moment."""
        whole = self._messages.are_read
        for side, direction, masked in (
            (self._client, self._down, False),
            (self._response.connection.sock, self._up, True),
        ):
            side.settimeout(CLOSED)
            with contextlib.suppress(OSError):
                direction.insert(close.frame(masked=masked), close=True, whole=whole and masked)

    def _wait(self, pumps: Beside, seconds: float) -> None:
        """Let both directions come to their end, unless the worker cannot wait."""
        with contextlib.suppress(Interrupted), self._context.scope:
            pumps.wait(seconds, for_all=True)

    def close(self) -> None:
        """Finalize the responses that are open; the socket's record is complete. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        record = self._context.record
        self._context.scope.close()
        self._memory.release()
        self._read_memory.release()
        self._response.close()
        record.bytes_in, record.bytes_out = self._up.sent, self._down.sent
        nothing = ExtractedUsage(None, None, None)
        ended = next(self._steps, None) is None  # else the head could not be sent
        record.completed(nothing, OTHER, ended=ended, metering=False)
        self._usage.end(record)


def _slices(data: bytes) -> Iterator[bytes]:
    """The bytes in parts that are read without holding up the others, however small the frames."""
    for start in range(0, len(data), SLICE):
        yield data[start : start + SLICE]
        yield_if_due()


_REASONS: Final = {
    websocket.PROTOCOL_ERROR: ("these are no WebSocket frames", "websocket_protocol_error"),
    websocket.TOO_BIG: ("the message is larger than max_body_bytes", "request_too_large"),
    websocket.TRY_LATER: ("the gateway has no room for the message", "overloaded"),
}


def _error_event(error: errors.GatewayError) -> bytes:
    """An event that tells the client why a message of theirs was not sent on."""
    event = {
        "type": "error",
        "event_id": "event_" + urandom(12).hex(),
        "status": error.status,
        "error": {
            "type": error.type,
            "code": error.code,
            "message": error.message,
            "param": error.param,
        },
    }
    return text_frame(msgspec.json.encode(event), masked=False)
