"""The document is a valid one, says what the URL map says, and its examples are true."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from harness.gateway import Gateway
from harness.poll import PATIENCE
from wrapper import errors
from wrapper.blueprints.openapi import document, error_kinds
from wrapper.endpoints import ENDPOINTS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "wrapper" / "blueprints" / "openapi" / "openapi.yaml"
VENDOR = SOURCE.parent / "static" / "vendor"
METHODS = {"get", "put", "post", "delete", "options", "head", "patch"}
DOCUMENT = document()
KINDS = error_kinds()
# The gateway's own errors, by code.
ERRORS = {
    code: example["value"]
    for code, example in DOCUMENT["components"]["examples"].items()
    if code != "provider_error"
}

Operation = dict[str, Any]

# Reads (method, path) pairs and writes the URL map, and which rule takes each pair.
URL_MAP = """\
import json, os, sys
from gevent import monkey
monkey.patch_all()
from wrapper.app import create_app
from wrapper.config import load
from wrapper.metering.pricing import Prices

app = create_app(load(os.environ), Prices({}, {}))
rules = [[rule.rule, sorted(rule.methods)] for rule in app.url_map.iter_rules()]
match = app.url_map.bind("localhost").match
taken = [match(path, method, return_rule=True)[0].rule for method, path in json.load(sys.stdin)]
served = len(app.test_client().get("/openapi.json").get_data())
found = {"rules": rules, "taken": taken, "served": served, "parser": "yaml" in sys.modules}
json.dump(found, sys.stdout)
"""


def operations() -> Iterator[tuple[str, str, Operation]]:
    """(path, method, operation), all of them."""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS & item.keys():
            yield path, method, item[method]


def resolve(thing: Any) -> Any:
    """What a reference stands for."""
    while "$ref" in thing:
        found: Any = DOCUMENT
        for name in thing["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        thing = found
    return thing


def schema(of: Any) -> Draft202012Validator:
    """A validator for a schema of the document."""
    return Draft202012Validator({**of, "components": DOCUMENT["components"]})


def sample(path: str) -> str:
    """The path with something in place of each parameter."""
    return re.sub(r"\{(\w+)\}", r"some-\1", path)


def pattern(path: str) -> str:
    """Flask's rule or OpenAPI's path without the parameters' names."""
    return re.sub(r"<[^>]*>|\{[^}]*\}", "{}", path)


@pytest.fixture(scope="module")
def url_map(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("url-map")
    asked = [(method.upper(), sample(path)) for path, method, _ in operations()]
    done = subprocess.run(
        [sys.executable, "-c", URL_MAP],
        cwd=ROOT,
        env={
            **os.environ,
            "GROQ_API_KEY": "none",
            "PROMETHEUS_MULTIPROC_DIR": str(directory),
            "WRAPPER_CONFIG": str(ROOT / "config" / "gateway.toml"),
            "WRAPPER_KEYS": str(directory / "keys.toml"),
            "WRAPPER_STORE": f"sqlite:///{directory / 'usage.db'}",
        },
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])  # after a request line
    found["asked"] = asked
    return found


