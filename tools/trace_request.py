"""Traces one streamed chat through the gateway and prints the map of a request.

    python tools/trace_request.py [--calls]

The application runs in this process, on gunicorn's request parser and with a real socket for its
client; the provider is the simulator. Counted are the calls of the gateway's own functions (resumed
generators and comprehensions included) from the first hook to the end of the finalization, and the
modules that they are in. The stream has a few events; what each of them costs stands apart.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections import Counter
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gevent import monkey  # noqa: E402

monkey.patch_all()

from harness import app as in_process  # noqa: E402
from harness import raw  # noqa: E402
from harness.simulator import Simulator  # noqa: E402

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

Trace = tuple[list["Call"], list[list["Call"]], list["Call"]]
Call = tuple[str, str]  # the module's file below wrapper/, the function's qualified name


class Tracer:
    """Notes the calls of the gateway's own functions."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            self.calls.append((code.co_filename[len(PACKAGE) + 1 :], code.co_qualname))


def trace() -> Trace:
    """The calls before the first byte, those of each piece of the body, those at the end."""
    with Simulator() as simulator:
        config = CONFIG.format(url=simulator.url)
        with in_process.App(config, keys={"web": {}}, env={"GROQ_API_KEY": "x"}) as app:
            request = raw.request(80, "POST", "/v1/chat/completions", BODY, key=app.secrets["web"])
            for _ in range(3):  # caches are filled, a connection to the provider is kept
                result = _handle(app, request)
    return result


def _handle(app: in_process.App, request: bytes) -> Trace:
    environ = in_process._environ(request)
    ours, theirs = socket.socketpair()
    environ["gunicorn.socket"] = SimpleNamespace(_sock=ours._sock, settimeout=ours.settimeout)
    tracer = Tracer()
    pieces: list[list[Call]] = []
    with ours, theirs:
        sys.setprofile(tracer)
        response = app.client.application.wsgi_app(environ, lambda *_: None)
        iterator, begin = iter(response), len(tracer.calls)
        before = tracer.calls[:begin]
        while next(iterator, None) is not None:
            pieces.append(tracer.calls[begin:])
            begin = len(tracer.calls)
        getattr(response, "close", lambda: None)()
        sys.setprofile(None)
    return before, pieces, tracer.calls[begin:]


def main() -> None:
    """Print the map."""
    parser = argparse.ArgumentParser(description="Trace one streamed chat.")
    parser.add_argument("--calls", action="store_true", help="print every call, in order")
    arguments = parser.parse_args()
    before, pieces, after = trace()
    everything = [*before, *(call for piece in pieces for call in piece), *after]
    if arguments.calls:
        for file, name in everything:
            print(f"{file:32} {name}")
    files = Counter(file for file, _ in everything)
    for file, count in files.items():
        print(f"{count:5}  wrapper/{file}")
    rooms = {file.partition("/")[0].removesuffix(".py") for file in files}
    print(f"{len(everything)} calls in {len(files)} files of {len(rooms)} modules:")
    print(f"{len(before)} before the first byte, {len(after)} at the end, and")
    print(f"{sum(map(len, pieces))} for {len(pieces)} pieces of the body")


if __name__ == "__main__":
    main()
