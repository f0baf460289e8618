"""Makes a month of history for Prometheus, and times the dashboards' queries on it.

    python tools/history.py --keys 50 --models 20 --days 30 --calls 500000

Writes OpenMetrics, turns it into blocks (`promtool tsdb create-blocks-from openmetrics`), starts a
Prometheus on them, and asks every query of every dashboard as Grafana would over 1 h, 24 h and the
whole time: the slowest are printed, with the samples that each touched. The history has what the
queries read: the parts of a quarter of a minute (as many as calls), the sums by key, and of the
counters the samples near the times that are compared.

Needs `requests`, prometheus and promtool. It judges nothing: that is for the reader.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parent.parent
DAY = 86400
STEP = 15
COUNTERS = ("api_key_requests", "token_usage", "token_usage_prompt", "token_usage_completion",
            "token_usage_cached", "api_key_cost_usd")  # fmt: skip
SUMS = COUNTERS[:2] + COUNTERS[-1:]

Labels = tuple[int, int]
Json = dict[str, Any]


def calls(keys: int, models: int, count: int, begin: int, end: int) -> dict[Labels, list[int]]:
    """The times of the calls of each key and model, more at noon than at night."""
    made: dict[Labels, list[int]] = defaultdict(list)
    chance = random.Random(1)  # noqa: S311  # the same history each time
    while sum(map(len, made.values())) < count:
        for _ in range(10_000):
            moment = chance.randrange(begin, end, STEP)
            if chance.random() < 0.2 + 0.8 * (1 - abs(moment % DAY / DAY - 0.5) * 2):
                pair = int(chance.random() ** 2 * keys), int(chance.random() ** 2 * models)
                made[pair].append(moment)
    return {pair: sorted(set(times)) for pair, times in made.items()}


def lines(made: dict[Labels, list[int]], looked_at: list[int], end: int) -> Iterator[str]:
    """The history as OpenMetrics, family by family."""
    amount = dict(zip(COUNTERS, (1, 900, 700, 200, 100, 0.002), strict=True))
    for metric in COUNTERS:
        yield f"# TYPE {metric} unknown\n"
        for pair, times in made.items():
            at = 0
            for moment in looked_at:
                while at < len(times) and times[at] <= moment:
                    at += 1
                yield f"{metric}_total{_labels(metric, pair)} {at * amount[metric]} {moment}\n"
    for metric in SUMS:
        yield f"# TYPE {metric}:grown15s unknown\n"
        for pair, times in made.items():
            labels = _labels(metric, pair)
            for moment in times:
                yield f"{metric}:grown15s{labels} {amount[metric]} {moment}\n"
        yield f"# TYPE key:{metric}:sum unknown\n"
        for key in sorted({key for key, _ in made}):
            for moment in range(looked_at[0], end, 60):
                yield f'key:{metric}:sum{{api_key="key-{key}"}} {moment - looked_at[0]} {moment}\n'
    yield from _times(made)
    yield from _parts_of_cost(made, looked_at)
    yield "# EOF\n"


def _times(made: dict[Labels, list[int]]) -> Iterator[str]:
    """The seconds and numbers of answers, by key, and by provider and model."""
    keys: dict[str, set[int]] = defaultdict(set)
    models: dict[str, set[int]] = defaultdict(set)
    for (key, model), times in made.items():
        keys[f'job="wrapper",instance="g",api_key="key-{key}"'].update(times)
        models[f'provider="p{model % 3}",model="m-{model}"'].update(times)
    for metric, series in {
        "api_key_request_duration_seconds": keys,
        "api_key_time_to_first_token_seconds": keys,
        "provider_model:request_duration_seconds": models,
    }.items():
        for part, value in (("sum", 2.5), ("count", 1)):
            yield f"# TYPE {metric}_{part}:grown15s unknown\n"
            for labels, moments in series.items():
                for moment in sorted(moments):
                    yield f"{metric}_{part}:grown15s{{{labels}}} {value} {moment}\n"


def _parts_of_cost(made: dict[Labels, list[int]], looked_at: list[int]) -> Iterator[str]:
    """The cost by kind, and the bounds of calls that broke off: one in twenty."""
    keys: dict[int, set[int]] = defaultdict(set)
    for (key, _), times in made.items():
        keys[key].update(times)
    kinds = ("input", "cached_input", "cache_write", "output")
    name = "api_key_cost_by_kind_usd"
    yield f"# TYPE {name} unknown\n"
    by_kind = [(f'job="wrapper",instance="g",api_key="key-{key}",kind="{kind}"', sorted(times))
               for key, times in keys.items() for kind in kinds]  # fmt: skip
    for labels, times in by_kind:
        for moment in looked_at:
            yield f"{name}_total{{{labels}}} {bisect_right(times, moment) * 0.0005} {moment}\n"
    yield f"# TYPE {name}:grown15s unknown\n"
    for labels, times in by_kind:
        for moment in times:
            yield f"{name}:grown15s{{{labels}}} 0.0005 {moment}\n"
    for metric, bounds in (
        ("api_key_bounded_requests", ("",)),
        ("token_usage_bounded", ("low", "high")),
        ("api_key_cost_bounded_usd", ("low", "high")),
    ):
        yield f"# TYPE {metric} unknown\n"
        for pair, times in made.items():
            for bound in bounds:
                more = f',bound="{bound}"}}' if bound else "}"
                labels = _labels(metric, pair).removesuffix("}") + more
                for moment in looked_at:
                    number = bisect_right(times, moment) // 20
                    yield f"{metric}_total{labels} {number} {moment}\n"


def _labels(metric: str, pair: Labels) -> str:
    more = ',outcome="completed"' if metric == COUNTERS[0] else ""
    key, model = pair
    return f'{{job="wrapper",instance="g",api_key="key-{key}",provider="p{model % 3}",model="m-{model}"{more}}}'


def queries(seconds: int) -> Iterator[tuple[str, str, int]]:
    """Panel, query and step (0: an instant query) over that time."""
    sys.path.insert(0, str(ROOT))
    for file in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(file.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                instant = target.get("instant", False)
                least = panel.get("interval", "5s")
                unit = {"s": 1, "m": 60, "h": 3600, "d": DAY}[least[-1]]
                step = max(int(least[:-1]) * unit, seconds // 700 // 15 * 15)
                yield (
                    f"{dashboard['title']}: {panel['title']} ({target['refId']})",
                    filled(target["expr"], seconds, step),
                    0 if instant else step,
                )


def filled(expr: str, seconds: int, step: int) -> str:
    """The query with everything chosen; of One Key the first key."""
    macros = {"__rate_interval": f"{step + 15}s", "__interval": f"{step}s", "__range": f"{seconds}s",
              "__interval_ms": str(step * 1000)}  # fmt: skip
    expr = re.sub(r"\$(__\w+)", lambda m: macros[m[1]], expr).replace('="$api_key"', '="key-0"')
    return re.sub(r"\$[a-z_]\w*", ".*", expr.replace('=~"key-0"', '=~".*"'))


def ask(url: str, expr: str, step: int, begin: int, end: int) -> tuple[float, int]:
    """Seconds, and the samples that were touched."""
    asked: Json = {"query": expr, "stats": "all"}
    asked |= {"start": begin, "end": end, "step": step} if step else {"time": end}
    began = time.perf_counter()
    path = "query_range" if step else "query"
    answer = requests.get(f"{url}/api/v1/{path}", params=asked, timeout=120).json()
    took = time.perf_counter() - began
    if answer["status"] != "success":
        raise ValueError(f"{answer['error']} in {expr}")
    return took, answer["data"]["stats"]["samples"]["totalQueryableSamples"]


def serve(directory: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A Prometheus on the blocks that scrapes nothing."""
    (directory / "prometheus.yml").write_text("global: {scrape_interval: 5s}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["prometheus", f"--config.file={directory}/prometheus.yml", "--log.level=error",
         f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{port}",
         "--storage.tsdb.retention.time=90d"]
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            if requests.get(f"{url}/-/ready", timeout=1).ok:
                break
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    return process, url


