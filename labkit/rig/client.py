"""A redis-py client with timeouts and retries that were set on purpose.

redis-py 8 by default waits 5 s for a reply and then sends the command again, up to ten times; a server that
was slow rather than dead then runs it up to eleven times. The clients made here try again only while *no
connection can be had*, when nothing can have been sent.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

import redis
from redis.backoff import ConstantBackoff, FullJitterBackoff, NoBackoff
from redis.cluster import PRIMARY, ClusterNode, PipelineStrategy, RedisCluster, TransactionStrategy
from redis.exceptions import (
    AskError,
    ConnectionError,
    MaxConnectionsError,
    MovedError,
    RedisClusterException,
    RedisError,
    TimeoutError,
    TryAgainError,
)
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from labkit.rig.addresses import without_cluster

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


REDIRECTED = (MovedError, AskError, TryAgainError)
"""With these a node says that it has *not* run the command: to send it once more, elsewhere, is safe."""

_NUMBERED = {
    **dict.fromkeys(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"), 2),
    **dict.fromkeys(("ZUNIONSTORE", "ZINTERSTORE", "ZDIFFSTORE", "BLMPOP", "BZMPOP"), 2),
    **dict.fromkeys(("ZUNION", "ZINTER", "ZDIFF", "ZINTERCARD", "SINTERCARD", "LMPOP", "ZMPOP"), 1),
}
"""The word that says how many keys follow it; what ends with STORE has one more before."""
_STREAMS = frozenset({"XREAD", "XREADGROUP"})

_sending = threading.local()


class ClusterClient(RedisCluster):
    """redis-py's client of a cluster, which follows every redirection, and sends nothing twice.

    redis-py 8.1 falls over an ASK that names a node without slots, the first one that a new node gets (its
    issue 4015); sends commands of a pipeline again after an error of the connection; and gives up a
    transaction at the first MOVED, unless it may also be sent again after such an error. It also asks a node
    for the keys of each script in a pipeline, and twice for those of each XREADGROUP: here they are read off.
    And DBSIZE, KEYS and PUBSUB tell of the whole cluster, not of one node of it.
    """

    COMMAND_FLAGS: ClassVar[dict[str, str]] = {  # type: ignore[misc]
        **RedisCluster.COMMAND_FLAGS,
        **dict.fromkeys(("DBSIZE", "KEYS"), RedisCluster.PRIMARIES),
        **dict.fromkeys(("PUBSUB CHANNELS", "PUBSUB NUMSUB", "PUBSUB NUMPAT"), RedisCluster.ALL_NODES),
        **dict.fromkeys(("COMMAND INFO", "COMMAND DOCS"), RedisCluster.DEFAULT_NODE),
    }

    def _execute_command(self, target_node: Any, *args: Any, **options: Any) -> Any:
        _sending.now = True
        try:
            plain: Any = super()
            return plain._execute_command(target_node, *args, **options)
        finally:
            _sending.now = False

    def get_node(self, host: Any = None, port: Any = None, node_name: Any = None) -> Any:
        """As in redis-py; while a command is sent, also a node that has no slots yet."""
        plain: Any = super()
        found = plain.get_node(host, port, node_name)
        if found is None and node_name and getattr(_sending, "now", False):
            host, _, port = node_name.rpartition(":")
            found = self.nodes_manager.nodes_cache.setdefault(
                node_name, ClusterNode(host, int(port), PRIMARY)
            )
        return found

    def _get_command_keys(self, *args: Any) -> Any:
        name = str(args[0]).upper()
        if (count := _NUMBERED.get(name, len(args))) < len(args):
            keys = args[count + 1 : count + 1 + int(args[count])]
            return [args[1], *keys] if name.endswith("STORE") else list(keys)
        if name in _STREAMS:
            words = [str(word.decode(errors="replace") if isinstance(word, bytes) else word) for word in args]
            begin = 4 if words[1].upper() == "GROUP" else 1  # a group or a consumer may be called STREAMS
            at = next((n for n in range(begin, len(words)) if words[n].upper() == "STREAMS"), len(words))
            return list(args[at + 1 : at + 1 + (len(args) - at - 1) // 2])
        plain: Any = super()
        return plain._get_command_keys(*args)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """As in redis-py: without `transaction=True` its commands may be for many nodes, and are no unit."""
        plain: Any = super()
        pipe = plain.pipeline(transaction, shard_hint)
        pipe.parent_execute_command, pipe._get_command_keys = self.execute_command, self._get_command_keys
        pipe._execution_strategy = (_Transaction if transaction else _Pipeline)(pipe)
        return pipe


class _Pipeline(PipelineStrategy):
    """Only what was redirected is sent again: after an error of a connection, who knows what has been run?"""

    def _send_cluster_commands(
        self, stack: Sequence[Any], raise_on_error: bool = True, allow_redirections: bool = True
    ) -> list[Any]:
        start, plain = time.monotonic(), cast(Any, super())
        plain._send_cluster_commands(stack, raise_on_error=False, allow_redirections=False)
        if any(isinstance(command.result, ConnectionError | TimeoutError) for command in stack):
            with contextlib.suppress(RedisClusterException):
                self._nodes_manager.initialize()
        for command in stack:
            if isinstance(command.result, REDIRECTED):
                try:
                    command.result = self._pipe.parent_execute_command(*command.args, **command.options)
                except RedisError as error:
                    command.result = error
        if raise_on_error:
            plain._raise_first_error(stack, start)
        return [command.result for command in stack]


class _Transaction(TransactionStrategy):
    """While its slot moves, it is tried again for up to 2 s: no node can run the half of a transaction."""

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._retry = RetryRedirected(ConstantBackoff(0.02), 100, (RedisError, OSError))

    def _reinitialize_on_error(self, error: Any, failure_count: int) -> None:
        plain: Any = super()
        plain._reinitialize_on_error(error, failure_count)
        if isinstance(error, MovedError):
            self._nodes_manager.move_slot(error)
        elif isinstance(error, self.CONNECTION_ERRORS):  # redis-py counts them for each pipeline anew
            with contextlib.suppress(RedisClusterException):
                self._nodes_manager.initialize()


class RetryRedirected(Retry):
    """Sends again only what a node has refused to run, since it is another's."""

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        def redirected(error: Exception) -> bool:
            if not isinstance(error, REDIRECTED):
                fail(error, 1) if with_failure_count else fail(error)
            return isinstance(error, REDIRECTED)

        return super().call_with_retry(do, fail, redirected, with_failure_count)


def cluster_client(url: str, **options: Any) -> RedisCluster:
    """A client of the cluster that the node at `url` belongs to; asks it, and so connects, at once.

    As `client()`: nothing is sent twice. After a node's failure the error goes to the caller, and the next
    command asks who is there. MOVED and ASK are followed: a server that redirects a command has not run it.
    """
    wanted = {**settings(), "retry": Retry(NoBackoff(), 0), **options}
    return ClusterClient.from_url(without_cluster(url), **wanted)
