"""A redis-py client with timeouts and retries that were set on purpose.

redis-py 8 by default waits 5 s for a reply and then sends the command again, up to ten times; a server that
was slow rather than dead then runs it up to eleven times. The clients made here try again only while *no
connection can be had*, when nothing can have been sent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import FullJitterBackoff, NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import MaxConnectionsError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

T = TypeVar("T")


class RetryConnect(Retry):
    """Tries again while nobody listens; never sends a command again that may have been executed.

    A refused connection proves that nothing was sent. After a timeout or a reset that is unknown, so the
    error goes to the caller, who alone knows whether the command may run twice.
    """

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        callers = sys.exception()  # what the caller is handling already says nothing of this command

        def nothing_was_sent(error: Exception) -> bool:
            return _refused(error, before=callers)

        return super().call_with_retry(do, fail, nothing_was_sent, with_failure_count)


def _refused(error: BaseException | None, before: BaseException | None) -> bool:
    while error is not None and error is not before:
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Pool(redis.ConnectionPool):
    """redis-py's pool; when it is full, the error says so with the remedy."""

    def get_connection(self, *args: Any, **options: Any) -> Any:
        try:
            return super().get_connection(*args, **options)
        except MaxConnectionsError:
            raise MaxConnectionsError(
                f"All {self.max_connections} connections of this pool are in use. Remedy: give them back "
                "sooner (`with` closes pipelines and pub/sub), allow more with max_connections=, or wait for "
                "one with a redis.BlockingConnectionPool(timeout=…)."
            ) from None


def settings() -> dict[str, Any]:
    """What every client of the workbook sets, over a cluster too; its retries come on top."""
    return {
        "protocol": 3,
        "legacy_responses": False,
        "decode_responses": True,
        "socket_timeout": 10,
        "socket_connect_timeout": 0.8,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),  # a managed service's feature
    }


def client(url: str, **options: Any) -> redis.Redis:
    """A client of the server at `url`; opens no connection before its first command.

    RESP3 with `legacy_responses=False`, strings decoded, hiredis parser. Connecting may take 0.8 s; a refused
    connection is tried three times more, with exponential backoff and jitter, for under 0.2 s in all. A reply
    may take 10 s: then TimeoutError, and the command may or may not have run (a blocking command that waits
    longer needs `socket_timeout=None`). `options` override, as for `redis.Redis`.
    """
    retry = RetryConnect(FullJitterBackoff(base=0.01, cap=0.1), retries=3)
    single = options.pop("single_connection_client", False)
    pool = Pool.from_url(url, **{**settings(), "retry": retry, **options})
    r = redis.Redis(connection_pool=pool, single_connection_client=single)
    r.auto_close_connection_pool = True
    return r


def cluster_client(url: str, **options: Any) -> RedisCluster:
    """A client of the cluster that the node at `url` belongs to; asks it, and so connects, at once.

    As `client()`: nothing is sent twice. After a node's failure the error goes to the caller, and the next
    command asks who is there. MOVED and ASK are followed: a server that redirects a command has not run it.
    """
    wanted = {**settings(), "retry": Retry(NoBackoff(), 0), **options}
    return RedisCluster.from_url(url.replace("redis+cluster", "redis", 1), **wanted)
