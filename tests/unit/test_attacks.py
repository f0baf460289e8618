"""Small mechanisms behind what `tests/test_attacks.py` tries from outside."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import msgspec
import pytest

from harness import effort
from wrapper.config import ConfigError, load
from wrapper.formats import http1
from wrapper.formats.jsonbytes import MAX_MEMBERS, has_duplicate, members
from wrapper.metering import set_include_usage
from wrapper.proxy.model_names import MAX_VALUES, names_in_body
from wrapper.record import RequestRecord
from wrapper.telemetry.request_log import line

READ = frozenset({"model", "stream", "stream_options"})


@pytest.mark.parametrize(
    ("method", "status", "again"),
    [("GET", 200, True), ("HEAD", 200, False), ("GET", 204, False), ("GET", 304, False)],
)
def test_a_connection_serves_again_only_when_the_end_was_seen(
    method: str, status: int, again: bool
) -> None:
    head = http1.parse_head(b"HTTP/1.1 %d X\r\nContent-Length: 0" % status, method)
    assert head.keep_alive is again


@pytest.mark.parametrize("line", [b"X:%b\x01", b"X: a%bb", b"X: a%b\x01", b"X%b: a"])
def test_a_long_run_of_spaces_in_an_answers_head_is_read_at_once(line: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(http1.ProtocolError):
        http1.parse_head(b"HTTP/1.1 200 OK\r\n" + line % (b" \t" * 30_000), "GET")
    assert time.process_time() - began < 5  # a millisecond; were it quadratic, a minute


def test_white_space_around_a_headers_value_is_not_a_part_of_it() -> None:
    head = http1.parse_head(b"HTTP/1.1 200 OK\r\nX: \t a b \t\r\nY:", "GET")
    assert head.headers == [("X", "a b"), ("Y", "")]


def test_what_looks_into_a_body_takes_a_time_that_its_size_does_not_multiply() -> None:
    many = b",".join(b'"%x":1' % number for number in range(500_000))
    wide = b"[" + b",".join([b"[]"] * 2_000_000) + b"]"

    def look() -> None:
        with pytest.raises(ValueError, match="more than"):
            has_duplicate(b'{"x":"\\u0041",' + many + b"}", READ)
        assert not has_duplicate(b'{"x":"\\u0041","a":1,"a":2,"b":' + wide + b"}", READ)
        assert set_include_usage(b'{"stream_options":null,"b":' + wide + b"}").endswith(wide + b"}")

    assert effort.calls(look) < 40 * MAX_MEMBERS


@pytest.mark.parametrize(
    "members",
    [
        b'"tools":[' + b"{}," * 2_000_000 + b"{}]",
        b'"tools":[' + b"[]," * 15_000 + b"[]]" + b',"fallbacks":["' + b"x" * (1 << 20) + b'"]',
        b",".join(b'"x%d":[{"y":[]}]' % number for number in range(2000)),
        b'"tools":' + b"[" * 400_000 + b"]" * 400_000,
    ],
    ids=["items", "large", "members", "deep"],
)
def test_what_looks_for_models_in_a_body_has_a_bound(members: bytes) -> None:
    def look() -> None:
        with pytest.raises(ValueError, match=r"more than|too deep"):
            list(names_in_body(b"{" + members + b"}"))

    assert effort.calls(look) < 3 * MAX_VALUES


def test_what_looks_for_models_skips_what_is_said() -> None:
    messages = b'{"model":"a","messages":[' + b'{"model":"b"},' * 500_000 + b'{}],"tools":[]}'
    found: list[str] = []
    assert effort.calls(lambda: found.extend(names_in_body(messages))) < 500
    assert found == ["a"]


def test_a_thousand_members_are_read() -> None:
    fields = ",".join(f'"{number}":{{}}' for number in range(MAX_MEMBERS))
    assert len(members(f"{{{fields}}}".encode())) == MAX_MEMBERS


def test_a_metrics_token_whose_file_is_gone_opens_no_door(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[server]\nmetrics_token = { file = "gone" }\n')
    with pytest.raises(ConfigError, match="open to everyone"):
        load({"WRAPPER_CONFIG": str(config)})


def test_a_providers_long_id_does_not_tear_the_log() -> None:
    """Several workers write to one pipe, which takes 4096 bytes at once (pipe(7))."""
    names = {"upstream_request_id": "\u00e4" * 5000, "model": "\x01" * 5000}
    fields = msgspec.structs.asdict(line(RequestRecord("POST", **names)))
    assert len(json.dumps(fields, ensure_ascii=False)) < 3000
