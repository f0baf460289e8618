"""Connections to Redis, and the scripts that run there.

Why not redis-py's client: its connections and pools are used here (TLS, sentinels, clusters), its
`execute_command` costs several times the round trip.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import redis
from redis.connection import ConnectionInterface, ConnectionPool

from wrapper.store.base import StoreError
from wrapper.store.redisurl import RedisAddress

# Has a hash tag: in a cluster all keys are on one node.
PREFIX = "{wrapper}"
# Connections that a process has at most, and how long a request waits for one, in seconds.
CONNECTIONS = 32
TURN_SECONDS = 0.5
# How long everything fails at once after the server could not be reached, in seconds.
DOWN_SECONDS = 1.0

_LUA = Path(__file__).parent / "lua"
# Replies that say: ask another server, or the same one later.
_ELSEWHERE = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MovedError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.BusyLoadingError,
)

T = TypeVar("T")


class Unreachable(StoreError):
    """The server was not reached, or its reply was lost: nobody knows whether it did its work."""


class Script(NamedTuple):
    """The text of a script, and its hash, by which the server knows it."""

    text: str
    sha: str


def _script(name: str, *more: str) -> Script:
    parts = ("common", "accounts", "leases", *more, name)
    text = "\n".join((_LUA / f"{part}.lua").read_text() for part in parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_SCRIPTS = {
    **{name: _script(name) for name in ("admit", "heartbeat", "move", "standing")},
    "settle": _script("settle", "ledger"),
    "deferred": _script("deferred", "ledger"),
}


class Link:
    """The connections of one process."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._pool: ConnectionPool | None = None
        self._idle: list[ConnectionInterface] = []
        self._turns = threading.BoundedSemaphore(CONNECTIONS)
        self._down_until = 0.0

    def run(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """The result of a script. It may run twice: the second time must do nothing."""
        text, sha = _SCRIPTS[name]
        payload = msgspec.json.encode(request)

        def use(connection: ConnectionInterface) -> Any:
            try:
                return _call(connection, "EVALSHA", sha, 1, PREFIX, payload)
            except redis.exceptions.NoScriptError:
                return _call(connection, "EVAL", text, 1, PREFIX, payload)

        result: dict[str, Any] = msgspec.json.decode(self._with_connection(use))
        return result

    def commands(self, commands: Sequence[tuple[str | int | bytes, ...]]) -> list[Any]:
        """The replies to several commands that may be repeated, in one round trip."""

        def use(connection: ConnectionInterface) -> list[Any]:
            connection.send_packed_command(connection.pack_commands(commands))
            # All are read before one is raised: the next user must not get what is left.
            replies = [_reply(connection) for _ in commands]
            for reply in replies:
                if isinstance(reply, redis.exceptions.ResponseError):
                    raise reply
            return replies

        return self._with_connection(use)

    def close(self) -> None:
        self._down_until = 0.0
        self._forget()

    def _with_connection(self, use: Callable[[ConnectionInterface], T]) -> T:
        if time.monotonic() < self._down_until:
            raise self._failed("was not in reach a moment ago")
        if not self._turns.acquire(timeout=TURN_SECONDS):
            raise self._failed("is too slow: all connections are in use")
        try:
            return self._use(use)
        except _ELSEWHERE as error:
            self._forget()
            raise self._failed(str(error)) from error
        except redis.exceptions.ResponseError as error:
            raise StoreError(f"{self._address.shown}: {error}") from error
        except (
            redis.exceptions.RedisError,
            redis.exceptions.RedisClusterException,
            OSError,
        ) as error:
            self._down_until = time.monotonic() + DOWN_SECONDS
            self._forget()
            raise self._failed(str(error)) from error
        finally:
            self._turns.release()

    def _use(self, use: Callable[[ConnectionInterface], T]) -> T:
        """What `use` makes of a connection: an idle one, and a new one where that is broken."""
        if self._idle:
            connection = self._idle.pop()
            try:
                return self._lend(connection, use)
            except redis.exceptions.TimeoutError:
                raise
            except (redis.exceptions.ConnectionError, OSError):
                self._forget()  # they are as old as this one
        if self._pool is None:
            self._pool = self._address.pool(PREFIX)
        return self._lend(self._pool.make_connection(), use)

    def _lend(self, connection: ConnectionInterface, use: Callable[[ConnectionInterface], T]) -> T:
        """As `use`; then the connection is idle, or closed where a reply may be left in it."""
        try:
            connection.connect()
            result = use(connection)
        except redis.exceptions.ResponseError:
            self._idle.append(connection)
            raise
        except BaseException:
            connection.disconnect()
            raise
        self._idle.append(connection)
        return result

    def _forget(self) -> None:
        """Close what is idle, and look for the server anew."""
        self._pool = None
        while self._idle:
            self._idle.pop().disconnect()

    def _failed(self, reason: str) -> Unreachable:
        return Unreachable(f"{self._address.shown}: {reason}")


def _call(connection: ConnectionInterface, *command: str | int | bytes) -> Any:
    connection.send_command(*command)
    return connection.read_response()


def _reply(connection: ConnectionInterface) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error
