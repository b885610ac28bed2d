"""TLS in front of a server, or its own: who gets in, who is refused and how, and that nothing is left."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import BINARIES, until
from test_proxy import best, takes, threads

from labkit.rig import client as client_module
from labkit.rig.link import BUFFER, CHUNK
from labkit.rig.proxy import Proxy
from labkit.rig.server import Server, ServerFailed
from labkit.rig.tls import OWN, PROXY, Certificates, Endpoint, certificates, has_tls, secured
from labkit.rig.tlsend import TlsEnd

FOUND = {name: binary for name, binary in BINARIES.items() if binary}


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module", params=[*FOUND, "proxy"])
def endpoint(request: pytest.FixtureRequest, certs: Certificates) -> Iterator[Endpoint]:
    """With each binary as it can, and once by a proxy whatever it can."""
    own, binary = (False, None) if request.param == "proxy" else (None, FOUND[request.param])
    with secured(certs, own=own, binary=binary) as endpoint:
        assert endpoint.way == (OWN if own is None and has_tls(binary) else PROXY)
        yield endpoint


@pytest.fixture
def link(throwaway: Server, certs: Certificates) -> Iterator[Proxy]:
    with Proxy(throwaway, tls=certs.context()) as link:
        yield link
        assert link._link.error is None


def through(link: Proxy, certs: Certificates, **options: Any) -> redis.Redis:
    return link.client(**{**certs.options(), **options})


def port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def dialled(link: Proxy, context: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    """A connection of one's own, shaken hands."""
    raw = socket.create_connection(("127.0.0.1", link.port), timeout=20)
    return context.wrap_socket(raw, server_hostname=name)


def plainly(url: str, **options: Any) -> redis.Redis:
    return client_module.client(url.replace("rediss:", "redis:"), **options)


# Who gets in


def test_a_client_that_trusts_the_authority_gets_in(endpoint: Endpoint) -> None:
    with endpoint.client() as r:
        assert r.ping()
        r.set("key", "value" * 100_000)
        assert r.get("key") == "value" * 100_000
        assert endpoint.server.client().strlen("key") == 500_000
    assert endpoint.url.startswith("rediss://")


def test_who_does_not_know_the_authority_refuses_the_server(endpoint: Endpoint, tmp_path: Path) -> None:
    stranger = certificates(tmp_path)
    for options in ({"ssl_ca_certs": None}, {"ssl_ca_certs": str(stranger.ca)}):
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            endpoint.client(**options).ping()
    if endpoint.link:
        until(lambda: endpoint.link and "tlsv1 alert unknown ca" in endpoint.link.refused)
    assert endpoint.client().ping()


def test_a_client_without_tls_gets_no_answer(endpoint: Endpoint) -> None:
    with pytest.raises(redis.ConnectionError):
        plainly(endpoint.url).ping()
    if endpoint.link:
        assert endpoint.link.refused[-1] in ("wrong version number", "http request")
    assert endpoint.client().ping()


def test_tls_before_1_2_is_refused(endpoint: Endpoint) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's: it is old
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    refusal = pytest.raises(ssl.SSLError, match=r"protocol version|unsupported protocol|no protocols")
    with socket.create_connection(("127.0.0.1", port(endpoint.url)), timeout=10) as raw, refusal:
        old.wrap_socket(raw)
    assert endpoint.client().ping()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"names": ("redis.example.org",)}, "mismatch, certificate is not valid for '127.0.0.1'"),
        ({"days": -1}, "certificate has expired"),
    ],
)
def test_a_certificate_of_another_name_or_an_expired_one_is_refused(
    throwaway: Server, tmp_path: Path, made: dict[str, Any], said: str
) -> None:
    certs = certificates(tmp_path, **made)
    with Proxy(throwaway, tls=certs.context()) as link:
        with pytest.raises(redis.ConnectionError, match=said):
            through(link, certs).ping()
        assert through(link, certs, ssl_cert_reqs="none", ssl_check_hostname=False).ping()


