"""The listening socket, its connections, and the handling of one request: read, respond, record.

Each connection has one greenlet and one request at a time.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent import ssl
from gevent.server import StreamServer

from wrapper.simulator.api.call import Call, ObjectStore, Pace
from wrapper.simulator.api.models import check_model
from wrapper.simulator.api.routes import Match, find
from wrapper.simulator.client import Client, TimerWheel
from wrapper.simulator.http import (
    BadRequest,
    BodyReader,
    ClientGone,
    Connection,
    Request,
    multipart_reader,
)
from wrapper.simulator.instructions import BadInstruction, Instructions, parse, split_model
from wrapper.simulator.ledger import Ledger, Record, control
from wrapper.simulator.response import ApiError, Response, apply, error_body, json_response
from wrapper.simulator.sending import Broken, Sender
from wrapper.simulator.sockets import Session, accepted, asks_for_socket

_BACKLOG = 4096
_ACCEPTED_AT_ONCE = 1000
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n"
    b"Connection: close\r\n\r\nBad request\n"
)
_DRAIN_SECONDS = 2.0
_READ_STALL_SECONDS = 4.0


@dataclass(slots=True)
class Provider:
    """What all requests share: options, ledger, created objects, timers."""

    pace: Pace
    ledger: Ledger
    api_key: str = field(default="", repr=False)
    admin_key: str = field(default="", repr=False)  # of the organization's APIs; none: api_key
    instructions: str = ""
    any_model: bool = False
    echo: bool = True  # of requests for paths that are not in the API; else 404
    objects: ObjectStore = field(default_factory=ObjectStore)
    timers: TimerWheel = field(default_factory=TimerWheel)


class Handler:
    """One request on one connection."""

    def __init__(self, provider: Provider, connection: Connection, request: Request) -> None:
        self._provider = provider
        self._connection = connection
        self._request = request
        self._client = Client(connection.sock, provider.timers)
        self._instructions = Instructions()
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
        self._provider.ledger.begin(record)
        reusable = False
        try:
            reusable = self._serve()
            record.outcome = "completed"
        except ClientGone:
            record.outcome, record.noticed = "aborted", time.time()
        except (Broken, BadRequest):
            record.outcome = "broken"
        finally:
            self._client.done()
            record.bytes = self._client.sent
            self._provider.ledger.end(record)
        return reusable

    def _serve(self) -> bool:
        response: Response | None = None
        try:
            self._instructions = parse(self._provider.instructions, self._request.header("x-sim"))
        except BadInstruction as problem:
            response = _error(problem)
        if self._instructions.early_413:
            return self._refuse_early()
        if self._request.header("expect").lower() == "100-continue":
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        found = find(self._request.method, self._request.path)
        self._record.endpoint = found.endpoint
        call = self._read(found)
        if asks_for_socket(self._request):
            return self._open_socket(found, call)
        if response is None:
            try:
                response = self._response(found, call)
            except (ApiError, BadInstruction) as problem:
                response = _error(problem)
        return self._send(response)

    def _open_socket(self, found: Match, call: Call) -> bool:
        """Serve a WebSocket to its end, unless it is to be refused."""
        record, wanted = self._record, self._instructions
        record.endpoint = self._request.path.rstrip("/").rpartition("/")[2]
        record.model, in_model = split_model(self._request.query.get("model", ""))
        self._request.query["model"] = record.model
        if in_model:
            wanted = self._instructions = parse(
                self._provider.instructions, in_model, self._request.header("x-sim")
            )
        try:
            self._check_key(found)
        except ApiError as problem:
            return self._send(_error(problem))
        if wanted.status is not None:
            return self._send(Response())
        if wanted.stall_before:
            self._client.stall()
        self._client.done()
        self._client.send(accepted(self._request, f"req_{record.id}", wrong=wanted.wrong_accept))
        record.status = 101
        sock, pace = self._connection.sock, self._provider.pace
        session = Session(sock, record, self._provider.ledger, pace, wanted, call)
        outcome = session.run(self._connection.rest())
        if outcome == "aborted":
            raise ClientGone
        if outcome == "broken":
            raise Broken
        return False

    def _read(self, found: Match) -> Call:
        """Read the body. It is kept only where the response needs it as a whole."""
        request = self._request
        form = multipart_reader(request.header("content-type"))
        echoed = found.endpoint == "echo"
        reader = BodyReader(keep=self._instructions.echo == "raw" or not (form or echoed))
        for block in self._connection.body(request):
            reader.take(block)
            if form is not None:
                form.take(block)
            self._delay_reading(reader.length)
        reader.finish(request)
        self._record.book = request.header("x-sim-book")
        return Call(
            id=self._record.id,
            request=request,
            instructions=self._instructions,
            groq=found.groq,
            pace=self._provider.pace,
            json={},
            parts=form.parts if form else [],
            objects=self._provider.objects,
            ledger=self._provider.ledger,
            arguments=found.arguments,
        )

    def _delay_reading(self, taken: int) -> None:
        """Read slowly, or stop reading, as instructed."""
        stall, gap = self._instructions.read_stall, self._instructions.read_gap
        if stall is not None and taken >= stall:
            self._client.stall_reading(self._instructions.delay or _READ_STALL_SECONDS)
            self._client.reset()
            raise Broken
        if gap:
            gevent.sleep(gap)

    def _response(self, found: Match, call: Call) -> Response:
        self._check_key(found)
        if found.endpoint != "echo":
            call.json = _json_object(call)
        self._read_body_fields(call)
        if self._instructions.status is not None and self._instructions.status >= 400:
            return Response()
        if self._instructions.echo:
            return find("GET", "/").respond(call)
        if found.endpoint == "echo" and not self._provider.echo:
            method, target = self._request.method, self._request.target
            message = f"Unknown request URL: {method} {target[:100]}."
            raise ApiError(404, message, "unknown_url")
        if found.endpoint != "echo" and not self._provider.any_model:
            check_model(call)
        try:
            return found.respond(call)
        except (LookupError, TypeError, AttributeError, ArithmeticError) as problem:
            # The types of the fields are not checked beforehand: a wrong one shows here.
            raise ApiError(400, f"Invalid request: {type(problem).__name__}.") from problem

    def _check_key(self, found: Match) -> None:
        key = self._provider.api_key
        if found.endpoint.startswith("organization/"):
            key = self._provider.admin_key or key
        given, expected = self._request.header("authorization"), f"Bearer {key}"
        if found.endpoint.startswith("messages"):
            given, expected = self._request.header("x-api-key"), key
        if key and not hmac.compare_digest(given.encode("latin-1"), expected.encode()):
            raise ApiError(401, "Incorrect API key provided.")

    def _read_body_fields(self, call: Call) -> None:
        """Take the model, the book and further instructions from the body."""
        record = self._record
        model = _text(call.json.get("model")) or call.form("model")
        if record.endpoint.startswith(("deployments/", "engines/", "models/")):
            model = model or "/".join(call.arguments)
        call.model, in_model = split_model(model)
        in_body = _text(call.json.get("x_sim")) or call.form("x_sim")
        if in_model or in_body:
            in_header = self._request.header("x-sim")
            self._instructions = parse(self._provider.instructions, in_model, in_body, in_header)
        call.instructions = self._instructions
        if self._instructions.style:
            call.groq = self._instructions.style == "groq"
        record.model = call.model
        user = _text(call.json.get("user")) or call.form("user")
        record.book = call.book = self._instructions.book or record.book or user

    def _send(self, response: Response) -> bool:
        wanted, record, pace = self._instructions, self._record, self._provider.pace
        kept = self._connection.served > 0
        if wanted.close_on_receipt == "always" or (wanted.close_on_receipt and kept):
            raise Broken
        if wanted.stall_before:
            self._client.stall()
        self._client.pause(pace.latency if wanted.delay is None else wanted.delay)
        response = apply(wanted, response, f"req_{record.id}")
        record.unsent = response.planned
        record.status, record.parts = response.status, response.parts
        record.tier = wanted.tier or ""
        record.stream = response.events is not None
        gap = pace.gap if wanted.gap is None else wanted.gap
        self._connection.idle = wanted.idle_close
        return Sender(self._client, wanted, record, gap).send(response, self._request)

    def _refuse_early(self) -> bool:
        """Respond with 413 while the body still arrives, and discard the rest of it."""
        self._send(json_response(error_body(413), status=413))
        sock = self._connection.sock
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(_DRAIN_SECONDS)
            while sock.recv(65536):
                pass
        return False


def _error(problem: ApiError | BadInstruction) -> Response:
    status, code = (problem.status, problem.code) if isinstance(problem, ApiError) else (400, None)
    return json_response(error_body(status, str(problem), code=code), status=status)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _json_object(call: Call) -> dict[str, Any]:
    """The JSON object of the body, empty if there is no body."""
    if not call.request.body:
        return {}
    try:
        body = msgspec.json.decode(call.request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request.")
    return body


class Simulator:
    """The provider on its socket, with TLS if there is a certificate (a PEM file with its key).

    Raises OSError when it cannot listen, or cannot read the certificate.
    """

    def __init__(
        self, host: str, port: int, provider: Provider, certificate: Path | None = None
    ) -> None:
        self._provider = provider
        self._tls: Any = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._ledger: Ledger = provider.ledger
        listener = socket.create_server((host, port), backlog=_BACKLOG)
        listener.setblocking(False)
        self.port: int = listener.getsockname()[1]
        self._server: Any = StreamServer(listener, self._connection)
        self._server.max_accept = _ACCEPTED_AT_ONCE

    def start(self) -> None:
        """Begin to accept connections."""
        self._server.start()

    def serve_forever(self) -> None:
        """Serve until `stop`."""
        self._server.serve_forever(stop_timeout=0)

    def stop(self) -> None:
        """Stop listening and end `serve_forever`."""
        self._server.stop(timeout=0)

    def _connection(self, sock: socket.socket, _address: object) -> None:
        ledger = self._ledger
        ledger.connections += 1
        ledger.accepted += 1
        number = ledger.accepted
        try:
            with contextlib.suppress(OSError, ClientGone):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                connection = Connection(sock, number)
                while self._serve(connection):
                    connection.served += 1
        finally:
            ledger.connections -= 1
            sock.close()

    def _serve(self, connection: Connection) -> bool:
        """Serve one request; returns whether the connection may be used again."""
        try:
            request = connection.head()
        except BadRequest:
            connection.sock.sendall(_BAD_REQUEST)
            return False
        if request is None:
            return False
        if request.path.startswith("/_sim/"):
            return self._control(connection, request)
        return Handler(self._provider, connection, request).run()

    def _control(self, connection: Connection, request: Request) -> bool:
        for _ in connection.body(request):
            pass
        status, body = control(self._ledger, request)
        connection.sock.sendall(
            b"HTTP/1.1 %d Simulated\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (status, len(body), body)
        )
        return True
