"""What the gateway answers itself, and the two ways to reach anything else at a provider."""

from __future__ import annotations

from wrapper.blueprints.openapi.calls import answer
from wrapper.blueprints.openapi.failures import relayed, responses
from wrapper.blueprints.openapi.parts import (
    MODEL,
    Json,
    example,
    in_path,
    in_query,
    integer,
    json_content,
    number,
    open_object,
    ref,
    text,
)

_METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
_PATH = in_path(
    "path",
    "Everything after it, slashes included. It goes up exactly as you write it; a path that could "
    "be read in two ways (`..`, `//`, `%2F`, a backslash) is refused.",
    "embeddings",
)
_SUMS = {
    "requests": 128,
    "prompt_tokens": 20480,
    "completion_tokens": 9216,
    "total_tokens": 29696,
    "cached_tokens": 4096,
    "reasoning_tokens": 0,
    "audio_seconds": 0.0,
    "cost_usd": 0.0021,
    "unmetered": 0,
    "unpriced": 0,
}
_USAGE = {
    "object": "usage",
    "api_key": "web-app",
    "since": "2026-01-01T00:00:00Z",
    "until": "2026-01-20T12:00:00Z",
    "totals": _SUMS,
    "by_model": [{"provider": "groq", "model": MODEL, **_SUMS}],
    "limits": {
        "models": ["llama-*", "fast"],
        "requests_per_minute": 60,
        "tokens_per_minute": 100000,
        "max_concurrent": 8,
        "budget_usd": 20.0,
        "budget_period": "month",
        "budget_left_usd": 19.9979,
        "expires": "2027-01-01",
    },
}
_METRICS = """\
# HELP token_usage_total Tokens of questions and answers
# TYPE token_usage_total counter
token_usage_total{api_key="web-app",model="llama-3.1-8b-instant",provider="groq"} 29696.0
"""


def _any_method(
    prefix: str, tag: str, summary: str, description: str, parameters: list[Json]
) -> Json:
    """The same operation for every method: bodies of any type both ways."""
    made: Json = {"parameters": parameters}
    for method in _METHODS:
        body = method in ("post", "put", "patch", "delete")
        operation = {
            "operationId": f"{prefix}_{method}",
            "tags": [tag],
            "summary": f"{summary} ({method.upper()})",
            "description": description,
            "responses": {
                **answer("The provider's answer, byte for byte.", {"*/*": {}}),
                "204": {"description": "The provider answered without a body."},
                "304": {"description": "Nothing changed since you last asked."},
                **relayed(body=body, model=True),
            },
        }
        if body:
            sample = {"model": "text-embedding-3-small", "input": "A sentence"}
            operation["requestBody"] = {
                "required": False,
                "description": "JSON, a form, or any bytes: it goes up unchanged.",
                "content": {
                    **json_content(ref("schemas", "Anything"), {"json": example("JSON", sample)}),
                    "application/octet-stream": {},
                },
            }
        made[method] = operation
    return made


def _usage_schema() -> Json:
    counts = {
        "requests": integer("Calls."),
        "prompt_tokens": integer("Tokens of the questions."),
        "completion_tokens": integer("Tokens of the answers."),
        "total_tokens": integer("Both."),
        "cached_tokens": integer("Of the questions' tokens, those the provider had cached."),
        "reasoning_tokens": integer("Of the answers' tokens, those that were thought."),
        "audio_seconds": number("Audio that is billed by its length."),
        "cost_usd": number("What it cost, in US dollars."),
        "unmetered": integer("Answers whose use could not be read."),
        "unpriced": integer("Answers of models whose price is not known; not in `cost_usd`."),
    }
    which = {"provider": text("Who answered."), "model": text("Which model.")}

    def limit(kind: str, description: str) -> Json:
        return {"type": [kind, "null"], "description": f"{description}; null: none."}

    limits: Json = {
        "models": {"type": "array", "items": {"type": "string"}, "description": "May be called."},
        "requests_per_minute": limit("integer", "Calls a minute (not enforced yet)"),
        "tokens_per_minute": limit("integer", "Tokens a minute (not enforced yet)"),
        "max_concurrent": limit("integer", "Calls at once (not enforced yet)"),
        "budget_usd": limit("number", "US dollars a period (not enforced yet)"),
        "budget_period": limit("string", "`day` or `month`, in UTC"),
        "budget_left_usd": limit("number", "US dollars left of the budget in this period"),
        "expires": limit("string", "The day from whose begin (UTC) the key is refused"),
    }
    fields = {
        "object": text("Always `usage`."),
        "api_key": text("The key's name."),
        "since": text("From when (UTC, RFC 3339)."),
        "until": text("Until when (UTC, RFC 3339)."),
        "totals": open_object(counts, list(counts)),
        "by_model": {"type": "array", "items": open_object(which | counts)},
        "limits": open_object(limits),
    }
    return open_object(fields, list(fields))


