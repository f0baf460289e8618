"""The command line: what is printed where, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from wrapper.__main__ import main
from wrapper.auth import Keyring, digest
from wrapper.config import load
from wrapper.config.example_models import GROQ_SMALL, OPENAI_SMALL

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


def test_create_records_every_limit_and_says_that_they_are_not_enforced(
    run: Run, here: Path
) -> None:
    options = "--models llama-* fast,x --rpm 60 --tpm 100_000 --concurrency 8"
    more = "--budget 0.50 --per day --expires 2999-01-31"
    code, _, err = run("keys", "create", "a.b", *options.split(), *more.split())
    assert code == 0
    assert "not yet enforced" in err
    found = load({}).keys["a.b"]
    assert found.models == ("llama-*", "fast", "x")
    assert (found.requests_per_minute, found.tokens_per_minute) == (60, 100_000)
    assert (found.max_concurrent, str(found.budget_usd), found.budget_period) == (8, "0.50", "day")
    assert str(found.expires) == "2999-01-31"
    assert "not yet enforced" in run("check")[1]
    assert "not yet enforced" in run("keys", "list")[2]


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


def test_create_warns_when_another_mistake_keeps_the_key_out_of_force(run: Run, here: Path) -> None:
    (here / "config/keys.toml").write_text("[keys.old]\nsha256 = 'x'\n")
    code, _, err = run("keys", "create", "new")
    assert code == 0
    assert "keys.old.sha256" in err


def test_list_shows_limits_dates_and_states_and_no_digest(run: Run, here: Path) -> None:
    run("keys", "create", "web-app", "--models", "llama-*", "--rpm", "60", "--budget", "20")
    with (here / "config/keys.toml").open("a") as file:
        file.write(f'[keys.old]\nsha256 = "{digest("x")}"\nexpires = 2020-01-01\n')
    code, out, _ = run("keys", "list")
    assert code == 0
    assert digest("x") not in out
    header, web, old = out.splitlines()
    assert header.split() == ["NAME", "MODELS", "LIMITS", "EXPIRES", "STATE"]
    assert web.split() == [
        *("web-app", "llama-*", "60", "requests/min,", "20.0", "USD/month", "never", "active")
    ]
    assert old.split() == ["old", "*", "-", "2020-01-01", "expired"]


def test_list_as_json_is_for_programs(run: Run) -> None:
    assert json.loads(run("keys", "list", "--format", "json")[1]) == []
    run("keys", "create", "web-app", "--rpm", "60")
    (found,) = json.loads(run("keys", "list", "--format", "json")[1])
    assert found == {
        "name": "web-app",
        "models": ["*"],
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "max_concurrent": None,
        "budget_usd": None,
        "budget_period": None,
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


def test_check_of_a_right_configuration_says_so_and_notes_what_is_missing(run: Run) -> None:
    code, out, err = run("check")
    assert (code, err) == (0, "")
    assert "config/gateway.toml: 2 providers, 2 routes" in out
    assert "environment variable GROQ_API_KEY is not set" in out
    assert "environment variable OPENAI_API_KEY is not set (callers with" in out
    assert "no provider can be used" in out
    assert "there are no keys" in out
    assert out.endswith("no problems\n")


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


def test_check_notes_which_routes_lead_nowhere(run: Run, here: Path) -> None:
    (here / ".env").write_text("OPENAI_API_KEY=sk-hidden\n")
    (here / "config/gateway.toml").write_text((ROOT / "config/gateway.toml").read_text())
    (line,) = [line for line in run("check")[1].splitlines() if "502" in line]
    assert line.startswith("note: requests for ")
    assert "*" in line.removeprefix("note: requests for ").partition(" get ")[0].split(", ")
    assert "gpt-*" not in line


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


def test_a_first_start_with_a_mistake_makes_no_key(run: Run, here: Path) -> None:
    (here / "config/gateway.toml").write_text("[")
    code, out, err = run("demo-key")
    assert (code, out) == (1, "")
    assert "is not TOML" in err
    assert not (here / "config/keys.toml").exists()


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


def test_without_a_command_the_usage_is_shown(run: Run) -> None:
    for argv in ((), ("keys",), ("nonsense",)):
        code, _, err = run(*argv)
        assert code == 2
        assert err.startswith("usage: ")
    assert run("--help")[0] == 0


def test_a_reader_that_stops_reading_causes_no_traceback(here: Path) -> None:
    found = program("sh", "-c", f"{shlex.quote(sys.executable)} -m wrapper check | true", cwd=here)
    assert found.stderr == ""


def test_a_command_that_only_reads_imports_neither_flask_nor_gevent(
    here: Path,
) -> None:
    code = (
        "import sys; from wrapper.__main__ import main; main(['check']);"
        "heavy = {'flask', 'gevent', 'requests', 'prometheus_client'};"
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
