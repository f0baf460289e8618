"""Makes the machine bad for one command: `python tools/quake.py --seed 7 -- make test ARGS="-x"`.

At random moments some of the command's own processes are stopped (SIGSTOP) for up to `--longest`
seconds: all of them, as where a machine stands still, one, all of a kind, or any; or they get a
quarter of the time. What fails judges the machine, or does not bear it. `--log` says what was
stopped when. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

STOPPED_OR_GONE = "TtZX"
SLICE = 0.1  # seconds, of which a slow process gets a quarter


def descendants() -> dict[int, str]:
    """The running descendants of this process, and the program of each."""
    parents: dict[int, int] = {}
    states: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)], states[int(path.parent.name)] = int(parent), state
    found, todo = [], [os.getpid()]
    while todo:
        at = todo.pop()
        found += [pid for pid, parent in parents.items() if parent == at]
        todo += [pid for pid, parent in parents.items() if parent == at]
    running = [pid for pid in found if states[pid] not in STOPPED_OR_GONE]
    return {pid: program(pid) for pid in running}


def program(pid: int) -> str:
    """What the process runs, in a word."""
    words = ("gunicorn", "simulator", "redis", "prometheus", "chrom", "pytest", "node")
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        return next((word for word in words if word in line), "other")
    return "gone"


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def shake(dice: random.Random, longest: float, log: TextIO) -> None:
    """Stop some processes for a while, or make them slow."""
    found = descendants()
    if not found:
        return
    how = dice.choice(["all", "all", "kind", "kind", "one", "some", "slow"])
    kind = dice.choice(sorted(set(found.values())))
    picked = {
        "kind": [pid for pid, name in found.items() if name == kind],
        "one": [dice.choice(sorted(found))],
        "some": [pid for pid in sorted(found) if dice.random() < 0.5],
    }.get(how, list(found))
    seconds = dice.uniform(0.3, dice.choice([1.5, longest]))
    names = sorted(found[pid] for pid in picked)
    print(time.strftime("%H:%M:%S"), how, f"{seconds:.1f} s", *names, file=log, flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        send(picked, signal.SIGSTOP)
        time.sleep(SLICE * 0.75 if how == "slow" else seconds)
        send(picked, signal.SIGCONT)
        time.sleep(SLICE * 0.25)


def main() -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--pause", type=float, default=5.0, help="longest time between two stops")
    parser.add_argument("--longest", type=float, default=8.0, help="longest stop")
    parser.add_argument("--log", type=argparse.FileType("a"), default=sys.stderr)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[options.command[:1] == ["--"] :]
    dice = random.Random(options.seed)  # noqa: S311
    child = subprocess.Popen(command)
    while child.poll() is None:
        time.sleep(dice.uniform(0.5, options.pause))
        shake(dice, options.longest, options.log)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
