"""What the configuration says, and that every mistake in it is reported at once."""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wrapper.config import (
    ApiKey,
    ConfigError,
    Group,
    Listen,
    Price,
    Problem,
    Provider,
    Route,
    Secret,
    Settings,
    Target,
    environment,
    listen,
    load,
    needs_demo,
    store_url,
)
from wrapper.config.gateway import RESERVED

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "0123456789abcdef" * 4
LIMIT = "requests_per_minute"
RPM, PERIOD = f"keys.a.{LIMIT}", "keys.a.budget_period"
GATEWAY = """\
[providers.groq]
base_url = "https://api.groq.com/openai/v1"
api_key = { env = "GROQ_API_KEY" }

[[routes]]
model = "*"
targets = ["groq"]
"""

Load = Callable[..., Settings]


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    """Loads a gateway.toml and a keys.toml given as text."""

    def load_text(gateway: str = GATEWAY, keys: str | None = None, **environ: str) -> Settings:
        return load(written(tmp_path, gateway, keys, **environ))

    return load_text


def written(
    directory: Path, gateway: str | bytes = GATEWAY, keys: str | bytes | None = None, **env: str
) -> dict[str, str]:
    """Writes the files; the environment that names them."""
    for name, text in (("gateway.toml", gateway), ("keys.toml", keys)):
        if text is not None:
            data = text if isinstance(text, bytes) else text.encode()
            (directory / name).write_bytes(data)
    names = {"WRAPPER_CONFIG": "gateway.toml", "WRAPPER_KEYS": "keys.toml"}
    return {**{key: str(directory / name) for key, name in names.items()}, **env}


