"""New connections: every address gets its chance within one budget; the system's certificates."""

from __future__ import annotations

import itertools
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import certifi
import pytest

from harness import programs
from harness.poll import PATIENCE
from harness.processes import ReservedPort
from harness.raw import full_listener
from wrapper import errors
from wrapper.config import Provider
from wrapper.upstream import Upstream, connect

INET = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)


@pytest.fixture
def ports() -> Iterator[dict[str, int]]:
    """A listener that swallows connections, a port that refuses them, one that accepts."""
    refusing = ReservedPort()
    with ExitStack() as held:
        held.callback(refusing.release)
        good = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield {
            "swallows": held.enter_context(full_listener()),
            "refuses": refusing.number,
            "good": good.getsockname()[1],
        }


def addresses(ports: dict[str, int], *kinds: str) -> list[connect.Address]:
    return [(*INET, ("127.0.0.1", ports[kind])) for kind in kinds]


@pytest.mark.parametrize("kinds", list(itertools.permutations(["swallows", "refuses", "good"])))
def test_one_good_address_is_enough_wherever_it_stands(
    ports: dict[str, int], kinds: tuple[str, ...]
) -> None:
    began = time.monotonic()
    with connect.connect(addresses(ports, *kinds), 5 * PATIENCE) as sock:
        assert sock.getpeername()[1] == ports["good"]
    assert time.monotonic() - began < PATIENCE  # and not the time of one dead address


def test_an_address_that_the_machine_cannot_use_is_passed_over(ports: dict[str, int]) -> None:
    nowhere = (socket.AF_INET6, socket.SOCK_STREAM, 0, ("100::1", 9, 0, 0))
    unknown = (-5, socket.SOCK_STREAM, 0, ("127.0.0.1", 9))
    found = [unknown, nowhere, *addresses(ports, "good")]
    with connect.connect(found, 30) as sock:
        assert sock.getpeername()[1] == ports["good"]


def test_all_addresses_share_one_budget(ports: dict[str, int]) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        connect.connect(addresses(ports, *["swallows"] * 1000), 0.5)
    assert time.monotonic() - began < PATIENCE  # 250 s, if each had its quarter of a second


def test_where_every_address_refuses_the_error_says_so_at_once(ports: dict[str, int]) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect.connect(addresses(ports, "refuses", "refuses"), 30)
    with pytest.raises(OSError, match="no address"):
        connect.connect([], 30)


def test_an_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert connect.Name("127.0.0.1", 80).addresses() == [(*INET, ("127.0.0.1", 80))]
    (six,) = connect.Name("::1", 443).addresses()
    assert (six[0], six[3]) == (socket.AF_INET6, ("::1", 443))


def test_many_connections_look_a_name_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Semaphore(0), threading.Event()

    def look_up(*_: object, **__: object) -> list[tuple[object, ...]]:
        asked.release()
        assert answer.wait(PATIENCE)
        return [(*INET, "", ("127.0.0.1", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    name = connect.Name("llm.example", 443)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(name.addresses) for _ in range(8)]
        assert asked.acquire(timeout=PATIENCE)
        answer.set()
        assert [each.result(PATIENCE) for each in found] == [[(*INET, ("127.0.0.1", 443))]] * 8
    assert name.addresses() == [(*INET, ("127.0.0.1", 443))]
    monkeypatch.setattr(connect, "NAME_SECONDS", 0.0)
    name.addresses()
    assert asked.acquire(timeout=PATIENCE)  # what is known for longer is asked for again


def test_a_name_that_was_not_found_is_looked_up_by_the_next_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([socket.gaierror("try again"), [(*INET, "", ("127.0.0.1", 443))]])

    def look_up(*_: object, **__: object) -> object:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    name = connect.Name("llm.example", 443)
    with pytest.raises(socket.gaierror, match="try again"):
        name.addresses()
    assert name.addresses() == [(*INET, ("127.0.0.1", 443))]


def test_a_connection_that_stands_is_taken_however_late_it_is_looked_at(
    ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> None:
        """Says after the time that nothing has happened, as in a worker that was busy."""

    monkeypatch.setattr(connect, "wait_for_writable", late)
    with connect.connect(addresses(ports, "good"), 30) as sock:
        assert sock.getpeername()[1] == ports["good"]


def test_the_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(family, 1, 6, "", (str(i), 443)) for i, family in enumerate([six, six, six, four])]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    order = [family for family, *_ in connect.addresses("any", 443)]
    assert order == [six, four, six, six]


def test_a_provider_whose_first_address_swallows_connections_is_reached(
    ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(*INET, "", address) for *_, address in addresses(ports, "swallows", "good")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    upstream = Upstream(Provider("two", "http://two.test/v1", first_byte_timeout=0.1))
    with pytest.raises(errors.UpstreamTimeout, match="first_byte_timeout"):
        upstream.send("GET", "/v1/models", {}, None, None)  # connected: nobody responds


# --- certificates ------------------------------------------------------------------------------


@contextmanager
def system_certificates(
    monkeypatch: pytest.MonkeyPatch, file: Path | None, directory: Path | None
) -> Iterator[None]:
    paths = ssl.get_default_verify_paths()._replace(
        cafile=str(file) if file else None, capath=str(directory) if directory else None
    )
    with monkeypatch.context() as patch:
        patch.setattr(ssl, "get_default_verify_paths", lambda: paths)
        yield


def test_certifis_certificates_are_used_only_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, file = tmp_path / "empty", tmp_path / "ca.pem"
    empty.mkdir()
    file.write_text("")
    asked: list[str | None] = []
    make = ssl.create_default_context

    def create(*, cafile: str | None = None, cadata: str | None = None) -> ssl.SSLContext:
        asked.append(cafile)
        return make(cafile=cafile, cadata=cadata)

    monkeypatch.setattr(ssl, "create_default_context", create)
    provider = Provider("any", "https://any.test/v1")
    for paths in ((None, None), (None, empty), (file, None)):
        with system_certificates(monkeypatch, *paths):
            connect.tls_context(provider)
    assert asked == [certifi.where()] * 3
    file.write_text("x")
    for paths in ((file, None), (None, tmp_path)):
        with system_certificates(monkeypatch, *paths):
            connect.tls_context(provider)
    assert asked[3:] == [None, None]


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_a_companys_certificate_is_trusted_where_openssl_finds_it(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = programs.require("openssl")
    pem = tmp_path / "company.pem"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=company"
    command = [openssl, *made.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(tmp_path / "key.pem"), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    hashed = subprocess.run(
        [openssl, "x509", "-hash", "-noout", "-in", str(pem)], check=True, capture_output=True
    )
    (tmp_path / f"{hashed.stdout.decode().strip()}.0").write_bytes(pem.read_bytes())
    monkeypatch.setenv(variable, str(pem if variable == "SSL_CERT_FILE" else tmp_path))
    context = connect.tls_context(Provider("any", "https://127.0.0.1/v1"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem, tmp_path / "key.pem")
    assert _handshake(context, server) == "company"


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """The verified common name of the server, over buffers instead of sockets."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = ours.getpeercert()
    assert found
    subject = dict(pair[0] for pair in found["subject"])  # type: ignore[misc,index]
    return str(subject["commonName"])
