"""The measurements. Each gives slices, which `summary` makes numbers of.

The method is the duel: all variants run at the same time, their processes on one core, provider
and load generator on the others; one variant at a time has load, in short slices that take turns
(A B C, A B C, …), so that a machine that gets slower or busier is so for all of them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import driver, machine
from benchmarks.driver import Planned
from benchmarks.ledgers import Counted, of_provider
from benchmarks.summary import Round, Slice
from benchmarks.variants import PRICES, Relay, Variant, feature
from harness import processes
from harness.poll import eventually
from harness.simulator import Simulator

SECONDS = 0.6  # of a slice: at least three ticks of the clock that counts stolen time
CONNECTIONS = 8
BURST = 40  # events of a short stream, which the provider sends at once
EVENTS, GAP = 40, 0.020  # of a paced stream
STREAMS_PER_SECOND = 20.0  # paced streams that begin
PACED_SECONDS = 1.5


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int = 5
    turns: int = 3  # in a round
    held: tuple[int, ...] = (1000, 4000)  # streams at once
    mixed_turns: int = 6  # of `MIXED_SECONDS` each
    profile_seconds: float = 8.0


QUICK = Sizes(rounds=2, turns=1, held=(200,), mixed_turns=1, profile_seconds=2.0)


def cost(relay: Relay, orders: str = "", *, stream: bool = False) -> tuple[float, driver.Load]:
    """CPU milliseconds for a response, and the load of a slice, over some connections at once."""
    request = relay.request(orders, stream=stream)
    before = machine.cpu_seconds(relay.pid) if relay.process else 0.0
    load = driver.run(relay.port, request, seconds=SECONDS, connections=CONNECTIONS)
    used = machine.cpu_seconds(relay.pid) - before if relay.process else 0.0
    return 1e3 * used / load.responses, load


def unary(relay: Relay, _: int) -> Slice:
    """CPU of a response that is not streamed."""
    with machine.Steal() as steal:
        used, _load = cost(relay)
    return Slice(steal.cores, {"call": used} if relay.process else {})


def burst(relay: Relay, _: int) -> Slice:
    """CPU of a short stream whose events come at once."""
    with machine.Steal() as steal:
        used, load = cost(relay, f"events={BURST}", stream=True)
    if load.events < load.responses * BURST:
        raise driver.BenchmarkFailed(f"{load.events} events in {load.responses} streams of {BURST}")
    return Slice(steal.cores, {"stream": used} if relay.process else {})


def paced(relay: Relay, seed: int) -> Slice:
    """CPU of an event, one every 20 ms in some ten streams at once, with its share of the stream's
    fixed cost; time to the first event, and the delay of each.

    The streams begin at random times (open loop), the same for each variant.
    """
    request = relay.request(f"stamp; events={EVENTS}; gap={GAP}", stream=True)
    plan = [Planned(at, request) for at in arrivals(STREAMS_PER_SECOND, PACED_SECONDS, seed)]
    before = machine.cpu_seconds(relay.pid) if relay.process else 0.0
    with machine.Steal() as steal:
        responses = driver.open_loop(relay.port, plan, record=True)
    used = machine.cpu_seconds(relay.pid) - before if relay.process else 0.0
    events = sum(response.events for response in responses)
    if events < EVENTS * len(plan):
        raise driver.BenchmarkFailed(f"{events} events in {len(plan)} streams of {EVENTS}")
    return Slice(
        steal.cores,
        {"event": 1e3 * used / events} if relay.process else {},
        {
            "ttft": [1e3 * (response.first - response.due) for response in responses],
            "delay": [1e3 * d for response in responses for d in driver.delays(response.pieces)],
        },
    )


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Random times at which requests are due, `rate` a second on the average."""
    chance = random.Random(seed)
    return sorted(chance.uniform(0, seconds) for _ in range(round(rate * seconds)))


Measure = Callable[[Relay, int], Slice]
MEASURES: tuple[Measure, ...] = (unary, burst, paced)
CHEAP: tuple[Measure, ...] = (unary, burst)  # for the price of a feature


