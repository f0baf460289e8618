"""`reconcile --fetch`: the usage table against the provider's own usage and costs APIs.

The traffic goes through the application, the numbers come back from the simulator's ledger. Today's
numbers are compared, because the simulator counts today; sums over two days hold over midnight.
What is said of one day alone is looked at where midnight (UTC) did not interrupt the test.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from harness import chat, raw
from harness.app import App, AppFactory
from harness.simulator import Simulator
from wrapper.__main__ import main

ADMIN_KEY = "sk-admin-OF-THE-ORGANIZATION-0123456789"
SERVING_KEY = "sk-PROVIDERS-OWN-KEY-openai-0123456789"
CHAT, EMBEDDING, IMAGE, SPEECH = "gpt-6-luna", "text-embedding-3-small", "gpt-image-1", "tts-1"
MODELS = (CHAT, EMBEDDING, IMAGE, SPEECH, "gpt-6-sol-2026-09-22", "whisper-1")
PRICES = "".join(
    f'[prices."{model}"]\ninput = 2\ncached_input = 0.5\noutput = 8\n' for model in MODELS
)
CONFIG = """\
[providers.openai]
base_url = "{url}/v1"
api_key = {{ env = "OPENAI_API_KEY" }}
headers = {{ "x-sim-book" = "ours" }}

[[routes]]
model = "*"
targets = ["openai"]

{prices}
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator("--admin-key", ADMIN_KEY, api_key=SERVING_KEY) as running:
        yield running


@pytest.fixture
def app(app_factory: AppFactory, provider: Simulator) -> App:
    provider.reset()
    return app_factory(CONFIG.format(url=provider.url, prices=PRICES))


