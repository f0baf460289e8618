"""The request line's target: the raw path and query, refused where they have two readings.

RFC 3986 sections 3.3 and 6.2.2, RFC 9112 section 3.2. The rule protected here: the provider reads
in a path what the gateway read in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wrapper import errors

# Characters and sequences of a path that one reader takes for something else than another:
# dot segments, empty segments, encoded slashes, backslashes, dots and controls.
_AMBIGUOUS = re.compile(
    r"//|\\|[\x00-\x20\x7f-\xff#]|%(?![0-9a-fA-F]{2})|%(?:2[fF]|5[cC]|[01][0-9a-fA-F]|7[fF])"
    r"|/(?:\.|%2[eE]){1,2}(?:/|;|%3[bB]|$)"
)
_ENCODED_SLASH = re.compile("%2[fF]")
_BAD_QUERY = re.compile(r"[\x00-\x20\x7f#]")


def split_target(environ: Mapping[str, Any]) -> tuple[str, str]:
    """The raw path and `?query` of the request line, refused where they have two readings.

    RFC 3986 section 3.3 and 6.2.2; RFC 9112 section 3.2: only the origin form is served.
    """
    raw: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    path, mark, query = raw.partition("?")
    if not path.startswith("/") or _is_ambiguous(path) or _BAD_QUERY.search(query):
        raise errors.InvalidPath(
            "The path could be read in two ways: no dot segments, encoded slashes, '//', "
            "backslashes, malformed percent-encodings or control characters."
        )
    return path, mark + query


def _is_ambiguous(path: str) -> bool:
    """Whether readers could differ on where the path leads.

    A model's name is all that stands behind `/models/`, with slashes or, as the SDKs write them
    there, with encoded ones: both readings are the same, so both are taken.
    """
    before, models, name = path.partition("/models/")
    plain = before + models + _ENCODED_SLASH.sub("/", name)
    return _AMBIGUOUS.search(plain) is not None
