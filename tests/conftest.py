"""Fixtures: one simulator and one gateway for all tests of a process, special ones on request.

After every test that used them, the leak check: no upstream request is still open, nothing is
in flight in a gateway, no traceback was written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from harness import exclusive
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS, impatient
from harness.gateway import Gateway, GatewayFactory
from harness.poll import eventually
from harness.processes import ReservedPort
from harness.raw import full_listener, no_tls

# A CI run can be repeated exactly; elsewhere every run tries examples of its own. A machine may be
# slow, or stop for a moment: no example is judged by its time.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")

# The SDKs take a second to import, which the unit tests need not wait for.
if TYPE_CHECKING:
    import groq
    import openai

    from harness.app import App, AppFactory
    from harness.redisserver import RedisServer
    from harness.simulator import Simulator


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run tests that are marked `alone` while no other process runs one; see harness.exclusive.

    The wait comes before the test's timeout begins.
    """
    with exclusive.running(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    """The provider of all tests: speaks Groq's dialect under /openai/v1, OpenAI's under /v1."""
    from harness.simulator import Simulator

    with Simulator() as running:
        yield running


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that keeps everything in memory, for all tests; each one empties it first."""
    from harness.redisserver import RedisServer

    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="module")
def patient_stores() -> Iterator[None]:
    """The stores of this process and its children wait for a busy machine as long as tests do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("wrapper.store.sqlite.BUSY_SECONDS", 60.0)
        patched.setattr("wrapper.store.live.LOCK_SECONDS", 60.0)
        patched.setattr("wrapper.store.redisurl.REPLY_SECONDS", 60.0)
        patched.setattr("wrapper.store.redisurl.CONNECT_SECONDS", 60.0)
        yield


@pytest.fixture(scope="session")
def gateway(simulator: Simulator) -> Iterator[Gateway]:
    """The gateway of most tests: two workers, groq and openai at the simulator, three keys."""
    config = CONFIG.replace("{simulator}", simulator.url)
    # What tests leave unfinished at the simulator is not asked for while others count its requests.
    config += "\n[server]\ndeferred_poll = 86400\n"
    with Gateway(config, workers=2, keys=KEYS, env=PROVIDER_KEYS) as running:
        yield running


@pytest.fixture(scope="session")
def impatient_gateway(simulator: Simulator) -> Iterator[Gateway]:
    """One worker with short deadlines, and providers that are gone, deaf or not speaking TLS."""
    refusing = ReservedPort()  # bound, but nobody listens
    with contextlib.ExitStack() as held:
        held.callback(refusing.release)
        ports = {
            "refusing": refusing.number,
            "deaf": held.enter_context(full_listener()),
            "no_tls": held.enter_context(no_tls()),
        }
        config = impatient(simulator.url, **ports)
        yield held.enter_context(Gateway(config, keys=KEYS, env=PROVIDER_KEYS))


@pytest.fixture
def gateway_factory(simulator: Simulator) -> Iterator[GatewayFactory]:
    """Starts further gateways, by default as `gateway` but with one worker; stops them too.

    Takes what `Gateway` takes; `{simulator}` in `config` stands for the simulator's address.
    """
    with contextlib.ExitStack() as running:

        def start(config: str = CONFIG, **options: Any) -> Gateway:
            options.setdefault("keys", KEYS)
            options["env"] = {**PROVIDER_KEYS, **options.get("env", {})}
            made = Gateway(config.replace("{simulator}", simulator.url), **options)
            running.enter_context(made)
            running.callback(made.assert_clean)
            return made

        yield start


@pytest.fixture(scope="session")
def app(simulator: Simulator) -> Iterator[App]:
    """The application in this process, configured as `gateway`: for policy that needs no socket."""
    from harness.app import App

    with App(CONFIG.replace("{simulator}", simulator.url), keys=KEYS, env=PROVIDER_KEYS) as made:
        yield made


@pytest.fixture
def app_factory(simulator: Simulator) -> Iterator[AppFactory]:
    """Makes further applications; takes what `App` takes, and `{simulator}` in `config`."""
    from harness.app import App

    with contextlib.ExitStack() as made:

        def make(config: str = CONFIG, **options: Any) -> App:
            options.setdefault("keys", KEYS)
            options["env"] = {**PROVIDER_KEYS, **options.get("env", {})}
            app = App(config.replace("{simulator}", simulator.url), **options)
            made.enter_context(app)
            made.callback(app.assert_clean)
            return app

        yield make


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """The leak check, for the fixtures that the test used."""
    gateways = {"app", "gateway", "impatient_gateway"} & set(request.fixturenames)
    used = [*sorted({"simulator"} & set(request.fixturenames)), *sorted(gateways)]
    things = {name: request.getfixturevalue(name) for name in used}
    if "app" in things:
        things["app"].forget_tracebacks()
    yield
    if "simulator" in things:
        eventually(
            lambda: things["simulator"].stats()["open"] == 0,
            what="no open upstream request",
        )
    for name in gateways:
        things[name].assert_clean()


@pytest.fixture
def key(gateway: Gateway) -> str:
    """The secret of the key `web-app`, which may call every model."""
    return gateway.secrets["web-app"]


@pytest.fixture
def openai_client(gateway: Gateway, key: str) -> Iterator[openai.OpenAI]:
    """The real SDK, pointed at the gateway's /v1, without retries of its own."""
    import openai

    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture
def groq_client(gateway: Gateway, key: str) -> Iterator[groq.Groq]:
    """The real SDK with its base at /groq; it adds /openai/v1/… itself."""
    import groq

    with groq.Groq(base_url=f"{gateway.url}/groq", api_key=key, max_retries=0) as client:
        yield client
