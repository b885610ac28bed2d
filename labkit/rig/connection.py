"""A client on a real Redis: the reader's own, the container's, or an embedded one."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, ReadOnlyError, RedisClusterException, RedisError
from redis.retry import Retry

from labkit import PREFIX, LabkitError
from labkit.rig import dotenv, rights
from labkit.rig.addresses import TooOld, check_form, is_cluster, not_an_address, wrong
from labkit.rig.client import client, cluster_client
from labkit.rig.ending import end_all
from labkit.rig.server import OLDEST, Server, ServerFailed

CONTAINER = ("127.0.0.1", 6390)
"""Where docker-compose.yml puts the workbook's Redis: a port of its own, never a stranger's 6379."""

EMBEDDED = "embedded"
"""REDIS_URL=embedded asks for an embedded server, whatever else there is."""

DEFAULT_PASSWORD = "workbook"

last: redis.Redis | RedisCluster | None = None
"""The client that `connect()` returned last: what the %%redis and %%wire magics use."""

_embedded: Server | None = None


class RedisUnavailable(LabkitError):
    """No Redis could be had. `tried` lists (place, why not), in the order in which they were tried."""

    def __init__(self, tried: list[tuple[str, str]]) -> None:
        self.tried = tried
        super().__init__("No Redis: " + " ".join(f"{place}: {why}" for place, why in tried))


def connect(url: str | None = None, *, quiet: bool = False, **options: Any) -> Any:
    """A `redis.Redis` on the first Redis to be had, and one printed line that says which.

    1. `url`, else the environment's REDIS_URL: redis://, rediss://, unix://, or redis+cluster:// (gives a
       RedisCluster); labkit.rig.addresses has all forms, labkit.rig.rights what an ACL user needs. If it is
       set and does not answer, that is an error: nothing else is tried. `embedded` goes to 3 at once.
    2. The container of docker-compose.yml, on 127.0.0.1:6390 with the workbook's password. On a JupyterHub
       only with a password of one's own: the default one is everybody's.
    3. An embedded server: a real redis-server child, private to this process and gone with it.

    A dead address fails in under a second. Raises RedisUnavailable with the remedy; never touches a key.
    In IPython it also registers the magics %%redis, %%wire and %%node, which use this client, and lets an
    interrupted cell say where it was in one sentence.
    """
    global last
    r, place = find(url, **options)
    check_rights(r, place)
    last = r
    if not quiet:
        print(f"{server_name(r)} · {place}")
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        from labkit.rig.interrupt import say_where
        from labkit.rig.wire import register_magics

        register_magics(shell, r)
        say_where(shell)
    return r


def find(url: str | None = None, **options: Any) -> tuple[Any, str]:
    """What `connect()` does, without a word: the client, and which of the three places it is of."""
    named = url or os.environ.get("REDIS_URL")
    return _named(named, options) if named else _container(options) or _own(options, _ELSEWHERE)


def reset(r: redis.Redis | RedisCluster | None = None, prefix: str | None = None) -> int:
    """Bring a chapter to its start, so that it can be run from the top again; returns how many keys went.

    `labkit.reset()` ends what this process has started: throw-away servers and clusters, links, worker
    processes, subscriptions, web sites, databases of its own, the load of `Probes`, and what live widgets
    have going (a widget that is closed so says so). Then it removes the workbook's keys from the server of
    the last `connect()`. It leaves alone that server, a link to it, and the embedded one, so that clients of
    them stay valid; variables, and the style of plots; locks, which end with their keys; and whatever another
    process has started, in a forked child all that its parent has. Graders and the race explorer start new
    servers of their own when they next need one. It takes less than a second with a chapter's worth of
    servers (`tests/bench_reset.py`). What cannot be ended raises an error, after all else has ended.

    `labkit.reset(r)`, `reset(prefix="workbook:05:")`, or with both: removes those keys, and ends nothing.

    Keys whose names do not begin with `workbook:` are never touched. SCAN and UNLINK in batches of 1,000, so
    that no other client stalls; two round trips a batch. Raises ValueError for any other prefix.
    """
    ends = r is None and prefix is None
    prefix = PREFIX if prefix is None else prefix
    if not prefix.startswith(PREFIX):
        raise ValueError(f"prefix is {prefix!r}; it must begin with {PREFIX!r}: other keys are not ours")
    server: Any = r or last or connect(quiet=True)
    if ends:
        end_all(server, _embedded)
    keys = keys_of(server, prefix)
    gone = 0
    while batch := list(islice(keys, 1000)):
        gone += _unlink(server, batch)
    return gone


def _unlink(r: Any, keys: list[bytes]) -> int:
    """One command, or one for each key where they may be on different nodes; in one round trip a node."""
    if not isinstance(r, RedisCluster):
        return int(r.unlink(*keys))
    with r.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.unlink(key)
        return sum(pipe.execute())


def keys_of(r: Any, prefix: str = PREFIX) -> Iterator[bytes]:
    """The keys that begin with `prefix`, by SCAN; as bytes, since a key need not be text."""
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
    found: Iterator[bytes] = r.scan_iter(match=pattern, count=1000, **{NEVER_DECODE: True})
    return found


def supports(r: Any, command: str, option: str = "") -> bool:
    """Does this server know `command`, and that `option` of it? `supports(r, "SET", "IFEQ")`.

    Asks the server (COMMAND INFO, or COMMAND DOCS for an option: one round trip), whatever its version claims
    to be. False also where the server will not say.
    """
    try:
        if not option:
            return bool(_entries(_node(r).execute_command("COMMAND INFO", command)))
        docs = _node(r).execute_command("COMMAND DOCS", command)
        return re.search(rf"\b{option}\b", str(docs), re.IGNORECASE) is not None
    except RedisError:
        return False


def may_write(r: Any, command: str) -> bool:
    """Does the server count `command` among those that write, or among scripts, which may? One round trip."""
    entries = _entries(_node(r).execute_command("COMMAND INFO", command))
    return any({"@write", "@scripting"} & set(entry[6]) for entry in entries)


def is_embedded(r: Any) -> bool:
    """Is `r` a client of this process's own embedded server, which nobody else knows?"""
    pool = getattr(r, "connection_pool", None)
    return bool(_embedded and pool and pool.connection_kwargs.get("port") == _embedded.port)


