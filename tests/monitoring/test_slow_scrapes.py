"""What dashboards add up is exact where a scrape takes seconds, as that of a busy gateway may."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest
from monitoring.stack import Prometheus

from harness.poll import PATIENCE, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Of the 4 s that a scrape may take; the longer, the likelier is an evaluation in between.
SCRAPE_SECONDS = 3.0
LONGEST = 3.8  # of one that has certainly come in time
INTERVAL = 5.6  # between two scrapes, and a bit
BEFORE, AFTER = 6, 2  # scrapes around a counter's first one, on which its growth depends
COUNTERS = 8  # each of them new in a scrape of its own, and never growing again
TOKENS = 5


class Scrape(NamedTuple):
    """One scrape: its number from the first one, whether it came and went as it should, and whether
    a counter was new in it.
    """

    number: int
    regular: bool
    has_new: bool


class Exporter(BaseHTTPRequestHandler):
    """/metrics with one counter more at each scrape, between `begin` and `end`."""

    begin = threading.Event()
    end = threading.Event()
    begun: list[float]
    scrapes: list[Scrape]

    def do_GET(self) -> None:
        now = time.monotonic()
        regular = not self.begun or now - self.begun[-1] < INTERVAL
        number, has_new = len(self.begun), self.begin.is_set() and not self.end.is_set()
        self.begun.append(now)
        known = [scrape.number for scrape in self.scrapes if scrape.has_new]
        keys = [*known, number] if has_new else known
        text = "# TYPE token_usage counter\n" + "".join(
            f'token_usage_total{{api_key="k{key}"}} {TOKENS}\n' for key in keys
        )
        time.sleep(SCRAPE_SECONDS)
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            regular = False
        self.scrapes.append(Scrape(number, regular and time.monotonic() - now < LONGEST, has_new))

    def log_message(self, *_: object) -> None:
        """Nothing."""


def certain() -> list[str]:
    """The counters that appeared while scrapes were regular: in time, and none of them missing.

    After a scrape that failed, because the machine stood still, no rule can know what is new.
    """
    regular = {scrape.number: scrape.regular for scrape in Exporter.scrapes}
    return [
        f"k{scrape.number}"
        for scrape in Exporter.scrapes
        if scrape.has_new
        and all(regular.get(scrape.number + by, False) for by in range(-BEFORE, AFTER + 1))
    ]


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    Exporter.begun, Exporter.scrapes = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with Prometheus(f"127.0.0.1:{server.server_port}") as prometheus:
            yield prometheus
    finally:
        server.shutdown()
        server.server_close()


def test_a_counter_that_appears_in_a_slow_scrape_is_counted_whole(prometheus: Prometheus) -> None:
    # From then on a counter that appears is taken for a new one.
    eventually(lambda: prometheus.query("up{job='wrapper'} offset 20s == 1"), deadline=3 * PATIENCE)
    Exporter.begin.set()
    eventually(lambda: len(certain()) >= COUNTERS, deadline=5 * PATIENCE, what="regular scrapes")
    Exporter.end.set()
    added = "sum by (api_key) (sum_over_time(token_usage:grown15s[10m]))"
    expected = dict.fromkeys(certain(), float(TOKENS))

    def is_exact() -> bool:
        counted = prometheus.sums(added, "api_key")
        assert {key: counted.get(key) for key in expected} == expected, f"{added}: {counted}"
        return True

    eventually(is_exact)
