"""setup-grafana.sh against a stand-in of Grafana's API: it creates, repairs, says what fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitoring.grafana import Grafana
from monitoring.stack import DASHBOARDS, ROOT

from harness.programs import require

SCRIPT = ROOT / "setup-grafana.sh"
UTILITIES = ["bash", "env", "mktemp", "rm", "cat", "sleep", "dirname"]


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    with Grafana() as running:
        yield running


@pytest.fixture(params=["python3", "jq"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PATH that holds what the script needs, and one of the two JSON tools alone."""
    return only(tmp_path, *UTILITIES, "curl", request.param)


def only(directory: Path, *names: str) -> str:
    """A PATH with these programs and no others."""
    bin_ = directory / "bin"
    bin_.mkdir()
    for name in names:
        if name == "python3":  # this one: the system's may be a script that needs others
            (bin_ / name).write_text(f'#!{require("bash")}\nexec "{sys.executable}" "$@"\n')
            (bin_ / name).chmod(0o755)
        else:
            (bin_ / name).symlink_to(require(name))
    return str(bin_)


def run(grafana: Grafana | str, **environment: str) -> subprocess.CompletedProcess[str]:
    url = grafana if isinstance(grafana, str) else grafana.url
    environment.setdefault("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    environment.setdefault("GRAFANA_WAIT", "10")
    bash = require("bash")
    require("curl")
    return subprocess.run(
        [bash, str(SCRIPT)],
        env={"GRAFANA_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([require("shellcheck"), str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_can_be_started_as_it_is() -> None:
    assert os.access(SCRIPT, os.X_OK)
    assert SCRIPT.read_bytes().startswith(b"#!/usr/bin/env bash\n")


def test_an_empty_grafana_gets_the_data_source_and_every_dashboard(
    grafana: Grafana, path: str
) -> None:
    done = run(grafana, PATH=path, PROMETHEUS_URL="http://prom.example:9090")
    assert (done.returncode, done.stderr) == (0, "")
    source = grafana.data_sources["prometheus"]
    assert source["url"] == "http://prom.example:9090"
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == "5s"
    shipped = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}
    assert set(grafana.dashboards) == set(shipped)
    for uid, dashboard in grafana.dashboards.items():
        assert dashboard.pop("id") is None
        shipped[uid].pop("version")
        assert dashboard == shipped[uid]
    assert f"{grafana.url}/d/api-key-metrics" in done.stdout


def test_the_second_run_changes_nothing(grafana: Grafana, path: str) -> None:
    assert run(grafana, PATH=path).returncode == 0
    before = json.dumps([grafana.data_sources, grafana.dashboards])
    done = run(grafana, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.dumps([grafana.data_sources, grafana.dashboards]) == before
    assert "repaired" in done.stdout


def test_a_damaged_data_source_and_dashboard_are_repaired(grafana: Grafana, path: str) -> None:
    grafana.data_sources["prometheus"] = {"uid": "prometheus", "name": "Mine", "url": "http://old"}
    grafana.dashboards["gateway-health"] = {"uid": "gateway-health", "panels": []}
    assert run(grafana, PATH=path).returncode == 0
    assert grafana.data_sources["prometheus"]["url"] == "http://prometheus:9090"
    assert grafana.data_sources["prometheus"]["name"] == "Mine"
    assert grafana.dashboards["gateway-health"]["panels"]


def test_somebody_elses_data_source_of_the_same_name_stays(grafana: Grafana, path: str) -> None:
    theirs = {"uid": "Zx9", "name": "Prometheus", "url": "http://theirs"}
    grafana.data_sources["Zx9"] = theirs
    assert run(grafana, PATH=path).returncode == 0
    assert grafana.data_sources["Zx9"] is theirs
    assert grafana.data_sources["prometheus"]["name"] == "Prometheus (gateway)"


def test_what_is_provisioned_from_files_is_left_alone(grafana: Grafana, path: str) -> None:
    grafana.data_sources["prometheus"] = {"uid": "prometheus", "name": "P", "readOnly": True}
    for file in DASHBOARDS:
        grafana.dashboards[file.stem] = {"uid": file.stem}
        grafana.provisioned.add(file.stem)
    done = run(grafana, PATH=path)
    assert done.returncode == 0
    assert grafana.writes() == []
    assert done.stdout.count("provisioned") == 1 + len(DASHBOARDS)


def test_it_waits_for_a_grafana_that_is_starting(grafana: Grafana) -> None:
    grafana.starting = 2
    done = run(grafana)
    assert done.returncode == 0
    assert "waiting for Grafana" in done.stdout


def test_no_grafana_is_an_error_that_names_the_address() -> None:
    done = run("http://127.0.0.1:9", GRAFANA_WAIT="1")
    assert done.returncode == 1
    assert "no Grafana at http://127.0.0.1:9 within 1 s" in done.stderr


def test_a_wrong_password_is_said_and_changes_nothing(grafana: Grafana, path: str) -> None:
    done = run(grafana, PATH=path, GRAFANA_PASSWORD="wrong-one")
    assert done.returncode == 1
    assert "refuses the login" in done.stderr
    assert "wrong-one" not in done.stdout + done.stderr
    assert grafana.writes() == []


@pytest.mark.parametrize("password", ['quo"te', "back\\slash", "dollar$HOME `id`", "a:b c#d", "ü"])
def test_a_password_may_hold_any_character(password: str) -> None:
    with Grafana(password=password) as grafana:
        done = run(grafana, GRAFANA_PASSWORD=password)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_token_stands_for_user_and_password(grafana: Grafana) -> None:
    assert run(grafana, GRAFANA_TOKEN="a-token", GRAFANA_PASSWORD="wrong").returncode == 0


def test_the_password_is_in_no_process_list(tmp_path: Path) -> None:
    """A `curl` in front of the real one writes down what everybody could see of it."""
    real, seen = require("curl"), tmp_path / "seen"
    path = only(tmp_path, *UTILITIES, "jq")
    wrapper = Path(path) / "curl"
    wrapper.write_text(f'#!{require("bash")}\necho "$@" >> "{seen}"\nexec "{real}" "$@"\n')
    wrapper.chmod(0o755)
    with Grafana(password="hidden-one") as grafana:
        done = run(grafana, PATH=path, GRAFANA_PASSWORD="hidden-one")
    assert done.returncode == 0
    assert len(seen.read_text().splitlines()) > 4
    assert "hidden-one" not in seen.read_text()
    assert "hidden-one" not in done.stdout + done.stderr


def test_a_login_without_the_right_to_do_it_is_told_so(grafana: Grafana) -> None:
    grafana.viewer = True
    done = run(grafana)
    assert done.returncode == 1
    assert "role Admin" in done.stderr


def test_a_failure_of_grafana_is_passed_on_in_its_own_words(grafana: Grafana, path: str) -> None:
    grafana.broken_dashboards = True
    done = run(grafana, PATH=path)
    assert done.returncode == 1
    assert "Grafana answered 500: database is locked" in done.stderr


def test_a_prometheus_that_grafana_does_not_reach_is_an_error(grafana: Grafana, path: str) -> None:
    grafana.prometheus_answers = False
    done = run(grafana, PATH=path)
    assert done.returncode == 1
    assert "connection refused" in done.stderr
    assert "PROMETHEUS_URL" in done.stderr


@pytest.mark.parametrize(("present", "wanted"), [(["curl"], "python3 or jq"), (["jq"], "curl")])
def test_a_missing_program_is_named(present: list[str], wanted: str, tmp_path: Path) -> None:
    done = run("http://127.0.0.1:9", PATH=only(tmp_path, *UTILITIES, *present))
    assert done.returncode == 2
    assert f"{wanted} is needed" in done.stderr


def test_it_leaves_no_file_behind(grafana: Grafana, tmp_path: Path) -> None:
    assert run(grafana, TMPDIR=str(tmp_path)).returncode == 0
    assert run(grafana, TMPDIR=str(tmp_path), GRAFANA_PASSWORD="wrong").returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_it_works_from_any_directory_and_through_a_copy_of_the_tree(
    grafana: Grafana, tmp_path: Path
) -> None:
    tree = tmp_path / "a b"
    shutil.copytree(ROOT / "grafana", tree / "grafana")
    shutil.copy(SCRIPT, tree)
    done = subprocess.run(
        [require("bash"), str(tree / SCRIPT.name)],
        env={"GRAFANA_URL": grafana.url + "/", "PATH": only(tmp_path, *UTILITIES, "curl", "jq")},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(grafana.dashboards) == {path.stem for path in DASHBOARDS}
