"""What the documents promise exists, and what exists is documented."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import json
import re
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from wrapper.cli.check import VARIABLES
from wrapper.cli.exports import COLUMNS
from wrapper.cli.usage import NUMBERS
from wrapper.config import (
    ApiKey,
    Group,
    Price,
    Provider,
    Route,
    Server,
    Tags,
    example_models,
    listen,
    load,
    store_url,
)
from wrapper.endpoints import SURFACES, endpoint_table
from wrapper.metering import usage as record
from wrapper.metering.pricing import Prices
from wrapper.routing import Routes
from wrapper.telemetry import request_log

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
OPENAPI = ROOT / "wrapper" / "blueprints" / "openapi" / "openapi.yaml"
LOGGED = "## What is logged"
MAKEFILE = (ROOT / "Makefile").read_text()

# Fields that say what was found, and are not settings.
FOUND = {
    "ca_pem",
    "name",
    "api_key_problem",
    "metrics_token_problem",
    "secret_headers",
    "old_sha256",
}
# Variables that the processes set for each other.
INTERNAL = {"WRAPPER_RUN_DIR", "WRAPPER_DEMO_URL", "PROMETHEUS_MULTIPROC_DIR"}

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))

# The models of examples, by the provider that serves them.
EXAMPLES = {
    getattr(example_models, name): name.partition("_")[0].lower()
    for name in vars(example_models)
    if name.isupper()
}
# Models that are gone or will be: Groq's since 2026-08-16, OpenAI's from 2027-01-14.
RETIRED = re.compile(r"llama-3\.1-8b-instant|llama-3\.3-70b-versatile|\bgpt-4(?:o|\.1)\b")
WITH_EXAMPLES = [
    *(path for path in DOCUMENTS if path.name != "CHANGELOG.md"),
    *(ROOT / name / "README.md" for name in ("grafana", "prometheus")),
    *(
        path
        for path in (ROOT / "config").rglob("*.toml")
        if path.name not in ("prices.toml", "prices.units.toml", "models.toml")
    ),
    *(ROOT / "wrapper" / "cli").glob("*.py"),
    *(ROOT / "wrapper" / "config").glob("*.py"),
    ROOT / ".env.example",
]


def table_cells(text: str) -> set[str]:
    """Everything in backticks that stands in the first cell of a table's row."""
    rows = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("settings", [Server, Provider, Route, ApiKey, Group, Price, Tags])
def test_every_setting_is_documented(settings: type) -> None:
    names = {field.name for field in dataclasses.fields(settings)} - FOUND
    documented = re.findall(r"`([a-z0-9_]+)`", CONFIGURATION)
    assert names <= set(documented)


def test_the_endpoints_that_a_key_can_name_are_documented() -> None:
    [row] = re.findall(r"^\| `endpoints` \|.*", CONFIGURATION, re.MULTILINE)
    assert ", ".join(f"`{name}`" for name in SURFACES) in row


def test_every_documented_setting_exists() -> None:
    known = {
        f.name
        for kind in (Server, Provider, Route, ApiKey, Group, Tags)
        for f in dataclasses.fields(kind)
    }
    settings = CONFIGURATION[CONFIGURATION.index("## `[server]`") : CONFIGURATION.index(LOGGED)]
    assert table_cells(settings) <= known


