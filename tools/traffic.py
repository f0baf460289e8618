"""Generates demo traffic through a gateway whose provider is the simulator.

Every persona below is a key with habits: how often it calls, which models, how long the prompts
and responses are, and which faults it sees. The header `x-sim`, which the gateway passes on, tells
the simulator the length of a response and its faults; a real provider ignores it, so this is of no
use, and costs money, against one. `--write-keys` therefore makes the keys itself, new ones at each
start.

Needs `requests` and nothing of the gateway's own package. Ends on SIGTERM, or after `--seconds`.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

TIMEOUT = (5, 60)  # seconds: to connect, between two reads
WAIT_FOR_KEYS = 60.0
REPORT_EVERY = 30.0


@dataclass(frozen=True)
class Persona:
    """A key and its use. `weight` is its share of all requests; tokens are medians."""

    name: str
    weight: float
    models: tuple[str, ...]
    prompt: int = 400
    completion: int = 120
    streams: bool = True
    limits: str = ""  # further lines of its table in keys.toml
    faults: tuple[str, ...] = ()  # x-sim instructions, in one of `fault_every` calls
    fault_every: int = 60


# A key without a group has its place in the dashboards too: demo-intern.
PRODUCT = 'group = "product"\nowner = "product team"\n'
DATA = 'group = "data"\nowner = "data team"\n'
GROUPS = """\
[defaults]
budget_period = "day"

[groups.product]
budget_usd = 5
budget_period = "day"

