"""`demo-key`: the first key of a first start, with a curl line that works when pasted.

`make run` calls it. Where there is a keys file it makes none: whoever has keys knows them.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wrapper.commands.keys import create_key
from wrapper.config import ApiKey, Listen, Settings, keys_path, listen, load
from wrapper.errors import ModelNotFound
from wrapper.routing import Routes

if TYPE_CHECKING:
    from wrapper.commands import Subparsers

NAME = "demo"

_MODELS = {"groq": "llama-3.1-8b-instant", "openai": "gpt-4o-mini"}
"""A cheap model of each provider that the shipped configuration has."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds `demo-key`."""
    parser = subparsers.add_parser(
        "demo-key",
        help="on the first start: make the key 'demo' and print a curl line",
        description="Makes the key 'demo' when there is no keys file, and prints its secret"
        " once, with a curl line to try it.",
    )
    parser.set_defaults(run=run)


def run(_args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Makes the key, or says where the keys are. Raises `ConfigError`."""
    settings, where = load(environ), listen(environ)
    path = keys_path(environ)
    if os.path.lexists(path):
        print(f"keys: {path} (python -m wrapper keys create NAME makes another)")
        return 0
    secret = create_key(environ, ApiKey(NAME, ""))
    if not settings.usable:
        print("No provider has a key: the simulated provider answers (labelled as such).")
        print("Put GROQ_API_KEY or OPENAI_API_KEY into .env for real answers.")
    print(f"The key '{NAME}', shown only now: {secret}")
    print(f"Try it in another terminal:\n\n{curl(where, secret, model(settings))}\n")
    return 0


def model(settings: Settings) -> str:
    """A model that some usable provider answers for, the shipped providers' first."""
    if not settings.usable:
        return _MODELS["groq"]
    routes = Routes(settings)
    known = [name for provider, name in _MODELS.items() if provider in settings.usable]
    names = [*known, *routes.exact_names]
    return next((name for name in names if _answered(name, routes, settings)), "MODEL")


def _answered(name: str, routes: Routes, settings: Settings) -> bool:
    try:
        targets = routes.for_model(name)
    except ModelNotFound:
        return False
    return any(target.provider in settings.usable for target in targets)


def curl(where: Listen, secret: str, name: str) -> str:
    """One line that can be pasted into a shell."""
    address = Listen(_reachable(where.host), where.port).bind
    body = json.dumps(
        {
            "model": name,
            "stream": True,
            "messages": [{"role": "user", "content": "Say hello in five languages."}],
        }
    )
    quoted = body.replace("'", "'\\''")
    return (
        f"curl -N 'http://{address}/v1/chat/completions'"
        f" -H 'Authorization: Bearer {secret}'"
        f" -H 'Content-Type: application/json' -d '{quoted}'"
    )


def _reachable(host: str) -> str:
    """Where a server that listens on every interface is found from here."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
