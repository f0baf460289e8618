"""`serve`: starts the gateway, as the container and a service manager do.

Why not gunicorn itself: it reads WEB_CONCURRENCY when it is imported, before any file of the
gateway, and ends with a traceback where the value is empty or no number.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wrapper.cli import CommandError, examples
from wrapper.config import listen

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

_CONFIG = Path(__file__).resolve().parents[2] / "config" / "gunicorn.py"


def add_parser(subparsers: Subparsers) -> None:
    """Adds `serve`."""
    parser = subparsers.add_parser(
        "serve",
        help="start the gateway, in this process",
        description="Starts the gateway on HOST:PORT, as settings and the environment say, in place"
        " of this process. SIGTERM stops it when open streams have ended.",
        epilog=examples(("serve", "what the container and a service manager start")),
    )
    parser.set_defaults(run=run)


def run(_args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Becomes the gateway. Raises `ConfigError` and `CommandError`."""
    listen(environ)
    become([sys.executable, "-m", "gunicorn", "-c", str(_CONFIG), "wsgi:app"])


def become(command: list[str], **variables: str) -> NoReturn:
    """Replace this process by one that runs gunicorn, with further variables in its environment.

    What is wrong with WEB_CONCURRENCY has been reported before (`listen`); an empty value counts
    as not set. Raises `CommandError`.
    """
    environ = {**os.environ, **variables}
    if not environ.get("WEB_CONCURRENCY"):
        environ.pop("WEB_CONCURRENCY", None)
    try:
        os.execvpe(command[0], command, environ)  # noqa: S606
    except OSError as error:
        raise CommandError(f"cannot start {command[0]}: {error.strerror}") from error
