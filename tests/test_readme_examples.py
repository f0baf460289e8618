"""The README's examples, run as they stand there against a running gateway."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.processes import ROOT
from harness.programs import require

if TYPE_CHECKING:
    from harness.gateway import Gateway

ADDRESS = "http://127.0.0.1:8080"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]
(CURL,) = [code for language, code in BLOCKS if language == "sh" and code.startswith("curl ")]


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split()[1])
def test_a_python_example_prints_the_answer(gateway: Gateway, key: str, code: str) -> None:
    assert ADDRESS in code
    program = f"import os\nWRAPPER_KEY = os.environ['WRAPPER_KEY']\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program.replace(ADDRESS, gateway.url)],
        env={"WRAPPER_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "simulated" in done.stdout


def test_the_curl_example_prints_the_stream(gateway: Gateway, key: str) -> None:
    require("curl")
    assert ADDRESS in CURL
    done = subprocess.run(
        ["/bin/sh", "-c", CURL.replace(ADDRESS, gateway.url)],
        env={"WRAPPER_KEY": key, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.endswith("data: [DONE]\n\n")
