"""Imports point strictly to a lower rank, and each library has its room.

The ranks are the order of a request read backwards: what a module may know of. A module that
is not in the table fails the test: decide where it stands before others lean on it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "wrapper"

RANKS = {
    "errors": 0,
    "config": 1,
    "sse": 1,
    "jsonbytes": 1,
    "multipart": 1,
    "http1": 1,
    "watch": 1,
    "keys": 2,
    "keyfile": 2,
    "routing": 2,
    "usage": 2,
    "call": 3,
    "exchange": 3,
    "store": 3,
    "access": 4,
    "upstream": 4,
    "telemetry": 4,
    "gateway": 5,
    "relay": 5,
    "refusal": 6,
    "visit": 6,
    "api": 7,
    "models": 7,
    "ops": 7,
    "docs": 7,
    "app": 8,
    "commands": 8,
    "launch": 9,
    "__main__": 9,
}
# Stands apart: it knows nothing of the gateway, and only the command line may start it.
APART = "simulator"

# library → the modules that may import it
ROOMS = {
    "flask": {"visit", "api", "models", "ops", "docs", "app"},
    "werkzeug": {"visit", "docs", "app"},
    "flask_cors": {"app"},
    "gevent": {"watch", APART},
    "requests": {"upstream"},
    "prometheus_client": {"telemetry"},
    "prometheus_flask_exporter": {"telemetry"},
    "brotli": {"usage", APART},
    "dotenv": {"config"},
}


def module_of(path: Path) -> str:
    """`wrapper/store/base.py` → `store`, `wrapper/relay.py` → `relay`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":
            yield module_of(path), path


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names and lines of all imports, also those inside of functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def own_imports() -> Iterator[tuple[str, str, str]]:
    """(module, imported module of the package, where)."""
    for module, path in sources():
        for name, line in imports(path):
            head, _, rest = name.partition(".")
            if head == "wrapper" and rest.split(".")[0] != "__version__":
                yield module, rest.split(".")[0], f"{path.relative_to(ROOT)}:{line}"


def test_every_module_has_a_rank() -> None:
    modules = {module for module, _ in sources()}
    assert modules - RANKS.keys() == {APART}


def test_imports_point_strictly_to_a_lower_rank() -> None:
    wrong = [
        f"{where}: {module} (rank {RANKS[module]}) imports {other} (rank {RANKS.get(other)})"
        for module, other, where in own_imports()
        if module != other
        and APART not in (module, other)
        and RANKS.get(other, 99) >= RANKS[module]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_simulator_and_the_gateway_do_not_know_each_other() -> None:
    wrong = [
        f"{where}: {module} imports {other}"
        for module, other, where in own_imports()
        if (module == APART) != (other == APART)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_is_imported_in_its_room_alone(library: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for module, path in sources()
        for name, line in imports(path)
        if name.split(".")[0] == library and module not in ROOMS[library]
    ]
    assert not wrong, "\n".join(wrong)


def test_below_rank_four_nothing_needs_the_network_or_the_app() -> None:
    """`watch` is the named exception: it is where a client's leaving is noticed."""
    libraries = {"flask", "requests", "prometheus_client"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for module, path in sources()
        if RANKS.get(module, 9) < 4
        for name, line in imports(path)
        if name.split(".")[0] in libraries
    ]
    assert not wrong, "\n".join(wrong)
