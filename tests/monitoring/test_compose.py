"""docker-compose.yml: valid, and as careful as its comments say.

compose/compose-spec.json is the schema of https://github.com/compose-spec/compose-spec, unchanged
(Apache License 2.0, beside it).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from monitoring.stack import ROOT

from wrapper.config import Listen

SCHEMA = Path(__file__).parent / "compose" / "compose-spec.json"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ALWAYS = {"gateway", "prometheus", "grafana"}
ONCE = {"metrics-token"}
DEMO = {"simulator", "gateway-demo", "traffic"}
LONG_RUNNING = sorted(ALWAYS | DEMO)
each_service = pytest.mark.parametrize("name", sorted(SERVICES))
each_long_running = pytest.mark.parametrize("name", LONG_RUNNING)


def test_it_follows_the_compose_specification() -> None:
    schema = json.loads(SCHEMA.read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(COMPOSE)
    assert [f"{list(e.absolute_path)}: {e.message}" for e in errors] == []


def test_up_starts_three_services_and_the_profile_demo_three_more() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert {name for name, named in profiles.items() if not named} == ALWAYS | ONCE
    assert {name for name, named in profiles.items() if named == ["demo"]} == DEMO


@each_service
def test_an_image_has_an_exact_version_or_is_built_here(name: str) -> None:
    built = {s["image"] for s in SERVICES.values() if "build" in s}
    if SERVICES[name]["image"] not in built:
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("started", [ALWAYS | ONCE, ALWAYS | ONCE | DEMO, {"keys"}])
def test_an_image_is_built_once_and_never_pulled_for_it(started: set[str]) -> None:
    """Of several builds of one name at a time all but one may fail."""
    own = [SERVICES[name] for name in started if SERVICES[name]["image"].startswith("wrapper-")]
    assert len([service for service in own if "build" in service]) == 1
    assert all("build" in service or service["pull_policy"] == "never" for service in own)


@each_service
def test_a_container_cannot_write_to_itself_nor_gain_rights_nor_be_root(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not re.match(r"(0|root)(:|$)", service["user"])
    assert "privileged" not in service


@each_long_running
def test_a_service_is_limited_and_started_again(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= set(limits)
    # Docker refuses a limit above the number of processors it has.
    assert float(limits.get("cpus", 1)) <= 1
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"]["max-size"]


@each_long_running
def test_a_service_waits_for_the_health_of_what_it_needs(name: str) -> None:
    service = SERVICES[name]
    for needed, how in service.get("depends_on", {}).items():
        if needed in ONCE:
            assert how["condition"] == "service_completed_successfully"
            continue
        assert how["condition"] == "service_healthy"
        assert "test" in SERVICES[needed]["healthcheck"]
    if name != "traffic":
        assert "test" in service["healthcheck"]


def test_only_the_gateway_is_reachable_from_other_machines() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            if name != "gateway":
                assert port.startswith("127.0.0.1:"), f"{name}: {port}"
    assert SERVICES["gateway"]["ports"] == ["${PORT:-8080}:8080"]
    assert SERVICES["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    assert SERVICES["grafana"]["ports"] == ["127.0.0.1:3000:3000"]


def test_the_demo_does_not_touch_the_users_configuration_keys_and_records() -> None:
    own = {"gateway-data", "prometheus-data", "grafana-data"}
    for name in DEMO:
        service = SERVICES[name]
        for volume in service.get("volumes", ()):
            source, _, rest = volume.partition(":")
            assert source not in own, f"{name}: {volume}"
            assert not source.startswith(".") or rest.endswith(":ro"), f"{name}: {volume}"
        assert "env_file" not in service
    environment = SERVICES["gateway-demo"]["environment"]
    assert environment["WRAPPER_CONFIG"] == "/app/config/demo/gateway.toml"
    assert environment["WRAPPER_KEYS"].startswith("/app/demo/")


def test_the_readme_takes_the_demo_away_and_nothing_else() -> None:
    readme = (ROOT / "grafana/README.md").read_text()
    (services,) = re.findall(
        r"^docker compose --profile demo rm --stop --force (.+)$", readme, re.M
    )
    assert set(services.split()) == DEMO
    (volumes,) = re.findall(r"^docker volume rm (wrapper_demo.+)$", readme, re.M)
    used = {v.split(":")[0] for name in DEMO for v in SERVICES[name].get("volumes", ())}
    assert set(volumes.split()) == {f"wrapper_{v}" for v in used & set(COMPOSE["volumes"])}


def test_the_demos_configuration_is_a_good_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wrapper", "check"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "WRAPPER_CONFIG": "config/demo/gateway.toml",
            "WRAPPER_KEYS": "config/keys.example.toml",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_named_volume_is_declared_and_every_file_mounted_is_here() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_dir(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"


def test_prometheus_scrapes_the_gateways_under_their_service_names() -> None:
    config = yaml.safe_load((ROOT / "prometheus/prometheus.yml").read_text())
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "wrapper")
    assert job["static_configs"] == [{"targets": ["gateway:8080"]}]
    assert [sd["names"] for sd in job["dns_sd_configs"]] == [["gateway-demo"]]
    source = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("name", ["gateway", "gateway-demo"])
def test_large_uploads_lie_on_the_data_volume_and_small_files_in_little_memory(name: str) -> None:
    service = SERVICES[name]
    (directory,) = re.findall(r"\bTMPDIR=(\S+)", (ROOT / "Dockerfile").read_text())
    assert "TMPDIR" not in service["environment"]
    volumes = dict(volume.split(":")[1::-1] for volume in service["volumes"])
    assert volumes[directory] in COMPOSE["volumes"]
    assert service["tmpfs"] == ["/tmp:mode=1777,size=16m"]
    assert service["shm_size"] == "128m"  # the metrics' mapped files, and the workers' heartbeat


def test_the_gateway_has_longer_to_stop_than_its_streams_have_to_end() -> None:
    for name in ("gateway", "gateway-demo"):
        assert int(SERVICES[name]["stop_grace_period"].rstrip("s")) > Listen().graceful_timeout


def test_each_service_gets_its_own_variables_and_no_others() -> None:
    assert [each["path"] for each in SERVICES["gateway"]["env_file"]] == ["gateway.env"]
    for name, service in SERVICES.items():
        assert name == "gateway" or "env_file" not in service
        assert name == "grafana" or "GRAFANA" not in str(service)


def test_metrics_have_a_token_that_prometheus_knows(tmp_path: Path) -> None:
    gateway, once = SERVICES["gateway"], SERVICES["metrics-token"]
    assert gateway["environment"]["METRICS_TOKEN_FILE"] == "/app/metrics/token"
    assert "metrics-token:/app/metrics:ro" in gateway["volumes"]
    assert "metrics-token:/run/wrapper:ro" in SERVICES["prometheus"]["volumes"]
    assert once["volumes"] == ["metrics-token:/app/metrics"]
    config = yaml.safe_load((ROOT / "prometheus/prometheus.yml").read_text())
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "wrapper")
    assert job["authorization"] == {"credentials_file": "/run/wrapper/token"}

    def written(**environ: str) -> str:
        python, option, code = once["command"]
        assert (python, option) == ("python", "-c")
        code = code.replace("/app/metrics/token", str(tmp_path / "token"))
        subprocess.run([sys.executable, "-c", code], env=environ, check=True)
        return (tmp_path / "token").read_text()

    first = written()
    assert len(first) > 30
    assert written() == first  # made once
    assert written(METRICS_TOKEN="mine") == "mine"


def test_no_secret_stands_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert "${GRAFANA_PASSWORD:-admin}" in text
    assert not re.search(r"(sk-|gsk_)\w", text)
    for service in SERVICES.values():
        for name, value in (service.get("environment") or {}).items():
            if re.search(r"KEY$|TOKEN$|PASSWORD", name):
                assert value is None or str(value).startswith("${"), name


def test_a_key_is_made_by_one_command_against_the_mounted_configuration() -> None:
    keys = SERVICES["keys"]
    assert keys["entrypoint"] == ["python", "-m", "wrapper", "keys"]
    # With the usage table, so that `list` knows which keys are unused.
    assert keys["volumes"] == ["./config:/app/config", "gateway-data:/app/data"]
    store = "WRAPPER_STORE"
    assert keys["environment"][store] == SERVICES["gateway"]["environment"][store]
    assert keys["user"] == SERVICES["gateway"]["user"]  # who can then read the file
    assert "./config:/app/config:ro" in SERVICES["gateway"]["volumes"]
    for document in (ROOT / "docker-compose.yml", ROOT / "grafana/README.md"):
        assert "docker compose run --rm keys create" in document.read_text()
