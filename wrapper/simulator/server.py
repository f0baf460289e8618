"""Connections and the life of one request: read, understand, answer, send, enter in the books."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import time
from typing import Any

import msgspec
from gevent.server import StreamServer

from wrapper.simulator.answers.call import Call, Pace
from wrapper.simulator.answers.shelf import Shelf
from wrapper.simulator.answers.table import find
from wrapper.simulator.books import Books, Record
from wrapper.simulator.caller import Caller
from wrapper.simulator.control import control
from wrapper.simulator.faults import BadOrder, Orders, orders, split_model
from wrapper.simulator.form import form_for
from wrapper.simulator.http import BadRequest, Connection, Intake, Left, Request
from wrapper.simulator.replies import Refusal, Reply, error_body, json_reply
from wrapper.simulator.shaping import shaped
from wrapper.simulator.ticker import Ticker
from wrapper.simulator.wire import Broken, Sending

_DRAIN_SECONDS = 2.0


class Simulator:
    """The provider: its habits, its books and its listening socket."""

    def __init__(
        self, host: str, port: int, pace: Pace, *, api_key: str, orders: str, remember: int
    ) -> None:
        self.pace = pace
        self.books = Books(remember)
        self._api_key = api_key
        self._orders = orders
        self._ticker = Ticker()
        self._shelf = Shelf()
        listener = socket.create_server((host, port), backlog=4096)
        listener.setblocking(False)
        self.port: int = listener.getsockname()[1]
        self._server: Any = StreamServer(listener, self._connection)
        self._server.max_accept = 1000

    def serve_forever(self) -> None:
        """Serve until `stop`."""
        self._server.serve_forever(stop_timeout=0)

    def start(self) -> None:
        """Begin to accept connections."""
        self._server.start()

    def stop(self) -> None:
        """Stop listening and end `serve_forever`."""
        self._server.stop(timeout=0)

    def _connection(self, sock: socket.socket, _address: object) -> None:
        self.books.connections += 1
        self.books.accepted += 1
        number = self.books.accepted
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock)
        try:
            while True:
                try:
                    request = connection.head()
                except BadRequest:
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    return
                if request is None or not self._exchange(connection, request, number):
                    return
                connection.served += 1
        except OSError:
            return
        finally:
            self.books.connections -= 1
            sock.close()

    def _exchange(self, connection: Connection, request: Request, number: int) -> bool:
        if request.path.startswith("/_sim/"):
            return self._control(connection, request)
        record = Record(
            id=secrets.token_hex(12),
            request=request,
            connection=number,
            nth=connection.served,
            begun=time.time(),
        )
        self.books.begin(record)
        caller = Caller(connection.sock, self._ticker)
        try:
            reusable = self._answer(connection, caller, request, record)
            record.outcome = "completed"
        except Left:
            record.outcome, record.noticed = "aborted", time.time()
            reusable = False
        except (Broken, BadRequest):
            record.outcome = "broken"
            reusable = False
        finally:
            caller.done()
            record.bytes = caller.sent
            self.books.end(record)
        return reusable

    def _answer(
        self, connection: Connection, caller: Caller, request: Request, record: Record
    ) -> bool:
        try:
            early = orders(self._orders, request.header("x-sim"))
            problem = None
        except BadOrder as found:
            early, problem = Orders(), found
        if early.early_413:
            return self._refuse_early(connection, caller, request, record, early)
        if request.header("expect").lower() == "100-continue":
            caller.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        call = self._understand(connection, request, record, early)
        try:
            if problem is not None:
                raise problem
            reply = self._reply(call, record)
        except BadOrder as found:
            reply = Refusal(400, str(found)).reply()
        except Refusal as refusal:
            reply = refusal.reply()
        return self._send(connection, caller, call, record, reply)

    def _understand(
        self, connection: Connection, request: Request, record: Record, early: Orders
    ) -> Call:
        """Read the body and make the call of it; orders in the body are not yet in force."""
        kind = request.header("content-type")
        form = form_for(kind)
        keep = early.echo == "raw" or "json" in kind.lower() or not kind
        intake = Intake(keep)
        for block in connection.body(request):
            intake.take(block)
            if form is not None:
                form.take(block)
        intake.finish(request)
        record.book = request.header("x-sim-book")
        return Call(
            id=record.id,
            request=request,
            orders=early,
            groq=False,
            pace=self.pace,
            json={},
            parts=form.parts if form else [],
            shelf=self._shelf,
        )

    def _reply(self, call: Call, record: Record) -> Reply:
        answer, record.endpoint, call.arguments, call.groq = find(
            call.request.method, call.request.path
        )
        self._read_body(call, record)
        if call.orders.style:
            call.groq = call.orders.style == "groq"
        given = call.request.header("authorization")
        if self._api_key and not hmac.compare_digest(
            given.encode("latin-1"), f"Bearer {self._api_key}".encode()
        ):
            raise Refusal(401, "Incorrect API key provided.")
        if call.orders.status is not None and call.orders.status >= 400:
            return Reply()
        if call.orders.echo:
            answer, _, _, _ = find("GET", "/_echo")
        return answer(call)

    def _read_body(self, call: Call, record: Record) -> None:
        """Find the JSON, the model and the orders that stand in the body."""
        body: Any = None
        if record.endpoint != "echo" and call.request.body:
            try:
                body = msgspec.json.decode(call.request.body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise Refusal(400, "We could not parse the JSON body of your request.") from None
        call.json = body if isinstance(body, dict) else {}
        model = call.json.get("model") or call.form("model")
        if not model and record.endpoint.startswith(("engines/", "models/")):
            model = call.arguments[0]
        call.model, in_model = split_model(model if isinstance(model, str) else "")
        in_body = call.json.get("x_sim") or call.form("x_sim")
        record.model = call.model
        user = call.json.get("user") or call.form("user")
        record.book = record.book or (user if isinstance(user, str) else "")
        if in_model or in_body:
            call.orders = orders(
                self._orders,
                in_model,
                in_body if isinstance(in_body, str) else "",
                call.request.header("x-sim"),
            )
        record.book = call.orders.book or record.book

    def _send(
        self,
        connection: Connection,
        caller: Caller,
        call: Call,
        record: Record,
        reply: Reply,
    ) -> bool:
        ordered = call.orders
        if ordered.close_on_receipt == "always" or (
            ordered.close_on_receipt == "kept" and connection.served
        ):
            raise Broken
        if ordered.stall_before:
            caller.stall()
        caller.pause(self.pace.latency if ordered.delay is None else ordered.delay)
        reply = shaped(reply, ordered, f"req_{call.id}")
        record.unsent = reply.planned
        record.stream = reply.events is not None
        record.status = reply.status
        gap = self.pace.gap if ordered.gap is None else ordered.gap
        sending = Sending(caller, ordered, record, gap)
        return sending.send(reply, call.request)

    def _refuse_early(
        self,
        connection: Connection,
        caller: Caller,
        request: Request,
        record: Record,
        early: Orders,
    ) -> bool:
        """Answer 413 while the body is still coming, and take no more of it."""
        reply = json_reply(error_body(413), status=413)
        record.status = 413
        Sending(caller, early, record, 0).send(shaped(reply, early, f"req_{record.id}"), request)
        sock = connection.sock
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(_DRAIN_SECONDS)
            while sock.recv(65536):
                pass
        return False

    def _control(self, connection: Connection, request: Request) -> bool:
        for _ in connection.body(request):
            pass
        status, body = control(self.books, request)
        connection.sock.sendall(
            b"HTTP/1.1 %d Simulated\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (status, len(body), body)
        )
        return True
