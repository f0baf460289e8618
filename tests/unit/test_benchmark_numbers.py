"""What `make bench` computes: slices, ratios, ledgers beside each other, the check's verdict."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from benchmarks import check, measures, report, sampler, summary
from benchmarks.ledgers import Counted, of_provider, verdict
from benchmarks.measures import Held
from benchmarks.summary import Round, Slice
from benchmarks.variants import FEATURED, FEATURES
from wrapper.proxy import finalize

PROVIDER = Counted(
    completed=10, errors=1, aborted=2, prompt=100, completion=50, cost=0.5, aborted_low=60
)


def test_a_slice_that_was_stolen_from_counts_for_nothing() -> None:
    slices = [Slice(0.0, {"call": 1.0}), Slice(0.021, {"call": 50.0}), Slice(0.02, {"call": 3.0})]
    assert summary.value(slices, "call") == 2.0
    assert summary.dropped([{"gateway": slices}]) == (1, 3)


def test_a_round_without_a_slice_left_is_no_round() -> None:
    rounds: list[Round] = [
        {"gateway": [Slice(0.5, {"call": 9.0})], "naive": [Slice(0.0, {"call": 1.0})]},
        {"gateway": [Slice(0.0, {"call": 2.0})], "naive": [Slice(0.0, {"call": 4.0})]},
    ]
    assert summary.of_rounds(rounds, "gateway", "call") == 2.0
    assert summary.ratio(rounds, "gateway", "naive", "call") == 0.5
    assert summary.difference(rounds, "gateway", "naive", "call") == -2.0
    assert summary.of_rounds(rounds, "gateway", "event") is None
    assert summary.ratio(rounds, "gateway", "nginx", "call") is None


def test_a_ratio_is_made_within_each_round() -> None:
    rounds: list[Round] = [
        {"a": [Slice(0.0, {"call": fast})], "b": [Slice(0.0, {"call": slow})]}
        for fast, slow in ((1.0, 2.0), (10.0, 20.0), (4.0, 1.0))
    ]
    assert summary.ratio(rounds, "a", "b", "call") == 0.5


def test_a_tail_is_of_all_samples_that_are_left_of_a_round() -> None:
    slices = [
        Slice(0.0, samples={"ttft": [float(number) for number in range(50)]}),
        Slice(0.0, samples={"ttft": [float(number) for number in range(50, 100)]}),
        Slice(0.3, samples={"ttft": [1000.0]}),
    ]
    assert summary.tail(slices, "ttft", 0.5) == 50.0
    assert summary.tail(slices, "ttft", 0.99) == 99.0
    assert summary.tail(slices, "delay", 0.99) is None


def test_what_is_worse_than_its_tolerance_is_named() -> None:
    committed = {"CPU: a call, gateway to naive": 0.4, "memory: RSS after load": 1.0, "start: x": 1}
    good = {"CPU: a call, gateway to naive": 0.43, "memory: RSS after load": 1.05, "start: x": 1.2}
    assert check.verdict(committed, good) == []
    worse = check.verdict(committed, {**good, "CPU: a call, gateway to naive": 0.45})
    assert worse == ["CPU: a call, gateway to naive: ×0.45, ×0.40 before (+10% is allowed)"]
    assert check.verdict(committed, {"start: x": 1.0, "memory: RSS after load": 0.5}) == [
        "CPU: a call, gateway to naive: was not measured (×0.40 before)"
    ]


def test_other_conditions_are_named() -> None:
    assert check.conditions({"python": "3.11", "system": "Linux"}, {"python": "3.14"}) == [
        "python: 3.14, in results.json 3.11",
        "system: None, in results.json Linux",
    ]


def test_the_providers_ledger_has_whole_failed_and_aborted_requests_apart() -> None:
    none = {"prompt": 0, "completion": 0}
    rows = [
        {"book": "a", "outcome": "completed", "status": 200, "requests": 3, "unsent": none}
        | {"prompt": 30, "completion": 6, "total": 36},
        {"book": "a", "outcome": "completed", "status": 500, "requests": 1, "unsent": none}
        | {"prompt": 0, "completion": 0, "total": 0},
        {"book": "a", "outcome": "aborted", "status": 200, "requests": 1}
        | {"prompt": 0, "completion": 0, "total": 0, "unsent": {"prompt": 10, "completion": 40}},
        {"book": "b", "outcome": "completed", "status": 200, "requests": 9, "unsent": none}
        | {"prompt": 90, "completion": 9, "total": 99},
    ]
    assert of_provider(rows, "a", {"input": 1e6, "output": 2e6}) == Counted(
        completed=3,
        errors=1,
        aborted=1,
        prompt=30,
        completion=6,
        cost=42.0,
        aborted_low=50,
        aborted_high=50,
    )


@pytest.mark.parametrize(
    ("relay", "expected"),
    [
        (None, "counts nothing"),
        (Counted(), "counts nothing"),
        (Counted(10, 1, 2, 100, 50, 0.5, 4, 90), "right"),
        (
            Counted(10, 1, 2, 100, 50, 0.5, 4, 59),
            "60 tokens of aborted requests outside 4 to 59",
        ),
        (
            Counted(10, 1, 2, 90, 50, 0.5),
            "prompt 90 in place of 100 (-10.0%); 60 tokens of aborted requests not reported",
        ),
    ],
)
def test_who_counts_right(relay: Counted | None, expected: str) -> None:
    assert verdict(PROVIDER, relay) == expected


def test_what_was_counted_since_then() -> None:
    before = Counted(completed=1, prompt=12, cost=0.5)
    found = Counted(completed=4, prompt=48, cost=2.0, errors=1) - before
    assert found == Counted(completed=3, prompt=36, cost=1.5, errors=1)
    assert found.requests == 4


def frames(*paths: str) -> dict[str, Any]:
    """The place of a sample in functions in these files, each called by the next."""
    names: dict[str, Any] = {"inner": lambda: sampler.place(sys._getframe(1))}
    for path in paths:
        exec(compile("def outer(inner=inner):\n    return inner()\n", path, "exec"), names)
        names["inner"] = names["outer"]
    return names


@pytest.mark.parametrize(
    ("paths", "place"),
    [
        (("/x/wrapper/proxy/forward.py",), "wrapper/proxy/forward.py:outer"),
        (("/lib/json/decoder.py", "/x/wrapper/auth.py"), "wrapper/auth.py:outer"),
        (
            ("/v/site-packages/gevent/_socketcommon.py", "/x/wrapper/server/response.py"),
            "wrapper/server/response.py:outer",
        ),
        (("/v/site-packages/flask/app.py", "/x/wrapper/app.py"), "flask/app.py:outer"),
    ],
)
def test_a_sample_is_of_the_innermost_function_of_a_package(
    paths: tuple[str, ...], place: str
) -> None:
    assert frames(*paths)["outer"]() == place


def test_samples_are_shown_by_layer() -> None:
    samples = {
        "wrapper/telemetry/request_log.py:write": 1,
        "wrapper/telemetry/mapped.py:add": 2,
        "gevent/_socketcommon.py:send": 3,
        "msgspec/x.py:y": 4,
    }
    assert sampler.by_layer(samples) == {
        "log": 1,
        "metrics": 2,
        "deadlines, waiting, event loop": 3,
        sampler.REST: 4,
    }


def test_requests_are_due_at_the_same_random_times_for_each_variant() -> None:
    times = measures.arrivals(20, 1.5, seed=7)
    assert times == measures.arrivals(20, 1.5, seed=7) == sorted(times)
    assert len(times) == 30
    assert 0 <= times[0] <= times[-1] < 1.5


def test_each_feature_is_measured_with_and_without() -> None:
    assert {name for pair in FEATURES.values() for name in pair} == set(FEATURED)
    assert "recent_request" in vars(finalize)  # `hooked_gunicorn` replaces it


def test_the_report_keeps_what_is_written_by_hand_and_leaves_out_what_was_not_measured() -> None:
    held = {"gateway": [Held(4000, 0, 29.97), Held(1000, 3, float("nan"))]}
    results = report.Results({"python": "3.11"}, held=held)
    text = report.markdown(results, f"{report.LEFT}\n\nThe floor.\n")
    assert "| gateway | 4,000 | 0 | 30.0 |\n| gateway | 1,000 | 3 | – |" in text
    assert text.endswith("\n\n## What is left, and why\n\nThe floor.\n")
    assert "## Cost" not in text


def test_the_ratios_of_the_check_are_to_naive_and_to_the_gateway_without_a_feature() -> None:
    rounds: list[Round] = [
        {"naive": [Slice(0.0, {"call": 2.0})], "gateway": [Slice(0.0, {"call": 1.0})]}
    ]
    features: list[Round] = [
        {
            "everything": [Slice(0.0, {"call": 3.0})],
            "bare": [Slice(0.0, {"call": 2.0})],
            "log off": [Slice(0.0, {"call": 3.1})],  # the log costs nothing that can be seen
        }
    ]
    found = report.ratios(report.Results({}, rounds=rounds, features=features))
    assert found == {
        "CPU: a call, gateway to naive": 0.5,
        "CPU: a call, log": 1.0,
        "CPU: a call, all of these": 1.5,
    }
    assert {name.partition(":")[0] for name in (*found, *report.CHECKED)} == set(check.TOLERANCES)
