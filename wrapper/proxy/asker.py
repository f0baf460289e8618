"""The gateway's own questions about deferred work that nobody asks for again.

Each worker looks every few seconds whether a question is due; the store gives each one to one
process, at most one a second over all of them, and about the same object ever less often
(`store.deferred`). The provider is asked as for its list of models: with the gateway's credential,
through an ordinary session.

Invariant: it never holds up a request, and a worker that stops asks nothing more.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from wrapper import errors
from wrapper.metering.batch_output import BatchOutput
from wrapper.metering.price_table import Priced
from wrapper.metering.sights import ENDED, SightExtractor
from wrapper.metering.usage import NO_USAGE, Sight, Usage
from wrapper.proxy.deferred import (
    NEVER_FINISHED,
    NOT_FOUND,
    Booking,
    book,
    bookings_of,
    collection_target,
    object_target,
    remember_waiting,
    unmetered,
)
from wrapper.runtime import Runtime, Snapshot
from wrapper.store import Deferred, StoreError
from wrapper.store.deferred import GAP_SECONDS, KEPT_SECONDS
from wrapper.upstream import Upstream

IDLE_SECONDS: Final = 5.0  # between two looks for a question that is due
TIMEOUT: Final = 30.0  # seconds for an object
MAX_OBJECT: Final = 64 << 20  # bytes
OUTPUT_TIMEOUT: Final = 900.0  # seconds for a batch's output file
MAX_OUTPUT: Final = 4 << 30  # bytes
# A provider may not know a new object at once: how often it has to be asked before it is believed.
ASKS_UNTIL_GONE: Final = 3
# Nor the output file of a batch that has just ended: how long it may take, in seconds.
OUTPUT_APPEARS: Final = 3600.0
_GONE: Final = frozenset((404, 410))

log = logging.getLogger("wrapper")


class Asker:
    """Asks for deferred work in `run`, until `stop`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._stopped = threading.Event()

    def run(self) -> None:
        """To be run in a thread of the worker."""
        pause = 0.0
        while not self._stopped.wait(pause):
            first = self._runtime.snapshot.settings.server.deferred_poll
            pause = GAP_SECONDS if self.ask_once() else min(IDLE_SECONDS, first)

    def stop(self) -> None:
        """Ask nothing more; a question that is being asked comes to its end."""
        self._stopped.set()

    def ask_once(self) -> bool:
        """Ask the question that is due, if there is one: whether there was."""
        runtime = self._runtime
        snapshot = runtime.snapshot
        if not snapshot.settings.server.metering:
            return False
        try:
            remember_waiting(runtime)
            deferred = runtime.store.take(snapshot.settings.server.deferred_poll)
            if deferred is None:
                return False
            self._ask(snapshot, deferred)
        except StoreError as error:
            runtime.store_failed(error)
            return False
        except Exception:  # it is asked again, and the others are
            log.exception("unhandled exception while looking for deferred work")
            return False
        return True

    def _ask(self, snapshot: Snapshot, deferred: Deferred) -> None:
        try:
            end = _ask(snapshot, deferred)
            if end is not None:
                book(self._runtime, deferred, *end)
        except StoreError:
            raise
        except errors.UpstreamError as error:
            log.info("cannot ask provider '%s' for deferred work: %s", deferred.provider, error)
        except Exception:  # the others must go on being asked for
            log.exception("unhandled exception while asking for deferred work")


def _ask(snapshot: Snapshot, deferred: Deferred) -> tuple[list[Booking], float] | None:
    """What the object used, and when it ended; None where that is not known yet. Raises
    UpstreamError.
    """
    if time.time() - deferred.created > KEPT_SECONDS:
        return [unmetered(deferred, NEVER_FINISHED)], 0.0
    upstream = snapshot.upstreams.get(deferred.provider)
    if upstream is None or not upstream.usable:
        return None
    extractor = SightExtractor()
    target = object_target(deferred)
    status = upstream.get(target, extractor.feed, timeout=TIMEOUT, limit=MAX_OBJECT)
    if status in _GONE and deferred.asks >= ASKS_UNTIL_GONE:
        return [unmetered(deferred, NOT_FOUND)], 0.0
    if status != 200:
        return None
    extractor.flush()
    for sight in extractor.extracted().sights:
        if sight.status in ENDED:
            bookings = bookings_of(snapshot, deferred, sight)
            if bookings is None:
                bookings = _read_output(snapshot, upstream, deferred, sight)
            return None if bookings is None else (bookings, sight.ended)
    return None


def _read_output(
    snapshot: Snapshot, upstream: Upstream, deferred: Deferred, sight: Sight
) -> list[Booking] | None:
    """What the requests of a batch used, by its output file."""

    def price(model: str, usage: Usage) -> Priced:
        asked = deferred.model or model
        return snapshot.prices.price(deferred.provider, upstream.host, asked, model, usage)

    output = BatchOutput(price)
    target = collection_target(deferred, "/files", sight.output_file, "/content")
    status = upstream.get(target, output.feed, timeout=OUTPUT_TIMEOUT, limit=MAX_OUTPUT)
    if status in _GONE and deferred.asks >= ASKS_UNTIL_GONE:
        if time.time() - sight.ended < OUTPUT_APPEARS:
            return None
        return [unmetered(deferred, NOT_FOUND)]
    if status != 200:
        return None
    output.flush()
    bookings = [
        Booking(
            *(deferred.model or model, sums.usage, sums.cost, model, sums.unpriced),
            cost_by_kind=sums.kinds,
        )
        for model, sums in output.models.items()
    ]
    if output.unreadable:
        bookings.append(unmetered(deferred, NO_USAGE)._replace(cost=None))
    return bookings
