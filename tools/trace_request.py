"""Traces one streamed chat through the gateway and prints the map of a request.

    python tools/trace_request.py [--calls]

The application runs in this process, on gunicorn's request parser and with a real socket for its
client. Counted are the calls of the gateway's own functions (resumed generators and comprehensions
included) from the first hook to the end of the finalization, and the modules that they are in.

So that the count depends on no clock, the provider is a socket of this program, which sends the
whole response in one write: its events leave the gateway as one piece. A second trace sends each
event by itself, after the piece before it has left, and shows what one more costs. Both are made
several times, and the one with the fewest calls is taken: what is done once a second, or when the
machine has stopped for a while, is not part of a request.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gevent.socket  # noqa: E402

from harness import app as in_process  # noqa: E402
from harness import raw  # noqa: E402
from wrapper.output import Output  # noqa: E402

PACKAGE = str(ROOT / "wrapper")
CONFIG = """\
[providers.groq]
base_url = "{url}/openai/v1"
api_key = {{ env = "GROQ_API_KEY" }}

[[routes]]
model = "*"
targets = ["groq"]
"""
BODY = b'{"model": "openai/gpt-oss-20b", "stream": true, "max_tokens": 2, "messages": [%b]}' % (
    b'{"role": "user", "content": "Say hello."}'
)
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-request-id: req_1\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)
_CHUNK = b'{"id": "chatcmpl-1", "model": "openai/gpt-oss-20b", "choices": [%b], %b}'
EVENTS = [
    _CHUNK % (b'{"delta": {"role": "assistant", "content": ""}}', b'"x_groq": {"id": "req_1"}'),
    _CHUNK % (b'{"delta": {"content": "Hello"}}', b'"x_groq": null'),
    _CHUNK % (b'{"delta": {"content": "."}}', b'"x_groq": null'),
    _CHUNK
    % (
        b'{"delta": {}, "finish_reason": "stop"}',
        b'"usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}',
    ),
    b"[DONE]",
]
REPEATS = 5
# The steps of `wrapper.proxy`, with the functions that make them.
STEPS = {
    ("proxy/__init__.py", "begin"): "`begin`",
    ("proxy/__init__.py", "authenticate"): "`authenticate`",
    ("proxy/request.py", "read_request"): "`read_request`",
    ("proxy/targets.py", "resolve"): "`resolve`",
    ("proxy/admit.py", "admit"): "`admit`",
    ("proxy/forward.py", "forward"): "`forward`",
    ("proxy/response.py", "stream"): "`stream`",
    ("proxy/response.py", "StreamingBody.__next__"): "its body",
    ("proxy/finalize.py", "finalize"): "`finalize`",
}
APPLICATION = "application"


class Call(NamedTuple):
    """One call: the step that it is part of, the file below wrapper/, the function's name."""

    step: str
    file: str
    name: str

    @property
    def module(self) -> str:
        """As in the table of ranks."""
        return self.file.partition("/")[0].removesuffix(".py")


class Tracer:
    """Notes the calls of the gateway's own functions."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._step = APPLICATION
        self._frame: FrameType | None = None  # that of the step

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "return" and frame is self._frame:
            self._step, self._frame = APPLICATION, None
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        file, name = code.co_filename[len(PACKAGE) + 1 :], code.co_qualname
        if self._frame is None and (file, name) in STEPS:
            self._step, self._frame = STEPS[file, name], frame
        self.calls.append(Call(self._step, file, name))


class Provider:
    """Sends `begin` to each request on its one connection, and then what it is told to."""

    def __init__(self) -> None:
        self.begin = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sock = self._listener  # until there is a connection
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._sock, _ = self._listener.accept()
        data = b""
        while more := self._sock.recv(65536):
            data += more
            if data.endswith(b"]}"):
                data = b""
                self._sock.sendall(self.begin)

    def send(self, data: bytes) -> None:
        """Send more of a response."""
        self._sock.sendall(data)

    def close(self) -> None:
        """End the thread, when the gateway has closed its connection."""
        self._thread.join()
        self._sock.close()
        self._listener.close()


def trace(*, apart: bool = False) -> list[list[Call]]:
    """The calls before the first byte, those of each piece of the body, those at the end.

    `apart`: each event is a piece of its own.
    """
    events = [b"data: %b\n\n" % event for event in EVENTS]
    pieces = [*events[:-2], b"".join(events[-2:])] if apart else [b"".join(events)]
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    chunks[-1] += b"0\r\n\r\n"
    provider = Provider()
    provider.begin = HEAD + chunks[0]
    config = CONFIG.format(url=provider.url)
    with (
        in_process.App(config, keys={"web": {}}, env={"GROQ_API_KEY": "x"}) as app,
        Path(os.devnull).open("wb") as nowhere,
    ):
        app.runtime.telemetry.log._output = Output(nowhere.fileno())
        request = raw.request(80, "POST", "/v1/chat/completions", BODY, key=app.secrets["web"])
        _handle(app, request, provider, chunks[1:])  # caches are filled, a connection is kept
        runs = [_handle(app, request, provider, chunks[1:]) for _ in range(REPEATS)]
    provider.close()
    return min(runs, key=lambda run: sum(map(len, run)))


def _handle(
    app: in_process.App, request: bytes, provider: Provider, chunks: list[bytes]
) -> list[list[Call]]:
    environ = in_process._environ(request)
    ours, theirs = gevent.socket.socketpair()
    environ["gunicorn.socket"] = ours
    environ["wsgi.input"].has_come = True  # as the worker's own `Input` says of a small body
    tracer = Tracer()
    counts: list[int] = []
    rest = iter(chunks)
    with ours, theirs:
        sys.setprofile(tracer)
        response = app.client.application.wsgi_app(environ, lambda *_: None)
        iterator = iter(response)
        counts.append(len(tracer.calls))
        while next(iterator, None) is not None:
            counts.append(len(tracer.calls))
            provider.send(next(rest, b""))
        getattr(response, "close", lambda: None)()
        sys.setprofile(None)
    ends = [*counts, len(tracer.calls)]
    return [tracer.calls[start:end] for start, end in zip([0, *counts], ends, strict=True)]


def table(calls: list[Call]) -> str:
    """The map: calls and modules by step, in Markdown."""
    lines = ["| step | calls | modules |", "| --- | ---: | --- |"]
    for step in dict.fromkeys([APPLICATION, *STEPS.values()]):
        its = [call for call in calls if call.step == step]
        modules = ", ".join(f"`{module}`" for module in dict.fromkeys(call.module for call in its))
        lines.append(f"| {step} | {len(its)} | {modules} |")
    return "\n".join(lines)


def main() -> None:
    """Print the map."""
    parser = argparse.ArgumentParser(description="Trace one streamed chat.")
    parser.add_argument("--calls", action="store_true", help="print every call, in order")
    arguments = parser.parse_args()
    parts = trace()
    before, *pieces, after = parts
    calls = [call for part in parts for call in part]
    if arguments.calls:
        for call in calls:
            print(f"{call.step:16} {call.file:32} {call.name}")
    files, modules = Counter(call.file for call in calls), {call.module for call in calls}
    for file, count in files.items():
        print(f"{count:5}  wrapper/{file}")
    print(table(calls))
    print(f"{len(calls)} calls in {len(files)} files of {len(modules)} modules:")
    print(f"{len(before)} before the first byte, {sum(map(len, pieces))} for the events in one")
    print(f"piece, {len(after)} at the end; an event that comes later costs", end=" ")
    print(f"{len(trace(apart=True)[3])} more.")


if __name__ == "__main__":
    main()
