"""The gateway as its users start it: gunicorn, the shipped configuration file, real workers.

Each `Gateway` has a directory of its own for configuration, keys and the usage table, in which
it runs, a loopback port that nobody else can take, and an environment that holds nothing from
outside: no provider key of a developer, from the environment or from `.env`, can get into a
test, and no test can spend money.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any

from prometheus_client.mmap_dict import MmapedDict

from . import processes, raw
from .metrics import Metrics
from .poll import PATIENCE, eventually

_values: Any = MmapedDict.read_all_values_from_file  # untyped

START_DEADLINE = 90.0
STOP_DEADLINE = 90.0

LogLine = dict[str, Any]


class GatewayFailed(AssertionError):
    """The gateway did not start, or ended by itself; carries what it wrote to stderr."""

    def __init__(self, status: int | None, stderr: str) -> None:
        super().__init__(f"the gateway ended with status {status}\n{stderr[-4000:]}")
        self.status = status
        self.stderr = stderr


class Gateway:
    """A running gateway; use as a context manager.

    `config` is the text of gateway.toml, `keys` the limits of the keys to make before the
    start (see `key`), `groups` and `defaults` those tables of keys.toml, `env` what the
    environment has beside the harness's own settings, and `ready_path` what must answer 200
    before the start counts as done. `root` is the project's directory, and `gunicorn` gunicorn's
    configuration file, if not the one that is shipped there.
    """

    def __init__(
        self,
        config: str,
        *,
        workers: int = 1,
        keys: Mapping[str, Mapping[str, Any]] | None = None,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        defaults: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        ready_path: str = "/readyz",
        directory: Path | None = None,
        root: Path = processes.ROOT,
        gunicorn: Path | None = None,
    ) -> None:
        self.root = root
        self._gunicorn = gunicorn or root / "config" / "gunicorn.py"
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="gateway-")
        self.directory = directory or Path(self._temporary.name if self._temporary else "")
        self.config_file = self.directory / "gateway.toml"
        self.keys_file = self.directory / "keys.toml"
        self.stdout_file = self.directory / "stdout.log"
        self.stderr_file = self.directory / "stderr.log"
        self.worker_count = workers
        self.secrets: dict[str, str] = {}
        self._limits: dict[str, dict[str, Any]] = {}
        self._groups = groups or {}
        self._defaults = defaults or {}
        self._extra_env = dict(env or {})
        self._ready_path = ready_path
        self._port = processes.ReservedPort()
        self._process: subprocess.Popen[bytes] | None = None
        self._seen_stderr = 0
        (self.directory / "tmp").mkdir(exist_ok=True)
        (self.directory / "prices.toml").symlink_to(root / "config" / "prices.toml")
        self.write_config(config)
        for name, limits in (keys or {}).items():
            self.key(name, **limits)

    @classmethod
    @contextlib.contextmanager
    def prepared(cls, config: str, **options: Any) -> Iterator[Gateway]:
        """A gateway that is not started: for `launch`, where the start itself is measured."""
        gateway = cls(config, **options)
        try:
            yield gateway
            gateway.stop()
        finally:
            gateway._clean_up()

    # --- starting and stopping -------------------------------------------------------------

    def __enter__(self) -> Gateway:
        try:
            return self.start()
        except BaseException:
            self._clean_up()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            status = self.stop()
            if kind is None and status != 0:
                raise GatewayFailed(status, self.stderr())
        finally:
            self._clean_up()

    def start(self, *command: str) -> Gateway:
        """As `launch`, and wait until `ready_path` answers 200 and every worker is there.

        Raises GatewayFailed.
        """
        process = self.launch(*command)
        end = time.monotonic() + START_DEADLINE
        while not self._is_ready() or len(self.workers()) < self.worker_count:
            status = process.poll()
            if status is not None or time.monotonic() > end:
                processes.stop(process, deadline=5)
                raise GatewayFailed(status, self.stderr())
            time.sleep(0.02)
        return self

    def launch(self, *command: str) -> subprocess.Popen[bytes]:
        """Start gunicorn, or the Python program `command` that becomes it, and wait for nothing."""
        command = command or ("-m", "gunicorn", "-c", str(self._gunicorn), "wsgi:app")
        with self.stdout_file.open("ab") as out, self.stderr_file.open("ab") as err:
            self._process = processes.start(
                [sys.executable, *command],
                env=self.environment(),
                stdout=out,
                stderr=err,
                cwd=self.directory,
            )
        return self._process

    def stop(self) -> int:
        """SIGTERM and wait; gunicorn's exit status (0 after a clean stop)."""
        if self._process is None:
            return 0
        return processes.stop(self._process, deadline=STOP_DEADLINE)

    def kill(self) -> None:
        """SIGKILL to the master and all workers: what a power cut leaves behind."""
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def restart(self) -> Gateway:
        """Start again after `stop` or `kill`, on the same port, with the same files."""
        return self.start()

    def _is_ready(self) -> bool:
        try:
            return self.get(self._ready_path, timeout=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _clean_up(self) -> None:
        if self._process is not None and self._process.poll() is None:
            processes.stop(self._process, deadline=2)
        self._port.release()
        if self._temporary is not None:
            self._temporary.cleanup()

    def environment(self) -> dict[str, str]:
        """The whole environment of the gateway's processes."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.root),
            "TMPDIR": str(self.directory / "tmp"),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(self.worker_count),
            "WRAPPER_CONFIG": str(self.config_file),
            "WRAPPER_KEYS": str(self.keys_file),
            "WRAPPER_STORE": f"sqlite:///{self.directory / 'usage.db'}",
            "LOG_LEVEL": "info",
            **processes.measured(),
            **self._extra_env,
        }

    # --- where it is -----------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The loopback port it listens on."""
        return self._port.number

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Gunicorn's master process."""
        if self._process is None:
            raise RuntimeError("the gateway was not started")
        return self._process

    @property
    def pid(self) -> int:
        """The id of gunicorn's master process."""
        return self.process.pid

    def workers(self) -> list[int]:
        """The ids of gunicorn's living workers."""
        return processes.children(self.pid)

    def memory(self) -> processes.Memory:
        """The memory of all workers together (the master is not in it)."""
        return sum((processes.memory(w) for w in self.workers()), processes.Memory(0, 0, 0))

    # --- configuration and keys ------------------------------------------------------------

    def write_config(self, toml: str) -> None:
        """Replace gateway.toml in one step and wait for nothing."""
        _replace(self.config_file, toml)

    def write_keys(self, toml: str) -> None:
        """Replace keys.toml in one step and wait for nothing."""
        _replace(self.keys_file, toml)

    def reconfigure(self, toml: str) -> None:
        """Replace gateway.toml; returns when every worker has put it in force."""
        before = self.reloads()
        self.write_config(toml)
        self.wait_for_reload(before)

    def key(self, name: str, **limits: Any) -> str:
        """Make a key with the fields of keys.toml that are given in `limits`; its secret.

        On a running gateway it comes back when every worker knows the key.
        """
        self.secrets[name], self._limits[name] = new_key(limits)
        self._write_keys()
        return self.secrets[name]

    def revoke(self, name: str) -> None:
        """Take the key out of keys.toml; returns when no worker knows it any more."""
        del self._limits[name]
        self._write_keys()

    def limit(self, name: str, **limits: Any) -> None:
        """Give a key other limits; returns when they are in force in every worker."""
        self._limits[name] = {"sha256": self._limits[name]["sha256"], **limits}
        self._write_keys()

    def _write_keys(self) -> None:
        before = self.reloads()
        _replace(self.keys_file, keys_toml(self._limits, self._groups, self._defaults))
        if self._process is not None and self._process.poll() is None:
            self.wait_for_reload(before)

    def reloads(self) -> dict[int, float]:
        """How often each worker has put a changed configuration in force, by its id.

        Waits until all have started: a worker that starts takes what has been changed since the
        master's start, which would be counted as the change that comes now.
        """
        if self._process is None or self._process.poll() is not None:
            return {}

        def all_run() -> bool:
            # The first thing that happens after the start.
            running = self._of_workers("histogram", '"event_loop_lag_seconds_bucket"')
            return len([pid for pid, turns in running.items() if turns > 0]) >= self.worker_count

        eventually(all_run, retry_on=(OSError, struct.error), what="all workers have started")
        return self._reloads()

    def _reloads(self) -> dict[int, float]:
        counted = self._of_workers("counter", '"config_reloads_total"', '"success"')
        assert len(counted) >= self.worker_count
        return counted

    def wait_for_reload(self, before: Mapping[int, float]) -> None:
        """Wait until every worker has reloaded once more since `reloads()` was `before`."""

        def all_have() -> bool:
            return all(count > before.get(pid, 0) for pid, count in self._reloads().items())

        retry_on = (AssertionError, OSError, struct.error)
        eventually(all_have, retry_on=retry_on, what="a reload in every worker")

    # --- what it says ----------------------------------------------------------------------

    def get(
        self, path: str, *, headers: Mapping[str, str] | None = None, timeout: float = PATIENCE
    ) -> tuple[int, bytes]:
        """GET on a new connection: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()

    def exchange(
        self, request: bytes, *, deadline: float = PATIENCE, head_only: bool = False
    ) -> raw.Answer:
        """Send the bytes of one request on a new connection and read the whole response."""
        return raw.exchange(self.port, request, deadline=deadline, head_only=head_only)

    def metrics(self) -> Metrics:
        """A scrape of `/metrics`."""
        status, body = self.get("/metrics")
        assert status == 200, body[:500]
        return Metrics(body.decode())

    def stderr(self) -> str:
        """All that the gateway has written to stderr."""
        return self.stderr_file.read_text(errors="replace")

    def stdout(self) -> str:
        """All that the gateway has written to stdout, whole lines only."""
        text = self.stdout_file.read_text(errors="replace")
        return text[: text.rfind("\n") + 1]

    def log(self) -> Iterator[LogLine]:
        """The request log so far. A line that is no JSON object is an AssertionError."""
        for text in self.stdout().split("\n")[:-1]:
            line = json.loads(text) if text.startswith("{") else None
            assert isinstance(line, dict), f"not a JSON log line: {text!r}"
            yield line

    def log_lines(
        self,
        predicate: Callable[[LogLine], bool],
        deadline: float = PATIENCE,
        *,
        count: int = 1,
    ) -> list[LogLine]:
        """The log lines for which `predicate` holds, waiting until there are `count`."""

        def found() -> list[LogLine]:
            lines = [line for line in self.log() if predicate(line)]
            assert len(lines) >= count, f"{len(lines)} of {count} log lines"
            return lines

        return eventually(found, deadline, what="the log line")

    def log_line(self, request_id: str, deadline: float = PATIENCE) -> LogLine:
        """The one log line of that request (its `x-request-id`, ours or the provider's)."""
        return self.log_lines(
            lambda line: request_id in {line["request_id"], line["upstream_request_id"]}, deadline
        )[0]

    def assert_clean(self) -> None:
        """Nothing is in flight any more; since the last look no traceback was written, and nothing
        that is not a line of JSON.
        """
        if self.process.poll() is None:
            self.idle()
        text = self.stderr()
        new, self._seen_stderr = text[self._seen_stderr :], len(text)
        assert "Traceback (most recent call last)" not in new, new[-6000:]
        for line in new.splitlines() if new.endswith("\n") else ():
            assert line.startswith('{"time": '), new[-6000:]

    def idle(self, deadline: float = PATIENCE) -> None:
        """Wait until no request is in flight: all are booked and counted."""
        eventually(
            lambda: self.in_flight() == 0,
            deadline,
            what="no request in flight",
        )

    def in_flight(self) -> float:
        """`requests_in_flight`, from the workers' own files: a scrape takes much more CPU."""
        # A worker that begins makes its file empty, and one that ends has its file removed.
        return eventually(
            lambda: (sum(self._of_workers("gauge_livesum", '"requests_in_flight"').values()),),
            retry_on=(OSError, struct.error),
        )[0]

    def _of_workers(self, kind: str, *words: str) -> dict[int, float]:
        """The value of a metric whose key has the words, by worker, from the workers' files.

        A worker that has no such value yet is left out.
        """
        found: dict[int, float] = {}
        for pid in self.workers():
            path = self.run_directory() / "metrics" / f"{kind}_{pid}.db"
            for key, value, *_ in _values(str(path)) if path.exists() else ():
                if all(word in key for word in words):
                    found[pid] = found.get(pid, 0.0) + value
        return found

    def run_directory(self) -> Path:
        """Where its files for this run are: of the file in it that the master has open.

        Names do not say it: a gateway that was killed may have left files of a worker with the same
        process id.
        """

        def run() -> Path | None:
            links = [fd.readlink() for fd in Path(f"/proc/{self.pid}/fd").iterdir()]
            return next((link.parent for link in links if link.name == "alive"), None)

        return eventually(run, retry_on=(OSError,), what="the gateway's run") or Path()


# What the fixture `gateway_factory` gives: takes what `Gateway` takes, and starts it.
GatewayFactory = Callable[..., Gateway]


def new_key(limits: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A new secret, and the fields of keys.toml for it."""
    secret = f"sk-wr-{secrets.token_urlsafe(32)}"
    return secret, {"sha256": hashlib.sha256(secret.encode()).hexdigest(), **limits}


def keys_toml(
    keys: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """The text of keys.toml."""
    tables = {"defaults": defaults} if defaults else {}
    tables |= {f"groups.{json.dumps(name)}": fields for name, fields in (groups or {}).items()}
    tables |= {f"keys.{json.dumps(name)}": fields for name, fields in keys.items()}
    blocks = []
    for name, fields in tables.items():
        lines = [f"{field} = {_toml(value)}" for field, value in fields.items()]
        blocks.append("\n".join([f"[{name}]", *lines, ""]))
    return "\n".join(blocks)


def _replace(path: Path, text: str) -> None:
    """Write the file in one step, as editors and configuration tools do."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(path)


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case date():
            return value.isoformat()
        case int() | float():
            return repr(value)
        case _:
            raise TypeError(f"no TOML for {value!r}")
