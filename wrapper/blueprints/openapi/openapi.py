"""Puts the OpenAPI 3.1 document together, once, and keeps it as bytes.

The rule it protects: the document says what the gateway does. The error examples are rendered by
`wrapper.errors` itself, and a test holds the paths against the application's URL map.

https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

import hashlib
import json
from functools import cache

from wrapper import __version__
from wrapper.blueprints.openapi import chat, failures, gateway, media, objects, schemas, unified
from wrapper.blueprints.openapi.parts import Json

_DESCRIPTION = """\
One address for many AI providers. You hold **one key of this gateway**; it holds the providers'
keys, picks the provider by the `model` you name, and counts what you use. Everything speaks
OpenAI's API, so the SDKs you know work: only their base address and key change.

**Try it in three steps**

1. Press **Authorize** and paste your key. It begins with `sk-wr-`.
2. Open **Chat**, `POST /v1/chat/completions`, choose an example and press **Execute**.
3. Look at **Your key**, `GET /usage`: what that cost.

**From Python**

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="sk-wr-...")
```

(with this page's own address in place of `http://127.0.0.1:8080`)

**When something goes wrong** the answer is always
`{"error": {"message", "type", "param", "code"}}`: `message` is for you, `code` for your program.
A provider's own errors come through as they are. Every answer carries an `x-request-id`; give it
to whoever runs this gateway and they find the request in the log.
"""

_TAGS = (
    ("Chat", "Begin here."),
    ("Models", "What you may write in `model`."),
    ("Your key", "What you used, and what is left of your budget."),
    ("Text", "Responses, embeddings, moderation, and the older completions."),
    ("Audio", "Speech to text and back."),
    ("Images", "Draw, change, vary."),
    ("Files", "Kept by the provider."),
    ("Uploads in parts", "For large files."),
    ("Batches", "Many calls, later, for less."),
    ("Vector stores", "Search in your own files."),
    ("Everything else", "Any path, any method, any provider: unchanged both ways."),
    ("Gateway", "For those who run it."),
)

_SECURITY = {
    "gatewayKey": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "sk-wr-...",
        "description": "Your key of this gateway: paste it as it is, without the word Bearer. "
        "It is kept in this page only, until you reload it.",
    },
}


def document() -> Json:
    """The whole document as plain data, made anew."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AI gateway",
            "version": __version__,
            "summary": "OpenAI's API, for many providers, with one key.",
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "This gateway"}],
        "security": [{"gatewayKey": []}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS],
        "paths": {
            **chat.paths(),
            **unified.paths(),
            **media.paths(),
            **objects.paths(),
            **gateway.paths(),
        },
        "components": {
            "schemas": schemas.schemas(),
            "headers": schemas.headers(),
            "examples": failures.error_examples(),
            "responses": failures.error_responses(),
            "securitySchemes": _SECURITY,
        },
    }


@cache
def encoded() -> tuple[bytes, str]:
    """The document as UTF-8 JSON, and its entity tag (without quotes)."""
    body = json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()
    return body, hashlib.sha256(body).hexdigest()[:32]
