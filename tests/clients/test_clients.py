"""The client libraries and programs that users bring, each in a program of its own.

Each one of `programs/` has a conversation through the gateway with the simulator: in one piece, as
a stream, with a tool, with a structured answer. What the client handed to its user is compared with
what the simulator says, and what the gateway metered with what the simulator counted.
`make test-clients` installs the libraries and runs these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.defaults import CONFIG, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.poll import eventually
from harness.programs import missing, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.gateway import LogLine
    from harness.simulator import Simulator

pytestmark = pytest.mark.timeout(600)  # a cold import of some libraries takes many seconds

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-clients"

# Each program, and where its libraries are: a lock file of requirements/ has an environment of its
# own, since these libraries ask for different versions of `openai` and `groq`.
PROGRAMS = {
    "openai_chat.py": "newest",
    "openai_async.py": "newest",
    "openai_responses.py": "newest",
    "openai_azure.py": "newest",
    "groq_chat.py": "newest",
    "langchain_openai_chat.py": "newest",
    "litellm_client.py": "newest",
    "llm_cli.py": "newest",
    "openai_agents.py": "newest",
    "pydantic_ai_client.py": "newest",
    "instructor_client.py": "langchain",
    "langchain_groq_chat.py": "langchain",
    "llama_index_client.py": "llama-index",
    "openai_node.mjs": "node",
    "groq_node.mjs": "node",
    "ai_sdk.mjs": "node",
    "codex_cli.mjs": "node",
}
# What a program has to ask for at least: instructor has nothing but structured answers, and the
# coding CLI streams whatever it does.
CONVERSATION = {"unary", "stream", "tool", "parse"}
KINDS = {
    "instructor_client.py": {"parse"},
    "codex_cli.mjs": {"stream", "command"},
}

SAYS = "This is a simulated answer from the built-in provider; no model was asked. You said: "
EXPECTED: dict[str, Any] = {
    "unary": SAYS + "how are you",
    "stream": SAYS + "how are you",
    "tool": SAYS + "sunny in simulated",
    "parse": {"name": "simulated", "population": 1},
    "command": ["sunny in simulated"] * 2,
}


AZURE = """
[providers.azure]
base_url = "{simulator}/openai"
api_key = { env = "OPENAI_API_KEY" }
"""


@pytest.fixture(scope="module")
def gateway(simulator: Simulator) -> Iterator[Gateway]:
    """The usual providers and one that has Azure's paths, and a key for each program."""
    config = (CONFIG + AZURE).replace("{simulator}", simulator.url)
    keys: dict[str, dict[str, Any]] = {program: {} for program in PROGRAMS}
    with Gateway(config, workers=2, keys=keys, env=PROVIDER_KEYS) as running:
        yield running


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_has_a_conversation(
    program: str, gateway: Gateway, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.reset()
    results = ask(program, gateway, tmp_path)
    failures = [result["failed"] for result in results.values() if "failed" in result]
    assert not failures, "\n".join(failures)
    kinds = {name: name.rpartition("_")[2] for name in results}
    assert set(kinds.values()) >= KINDS.get(program, CONVERSATION)
    assert {name: result["got"] for name, result in results.items()} == {
        name: EXPECTED[kind] for name, kind in kinds.items()
    }

    calls = {f"req_{call['id']}": call for call in simulator.requests()}
    assert len(calls) >= len(results)
    lines = relayed(gateway, program, calls)
    for name, line in lines.items():
        usage = calls[name]["usage"]
        assert line["status"] == 200
        assert line["outcome"] == "completed"
        assert line["unmetered"] is None
        assert (line["prompt_tokens"], line["completion_tokens"]) == (
            usage["prompt"],
            usage["completion"],
        )
    assert used(gateway, program) == (
        sum(call["usage"]["prompt"] for call in calls.values()),
        sum(call["usage"]["completion"] for call in calls.values()),
    )


def ask(program: str, gateway: Gateway, home: Path) -> dict[str, dict[str, Any]]:
    """What the program says of each of its checks."""
    done = subprocess.run(
        [*interpreter(program), str(HERE / "programs" / program)],
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "GATEWAY_URL": gateway.url,
            "GATEWAY_KEY": gateway.secrets[program],
        },
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def interpreter(program: str) -> list[str]:
    """What runs the program; without its libraries the test is skipped."""
    environment = PROGRAMS[program]
    if environment == "node":
        if not (HERE / "node_modules").exists():
            missing("the npm packages are not installed: make test-clients")
        return [require("node")]
    python = ENVIRONMENTS / environment / "bin" / "python"
    if not python.exists():
        missing(f"{environment} is not installed: make test-clients")
    return [str(python)]


def relayed(gateway: Gateway, key: str, calls: dict[str, Any]) -> dict[str, LogLine]:
    """The log line of each call that reached the simulator, by the simulator's id."""

    def found() -> dict[str, LogLine]:
        lines = {
            line["upstream_request_id"]: line for line in gateway.log() if line["api_key"] == key
        }
        lines.pop(None, None)
        assert set(lines) == set(calls)
        return lines

    return eventually(found, 20.0, what="a log line for each call")


def used(gateway: Gateway, key: str) -> tuple[int, int]:
    """The key's prompt and completion tokens, from `GET /usage`."""
    headers = {"Authorization": f"Bearer {gateway.secrets[key]}"}
    status, body = gateway.get("/usage", headers=headers)
    assert status == 200, body
    total = json.loads(body)["totals"]
    return total["prompt_tokens"], total["completion_tokens"]
