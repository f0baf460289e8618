"""The npm package `openai`, with its base at both addresses: `node/everything.mjs` asks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.programs import missing, require

if TYPE_CHECKING:
    from harness.gateway import Gateway
    from harness.simulator import Simulator


NODE = Path(__file__).parent / "node"
CHECKS = [
    *("chat", "usage_in_a_stream", "tools", "completions", "embeddings"),
    *("responses", "responses_as_events", "transcription", "speech", "images"),
    *("files", "pages", "uploads_in_parts", "batches", "models", "moderations"),
    *("vector_stores", "raw_responses", "refusals", "an_abort_ends_the_stream"),
]

Results = dict[str, str | None]


@pytest.fixture(scope="session")
def node() -> str:
    """The program, with the package of the lock file beside the script."""
    program = require("node")
    lock = NODE / "package-lock.json"
    installed = NODE / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        done = subprocess.run(
            [require("npm"), "ci", "--no-progress"], cwd=NODE, capture_output=True, text=True
        )
        if done.returncode:
            missing(f"npm ci failed: {done.stderr[-500:]}")
        installed.touch()
    return program


@pytest.fixture(scope="module", params=["/v1", "/openai/v1"])
def results(request: pytest.FixtureRequest, node: str, gateway: Gateway) -> Results:
    """What the script says of each of its checks."""
    done = subprocess.run(
        [node, "everything.mjs"],
        cwd=NODE,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "OPENAI_BASE_URL": f"{gateway.url}{request.param}",
            "OPENAI_API_KEY": gateway.secrets["web-app"],
            "BOOK": f"node{request.param}",
        },
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    found: Results = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_the_node_package_works(results: Results, gateway: Gateway, check: str) -> None:
    assert results[check] is None, results[check]


def test_every_check_of_the_script_is_named_here(results: Results) -> None:
    assert sorted(results) == sorted(CHECKS)


def test_a_stream_that_node_leaves_ends_at_the_provider(
    results: Results, simulator: Simulator
) -> None:
    assert results["an_abort_ends_the_stream"] is None
    left = simulator.wait_for(
        lambda found: all(r["outcome"] for r in found if r["book"].startswith("node/"))
    )
    assert {r["outcome"] for r in left if r["book"].startswith("node/")} == {"aborted"}


@pytest.mark.parametrize("folder", ["node", "clients"])
def test_the_lock_file_names_no_registry(folder: str) -> None:
    assert '"resolved"' not in (NODE.with_name(folder) / "package-lock.json").read_text()
