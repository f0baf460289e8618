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
from monitoring.stack import DASHBOARDS, ROOT, dashboards, panels, rules

from harness.programs import missing, require
from tools.dashboards import __main__ as generator
from wrapper import endpoints
from wrapper.metering import usage
from wrapper.proxy import deferred

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


SCHEMAS = {"11": "grafana-schema-11", "12": "@grafana/schema", "13": "grafana-schema-13"}


def type_errors(directory: Path, node_modules: Path, text: str, grafana: str = "12") -> str:
    """What the compiler says; the types are those of Grafana's major version `grafana`."""
    (directory / "node_modules" / "@grafana").mkdir(parents=True)
    (directory / "node_modules" / "@grafana" / "schema").symlink_to(node_modules / SCHEMAS[grafana])
    (directory / "node_modules" / "tslib").symlink_to(node_modules / "tslib")
    types = (SCHEMA / "types.ts").read_text()
    if grafana == "11":  # its package exports files by their whole names
        types = types.replace("_types.gen'", "_types.gen.js'")
    (directory / "types.ts").write_text(types)
    (directory / "check.ts").write_text(
        "import type { Dashboard } from './types';\n"
        f"export const checked: Dashboard[] = {text};\n"
    )
    options = ["--noEmit", "--strict", "--skipLibCheck", "--preserveSymlinks"]
    options += ["--target", "es2022"]
    options += ["--module", "esnext", "--moduleResolution", "bundler"]
    done = subprocess.run(
        [require("node"), str(node_modules / "typescript" / "bin" / "tsc"), *options, "check.ts"],
        cwd=directory,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("grafana", SCHEMAS)
def test_grafanas_own_types_accept_the_dashboards(
    grafana: str, node_modules: Path, tmp_path: Path
) -> None:
    together = "[" + ",".join(file.read_text() for file in DASHBOARDS) + "]"
    assert type_errors(tmp_path, node_modules, together, grafana) == ""


def test_the_types_refuse_an_option_that_grafana_does_not_know(
    node_modules: Path, tmp_path: Path
) -> None:
    text = DASHBOARDS[0].read_text().replace('"textMode": "auto"', '"textMode": "loud"')
    text = f"[{text}]"
    assert "loud" in type_errors(tmp_path, node_modules, text)


def test_the_types_are_those_of_the_grafana_that_is_started() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    version = compose["services"]["grafana"]["image"].partition(":")[2]
    wanted = json.loads((SCHEMA / "package.json").read_text())["devDependencies"]
    assert wanted["@grafana/schema"] == version
    assert {p["pluginVersion"] for d in ALL for p in panels(d)} == {version}


def test_the_lock_file_names_no_registry() -> None:
    assert "resolved" not in (SCHEMA / "package-lock.json").read_text()


def test_the_dashboards_have_the_promised_names() -> None:
    assert {uid: d["title"] for uid, d in BY_UID.items()} == {
        "api-key-metrics": "API Key Metrics",
        "gateway-health": "Gateway Health",
        "one-key": "One Key",
    }
    assert {path.stem for path in DASHBOARDS} == set(BY_UID)


def test_the_files_are_what_the_program_writes() -> None:
    for path, content in generator.files().items():
        assert path.read_text() == content, f"{path.name}: run python -m tools.dashboards"


def test_the_ancestors_panels_are_there_with_their_names() -> None:
    titles = {panel["title"] for panel in panels(BY_UID["api-key-metrics"])}
    assert titles >= {
        "API calls by key (cumulative)",
        "Total tokens by key (cumulative)",
        "API calls per hour by key",
        "Tokens per hour by key",
    }


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
def test_keys_providers_and_models_can_be_chosen_each_from_those_of_the_one_before(
    dashboard: Json,
) -> None:
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    one_key = dashboard["uid"] == "one-key"
    assert list(variables) == ["api_key"] if one_key else ["api_key", "provider", "model"]
    before: list[str] = []
    for name, variable in variables.items():
        assert variable["multi"] is variable["includeAll"] is not one_key
        # A call that was refused has no model; "All" must not lose it.
        assert one_key or variable["allValue"] == ".*"
        assert variable["description"]
        assert re.findall(r"\$(\w+)", variable["query"]["query"]) == before
        before.append(name)
    text = json.dumps([t["expr"] for p in panels(dashboard) for t in p.get("targets", ())])
    assert set(re.findall(r"\$(?!__)([a-z]\w*)", text)) == set(variables)


@each_panel
def test_a_panel_has_a_description_a_unit_and_thresholds(panel: Json) -> None:
    assert re.match(r".{20,}[.]$", panel["description"], re.DOTALL), panel["description"]
    if panel["type"] == "text":
        return
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
        assert len(units) >= len(panel["targets"]) - 1  # a row's mark has none
    else:
        assert defaults["unit"]


@each_panel
def test_a_panel_of_several_lines_names_each(panel: Json) -> None:
    if panel["type"] in {"timeseries", "bargauge"}:
        for target in panel.get("targets", ()):
            assert target["legendFormat"] != "__auto", target["expr"]


@each_panel
def test_a_panel_asks_over_the_right_range(panel: Json) -> None:
    """One number or table: an instant query. A line: no `$__range`, which would flatten it."""
    for target in panel.get("targets", ()):
        assert target["instant"] is not target["range"]
        if panel["type"] in {"stat", "table", "bargauge"}:
            assert target["instant"]  # the last number of a range may be hours old
        if not target["instant"]:
            assert "$__range" not in target["expr"]
        assert not re.search(r"\brate\([^)]*\[\$__(interval|range)\]", target["expr"])


@each_panel
def test_what_other_services_may_have_too_is_asked_of_the_gateway_alone(panel: Json) -> None:
    """In a Prometheus of one's own there are other jobs, other alerts."""
    names = (
        r"(?<!:)\b(?:http_\w+|requests_in_flight|gen_ai_\w+|gateway_overhead_\w+|scrape_\w+|up)\b"
    )
    for target in panel.get("targets", ()):
        expr = re.sub(r'"todo", "(?:[^"\\]|\\.)*"', "", target["expr"])  # words on alerts
        assert not re.findall(names + r'(?!\{job="wrapper")', expr)
        assert not re.findall(r'\bALERTS\b(?!\{component="llm-gateway")', target["expr"])


# --- what Grafana does that is easily overlooked --------------------------------------------------

MENU, MARGINS, GAP = 300, 32, 8  # pixels: the docked menu, beside the grid, between panels
SCREENS = (1280, 1500)
INSIDE = 18  # pixels of a panel beside its table
ICONS = 81  # pixels beside a title: padding, and the icons of the description and the menu
LETTER = 7.0  # pixels of a title's average letter
COLUMN = 150  # pixels, without a width


def pixels(panel: Json, screen: int) -> float:
    """How wide the panel is, with the menu docked."""
    grid: float = screen - MENU - MARGINS
    width: float = panel["gridPos"]["w"] / 24 * (grid + GAP) - GAP
    return width


def overrides(panel: Json) -> dict[str, Json]:
    """The settings of a table's columns, by title."""
    return {
        o["matcher"]["options"]: {p["id"]: p["value"] for p in o["properties"]}
        for o in panel["fieldConfig"]["overrides"]
        if o["matcher"]["id"] == "byName"
    }


@each_panel
def test_an_empty_cell_of_a_table_is_a_dash_and_not_the_words_of_an_empty_table(
    panel: Json,
) -> None:
    """`noValue` fills every empty cell."""
    if panel["type"] == "table":
        first = panel["fieldConfig"]["overrides"][0]
        assert first["matcher"] == {"id": "byRegexp", "options": "/.*/"}
        assert first["properties"] == [{"id": "noValue", "value": "–"}]
        assert len(panel["fieldConfig"]["defaults"]["noValue"]) > 3


@each_panel
def test_a_bar_in_a_cell_is_relative_to_its_own_column(panel: Json) -> None:
    """Without a limit of its own, a full bar is the largest number of the whole table."""
    if panel["type"] == "table":
        for title, settings in overrides(panel).items():
            if settings.get("custom.cellOptions", {}).get("type") == "gauge":
                assert settings.get("fieldMinMax") or "max" in settings, title
                assert settings["min"] == 0


@each_panel
@pytest.mark.parametrize("screen", SCREENS)
def test_no_column_is_cut(panel: Json, screen: int) -> None:
    if panel["type"] == "table":
        columns = list(overrides(panel).values())
        room = pixels(panel, screen) - INSIDE
        fixed = [c["custom.width"] for c in columns if "custom.width" in c]
        least = [c.get("custom.minWidth", COLUMN) for c in columns if "custom.width" not in c]
        # Columns without a width share what is left equally, and none gets less than its least.
        share = (room - sum(fixed)) / max(1, len(least))
        assert sum(fixed) + sum(max(share, each) for each in least) <= room + 0.01
        (organize,) = (t for t in panel["transformations"] if t["id"] == "organize")
        assert len(columns) == len(organize["options"]["indexByName"])


@each_panel
def test_no_title_is_cut(panel: Json) -> None:
    assert len(panel["title"]) * LETTER <= pixels(panel, min(SCREENS)) - ICONS


@each_dashboard
def test_a_link_takes_the_time_and_the_choices_along(dashboard: Json) -> None:
    """A panel's own link hangs on a small icon and takes nothing: data links only."""
    for found in dashboard["links"]:
        assert found["includeVars"]
        assert found["keepTime"]
    for panel in panels(dashboard):
        assert not panel.get("links"), panel["title"]
    text = json.dumps(dashboard["panels"])
    urls = re.findall(r'"url": "(/[^"]*)"', text) + re.findall(r"\]\((/[^)]*)\)", text)
    assert all(
        "${__url_time_range}" in url and re.search(r"__all_variables|var-", url) for url in urls
    )
    assert bool(urls)


def test_every_key_leads_to_its_page() -> None:
    for panel in panels(BY_UID["api-key-metrics"]):
        asked = any("by (api_key" in t["expr"] for t in panel.get("targets", ()))
        # Budgets has keys and groups in one column.
        if asked and panel["title"] not in {"Groups", "Keys limited", "Budgets"}:
            assert "/d/one-key?${__url_time_range}&var-api_key=" in json.dumps(panel), panel[
                "title"
            ]


@each_panel
def test_no_event_falls_between_two_points(panel: Json) -> None:
    """Over days two points are further apart than a fixed window such as `[5m]`."""
    if panel["type"] in {"timeseries", "heatmap"}:
        for target in panel["targets"]:
            for window in re.findall(r"\[([^\]]+)\]", target["expr"]):
                per_day = window == "1d" == panel["interval"]
                assert window in {"$__interval", "$__rate_interval", "1h"} or per_day
                assert window != "1h" or "hour before it" in panel["description"]


@each_panel
def test_no_chart_reads_the_raw_series_of_every_key_and_model(panel: Json) -> None:
    """Thirty days of them are millions of samples; the recorded series have what charts need."""
    if panel["type"] in {"timeseries", "heatmap"}:
        for target in panel["targets"]:
            raw = r"\b(api_key_\w+_total|token_usage\w*_total|http_\w+|\w+_bucket)\{"
            found = set(re.findall(raw, target["expr"])) - {"event_loop_lag_seconds_bucket"}
            assert not found


@each_panel
def test_a_key_has_the_same_colour_in_every_panel(panel: Json) -> None:
    if panel["type"] in {"timeseries", "bargauge"}:
        assert panel["fieldConfig"]["defaults"]["color"]["mode"] == "palette-classic-by-name"


@each_panel
def test_a_legend_is_short_and_below_and_errors_stand_at_the_bottom(panel: Json) -> None:
    if panel["type"] == "timeseries":
        legend = panel["options"]["legend"]
        assert (legend["displayMode"], legend["placement"]) == ("list", "bottom")
        stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] != "none"
        good = [
            n
            for n, t in enumerate(panel["targets"])
            if '="completed"' in t["expr"].replace("!=", "")
        ]
        assert not stacked or good in ([], [len(panel["targets"]) - 1])


