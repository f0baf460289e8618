"""What the gateway of most tests is configured with."""

from __future__ import annotations

from datetime import date
from typing import Any

# What the gateway shows to the providers. No test may ever see them anywhere else.
PROVIDER_KEYS = {
    "GROQ_API_KEY": "gsk_PROVIDERS-OWN-KEY-groq-0123456789",
    "OPENAI_API_KEY": "sk-PROVIDERS-OWN-KEY-openai-0123456789",
}

CONFIG = """\
[providers.groq]
base_url = "{simulator}/openai/v1"
api_key = { env = "GROQ_API_KEY" }

[providers.openai]
base_url = "{simulator}/v1"
api_key = { env = "OPENAI_API_KEY" }
client_credentials = true

[[routes]]
model = "gpt-*"
targets = ["openai"]

[[routes]]
model = "fast"
targets = ["groq:llama-3.1-8b-instant", "openai:gpt-4o-mini"]

[[routes]]
model = "*"
targets = ["groq"]
"""

KEYS: dict[str, dict[str, Any]] = {
    "web-app": {},
    "narrow": {"models": ["llama-*"]},
    "expired": {"expires": date(2020, 1, 1)},
}
