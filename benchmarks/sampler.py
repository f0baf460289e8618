"""A sampler inside of a worker: where the CPU time goes, by the innermost frame of a package; and
the layers that this is shown by.

Why in the process: it needs no rights and no tool, and its samples are taken by the clock of CPU
time (ITIMER_PROF), at the next point where Python looks at signals. Time in a system call or in C
counts for the function that called it.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

# The first that matches.
LAYERS = {
    "server: connections, parsing, writing": ("wrapper/server/", "gunicorn"),
    "Flask and Werkzeug": ("flask", "werkzeug", "wrapper/app.py"),
    "path of the request": (
        *("wrapper/proxy/", "wrapper/blueprints/", "wrapper/auth.py", "wrapper/routing.py"),
        *("wrapper/runtime.py", "wrapper/record.py", "wrapper/endpoints.py", "wrapper/capacity.py"),
    ),
    "upstream: head, send, receive": ("wrapper/upstream/", "wrapper/formats/http1", "requests"),
    "deadlines, waiting, event loop": ("wrapper/cancellation.py", "gevent", "greenlet"),
    "usage and price": ("wrapper/metering/", "wrapper/formats/"),
    "limits": ("wrapper/admission/",),
    "ledger and reservations": ("wrapper/store/", "redis"),
    "metrics": ("wrapper/telemetry/", "prometheus"),
}
LOG = ("wrapper/telemetry/request_log", "wrapper/output.py")
REST = "the rest"

STEP = 0.001  # seconds of CPU time; the kernel may take its own tick, up to 0.004

_samples: Counter[str] = Counter()


def place(frame: FrameType | None) -> str:
    """`package/module.py:function` of the innermost frame that is no standard library.

    What gevent does for a function (sending, receiving) counts for that function.
    """
    waiting = ""
    while frame is not None:
        code = frame.f_code
        _, found, path = code.co_filename.rpartition("/site-packages/")
        if not found:
            _, found, path = code.co_filename.rpartition("/wrapper/")
            path = f"wrapper/{path}"
        if found and not path.startswith("gevent/"):
            return f"{path}:{code.co_name}"
        if found:
            waiting = waiting or f"{path}:{code.co_name}"
        frame = frame.f_back
    return waiting or "other:other"


def install(file: Path) -> None:
    """On SIGUSR2 begin to sample; on the next one stop, and write the counts to `file`."""

    def sample(_: int, frame: FrameType | None) -> None:
        _samples[place(frame)] += 1

    def toggle(*_: object) -> None:
        if signal.setitimer(signal.ITIMER_PROF, 0)[1]:
            file.with_suffix(".new").write_text(json.dumps(_samples))
            file.with_suffix(".new").replace(file)
        else:
            signal.setitimer(signal.ITIMER_PROF, STEP, STEP)

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR2, toggle)


def layer(place: str) -> str:
    """The layer of `package/module.py:function`."""
    if place.startswith(LOG):
        return "log"
    return next((name for name, begin in LAYERS.items() if place.startswith(begin)), REST)


def by_layer(samples: Mapping[str, int]) -> Counter[str]:
    """Samples by layer."""
    found: Counter[str] = Counter()
    for place, number in samples.items():
        found[layer(place)] += number
    return found
