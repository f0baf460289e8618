"""The start: what the master does before it forks, counted and not timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.defaults import CONFIG, PROVIDER_KEYS
from harness.gateway import Gateway

ROOT = Path(__file__).resolve().parents[2]

# As gunicorn's master: the configuration file, then the application.
PROGRAM = """
import gc, json, runpy, sys
import gunicorn.app.wsgiapp
from importlib import metadata

counts = {"collections": 0, "metadata": 0, "parsed": 0}

def collected(phase, info):
    counts["collections"] += phase == "start" and info["generation"] == 2

def looked_up(look_up=metadata.entry_points, **kinds):
    counts["metadata"] += 1
    return look_up(**kinds)

metadata.entry_points = looked_up
gc.callbacks.append(collected)
runpy.run_path(sys.argv[1])
from wrapper.metering import price_file

def parsed(text, parse=price_file._parsed):
    counts["parsed"] += text.count(chr(10))
    return parse(text)

price_file._parsed = parsed
from wrapper.server.lifecycle import load_app

load_app()
gc.callbacks.clear()
found = {**counts, "enabled": gc.isenabled(), "frozen": gc.get_freeze_count()}
print(json.dumps({**found, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def started() -> dict[str, Any]:
    """What the master of a gateway has done when it forks."""
    config = CONFIG.replace("{simulator}", "http://127.0.0.1:9")
    with Gateway.prepared(config, keys={"web-app": {}}, env=PROVIDER_KEYS) as gateway:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(ROOT / "config" / "gunicorn.py")],
            cwd=gateway.directory,
            env=gateway.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_start_does_not_search_the_installed_packages_for_plugins(
    started: dict[str, Any],
) -> None:
    """Without the setting gevent does it 25 times, through the metadata of every package."""
    assert started["metadata"] == 0


def test_no_collection_goes_through_what_a_start_has_made(started: dict[str, Any]) -> None:
    """Neither at the start nor, as all of it is frozen, in a worker; which collects as usual."""
    assert started["collections"] == 0
    assert started["frozen"] > 20_000
    assert started["enabled"]


def test_a_start_reads_no_prices_that_it_does_not_need(started: dict[str, Any]) -> None:
    """A thousand lines of the price list are models of a provider that few configure."""
    assert 0 < started["parsed"] < 400


def test_a_start_imports_nothing_that_only_some_requests_or_commands_need(
    started: dict[str, Any],
) -> None:
    needless = ("wrapper.cli", "wrapper.simulator", "tomlkit", "yaml", "redis", "rich", "pygments")
    found = [name for name in started["modules"] if name.partition(".")[0] in needless]
    assert found + [name for name in started["modules"] if name.startswith(needless)] == []
