"""What a request used that was given up or broke off: no less than its low end, no more than its
high end.

Low: what has been seen. A stream whose content has begun has read its prompt (some dialects say how
long that is), and each event with content has at least one token. Without any content: nothing.

High: what may have been used. A token covers at least one byte of the request's body, and the
output ends at the limit that the request sets, or else at `default_output_tokens`. It is the same
upper estimate as the one that limits reserve (`wrapper.admission.estimate`), and holds as far as
that does: not for what a body only names, such as images by URL, stored files and conversations.

Invariant: where a price is not known, the cost has no bounds; it is never zero in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from wrapper.metering.usage import ExtractedUsage, Usage

# A form carries a recording or an image. Of speech at 16 kbit/s, which few formats go below, a
# second has 2000 bytes and some ten tokens.
MEDIA_BYTES_PER_SECOND: Final = 2000
MEDIA_BYTES_PER_TOKEN: Final = 200


# The members of a JSON body that bound its output and its price, in every dialect.
OUTPUT_FIELDS: Final = (
    *("max_completion_tokens", "max_tokens", "max_output_tokens"),
    *("n", "best_of", "service_tier"),
)
_MAX_FIELD: Final = 300  # bytes of a field that can be one of these
_MAX_OUTPUT: Final = 10_000_000

_decode = msgspec.json.Decoder().decode


class Asked(NamedTuple):
    """What a request asks for, as far as it bounds what it may use.

    `size` are the bytes of its body, `fields` its `OUTPUT_FIELDS` (none where it has none of them).
    `media`: the body is a form or a file. `input_only`: the model writes nothing.
    """

    size: int
    fields: tuple[bytes, ...] = ()
    media: bool = False
    input_only: bool = False


class Bounds(NamedTuple):
    """Tokens, and pico-USD; None where the price is not known."""

    tokens_low: int
    tokens_high: int
    cost_low: int | None
    cost_high: int | None


def bounds(
    asked: Asked,
    seen: ExtractedUsage | None,
    default_output: int,
    cost: Callable[[Usage], int | None],
) -> Bounds:
    """The bounds of what a request has used, of whose response `seen` has come.

    `default_output` are the tokens that the model writes at most where the request sets no limit;
    `cost` prices a usage in pico-USD.
    """
    low = _low(seen)
    *numbers, tier = map(field_value, asked.fields or (b"",) * len(OUTPUT_FIELDS))
    *limits, n, best_of = map(whole, numbers)
    limit = (max(limits) or default_output) * max(1, n, best_of)
    prompt = asked.size // MEDIA_BYTES_PER_TOKEN if asked.media else asked.size
    if seen is not None and seen.prompt is not None:
        prompt = low.prompt
    written = max(0 if asked.input_only else limit, low.completion)
    high = Usage(prompt, written, prompt + written)
    highs = [cost(high), cost(replace(high, cache_write=prompt))]
    if asked.media:
        highs.append(cost(Usage(0, 0, 0, seconds=asked.size / MEDIA_BYTES_PER_SECOND)))
    lows = [cost(low)]
    if seen is None or seen.prompt is None:
        lows.append(cost(replace(low, cached=low.prompt)))
    if isinstance(tier, str) and tier:
        highs.append(cost(replace(high, service_tier=tier)))
        lows.append(cost(replace(low, service_tier=tier)))
    cost_high = max((each for each in highs if each is not None), default=None)
    if cost_high is None:
        return Bounds(low.total, high.total, None, None)
    cost_low = min((each for each in lows if each is not None), default=0)
    return Bounds(low.total, high.total, min(cost_low, cost_high), cost_high)


def field_value(field: bytes) -> object:
    """The value of one of `OUTPUT_FIELDS`; None for what can be none."""
    if not 0 < len(field) < _MAX_FIELD:
        return None
    try:
        return _decode(field)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def whole(value: object) -> int:
    """A whole number above 0; 0 for any other value, which the provider refuses.

    Some servers take `1e3`, `1000.0` and `"1000"` for whole numbers, too (pydantic does).
    """
    if isinstance(value, str | float):
        try:
            number = float(value)
        except ValueError:
            return 0
        value = int(number) if number.is_integer() else 0
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return min(max(value, 0), _MAX_OUTPUT)


def _low(seen: ExtractedUsage | None) -> Usage:
    if seen is None:
        return Usage(0, 0, 0)
    written = seen.content
    if seen.prompt is not None:
        prompt = seen.prompt
        return replace(prompt, completion=written, total=prompt.prompt + written)
    read = 1 if written else 0
    return Usage(read, written, read + written)
