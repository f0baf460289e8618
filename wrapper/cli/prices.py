"""Writes config/prices.toml: `make prices`.

Most of it is from the PyPI package `genai-prices`; what that does not have stands in
prices.units.toml beside it, a table with source and date on each line.

A tool for maintainers: the package is a development dependency, and both files are reviewed and
committed. Invariant: the same package and table on the same day give the same bytes, so that a
change in the file is a change of a price.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genai_prices.data import providers
from genai_prices.types import (
    ClauseEquals,
    ClauseOr,
    ClauseStartsWith,
    MatchLogic,
    ModelInfo,
    ModelPrice,
    Provider,
    TieredPrices,
)

REVIEWED = Path(__file__).resolve().parents[2] / "config" / "prices.units.toml"

Entry = dict[str, Any]  # a table of the file

PROVIDERS = {
    "groq": "api.groq.com",
    "openai": "api.openai.com",
    "mistral": "api.mistral.ai",
    "together": "api.together.xyz",
    "openrouter": "openrouter.ai",
    "anthropic": "api.anthropic.com",
    "google": "generativelanguage.googleapis.com",
    "xai": "api.x.ai",
}
IDS = {"xai": "x-ai"}  # the package's name, where it is another
MORE_HOSTS = {"together": ("api.together.ai", "us-api.together.ai", "ca-api.together.ai")}

# The name of a price here and in the package, in the order of the file.
NAMES = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_long": "cache_write_1h_mtok",
    "output": "output_mtok",
    "audio_input": "input_audio_mtok",
    "cached_audio": "cache_audio_read_mtok",
    "image_input": "input_image_mtok",
    "cached_image": "cache_image_read_mtok",
    "audio_output": "output_audio_mtok",
    "image_output": "output_image_mtok",
    "audio_hour": "audio_hours",
}
# Units: their name here and in the package, and how many the package's price is for.
UNITS = {
    "character": ("input_mchars", 1_000_000),
    "web_search": ("web_searches_kcount", 1_000),
    "file_search": ("storage_searches_kcount", 1_000),
    "rerank_search": ("rerank_searches_kcount", 1_000),
}
# The service tiers, as responses name them, and what the package calls them.
SERVICE_TIERS = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast"},
}
SPEED_TIERS = {"fast": {"speed": "fast"}}  # Anthropic's

HEADER = """\
# Prices in USD per million tokens (audio_hour: per hour of audio; units: for one), made by
# `make prices` from genai-prices {version}, as they stand on {day}, and from prices.units.toml. Do
# not edit: put your own prices into gateway.toml, where they win:
#
#     [prices."my-model"]
#     input = 0.15
#     cached_input = 0.075
#     output = 0.6
#
# The layout is described in wrapper/metering/pricing.py. What is not here (fees per stored byte,
# containers, tools without a published price) makes a response "unpriced".
"""


def main(arguments: list[str]) -> int:
    """Writes the file that the one argument names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args(arguments).file
    # Some prices change with the time of day: noon, whenever this is run.
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    file.write_text(render(noon), "utf-8")
    return 0


def render(at: datetime) -> str:
    """The text of prices.toml with the prices in force at `at`."""
    known = {provider.id: provider for provider in providers}
    lines = [HEADER.format(version=version("genai-prices"), day=at.date().isoformat())]
    for name, host in PROVIDERS.items():
        hosts = ", ".join(json.dumps(each) for each in (host, *MORE_HOSTS.get(name, ())))
        lines += [f"[providers.{name}]", f"match = [{hosts}]"]
        if found := regions(name):
            lines.append(f"regions = {inline(found)}")
        lines += ["", f"[providers.{name}.models]"]
        models = entries(known[IDS.get(name, name)], at)
        add_reviewed(name, models)
        lines += [f"{json.dumps(model)} = {inline(models[model])}" for model in sorted(models)]
        lines.append("")
    return "\n".join(lines)


def entries(provider: Provider, at: datetime) -> dict[str, Entry]:
    """The prices of a provider's models, by name.

    The first model with a name wins, as in the package.
    """
    found: dict[str, Entry] = {}
    for model in provider.models:
        entry = priced(model, at)
        for name in names(model.match):
            if entry:
                found.setdefault(name.lower(), said(provider.id, name, dict(entry)))
    return found


def regions(provider: str) -> list[Entry]:
    """Where the provider's tokens cost more, from the reviewed table."""
    found = []
    for line in reviewed():
        if line["provider"] == provider and "times" in line:
            names = ("host", "geo", "times", "models", "released")
            entry = {name: line[name] for name in names if name in line}
            if "released" in entry:
                entry["released"] = entry["released"].isoformat()
            found.append(entry)
    return found


def reviewed() -> list[Entry]:
    """The lines of the reviewed table."""
    lines: list[Entry] = tomllib.loads(REVIEWED.read_text("utf-8"), parse_float=Decimal)["price"]
    return lines


