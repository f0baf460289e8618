"""`reconcile --fetch` without a provider: its key, what it makes of pages, what it writes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from wrapper import errors
from wrapper.__main__ import main
from wrapper.metering import Usage
from wrapper.store import PICO, Entry, open_store
from wrapper.upstream import Upstream

NOON = 1_795_262_400.0  # 2026-11-21T12:00Z
MIDNIGHT = 1_795_219_200
MODEL = "gpt-6-luna"
ADMIN_KEY = "sk-admin-OF-THE-ORGANIZATION"
CONFIG = """\
[providers.openai]
base_url = "https://api.openai.com/v1"
api_key = { file = "serving-key" }

[[routes]]
model = "*"
targets = ["openai"]
"""

Run = Callable[..., tuple[int, str, str]]


class Pages:
    """What the provider responds, by the end of the path; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.responses: dict[str, list[object]] = {}

    def fetch(self, upstream: Upstream, target: str, **_: Any) -> bytes:
        assert upstream.session().headers["Authorization"] == f"Bearer {ADMIN_KEY}"
        split = urlsplit(target)
        name = split.path.removeprefix("/organization/")
        self.asked.append((name, parse_qs(split.query)))
        waiting = self.responses.get(name) or [page()]
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, bytes) else json.dumps(found).encode()


def page(*results: dict[str, Any], start: int = MIDNIGHT, more: str = "") -> dict[str, Any]:
    bucket = {"object": "bucket", "start_time": start, "results": list(results)}
    return {"data": [bucket], "has_more": bool(more), "next_page": more or None}


def counted(requests: int, prompt: int, completion: int, model: str = MODEL) -> dict[str, Any]:
    return {
        "model": model,
        "num_model_requests": requests,
        "input_tokens": prompt,
        "output_tokens": completion,
    }


