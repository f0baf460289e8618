"""Work in forked children, as gunicorn's workers are, and what they report."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any


class Child:
    """A forked process that runs `work`, whose result is what `result` returns."""

    def __init__(self, work: Callable[[], Any]) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            self._pipe = os.fdopen(read, "rb")
            return
        code = 1
        try:
            os.close(read)
            report = json.dumps(work()).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(report)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)

    def result(self) -> Any:
        """What `work` returned; fails where it raised."""
        with self._pipe:
            report = self._pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, "a forked child failed: see its traceback above"
        return json.loads(report)

    def kill(self) -> None:
        """As `kill -9`."""
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        self._pipe.close()


def in_children(count: int, work: Callable[[int], Any]) -> list[Any]:
    """The results of `work(0)`, `work(1)`, …, each in a child of its own, at the same time."""

    def of(index: int) -> Callable[[], Any]:
        return lambda: work(index)

    children = [Child(of(index)) for index in range(count)]
    return [child.result() for child in children]
