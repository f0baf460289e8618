"""The measurements: CPU time of the worker from /proc, memory, start-up, delay of events."""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks import driver
from benchmarks.variants import Relay, Variant, chat_request, wait_for_first_answer
from harness import processes

# Streams of the CPU measurement: an event every 10 ms each, so that events come one by one.
STREAMS_AT_ONCE = 20
EVENTS_PER_STREAM = 200
GAP = 0.010
UNARY_AT_ONCE = 8


@dataclass
class Sample:
    """One round of one variant. Times in milliseconds, memory in MiB."""

    unary_cpu: float
    event_cpu: float
    idle_rss: float
    idle_pss: float
    loaded_rss: float
    loaded_pss: float
    start_up: float


@dataclass
class Delay:
    """How long events were on their way, in milliseconds."""

    events: int
    median: float
    p99: float
    longest: float


def sample(variant: Variant, upstream: str, *, requests: int) -> Sample:
    """Start the variant anew and measure it once."""
    started = time.perf_counter()
    with variant(upstream) as relay:
        start_up = wait_for_first_answer(relay) - started
        idle = processes.memory(relay.worker())
        _warm_up(relay)
        unary = _unary_cpu(relay, requests)
        event = _event_cpu(relay, streams=max(STREAMS_AT_ONCE, requests // 50))
        loaded = processes.memory(relay.worker())
    mib = 1024 * 1024
    return Sample(
        unary_cpu=unary * 1e3,
        event_cpu=event * 1e3,
        idle_rss=idle.rss / mib,
        idle_pss=idle.pss / mib,
        loaded_rss=loaded.rss / mib,
        loaded_pss=loaded.pss / mib,
        start_up=start_up * 1e3,
    )


def _warm_up(relay: Relay) -> None:
    driver.run(relay.port, chat_request(relay.key), answers=50, connections=UNARY_AT_ONCE)
    stream = chat_request(relay.key, "events=20", stream=True)
    driver.run(relay.port, stream, answers=5, connections=5)


def _unary_cpu(relay: Relay, requests: int) -> float:
    """Seconds of CPU for one unary call."""
    before = processes.cpu_seconds(relay.worker())
    driver.run(relay.port, chat_request(relay.key), answers=requests, connections=UNARY_AT_ONCE)
    return (processes.cpu_seconds(relay.worker()) - before) / requests


def _event_cpu(relay: Relay, *, streams: int) -> float:
    """Seconds of CPU for one streamed event, with its share of the stream's own cost."""
    orders = f"events={EVENTS_PER_STREAM}; gap={GAP}"
    request = chat_request(relay.key, orders, stream=True)
    before = processes.cpu_seconds(relay.worker())
    load = driver.run(relay.port, request, answers=streams, connections=STREAMS_AT_ONCE)
    used = processes.cpu_seconds(relay.worker()) - before
    if load.events < streams * EVENTS_PER_STREAM:
        raise driver.BenchmarkFailed(f"{load.events} events instead of {EVENTS_PER_STREAM} each")
    return used / load.events


def delay(
    through: AbstractContextManager[Relay], *, streams: int, events: int, gap: float = 0.020
) -> Delay:
    """The delay of stamped events, one every `gap` seconds in each of `streams` at once."""
    with through as relay:
        wait_for_first_answer(relay)
        orders = f"stamp; events={events}; gap={gap}"
        load = driver.run(
            relay.port,
            chat_request(relay.key, orders, stream=True),
            answers=streams,
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
