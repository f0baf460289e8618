"""Rates in pico-USD per token, and what usage costs by them.

The tables are read by `wrapper.metering.price_file`; `wrapper.metering.pricing` describes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec

from wrapper.metering.usage import Usage

_PICO_PER_MILLION = 10**6

PER_TOKEN = (
    "input",
    "cached_input",
    "output",
    "cache_write",
    "cache_write_long",
    "audio_input",
    "cached_audio",
    "image_input",
    "cached_image",
    "audio_output",
    "image_output",
)
VIDEO_SECOND = "video_second"  # how the units of videos begin; their size follows
_OUTPUTS = ("output", "audio_output", "image_output")
_INPUTS = tuple(name for name in PER_TOKEN if name not in _OUTPUTS)


class Priced(msgspec.Struct, frozen=True):
    """What usage costs, in pico-USD; None where `unpriced`, a part of it, has no known price.

    `kinds` are the parts of the cost that are tokens: input, cached input, cache writes, output.
    """

    cost: int | None
    unpriced: str | None = None
    kinds: tuple[int, int, int, int] = (0, 0, 0, 0)


Kinds = tuple[int, int, int, int]


def added_kinds(one: Kinds, other: Kinds) -> Kinds:
    """The sums of the parts."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


class Rate(NamedTuple):
    """Pico-USD per token (`audio_hour`: per hour); None where there is no price.

    It applies to prompts of more than `above` tokens. `plain`: there is a price for text, and what
    audio and images cost is the same; `with_plain` says so when a model is first priced.
    """

    above: int = -1
    input: int | None = None
    cached_input: int | None = None
    output: int | None = None
    cache_write: int | None = None
    cache_write_long: int | None = None
    audio_input: int | None = None
    cached_audio: int | None = None
    image_input: int | None = None
    cached_image: int | None = None
    audio_output: int | None = None
    image_output: int | None = None
    audio_hour: int | None = None
    plain: bool = False

    def price(self, usage: Usage, minimum_seconds: int = 0) -> Priced:
        """What the tokens and seconds of `usage` cost."""
        if self.plain and not (  # text alone, the usual
            usage.seconds
            or usage.audio_prompt
            or usage.image_prompt
            or usage.audio_completion
            or usage.image_completion
            or usage.cache_write
            or usage.cache_write_long
            or usage.cached_audio
            or usage.cached_image
            or usage.unreadable
        ):
            cached = min(usage.cached, usage.prompt)
            fresh = (usage.prompt - cached) * self.input  # type: ignore[operator]
            read = cached * self.cached_input  # type: ignore[operator]
            output = usage.completion * self.output  # type: ignore[operator]
            return Priced(fresh + read + output, None, (fresh, read, 0, output))
        unknown = self._unknown(usage)
        if unknown is not None:
            return Priced(None, unknown)
        cost = 0
        if usage.seconds:
            if self.audio_hour is None:
                return Priced(None, "seconds")
            seconds = max(usage.seconds, minimum_seconds)
            cost = round(seconds * 1000) * self.audio_hour // 3_600_000
        audio, image = usage.audio_prompt, usage.image_prompt
        cached = min(usage.cached, usage.prompt)
        written = min(usage.cache_write, usage.prompt - cached)
        cached_text = max(cached - usage.cached_audio - usage.cached_image, 0)
        fresh_audio = max(audio - usage.cached_audio, 0)
        fresh_image = max(image - usage.cached_image, 0)
        kinds = [0, 0, 0, 0]
        for kind, part, tokens, price in (
            (
                0,
                "input",
                max(usage.prompt - cached - written - fresh_audio - fresh_image, 0),
                self.input,
            ),
            (1, "cached_input", cached_text, self.cached_input),
            (2, "cache_write", max(written - usage.cache_write_long, 0), self.cache_write),
            (2, "cache_write_long", min(written, usage.cache_write_long), self.cache_write_long),
            (0, "audio_input", fresh_audio, self.audio_input),
            (1, "cached_audio", min(usage.cached_audio, cached), self.cached_audio),
            (0, "image_input", fresh_image, self.image_input),
            (1, "cached_image", min(usage.cached_image, cached), self.cached_image),
            (
                3,
                "output",
                max(usage.completion - usage.audio_completion - usage.image_completion, 0),
                self.output,
            ),
            (3, "audio_output", usage.audio_completion, self.audio_output),
            (3, "image_output", usage.image_completion, self.image_output),
        ):
            if tokens:
                if price is None:
                    return Priced(None, part)
                kinds[kind] += tokens * price
        return Priced(cost + sum(kinds), None, (kinds[0], kinds[1], kinds[2], kinds[3]))

    def _unknown(self, usage: Usage) -> str | None:
        """The part whose number of tokens is not known, though it has a price of its own."""
        if usage.unreadable and usage.unreadable not in _WITHOUT_PRICE:
            return usage.unreadable
        audio, image = usage.audio_prompt, usage.image_prompt
        if usage.prompt and not (usage.prompt_split or audio or image):
            if self.audio_input not in (None, self.input):
                return "audio_input"
            if self.image_input not in (None, self.input):
                return "image_input"
        if usage.completion and not (
            usage.completion_split or usage.audio_completion or usage.image_completion
        ):
            if self.audio_output not in (None, self.output):
                return "audio_output"
            if self.image_output not in (None, self.output):
                return "image_output"
        if usage.cached and not usage.cached_split:
            return self._unknown_cached(usage)
        return None

    def _unknown_cached(self, usage: Usage) -> str | None:
        """How many of the cached tokens were text is not known: does it matter?"""
        text = (self.input, self.cached_input)
        if usage.audio_prompt and (self.audio_input, self.cached_audio) != text:
            return "cached_audio"
        if usage.image_prompt and (self.image_input, self.cached_image) != text:
            return "cached_image"
        return None


