"""From an environment to a serving worker: the steps that `config/gunicorn.py` hooks up.

In the master: `prepare` (environment, run directory, the demo provider), `make_app` (load,
check, seed the counters; the workers inherit the result). In each worker: `start_worker`
(follow the files). In the master again: `worker_gone`, `clean_up`.

The rule protected here: what cannot be served is said in words before anything listens, with
exit code 1 and no traceback; what breaks later changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wrapper.cancellation import active, drain
from wrapper.config import (
    MAX_IN_FLIGHT,
    ConfigError,
    Listen,
    Settings,
    environment,
    listen,
    load,
    needs_demo,
)
from wrapper.config.watch import Reloader, accept, load_or_last_good

if TYPE_CHECKING:
    from wrapper.app import GatewayApp
    from wrapper.metering.pricing import Prices

__all__ = [
    "active",
    "clean_up",
    "drain",
    "end_worker",
    "make_app",
    "memory_directory",
    "patience",
    "prepare",
    "refusal",
    "start_worker",
    "worker_gone",
]

RUN_DIR = "WRAPPER_RUN_DIR"
DEMO_URL = "WRAPPER_DEMO_URL"
POLL_SECONDS = 1.0
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # what is made there has a name of its own
OPEN_FILES = (65536, 10240)  # what a process may open, where its environment allows it
ENOUGH_FILES = 2500  # for as many callers and calls as a worker takes
CONNECTIONS = MAX_IN_FLIGHT + 50  # of a worker

log = logging.getLogger("wrapper")
_simulator: subprocess.Popen[bytes] | None = None
_where: Listen | None = None


def prepare() -> Listen:
    """Read `.env`, lay out the run directory, start the demo provider where it is asked for.

    Once in a process: what is asked for again (gunicorn does on SIGHUP) is the same. Exits with
    code 1 where the environment cannot be served.
    """
    global _where
    if _where is not None:
        return _where
    try:
        found = environment()
        where = listen(found)
        os.environ.update(found)
        _lay_out()
        _set_up_logging(where.log_level)
        _allow_files()
        if needs_demo(os.environ):
            _start_simulator()
    except ConfigError as error:
        _refuse(error)
    _where = where
    return where


def _lay_out() -> None:
    """A directory for the metrics' files and the accepted configuration, new in each run."""
    run = Path(tempfile.mkdtemp(prefix="wrapper-", dir=memory_directory()))
    metrics = run / "metrics"
    metrics.mkdir()
    os.environ[RUN_DIR] = str(run)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)


def memory_directory() -> str | None:
    """Where files lie in memory, apart from the uploads in TMPDIR; None where there is no such.

    Workers write into mapped files. A full disk below one of those would end the worker (SIGBUS).
    """
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else None


def _allow_files() -> None:
    """A call holds two descriptors, and the usual soft limit of 1024 is for programs that select().

    Without it a worker that is half full takes no more connections, not even of health checks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    for wanted in OPEN_FILES:  # macOS refuses what is below its hard limit and still too much
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        if soft < most:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
                soft = most
    if soft < ENOUGH_FILES:
        log.warning("%d open files are too few for a full worker: see ulimit -Hn", soft)


def _start_simulator() -> None:
    """The provider `demo`: it ends with this process, whose end of the pipe is its stdin."""
    global _simulator
    command = [sys.executable, "-m", "wrapper.simulator", "--port", "0", "--exit-with-parent"]
    command += ["--gap", "0.03"]
    _simulator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    line = _simulator.stdout.readline() if _simulator.stdout else b""
    if not line:
        _refuse(RuntimeError("the simulated provider did not start; its own words are above"))
    os.environ[DEMO_URL] = f"http://127.0.0.1:{json.loads(line)['port']}"
    log.warning("no provider key is set: serving the simulated provider 'demo'")


def make_app() -> GatewayApp:
    """The application, ready to be inherited by the workers. Exits with code 1 where it cannot."""
    from wrapper.app import create_app
    from wrapper.runtime import load_prices
    from wrapper.store import StoreError, all_time, beside

    environ = dict(os.environ)
    try:
        settings = load(environ, environ.get(DEMO_URL))
        prices = load_prices(settings, environ)
        app = create_app(settings, prices, environ.get("LOG_LEVEL", "info"))
        gateway = app.extensions["gateway"]
        gateway.store.check()
        if settings.server.metering:
            labels = beside(settings.store, "-labels")
            gateway.telemetry.restore(all_time(gateway.store), labels)
        gateway.store.close()
    except (ConfigError, StoreError) as error:
        _refuse(error)
    if RUN_DIR in os.environ:
        accept(settings, environ, _accepted())
    _tell_who_is_passed_over(settings)
    return app


def _tell_who_is_passed_over(settings: Settings) -> None:
    if not settings.usable:
        log.warning("no provider has a credential: set GROQ_API_KEY or OPENAI_API_KEY")
    for name, provider in settings.providers.items():
        if not provider.usable and not settings.stand_in:
            log.info("provider '%s' is passed over: %s", name, provider.api_key_problem)
    if settings.dead_routes:
        names = ", ".join(settings.dead_routes)
        log.warning("calls for %s end in a 502: no target of theirs has a credential", names)


def start_worker(app: GatewayApp) -> None:
    """Look at the configuration's files once a second; a mistake in them changes nothing."""
    from wrapper import telemetry

    telemetry.worker_started()
    follower = Follower(app)
    threading.Thread(target=follower.run, name="reload", daemon=True).start()


