"""A stranger's first minute: an empty clone, `make run`, and the curl line that it prints."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harness import processes
from harness.poll import PATIENCE, eventually
from harness.programs import require

# What a machine needs to reach a package index at all.
PASSED_ON = ("PATH", "HOME", "LANG", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows or would add, and nothing else."""
    git = require("git")
    listing = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=processes.ROOT, capture_output=True, check=True).stdout
    target = tmp_path_factory.mktemp("clone")
    for name in names.decode().split("\0"):
        source = processes.ROOT / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    return target


@contextlib.contextmanager
def make_run(clone: Path, port: int, env: Mapping[str, str]) -> Iterator[Path]:
    """`make run` in the clone until it listens; gives its output. Ctrl-C at the end."""
    log = clone / "make-run.log"
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith("PIP_")
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [require("make"), "run"],
            cwd=clone,
            env={**passed, "PORT": str(port), **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(lambda: is_listening(process, log), deadline=500)
        yield log
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)


def is_listening(process: subprocess.Popen[bytes], log: Path) -> bool:
    text = log.read_text()
    if process.poll() is not None:
        pytest.fail(f"make run ended: {text[-3000:]}")
    return "Booting worker" in text


def curl_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.lstrip().startswith("curl ")]
    assert len(lines) == 1, log.read_text()
    return lines[0]


@pytest.mark.slow
@pytest.mark.timeout(600)  # pip may be slow
def test_make_run_in_an_empty_clone_prints_a_curl_line_that_streams(clone: Path) -> None:
    require("curl")
    port = processes.ReservedPort()
    try:
        with make_run(clone, port.number, {}) as log:
            done = subprocess.run(
                ["/bin/sh", "-c", curl_line(log)],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=True,
            )
            assert done.stdout.startswith("data: {")
            assert done.stdout.endswith("data: [DONE]\n\n")
            assert done.stdout.count("data: {") > 10
            text = log.read_text()
            assert "simulated" in text
            assert text.index("Listening at") < text.index(curl_line(log))
        secret = curl_line(log).partition("Bearer ")[2].partition("'")[0]
        assert secret not in (clone / "config" / "keys.toml").read_text()

        # Variables without a value, as .env.example has them.
        with make_run(clone, port.number, {"WEB_CONCURRENCY": "", "LOG_LEVEL": ""}) as again:
            assert "installing" not in again.read_text()
            assert secret not in again.read_text()
    finally:
        port.release()