@pytest.mark.parametrize("own", [None, False])
def test_with_mutual_tls_only_clients_with_a_certificate_get_in(own: bool | None, tmp_path: Path) -> None:
    binary = next((binary for binary in FOUND.values() if has_tls(binary)), None)
    if own is None and binary is None:
        pytest.skip("no server here has TLS of its own")
    stranger = certificates(tmp_path)
    theirs = {"ssl_certfile": str(stranger.client_cert), "ssl_keyfile": str(stranger.client_key)}
    with secured(mutual=True, own=own, binary=binary) as endpoint:
        assert endpoint.way == (PROXY if own is False else OWN)
        assert endpoint.client().ping()
        with pytest.raises(redis.ConnectionError) as nobody:
            endpoint.client(ssl_certfile=None, ssl_keyfile=None).ping()
        with pytest.raises(redis.ConnectionError) as somebody:
            endpoint.client(**theirs).ping()
        assert endpoint.client().ping()
        if endpoint.link:  # Redis itself may close before its alert is read
            assert "tlsv13 alert certificate required" in str(nobody.value)
            assert "tlsv1 alert unknown ca" in str(somebody.value)
            assert endpoint.link.refused[0] == "peer did not return a certificate"
        assert repr(endpoint).endswith("clients need a certificate)")


def test_who_has_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    for binary in FOUND.values():
        monkeypatch.setenv("LABKIT_REDIS_SERVER", binary)
        assert has_tls() is has_tls(binary)
        if not has_tls(binary):
            with pytest.raises(ServerFailed, match=r"(?i)tls"), secured(own=True):
                pass


