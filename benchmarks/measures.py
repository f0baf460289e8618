"""The measurements: CPU time of the worker from /proc, memory, start-up, delay of events."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from benchmarks import driver
from benchmarks.variants import Relay, Variant, chat_request, wait_for_first_response
from harness import processes

# Streams of the CPU measurement: one event every 10 ms each, so that events arrive one by one.
STREAMS_AT_ONCE = 20
EVENTS_PER_STREAM = 100
GAP = 0.010
UNARY_AT_ONCE = 8


@dataclass
class Cost:
    """One slice of the load on one variant: milliseconds of its worker's CPU."""

    unary_cpu: float
    event_cpu: float


@dataclass
class Rate:
    """Requests per second, and milliseconds of all workers' CPU for one."""

    per_second: float
    cpu: float


@dataclass
class Start:
    """One start of one variant, running alone. Milliseconds and MiB."""

    idle_rss: float
    idle_pss: float
    loaded_rss: float
    loaded_pss: float
    start_up: float


@dataclass
class Delay:
    """Delay of events from the provider to the client, in milliseconds."""

    events: int
    median: float
    p99: float
    longest: float


def costs(
    variants: Mapping[str, Variant], upstream: str, *, slices: int, requests: int
) -> Iterator[dict[str, Cost]]:
    """Run all variants at once, with load on one at a time.

    The speed of a machine changes from second to second: the slices of one round are close
    together in time, so their differences come from the variants.
    """
    with ExitStack() as stack:
        relays = {name: stack.enter_context(start(upstream)) for name, start in variants.items()}
        for relay in relays.values():
            wait_for_first_response(relay)
            _warm_up(relay)
        for _ in range(slices):
            yield {
                name: Cost(1e3 * _unary_cpu(relay, requests), 1e3 * _event_cpu(relay))
                for name, relay in relays.items()
            }


def rates(
    variants: Mapping[str, Variant], upstream: str, *, slices: int, requests: int
) -> Iterator[dict[str, Rate]]:
    """As `costs`, of unary requests to gateways with several workers, and their throughput."""
    with ExitStack() as stack:
        relays = {name: stack.enter_context(start(upstream)) for name, start in variants.items()}
        for relay in relays.values():
            wait_for_first_response(relay)
            _unary(relay, requests)
        for _ in range(slices):
            yield {name: _unary(relay, requests) for name, relay in relays.items()}


def _unary(relay: Relay, requests: int) -> Rate:
    workers = relay.workers()
    before = sum(map(processes.cpu_seconds, workers))
    load = driver.run(
        relay.port, chat_request(relay.key), responses=requests, connections=4 * UNARY_AT_ONCE
    )
    used = sum(map(processes.cpu_seconds, workers)) - before
    return Rate(requests / load.seconds, 1e3 * used / requests)


def start(variant: Variant, upstream: str, *, requests: int) -> Start:
    """Start the variant, wait for its first response, then put load on it."""
    started = time.perf_counter()
    with variant(upstream) as relay:
        start_up = wait_for_first_response(relay) - started
        idle = processes.memory(relay.worker())
        _warm_up(relay)
        _unary_cpu(relay, requests)
        _event_cpu(relay)
        loaded = processes.memory(relay.worker())
    mib = 1024 * 1024
    return Start(
        idle_rss=idle.rss / mib,
        idle_pss=idle.pss / mib,
        loaded_rss=loaded.rss / mib,
        loaded_pss=loaded.pss / mib,
        start_up=start_up * 1e3,
    )


def _warm_up(relay: Relay) -> None:
    driver.run(relay.port, chat_request(relay.key), responses=50, connections=UNARY_AT_ONCE)
    stream = chat_request(relay.key, "events=20", stream=True)
    driver.run(relay.port, stream, responses=5, connections=5)


def _unary_cpu(relay: Relay, requests: int) -> float:
    """Seconds of CPU for one unary request."""
    before = processes.cpu_seconds(relay.worker())
    driver.run(relay.port, chat_request(relay.key), responses=requests, connections=UNARY_AT_ONCE)
    return (processes.cpu_seconds(relay.worker()) - before) / requests


def _event_cpu(relay: Relay) -> float:
    """Seconds of CPU for one streamed event, with its share of the stream's fixed cost."""
    orders = f"events={EVENTS_PER_STREAM}; gap={GAP}"
    request = chat_request(relay.key, orders, stream=True)
    before = processes.cpu_seconds(relay.worker())
    load = driver.run(relay.port, request, responses=STREAMS_AT_ONCE, connections=STREAMS_AT_ONCE)
    used = processes.cpu_seconds(relay.worker()) - before
    if load.events < STREAMS_AT_ONCE * EVENTS_PER_STREAM:
        raise driver.BenchmarkFailed(f"{load.events} events instead of {EVENTS_PER_STREAM} each")
    return used / load.events


def delay(
    through: AbstractContextManager[Relay], *, streams: int, events: int, gap: float = 0.020
) -> Delay:
    """The delay of stamped events, one every `gap` seconds in each of `streams` at once."""
    with through as relay:
        wait_for_first_response(relay)
        orders = f"stamp; events={events}; gap={gap}"
        load = driver.run(
            relay.port,
            chat_request(relay.key, orders, stream=True),
            responses=streams,
            connections=streams,
            record=True,
        )
    late = sorted(1e3 * d for recording in load.recordings for d in driver.delays(recording))
    if len(late) < streams * events:
        raise driver.BenchmarkFailed(f"{len(late)} stamped events of {streams * events}")
    return Delay(
        events=len(late),
        median=statistics.median(late),
        p99=late[int(len(late) * 0.99)],
        longest=late[-1],
    )
