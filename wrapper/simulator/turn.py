"""The life of one request: read, understand, answer, send, enter in the books."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import gevent
import msgspec

from wrapper.simulator.answers.call import Call, Pace
from wrapper.simulator.answers.shelf import Shelf
from wrapper.simulator.answers.table import Found, find
from wrapper.simulator.books import Books, Record
from wrapper.simulator.caller import Caller
from wrapper.simulator.faults import BadOrder, orders, split_model
from wrapper.simulator.form import form_for
from wrapper.simulator.http import BadRequest, Connection, Intake, Left, Request
from wrapper.simulator.orders import Orders
from wrapper.simulator.replies import Refusal, Reply, error_body, json_reply
from wrapper.simulator.shaping import shaped
from wrapper.simulator.ticker import Ticker
from wrapper.simulator.wire import Broken, Sending

_DRAIN_SECONDS = 2.0
_READ_STALL_SECONDS = 4.0


@dataclass(slots=True)
class Provider:
    """What all requests share: habits, books, created objects, the clock."""

    pace: Pace
    books: Books
    api_key: str = field(default="", repr=False)
    orders: str = ""
    shelf: Shelf = field(default_factory=Shelf)
    ticker: Ticker = field(default_factory=Ticker)


class Turn:
    """One request on one connection."""

    def __init__(self, provider: Provider, connection: Connection, request: Request) -> None:
        self._provider = provider
        self._connection = connection
        self._request = request
        self._caller = Caller(connection.sock, provider.ticker)
        self._orders = Orders()
        self._record = Record(
            id=secrets.token_hex(12),
            request=request,
            connection=connection.number,
            nth=connection.served,
            begun=time.time(),
        )

    def run(self) -> bool:
        """Serve the request; returns whether the connection may be used again."""
        record = self._record
        self._provider.books.begin(record)
        reusable = False
        try:
            reusable = self._serve()
            record.outcome = "completed"
        except Left:
            record.outcome, record.noticed = "aborted", time.time()
        except (Broken, BadRequest):
            record.outcome = "broken"
        finally:
            self._caller.done()
            record.bytes = self._caller.sent
            self._provider.books.end(record)
        return reusable

    def _serve(self) -> bool:
        reply: Reply | None = None
        try:
            self._orders = orders(self._provider.orders, self._request.header("x-sim"))
        except BadOrder as problem:
            reply = Refusal(400, str(problem)).reply()
        if self._orders.early_413:
            return self._refuse_early()
        if self._request.header("expect").lower() == "100-continue":
            self._caller.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        found = find(self._request.method, self._request.path)
        self._record.endpoint = found.endpoint
        call = self._read(found)
        if reply is None:
            try:
                reply = self._reply(found, call)
            except Refusal as refusal:
                reply = refusal.reply()
            except BadOrder as problem:
                reply = Refusal(400, str(problem)).reply()
        return self._send(reply)

    def _read(self, found: Found) -> Call:
        """Take in the body. Only what an answer needs as a whole is kept."""
        request = self._request
        form = form_for(request.header("content-type"))
        echoed = found.endpoint == "echo"
        intake = Intake(keep=self._orders.echo == "raw" or not (form or echoed))
        for block in self._connection.body(request):
            intake.take(block)
            if form is not None:
                form.take(block)
            self._linger(intake.length)
        intake.finish(request)
        self._record.book = request.header("x-sim-book")
        return Call(
            id=self._record.id,
            request=request,
            orders=self._orders,
            groq=found.groq,
            pace=self._provider.pace,
            json={},
            parts=form.parts if form else [],
            shelf=self._provider.shelf,
            arguments=found.arguments,
        )

    def _linger(self, taken: int) -> None:
        """Be slow in reading, or stop, as ordered."""
        stall, gap = self._orders.read_stall, self._orders.read_gap
        if stall is not None and taken >= stall:
            self._caller.stall_reading(self._orders.delay or _READ_STALL_SECONDS)
            self._caller.reset()
            raise Broken
        if gap:
            gevent.sleep(gap)

    def _reply(self, found: Found, call: Call) -> Reply:
        self._check_key()
        if found.endpoint != "echo":
            call.json = _json_object(call)
        self._understand(call)
        if self._orders.status is not None and self._orders.status >= 400:
            return Reply()
        if self._orders.echo:
            found = find("GET", "/")
        try:
            return found.answer(call)
        except (LookupError, TypeError, AttributeError, ArithmeticError) as problem:
            # The fields are read without looking at their types first: a request that does
            # not have the right ones shows here.
            raise Refusal(400, f"Invalid request: {type(problem).__name__}.") from problem

    def _check_key(self) -> None:
        key = self._provider.api_key
        given = self._request.header("authorization")
        if key and not hmac.compare_digest(given.encode("latin-1"), f"Bearer {key}".encode()):
            raise Refusal(401, "Incorrect API key provided.")

    def _understand(self, call: Call) -> None:
        """Find the model, the book and the orders that the body names."""
        record = self._record
        model = _text(call.json.get("model")) or call.form("model")
        if record.endpoint.startswith(("engines/", "models/")):
            model = model or "/".join(call.arguments)
        call.model, in_model = split_model(model)
        in_body = _text(call.json.get("x_sim")) or call.form("x_sim")
        if in_model or in_body:
            in_header = self._request.header("x-sim")
            self._orders = orders(self._provider.orders, in_model, in_body, in_header)
        call.orders = self._orders
        if self._orders.style:
            call.groq = self._orders.style == "groq"
        record.model = call.model
        user = _text(call.json.get("user")) or call.form("user")
        record.book = self._orders.book or record.book or user

    def _send(self, reply: Reply) -> bool:
        ordered, record, pace = self._orders, self._record, self._provider.pace
        first = not self._connection.served
        if ordered.close_on_receipt == "always" or (ordered.close_on_receipt and not first):
            raise Broken
        if ordered.stall_before:
            self._caller.stall()
        self._caller.pause(pace.latency if ordered.delay is None else ordered.delay)
        reply = shaped(reply, ordered, f"req_{record.id}")
        record.unsent = reply.planned
        record.status = reply.status
        record.stream = reply.events is not None
        gap = pace.gap if ordered.gap is None else ordered.gap
        self._connection.idle = ordered.idle_close
        return Sending(self._caller, ordered, record, gap).send(reply, self._request)

    def _refuse_early(self) -> bool:
        """Answer 413 while the body is still coming, and take no more of it."""
        self._send(json_reply(error_body(413), status=413))
        sock = self._connection.sock
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(_DRAIN_SECONDS)
            while sock.recv(65536):
                pass
        return False


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _json_object(call: Call) -> dict[str, Any]:
    """The body's JSON object; nothing where there is no body."""
    if not call.request.body:
        return {}
    try:
        body = msgspec.json.decode(call.request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    return body
