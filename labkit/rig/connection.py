"""A client on a real Redis: the reader's own, the container's, or an embedded one."""

from __future__ import annotations

import os
import re
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from labkit import PREFIX, LabkitError
from labkit.rig.client import client
from labkit.rig.server import OLDEST, Server, ServerFailed

CONTAINER = ("127.0.0.1", 6390)
"""Where docker-compose.yml puts the workbook's Redis: a port of its own, never a stranger's 6379."""

DEFAULT_PASSWORD = "workbook"

last: redis.Redis | RedisCluster | None = None
"""The client that `connect()` returned last: what the %%redis and %%wire magics use."""

_embedded: Server | None = None


class RedisUnavailable(LabkitError):
    """No Redis could be had. `tried` lists (place, why not), in the order in which they were tried."""

    def __init__(self, tried: list[tuple[str, str]]) -> None:
        self.tried = tried
        super().__init__("No Redis: " + " ".join(f"{place}: {why}" for place, why in tried))


class TooOld(RedisError):
    """A server from before Redis 7.0."""


def connect(url: str | None = None, *, quiet: bool = False, **options: Any) -> Any:
    """A `redis.Redis` on the first Redis to be had, and one printed line that says which.

    1. `url`, else the environment's REDIS_URL: redis://, rediss://, unix://, or redis+cluster:// (gives a
       RedisCluster). If it is set and does not answer, that is an error: nothing else is tried.
    2. The container of docker-compose.yml, on 127.0.0.1:6390 with the workbook's password.
    3. An embedded server: a real redis-server child, private to this process and gone with it.

    A dead address fails in under a second. Raises RedisUnavailable with the remedy; never touches a key.
    In IPython it also registers the magics %%redis and %%wire, which use this client.
    """
    global last
    r, place = find(url, **options)
    last = r
    if not quiet:
        print(f"{server_name(r)} · {place}")
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        from labkit.rig.wire import register_magics

        register_magics(shell, r)
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
    keys = server.scan_iter(match=re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*", count=1000)
    gone = 0
    while batch := list(islice(keys, 1000)):
        with server.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.unlink(key)
            gone += sum(pipe.execute())
    return gone


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


def _entries(info: Any) -> Any:
    return [entry for entry in (info.values() if isinstance(info, dict) else info) if entry]


def _node(r: Any) -> Any:
    """One server to ask: of a cluster, any of its nodes."""
    return r.get_default_node().redis_connection if isinstance(r, RedisCluster) else r


def _named(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The server that the reader chose, and nothing else. Passwords never appear in a message."""
    place = "REDIS_URL" if url == os.environ.get("REDIS_URL") else "url"
    try:
        r = (_cluster if url.startswith("redis+cluster:") else client)(url, **options)
        _check(r)
    except ValueError as error:
        why = f"is not the address of a Redis: {_mask(error, url)} {_FORMS}"
    except AuthenticationError:
        why = "the server refused the user or the password. Remedy: check both in the URL."
    except RedisError as error:
        why = f"{_mask(error, url)} {_OLD if isinstance(error, TooOld) or 'HELLO' in str(error) else _START}"
    else:
        return r, f"{place}: your own server; the workbook keeps to keys that begin with {PREFIX}"
    raise RedisUnavailable([(place, why)])


_START = "Remedy: start that server, correct the URL, or unset REDIS_URL to use an embedded one."
_OLD = "Remedy: this server is older than 7.0, the oldest that the workbook runs on; upgrade it."
_FORMS = (
    "Remedy: use redis://[user:password@]host:port/0, rediss://… for TLS, unix:///path, "
    "or redis+cluster://host:port."
)


def _mask(error: Exception, url: str) -> str:
    secret = re.search(r"://[^/@]*:([^/@]+)@", url)
    text = str(error).replace(secret[1], "***") if secret else str(error)
    return text.rstrip(". ") + "."


def _cluster(url: str, **options: Any) -> RedisCluster:
    defaults = {
        "protocol": 3,
        "legacy_responses": False,
        "decode_responses": True,
        "socket_connect_timeout": 0.8,
    }
    return RedisCluster.from_url(url.replace("redis+cluster", "redis", 1), **{**defaults, **options})


def _container(options: dict[str, Any]) -> tuple[Any, str] | None:
    host, port = CONTAINER
    r = client(
        f"redis://:{workbook_password()}@{host}:{port}/0", **{"retry": Retry(NoBackoff(), 0), **options}
    )
    try:
        _check(r)
    except RedisError:
        return None
    return r, "the container of docker-compose.yml"


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


def _check(r: Any) -> None:
    """One round trip: it answers, and is new enough."""
    version = server_info(r)["redis_version"]
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise TooOld(f"Redis {version} answers.")


def server_info(r: Any) -> dict[str, str]:
    """INFO server, as text; one round trip."""
    return {name: str(value) for name, value in _node(r).info("server").items()}


def server_name(r: Any) -> str:
    """`Redis 8.2.3` or `Valkey 9.0.1`; one round trip."""
    info = server_info(r)
    return (
        f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    )