def _own(operation_id: str, tag: str, summary: str, content: Json, *errors: str) -> Json:
    """A GET that the gateway answers without a provider."""
    return {
        "operationId": operation_id,
        "tags": [tag],
        "summary": summary,
        "security": [],
        "responses": {
            "200": {"description": "The answer.", "content": content},
            **responses("InternalError", *errors),
        },
    }


def _state(*examples: tuple[str, Json]) -> Json:
    schema = open_object({"status": text("In a word.")}, ["status"])
    return json_content(schema, {name: example(name, value) for name, value in examples})


def _usage() -> Json:
    content = json_content(_usage_schema(), {"usage": example("A key's use", _USAGE)})
    made = _own("getUsage", "Your key", "What your key used, cost, and may", content)
    del made["security"]
    made["parameters"] = [
        in_query(
            "since",
            "How far back: hours, days or weeks, such as `24h`, `7d`, `4w`; or a date, such as "
            "`2026-01-31`. Without it: since the start of the current month (UTC).",
            {"type": "string", "examples": ["7d"]},
        )
    ]
    made["responses"] |= responses("InvalidRequest", "Unauthorized")
    return made


def _metrics() -> Json:
    content = {"text/plain": {"schema": {"type": "string"}, "example": _METRICS}}
    made = _own("getMetrics", "Gateway", "Prometheus metrics of all workers", content)
    made["description"] = (
        "Open to all, unless the gateway has a `metrics_token`: then that, in place of a key."
    )
    made["security"] = [{}, {"gatewayKey": []}]
    made["responses"] |= responses("Unauthorized")
    return made


def _health() -> Json:
    ready = _own("getReady", "Gateway", "Can it serve?", _state(("ready", {"status": "ready"})))
    ready["responses"]["503"] = {
        "description": "Not now: no provider is usable, or it is stopping.",
        "content": _state(("not_ready", {"status": "not ready"})),
    }
    return {
        "/healthz": {
            "get": _own("getHealth", "Gateway", "Is it alive?", _state(("ok", {"status": "ok"})))
        },
        "/readyz": {"get": ready},
    }


def _pages() -> Json:
    html: Json = {"text/html": {"schema": {"type": "string"}}}
    document: Json = {"application/json": {"schema": {"type": "object"}}}
    asset: Json = {"*/*": {}}
    file = _own("getDocsAsset", "Gateway", "A file of this page", asset, "UnknownUrl")
    file["parameters"] = [in_path("asset", "The file's name.", "swagger-ui.css")]
    moved = _own("getSwaggerRoot", "Gateway", "Leads to this page", html)
    moved["responses"]["302"] = {"description": "To `/docs`."}
    del moved["responses"]["200"]
    return {
        "/docs": {"get": _own("getDocs", "Gateway", "This page", html)},
        "/swagger": {"get": moved},
        "/docs/{asset}": {"get": file},
        "/swagger/index.html": {"get": _own("getSwagger", "Gateway", "This page, too", html)},
        "/openapi.json": {
            "get": _own("getOpenapi", "Gateway", "This page's content for programs", document)
        },
    }


def paths() -> Json:
    """The rest of the routes."""
    provider = in_path("provider", "A provider's name in this gateway.", "groq")
    return {
        "/v1/{path}": _any_method(
            "unified",
            "Everything else",
            "Any other path of the OpenAI API",
            "Whatever comes next in OpenAI's API works at once: routed by the body's `model` "
            "where it has one, else to the provider of the `*` route.",
            [_PATH],
        ),
        "/{provider}/{path}": _any_method(
            "passthrough",
            "Everything else",
            "Straight to one provider",
            "The provider's address plus the path and the query as you write them: "
            "`/openai/v1/embeddings` goes to `https://api.openai.com/v1/embeddings`, "
            "`/groq/openai/v1/models` to `https://api.groq.com/openai/v1/models`. Point a "
            "provider's own SDK here. Where the gateway's owner allows it (`client_credentials`), "
            "a credential that is no gateway key goes up as your own.",
            [provider, {**_PATH, "example": "openai/v1/models"}],
        ),
        "/usage": {"get": _usage()},
        "/metrics": {"get": _metrics()},
        **_health(),
        **_pages(),
    }
