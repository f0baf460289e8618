"""The usage table as FOCUS 1.2, the FinOps Open Cost and Usage Specification, in CSV.

A row is a day's use of a model by a key, with one of its tags: its input, its cached input, its
output, or what else it cost (audio by length, tools, characters). All columns that FOCUS 1.2 makes
mandatory are there, with those of its other columns that the table can fill, and some of its own
(`x_…`), as the specification allows.

Invariant: the sum of BilledCost is the cost in the table; what is not in it (unpriced, unmetered,
bounded requests) is counted in the columns of its own.

https://focus.finops.org/focus-specification/v1-2/
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TextIO

from wrapper.cli import cell_of_csv
from wrapper.config import ApiKey
from wrapper.metering import exact_usd
from wrapper.record import NO_PROVIDER
from wrapper.store import Sums

BY: Final = ("day", "key", "provider", "model", "tag")
COLUMNS: Final = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType"),
    *("BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory"),
    *("ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd"),
    *("ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "EffectiveCost"),
    *("InvoiceIssuerName", "ListCost", "PricingCategory", "PricingQuantity", "PricingUnit"),
    *("ProviderName", "PublisherName", "ResourceId", "ResourceName", "ResourceType"),
    *("ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceId"),
    *("SubAccountId", "SubAccountName", "SubAccountType", "Tags"),
    *("x_Requests", "x_UnpricedRequests", "x_UnmeteredRequests", "x_BoundedRequests"),
    *("x_BoundedCostLow", "x_BoundedCostHigh"),
)
# Other cells of a row have the sums' own gaps; these are counted once, in the first row.
_NO_GAPS: Final = ("0", "0", "0", "0", "0", "0")


class _Meter(NamedTuple):
    """One row of a group: what was counted, in which unit, and its cost in pico-USD."""

    name: str
    quantity: float
    unit: str
    cost: int


def write(rows: Iterable[Sums], keys: Mapping[str, ApiKey], file: TextIO) -> None:
    """Write `rows`, sums by `BY`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        if not _is_refused(row):
            for cells in _rows(row, keys):
                writer.writerow([cells[name] for name in COLUMNS])


def _is_refused(row: Sums) -> bool:
    """Whether it has only calls that reached no provider, so that none bills them."""
    return row.group[BY.index("provider")] == NO_PROVIDER and not row.cost


def _meters(row: Sums) -> Iterator[_Meter]:
    """What a group's cost is for. Cache writes are tokens of the input at a price of their own."""
    fresh, read, output = row.cost_input + row.cost_cache_write, row.cost_cached, row.cost_output
    cached = min(row.cached, row.prompt)
    yield _Meter("Input Tokens", row.prompt - cached, "Tokens", fresh)
    yield _Meter("Cached Input Tokens", cached, "Tokens", read)
    yield _Meter("Output Tokens", row.completion, "Tokens", output)
    # Also the cost of a time when the table did not have its parts.
    other = row.cost - fresh - read - output
    if row.seconds:
        yield _Meter("Audio Seconds", row.seconds, "Seconds", other)
    else:
        yield _Meter("Requests", row.requests, "Requests", other)


def _rows(row: Sums, keys: Mapping[str, ApiKey]) -> Iterator[dict[str, str]]:
    day, key, provider, model, tag = row.group
    begin = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    month = begin.replace(day=1)
    gaps = (*map(str, (row.requests, row.unpriced, row.unmetered, row.bounded)),)
    gaps += (exact_usd(row.cost_low), exact_usd(row.cost_high))
    meters = [meter for meter in _meters(row) if meter.cost or meter.unit == "Tokens"]
    meters = [meter for meter in meters if meter.cost or meter.quantity] or meters[:1]
    for meter in meters:
        cost, quantity = exact_usd(meter.cost), f"{meter.quantity:.3f}".rstrip("0").rstrip(".")
        yield {
            "BilledCost": cost,
            "BillingAccountId": cell_of_csv(provider),
            "BillingAccountName": cell_of_csv(provider),
            "BillingAccountType": "Provider",
            "BillingCurrency": "USD",
            "BillingPeriodEnd": _time((month + timedelta(days=32)).replace(day=1)),
            "BillingPeriodStart": _time(month),
            "ChargeCategory": "Usage",
            "ChargeClass": "",
            "ChargeDescription": cell_of_csv(f"{model}: {meter.name}"),
            "ChargeFrequency": "Usage-Based",
            "ChargePeriodEnd": _time(begin + timedelta(days=1)),
            "ChargePeriodStart": _time(begin),
            "ConsumedQuantity": quantity,
            "ConsumedUnit": meter.unit,
            "ContractedCost": cost,
            "EffectiveCost": cost,
            "InvoiceIssuerName": cell_of_csv(provider),
            "ListCost": cost,
            "PricingCategory": "Standard",
            "PricingQuantity": quantity,
            "PricingUnit": meter.unit,
            "ProviderName": cell_of_csv(provider),
            "PublisherName": cell_of_csv(provider),
            "ResourceId": cell_of_csv(model),
            "ResourceName": cell_of_csv(model),
            "ResourceType": "Model",
            "ServiceCategory": "AI and Machine Learning",
            "ServiceName": cell_of_csv(f"{provider} API"),
            "ServiceSubcategory": "Generative AI",
            "SkuId": cell_of_csv(model),
            "SkuMeter": meter.name,
            "SkuPriceId": cell_of_csv(f"{model}/{meter.name}"),
            "SubAccountId": cell_of_csv(key),
            "SubAccountName": cell_of_csv(key),
            "SubAccountType": "API Key",
            "Tags": _tags(tag, keys.get(key)),
            **dict(zip(COLUMNS[-6:], gaps, strict=True)),
        }
        gaps = _NO_GAPS


def _tags(tag: str, key: ApiKey | None) -> str:
    """A JSON object, as the attribute Key-Value Format says; null where there are none."""
    found = {"tag": tag if tag != "-" else ""}
    if key is not None:
        found |= {"group": key.group or "", "owner": key.owner or ""}
    found = {name: value for name, value in found.items() if value}
    return json.dumps(found, ensure_ascii=False) if found else ""


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