def test_every_field_of_the_log_is_documented_in_its_order() -> None:
    rows = re.findall(r"^\| (`.*?) \|", CONFIGURATION[CONFIGURATION.index(LOGGED) :], re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert documented == list(request_log.Line.__struct_fields__)


def variables_in(*paths: Path) -> set[str]:
    """The environment variables that the code asks for by name."""
    reads = r"""environ(?:\.get)?[\[(]\s*["']([A-Z][A-Z_]+)["']|_whole\(environ, "([A-Z_]+)\""""
    found = [names for path in paths for names in re.findall(reads, path.read_text())]
    return {name for names in found for name in names if name} - INTERNAL


def test_every_environment_variable_is_in_the_readme() -> None:
    of_wsgi = {"connection.py", "head.py"}  # whose environments are those of requests
    sources = [
        *(ROOT / "wrapper" / "config").glob("*.py"),
        *(each for each in (ROOT / "wrapper" / "server").glob("*.py") if each.name not in of_wsgi),
    ]
    asked = variables_in(*sources, ROOT / "config" / "gunicorn.py")
    assert {"HOST", "PORT", "WRAPPER_STORE"} <= asked, "the pattern finds the variables"
    assert asked <= table_cells(README)


def test_the_readme_and_the_example_of_dotenv_name_the_same_variables() -> None:
    example = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    documented = {name for name in table_cells(README) if name.isupper()}
    assert documented == set(example)


def test_the_check_knows_the_variables_of_the_readme() -> None:
    shipped = (ROOT / "config" / "gateway.toml").read_text()
    references = re.findall(r'^[^#\n]*env = "(\w+)"', shipped, re.MULTILINE)
    documented = {name for name in table_cells(README) if name.isupper()}
    assert {*VARIABLES, *references} == documented


def test_the_service_is_started_as_the_container_and_has_longer_to_stop() -> None:
    section = CONFIGURATION[CONFIGURATION.index("## As a service") :]
    text = section[section.index("```ini") + len("```ini") :]
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text[: text.index("```")])
    service = unit["Service"]
    command = service["ExecStart"].removeprefix(service["WorkingDirectory"] + "/.venv/bin/")
    dockerfile = (ROOT / "Dockerfile").read_text()
    (started,) = re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert command.split() == json.loads(started)
    assert int(service["TimeoutStopSec"]) > listen({}).graceful_timeout
    state = f"/var/lib/{service['StateDirectory']}"
    assert section.count(f"{state}/keys.toml") == 1
    assert store_url({"WRAPPER_STORE": f"sqlite:///{state}/usage.db"}) in section


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z-]+)", document.read_text()))
        assert named <= targets, document.name
    offered = set(re.findall(r"^make (\S+)", README, re.MULTILINE))
    assert offered == {"run", "test", "test-clients"}


def test_ci_runs_the_readmes_test_commands() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r"^(?:exec )?(make .*)", run, re.MULTILINE)
    assert commands == re.findall(r"^(make test\S*)", README, re.MULTILINE)
    assert commands == ["make test", "make test-clients"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_the_layers_are_drawn_as_they_are_tested() -> None:
    tree = ast.parse((ROOT / "tests" / "unit" / "test_layers.py").read_text())
    (ranks,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RANKS"
    )
    drawn = {
        module: int(rank)
        for rank, modules in re.findall(r"^\| (\d+) \| (.*?) \|", CONTRIBUTING, re.MULTILINE)
        for module in re.findall(r"`(\w+)`", modules)
    }
    assert drawn == ranks


def test_every_runtime_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["fast"]]
    names = {Requirement(line).name for line in lines}
    section = CONTRIBUTING[CONTRIBUTING.index("## Dependencies") :]
    assert names == table_cells(section)


CLIENT_LOCKS = sorted((ROOT / "tests" / "clients" / "requirements").glob("*.txt"))


@pytest.mark.parametrize(
    "lock",
    [
        *("requirements.txt", "requirements-fast.txt", "requirements-dev.txt"),
        *(str(path.relative_to(ROOT)) for path in CLIENT_LOCKS),
    ],
)
def test_every_locked_package_has_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert blocks
    assert all("--hash=sha256:" in block and "==" in block for block in blocks)
    assert "://" not in text


def test_the_development_lock_has_the_runtime_versions() -> None:
    def pins(lock: str) -> set[str]:
        text = (ROOT / lock).read_text()
        return set(re.findall(r"^([a-z0-9-]+(?:\[[a-z0-9,-]+\])?==[^ \\]+)", text, re.MULTILINE))

    assert pins("requirements.txt") <= pins("requirements-dev.txt")