def problems(call: Callable[..., object], *args: Any, **kwargs: Any) -> dict[str, Problem]:
    """The problems of a loading, by key path."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    return {problem.key_path: problem for problem in caught.value.problems}


BROKEN_PEM = "-----BEGIN CERTIFICATE-----\n#bm90IGEgY2VydA==\n#-----END CERTIFICATE-----"
OTHERWISE_FINE = '\n[providers.fine]\nbase_url = "https://fine.example"\n'


def provider(line: str) -> str:
    return f'[providers.x]\nbase_url = "https://x.example/v1"\n{line}\n'


# --- what is there ---


def test_the_shipped_configuration_and_the_example_of_the_keys_have_no_problem() -> None:
    found = load(
        {
            "WRAPPER_CONFIG": str(ROOT / "config/gateway.toml"),
            "WRAPPER_KEYS": str(ROOT / "config/keys.example.toml"),
            "GROQ_API_KEY": "gsk_x",
        }
    )
    assert found.usable == ("groq",)
    assert found.providers["openai"].client_credentials
    assert found.keys["web-app"].budget_usd == Decimal("20.0")
    assert found.keys["web-app"].expires == datetime.date(2027, 1, 1)


def test_every_variable_of_the_example_file_is_understood(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    environ = environment(tmp_path, {})
    assert environ["PORT"] == "8080"
    assert "GROQ_API_KEY" not in environ
    assert listen(environ).bind == "127.0.0.1:8080"
    assert store_url(environ) == "sqlite:///data/usage.db"


def test_a_provider_has_the_documented_defaults(loaded: Load) -> None:
    groq = loaded(GROQ_API_KEY="gsk_x").providers["groq"]
    assert groq.api_key is not None
    assert groq.api_key.reveal() == "gsk_x"
    assert (groq.origin, groq.base_path) == ("https://api.groq.com", "/openai/v1")
    assert (groq.connect_timeout, groq.first_byte_timeout) == (5.0, 600.0)
    assert (groq.idle_timeout, groq.total_timeout, groq.max_connections) == (600.0, 3600.0, 4000)
    assert groq.keepalive == 45.0
    assert (groq.headers, groq.ca_file, groq.client_credentials) == ((), None, False)


@pytest.mark.parametrize(
    ("url", "keepalive"),
    [
        ("https://api.openai.com/v1", 45.0),
        ("https://API.groq.com/openai/v1", 45.0),
        ("https://api.openai.com.example.com/v1", 4.0),
        ("http://127.0.0.1:8000/v1", 4.0),
    ],
)
def test_idle_connections_of_unknown_servers_are_kept_less_than_the_5_s_of_uvicorn(
    loaded: Load, url: str, keepalive: float
) -> None:
    text = f'[providers.x]\nbase_url = "{url}"\n'
    assert loaded(text).providers["x"].keepalive == keepalive
    assert loaded(text + "keepalive = 7").providers["x"].keepalive == 7.0


def test_one_worker_takes_4000_streams_out_of_the_box(loaded: Load) -> None:
    settings = loaded()
    assert settings.server.max_in_flight == 4000
    assert all(p.max_connections >= 4000 for p in settings.providers.values())


def test_every_setting_of_a_provider_is_read(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(Path(requests.certs.where()).read_text("ascii"))
    lines = """
        connect_timeout = 1
        first_byte_timeout = 2.5
        idle_timeout = 3
        total_timeout = 4
        max_connections = 5
        client_credentials = true
        ca_file = "ca.pem"
        headers = { "X-Title" = "my app", "api-key" = { env = "AZURE_API_KEY" } }
    """
    found = loaded(provider(lines), AZURE_API_KEY="azure").providers["x"]
    assert (found.connect_timeout, found.first_byte_timeout) == (1.0, 2.5)
    assert (found.idle_timeout, found.total_timeout, found.max_connections) == (3.0, 4.0, 5)
    assert found.client_credentials
    assert found.ca_file == tmp_path / "ca.pem"
    assert found.ca_pem == (tmp_path / "ca.pem").read_text()  # renewed, it is another provider
    assert found.headers == (("X-Title", "my app"), ("api-key", "azure"))
    assert "azure" not in repr(found)


@pytest.mark.parametrize(
    ("address", "origin", "path"),
    [
        ("http://127.0.0.1:11434/v1/", "http://127.0.0.1:11434", "/v1"),
        ("https://api.example.com", "https://api.example.com", ""),
        ("https://api.example.com/", "https://api.example.com", ""),
        ("HTTPS://api.example.com/a/b", "https://api.example.com", "/a/b"),
        ("http://[::1]:8000/v1", "http://[::1]:8000", "/v1"),
        ("http://vllm_1:8000/v1", "http://vllm_1:8000", "/v1"),
    ],
)
def test_an_address_is_an_origin_and_a_path(
    loaded: Load, address: str, origin: str, path: str
) -> None:
    found = loaded(f'[providers.x]\nbase_url = "{address}"').providers["x"]
    assert (found.origin, found.base_path) == (origin, path)
    assert found.base_url == origin + path


def test_groq_reports_the_use_of_every_stream_and_others_when_asked(loaded: Load) -> None:
    assert loaded().providers["groq"].stream_usage == "sent"
    assert loaded(provider("")).providers["x"].stream_usage == "ask"
    assert loaded(provider('stream_usage = "sent"')).providers["x"].stream_usage == "sent"
    assert list(problems(loaded, provider('stream_usage = "no"'))) == ["providers.x.stream_usage"]


def test_the_credentials_header_is_one_that_never_passes_from_a_client(loaded: Load) -> None:
    assert loaded(provider("")).providers["x"].auth == "bearer"
    assert loaded(provider('auth = "x-api-key"')).providers["x"].auth == "x-api-key"
    assert list(problems(loaded, provider('auth = "x-team"'))) == ["providers.x.auth"]
    twice = 'auth = "api-key"\nheaders = { "Api-Key" = { env = "K" } }'
    assert list(problems(loaded, provider(twice))) == ["providers.x.headers.Api-Key"]


def test_a_provider_without_api_key_is_usable(loaded: Load) -> None:
    assert loaded(provider("")).providers["x"].usable


def test_a_provider_whose_variable_is_not_set_or_empty_is_not_usable(loaded: Load) -> None:
    for environ in ({}, {"GROQ_API_KEY": ""}, {"GROQ_API_KEY": " \n"}):
        groq = loaded(**environ).providers["groq"]
        assert groq.api_key is None
        assert groq.api_key_problem == "environment variable GROQ_API_KEY is not set"
        assert not groq.usable


def test_a_secret_in_a_file_is_read_stripped_and_watched(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "groq").write_text("gsk_from_file\n")
    found = loaded(provider('api_key = { file = "groq" }'))
    key = found.providers["x"].api_key
    assert key is not None
    assert key.reveal() == "gsk_from_file"
    assert tmp_path / "groq" in found.files


def test_a_secret_file_that_is_not_there_makes_the_provider_unusable(loaded: Load) -> None:
    found = loaded(provider('api_key = { file = "missing" }')).providers["x"]
    assert "no such file" in (found.api_key_problem or "")


def test_all_files_are_watched_also_those_that_are_missing(loaded: Load, tmp_path: Path) -> None:
    names = {path.name for path in loaded().files}
    assert names == {"gateway.toml", "keys.toml", "prices.toml", "models.toml"}


def test_routes_keep_their_order_and_models_may_hold_colons_and_slashes(loaded: Load) -> None:
    text = GATEWAY.replace(
        "[[routes]]", '[[routes]]\nmodel = "a"\ntargets = ["groq:x/y:8b"]\n\n[[routes]]'
    )
    routes = loaded(text).routes
    assert routes[0] == Route("a", (Target("groq", "x/y:8b"),))
    assert routes[1] == Route("*", (Target("groq", None),))


def test_a_key_has_all_its_limits(loaded: Load) -> None:
    keys = f"""
        [keys."a.b"]
        sha256 = "{DIGEST}"
        models = ["llama-*", "fast"]
        requests_per_minute = 60
        tokens_per_minute = 100_000
        max_concurrent = 8
        budget_usd = 0.10
        budget_period = "day"
        expires = 2027-01-01
    """
    key = loaded(keys=keys).keys["a.b"]
    assert (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent) == (60, 100000, 8)
    assert (key.budget_usd, key.budget_period) == (Decimal("0.10"), "day")
    assert key.limited


def limits(holder: ApiKey | Group | Provider) -> tuple[object, ...]:
    amount = None if holder.budget_usd is None else str(holder.budget_usd)
    numbers = (holder.requests_per_minute, holder.tokens_per_minute, holder.max_concurrent)
    return (*numbers, amount, holder.budget_period)


LIMITS = """
requests_per_minute = 60
tokens_per_minute = 100_000
max_concurrent = 8
budget_usd = 2.5
budget_period = "week"
"""


def test_keys_groups_and_providers_have_the_same_limits(loaded: Load) -> None:
    keys = f"[groups.g]\n{LIMITS}[keys.a]\nsha256 = '{DIGEST}'\ngroup = 'g'\n{LIMITS}"
    found = loaded(provider(LIMITS), keys)
    expected = (60, 100_000, 8, "2.5", "week")
    assert limits(found.providers["x"]) == expected
    assert limits(found.groups["g"]) == expected
    assert limits(found.keys["a"]) == expected
    assert found.keys["a"].limited
    assert found.groups["g"].limited
    plain = loaded(provider(""), f"[groups.g]\n[keys.a]\nsha256 = '{DIGEST}'")
    nothing = (None, None, None, None, "month")
    for holder in (plain.providers["x"], plain.groups["g"], plain.keys["a"]):
        assert limits(holder) == nothing


def test_what_a_key_says_beside_its_limits_is_read(loaded: Load) -> None:
    keys = f"""
        [groups.team-a]
        description = "the search team"
        enforce = false

        [keys.a]
        sha256 = "{DIGEST}"
        group = "team-a"
        owner = "ann@example.com"
        description = "nightly jobs"
        endpoints = ["realtime"]
        unpriced = "allow"
        store_failure = "allow"
        enforce = false
    """
    found = loaded(keys=keys)
    key = found.keys["a"]
    assert (key.group, key.owner, key.description) == ("team-a", "ann@example.com", "nightly jobs")
    assert (key.endpoints, key.unpriced, key.store_failure) == (("realtime",), "allow", "allow")
    assert not key.enforce
    assert not key.limited
    group = found.groups["team-a"]
    assert (group.name, group.description, group.enforce) == ("team-a", "the search team", False)


def test_defaults_are_for_what_a_key_does_not_say(loaded: Load) -> None:
    keys = f"""
        [defaults]
        models = ["llama-*"]
        endpoints = ["realtime"]
        requests_per_minute = 60
        max_concurrent = 4
        budget_usd = 1
        budget_period = "day"
        unpriced = "allow"
        store_failure = "allow"
        enforce = false

        [keys.a]
        sha256 = "{DIGEST}"

        [keys.b]
        sha256 = "{DIGEST[::-1]}"
        models = ["*"]
        endpoints = []
        requests_per_minute = 5
        max_concurrent = false
        budget_usd = 10
        unpriced = "refuse"
        store_failure = "refuse"
        enforce = true
    """
    found = loaded(keys=keys).keys
    a, b = found["a"], found["b"]
    assert limits(a) == (60, None, 4, "1", "day")
    assert (a.models, a.endpoints, a.unpriced) == (("llama-*",), ("realtime",), "allow")
    assert (a.store_failure, a.enforce, a.name) == ("allow", False, "a")
    assert limits(b) == (5, None, None, "10", "day")
    assert (b.models, b.endpoints, b.unpriced) == (("*",), (), "refuse")
    assert (b.store_failure, b.enforce) == ("refuse", True)


def test_a_default_budget_can_be_switched_off_and_a_default_period_needs_no_budget(
    loaded: Load,
) -> None:
    key = f"[keys.a]\nsha256 = '{DIGEST}'\n"
    found = loaded(keys=f"[defaults]\nbudget_usd = 1\n{key}budget_usd = false").keys["a"]
    assert not found.limited
    found = loaded(keys=f"[defaults]\nbudget_period = 'total'\n{key}budget_usd = 5").keys["a"]
    assert limits(found)[3:] == ("5", "total")


def test_during_a_rotation_a_key_has_two_digests(loaded: Load) -> None:
    old = DIGEST[::-1]
    keys = f"[keys.a]\nsha256 = ['{DIGEST}', '{old}']\nrotated_until = 2026-12-03T12:00:00+02:00"
    found = loaded(keys=keys).keys["a"]
    assert found.sha256s == (DIGEST, old)
    assert (found.sha256, found.old_sha256) == (DIGEST, old)
    assert found.rotated_until == datetime.datetime(2026, 12, 3, 10, tzinfo=datetime.UTC)
    for moment in ("2026-12-03", "2026-12-03T00:00:00"):
        key = loaded(keys=keys.replace("2026-12-03T12:00:00+02:00", moment)).keys["a"]
        assert key.rotated_until == datetime.datetime(2026, 12, 3, tzinfo=datetime.UTC)
    assert loaded(keys=f"[keys.a]\nsha256 = ['{DIGEST}']").keys["a"].sha256s == (DIGEST,)


def test_output_tokens_that_nobody_limits_are_a_setting(loaded: Load) -> None:
    found = loaded(provider(""))
    assert found.server.default_output_tokens == 4096
    assert found.providers["x"].default_output_tokens is None
    text = "[server]\ndefault_output_tokens = 100\n" + provider("default_output_tokens = 200")
    assert loaded(text).server.default_output_tokens == 100
    assert loaded(text).providers["x"].default_output_tokens == 200


@pytest.mark.parametrize(
    ("written_date", "expires"),
    [
        ("2027-01-01", datetime.date(2027, 1, 1)),
        ("2027-01-01T12:00:00", datetime.date(2027, 1, 1)),
        ("2027-01-01T23:30:00-05:00", datetime.date(2027, 1, 2)),
        ("2027-01-01T00:30:00+05:00", datetime.date(2026, 12, 31)),
    ],
)
def test_a_key_expires_on_a_day_in_utc(
    loaded: Load, written_date: str, expires: datetime.date
) -> None:
    found = loaded(keys=f'[keys.a]\nsha256 = "{DIGEST}"\nexpires = {written_date}').keys["a"]
    assert type(found.expires) is datetime.date
    assert found.expires == expires


def test_prices_are_decimals_and_cached_input_costs_as_input_by_default(loaded: Load) -> None:
    text = GATEWAY + '[prices."a/b"]\ninput = 0.15\noutput = 1\n'
    assert loaded(text).prices["a/b"] == Price(Decimal("0.15"), Decimal("0.15"), Decimal(1))
    text += "cached_input = 0.075\n"
    assert loaded(text).prices["a/b"].cached_input == Decimal("0.075")


def test_settings_cannot_be_changed(loaded: Load) -> None:
    found = loaded()
    with pytest.raises(FrozenInstanceError):
        found.store = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        found.providers["x"] = found.providers["groq"]  # type: ignore[index]


def test_a_secret_is_not_shown_nor_written(loaded: Load) -> None:
    found = loaded(GROQ_API_KEY="gsk_hidden")
    assert "gsk_hidden" not in repr(found)
    assert "gsk_hidden" not in f"{found.providers['groq'].api_key}"
    with pytest.raises(TypeError):
        pickle.dumps(Secret("gsk_hidden"))
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")


# --- what is wrong ---


def test_all_problems_of_all_places_are_reported_at_once(loaded: Load) -> None:
    gateway = """
        [server]
        max_bod_bytes = 1
        [providers.groq]
        base_url = "ftp://x"
        [[routes]]
        model = "*"
        targets = ["grok"]
    """
    keys = '[keys.none]\nsha256 = "x"'
    found = problems(loaded, gateway, keys, PORT="http", LOG_LEVEL="verbose")
    assert set(found) == {
        "PORT",
        "LOG_LEVEL",
        "server.max_bod_bytes",
        "providers.groq.base_url",
        "routes[0].targets",
        "keys.none",
        "keys.none.sha256",
    }
    assert found["server.max_bod_bytes"].hint == "did you mean 'max_body_bytes'?"
    assert found["routes[0].targets"].hint == "did you mean 'groq'?"
    assert found["PORT"].file == "environment"
    assert found["keys.none"].file.endswith("keys.toml")


def test_a_problem_is_one_line_with_file_key_path_fault_and_remedy() -> None:
    problem = Problem("config/gateway.toml", "server.x", "unknown key", "remove it")
    assert str(problem) == "config/gateway.toml: server.x: unknown key; remove it"
    assert str(ConfigError([problem, problem])) == f"{problem}\n{problem}"
    there = Problem("config/gateway.toml", "server.x", "unknown key", line=7)
    assert str(there) == "config/gateway.toml: line 7: server.x: unknown key"


def test_a_problem_has_the_line_of_its_setting_or_else_of_the_table(loaded: Load) -> None:
    gateway = """\
