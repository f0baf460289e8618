"""An upper estimate of what a request uses, from what is known before it is made.

Input: a token covers at least one byte of the body, so the body's size is a bound. (Not for what
the body only names: images by URL, stored files and conversations.) Output: the limit that the
request asks for, once for each of the completions that it asks for, or a default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wrapper.store.limits import MAX_TOKENS, Demand, bounded

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
COMPLETIONS = ("n", "best_of")
"""The members of a JSON body that bound its output, in every dialect."""


def estimate(
    size: int,
    body: Mapping[str, Any] | None,
    price: Callable[[int, int], int | None],
    default_output: int,
) -> Demand:
    """The demand of a request whose body has `size` bytes.

    `body` is the parsed JSON object, None for any other body. `price` says what so many input
    and output tokens cost in pico-USD; where it says None the cost is 0. `default_output` is how
    many tokens the model writes at most where the request sets no limit. A value that is no
    whole number above 0 counts as missing: the provider refuses it.
    """
    limit, completions = output_of(body or {})
    output = min((default_output if limit is None else limit) * completions, MAX_TOKENS)
    size = min(size, MAX_TOKENS)
    return bounded(Demand(size + output, price(size, output) or 0))


def output_of(body: Mapping[str, Any]) -> tuple[int | None, int]:
    """The output limit of a request, None where it sets none, and how many completions it wants."""
    limits = [found for name in OUTPUT_LIMITS if (found := _whole(body.get(name)))]
    completions = max(_whole(body.get(name)) or 1 for name in COMPLETIONS)
    return max(limits) if limits else None, completions


def _whole(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return None
    return value