def test_what_a_package_wants_with_an_extra_is_locked_with_that_extra() -> None:
    # Else pip looks for the newest `gunicorn[gevent]` beside the pinned `gunicorn`, and refuses
    # the whole file on the day on which there is a newer one.
    text = (ROOT / "requirements-dev.txt").read_text()
    locked = {
        requirement.name: requirement.extras
        for pin in re.findall(r"^([a-z0-9][^ \\]*==[^ \\]+)", text, re.MULTILINE)
        if (requirement := Requirement(pin))
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted = {
        (requirement.name.lower(), extra)
        for lines, extras in [
            (direct, set()),
            *((installed_requirements(name), extras) for name, extras in locked.items()),
        ]
        for line in lines
        if (requirement := Requirement(line)).name.lower() in locked
        for extra in requirement.extras
        if is_wanted(requirement, extras)
    }
    assert ("gunicorn", "gevent") in wanted
    assert {(name, extra) for name, extra in wanted if extra not in locked[name]} == set()


def installed_requirements(name: str) -> list[str]:
    """What an installed package asks for; nothing where this platform does without it."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def is_wanted(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_name_no_retired_model(path: Path) -> None:
    assert RETIRED.findall(path.read_text()) == []


def test_the_readme_calls_the_example_models() -> None:
    named = re.findall(r"""model"?[:=] ?"([^"]+)\"""", README)
    assert len(named) == 3
    assert set(named) <= set(EXAMPLES)


def test_the_shipped_configuration_routes_and_prices_the_example_models() -> None:
    environ = {"WRAPPER_CONFIG": str(ROOT / "config" / "gateway.toml"), "WRAPPER_KEYS": "none"}
    settings = load({**environ, "GROQ_API_KEY": "x", "OPENAI_API_KEY": "x"})
    routes = Routes(settings)
    found = {model: routes.for_model(model)[0].provider for model in EXAMPLES}
    assert found == EXAMPLES
    fast = {(target.provider, target.model) for target in routes.for_model("fast")}
    assert fast <= {(provider, model) for model, provider in EXAMPLES.items()}
    prices = Prices.load(ROOT / "config" / "prices.toml", {})
    for model, provider in EXAMPLES.items():
        assert model in prices.names(provider, "")


def test_the_columns_of_an_export_and_the_reasons_are_documented() -> None:
    usage = (ROOT / "docs" / "usage.md").read_text()
    for what, columns in COLUMNS.items():
        listed = re.search(rf"^\| {what} \| (.*?)(?: \(.*)? \|$", usage, re.MULTILINE)
        assert listed
        assert re.findall(r"`(\w+)`", listed[1]) == list(columns)
    names = {name: value for name, value in vars(record).items() if name.isupper()}
    reasons = {value for value in names.values() if isinstance(value, str)}
    columns_of_usage = usage[: usage.index("An `outcome` is")]
    assert set(NUMBERS) - set(re.findall(r"`(\w+)`", columns_of_usage)) == set()
    assert reasons <= table_cells(usage)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), OPENAPI]
)
def test_examples_use_one_name_for_the_address_and_one_for_the_key(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(r"\$\{?(?:GATEWAY|KEY|API_KEY|GATEWAY_KEY|WRAPPER_URL)\b", text)
    if path == OPENAPI:
        assert "title: wrapper\n" in text


def test_a_directory_that_cannot_be_written_is_told_with_what_moves_out_of_it() -> None:
    command = ["make", "--no-print-directory", "VENV=/dev/null/venv", "/dev/null/venv/bin/python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "/dev/null/venv cannot be made; in a directory that is not writable" in done.stderr
    assert "make VENV=" in done.stderr
    assert "WRAPPER_STORE" in done.stderr
    assert "python3-venv" not in done.stderr


def test_the_readme_fits_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 120


def test_the_table_of_endpoints_is_the_codes_own() -> None:
    assert endpoint_table() in (ROOT / "docs" / "usage.md").read_text()
