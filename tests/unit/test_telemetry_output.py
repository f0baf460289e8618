"""A standard output that is slow or not read drops lines, and never delays requests for long."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.poll import eventually
from wrapper import output
from wrapper.endpoints import find_endpoint
from wrapper.metering import Usage
from wrapper.output import Output, QueuedOutput, Stderr
from wrapper.record import RequestRecord
from wrapper.telemetry.request_log import RequestLog, encode, line, text_line

LINE = b"x" * 999 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(writing)
    os.close(reading)


PIPE = 64  # lines, in 64 KiB


def full(writing: int, out: Output | QueuedOutput) -> None:
    """Fill the pipe."""
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 65536)
    for _ in range(PIPE):
        out.write(LINE)


@pytest.mark.parametrize("is_read", [False, True], ids=["stuck", "slow"])
def test_a_reader_of_stderr_is_waited_for_once_a_second(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, *, is_read: bool
) -> None:
    """A slow one, which makes room for each line at last, costs no more than a stuck one."""
    reading, writing = pipe
    waits: list[float] = []

    def wait(fd: int, seconds: float) -> bool:
        waits.append(seconds)
        return is_read and bool(os.read(reading, 4096))

    now = [1000.0]
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: now[0]))
    out = Output(writing, wait=wait)
    full(writing, out)
    for second in range(3):
        now[0] += output.PAUSE
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                out.write(4 * LINE)
        assert waits == [output.SHORT] * (second + 1)
    assert out.lost == 60 - 3 * is_read


def test_a_line_for_a_reader_that_is_behind_waits_without_its_writer(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    out = QueuedOutput(writing, room=20 * len(LINE))
    full(writing, out)
    for _ in range(20):
        out.write(LINE)
    for _ in range(30):
        with pytest.raises(BlockingIOError):
            out.write(LINE)
    assert out.lost == 30
    got = b""
    while len(got) < (PIPE + 20) * len(LINE):
        got += os.read(reading, 4096)
    assert got == (PIPE + 20) * LINE
    eventually(lambda: not out._queue)
    out.write(b"again\n")
    assert os.read(reading, 4096) == b"again\n"
    assert out.lost == 30


def test_a_slow_reader_gets_the_lines_in_their_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lines = [b"%06d" % number + LINE[6:] for number in range(300)]
    got = b""

    def read() -> None:
        nonlocal got
        while len(got) < 300 * len(LINE):
            got += os.read(reading, 4096)

    reader = threading.Thread(target=read)
    out = QueuedOutput(writing, room=300 * len(LINE))
    for each in lines[:200]:
        out.write(each)
    reader.start()
    for each in lines[200:]:
        out.write(each)
    reader.join(60)
    assert got == b"".join(lines)
    assert not out.lost


def test_at_the_end_a_reader_has_a_moment(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    out = QueuedOutput(writing, room=20 * len(LINE))
    full(writing, out)
    for _ in range(20):
        out.write(LINE)
    left = (PIPE + 20) * len(LINE)

    def read() -> None:
        nonlocal left
        while left:
            left -= len(os.read(reading, 4096))

    reader = threading.Thread(target=read)
    reader.start()
    out.flush(60)
    reader.join(60)
    assert not out.lost
    for _ in range(PIPE + 10):
        out.write(LINE)
    out.flush(0.0)
    assert out.lost > 0


def test_lines_that_wait_are_lost_when_the_reader_goes(pipe: tuple[int, int]) -> None:
    reading, writing = os.pipe()
    out = QueuedOutput(writing, room=20 * len(LINE))
    full(writing, out)
    for _ in range(20):
        out.write(LINE)
    os.close(reading)
    eventually(lambda: out.lost == 20)
    with pytest.raises(BrokenPipeError):
        out.write(LINE)
    assert out.lost == 21
    os.close(writing)


@pytest.mark.parametrize("kind", [Output, QueuedOutput])
def test_the_descriptor_that_other_processes_share_stays_blocking(
    pipe: tuple[int, int], kind: type[Output] | type[QueuedOutput]
) -> None:
    kind(pipe[1]).write(LINE)
    assert os.get_blocking(pipe[1])


def test_a_socket_that_is_not_read_does_not_block_and_stays_as_it_is() -> None:
    """As standard output is under systemd."""
    journal, ours = socket.socketpair()
    with journal, ours:
        out = Output(ours.fileno(), wait=lambda *_: False)
        lines = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                out.write(LINE)
                lines += 1
        assert lines
        assert out.lost == 1
        assert os.get_blocking(ours.fileno())
        ours.shutdown(socket.SHUT_WR)
        received = 0
        while data := journal.recv(65536):
            received += len(data)
        assert received // len(LINE) == lines


def test_lines_for_a_socket_that_is_read_slowly_wait_without_their_writer() -> None:
    journal, ours = socket.socketpair()
    with journal, ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        out = QueuedOutput(ours.fileno(), room=300 * len(LINE))
        for _ in range(300):
            out.write(LINE)
        received = 0
        while received < 300 * len(LINE):
            received += len(journal.recv(1000))
        out.flush(20)
        assert out.lost == 0


@pytest.mark.parametrize("kind", [Output, QueuedOutput])
def test_a_file_is_appended_to(tmp_path: Path, kind: type[Output] | type[QueuedOutput]) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        kind(file.fileno()).write(LINE)
    assert (tmp_path / "log").read_bytes() == b"before\n" + LINE


UNPRINTABLE = [
    *(
        "\x00",
        "\x1b",
        "\n",
        "\x7f",
        "\x80",
        "\x85",
        "\x9b",
        "\x9f",
        "\xa0",
        "\xad",
        "\u061c",
        "\u200b",
    ),
    *("\u200e", "\u200f", "\u2028", "\u2029", "\u202a", "\u202e", "\u2066", "\u2069", "\ufeff"),
    *("\ufff9", "\ue000", "\U000e0001", "\U0010ffff"),
]


@pytest.mark.parametrize("char", UNPRINTABLE, ids=ascii)
def test_what_cannot_be_printed_is_escaped(char: str) -> None:
    """A provider's name of a model must not command a terminal or turn its writing round."""
    name = f"a{char}b \u00fc \u4e2d \U0001f600"
    written = encode(line(RequestRecord("POST", model=name, upstream_request_id=char)))
    assert written.decode().isprintable()
    assert "\u00fc \u4e2d \U0001f600" in written.decode()
    found = json.loads(written)
    assert (found["model"], found["upstream_request_id"]) == (name, char)


