"""gateway.toml: the server, its providers, the routes from models to providers, prices.

Invariants: a mistake is found when the file is read and not at the first request. One mistake is
one problem: a route to a provider whose table has a mistake is not a second one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path

from wrapper.config.fields import SecretReader, Table
from wrapper.config.problems import quote, suggest
from wrapper.config.provider import read_provider
from wrapper.config.settings import (
    DEFAULT_OUTPUT_TOKENS,
    MAX_IN_FLIGHT,
    MAX_OUTPUT_TOKENS,
    MAX_TAG,
    MAX_TAG_LABELS,
    Price,
    Provider,
    Route,
    Server,
    Tags,
    Target,
    is_broken_glob,
)

RESERVED = frozenset(
    [
        "metrics",
        "healthz",
        "readyz",
        "docs",
        "swagger",
        "usage",
        "v1",
        "chat",
        "openapi.json",
        "static",
        "favicon.ico",
        "robots.txt",
        "models",
    ]
)
"""First segments of the gateway's own paths: no provider may have such a name."""

_PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_SECRET_HEADERS = frozenset(("authorization", "cookie", "api-key", "x-api-key", "x-goog-api-key"))
_MODEL_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Gateway:
    """What gateway.toml says."""

    server: Server
    providers: dict[str, Provider]
    routes: tuple[Route, ...]
    prices: dict[str, Price]
    tags: Tags | None = None


def read_gateway(top: Table, secrets: SecretReader, watch: list[Path]) -> Gateway:
    """Reads the whole file. Problems go to `top.problems`, CA files to `watch`."""
    server = _server(top.table("server"), secrets)
    names: set[str] = set()
    providers: dict[str, Provider] = {}
    for name, table in top.named_tables("providers"):
        names.add(name)
        _check_name(name, table)
        provider = read_provider(name, table, secrets)
        if provider is not None:
            providers[name] = provider
            if provider.ca_file is not None:
                watch.append(provider.ca_file)
    if top.data.get("providers") in (None, {}):
        top.problem("providers", "there is no provider", "add a table such as [providers.groq]")
    routes = _routes(top, names)
    prices = {model: _price(table) for model, table in top.named_tables("prices")}
    tags = _tags(top.table("tags"))
    top.close()
    return Gateway(server, providers, routes, prices, tags)


def _tags(table: Table | None) -> Tags | None:
    if table is None:
        return None
    header = table.text("header", None, wanted='a name such as "x-wrapper-tag"')
    metadata = table.text("metadata", None, wanted='the name of a member, such as "team"')
    user = table.flag("user", False)
    labels = _tag_labels(table)
    if not table.data:
        table.problem("", "says nothing", 'write header = "x-wrapper-tag"')
    if header is not None and not (header.isascii() and header.replace("-", "a").isalnum()):
        table.problem("header", f"is {quote(header)}", 'write a name such as "x-wrapper-tag"')
    elif header is not None and header.lower() in _SECRET_HEADERS:
        table.problem("header", "holds a credential", 'write "x-wrapper-tag"')
    table.close()
    name = None if header is None else "HTTP_" + header.upper().replace("-", "_")
    return Tags(name, metadata, user, labels)


def _tag_labels(table: Table) -> frozenset[str]:
    labels = table.texts("labels", (), wanted='an array of tags such as "team-a"')
    if not labels:
        return frozenset()
    if not any(table.data.get(key) for key in ("header", "metadata", "user")):
        hint = 'say where a request has its tag, such as header = "x-wrapper-tag"'
        table.problem("labels", "lists tags, and no request has one", hint)
    if len(labels) > MAX_TAG_LABELS:
        table.problem("labels", f"has {len(labels)} tags", f"list {MAX_TAG_LABELS} or fewer")
    for label in labels:
        if len(label) > MAX_TAG or not label.isprintable() or label != label.strip():
            hint = f"write up to {MAX_TAG} printable characters, without spaces around them"
            table.problem("labels", f"{quote(label)} is no tag", hint)
    return frozenset(labels)


def _check_name(name: str, table: Table) -> None:
    if name in RESERVED:
        table.problem("", "is a path of the gateway itself", "choose another name")
    elif not _PROVIDER_NAME.fullmatch(name):
        wanted = "use lower-case letters, digits, - and _, starting with a letter or digit"
        table.problem("", "is not a name that a provider can have", wanted)