def _entries(info: Any) -> Any:
    return [entry for entry in (info.values() if isinstance(info, dict) else info) if entry]


def _node(r: Any) -> Any:
    """One server to ask: of a cluster, any of its nodes."""
    return r.get_default_node().redis_connection if isinstance(r, RedisCluster) else r


def _named(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The server that the reader chose, and nothing else. Passwords never appear in a message."""
    if url == EMBEDDED:
        return _own(options, [])
    place = "REDIS_URL" if url == os.environ.get("REDIS_URL") else "url"
    make = cluster_client if is_cluster(url) else client
    try:
        check_form(url)
        _probe(make, url, options, seconds=3)
        r = make(url, **options)
    except (ValueError, TypeError) as error:
        why = not_an_address(error, url)
    except (RedisError, RedisClusterException, AttributeError) as error:
        why = wrong(error, url)
    else:
        return r, f"{place}: your own server; the workbook keeps to keys that begin with {PREFIX}"
    raise RedisUnavailable([(place, why)])


def _probe(make: Callable[..., Any], url: str, options: dict[str, Any], seconds: float) -> None:
    """Ask the server once who it is, with little patience: one that is frozen, or is no Redis, is silent."""
    wanted = {name: value for name, value in options.items() if name != "single_connection_client"}
    with contextlib.closing(make(url, **{**wanted, "socket_timeout": seconds})) as r:
        version = server_info(r)["redis_version"]
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise TooOld(f"Redis {version} answers")


def check_rights(r: Any, place: str) -> None:
    """Say at once what the reader's own user lacks, rather than in the middle of a chapter.

    Raises RedisUnavailable, with the ACL SETUSER that gives it; closes `r` then. Asks no other server.
    """
    where, own, _ = place.partition(": your own server")
    try:
        lacking = rights.missing(r) if own else ()
    except ReadOnlyError:
        r.close()
        why = "it is a replica, which takes no writes. Remedy: let REDIS_URL name its primary."
        raise RedisUnavailable([(where, why)]) from None
    if lacking:
        user = _node(r).connection_pool.connection_kwargs.get("username") or "default"
        r.close()
        raise RedisUnavailable([(where, rights.remedy(lacking, user))])


def _container(options: dict[str, Any]) -> tuple[Any, str] | None:
    if "JUPYTERHUB_USER" in os.environ and workbook_password() == DEFAULT_PASSWORD:
        return None  # on a machine of many, it is somebody else's
    host, port = CONTAINER
    url = f"redis://:{quote(workbook_password(), safe='')}@{host}:{port}/0"
    try:
        _probe(client, url, {**options, "retry": Retry(NoBackoff(), 0)}, seconds=1)
    except (RedisError, AttributeError):  # nobody, a stranger's Redis, or no Redis at all
        return None
    return client(url, **options), "the container of docker-compose.yml"


_ELSEWHERE = [
    ("REDIS_URL", "is not set."),
    ("container", "`docker compose up -d` has not been run, or nothing answers on its port."),
]


def _own(options: dict[str, Any], tried: list[tuple[str, str]]) -> tuple[Any, str]:
    """An embedded server; `tried` is told, too, where there is none to be had."""
    global _embedded
    try:
        if _embedded is None or not _embedded.running:
            _embedded = Server().start()
    except ServerFailed as error:
        raise RedisUnavailable([*tried, ("embedded", str(error))]) from None
    return _embedded.client(
        **options
    ), "embedded: a server of its own, private to this kernel and gone with it"


def workbook_password() -> str:
    """The container's: REDIS_PASSWORD of the environment, else of .env, else the compose file's default."""
    return dotenv.setting("REDIS_PASSWORD", DEFAULT_PASSWORD)


def server_info(r: Any) -> dict[str, str]:
    """INFO server, as text; one round trip. Of a user who may not ask for it, what HELLO tells: one more.

    Then there are only redis_version and, of Valkey, valkey_version.
    """
    node = _node(r)
    try:
        return {name: str(value) for name, value in node.info("server").items()}
    except NoPermissionError:
        return _greeting(node)


def _greeting(node: Any) -> dict[str, str]:
    """The versions by HELLO, which whoever has a RESP3 connection may say: INFO counts as @dangerous."""
    told = node.execute_command("HELLO", **{NEVER_DECODE: True})
    pairs = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=True)
    hello = {_text(name): _text(value) for name, value in pairs}
    if hello["server"] == "valkey":
        return {"redis_version": "7.2.4", "valkey_version": hello["version"]}  # as Valkey's own INFO says
    return {"redis_version": hello["version"]}


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)


def server_name(r: Any) -> str:
    """`Redis 8.2.3` or `Valkey 9.0.1`; one round trip."""
    info = server_info(r)
    return (
        f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    )
