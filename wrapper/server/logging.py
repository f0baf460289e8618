"""The program's own log: one JSON object per line on stderr, in the shape of the request lines."""

from __future__ import annotations

import json
import logging
import sys
import time

from gevent.monkey import get_original

from wrapper.output import Stderr


def protect_stderr() -> None:
    """From now on a stderr that nobody reads costs lines and holds nothing up.

    The wait for a slow reader is the system's own, a short one: this is also written to where
    greenlets cannot wait.
    """
    select = get_original("select", "select")
    sys.stderr = Stderr(lambda fd, seconds: bool(select((), (fd,), (), seconds)[1]))


def set_up_logging(level: str) -> None:
    """Send the messages of all of `wrapper` to stderr; stdout is for the request lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    log = logging.getLogger("wrapper")
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level.upper())


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
