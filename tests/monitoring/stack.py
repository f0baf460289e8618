"""The stack as docker-compose.yml wires it, from processes: gateway, simulator, Prometheus.

What is shipped is used: prometheus.yml with only the addresses replaced, the rules as they are,
the demo's gateway.toml, tools/traffic.py. Panels' queries come from the dashboards' files, with
Grafana's macros and variables filled in as Grafana does it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import requests
import yaml

from harness import processes
from harness.poll import PATIENCE, eventually
from harness.programs import require

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((ROOT / "prometheus" / "rules").glob("*.yml"))

NATIVE = ("convert_classic_histograms_to_nhcb", "always_scrape_classic_histograms")

Json = dict[str, Any]


def major_version(program: str) -> int:
    """Of `prometheus` or `promtool`: 2 or 3; one that was built without a version is newer."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+)\.", told.stdout + told.stderr)
    return int(found[1]) if found else 3


def shipped_config(version: int) -> Json:
    """prometheus.yml, for Prometheus 2 without what that does not know."""
    config: Json = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    if version < 3:
        for job in config["scrape_configs"]:
            for setting in NATIVE:
                job.pop(setting, None)
    return config


class Prometheus:
    """A real Prometheus with the shipped configuration, scraping the given gateways."""

    def __init__(self, *targets: str) -> None:
        self._program = require("prometheus")
        self.version = major_version(self._program)
        self._port = processes.ReservedPort()
        self._directory = tempfile.TemporaryDirectory(prefix="prometheus-")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port.number}"
        self.directory = Path(self._directory.name)
        self._configure(list(targets))

    def _configure(self, targets: list[str]) -> None:
        config = shipped_config(self.version)
        config["rule_files"] = [str(path) for path in RULES]
        for job in config["scrape_configs"]:
            del job["static_configs"]
            job.pop("dns_sd_configs", None)
            job.pop("authorization", None)  # the file is in the containers
            own = [f"127.0.0.1:{self._port.number}"]
            job["static_configs"] = [{"targets": targets if job["job_name"] == "wrapper" else own}]
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        log = (self.directory / "log").open("wb")
        command = [
            self._program,
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port.number}",
            "--log.level=warn",
        ]
        with log:
            self._process = processes.start(
                command, env={"PATH": os.environ["PATH"]}, stdout=log, stderr=log
            )
        eventually(self._is_ready, what="Prometheus")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            processes.stop(self._process)
        self._port.release()
        self._directory.cleanup()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return requests.get(f"{self.url}/-/ready", timeout=2).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    def log(self) -> str:
        """What it wrote: warnings and errors."""
        return (self.directory / "log").read_text(errors="replace")

    def api(self, path: str, **parameters: Any) -> Any:
        """GET /api/v1/<path>; the `data` of the answer. Raises AssertionError with its error."""
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=PATIENCE)
        body = answer.json()
        assert body["status"] == "success", f"{body.get('error')} in {parameters}"
        assert not body.get("warnings"), f"{body['warnings']} in {parameters}"
        return body["data"]

    def query(self, expr: str) -> list[Json]:
        """An instant query's vector."""
        result: list[Json] = self.api("query", query=expr)["result"]
        return result

    def sums(self, expr: str, label: str) -> dict[str, float]:
        """An instant query's values by one label."""
        return {s["metric"].get(label, ""): float(s["value"][1]) for s in self.query(expr)}


class Query(NamedTuple):
    """One query of a panel."""

    dashboard: str
    panel: str
    ref: str
    expr: str
    instant: bool


def panels(dashboard: Json) -> Iterator[Json]:
    """All panels, those of collapsed rows too; not the rows themselves."""
    for panel in dashboard["panels"]:
        yield from panels(panel) if panel.get("panels") else ()
        if panel["type"] != "row":
            yield panel


def dashboards() -> list[Json]:
    """The shipped dashboards, parsed."""
    return [json.loads(path.read_text()) for path in DASHBOARDS]


def queries() -> list[Query]:
    """Every query of every panel, as it stands in the files."""
    return [
        Query(d["uid"], panel["title"], target["refId"], target["expr"], target["instant"])
        for d in dashboards()
        for panel in panels(d)
        for target in panel.get("targets", ())
    ]


def filled(expr: str, variables: Mapping[str, str], range_: str = "15m") -> str:
    """The query with Grafana's macros and the dashboard's variables filled in."""
    macros = {
        "__rate_interval": "20s",
        "__range": range_,
        "__interval": "1m",
        "__interval_ms": "60000",
    }
    text = re.sub(r"\$(__\w+)", lambda m: macros[m.group(1)], expr)
    return re.sub(r"\$([a-z_]\w*)", lambda m: variables[m.group(1)], text)


def rules() -> list[Json]:
    """Every recording and alert rule, as it stands in the files."""
    return [
        rule
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def traffic(url: str, keys: Path, *arguments: str) -> str:
    """Run tools/traffic.py to its end; what it printed."""
    command = [sys.executable, str(ROOT / "tools" / "traffic.py"), "--url", url]
    done = subprocess.run(
        [*command, "--write-keys", str(keys), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=250,
    )
    return done.stdout


def demo_config(simulator: str) -> str:
    """The demo's gateway.toml, with the simulator's real address."""
    text = (ROOT / "config" / "demo" / "gateway.toml").read_text()
    assert "http://simulator:8099" in text
    return text.replace("http://simulator:8099", simulator)
