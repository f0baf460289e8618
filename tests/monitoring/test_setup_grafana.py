"""setup-grafana.sh against a stand-in of Grafana's API: it creates, repairs, says what fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from monitoring.grafana import Grafana, data_source
from monitoring.stack import DASHBOARDS, ROOT

from harness.poll import PATIENCE
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


def run(
    grafana: Grafana | str,
    *arguments: str,
    shell: tuple[str, ...] = ("bash",),
    cwd: Path | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    url = grafana if isinstance(grafana, str) else grafana.url
    environment.setdefault("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    environment.setdefault("GRAFANA_WAIT", "10")
    require("curl")
    return subprocess.run(
        [require(shell[0]), *shell[1:], str(SCRIPT), *arguments],
        env={"GRAFANA_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=cwd,
    )


def curl_in_front(directory: Path, before: str, arguments: str = '"$@"') -> str:
    """A PATH whose `curl` runs `before`, and then the real one."""
    path = only(directory, *UTILITIES, "jq")
    curl = Path(path) / "curl"
    curl.write_text(f'#!{require("bash")}\n{before}\nexec "{require("curl")}" {arguments}\n')
    curl.chmod(0o755)
    return path


@contextmanager
def server_that_says(answer: bytes) -> Iterator[str]:
    """One that speaks no HTTP: its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


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
    assert "data source prometheus: up to date (http://prometheus:9090)" in done.stdout


# --- a data source that is there ---------------------------------------------------------------


def test_a_damaged_dashboard_is_repaired(grafana: Grafana, path: str) -> None:
    grafana.dashboards["gateway-health"] = {"uid": "gateway-health", "panels": []}
    assert run(grafana, PATH=path).returncode == 0
    assert grafana.dashboards["gateway-health"]["panels"]


