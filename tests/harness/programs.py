"""System programs that a test needs: found, or the test is skipped and says why.

Where `CI=true` nothing is skipped: a missing program fails the test, so that a check that
never ran is not taken for one that passed.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def require(name: str, *alternatives: str) -> str:
    """The path of the program `name` (or of the first of `alternatives` that is there)."""
    names = (name, *alternatives)
    found = next((path for path in map(shutil.which, names) if path is not None), None)
    if found is None:
        missing(f"the program {' or '.join(names)} is not installed")
    return found


def missing(reason: str) -> NoReturn:
    """Skip this test for `reason`; fail it where `CI=true`."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
