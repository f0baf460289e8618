"""The simulator's ledger: what was really sent, to whom, and how each request ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from harness import raw

if TYPE_CHECKING:
    from harness.simulator import Simulator


def request(simulator: Simulator, book: str, instructions: str, **more: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "one two three"}], **more}
    headers = (("x-sim", instructions), ("x-sim-book", book))
    return raw.request(
        simulator.port, "POST", "/v1/chat/completions", json.dumps(body).encode(), headers=headers
    )


def ask(simulator: Simulator, book: str, instructions: str, **more: Any) -> raw.Answer:
    return raw.exchange(simulator.port, request(simulator, book, instructions, **more))


USAGE_ASKED: Any = {"stream": True, "stream_options": {"include_usage": True}}


def test_sums_are_kept_by_tag_model_endpoint_and_outcome(simulator: Simulator) -> None:
    for instructions in ("events=4; cached=1", "events=6; reasoning=2"):
        ask(simulator, "sums", instructions)
    ask(simulator, "sums", "events=5", **USAGE_ASKED)
    ask(simulator, "sums", "status=500")
    good, bad = simulator.books(book="sums")
    assert bad["status"] == 500
    assert bad["total"] == 0
    assert {name: good[name] for name in ("model", "endpoint", "outcome", "status")} == {
        "model": "m",
        "endpoint": "chat/completions",
        "outcome": "completed",
        "status": 200,
    }
    assert good["requests"] == 3
    assert (good["prompt"], good["completion"], good["total"]) == (9, 17, 26)
    assert (good["cached"], good["reasoning"]) == (1, 2)


@pytest.mark.parametrize(
    "instructions", ["echo; size=3; drip=0.3", "stream; gap=0.3", "stream; gap=0.3; framing=http10"]
)
def test_a_client_with_the_whole_response_finds_it_in_the_ledger(
    simulator: Simulator, instructions: str
) -> None:
    stream, instructions = instructions.startswith("stream"), instructions.removeprefix("stream; ")
    asked = request(simulator, f"found {instructions}", f"{instructions}; events=2", stream=stream)
    with raw.Connection(simulator.port).send(asked) as connection:
        assert connection.read().status == 200
        (found,) = simulator.requests(book=f"found {instructions}")
        assert found["outcome"] == "completed"


def test_the_tag_is_the_user_unless_a_header_sets_it(simulator: Simulator) -> None:
    body = b'{"model": "m", "user": "somebody", "messages": [{"role": "user", "content": "x"}]}'
    raw.post(simulator.port, "/v1/chat/completions", body)
    assert simulator.books(book="somebody")[0]["requests"] == 1


def test_usage_that_was_not_reported_is_kept_apart(simulator: Simulator) -> None:
    ask(simulator, "unreported", "events=4", stream=True)
    ask(simulator, "unreported", "events=4; no-usage")
    (line,) = simulator.books(book="unreported")
    assert (line["total"], line["unsent"]["prompt"], line["unsent"]["completion"]) == (0, 6, 8)


def test_usage_that_was_cut_off_is_not_sent(simulator: Simulator) -> None:
    ask(simulator, "cut", "events=4; cut=3", **USAGE_ASKED)
    ask(simulator, "cut", "events=4; cut=50")
    (line,) = simulator.books(book="cut")
    assert line["outcome"] == "broken"
    assert line["events"] == 3
    assert (line["total"], line["unsent"]["completion"]) == (0, 8)


def test_usage_sent_before_the_cut_counts(simulator: Simulator) -> None:
    ask(simulator, "late", "events=4; cut=7", **USAGE_ASKED)
    (line,) = simulator.books(book="late")
    assert (line["outcome"], line["completion"]) == ("broken", 4)


def test_a_client_that_disconnects_between_events_is_noticed_at_once(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        connection.send(request(simulator, "left", "events=50; gap=600", **USAGE_ASKED))
        connection.read_head()
    simulator.wait_for(lambda found: [r for r in found if r["book"] == "left" and r["outcome"]])
    (record,) = simulator.requests(book="left")
    assert record["outcome"] == "aborted"
    assert record["events_sent"] <= 1
    assert record["unsent"]["completion"] == 50


def test_a_client_that_disconnects_before_the_head_is_noticed_at_once(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        connection.send(request(simulator, "early", "delay=600"))
        simulator.wait_for(lambda found: [r for r in found if r["book"] == "early"])
        connection.reset()
    simulator.wait_for(lambda found: [r for r in found if r["book"] == "early" and r["outcome"]])
    (record,) = simulator.requests(book="early")
    assert (record["outcome"], record["status"]) == ("aborted", None)


def test_a_client_that_disconnects_during_its_own_body(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        connection.send(b"POST /half HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
    simulator.wait_for(
        lambda found: [r["outcome"] for r in found if r["target"] == "/half"] == ["aborted"]
    )


def test_requests_in_progress_are_listed(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        connection.send(request(simulator, "open", "stall=1", **USAGE_ASKED))
        found = simulator.wait_for(
            lambda found: [r for r in found if r["book"] == "open" and r["events_sent"] == 1]
        )
        assert found[-1]["outcome"] is None
        assert simulator.stats()["open"] == 1


def test_connections_are_numbered(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        for _ in range(3):
            connection.send(request(simulator, "kept", "")).read()
    found = simulator.requests(book="kept")
    assert len({record["connection"] for record in found}) == 1
    assert [record["nth_on_connection"] for record in found] == [0, 1, 2]