THEIRS: dict[str, Any] = {
    "name": "Ours since 2019, “the” one",
    "user": "reader",
    "database": "x",
    "basicAuth": True,
    "basicAuthUser": "prom",
    "withCredentials": True,
    "isDefault": True,
    "secureJsonFields": {"basicAuthPassword": True, "tlsCACert": True},
}
THEIR_JSON: dict[str, Any] = {
    "tlsAuthWithCACert": True,
    "httpMethod": "GET",
    "manageAlerts": False,
    "exemplarTraceIdDestinations": [{"name": "trace", "datasourceUid": "tempo"}],
}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"url": "http://old:9090"}, "url is http://prometheus:9090 instead of http://old:9090"),
        ({"url": ""}, "url is http://prometheus:9090"),
        ({"access": "direct"}, "access is proxy instead of direct"),
        ({"type": ""}, "type is prometheus"),
        ({"jsonData": THEIR_JSON}, "timeInterval is 5s"),
        ({"jsonData": THEIR_JSON | {"timeInterval": "1h"}}, "timeInterval is 5s instead of 1h"),
        (
            {"jsonData": None},
            "timeInterval is 5s, httpMethod is POST, manageAlerts is true",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_only_what_is_wrong_in_a_data_source_is_changed(
    damage: dict[str, Any], said: str, grafana: Grafana, path: str
) -> None:
    right = data_source(**THEIRS, jsonData=THEIR_JSON | {"timeInterval": "5s"})
    grafana.data_sources["prometheus"] = right | damage
    done = run(grafana, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"data source prometheus: repaired: {said}\n" in done.stdout
    if damage.get("jsonData", ...) is None:
        right["jsonData"] = data_source()["jsonData"]
    assert grafana.data_sources["prometheus"] == right | {"version": right["version"] + 1}
    assert grafana.writes().count(("PUT", "/api/datasources/uid/prometheus")) == 1
    assert "up to date" in run(grafana, PATH=path).stdout


@pytest.mark.parametrize("url", ["http://prometheus:9090", "http://prometheus:9090/"])
def test_a_data_source_that_is_right_is_not_written(url: str, grafana: Grafana, path: str) -> None:
    there = data_source(**THEIRS, url=url, jsonData=THEIR_JSON | {"timeInterval": "5s"})
    grafana.data_sources["prometheus"] = there
    done = run(grafana, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "data source prometheus: up to date" in done.stdout
    assert [path for _, path in grafana.writes()] == ["/api/dashboards/db"] * len(DASHBOARDS)


@pytest.mark.parametrize("read_only", [False, True])
def test_another_kind_of_data_source_with_our_uid_is_refused(
    read_only: bool, grafana: Grafana, path: str
) -> None:
    grafana.data_sources["prometheus"] = data_source(
        name="Logs", type="loki", url="http://loki:3100", readOnly=read_only
    )
    done = run(grafana, PATH=path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the data source 'Logs' has the uid prometheus" in done.stderr
    assert "it is of type loki. Nothing was changed" in done.stderr
    assert grafana.writes() == []


def test_a_change_that_somebody_else_made_meanwhile_is_not_undone(grafana: Grafana) -> None:
    seen = data_source(url="http://old")
    grafana.data_sources["prometheus"] = seen | {"version": 4}
    grafana.instead["GET", "/api/datasources/uid/prometheus"] = 200, seen
    done = run(grafana)
    assert done.returncode == 1
    assert "repairing the data source: Grafana answered 409: Datasource has alr" in done.stderr
    assert grafana.data_sources["prometheus"]["version"] == 4


def test_somebody_elses_data_source_of_the_same_name_stays(grafana: Grafana, path: str) -> None:
    theirs = data_source("Zx9", url="http://theirs", isDefault=True)
    grafana.data_sources["Zx9"] = theirs
    done = run(grafana, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert grafana.data_sources["Zx9"] is theirs
    assert theirs == data_source("Zx9", url="http://theirs", isDefault=True)
    assert grafana.data_sources["prometheus"]["name"] == "Prometheus (gateway)"
    assert "created as 'Prometheus (gateway)'" in done.stdout
    assert "up to date" in run(grafana, PATH=path).stdout


def test_both_names_taken_is_said(grafana: Grafana) -> None:
    grafana.data_sources["Zx9"] = data_source("Zx9")
    grafana.data_sources["Zx8"] = data_source("Zx8", name="Prometheus (gateway)")
    done = run(grafana)
    assert done.returncode == 1
    assert "creating the data source 'Prometheus (gateway)': Grafana answered 409" in done.stderr
    assert set(grafana.data_sources) == {"Zx8", "Zx9"}


def test_a_password_in_the_address_of_prometheus_is_not_shown(tmp_path: Path) -> None:
    path = curl_in_front(tmp_path, f'echo "$@" >> "{tmp_path}/seen"')
    with Grafana() as grafana:
        grafana.data_sources["prometheus"] = data_source(url="https://me:0ld-secret@old/x@y")
        done = run(grafana, PATH=path, PROMETHEUS_URL="http://me:n3w-secret@new:1/x")
        assert (done.returncode, done.stderr) == (0, "")
        assert "url is http://new:1/x instead of https://old/x@y" in done.stdout
        assert grafana.data_sources["prometheus"]["url"] == "http://me:n3w-secret@new:1/x"
    assert "secret" not in done.stdout + (tmp_path / "seen").read_text()


# --- dashboards that are there -----------------------------------------------------------------


def test_dashboards_stay_in_the_folder_they_were_moved_to(grafana: Grafana, path: str) -> None:
    assert run(grafana, PATH=path).returncode == 0
    assert set(grafana.folders.values()) == {""}
    grafana.folders["gateway-health"] = "team-a"
    grafana.dashboards["gateway-health"]["panels"] = []
    done = run(grafana, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert grafana.folders == {"api-key-metrics": "", "gateway-health": "team-a", "one-key": ""}
    assert grafana.dashboards["gateway-health"]["panels"]


def test_what_is_provisioned_from_files_is_left_alone(grafana: Grafana, path: str) -> None:
    grafana.data_sources["prometheus"] = data_source(url="http://from-a-file", readOnly=True)
    for file in DASHBOARDS:
        grafana.dashboards[file.stem] = {"uid": file.stem}
        grafana.provisioned.add(file.stem)
    done = run(grafana, PATH=path)
    assert done.returncode == 0
    assert grafana.writes() == []
    assert done.stdout.count("provisioned") == 1 + len(DASHBOARDS)


# --- how it is called --------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["-h", "--help"])
def test_help_says_what_it_does_and_every_variable_with_its_default(argument: str) -> None:
    done = run("not used", argument, PATH=str(Path(require("cat")).parent), GRAFANA_WAIT="not used")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: setup-grafana.sh")
    defaults = re.findall(r"([A-Z_]+)=\$\{\1:-(.*)\}", SCRIPT.read_text())
    assert len(defaults) == 6
    for name, default in defaults:
        assert re.search(rf"^  {name} +{re.escape(default)}", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [["--bogus"], ["https://grafana.example"], [""], ["--help", "me"], ["-x", "a b"]],
    ids=" ".join,
)
def test_any_other_argument_is_refused(arguments: list[str], grafana: Grafana) -> None:
    done = run(grafana, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"it takes no arguments: {' '.join(arguments)}\nusage: setup-g" in done.stderr
    assert grafana.requests == []


@pytest.mark.parametrize("wait", ["abc", "1.5", "-1", "1234567", "x[$(exit)]"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(wait: str, grafana: Grafana) -> None:
    done = run(grafana, GRAFANA_WAIT=wait)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"setup-grafana: GRAFANA_WAIT must be whole seconds, such as 60: {wait}\n"
    )
    assert grafana.requests == []


@pytest.mark.parametrize("wait", ["0", "08", ""])
def test_any_whole_seconds_will_do(wait: str, grafana: Grafana) -> None:
    assert run(grafana, GRAFANA_WAIT=wait).returncode == 0


@pytest.mark.parametrize("name", ["GRAFANA_URL", "PROMETHEUS_URL"])
@pytest.mark.parametrize(
    "url", ["localhost:3000", "ftp://h", "file:///etc", "http://", "https//h", "-o"]
)
def test_an_address_that_is_none_is_refused(name: str, url: str, grafana: Grafana) -> None:
    done = run(url) if name == "GRAFANA_URL" else run(grafana, PROMETHEUS_URL=url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"setup-grafana: {name} must begin with http:// or https://: {url}\n"
    assert grafana.requests == []


def test_a_password_in_the_address_of_grafana_is_refused_and_not_shown() -> None:
    done = run("http://me:s3cret@127.0.0.1:9")
    assert done.returncode == 2
    assert "GRAFANA_USER and GRAFANA_PASSWORD" in done.stderr
    assert "s3cret" not in done.stderr
    assert "s3cret" not in run("me:s3cret@127.0.0.1:9").stderr


@pytest.mark.parametrize("shell", [("dash",), ("bash", "--posix")])
def test_sh_will_do_where_there_is_bash(shell: tuple[str, ...], grafana: Grafana) -> None:
    done = run(grafana, shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(grafana.dashboards) == {file.stem for file in DASHBOARDS}
    assert run(grafana, "--bogus me", shell=shell).stderr.startswith(
        "setup-grafana: it takes no arguments: --bogus me\n"
    )


def test_sh_without_bash_is_told_so(grafana: Grafana, tmp_path: Path) -> None:
    done = run(grafana, shell=("dash",), PATH=only(tmp_path, "curl", "jq"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "setup-grafana: bash is needed: bash setup-grafana.sh\n"


def test_a_json_py_in_the_present_directory_is_not_run(grafana: Grafana, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not me')\n")
    done = run(grafana, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# --- what answers, and whether it does ---------------------------------------------------------


def test_it_waits_for_a_grafana_that_is_starting(grafana: Grafana) -> None:
    grafana.starting = 2
    done = run(grafana, GRAFANA_WAIT="60")
    assert done.returncode == 0
    assert f"waiting for Grafana at {grafana.url}: it answers 503\n" in done.stdout


def test_no_grafana_is_an_error_that_names_the_address_and_the_reason() -> None:
    done = run("http://127.0.0.1:9", GRAFANA_WAIT="4")
    assert done.returncode == 1
    assert "no Grafana at http://127.0.0.1:9 within 4 s: curl: (7) " in done.stderr
    assert "waiting for Grafana at http://127.0.0.1:9: curl: (7) " in done.stdout


def test_a_grafana_that_does_not_get_up_is_an_error(grafana: Grafana) -> None:
    grafana.starting = 99
    done = run(grafana, GRAFANA_WAIT="1")
    assert done.returncode == 1
    assert f"no Grafana at {grafana.url} within 1 s: it answers 503 (" in done.stderr


@pytest.mark.parametrize("url", ["http://a b", "http://127.0.0.1:99999"])
def test_waiting_ends_at_once_where_it_is_pointless(url: str) -> None:
    done = run(url, GRAFANA_WAIT="999999")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"GET {url}/api/health: curl: (3) " in done.stderr


def test_a_server_that_speaks_no_http_ends_it_at_once() -> None:
    with server_that_says(b"220 mail.example ESMTP\r\n") as url:
        done = run(url, GRAFANA_WAIT="999999")
    assert (done.returncode, done.stdout) == (1, "")
    assert "/api/health: curl: (1) Received HTTP/0.9" in done.stderr


PAGE = "<!doctype html><title>Sign in</title>"


@pytest.mark.parametrize(
    "answer",
    [
        (200, PAGE),
        (200, {"status": "up"}),
        (200, [{"database": "ok"}]),
        (302, PAGE),
        (401, {"message": "Sign in first"}),
        (404, "404 page not found"),
    ],
)
def test_a_server_that_is_not_grafana_ends_it_at_once(
    answer: tuple[int, Any], grafana: Grafana, path: str
) -> None:
    grafana.instead["GET", "/api/health"] = answer
    grafana.redirect = "https://sign-in.example/start?state=long"
    done = run(grafana, PATH=path, GRAFANA_WAIT="999999")
    assert (done.returncode, done.stdout) == (1, "")
    to = " to https://sign-in.example/start" if answer[0] == 302 else ""
    assert done.stderr == (
        f"setup-grafana: GET {grafana.url}/api/health: the answer, {answer[0]}{to}, is not "
        "Grafana's. Is that another server, a proxy or a sign-in page? (GRAFANA_URL)\n"
    )
    assert grafana.requests == [("GET", "/api/health")]


STEPS = [
    ("GET", "/api/org", "logging in"),
    ("GET", "/api/datasources/uid/prometheus", "looking for the data source"),
    ("GET", "/api/datasources/name/Prometheus", "looking for a data source named Prometheus"),
    ("POST", "/api/datasources", "creating the data source 'Prometheus'"),
    ("PUT", "/api/datasources/uid/prometheus", "repairing the data source"),
    ("GET", "/api/dashboards/uid/", "looking for the dashboard API Key Metrics"),
    ("POST", "/api/dashboards/db", "saving the dashboard API Key Metrics"),
    (
        "GET",
        "/api/datasources/uid/prometheus/health",
        "asking Grafana whether it reaches Prometheus",
    ),
]


def prepare(grafana: Grafana, method: str, path: str) -> None:
    """So that the script comes to this request."""
    if method == "PUT" or path.endswith("/health"):
        grafana.data_sources["prometheus"] = data_source(url="http://old")


@pytest.mark.parametrize(("method", "step", "what"), STEPS)
@pytest.mark.parametrize("answer", [(200, PAGE), (200, {}), (404, PAGE)])
def test_an_answer_that_is_not_grafanas_is_a_failure_at_every_step(
    method: str, step: str, what: str, answer: tuple[int, Any], grafana: Grafana
) -> None:
    prepare(grafana, method, step)
    grafana.instead[method, step] = answer
    done = run(grafana)
    assert done.returncode == 1
    assert f"the answer, {answer[0]}, is not Grafana's" in done.stderr
    assert what in done.stderr or f"{method} {grafana.url}{step}" in done.stderr
    last_method, last_path = grafana.requests[-1]
    assert (last_method, last_path[: len(step)]) == (method, step)
    if step == "/api/org":
        assert grafana.writes() == []


@pytest.mark.parametrize(
    ("method", "step", "what", "status"),
    [(*step, 500) for step in STEPS]
    + [(*step, 403) for step in STEPS if step[0] != "GET"]
    + [(*step, status) for step in STEPS[-2:] for status in (401, 409, 412)],
)
def test_a_refusal_is_passed_on_in_grafanas_own_words_at_every_step(
    method: str, step: str, what: str, status: int, grafana: Grafana
) -> None:
    prepare(grafana, method, step)
    grafana.instead[method, step] = status, {"message": "the reason"}
    done = run(grafana)
    assert done.returncode == 1
    assert done.stderr == f"setup-grafana: {what}: Grafana answered {status}: the reason\n"
    assert grafana.requests[-1][0] == method


@pytest.mark.parametrize(
    ("method", "step"),
    [("GET", "/api/health"), ("GET", "/api/org"), ("POST", "/api/dashboards/db")],
)
def test_no_answer_in_time_is_an_error(method: str, step: str, tmp_path: Path) -> None:
    """A `curl` in front of the real one has less patience."""
    path = curl_in_front(tmp_path, "", '"${@/#[0-9]*/1}"')
    with Grafana() as grafana:
        grafana.silent = method, step
        done = run(grafana, PATH=path, GRAFANA_WAIT="0")
        assert done.returncode == 1
        assert "curl: (28) " in done.stderr
        assert grafana.url in done.stderr
        assert grafana.requests[-1] == (method, step)


def test_an_old_grafana_need_not_know_whether_it_reaches_prometheus(grafana: Grafana) -> None:
    health = "/api/datasources/uid/prometheus/health"
    grafana.data_sources["prometheus"] = data_source()
    grafana.instead["GET", health] = 404, {"message": "Not found"}
    done = run(grafana)
    assert (done.returncode, done.stderr) == (0, "")
    assert "reaches" not in done.stdout


def test_a_wrong_password_is_said_and_changes_nothing(grafana: Grafana, path: str) -> None:
    done = run(grafana, PATH=path, GRAFANA_PASSWORD="wrong-one")
    assert done.returncode == 1
    assert "refuses the login" in done.stderr
    assert "wrong-one" not in done.stdout + done.stderr
    assert grafana.writes() == []


@pytest.mark.parametrize(
    "password", ['quo"te', "back\\slash", "dollar$HOME `id`", "a:b c#d", "ü", "new\nline"]
)
def test_a_password_may_hold_any_character(password: str) -> None:
    with Grafana(password=password) as grafana:
        done = run(grafana, GRAFANA_PASSWORD=password)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_token_stands_for_user_and_password(grafana: Grafana) -> None:
    assert run(grafana, GRAFANA_TOKEN="a-token", GRAFANA_PASSWORD="wrong").returncode == 0


@pytest.mark.parametrize("name", ["GRAFANA_PASSWORD", "GRAFANA_TOKEN"])
def test_the_password_is_in_no_process_list(name: str, tmp_path: Path) -> None:
    """A `curl` in front of the real one writes down what everybody could see of it."""
    seen = tmp_path / "seen"
    path = curl_in_front(tmp_path, f'echo "$@" >> "{seen}"')
    with Grafana(password="hidden-one", token="hidden-one") as grafana:
        if name == "GRAFANA_TOKEN":
            done = run(grafana, PATH=path, GRAFANA_TOKEN="hidden-one")
        else:
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
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(grafana.dashboards) == {path.stem for path in DASHBOARDS}
