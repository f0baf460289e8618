"""A standard output that is slow or not read drops lines, and never delays requests for long."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wrapper.metering import Usage
from wrapper.output import Output, Stderr
from wrapper.record import RequestRecord
from wrapper.telemetry.request_log import RequestLog, encode, line, text_line

LINE = b"x" * 999 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(writing)
    os.close(reading)


def test_a_pipe_without_a_reader_is_waited_for_once(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    out = Output(writing, 0.2)
    for _ in range(64):  # a pipe's 64 KiB
        out.write(LINE)
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(BlockingIOError):
            out.write(4 * LINE)
    assert time.monotonic() - began < 10  # a hundred timeouts would be twenty
    os.read(reading, 65536)
    out.write(b"again\n")


def test_a_slow_reader_gets_every_line(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    got: list[bytes] = []

    def read() -> None:
        while sum(map(len, got)) < 300 * len(LINE):
            time.sleep(0.001)
            got.append(os.read(reading, 4096))

    reader = threading.Thread(target=read)
    reader.start()
    out = Output(writing)
    for _ in range(300):
        out.write(LINE)
    reader.join()
    assert b"".join(got) == 300 * LINE


def test_the_descriptor_that_other_processes_share_stays_blocking(pipe: tuple[int, int]) -> None:
    Output(pipe[1]).write(LINE)
    assert os.get_blocking(pipe[1])


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        Output(file.fileno()).write(LINE)
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
    record = RequestRecord(method="POST", path="/v1/chat/completions", client="127.0.0.1")
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
