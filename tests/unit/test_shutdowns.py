"""models.toml: when models end, what `check` says of it, and what /metrics shows."""

from __future__ import annotations

import datetime
import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import raw
from harness.app import AppFactory
from harness.simulator import Simulator
from wrapper.__main__ import main
from wrapper.blueprints import models
from wrapper.config import ConfigError, Provider, Shutdown, example_models, load
from wrapper.config.shutdowns import find_shutdown
from wrapper.upstream import Upstream

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = tomllib.loads((ROOT / "config" / "models.toml").read_text())["providers"]
NOON = 1_795_262_400.0  # 2026-11-21T12:00Z

GATEWAY = """\
[providers.groq]
base_url = "http://127.0.0.1:1/v1"

[providers.mine]
base_url = "https://eu.api.openai.com/v1"

[[routes]]
model = "fast"
targets = ["groq:old", "mine:x-20260101"]

[[routes]]
model = "*"
targets = ["groq"]
"""
MODELS = """\
[providers.groq.models]
old = { shutdown = 2026-11-20, replacement = "new", source = "s", date = 2026-11-01 }
other = { shutdown = 2026-11-22, source = "s", date = 2026-11-01 }

[providers.openai]
match = ["api.openai.com"]

[providers.openai.models]
X = { shutdown = 2027-01-14, source = "s", date = 2026-11-01 }
"""
KEYS = f'[keys.one]\nsha256 = "{"a" * 64}"\nmodels = ["other", "gone", "other-*"]\n'

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `check` on these files."""
    (tmp_path / "gateway.toml").write_text(GATEWAY)
    (tmp_path / "models.toml").write_text(MODELS)
    (tmp_path / "keys.toml").write_text(KEYS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WRAPPER_CONFIG", "gateway.toml")
    monkeypatch.setenv("WRAPPER_KEYS", "keys.toml")

    def run(*options: str) -> tuple[int, str, str]:
        code = main(["check", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_shipped_dates_have_a_source_each_and_no_example_ends() -> None:
    for provider, table in SHIPPED.items():
        for name, fields in table["models"].items():
            assert fields["source"].startswith("https://"), name
            assert isinstance(fields["date"], datetime.date), name
        ending = {name: Shutdown(fields["shutdown"]) for name, fields in table["models"].items()}
        for name in vars(example_models):
            if name.startswith(provider.upper()):
                assert find_shutdown(ending, getattr(example_models, name)) is None


@pytest.mark.parametrize(
    "name", ["gpt-x", "GPT-X", "gpt-x-2026-01-01", "ft:gpt-x-2026-01-01:me::1"]
)
def test_a_dated_and_a_fine_tuned_model_end_with_the_model(name: str) -> None:
    found = Shutdown(datetime.date(2027, 1, 14))
    assert find_shutdown({"gpt-x": found}, name) is found
    assert find_shutdown({"gpt-x": found}, "gpt-x-mini") is None


def test_check_warns_of_models_that_end_the_next_one_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: NOON)
    code, out, _ = run()
    assert code == 0
    assert [line for line in out.splitlines() if "names the model" in line] == [
        f"note: {line}"
        for line in (
            "routes[0] names the model old: groq shut it down on 2026-11-20; it recommends new",
            "keys.one.models names the model other: groq shuts it down on 2026-11-22, 1 day left",
            "routes[0] names the model x-20260101: mine shuts it down on 2027-01-14, 54 days left",
        )
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[", "is not TOML"),
        ("[providers.groq.models]\nx = 7\n", "providers.groq.models.x: is an integer"),
        ("[providers.groq.models.x]\n", "providers.groq.models.x.shutdown: is missing"),
        ("[providers.groq.models.x]\nshutdown = 2026-01-01\n", "x.source: is missing"),
        ("[providers.groq.models.x]\nshutdown = '2026-01-01'\n", "x.shutdown: is no date"),
        ("[providers.groq.models.x]\nshutdown = 2026-01-01T00:00:00Z\n", "is no date"),
        ("[providers.groq.models.x]\nshutdwn = 1\n", "did you mean 'shutdown'?"),
        ("[provider.groq]\n", "did you mean 'providers'?"),
    ],
)
def test_a_date_that_cannot_be_read_is_a_problem(
    run: Run, tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "models.toml").write_text(text)
    code, out, err = run()
    assert (code, out) == (1, "")
    assert "models.toml" in err
    assert complaint in err


def test_without_a_file_beside_it_the_shipped_dates_hold(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models.toml").unlink()
    settings = load({"WRAPPER_CONFIG": "gateway.toml", "WRAPPER_KEYS": "keys.toml"})
    assert settings.shutdowns["mine"]["whisper-1"].replacement == "gpt-transcribe"
    assert tmp_path.joinpath("models.toml") in {path.resolve() for path in settings.files}
    (tmp_path / "models.toml").write_text("[")
    with pytest.raises(ConfigError):
        load({"WRAPPER_CONFIG": "gateway.toml", "WRAPPER_KEYS": "keys.toml"})


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ({"shutdown_date": "2027-01-14"}, {"a": 1_799_884_800.0}),
        ({"shutdown_date": "2027-01-14T12:00:00Z"}, {"a": 1_799_928_000.0}),
        ({"shutdown_date": "2027-01-14T12:00:00"}, {"a": 1_799_928_000.0}),
        ({"shutdown_date": None}, {}),
        ({}, {}),
        ({"shutdown_date": "soon"}, {}),
        ({"shutdown_date": 7}, {}),
        ({"shutdown_date": ["2027-01-14"]}, {}),
        ({"shutdown_date": "2027-01-14", "id": "a" * 257}, {}),
    ],
)
def test_a_list_says_when_its_models_end(listed: dict[str, Any], found: dict[str, float]) -> None:
    assert models.shutdowns([{"id": "a", **listed}]) == found


def test_metrics_show_the_dates_of_the_table_and_of_the_lists_that_were_asked_for(
    app_factory: AppFactory,
) -> None:
    app = app_factory()
    name = "model_shutdown_timestamp_seconds"

    def shown() -> dict[str, float]:
        answer = app.exchange(raw.request(app.port, "GET", "/metrics"))
        lines = answer.body.decode().splitlines()
        series = [line.split(" ") for line in lines if line.startswith(name)]
        return {labels.removeprefix(name): float(value) for labels, value in series}

    assert shown()['{model="whisper-1",provider="openai"}'] == 1_803_600_000
    listing = raw.request(app.port, "GET", "/v1/models", key=app.secrets["web-app"])
    assert app.exchange(listing).status == 200
    # 2030-06-30, from the simulator's own list.
    assert shown()['{model="gpt-3.5-turbo-instruct",provider="openai"}'] == 1_909_008_000


def test_lists_are_asked_for_their_dates_some_time_after_the_start_and_then_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(models, "time", SimpleNamespace(monotonic=lambda: now[0]))
    asked: list[str] = []
    lists = models.ModelLists(lambda *_: None)
    monkeypatch.setattr(lists, "_ask", lambda upstream: asked.append(upstream.provider.name))
    upstreams = {
        name: Upstream(Provider(name, "http://127.0.0.1:1", api_key_problem=problem))
        for name, problem in (("one", None), ("without-a-key", "is not set"))
    }
    for seconds in (0, models.DATES_FIRST - 1, 2, 60, models.DATES_FRESH - 61, 2):
        now[0] += seconds
        lists.look_for_dates(upstreams)
        asked.append("")
    assert asked == ["", "", "one", "", "", "", "one", ""]


ONLINE = """\
[providers.openai]
base_url = "{url}/v1"
api_key = {{ env = "OPENAI_API_KEY" }}

