"""`usage`: what a person, a script and a spreadsheet read."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from wrapper.__main__ import main
from wrapper.cli.usage import short_usd, since
from wrapper.metering import Usage, exact_usd
from wrapper.store import Entry, open_store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("WRAPPER_STORE", f"sqlite:///{tmp_path}/usage.db")
    monkeypatch.setenv("WRAPPER_KEYS", f"{tmp_path}/keys.toml")
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> tuple[int, str, str]:
        try:
            code = main(["usage", *options])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def used(run: Run, tmp_path: Path) -> Run:
    """Two keys, two models, one unmetered answer, one unpriced request, one old request."""
    store = open_store(f"sqlite:///{tmp_path}/usage.db")
    now = time.time()
    usage = Usage(1000, 100, 1100, cached=10, reasoning=5)
    store.settle(Entry(now, "web", "groq", "llama", "completed", usage, 1_234_567))
    store.settle(Entry(now, "web", "groq", "llama", "completed", usage, 1_234_567))
    store.settle(Entry(now, "batch", "openai", "gpt", "completed", usage, None))
    store.settle(Entry(now, "batch", "openai", "gpt", "completed", unmetered=True))
    store.settle(Entry(now - 40 * 86_400, "old", "groq", "llama", "completed", usage, 5))
    store.close()
    return run


def test_the_table_shows_sums_and_what_is_missing_from_them(used: Run) -> None:
    code, out, err = used()
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split()[:4] == ["key", "model", "requests", "prompt"]
    assert lines[1].split() == [
        "batch",
        "gpt",
        "2",
        "1,000",
        "10",
        "100",
        "5",
        "1,100",
        "-",  # not known, which is not nothing
        "1",
        "1",
    ]
    assert lines[2].split()[:4] == ["web", "llama", "2", "2,000"]
    assert lines[3].split()[:3] == ["total", "4", "3,000"]
    assert "unmetered: 1: responses" in out
    assert "unpriced: 1: responses" in out
    assert "old" not in out


def test_an_unknown_key_is_a_wrong_argument(used: Run, tmp_path: Path) -> None:
    code, out, err = used("--key", "wbe")
    assert (code, out) == (2, "")
    assert err == "error: --key wbe: there is no such key; did you mean 'web'?\n"
    assert used("--key", "old")[0] == 0  # revoked, but in the table
    text = f'[keys.fresh]\nsha256 = "{"a" * 64}"\n'
    (tmp_path / "keys.toml").write_text(text)
    assert used("--key", "fresh")[0] == 0  # not used yet


def test_csv_has_every_digit(used: Run) -> None:
    _, out, _ = used("--format", "csv", "--by", "key,day", "--since", "365d")
    rows = {row["key"]: row for row in csv.DictReader(io.StringIO(out))}
    assert rows["web"]["cost_usd"] == "0.000002469134"
    assert rows["old"]["cost_usd"] == "0.000000000005"
    assert rows["batch"]["unmetered"] == rows["batch"]["unpriced"] == "1"


def test_json_has_rows_and_their_total(used: Run) -> None:
    _, out, _ = used("--format", "json", "--by", "model", "--key", "web")
    document = json.loads(out)
    assert document["by"] == ["model"]
    assert [row["model"] for row in document["rows"]] == ["llama"]
    assert document["total"]["prompt_tokens"] == 2000
    assert document["total"]["cost_usd"] == pytest.approx(2.469134e-6)


def test_where_nothing_was_used_it_says_so(run: Run, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/usage.db")
    store.check()
    store.close()
    code, out, _ = run()
    assert code == 0
    assert out.startswith("nothing was used since")


@pytest.mark.parametrize("options", [(), ("--format", "focus"), ("--key", "web")])
def test_a_table_that_is_not_there_is_no_use_of_nothing(
    run: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    told = f"error: there is no usage table at {tmp_path}/usage.db (WRAPPER_STORE)\n"
    assert run(*options) == (1, "", told)
    assert not (tmp_path / "usage.db").exists()


def test_everything_can_be_summed_into_one_line(used: Run) -> None:
    _, out, _ = used("--by", "", "--format", "csv")
    assert len(out.splitlines()) == 2


def test_groups_and_owners_are_those_of_the_keys_file(used: Run, tmp_path: Path) -> None:
    digests = ("0" * 64, "1" * 64, "2" * 64)
    (tmp_path / "keys.toml").write_text(
        f'[groups.team]\n[keys.web]\nsha256="{digests[0]}"\ngroup="team"\nowner="ann"\n'
        f'[keys.batch]\nsha256="{digests[1]}"\ngroup="team"\n'
        f'[keys.idle]\nsha256="{digests[2]}"\nowner="bob"\n'
    )
    options = ("--since", "365d", "--format", "json")
    found = json.loads(used("--by", "group", *options)[1])
    assert [(row["group"], row["requests"]) for row in found["rows"]] == [("-", 1), ("team", 4)]
    assert [row["unmetered"] for row in found["rows"]] == [0, 1]
    assert found["total"]["requests"] == 5
    rows = json.loads(used("--by", "owner,provider", *options)[1])["rows"]
    assert [(row["owner"], row["provider"], row["prompt_tokens"]) for row in rows] == [
        ("-", "groq", 1000),
        ("-", "openai", 1000),
        ("ann", "groq", 2000),
    ]
    table = used("--by", "group,key,owner")[1].splitlines()
    assert table[0].split()[:4] == ["group", "key", "owner", "requests"]
    assert table[1].split()[:4] == ["team", "batch", "-", "2"]
    csv_rows = list(csv.DictReader(io.StringIO(used("--by", "group", "--format", "csv")[1])))
    assert [(row["group"], row["cost_usd"]) for row in csv_rows] == [("team", "0.000002469134")]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_the_csv_is_a_formula(used: Run, tmp_path: Path, start: str) -> None:
    store = open_store(f"sqlite:///{tmp_path}/usage.db")
    model = f'{start}HYPERLINK("http://x")'
    store.settle(Entry(time.time(), "web", "groq", model, "completed"))
    store.close()
    rows = csv.DictReader(io.StringIO(used("--by", "model", "--format", "csv")[1], newline=""))
    assert f"'{model}" in [row["model"] for row in rows]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--since", "yesterday"], "'yesterday' is not a time"),
        (["--since", "3m"], "'3m' is not a time"),
        (["--by", "colour"], "'colour' is not one of"),
        (["--by", "key,key"], "names a column twice"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    run: Run, options: list[str], complaint: str
) -> None:
    code, _, err = run(*options)
    assert code == 2
    assert complaint in err


def test_a_table_that_cannot_be_read_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "usage.db").write_bytes(b"no database" * 500)
    code, out, err = run()
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "move it away" in err


def test_spans_and_dates_are_understood() -> None:
    now = time.time()
    assert since("24h") == pytest.approx(now - 86_400, abs=5)
    assert since("2w") == pytest.approx(now - 14 * 86_400, abs=5)
    assert since("2026-11-21") == 1_795_219_200
    assert since("2026-11-21T02:00+02:00") == 1_795_219_200


@pytest.mark.parametrize(
    ("pico", "short", "exact"),
    [
        (0, "0", "0"),
        (1, "0.00000000000100", "0.000000000001"),
        (1_234_567, "0.00000123", "0.000001234567"),
        (12_345_678_901, "0.0123", "0.012345678901"),
        (999_900_000_000, "1.000", "0.9999"),
        (1_500_000_000_000, "1.50", "1.5"),
        (12_345_678_000_000_000, "12,345.68", "12345.678"),
    ],
)
def test_money_is_shown_with_the_digits_that_say_something(
    pico: int, short: str, exact: str
) -> None:
    assert short_usd(pico) == short
    assert exact_usd(pico) == exact


# https://focus.finops.org/focus-specification/v1-2/: feature level Mandatory, and the other columns
# that are written.
MANDATORY = {
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass"),
    *("ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost"),
    *("EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit"),
    *("ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
}
FURTHER = {
    *("BillingAccountType", "ChargeFrequency", "ConsumedQuantity", "ConsumedUnit"),
    *("PricingCategory", "ResourceId", "ResourceName", "ResourceType", "ServiceSubcategory"),
    *("SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "SubAccountName", "SubAccountType"),
    "Tags",
}
NULLABLE = {"ChargeClass", "Tags"}


def test_focus_has_audio_by_its_seconds_and_no_provider_of_refused_calls(
    run: Run, tmp_path: Path
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/usage.db")
    usage = Usage(0, 0, 0, seconds=90.5)
    store.settle(Entry(time.time(), "web", "openai", "whisper-1", "completed", usage, 900))
    store.settle(Entry(time.time(), "web", "none", "whisper-1", "rejected"))
    store.close()
    [row] = csv.DictReader(run("--format", "focus")[1].splitlines())
    assert (row["ProviderName"], row["SkuMeter"]) == ("openai", "Audio Seconds")
    assert (row["ConsumedQuantity"], row["ConsumedUnit"]) == ("90.5", "Seconds")
    assert Decimal(row["BilledCost"]) * 10**12 == 900


def test_focus_has_the_columns_of_its_version_and_the_cost_of_the_table(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "keys.toml").write_text(
        f'[keys.web]\nsha256 = "{"a" * 64}"\ngroup = "team-a"\n[groups.team-a]\n'
    )
    (tmp_path / "keys.toml").chmod(0o600)
    store = open_store(f"sqlite:///{tmp_path}/usage.db")
    at = time.time()
    usage = Usage(1000, 100, 1100, cached=400)
    parts = (600, 40, 3, 200)
    for tag in ("search", "search", ""):
        entry = Entry(at, "web", "openai", "gpt", "completed", usage, 900, cost_by_kind=parts)
        store.settle(entry._replace(tag=tag))
    store.settle(Entry(at, "gone", "groq", "=llama", "completed", unmetered=True))
    store.settle(Entry(at, "web", "none", "gpt", "rejected"))
    store.close()
    code, out, err = run("--format", "focus")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(out.splitlines()))
    columns = set(rows[0])
    assert columns >= MANDATORY
    assert {name for name in columns - MANDATORY if not name.startswith("x_")} == FURTHER
    costs = ("BilledCost", "EffectiveCost", "ContractedCost", "ListCost")
    for row in rows:
        assert all(row[name] for name in columns - NULLABLE), row
        for name in (*costs, "ConsumedQuantity", "PricingQuantity"):
            assert re.fullmatch(r"\d+(\.\d+)?", row[name]), (name, row)
        for name in columns:
            if name.endswith(("PeriodStart", "PeriodEnd")):
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00Z", row[name])
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"]
        assert row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        assert (row["ChargeCategory"], row["BillingCurrency"]) == ("Usage", "USD")
        assert row["ServiceCategory"] == "AI and Machine Learning"
    for name in costs:
        assert sum(Decimal(row[name]) for row in rows) * 10**12 == 3 * 900
    assert sum(int(row["x_Requests"]) for row in rows) == 4
    assert sum(int(row["x_UnmeteredRequests"]) for row in rows) == 1
    searched = {row["SkuMeter"]: row for row in rows if "search" in row["Tags"]}
    assert json.loads(searched["Input Tokens"]["Tags"]) == {"tag": "search", "group": "team-a"}
    assert {meter: row["ConsumedQuantity"] for meter, row in searched.items()} == {
        "Input Tokens": "1200",
        "Cached Input Tokens": "800",
        "Output Tokens": "200",
        "Requests": "2",
    }
    assert Decimal(searched["Input Tokens"]["BilledCost"]) * 10**12 == 2 * 603
    assert Decimal(searched["Requests"]["BilledCost"]) * 10**12 == 2 * 57
    [unmetered] = [row for row in rows if row["SubAccountId"] == "gone"]
    assert (unmetered["BilledCost"], unmetered["Tags"]) == ("0", "")
    assert unmetered["SkuId"] == "'=llama"  # no formula for a spreadsheet


def test_tags_are_a_column(run: Run, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/usage.db")
    for tag in ("search", "search", ""):
        entry = Entry(time.time(), "web", "groq", "llama", "completed", Usage(1, 1, 2), 7, tag=tag)
        store.settle(entry)
    store.close()
    code, out, _ = run("--by", "tag", "--format", "csv")
    assert code == 0
    assert [(row["tag"], row["requests"]) for row in csv.DictReader(out.splitlines())] == [
        ("'-", "1"),  # as any other name that a spreadsheet could read as a formula
        ("search", "2"),
    ]
