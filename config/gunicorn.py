"""gunicorn's configuration: `gunicorn -c config/gunicorn.py wsgi:app`.

Started by `python -m wrapper serve`: gunicorn by itself ends with a traceback, before it reads
this file, where WEB_CONCURRENCY is empty or no number. The environment and `.env` say where to
listen and with how many workers. A configuration that cannot be served ends the start with every
problem listed and exit code 1. gunicorn reads this file again on SIGHUP.
"""

import gc

gc.disable()  # until `load_app`: some hundred collections would go through what stays anyhow

from gevent import events, monkey  # noqa: E402

# Not gevent's own, which reads every installed package's metadata at each of its 25 steps, in
# search of plugins.
events.notify_and_call_entry_points = events.notify
monkey.patch_all()

# The patch above must come before anything that imports ssl, socket or threading.
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wrapper.server import lifecycle, room  # noqa: E402

_listen = lifecycle.prepare()

bind = _listen.bind
workers = _listen.workers
graceful_timeout = _listen.graceful_timeout

# By name: prometheus_client must not be imported before `prepare` has set its directory.
worker_class = "wrapper.server.worker.Worker"
worker_connections = room.worker_connections(_listen.workers)
preload_app = True  # the code is loaded once: workers start at once and share its memory
keepalive = _listen.keepalive  # longer than the 60 s of common load balancers
timeout = 60
max_requests = 0
backlog = 2048
control_socket_disable = True
proc_name = "wrapper"
worker_tmp_dir = lifecycle.memory_directory()  # a slow disk must not delay the heartbeat

# Parsing of what wrapper.server.head leaves to gunicorn: the C parser where it is installed.
# Forwarding headers of the client are not trusted.
# Header names with an underscore are valid and arrive; wrapper.server.strict_request keeps them
# apart from those with a hyphen, as WSGI alone could not.
http_parser = "auto"
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
header_map = "dangerous"
limit_request_line = 8190
limit_request_field_size = 16380
limit_request_fields = 100

accesslog = None  # the gateway writes its own line for each request
errorlog = "-"
logger_class = "wrapper.server.logging.GunicornLogger"  # one JSON object per line
loglevel = _listen.log_level


def when_ready(server: Any) -> None:
    """In the master, when it listens."""
    lifecycle.listening()


def post_fork(server: Any, worker: Any) -> None:
    """In the new worker, before anything else."""
    lifecycle.worker_forked()


def post_worker_init(worker: Any) -> None:
    """In the worker, before its first request."""
    worker.start()


def worker_int(worker: Any) -> None:
    """In the worker, on SIGINT or SIGQUIT."""
    worker.interrupt()


def worker_exit(server: Any, worker: Any) -> None:
    """In the worker, after its last request.

    Also in the master, in place of `child_exit`, when a worker has died before the master could
    signal it.
    """
    if os.getpid() == worker.pid:
        worker.close()
    else:
        lifecycle.worker_exited(worker.pid)


def child_exit(server: Any, worker: Any) -> None:
    """In the master, when a worker has exited."""
    lifecycle.worker_exited(worker.pid)
