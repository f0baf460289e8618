"""The gateway's application in this process: policy without servers.

`App` takes the bytes of a request and gives the response as `harness.raw` does, so that a test
reads the same whether it runs here or against a `Gateway`. gunicorn's own parser makes the WSGI
environment, so paths, headers and bodies reach the application as they do in a worker. Only the
socket is missing: what is about streams, framing, aborts, timeouts or the server's own headers
needs a `Gateway`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from unittest import mock

import prometheus_client
from flask.testing import FlaskClient
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser

from .gateway import keys_toml, new_key
from .poll import PATIENCE, eventually
from .raw import Answer

_PORT = 80  # of no listener; what the Host header says


class App:
    """The application of one configuration; use as a context manager.

    `config` is the text of gateway.toml, `keys` the limits of the keys to make, `groups` and
    `defaults` those tables of keys.toml, `env` the environment that the configuration is read with.
    """

    port = _PORT

    def __init__(
        self,
        config: str,
        *,
        keys: Mapping[str, Mapping[str, Any]] | None = None,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        defaults: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._made = {name: new_key(limits) for name, limits in (keys or {}).items()}
        self.secrets = {name: secret for name, (secret, _) in self._made.items()}
        self._config = config
        self._groups = groups or {}
        self._defaults = defaults or {}
        self._environment = dict(env or {})
        self._temporary = tempfile.TemporaryDirectory(prefix="app-")
        self._client: FlaskClient | None = None
        self._tracebacks = _Tracebacks()

    def __enter__(self) -> Self:
        self._write({name: fields for name, (_, fields) in self._made.items()})
        self._client = create(self._environ(), self.directory)
        logging.getLogger().addHandler(self._tracebacks)
        return self

    def _environ(self) -> dict[str, str]:
        return {
            "WRAPPER_CONFIG": str(self.directory / "gateway.toml"),
            "WRAPPER_KEYS": str(self.directory / "keys.toml"),
            "WRAPPER_STORE": f"sqlite:///{self.directory / 'usage.db'}",
            **self._environment,
        }

    def _write(self, keys: Mapping[str, Mapping[str, Any]]) -> None:
        (self.directory / "gateway.toml").write_text(self._config)
        text = keys_toml(keys, self._groups, self._defaults)
        (self.directory / "keys.toml").write_text(text)
        (self.directory / "keys.toml").chmod(0o600)

    def rekey(self, keys: Mapping[str, Mapping[str, Any]]) -> None:
        """Put other limits of the same keys in force, as a reload does; one left out is deleted."""
        from wrapper.config.loading import load

        digests = {name: {"sha256": fields["sha256"]} for name, (_, fields) in self._made.items()}
        self._write({name: {**digests[name], **limits} for name, limits in keys.items()})
        self.runtime.apply(load(self._environ()), self.runtime.snapshot.prices)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._tracebacks)
        try:
            if self._client is not None:
                for upstream in self.runtime.snapshot.upstreams.values():
                    upstream.close()
                self.runtime.store.close()
                self.runtime.objects.close()
        finally:
            self._temporary.cleanup()

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return Path(self._temporary.name)

    @property
    def runtime(self) -> Any:
        """What it serves with (`wrapper.runtime.Runtime`)."""
        return self.client.application.extensions["wrapper"]

    @property
    def client(self) -> FlaskClient:
        """Flask's test client, without cookies and without headers of its own."""
        assert self._client is not None, "use as a context manager"
        return self._client

    def exchange(
        self, request: bytes, *, deadline: float = PATIENCE, head_only: bool = False
    ) -> Answer:
        """Handle the bytes of one request and give the whole response.

        There is no waiting here, so `deadline` has no effect; `head_only` is for HEAD requests.
        """
        body, status, headers = self.client.run_wsgi_app(_environ(request), buffered=True)
        code, _, reason = status.partition(" ")
        answer = Answer(int(code), reason, list(headers))
        if not head_only:
            answer.body = b"".join(body)
        return answer

    @contextlib.contextmanager
    def holding(self, request: bytes) -> Iterator[Answer]:
        """The response of a request that is open until the block ends; its body is not read on."""
        body, status, headers = self.client.run_wsgi_app(_environ(request), buffered=False)
        code, _, reason = status.partition(" ")
        try:
            yield Answer(int(code), reason, list(headers))
        finally:
            body.close()  # type: ignore[attr-defined]

    def forget_tracebacks(self) -> None:
        """Those logged so far are another test's, which may log some on purpose."""
        self._tracebacks.found = []

    def assert_clean(self) -> None:
        """No request is in flight any more, and no traceback was logged since the last look."""
        eventually(
            lambda: not prometheus_client.REGISTRY.get_sample_value("requests_in_flight"),
            what="no request in flight",
        )
        found, self._tracebacks.found = self._tracebacks.found, []
        assert found == []


class _Tracebacks(logging.Handler):
    """Keeps the log records that carry an exception."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(record)


# What the fixture `app_factory` gives: takes what `App` takes, and makes it.
AppFactory = Callable[..., App]


def create(environ: Mapping[str, str], directory: Path) -> FlaskClient:
    """A client of the application that is configured by `environ`."""
    # Not before a test asks for it: other tests set the environment before these are imported.
    from wrapper.app import create_app
    from wrapper.config.loading import load
    from wrapper.runtime import load_prices

    settings = load(environ)
    with mock.patch.dict(os.environ, {"PROMETHEUS_MULTIPROC_DIR": str(directory)}):
        app = create_app(settings, load_prices(settings, environ))
    client = app.test_client(use_cookies=False)
    client.environ_base = {}
    return client


def _settings() -> Config:
    """What of gunicorn's settings decides how a request is read; see config/gunicorn.py."""
    config = Config()
    config.set("header_map", "dangerous")
    config.set("forwarder_headers", "")
    config.set("forwarded_allow_ips", "")
    config.set("secure_scheme_headers", {})
    config.set("limit_request_line", 8190)
    config.set("limit_request_field_size", 16380)
    return config


_SETTINGS = _settings()


def _environ(request: bytes) -> dict[str, Any]:
    """The WSGI environment that a worker would make of the request, without its socket."""
    from wrapper.server.strict_request import StrictRequest

    parser = RequestParser(_SETTINGS, [request], ("127.0.0.1", 1))
    parser.mesg_class = StrictRequest
    client, server = ("127.0.0.1", 1), ("127.0.0.1", _PORT)
    _, environ = wsgi.create(next(parser), None, client, server, _SETTINGS)
    del environ["gunicorn.socket"]
    made: dict[str, Any] = environ
    return made