def add_reviewed(provider: str, models: dict[str, Entry]) -> None:
    """Put the lines of the reviewed table into the prices of a provider."""
    for line in reviewed():
        if line["provider"] != provider or "times" in line:
            continue
        if line["model"] == "*":
            entries_ = list(models.values())
        else:
            entries_ = [models.setdefault(line["model"], {})]
        for entry in entries_:
            if "unit" in line:
                entry["units"] = {**entry.get("units", {}), line["unit"]: Decimal(line["usd"])}
            elif "service_tier" in line:
                tiers = entry.get("service_tiers", {})
                entry["service_tiers"] = {**tiers, line["service_tier"]: line["same_as"]}
            elif "uncounted" in line:
                entry["uncounted"] = line["uncounted"]
            else:
                entry["minimum_seconds"] = line["minimum_seconds"]


def said(provider: str, model: str, entry: Entry) -> Entry:
    """Prices that the package leaves to the reader: what a model's only kind of output costs, and
    that a provider's text prices are for audio and images as well.
    """
    kinds: tuple[tuple[str, str], ...] = ()
    if provider == "openai" and model.startswith("gpt-image"):
        kinds = (("image_output", "output"),)
    elif provider == "openai" and "-tts" in model:
        kinds = (("audio_output", "output"),)
    elif provider == "google":
        kinds = (("audio_input", "input"), ("audio_output", "output"), ("image_output", "output"))
    tiers = entry.get("service_tiers", {}).values()
    for table in (entry, *(tier for tier in tiers if not isinstance(tier, str))):
        for each in (table, *table.get("tiers", ())):
            for name, same in kinds:
                if name not in each and same in each:
                    each[name] = each[same]
    return entry


def priced(model: ModelInfo, at: datetime) -> Entry:
    """A model's prices, with those of its service tiers and units; empty where none is known."""
    standard = model.get_prices(at)
    entry = rates(standard)
    if not entry and not any(getattr(standard, theirs) for theirs, _ in UNITS.values()):
        return {}
    tiers: dict[str, Entry | str] = {}
    for tiers_of in (SERVICE_TIERS, SPEED_TIERS):
        for tier, context in tiers_of.items():
            if not any(variant.when == context for variant in model.price_variants or ()):
                continue
            values = rates(model.get_prices(at, context))
            same = next((name for name, each in tiers.items() if each == values), None)
            tiers[tier] = values if same is None else same
    if tiers:
        entry["service_tiers"] = tiers
    units = {
        ours: base(price) / per
        for ours, (theirs, per) in UNITS.items()
        if (price := getattr(standard, theirs)) is not None
    }
    if units:
        entry["units"] = units
    return entry


def rates(price: ModelPrice) -> Entry:
    """The prices of tokens and hours, and those of long prompts."""
    values = {ours: getattr(price, theirs) for ours, theirs in NAMES.items()}
    entry: Entry = {name: base(value) for name, value in values.items() if value is not None}
    starts = sorted(
        {
            tier.start
            for value in values.values()
            if isinstance(value, TieredPrices)
            for tier in value.tiers
        }
    )
    if starts:
        entry["tiers"] = [tier(values, start) for start in starts]
    return entry


def tier(values: dict[str, Decimal | TieredPrices | None], start: int) -> Entry:
    """All prices for prompts of more than `start` tokens."""
    entry: Entry = {"above": start}
    for name, value in values.items():
        if isinstance(value, TieredPrices):
            price = value.base
            for each in value.tiers:
                if each.start <= start:
                    price = each.price
            entry[name] = price
        elif value is not None:
            entry[name] = value
    return entry


def base(value: Decimal | TieredPrices) -> Decimal:
    """The price of a short prompt."""
    return value.base if isinstance(value, TieredPrices) else value


def names(match: MatchLogic) -> Iterator[str]:
    """The names a rule is for.

    Patterns are left out: they match dated versions, for which the gateway uses the price of the
    name without the date.
    """
    if isinstance(match, ClauseEquals):
        yield match.equals
    elif isinstance(match, ClauseStartsWith):
        yield f"{match.starts_with}*"
    elif isinstance(match, ClauseOr):
        for each in match.or_:
            yield from names(each)


def inline(value: object) -> str:
    """The value as TOML writes it in one line."""
    if isinstance(value, Mapping):
        parts = [f"{_key(name)} = {inline(each)}" for name, each in value.items()]
        return f"{{ {', '.join(parts)} }}"
    if isinstance(value, list):
        return f"[{', '.join(inline(each) for each in value)}]"
    return number(value) if isinstance(value, Decimal) else json.dumps(value)


def _key(name: str) -> str:
    return name if name.isidentifier() else json.dumps(name)


def number(value: Decimal) -> str:
    """The number as TOML spells a float, always with a point."""
    text = f"{value.normalize():f}"
    return text if "." in text else f"{text}.0"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
