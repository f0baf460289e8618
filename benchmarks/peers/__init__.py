"""Relays of others, as far as they are installed: nginx, LiteLLM, Portkey.

nginx comes from the system; `make bench-peers` installs the other two, each from its own lock file.
They are set up to do what they can do without a database: LiteLLM knows one key and
counts in a callback, Portkey's open-source gateway neither checks keys nor counts, nginx relays.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ledgers import Counted
from benchmarks.variants import API, PRICES, PROVIDER_KEY, Relay, Variant, started
from harness import processes

HERE = Path(__file__).parent
LITELLM = processes.ROOT / ".venv-peers" / "litellm" / "bin"
PORTKEY = HERE / "node_modules" / "@portkey-ai" / "gateway"
LITELLM_KEY = "sk-litellm-benchmark"

NGINX = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log stderr warn;
{user}
events {{ worker_connections 10000; }}
http {{
  access_log access.log;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream provider {{ server {upstream}; keepalive 1000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    keepalive_requests 1000000;
    location /v1/ {{
      proxy_pass http://provider{api}/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer {key}";
      proxy_buffering off;
      proxy_read_timeout 600;
    }}
  }}
}}
"""

# What users without a database can have counted: LiteLLM's own object for loggers.
COUNTER = """\
from pathlib import Path

from litellm.integrations.custom_logger import CustomLogger

FILE = Path(__file__).with_name("counted").open("a", buffering=1)


class Counter(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        found = kwargs["standard_logging_object"]
        numbers = (found["prompt_tokens"], found["completion_tokens"], found["response_cost"])
        print("success", *numbers, file=FILE)

    async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
        print("failure 0 0 0", file=FILE)


counter = Counter()
"""


@contextmanager
def nginx(upstream: str) -> Iterator[Relay]:
    """One worker with an access log, and no response buffering."""
    port = processes.ReservedPort()
    user = "user root;" if os.geteuid() == 0 else ""
    provider = upstream.removeprefix("http://")
    config = NGINX.format(user=user, upstream=provider, port=port.number, key=PROVIDER_KEY, api=API)
    with tempfile.TemporaryDirectory(prefix="nginx-") as directory:
        Path(directory, "nginx.conf").write_text(config)
        program = _nginx() or "nginx"
        command = [program, "-p", directory, "-c", "nginx.conf", "-e", "stderr"]
        with started(command, env={"PATH": os.defpath}, port=port, key="any") as relay:
            yield relay


@contextmanager
def litellm(upstream: str) -> Iterator[Relay]:
    """One worker, with a master key and a callback that counts."""
    port = processes.ReservedPort()
    model = {
        "model": "openai/*",
        "api_base": upstream + API,
        "api_key": PROVIDER_KEY,
        "input_cost_per_token": PRICES["input"] / 1e6,
        "output_cost_per_token": PRICES["output"] / 1e6,
    }
    config = {
        "model_list": [{"model_name": "*", "litellm_params": model}],
        "general_settings": {
            "master_key": LITELLM_KEY,
            "forward_client_headers_to_llm_api": True,  # the orders to the simulator
        },
        "litellm_settings": {"callbacks": ["counter.counter"], "num_retries": 0},
    }
    with tempfile.TemporaryDirectory(prefix="litellm-") as directory:
        home = Path(directory)
        (home / "config.yaml").write_text(json.dumps(config))  # which is YAML
        (home / "counter.py").write_text(COUNTER)
        env = {
            "PATH": f"{LITELLM}:{os.defpath}",
            "HOME": directory,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing is fetched
            "NO_PROXY": "127.0.0.1",
        }
        options = ["--host", "127.0.0.1", "--port", str(port.number), "--num_workers", "1"]
        command = [str(LITELLM / "litellm"), "--config", str(home / "config.yaml"), *options]
        count = functools.partial(_counted_by_litellm, home / "counted")
        with started(command, env=env, port=port, cwd=home, key=LITELLM_KEY, count=count) as relay:
            yield relay


def _counted_by_litellm(file: Path) -> Counted:
    lines = [line.split() for line in file.read_text().splitlines()]
    served = [line for line in lines if line[0] == "success"]
    return Counted(
        completed=len(served),
        errors=len(lines) - len(served),
        prompt=sum(int(line[1]) for line in served),
        completion=sum(int(line[2]) for line in served),
        cost=sum(float(line[3]) for line in served),
    )


@contextmanager
def portkey(upstream: str) -> Iterator[Relay]:
    """The open-source gateway; its headers name the provider, whose key the client sends."""
    port = processes.ReservedPort()
    headers = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": upstream + API,
        "x-portkey-forward-headers": "x-sim",
    }
    script = str(PORTKEY / "build" / "start-server.js")
    command = [shutil.which("node") or "node", script, f"--port={port.number}", "--headless"]
    env = {"PATH": os.environ.get("PATH", os.defpath), "NODE_ENV": "production"}
    with started(command, env=env, port=port, key=PROVIDER_KEY, headers=headers) as relay:
        yield relay


def _nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def installed() -> tuple[dict[str, Variant], list[str]]:
    """The peers that are here by name with their version, and a line for each that is not."""
    found: dict[str, Variant] = {}
    missing = []
    if program := _nginx():
        said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
        found[f"nginx {said.rpartition('/')[2].split()[0]}"] = nginx
    else:
        missing.append("nginx is not installed (Debian, Ubuntu: apt-get install nginx-light).")
    if (LITELLM / "litellm").exists():
        code = "from importlib.metadata import version; print(version('litellm'))"
        command = [str(LITELLM / "python"), "-c", code]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[f"LiteLLM {said.strip()}"] = litellm
    else:
        missing.append("LiteLLM is not installed (`make bench-peers`).")
    if PORTKEY.exists() and shutil.which("node"):
        package = json.loads((PORTKEY / "package.json").read_text())
        found[f"Portkey {package['version']}"] = portkey
    else:
        missing.append("Portkey is not installed (`make bench-peers`; it needs node and npm).")
    return found, missing
