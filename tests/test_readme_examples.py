"""The README's examples, run as they stand there against a running gateway."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness.gateway import Gateway
from harness.poll import PATIENCE
from harness.processes import ROOT
from harness.programs import require

if TYPE_CHECKING:
    from harness.simulator import Simulator

ADDRESS = "http://127.0.0.1:8080"
PLACEHOLDER = "sk-..."
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]
(CURL,) = [code for language, code in BLOCKS if language == "sh" and "\ncurl " in code]


@pytest.fixture(scope="module")
def demo(simulator: Simulator) -> Iterator[Gateway]:
    """The shipped configuration and no provider's key, as on a first start."""
    shipped = (ROOT / "config" / "gateway.toml").read_text()
    config = shipped.replace("https://api.openai.com", simulator.url)
    assert config != shipped
    with Gateway(config, keys={"demo": {}}, env={"WRAPPER_DEMO": "1"}) as running:
        yield running
        running.assert_clean()


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split()[3])
def test_a_python_example_prints_the_answer(gateway: Gateway, key: str, code: str) -> None:
    run(code, gateway, key)


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split()[3])
def test_it_does_so_without_any_providers_key(demo: Gateway, code: str) -> None:
    run(code, demo, demo.secrets["demo"])


def test_without_any_providers_key_a_callers_own_goes_where_it_belongs(demo: Gateway) -> None:
    answered_by = {}
    for token in ("sk-own", demo.secrets["demo"]):
        asked = urllib.request.Request(
            f"{demo.url}/openai/v1/models", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            answered_by[token] = answer.headers["x-wrapper-provider"]
    assert answered_by == {"sk-own": "openai", demo.secrets["demo"]: "demo"}


def run(code: str, gateway: Gateway, key: str) -> None:
    assert ADDRESS in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace(ADDRESS, gateway.url)],
        env={"WRAPPER_KEY": key},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "simulated" in done.stdout


def test_the_curl_example_prints_the_stream(gateway: Gateway, key: str) -> None:
    require("curl")
    assert ADDRESS in CURL
    assert PLACEHOLDER in CURL
    done = subprocess.run(
        ["/bin/sh", "-c", CURL.replace(ADDRESS, gateway.url).replace(PLACEHOLDER, key)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.endswith("data: [DONE]\n\n")
