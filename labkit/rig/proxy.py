"""A link in front of a server, with the faults of real ones: delay, jitter, little bandwidth, silence.

    with Proxy(server) as link:
        r = link.client()
        link.delay(5)          # 5 ms a round trip, half of it each way
        link.cut()             # the cable is pulled
        link.heal()

`labkit.rig.link` is the thread that carries the bytes; here is what can be asked of it.
"""

from __future__ import annotations

import ssl
import threading
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from labkit.rig.client import client
from labkit.rig.link import Link, ProxyFailed

if TYPE_CHECKING:
    import redis

__all__ = ["Proxy", "ProxyFailed"]


class Proxy:
    """A TCP link from a free loopback port to a server; a context manager.

    `target` is a `labkit.rig.server.Server`, a redis:// URL, a client, or (host, port). Settings take effect
    before their method returns, for connections that exist and for new ones. Random choices follow `seed`:
    the same chunks on the same connection fare alike. With `tls`, the context of a server, clients speak TLS
    with the link, and the link plainly with the server; delays and losses are then of what TLS carries, and
    the handshake of a new connection takes a round trip more. On leaving the block, also by an exception,
    connections and thread are gone; after that, and if the thread should fail, its methods raise ProxyFailed.
    """

    def __init__(self, target: Any, *, seed: int = 0, tls: ssl.SSLContext | None = None) -> None:
        if tls is not None and not _serves(tls):
            raise ValueError("tls must be a server's context: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)")
        self._address, self._login, self._db = _target(target)
        self._link = Link(self._address, seed, tls)
        self._thread = threading.Thread(target=self._link.run, name="labkit-proxy", daemon=True)
        self._end = weakref.finalize(self, _close, self._link, self._thread)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Proxy({'closed' if not self._end.alive else self._link.describe()})"

    def close(self) -> None:
        """Close every connection and end the thread; when this returns, it is gone."""
        self._end()

    @property
    def port(self) -> int:
        """The free port on 127.0.0.1 that it listens on."""
        return self._link.port

    @property
    def url(self) -> str:
        """The address of the link with the target's credentials and database, for any client."""
        return f"redis{'s' * (self._link.tls is not None)}://{self._login}127.0.0.1:{self.port}/{self._db}"

    @property
    def refused(self) -> tuple[str, ...]:
        """Why TLS did not come about or ended with an error, one entry a connection, in OpenSSL's words."""
        return tuple(self._link.refused)

    def client(self, **options: Any) -> redis.Redis:
        """A client through the link, with the server's credentials and the defaults of `labkit.connect()`.

        Over TLS it verifies the link's certificate: `ssl_ca_certs=` says whom to trust.
        """
        return client(self.url, **options)

    def delay(self, ms: float, jitter: float = 0) -> None:
        """Let a round trip take `ms` milliseconds longer, half of it each way.

        `jitter` spreads a round trip evenly over ms ± jitter. Bytes never overtake each other. Opening a
        connection takes a round trip too: the first bytes on it are late by so much more.
        """
        if not 0 <= jitter <= ms or ms > 60_000:
            raise ValueError(f"delay({ms}, jitter={jitter}): ms must be 0 to 60000, and jitter 0 to ms")
        self._link.set(delay=ms / 2000, jitter=jitter / 2000)

    def bandwidth(self, bytes_per_second: float | None) -> None:
        """Let so many bytes a second pass, in each direction, over all connections; None: no limit."""
        if bytes_per_second is not None and not 1 <= bytes_per_second <= 1e12:
            raise ValueError(
                f"bytes_per_second is {bytes_per_second}; it must be 1 to 1e12, or None for no limit"
            )
        self._link.set(bandwidth=bytes_per_second)

    def drop(self, probability: float, *, direction: str = "both") -> None:
        """Lose each request, each reply, or each of both, with this probability.

        TCP would repeat what is lost; what a client sees when that does not help is silence. So a connection
        that has lost bytes carries nothing more in that direction, and its client waits until its own
        timeout.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; it must be 0 to 1")
        if direction not in ("both", "requests", "replies"):
            raise ValueError(f'direction is {direction!r}; it must be "both", "requests" or "replies"')
        requests, replies = direction != "replies", direction != "requests"
        self._link.set(drop=(probability * requests, probability * replies))

    def cut(self, *, reset: bool = False) -> None:
        """Pull the cable: connections stay open, nothing passes until `heal()`, which delivers what was held.

        With `reset=True` it is as if the other machine had crashed: connections are reset, new ones too.
        """
        self._link.call(lambda: self._link.cut(reset))

    def heal(self) -> None:
        """Put the cable back. Delay, bandwidth and drop stay as they are set."""
        self._link.call(self._link.heal)


def _close(link: Link, thread: threading.Thread) -> None:
    link.closing = True
    link.wake()
    thread.join()


def _serves(context: ssl.SSLContext) -> bool:
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    except ssl.SSLError:
        return False
    return True


def _target(target: Any) -> tuple[tuple[str, int] | str, str, str]:
    """(address, "user:password@", db) of a server, URL, client, or (host, port)."""
    if isinstance(target, tuple):
        return (str(target[0]), int(target[1])), "", "0"
    if hasattr(target, "connection_pool"):
        known = target.connection_pool.connection_kwargs
        user, password, db = (
            known.get("username") or "",
            known.get("password") or "",
            str(known.get("db") or 0),
        )
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
        return known.get("path") or (known.get("host", "localhost"), int(known.get("port", 6379))), login, db
    url = urlsplit(str(getattr(target, "url", target)))
    if url.scheme == "unix":
        return unquote(url.path), url.netloc.rpartition("@")[0] + "@" * ("@" in url.netloc), "0"
    if url.scheme != "redis" or not url.hostname:
        raise ValueError(
            f"Proxy takes a Server, a client, (host, port) or a redis:// URL; got {type(target).__name__}"
        )
    login = url.netloc.rpartition("@")[0]
    return (url.hostname, url.port or 6379), login + "@" * bool(login), url.path.strip("/") or "0"
