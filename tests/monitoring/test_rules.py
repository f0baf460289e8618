"""Prometheus' configuration, its rules, and the alerts: valid, tested, and worth reading."""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from monitoring.stack import NATIVE, ROOT, RULES, major_version, rules, shipped_config

from harness.programs import require

PROMETHEUS = ROOT / "prometheus"
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [require("promtool"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "GOGC": "400"},  # a third of its time would be garbage collection
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    # The file with the token is in the container alone; the rules are checked below.
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(shipped_config(major_version(require("promtool")))))
    promtool("check", "config", "--syntax-only", file)


def test_histograms_are_kept_as_native_ones_beside_the_classic_ones() -> None:
    """The two settings of Prometheus 3 that do it; without the second one, the dashboards' own
    series are missing.
    """
    (job,) = (j for j in shipped_config(3)["scrape_configs"] if j["job_name"] == "wrapper")
    assert [job[setting] for setting in NATIVE] == [True, True]


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", *RULES)


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_unit_tests_say(file: Path) -> None:
    promtool("test", "rules", file)


def test_prometheus_scrapes_the_job_wrapper_every_five_seconds() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert config["global"]["scrape_interval"] == "5s"
    assert "wrapper" in {job["job_name"] for job in config["scrape_configs"]}


def test_every_alert_is_tested_firing_and_not_firing() -> None:
    seen: dict[str, set[bool]] = defaultdict(set)
    for file in UNIT_TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for check in test.get("alert_rule_test", ()):
                seen[check["alertname"]].add(bool(check["exp_alerts"]))
    assert dict(seen) == {rule["alert"]: {True, False} for rule in rules() if "alert" in rule}


def test_every_recorded_series_is_used() -> None:
    texts = [rule["expr"] for rule in rules()]
    texts += [path.read_text() for path in (ROOT / "grafana" / "dashboards").glob("*.json")]
    unused = {
        rule["record"]
        for rule in rules()
        if "record" in rule and not any(rule["record"] in text for text in texts)
    }
    assert unused == set()


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"]
)
def test_an_alert_says_what_is_wrong_where_to_look_and_what_to_do(rule: dict[str, object]) -> None:
    labels, annotations = rule["labels"], rule["annotations"]
    assert isinstance(labels, dict)
    assert isinstance(annotations, dict)
    assert labels["severity"] in {"critical", "warning"}
    assert labels["component"] == "llm-gateway"
    assert set(annotations) == {"summary", "description", "look", "do"}
    for text in annotations.values():
        assert len(text) > 25, text


def test_the_alerts_name_panels_that_exist() -> None:
    """Where an alert says "Gateway Health: In flight", a panel of that name is there."""
    from monitoring.stack import dashboards, panels

    titles = {d["title"]: {p["title"] for p in panels(d)} for d in dashboards()}
    named = 0
    for rule in (rule for rule in rules() if "alert" in rule):
        look = rule["annotations"]["look"]
        for dashboard, listed in re.findall(
            r"(Gateway Health|API Key Metrics|One Key): ([^.:?]+)", look
        ):
            for name in re.split(r", (?:and )?| and ", listed):
                if name[:1].isupper():
                    assert name in titles[dashboard], f"{rule['alert']}: {dashboard}: {name}"
                    named += 1
    assert named > 8


def test_the_readme_describes_every_alert() -> None:
    readme = (PROMETHEUS / "README.md").read_text()
    missing = {r["alert"] for r in rules() if "alert" in r and f"`{r['alert']}`" not in readme}
    assert missing == set()
