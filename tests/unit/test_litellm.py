"""`keys import litellm`: no key may do more here than there."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wrapper.__main__ import main
from wrapper.auth import digest
from wrapper.config import ApiKey, KeyFile, load_key_file

Run = Callable[..., tuple[int, str, str]]
TOKEN = digest("sk-1234")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Imports an export that is given as an object, or as text with the name of its file."""
    monkeypatch.setenv("WRAPPER_KEYS", str(tmp_path / "keys.toml"))
    monkeypatch.chdir(tmp_path)

    def call(document: object, *options: str, name: str = "keys.json") -> tuple[int, str, str]:
        text = document if isinstance(document, str) else json.dumps(document)
        (tmp_path / name).write_text(text)
        code = main(["keys", "import", "litellm", name, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def imported() -> KeyFile:
    return load_key_file({"WRAPPER_KEYS": "keys.toml"})


def key(**fields: object) -> dict[str, object]:
    return {"token": TOKEN, "key_alias": "web", "key_name": "sk-...1234", "models": [], **fields}


def only(run: Run, record: dict[str, object]) -> ApiKey:
    """The one key of an export."""
    code, out, err = run({"keys": [record], "total_count": 1})
    assert (code, err) == (0, ""), out
    (found,) = imported().keys.values()
    return found


def test_a_key_keeps_its_secret_its_models_and_its_limits(run: Run) -> None:
    found = only(
        run,
        key(
            models=["gpt-*", "fast"],
            rpm_limit=60,
            tpm_limit=1000,
            max_parallel_requests=8,
            max_budget=20.5,
            budget_duration="30d",
            spend=3,
            user_id="ann@example.com",
            expires="2999-01-31T12:00:00Z",
            allowed_routes=["llm_api_routes"],
        ),
    )
    assert found == ApiKey(
        "web",
        TOKEN,
        ("gpt-*", "fast"),
        60,
        1000,
        8,
        found.budget_usd,
        "month",
        datetime.date(2999, 1, 31),
        owner="ann@example.com",
    )
    assert str(found.budget_usd) == "20.5"


@pytest.mark.parametrize(
    ("duration", "period", "budget"),
    [
        ("1d", "day", "10.0"),
        ("24h", "day", "10.0"),
        ("7d", "week", "10.0"),
        ("1mo", "month", "10.0"),
        (None, "total", "6.5"),
    ],
)
def test_a_budget_without_a_duration_is_prepaid_and_what_was_spent_is_gone(
    run: Run, duration: str | None, period: str, budget: str
) -> None:
    found = only(run, key(max_budget=10, budget_duration=duration, spend=3.5))
    assert (found.budget_period, str(found.budget_usd)) == (period, budget)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"blocked": True}, "it is blocked"),
        ({"expires": "2020-01-01T00:00:00"}, "it has expired"),
        ({"expires": "soon"}, "expires is not a date"),
        ({"rpm_limit": 0}, "rpm_limit is 0"),
        ({"tpm_limit": "x"}, "tpm_limit is not an integer"),
        ({"max_budget": 10, "budget_duration": "10d"}, "budget_duration '10d' has no counterpart"),
        ({"max_budget": 10, "spend": 10}, "its budget is used up"),
        ({"max_budget": "x"}, "max_budget is not a number"),
        ({"max_budget": 0}, "its budget is used up"),
        ({"model_max_budget": {"gpt": 1}}, "model_max_budget has no counterpart"),
        ({"metadata": {"model_rpm_limit": {"gpt": 1}}}, "model_rpm_limit has no counterpart"),
        ({"allowed_routes": ["/embeddings"]}, "allowed_routes has no counterpart"),
        ({"models": ["no-default-models"]}, "it may not call any model"),
        ({"models": ["a["]}, "a model's name cannot be used"),
        ({"models": ["all-team-models"], "team_id": "t"}, "it has the models of its team"),
        ({"token": "sk-hunter2"}, "its token is not a SHA-256"),
        ({"team_id": "blocked"}, "its team 'blocked' is blocked"),
        ({"team_id": "odd"}, "its team 'odd': budget_duration"),
    ],
)
def test_a_key_with_a_restriction_that_cannot_be_kept_is_not_taken(
    run: Run, fields: dict[str, object], why: str
) -> None:
    teams = [
        {"team_id": "blocked", "blocked": True},
        {"team_id": "odd", "max_budget": 5, "budget_duration": "5d"},
    ]
    code, out, _ = run({"keys": [key(**fields)], "teams": teams})
    assert code == 3
    assert "taken: 0 keys, 0 groups; not taken: 1" in out
    assert f"not taken: key 'web': {why}" in out
    assert "hunter2" not in out
    assert imported().keys == {}


