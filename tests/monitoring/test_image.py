"""The image: linted, nothing secret in it, and its build steps run as they stand in the Dockerfile.

There is no container engine in a test run. The steps are executed in a directory instead: `/app`
and `/opt/venv` are replaced by paths below it, COPY copies what .dockerignore lets through, RUN
runs in a shell, CMD starts the gateway, HEALTHCHECK asks it. What needs root is left out.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from monitoring.stack import ROOT

from harness import processes
from harness.programs import require

TEXT = (ROOT / "Dockerfile").read_text()
NEEDS_ROOT = ("apt-get", "useradd")
# With its cache, which the tests' own installation has filled: nothing is downloaded or compiled
# twice in a run. An image has no use for a cache.
PIP = f"""#!/bin/sh
for argument; do
    shift
    [ "$argument" = --no-cache-dir ] || set -- "$@" "$argument"
done
exec "{sys.executable}" -m pip "$@"
"""


class Step(NamedTuple):
    stage: int
    kind: str
    arguments: str


def steps() -> list[Step]:
    """The Dockerfile's instructions, continuation lines joined, comments left out."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    found: list[Step] = []
    stage = -1
    for instruction in re.split(r"(?<!\\)\n", "\n".join(lines)):
        kind, _, arguments = instruction.replace("\\\n", " ").strip().partition(" ")
        stage += kind == "FROM"
        if kind:
            found.append(Step(stage, kind, " ".join(arguments.split())))
    return found


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else require("hadolint")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_image_has_an_exact_version_and_the_last_user_is_not_root() -> None:
    bases = [
        s.arguments for s in steps() if s.kind == "FROM" and not s.arguments.startswith("base")
    ]
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+ AS base", bases[0])
    users = [step.arguments for step in steps() if step.kind == "USER"]
    assert users == ["1000:1000"]


def test_the_compiler_stays_in_the_first_stages() -> None:
    last = max(step.stage for step in steps())
    assert "gcc" not in " ".join(step.arguments for step in steps() if step.stage == last)


def allowed(path: str) -> bool:
    """What .dockerignore lets into the build; the last line that matches decides."""
    result = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        parts = path.split("/")
        parents = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if pattern.startswith("**/"):
            hit = any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in parts)
        else:
            hit = any(fnmatch.fnmatch(parent, pattern) for parent in parents)
        if hit:
            result = line.startswith("!")
    return result


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "config/keys.toml",
        "config/.env",
        "data/usage.db",
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "wrapper/__pycache__/app.cpython-311.pyc",
        "docker-compose.yml",
    ],
)
def test_nothing_secret_or_needless_gets_into_the_build(path: str) -> None:
    assert not allowed(path)


def test_every_file_of_config_that_is_read_gets_into_the_build_except_the_keys() -> None:
    loading = (ROOT / "wrapper" / "config" / "loading.py").read_text()
    read = set(re.findall(r'^[A-Z_]+ = "(?:config/)?(\w+\.toml)"$', loading, re.MULTILINE))
    assert read == {"gateway.toml", "keys.toml", "prices.toml", "models.toml"}
    assert {name for name in read if allowed(f"config/{name}")} == read - {"keys.toml"}


