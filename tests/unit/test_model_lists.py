"""Providers' lists of models, in every shape that is known, and what is told of the others."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from harness import raw
from wrapper.blueprints.models import ModelLists, read_list
from wrapper.config import Provider
from wrapper.metering.dialects import DECODING_ERRORS
from wrapper.upstream import Upstream

WHOLE = {"id": "a", "object": "model", "created": 7, "owned_by": "them", "context": 9}
FILLED = {"object": "model", "created": 0, "owned_by": "here"}


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ({"object": "list", "data": [WHOLE]}, [WHOLE]),
        ([WHOLE], [WHOLE]),
        ([], []),
        ({"data": []}, []),
        (["a", "b"], [{"id": "a", **FILLED}, {"id": "b", **FILLED}]),
        ({"models": [{"name": "a"}]}, [{"id": "a", "name": "a", **FILLED}]),
        ({"models": [{"model": "a"}]}, [{"id": "a", "model": "a", **FILLED}]),
        ({"models": [{"name": "models/a"}]}, [{"id": "a", "name": "models/a", **FILLED}]),
        ({"data": [{**WHOLE, "id": "models/a"}]}, [{**WHOLE, "id": "models/a"}]),
        ({"data": None, "models": [WHOLE]}, [WHOLE]),
        ({"data": [{"id": "a", "name": "The A"}]}, [{"id": "a", "name": "The A", **FILLED}]),
        ({"data": [WHOLE, {"id": 3}, 4, None, {}]}, [WHOLE]),
    ],
)
def test_a_list_is_read_in_its_dialect(listed: Any, found: list[dict[str, Any]]) -> None:
    assert read_list(json.dumps(listed).encode(), "here") == found


@pytest.mark.parametrize(
    "text", [b"", b"{}", b'{"data": 3}', b'{"data": [{"x": 1}]}', b"[1]", b"<html>", b'"a"']
)
def test_what_is_no_list_is_an_error(text: bytes) -> None:
    with pytest.raises(DECODING_ERRORS):
        read_list(text, "here")


def test_a_list_that_cannot_be_read_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wrapper.blueprints.models.TIMEOUT", 60.0)  # the machine may be slow
    answers = iter([b"{}", b"[3]", b'["a"]', b"{}"])
    with raw.scripted(lambda _: raw.response(next(answers))) as provider:
        upstream = Upstream(Provider("other", f"{provider.url}/v1"))
        lists = ModelLists(lambda *_: None)
        told = []
        with caplog.at_level(logging.WARNING, "wrapper"):
            for _ in range(4):
                lists._refresh(upstream)
                told.append(len(caplog.messages))
    assert told == [1, 1, 1, 2]
    assert caplog.messages[0] == (
        "cannot list the models of provider 'other': its response has neither 'data' nor 'models'"
    )
