"""The program's own log: one JSON object per line on stderr, in the shape of the request lines; on
a terminal plain text for people.

Invariant: nothing that runs in the gateway's processes writes there in another way, not even an
error that nobody catches. (A start that fails prints its problems for people to read.)
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any

from gevent.hub import Hub
from gevent.monkey import get_original
from gunicorn.glogging import Logger

from wrapper.output import Stderr, is_terminal

log = logging.getLogger("wrapper")


def protect_stderr() -> None:
    """From now on a stderr that nobody reads costs lines and holds nothing up.

    The wait for a slow reader is the system's own, a short one: this is also written to where
    greenlets cannot wait.
    """
    select = get_original("select", "select")
    sys.stderr = Stderr(lambda fd, seconds: bool(select((), (fd,), (), seconds)[1]))


def set_up_logging(level: str) -> None:
    """Send the messages of all of `wrapper` to stderr, and everything else that would get there;
    stdout is for the request lines.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level.upper())
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers[:] = [handler]
    logging.lastResort = handler  # for the loggers of libraries
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda e: _uncaught(e.exc_type, e.exc_value, e.exc_traceback)
    threading.excepthook = lambda e: _uncaught(e.exc_type, e.exc_value, e.exc_traceback)
    Hub.print_exception = _uncaught_in_greenlet


class GunicornLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's own messages, in the same form."""

    def _set_handler(self, log: Any, output: Any, fmt: Any, stream: Any = None) -> None:
        super()._set_handler(log, output, formatter() if log is self.error_log else fmt, stream)


def formatter() -> logging.Formatter:
    """JSON, and text where a person reads stderr."""
    return TextFormatter() if is_terminal(2) else JsonFormatter()


class TextFormatter(logging.Formatter):
    """A record as a line of text, and its traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = f"{at} {level}{record.getMessage()}"
        text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """A record as one line of ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _uncaught(kind: Any, error: Any, traceback: Any) -> None:
    log.error("uncaught exception: %s", kind.__name__, exc_info=(kind, error, traceback))


def _uncaught_in_greenlet(hub: Any, context: Any, kind: Any, error: Any, traceback: Any) -> None:
    """In place of gevent's, which prints the traceback. `context` may hold bytes of a request."""
    _uncaught(*hub._normalize_exception(kind, error, traceback))