def duel(
    variants: Mapping[str, Variant],
    upstream: str,
    sizes: Sizes,
    measures: Sequence[Measure] = MEASURES,
    *,
    notes: list[str],
    fresh: bool = True,
) -> Iterator[Round]:
    """Rounds of slices of all variants at once; with `fresh` each round starts them anew, and
    measures the start and the memory too. What fails is left out, with a line in `notes`.
    """
    for number in range(sizes.rounds if fresh else 1):
        with ExitStack() as stack:
            found: Round = {name: [] for name in variants}
            relays: dict[str, Relay] = {}
            for name, variant in variants.items():
                with noted(name, notes):
                    relay, found[name] = _started(stack, variant, upstream)
                    _warm_up(relay)
                    relays[name] = relay
            for turn in range(sizes.turns if fresh else sizes.rounds * sizes.turns):
                for measure, (name, relay) in itertools.product(measures, relays.items()):
                    with noted(name, notes):
                        found[name].append(measure(relay, number * 100 + turn))
                if not fresh and (turn + 1) % sizes.turns == 0:
                    yield found
                    found = {name: [] for name in variants}
            if fresh:
                for name, relay in relays.items():
                    found[name] += _memory(relay, "loaded")
                yield found


@contextmanager
def noted(name: str, notes: list[str]) -> Iterator[None]:
    """What fails here is a note about `name`, so that the rest of a long run is not lost."""
    try:
        yield
    except (driver.BenchmarkFailed, OSError) as error:
        notes.append(f"{name} failed: {str(error).splitlines()[0]}")


def _started(stack: ExitStack, variant: Variant, upstream: str) -> tuple[Relay, list[Slice]]:
    """Start it on all cores, then hold it to the relays' core; its start to the first response, and
    its memory then.
    """
    with machine.Steal() as steal, machine.on_cores(machine.CORES):
        began = time.perf_counter()
        relay = stack.enter_context(variant(upstream))
        relay.wait_for_first_response()
        start = 1e3 * (time.perf_counter() - began)
    if relay.process is None:
        return relay, []
    machine.hold(relay.pid, machine.RELAYS)
    return relay, [Slice(steal.cores, {"start": start}), *_memory(relay, "idle")]


def _memory(relay: Relay, when: str) -> list[Slice]:
    if relay.process is None:
        return []
    found = machine.memory(relay.pid)
    return [Slice(0.0, {f"{when} rss": found.rss, f"{when} pss": found.pss})]


def _warm_up(relay: Relay) -> None:
    driver.run(relay.port, relay.request(), responses=50, connections=CONNECTIONS)
    stream = relay.request("events=20", stream=True)
    driver.run(relay.port, stream, responses=20, connections=CONNECTIONS)


# --- room: many streams in one worker ------------------------------------------------------------

OPENED_PER_SECOND = 500
HELD_GAP = 1.5  # seconds between the events of each


@dataclass(frozen=True)
class Held:
    """Many streams at once in a fresh relay: those not complete, and KiB for each open one."""

    streams: int
    errors: int
    kib: float


def hold(variant: Variant, upstream: str, streams: int) -> Held:
    """Open so many streams, measure the memory while they are open, read all to their end."""
    memory: list[tuple[int, float]] = []
    with ExitStack() as stack:
        relay, _ = _started(stack, variant, upstream)
        _warm_up(relay)
        idle = machine.memory(relay.pid).pss

        def look(opened: int) -> None:
            memory.append((opened, machine.memory(relay.pid).pss))

        at = streams / OPENED_PER_SECOND + 2
        events = math.ceil((at + 2) / HELD_GAP)
        request = relay.request(f"events={events}; gap={HELD_GAP}", stream=True)
        plan = [Planned(number / OPENED_PER_SECOND, request) for number in range(streams)]
        found = driver.open_loop(relay.port, plan, patience=at + 30, at=at, look=look)
    whole = sum(each.complete and each.events > events for each in found)
    opened, pss = memory[0] if memory else (0, idle)
    return Held(streams, streams - whole, 1024 * (pss - idle) / opened if opened else float("nan"))


# --- mixed traffic, and what everybody counts of it ----------------------------------------------

MIXED_RATE = 40.0
MIXED_SECONDS = 2.5
LATENCY = 0.050  # of the provider


@dataclass
class Mixed:
    """Mixed traffic through one relay: its slices, what clients saw, what was counted."""

    slices: list[Slice]
    seen: Counter[str]
    provider: Counted
    relay: Counted | None


def mixed(
    variants: Mapping[str, Variant], simulator: Simulator, sizes: Sizes, notes: list[str]
) -> dict[str, Mixed]:
    """Calls and streams at a fixed rate; of a hundred one is left by its client, and one fails at
    the provider.
    """
    with ExitStack() as stack:
        relays = {}
        for name, variant in variants.items():
            with noted(name, notes):
                relays[name], _ = _started(stack, variant, simulator.url)
        before = {name: relay.count() for name, relay in relays.items()}
        found = {name: Mixed([], Counter(), Counted(), None) for name in relays}
        for turn in range(sizes.mixed_turns):
            for name, relay in relays.items():
                with machine.Steal() as steal:
                    responses = driver.open_loop(relay.port, _mixture(relay, name, turn))
                found[name].slices.append(Slice(steal.cores, {}, _latencies(responses)))
                found[name].seen.update(map(_outcome, responses))
        _wait_until_idle(simulator)
        books = simulator.books()
        for name, relay in relays.items():
            found[name].provider = provider = of_provider(books, _book(name), PRICES)
            found[name].relay = _settled(relay, before[name], provider)
    return found