[providers.x]
base_url = '''
'''
headers."a b" = "x"  # [routes]

[[routes]]
model = "a"
targets = [
    "x",
    "nobody",
]
[[routes]]
targets = ["x"]
[tags]
user = true
labels = [" a"]
"""
    keys = f"""\
[keys]
a = {{ sha256 = "{DIGEST}", models = [] }}
"b.c".sha256 = "{DIGEST}"
"""
    found = problems(loaded, gateway, keys)
    assert {path: problem.line for path, problem in found.items()} == {
        "providers.x.base_url": 2,
        'providers.x.headers."a b"': 4,
        "routes[0].targets": 8,
        "routes[1].model": 12,
        "tags.labels": 16,
        "keys.a.models": 2,
        'keys."b.c".sha256': 3,
    }


def test_fifty_tags_may_be_labels(loaded: Load) -> None:
    names = [*map(str, range(49)), "x" * 64]
    tags = loaded(f"[tags]\nuser = true\nlabels = {names}{OTHERWISE_FINE}").tags
    assert tags is not None
    assert tags.labels == set(names)


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("[server]\nmax_body_bytes = '1'", "server.max_body_bytes", "is a string"),
        ("[server]\nmax_body_bytes = true", "server.max_body_bytes", "is a boolean"),
        ("[server]\nmax_body_bytes = 1e6", "server.max_body_bytes", "is a number"),
        ("[server]\nmax_in_flight = 0", "server.max_in_flight", "out of range"),
        ("[server]\nmax_in_flight = 4001", "server.max_in_flight", "out of range"),
        ("[server]\nbody_timeout = 0", "server.body_timeout", "out of range"),
        ("[server]\nbody_timeout = nan", "server.body_timeout", "out of range"),
        ("[server]\nbody_timeout = inf", "server.body_timeout", "out of range"),
        ("[server]\nbody_timeout = 1e99999999999999999999", "server.body_timeout", "out of range"),
        ("[server]\nroot_path = 'llm'", "server.root_path", "is 'llm'"),
        ("[server]\nroot_path = '/llm/'", "server.root_path", "is '/llm/'"),
        ("[server]\nroot_path = '/'", "server.root_path", "is '/'"),
        ("[server]\nroot_path = '/a/../b'", "server.root_path", "is '/a/../b'"),
        ("[server]\nroot_path = '/a%20b'", "server.root_path", "is '/a%20b'"),
        ("[server]\nmetering = 1", "server.metering", "is an integer"),
        ("[server]\ncors_origins = '*'", "server.cors_origins", "is a string"),
        ("[server]\ncors_origins = ['*', 'http://a']", "server.cors_origins", "already"),
        ("[server]\ncors_origins = ['https://*.a.b']", "server.cors_origins", "no origin"),
        ("[server]\ncors_origins = ['https://a.b/']", "server.cors_origins", "no origin"),
        ("[server]\ncors_origins = [1]", "server.cors_origins[0]", "is an integer"),
        ("[server]\nmetrics_token = 'hunter2'", "server.metrics_token", "is a literal secret"),
        ("server = 1", "server", "is an integer"),
        ("[sever]", "sever", "unknown key"),
        (provider("connect_timeout = 0"), "providers.x.connect_timeout", "out of range"),
        (provider("total_timeout = 1e6"), "providers.x.total_timeout", "out of range"),
        (provider("idle_timeout = 00:01:00"), "providers.x.idle_timeout", "is a date or time"),
        (provider("requests_per_minute = 0"), "providers.x.requests_per_minute", "out of range"),
        (provider("tokens_per_minute = false"), "providers.x.tokens_per_minute", "is a boolean"),
        (provider("budget_usd = -1"), "providers.x.budget_usd", "out of range"),
        (provider("budget_period = 'day'"), "providers.x.budget_period", "has no budget"),
        (
            provider("budget_usd = 1\nbudget_period = 'hour'"),
            "providers.x.budget_period",
            "is 'hour'",
        ),
        ("[tags]\n", "tags", "says nothing"),
        ('[tags]\nheader = "x tag"', "tags.header", "is 'x tag'"),
        ('[tags]\nheader = "Authorization"', "tags.header", "holds a credential"),
        ('[tags]\nuser = "yes"', "tags.user", "is a string"),
        ('[tags]\nuser = true\nlabels = "a"', "tags.labels", "is a string"),
        ("[tags]\nuser = true\nlabels = []", "tags.labels", "is empty"),
        ('[tags]\nuser = true\nlabels = ["a", 1]', "tags.labels[1]", "is an integer"),
        ('[tags]\nuser = true\nlabels = ["a", "a"]', "tags.labels[1]", "is there twice"),
        ('[tags]\nuser = true\nlabels = [" a"]', "tags.labels", "' a' is no tag"),
        ('[tags]\nuser = true\nlabels = ["a\\n"]', "tags.labels", "is no tag"),
        (f"[tags]\nuser = true\nlabels = ['{'x' * 65}']", "tags.labels", "is no tag"),
        (
            f"[tags]\nuser = true\nlabels = {list(map(str, range(51)))}",
            "tags.labels",
            "has 51 tags",
        ),
        ('[tags]\nuser = false\nlabels = ["a"]', "tags.labels", "no request has one"),
        (provider('on_abort = "wait"'), "providers.x.on_abort", "is 'wait'"),
        (provider("default_output_tokens = 0"), "providers.x.default_output_tokens", "out of"),
        ("[server]\ndefault_output_tokens = 0", "server.default_output_tokens", "out of range"),
        (provider("max_connections = 0"), "providers.x.max_connections", "out of range"),
        (provider("timeout = 1"), "providers.x.timeout", "unknown key"),
        (provider("api_key = 'sk-abc'"), "providers.x.api_key", "is a literal secret"),
        (provider("api_key = 1"), "providers.x.api_key", "is an integer"),
        (provider("api_key = {}"), "providers.x.api_key", "is not a reference"),
        (provider("api_key = {env='A', file='b'}"), "providers.x.api_key", "names both"),
        (provider("api_key = {env=1}"), "providers.x.api_key", "is not the name"),
        (provider("api_key = {env=''}"), "providers.x.api_key", "is not the name"),
        (provider("api_key = {file='.'}"), "providers.x.api_key", "is not a regular file"),
        (provider("ca_file = 'missing.pem'"), "providers.x.ca_file", "no such file"),
        (provider("ca_file = 'gateway.toml'"), "providers.x.ca_file", "no certificate"),
        (provider(f"ca_file = 'gateway.toml'\n#{BROKEN_PEM}"), "providers.x.ca_file", "no certif"),
        (provider("headers = {a = 1}"), "providers.x.headers.a", "is an integer"),
        (provider("headers = {'a b' = 'x'}"), 'providers.x.headers."a b"', "not a header's name"),
        (provider('headers = {a = "x\\r\\ny"}'), "providers.x.headers.a", "no header's value"),
        (provider("headers = {Host = 'a'}"), "providers.x.headers.Host", "set by the gateway"),
        (provider("headers = {a='1', A='2'}"), "providers.x.headers.A", "is there twice"),
        (provider("headers = {api-key='x'}"), "providers.x.headers.api-key", "literal secret"),
        ("[providers.x]", "providers.x.base_url", "is missing"),
        ("[[providers]]", "providers", "is an array"),
        ("providers.x = 1", "providers.x", "is an integer"),
        ("", "providers", "there is no provider"),
        (provider("") + "[routes]", "routes", "is a table"),
        (provider("") + "[[routes]]\ntargets = ['x']", "routes[0].model", "is missing"),
        (
            provider("") + "[[routes]]\nmodel = 'a['\ntargets = ['x']",
            "routes[0].model",
            "not closed",
        ),
        (provider("") + "[[routes]]\nmodel = 'a'", "routes[0].targets", "is missing"),
        (provider("") + "[[routes]]\nmodel = ''\ntargets = ['x']", "routes[0].model", "is empty"),
        (provider("") + "[[routes]]\nmodel = 'a'\ntargets = []", "routes[0].targets", "is empty"),
        (
            provider("") + "[[routes]]\nmodel = 'a'\ntargets = ['']",
            "routes[0].targets[0]",
            "is empty",
        ),
        (
            provider("") + "[[routes]]\nmodel = 'a'\ntargets = ['x:']",
            "routes[0].targets",
            "names no model",
        ),
        (
            provider("") + "[[routes]]\nmodel = 'a'\ntargets = ['x', 'x']",
            "routes[0].targets[1]",
            "is there twice",
        ),
        (provider("") + "[prices.m]\ninput = 1", "prices.m.output", "is missing"),
        (provider("") + "[prices.m]\ninput = -1\noutput = 1", "prices.m.input", "out of range"),
    ],
)
def test_a_mistake_is_reported_at_its_key_path(
    loaded: Load, text: str, path: str, says: str
) -> None:
    found = problems(loaded, text if not text or "providers" in text else text + OTHERWISE_FINE)
    assert list(found) == [path]
    assert says in found[path].message
    assert found[path].hint


@pytest.mark.parametrize(
    "address",
    [
        "api.example.com",
        "//api.example.com",
        "ftp://api.example.com",
        "https://",
        "https:///v1",
        "https://:443/v1",
        "https://host:/v1",
        "https://host:0/v1",
        "https://host:99999/v1",
        "https://host:http/v1",
        "https://user:hunter2@host/v1",
        "https://host/v1?key=hunter2",
        "https://host/v1?",
        "https://host/v1#x",
        "https://host/v1/../admin",
        "https://host/./v1",
        "https://host/v1%2f..",
        "https://host//v1",
        "https://host/v1//",
        "https://host\\\\v1",
        "https://ho st/v1",
        "https://höst/v1",
        "https://[::1/v1",
        "https://host/v1\\u0000",
        "https://host/v1\\r\\nX: y",
        "https://-host/v1",
    ],
)
def test_an_address_that_could_mean_two_things_is_refused_and_not_repeated(
    loaded: Load, address: str
) -> None:
    found = problems(loaded, f'[providers.x]\nbase_url = "{address}"')
    assert list(found) == ["providers.x.base_url"]
    assert "hunter2" not in str(found["providers.x.base_url"])


@pytest.mark.parametrize("name", [*sorted(RESERVED), "Groq", "-x", "a b", "a/b", "ä", "", "x" * 65])
def test_a_provider_cannot_take_a_path_of_the_gateway_or_an_odd_name(
    loaded: Load, name: str
) -> None:
    found = problems(loaded, f'[providers."{name}"]\nbase_url = "https://x.example"')
    assert len(found) == 1
    assert next(iter(found)).startswith("providers.")


@pytest.mark.parametrize(
    ("models", "unreached"),
    [
        (("*", "gpt-*"), 1),
        (("gpt-*", "gpt-6-sol"), 1),
        (("gpt-*", "gpt-*"), 1),
        (("a", "b", "a"), 2),
        (("**", "a"), 1),
    ],
)
def test_a_route_that_is_never_reached_is_a_problem(
    loaded: Load, models: tuple[str, ...], unreached: int
) -> None:
    text = provider("") + "".join(f"[[routes]]\nmodel='{m}'\ntargets=['x']\n" for m in models)
    found = problems(loaded, text)
    assert list(found) == [f"routes[{unreached}].model"]


def test_a_route_to_a_provider_with_a_mistake_is_not_a_second_problem(loaded: Load) -> None:
    text = GATEWAY.replace("https://", "")
    assert list(problems(loaded, text)) == ["providers.groq.base_url"]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("sha256 = 1", "keys.a.sha256"),
        (f"sha256 = '{DIGEST.upper()}'", "keys.a.sha256"),
        ("sha256 = 'sk-wr-hunter2'", "keys.a.sha256"),
        ("", "keys.a.sha256"),
        (f"sha256 = '{DIGEST}'\nmodels = []", "keys.a.models"),
        (f"sha256 = '{DIGEST}'\nmodels = 'gpt'", "keys.a.models"),
        (f"sha256 = '{DIGEST}'\nrequests_per_minute = 0", "keys.a.requests_per_minute"),
        (f"sha256 = '{DIGEST}'\ntokens_per_minute = -1", "keys.a.tokens_per_minute"),
        (f"sha256 = '{DIGEST}'\nmax_concurrent = 1.5", "keys.a.max_concurrent"),
        (f"sha256 = '{DIGEST}'\nmax_concurent = 1", "keys.a.max_concurent"),
        (f"sha256 = '{DIGEST}'\nbudget_usd = 0", "keys.a.budget_usd"),
        (f"sha256 = '{DIGEST}'\nbudget_usd = '20'", "keys.a.budget_usd"),
        (f"sha256 = '{DIGEST}'\nbudget_usd = 1\nbudget_period='year'", "keys.a.budget_period"),
        (f"sha256 = '{DIGEST}'\nbudget_period = 'day'", "keys.a.budget_period"),
        (f"sha256 = '{DIGEST}'\nrequests_per_minute = 10_000_000_000", RPM),
        (f"sha256 = '{DIGEST}'\nrequests_per_minute = true", RPM),
        (f"sha256 = '{DIGEST}'\nmax_concurrent = 1_000_001", "keys.a.max_concurrent"),
        (f"sha256 = '{DIGEST}'\nbudget_usd = 5_000_000", "keys.a.budget_usd"),
        (f"sha256 = '{DIGEST}'\nbudget_usd = 1e-7", "keys.a.budget_usd"),
        (f"sha256 = '{DIGEST}'\nbudget_usd = -1", "keys.a.budget_usd"),
        (f"sha256 = '{DIGEST}'\nbudget_period = 7", "keys.a.budget_period"),
        (f"sha256 = '{DIGEST}'\nbudget_usd = false\nbudget_period = 'day'", PERIOD),
        (f"sha256 = '{DIGEST}'\ngroup = 'nobody'", "keys.a.group"),
        (f"sha256 = '{DIGEST}'\ngroup = 'teem'\n[groups.team]", "keys.a.group"),
        (f"sha256 = '{DIGEST}'\nunpriced = 'yes'", "keys.a.unpriced"),
        (f"sha256 = '{DIGEST}'\nstore_failure = true", "keys.a.store_failure"),
        (f"sha256 = '{DIGEST}'\nenforce = 'no'", "keys.a.enforce"),
        (f"sha256 = '{DIGEST}'\nendpoints = ['A B']", "keys.a.endpoints"),
        (f"sha256 = '{DIGEST}'\nowner = 'a\u202eb'", "keys.a.owner"),
        (f"sha256 = '{DIGEST}'\ndescription = '{'x' * 201}'", "keys.a.description"),
        (f"sha256 = ['{DIGEST}', '{DIGEST}']", "keys.a.sha256"),
        ("sha256 = []", "keys.a.sha256"),
        (f"sha256 = ['{DIGEST}', 'sk-wr-hunter2']", "keys.a.sha256[1]"),
        (f"sha256 = '{DIGEST}'\nrotated_until = 2027-01-01", "keys.a.rotated_until"),
        (f"sha256 = ['{DIGEST}', '{'0' * 64}']\nrotated_until = 7", "keys.a.rotated_until"),
        (f"sha256 = '{DIGEST}'\n[groups.g]\nrequests_per_minute = false", f"groups.g.{LIMIT}"),
        (f"sha256 = '{DIGEST}'\n[groups.g]\nmodels = ['a']", "groups.g.models"),
        (f"sha256 = '{DIGEST}'\n[groups.g]\nbudget_period = 'day'", "groups.g.budget_period"),
        (f"sha256 = '{DIGEST}'\n[groups.none]", "groups.none"),
        (f"sha256 = '{DIGEST}'\n[defaults]\nowner = 'a'", "defaults.owner"),
        (f"sha256 = '{DIGEST}'\n[defaults]\nbudget_usd = 0", "defaults.budget_usd"),
        (f"sha256 = '{DIGEST}'\nexpires = '2027-01-01'", "keys.a.expires"),
        (f"sha256 = '{DIGEST}'\nexpires = 12:00:00", "keys.a.expires"),
        (f"sha256 = '{DIGEST}'\nexpires = 0001-01-01T00:00:00+14:00", "keys.a.expires"),
    ],
)
def test_a_mistake_in_a_key_is_reported_and_repeats_no_secret(
    loaded: Load, line: str, path: str
) -> None:
    found = problems(loaded, keys=f"[keys.a]\n{line}")
    assert list(found) == [path]
    assert "hunter2" not in str(found[path])


@pytest.mark.parametrize("name", ["none", "client", "other", "", "a b", ".a", "ä", "x" * 65])
def test_a_key_cannot_have_a_name_that_is_no_good_label(loaded: Load, name: str) -> None:
    assert len(problems(loaded, keys=f'[keys."{name}"]\nsha256 = "{DIGEST}"')) == 1


def test_a_secret_used_as_a_name_is_not_repeated(loaded: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(keys=f'[keys.sk-wr-hunter2]\nsha256 = "{DIGEST}"\nx = 1')
    assert "hunter2" not in str(caught.value)


def test_an_unknown_group_comes_with_the_name_that_was_meant(loaded: Load) -> None:
    found = problems(loaded, keys=f"[groups.team-a]\n[keys.a]\nsha256='{DIGEST}'\ngroup='team-b'")
    assert found["keys.a.group"].message == "there is no group 'team-b'"
    assert found["keys.a.group"].hint.startswith("did you mean 'team-a'? Or write [groups.NAME]")


def test_the_names_of_a_hint_end_before_its_next_sentence(loaded: Load) -> None:
    found = problems(loaded, keys=f"[groups.team-a]\n[keys.a]\nsha256='{DIGEST}'\ngroup='zz'")
    assert found["keys.a.group"].hint.startswith("known are: team-a. Or write [groups.NAME]")


def test_no_name_is_suggested_that_is_only_a_little_alike(loaded: Load) -> None:
    gateway = """
        [providers.openai]
        base_url = "http://127.0.0.1"
        [[routes]]
        model = "*"
        targets = ["nope"]
    """
    assert problems(loaded, gateway)["routes[0].targets"].hint == "known are: openai"


def test_problems_are_in_the_order_of_their_lines(loaded: Load) -> None:
    keys = f"[keys.a]\nbudgt_usd = 1\nsha256 = '{DIGEST}'\nunpriced = 'x'\ngroup = 'x'\n"
    keys += "[groups.b]\nx = 1"
    with pytest.raises(ConfigError) as caught:
        loaded(keys=keys)
    assert [problem.line for problem in caught.value.problems] == [2, 4, 5, 7]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("[keys.a]\n[keys.a]\n", "is not TOML: [keys.a] is there twice (column 8)"),
        ("[keys.a]\nb = 1\nb = 2\n", "is not TOML: this name has a value already (column 6)"),
    ],
)
def test_what_is_there_twice_is_named_as_it_is_written(
    loaded: Load, keys: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(keys=keys)
    assert [problem.message for problem in caught.value.problems] == [message]


def test_two_keys_with_one_secret_are_a_problem(loaded: Load) -> None:
    found = problems(loaded, keys=f'[keys.a]\nsha256="{DIGEST}"\n[keys.b]\nsha256="{DIGEST}"')
    assert found["keys.b.sha256"].message == "is also that of keys.a"


def test_a_secret_put_where_a_variables_name_belongs_is_not_repeated(loaded: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(provider('api_key = { env = "gsk_hunter2" }'))
    assert "hunter2" not in str(caught.value)
    assert "capitals" in str(caught.value)


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "ümlaut", "nul\0"])
def test_a_secret_that_no_header_can_carry_is_reported_without_it(loaded: Load, value: str) -> None:
    found = problems(loaded, GROQ_API_KEY=value)
    assert "header" in found["providers.groq.api_key"].message
    assert value not in str(found["providers.groq.api_key"])


def test_an_empty_secret_file_is_a_problem(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "groq").write_text("\n")
    found = problems(loaded, provider('api_key = { file = "groq" }'))
    assert "is empty" in found["providers.x.api_key"].message


@pytest.mark.parametrize(
    ("data", "place", "says"),
    [
        (b"[server\n", "line 1", "is not TOML"),
        (b"[server]\nx = \n", "line 2", "is not TOML"),
        (b"[server]\n[server]\n", "line 2", "is not TOML"),
        (b"a = '''\n\n", "line 3", "is not TOML"),
        (b"a = " + b"9" * 5000, "", "is not TOML"),
        (b"a = " + b"[" * 5000, "", "is nested too deeply"),
        (b"\xef\xbb\xbf[server]\n", "line 1", "byte order mark"),
        (b"# caf\xe9\n", "", "is not UTF-8 (byte 6)"),
        (b"# " + b"x" * 10_000_000, "", "is larger than"),
    ],
)
def test_a_file_that_is_no_toml_is_reported_with_its_line(
    tmp_path: Path, data: bytes, place: str, says: str
) -> None:
    for names in ("gateway", "keys"):
        environ = written(tmp_path, **{"gateway": GATEWAY, names: data})  # type: ignore[arg-type]
        found = problems(load, environ)
        assert list(found) == [place]
        assert says in found[place].message
        (tmp_path / "keys.toml").unlink(missing_ok=True)


def test_a_missing_gateway_file_is_reported_and_a_missing_keys_file_is_no_keys(
    tmp_path: Path,
) -> None:
    environ = written(tmp_path)
    assert load(environ).keys == {}
    (tmp_path / "gateway.toml").unlink()
    found = problems(load, environ)
    assert found[""].message == "there is no such file"
    assert "WRAPPER_CONFIG" in found[""].hint


def test_directories_pipes_sockets_and_unreadable_paths_are_reported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in (".", "pipe", "loop", "socket", "x" * 300, "gateway.toml/x"):
            environ = written(tmp_path)
            environ["WRAPPER_KEYS"] = str(tmp_path / name)
            assert list(problems(load, environ)) == [""]


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from(["1.5", "nan", "inf", "-inf", "1e400", "1e-400", "-0.0"])
    | st.sampled_from(["2027-01-01", "2027-01-01T00:00:00Z", "12:00:00"])
    | st.builds(
        lambda text: '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"',
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        | st.sampled_from(["https://x.example/v1", "groq", "groq:m", "*", "a*", DIGEST, "month"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(map(toml, items))}]")
        | st.dictionaries(
            st.sampled_from(
                [
                    "env",
                    "file",
                    "base_url",
                    "api_key",
                    "headers",
                    "model",
                    "targets",
                    "sha256",
                    "expires",
                    "input",
                    "output",
                    "keys",
                    "routes",
                    "groq",
                    "models",
                    "budget_usd",
                    "ca_file",
                ]
            ),
            inner,
            max_size=4,
        ).map(lambda d: "{" + ", ".join(f"{k} = {toml(v)}" for k, v in d.items()) + "}")
    ),
    max_leaves=12,
)


def toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


SETTINGS = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(st.data())
def test_whatever_the_files_say_is_settings_or_problems(
    tmp_path: Path, data: st.DataObject
) -> None:
    def tables(*names: str) -> str:
        return "".join(f"{name} = {toml(data.draw(VALUES))}\n" for name in names)

    inside = data.draw(
        st.sampled_from(["base_url", "api_key", "headers", "ca_file", "total_timeout", "x"])
    )
    gateway = data.draw(
        st.sampled_from(
            [
                f"{tables('server', 'providers', 'routes', 'prices')}",
                f"[[routes]]\n{tables('model', 'targets')}[prices.a]\n{tables('input', 'output')}",
                f"[server]\n{tables('cors_origins', 'max_body_bytes', 'metrics_token')}",
                f"[providers.groq]\n{tables(inside)}",
            ]
        )
    )
    keys = data.draw(
        st.sampled_from(
            [
                tables("keys"),
                f"[keys.a]\n{tables('sha256', 'models', 'expires', 'budget_usd')}",
                f"[keys.a]\nsha256='{DIGEST}'\n{tables('budget_period', 'max_concurrent')}",
            ]
        )
    )
    environ = written(tmp_path, gateway, keys)
    with contextlib.suppress(ConfigError):
        assert load(environ).providers


@SETTINGS
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_whatever_bytes_the_files_hold_is_settings_or_problems(
    tmp_path: Path, gateway: bytes, keys: bytes
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, gateway, keys))
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)


# --- the environment ---


def test_the_real_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# a comment\nPORT=1\nHOST='::1'\nexport GROQ_API_KEY=\"a b\"\nOPENAI_API_KEY=\nX=${PORT}\n"
    )
    found = environment(tmp_path, {"PORT": "2", "HOST": "", "LOG_LEVEL": ""})
    assert found == {"PORT": "2", "HOST": "::1", "GROQ_API_KEY": "a b", "X": "${PORT}"}


def test_without_an_env_file_there_is_the_environment(tmp_path: Path) -> None:
    assert environment(tmp_path, {"A": "b"}) == {"A": "b"}


@pytest.mark.parametrize("data", [b"caf\xe9=1", b"A='x\n", b"=x\n"])
def test_a_broken_env_file_is_a_problem_that_repeats_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ".env").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        environment(tmp_path, {})
    assert caught.value.problems[0].file.endswith(".env")


def test_the_server_listens_where_the_environment_says() -> None:
    assert listen({}).host == "127.0.0.1"
    assert 2 <= listen({}).workers <= 4
    environ = {"HOST": "::1", "PORT": "0", "WEB_CONCURRENCY": "7", "LOG_LEVEL": "DEBUG"}
    assert listen(environ) == Listen("::1", 0, 7, "debug")
    assert listen(environ).bind == "[::1]:0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "٣"),
        ("PORT", "8080/tcp"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_CONCURRENCY", "257"),
        ("LOG_LEVEL", "verbose"),
        ("HOST", "http://localhost"),
        ("HOST", "localhost:8080"),
        ("HOST", "a b"),
        ("WRAPPER_STORE", "redis://:hunter2@host:99999/0"),
        ("WRAPPER_STORE", "redis://:hunter2@host/first"),
        ("WRAPPER_STORE", "redis://:hunter2@host,other/0"),
        ("WRAPPER_STORE", "redis+sentinel://:hunter2@host/"),
        ("WRAPPER_STORE", "redis+cluster://:hunter2@host/1"),
        ("WRAPPER_STORE", "redis+else://:hunter2@host/1"),
        ("WRAPPER_STORE", "usage.db"),
        ("WRAPPER_STORE", "sqlite:///"),
        ("WRAPPER_STORE", "sqlite:///:memory:"),
        ("WRAPPER_STORE", "postgres://u:hunter2@host/db"),
        ("WRAPPER_DEMO", "yes"),
    ],
)
def test_a_variable_with_a_wrong_value_is_a_problem(loaded: Load, name: str, value: str) -> None:
    found = problems(loaded, **{name: value})
    assert list(found) == [name]
    assert found[name].file == "environment"
    assert "hunter2" not in str(found[name])


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:6379/0",
        "rediss://:secret@redis.example.com/2?ssl_ca_certs=/etc/ca.pem",
        "redis://user:p%40ss@[::1]:6379",
        "redis+sentinel://:secret@one:26379,two,three:26380/main/1?sentinel_password=x",
        "rediss+cluster://one:6379,two:6379",
        "redis://one:6379?cluster=true",
    ],
)
def test_the_forms_of_redis(url: str) -> None:
    assert store_url({"WRAPPER_STORE": url}) == url


# --- the simulated provider ---


def test_the_demo_is_needed_only_when_asked_for_and_no_provider_has_a_key(tmp_path: Path) -> None:
    environ = written(tmp_path)
    assert not needs_demo(environ)
    assert needs_demo({**environ, "WRAPPER_DEMO": "1"})
    assert not needs_demo({**environ, "WRAPPER_DEMO": "1", "GROQ_API_KEY": "gsk_x"})
    assert not needs_demo({**written(tmp_path, "["), "WRAPPER_DEMO": "1"})


def test_the_demo_answers_for_every_route_and_an_alias_keeps_its_model(tmp_path: Path) -> None:
    text = GATEWAY.replace('"*"', '"fast"').replace('["groq"]', '["groq:llama", "groq:other"]')
    found = load(written(tmp_path, text), "http://127.0.0.1:1234")
    assert found.usable == ("demo",)
    assert found.stand_in == "demo"
    assert found.providers["demo"].base_url == "http://127.0.0.1:1234/v1"
    assert found.routes == (
        Route("fast", (Target("demo", "llama"),)),
        Route("*", (Target("demo"),)),
    )


OLLAMA = '[providers.ollama]\nbase_url = "http://127.0.0.1:9/v1"\n'


def test_a_server_without_a_key_answers_beside_the_demo(tmp_path: Path) -> None:
    routes = '[[routes]]\nmodel = "gemma*"\ntargets = ["groq", "ollama"]\n'
    environ = written(tmp_path, OLLAMA + routes + GATEWAY)
    found = load(environ, "http://127.0.0.1:1234")
    assert found.usable == ("ollama", "demo")
    assert found.stand_in == "demo"
    assert found.routes == (
        Route("gemma*", (Target("ollama"),)),
        Route("*", (Target("demo"),)),
    )


def test_the_demo_ends_with_the_first_key_of_a_provider(tmp_path: Path) -> None:
    environ = {**written(tmp_path, GATEWAY + OLLAMA), "GROQ_API_KEY": "gsk_x"}
    found = load(environ, "http://127.0.0.1:1234")
    assert found.usable == ("groq", "ollama")
    assert found.stand_in is None
    assert found.routes == (Route("*", (Target("groq"),)),)


def test_where_no_provider_wants_a_key_there_is_no_demo(tmp_path: Path) -> None:
    routes = '[[routes]]\nmodel = "*"\ntargets = ["ollama"]\n'
    found = load(written(tmp_path, OLLAMA + routes), "http://127.0.0.1:1234")
    assert (found.usable, found.stand_in) == (("ollama",), None)


def test_a_secret_may_be_in_a_file_that_another_variable_names(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(
        '[server]\nmetrics_token = { env = "METRICS_TOKEN" }\n'
        '[providers.groq]\nbase_url = "http://127.0.0.1/v1"\n'
    )
    environ = {
        "WRAPPER_CONFIG": str(tmp_path / "gateway.toml"),
        "METRICS_TOKEN_FILE": str(tmp_path / "token"),
    }
    with pytest.raises(ConfigError, match="open to everyone"):
        load(environ)
    (tmp_path / "token").write_text("let-me-see\n")
    found = load(environ).server.metrics_token
    assert found is not None
    assert found.reveal() == "let-me-see"
    found = load({**environ, "METRICS_TOKEN": "first"}).server.metrics_token
    assert found is not None
    assert found.reveal() == "first"