[groups.data]
tokens_per_minute = 5_000_000
"""
PERSONAS = (
    Persona("demo-web-app", 40, ("fast", "fast", "gpt-6-luna"), 600, 150, faults=("status=503",),
            limits=PRODUCT + "budget_usd = 2\nrequests_per_minute = 2_000\n"
                   "tokens_per_minute = 2_000_000"),
    Persona("demo-support-bot", 22, ("gpt-6-luna", "openai/gpt-oss-120b"), 1500, 220,
            faults=("cut=6", "status=429; retry-after=2"), limits=PRODUCT),
    Persona("demo-reports", 10, ("openai/gpt-oss-120b", "gpt-6-sol"), 6000, 900, streams=False,
            faults=("no-usage",), fault_every=30, limits=DATA + "budget_usd = 20"),
    Persona("demo-notebook", 8, ("gpt-6-sol", "gpt-6-sol", "llama-tuned-by-us"), 900, 400,
            faults=("status=400", "leave"), fault_every=8, limits=DATA + "max_concurrent = 4"),
    Persona("demo-search", 16, ("text-embedding-3-small",), 300, 0, streams=False, limits=PRODUCT),
    Persona("demo-intern", 4, ("openai/gpt-oss-20b", "openai/gpt-oss-20b", "gpt-6-sol"), 300, 80,
            limits='models = ["openai/gpt-oss-*"]\nrequests_per_minute = 10'),
    Persona("demo-old-phone-app", 1, ("fast",), limits="expires = 2020-01-01"),
)  # fmt: skip
WITHOUT_KEY = Persona("(no key)", 1, ("fast",))
# Every model and fault is used once at the start, and again when Prometheus is running.
ROUNDS = (0.0, 30.0)  # seconds


@dataclass
class Traffic:
    """Sends the requests of all personas at `rate` per second, from several threads."""

    url: str
    keys: dict[str, str]
    rate: float
    stopping: threading.Event = field(default_factory=threading.Event)
    sent: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, threads: int, seconds: float) -> None:
        """Run until `seconds` are over (0: no limit) or `stopping` is set."""
        end = time.monotonic() + seconds if seconds else float("inf")
        workers = [
            threading.Thread(target=self._work, args=(n, threads, end), daemon=True)
            for n in range(threads)
        ]
        for worker in workers:
            worker.start()
        reported = time.monotonic()
        for worker in workers:
            while worker.is_alive() and not self.stopping.is_set():
                worker.join(0.2)
                if time.monotonic() > reported + REPORT_EVERY:
                    reported = time.monotonic()
                    print(self.summary(), flush=True)
        for worker in workers:
            worker.join(20)

    def _work(self, number: int, threads: int, end: float) -> None:
        rng = random.Random()  # noqa: S311  (not for secrets)
        people = (*PERSONAS, WITHOUT_KEY)
        weights = [p.weight for p in people]
        session = requests.Session()
        session.trust_env = False
        began = time.monotonic()
        rounds = list(ROUNDS)
        while not self.stopping.is_set() and time.monotonic() < end:
            if rounds and time.monotonic() >= began + rounds[0]:
                rounds.pop(0)
                for persona, model, fault in list(every_kind())[number::threads]:
                    self._count(session, persona, model, fault, rng, typical=True)
            persona = rng.choices(people, weights)[0]
            faulty = bool(persona.faults) and rng.random() * persona.fault_every < 1
            fault = rng.choice(persona.faults) if faulty else ""
            self._count(session, persona, rng.choice(persona.models), fault, rng)
            self.stopping.wait(rng.expovariate(self.rate / threads))

    def _count(
        self,
        session: requests.Session,
        persona: Persona,
        model: str,
        fault: str,
        rng: random.Random,
        *,
        typical: bool = False,
    ) -> None:
        try:
            result = self._call(session, persona, model, fault, rng, typical=typical)
        except requests.RequestException as problem:
            result = type(problem).__name__
        with self.lock:
            self.sent[result] += 1

    def _call(
        self,
        session: requests.Session,
        persona: Persona,
        model: str,
        fault: str,
        rng: random.Random,
        *,
        typical: bool,
    ) -> str:
        spread = 0.0 if typical else 0.5
        prompt = max(1, round(rng.lognormvariate(0, spread) * persona.prompt))
        completion = round(rng.lognormvariate(0, spread) * persona.completion)
        large = not model.startswith(("fast", "openai/gpt-oss-20b", "gpt-6-luna", "text-"))
        # One of the models is the company's own, unknown to the simulator.
        orders = ["any-model", f"delay={rng.lognormvariate(-1.0 if large else -2.2, 0.4):.3f}"]
        text = "word " * prompt  # so many tokens to the simulator
        if completion:
            events = max(2, completion // 8)
            gap = rng.lognormvariate(-2.6 if large else -3.2, 0.3)
            orders += [f"completion={completion}", f"events={events}", f"gap={gap:.3f}"]
        if typical or rng.random() < 0.3:
            orders.append("cached")
        stream = persona.streams and (typical or rng.random() < 0.9)
        if fault and fault != "leave":
            orders.append(fault)
        headers = {"x-sim": "; ".join(orders), "x-sim-book": persona.name}
        if persona.name in self.keys:
            headers["Authorization"] = f"Bearer {self.keys[persona.name]}"
        if model.startswith("text-embedding"):
            del headers["x-sim"]
            return self._post(session, "embeddings", headers, {"model": model, "input": text})
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
        }
        if stream:
            body["stream"] = True
        return self._post(session, "chat/completions", headers, body, leave=fault == "leave")

    def _post(
        self,
        session: requests.Session,
        path: str,
        headers: dict[str, str],
        body: dict[str, object],
        *,
        leave: bool = False,
    ) -> str:
        with session.post(
            f"{self.url}/v1/{path}", json=body, headers=headers, stream=True, timeout=TIMEOUT
        ) as response:
            for number, _ in enumerate(response.iter_content(4096)):
                if leave and number == 2:
                    return "left"
        return str(response.status_code)

    def summary(self) -> str:
        """The number of requests so far, by status or error."""
        with self.lock:
            counts = sorted(self.sent.items())
        return f"{sum(n for _, n in counts)} requests: " + ", ".join(f"{k} {n}" for k, n in counts)


def every_kind() -> Iterator[tuple[Persona, str, str]]:
    """Each persona with each of its models and each of its faults."""
    for persona in (*PERSONAS, WITHOUT_KEY):
        for model in sorted(set(persona.models)):
            yield persona, model, ""
        for fault in persona.faults:
            yield persona, persona.models[0], fault


def make_keys(file: Path) -> dict[str, str]:
    """Write a keys.toml for the personas atomically; returns their secrets by name."""
    keys = {p.name: f"sk-wr-{secrets.token_urlsafe(32)}" for p in PERSONAS}
    digests = {name: hashlib.sha256(secret.encode()).hexdigest() for name, secret in keys.items()}
    blocks = [f'[keys.{p.name}]\nsha256 = "{digests[p.name]}"\n{p.limits}\n' for p in PERSONAS]
    new = file.with_name(file.name + ".new")
    text = f"# Written by tools/traffic.py at its start.\n\n{GROUPS}\n"
    new.write_text(text + "\n".join(blocks))
    new.replace(file)
    return keys


def wait_until_accepted(url: str, key: str, stopping: threading.Event) -> None:
    """Return when the gateway has accepted the key several times in a row: each worker reloads."""
    end = time.monotonic() + WAIT_FOR_KEYS
    good = 0
    while good < 20 and not stopping.is_set():
        good = good + 1 if _accepted(url, key) else 0
        if time.monotonic() > end:
            raise SystemExit(f"traffic: {url} did not accept the new keys in {WAIT_FOR_KEYS:.0f} s")
        stopping.wait(0.0 if good else 0.25)


def _accepted(url: str, key: str) -> bool:
    try:
        # A new connection each time, so that all workers are asked.
        headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
        return requests.get(f"{url}/usage", headers=headers, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def main(given: list[str]) -> int:
    """Read the arguments, create the keys, send requests; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", required=True, help="the gateway, such as http://127.0.0.1:8080")
    parser.add_argument(
        "--write-keys",
        type=Path,
        required=True,
        metavar="FILE",
        help="the gateway's keys.toml; overwritten",
    )
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second (default 6)")
    parser.add_argument("--threads", type=int, default=12, help="concurrent requests (default 12)")
    parser.add_argument("--seconds", type=float, default=0, help="default: until stopped")
    options = parser.parse_args(given)
    url = options.url.rstrip("/")
    traffic = Traffic(url, make_keys(options.write_keys), options.rate)
    stop: Callable[..., None] = lambda *_: traffic.stopping.set()  # noqa: E731
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    wait_until_accepted(url, traffic.keys[PERSONAS[0].name], traffic.stopping)
    traffic.run(options.threads, options.seconds)
    print(traffic.summary(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
