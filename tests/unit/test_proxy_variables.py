"""Variables that name an outgoing proxy: not used, and told."""

from __future__ import annotations

import pytest

from wrapper.cli.check import notes
from wrapper.config import Settings, ignored_proxies
from wrapper.config.settings import Server
from wrapper.metering.pricing import Prices

SECRET = "http://user:password@proxy.test:3128"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"])
def test_a_proxy_in_the_environment_is_told_without_its_value(name: str) -> None:
    environ = {name: SECRET, "NO_PROXY": "*", "PROXY": "x"}
    assert ignored_proxies(environ) == [name]
    found = notes(Settings(Server(), {}, (), {}), environ, Prices({}, {}))
    told = [note for note in found if "directly" in note]
    assert len(told) == 1
    assert name in told[0]
    assert "password" not in told[0]


def test_an_empty_variable_names_no_proxy() -> None:
    assert ignored_proxies({"HTTPS_PROXY": "", "no_proxy": "x"}) == []
