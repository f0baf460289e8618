"""`python -m tools.sdk_table`: writes docs/sdk-methods.md from the SDKs and the table of endpoints.

Every method of the installed `openai` and `groq` packages, the request that it makes, and what the
gateway does with that request. A test compares the file with what this makes. The requests are read
from the methods' own source: each names its path once.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import groq
import openai

from wrapper.endpoints import ADMIN, OTHER, Endpoint, find_endpoint, find_socket

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sdk-methods.md"

HEAD = """\
# Every SDK method

What the gateway does with the request of each method of the SDKs: how its usage is metered and how
it is priced ([what is priced](usage.md#what-is-priced)). Made by `python -m tools.sdk_table` from
openai {openai}, groq {groq} and the [table of endpoints](usage.md#which-requests-are-metered). The
asynchronous clients have the same methods. What the SDKs do not know yet is treated by its path.
"""

_VERBS = {
    "_get": "GET",
    "_get_api_list": "GET",
    "_post": "POST",
    "_put": "PUT",
    "_patch": "PATCH",
    "_delete": "DELETE",
}
# Methods without a request of their own, by how their name ends, and what they call.
_HELPERS = {
    "chat.completions.parse": "POST /chat/completions",
    "chat.completions.stream": "POST /chat/completions",
    "responses.parse": "POST /responses",
    "responses.stream": "POST /responses",
    "responses.connect": "GET /responses",
    "realtime.connect": "GET /realtime",
    "realtime.translations.connect": "GET /realtime/translations",
    "live.connect": "GET /live/sessions",
    "live.forks.connect": "GET /live/sessions/{id}/fork",
    "live.sideband.connect": "GET /live/sessions/{id}/attach",
    "files.wait_for_processing": "GET /files/{id}",
    "uploads.upload_file_chunked": "POST /uploads",
    "threads.create_and_run_poll": "POST /threads/runs",
    "threads.create_and_run_stream": "POST /threads/runs",
    "runs.create_and_poll": "POST /threads/{id}/runs",
    "runs.create_and_stream": "POST /threads/{id}/runs",
    "runs.stream": "POST /threads/{id}/runs",
    "runs.poll": "GET /threads/{id}/runs/{id}",
    "runs.submit_tool_outputs_and_poll": "POST /threads/{id}/runs/{id}/submit_tool_outputs",
    "runs.submit_tool_outputs_stream": "POST /threads/{id}/runs/{id}/submit_tool_outputs",
    "file_batches.create_and_poll": "POST /vector_stores/{id}/file_batches",
    "file_batches.upload_and_poll": "POST /vector_stores/{id}/file_batches",
    "file_batches.poll": "GET /vector_stores/{id}/file_batches/{id}",
    "vector_stores.files.create_and_poll": "POST /vector_stores/{id}/files",
    "vector_stores.files.upload": "POST /vector_stores/{id}/files",
    "vector_stores.files.upload_and_poll": "POST /vector_stores/{id}/files",
    "vector_stores.files.poll": "GET /vector_stores/{id}/files/{id}",
    "videos.create_and_poll": "POST /videos",
    "videos.poll": "GET /videos/{id}",
    "beta.agents.environments.files.prepare": "",
    "beta.agents.environments.files.prepare_directory": "",
    "beta.agents.environments.files.upload": "POST /agents/environments/{id}/files",
    "beta.agents.sessions.stream": "POST /agents/sessions",
    "beta.agents.sessions.artifacts.for_result": "GET /agents/sessions/{id}/artifacts",
    "webhooks.unwrap": "",
    "webhooks.verify_signature": "",
}
NOTHING = "uses nothing"
REFUSED = "refused: no gateway key may administer the account"
WEBSOCKET = ".connect"  # such methods open a WebSocket


class Method(NamedTuple):
    """A method by its name in the SDK, and its request; without a path it makes none."""

    name: str
    verb: str
    path: str

    @property
    def resource(self) -> str:
        return self.name.rpartition(".")[0]


def methods(client: Any) -> Iterator[Method]:
    """Every method of a client's resources that makes a request, or helps to."""
    for name, resource in _resources(client, ""):
        for method, function in inspect.getmembers(type(resource), inspect.isfunction):
            if not method.startswith("_"):
                yield _method(f"{name}.{method}", function)


def _resources(owner: Any, name: str) -> Iterator[tuple[str, Any]]:
    for attribute in sorted(dir(type(owner))):
        found = inspect.getattr_static(type(owner), attribute)
        if attribute.startswith(("_", "with_")) or not isinstance(
            found, property | cached_property
        ):
            continue
        value = getattr(owner, attribute, None)
        if type(value).__module__.startswith(("openai.resources", "groq.resources")):
            inner = f"{name}.{attribute}" if name else attribute
            yield inner, value
            yield from _resources(value, inner)


def _method(name: str, function: Any) -> Method:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            verb = _VERBS.get(node.func.attr)
            if verb is not None and ast.unparse(node.func.value) == "self":
                given = (_text(each.value) for each in node.keywords if each.arg == "method")
                verb = next(given, verb).upper()
                return Method(name, verb, _path(_text(node.args[0])))
    for ending, request in _HELPERS.items():
        if f".{name}".endswith(f".{ending}"):
            verb, _, path = request.partition(" ")
            return Method(name, verb, path)
    raise SystemExit(f"{name} has no request of its own: say in _HELPERS what it calls")


def _path(text: str) -> str:
    return re.sub(r"\{\w+\}", "{id}", text.partition("?")[0])


def _text(node: ast.expr) -> str:
    """The text of a constant, an f-string or `path_template("...", ...)`."""
    if isinstance(node, ast.Call):
        return _text(node.args[0])
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else "{id}" for v in node.values)
        return "".join(map(str, parts))
    return str(ast.literal_eval(node))


def _found(method: Method) -> tuple[str, str]:
    """How the request is metered and priced."""
    if not method.path:
        return "makes no request", "–"
    path = "/v1" + re.sub(r"\A/openai/v1", "", method.path).replace("{id}", "id")
    if method.name.endswith(WEBSOCKET):
        socket = find_socket(path)
        if socket is None:
            return "a WebSocket that the gateway does not relay: refused", "–"
        return "a WebSocket: each response metered by itself", socket.priced
    endpoint = find_endpoint(method.verb, path)
    if endpoint is ADMIN:
        return REFUSED, "–"
    if method.verb != "POST" and endpoint.shows is None:
        return NOTHING, "–"
    if method.verb == "GET":
        return "shows work that was ordered before, and is counted once, when it has ended", "–"
    return _usage(endpoint), endpoint.priced


def _usage(endpoint: Endpoint) -> str:
    reason = "" if endpoint.creates in ("batch", "video") else endpoint.unreported
    if not reason:
        return endpoint.usage + _permission(endpoint)
    what = "JSON without it" if endpoint is OTHER else "what reports none"
    return f"{endpoint.usage}; {what} is counted as unmetered (`{reason}`){_permission(endpoint)}"


def _permission(endpoint: Endpoint) -> str:
    if endpoint.surface is None:
        return ""
    return f'; keys with a budget or a model list need `endpoints = ["{endpoint.surface}"]`'


def page() -> str:
    """The text of docs/sdk-methods.md."""
    text = [HEAD.format(openai=version("openai"), groq=version("groq"))]
    for name, client in (
        ("openai", openai.OpenAI(api_key="none", admin_api_key="none")),
        ("groq", groq.Groq(api_key="none")),
    ):
        found = list(methods(client))
        text.append(f"## {name}: {len(found)} methods\n")
        text += _tables(found)
    return "\n".join(text)


def _tables(found: list[Method]) -> Iterator[str]:
    """One row for the methods of a resource that are treated alike; requests that use nothing by
    their HTTP methods alone.
    """
    rows: dict[tuple[str, str, str], list[Method]] = {}
    for method in found:
        rows.setdefault((method.resource, *_found(method)), []).append(method)
    yield "| methods | requests | metered | priced |"
    yield "| --- | --- | --- | --- |"
    for (resource, metered, priced), alike in rows.items():
        names = ", ".join(f"`{each.name.rpartition('.')[2]}`" for each in alike)
        if metered in (NOTHING, REFUSED):
            requests = dict.fromkeys(f"`{each.verb}`" for each in alike)
        else:
            requests = dict.fromkeys(f"`{each.verb} {each.path}`" for each in alike if each.path)
        yield f"| `{resource}`: {names} | {', '.join(requests)} | {metered} | {priced} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE.relative_to(Path.cwd()), file=sys.stderr)
