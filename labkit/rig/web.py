"""A web application served for real: uvicorn in a thread, over TLS, on a free loopback port.

    with serving(app) as site:
        phone = site.client()
        phone.post("/login", data={"user": "ada"})

TLS is real, so that a cookie marked Secure is kept and sent as by a browser: the site's certificate is made
for it alone, and `site.client()` trusts its issuer. Nothing is logged; what the application raises, other
than at its start, is in `site.errors`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import Any

import httpx
import trustme
import uvicorn

from labkit import LabkitError

__all__ = ["Site", "SiteFailed", "serving"]

HOST = "127.0.0.1"
PATIENCE = 30  # seconds, to start and to answer: a busy machine may need some
GRACE = 1  # seconds that requests have to end in when the site stops


class SiteFailed(LabkitError):
    """The application did not start, or the site did not stop; `cause` is what the application raised."""

    def __init__(self, what: str, remedy: str, cause: Exception | None = None) -> None:
        self.what, self.remedy, self.cause = what, remedy, cause
        super().__init__(f"{what}{f' It raised {cause!r}.' if cause else ''} Remedy: {remedy}")


def serving(app: Any) -> Site:
    """Serve this ASGI application (Starlette, FastAPI, …) until the `with` block ends or `stop()` is called.

    Raises SiteFailed where the application says that it cannot start, as Starlette's and FastAPI's do.
    """
    return Site(app)


def _listening() -> socket.socket:
    """On a free port. asyncio sees by IPPROTO_TCP that it may send small packets at once."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind((HOST, 0))
    return listening


class Site:
    """An application that is being served: `url` says where, and `client()` stands for a browser.

    It serves from when it is made, and never outlives its process.
    """

    def __init__(self, app: Any) -> None:
        self._app, self._at_start = app, list[Exception]()
        self.errors, self._clients = list[Exception](), list[httpx.Client]()
        self._authority = trustme.CA()
        self._socket = _listening()
        self.url = f"https://{HOST}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._answer,
            http="h11",
            ws="none",
            loop="asyncio",
            interface="asgi3",
            ssl_context_factory=self._tls,
            log_config=None,
            log_level=100,  # higher than any
            access_log=False,
            timeout_graceful_shutdown=GRACE,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="labkit web site", daemon=True)
        self._thread.start()
        try:
            self._await_ready()
        except BaseException:  # an interrupted kernel too: half a site is none
            self.stop()
            raise

    def __repr__(self) -> str:
        return f"Site({'serving' if self._thread.is_alive() else 'stopped'})"

    def client(self, **options: Any) -> httpx.Client:
        """A client with cookies of its own, like another browser; options as for `httpx.Client`.

        Paths may begin with "/". It ignores proxies that the environment names, and ends with the site.
        """
        trusting = ssl.create_default_context()
        self._authority.configure_trust(trusting)
        usual = {"base_url": self.url, "verify": trusting, "timeout": PATIENCE, "trust_env": False}
        client = httpx.Client(**{**usual, **options})
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """End it and its clients. Requests of others have a second to end, and are then cut off."""
        for client in self._clients:
            client.close()
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        self._socket.close()
        if self._thread.is_alive():
            raise SiteFailed("The site did not stop.", "let no handler that is `async` block its thread.")

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self) -> None:
        with contextlib.suppress(SystemExit):  # so uvicorn ends if the application does not start
            self._server.run([self._socket])

    def _await_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._server.started:
            late = time.monotonic() > deadline
            if late or not self._thread.is_alive():
                what = f"The application was not ready in {PATIENCE} s." if late else "It did not start."
                raise SiteFailed(what, "correct its lifespan.", next(iter(self._at_start), None))
            time.sleep(0.002)

    def _tls(self, *_: Any) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert(HOST).configure_cert(context)
        return context

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """The application, with its exceptions noted."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            noted = self._at_start if scope["type"] == "lifespan" else self.errors
            noted.append(error)
            raise
