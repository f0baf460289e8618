"""One call to a provider and back: ask, pass on, and settle once whatever happens.

The algorithm in reading order: for each target of the route, send the call and wait for the
first byte of the answer; a failure before that byte goes on to the next target, where one is
left and nothing was given away yet. Then the answer's bytes pass through a tap, which reads use
beside them, to the caller. `close()` is called by the server at the end, at a break and when
nothing was ever iterated (HEAD); it settles.

The rules protected here:

* Bytes go down as they came, as soon as they came.
* An answer that broke off never looks whole: the connection is cut, a stream says why first.
* A POST is sent once to a provider; it is sent to the next one only before the first byte.
* Nothing is counted before the end, and everything is counted at the end, once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from wrapper import errors
from wrapper import record as outcomes
from wrapper.cancellation import CLIENT_GONE, DRAINED, Interrupted, Watch, take_turns
from wrapper.metering import UsageExtractor
from wrapper.metering.usage import ABORTED, TRUNCATED
from wrapper.proxy.request import Call, RawBody, Spooled
from wrapper.record import MAX_NAME, RequestRecord, is_providers_failure
from wrapper.upstream import Answer, Upstream, headers_up

clock = time.perf_counter

# How an event's blank line ends, and what comes before the first event.
_ENDS = (b"\n\n", b"\r\n", b"\r\r", b"")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One target of a call: who, where, and in which words."""

    upstream: Upstream
    target: str  # raw path and query on the provider's origin
    model: str  # the model's name at this provider, empty where the call names none
    rename: bool = False  # the body's model has to be changed to `model`
    credential: str | None = None  # the caller's own Authorization, in place of the gateway's
    ask_usage: bool = False  # the stream reports its use only when asked, and nobody asked


class Relayed:
    """A provider's answer on its way down: an iterable of bytes that settles in `close()`.

    `in_words`: where it breaks off an event says so. (Not so among compressed bytes, nor where it
    would fill up a length that was promised.)
    """

    def __init__(
        self,
        record: RequestRecord,
        answer: Answer,
        first: bytes,
        tap: UsageExtractor,
        watch: Watch,
        settle: Callable[[Relayed], None],
        *,
        in_words: bool,
    ) -> None:
        self.record = record
        self.tap = tap
        self.ended = answer.complete and not first
        if self.ended:
            tap.flush()
        self._answer = answer
        self._first = first
        self._watch = watch
        self._settle: Callable[[Relayed], None] | None = settle
        self._in_words = in_words
        self._broken = False
        self._tail = b""  # how what was sent last ends
        self._moved = 0  # bytes since the others had their turn
        self._handed_over = 0.0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        record = self.record
        self._taken()
        try:
            data = self._next()
        except (errors.UpstreamError, errors.Cancelled) as error:
            data = self._break(error)
        record.bytes_out += len(data)
        self._tail = data[-2:]
        self._moved = take_turns(self._moved + len(data))
        self._handed_over = clock()
        return data

    def _taken(self) -> None:
        """What was handed over last has been sent, or will never be: its time is the caller's."""
        if self._handed_over:
            self.record.waited_for_client += clock() - self._handed_over
            self._handed_over = 0.0

    def _next(self) -> bytes:
        """The next bytes for the caller, never empty; StopIteration at the clean end."""
        if self.ended:
            raise StopIteration
        if self._broken:
            # gunicorn cuts the connection on this, without a final chunk and without a word.
            raise ConnectionResetError(errno.ECONNRESET, "the answer broke off")
        data, self._first = self._first, b""
        while True:
            if not data and not self._answer.complete:
                data = self._read()
            out = self.tap.feed(data) if data else b""
            if self._answer.complete:
                self.ended = True
                out += self.tap.flush()
            if out:
                return out
            if self.ended:
                raise StopIteration
            data = b""

    def _read(self) -> bytes:
        began = clock()
        try:
            with self._watch:
                return self._answer.read1()
        except Interrupted as interruption:
            raise _interrupted(self.record, interruption.reason) from None
        finally:
            self.record.upstream += clock() - began

    def _break(self, error: errors.GatewayError) -> bytes:
        """The answer broke off. A stream is told so in a last event, anything else is just cut."""
        record = self.record
        self._broken = True
        if isinstance(error, errors.UpstreamError):
            record.outcome = outcomes.UPSTREAM_ERROR
            record.upstream_errors.append((record.provider, error.reason))
        gone = record.outcome == outcomes.CLIENT_ABORT
        record.error_code = error.code if gone else errors.UpstreamInterrupted.code
        if gone or not self._in_words:
            raise ConnectionResetError(errno.ECONNRESET, "the answer broke off") from None
        last = errors.UpstreamInterrupted(error.message)
        # A half-sent event must not swallow the last one.
        between = b"" if self._tail in _ENDS else b"\n\n"
        return between + b"data: " + last.body() + b"\n\n"

    def close(self) -> None:
        """Give the connection back or cut it, and settle. Safe to repeat."""
        settle, self._settle = self._settle, None
        if settle is None:
            return
        self._taken()
        self._watch.stop()
        self._answer.close()
        if not self.ended and not self.record.outcome:
            self.record.outcome = outcomes.CLIENT_ABORT
        settle(self)


