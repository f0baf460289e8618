"""What usage costs: config/prices.toml, and the overrides of gateway.toml.

    [providers.groq]
    match = ["api.groq.com"]              # the hosts of `base_url` that this table applies to

    [providers.groq.models]
    "openai/gpt-oss-20b" = { input = 0.075, cached_input = 0.0375, output = 0.3 }

Prices are USD per million tokens: `input`, `cached_input` (default: the price of `input`),
`output`, `cache_write` and `cache_write_long` (kept for longer than usual); `audio_input`,
`cached_audio`, `image_input`, `cached_image`, `audio_output`, `image_output` where such tokens are
billed apart. `audio_hour` is USD per hour of audio, `minimum_seconds` the shortest that is billed.
`tiers` holds prices that apply to the whole request when its prompt has more than `above` tokens.
`service_tiers` holds the prices of flex, priority, batch, each a table like that of the model, or
the name of another tier ("standard" is the model's own) whose prices they are. `units` holds USD
for one of what is counted beside tokens: `character` (speech), `web_search`, `file_search`,
`video_second 720x1280`, … A name that ends with `*` is a prefix. `regions` of a provider are where
its tokens cost more: `times` the list price at a `host`, or in a `geo` that responses name, for
`models` (globs) and for dated names that were `released` then or later. `uncounted` names a part of
what a model's responses cost that they do not report.

Cost is counted in whole pico-USD (1e-12 USD): 0.05 USD per million tokens are 50,000 of them per
token, so sums never round.

The model that answered is priced, which need not be the one that was asked for.

Invariant: what has no known price makes the cost None, never zero, and is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec.structs import replace

from wrapper.config import Price
from wrapper.metering.price_file import Needed, every, read
from wrapper.metering.price_table import (
    Ceiling,
    ModelPrices,
    Priced,
    Rate,
    Table,
    added_kinds,
    pico,
    with_plain,
)
from wrapper.metering.usage import Usage
from wrapper.steps import Pause, no_pause

# Model names come from responses, so the cache is bounded.
MAX_CACHED = 4096

_NO_TABLE = Table((), {})
_DATE = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|20\d{6})\Z", re.ASCII)

_VERSION = re.compile(r"[-@]\d{3,}[\d-]*", re.ASCII)


def undated(model: str) -> str:
    """The model's name without the date of its version: `gpt-4o` for `gpt-4o-2024-08-06`."""
    return _DATE.sub("", model)


