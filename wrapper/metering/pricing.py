"""What usage costs: config/prices.toml, and the overrides of gateway.toml.

    [providers.groq]
    match = ["api.groq.com"]              # the hosts of `base_url` that this table applies to

    [providers.groq.models]
    "openai/gpt-oss-20b" = { input = 0.075, cached_input = 0.0375, output = 0.3 }

Prices are USD per million tokens: `input`, `cached_input` (default: the price of `input`),
`output`; `audio_input`, `image_input`, `audio_output`, `image_output` where such tokens have
their own price; `audio_hour` is USD per hour of audio. `tiers` holds prices that apply to the
whole request when its prompt has more than `above` tokens. A name that ends with `*` is a prefix.

Cost is counted in whole pico-USD (1e-12 USD): 0.05 USD per million tokens are 50,000 of them per
token, so sums never round.

Invariant: what has no known price costs None, never zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from wrapper.config import Price
from wrapper.metering.price_table import Rate, Rates, Table, pico, read
from wrapper.metering.usage import Usage

# Model names come from responses, so the cache is bounded.
MAX_CACHED = 4096

_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}\Z", re.ASCII)


def undated(model: str) -> str:
    """The model's name without the date of its version: `gpt-4o` for `gpt-4o-2024-08-06`."""
    return _DATE.sub("", model)


class Prices:
    """Finds the price of a model; results are cached."""

    def __init__(self, tables: Mapping[str, Table], overrides: Mapping[str, Price]) -> None:
        self._tables = tables
        self._overrides = {
            name.lower(): (_from_override(price),) for name, price in overrides.items()
        }
        self._found: dict[tuple[str, str, str], Rates | None] = {}

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Price], demo: str | None = None) -> Prices:
        """The prices of the file at `path`; without a file only the overrides.

        The provider `demo` serves the models of all others, and they cost what they cost there.
        Raises ConfigError with all problems of the file.
        """
        tables = read(path)
        if demo is not None:
            models = {
                name: rates for table in tables.values() for name, rates in table.models.items()
            }
            tables = {**tables, demo: Table((), models)}
        return cls(tables, overrides)

    def cost(self, provider: str, host: str, model: str, usage: Usage) -> int | None:
        """Pico-USD that `usage` costs, None where the price is not known.

        `provider` is the name in the configuration, `host` the host name of its `base_url`.
        """
        key = (provider, host, model)
        try:
            rates = self._found[key]
        except KeyError:
            if len(self._found) >= MAX_CACHED:
                self._found.clear()
            rates = self._found[key] = self._find(provider, host, model.lower())
        if rates is None:
            return None
        for rate in rates:
            if usage.prompt > rate.above:
                return rate.cost(usage)
        return None

    def knows(self, provider: str, host: str, model: str) -> bool:
        """Whether there is any price for the model."""
        return self._find(provider, host, model.lower()) is not None

    def names(self, provider: str, host: str) -> set[str]:
        """The models that are listed with a price for this provider."""
        listed = self._overrides.keys() | self._models(provider, host).keys()
        return {name for name in listed if not name.endswith("*")}

    def _find(self, provider: str, host: str, model: str) -> Rates | None:
        found = _match(self._overrides, model)
        return _match(self._models(provider, host), model) if found is None else found

    def _models(self, provider: str, host: str) -> Mapping[str, Rates]:
        """The table that matches the provider's host, else the one with the provider's name."""
        host = host.lower()
        for table in self._tables.values():
            if any(host == name or host.endswith("." + name) for name in table.hosts):
                return table.models
        named = self._tables.get(provider)
        return named.models if named else {}


def _match(models: Mapping[str, Rates], model: str) -> Rates | None:
    """The model itself, else the model without a version date, else the longest prefix."""
    if model in models:
        return models[model]
    if undated(model) in models:
        return models[undated(model)]
    prefixes = [name for name in models if name.endswith("*") and model.startswith(name[:-1])]
    return models[max(prefixes, key=len)] if prefixes else None


def _from_override(price: Price) -> Rate:
    input_, cached, output = map(pico, (price.input, price.cached_input, price.output))
    return Rate(input=input_, cached_input=cached, output=output)
