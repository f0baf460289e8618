"""`python -m wrapper.simulator`: start the simulated provider.

Prints one JSON line with its address when it is ready.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
from pathlib import Path

import gevent
from gevent import get_hub

from wrapper.simulator.api.call import Pace
from wrapper.simulator.instructions import HELP, BadInstruction, parse
from wrapper.simulator.ledger import Ledger
from wrapper.simulator.server import Provider, Simulator

_EPILOG = (
    HELP
    + """
Ledger
  GET /_sim/requests   the last requests, as received, and their outcome
  GET /_sim/books      sums of what was really sent, by tag (header x-sim-book, else the
                       body's "user"), model, endpoint, outcome and status
  GET /_sim/stats      open requests and connections
  POST /_sim/reset     delete all of it
  GET /v1/organization/usage/..., /v1/organization/costs
                       the same sums as OpenAI's usage and costs APIs report them, by day (UTC) and
                       model; every model costs 2 USD per million tokens of input, 0.50 cached, and
                       8 of output

Usage
  prompt = words in the texts of the request, at least 1 and never more than its bytes; completion =
  pieces of content over all choices, plus reasoning, at most max_completion_tokens, max_tokens or
  max_output_tokens for each choice (finish_reason "length"); the same with and without streaming.
"""
)


def _arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wrapper.simulator",
        description="An OpenAI-compatible provider that makes up its responses and says so.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8099, help="0: any free port (default 8099)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="before each head")
    parser.add_argument("--gap", type=float, default=0.0, metavar="S", help="between two events")
    parser.add_argument("--events", type=int, metavar="N", help="pieces of content of a response")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("SIMULATOR_API_KEY", ""),
        metavar="KEY",
        help="the only key to accept; better given as SIMULATOR_API_KEY, which no process list"
        " shows (default: any, or none)",
    )
    parser.add_argument(
        "--admin-key",
        default=os.environ.get("SIMULATOR_ADMIN_KEY", ""),
        metavar="KEY",
        help="the only key to accept below organization/; better given as SIMULATOR_ADMIN_KEY"
        " (default: that of --api-key)",
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="PEM", help="serve TLS; the key is in the same file"
    )
    parser.add_argument(
        "--x-sim", default="", metavar="INSTRUCTIONS", help="instructions for every request"
    )
    parser.add_argument(
        "--any-model",
        action="store_true",
        help="accept every model name (default: 404 for a name that GET models does not list)",
    )
    parser.add_argument(
        "--no-echo",
        action="store_true",
        help="404 for paths that are not in the API (default: respond with the request itself)",
    )
    parser.add_argument(
        "--remember", type=int, default=1000, metavar="N", help="requests kept for /_sim/requests"
    )
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="stop when standard input ends"
    )
    arguments = parser.parse_args(given)
    try:
        parse(arguments.x_sim)
    except BadInstruction as problem:
        parser.error(str(problem))
    return arguments


def main(given: list[str]) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    arguments = _arguments(given)
    pace = Pace(arguments.latency, arguments.gap, arguments.events)
    ledger = Ledger(arguments.remember)
    provider = Provider(
        pace,
        ledger,
        arguments.api_key,
        arguments.admin_key,
        arguments.x_sim,
        arguments.any_model,
        echo=not arguments.no_echo,
    )
    try:
        simulator = Simulator(arguments.host, arguments.port, provider, arguments.certificate)
    except OSError as problem:
        address = f"{arguments.host}:{arguments.port}"
        print(f"simulator: cannot listen on {address}: {problem.strerror}", file=sys.stderr)
        return 1
    simulator.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, simulator.stop)
    if arguments.exit_with_parent:
        gevent.spawn(_follow_parent, simulator)
    gc.collect()
    gc.freeze()
    line = {"event": "listening", "host": arguments.host, "port": simulator.port}
    print(json.dumps(line), flush=True)
    simulator.serve_forever()
    return 0


def _follow_parent(simulator: Simulator) -> None:
    """Stop when standard input ends, which it does when the parent process is gone."""
    watcher = get_hub().loop.io(0, 1)
    try:
        while True:
            get_hub().wait(watcher)
            if not os.read(0, 4096):
                break
    finally:
        watcher.close()
    simulator.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
