"""Moves the events of a stream in the event loop: one read from the provider, one write down.

What it saves: a third of an event that comes alone. The request's greenlet sleeps meanwhile; no
event wakes it, is taken out of its chunk and put into another one, or is decoded.

Invariant: only what needs no thought is moved: whole chunks (RFC 9112 section 7.1) of whole events
that say nothing of use, which the client takes at once. Anything else is left for the greenlet as
if it had not been read: another framing, an event of interest, the end, a failure. Time limits, the
client's leaving and a drain end the wait as they end any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from wrapper.formats.http1 import NOTHING_THERE, READ_SIZE, ChunkedBody, size_of_chunks
from wrapper.metering.stream import StreamExtractor
from wrapper.runtime import RequestContext

clock = time.perf_counter

FEW: Final = 2  # events moved before something else came
MAX_VAIN: Final = 8  # waits in a row that have moved no more


class Client(Protocol):
    """The response as the server sends it, in chunks."""

    @property
    def send_now(self) -> Callable[[bytes], int]:
        """Sends what the system takes without waiting: how many bytes. Raises OSError."""

    def send_rest(self, rest: bytes) -> None:
        """Send what that has left. Raises OSError."""


class Pump:
    """Moves the events of one stream. `busy` are the seconds that it has worked, or waited for the
    client, in its last `move`.
    """

    __slots__ = (
        *("_body", "_client", "_connection", "_extractor", "_moved", "_passes", "_receive"),
        *("_record", "_rest", "_scope", "_send", "_size", "_vain", "busy"),
    )

    def __init__(
        self, context: RequestContext, body: ChunkedBody, extractor: StreamExtractor, client: Client
    ) -> None:
        self._record = context.record
        self._scope = context.scope
        self._body = body
        self._connection = body.connection
        self._extractor = extractor
        self._client = client
        # What is called for each event, looked up once.
        self._passes = extractor.passes
        self._send = client.send_now
        self._rest = b""  # of what was sent last: what the client did not take at once
        self._moved = 0  # events, and bytes of the body
        self._size = 0
        self._vain = 0
        self.busy = 0.0

    def move(self) -> None:
        """Move what comes, until there is something to read that cannot be moved.

        Raises Interrupted, and OSError where the client fails.
        """
        self._moved, self._size, self.busy = 0, 0, 0.0
        receive = self._connection.receive_now
        if receive is None or self._vain > MAX_VAIN or self._scope.client_left:
            return
        if not (self._body.is_between_chunks and self._extractor.is_between_events):
            return
        self._receive = receive
        try:
            while True:
                self._scope.wait_for(self._connection.sock, self._arrived)
                if not self._rest:
                    break
                self._wait_for_client()
        finally:
            self._record.bytes_out += self._size
        self._vain = 0 if self._moved > FEW else self._vain + 1

    def _wait_for_client(self) -> None:
        rest, self._rest, began = self._rest, b"", clock()
        try:
            self._client.send_rest(rest)
        finally:
            waited = clock() - began
            self._record.waited_for_client += waited
            self.busy += waited

    def _arrived(self) -> bool:
        """Runs in the event loop: move what has arrived. Whether the greenlet has to go on."""
        began = clock()
        try:
            data = self._receive(READ_SIZE)
        except NOTHING_THERE:
            return False
        except OSError:  # reading once more fails, too
            return True
        size = size_of_chunks(data)
        if not size or self._scope.client_left or not self._passes(data):
            self._connection.unread(data)
            return True
        self._moved += 1
        self._size += size
        try:
            sent = self._send(data)
        except OSError:  # `send_rest` raises it
            sent = 0
        self.busy += clock() - began
        if sent == len(data):
            return False
        self._rest = data[sent:]
        return True
