"""A client on a real Redis: the reader's own, the container's, or an embedded one."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    RedisClusterException,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from labkit import PREFIX, LabkitError
from labkit.rig.client import client, cluster_client
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


class _TooOld(RedisError):
    """A server from before Redis 7.0 answers."""


def connect(url: str | None = None, *, quiet: bool = False, **options: Any) -> Any:
    """A `redis.Redis` on the first Redis to be had, and one printed line that says which.

    1. `url`, else the environment's REDIS_URL: redis://, rediss://, unix://, or redis+cluster:// (gives a
       RedisCluster). If it is set and does not answer, that is an error: nothing else is tried.
       `embedded` goes to 3 at once.
    2. The container of docker-compose.yml, on 127.0.0.1:6390 with the workbook's password.
    3. An embedded server: a real redis-server child, private to this process and gone with it.

    A dead address fails in under a second. Raises RedisUnavailable with the remedy; never touches a key.
    In IPython it also registers the magics %%redis and %%wire, which use this client, and lets an interrupted
    cell say where it was in one sentence.
    """
    global last
    r, place = find(url, **options)
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
    return _named(named, options) if named else _container(options) or _own(options)


def reset(r: redis.Redis | RedisCluster | None = None, prefix: str = PREFIX) -> int:
    """Remove the workbook's keys from the server of `r` (default: of the last connect()); returns how many.

    Keys whose names do not begin with `workbook:` are never touched. SCAN and UNLINK in batches of 1,000, so
    that no other client stalls; two round trips a batch. Raises ValueError for any other prefix.
    """
    if not prefix.startswith(PREFIX):
        raise ValueError(f"prefix is {prefix!r}; it must begin with {PREFIX!r}: other keys are not ours")
    server: Any = r or last or connect(quiet=True)
    keys = keys_of(server, prefix)
    gone = 0
    while batch := list(islice(keys, 1000)):
        with server.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.unlink(key)
            gone += sum(pipe.execute())
    return gone


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
        return _own(options)
    place = "REDIS_URL" if url == os.environ.get("REDIS_URL") else "url"
    make = cluster_client if url.startswith("redis+cluster:") else client
    try:
        _check_form(url)
        _probe(make, url, options, seconds=3)
        r = make(url, **options)
    except (ValueError, TypeError) as error:
        why = f"is not the address of a Redis: {_mask(error, url)} {_FORMS}"
    except (RedisError, RedisClusterException, AttributeError) as error:
        why = _why(error, url)
    else:
        return r, f"{place}: your own server; the workbook keeps to keys that begin with {PREFIX}"
    raise RedisUnavailable([(place, why)])


def _probe(make: Callable[..., Any], url: str, options: dict[str, Any], seconds: float) -> None:
    """Ask the server once who it is, with little patience: one that is frozen, or is no Redis, is silent."""
    wanted = {name: value for name, value in options.items() if name != "single_connection_client"}
    with contextlib.closing(make(url, **{**wanted, "socket_timeout": seconds})) as r:
        version = server_info(r)["redis_version"]
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise _TooOld(f"Redis {version} answers")


def _check_form(url: str) -> None:
    """Refuse a password that ends the address early, before a parser takes it for a host and quotes it."""
    if url.count("@") > 1 or ("@" in url and "@" not in urlsplit(url).netloc):
        raise ValueError("a / ? # or @ in a password must be percent-encoded (%2F %3F %23 %40)")


_FORMS = (
    "Remedy: use redis://[user:password@]host:port/0, rediss://… for TLS, unix:///path, "
    "or redis+cluster://host:port."
)
_REMEDIES = (
    ("older than", "upgrade it: 7.0 is the oldest that the workbook runs on."),
    ("HELLO", "this server is older than 7.0, the oldest that the workbook runs on; upgrade it."),
    ("refused the user", "check both in the URL."),
    ("loading", "wait until it has loaded its data, and try again."),
    ("DB index", "correct the number of the database at the end of the URL."),
    ("no permissions", "give this user the commands it lacks, +info +hello +client at least."),
    ("Cluster mode is not enabled", "it is a single server: write redis:// for redis+cluster://."),
    ("TLS", "check that this port speaks TLS; without TLS write redis:// for rediss://."),
    ("not as a Redis", "correct the port in the URL."),
    ("", "start that server, correct the URL, or unset REDIS_URL to use an embedded one."),
)
"""What to do, by a word of what went wrong; the first that fits."""


def _why(error: Exception, url: str) -> str:
    said = _mask(error, url)
    if isinstance(error, AuthenticationError) or re.search("WRONGPASS|NOAUTH|username-password", said):
        said = "the server refused the user or the password."
    elif isinstance(error, _TooOld):
        said = f"{said[:-1]}, which is older than 7.0."
    elif isinstance(error, AttributeError):
        said = "something answers there, but not as a Redis does."
    elif url.startswith("rediss:") and isinstance(error, ConnectionError | TimeoutError):
        said = f"no TLS connection: {said}" if "refused" not in said else said
    return f"{said} Remedy: {next(remedy for word, remedy in _REMEDIES if word in said)}"


def _mask(error: Exception, url: str) -> str:
    secret = re.search(r"://[^/@]*?:([^@]+)@[^@]*$", url)
    text = str(error).replace(secret[1], "***") if secret else str(error)
    return " ".join(text.split()).rstrip(". ") + "."


def _container(options: dict[str, Any]) -> tuple[Any, str] | None:
    host, port = CONTAINER
    url = f"redis://:{quote(workbook_password(), safe='')}@{host}:{port}/0"
    try:
        _probe(client, url, {**options, "retry": Retry(NoBackoff(), 0)}, seconds=1)
    except (RedisError, AttributeError):  # nobody, a stranger's Redis, or no Redis at all
        return None
    return client(url, **options), "the container of docker-compose.yml"


def _own(options: dict[str, Any]) -> tuple[Any, str]:
    global _embedded
    try:
        if _embedded is None or not _embedded.running:
            _embedded = Server().start()
    except ServerFailed as error:
        raise RedisUnavailable(
            [
                ("REDIS_URL", "is not set."),
                ("container", "`docker compose up -d` has not been run, or nothing answers on its port."),
                ("embedded", str(error)),
            ]
        ) from None
    return _embedded.client(
        **options
    ), "embedded: a server of its own, private to this kernel and gone with it"


def workbook_password() -> str:
    """The container's: REDIS_PASSWORD of the environment, else of .env, else the compose file's default."""
    if password := os.environ.get("REDIS_PASSWORD"):
        return password
    dotenv = Path(__file__).parents[2] / ".env"
    found = re.search(r"^REDIS_PASSWORD=(.+)$", dotenv.read_text(), re.M) if dotenv.exists() else None
    return found[1].strip().strip("'\"") if found else DEFAULT_PASSWORD


def server_info(r: Any) -> dict[str, str]:
    """INFO server, as text; one round trip."""
    return {name: str(value) for name, value in _node(r).info("server").items()}


def server_name(r: Any) -> str:
    """`Redis 8.2.3` or `Valkey 9.0.1`; one round trip."""
    info = server_info(r)
    return (
        f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    )
