"""`GET /v1/models`: what this key may call, over every provider and alias, also on a bad day."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest

from harness import raw
from harness.defaults import CONFIG
from harness.processes import ReservedPort
from harness.programs import require
from wrapper.blueprints import models
from wrapper.config import Provider, Secret
from wrapper.upstream import Upstream

if TYPE_CHECKING:
    from conftest import GatewayFactory

    from harness.gateway import Gateway
    from harness.simulator import Simulator

# One provider for the `sim-*` models, another one for the rest; both list the same names.
ROUTES = """\
[[routes]]
model = "fast"
targets = ["two:sim-large"]

[[routes]]
model = "org/fast"
targets = ["two:sim-large", "one:sim-large"]

[[routes]]
model = "sim-[elm]*"
targets = ["one"]

[[routes]]
model = "sim-s*"
targets = ["two"]
"""


def providers(one: str, two: str) -> str:
    return f"""\
[providers.one]
base_url = "{one}/openai/v1"
api_key = {{ env = "GROQ_API_KEY" }}
connect_timeout = 1

[providers.two]
base_url = "{two}/v1"
api_key = {{ env = "OPENAI_API_KEY" }}
connect_timeout = 1

[providers.unused]
base_url = "{two}/v1"
api_key = {{ env = "NOT_SET" }}

{ROUTES}"""


def get(gateway: Gateway, path: str, key: str, *, method: str = "GET") -> raw.Answer:
    data = raw.request(gateway.port, method, path, key=key)
    return raw.exchange(gateway.port, data, head_only=method == "HEAD")


def listed(gateway: Gateway, key: str) -> list[str]:
    answer = get(gateway, "/v1/models", key)
    assert answer.status == 200, answer.body
    found = json.loads(answer.body)
    assert found["object"] == "list"
    return [model["id"] for model in found["data"]]


@pytest.fixture(scope="module")
def two_providers(simulator: Simulator) -> Any:
    from harness.defaults import PROVIDER_KEYS
    from harness.gateway import Gateway

    keys: dict[str, dict[str, Any]] = {
        "all": {},
        "some": {"models": ["sim-large", "org/*"]},
        "nothing": {"models": ["gpt-*"]},
    }
    config = providers(simulator.url, simulator.url)
    with Gateway(config, keys=keys, env=PROVIDER_KEYS) as running:
        yield running


def test_it_lists_aliases_and_the_models_of_every_provider_that_a_route_leads_to(
    two_providers: Gateway,
) -> None:
    names = listed(two_providers, two_providers.secrets["all"])
    assert sorted(names) == sorted(
        ["fast", "org/fast", "sim-embedding", "sim-large", "sim-model", "sim-speech"]
    )


def test_every_model_that_is_listed_can_be_called(two_providers: Gateway) -> None:
    key = two_providers.secrets["all"]
    for name in listed(two_providers, key):
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "hi"}]})
        answer = raw.post(two_providers.port, "/v1/chat/completions", body.encode(), key=key)
        assert answer.status == 200, name


@pytest.mark.parametrize(
    ("name", "expected"), [("some", ["org/fast", "sim-large"]), ("nothing", [])]
)
def test_a_key_sees_only_what_it_may_call(
    two_providers: Gateway, name: str, expected: list[str]
) -> None:
    assert sorted(listed(two_providers, two_providers.secrets[name])) == expected


def test_entries_are_the_providers_own_with_every_field(
    two_providers: Gateway, simulator: Simulator
) -> None:
    key = two_providers.secrets["all"]
    found = json.loads(get(two_providers, "/v1/models/sim-model", key).body)
    direct = raw.request(simulator.port, "GET", "/openai/v1/models/sim-model")
    assert found == json.loads(raw.exchange(simulator.port, direct).body)
    alias = json.loads(get(two_providers, "/v1/models/fast", key).body)
    assert (alias["object"], alias["owned_by"]) == ("model", "two")


@pytest.mark.parametrize("path", ["/v1/models/org/fast", "/v1/models/sim-large"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_one_model_by_its_id_also_with_a_slash_in_it(
    two_providers: Gateway, path: str, method: str
) -> None:
    answer = get(two_providers, path, two_providers.secrets["some"], method=method)
    assert answer.status == 200
    assert answer.header("content-type") == "application/json"
    assert int(answer.header("content-length") or 0) > 20
    assert answer.body == b"" or json.loads(answer.body)["id"] == path[len("/v1/models/") :]


def test_the_sdk_finds_a_model_with_a_slash_in_its_name(two_providers: Gateway) -> None:
    """It writes the slash as %2F."""
    key = two_providers.secrets["some"]
    with openai.OpenAI(base_url=f"{two_providers.url}/v1", api_key=key) as client:
        assert client.models.retrieve("org/fast").id == "org/fast"
    with openai.OpenAI(base_url=f"{two_providers.url}/two/v1", api_key=key) as client:
        assert client.models.retrieve("org/fast").id == "org/fast"
        with pytest.raises(openai.PermissionDeniedError):
            client.models.delete("else/where")


@pytest.mark.parametrize("path", ["sim-model", "fast", "no-such-model", "org/no-such"])
def test_a_model_that_the_key_may_not_call_is_not_there(two_providers: Gateway, path: str) -> None:
    answer = get(two_providers, f"/v1/models/{path}", two_providers.secrets["some"])
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["code"] == "model_not_found"


def test_the_list_needs_a_key(two_providers: Gateway) -> None:
    answer = get(two_providers, "/v1/models", "sk-wr-unknown")
    assert answer.status == 401


def test_head_of_the_list_has_its_length_and_no_body(two_providers: Gateway) -> None:
    key = two_providers.secrets["all"]
    whole = get(two_providers, "/v1/models", key)
    head = get(two_providers, "/v1/models", key, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.header("content-length") == str(len(whole.body))


def test_curl_and_the_sdk_read_the_list(two_providers: Gateway) -> None:
    key = two_providers.secrets["all"]
    done = subprocess.run(
        [require("curl"), "-s", "--max-time", "60", f"{two_providers.url}/v1/models", "-H", "@-"],
        input=f"Authorization: Bearer {key}".encode(),
        capture_output=True,
        check=True,
    )
    assert len(json.loads(done.stdout)["data"]) == 6
    with openai.OpenAI(base_url=f"{two_providers.url}/v1", api_key=key) as client:
        assert [model.id for model in client.models.list()] == [
            model["id"] for model in json.loads(done.stdout)["data"]
        ]
        assert client.models.retrieve("sim-large").owned_by == "simulator"


def test_it_is_no_call_in_the_keys_numbers(two_providers: Gateway) -> None:
    listed(two_providers, two_providers.secrets["nothing"])
    assert two_providers.metrics().value("api_key_requests_total", api_key="nothing") == 0


def test_a_list_is_asked_for_once_and_again_when_the_configuration_changes(
    gateway_factory: GatewayFactory, simulator: Simulator
) -> None:
    def asked() -> int:
        found = simulator.requests(method="GET")
        return len([seen for seen in found if seen["target"].endswith("/v1/models")])

    config = providers(simulator.url, simulator.url)
    gateway = gateway_factory(config, keys={"all": {}})
    before = asked()
    for _ in range(5):
        assert "fast" in listed(gateway, gateway.secrets["all"])
    assert asked() == before + 2
    gateway.reconfigure(config.replace('"fast"', '"quick"'))
    names = listed(gateway, gateway.secrets["all"])
    assert "quick" in names
    assert "fast" not in names


BROKEN = {
    "refusing": "status=500",
    "garbled": "malformed-json",
    "cut": "cut=20",
    "foreign": "framing=garbage",
    "moved": "redirect=http://127.0.0.1:1/",
    "silent": "stall-before",
    "endless": "drip=0.5",
}


def test_a_provider_that_fails_takes_only_its_own_models_from_the_list(
    gateway_factory: GatewayFactory, simulator: Simulator
) -> None:
    """And one that says nothing holds the list up once, and not for long."""
    gone = ReservedPort()
    blocks = [
        f"""\
