"""The simulated provider as a process of its own, within a `with` block."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from harness.poll import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 90.0


class Simulator:
    """Starts `python -m wrapper.simulator` on a free port; stops it at the end.

    `arguments` are more command line arguments, such as ``"--gap", "0.02"``. An `api_key` is
    passed in the environment; with a `certificate` (a PEM file, self-signed, with its key) it
    serves TLS. Unless `any_model` is False it accepts every model name. It stops when the test
    process ends.
    """

    def __init__(
        self,
        *arguments: str,
        api_key: str = "",
        port: int = 0,
        certificate: Path | None = None,
        any_model: bool = True,
    ) -> None:
        if any_model:
            arguments = ("--any-model", *arguments)
        self._arguments = arguments
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._arguments = (*arguments, "--certificate", str(certificate))
            self._tls = ssl.create_default_context(cafile=str(certificate))
            self._tls.check_hostname = False
        self._environment = {**os.environ, "SIMULATOR_API_KEY": api_key}
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "wrapper.simulator", "--exit-with-parent"]
        process = subprocess.Popen(
            [*command, "--port", str(self._port), *self._arguments],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._process = process
        watchdog = threading.Timer(_START_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            self.stop()
            raise RuntimeError(f"the simulator did not start (exit status {process.returncode})")
        self.port = json.loads(line)["port"]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process, for measuring it."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT` (with TLS `https:`), without a path."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop the process: the provider is then unreachable."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def requests(self, **wanted: Any) -> list[dict[str, Any]]:
        """The requests received, oldest first; `wanted` selects those with these values.

        A request in progress has the outcome None.
        """
        query = urllib.parse.urlencode({"book": wanted["book"]}) if "book" in wanted else ""
        found: list[dict[str, Any]] = self._ask("GET", f"requests?{query}")
        return [r for r in found if all(r[name] == value for name, value in wanted.items())]

    def books(self, **wanted: Any) -> list[dict[str, Any]]:
        """The sums of the ledger, by book, model, endpoint, outcome and status."""
        found: list[dict[str, Any]] = self._ask("GET", "books")
        return [r for r in found if all(r[name] == value for name, value in wanted.items())]

    def stats(self) -> dict[str, int]:
        """Open requests and connections; the connection of this call is one of them."""
        found: dict[str, int] = self._ask("GET", "stats")
        return found

    def reset(self) -> None:
        """Delete all requests and sums."""
        self._ask("POST", "reset")

    def wait_for(
        self, predicate: Callable[[list[dict[str, Any]]], Any], deadline: float = PATIENCE
    ) -> list[dict[str, Any]]:
        """The requests, as soon as `predicate(requests)` holds; fails after `deadline` seconds."""

        def holds() -> tuple[list[dict[str, Any]]]:
            found = self.requests()
            assert predicate(found), f"the simulator got: {found}"
            return (found,)  # a tuple, as no request at all may be what is waited for

        return eventually(holds, deadline)[0]

    def _ask(self, method: str, name: str) -> Any:
        request = urllib.request.Request(f"{self.url}/_sim/{name}", method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE, context=self._tls) as answer:
            return json.load(answer)