def main(given: list[str]) -> int:
    """Read the arguments, make the history, time the queries; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("keys", 50), ("models", 20), ("days", 30), ("calls", 500_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--show", type=int, default=12, help="how many of the slowest")
    options = parser.parse_args(given)
    end = int(time.time()) // STEP * STEP - 2 * 3600
    begin = end - options.days * DAY
    compared = {begin, end - 7 * DAY, end - DAY, end - 3600, end}
    looked_at = sorted(at - back for at in compared for back in (0, 60))
    with tempfile.TemporaryDirectory(prefix="history-") as name:
        directory = Path(name)
        made = calls(options.keys, options.models, options.calls, begin, end)
        with (directory / "history.txt").open("w") as file:
            file.writelines(lines(made, looked_at, end))
        subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet",
             "--max-block-duration=744h", directory / "history.txt", directory / "data"],
            check=True,
        )  # fmt: skip
        process, url = serve(directory)
        try:
            for seconds in (3600, DAY, options.days * DAY):
                found = sorted(
                    ((*ask(url, expr, step, end - seconds, end), panel)
                     for panel, expr, step in queries(seconds)), reverse=True,
                )  # fmt: skip
                total = sum(took for took, _, _ in found)
                print(f"over {seconds // 3600} h: {len(found)} queries, {total:.1f} s together")
                for took, samples, panel in found[: options.show]:
                    print(f"  {took:6.3f} s {samples:>12,} samples  {panel}")
        finally:
            process.terminate()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