[providers.{name}]
base_url = "{simulator.url}/v1"
headers = {{ "x-sim" = "{orders}" }}

[[routes]]
model = "{name}-*"
targets = ["{name}"]
"""
        for name, orders in BROKEN.items()
    ]
    config = "\n".join([*blocks, providers(f"http://127.0.0.1:{gone.number}", simulator.url)])
    gateway = gateway_factory(config, keys={"all": {}})
    first = listed(gateway, gateway.secrets["all"])
    ended = time.monotonic()
    assert sorted(first) == ["fast", "org/fast", "sim-speech"]
    asked = len(simulator.requests(method="GET"))
    assert listed(gateway, gateway.secrets["all"]) == first
    again = len(simulator.requests(method="GET")) > asked
    assert not again or time.monotonic() - ended > models.RETRY / 2
    gone.release()


def test_a_provider_that_went_away_keeps_the_list_that_it_gave_last() -> None:
    from harness.simulator import Simulator

    lists = models.ModelLists(lambda *_: None)
    with Simulator() as leaving:
        upstream = Upstream(Provider("leaving", f"{leaving.url}/v1", Secret("any")))
        lists.of({"leaving": upstream})
        until, before = lists._known[upstream]
    lists._refresh(upstream)
    assert lists._known[upstream][1] == before
    assert "sim-model" in [model["id"] for model in before]
    assert until > time.monotonic() + models.RETRY
    upstream.close()


def test_a_provider_that_drips_its_head_is_waited_for_once_and_the_others_are_listed(
    gateway_factory: GatewayFactory,
) -> None:
    config = CONFIG.replace("client_credentials = true", 'headers = { "x-sim" = "header-drip=1" }')
    gateway = gateway_factory(config)
    key = gateway.secrets["web-app"]
    for _ in range(3):
        answer = raw.exchange(gateway.port, raw.request(gateway.port, "GET", "/v1/models", key=key))
        assert answer.status == 200
        assert b'"owned_by":"simulator"' in answer.body
    first, *_ = gateway.log_lines(lambda line: line["path"] == "/v1/models")
    assert first["overhead_ms"] < first["duration_ms"] / 2  # the wait is the provider's