def billed(usd: float | None, item: str | None = f"{MODEL}, input") -> dict[str, Any]:
    return {"amount": {"value": usd, "currency": "usd"}, "line_item": item}


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    made = Pages()
    monkeypatch.setattr(Upstream, "fetch", lambda *given, **more: made.fetch(*given, **more))
    return made


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pages: Pages,
) -> Run:
    """Runs `reconcile` on the day after the 21st, on which 5 requests were metered."""
    (tmp_path / "gateway.toml").write_text(CONFIG)
    (tmp_path / "serving-key").write_text("sk-serving")
    url = f"sqlite:///{tmp_path}/usage.db"
    for name, value in {
        "WRAPPER_CONFIG": "gateway.toml",
        "WRAPPER_KEYS": "keys.toml",
        "WRAPPER_STORE": url,
        "OPENAI_ADMIN_KEY": ADMIN_KEY,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.time", lambda: NOON + 86_400)
    store = open_store(url)
    for _ in range(5):
        usage = Usage(200, 100, 300)
        store.settle(Entry(NOON, "web", "openai", MODEL, "completed", usage, PICO // 100))
    store.close()

    def run(*options: str) -> tuple[int, str, str]:
        code = main(["reconcile", *options])
        captured = capsys.readouterr()
        assert ADMIN_KEY not in captured.out + captured.err
        return code, captured.out, captured.err

    return run


def rows(text: str) -> dict[tuple[str, str], tuple[str, str]]:
    found = csv.DictReader(io.StringIO(text))
    return {(row["model"], row["what"]): (row["theirs"], row["ours"]) for row in found}


def test_the_week_before_today_is_asked_for_by_day_and_model(run: Run, pages: Pages) -> None:
    run("--fetch", "--project", "proj_1", "--project", "proj_2")
    names = [name for name, _ in pages.asked]
    assert sorted(names) == [
        "costs",
        *(
            f"usage/{kind}"
            for kind in (
                "audio_speeches",
                "audio_transcriptions",
                "completions",
                "embeddings",
                "images",
            )
        ),
    ]
    for name, query in pages.asked:
        assert query["start_time"] == [str(MIDNIGHT - 6 * 86_400)]
        assert query["end_time"] == [str(MIDNIGHT + 86_400)]
        assert query["bucket_width"] == ["1d"]
        assert query["group_by[]"] == ["line_item" if name == "costs" else "model"]
        assert query["project_ids[]"] == ["proj_1", "proj_2"]


def test_pages_are_followed_and_added_up(run: Run, pages: Pages) -> None:
    pages.responses["usage/completions"] = [
        page(counted(2, 600, 250), more="two"),
        page(counted(3, 400, 250)),
    ]
    pages.responses["costs"] = [
        page(billed(0.03), more="2"),
        page(billed(0.02, f"{MODEL}, output")),
    ]
    code, out, _ = run("--fetch", "--format", "csv", "--tolerance", "0")
    assert rows(out)[MODEL, "requests"] == ("5", "5")
    assert rows(out)["(all)", "cost"] == ("0.05", "0.05")
    assert code == 0
    assert [query.get("page") for name, query in pages.asked if name == "costs"] == [None, ["2"]]


def test_cost_is_judged_by_the_day_because_tools_name_no_model(run: Run, pages: Pages) -> None:
    pages.responses["usage/completions"] = [page(counted(5, 1000, 500))]
    pages.responses["costs"] = [page(billed(0.04), billed(0.01, "web search tool calls"))]
    code, out, _ = run("--fetch", "--format", "csv", "--tolerance", "0")
    assert rows(out)[MODEL, "cost"] == ("0.04", "0.05")
    assert rows(out)["web search tool calls", "cost"] == ("0.01", "0")
    assert ("web search tool calls", "requests") not in rows(out)
    assert code == 0


def test_a_model_that_the_bill_does_not_have_is_a_drift(run: Run, pages: Pages) -> None:
    pages.responses["usage/completions"] = [page(counted(5, 1000, 500))]
    code, out, _ = run("--fetch", "--format", "csv")
    assert rows(out)["(all)", "cost"] == ("0", "0.05")
    assert code == 3


def test_results_that_count_nothing_are_passed_over(run: Run, pages: Pages) -> None:
    pages.responses["costs"] = [page(billed(None, None), billed(0, None), billed(0.05))]
    pages.responses["usage/completions"] = [page({"model": None}, counted(5, 1000, 500))]
    assert run("--fetch", "--tolerance", "0")[0] == 0


def test_the_drift_of_each_day_is_written_for_prometheus(run: Run, pages: Pages) -> None:
    pages.responses["usage/completions"] = [page(counted(5, 1000, 500))]
    pages.responses["costs"] = [page(billed(0.04))]
    assert run("--fetch", "--write-metrics", "ledger.prom", "--since", "2026-11-20")[0] == 3
    lines = Path("ledger.prom").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'ledger_drift_ratio{provider="openai",day_age="2",what="cost"} 0',
        'ledger_drift_ratio{provider="openai",day_age="2",what="tokens"} 0',
        'ledger_drift_ratio{provider="openai",day_age="1",what="cost"} 0.25',
        'ledger_drift_ratio{provider="openai",day_age="1",what="tokens"} 0',
        f'ledger_reconciled_timestamp_seconds{{provider="openai"}} {NOON + 86_400:.0f}',
    ]
    pages.responses.clear()
    run("--fetch", "--write-metrics", "ledger.prom")
    assert 'day_age="1",what="tokens"} +Inf' in Path("ledger.prom").read_text()
    assert [path.name for path in Path().glob(".ledger*")] == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "give either FILE or --fetch"),
        (("export.csv", "--fetch"), "give either FILE or --fetch"),
        (("export.csv", "--since", "7d"), "--since goes with --fetch"),
        (("export.csv", "--write-metrics", "x"), "--write-metrics goes with --fetch"),
        (("--fetch", "--provider", "opnai"), "there is no such provider; did you mean 'openai'?"),
        (("--fetch", "--since", "2026-11-22"), "no day is from 2026-11-22 up to 2026-11-22"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_arguments(
    run: Run, options: tuple[str, ...], complaint: str
) -> None:
    code, out, err = run(*options)
    assert (code, out) == (2, "")
    assert complaint in err


def test_the_admin_key_must_not_be_the_gateways(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "serving-key").write_text(ADMIN_KEY)
    assert "is also the api_key of providers.openai" in run("--fetch")[2]
    code, _, err = run("--fetch", "--admin-key-file", "serving-key")
    assert code == 1
    assert "serving-key: is a file of the gateway" in err
    (tmp_path / "serving-key").write_text("sk-serving")
    for name in (
        '{ env = "OPENAI_ADMIN_KEY" }',
        '{ env = "OTHER" }\nheaders.x.env = "OPENAI_ADMIN_KEY"',
    ):
        named = CONFIG.replace('{ file = "serving-key" }', name)
        (tmp_path / "gateway.toml").write_text(named)
        code, _, err = run("--fetch")
        assert code == 1
        assert "OPENAI_ADMIN_KEY is the organization's admin key" in err


def test_the_admin_key_must_not_be_where_the_gateway_reads(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_ADMIN_KEY")
    assert "set OPENAI_ADMIN_KEY or --admin-key-file" in run("--fetch")[2]
    (tmp_path / ".env").write_text(f"OPENAI_ADMIN_KEY={ADMIN_KEY}\n")
    code, _, err = run("--fetch")
    assert code == 1
    assert "OPENAI_ADMIN_KEY is in .env, which the gateway reads too" in err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "key: No such file or directory"),
        (b"\xff\xfe", "key: is not text"),
        (b"", "key holds no key"),
        (b"two words", "key holds no key"),
    ],
)
def test_a_file_without_a_key_is_an_error(
    run: Run, tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    code, _, err = run("--fetch", "--admin-key-file", "key")
    assert code == 1
    assert complaint in err


def test_a_file_without_an_end_is_not_read_to_its_end(run: Run) -> None:
    code, _, err = run("--fetch", "--admin-key-file", "/dev/zero")
    assert code == 1
    assert "/dev/zero holds no key" in err


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (errors.UpstreamAuth("The provider responded 403."), "the admin key is refused"),
        (errors.UpstreamTimeout("No response within 60 s."), "No response within 60 s."),
        (b"<html>", "the response is not JSON"),
        (b"[" * 100_000, "the response is not JSON"),
        (b"\xff", "the response is not JSON"),
        ([], "the response is no page of results"),
        ({"data": 7}, "the response is no page of results"),
        (page(more="again"), "its pages have no end"),
        ({"data": [], "has_more": True}, "its pages have no end"),
        (page(billed(1, None)), "costs: data[0].results[0]: has no model"),
        (
            json.dumps(page(billed(1))).replace(": 1,", ": 1e9999999,").encode(),
            "'1E+9999999' is not a number",
        ),
        (
            page({"line_item": "x", "amount": {"value": 1, "currency": "eur"}}),
            "'eur' is not USD",
        ),
    ],
)
def test_what_the_provider_should_not_respond_is_one_line(
    run: Run, pages: Pages, response: object, complaint: str
) -> None:
    pages.responses["costs"] = [response]
    code, out, err = run("--fetch", "--write-metrics", "ledger.prom")
    assert (code, out) == (1, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert not Path("ledger.prom").exists()
