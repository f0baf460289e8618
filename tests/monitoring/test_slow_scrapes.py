"""What dashboards add up is exact where a scrape takes seconds, as that of a busy gateway may."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from monitoring.stack import Prometheus

from harness.poll import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Of the 4 s that a scrape may take; the longer, the likelier is an evaluation in between.
SCRAPE_SECONDS = 3.0
SCRAPES = 8  # each of them with a counter that is new, and never grows again
TOKENS = 5


class Exporter(BaseHTTPRequestHandler):
    """/metrics with one counter more at each scrape, from `begin` on."""

    begin = threading.Event()
    exposed = 0

    def do_GET(self) -> None:
        if self.begin.is_set() and Exporter.exposed < SCRAPES:
            Exporter.exposed += 1
        text = "# TYPE token_usage counter\n" + "".join(
            f'token_usage_total{{api_key="k{key}"}} {TOKENS}\n' for key in range(Exporter.exposed)
        )
        time.sleep(SCRAPE_SECONDS)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
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
    eventually(lambda: prometheus.query("up{job='wrapper'} offset 20s == 1"), deadline=90)
    Exporter.begin.set()
    added = "sum by (api_key) (sum_over_time(token_usage:grown15s[10m]))"
    expected = {f"k{number}": float(TOKENS) for number in range(SCRAPES)}

    def is_exact() -> bool:
        counted = prometheus.sums(added, "api_key")
        assert counted == expected, f"{added}: {counted}"
        return True

    eventually(is_exact, deadline=120)
