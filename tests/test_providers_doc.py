"""The lines that docs/providers.md offers are five at most, and the configuration takes them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from harness.processes import ROOT
from wrapper.config import load

TEXT = (ROOT / "docs" / "providers.md").read_text()
LINES = dict(re.findall(r"^### (\w+)\n\n```toml\n(.*?)^```", TEXT, re.M | re.S))
REST = """
[providers.groq]
base_url = "https://api.groq.com/openai/v1"
api_key = { env = "GROQ_API_KEY" }

[[routes]]
model = "*"
targets = ["groq"]
"""


def test_it_tells_of_every_server_that_people_ask_for() -> None:
    assert list(LINES) == ["Anthropic", "Ollama", "vLLM", "Together", "Mistral", "OpenRouter"]


@pytest.mark.parametrize("name", LINES)
def test_five_lines_make_a_provider(tmp_path: Path, name: str) -> None:
    lines = LINES[name]
    assert len(lines.splitlines()) <= 5
    (tmp_path / "gateway.toml").write_text(lines + REST)
    environ = {"WRAPPER_CONFIG": str(tmp_path / "gateway.toml"), f"{name.upper()}_API_KEY": "x"}
    settings = load(environ)
    provider = settings.providers[name.lower()]
    assert provider.usable
    assert (provider.api_key is not None) == ("api_key" in lines)
    assert {route.targets[0].provider for route in settings.routes} <= {"groq", name.lower()}


def test_the_lines_can_be_put_at_the_end_of_the_shipped_configuration() -> None:
    shipped = (ROOT / "config" / "gateway.toml").read_text()
    for name, lines in LINES.items():
        assert name.lower() in tomllib.loads(shipped + lines)["providers"]