def _book(name: str) -> str:
    return name.replace(" ", "-")


def _mixture(relay: Relay, name: str, turn: int) -> list[Planned]:
    stream = f"events={EVENTS}; gap={GAP}; delay={LATENCY}; book={_book(name)}"
    failing = relay.request(f"status=500; delay={LATENCY}; book={_book(name)}")
    calling = relay.request(f"delay={LATENCY}; book={_book(name)}")
    streaming = relay.request(stream, stream=True)
    plan = []
    for number, at in enumerate(arrivals(MIXED_RATE, MIXED_SECONDS, turn)):
        if number % 100 == 13:
            plan.append(Planned(at, failing))
        elif number % 100 == 57:
            plan.append(Planned(at, streaming, leave_after=5))
        else:
            plan.append(Planned(at, streaming if number % 2 else calling))
    return plan


def _latencies(responses: Sequence[driver.Response]) -> dict[str, list[float]]:
    whole = [response for response in responses if response.complete and response.status == 200]
    return {
        "call": [1e3 * (each.end - each.due) for each in whole if not each.events],
        "ttft": [1e3 * (each.first - each.due) for each in whole if each.events],
    }


def _outcome(response: driver.Response) -> str:
    if response.left:
        return "left"
    return str(response.status) if response.complete else "broken"


def _wait_until_idle(simulator: Simulator) -> None:
    eventually(lambda: simulator.stats()["open"] == 0, 30, what="no open request at the provider")


def _settled(relay: Relay, before: Counted | None, provider: Counted) -> Counted | None:
    """What the relay has counted since `before`, once it has counted as many requests as there
    were, or 10 s later.
    """
    end = time.monotonic() + 10
    while True:
        found = relay.count()
        if found is None:
            return None
        since = found - (before or Counted())
        if since.requests >= provider.requests or time.monotonic() > end:
            return since
        time.sleep(0.2)


# --- throughput ----------------------------------------------------------------------------------


def throughput(variants: Mapping[str, Variant], upstream: str, sizes: Sizes) -> Iterator[Round]:
    """Responses a second, and CPU of all workers for one, with a provider that takes 50 ms and with
    one that responds at once; nothing is held to a core.
    """
    with ExitStack() as stack:
        relays = {name: stack.enter_context(each(upstream)) for name, each in variants.items()}
        for relay in relays.values():
            relay.wait_for_first_response()
            _warm_up(relay)
        for _ in range(sizes.rounds):
            found: Round = {name: [] for name in variants}
            for _ in range(sizes.turns):
                for orders, when in ((f"delay={LATENCY}", "slow"), ("", "fast")):
                    for name, relay in relays.items():
                        found[name].append(_rate(relay, orders, when))
            yield found


def _rate(relay: Relay, orders: str, when: str) -> Slice:
    before = machine.cpu_seconds(relay.pid)
    with machine.Steal() as steal:
        load = driver.run(relay.port, relay.request(orders), seconds=1.0, connections=64)
    used = 1e3 * (machine.cpu_seconds(relay.pid) - before) / load.responses
    return Slice(steal.cores, {f"{when} rate": load.responses / load.seconds, f"{when} cpu": used})


# --- where the CPU time goes ----------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """CPU milliseconds for a response, the share of the system in it, and samples by function."""

    milliseconds: float
    system: float
    samples: dict[str, int]


def profile(upstream: str, seconds: float, *, stream: bool) -> Profile:
    """Sample a worker under load (`sampler`)."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        file = Path(directory, "samples")
        variant = feature(hook=f"profile:{file}")
        relay, _ = _started(stack, variant, upstream)
        _warm_up(relay)
        worker = processes.children(relay.pid)[0]
        request = relay.request(f"events={BURST}" if stream else "", stream=stream)
        before, system = processes.cpu_seconds(worker), machine.system_seconds(worker)
        os.kill(worker, signal.SIGUSR2)
        load = driver.run(relay.port, request, seconds=seconds, connections=CONNECTIONS)
        os.kill(worker, signal.SIGUSR2)
        used = processes.cpu_seconds(worker) - before
        system = machine.system_seconds(worker) - system
        eventually(file.exists, 20, what="the samples of the worker")
        return Profile(1e3 * used / load.responses, system / used, json.loads(file.read_text()))
