"""From the address of a Redis to connections: one server, sentinels, a cluster."""

from __future__ import annotations

from typing import Any

from redis import ConnectionPool, Redis, Sentinel, SSLConnection
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.retry import Retry

from wrapper.config.storeurl import REDIS_FORMS, parse_redis
from wrapper.store.base import StoreError

# Seconds to connect, and to wait for a reply.
CONNECT_SECONDS = 1.0
REPLY_SECONDS = 1.0

_SENTINEL = "sentinel_"


class RedisAddress:
    """An address in a form of `config.storeurl`. Raises StoreError for anything else."""

    def __init__(self, url: str) -> None:
        try:
            self._url = parse_redis(url)
            options = {name: _value(name, text) for name, text in self._url.options.items()}
        except ValueError as error:
            raise StoreError(f"WRAPPER_STORE: {error}; {REDIS_FORMS}") from None
        self.shown = self._url.shown
        common: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": REPLY_SECONDS,
            "socket_keepalive": True,
            "max_connections": 2**31,  # ever made by one pool; store.redislink limits those in use
            "retry": Retry(NoBackoff(), 0),  # what may be repeated is known in store.redis
        }
        own = {name: value for name, value in options.items() if not name.startswith(_SENTINEL)}
        self._options = {**common, **own}
        if self._url.username is not None:
            self._options["username"] = self._url.username
        if self._url.password is not None:
            self._options["password"] = self._url.password
        tls = {name: value for name, value in own.items() if name.startswith("ssl_")}
        self._for_sentinels = {**common, **tls, "ssl": self._url.tls}
        for name in ("username", "password"):
            if _SENTINEL + name in options:
                self._for_sentinels[name] = options[_SENTINEL + name]

    def pool(self, key: str) -> ConnectionPool:
        """Connections to the server that has `key`. Looks for it, where it has to be found."""
        url, options = self._url, self._options
        if url.kind == "server":
            host, port = url.hosts[0]
            if url.tls:
                options = {**options, "connection_class": SSLConnection}
            return ConnectionPool(host=host, port=port, db=url.db, **options)
        if url.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in url.hosts]
            cluster = RedisCluster(startup_nodes=nodes, ssl=url.tls, **options)
            return cluster.get_redis_connection(cluster.get_node_from_key(key)).connection_pool
        sentinel = Sentinel(url.hosts, sentinel_kwargs=self._for_sentinels)
        master: Redis = sentinel.master_for(url.master, db=url.db, ssl=url.tls, **options)
        return master.connection_pool


def _value(name: str, text: str) -> Any:
    """An option of the query, as redis-py reads it."""
    read: Any = URL_QUERY_ARGUMENT_PARSERS.get(name, str)
    try:
        return read(text)
    except (TypeError, ValueError):
        raise ValueError(f"the option {name} has a wrong value") from None
