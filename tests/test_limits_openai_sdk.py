"""The official SDK at a limit: what it raises, what it tries again, and what it does not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest

from harness import chat
from harness.gateway import Gateway
from harness.metrics import Metrics
from harness.poll import PATIENCE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.simulator import Simulator

CONFIG = """\
[providers.openai]
base_url = "{simulator}/v1"
api_key = { env = "OPENAI_API_KEY" }

[[routes]]
model = "*"
targets = ["openai"]

[prices."sim-*"]
input = 1.0
output = 2.0
"""
KEYS: dict[str, dict[str, Any]] = {
    "slow": {"requests_per_minute": 1},
    "narrow": {"max_concurrent": 1},
    "poor": {"budget_usd": 0.00001},
    "spent": {"budget_usd": 0.0003},
    "small": {"tokens_per_minute": 10},
}


@pytest.fixture(scope="module")
def limited(simulator: Simulator) -> Iterator[Gateway]:
    """Two workers, and a key for each kind of limit."""
    config = CONFIG.replace("{simulator}", simulator.url)
    with Gateway(config, workers=2, keys=KEYS, env={"OPENAI_API_KEY": "o"}) as running:
        yield running
        running.assert_clean()


def create(gateway: Gateway, key: str, book: str = "", retries: int = 0, orders: str = "") -> Any:
    """A chat completion by the SDK, as its users write it."""
    url = f"{gateway.url}/v1"
    with openai.OpenAI(base_url=url, api_key=gateway.secrets[key], max_retries=retries) as client:
        return client.chat.completions.create(
            model="sim-model",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=100,
            extra_headers=dict(chat.told(orders, book)),
        )


def refusals(gateway: Gateway, key: str) -> float:
    metrics: Metrics = gateway.metrics()
    return metrics.value("api_key_rejections_total", api_key=key)


def test_its_error_carries_the_headers(limited: Gateway) -> None:
    assert create(limited, "slow").usage.total_tokens > 0
    with pytest.raises(openai.RateLimitError) as raised:
        create(limited, "slow")
    error = raised.value
    assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
    headers = error.response.headers
    assert 1 <= int(headers["retry-after"]) <= 61
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].endswith("s")


def test_its_own_retry_succeeds_after_the_time_that_it_was_told(
    limited: Gateway, simulator: Simulator
) -> None:
    book = chat.mark()
    content = chat.body("sim-model", stream=True)
    with (
        chat.begin(limited, content, key="narrow", orders="events=8; stall=4") as held,
        ThreadPoolExecutor(1) as beside,
    ):
        held.read_head()
        made = beside.submit(create, limited, "narrow", book, retries=20)
        eventually(lambda: refusals(limited, "narrow") >= 1, what="a refusal")
        held.close()
        assert made.result(PATIENCE).usage.total_tokens > 0
    assert len(simulator.requests(book=book)) == 1


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("poor", "insufficient_quota"),
        ("spent", "insufficient_quota"),
        ("small", "rate_limit_exceeded"),
    ],
)
def test_what_no_time_mends_is_not_tried_again(
    limited: Gateway, simulator: Simulator, key: str, code: str
) -> None:
    book = chat.mark()
    if key == "spent":
        create(limited, key, orders="prompt=50; completion=50")
        limited.idle()  # until then the money is only reserved
    with pytest.raises(openai.RateLimitError) as raised:
        create(limited, key, book, retries=5)
    assert raised.value.code == code
    assert refusals(limited, key) == 1
    assert simulator.requests(book=book) == []
