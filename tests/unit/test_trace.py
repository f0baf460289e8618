"""The map of a request in CONTRIBUTING.md: how many calls one streamed chat makes, and where."""

from __future__ import annotations

import re
from pathlib import Path

from tools.trace_request import table, trace

CONTRIBUTING = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()
ROW = re.compile(r"\| (\S.*?) \| (\d+) \| (.+) \|")


def test_one_streamed_chat_makes_few_calls_and_the_map_shows_them() -> None:
    calls = [call for part in trace() for call in part]
    assert len(calls) <= 125
    assert len({call.module for call in calls}) <= 15
    written, found = ROW.findall(CONTRIBUTING), ROW.findall(table(calls))
    assert [step for step, _, _ in written] == [step for step, _, _ in found]
    for (step, wrote, _), (_, counted, _) in zip(written, found, strict=True):
        assert abs(int(wrote) - int(counted)) <= 5, (
            f"{step}: {counted} calls; put the table of `python tools/trace_request.py` into"
            " CONTRIBUTING.md"
        )
