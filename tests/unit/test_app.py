"""The application factory: `create_app` needs no environment, no files and no gunicorn."""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

PREPARE = """
import hashlib, json, os, sys
from wrapper.app import create_app
from wrapper.config import ApiKey, Provider, Route, Secret, Server, Settings, Target
from wrapper.metering.pricing import Prices

SECRET = "sk-wr-" + "x" * 43
settings = Settings(
    server=Server(),
    providers={"groq": Provider("groq", "http://127.0.0.1:9/v1", Secret("provider-key"))},
    routes=(Route("*", (Target("groq"),)),),
    keys={"web-app": ApiKey("web-app", hashlib.sha256(SECRET.encode()).hexdigest())},
    store="sqlite:///usage.db",
)
def make_client():
    return create_app(settings, Prices({}, {})).test_client()
"""


def run(directory: Path, program: str, prepare: str = PREPARE) -> Any:
    """Run the program in a fresh interpreter; what it writes to stderr, as JSON.

    stdout is for the request lines. The environment has nothing in it for the gateway, and the
    current directory, which is empty, nothing to read.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prepare + program],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr)


@pytest.fixture(scope="module")
def responses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Status, content type and body of one request to each kind of route."""
    directory = tmp_path_factory.mktemp("empty")
    found: dict[str, tuple[int, str, str]] = run(
        directory,
        """
client = make_client()
def response(r):
    with r:  # a request is recorded when its response is closed
        return r.status_code, r.content_type, r.get_data(as_text=True)
found = {path: response(client.get(path)) for path in ("/healthz", "/readyz", "/docs", "/none")}
bad = {"Authorization": "Bearer sk-wr-" + "y" * 43}
found["bad key"] = response(client.post("/v1/chat/completions", json={"model": "m"}, headers=bad))
good = {"Authorization": f"Bearer {SECRET}"}
found["/v1/nothing"] = response(client.get("/nothing", headers=good))
found["/metrics"] = response(client.get("/metrics"))
found["one metric"] = response(client.get("/metrics?name[]=http_requests_total"))
found["files"] = (0, "", " ".join(os.listdir()))
json.dump(found, sys.stderr)
""",
    )
    return found


def test_health_and_readiness_are_reported(responses: dict[str, tuple[int, str, str]]) -> None:
    assert responses["/healthz"][0] == 200
    status, _, body = responses["/readyz"]
    assert (status, json.loads(body)["status"]) == (200, "ready")


def test_the_documentation_is_served(responses: dict[str, tuple[int, str, str]]) -> None:
    status, content_type, body = responses["/docs"]
    assert (status, content_type.split(";")[0]) == (200, "text/html")
    assert "swagger" in body


def test_a_wrong_key_and_an_unknown_url_get_openais_error(
    responses: dict[str, tuple[int, str, str]],
) -> None:
    for name, status, code in (
        ("bad key", 401, "invalid_api_key"),
        ("/none", 404, "unknown_url"),
        ("/v1/nothing", 404, "unknown_url"),
    ):
        assert (responses[name][0], json.loads(responses[name][2])["error"]["code"]) == (
            status,
            code,
        )


def test_metrics_are_those_of_the_process(responses: dict[str, tuple[int, str, str]]) -> None:
    status, content_type, body = responses["/metrics"]
    assert (status, content_type.split(";")[0]) == (200, "text/plain")
    assert 'http_requests_total{method="GET",path="/healthz",status="200"} 1.0' in body
    assert "requests_in_flight 0.0" in body
    _, _, one = responses["one metric"]
    samples = [line for line in one.splitlines() if not line.startswith("#")]
    assert samples
    assert all(line.startswith("http_requests_total{") for line in samples)


def test_nothing_is_written_before_there_is_usage_to_record(
    responses: dict[str, tuple[int, str, str]],
) -> None:
    assert responses["files"][2] == ""


# The start may call as many functions as the import of its libraries does, times this.
START_FACTOR = 2


def test_a_start_calls_few_functions_beside_the_import_of_its_libraries(tmp_path: Path) -> None:
    """Calls are counted, not seconds: a busy machine changes nothing."""
    program = f"""
from pathlib import Path
from harness import effort

def libraries():
    import gevent, gunicorn.app.wsgiapp
    import flask, flask_cors, prometheus_flask_exporter, requests

def start():
    from wrapper.app import create_app
    from wrapper.config import Server, Settings
    from wrapper.metering.pricing import Prices
    import wrapper.server.worker, wrapper.server.reload
    prices = Prices.load(Path({str(ROOT / "config" / "prices.toml")!r}), {{}})
    create_app(Settings(Server(), {{}}, (), {{}}), prices)

counts = [effort.calls(libraries), effort.calls(start)]
json.dump([*counts, sorted(sys.modules)], sys.stderr)
"""
    # In a new checkout the modules would be compiled here, as the libraries' are not.
    compileall.compile_dir(ROOT / "wrapper", quiet=2)
    libraries, start, modules = run(tmp_path, program, prepare="import json, sys")
    assert start < START_FACTOR * libraries
    needless = ("wrapper.cli", "wrapper.simulator", "tomlkit")
    assert [name for name in modules if name.startswith(needless)] == []
