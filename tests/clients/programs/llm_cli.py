"""The command line program `llm`, with the gateway's model as its documentation says."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

from conversation import KEY, OPENAI_MODEL, URL, City, check, get_weather, run

HOME = Path(os.environ["HOME"])
MODEL = {
    "model_id": "gateway",
    "model_name": OPENAI_MODEL,
    "api_base": f"{URL}/v1",
    "api_key_name": "gateway",
    "supports_schema": True,
    "supports_tools": True,
}
(HOME / "extra-openai-models.yaml").write_text(json.dumps([MODEL]))
(HOME / "keys.json").write_text(json.dumps({"gateway": KEY}))


def llm(*arguments: str) -> str:
    """What the program prints."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("llm")), "-m", "gateway", "how are you", *arguments],
        env={**os.environ, "LLM_USER_PATH": str(HOME)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@check
def unary():
    return llm("--no-stream")


@check
def stream():
    return llm()


@check
def tool():
    return llm("--functions", inspect.getsource(get_weather))


@check
def parse():
    return json.loads(llm("--schema", json.dumps(City.model_json_schema())))


run()