def _server(table: Table | None, secrets: SecretReader) -> Server:
    if table is None:
        return Server()
    token, why = secrets.read(table, "metrics_token")
    named = table.get("metrics_token")
    if why and secrets.names_file(named):
        # An unset variable means no token; a file that is named is expected to be there.
        table.problem("metrics_token", why, "without it /metrics would be open to everyone")
    server = Server(
        root_path=table.text("root_path", "", pattern=_ROOT_PATH, wanted='a path such as "/llm"'),
        cors_origins=_origins(table),
        max_body_bytes=table.whole("max_body_bytes", 26_214_400, low=1024),
        max_upload_bytes=table.whole("max_upload_bytes", 536_870_912, low=1024),
        metrics_token=token,
        metrics_token_problem=why,
        body_timeout=table.seconds("body_timeout", 30.0),
        max_in_flight=table.whole("max_in_flight", MAX_IN_FLIGHT, high=MAX_IN_FLIGHT),
        max_in_flight_unauthenticated=table.whole(
            "max_in_flight_unauthenticated", 90, high=MAX_IN_FLIGHT
        ),
        body_memory_bytes=table.whole("body_memory_bytes", 268_435_456, low=1 << 20),
        upload_disk_bytes=table.whole("upload_disk_bytes", 4_294_967_296, low=1 << 20),
        metering=table.flag("metering", True),
        default_output_tokens=table.whole(
            "default_output_tokens", DEFAULT_OUTPUT_TOKENS, high=MAX_OUTPUT_TOKENS
        ),
        deferred_poll=table.seconds("deferred_poll", 10.0),
    )
    table.close()
    return server


def _origins(table: Table) -> tuple[str, ...]:
    """Origins are compared, never matched as patterns."""
    wanted = '"*" alone, or origins such as "https://app.example.com"'
    if table.data.get("cors_origins") == []:
        table.get("cors_origins")
        return ()  # no browser may call
    origins = table.texts("cors_origins", ("*",), wanted=wanted)
    for origin in origins:
        if origin == "*" and len(origins) > 1:
            table.problem("cors_origins", '"*" already allows every origin', f"write {wanted}")
        elif origin != "*" and not _ORIGIN.fullmatch(origin):
            table.problem("cors_origins", f"{quote(origin)} is no origin", f"write {wanted}")
    return origins


def _routes(top: Table, providers: Collection[str]) -> tuple[Route, ...]:
    routes: list[Route] = []
    for table in top.tables("routes"):
        model = table.text("model", None, wanted='a model name or a glob such as "gpt-*"')
        if model is None and table.data.get("model") is None:
            table.problem("model", "is missing", 'write a name or a glob such as "gpt-*"')
        if model is not None:
            _check_model(model, routes, table)
        if table.get("targets") is None:
            table.problem("targets", "is missing", 'write targets = ["provider"]')
        wanted = 'an array of "provider" or "provider:model"'
        texts = table.texts("targets", (), wanted=wanted)
        targets = tuple(_target(text, table, providers) for text in texts)
        table.close()
        routes.append(Route(model or "", targets))
    return tuple(routes)


def _check_model(model: str, before: list[Route], table: Table) -> None:
    if not model.isprintable() or len(model) > _MODEL_LENGTH or model != model.strip():
        table.problem("model", f"{quote(model)} can be no model's name", "write a printable name")
        return
    if is_broken_glob(model):
        table.problem("model", f"{quote(model)} has a bracket that is not closed", "close it")
        return
    exact = Route(model, ()).exact
    for index, route in enumerate(before):
        taken = route.model == model or (route.model and not route.model.strip("*"))
        if taken or (exact and route.model and fnmatchcase(model, route.model)):
            table.problem(
                "model",
                f"is never reached: routes[{index}] {quote(route.model)} already takes"
                f" {quote(model)}",
                "put the more specific route first, or remove one",
            )
            return


def _target(text: str, table: Table, providers: Collection[str]) -> Target:
    """`provider` or `provider:model`; a model's name may itself hold `:` and `/`."""
    provider, colon, model = text.partition(":")
    if provider not in providers:
        message = f"{quote(text)}: there is no provider {quote(provider)}"
        table.problem("targets", message, suggest(provider, providers))
    elif colon and (not model.strip() or not model.isprintable() or len(model) > _MODEL_LENGTH):
        table.problem("targets", f"{quote(text)} names no model", 'write "provider:model"')
    return Target(provider, model if colon else None)


def _price(table: Table) -> Price:
    input_, output = (table.number(key, None, high="1e6") for key in ("input", "output"))
    cached = table.number("cached_input", input_, high="1e6")
    for key in ("input", "output"):
        if table.data.get(key) is None:
            table.problem(key, "is missing", "write USD per million tokens, 0 if it is free")
    table.close()
    zero = Decimal(0)  # for a missing price, which is a problem
    return Price(input_ or zero, cached or zero, output or zero)