@each_panel
def test_each_of_several_numbers_has_room_for_its_text(panel: Json) -> None:
    """A panel's head and padding take 50 pixels, each number 16 more; without room it is blank."""
    several = len(panel.get("targets", ()))
    if panel["type"] == "stat" and several > 1:
        inside = panel["gridPos"]["h"] * 38 - 8 - 50 - 3 * (several - 1)
        assert inside / several - 16 > 20


@each_panel
def test_text_that_wraps_does_so_in_old_and_new_grafanas(panel: Json) -> None:
    """Until 12.1 it is a setting of the cell, since then of the column."""
    for column in overrides(panel).values() if panel["type"] == "table" else ():
        inside = column.get("custom.cellOptions", {}).get("wrapText", False)
        assert column.get("custom.wrapText", False) == inside


@each_panel
def test_money_has_two_decimals_and_no_cent_is_shown_as_nothing(panel: Json) -> None:
    fields = [panel.get("fieldConfig", {}).get("defaults", {})]
    if panel["type"] == "table":
        fields = list(overrides(panel).values())
    for found in fields:
        if found.get("unit") == "currencyUSD":
            assert found["decimals"] in {2, 4}
            assert found["mappings"][0]["options"]["to"] == 10 ** -found["decimals"] / 2


def test_what_is_wrong_comes_first_and_each_alert_has_its_advice() -> None:
    first = BY_UID["gateway-health"]["panels"][0]
    assert first["title"] == "What is wrong now"
    assert first["fieldConfig"]["defaults"]["noValue"] == "Nothing is wrong."
    (expr,) = (t["expr"] for t in first["targets"])
    told = re.findall(r'"todo", ("(?:[^"\\]|\\.)*"), "alertname", "(\w+)"', expr)
    advice = {name: json.loads(text) for text, name in told}
    alerts = {r["alert"]: r["annotations"]["do"] for r in rules() if "alert" in r}
    assert advice == alerts


