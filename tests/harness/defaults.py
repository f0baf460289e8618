"""The configuration of the gateway in most tests."""

from __future__ import annotations

from datetime import date
from typing import Any

# The gateway's keys at the providers. No test may ever see them anywhere else.
PROVIDER_KEYS = {
    "GROQ_API_KEY": "gsk_PROVIDERS-OWN-KEY-groq-0123456789",
    "OPENAI_API_KEY": "sk-PROVIDERS-OWN-KEY-openai-0123456789",
}

# No cooldowns: tests share a gateway, and the failures that one orders must not change the order of
# targets in another.
CONFIG = """\
[providers.groq]
base_url = "{simulator}/openai/v1"
cooldown_seconds = 0
api_key = { env = "GROQ_API_KEY" }

[providers.openai]
base_url = "{simulator}/v1"
cooldown_seconds = 0
api_key = { env = "OPENAI_API_KEY" }
client_credentials = true

[[routes]]
model = "gpt-*"
targets = ["openai"]

[[routes]]
model = "fast"
targets = ["groq:openai/gpt-oss-20b", "openai:gpt-6-luna"]

[[routes]]
model = "*"
targets = ["groq"]
"""

KEYS: dict[str, dict[str, Any]] = {
    "web-app": {},
    "narrow": {"models": ["llama-*", "openai/gpt-oss-*"]},
    "expired": {"expires": date(2020, 1, 1)},
}

# A gateway with short timeouts: a provider that has little time ("quick"; "steady" is the same with
# much), others that refuse connections, do not accept them ("deaf") or do not speak TLS, and routes
# that fail over from each of them to one that responds.
# The instructions to the simulator are in the model names, so that the targets of one route can get
# different ones.
IMPATIENT = """\
[server]
body_timeout = 1.0

[providers.quick]
base_url = "{simulator}/openai/v1"
cooldown_seconds = 0
api_key = { env = "GROQ_API_KEY" }
first_byte_timeout = 0.5
idle_timeout = 0.5
total_timeout = 3

[providers.steady]
base_url = "{simulator}/openai/v1"
cooldown_seconds = 0
api_key = { env = "GROQ_API_KEY" }

[providers.openai]
base_url = "{simulator}/v1"
cooldown_seconds = 0
api_key = { env = "OPENAI_API_KEY" }

[providers.refusing]
base_url = "http://127.0.0.1:{refusing}/v1"
cooldown_seconds = 0
api_key = { env = "OPENAI_API_KEY" }

[providers.deaf]
base_url = "http://127.0.0.1:{deaf}/v1"
cooldown_seconds = 0
api_key = { env = "OPENAI_API_KEY" }
connect_timeout = 0.5

[providers.slowdeaf]
base_url = "http://127.0.0.1:{deaf}/v1"
cooldown_seconds = 0
api_key = { env = "OPENAI_API_KEY" }
connect_timeout = 600

[providers.notls]
base_url = "https://127.0.0.1:{no_tls}/v1"
cooldown_seconds = 0
api_key = { env = "OPENAI_API_KEY" }

[providers.slow]
base_url = "{simulator}/v1"
cooldown_seconds = 0
api_key = { env = "OPENAI_API_KEY" }
first_byte_timeout = 3.5

[providers.brief]
base_url = "{simulator}/openai/v1"
cooldown_seconds = 0
api_key = { env = "GROQ_API_KEY" }
total_timeout = 3.5

[providers.keyless]
base_url = "{simulator}/v1"
cooldown_seconds = 0
api_key = { env = "NOT_SET_ANYWHERE" }
"""

TARGETS = {
    "quick": "quick",
    "steady": "steady",
    "refusing": "refusing",
    "deaf": "deaf",
    "slowdeaf": "slowdeaf",
    "notls": "notls",
    "keyless": "keyless",
    "or-refused": "refusing:a|openai:b",
    "or-deaf": "deaf:a|openai:b",
    "or-notls": "notls:a|openai:b",
    "or-keyless": "keyless:a|openai:b",
    "keyless-then-refusing": "keyless|refusing",
    "refusing-then-keyless": "refusing|keyless",
    "or-429": "steady:a?status=429|openai:b",
    "or-500": "steady:a?status=500|openai:b",
    "or-503": "steady:a?status=503|openai:b",
    "or-silent": "quick:a?stall-before|openai:b",
    "or-dripping-head": "quick:a?header-drip=0.2|openai:b",
    "or-silent-body": "quick:a?stall=0|openai:b",
    "or-400": "steady:a?status=400|openai:b",
    "or-404": "steady:a?status=404|openai:b",
    "or-cut": "steady:a?cut=3|openai:b",
    "or-received": "steady:a?close-on-receipt|openai:b",
    "or-both": "steady:a?status=503|openai:b?status=429&retry-after=7",
    "or-gone": "steady:a?status=429|refusing:b",
    "slow-then-brief": "slow:a?stall-before|brief:b?events=10&gap=0.1",
    "third": "refusing:a|steady:b?status=500|openai:c",
    "*": "openai",
}


def impatient(simulator: str, **ports: int) -> str:
    """The configuration of the gateway with short timeouts."""
    text = IMPATIENT.replace("{simulator}", simulator)
    for name, port in ports.items():
        text = text.replace("{" + name + "}", str(port))
    for model, targets in TARGETS.items():
        listed = ", ".join(f'"{target}"' for target in targets.split("|"))
        text += f'\n[[routes]]\nmodel = "{model}"\ntargets = [{listed}]\n'
    return text