def test_escaped_names_do_not_tear_the_log() -> None:
    """Several workers write to one pipe, which takes 4096 bytes at once (pipe(7))."""
    names = {"model": "\U000e0001" * 5000, "served_model": "\U000e0002" * 5000}
    record = RequestRecord("POST", unpriced="\U000e0002" * 5000, **names)
    record.upstream_request_id = "\x9b" * 5000
    assert len(encode(line(record))) < 4096


def test_what_was_lost_on_stderr_is_counted_and_told(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    stderr = Stderr(fd=writing)
    for _ in range(70):
        print(LINE.decode(), end="", file=stderr)
    assert 0 < stderr.lost < 10
    os.read(reading, 65536)
    print("half a line", end="", file=stderr)
    assert os.get_blocking(writing)  # that belongs to others too
    print(" and the rest", file=stderr)
    told, line = os.read(reading, 65536).decode().splitlines()[-2:]
    assert json.loads(told)["message"].endswith(f": {stderr.lost}")
    assert line == "half a line and the rest"


def test_on_a_terminal_a_request_is_a_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    record = RequestRecord(method="POST", path="/v1/<path>", client="127.0.0.1")
    record.endpoint = find_endpoint("POST", "/openai/v1/chat/completions")
    record.api_key, record.provider, record.model = "web", "groq", "gpt\x1b[2J\u202e"
    record.status, record.cost, record.usage = 200, 1_500_000, Usage(12, 30, 42)
    record.outcome = "completed"
    text = text_line(line(record)).decode()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  200  POST  /v1/chat/completions  key web  gpt\\u001b\[2J\\u202e at groq"
        r"  12 \+ 30 tokens  0\.000002 USD  \d+ ms",
        text,
    )
    monkeypatch.setattr("wrapper.telemetry.request_log.is_terminal", lambda fd: fd == 1)
    written: list[bytes] = []
    log = RequestLog()
    monkeypatch.setattr(log._output, "write", written.append)
    log.write(record)
    assert written[0].decode().rpartition("  ")[0][8:] == text.rpartition("  ")[0][8:]


def test_on_a_terminal_a_refusal_says_why() -> None:
    record = RequestRecord(method="GET", path="/v1/models", client="127.0.0.1")
    record.refused(401, "invalid_api_key")
    text = text_line(line(record)).decode()
    assert text[8:].startswith("  401  GET  /v1/models  invalid_api_key  ")
