"""An upper estimate of what a request uses, from what is known before it is made.

Input: a token covers at least one byte of the body, so the body's size is a bound. (Not for what
the body only names: images by URL, stored files and conversations.) Output: the limit that the
request asks for, once for each of the completions that it asks for, or a default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wrapper.metering.bounds import field_value, whole
from wrapper.store.limits import MAX_TOKENS

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
COMPLETIONS = ("n", "best_of")
"""The members of a JSON body that bound its output, in every dialect."""

_MAX_TIER = 32  # bytes


class OutputLimit(NamedTuple):
    """What a request asks for: `tokens` at most, None where it says nothing, for each of its
    `completions`, at a service tier.
    """

    tokens: int | None = None
    completions: int = 1
    tier: str = ""

    def total(self, default: int) -> int:
        """The tokens of the output at most, `default` for each where the request sets no limit."""
        tokens = default if self.tokens is None else self.tokens
        return min(tokens * self.completions, MAX_TOKENS)


UNLIMITED = OutputLimit()


def output_limit(fields: Sequence[bytes]) -> OutputLimit:
    """What the `OUTPUT_FIELDS` of a body (`metering.bounds`) ask for, each JSON or empty. A value
    that is no whole number above 0 counts as missing (`metering.bounds.whole`).
    """
    if not fields:
        return UNLIMITED
    most, tokens, output, n, best_of, tier = fields
    limit = max(_number(most), _number(tokens), _number(output))
    completions = max(_number(n), _number(best_of), 1)
    named = tier[1:-1].decode("ascii", "replace") if len(tier) < _MAX_TIER else ""
    return OutputLimit(limit or None, completions, named)


def _number(text: bytes) -> int:
    if not text.isdigit():
        return whole(field_value(text)) if text else 0
    return int(text) if len(text) < 13 else MAX_TOKENS


def output_of(body: Mapping[str, Any]) -> tuple[int | None, int]:
    """The output limit of a request, None where it sets none, and how many completions it wants."""
    limit = max(whole(body.get(name)) for name in OUTPUT_LIMITS)
    return limit or None, max(whole(body.get(name)) or 1 for name in COMPLETIONS)
