"""The forms that REDIS_URL may have, and what to say where one of them does not lead to a Redis.

    redis://[user:password@]host:port/0
    rediss://[user:password@]host:port/0             TLS; the server's certificate and its name are verified
    rediss://…?ssl_ca_certs=/path/ca.pem             … signed by an authority of one's own
    rediss://…&ssl_certfile=/path/me.pem&ssl_keyfile=/path/me.key    … and the server wants to see one, too
    unix://[user:password@]/path/of/socket?db=0
    redis+cluster://[user:password@]host:port        any node of a cluster; rediss+cluster:// for TLS

What stands behind the ? are options of redis-py's connections. In place of ssl_ca_certs the environment's
SSL_CERT_FILE may name that file. A / ? # @ [ ] in a password is percent-encoded. A user of its own for the
workbook needs the rights of `labkit.rig.rights.RIGHTS`, not more.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs, unquote, urlsplit

from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError

__all__ = ["TooOld", "check_form", "is_cluster", "not_an_address", "without_cluster", "wrong"]

CLUSTER = re.compile(r"^(rediss?)\+cluster:")

FORMS = (
    "Remedy: use redis://[user:password@]host:port/0, rediss://… for TLS, unix:///path, "
    "or redis+cluster://host:port."
)

REMEDIES = (
    ("older than", "upgrade it: 7.0 is the oldest that the workbook runs on."),
    ("HELLO", "this server is older than 7.0, the oldest that the workbook runs on; upgrade it."),
    ("refused the user", "check both in the URL."),
    ("loading", "wait until it has loaded its data, and try again."),
    ("DB index", "correct the number of the database at the end of the URL."),
    ("no permissions", "give this user the commands it lacks; labkit.rig.rights.RIGHTS has all of them."),
    (
        "Cluster mode is not enabled",
        "it is a single server: write redis:// or rediss://, without +cluster.",
    ),
    ("expired", "renew the server's certificate."),
    ("mismatch", "write the name that its certificate is for, or get it one for this name."),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "let ?ssl_ca_certs=/path/ca.pem at the end of the URL, or SSL_CERT_FILE, name the file with the "
        "certificate of the authority that signed the server's.",
    ),
    (
        "alert",
        "this server wants a certificate of the client: &ssl_certfile=/path/me.pem&ssl_keyfile=/path/me.key.",
    ),
    ("file of a certificate", "correct the paths behind the ? of the URL."),
    ("TLS", "check that this port speaks TLS; without TLS write redis for rediss."),
    ("not as a Redis", "correct the port in the URL; one that speaks TLS takes rediss://."),
    ("closed by server", "correct the port in the URL; one that speaks TLS takes rediss://."),
    (
        "the socket",
        "start that server, or correct the path: `unixsocket` in its redis.conf, writable for you.",
    ),
    ("", "start that server, correct the URL, or unset REDIS_URL to use an embedded one."),
)
"""What to do, by a word of what went wrong; the first that fits."""

SECRETS = ("password", "ssl_password")
"""Options behind the ? that are shown to nobody."""


class TooOld(RedisError):
    """A server from before Redis 7.0 answers."""


class BadForm(ValueError):
    """No parser could read this address. The message is a sentence of ours, and quotes nothing of it."""


def is_cluster(url: str) -> bool:
    """Whether the URL is that of a cluster, with TLS or without."""
    return CLUSTER.match(url) is not None


def without_cluster(url: str) -> str:
    """The same address for one node: `rediss+cluster://…` is `rediss://…`."""
    return CLUSTER.sub(r"\1:", url)


def check_form(url: str) -> None:
    """Raise BadForm for what a parser would quote as a host or a port, since it may be a password."""
    address = url.partition("?")[0] if "@" in url.partition("?")[0] else url
    try:
        early = "@" in address and "@" not in urlsplit(address).netloc
        _ = early or urlsplit(url).port
    except ValueError:
        raise BadForm(
            "host and port cannot be read; a port is a number up to 65535, and what is no letter or digit in "
            "a password must be percent-encoded ([ is %5B, ] is %5D)"
        ) from None
    if address.count("@") > 1 or early:
        raise BadForm("a / ? # or @ in a password must be percent-encoded (%2F %3F %23 %40)")


def not_an_address(error: Exception, url: str) -> str:
    """One sentence and the remedy, for what redis-py cannot take for an address."""
    said = f"{error}." if isinstance(error, BadForm) else _mask(error, url)
    return f"is not the address of a Redis: {said} {FORMS}"


def wrong(error: Exception, url: str) -> str:
    """One sentence that says why this address did not lead to a Redis, and the remedy. Never a password."""
    said = _mask(error, url)
    if isinstance(error, AuthenticationError) or re.search("WRONGPASS|NOAUTH|username-password", said):
        said = "the server refused the user or the password."
    elif isinstance(error, TooOld):
        said = f"{said[:-1]}, which is older than 7.0."
    elif isinstance(error, AttributeError):
        said = "something answers there, but not as a Redis does."
    elif url.startswith("unix:") and isinstance(error, ConnectionError):
        said = f"the socket does not lead to a Redis: {said}"
    elif url.startswith("rediss") and not re.search("refused|no permissions|Cluster mode", said):
        said = f"no TLS connection: {_tls(said)}" if _is_link(error) else said
    return f"{said} Remedy: {next(remedy for word, remedy in REMEDIES if word in said)}"


def _is_link(error: Exception) -> bool:
    """An error of the connection; a cluster's client wraps it in one of its own."""
    return isinstance(error, ConnectionError | TimeoutError) or "cannot be connected" in str(error)


def _tls(said: str) -> str:
    missing = "No such file|NO_CERTIFICATE|PEM lib|NO_START_LINE|Permission denied"
    return f"a file of a certificate cannot be read: {said}" if re.search(missing, said) else said


def _mask(error: Exception, url: str) -> str:
    text = str(error)
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub(r" \(_ssl\.c:\d+\)", "", text)
    return " ".join(text.split()).rstrip(". ") + "."


def _secrets(url: str) -> set[str]:
    found = re.search(r"://[^/@]*?:([^@]+)@[^@]*$", url)
    options = parse_qs(url.partition("?")[2])
    words = [found[1]] if found else []
    words += [word for name in SECRETS for word in options.get(name, [])]
    return {form for word in words for form in (word, unquote(word)) if form}
