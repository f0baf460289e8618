"""The command line: what is printed where, and never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import shlex
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from wrapper import __version__
from wrapper.__main__ import build_parser, main
from wrapper.auth import Keyring, digest
from wrapper.cli import columns
from wrapper.cli.key_list import time_until
from wrapper.config import load, store_url
from wrapper.config.example_models import GROQ_SMALL, OPENAI_SMALL
from wrapper.config.loading import HINT_FD
from wrapper.endpoints import SURFACES
from wrapper.errors import ApiKeyExpired
from wrapper.server import lifecycle
from wrapper.store import PICO, Entry, open_store

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = """\
[providers.groq]
base_url = "https://api.groq.com/openai/v1"
api_key = { env = "GROQ_API_KEY" }

[providers.openai]
base_url = "https://api.openai.com/v1"
api_key = { env = "OPENAI_API_KEY" }
client_credentials = true

[[routes]]
model = "gpt-*"
targets = ["openai"]

[[routes]]
model = "*"
targets = ["groq"]
"""
LINES = re.compile(r"sk-wr-[A-Za-z0-9_-]{43}")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a configuration, and nothing of ours in the environment."""
    for name in list(os.environ):
        if name.startswith("WRAPPER_") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    for name in ("HOST", "PORT", "WEB_CONCURRENCY", "LOG_LEVEL", "METRICS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/gateway.toml").write_text(GATEWAY)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: exit code, stdout, stderr."""

    def call(*argv: str) -> tuple[int, str, str]:
        try:
            code = main(argv)
        except SystemExit as exit_:  # argparse
            code = exit_.code if isinstance(exit_.code, int) else 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return call


def keys(directory: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = tomllib.loads(
        (directory / "config/keys.toml").read_text()
    )["keys"]
    return found


# --- keys ---


def test_create_prints_the_secret_once_and_stores_only_its_digest(run: Run, here: Path) -> None:
    code, out, err = run("keys", "create", "web-app")
    assert (code, err) == (0, "")
    (secret,) = LINES.findall(out)
    assert keys(here) == {"web-app": {"sha256": digest(secret)}}
    assert secret not in (here / "config/keys.toml").read_text()
    assert "two seconds" in out
    found = load({"GROQ_API_KEY": "x"})
    assert Keyring(found.keys).authenticate(f"Bearer {secret}").name == "web-app"


def test_create_quietly_prints_the_secret_and_nothing_else(run: Run) -> None:
    code, out, err = run("keys", "create", "web-app", "--quiet")
    assert (code, err) == (0, "")
    assert LINES.fullmatch(out.strip())


def test_create_records_every_limit(run: Run, here: Path) -> None:
    options = "--models llama-* fast,x --rpm 60 --tpm 100_000 --concurrency 8"
    more = "--budget 0.50 --per day --expires 2999-01-31"
    code, out, err = run("keys", "create", "a.b", *options.split(), *more.split())
    assert (code, err) == (0, "")
    assert "60 requests/min, 100000 tokens/min, 8 at once, 0.50 USD/day" in out
    found = load({}).keys["a.b"]
    assert found.models == ("llama-*", "fast", "x")
    assert (found.requests_per_minute, found.tokens_per_minute) == (60, 100_000)
    assert (found.max_concurrent, str(found.budget_usd), found.budget_period) == (8, "0.50", "day")
    assert str(found.expires) == "2999-01-31"


def test_create_records_who_a_key_belongs_to_and_what_it_may_do(run: Run, here: Path) -> None:
    (here / "config/keys.toml").write_text("[groups.team-a]\n")
    options = "--group team-a --owner ann@example.com --endpoints realtime --unpriced allow"
    more = ("--store-failure", "allow", "--dry-run", "--description", "nightly jobs")
    assert run("keys", "create", "web", *options.split(), *more)[0] == 0
    key = load({}).keys["web"]
    assert (key.group, key.owner, key.description) == ("team-a", "ann@example.com", "nightly jobs")
    assert (key.endpoints, key.unpriced, key.store_failure) == (("realtime",), "allow", "allow")
    assert not key.enforce


def test_create_writes_only_what_the_defaults_do_not_say(run: Run, here: Path) -> None:
    defaults = '[defaults]\nrequests_per_minute = 60\nunpriced = "allow"\nbudget_period = "day"\n'
    (here / "config/keys.toml").write_text(defaults)
    run("keys", "create", "a")
    run("keys", "create", "b", "--rpm", "60", "--unpriced", "refuse", "--budget", "5")
    written = keys(here)
    assert list(written["a"]) == ["sha256"]
    assert list(written["b"]) == ["sha256", "budget_usd", "unpriced"]
    assert load({}).keys["b"].budget_period == "day"


def test_create_refuses_a_group_that_is_not_there(run: Run, here: Path) -> None:
    code, out, err = run("keys", "create", "web", "--group", "team-a")
    assert (code, out) == (1, "")
    assert "there is no group 'team-a': write a table [groups.team-a]" in err
    assert not (here / "config/keys.toml").exists()


def test_a_name_behind_an_option_with_several_words_is_asked_for_in_front(run: Run) -> None:
    code, _, err = run("keys", "create", "--models", "llama-*", "fast", "web9")
    assert code == 2
    assert "NAME comes before the options: python -m wrapper keys create NAME" in err


@pytest.mark.parametrize(
    "arguments",
    [
        "none",
        "sk-wr-x",
        "-- -x",
        "a/b",
        "",
        "ok --rpm 0",
        "ok --rpm -1",
        "ok --rpm x",
        "ok --rpm 1.5",
        "ok --rpm 99999999999999999999",
        "ok --budget 0",
        "ok --budget nan",
        "ok --budget inf",
        "ok --budget x",
        "ok --budget 1 --per year",
        "ok --budget 5000000",
        "ok --concurrency 1000001",
        "ok --group none",
        "ok --endpoints A",
        "ok --unpriced yes",
        "ok --store-failure no",
        "ok --expires tomorrow",
        "ok --expires 2020-01-01",
        "ok --models",
        "ok --models a,",
        "ok --mod a",
    ],
)
def test_create_refuses_what_makes_no_sense(run: Run, here: Path, arguments: str) -> None:
    code, out, err = run("keys", "create", *(shlex.split(arguments) or [""]))
    assert (code, out) == (2, "")
    assert "error: " in err
    assert not (here / "config/keys.toml").exists()


def test_create_refuses_a_period_without_a_budget(run: Run) -> None:
    assert run("keys", "create", "ok", "--per", "day")[0] == 1


def test_create_refuses_a_name_that_is_taken(run: Run) -> None:
    run("keys", "create", "web-app")
    code, out, err = run("keys", "create", "web-app")
    assert (code, out) == (1, "")
    assert "there is a key 'web-app' already" in err


def test_create_refuses_a_file_whose_mistake_would_keep_the_key_out_of_force(
    run: Run, here: Path
) -> None:
    text = "[keys.old]\nsha256 = 'x'\n"
    (here / "config/keys.toml").write_text(text)
    code, out, err = run("keys", "create", "new")
    assert (code, out) == (1, "")
    assert "no key was created" in err
    assert "line 2: keys.old.sha256" in err
    assert (here / "config/keys.toml").read_text() == text


def test_revoke_beside_a_mistake_removes_the_key_and_fails(run: Run, here: Path) -> None:
    (here / "config/keys.toml").write_text("[keys.old]\nsha256 = 'x'\n[keys.b]\nsha256 = 'x'\n")
    code, out, err = run("keys", "revoke", "old")
    assert (code, out) == (1, "")
    assert "accepts it until this is corrected" in err
    assert list(keys(here)) == ["b"]


def test_list_shows_limits_dates_and_states_and_no_digest(run: Run, here: Path) -> None:
    run("keys", "create", "web-app", "--models", "llama-*", "--rpm", "60", "--budget", "20")
    with (here / "config/keys.toml").open("a") as file:
        file.write(f'[keys.old]\nsha256 = "{digest("x")}"\nexpires = 2020-01-01\n')
    code, out, _ = run("keys", "list")
    assert code == 0
    assert digest("x") not in out
    header, web, old, _, unknown = out.splitlines()
    table = "there is no usage table at data/usage.db (WRAPPER_STORE)"
    assert unknown == f"use of the keys is not known: {table}"
    assert header.split() == ["NAME", "MODELS", "LIMITS", "EXPIRES", "STATE"]
    assert web.split() == [
        *("web-app", "llama-*", "60", "requests/min,", "20", "USD/month", "never", "active")
    ]
    assert old.split() == ["old", "*", "-", "2020-01-01", "expired"]


def test_list_shows_groups_owners_and_what_is_about_to_happen(run: Run, here: Path) -> None:
    today = datetime.now(UTC).date()
    soon, later = today + timedelta(days=14), today + timedelta(days=15)
    text = f"""
        [groups.team]
        budget_usd = 200
        budget_period = "total"
        [keys.a]
        sha256 = "{digest("a")}"
        group = "team"
        owner = "ann"
        expires = {soon}
        [keys.b]
        sha256 = ["{digest("b")}", "{digest("c")}"]
        rotated_until = 2999-01-01T12:00:00Z
        expires = {later}
        [keys.c]
        sha256 = ["{digest("d")}", "{digest("e")}"]
        rotated_until = 2020-01-01T00:00:00Z
        enforce = false
        [keys.d]
        sha256 = ["{digest("f")}", "{digest("g")}"]
    """
    (here / "config/keys.toml").write_text(text)
    out = run("keys", "list")[1]
    header, a, b, c, d, _, _, group, *_ = out.splitlines()
    assert header.split() == ["NAME", "GROUP", "OWNER", "MODELS", "LIMITS", "EXPIRES", "STATE"]
    assert a.split()[:3] == ["a", "team", "ann"]
    assert a.endswith("  active, expires in 14 days")
    assert b.endswith("  active, two secrets are valid until 2999-01-01 12:00 UTC")
    assert c.endswith(
        "  active, dry run, the old secret is refused: `keys rotate c --end` removes it"
    )
    assert d.endswith("  active, two secrets are valid")
    assert group.split() == ["team", "1", "200", "USD", "in", "all"]


def test_list_marks_keys_that_were_not_used_lately(run: Run, here: Path) -> None:
    for name in ("web", "old", "never"):
        run("keys", "create", name)
    assert "unused" not in run("keys", "list")[1]  # nothing is known yet
    (here / "data").mkdir()
    store = open_store("sqlite:///data/usage.db")
    now = time.time()
    for name, days in (("web", 1), ("old", 40)):
        store.settle(Entry(now - days * 86_400, name, "groq", "m", "completed"))
    store.close()
    _, web, old, never = run("keys", "list")[1].splitlines()
    assert web.endswith("  active")
    assert old.endswith("  active, no request in 30 days")
    assert never.endswith("  active, never used")
    found = json.loads(run("keys", "list", "--unused-days", "60", "--format", "json")[1])
    assert [key["unused"] for key in found] == [False, False, True]
    assert run("keys", "list", "--unused-days", "0")[0] == 2


@pytest.mark.parametrize("url", ["sqlite", "redis"])
def test_list_shows_what_is_left_of_budgets(
    run: Run, here: Path, url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if url == "redis":
        server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        monkeypatch.setenv("WRAPPER_STORE", server.url)
    (here / "config/keys.toml").write_text(f"""
        [groups.team]
        budget_usd = 200
        [keys.web]
        sha256 = "{digest("a")}"
        group = "team"
        budget_usd = 20
        requests_per_minute = 1
        [keys.free]
        sha256 = "{digest("b")}"
        group = "team"
    """)
    assert "LEFT" not in run("keys", "list")[1]  # nothing is known yet
    (here / "data").mkdir()
    store = open_store(store_url(dict(os.environ)))
    for name in ("web", "free"):
        store.settle(Entry(time.time(), name, "groq", "m", "completed", cost=PICO // 4))
    store.close()
    keys_header, web, free, _, groups_header, team = run("keys", "list")[1].splitlines()
    assert "  BUDGET LEFT  " in keys_header
    assert "  BUDGET LEFT" in groups_header
    assert "  1 request/min, 20 USD/month  19.75 USD  " in web
    assert "USD" not in free
    assert "  199.50 USD" in team
    found = json.loads(run("keys", "list", "--format", "json")[1])
    assert [key["budget_left_usd"] for key in found] == [19.75, None]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90_000, "2 days"), (86_400, "24 hours"), (3_601, "2 hours"), (60, "1 minute")],
)
def test_the_time_until_a_date_is_told_in_its_unit(seconds: int, text: str) -> None:
    date = datetime(2026, 12, 1, tzinfo=UTC)
    assert time_until(date.date(), date - timedelta(seconds=seconds)) == text


def test_a_budget_that_is_too_small_is_refused_with_the_range(run: Run) -> None:
    code, _, err = run("keys", "create", "web", "--budget", "0.00000001")
    assert code == 2
    assert "not an amount from 0.000001 to 4000000, such as 20 or 0.50" in err


# --- topup, rotate ---


def test_topup_adds_to_a_prepaid_budget(run: Run, here: Path) -> None:
    run("keys", "create", "batch", "--budget", "5.50", "--per", "total")
    code, out, err = run("keys", "topup", "batch", "2")
    assert (code, err) == (0, "")
    assert "7.50 USD in all" in out
    assert str(load({}).keys["batch"].budget_usd) == "7.50"


@pytest.mark.parametrize(
    ("options", "says"),
    [((), "has no budget"), (("--budget", "5"), "has a budget per month")],
)
def test_topup_is_for_prepaid_keys(run: Run, options: tuple[str, ...], says: str) -> None:
    run("keys", "create", "web", *options)
    code, out, err = run("keys", "topup", "web", "2")
    assert (code, out) == (1, "")
    assert says in err
    assert 'budget_period = "total"' in err


def test_topup_stays_below_the_largest_budget(run: Run, here: Path) -> None:
    run("keys", "create", "batch", "--budget", "3_999_999", "--per", "total")
    before = (here / "config/keys.toml").read_text()
    code, _, err = run("keys", "topup", "batch", "2")
    assert code == 1
    assert "at most 4000000 USD" in err
    assert (here / "config/keys.toml").read_text() == before


def secret_of(output: str) -> str:
    (secret,) = LINES.findall(output)
    assert isinstance(secret, str)
    return secret


def test_rotate_prints_a_new_secret_and_the_old_one_ends_with_the_overlap(
    run: Run, here: Path
) -> None:
    old = secret_of(run("keys", "create", "web")[1])
    code, out, err = run("keys", "rotate", "web", "--overlap", "12h")
    assert (code, err) == (0, "")
    new = secret_of(out)
    assert new not in (here / "config/keys.toml").read_text()
    ring, now = Keyring(load({}).keys), time.time()
    for secret in (old, new):
        assert ring.authenticate(f"Bearer {secret}", now=now + 11 * 3600).name == "web"
    later = now + 13 * 3600
    assert ring.authenticate(f"Bearer {new}", now=later).name == "web"
    with pytest.raises(ApiKeyExpired):
        ring.authenticate(f"Bearer {old}", now=later)


def test_rotate_without_an_overlap_refuses_the_old_secret_at_once(run: Run, here: Path) -> None:
    run("keys", "create", "web")
    secret = run("keys", "rotate", "web", "--overlap", "0", "--quiet")[1].strip()
    assert keys(here) == {"web": {"sha256": digest(secret)}}


def test_a_second_rotation_during_the_overlap_is_refused_until_it_ends(
    run: Run, here: Path
) -> None:
    run("keys", "create", "web")
    first = secret_of(run("keys", "rotate", "web")[1])
    code, out, err = run("keys", "rotate", "web")
    assert (code, out) == (1, "")
    assert "two valid secrets until" in err
    assert run("keys", "rotate", "web", "--end")[0] == 0
    assert keys(here) == {"web": {"sha256": digest(first)}}
    assert "no rotation to end" in run("keys", "rotate", "web", "--end")[2]
    run("keys", "rotate", "web")
    path = here / "config/keys.toml"
    path.write_text(re.sub("rotated_until = .*", "rotated_until = 2020-01-01", path.read_text()))
    assert run("keys", "rotate", "web")[0] == 0  # over
    assert len(load({}).keys["web"].sha256s) == 2


def test_a_key_that_has_expired_is_not_rotated(run: Run, here: Path) -> None:
    text = f'[keys.old]\nsha256 = "{digest("x")}"\nexpires = 2020-01-01\n'
    (here / "config/keys.toml").write_text(text)
    assert "has expired" in run("keys", "rotate", "old")[2]
    assert run("keys", "rotate", "old", "--overlap", "400d")[0] == 2
    assert (here / "config/keys.toml").read_text() == text


# --- keys check, keys diff ---


def test_keys_check_reads_the_keys_file_alone(run: Run, here: Path) -> None:
    (here / "config/gateway.toml").write_text("[")
    run("keys", "create", "web")
    assert run("keys", "check") == (0, "config/keys.toml: 1 key, 0 groups, no problems\n", "")
    (here / "new.toml").write_text("[groups.none]\n[keys.a]\n")
    code, _, err = run("keys", "check", "new.toml")
    assert code == 1
    assert [line.split(": ")[:3] for line in err.splitlines()] == [
        ["new.toml", "line 1", "groups.none"],
        ["new.toml", "line 2", "keys.a.sha256"],
    ]
    assert run("keys", "check", "missing.toml")[0] == 1


OLD_KEYS = f"""
[groups.team]
budget_usd = 100

