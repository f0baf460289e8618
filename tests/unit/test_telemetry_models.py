"""A model's name in the usage table and as a metric label, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from wrapper.metering import Usage
from wrapper.record import RequestRecord
from wrapper.store import Sums
from wrapper.telemetry import Telemetry
from wrapper.telemetry.instruments import CALLS, COST, TOKENS
from wrapper.telemetry.labels import MAX_MODELS


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    telemetry.register(["alias"], [], ["priced"])
    yield telemetry
    for metric in (CALLS, COST, TOKENS):
        metric.clear()


def record(model: str, *, key: str = "web-app", status: int = 200) -> RequestRecord:
    return RequestRecord(
        "POST",
        api_key=key,
        provider="groq",
        model=model,
        relayed=True,
        status=status,
        outcome="completed",
    )


def row(model: str, requests: int = 1, total: int = 10, cost: int = 5) -> Sums:
    group = ("web-app", "groq", model, "completed")
    return Sums(group, requests, total, 0, total, 0, 0, 0.0, cost, 0, 0)


def series(metric: str) -> dict[str, float]:
    """The values by model."""
    return {
        sample.labels["model"]: sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == metric
    }


def test_the_usage_table_has_the_true_name_where_there_is_no_label_left(
    telemetry: Telemetry,
) -> None:
    odd = [record(f"odd-{n}") for n in range(MAX_MODELS + 50)]
    assert [telemetry.ledger_model(each) for each in odd] == [each.model for each in odd]
    labels = [telemetry.model_label(telemetry.ledger_model(each)) for each in odd]
    assert labels[: MAX_MODELS - 1] == [each.model for each in odd[: MAX_MODELS - 1]]
    assert set(labels[MAX_MODELS - 1 :]) == {"other"}  # one place is reserved
    assert telemetry.model_label(telemetry.ledger_model(record("alias"))) == "alias"
    assert telemetry.model_label(telemetry.ledger_model(record("priced"))) == "other"
    assert telemetry.ledger_model(record("priced", status=500)) == "priced"


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (record("typed", status=404), "other"),
        (record("typed", status=200), "typed"),
        (record("alias", status=403), "alias"),
        (record("priced", status=403), "priced"),
        (record("labelled", status=503), "labelled"),
        (record("alias", key="client", status=401), "other"),
        (record("typed", key="client"), "typed"),
        (record(""), "none"),
        (record("", status=500), "none"),
    ],
)
def test_a_name_is_booked_where_more_than_the_caller_knows_it(
    telemetry: Telemetry, asked: RequestRecord, name: str
) -> None:
    telemetry.model_label(telemetry.ledger_model(record("labelled")))
    assert telemetry.ledger_model(asked) == name
    assert telemetry.model_label(telemetry.ledger_model(asked)) == name


def test_a_name_that_failed_is_no_label_and_not_booked(telemetry: Telemetry) -> None:
    failed = RequestRecord("GET", api_key="web-app", model="m", relayed=True, status=200)
    assert (
        telemetry.ledger_model(failed)
        == telemetry.model_label(telemetry.ledger_model(failed))
        == "other"
    )


def test_of_more_names_than_places_the_rest_is_restored_as_other(telemetry: Telemetry) -> None:
    rows = [row(f"odd-{n:03}", requests=1000 - n) for n in range(250)]
    rows += [row("alias"), row("other", requests=7), row("none", total=0, cost=0)]
    telemetry.restore(rows)
    calls = series("api_key_requests_total")
    assert len(calls.keys() - {"other", "none"}) == MAX_MODELS
    assert calls["alias"] == 1
    assert calls["odd-198"] == 1000 - 198
    rest = sum(1000 - n for n in range(199, 250))
    assert calls["other"] == rest + 7
    assert sum(calls.values()) == sum(each.requests for each in rows)
    assert series("token_usage_total")["other"] == 10 * 52
    assert sum(series("token_usage_total").values()) == sum(each.total for each in rows)
    assert sum(series("api_key_cost_usd_total").values()) == sum(each.cost for each in rows)


def test_a_request_goes_on_with_the_restored_series(telemetry: Telemetry) -> None:
    telemetry.restore([row(f"odd-{n}", requests=2) for n in range(MAX_MODELS + 1)])
    for model in ("odd-0", f"odd-{MAX_MODELS}", "new", "alias"):
        again = record(model)
        again.usage = Usage(1, 1, 2)
        telemetry.count(again, telemetry.ledger_model(again), proxy_request=True, metering=True)
    calls = series("api_key_requests_total")
    assert calls["odd-0"] == 3
    assert calls["alias"] == 1
    assert calls["other"] == 2 * 2 + 2
    assert series("token_usage_total")["odd-0"] == 12


def test_with_metering_off_no_model_is_counted(telemetry: Telemetry) -> None:
    telemetry.count(record("m"), "m", proxy_request=True, metering=False)
    assert not series("api_key_requests_total")


def test_a_failover_is_each_failure_but_that_of_the_last_attempt() -> None:
    record = RequestRecord("POST", api_key="web-app")
    assert record.failovers == []
    record.attempted("groq", "m")
    record.upstream_failed("timeout")
    assert record.failovers == []
    record.attempted("openai", "m")
    assert record.failovers == [("groq", "timeout")]
    record.upstream_failed("status_503")
    assert record.failovers == [("groq", "timeout")]
