"""Start and stop: what happens in gunicorn's master and in its workers, in this order.

Master: `prepare` (environment, run directory, demo provider), `load_app` (load, check, restore
the counters; the workers inherit the result), `listening`. Worker: `worker_forked`,
`start_worker`. Master, after a worker: `worker_exited`; at its own end the run directory is
removed.

Invariant: a configuration that cannot be served is reported before anything listens, with exit
code 1 and no traceback.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wrapper.config import (
    ADMIN_KEY,
    ConfigError,
    Listen,
    Settings,
    environment,
    ignored_proxies,
    keys_path,
    listen,
    load,
    missing_keys,
    needs_demo,
)
from wrapper.config.loading import HINT_FD, prepare_keys
from wrapper.config.prepared import Prepared
from wrapper.config.watch import accept
from wrapper.server.logging import protect_stderr, set_up_logging
from wrapper.server.room import most_in_flight, raise_open_file_limit

# The modules below import prometheus_client, which must see PROMETHEUS_MULTIPROC_DIR at its own
# import: functions import them after `prepare`.
if TYPE_CHECKING:
    from wrapper.app import GatewayApp
    from wrapper.runtime import Runtime

HEARTBEAT_SECONDS = 5.0  # of `admission.heartbeat`
RUN_DIR = "WRAPPER_RUN_DIR"
RUN_PREFIX = "wrapper-"
ALIVE = "alive"  # the file in a run directory that is locked while the run lasts
DEMO_URL = "WRAPPER_DEMO_URL"
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # only unique names are created there

log = logging.getLogger("wrapper")


@functools.cache
def prepare() -> Listen:
    """Read `.env`, create the run directory, start the demo provider where it is needed.

    Only once per process: gunicorn asks again on SIGHUP. Exits with code 1 where the environment
    cannot be served.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # until gunicorn sets its own
    try:
        environ = environment()
        found = listen(environ)
        _set_environment(environ)
        protect_stderr()
        _create_run_directory()
        set_up_logging(found.log_level)
        raise_open_file_limit(found.workers)
        if needs_demo(os.environ):
            _start_demo_provider()
    except ConfigError as error:
        _exit(error)
    return found


def _set_environment(environ: Mapping[str, str]) -> None:
    """The environment of this process and its workers, which never has the admin key."""
    os.environ.update(environ)
    os.environ.pop(ADMIN_KEY, None)


def _create_run_directory() -> None:
    """A directory for the metrics' files and the accepted configuration, new in each run.

    Those of runs that were killed are removed.
    """
    _sweep(Path(memory_directory() or tempfile.gettempdir()))
    run = Path(tempfile.mkdtemp(prefix=RUN_PREFIX, dir=memory_directory()))
    _mark_alive(run)
    atexit.register(_remove, run)
    metrics = run / "metrics"
    metrics.mkdir()
    os.environ[RUN_DIR] = str(run)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)


def _mark_alive(run: Path) -> None:
    """Lock a file in the directory for as long as this process or one of its workers lives."""
    new = run / f"{ALIVE}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # never closed
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(run / ALIVE)