@pytest.fixture
def reconcile(app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `reconcile --fetch` for yesterday and today on the application's own files."""
    app.runtime.store.check()  # as at a start: there is a table
    monkeypatch.chdir(app.directory)
    monkeypatch.setenv("WRAPPER_CONFIG", "gateway.toml")
    monkeypatch.setenv("WRAPPER_KEYS", "keys.toml")
    monkeypatch.setenv("WRAPPER_STORE", f"sqlite:///{app.directory}/usage.db")
    monkeypatch.setenv("OPENAI_API_KEY", SERVING_KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", ADMIN_KEY)
    today = datetime.now(UTC).date()
    # Over midnight too: the test ends within a day of its beginning.
    days = ["--since", str(today), "--until", str(today + timedelta(days=2))]

    def run(*options: str) -> tuple[int, str, str]:
        app.runtime.store.close()  # what waits is written
        capsys.readouterr()  # the log of the calls before
        code = main(["reconcile", "--fetch", *days, *options])
        captured = capsys.readouterr()
        assert ADMIN_KEY not in captured.out + captured.err
        return code, captured.out, captured.err

    return run


def post(app: App, path: str, fields: dict[str, Any], orders: str = "") -> None:
    request = chat.request(app, json.dumps(fields).encode(), target=path, orders=orders)
    answer = app.exchange(request)
    assert answer.status == 200, answer


def traffic(app: App) -> None:
    """Every kind of request that the usage APIs count, and some that they do not."""
    for number in range(3):
        chat.call(app, model=CHAT, orders=f"prompt={1000 * number}; cached={70 * number}")
        chat.call(app, model=CHAT, stream=True)
    chat.call(app, model="gpt-6-sol-2026-09-22", orders="prompt=5000")
    post(app, "/v1/responses", {"model": CHAT, "input": "how are you"})
    post(app, "/v1/embeddings", {"model": EMBEDDING, "input": "one two three"})
    post(app, "/v1/images/generations", {"model": IMAGE, "prompt": "a cat"})
    post(app, "/v1/audio/speech", {"model": SPEECH, "input": "hello", "voice": "alloy"})
    # On no bill: what the provider refused, what uses no model, what the gateway refused.
    assert chat.call(app, model=CHAT, orders="status=429").status == 429
    listed = raw.request(app.port, "GET", "/v1/files", key=app.secrets["web-app"])
    assert app.exchange(listed).status == 200
    assert chat.call(app, model=CHAT, key="expired").status == 401


def sums(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Theirs and ours by model and number, over all days."""
    found: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        pair = found[row["model"], row["what"]]
        pair[0] += row["theirs"]
        pair[1] += row["ours"]
    return {key: (round(a, 12), round(b, 12)) for key, (a, b) in found.items()}


def test_the_books_of_both_sides_agree_in_every_number(app: App, reconcile: Run) -> None:
    today = datetime.now(UTC).date()
    traffic(app)
    code, out, err = reconcile("--format", "json", "--tolerance", "0")
    assert err == ""
    found = sums(json.loads(out)["rows"])
    assert {key: theirs for key, (theirs, _) in found.items()} == {
        key: ours for key, (_, ours) in found.items()
    }
    assert found[CHAT, "requests"] == (7, 7)
    assert found["gpt-6-sol-2026-09-22", "prompt"] == (5000, 5000)
    assert found[EMBEDDING, "prompt"] == (3, 3)
    assert found["(all)", "cost"][0] > 0
    # Usage APIs of images and speech count no tokens: nothing to compare.
    assert {what for model, what in found if model == IMAGE} == {"requests", "cost"}
    if datetime.now(UTC).date() == today:
        assert code == 0


def test_what_bypassed_the_gateway_is_a_drift(
    app: App, reconcile: Run, provider: Simulator, tmp_path: Path
) -> None:
    today = datetime.now(UTC).date()
    chat.call(app, model=CHAT, orders="prompt=1000; completion=1000")
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key=SERVING_KEY) as direct:
        direct.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": "x"}],
            extra_headers={"x-sim": "prompt=1000; completion=1000"},
        )
    file = tmp_path / "ledger.prom"
    code, out, _ = reconcile("--write-metrics", str(file))
    assert code == 3
    assert "over the tolerance of 1 %" in out
    ratios = re.findall(r'ledger_drift_ratio\{.*,what="(\w+)"\} (\S+)', file.read_text())
    if datetime.now(UTC).date() == today:
        assert sorted(ratio for ratio in ratios if ratio[1] != "0") == [
            ("cost", "-0.5"),
            ("tokens", "-0.5"),
        ]
    assert file.stat().st_mode & 0o777 == 0o644
    assert ADMIN_KEY not in file.read_text()


def test_another_key_than_the_admin_key_is_refused(
    reconcile: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-some-other-key")
    file = tmp_path / "ledger.prom"
    code, out, err = reconcile("--write-metrics", str(file))
    assert (code, out) == (1, "")
    assert "the admin key is refused (The provider responded 401.)" in err
    assert "sk-some-other-key" not in err
    assert not file.exists()


def test_the_admin_key_may_be_in_a_file(
    app: App, reconcile: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_ADMIN_KEY")
    file = tmp_path / "admin-key"
    file.write_text(ADMIN_KEY + "\n")
    assert reconcile("--admin-key-file", str(file))[0] == 0


def test_the_simulators_pages_are_those_of_the_real_package(provider: Simulator) -> None:
    provider.reset()
    headers = {"x-sim": "prompt=30; cached=10; completion=5"}
    with openai.OpenAI(
        base_url=f"{provider.url}/v1", api_key=SERVING_KEY, admin_api_key=ADMIN_KEY, max_retries=0
    ) as client:
        client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "x"}], extra_headers=headers
        )
        now = int(time.time()) | 1  # never midnight itself
        usage = client.admin.organization.usage
        seen = []
        page: str | None = None
        while True:
            more = {} if page is None else {"page": page}
            got = usage.completions(
                start_time=now - 9 * 86_400,
                end_time=now + 2 * 86_400,
                group_by=["model"],
                limit=4,
                **more,  # type: ignore[arg-type]
            )
            seen += [(bucket.start_time, bucket.results) for bucket in got.data]
            if not got.has_more:
                break
            page = got.next_page
        starts = [start for start, _ in seen]
        assert starts == list(range(starts[0], starts[0] + len(starts) * 86_400, 86_400))
        assert len(starts) == 12
        (result,) = (result for _, results in seen for result in results)
        assert result.object == "organization.usage.completions.result"
        assert (result.model, result.input_tokens, result.input_cached_tokens) == (CHAT, 30, 10)
        bill = usage.costs(
            start_time=now - 86_400, end_time=now + 2 * 86_400, group_by=["line_item"]
        )
        items = {
            item.line_item: item.amount.value
            for bucket in bill.data
            for item in bucket.results
            if item.object == "organization.costs.result" and item.amount is not None
        }
        assert items == {
            f"{CHAT}, input": 20 * 2 / 1e6,
            f"{CHAT}, cached input": 10 * 0.5 / 1e6,
            f"{CHAT}, output": 5 * 8 / 1e6,
        }
        with pytest.raises(openai.BadRequestError):
            usage.completions(start_time=now, limit=32)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("start_time=x", 400),
        ("start_time=0&page=7x", 400),
        ("start_time=99999999999", 200),
    ],
)
def test_the_simulator_refuses_what_it_cannot_read(
    provider: Simulator, query: str, status: int
) -> None:
    request = raw.request(provider.port, "GET", f"/v1/organization/costs?{query}", key=ADMIN_KEY)
    with raw.Connection(provider.port) as connection:
        assert connection.send(request).read().status == status
