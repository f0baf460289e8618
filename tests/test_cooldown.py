"""A provider that keeps failing is asked last for a short time."""

from __future__ import annotations

import pytest

from harness import chat, raw
from harness.app import App, AppFactory
from harness.metrics import Metrics
from wrapper.upstream import cooldown as module
from wrapper.upstream.cooldown import Cooldown

CONFIG = """\
[providers.groq]
base_url = "{simulator}/openai/v1"
api_key = {{ env = "GROQ_API_KEY" }}
{groq}

[providers.openai]
base_url = "{simulator}/v1"
api_key = {{ env = "OPENAI_API_KEY" }}

[[routes]]
model = "either"
targets = ["groq:sim-a?{fault}", "openai:sim-b"]

[[routes]]
model = "healed"
targets = ["groq:sim-a", "openai:sim-b"]

[[routes]]
model = "both"
targets = ["groq:sim-a?{fault}", "openai:sim-b?status=503"]

[[routes]]
model = "*"
targets = ["groq"]
"""


class Clock:
    """The clock that cooldowns go by."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "clock", made)
    return made


def make(app_factory: AppFactory, fault: str = "status=500", groq: str = "") -> App:
    return app_factory(CONFIG.format(simulator="{simulator}", fault=fault, groq=groq))


def served_by(app: App, model: str = "either") -> str | None:
    """The provider that responded, and whether groq was asked before."""
    return chat.call(app, model=model).header("x-wrapper-provider")


def scrape(app: App) -> Metrics:
    return Metrics(app.exchange(raw.request(app.port, "GET", "/metrics")).body.decode())


def errors_of_groq(app: App) -> float:
    return sum(
        sample.value for sample in scrape(app).find("upstream_errors_total", provider="groq")
    )


def is_cooling(app: App) -> bool:
    return scrape(app).value("provider_cooldown", provider="groq") == 1


def test_a_provider_that_fails_three_times_in_a_row_is_asked_last_until_its_time_is_over(
    app_factory: AppFactory, clock: Clock
) -> None:
    app = make(app_factory)
    before = errors_of_groq(app)
    for asked in (1, 2, 3, 3, 3):
        assert served_by(app) == "openai"
        assert errors_of_groq(app) - before == asked
    assert is_cooling(app)
    clock.now += 4.9
    assert served_by(app, "healed") == "openai"
    clock.now += 0.2
    assert not is_cooling(app)
    assert served_by(app) == "openai"  # one more failure, and it begins anew, twice as long
    assert errors_of_groq(app) - before == 4
    clock.now += 9.9
    assert is_cooling(app)
    clock.now += 0.2
    assert served_by(app, "healed") == "groq"  # which ends it
    for asked in (5, 6):
        assert served_by(app) == "openai"
        assert errors_of_groq(app) - before == asked
        assert not is_cooling(app)


def test_a_cooldown_lasts_as_long_as_retry_after_says(
    app_factory: AppFactory, clock: Clock
) -> None:
    app = make(app_factory, "status=429; retry-after=42")
    for _ in range(3):
        assert served_by(app) == "openai"
    clock.now += 41
    assert (is_cooling(app), served_by(app, "healed")) == (True, "openai")
    clock.now += 2
    assert (is_cooling(app), served_by(app, "healed")) == (False, "groq")


@pytest.mark.parametrize("fault", ["status=429", "status=400"])
def test_what_says_nothing_about_the_provider_begins_none(
    app_factory: AppFactory, fault: str
) -> None:
    app = make(app_factory, fault)
    for _ in range(5):
        served_by(app)
    assert not is_cooling(app)
    assert served_by(app, "healed") == "groq"


def test_a_callers_own_account_neither_begins_nor_ends_one(
    app_factory: AppFactory, clock: Clock
) -> None:
    app = make(app_factory, groq="client_credentials = true")
    target, key = "/groq/openai/v1/chat/completions", "gsk-of-the-caller"
    for _ in range(3):
        failing = chat.call(app, model="sim-a?status=500", target=target, key=key)
        assert failing.status == 500
    assert not is_cooling(app)
    for _ in range(3):
        served_by(app)
    assert is_cooling(app)
    assert chat.call(app, model="sim-a", target=target, key=key).status == 200
    assert served_by(app, "healed") == "openai"


def test_an_only_target_is_always_asked_and_a_route_of_failing_ones_still_is(
    app_factory: AppFactory,
) -> None:
    app = make(app_factory)
    for _ in range(4):
        served_by(app)
    assert is_cooling(app)
    assert served_by(app, "anything-else") == "groq"  # and ends it
    for _ in range(4):
        assert chat.call(app, model="both").status in (500, 503)
    assert is_cooling(app)


def test_without_cooldown_seconds_there_is_none(app_factory: AppFactory) -> None:
    app = make(app_factory, groq="cooldown_seconds = 0")
    for _ in range(5):
        served_by(app)
    assert not is_cooling(app)
    assert served_by(app, "healed") == "groq"


def test_cooldowns_double_up_to_a_minute_and_what_is_asked_for_is_bounded(clock: Clock) -> None:
    cooldown = Cooldown(5.0)
    assert [cooldown.failed() for _ in range(4)] == [0.0, 0.0, 5.0, 0.0]
    lasted = []
    for _ in range(5):
        clock.now += 100
        lasted.append(cooldown.failed())
    assert lasted == [10.0, 20.0, 40.0, 60.0, 60.0]
    clock.now += 100
    assert cooldown.failed("7") == 7.0
    clock.now += 100
    assert cooldown.failed("9" * 400) == 300.0
    clock.now += 1000
    for unreadable in ("Wed, 21 Oct 2026 07:28:00 GMT", "\xb2"):
        assert cooldown.failed(unreadable) == 60.0
        clock.now += 1000
    cooldown.recovered()
    assert not cooldown.is_on
    assert [cooldown.failed() for _ in range(3)] == [0.0, 0.0, 5.0]
