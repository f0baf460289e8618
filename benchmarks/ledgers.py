"""Who counts right: the provider's own ledger beside what a relay says it has counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Counted:
    """Sums over requests, by a provider or by a relay; None: not reported.

    `prompt`, `completion` (tokens) and `cost` (USD) are those of complete responses. `aborted`
    requests were left by their client: what they used lies from `aborted_low` to `aborted_high`
    tokens; a provider knows both.
    """

    completed: int | None = None
    errors: int | None = None
    aborted: int | None = None
    prompt: int | None = None
    completion: int | None = None
    cost: float | None = None
    aborted_low: int | None = None
    aborted_high: int | None = None

    @property
    def requests(self) -> int:
        """All of them, as far as they are reported."""
        return (self.completed or 0) + (self.errors or 0) + (self.aborted or 0)

    def __sub__(self, before: Counted) -> Counted:
        """What was counted since then; what is not reported stays so."""
        found = {
            name: None if now is None else now - (getattr(before, name) or 0)
            for name, now in asdict(self).items()
        }
        return Counted(**found)


def of_provider(
    books: Sequence[Mapping[str, Any]], book: str, prices: Mapping[str, float]
) -> Counted:
    """The simulator's ledger (`/_sim/books`) for the requests of one relay.

    `aborted_low` and `aborted_high` are the same: what the responses would have used to their end,
    since a provider makes them whether they are read or not.
    """
    rows = [row for row in books if row["book"] == book]
    whole = [row for row in rows if row["outcome"] == "completed" and row["status"] < 300]
    aborted = [row for row in rows if row["outcome"] == "aborted"]
    prompt, completion = (sum(row[name] for row in whole) for name in ("prompt", "completion"))
    used = sum(
        row["unsent"]["prompt"] + row["unsent"]["completion"] + row["total"] for row in aborted
    )
    return Counted(
        completed=sum(row["requests"] for row in whole),
        errors=sum(row["requests"] for row in rows if row["status"] >= 500),
        aborted=sum(row["requests"] for row in aborted),
        prompt=prompt,
        completion=completion,
        cost=(prompt * prices["input"] + completion * prices["output"]) / 1e6,
        aborted_low=used,
        aborted_high=used,
    )


def verdict(provider: Counted, relay: Counted | None) -> str:
    """`right`, or what is wrong, by name."""
    if relay is None or relay == Counted():
        return "counts nothing"
    wrong = [
        _difference(name, getattr(provider, name), getattr(relay, name))
        for name in ("completed", "errors", "aborted", "prompt", "completion", "cost")
    ]
    wrong.append(_bounds(provider, relay))
    return "; ".join(filter(None, wrong)) or "right"


def _difference(name: str, expected: float, found: float | None) -> str:
    if found is None:
        return f"{name} not reported" if expected else ""
    if abs(found - expected) <= 1e-9 * max(expected, 1.0):
        return ""
    share = (found - expected) / expected if expected else float("inf")
    return f"{name} {found:g} in place of {expected:g} ({share:+.1%})"


def _bounds(provider: Counted, relay: Counted) -> str:
    used = provider.aborted_low
    if not provider.aborted or used is None:
        return ""
    if relay.aborted_low is None or relay.aborted_high is None:
        return f"{used} tokens of aborted requests not reported"
    if relay.aborted_low <= used <= relay.aborted_high:
        return ""
    return f"{used} tokens of aborted requests outside {relay.aborted_low} to {relay.aborted_high}"
