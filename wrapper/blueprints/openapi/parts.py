"""The small pieces that every operation of the OpenAPI document is put together from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Json = dict[str, Any]

MODEL = "llama-3.1-8b-instant"
"""The model of the examples: Groq serves it, and so does the built-in `demo` provider."""


def ref(kind: str, name: str) -> Json:
    """A reference to a component, for instance `ref("schemas", "Error")`."""
    return {"$ref": f"#/components/{kind}/{name}"}


def example(summary: str, value: Any) -> Json:
    """One named example (OpenAPI 3.1 section 4.8.19)."""
    return {"summary": summary, "value": value}


def json_content(schema: Json, examples: Mapping[str, Json]) -> Json:
    """A JSON body."""
    return {"application/json": {"schema": schema, "examples": dict(examples)}}


def json_request(schema: Json, examples: Mapping[str, Json]) -> Json:
    """A JSON request body that has to be there."""
    return {"required": True, "content": json_content(schema, examples)}


def form_request(fields: Mapping[str, Json], required: Iterable[str]) -> Json:
    """A multipart/form-data request body (RFC 7578); its bytes pass through unchanged."""
    schema = {"type": "object", "properties": dict(fields), "required": list(required)}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def text(description: str, **more: Any) -> Json:
    """A string field."""
    return {"type": "string", "description": description, **more}


def number(description: str, **more: Any) -> Json:
    """A number field."""
    return {"type": "number", "description": description, **more}


def integer(description: str, **more: Any) -> Json:
    """An integer field."""
    return {"type": "integer", "description": description, **more}


def boolean(description: str, **more: Any) -> Json:
    """A boolean field."""
    return {"type": "boolean", "description": description, **more}


def file(description: str) -> Json:
    """A file of a form."""
    return text(description, format="binary", contentMediaType="application/octet-stream")


def model(value: str = MODEL) -> Json:
    """The field that the gateway routes by."""
    return text("A model's name, or an alias of this gateway. It decides who answers.") | {
        "examples": [value],
        "default": value,
    }


def open_object(fields: Mapping[str, Json], required: Iterable[str] = ()) -> Json:
    """An object of which the known fields are described; any other passes through as well."""
    schema: Json = {"type": "object", "properties": dict(fields), "additionalProperties": True}
    names = list(required)
    return schema | {"required": names} if names else schema


def in_path(name: str, description: str, value: str) -> Json:
    """A path parameter."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
        "example": value,
    }


def in_query(name: str, description: str, schema: Json | None = None) -> Json:
    """A query parameter that may be left out."""
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema or {"type": "string"},
    }
