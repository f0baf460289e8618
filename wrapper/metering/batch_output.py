"""The output file of a batch: one line of JSON for each of its requests.

    {"custom_id": …, "response": {"status_code": 200, "body": {…, "model": …, "usage": {…}}}, …}

Each request is priced by itself, because its price may depend on its length; what is kept are sums
by model.

Invariant: memory is bounded, whatever the file's size. A line that succeeded and whose usage cannot
be read is counted (`unreadable`), never dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from wrapper.metering.dialects import DECODING_ERRORS, read
from wrapper.metering.price_table import Kinds, Priced, added_kinds
from wrapper.metering.usage import Usage, added

MAX_LINE = 16 << 20  # bytes
MAX_MODELS = 100
BATCH_TIER = "batch"


class _Response(msgspec.Struct):
    status_code: Any = None
    body: msgspec.Raw = msgspec.Raw(b"")


class _Line(msgspec.Struct):
    response: _Response | None = None


_decode = msgspec.json.Decoder(_Line).decode


@dataclass(slots=True)
class ModelSum:
    """What the requests that one model has served used, and cost."""

    usage: Usage
    cost: int | None
    unpriced: str | None
    kinds: Kinds


class BatchOutput:
    """Reads an output file, piece by piece. `price` says what one request of a model cost."""

    def __init__(self, price: Callable[[str, Usage], Priced]) -> None:
        self.models: dict[str, ModelSum] = {}
        self.unreadable = 0
        self._price = price
        self._rest = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> None:
        """The next piece of the file."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._rest += line
            self._end_of_line()
        self._rest += rest
        if len(self._rest) > MAX_LINE:
            self._too_long = True
            self._rest.clear()

    def flush(self) -> None:
        """The file is over; its last line may lack its newline."""
        self._end_of_line()

    def _end_of_line(self) -> None:
        line, too_long = bytes(self._rest).strip(), self._too_long
        self._rest.clear()
        self._too_long = False
        if too_long:
            self.unreadable += 1
        elif line:
            self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            response = _decode(line).response
            if response is None or response.status_code != 200:
                return  # it failed: nothing was used
            found = read(bytes(response.body))
        except DECODING_ERRORS:
            self.unreadable += 1
            return
        model = found.model or ""
        if found.usage is None or (model not in self.models and len(self.models) >= MAX_MODELS):
            self.unreadable += 1
            return
        usage = replace(found.usage, service_tier=BATCH_TIER)
        priced = self._price(model, usage)
        cost, unpriced, kinds = priced.cost, priced.unpriced, priced.kinds
        old = self.models.get(model)
        if old is None:
            self.models[model] = ModelSum(usage, cost, unpriced, kinds)
            return
        old.usage = added(old.usage, usage)
        old.cost = None if old.cost is None or cost is None else old.cost + cost
        old.kinds = added_kinds(old.kinds, kinds)
        old.unpriced = old.unpriced or unpriced
