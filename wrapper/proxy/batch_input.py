"""The input file of a batch, read while it is uploaded: a request in JSON on each line.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": …}}

What its requests name and may use is remembered under the file's id. A batch that is created with
it later is admitted as its requests would be: by the key's models, and with the money that all of
them may cost.

Invariant: what is not read as every provider would read it is not known, and a key with a budget or
a list of models cannot start a batch with it. Memory is bounded: by the longest line, and by the
number of models.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from wrapper.admission.estimate import COMPLETIONS, OUTPUT_LIMITS, output_of
from wrapper.endpoints import find_endpoint
from wrapper.formats import jsonbytes
from wrapper.metering.dialects import DECODING_ERRORS
from wrapper.proxy.model_names import names_in_body
from wrapper.record import MAX_NAME

MAX_LINE: Final = 4 << 20  # bytes
MAX_NAMES: Final = 100  # models in one file
_MEMBERS: Final = frozenset(("custom_id", "method", "url", "body"))
_FIELDS: Final = frozenset(("model", "models", *OUTPUT_LIMITS, *COMPLETIONS))

_Body = msgspec.defstruct(
    "_Body",
    [("model", str), *((name, Any, None) for name in (*OUTPUT_LIMITS, *COMPLETIONS))],
)
_decode_body = msgspec.json.Decoder(_Body).decode


class _Line(msgspec.Struct):
    url: str
    body: msgspec.Raw


_decode = msgspec.json.Decoder(_Line).decode


class ModelDemand(msgspec.Struct, array_like=True):
    """What the requests for one model may use: bytes of input, output tokens that they limit
    themselves, and completions that they do not limit.
    """

    requests: int = 0
    input_bytes: int = 0
    output_tokens: int = 0
    unlimited: int = 0


class BatchInput(msgspec.Struct):
    """What is known of a file: the demand of each model, and all names of models in it."""

    models: dict[str, ModelDemand]
    names: list[str]

    @property
    def only_model(self) -> str:
        """The model of all of its requests; empty where there are several."""
        return next(iter(self.models)) if len(self.models) == 1 else ""


read_batch_input = msgspec.json.Decoder(BatchInput).decode


class BatchLines:
    """Reads the lines of a file, piece by piece."""

    def __init__(self) -> None:
        self._models: dict[str, ModelDemand] = {}
        self._names: set[str] = set()
        self._rest = bytearray()
        self._known = True

    def feed(self, data: bytes) -> None:
        """The next piece of the file."""
        if not self._known:
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._rest += line
            self._end_of_line()
        self._rest += rest
        begins = bytes(self._rest[:1]).strip()
        if len(self._rest) > MAX_LINE or begins not in (b"", b"{"):
            self._unknown()

    def result(self) -> BatchInput | None:
        """What is known of the file once all of it was fed; None for any other file."""
        self._end_of_line()
        if not self._known or not self._models:
            return None
        return BatchInput(self._models, sorted(self._names))

    def _unknown(self) -> None:
        self._known = False
        self._rest.clear()

    def _end_of_line(self) -> None:
        line = bytes(self._rest).strip()
        self._rest.clear()
        if line and self._known:
            try:
                self._read(line)
            except DECODING_ERRORS:
                self._unknown()

    def _read(self, line: bytes) -> None:
        if b"\r" in line:  # white space to JSON, and to some readers the end of a line
            raise ValueError("two readers could find different lines in it")
        found = _decode(line)
        body = bytes(found.body)
        if jsonbytes.has_duplicate(line, _MEMBERS) or jsonbytes.has_duplicate(body, _FIELDS):
            raise ValueError("two readers could find different requests in it")
        self._names.update(names_in_body(body))  # which bounds what there is to decode
        fields: Any = _decode_body(body)
        self._names.add(fields.model)
        if len(self._names) > MAX_NAMES or max(map(len, self._names)) > MAX_NAME:
            raise ValueError("too many models, or a name that is too long")
        demand = self._models.setdefault(fields.model, ModelDemand())
        demand.requests += 1
        demand.input_bytes += len(body)
        if not find_endpoint("POST", found.url).input_only:
            limit, completions = output_of(msgspec.structs.asdict(fields))
            if limit is None:
                demand.unlimited += completions
            else:
                demand.output_tokens += limit * completions