def test_certificates_stand_up_to_a_strict_look(certs: Certificates, link: Proxy) -> None:
    strict = ssl.create_default_context(cafile=certs.ca)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    for name in ("127.0.0.1", "localhost"):
        with dialled(link, strict, name) as tls:
            assert tls.version() == "TLSv1.3"
    for key in (certs.key, certs.client_key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_keys_are_their_owners_only_where_others_could_read_older_ones(tmp_path: Path) -> None:
    old = tmp_path / "server.key"
    old.touch()
    old.chmod(0o644)
    made = certificates(tmp_path)
    assert made.key == old
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


# The link's faults, with TLS


def test_delay_and_its_round_trips(throwaway: Server, link: Proxy, certs: Certificates) -> None:
    r = through(link, certs)
    r.ping()
    link.delay(30)
    assert takes(0.03, 0.5, r.ping)
    trusting = ssl.create_default_context(cafile=certs.ca)

    def first_request() -> None:
        with dialled(link, trusting) as tls:
            tls.sendall(b"PING\r\n")
            assert tls.recv(100).startswith(b"-NOAUTH")

    assert takes(0.089, 1, first_request)  # one for TCP, one for TLS, and its own
    link.delay(0)
    assert takes(0, 0.03, r.ping)


def test_bandwidth_and_the_order_of_bytes(link: Proxy, certs: Certificates) -> None:
    r = through(link, certs)
    r.ping()
    link.bandwidth(1_000_000)
    assert takes(0.29, 1, lambda: r.set("big", "x" * 300_000))
    assert takes(0.29, 1, lambda: r.get("big"))
    link.bandwidth(None)
    link.delay(2, jitter=2)
    pipe = r.pipeline(transaction=False)
    for i in range(3000):
        pipe.echo(str(i) * 20)
    assert pipe.execute() == [str(i) * 20 for i in range(3000)]


def test_cut_heal_reset_and_drop(link: Proxy, certs: Certificates) -> None:
    r = through(link, certs, socket_timeout=0.2)
    r.set("n", 0)
    link.cut()
    with pytest.raises(redis.TimeoutError):
        r.incr("n")
    with pytest.raises(redis.RedisError):  # no handshake either
        through(link, certs, socket_timeout=0.2, socket_connect_timeout=0.2).ping()
    link.heal()
    until(lambda: through(link, certs).get("n") == "1")  # it was under way
    link.cut(reset=True)
    with pytest.raises(redis.ConnectionError):
        r.ping()
    link.heal()
    link.drop(1, direction="replies")
    with pytest.raises(redis.RedisError):
        through(link, certs, socket_timeout=0.2).incr("n")
    link.drop(0)
    assert through(link, certs).ping()


def test_large_payloads_in_both_directions_at_once(link: Proxy, certs: Certificates) -> None:
    r = through(link, certs, decode_responses=False, socket_timeout=20)
    value = os.urandom(3_000_000)
    for ms in (0, 2):
        link.delay(ms)
        pipe = r.pipeline(transaction=False)
        for _ in range(6):
            pipe.echo(value)
        assert all(reply == value for reply in pipe.execute())


def test_a_slow_reader_is_waited_for(throwaway: Server, link: Proxy, certs: Certificates) -> None:
    """The link keeps what it may, one piece of that as records of TLS; the rest stays with the server."""
    throwaway.client().set("large", "v" * 40_000_000)
    with dialled(link, ssl.create_default_context(cafile=certs.ca)) as tls:
        tls.sendall(f"AUTH {throwaway.password}\r\nGET large\r\n".encode())
        (pair,) = link._link.pairs
        until(lambda: pair.flows[1].held >= BUFFER)
        until(lambda: pair.flows[1].blocked)
        assert pair.flows[1].held < BUFFER + 2 * CHUNK
        assert isinstance(pair.sockets[0], TlsEnd) and len(pair.sockets[0]._unsent) < 2 * CHUNK
        assert through(link, certs).ping()
        got = 0
        while got < len("+OK\r\n$40000000\r\n") + 40_000_000 + 2:
            got += len(tls.recv(1 << 20))
    throwaway.client().delete("large")


def test_many_clients_at_once(link: Proxy, certs: Certificates) -> None:
    clients = [through(link, certs) for _ in range(30)]
    workers = [threading.Thread(target=client.incr, args=("many",)) for client in clients]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert clients[0].getdel("many") == "30"


# On the wire


def test_a_handshake_that_comes_byte_by_byte(link: Proxy, certs: Certificates, throwaway: Server) -> None:
    trusting = ssl.create_default_context(cafile=certs.ca)
    come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting.wrap_bio(come, go, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", link.port), timeout=20) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange(step: Any) -> Any:
            while True:
                try:
                    done = step()
                except ssl.SSLWantReadError:
                    done = None
                for byte in go.read():
                    raw.sendall(bytes([byte]))
                if done is not None:
                    return done
                come.write(raw.recv(4096))

        def handshake() -> bool:
            tls.do_handshake()
            return True

        exchange(handshake)
        exchange(lambda: tls.write(f"AUTH {throwaway.password}\r\n".encode()))
        assert exchange(lambda: tls.read(100)) == b"+OK\r\n"


@pytest.fixture
def listener(certs: Certificates) -> Iterator[tuple[socket.socket, Proxy]]:
    """A server that is no Redis, and the link in front of it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        with Proxy(listening.getsockname(), tls=certs.context()) as link:
            yield listening, link
            assert link._link.error is None


def test_a_server_that_speaks_first_is_heard_after_the_handshake(
    listener: tuple[socket.socket, Proxy], certs: Certificates
) -> None:
    """And so is that it has gone."""
    listening, link = listener
    trusting = ssl.create_default_context(cafile=certs.ca)
    with socket.create_connection(("127.0.0.1", link.port), timeout=20) as raw:
        far, _ = listening.accept()
        far.sendall(b"-ERR max number of clients reached\r\n")
        far.close()
        until(lambda: any(pair.flows[1].lost for pair in list(link._link.pairs)))  # the link has seen both
        with trusting.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as tls:
            assert tls.recv(100) == b"-ERR max number of clients reached\r\n"
            assert tls.recv(100) == b""  # a proper end: nobody has cut it
            tls.unwrap()  # goodbye to you, too
    until(lambda: not link._link.pairs)
    assert not link.refused


def test_a_client_that_says_goodbye_has_all_answers(
    listener: tuple[socket.socket, Proxy], certs: Certificates
) -> None:
    """close_notify in the same packet as the last request ends one direction only."""
    listening, link = listener
    come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context(cafile=certs.ca).wrap_bio(come, go, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", link.port), timeout=20) as raw:
        far, _ = listening.accept()
        far.settimeout(20)
        while tls.version() is None:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                raw.sendall(go.read())
                come.write(raw.recv(4096))
        tls.write(b"last request")
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        raw.sendall(go.read())
        assert far.recv(100) == b"last request"
        assert far.recv(100) == b""
        far.sendall(b"answer")
        far.close()
        said = b""
        while more := raw.recv(4096):
            said += more
        assert b"answer" not in said and len(said) > len(b"answer") + 5  # as a record of TLS
        assert not link.refused


@pytest.mark.parametrize("what", [b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01", b"\x00" * 500, b""])
def test_strangers_and_people_who_hang_up(link: Proxy, certs: Certificates, what: bytes) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", link.port)) as raw:
            raw.sendall(what)
    until(lambda: not link._link.pairs)
    assert through(link, certs).ping()


def test_nonsense_in_the_middle_ends_that_connection_only(link: Proxy, certs: Certificates) -> None:
    trusting = ssl.create_default_context(cafile=certs.ca)
    other = through(link, certs)
    other.ping()
    with socket.socket(fileno=dialled(link, trusting).detach()) as plain:
        plain.settimeout(20)
        for _ in range(3):
            plain.sendall(b"\x17\x03\x03\x00\x20" + b"z" * 32)
            time.sleep(0.01)
        while plain.recv(4096):
            pass
    assert link.refused == ("decryption failed or bad record mac",)
    assert other.ping()
    until(lambda: len(link._link.pairs) == 1)


# Nothing stays behind


def test_refused_clients_leave_nothing_behind(throwaway: Server, certs: Certificates) -> None:
    before = threads()
    with Proxy(throwaway, tls=certs.context()) as link:
        for _ in range(20):
            with pytest.raises(redis.ConnectionError):
                link.client().ping()
            with pytest.raises(redis.ConnectionError):
                plainly(link.url).ping()
        until(lambda: not link._link.pairs)
        assert len(link.refused) == 40
        with throwaway.client() as r:
            until(lambda: len(r.client_list()) == 1)
        known = len(link._link.selector.get_map())
        assert known == 2  # its listener and its bell
        r = through(link, certs)
        r.ping()
    assert threads() <= before
    with pytest.raises(redis.ConnectionError):
        r.ping()


def test_a_server_that_dies_is_passed_on(certs: Certificates) -> None:
    with Server() as own, Proxy(own, tls=certs.context()) as link:
        r = through(link, certs)
        r.ping()
        own.kill()
        with pytest.raises(redis.ConnectionError):
            r.ping()
        own.start()
        assert r.ping()


def test_the_certificates_and_the_server_of_an_endpoint_are_gone_with_it() -> None:
    with pytest.raises(KeyError), secured() as endpoint:
        folder, server = endpoint.certificates.ca.parent, endpoint.server
        assert folder.exists() and server.running
        raise KeyError
    assert not folder.exists() and not server.running


def test_it_is_idle_when_nothing_happens(link: Proxy, certs: Certificates) -> None:
    through(link, certs).ping()
    with socket.create_connection(("127.0.0.1", link.port)):  # one that never shakes hands
        assert best(lambda: _used(0.3), lambda seconds: seconds < 0.05) < 0.05


def _used(seconds: float) -> float:
    start = time.process_time()
    time.sleep(seconds)
    return time.process_time() - start


def test_misuse(throwaway: Server) -> None:
    for context in (ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
        with pytest.raises(ValueError, match="must be a server's context"):
            Proxy(throwaway, tls=context)