def patience(app: GatewayApp) -> float:
    """Seconds that a caller may take to send the next piece of a body, or to take one."""
    seconds: float = app.extensions["gateway"].current.settings.server.body_timeout
    return seconds


def end_worker(app: GatewayApp) -> None:
    """The worker ends in order: what the usage table could not take yet gets its last chance."""
    app.extensions["gateway"].store.close()


class Follower:
    """Puts in force what the files say."""

    def __init__(self, app: GatewayApp) -> None:
        self._gateway = app.extensions["gateway"]
        self._environ = dict(os.environ)
        self._prices: Prices = self._gateway.current.prices
        current = self._gateway.current.settings
        self._reloader = Reloader(self._load, self._apply, self._problem, current)
        with contextlib.suppress(ConfigError):
            # This worker may be younger than the configuration it inherited, and the files may
            # be broken just now: then what the other workers serve is in the copies.
            settings, _ = load_or_last_good(self._environ, _accepted(), self._demo())
            if settings != current:
                self._prices = self._load_prices(settings)
                self._apply(settings)
                self._reloader = Reloader(self._load, self._apply, self._problem, settings)

    def run(self) -> None:
        while True:
            time.sleep(POLL_SECONDS)
            try:
                self._reloader.poll()
            except Exception:  # a bug must not keep a revoked key alive for ever
                log.exception("a bug: the configuration could not be reloaded")

    def _demo(self) -> str | None:
        return self._environ.get(DEMO_URL)

    def _load(self) -> Settings:
        settings = load(self._environ, self._demo())
        try:
            self._prices = self._load_prices(settings)
        except ConfigError as error:
            # A broken price table must not keep a revoked key alive.
            raise ConfigError(error.problems, settings.files, settings.keys) from None
        return settings

    def _load_prices(self, settings: Settings) -> Prices:
        from wrapper.runtime import load_prices

        return load_prices(settings, self._environ)

    def _apply(self, settings: Settings) -> None:
        before = self._gateway.current.settings
        self._gateway.apply(settings, self._prices)
        with contextlib.suppress(OSError):
            accept(settings, self._environ, _accepted())
        providers, keys = len(settings.providers), len(settings.keys)
        log.info("the configuration was reloaded: %d providers, %d keys", providers, keys)
        if before.stand_in and not settings.stand_in:
            log.warning("a provider has a key: the simulated provider answers no more")
        if before.keys and not settings.keys:
            log.warning("there are no keys any more: every call is refused")

    def _problem(self, error: ConfigError) -> None:
        log.error("the configuration was not reloaded: %s", error)


def refusal(app: GatewayApp, error: BaseException, client: str) -> bytes:
    """The answer to what gunicorn could not read as a request; see `wrapper.server.malformed`."""
    from wrapper.server.malformed import answer

    return answer(app.extensions["gateway"], error, client)


def worker_gone(pid: int) -> None:
    """A worker has exited; see `telemetry.worker_exited`."""
    from wrapper import telemetry

    telemetry.worker_exited(pid)


def clean_up() -> None:
    """The master ends: so do the demo provider and the run directory."""
    if _simulator is not None:
        _simulator.terminate()
    run = os.environ.get(RUN_DIR)
    if run:
        shutil.rmtree(run, ignore_errors=True)


def _accepted() -> Path:
    return Path(os.environ[RUN_DIR], "accepted")


def _refuse(error: Exception) -> NoReturn:
    print(error, file=sys.stderr)
    clean_up()
    sys.exit(1)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, as the request lines are."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _set_up_logging(level: str) -> None:
    handler = logging.StreamHandler()  # stderr: stdout is for the request lines
    handler.setFormatter(_JsonFormatter())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level.upper())
