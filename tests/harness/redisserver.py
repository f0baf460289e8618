"""A Redis of the test's own, on a free port, in a directory of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from harness.poll import PATIENCE, eventually
from harness.processes import ReservedPort, start
from harness.programs import require


class RedisServer:
    """`redis-server` on a loopback port that stays the same over a stop and a new start."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._program = require("redis-server", "valkey-server")
        self._directory = directory
        self._options = options
        self._reserved = ReservedPort()
        # Else a node of a cluster takes its port plus 10000, which may be in use or too high.
        self._bus = ReservedPort() if "--cluster-enabled" in options else None
        self.bus_port = self._bus.number if self._bus else 0
        self.port = self._reserved.number
        self.url = f"redis://127.0.0.1:{self.port}/0"
        # Of a client that waits for a machine that stands still as long as tests do.
        self.patient_url = (
            f"{self.url}?socket_timeout={PATIENCE:g}&socket_connect_timeout={PATIENCE:g}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Start it, and wait until it answers."""
        command = [self._program, *self._options[:1]] if self._file() else [self._program]
        options = self._options[1:] if self._file() else self._options
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options]
        command += ["--cluster-port", str(self.bus_port)] if self._bus else []
        with (self._directory / "redis.log").open("ab") as log:
            self._process = start(
                command, env=os.environ, stdout=log, stderr=log, cwd=self._directory
            )
        eventually(self.answers, what="redis-server answers")
        return self

    def _file(self) -> bool:
        """Whether the first option is a configuration file (a sentinel needs one)."""
        return bool(self._options) and not self._options[0].startswith("-")

    def answers(self) -> bool:
        return self.command("PING").startswith(b"+PONG")

    def command(self, *words: str) -> bytes:
        """The raw reply to a command, empty where the server is not there."""
        text = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
                connection.sendall(f"*{len(words)}\r\n{text}".encode())
                return connection.recv(65536)
        except OSError:
            return b""

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Kill it: what it did not write down is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        self._reserved.release()
        if self._bus is not None:
            self._bus.release()
