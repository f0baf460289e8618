"""Starting programs, and reading from /proc what they use.

Every program started here ends with the test run: it is told when its parent dies, and what
does not stop by itself is killed, by its own id.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .poll import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


class ReservedPort:
    """A free loopback port that stays ours: bound here, but never listened on.

    Linux gives no other process the port while it is bound, and lets a server with
    SO_REUSEADDR (gunicorn sets it) listen on it all the same. So nothing can come between
    choosing the port and using it, nor between a stop and a new start.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        """Give the port back."""
        self._socket.close()


def measured() -> dict[str, str]:
    """What a process needs in its environment to be measured by `make coverage`; else nothing."""
    name = "COVERAGE_PROCESS_CONFIG"
    return {name: os.environ[name]} if name in os.environ else {}


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    cwd: Path = ROOT,
) -> subprocess.Popen[bytes]:
    """Start `command` with exactly the environment `env`; it gets SIGTERM if this process dies."""
    setpriv = shutil.which("setpriv")  # util-linux; elsewhere a killed run leaves it behind
    guard = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    return subprocess.Popen(
        [*guard, *command],
        cwd=cwd,
        env=dict(env),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], *, deadline: float = PATIENCE) -> int:
    """SIGTERM, then wait; after `deadline` seconds SIGKILL to its whole group. The exit status."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(deadline)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(PATIENCE)


def children(pid: int) -> list[int]:
    """The ids of the living child processes, oldest first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return sorted(child for child in found if state(child) not in {"Z", "X", ""})


def state(pid: int) -> str:
    """The process's state letter in /proc/PID/stat; empty where there is no such process."""
    try:
        return _stat(pid)[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cpu_seconds(pid: int) -> float:
    """User and system time that the process has used, in seconds, to the nanosecond.

    Linux makes the number of another process's CPU clock of its id: clock_getcpuclockid(3).
    """
    return time.clock_gettime(~pid << 3 | 2)


def child_cpu_seconds(pid: int) -> float:
    """User and system time of the process's children that have ended, in seconds, to 10 ms."""
    user, system = _stat(pid)[13:15]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    # After the name, which stands in brackets and may contain anything: proc(5).
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@dataclass(frozen=True)
class Memory:
    """Bytes: resident, proportional (shared pages divided by their users), and highest resident."""

    rss: int
    pss: int
    peak: int

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss, self.peak + other.peak)


def memory(pid: int) -> Memory:
    """What the process holds in memory now (proc(5): smaps_rollup, status)."""
    rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"))
    status = _kilobytes(Path(f"/proc/{pid}/status"))
    return Memory(rollup["Rss"], rollup["Pss"], status["VmHWM"])


def reset_peak(pid: int) -> None:
    """Begin the highest resident memory anew (proc(5): clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _kilobytes(path: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            sizes[name] = int(value.split()[0]) * 1024
    return sizes