[groups.gone]

[keys.web]
sha256 = "{digest("web")}"
group = "team"
models = ["a", "b"]
requests_per_minute = 60
tokens_per_minute = 1000
budget_usd = 20

[keys.left]
sha256 = "{digest("left")}"

[keys.renamed]
sha256 = "{digest("renamed")}"

[keys.same]
sha256 = "{digest("same")}"
max_concurrent = 4
"""
NEW_KEYS = f"""
# another order and [defaults] are no change of meaning
[defaults]
max_concurrent = 4

[keys.same]
sha256 = "{digest("same")}"

[groups.team]
budget_usd = 50

[groups.new]
requests_per_minute = 5
enforce = false

[keys.web]
sha256 = ["{digest("new")}", "{digest("web")}"]
rotated_until = 2999-01-01
models = ["b", "c"]
requests_per_minute = 100
budget_usd = 30
budget_period = "total"
max_concurrent = false
owner = "ann"
unpriced = "allow"
expires = 2999-01-01
enforce = false

[keys.known]
sha256 = "{digest("renamed")}"

[keys.new]
sha256 = "{digest("more")}"
models = ["a"]
group = "new"
"""


def test_diff_says_in_words_what_a_change_means(run: Run, here: Path) -> None:
    (here / "old.toml").write_text(OLD_KEYS)
    (here / "new.toml").write_text(NEW_KEYS)
    code, out, err = run("keys", "diff", "old.toml", "new.toml")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "group team: the budget falls from 100 USD/month to 50 USD/month",
        "group new is new: 5 requests/min, not enforced (dry run)",
        "group gone is gone: its limits end",
        "key left is gone: its secret is refused",
        "key renamed is now called known: same secret; what it has used stays with the old name",
        "key web: a new secret",
        "key web: the old secret is valid until 2999-01-01 00:00 UTC",
        "key web: requests per minute rise from 60 to 100",
        "key web: tokens per minute are no longer limited (before: 1000)",
        "key web: the budget changes from 20 USD/month to 30 USD in all",
        "key web: limits are only a dry run now",
        "key web: may use models c from now on",
        "key web: models a no longer in its list",
        "key web: expires 2999-01-01 (before: never)",
        "key web: group is not set (before: team)",
        "key web: owner is ann (before: not set)",
        "key web: models without a known price are allowed from now on",
        "key known is new: all models, 4 at once",
        "key new is new: models a, 4 at once, group new",
    ]


def test_diff_of_files_that_mean_the_same_says_so(run: Run, here: Path) -> None:
    (here / "old.toml").write_text(OLD_KEYS)
    assert run("keys", "diff", "old.toml", "old.toml")[:2] == (0, "nothing changes for any key\n")
    assert run("keys", "diff", "old.toml", "missing.toml")[0] == 1


def test_list_as_json_is_for_programs(run: Run) -> None:
    assert json.loads(run("keys", "list", "--format", "json")[1]) == []
    run("keys", "create", "web-app", "--rpm", "60")
    (found,) = json.loads(run("keys", "list", "--format", "json")[1])
    assert found == {
        "name": "web-app",
        "group": None,
        "owner": None,
        "description": None,
        "endpoints": [],
        "unpriced": "refuse",
        "store_failure": "refuse",
        "enforce": True,
        "rotated_until": None,
        "unused": None,
        "models": ["*"],
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "max_concurrent": None,
        "budget_usd": None,
        "budget_period": None,
        "budget_left_usd": None,
        "expires": None,
        "expired": False,
    }


def test_list_of_nothing_says_how_to_make_one(run: Run) -> None:
    assert "keys create NAME" in run("keys", "list")[1]


def test_revoke_removes_the_key_and_refuses_a_name_that_is_not_there(run: Run, here: Path) -> None:
    run("keys", "create", "a")
    run("keys", "create", "b")
    code, out, _ = run("keys", "revoke", "a")
    assert code == 0
    assert "two seconds" in out
    assert list(keys(here)) == ["b"]
    code, out, err = run("keys", "revoke", "a")
    assert (code, out) == (1, "")
    assert "there is no key 'a' (there are: b)" in err


# --- check ---


def test_check_of_a_right_configuration_says_so_and_notes_what_is_missing(
    run: Run, here: Path
) -> None:
    code, out, err = run("check")
    assert (code, err) == (0, "")
    assert "config/gateway.toml: 2 providers, 2 routes" in out
    assert "environment variable GROQ_API_KEY is not set" in out
    assert "environment variable OPENAI_API_KEY is not set (callers with" in out
    assert "requests for all models get 502, except with WRAPPER_DEMO=1" in out
    create = "to create one: python -m wrapper keys create NAME"
    missing = "keys file config/keys.toml does not exist: every key is refused"
    assert f"note: {missing}; {create}" in out.splitlines()
    (here / "config/keys.toml").touch()
    empty = "there are no keys in config/keys.toml"
    assert f"note: {empty}; {create}" in run("check")[1].splitlines()
    assert out.endswith("no problems\n")


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/0"),
        ("sqlite:////proc/none/usage.db", "/proc/none/usage.db: "),
        ("sqlite:///config/gateway.toml/usage.db", "config/gateway.toml/usage.db: Not a directory"),
        ("sqlite:///config", "config: Is a directory; WRAPPER_STORE must name a writable file"),
        ("sqlite:///config/gateway.toml", "config/gateway.toml: file is not a database; move it"),
        ("sqlite:///short.db", "short.db: file is not a database; move it"),
        ("sqlite:///newer.db", "newer.db: made by another version of the gateway (schema 999,"),
    ],
)
def test_check_finds_a_store_that_a_start_refuses(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, store: str, told: str
) -> None:
    (here / "short.db").write_text("SQLite")
    with contextlib.closing(sqlite3.connect(here / "newer.db")) as made:
        made.execute("PRAGMA user_version = 999")
    before = set(here.rglob("*"))
    monkeypatch.setenv("WRAPPER_STORE", store)
    code, out, err = run("check")
    assert (code, out) == (1, "")
    assert err.startswith(f"environment: WRAPPER_STORE: {told}")
    assert err.count("\n") == 1
    assert set(here.rglob("*")) == before


def test_check_makes_no_store_and_leaves_that_of_a_gateway_as_it_is(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRAPPER_STORE", "sqlite:///data/of/usage.db")
    assert run("check")[0] == 0
    assert not (here / "data").exists()
    store = open_store("sqlite:///data/of/usage.db")
    store.settle(Entry(time.time(), "web", "groq", "m", "completed"))
    before = {path: path.read_bytes() for path in (here / "data/of").iterdir()}
    assert run("check")[0] == 0
    assert {path: path.read_bytes() for path in (here / "data/of").iterdir()} == before
    store.close()


def test_check_tells_every_problem_on_stderr_and_fails(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "config/gateway.toml").write_text(GATEWAY.replace("base_url", "base_ur"))
    (here / "config/keys.toml").write_text("[keys.none]\n")
    monkeypatch.setenv("PORT", "x")
    code, out, err = run("check")
    assert (code, out) == (1, "")
    provider = "is missing; write an address such as https://api.example.com/v1"
    digest_ = "is missing; write the SHA-256 of the secret, 64 lower-case hexadecimal digits"
    unknown = "unknown key; did you mean 'base_url'?"
    assert err.splitlines() == [
        "environment: PORT: is 'x'; write an integer from 0 to 65535",
        f"config/gateway.toml: line 1: providers.groq.base_url: {provider}",
        f"config/gateway.toml: line 2: providers.groq.base_ur: {unknown}",
        f"config/gateway.toml: line 5: providers.openai.base_url: {provider}",
        f"config/gateway.toml: line 6: providers.openai.base_ur: {unknown}",
        "config/keys.toml: line 1: keys.none: the name is reserved; choose another name",
        f"config/keys.toml: line 1: keys.none.sha256: {digest_}",
    ]


def test_check_notes_expired_keys_and_reads_the_env_file(run: Run, here: Path) -> None:
    (here / ".env").write_text("GROQ_API_KEY=gsk_hidden\nOPENAI_API_KEY=sk-hidden\n")
    text = f'[keys.old]\nsha256 = "{digest("x")}"\nexpires = 2020-01-01\n'
    (here / "config/keys.toml").write_text(text)
    code, out, _ = run("check")
    assert code == 0
    assert "hidden" not in out
    assert [line for line in out.splitlines() if line.startswith("note")] == [
        "note: keys.old has expired"
    ]


def test_check_notes_a_misspelt_variable_of_the_env_file(run: Run, here: Path) -> None:
    (here / ".env").write_text(
        "GROQ_API_KEY=gsk_hidden\nOPENAI_API_KEI=sk-hidden\nLOG_LEVL=debug\n"
        "OPENAI_ADMIN_KEY=sk-hidden\nGRAFANA_PASSWORD=hidden\n"
    )
    code, out, _ = run("check")
    assert code == 0
    assert "hidden" not in out
    assert {line for line in out.splitlines() if "did you mean" in line} == {
        "note: .env has OPENAI_API_KEI, which nothing reads; did you mean OPENAI_API_KEY?",
        "note: .env has LOG_LEVL, which nothing reads; did you mean LOG_LEVEL?",
    }


def test_endpoints_that_do_not_exist_are_refused_when_written_and_noted_when_found(
    run: Run, here: Path
) -> None:
    known = f"nown are: {', '.join(SURFACES)}"
    code, _, err = run("keys", "create", "web", "--endpoints", "realtime,batch")
    assert code == 2
    what = "no endpoint that needs permission is called 'batch'; did you mean 'batches'?"
    assert err.endswith(f"--endpoints: {what} K{known}\n")
    assert f"'zzz'; k{known}" in run("keys", "create", "web", "--endpoints", "zzz")[2]
    words = " ".join(run("keys", "create", "--help")[1].split())
    assert ", ".join(SURFACES) in words
    shared = '[defaults]\nendpoints = ["batch", "realtime"]\n'
    made = [f'[keys.{name}]\nsha256 = "{digest(name)}"\n' for name in "abc"]
    (here / "config/keys.toml").write_text("\n".join([shared, *made]))
    note = f"note: keys.a.endpoints and 2 other keys: {what} K{known}"
    for command in (("check",), ("keys", "check")):
        code, out, err = run(*command)
        assert (code, err) == (0, "")
        assert note in out.splitlines()


def test_check_notes_which_routes_lead_nowhere(run: Run, here: Path) -> None:
    (here / ".env").write_text("OPENAI_API_KEY=sk-hidden\n")
    (here / "config/gateway.toml").write_text((ROOT / "config/gateway.toml").read_text())
    (line,) = [line for line in run("check")[1].splitlines() if "502" in line]
    assert line.startswith("note: requests for ")
    assert "*" in line.removeprefix("note: requests for ").partition(" get ")[0].split(", ")
    assert "gpt-*" not in line


def test_check_knows_the_simulated_provider(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRAPPER_DEMO", "1")
    assert "WRAPPER_DEMO=1: the simulated provider serves all models" in run("check")[1]
    local = '[providers.local]\nbase_url = "http://127.0.0.1:1"\n[[routes]]\nmodel = "own-*"\n'
    text = local + 'targets = ["local"]\n' + GATEWAY
    (here / "config/gateway.toml").write_text(text)
    assert "the simulated provider serves gpt-*, *, until" in run("check")[1]
    monkeypatch.setenv("WRAPPER_DEMO", "0")
    assert "requests for gpt-*, * get 502, except with WRAPPER_DEMO=1" in run("check")[1]


def test_check_notes_what_is_odd_about_keys_and_groups(run: Run, here: Path) -> None:
    (here / ".env").write_text("GROQ_API_KEY=gsk_x\nOPENAI_API_KEY=sk-x\n")
    text = f"""
        [groups.empty]
        max_concurrent = 1
        [groups.free]
        [keys.a]
        sha256 = ["{digest("a")}", "{digest("b")}"]
        group = "free"
        [keys.b]
        sha256 = ["{digest("c")}", "{digest("d")}"]
        rotated_until = 2020-01-01
    """
    (here / "config/keys.toml").write_text(text)
    assert [line for line in run("check")[1].splitlines() if line.startswith("note")] == [
        "note: keys.a has two valid secrets without an end: write rotated_until",
        "note: keys.b: the old secret is refused: keys rotate b --end removes it",
        "note: groups.empty has no keys",
        "note: groups.free has no limits",
    ]


def test_check_notes_models_without_a_price_that_keys_with_a_budget_may_not_call(
    run: Run, here: Path
) -> None:
    (here / ".env").write_text("GROQ_API_KEY=gsk_x\nOPENAI_API_KEY=sk-x\n")
    aliases = "".join(
        f'[[routes]]\nmodel = "{alias}"\ntargets = ["{target}"]\n'
        for alias, target in (("mine", "groq:my/model"), ("fast", f"groq:{GROQ_SMALL}"))
    )
    (here / "config/gateway.toml").write_text(
        GATEWAY.replace("[[routes]]", f"{aliases}[[routes]]", 1)
    )
    text = f"""
        [groups.team]
        budget_usd = 5
        [keys.a]
        sha256 = "{digest("a")}"
        budget_usd = 5
        [keys.b]
        sha256 = "{digest("b")}"
        group = "team"
        [keys.c]
        sha256 = "{digest("c")}"
        budget_usd = 5
        unpriced = "allow"
        [keys.d]
        sha256 = "{digest("d")}"
        budget_usd = 5
        models = ["fast"]
        [keys.e]
        sha256 = "{digest("e")}"
    """
    (here / "config/keys.toml").write_text(text)
    (note,) = [line for line in run("check")[1].splitlines() if "price" in line]
    assert note == (
        "note: no price is known for groq:my/model: keys with a budget (a, b) are refused for mine;"
        ' write [prices."my/model"], or unpriced = "allow"'
    )


def test_check_notes_that_no_route_takes_everything(run: Run, here: Path) -> None:
    (here / "config/gateway.toml").write_text('[providers.a]\nbase_url = "http://a"\n')
    assert 'there is no route for "*"' in run("check")[1]


def test_check_reads_the_price_table_too(run: Run, here: Path) -> None:
    (here / "config/gateway.toml").write_text("[")
    (here / "config/prices.toml").write_text("[")
    code, _, err = run("check")
    assert code == 1
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "config/gateway.toml",
        "config/prices.toml",
    ]


def test_an_interrupted_command_ends_without_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("wrapper.cli.check.run", interrupt)
    assert run("check") == (130, "", "")


def test_a_broken_env_file_is_reported(run: Run, here: Path) -> None:
    (here / ".env").write_bytes(b"caf\xe9=1")
    code, _, err = run("check")
    assert code == 1
    assert err.startswith(".env: is not UTF-8")


# --- demo-key ---


def test_the_first_start_makes_a_key_and_prints_a_line_that_can_be_pasted(
    run: Run, here: Path
) -> None:
    code, out, err = run("demo-key")
    assert (code, err) == (0, "")
    assert stat.S_IMODE((here / "config/keys.toml").stat().st_mode) == 0o600
    assert "simulated provider" in out
    (line,) = [line for line in out.splitlines() if line.startswith("curl ")]
    words = shlex.split(line)
    (bearer,) = [word for word in words if word.startswith("Authorization: ")]
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:8080/v1/chat/completions"]
    assert keys(here) == {"demo": {"sha256": digest(bearer.removeprefix("Authorization: Bearer "))}}
    body = json.loads(words[-1])
    assert (body["model"], body["stream"]) == (GROQ_SMALL, True)


def test_later_starts_make_no_key(run: Run, here: Path) -> None:
    run("demo-key")
    before = (here / "config/keys.toml").read_bytes()
    code, out, _ = run("demo-key")
    assert code == 0
    assert " -m wrapper keys create NAME\n" in out
    assert out.endswith("http://127.0.0.1:8080/docs\n\n")
    assert not LINES.search(out)
    assert (here / "config/keys.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "model"),
    [("GROQ_API_KEY", GROQ_SMALL), ("OPENAI_API_KEY", OPENAI_SMALL)],
)
def test_the_line_asks_for_a_model_of_a_provider_that_has_a_key(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, model: str
) -> None:
    monkeypatch.setenv(name, "x")
    out = run("demo-key")[1]
    assert f'"model": "{model}"' in out
    assert "simulated" not in out


def test_the_line_asks_for_an_alias_where_the_providers_are_others(run: Run, here: Path) -> None:
    text = '[providers.local]\nbase_url = "http://127.0.0.1:1"\n'
    text += '[[routes]]\nmodel = "it\'s"\ntargets = ["local:llama"]\n'
    (here / "config/gateway.toml").write_text(text)
    (line,) = [line for line in run("demo-key")[1].splitlines() if line.startswith("curl ")]
    assert json.loads(shlex.split(line)[-1])["model"] == "it's"


@pytest.mark.parametrize(
    ("host", "found"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("box", "box")],
)
def test_the_line_names_an_address_that_can_be_reached(
    run: Run, monkeypatch: pytest.MonkeyPatch, host: str, found: str
) -> None:
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("PORT", "9000")
    assert f"'http://{found}:9000/v1/chat/completions'" in run("demo-key")[1]


def test_a_first_start_on_an_address_that_is_taken_makes_no_key(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        code, out, err = run("demo-key", "--check-port")
    assert (code, out) == (1, "")
    assert f"another program listens on 127.0.0.1:{port}" in err
    assert not (here / "config/keys.toml").exists()
    assert run("demo-key", "--check-port")[0] == 0


def test_a_first_start_with_a_mistake_makes_no_key(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "config/gateway.toml").write_text("[")
    code, out, err = run("demo-key")
    assert (code, out) == (1, "")
    assert "is not TOML" in err
    (here / "config/gateway.toml").write_text(GATEWAY)
    monkeypatch.setenv("WEB_CONCURRENCY", "x")
    code, out, err = run("demo-key")
    assert (code, out) == (1, "")
    assert "WEB_CONCURRENCY" in err
    assert not (here / "config/keys.toml").exists()


def test_the_line_is_printed_once_the_gateway_listens(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    became: list[tuple[str, list[str], dict[str, str]]] = []

    def become(program: str, command: list[str], environ: dict[str, str]) -> None:
        fd = os.dup(int(environ[HINT_FD]))  # the command would inherit it
        became.append((program, command, {**environ, HINT_FD: str(fd)}))
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "execvpe", become)
    monkeypatch.setenv("WEB_CONCURRENCY", "")  # which gunicorn could not read
    code, out, err = run("demo-key", "--then", "gunicorn", "-c", "config/gunicorn.py")
    assert (code, err) == (1, "error: cannot start gunicorn: No such file or directory\n")
    assert "shown only now: sk-" in out
    assert "curl" not in out
    ((program, command, environ),) = became
    assert (program, command) == ("gunicorn", ["gunicorn", "-c", "config/gunicorn.py"])
    assert "WEB_CONCURRENCY" not in environ
    secret = out.partition("shown only now: ")[2].split()[0]
    assert secret not in " ".join([*command, *environ.values()])
    monkeypatch.setattr(os, "environ", environ)
    lifecycle.listening()
    printed = capsys.readouterr().out
    assert f"Bearer {secret}" in printed
    assert printed.endswith("/docs\n\n")
    lifecycle.listening()  # after a reload of gunicorn's own configuration
    assert capsys.readouterr().out == ""


# --- the program ---


def program(*command: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with nothing in its environment but what it needs."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **environ},
        text=True,
        capture_output=True,
        check=False,
    )


def test_without_a_command_the_help_is_shown_with_examples(run: Run) -> None:
    for argv in ((), ("keys",)):
        code, out, err = run(*argv)
        assert (code, err) == (0, "")
        assert out.startswith("usage: ")
        assert "\nexamples:\n  python -m wrapper keys create web-app" in out
    code, _, err = run("nonsense")
    assert code == 2
    assert err.startswith("usage: ")


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def test_every_argument_and_every_command_has_a_help_text_and_examples() -> None:
    for parser in parsers(build_parser()):
        for action in parser._actions:
            is_command = isinstance(action, argparse._SubParsersAction)
            assert action.help or is_command, (parser.prog, action.dest)
        assert "examples:" in (parser.epilog or "") or parser.prog.endswith("demo-key")
        parser.format_help()


def test_the_examples_of_the_help_texts_can_be_parsed() -> None:
    lines = [
        line.split("#")[0].strip()
        for parser in parsers(build_parser())
        for line in (parser.epilog or "").splitlines()[1:]
    ]
    for line in lines:
        words = shlex.split(line.removeprefix("python -m wrapper "))
        if "--help" not in words:
            build_parser().parse_args(words)


def test_the_version_is_shown(run: Run) -> None:
    assert run("--version")[:2] == (0, f"wrapper {__version__}\n")


def test_headers_stand_over_their_columns() -> None:
    table = columns(
        ("name", "n", "cost"), [("web-app", "12345", "1"), ("b", "1", "12.50")], names=1
    )
    assert table.splitlines() == [
        "name         n   cost",
        "web-app  12345      1",
        "b            1  12.50",
    ]


def test_a_reader_that_stops_reading_causes_no_traceback(here: Path) -> None:
    found = program("sh", "-c", f"{shlex.quote(sys.executable)} -m wrapper check | true", cwd=here)
    assert found.stderr == ""


def test_a_command_that_only_reads_imports_neither_flask_nor_gevent_nor_tomlkit(
    here: Path,
) -> None:
    code = (
        "import sys; from wrapper.__main__ import main; main(['check']);"
        "heavy = {'flask', 'gevent', 'requests', 'prometheus_client', 'tomlkit'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = program(sys.executable, "-c", code, cwd=here)
    assert found.stdout.splitlines()[-1] == "[]"


def test_names_that_the_terminal_cannot_show_cause_no_traceback(here: Path) -> None:
    key = f'[keys.a]\nsha256 = "{digest("x")}"\nmodels = ["\u202eü"]\n'
    (here / "config/keys.toml").write_text(key, encoding="utf-8")
    command = (sys.executable, "-m", "wrapper", "keys", "list")
    found = program(*command, cwd=here, PYTHONIOENCODING="ascii")
    assert found.returncode == 0
    assert "\\xfc" in found.stdout
