"""The load generator of `make bench`: a run of each kind against the provider itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks import driver
from benchmarks.driver import Planned
from benchmarks.variants import direct

if TYPE_CHECKING:
    from harness.simulator import Simulator


def test_a_closed_loop_counts_responses_and_events(simulator: Simulator) -> None:
    with direct(simulator.url) as relay:
        request = relay.request("events=5; stamp", stream=True)
        load = driver.run(relay.port, request, responses=6, connections=2, record=True)
        assert load.responses == 6
        assert load.events == 6 * 8  # the role, five, the last one, [DONE]
        assert all(len(driver.delays(recording)) == 7 for recording in load.recordings)
        assert driver.run(relay.port, relay.request(), seconds=0.001, connections=3).responses >= 3


def test_a_response_that_is_no_200_ends_a_closed_loop(simulator: Simulator) -> None:
    with direct(simulator.url) as relay, pytest.raises(driver.BenchmarkFailed, match="503"):
        driver.run(relay.port, relay.request("status=503"), responses=1, connections=1)


def test_an_open_loop_has_the_end_of_each_request(simulator: Simulator) -> None:
    opened: list[int] = []
    with direct(simulator.url) as relay:
        endless = relay.request("events=100000; gap=0.01", stream=True)
        plan = [
            Planned(0.0, relay.request()),
            Planned(0.0, relay.request("events=3", stream=True)),
            Planned(0.01, relay.request("status=500")),
            Planned(0.02, endless, leave_after=4),
            Planned(0.03, relay.request("cut=2", stream=True)),
        ]
        found = driver.open_loop(relay.port, plan, look=opened.append)
    assert [response.status for response in found] == [200, 200, 500, 200, 200]
    assert [response.complete for response in found] == [True, True, True, False, False]
    assert [response.left for response in found] == [False, False, False, True, False]
    assert found[1].events == 6
    assert found[3].events >= 4
    whole = [response for response in found if response.complete]
    assert all(response.due <= response.first <= response.end for response in whole)
    assert len(opened) == 1


def test_what_does_not_end_is_given_up(simulator: Simulator) -> None:
    with direct(simulator.url) as relay:
        plan = [Planned(0.0, relay.request("stall-before"))]
        [response] = driver.open_loop(relay.port, plan, patience=0.2)
    assert (response.status, response.complete) == (0, False)
