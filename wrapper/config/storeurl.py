"""The addresses of Redis in WRAPPER_STORE: one server, sentinels, a cluster.

    redis://[[user]:password@]host[:6379][/db]
    redis+sentinel://[[user]:password@]host[:26379],host2[:26379]/master[/db]
    redis+cluster://[[user]:password@]host[:6379],host2[:6379]     or redis://…?cluster=true

`rediss` in place of `redis`: with TLS. Other options of the query are those of redis-py's URLs
(`?ssl_ca_certs=/path`); `sentinel_username` and `sentinel_password` are for the sentinels.

Invariant: no text made here has a user name or a password in it.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

REDIS_FORMS = (
    "write redis://host:6379/0, redis+sentinel://host:26379/master/0"
    " or redis+cluster://host:6379, rediss for TLS"
)

_URL = re.compile(
    r"(?P<scheme>rediss?)(?:\+(?P<kind>sentinel|cluster))?://"
    r"(?:(?P<user>[^@/?#\s]*)@)?(?P<hosts>[^@/?#\s]+)(?P<path>/[^?#\s]*)?(?:\?(?P<query>[^#\s]*))?"
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(?::([0-9]{1,5}))?")


class RedisUrl(NamedTuple):
    """What an address says. `kind` is server, sentinel or cluster."""

    kind: str
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    master: str
    db: int
    username: str | None
    password: str | None
    options: dict[str, str]

    @property
    def shown(self) -> str:
        """The address for messages."""
        scheme = "rediss" if self.tls else "redis"
        kind = "" if self.kind == "server" else f"+{self.kind}"
        hosts = ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.hosts)
        master = f"/{self.master}" if self.master else ""
        return f"{scheme}{kind}://{hosts}{master}/{self.db}"


def is_redis(url: str) -> bool:
    """Whether `url` is meant as one of these."""
    return url.partition(":")[0].partition("+")[0] in ("redis", "rediss")


def parse_redis(url: str) -> RedisUrl:
    """What `url` says. ValueError says what is wrong with it."""
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError("is not the address of a Redis")
    options = dict(parse_qsl(parts["query"] or "", keep_blank_values=True))
    cluster = options.pop("cluster", "").lower() in ("true", "1", "yes")
    kind = parts["kind"] or ("cluster" if cluster else "server")
    hosts = tuple(
        _host(text, 26379 if kind == "sentinel" else 6379) for text in parts["hosts"].split(",")
    )
    if kind == "server" and len(hosts) > 1:
        raise ValueError("names several hosts, which only sentinels and clusters have")
    path = [unquote(part) for part in (parts["path"] or "").split("/") if part]
    master = path.pop(0) if path and kind == "sentinel" else ""
    if kind == "sentinel" and not master:
        raise ValueError("names no master")
    db = "/".join(path) or "0"
    if not re.fullmatch("[0-9]{1,5}", db):
        raise ValueError("the database is not a number")
    if kind == "cluster" and int(db):
        raise ValueError("a cluster has the database 0 alone")
    username, colon, password = (parts["user"] or "").partition(":")
    return RedisUrl(
        *(kind, parts["scheme"] == "rediss", hosts, master, int(db)),
        unquote(username) or None,
        unquote(password) if colon else None,
        options,
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None or not 0 < int(found[2] or default_port) <= 65535:
        raise ValueError("has a host that is not a name or an address, with a port")
    return found[1].strip("[]"), int(found[2] or default_port)
