"""`demo-key`: makes the first key and prints a curl line that works when pasted.

`make run` starts the gateway with it: then the curl line is printed once the gateway listens. It
makes no key where there is a keys file.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from wrapper.cli import CommandError
from wrapper.cli.key_create import create_key
from wrapper.cli.serve import become
from wrapper.config import ApiKey, Listen, Settings, keys_path, listen, load
from wrapper.config.example_models import GROQ_SMALL, OPENAI_SMALL
from wrapper.config.loading import HINT_FD
from wrapper.errors import ModelNotFound
from wrapper.routing import Routes

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

NAME = "demo"

_MODELS = {"groq": GROQ_SMALL, "openai": OPENAI_SMALL}
"""A cheap model of each provider in the shipped configuration."""

_SIMULATOR = "http://127.0.0.1"
"""`make run` starts a simulator where no provider has a key; its port is not known yet."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds `demo-key`."""
    parser = subparsers.add_parser(
        "demo-key",
        help="on the first start: make the key 'demo' and print a curl line",
        description="Makes the key 'demo' when there is no keys file, and prints its secret"
        " once, with a curl line to try it.",
    )
    parser.add_argument(
        "--check-port",
        action="store_true",
        help="fail if another program listens on HOST:PORT",
    )
    parser.add_argument(
        "--then",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="COMMAND",
        help="become this command, which starts the gateway and prints the rest when it listens",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Makes the key, or prints where the keys are. Raises `ConfigError` and `CommandError`."""
    settings, where = load(environ, _SIMULATOR), listen(environ)
    if args.check_port:
        _check_address(where)
    path = keys_path(environ)
    if os.path.lexists(path):
        _print_demo_note(settings)
        print(f"The keys are in {path}, without their secrets. To make another one:")
        print(f"{_python()} -m wrapper keys create NAME")
        hint = f"To try a key in the browser: http://{_address(where)}/docs\n\n"
    else:
        secret = create_key(environ, ApiKey(NAME, ""))
        _print_demo_note(settings)
        print(f"The key '{NAME}', shown only now: {secret}")
        hint = (
            f"Try it in another terminal:\n\n{curl(where, secret, model(settings))}\n\n"
            f"or in the browser, with the key: http://{_address(where)}/docs\n\n"
        )
    if args.then:
        _become(args.then, hint)
    print(hint, end="")
    return 0


def _become(command: list[str], hint: str) -> NoReturn:
    """Replace this process by the gateway, which prints `hint`: in a pipe, as it has a secret."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    os.write(writing, hint.encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    try:
        become(command, **{HINT_FD: str(reading)})
    finally:
        os.close(reading)


def _print_demo_note(settings: Settings) -> None:
    if settings.stand_in:
        print("No provider has a key: a simulated provider responds (its responses say so).")
        print("Put GROQ_API_KEY or OPENAI_API_KEY into .env for real responses.")


def _check_address(where: Listen) -> None:
    """Raises CommandError when the address cannot be bound."""
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"another program listens on {where.bind}: set PORT to a free port, such as"
                " PORT=8090"
            ) from None
        raise CommandError(f"cannot listen on {where.bind}: {error.strerror}") from None


def _python() -> str:
    """The interpreter, relative to the current directory where it is inside of it."""
    inside = os.path.relpath(sys.executable)
    return sys.executable if inside.startswith(os.pardir) else inside


def model(settings: Settings) -> str:
    """A model that a usable provider serves, preferably one of the shipped configuration."""
    routes, usable = Routes(settings), settings.usable
    known = [name for provider, name in _MODELS.items() if settings.stand_in or provider in usable]
    names = [*known, *routes.exact_names]
    return next((name for name in names if _is_served(name, routes, settings)), "MODEL")


def _is_served(name: str, routes: Routes, settings: Settings) -> bool:
    try:
        targets = routes.for_model(name)
    except ModelNotFound:
        return False
    return any(target.provider in settings.usable for target in targets)


def curl(where: Listen, secret: str, name: str) -> str:
    """One line that can be pasted into a shell."""
    body = json.dumps(
        {
            "model": name,
            "stream": True,
            "messages": [{"role": "user", "content": "Say hello in five languages."}],
        }
    )
    quoted = body.replace("'", "'\\''")
    return (
        f"curl -N 'http://{_address(where)}/v1/chat/completions'"
        f" -H 'Authorization: Bearer {secret}'"
        f" -H 'Content-Type: application/json' -d '{quoted}'"
    )


def _address(where: Listen) -> str:
    return Listen(_reachable(where.host), where.port).bind


def _reachable(host: str) -> str:
    """The loopback address in place of the one that means every interface."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