def test_teams_are_groups_and_their_models_those_of_their_keys(run: Run) -> None:
    teams = [
        {
            "team_id": "1-2-3",
            "team_alias": "Search team",
            "models": ["gpt-*"],
            "max_budget": 100,
            "budget_duration": "30d",
            "rpm_limit": 7,
        }
    ]
    keys = [
        key(team_id="1-2-3"),
        key(token="1" * 64, key_alias="b", team_id="1-2-3", models=["all-team-models"]),
        key(token="2" * 64, key_alias="c", team_id="1-2-3", models=["gpt-6-luna"]),
        key(token="3" * 64, key_alias="d", team_id="unknown"),
    ]
    code, out, err = run([{"keys": keys}, teams])
    assert (code, err) == (0, "")
    found = imported()
    assert {name: (each.group, each.models) for name, each in found.keys.items()} == {
        "web": ("Search-team", ("gpt-*",)),
        "b": ("Search-team", ("gpt-*",)),
        "c": ("Search-team", ("gpt-6-luna",)),
        "d": ("unknown", ("*",)),
    }
    group = found.groups["Search-team"]
    assert (str(group.budget_usd), group.requests_per_minute) == ("100.0", 7)
    assert "note: the file says nothing about team 'unknown': write its limits into" in out


def test_what_was_spent_before_is_told_to_be_left(run: Run) -> None:
    month = {"max_budget": 100, "budget_duration": "30d"}
    keys = [key(spend=2.5, **month), key(token="1" * 64, key_alias="b", spend=0)]
    code, out, _ = run({"keys": keys})
    assert code == 0
    assert "note: what 1 key spent so far is not taken: the usage table, and budgets per" in out


def test_names_are_made_of_aliases_and_are_unique(run: Run) -> None:
    records = [
        key(token=str(number) * 64, key_alias=alias)
        for number, alias in enumerate(["my key/1", "my key/1", None, "none", "sk-secret", "ü"])
    ]
    run({"keys": records})
    assert list(imported().keys) == [
        *("my-key-1", "my-key-1-2", "key-...1234", "key-none", "key-secret", "key-"),
    ]


def test_a_second_import_takes_nothing_twice(run: Run, tmp_path: Path) -> None:
    run({"keys": [key()]})
    before = (tmp_path / "keys.toml").read_text()
    code, out, _ = run({"key": TOKEN, "info": {"key_alias": "web"}})
    assert code == 0
    assert "not taken: key 'web': the keys file has this secret already" in out
    assert (tmp_path / "keys.toml").read_text() == before


def test_the_tables_can_be_printed_for_a_review(run: Run, tmp_path: Path) -> None:
    out = run({"keys": [key(rpm_limit=5, team_id="t")]}, "--print")[1]
    assert not (tmp_path / "keys.toml").exists()
    (tmp_path / "keys.toml").write_text(out)
    assert imported().keys["web"].requests_per_minute == 5
    assert "# taken: 1 key, 1 group; not taken: 0" in out


def test_a_config_yaml_says_where_its_parts_belong(run: Run) -> None:
    text = """
model_list:
  - model_name: fast
    litellm_params: {model: groq/llama}
general_settings:
  master_key: sk-hunter2
litellm_settings:
  default_key_generate_params: {max_budget: 5, budget_duration: 1d}
"""
    code, out, _ = run(text, name="config.yaml")
    assert code == 0
    assert "1 model of model_list" in out
    assert "default_key_generate_params (5 USD/day): write [defaults]" in out
    assert "a config.yaml has no virtual keys" in out
    assert "hunter2" not in out


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("[", "a.json", "is not JSON"),
        ("a: [", "a.yaml", "is not YAML"),
        ("a: 1", "b.json", ".yaml"),
    ],
)
def test_what_cannot_be_read_is_refused(run: Run, text: str, name: str, says: str) -> None:
    code, out, err = run(text, name=name)
    assert (code, out) == (1, "")
    assert says in err


@pytest.mark.parametrize("document", [None, 1, [], {}, {"keys": [1, {"token": 1}]}, [[[]]]])
def test_an_export_without_keys_changes_nothing(run: Run, document: object) -> None:
    code, out, _ = run(document)
    assert code == 0
    assert "taken: 0 keys, 0 groups; not taken: 0" in out