def test_what_was_restored_from_the_ledger_and_not_used_since_makes_no_row() -> None:
    named = {p["title"]: p for p in panels(BY_UID["api-key-metrics"])}
    for title in (
        "Who: keys by cost, this month",
        "On what, this month",
        "Groups",
        "Use by key and model, selected time",
    ):
        for target in named[title]["targets"]:
            assert re.search(r"> 0\)*( / .* > 0\)*)?$", target["expr"]), target["expr"]


def test_the_reasons_of_unmetered_answers_are_explained_where_they_are_shown() -> None:
    reasons = {
        *(
            usage.NO_USAGE,
            usage.UNREADABLE,
            usage.ENCODING,
            usage.TOO_LARGE,
            usage.NOT_METERED_TYPE,
        ),
        *(endpoints.NOT_REPORTED, endpoints.DEFERRED, endpoints.UNKNOWN),
        *(deferred.NEVER_FINISHED, deferred.NOT_FOUND),
    }
    named = {p["title"]: p["description"] for p in panels(BY_UID["api-key-metrics"])}
    told = re.findall(r"\b[a-z]+(?:_[a-z]+)*\b", named["Unmetered answers"])
    assert reasons - set(told) == set()
    readme = (ROOT / "prometheus" / "README.md").read_text()
    (row,) = re.findall(r"\| `reason` of `unmetered_responses_total` \|(.*)", readme)
    assert set(re.findall(r"`(\w+)`", row)) == reasons


def test_an_idle_gateway_has_no_times_to_show() -> None:
    """The quantile of nothing is NaN, which a comparison takes away."""
    for panel in panels(BY_UID["gateway-health"]):
        if panel["type"] == "stat" and "histogram_quantile" in panel["targets"][0]["expr"]:
            assert panel["targets"][0]["expr"].endswith(" >= 0")
    for rule in rules():
        if "histogram_quantile" in rule["expr"] and rule.get("record", "").startswith("wrapper:"):
            assert rule["expr"].endswith(" >= 0")


def test_calls_by_key_leave_out_those_that_came_without_one() -> None:
    for panel in panels(BY_UID["api-key-metrics"]):
        if "calls with a key" in panel["description"]:
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
    assert len(shown) == 3
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
