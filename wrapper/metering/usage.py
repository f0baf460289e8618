"""What was used: the numbers that a provider reported, and what is known where it did not.

The rule protected here: nothing is silently zero. A `Reading` has either a `Usage` or the reason
why there is none.
"""

from __future__ import annotations

from typing import NamedTuple

# Reasons, the label values of `unmetered_responses_total`.
NO_USAGE = "no_usage"  # a whole answer that reports none
UNREADABLE = "unreadable"  # not JSON, broken compression, numbers that cannot be
ENCODING = "encoding"  # a content encoding that is not read here
TOO_LARGE = "too_large"  # beyond what is kept in memory
TRUNCATED = "truncated"  # the answer broke off before it was reported
ABORTED = "aborted"  # the caller left, or the gateway stopped, before it was reported
NOT_METERED_TYPE = "not_metered_type"  # audio, files, text: a type that reports nothing


class Usage(NamedTuple):
    """Tokens as the provider counts them.

    `cached` and the audio and image tokens of the prompt are parts of `prompt`; `reasoning` and
    the audio and image tokens of the completion are parts of `completion`: named apart because
    they are priced apart. `seconds` is audio that is billed by its length instead of by tokens.
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


class Reading(NamedTuple):
    """What a tap has seen up to now.

    `usage` is the last one reported, `model` the first one named. `reason` says why `usage` is
    None and is None otherwise. `error` is true where the provider reported an error inside of
    the answer (an event of a stream; an `error` member that is not null).
    """

    usage: Usage | None
    model: str | None
    reason: str | None
    error: bool = False