class Prices:
    """Finds the price of a model; results are cached."""

    def __init__(self, tables: Mapping[str, Table], overrides: Mapping[str, Price]) -> None:
        self._tables = tables
        self._overrides = {name.lower(): _from_override(price) for name, price in overrides.items()}
        self._found: dict[tuple[str, str, str, str], ModelPrices | None] = {}
        self._ceilings: dict[tuple[str, str, str, str], Ceiling | None] = {}

    @classmethod
    def load(
        cls,
        path: Path,
        overrides: Mapping[str, Price],
        demo: str | None = None,
        providers: Mapping[str, str] | None = None,
        pause: Pause = no_pause,
    ) -> Prices:
        """The prices of the file at `path`; without a file only the overrides.

        Read are those of `providers`, the hosts by name, or all. The provider `demo` serves the
        models of all, and they cost what they cost there. `pause` lets others run in between.
        Raises ConfigError with all problems of what is read.
        """
        needed = every if demo is not None or providers is None else _needed_by(providers)
        tables = read(path, needed, pause)
        if demo is not None:
            models = {
                name: prices for table in tables.values() for name, prices in table.models.items()
            }
            tables = {**tables, demo: Table((), models)}
        return cls(tables, overrides)

    def ceiling(self, provider: str, host: str, model: str, tier: str = "") -> Ceiling | None:
        """The highest prices of the model, None where it has none."""
        key = (provider, host, model, tier)
        try:
            return self._ceilings[key]
        except KeyError:
            if len(self._ceilings) >= MAX_CACHED:
                self._ceilings.clear()
            prices = self._prices(provider, host, model, "")
            found = self._ceilings[key] = prices.ceiling(tier) if prices else None
            return found

    def cost(self, provider: str, host: str, model: str, usage: Usage) -> int | None:
        """Pico-USD that `usage` costs, None where the price is not known."""
        return self.price(provider, host, model, "", usage).cost

    def price(self, provider: str, host: str, asked: str, served: str, usage: Usage) -> Priced:
        """What `usage` costs, and if that is not known, the part whose price is missing.

        `provider` is the name in the configuration, `host` the host name of its `base_url`,
        `asked` the model of the request, `served` the one that the response names, if any.
        """
        prices = self._prices(provider, host, asked, served)
        if not usage.parts:
            priced = prices.price(usage) if prices else Priced(None, "model")
        else:
            priced = self._price_parts(provider, host, asked, served, usage)
        if prices is not None and prices.uncounted and not usage.units:
            return Priced(None, prices.uncounted)
        cost = priced.cost
        for unit, amount in usage.units:
            if cost is None:
                return priced
            price = prices.units.get(unit) if prices else None
            if price is None:
                return Priced(None, unit)
            cost += round(amount * 1000) * price // 1000
        return replace(priced, cost=cost) if usage.units else priced

    def _price_parts(
        self, provider: str, host: str, asked: str, served: str, usage: Usage
    ) -> Priced:
        total, kinds = 0, (0, 0, 0, 0)
        for model, part in usage.parts:
            part = replace(
                part, parts=(), units=(), service_tier=part.service_tier or usage.service_tier
            )
            names = (model, "") if model else (asked, served)
            priced = self.price(provider, host, *names, part)
            if priced.cost is None:
                return Priced(None, f"{model}: {priced.unpriced}" if model else priced.unpriced)
            total += priced.cost
            kinds = added_kinds(kinds, priced.kinds)
        return Priced(total, None, kinds)

    def has_tiers(self, provider: str, host: str, model: str) -> bool:
        """Whether a price of the model depends on the length of the request."""
        prices = self._prices(provider, host, model, "")
        rates = [prices.rates, *prices.service_tiers.values()] if prices else []
        return any(len(each) > 1 for each in rates)

    def has_unit(self, provider: str, host: str, model: str, unit: str) -> bool:
        """Whether the model is billed by this unit."""
        prices = self._prices(provider, host, model, "")
        return prices is not None and unit in prices.units

    def _prices(self, provider: str, host: str, asked: str, served: str) -> ModelPrices | None:
        key = (provider, host, asked, served)
        try:
            return self._found[key]
        except KeyError:
            if len(self._found) >= MAX_CACHED:
                self._found.clear()
            found = self._find(provider, host, asked.lower(), served.lower() or asked.lower())
            if found is not None:
                found = found._replace(rates=tuple(map(with_plain, found.rates)))
            self._found[key] = found
            return found

    def knows(self, provider: str, host: str, model: str) -> bool:
        """Whether there is any price for the model."""
        return self._prices(provider, host, model, "") is not None

    def names(self, provider: str, host: str) -> set[str]:
        """The models that are listed with a price for this provider."""
        listed = self._overrides.keys() | self._table(provider, host).models.keys()
        return {name for name in listed if not name.endswith("*")}

    def _find(self, provider: str, host: str, asked: str, served: str) -> ModelPrices | None:
        """The prices of the model that answered.

        Where it is known under no such name (a local server may answer with a file's name), those
        that the operator has set for the model that was asked; the list price of that only where
        the served one is a numbered version of it.
        """
        table = self._table(provider, host)
        found = _match(self._overrides, served)
        if found is not None:
            return found
        listed = _match(table.models, served)
        if listed is None and asked != served:
            found = _match(self._overrides, asked)
            if found is None and _VERSION.fullmatch(served.removeprefix(asked)):
                listed = _match(table.models, asked)
        return found or (listed and table.at(host.lower(), served, listed))

    def _table(self, provider: str, host: str) -> Table:
        """The table that matches the provider's host, else the one with the provider's name."""
        host = host.lower()
        for table in self._tables.values():
            if _is_of(host, table.hosts):
                return table
        return self._tables.get(provider, _NO_TABLE)


def _is_of(host: str, names: Iterable[str]) -> bool:
    return any(host == name or host.endswith("." + name) for name in names)


def _needed_by(providers: Mapping[str, str]) -> Needed:
    hosts = [host.lower() for host in providers.values()]
    return lambda name, of: name in providers or any(_is_of(host, of) for host in hosts)


def _match(models: Mapping[str, ModelPrices], model: str) -> ModelPrices | None:
    """The model itself, else the model without a version date, else the longest prefix."""
    if model in models:
        return models[model]
    if undated(model) in models:
        return models[undated(model)]
    prefixes = [name for name in models if name.endswith("*") and model.startswith(name[:-1])]
    return models[max(prefixes, key=len)] if prefixes else None


def _from_override(price: Price) -> ModelPrices:
    """The operator's own prices: of all tokens, whatever they carry, in every service tier."""
    input_, cached, output = map(pico, (price.input, price.cached_input, price.output))
    rate = Rate(
        input=input_,
        cached_input=cached,
        output=output,
        cache_write=input_,
        cache_write_long=input_,
        audio_input=input_,
        cached_audio=cached,
        image_input=input_,
        cached_image=cached,
        audio_output=output,
        image_output=output,
    )
    return ModelPrices((rate,), any_tier=True)