def test_no_key_is_given_twice_in_the_source() -> None:
    """The parser takes the last one silently."""

    def mappings(node: yaml.Node) -> Iterator[yaml.MappingNode]:
        if isinstance(node, yaml.MappingNode):
            yield node
            for _, value in node.value:
                yield from mappings(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                yield from mappings(value)

    for mapping in mappings(yaml.compose(SOURCE.read_text(), yaml.SafeLoader)):
        keys = [key.value for key, _ in mapping.value]
        assert len(keys) == len(set(keys)), f"{mapping.start_mark}: {keys}"


def test_it_is_a_valid_openapi_3_1_document() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_every_rule_of_the_application_is_documented(url_map: dict[str, Any]) -> None:
    documented = {(pattern(path), method.upper()) for path, method, _ in operations()}
    served = {
        (pattern(rule), method)
        for rule, methods in url_map["rules"]
        # Flask adds these two to every GET by itself.
        for method in set(methods) - {"HEAD", "OPTIONS"}
    }
    assert served <= documented


def test_every_documented_operation_is_served(url_map: dict[str, Any]) -> None:
    rules = {pattern(rule) for rule, _ in url_map["rules"]}
    for (method, path), rule in zip(url_map["asked"], url_map["taken"], strict=True):
        assert pattern(rule) in rules
        # The unified API's paths must not fall through to the passthrough, nor the reverse.
        own = {pattern(p) for p, m, _ in operations() if sample(p) == path and m.upper() == method}
        assert pattern(rule) in own | {"/v1/{}"}, f"{method} {path} is taken by {rule}"


def test_every_error_of_the_gateway_has_an_example() -> None:
    def leaves(kind: type[errors.GatewayError]) -> Iterator[type[errors.GatewayError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from leaves(child)

    # 499 is for the log: nobody is there to read it.
    codes = {kind.code for kind in leaves(errors.GatewayError) if kind.status != 499}
    assert codes == set(ERRORS)
    for code, value in ERRORS.items():
        kind, sample = KINDS[code], value["error"]
        assert kind.code == code
        body = errors.render(sample["message"], kind.type, sample["param"], code)
        assert value == json.loads(body)
        schema(DOCUMENT["components"]["schemas"]["Error"]).validate(value)


def test_errors_with_the_same_code_have_the_same_type_and_status() -> None:
    served = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in served:
        # Classes that only group others inherit the code of a bug and are never raised themselves.
        if issubclass(kind, errors.GatewayError) and "code" in vars(kind):
            assert (kind.type, kind.status) == (KINDS[kind.code].type, KINDS[kind.code].status)


def test_every_error_is_attached_under_its_own_status() -> None:
    attached = set()
    for _, _, operation in operations():
        for status, reference in operation["responses"].items():
            content = resolve(reference).get("content", {}).get("application/json", {})
            for code, example in content.get("examples", {}).items():
                if code in ERRORS:
                    attached.add(code)
                    assert str(KINDS[code].status) == status
                    assert resolve(example)["value"]["error"]["code"] == code
    assert attached == set(ERRORS) - {"upstream_interrupted"}
    for path in ("/v1/chat/completions", "/chat/completions"):
        chat = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
        stream = chat["text/event-stream"]["examples"]["upstream_interrupted"]["value"]
        last = stream.removesuffix("\n\n").rpartition("\n\n")[2]
        assert json.loads(last.removeprefix("data: ")) == ERRORS["upstream_interrupted"]


def test_a_worker_does_not_load_the_parser_of_the_document(url_map: dict[str, Any]) -> None:
    """Neither at the start nor for a request: the others would wait for a tenth of a second."""
    assert url_map["served"] > 10_000
    assert url_map["parser"] is False


def test_every_example_fits_its_schema() -> None:
    def contents() -> Iterator[dict[str, Any]]:
        for _, _, operation in operations():
            yield from resolve(operation.get("requestBody", {})).get("content", {}).values()
            for response in operation["responses"].values():
                yield from resolve(response).get("content", {}).values()

    checked = 0
    for content in contents():
        for example in content.get("examples", {}).values():
            schema(content["schema"]).validate(resolve(example)["value"])
            checked += 1
    assert checked > 100


def test_every_operation_has_a_name_of_its_own_and_a_tag_of_the_list() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    used = {tag for _, _, operation in operations() for tag in operation["tags"]}
    assert used == tags


def test_a_form_on_the_page_is_filled_with_values_that_can_be_sent() -> None:
    fields = {
        (path, name): field
        for path, _, operation in operations()
        for name, field in operation.get("requestBody", {})
        .get("content", {})
        .get("multipart/form-data", {})
        .get("schema", {})
        .get("properties", {})
        .items()
    }
    assert fields
    for where, field in fields.items():
        assert field.keys() & {"default", "examples"} or field.get("format") == "binary", where


JSON_CALLS = [
    pytest.param(path, example["value"], id=f"{path.removeprefix('/v1')} {name}")
    for path, method, operation in operations()
    if method == "post" and "{" not in path
    for name, example in operation.get("requestBody", {})
    .get("content", {})
    .get("application/json", {})
    .get("examples", {})
    .items()
]


@pytest.mark.parametrize(("path", "body"), JSON_CALLS)
def test_every_example_request_is_answered_as_described(
    gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    described = DOCUMENT["paths"][path]["post"]["responses"]["200"]
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    headers = {
        "Authorization": f"Bearer {gateway.secrets['web-app']}",
        "Content-Type": "application/json",
    }
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    assert response.status == 200, answer
    kind = (response.getheader("Content-Type") or "").partition(";")[0]
    assert kind in described["content"]
    assert (kind == "text/event-stream") is bool(body.get("stream"))
    if kind == "application/json":
        schema(described["content"][kind]["schema"]).validate(json.loads(answer))
    for name in ("x-request-id", "x-wrapper-provider", "Server-Timing"):
        assert name in described["headers"]
        assert response.getheader(name)


def test_the_usage_that_is_answered_is_the_usage_that_is_described(gateway: Gateway) -> None:
    described = DOCUMENT["paths"]["/usage"]["get"]["responses"]["200"]["content"]
    headers = {"Authorization": f"Bearer {gateway.secrets['web-app']}"}
    status, body = gateway.get("/usage?since=7d", headers=headers)
    assert status == 200
    answer = json.loads(body)
    of = resolve(described["application/json"]["schema"])
    schema(of).validate(answer)
    assert answer.keys() == of["properties"].keys()
    assert answer["limits"].keys() == of["properties"]["limits"]["properties"].keys()


def test_the_document_is_served_and_not_sent_twice(gateway: Gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    connection.request("GET", "/openapi.json")
    first = connection.getresponse()
    assert json.loads(first.read()) == DOCUMENT
    tag = first.getheader("ETag")
    assert tag
    connection.request("GET", "/openapi.json", headers={"If-None-Match": tag})
    second = connection.getresponse()
    assert (second.status, second.read()) == (304, b"")
    connection.close()


def test_the_page_lets_the_browser_contact_no_other_host(gateway: Gateway) -> None:
    for path in ("/docs", "/swagger/index.html"):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        connection.request("GET", path)
        response = connection.getresponse()
        page = response.read().decode()
        connection.close()
        assert response.status == 200
        policy = response.getheader("Content-Security-Policy") or ""
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "://" not in page


def test_the_files_of_the_page_are_served_and_no_others(gateway: Gateway) -> None:
    assert gateway.get("/docs/swagger-ui-bundle.js") == (
        200,
        (VENDOR / "swagger-ui-bundle.js").read_bytes(),
    )
    for name in ("README.md", "LICENSE", "index.html", "__init__.py", "..", "%2e%2e"):
        assert gateway.get(f"/docs/{name}")[0] in (400, 404)


def test_swagger_ui_is_the_one_that_its_note_names() -> None:
    note = (VENDOR / "README.md").read_text()
    sums = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", note, re.MULTILINE))
    assert set(sums) == {"swagger-ui-bundle.js", "swagger-ui.css"}
    for name, expected in sums.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == expected


def test_each_request_of_openais_api_says_how_it_is_metered() -> None:
    posts = {
        path: item["post"]["x-usage"]
        for path, item in document()["paths"].items()
        if "x-usage" in item.get("post", {})
    }
    assert posts["/v1/chat/completions"] == "metered"
    metered = {endpoint.path for endpoint in ENDPOINTS if endpoint.metered}
    # Other dialects' requests, and those that the document describes as any other path.
    undescribed = ("/api/", "/messages", "/remix", "/rerank", "/responses/compact", "/videos")
    undescribed += ("/decisions",)
    assert {path for path in metered if not path.startswith(undescribed)} == {
        path.removeprefix("/v1") for path, how in posts.items() if how.split(";")[0] == "metered"
    }
