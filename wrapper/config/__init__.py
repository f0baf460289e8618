"""Configuration: frozen, typed `Settings` from two TOML files and the environment.

`load(environ)` returns the settings or raises `ConfigError` with every problem at once;
`environment()` reads `.env`; `listen(environ)` returns the address to listen on. Reloading is in
`wrapper.config.watch`, editing keys.toml in `wrapper.config.keyfile`.
"""

from __future__ import annotations

from wrapper.config.keys import KeyFile
from wrapper.config.loading import (
    Listen,
    config_path,
    environment,
    ignored_proxies,
    keys_path,
    listen,
    load,
    load_key_file,
    load_keys,
    missing_keys,
    needs_demo,
    prices_path,
    store_url,
)
from wrapper.config.problems import ConfigError, Problem
from wrapper.config.settings import (
    ADMIN_KEY,
    MAX_IN_FLIGHT,
    MAX_TAG,
    ApiKey,
    Group,
    Price,
    Provider,
    Route,
    Secret,
    Server,
    Settings,
    Shutdown,
    Tags,
    Target,
)

__all__ = [
    "ADMIN_KEY",
    "MAX_IN_FLIGHT",
    "MAX_TAG",
    "ApiKey",
    "ConfigError",
    "Group",
    "KeyFile",
    "Listen",
    "Price",
    "Problem",
    "Provider",
    "Route",
    "Secret",
    "Server",
    "Settings",
    "Shutdown",
    "Tags",
    "Target",
    "config_path",
    "environment",
    "ignored_proxies",
    "keys_path",
    "listen",
    "load",
    "load_key_file",
    "load_keys",
    "missing_keys",
    "needs_demo",
    "prices_path",
    "store_url",
]
