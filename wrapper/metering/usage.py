"""What a response used: the numbers that the provider reported, or the reason why there are none.

    extractor = extractor_for(media_type, content_coding)
    for piece in body:
        send(extractor.feed(piece))    # the same bytes, unless a usage chunk is taken out
    send(extractor.flush())            # at a clean end
    extractor.extracted()              # at any time, also after the response broke off

Where each dialect has its tokens, and how they are counted, stands in `dialects`.

Invariant: nothing is silently zero. An `ExtractedUsage` has either a `Usage` or a reason.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

PICO = 10**12  # pico-USD in a USD


def exact_usd(pico: int) -> str:
    """USD, exact: 1234567 pico-USD are 0.000001234567."""
    whole, rest = divmod(pico, PICO)
    return f"{whole}.{rest:012d}".rstrip("0").rstrip(".")


# Reasons, the label values of `unmetered_responses_total`.
NO_USAGE = "no_usage"  # a complete response that reports none
UNREADABLE = "unreadable"  # not JSON, broken compression, numbers that cannot be counts
ENCODING = "encoding"  # an unsupported content encoding
TOO_LARGE = "too_large"  # beyond what is kept in memory
TRUNCATED = "truncated"  # the response broke off before usage was reported
ABORTED = "aborted"  # the client left, or the gateway stopped, before usage was reported
NOT_METERED_TYPE = "not_metered_type"  # audio, files, text: a type that reports no usage
# The endpoint table (`Endpoint.unreported`) has three more: `not_reported`, `deferred` and
# `unknown_endpoint`.


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider counts them, and what is billed beside them.

    `cached`, `cache_write` and the audio and image tokens of the prompt are parts of `prompt`;
    `reasoning` and the audio and image tokens of the completion are parts of `completion`. They
    are separate fields because they have separate prices. `seconds` is audio that is billed by its
    length; `cache_write_long` is the part of `cache_write` that is kept for longer than usual.

    `prompt_split`, `completion_split`, `cached_split`: the provider has reported how the tokens
    divide into text, audio and images (else the audio and image numbers may be zero because they
    are not known). `units` are (name, amount), such as ("web_search", 2). `parts` are (model,
    usage) where several models worked: they are priced in place of the tokens; a model "" is the
    response's own. `unreadable` names a detail that was reported and could not be read.
    """

    prompt: int
    completion: int
    total: int
    cached: int = 0
    reasoning: int = 0
    seconds: float = 0.0
    audio_prompt: int = 0
    image_prompt: int = 0
    audio_completion: int = 0
    image_completion: int = 0
    cache_write: int = 0
    cache_write_long: int = 0
    cached_audio: int = 0
    cached_image: int = 0
    prompt_split: bool = False
    completion_split: bool = False
    cached_split: bool = False
    units: tuple[tuple[str, float], ...] = ()
    parts: tuple[tuple[str, Usage], ...] = ()
    service_tier: str = ""
    unreadable: str = ""


def added(one: Usage, other: Usage) -> Usage:
    """The numbers of both together; what is no number is that of `one`."""
    units = dict(one.units)
    for name, amount in other.units:
        units[name] = units.get(name, 0) + amount
    names = Usage.__struct_fields__
    sums = {
        name: getattr(one, name) + getattr(other, name)
        for name in names[: names.index("prompt_split")]
    }
    return replace(one, **sums, units=tuple(sorted(units.items())), parts=())


class Sight(NamedTuple):
    """An object of deferred work as a response shows it.

    `usage` and `model` are those that it reports; of a batch, `output_file` is where its responses
    are. `ended` is the Unix time of its end, 0 where it does not say.
    """

    id: str
    status: str
    usage: Usage | None = None
    model: str = ""
    output_file: str = ""
    ended: float = 0.0


class ExtractedUsage(msgspec.Struct, frozen=True):
    """What an extractor has found so far.

    `usage` is the last one reported, `model` the first one named. `reason` says why `usage` is
    None and is None otherwise. `error`: the provider reported an error inside the response (an
    event of a stream, or an `error` member that is not null). `terminal`: the event that ends a
    stream in its dialect has passed; what follows is no content. `sights`: the objects that are
    shown, where they were looked for. `prompt` is what a stream that has only begun reports of its
    prompt, `content` a lower bound of the events with content, each of which has at least one
    token.
    """

    usage: Usage | None
    model: str | None
    reason: str | None
    error: bool = False
    terminal: bool = False
    sights: tuple[Sight, ...] = ()
    prompt: Usage | None = None
    content: int = 0


class UsageExtractor(Protocol):
    """Reads usage out of one response body while its bytes pass through.

    Invariant: bytes come out as they went in (except for the one chunk that the client did not
    ask for), no input makes an extractor raise, and its memory is bounded.
    """

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the body and return the bytes to send now."""

    def flush(self) -> bytes:
        """Note the clean end of the body and return the bytes that were held back."""

    def extracted(self) -> ExtractedUsage:
        """What is known so far."""


class NullExtractor:
    """For a body that reports no usage or cannot be read; `reason` says which."""

    __slots__ = ("_reason",)

    def __init__(self, reason: str = NOT_METERED_TYPE) -> None:
        self._reason = reason

    def feed(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""

    def extracted(self) -> ExtractedUsage:
        return ExtractedUsage(None, None, self._reason)