def ask(
    record: RequestRecord, call: Call, attempts: list[Attempt], watch: Watch
) -> tuple[Attempt, Answer, bytes]:
    """Send the call to the first target that answers; its answer and the body's first bytes.

    Raises UpstreamError when none did, ClientGone when the caller left meanwhile.
    """
    headers = headers_up(call.environ)
    for attempt in attempts[:-1]:
        try:
            answer, first = _attempt(record, call, attempt, headers, watch)
        except errors.UpstreamError as error:
            if _is_spent(call) or not _leads_on(error):
                raise
            continue
        if not is_providers_failure(answer.status) or _is_spent(call):
            return attempt, answer, first
        answer.close()
    attempt = attempts[-1]
    return attempt, *_attempt(record, call, attempt, headers, watch)


def _attempt(
    record: RequestRecord, call: Call, attempt: Attempt, headers: dict[str, str], watch: Watch
) -> tuple[Answer, bytes]:
    provider = attempt.upstream.provider
    record.provider, record.model = provider.name, attempt.model[:MAX_NAME]
    record.relayed = True
    began = clock() - call.waited  # an upload that flows through waits for its sender
    try:
        answer, first = _send(record, call, attempt, headers, watch)
    except errors.UpstreamError as error:
        record.upstream_errors.append((provider.name, error.reason))
        raise
    finally:
        took = clock() - began - call.waited
        record.upstream += took
    record.ttft = took
    if is_providers_failure(answer.status):
        record.upstream_errors.append((provider.name, f"status_{answer.status}"))
    if answer.status == 401 and attempt.credential is None:
        answer.close()
        record.upstream_errors.append((provider.name, errors.UpstreamAuth.reason))
        raise errors.UpstreamAuth(
            f"Provider {provider.name!r} refused the gateway's own credential."
        )
    watch.deadline(provider.total_timeout - took)
    if not answer.complete and watch.idle(provider.idle_timeout):
        answer.patience(None)
    return answer, first


def _send(
    record: RequestRecord, call: Call, attempt: Attempt, headers: dict[str, str], watch: Watch
) -> tuple[Answer, bytes]:
    provider = attempt.upstream.provider
    if not provider.usable and attempt.credential is None:
        raise errors.UpstreamAuth(
            f"The gateway has no credential for provider {provider.name!r}: "
            f"{provider.api_key_problem}.",
            sent=False,
        )
    patience = provider.connect_timeout + provider.first_byte_timeout
    if isinstance(call.body, RawBody):  # the caller's time to send it is not the provider's
        watch.deadline(provider.total_timeout + call.body_seconds)
    else:
        watch.deadline(min(patience, provider.total_timeout))
    body, headers = call.body_for(
        attempt.model if attempt.rename else None, headers, ask_usage=attempt.ask_usage
    )
    try:
        with watch:
            answer = attempt.upstream.send(
                call.method, attempt.target, headers, body, attempt.credential
            )
            return answer, _first_bytes(answer)
    except Interrupted as interruption:
        raise _interrupted(record, interruption.reason) from None


def _first_bytes(answer: Answer) -> bytes:
    """The first bytes of the body: an answer that breaks off before them was none at all."""
    try:
        return b"" if answer.complete else answer.read1()
    except errors.UpstreamInterrupted as error:
        answer.close()
        raise errors.UpstreamProtocolError(error.message) from error
    except BaseException:
        answer.close()
        raise


def _leads_on(error: errors.UpstreamError) -> bool:
    """Whether the next target may be asked: nothing was sent, or the provider is too slow.

    An answer that is none leaves open what was done with the call.
    """
    return not error.sent or isinstance(error, errors.UpstreamTimeout)


def _interrupted(record: RequestRecord, reason: str) -> errors.GatewayError:
    """What the end of a wait means."""
    if reason == CLIENT_GONE:
        record.outcome = outcomes.CLIENT_ABORT
        return errors.ClientGone("The caller has left.")
    if reason == DRAINED:
        record.outcome = outcomes.DRAINED
        return errors.Drained()
    return errors.UpstreamTimeout("The provider did not answer in the time allowed.")


def _is_spent(call: Call) -> bool:
    """Whether the body has flowed by and cannot be sent again."""
    return isinstance(call.body, RawBody) and call.body.received > 0


def read_use(relayed: Relayed, *, used: bool, expected: bool) -> None:
    """Take over into the record what the tap has read.

    `used`: the call itself uses something. (What a GET shows of a stored answer was counted when it
    was made.) `expected`: it should tell what, so that a missing use is counted.
    """
    record = relayed.record
    reading = relayed.tap.extracted()
    if used and reading.usage is not None:
        record.usage = reading.usage
        # A call may leave the model to the provider, as one of a stored prompt does.
        record.model = record.model or (reading.model or "")[:MAX_NAME]
    if reading.error and relayed.ended and record.status < 300:
        record.outcome = outcomes.UPSTREAM_ERROR
        record.upstream_errors.append((record.provider, "error_event"))
    if reading.usage is None and expected and 200 <= record.status < 300:
        cut_here = record.outcome in (outcomes.CLIENT_ABORT, outcomes.DRAINED)
        record.unmetered = reading.reason if relayed.ended else ABORTED if cut_here else TRUNCATED


def release(call: Call) -> None:
    """Give back what the body holds."""
    body: Any = call.body
    if isinstance(body, Spooled):
        body.close()
