"""The dashboards' files: Grafana's own types, a tidy grid, one data source, words on everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring.stack import DASHBOARDS, ROOT, dashboards, panels

from harness.programs import missing, require

pytestmark = pytest.mark.timeout(300)  # npm may be slow

SCHEMA = Path(__file__).parent / "schema"
ALL = dashboards()
BY_UID = {dashboard["uid"]: dashboard for dashboard in ALL}
PANELS = [
    pytest.param(panel, id=f"{dashboard['uid']}: {panel['title']}")
    for dashboard in ALL
    for panel in panels(dashboard)
]
each_dashboard = pytest.mark.parametrize("dashboard", ALL, ids=lambda d: d["uid"])
each_panel = pytest.mark.parametrize("panel", PANELS)

Json = dict[str, Any]


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Grafana's types and the compiler, as locked in schema/package-lock.json."""
    npm = require("npm")
    require("node")
    installed = SCHEMA / "node_modules" / ".package-lock.json"
    lock = SCHEMA / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=SCHEMA, capture_output=True, text=True, timeout=280)
        if done.returncode:
            missing(f"npm ci failed: {done.stderr[-500:]}")
    return SCHEMA / "node_modules"


def type_errors(directory: Path, node_modules: Path, text: str) -> str:
    (directory / "node_modules").symlink_to(node_modules)
    (directory / "types.ts").write_text((SCHEMA / "types.ts").read_text())
    (directory / "check.ts").write_text(
        f"import type {{ Dashboard }} from './types';\nexport const checked: Dashboard = {text};\n"
    )
    options = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"]
    options += ["--module", "esnext", "--moduleResolution", "bundler"]
    done = subprocess.run(
        [require("node"), str(node_modules / "typescript" / "bin" / "tsc"), *options, "check.ts"],
        cwd=directory,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_types_accept_the_dashboard(
    file: Path, node_modules: Path, tmp_path: Path
) -> None:
    assert type_errors(tmp_path, node_modules, file.read_text()) == ""


def test_the_types_refuse_an_option_that_grafana_does_not_know(
    node_modules: Path, tmp_path: Path
) -> None:
    text = DASHBOARDS[0].read_text().replace('"textMode": "auto"', '"textMode": "loud"')
    assert "loud" in type_errors(tmp_path, node_modules, text)


def test_the_types_are_those_of_the_grafana_that_is_started() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    version = compose["services"]["grafana"]["image"].partition(":")[2]
    wanted = json.loads((SCHEMA / "package.json").read_text())["devDependencies"]
    assert wanted["@grafana/schema"] == version
    assert {p["pluginVersion"] for d in ALL for p in panels(d)} == {version}


def test_the_lock_file_names_no_registry() -> None:
    assert "resolved" not in (SCHEMA / "package-lock.json").read_text()


def test_the_two_dashboards_have_the_promised_names() -> None:
    assert {uid: d["title"] for uid, d in BY_UID.items()} == {
        "api-key-metrics": "API Key Metrics",
        "gateway-health": "Gateway Health",
    }
    assert {path.stem for path in DASHBOARDS} == set(BY_UID)


def test_the_ancestors_panels_are_there_with_their_names() -> None:
    titles = [panel["title"] for panel in panels(BY_UID["api-key-metrics"])]
    wanted = [
        "API calls by key (cumulative)",
        "Total tokens by key (cumulative)",
        "API calls per hour by key",
        "Tokens per hour by key",
    ]
    assert [title for title in titles if title in wanted] == wanted


@each_dashboard
def test_panel_ids_and_titles_are_unique(dashboard: Json) -> None:
    ids = [p["id"] for p in (*dashboard["panels"], *panels(dashboard))]
    assert len({*ids}) == len({id(p) for p in (*dashboard["panels"], *panels(dashboard))})
    titles = [p["title"] for p in dashboard["panels"] if p["type"] not in {"row", "stat"}]
    assert len({*titles}) == len(titles)


@each_dashboard
def test_panels_neither_overlap_nor_leave_the_grid_nor_leave_holes(dashboard: Json) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert 0 <= x < 24, panel["title"]
                assert (x, y) not in taken, f"{panel['title']} over {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height


@each_dashboard
def test_only_the_provisioned_data_source_is_named(dashboard: Json) -> None:
    datasources = yaml.safe_load(
        (ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    assert [source["uid"] for source in datasources] == ["prometheus"]
    found = re.findall(r'"datasource": (\{[^}]*\})', json.dumps(dashboard))
    assert {tuple(json.loads(text).items()) for text in found} == {
        (("type", "prometheus"), ("uid", "prometheus"))
    }


@each_dashboard
def test_key_provider_and_model_can_be_chosen_several_at_once(dashboard: Json) -> None:
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert list(variables) == ["api_key", "provider", "model"]
    for variable in variables.values():
        assert variable["multi"]
        assert variable["includeAll"]
        # A call that was refused has no model; "All" must not lose it.
        assert variable["allValue"] == ".*"
        assert variable["description"]
    text = json.dumps([t["expr"] for p in panels(dashboard) for t in p["targets"]])
    assert set(re.findall(r"\$(?!__)(\w+)", text)) == set(variables)


@each_panel
def test_a_panel_has_a_description_a_unit_and_thresholds(panel: Json) -> None:
    assert re.match(r".{20,}[.]$", panel["description"], re.DOTALL), panel["description"]
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] == "heatmap":
        assert panel["options"]["yAxis"]["unit"]
        return
    assert defaults["thresholds"]["steps"]
    if panel["type"] == "table":
        units = [
            p
            for o in panel["fieldConfig"]["overrides"]
            for p in o["properties"]
            if p["id"] == "unit"
        ]
        assert len(units) == len(panel["targets"]) or panel["title"] == "What is wrong now"
    else:
        assert defaults["unit"]


@each_panel
def test_a_panel_of_several_lines_names_each(panel: Json) -> None:
    if panel["type"] in {"timeseries", "bargauge"}:
        for target in panel["targets"]:
            assert target["legendFormat"] != "__auto", target["expr"]


@each_panel
def test_a_panel_asks_over_the_right_range(panel: Json) -> None:
    """One number or table: an instant query. A line: no `$__range`, which would flatten it."""
    for target in panel["targets"]:
        assert target["instant"] is not target["range"]
        if panel["type"] in {"stat", "table", "bargauge"}:
            assert target["instant"]  # the last number of a range may be hours old
        if not target["instant"]:
            assert "$__range" not in target["expr"]
        assert not re.search(r"\brate\([^)]*\[\$__(interval|range)\]", target["expr"])


@each_panel
def test_what_other_services_may_have_too_is_asked_of_the_gateway_alone(panel: Json) -> None:
    """In a Prometheus of one's own there are other jobs, other alerts."""
    names = r"\b(?:http_\w+|requests_in_flight|gen_ai_\w+|gateway_overhead_\w+|scrape_\w+|up)\b"
    for target in panel["targets"]:
        assert not re.findall(names + r'(?!\{job="wrapper")', target["expr"])
        assert not re.findall(r'\bALERTS\b(?!\{component="llm-gateway")', target["expr"])


@each_panel
def test_two_series_of_a_panel_have_two_colours(panel: Json) -> None:
    """A colour by name is the same for many a pair of names."""
    mode = panel["fieldConfig"]["defaults"].get("color", {}).get("mode")
    assert mode != "palette-classic-by-name"


def test_what_was_taken_up_from_the_records_and_not_used_since_makes_no_row() -> None:
    named = {p["title"]: p for p in panels(BY_UID["api-key-metrics"])}
    for title in (
        "Top spender, last 7 days",
        "Who: keys by cost, last 7 days",
        "On what: keys and their models by cost, last 7 days",
        "Use by key and model, selected time",
    ):
        for target in named[title]["targets"]:
            assert "> 0)" in target["expr"] or target["expr"].endswith("> 0"), target["expr"]


def test_an_idle_gateway_has_no_times_to_show() -> None:
    """The quantile of nothing is NaN, which a comparison takes away."""
    for panel in panels(BY_UID["gateway-health"]):
        if panel["type"] == "stat" and "histogram_quantile" in panel["targets"][0]["expr"]:
            assert panel["targets"][0]["expr"].endswith(" >= 0")
            assert panel["fieldConfig"]["defaults"]["noValue"] == "—"


def test_calls_by_key_leave_out_those_that_came_without_one() -> None:
    for panel in panels(BY_UID["api-key-metrics"]):
        if "with a key" in panel["description"]:
            assert all('api_key!="none"' in t["expr"] for t in panel["targets"]), panel["title"]


def test_the_first_screen_says_whether_it_is_healthy_in_words() -> None:
    (panel,) = (p for p in panels(BY_UID["api-key-metrics"]) if p["title"] == "Is it healthy?")
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    texts = {value: shown["text"] for value, shown in mapping["options"].items()}
    assert texts == {"0": "OK", "1": "warning", "2": "critical"}
    assert panel["fieldConfig"]["defaults"]["noValue"] == "no answer"
    assert panel["targets"][0]["legendFormat"] == "{{alertname}}"


def test_the_readme_describes_every_panel() -> None:
    readme = (ROOT / "grafana" / "README.md").read_text()
    described = {p["title"] for d in ALL for p in panels(d) if f"| {p['title']} |" in readme}
    assert {p["title"] for d in ALL for p in panels(d)} - described == set()


def test_the_pictures_that_are_shown_exist_and_are_small() -> None:
    readme = (ROOT / "grafana" / "README.md").read_text()
    shown = re.findall(r"\(\.\./(docs/images/[^)]+)\)", readme)
    assert len(shown) == 2
    for picture in shown:
        assert (ROOT / picture).stat().st_size < 150_000


def test_grafana_finds_what_compose_mounts() -> None:
    provider = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/dashboards.yml").read_text())
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[1::-1] for volume in grafana["volumes"])
    path = provider["providers"][0]["options"]["path"]
    assert mounts[path] == "./grafana/dashboards"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{path}/api-key-metrics.json"
