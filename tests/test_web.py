"""labkit.rig.web: a real server over TLS, that is gone when it should be, and says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from labkit.rig.server import Server
from labkit.rig.web import Site, SiteFailed, serving
from labkit.session import SessionStore

ROOT = Path(__file__).parents[1]


def mark(request: Request) -> Response:
    answer = PlainTextResponse("marked")
    answer.set_cookie("mark", request.query_params["as"], secure=True, httponly=True, samesite="strict")
    return answer


def cookies(request: Request) -> Response:
    return JSONResponse({"cookies": request.cookies, "scheme": request.url.scheme})


async def broken(request: Request) -> Response:
    raise ValueError("as it was told to")


started = threading.Event()


def slow(request: Request) -> Response:
    started.set()
    time.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("at last")


async def slow_async(request: Request) -> Response:
    started.set()
    await asyncio.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("at last")


ROUTES = [Route(f"/{answer.__name__}", answer) for answer in (mark, cookies, broken, slow, slow_async)]
APP = Starlette(routes=ROUTES)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving(APP) as site:
        yield site


def address(site: Site) -> tuple[str, int]:
    url = httpx.URL(site.url)
    assert url.port is not None
    return url.host, url.port


def test_a_secure_cookie_is_kept_and_sent(site: Site) -> None:
    phone, laptop = site.client(), site.client()
    answer = phone.get("/mark?as=ada")
    assert answer.text == "marked"
    assert answer.headers["set-cookie"] == "mark=ada; HttpOnly; Path=/; SameSite=strict; Secure"
    assert phone.get("/cookies").json() == {"cookies": {"mark": "ada"}, "scheme": "https"}
    assert laptop.get("/cookies").json()["cookies"] == {}, "each client is a browser of its own"


def test_only_over_tls_that_one_can_trust(site: Site) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(site.url.replace("https", "http") + "/cookies", trust_env=False)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{site.url}/cookies", trust_env=False)
    with serving(APP) as other, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        site.client().get(f"{other.url}/cookies")


def test_options_of_httpx_and_no_proxies(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    client = site.client(cookies={"mark": "bob"}, headers={"User-Agent": "a phone"})
    assert client.get("/cookies").json()["cookies"] == {"mark": "bob"}
    assert client.headers["User-Agent"] == "a phone"


def test_what_the_application_raises_is_kept(site: Site) -> None:
    assert site.client().get("/broken").status_code == 500
    deadline = time.monotonic() + 10
    while not site.errors and time.monotonic() < deadline:  # the answer is sent before the error is noted
        time.sleep(0.001)
    assert [str(error) for error in site.errors] == ["as it was told to"]


def test_only_on_loopback(site: Site) -> None:
    assert address(site)[0] == "127.0.0.1"


def test_small_answers_do_not_wait_for_large_ones(site: Site) -> None:
    """Without TCP_NODELAY each answer takes 40 ms, while Linux waits whether more is to come."""
    accepted, nodelay = site._socket, (socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert accepted.proto == socket.IPPROTO_TCP, "by this asyncio knows it"
    with contextlib.closing(site.client()) as client:
        client.get("/cookies")
        stream = client.get("/cookies").extensions["network_stream"]
        assert stream.get_extra_info("socket").getsockopt(*nodelay) != 0


def test_its_repr_has_no_port(site: Site) -> None:
    assert repr(site) == "Site(serving)"
    with serving(APP) as other:
        answer = other.client().get("/cookies")
    assert repr(other) == "Site(stopped)"
    assert not re.search(r"\d{5}", repr(other) + repr(answer))


def gone(site: Site) -> bool:
    assert not site._thread.is_alive() and site._socket.fileno() == -1
    with socket.socket() as probe:
        return probe.connect_ex(address(site)) != 0


def test_gone_when_the_block_ends() -> None:
    with serving(APP) as site:
        client = site.client()
        assert client.get("/cookies").status_code == 200
    assert gone(site)
    assert client.is_closed
    site.stop()


def test_gone_when_the_block_raises() -> None:
    with pytest.raises(KeyboardInterrupt), serving(APP) as site:
        raise KeyboardInterrupt
    assert gone(site)


@pytest.mark.parametrize("handler", ["slow", "slow_async"])
def test_gone_while_somebody_waits_for_an_answer(handler: str) -> None:
    """A request that is nearly done is answered; who would take a minute is cut off."""
    started.clear()
    seen: list[object] = []

    def ask(client: httpx.Client, seconds: float) -> None:
        try:
            seen.append(client.get(f"/{handler}?seconds={seconds}").text)
        except httpx.HTTPError as error:
            seen.append(type(error).__name__)

    site = serving(APP)
    other = httpx.Client(base_url=site.url, verify=trusting(site), trust_env=False, timeout=60)
    thread = threading.Thread(target=ask, args=(other, 100), daemon=True)
    thread.start()
    assert started.wait(20)
    before = time.monotonic()
    site.stop()
    assert time.monotonic() - before < 60
    assert gone(site)
    thread.join(20)
    assert seen and "at last" not in seen


def trusting(site: Site) -> ssl.SSLContext:
    context = ssl.create_default_context()
    site._authority.configure_trust(context)
    return context


def test_lifespan_begins_and_ends() -> None:
    told = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        told.append("begin")
        yield
        told.append("end")

    with serving(Starlette(routes=ROUTES, lifespan=lifespan)) as site:
        assert site.client().get("/cookies").status_code == 200 and told == ["begin"]
    assert told == ["begin", "end"]


def test_an_application_that_does_not_start() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    before = set(threading.enumerate())
    with pytest.raises(SiteFailed, match=r"no database.*Remedy") as failed:
        serving(Starlette(lifespan=lifespan))
    assert repr(failed.value.cause) == "RuntimeError('no database')"
    assert set(threading.enumerate()) <= before


def test_a_bare_asgi_callable() -> None:
    """Without lifespan, as the specification allows."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "no lifespan here"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"bare"})

    with serving(app) as site:
        assert site.client().get("/").text == "bare"
    assert site.errors == []


