"""Writes config/prices.toml from the PyPI package `genai-prices`: `make prices`.

A tool for maintainers: the package is a development dependency, and the file is reviewed and
committed. Invariant: the same package on the same day gives the same bytes, so that a change in
the file is a change of a price.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

from genai_prices.data import providers
from genai_prices.types import (
    ClauseEquals,
    ClauseOr,
    ClauseStartsWith,
    MatchLogic,
    ModelPrice,
    Provider,
    TieredPrices,
)

PROVIDERS = {
    "groq": "api.groq.com",
    "openai": "api.openai.com",
    "mistral": "api.mistral.ai",
    "together": "api.together.xyz",
    "openrouter": "openrouter.ai",
}
MORE_HOSTS = {"together": ("api.together.ai",)}

# The name of a price here and in the package, in the order of the file.
NAMES = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "output": "output_mtok",
    "audio_input": "input_audio_mtok",
    "image_input": "input_image_mtok",
    "audio_output": "output_audio_mtok",
    "image_output": "output_image_mtok",
    "audio_hour": "audio_hours",
}

HEADER = """\
# Prices in USD per million tokens (audio_hour: per hour of audio), made by `make prices` from
# genai-prices {version}, as they stand on {day}. Do not edit: put your own prices into
# gateway.toml, where they win:
#
#     [prices."my-model"]
#     input = 0.15
#     cached_input = 0.075
#     output = 0.6
#
# The layout is described in wrapper/metering/pricing.py. What is here are the standard prices: not
# those of batches, flex or priority processing, nor fees per search or per stored byte.
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
        lines += [f"[providers.{name}]", f"match = [{hosts}]", "", f"[providers.{name}.models]"]
        lines += [f"{json.dumps(model)} = {entry}" for model, entry in entries(known[name], at)]
        lines.append("")
    return "\n".join(lines)


def entries(provider: Provider, at: datetime) -> list[tuple[str, str]]:
    """Names and prices of a provider's models, sorted by name.

    The first model with a name wins, as in the package.
    """
    found: dict[str, str] = {}
    for model in provider.models:
        prices = inline(model.get_prices(at))
        for name in names(model.match):
            if prices is not None:
                found.setdefault(name.lower(), prices)
    return sorted(found.items())


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


def inline(price: ModelPrice) -> str | None:
    """The prices as an inline table; None where the gateway knows none of them."""
    values = {ours: getattr(price, theirs) for ours, theirs in NAMES.items()}
    parts = [
        f"{name} = {number(base(value))}" for name, value in values.items() if value is not None
    ]
    if not parts:
        return None
    starts = sorted(
        {
            tier.start
            for value in values.values()
            if isinstance(value, TieredPrices)
            for tier in value.tiers
        }
    )
    if starts:
        tiers = ", ".join(tier(values, start) for start in starts)
        parts.append(f"tiers = [{tiers}]")
    return f"{{ {', '.join(parts)} }}"


def tier(values: dict[str, Decimal | TieredPrices | None], start: int) -> str:
    """All prices for prompts of more than `start` tokens."""
    parts = [f"above = {start}"]
    for name, value in values.items():
        if isinstance(value, TieredPrices):
            price = value.base
            for each in value.tiers:
                if each.start <= start:
                    price = each.price
            parts.append(f"{name} = {number(price)}")
        elif value is not None:
            parts.append(f"{name} = {number(value)}")
    return f"{{ {', '.join(parts)} }}"


def base(value: Decimal | TieredPrices) -> Decimal:
    """The price of a short prompt."""
    return value.base if isinstance(value, TieredPrices) else value


def number(value: Decimal) -> str:
    """The number as TOML spells a float, always with a point."""
    text = f"{value.normalize():f}"
    return text if "." in text else f"{text}.0"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