[providers.groq]
base_url = "{url}/openai/v1"
api_key = {{ env = "GROQ_API_KEY" }}

[[routes]]
model = "fast"
targets = ["groq:{fast}", "openai:gpt-6-luna"]

[[routes]]
model = "gpt-3.5-turbo-instruct"
targets = ["openai"]

[[routes]]
model = "*"
targets = ["groq"]
"""


@pytest.fixture(scope="module")
def with_a_key() -> Any:
    with Simulator(api_key="sk-right") as running:
        yield running


@pytest.fixture
def online(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_a_key: Simulator) -> Run:
    """Runs `check --online` with a right key of openai and none of groq."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    monkeypatch.delenv("GROQ_API_KEY", raising=False)

    def ask(fast: str = "openai/gpt-oss-20b", url: str = with_a_key.url) -> tuple[int, str, str]:
        (tmp_path / "gateway.toml").write_text(ONLINE.format(url=url, fast=fast))
        return run("--online")

    return ask


def test_check_online_asks_providers_for_credentials_models_and_dates(
    online: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys.toml").write_text(f'[keys.one]\nsha256 = "{"a" * 64}"\n')
    code, out, err = online()
    assert (code, err) == (0, "")
    assert "providers.openai: the credential works, 21 models" in out
    assert "note: providers.groq is not used: environment variable GROQ_API_KEY is not set" in out
    assert (
        "routes[1] names the model gpt-3.5-turbo-instruct: openai shuts it down on 2030-06-30"
        in out
    )
    monkeypatch.setenv("GROQ_API_KEY", "sk-right")
    assert online()[0] == 0


def test_check_online_tells_of_every_refused_credential_and_missing_model(
    online: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk-wrong")
    refused = "providers.groq: the credential is refused: The provider responded 401."
    assert online()[2] == f"gateway.toml: {refused}; renew it where api_key says\n"
    monkeypatch.setenv("GROQ_API_KEY", "sk-right")
    code, out, err = online("openai/gpt-oss-20")
    assert (code, out) == (1, "")
    close = "did you mean 'openai/gpt-oss-20b'?"
    assert err.splitlines() == [
        f"gateway.toml: routes[0]: groq has no model 'openai/gpt-oss-20'; {close}",
        "keys.toml: keys.one.models: groq has no model 'other'",
        "keys.toml: keys.one.models: groq has no model 'gone'",
    ]
    assert "sk-right" not in err


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (raw.response(b"{}"), "the list cannot be read: its response has neither"),
        (raw.response(b"x", status="404 Not Found"), "The provider responded 404."),
        (b"nonsense", "sent no valid response"),
    ],
)
def test_a_provider_without_a_list_is_a_problem(
    online: Run, response: bytes, complaint: str
) -> None:
    with raw.scripted(lambda _: response) as provider:
        code, _, err = online(url=provider.url)
    assert code == 1
    assert complaint in err
    assert err.count("\n") == 1


def test_the_list_of_models_is_passed_on_with_its_dates(app_factory: AppFactory) -> None:
    app = app_factory()
    target = "/v1/models/gpt-3.5-turbo-instruct"
    answer = app.exchange(raw.request(app.port, "GET", target, key=app.secrets["web-app"]))
    assert json.loads(answer.body)["shutdown_date"] == "2030-06-30"