def with_plain(rate: Rate) -> Rate:
    """The rate that knows whether it is `plain`."""
    input_, output = rate.input, rate.output
    return rate._replace(
        plain=not (input_ is None or output is None or rate.cached_input is None)
        and rate.audio_input in (None, input_)
        and rate.image_input in (None, input_)
        and rate.audio_output in (None, output)
        and rate.image_output in (None, output)
    )


# Details that are part of something else at the same price.
_WITHOUT_PRICE = frozenset(
    f"{details}.reasoning_tokens"
    for details in ("completion_tokens_details", "output_tokens_details", "output_token_details")
)

Rates = tuple[Rate, ...]  # the one with the highest `above` first


class Ceiling(NamedTuple):
    """The highest prices of one model: an upper bound while it is not known what tokens carry.

    `rates` are (above, input, output, audio_hour), in the order of `Rates`. `answers`: the price of
    what the model writes is known.
    """

    rates: tuple[tuple[int, int, int, int], ...]
    character: int
    minimum_seconds: int
    answers: bool
    video_second: int = 0

    def cost(
        self,
        prompt: int,
        completion: int,
        seconds: float = 0.0,
        characters: int = 0,
        video_seconds: int = 0,
    ) -> int:
        """The most that so many tokens, seconds (of audio, of video) and characters cost, in
        pico-USD.
        """
        input_ = output = hour = 0
        for above, input_, output, hour in self.rates:  # noqa: B007 the last one is used below
            if prompt > above:
                break
        cost = prompt * input_ + completion * output + characters * self.character
        cost += video_seconds * self.video_second
        if seconds:
            cost += round(max(seconds, self.minimum_seconds) * 1000) * hour // 3_600_000
        return cost