def _sweep(place: Path) -> None:
    """Remove the directories of runs whose processes are all dead."""
    for run in place.glob(f"{RUN_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or just removed by another start
            file = os.open(run / ALIVE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(run)
            finally:
                os.close(file)


def memory_directory() -> str | None:
    """A directory in memory, apart from the uploads in TMPDIR; None where there is none.

    Workers write to mapped files. A full disk under one of them would kill the worker (SIGBUS).
    """
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else None


def _start_demo_provider() -> None:
    """Start the simulator. It exits with this process, which holds the other end of its stdin."""
    command = [sys.executable, "-m", "wrapper.simulator", "--port", "0", "--no-echo"]
    command.append("--exit-with-parent")
    command += ["--gap", "0.03"]
    simulator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(_terminate, simulator)
    line = simulator.stdout.readline() if simulator.stdout else b""
    if not line:
        _exit("the simulated provider did not start; its error message is above")
    os.environ[DEMO_URL] = f"http://127.0.0.1:{json.loads(line)['port']}"
    log.warning("no provider key is set: serving the simulated provider 'demo'")


def load_app() -> GatewayApp:
    """The application, for the workers to inherit. Exits with code 1 where it cannot be served."""
    from wrapper.app import create_app
    from wrapper.runtime import load_prices, runtime_of
    from wrapper.store import StoreError, beside, is_shared

    environ = dict(os.environ)
    try:
        settings = load(environ, environ.get(DEMO_URL), prepared=_prepared(environ))
        prices = load_prices(settings, environ)
        app = create_app(settings, prices, environ.get("LOG_LEVEL", "info"))
        runtime = runtime_of(app)
        runtime.store.check()
        # A store that several hosts share has the sums of all of them, and a query over hosts would
        # add them up once for each: there every host counts its own from zero.
        if settings.server.metering and not is_shared(settings.store):
            labels = beside(settings.store, "-labels")
            runtime.telemetry.restore(runtime.store.all_time(), labels, settings.keys)
        runtime.store.close()
    except (ConfigError, StoreError) as error:
        _exit(error)
    if RUN_DIR in environ:
        accept(settings, environ, _accepted())
    _log_unconfigured(settings)
    if missing := missing_keys(environ):
        log.warning(missing)
    for name in ignored_proxies(environ):
        log.warning("%s is set and not used: providers are called directly", name)
    if not settings.server.metering and any(
        s.limits.need_estimate for s in runtime.snapshot.limits
    ):
        log.warning("[server] metering is off: token limits and budgets are not enforced")
    # A collection in a worker then skips what all workers share: 30 ms for nothing. There is none
    # before: config/gunicorn.py has disabled them, and the start's own garbage is next to nothing.
    gc.freeze()
    gc.enable()
    return app


def _prepared(environ: Mapping[str, str]) -> Prepared | None:
    """The keys, read once for this process and the workers where they are many."""
    if RUN_DIR not in environ:
        return None
    prepared = Prepared(_accepted())
    if prepared.is_needed(keys_path(environ)):
        with contextlib.suppress(OSError):
            prepare_keys(environ, prepared)
    return prepared


def _log_unconfigured(settings: Settings) -> None:
    if not settings.usable:
        log.warning("no provider has a credential: set GROQ_API_KEY or OPENAI_API_KEY")
    for name, provider in settings.providers.items():
        if not provider.usable and not settings.stand_in:
            log.info("provider '%s' not configured: %s", name, provider.api_key_problem)
    log_dead_routes(settings.dead_routes)


def log_dead_routes(models: Sequence[str]) -> None:
    """Tell which requests find no provider with a credential."""
    if models:
        named = ", ".join(models)
        log.warning("requests for %s get 502: no provider of these routes has a credential", named)


def listening() -> None:
    """The gateway listens: print what `demo-key` has left to say, once."""
    found = os.environ.pop(HINT_FD, "")
    if found.isdecimal():
        with contextlib.suppress(OSError), os.fdopen(int(found)) as hint:
            print(hint.read(), end="", flush=True)


def worker_forked() -> None:
    """The worker's exit must not remove what belongs to the master."""
    atexit.unregister(_remove)
    atexit.unregister(_terminate)


def start_worker(runtime: Runtime, *, is_first: bool = False) -> Callable[[], None]:
    """Follow the configuration files, ask for deferred work, and make this worker's metrics
    readable. What is returned is to be called when the worker begins to stop. The first worker
    checks of the store what would have held up the start.
    """
    from wrapper import telemetry
    from wrapper.proxy.asker import Asker
    from wrapper.server.garbage import Garbage
    from wrapper.server.reload import ConfigReloader

    telemetry.worker_started()
    garbage = Garbage(runtime.scopes, telemetry.resident_memory)
    threading.Thread(target=garbage.run, name="garbage", daemon=True).start()
    runtime.capacity.places = most_in_flight(prepare().workers)
    reloader = ConfigReloader(runtime, dict(os.environ), _accepted(), os.environ.get(DEMO_URL))
    threading.Thread(target=reloader.run, name="reload", daemon=True).start()
    threading.Thread(target=_heartbeat, args=(runtime,), name="heartbeat", daemon=True).start()
    if is_first:
        threading.Thread(target=_check, args=(runtime,), name="check", daemon=True).start()
    asker = Asker(runtime)
    threading.Thread(target=asker.run, name="asker", daemon=True).start()
    return asker.stop


def _heartbeat(runtime: Runtime) -> None:
    """Keep this worker's leases alive and end those of dead workers; never returns."""
    while True:
        time.sleep(HEARTBEAT_SECONDS)
        try:
            _beat(runtime)
        except Exception:  # other workers would take this one for dead, and end its leases
            log.exception("unhandled exception at a heartbeat")


def _check(runtime: Runtime) -> None:
    from wrapper.store import StoreError

    time.sleep(HEARTBEAT_SECONDS)  # the first requests of a start have the processor
    try:
        runtime.store.check_rest()
    except StoreError as error:
        runtime.telemetry.store_failed()
        log.error("the store has a problem: %s", error)


def _beat(runtime: Runtime) -> None:
    from wrapper.store import StoreError

    runtime.show_cooldowns()
    # Also without limits: leases of a configuration before may be open, requests may wait to be
    # written.
    if not (runtime.snapshot.limits.any or runtime.snapshot.settings.server.metering):
        return
    try:
        runtime.admission.heartbeat()
    except StoreError as error:
        runtime.store_failed(error)
    else:
        if runtime.store_failing:
            runtime.store_works()


def worker_exited(pid: int) -> None:
    """Merge the metrics of an exited worker and count the requests that it did not finalize."""
    from wrapper import telemetry

    telemetry.worker_exited(pid)


def _accepted() -> Path:
    """Where copies of the configuration files in force are kept."""
    return Path(os.environ[RUN_DIR], "accepted")


def _exit(error: object) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(1)


def _remove(run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)


def _terminate(simulator: subprocess.Popen[bytes]) -> None:
    simulator.terminate()
