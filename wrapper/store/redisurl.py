"""The addresses of Redis: one server, sentinels, a cluster; and the connections to it.

    redis://[[user]:password@]host[:6379][/db]                 rediss:// with TLS
    redis+sentinel://[[user]:password@]host[:26379],host2[:26379]/master[/db]
    redis+cluster://[[user]:password@]host[:6379],host2[:6379]     or redis://…?cluster=true

Each also with `rediss`. What redis-py reads from a query can be added: `?ssl_ca_certs=/path`;
`sentinel_password` is for the sentinels, where they ask for one.

Invariant: no text made here has a user name or a password in it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from redis import ConnectionPool, Redis, Sentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.retry import Retry

from wrapper.store.base import StoreError

# Seconds to connect, and to wait for a reply.
CONNECT_SECONDS = 1.0
REPLY_SECONDS = 1.0

FORMS = "redis://host:6379/0, redis+sentinel://host:26379/master/0 or redis+cluster://host:6379"
_URL = re.compile(
    r"(?P<scheme>rediss?)(?:\+(?P<kind>sentinel|cluster))?://"
    r"(?:(?P<user>[^@/?#\s]*)@)?(?P<hosts>[^@/?#\s]+)(?P<path>/[^?#\s]*)?(?:\?(?P<query>[^#\s]*))?"
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(?::([0-9]{1,5}))?")


class RedisAddress:
    """One of the forms above. Raises StoreError for anything else."""

    def __init__(self, url: str) -> None:
        parts = _URL.fullmatch(url)
        if parts is None:
            raise StoreError(f"WRAPPER_STORE: is not the address of a Redis; write {FORMS}")
        query = dict(parse_qsl(parts["query"] or ""))
        cluster = query.pop("cluster", "").lower() in ("true", "1", "yes")
        self.kind = parts["kind"] or ("cluster" if cluster else "server")
        port = 26379 if self.kind == "sentinel" else 6379
        self.hosts = [_host(text, port) for text in parts["hosts"].split(",")]
        if self.kind == "server" and len(self.hosts) > 1:
            raise StoreError(f"WRAPPER_STORE: names several hosts; write {FORMS}")
        path = [unquote(part) for part in (parts["path"] or "").split("/") if part]
        self.master = path.pop(0) if path and self.kind == "sentinel" else ""
        if self.kind == "sentinel" and not self.master:
            raise StoreError(f"WRAPPER_STORE: names no master; write {FORMS}")
        if len(path) > 1 or not all(re.fullmatch("[0-9]{1,5}", part) for part in path):
            raise StoreError(f"WRAPPER_STORE: the database is not a number; write {FORMS}")
        if self.kind == "cluster" and path not in ([], ["0"]):
            raise StoreError("WRAPPER_STORE: a cluster has the database 0 only")
        self._sentinel = {
            name: query.pop(f"sentinel_{name}")
            for name in ("username", "password")
            if f"sentinel_{name}" in query
        }
        self._options = _options(parts["scheme"], parts["user"], query)
        if path and self.kind != "cluster":
            self._options["db"] = int(path[0])
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        self.shown = "/".join([f"{parts['scheme']}://{hosts}", *filter(None, [self.master]), *path])

    def pool(self, key: str) -> ConnectionPool:
        """Connections to the server that has `key`. Looks for it, where it has to be found."""
        if self.kind == "server":
            host, port = self.hosts[0]
            return ConnectionPool(host=host, port=port, **_COMMON, **self._options)
        options = {**_COMMON, **self._options}
        options["ssl"] = options.pop("connection_class", None) is not None
        if self.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in self.hosts]
            cluster = RedisCluster(startup_nodes=nodes, **options)
            return cluster.get_redis_connection(cluster.get_node_from_key(key)).connection_pool
        tls = {name: value for name, value in options.items() if name.startswith("ssl")}
        sentinel = Sentinel(self.hosts, sentinel_kwargs={**_COMMON, **tls, **self._sentinel})
        master: Redis = sentinel.master_for(self.master, **options)
        return master.connection_pool


_COMMON: dict[str, Any] = {
    "protocol": 2,
    "socket_connect_timeout": CONNECT_SECONDS,
    "socket_timeout": REPLY_SECONDS,
    "socket_keepalive": True,
    "retry": Retry(NoBackoff(), 0),  # what may be repeated is known in store.redis
}


def _host(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None or int(found[2] or 1) > 65535:
        raise StoreError(f"WRAPPER_STORE: a host is not a name or an address; write {FORMS}")
    return found[1].strip("[]"), int(found[2] or default_port)


def _options(scheme: str, user: str | None, query: dict[str, str]) -> dict[str, Any]:
    """The credentials and the options of the query, as redis-py reads them from an URL."""
    text = f"{scheme}://{user}@host/" if user else f"{scheme}://host/"
    try:
        found: dict[str, Any] = parse_url(f"{text}?{urlencode(query)}" if query else text)
    except ValueError as error:
        raise StoreError("WRAPPER_STORE: an option of the query has a wrong value") from error
    found.pop("host", None)
    return found
