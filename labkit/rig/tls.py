"""TLS for a server of one's own: certificates, and an endpoint that speaks it whatever the binary can do.

    with secured() as endpoint:
        r = endpoint.client()            # rediss://, with the certificate verified
        endpoint.way                     # "the server's own TLS", or "a TLS-terminating proxy"

Not every redis-server is built with TLS (`make BUILD_TLS=yes`); `has_tls` asks. Where it is not, something in
front of the server, on the same machine, speaks TLS with the world; so do many in production.
https://redis.io/docs/latest/operate/oss_and_stack/management/security/encryption/
"""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from labkit.rig import watchdog
from labkit.rig.client import client
from labkit.rig.proxy import Proxy
from labkit.rig.server import Server, _free_port, find_binary, said_by

if TYPE_CHECKING:
    import redis

__all__ = ["OWN", "PROXY", "Certificates", "Endpoint", "certificates", "has_tls", "secured"]

OWN, PROXY = "the server's own TLS", "a TLS-terminating proxy"

HERE = ("127.0.0.1", "localhost")
"""The names that the servers' certificates are for."""

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: an authority's certificate, and certificate and key of a server and of a client."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path

    def context(self, *, mutual: bool = False) -> ssl.SSLContext:
        """For a server: TLS 1.2 or newer; `mutual`: a client must show a certificate of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key)
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context

    def settings(self, *, mutual: bool = False) -> dict[str, object]:
        """The same for redis.conf, as labkit.rig.server.Server takes settings; without the port."""
        return {
            "tls_cert_file": self.cert,
            "tls_key_file": self.key,
            "tls_ca_cert_file": self.ca,
            "tls_auth_clients": mutual,
            "tls_protocols": '"TLSv1.2 TLSv1.3"',
        }

    def options(self, *, mutual: bool = False) -> dict[str, Any]:
        """What a client needs (`redis.Redis.from_url`): whom to trust, and with `mutual` who it is."""
        own = {"ssl_certfile": str(self.client_cert), "ssl_keyfile": str(self.client_key)} if mutual else {}
        return {"ssl_ca_certs": str(self.ca), **own}


def certificates(folder: Path | str, *, names: Sequence[str] = HERE, days: float = 1) -> Certificates:
    """Make an authority, and have it sign a server's and a client's certificate, in an existing folder.

    The server's is for these `names` (or IP addresses); all are valid from an hour ago (clocks differ) for so
    many days from now: with `days=0` and less they have expired. Keys are readable by their owner only.
    """
    folder = Path(folder)
    ca_key, ca_name = ec.generate_private_key(ec.SECP256R1()), _name("labkit's authority")
    until = datetime.now(UTC) + timedelta(days=days)
    ca = _signed(ca_name, ca_key, ca_name, ca_key, until, None, ())
    _write(folder / "ca.pem", ca)
    for who, use, subject in (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH, names),
        ("client", ExtendedKeyUsageOID.CLIENT_AUTH, ("client",)),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder / f"{who}.pem", _signed(_name(who), key, ca_name, ca_key, until, use, subject))
        _write(folder / f"{who}.key", key)
    files = (folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"))
    return Certificates(*files)


def _signed(
    subject: x509.Name,
    key: Key,
    issuer: x509.Name,
    issuer_key: Key,
    until: datetime,
    use: x509.ObjectIdentifier | None,
    names: Sequence[str],
) -> x509.Certificate:
    """A certificate for the holder of `key`; without a `use` it is one to sign others with."""
    authority = use is None
    public, issuers = key.public_key(), issuer_key.public_key()
    made = (
        x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        .not_valid_before(min(until, datetime.now(UTC)) - timedelta(hours=1))
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(authority, 0 if authority else None), critical=True)
        .add_extension(_usage(authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers), critical=False)
    )
    if use is not None:
        made = made.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        subjects = x509.SubjectAlternativeName([_alternative(name) for name in names])
        made = made.add_extension(subjects, critical=False)
    return made.sign(issuer_key, hashes.SHA256())


def _usage(authority: bool) -> x509.KeyUsage:
    """An authority signs certificates; everybody else signs the handshake."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, thing: x509.Certificate | Key) -> None:
    pem = serialization.Encoding.PEM
    path.unlink(missing_ok=True)  # it would keep its mode
    path.touch(mode=0o600)
    if isinstance(thing, x509.Certificate):
        path.write_bytes(thing.public_bytes(pem))
    else:
        plain = serialization.NoEncryption()
        path.write_bytes(thing.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def has_tls(binary: str | None = None) -> bool:
    """Is this redis-server (default: the one that a Server starts) built with TLS?

    `--version` does not tell, and newer ones know the settings even if they are not. So it is started with a
    TLS port and without a certificate: one that has TLS misses the certificate, one that has not misses TLS.
    Neither comes up.
    """
    return _has_tls(binary or find_binary().path)


@cache
def _has_tls(binary: str) -> bool:
    asked = ["--port", "0", "--tls-port", "1", "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]
    return "tls-cert-file" in said_by(binary, *asked)


@dataclass(frozen=True)
class Endpoint:
    """A server that is reached over TLS: `url` is rediss://…, and `way` says who terminates it.

    `server` has its plain port too, on the loopback device, for labkit itself; in production set `port 0`.
    `link` is the proxy where there is one: its faults work under TLS as well, and its `refused` says why
    clients did not get in.
    """

    way: str
    url: str
    server: Server
    certificates: Certificates
    mutual: bool
    link: Proxy | None

    def __repr__(self) -> str:
        return f"Endpoint({self.way}{', clients need a certificate' if self.mutual else ''})"

    def client(self, **options: Any) -> redis.Redis:
        """A client that verifies the server's certificate, and shows its own where one is asked for."""
        return client(self.url, **{**self.certificates.options(mutual=self.mutual), **options})


@contextlib.contextmanager
def secured(
    given: Certificates | None = None, *, mutual: bool = False, own: bool | None = None, **settings: Any
) -> Iterator[Endpoint]:
    """A server of one's own that is reached over TLS; without `given` certificates some are made for it.

    The server terminates TLS itself where its binary can, else a proxy does. `own=False` asks for the proxy,
    and `own=True` raises labkit.rig.server.ServerFailed where the binary cannot. With `mutual` only clients
    with a certificate of the same authority get in. `settings` as for labkit.rig.server.Server.
    """
    with contextlib.ExitStack() as stack:
        if given is None:
            folder = tempfile.TemporaryDirectory(dir=watchdog.get().folder)
            given = certificates(stack.enter_context(folder))
        if has_tls(settings.get("binary")) if own is None else own:
            port = _free_port(settings.get("binary") or "")
            tls = {"tls_port": port, **given.settings(mutual=mutual)}
            server = stack.enter_context(Server(**{**tls, **settings}))
            url = f"rediss://:{server.password}@127.0.0.1:{port}/0"
            yield Endpoint(OWN, url, server, given, mutual, None)
        else:
            server = stack.enter_context(Server(**settings))
            link = stack.enter_context(Proxy(server, tls=given.context(mutual=mutual)))
            yield Endpoint(PROXY, link.url, server, given, mutual, link)
