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
    "steps": 0,
    "config": 1,
    "formats": 1,
    "cancellation": 1,
    "capacity": 1,
    "child": 1,
    "endpoints": 1,
    "output": 1,
    "auth": 2,
    "routing": 2,
    "metering": 2,
    "upstream": 3,
    "record": 3,
    "store": 4,
    "telemetry": 5,
    "admission": 5,
    "runtime": 6,
    "proxy": 7,
    "blueprints": 8,
    "app": 9,
    "cli": 9,
    "server": 10,
    "__main__": 10,
}
# Stands apart: it knows nothing of the gateway, and only the command line may start it.
APART = "simulator"

# library → the modules that may import it
ROOMS = {
    "flask": {"app", "blueprints", "proxy", "runtime"},
    "werkzeug": {"app", "blueprints", "proxy"},
    "flask_cors": {"app"},
    "gevent": {"cancellation", "server", APART},
    "requests": {"upstream"},
    "prometheus_client": {"telemetry"},
    "prometheus_flask_exporter": {"telemetry"},
    "brotli": {"metering", APART},
    "dotenv": {"config"},
    "sqlite3": {"store"},
    "redis": {"store"},
    "wsproto": {"formats", APART},
    "tomlkit": {"config"},
    "yaml": {"blueprints", "cli"},
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


def test_below_rank_three_nothing_needs_the_network_or_the_app() -> None:
    """`cancellation` is the named exception: it is where a client's leaving is noticed."""
    libraries = {"flask", "requests", "prometheus_client"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for module, path in sources()
        if RANKS.get(module, 9) < 3
        for name, line in imports(path)
        if name.split(".")[0] in libraries
    ]
    assert not wrong, "\n".join(wrong)