class ModelPrices(NamedTuple):
    """The prices of one model: standard, in other service tiers, and per unit (pico-USD).

    `any_tier`: the standard prices hold in every service tier. `uncounted` names what is billed too
    and what no response reports.
    """

    rates: Rates
    service_tiers: Mapping[str, Rates] = {}
    units: Mapping[str, int] = {}
    minimum_seconds: int = 0
    any_tier: bool = False
    uncounted: str = ""

    def ceiling(self, tier: str) -> Ceiling:
        """The highest prices at a service tier that a request asks for."""
        rates = self.rates if self.any_tier else self.service_tiers.get(tier.lower(), self.rates)
        return Ceiling(
            tuple(
                (
                    rate.above,
                    _highest(rate, _INPUTS),
                    _highest(rate, _OUTPUTS),
                    rate.audio_hour or 0,
                )
                for rate in rates
            ),
            self.units.get("character", 0),
            self.minimum_seconds,
            not self.uncounted
            and (bool(self.units) or any(rate.output is not None for rate in rates)),
            max(
                (self.units[unit] for unit in self.units if unit.startswith(VIDEO_SECOND)),
                default=0,
            ),
        )

    def price(self, usage: Usage) -> Priced:
        """What the tokens and seconds of `usage` cost at its service tier."""
        tier = usage.service_tier.lower()
        rates = self.rates
        if tier not in STANDARD_TIERS and not self.any_tier:
            if tier not in self.service_tiers:
                return Priced(None, f"service_tier={tier}")
            rates = self.service_tiers[tier]
        for rate in rates:
            if usage.prompt > rate.above:
                return rate.price(usage, self.minimum_seconds)
        return Priced(None, "input")


def _highest(rate: Rate, names: tuple[str, ...]) -> int:
    return max(getattr(rate, name) or 0 for name in names)


# What providers call the service tier that the standard prices are for.
STANDARD_TIERS = frozenset({"", "default", "auto", "standard", "on_demand"})


class Region(NamedTuple):
    """Where tokens cost `percent` of the list price: at a `host` (`*.api.openai.com`), or in a
    `geo` that responses name.

    It holds for `models` (globs) and for those whose dated name is of `released` or later; for all
    where it says neither.
    """

    percent: int
    host: str = ""
    geo: str = ""
    models: tuple[str, ...] = ()
    released: str = ""

    def covers(self, model: str) -> bool:
        """Whether it holds for this model."""
        dated = _DATED.search(model)
        if self.released and dated:
            return dated[1].replace("-", "") >= self.released.replace("-", "")
        if self.models:
            return any(fnmatchcase(model, each) for each in self.models)
        return not self.released


_DATED = re.compile(r"[-@](20\d\d-?[01]\d-?[0-3]\d)(?!\d)", re.ASCII)


def in_region(prices: ModelPrices, percent: int) -> ModelPrices:
    """Prices with other costs of tokens and seconds; units cost the same everywhere."""
    tiers = {name: _times(rates, percent) for name, rates in prices.service_tiers.items()}
    return prices._replace(rates=_times(prices.rates, percent), service_tiers=tiers)


def _times(rates: Rates, percent: int) -> Rates:
    def times(prices: Iterable[Any]) -> Iterator[Any]:
        return (None if each is None else (each * percent + 50) // 100 for each in prices)

    return tuple(Rate(rate.above, *times(rate[1:-1])) for rate in rates)


class Table(NamedTuple):
    """The prices of one provider."""

    hosts: tuple[str, ...]
    models: dict[str, ModelPrices]
    regions: tuple[Region, ...] = ()

    def at(self, host: str, model: str, prices: ModelPrices) -> ModelPrices:
        """The prices of a model of this table at one of the provider's hosts, and in the geos that
        responses name.
        """
        for region in self.regions:
            if not region.covers(model):
                continue
            if region.geo:
                prices = _with_geo(prices, region)
            elif fnmatchcase(host, region.host):
                prices = in_region(prices, region.percent)
        return prices


def pico(per_million: Decimal) -> int:
    """USD per million tokens in pico-USD per token."""
    return round(per_million * _PICO_PER_MILLION)


def _with_geo(prices: ModelPrices, region: Region) -> ModelPrices:
    """With the service tiers of a region that responses name, such as "standard in us"."""
    local = in_region(prices, region.percent)
    tiers = {**local.service_tiers, "standard": local.rates}
    named = {f"{name} in {region.geo}": rates for name, rates in tiers.items()}
    return prices._replace(service_tiers={**prices.service_tiers, **named})
