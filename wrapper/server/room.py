"""How many requests a worker has room for: as many as its open files and its memory allow.

Invariant: a place that is not there is a 503 with `Retry-After`. A worker that runs out of
descriptors fails requests that have begun, and accepts no more connections, not even for health
checks; one that runs out of memory is killed with all of its streams.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from pathlib import Path
from typing import Final

from wrapper.config import MAX_IN_FLIGHT

OPEN_FILE_LIMITS: Final = (65536, 10240)  # tried in this order
# Descriptors of a worker: its own, then for each five a place for a request with its connection to
# a provider (twice two) and one more connection.
OWN_FILES: Final = 64
# Bytes of memory for a request. A stream takes some 20 KiB (tests/test_crowd.py); bodies have
# limits of their own (`body_memory_bytes`).
REQUEST_MEMORY: Final = 128 << 10
REQUESTS_PART: Final = 2  # the half of the memory for requests
# Of a container, in bytes or "max": https://docs.kernel.org/admin-guide/cgroup-v2.html
CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

log = logging.getLogger("wrapper")


def raise_open_file_limit(workers: int = 1) -> None:
    """Raise the soft limit of open files, for 1024 is common; log where there is room for fewer
    requests than `MAX_IN_FLIGHT` in each of the `workers`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        for wanted in OPEN_FILE_LIMITS:  # macOS refuses some values below its hard limit
            most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            if soft < most:
                with contextlib.suppress(ValueError, OSError):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
                    soft = most
        by_files = _allowed_by_files(soft)
        if by_files < MAX_IN_FLIGHT:
            log.warning(
                "open file limit of %d: a worker serves at most %d requests at once; see ulimit"
                " -Hn",
                soft,
                by_files,
            )
    by_memory = _allowed_by_memory(memory(), workers)
    if by_memory < MAX_IN_FLIGHT:
        log.warning("memory: a worker serves at most %d requests at once", by_memory)


def most_in_flight(workers: int = 1) -> int:
    """How many requests a worker can serve at once, where there are `workers` of them."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    by_files = MAX_IN_FLIGHT if files == resource.RLIM_INFINITY else _allowed_by_files(files)
    return min(by_files, _allowed_by_memory(memory(), workers))


def worker_connections(workers: int = 1) -> int:
    """How many connections a worker accepts: half as many more as it can serve requests at once,
    for those that are idle and for short requests such as health checks.
    """
    places = most_in_flight(workers)
    return places + max(2, places // 2)


def memory() -> int:
    """Bytes of memory that this machine or container has."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            found = min(found, int(file.read_text()))
    return found


def _allowed_by_files(files: int) -> int:
    return max(1, min(MAX_IN_FLIGHT, 2 * ((files - OWN_FILES) // 5)))


def _allowed_by_memory(size: int, workers: int) -> int:
    return max(1, min(MAX_IN_FLIGHT, size // REQUESTS_PART // workers // REQUEST_MEMORY))
