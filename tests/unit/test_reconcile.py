"""Theirs against ours: exports as they come, drifts as they are, mistakes with their place."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrapper.__main__ import main
from wrapper.cli.exports import ExportError, Total, read_export
from wrapper.metering import Usage
from wrapper.store import PICO, Entry, open_store

Run = Callable[..., tuple[int, str, str]]

NOON = 1_795_262_400.0  # 2026-11-21T12:00Z
MIDNIGHT = 1_795_219_200
MODEL = "gpt-6-luna-2026-09-22"

OPENAI = {
    "object": "page",
    "data": [
        {
            "object": "bucket",
            "start_time": MIDNIGHT,
            "end_time": MIDNIGHT + 86_400,
            "results": [
                {
                    "object": "organization.usage.completions.result",
                    "input_tokens": 600,
                    "output_tokens": 250,
                    "input_cached_tokens": 100,
                    "num_model_requests": 3,
                    "project_id": None,
                    "model": MODEL,
                },
                {
                    "object": "organization.usage.completions.result",
                    "input_tokens": 400,
                    "output_tokens": 250,
                    "input_cached_tokens": 0,
                    "num_model_requests": 2,
                    "project_id": "proj_2",
                    "model": MODEL,
                },
            ],
        },
        {"object": "bucket", "start_time": MIDNIGHT + 86_400, "results": []},
    ],
    "has_more": False,
}
THEIRS = {("2026-11-21", MODEL): Total(Decimal(5), Decimal(1000), Decimal(500), Decimal(100), None)}


def export(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `reconcile` on an export against a table with known contents."""
    url = f"sqlite:///{tmp_path}/usage.db"
    monkeypatch.setenv("WRAPPER_STORE", url)
    monkeypatch.chdir(tmp_path)
    store = open_store(url)
    usage = Usage(200, 100, 300, cached=20)
    for _ in range(5):
        store.settle(Entry(NOON, "web", "openai", MODEL, "completed", usage, PICO // 100))
    store.settle(Entry(NOON, "web", "openai", MODEL, "client_error"))
    store.settle(Entry(NOON, "web", "groq", "openai/gpt-oss-20b", "completed", usage, 1))
    store.settle(Entry(NOON - 86_400, "web", "openai", MODEL, "completed", usage, 1))
    store.close()

    def run(content: bytes, *options: str) -> tuple[int, str, str]:
        file = tmp_path / "export"
        file.write_bytes(content)
        code = main(["reconcile", str(file), *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_openai_s_usage_api_is_read_and_rows_of_a_day_and_model_are_added_up() -> None:
    assert read_export(export(OPENAI)) == THEIRS
    assert read_export(export([OPENAI, OPENAI]))["2026-11-21", MODEL].requests == 10


def test_openai_s_costs_api_is_read() -> None:
    costs = {
        "data": [
            {
                "start_time": MIDNIGHT,
                "results": [
                    {"amount": {"value": 0.06, "currency": "usd"}, "line_item": f"{MODEL}, input"},
                    {"amount": {"value": 0.02, "currency": "usd"}, "line_item": f"{MODEL}, output"},
                ],
            }
        ]
    }
    assert read_export(export(costs)) == {("2026-11-21", MODEL): Total(cost=Decimal("0.08"))}


TABLES = {
    "the usage page's": f"""\
start_time_iso,model,num_model_requests,input_tokens,output_tokens,input_cached_tokens
2026-11-21T00:00:00+00:00,{MODEL},5,1000,500,100
""",
    "with semicolons": f"""\
Date;Model;Requests;Prompt Tokens;Completion Tokens;Cached Tokens
2026-11-21;{MODEL};5;1000;500;100

""",
    "with tabs": f"""\
timestamp|model_id|n_requests|n_context_tokens_total|n_generated_tokens_total|cached_tokens|other
{MIDNIGHT}|{MODEL}|5|1000|500|100|x
""".replace("|", "\t"),
    "of a spreadsheet": f"""\
\ufeffday,"snapshot_id",numRequests,contextTokens,generatedTokens,cachedTokens
2026-11-21,{MODEL},2,400,200,100
"2026-11-21","{MODEL}",3,600,300,
""".replace("\n", "\r\n"),
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES.keys())
def test_tables_with_other_names_for_the_same_columns_are_read(text: str) -> None:
    assert read_export(text.encode()) == THEIRS


def test_costs_are_read_with_their_signs() -> None:
    text = 'date,model,cost\n2026-11-21,m,"$1,234.50"\n2026-11-21,m,-0.5\n'
    assert read_export(text.encode()) == {("2026-11-21", "m"): Total(cost=Decimal("1234.00"))}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"  \n ", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (b"[1, 2", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds no rows"),
        (b"[1]", "data[0]: is not an object"),
        (b"hello", "has no day"),
        (b"date,requests\n2026-11-21,1\n", "has no model"),
        (b"date,model\n2026-11-21,m\n", "has no column of numbers"),
        (b"date,model,requests\n", "holds no rows"),
        (b"date,model,requests\n2026-11-21,m,abc\n", "line 2: requests: 'abc' is not a number"),
        (b'date,model,cost\n2026-11-21,m,"12,50"\n', "line 2: cost: '12,50' is not a number"),
        (
            b"date;model;cost\n2026-11-21;m;12,50\n",
            "12,50' has a comma; write 12.50",
        ),
        (
            b"date;model;cost\n2026-11-21;m;1,250\n",
            "1,250' has a comma; write 12.50",
        ),
        (b"date,model,cost\n9999-12-31,m,1\n", "'9999-12-31' is out of range"),
        (b"date,model,cost\n0001-01-01,m,1\n", "'0001-01-01' is out of range"),
        (b"date,model,requests\n2026-11-21,m,nan\n", "line 2: requests: 'nan' is not a number"),
        (b"date,model,requests\n2026-11-21,m,1e99\n", "line 2: requests: '1e99' is not a number"),
        (b"date,model,requests\n21/11/26,m,1\n", "line 2: '21/11/26' is not a date"),
        (b"date,model,requests\n2026-11-21,m\n", "line 2: has 2 cells, the header has 3"),
        (b"date,model,requests\n2026-11-21,,1\n", "line 2: has no model"),
        (b'date,model,requests\n"2026-11-21,m,1\n', "line 2"),
        (export([{"date": "2026-11-21", "requests": 1}]), "data[0]: has no model"),
        (export([{"date": "2026-11-21", "model": 7, "requests": 1}]), "the model is not a string"),
        (export([{"date": "2026-11-21", "model": "m", "requests": True}]), "is not a number"),
        (export({"data": [{"start_time": MIDNIGHT, "results": [7]}]}), "data[0].results[0]"),
        (
            export({"data": [{"start_time": MIDNIGHT, "results": [{"model": None}]}]}),
            "ask the usage API with group_by=model",
        ),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_place(content: bytes, complaint: str) -> None:
    with pytest.raises(ExportError) as caught:
        read_export(content)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.binary(max_size=200)
    | st.text(alphabet='{}[]",:\n;date model1', max_size=200).map(str.encode)
)
def test_any_file_is_read_or_refused_with_a_message(content: bytes) -> None:
    with contextlib.suppress(ExportError):
        read_export(content)


def test_books_that_agree_show_no_drift(run: Run) -> None:
    code, out, err = run(export(OPENAI), "--format", "csv", "--tolerance", "0")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["what"], row["theirs"], row["ours"], row["drift"]) for row in rows] == [
        ("requests", "5", "5", "0"),
        ("prompt", "1000", "1000", "0"),
        ("completion", "500", "500", "0"),
        ("cached", "100", "100", "0"),
    ]
    assert (code, err) == (0, "")


def test_a_drift_is_shown_in_numbers_and_percent(run: Run) -> None:
    text = f"date,model,requests,prompt_tokens,cost\n2026-11-21,{MODEL},4,1250,0.05\n"
    code, out, _ = run(text.encode(), "--format", "json")
    rows = {row["what"]: row for row in json.loads(out)["rows"]}
    assert code == 3  # more than the default tolerance of 1 %
    assert rows["prompt"] == {
        "day": "2026-11-21",
        "model": MODEL,
        "what": "prompt",
        "theirs": 1250.0,
        "ours": 1000.0,
        "drift": -250.0,
        "drift_pct": -20.0,
    }
    assert (rows["requests"]["drift"], rows["requests"]["drift_pct"]) == (1.0, 25.0)
    assert (rows["cost"]["theirs"], rows["cost"]["ours"]) == (0.05, 0.05)


@pytest.mark.parametrize(("tolerance", "code"), [("19.9", 3), ("20", 0), ("20%", 0), ("0", 3)])
def test_a_drift_over_the_tolerance_is_reported_by_the_exit_code(
    run: Run, tolerance: str, code: int
) -> None:
    text = f"date,model,prompt_tokens\n2026-11-21,{MODEL},1250\n"
    assert run(text.encode(), "--tolerance", tolerance)[0] == code


def test_a_model_without_its_date_is_the_same_model(run: Run) -> None:
    code, out, _ = run(
        b"date,model,requests\n2026-11-21,gpt-6-luna,5\n", "--tolerance", "0", "--format", "csv"
    )
    assert code == 0
    assert "2026-11-21,gpt-6-luna,requests,5,5,0,0.000" in out


def test_what_only_one_side_has_is_a_drift(run: Run) -> None:
    text = b"date,model,requests\n2026-11-20,gpt-6-luna,1\n2026-11-21,o3,2\n"
    code, out, _ = run(text, "--tolerance", "50", "--format", "csv")
    assert code == 3
    assert out.splitlines()[1:] == [
        "2026-11-20,gpt-6-luna,requests,1,1,0,0.000",
        "2026-11-21,gpt-6-luna,requests,0,5,5,",
        "2026-11-21,o3,requests,2,0,-2,-100.000",
    ]


def test_other_providers_are_left_out_unless_asked_for(run: Run) -> None:
    assert "llama" not in run(export(OPENAI))[1]
    _, out, _ = run(b"date,model,requests\n2026-11-21,x,1\n", "--provider", "groq")
    assert "openai/gpt-oss-20b" in out
    assert MODEL not in out


def test_a_bad_file_is_one_line_and_exit_code_one(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(b"date,model,requests\n2026-11-21,m,abc\n")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "line 2: requests: 'abc' is not a number" in err
    assert main(["reconcile", str(tmp_path / "none.csv")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main(["reconcile", str(tmp_path)]) == 1


def test_the_table_says_what_may_explain_a_drift(run: Run, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/usage.db")
    store.settle(Entry(NOON, "web", "openai", MODEL, "completed", unmetered=True))
    store.settle(Entry(NOON, "web", "openai", MODEL, "completed", Usage(1, 1, 2)))
    store.close()
    _, out, _ = run(export(OPENAI))
    assert "unmetered here: 1 response;" in out
    assert "unpriced here: 1 request;" in out


def test_a_table_that_is_not_there_is_no_drift(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRAPPER_STORE", f"sqlite:///{tmp_path}/none/usage.db")
    told = f"error: there is no usage table at {tmp_path}/none/usage.db (WRAPPER_STORE)\n"
    assert run(export(OPENAI)) == (1, "", told)


def test_calls_without_a_model_are_in_no_export(run: Run, tmp_path: Path) -> None:
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/usage.db")) as store:
        store.settle(Entry(NOON, "web", "openai", "none", "completed"))
    _, out, _ = run(export(OPENAI), "--format", "csv")
    assert ",none," not in out


def test_one_page_of_several_is_no_export(run: Run) -> None:
    code, _, err = run(b'{"data": [], "has_more": true}')
    assert code == 1
    assert "has_more" in err
    pages = b'[{"data": [], "has_more": true}, {"date": "2026-11-21", "model": "m", "requests": 1}]'
    assert run(pages)[0] == 3  # read, and not in the usage table
