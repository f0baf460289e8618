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
from typing import Final, Protocol

from wrapper.formats.http1 import ChunkedBody
from wrapper.metering.stream import StreamExtractor
from wrapper.runtime import RequestContext

clock = time.perf_counter

FEW: Final = 2  # events moved before something else came
MAX_VAIN: Final = 8  # waits in a row that have moved no more


class Client(Protocol):
    """The response as the server sends it, in chunks."""

    def send_at_once(self, data: bytes) -> bool:
        """Send what the system takes without waiting; whether that was all."""

    def send_rest(self) -> None:
        """Send what is left of that. Raises OSError."""


class Pump:
    """Moves the events of one stream. `busy` are the seconds that it has worked, or waited for the
    client, in its last `move`.
    """

    __slots__ = (
        *("_body", "_client", "_connection", "_extractor", "_is_sent", "_moved", "_record"),
        *("_scope", "_vain", "busy"),
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
        self._is_sent = True
        self._moved = 0
        self._vain = 0
        self.busy = 0.0

    def move(self) -> None:
        """Move what comes, until there is something to read that cannot be moved.

        Raises Interrupted, and OSError where the client fails.
        """
        self._moved, self.busy = 0, 0.0
        if self._vain > MAX_VAIN or self._scope.client_left or not self._connection.can_receive_now:
            return
        while True:
            self._scope.wait_for(self._connection.sock, self._arrived)
            if self._is_sent:
                break
            self._wait_for_client()
        self._vain = 0 if self._moved > FEW else self._vain + 1

    def _wait_for_client(self) -> None:
        self._is_sent, began = True, clock()
        try:
            self._client.send_rest()
        finally:
            waited = clock() - began
            self._record.waited_for_client += waited
            self.busy += waited

    def _arrived(self) -> bool:
        """Runs in the event loop: move what has arrived. Whether the greenlet has to go on."""
        began = clock()
        try:
            data = self._connection.receive_now()
        except OSError:  # reading once more fails, too
            return True
        if data is None:
            return False
        size = self._body.size_of_chunks(data)
        if not size or self._scope.client_left or not self._extractor.passes(data):
            self._connection.unread(data)
            return True
        self._moved += 1
        self._record.bytes_out += size
        self._is_sent = self._client.send_at_once(data)
        self.busy += clock() - began
        return not self._is_sent