SILENT = """
import sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from labkit.rig.web import serving

def broken(request): raise ValueError("as it was told to")

app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello")), Route("/broken", broken)])
site = serving(app)
client = site.client()
print(client.get("/").text, client.get("/broken").status_code)
sys.exit(7)
"""


def test_a_process_ends_without_stopping_it_and_nothing_is_logged() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello 500\n", "")


def test_two_devices_and_a_log_out_everywhere() -> None:
    """The chapter's application: a cookie, and behind it a SessionStore."""

    def log_in(request: Request) -> Response:
        answer = PlainTextResponse("welcome")
        token = store.create(request.query_params["user"], device=request.headers["User-Agent"])
        answer.set_cookie("session", token, secure=True, httponly=True, samesite="lax")
        return answer

    def me(request: Request) -> Response:
        session = store.get(request.cookies.get("session"))
        return PlainTextResponse(
            "nobody" if session is None else f"{session.user_id} on {session.data['device']}"
        )

    def log_out(request: Request) -> Response:
        session = store.get(request.cookies.get("session"))
        return JSONResponse(store.destroy_all(session.user_id) if session else 0)

    routes = [
        Route("/in", log_in, methods=["POST"]),
        Route("/me", me),
        Route("/out", log_out, methods=["POST"]),
    ]
    with Server() as server, server.client() as r, serving(Starlette(routes=routes)) as site:
        store = SessionStore(r, ttl=100)
        phone, laptop = (site.client(headers={"User-Agent": device}) for device in ("phone", "laptop"))
        assert phone.get("/me").text == "nobody"
        assert [device.post("/in?user=ada").text for device in (phone, laptop)] == ["welcome"] * 2
        assert [device.get("/me").text for device in (phone, laptop)] == ["ada on phone", "ada on laptop"]
        assert phone.cookies["session"] != laptop.cookies["session"]
        assert laptop.post("/out").json() == 2
        assert [device.get("/me").text for device in (phone, laptop)] == ["nobody"] * 2
        forged = site.client(cookies={"session": phone.cookies["session"][:-1]})
        assert forged.get("/me").text == "nobody"