class Image(NamedTuple):
    """What the build leaves: where /app and /opt/venv are, and the environment."""

    directory: Path
    environment: dict[str, str]

    def rewritten(self, text: str) -> str:
        return text.replace("/opt/venv", f"{self.directory}/venv").replace(
            "/app", f"{self.directory}/app"
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    require("gcc", "cc")
    directory = tmp_path_factory.mktemp("image")
    made = Image(directory, {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"})
    tools = directory / "tools"  # the base image's python and pip
    tools.mkdir()
    (tools / "python").symlink_to(sys.executable)
    (tools / "pip").write_text(PIP)
    (tools / "pip").chmod(0o755)
    (directory / "app").mkdir()
    for step in steps():
        build(made, step)
    return made


def build(image: Image, step: Step) -> None:
    """Do one instruction."""
    where = image.directory / ("app" if step.stage == max(s.stage for s in steps()) else "build")
    where.mkdir(exist_ok=True)
    if step.kind == "ENV":
        for name, value in (part.split("=", 1) for part in shlex.split(step.arguments)):
            image.environment[name] = image.rewritten(value).replace(
                "$PATH", image.environment["PATH"]
            )
    elif step.kind == "COPY" and "--from=" not in step.arguments:
        *sources, _ = step.arguments.split()
        for source in sources:
            copy(ROOT / source, where)
    elif step.kind == "RUN" and not any(word in step.arguments for word in NEEDS_ROOT):
        path = f"{image.directory / 'tools'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["/bin/sh", "-ec", image.rewritten(step.arguments)],
            cwd=where,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{step.arguments}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def copy(source: Path, where: Path) -> None:
    """COPY as the builder does it: what .dockerignore leaves out is not there."""
    files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    for file in files:
        relative = file.relative_to(ROOT)
        if allowed(str(relative)):
            (where / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, where / relative)


@contextlib.contextmanager
def started(image: Image, directory: Path) -> Iterator[dict[str, str]]:
    """Run CMD as `docker run --env-file .env.example`, and give its environment when HEALTHCHECK
    succeeds.
    """
    (command,) = (json.loads(s.arguments) for s in steps() if s.kind == "CMD")
    port = processes.ReservedPort()
    example = (ROOT / ".env.example").read_text()
    environment = {
        **image.environment,
        **dict(re.findall(r"^([A-Z_]+)=(.*)$", example, re.MULTILINE)),
        "HOST": "127.0.0.1",
        "PORT": str(port.number),
        "WRAPPER_STORE": f"sqlite:///{directory}/usage.db",
        "GROQ_API_KEY": "x",
    }
    program = image.directory / "venv" / "bin" / command[0]
    with (directory / "log").open("wb") as log:
        began = time.monotonic()
        process = processes.start(
            [str(program), *command[1:]],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=image.directory / "app",
        )
    try:
        while health(image, environment, port.number) != 0:
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < began + 30, (directory / "log").read_text()
        yield environment
    finally:
        processes.stop(process)
        port.release()


def health(image: Image, environment: dict[str, str], port: int) -> int:
    """HEALTHCHECK's exit status."""
    (check,) = (s.arguments.partition("CMD ")[2] for s in steps() if s.kind == "HEALTHCHECK")
    command = [part.replace("8080", str(port)) for part in json.loads(check)]
    program = str(image.directory / "venv" / "bin" / command[0])
    done = subprocess.run([program, *command[1:]], env=environment, stderr=subprocess.DEVNULL)
    return done.returncode


@pytest.mark.slow
def test_the_build_steps_make_a_gateway_that_gets_healthy(image: Image, tmp_path: Path) -> None:
    with started(image, tmp_path) as environment:
        assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.slow
def test_the_image_holds_the_runtime_packages_alone_and_all_compiled(image: Image) -> None:
    (packages,) = (image.directory / "venv" / "lib").glob("python3.*/site-packages")
    names = {path.name.partition("-")[0].lower() for path in packages.glob("*.dist-info")}
    assert {"flask", "gevent", "gunicorn", "gunicorn_h1c", "requests"} <= names
    assert not {"pip", "pytest", "mypy", "setuptools"} & names
    uncompiled = [
        path
        for path in (image.directory / "app" / "wrapper").rglob("*.py")
        if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
    ]
    assert uncompiled == []


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_locked_package_has_a_wheel_for_the_images_python(
    machine: str, tmp_path: Path
) -> None:
    """The image's Python is newer than the oldest one supported; its packages must exist too."""
    (version,) = re.findall(r"python:(3\.\d+)", TEXT)
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run(
        [str(uv) if uv.exists() else require("uv"), "pip", "install", "--quiet", "--dry-run",
         "--python-version", version, "--python-platform", f"{machine}-manylinux_2_28",
         "--only-binary", ":all:", "--require-hashes", "--target", str(tmp_path),
         "--requirement", str(ROOT / "requirements.txt")],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
