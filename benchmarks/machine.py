"""The machine: clocks of processes, time stolen by the hypervisor, cores, and what to call it all.

CPU is the kernel's clock of each process, to the nanosecond: the sum of its threads' schedstat, and
that of the threads that have ended.
"""

from __future__ import annotations

import os
import platform
import resource
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness import processes

MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
CORES = os.sched_getaffinity(0)
RELAYS = {min(CORES)}  # one core for the relays, the others for provider and load generator
REST = CORES - RELAYS or CORES
PACKAGES = ("gunicorn", "gevent", "flask", "requests")


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    return [pid, *(each for child in processes.children(pid) for each in family(child))]


def cpu_seconds(pid: int) -> float:
    """CPU time of the process and all that descend from it."""
    used = 0.0
    for each in family(pid):
        try:
            used += processes.cpu_seconds(each)
        except OSError:  # it has just ended
            continue
    return used


def system_seconds(pid: int) -> float:
    """CPU time that the kernel spent for the process, in ticks of a hundredth of a second."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[12]) / _TICKS


@dataclass(frozen=True)
class Memory:
    """MiB: the largest process, and all of them with shared pages counted once."""

    rss: float
    pss: float


def memory(pid: int) -> Memory:
    """The memory of the process and all that descend from it."""
    found = [processes.memory(each) for each in family(pid)]
    return Memory(max(each.rss for each in found) / MIB, sum(each.pss for each in found) / MIB)


def stolen_seconds() -> float:
    """Time that the hypervisor gave to others, since the start (/proc/stat, proc(5): steal)."""
    with Path("/proc/stat").open() as file:
        return int(file.readline().split()[8]) / _TICKS


class Steal:
    """`with Steal() as steal`: `steal.cores` is how many cores the hypervisor took meanwhile."""

    cores = 0.0

    def __enter__(self) -> Steal:
        self._began, self._stolen = time.monotonic(), stolen_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.cores = (stolen_seconds() - self._stolen) / (time.monotonic() - self._began)


def hold(pid: int, cores: set[int]) -> None:
    """Hold the process, and all that descend from it, to these cores."""
    for each in family(pid):
        for task in Path(f"/proc/{each}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Run on these cores meanwhile; processes started here stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def open_many_files() -> None:
    """Allow this process, and what it starts, as many open files as the system lets it have."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def python_build() -> str:
    """The interpreter, and how it was optimized, which makes a sixth of the CPU."""
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    pgo = "with" if "--enable-optimizations" in arguments else "without"
    lto = "with" if "--with-lto" in arguments else "without"
    compiler = platform.python_compiler()
    return f"Python {platform.python_version()} ({compiler}, {pgo} PGO, {lto} LTO)"


def description() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": python_build(),
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
