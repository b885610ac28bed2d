"""Every form of REDIS_URL: TLS, a Unix socket, an ACL user with rights on the prefix alone, clusters.

With LABKIT_THOROUGH=1, every chapter runs on a server of each form, strictly; else one, as the ACL user.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from redis.exceptions import NoPermissionError, ResponseError

import labkit
from labkit.__main__ import main
from labkit.rig import connection, doctor, magics, rights, tls
from labkit.rig.audit import audit
from labkit.rig.connection import RedisUnavailable
from labkit.rig.server import Server
from labkit.rig.wire import tap

ROOT = Path(__file__).parents[1]
PASSWORD = "open-sesame-1001"

Form = Iterator[tuple[str, Server]]


def url_of(server: Server, user: str, password: str = PASSWORD) -> str:
    return f"redis://{user}:{password}@127.0.0.1:{server.port}/0"


def become_cluster(server: Server) -> None:
    with server.client() as r:
        r.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 10
        while "cluster_state:ok" not in r.execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextlib.contextmanager
def over_tls() -> Form:
    with tls.secured() as endpoint:
        yield f"{endpoint.url}?ssl_ca_certs={endpoint.certificates.ca}", endpoint.server


@contextlib.contextmanager
def over_tls_shown_a_certificate() -> Form:
    with tls.secured(mutual=True) as endpoint:
        options = endpoint.certificates.options(mutual=True).items()
        yield f"{endpoint.url}?{'&'.join(f'{name}={path}' for name, path in options)}", endpoint.server


@contextlib.contextmanager
def over_a_socket() -> Form:
    with Server() as outer:  # for its folder, in which a path is short enough for a socket
        assert outer._folder is not None
        path = outer._folder / "redis.sock"
        with Server(unixsocket=path) as server:
            yield f"unix://:{server.password}@{path}?db=1", server


@contextlib.contextmanager
def as_a_user() -> Form:
    with Server() as server, server.client() as r:
        r.execute_command("ACL SETUSER", "reader", "on", f">{PASSWORD}", *rights.RIGHTS.split())
        yield url_of(server, "reader"), server


@contextlib.contextmanager
def of_a_cluster_over_tls() -> Form:
    with tls.secured(own=False, cluster_enabled=True) as endpoint:
        server, link = endpoint.server, endpoint.link
        assert link is not None
        server.config["cluster-announce-ip"], server.config["cluster-announce-port"] = "127.0.0.1", link.port
        become_cluster(server)
        url = endpoint.url.replace("rediss:", "rediss+cluster:").removesuffix("/0")
        yield f"{url}?ssl_ca_certs={endpoint.certificates.ca}", server


FORMS: dict[str, Callable[[], Any]] = {
    "rediss": over_tls,
    "rediss-mutual": over_tls_shown_a_certificate,
    "unix": over_a_socket,
    "acl": as_a_user,
    "rediss+cluster": of_a_cluster_over_tls,
}


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    with FORMS[request.param]() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def r(form: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What connect() gives where REDIS_URL is of this form."""
    monkeypatch.setenv("REDIS_URL", form[0])
    monkeypatch.setattr(connection, "last", None)
    with contextlib.closing(labkit.connect(quiet=True)) as r:
        yield r


def test_connect_says_what_it_is_and_no_password(
    form: tuple[str, Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, server = form
    monkeypatch.setenv("REDIS_URL", url)
    labkit.connect().close()
    said = capsys.readouterr().out
    assert re.fullmatch(r"(Redis|Valkey) \d+\.\d+\.\d+ · REDIS_URL: your own server; .*\n", said)
    assert server.password not in said and PASSWORD not in said


def test_reset_removes_only_ours(r: Any, form: tuple[str, Server]) -> None:
    for n in range(3):
        r.set(f"workbook:00:{n}", n, ex=60)
    assert labkit.reset(r, "workbook:00:1") == 1
    assert labkit.reset(r) == 2


def test_the_tap_sees_commands_and_bytes(r: Any, form: tuple[str, Server]) -> None:
    r.ping()
    with tap(r, handshake=True) as tape:
        r.set("workbook:00:tapped", "value", ex=60)
        with r.pipeline(transaction=False) as pipe:
            pipe.get("workbook:00:tapped").ttl("workbook:00:tapped").execute()
    assert [exchange.command[0] for exchange in tape.commands] == ["SET", "GET", "TTL"]
    assert tape.round_trips == 2
    assert "C: workbook:00:tapped\\r\\n" in str(tape.raw()) and "S: value\\r\\n" in str(tape.raw())
    r.connection_pool.disconnect() if hasattr(r, "connection_pool") else r.disconnect_connection_pools()
    with tap(r, handshake=True) as tape:
        r.get("workbook:00:tapped")
    assert form[1].password not in str(tape.raw()) and PASSWORD not in str(tape.raw())


def test_the_magic_talks_over_it(r: Any) -> None:
    said = list(
        magics.run(r, "SET workbook:00:said hello EX 60\nGET workbook:00:said\nINCR workbook:00:said")
    )
    assert said[:4] == ["> SET workbook:00:said hello EX 60", "OK", "> GET workbook:00:said", '"hello"']
    assert said[5].startswith("(error) ERR value is not an integer")


def test_doctor_and_audit_work_over_it(r: Any, form: tuple[str, Server]) -> None:
    (check,) = doctor._redis()
    assert check.state == "ok" and "REDIS_URL: your own server" in check.found
    found = audit(r, keys=10, seconds=1)
    assert found.findings or found.unseen
    assert form[1].password not in repr(found) and PASSWORD not in repr(found)


def test_it_is_this_database(r: Any, form: tuple[str, Server]) -> None:
    """The number of the database counts, and so does the prefix: what is elsewhere is not ours."""
    labkit.reset(r)
    with form[1].client() as own:
        own.set("workbook:00:in-database-0", 1, ex=60)
        own.set("stranger", 1, ex=60)
    assert labkit.reset(r) == (0 if "db=1" in form[0] else 1)
    with form[1].client() as own:
        assert own.exists("stranger") == 1
        assert own.exists("workbook:00:in-database-0") == ("db=1" in form[0])


# The ACL user


@pytest.fixture
def user(server: Server) -> Iterator[Callable[..., str]]:
    """Makes a user with these rights, and gives its URL."""
    with server.client() as r:

        def make(*given: str) -> str:
            r.execute_command("ACL SETUSER", "few", "reset", "on", f">{PASSWORD}", *given)
            return url_of(server, "few")

        yield make
        r.acl_deluser("few")


def test_the_rights_reach_no_further_than_the_prefix(user: Callable[..., str], server: Server) -> None:
    beyond = (
        *("GET stranger", "SET stranger 1", "PUBLISH stranger 1", "SUBSCRIBE stranger", "INFO", "KEYS *"),
        *("CONFIG GET maxmemory", "CONFIG SET maxmemory 1", "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "MONITOR"),
        *("CLIENT LIST", "CLIENT KILL ID 1", "SLOWLOG GET", "DEBUG SLEEP 0", "SHUTDOWN NOSAVE", "ACL LIST"),
        *(
            "REPLICAOF NO ONE",
            "MIGRATE 127.0.0.1 1 k 0 1",
            "RESTORE workbook:k 0 x",
            "EVAL return 1 stranger",
        ),
        *("FUNCTION FLUSH", "FUNCTION DELETE lib", "SCRIPT FLUSH", "SCRIPT KILL", "SCRIPT DEBUG SYNC"),
    )
    with contextlib.closing(labkit.connect(user(*rights.RIGHTS.split()), quiet=True)) as r:
        for command in beyond:
            with pytest.raises(NoPermissionError):
                r.execute_command(*command.split())
        with pytest.raises(NoPermissionError):
            r.eval("return 1", 1, "stranger")
        assert r.set("workbook:rights", 1, ex=60) and labkit.reset(r) == 1


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        (f"{rights.RIGHTS} -eval -publish", "+publish +eval"),
        (f"{rights.RIGHTS} -@scripting", "+eval +evalsha +script|load"),
        ("~other:* &* +@all", "~workbook:*"),
        ("%R~workbook:* &* +@all", "~workbook:*"),
        ("~workbook:* +@all", "&workbook:* &workbook:06:shop:*"),
        ("~workbook:* &workbook:* +@all", "&workbook:06:shop:*"),
        ("~* &* +@all -multi", "+multi"),
    ],
)
def test_a_missing_right_is_named_with_what_gives_it(
    user: Callable[..., str], server: Server, given: str, lacking: str
) -> None:
    url = user(*given.split())
    with pytest.raises(RedisUnavailable) as caught:
        labkit.connect(url, quiet=True)
    said = str(caught.value)
    assert f"user few has no permissions for {lacking}. " in said
    assert f"Remedy: give this user those: ACL SETUSER few {lacking};" in said
    assert PASSWORD not in said
    with server.client() as r:
        assert not r.exists("workbook:rights"), "asking runs nothing"
        r.execute_command("ACL SETUSER", "few", *lacking.split())
    labkit.connect(url, quiet=True).close()


def test_all_rights_at_once_are_what_the_docstring_and_the_readme_say() -> None:
    command = f"ACL SETUSER workbook on >PASSWORD {rights.RIGHTS}"
    assert rights.__doc__ and f"{command} REDIS_URL=" in " ".join(rights.__doc__.split())
    assert f"\n{command}\n" in (ROOT / "README.md").read_text()


def test_doctor_names_the_missing_right(user: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", user(*rights.RIGHTS.split(), "-eval"))
    (check,) = doctor._redis()
    assert check.state == "problem" and "+eval" in check.found and "ACL SETUSER few +eval" in check.remedy


# What goes wrong


def refusal(url: str) -> str:
    with pytest.raises(RedisUnavailable) as caught:
        labkit.connect(url, quiet=True)
    said = str(caught.value)
    assert "\n" not in said and said.count("Remedy: ") == 1
    return said


def test_an_authority_that_is_not_trusted_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls.secured(own=False) as endpoint:
        stranger = tls.certificates(tmp_path)
        for url in (endpoint.url, f"{endpoint.url}?ssl_ca_certs={stranger.ca}"):
            said = refusal(url)
            assert "CERTIFICATE_VERIFY_FAILED" in said and "?ssl_ca_certs=/path/ca.pem" in said
            assert endpoint.server.password not in said
        missing = refusal(f"{endpoint.url}?ssl_ca_certs={tmp_path}/none.pem")
        assert "No such file" in missing and "correct the paths behind the ?" in missing
        plain = refusal(endpoint.url.replace("rediss:", "redis:"))
        assert "one that speaks TLS takes rediss://" in plain
        single = refusal(endpoint.url.replace("rediss:", "rediss+cluster:") + f"?{ca(endpoint)}")
        assert "write redis:// or rediss://, without +cluster" in single
        monkeypatch.setenv("SSL_CERT_FILE", str(endpoint.certificates.ca))
        labkit.connect(endpoint.url, quiet=True).close()


def ca(endpoint: tls.Endpoint) -> str:
    return f"ssl_ca_certs={endpoint.certificates.ca}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"names": ["elsewhere.example"]}, "mismatch.*write the name that its certificate is for"),
        ({"days": 0}, "expired.*renew the server's certificate"),
    ],
)
def test_a_certificate_that_does_not_fit_is_told(tmp_path: Path, options: Any, says: str) -> None:
    with tls.secured(tls.certificates(tmp_path, **options), own=False) as endpoint:
        assert re.search(says, refusal(f"{endpoint.url}?{ca(endpoint)}"))


def test_a_server_that_wants_to_see_a_certificate_is_told() -> None:
    with tls.secured(mutual=True, own=False) as endpoint:
        assert "ssl_certfile=" in refusal(f"{endpoint.url}?{ca(endpoint)}")


def test_a_socket_that_is_not_there_is_told(tmp_path: Path) -> None:
    said = refusal(f"unix://:{PASSWORD}@{tmp_path}/none.sock")
    assert "No such file" in said and "correct the path: `unixsocket`" in said and PASSWORD not in said
    (tmp_path / "file").touch()
    assert "correct the path" in refusal(f"unix://{tmp_path}/file")


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:open[sesame]1001@127.0.0.1:1", "redis://:open[sesame@127.0.0.1:1", "redis://user:sesame"),
        *("redis://default:sesame/0", "redis://:sesame:6379", "redis://user:sesame@127.0.0.1:sesame"),
        *("redis+cluster://user:sesame", "redis://:sesame\u2100@127.0.0.1:1"),
    ],
)
def test_a_password_that_is_taken_for_a_host_or_a_port_is_not_quoted(url: str) -> None:
    said = refusal(url)
    assert "sesame" not in said and "must be percent-encoded" in said


def test_a_port_out_of_range_is_told_and_a_short_password_hides_no_letter_of_it() -> None:
    said = refusal("redis://:p@127.0.0.1:99999/0")
    assert "host and port cannot be read; a port is a number up to 65535" in said


def test_a_replica_is_refused_with_the_remedy(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a chapter, or a reset, would end in the middle."""
    with Server(replicaof=f"127.0.0.1 {server.port}", masterauth=server.password) as replica:
        assert "it is a replica, which takes no writes" in refusal(replica.url)
        monkeypatch.setenv("REDIS_URL", replica.url)
        (check,) = doctor._redis()
        assert check.state == "problem" and check.remedy == "let REDIS_URL name its primary."
        assert main(["reset"]) == 1 and "let REDIS_URL name its primary" in capsys.readouterr().err


def test_a_reset_that_the_server_refuses_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)
    with server.client() as r:
        r.set(f"{labkit.PREFIX}a", 1, ex=60)
    refused = mock.Mock(side_effect=ResponseError("MISCONF Errors writing to the AOF file"))
    monkeypatch.setattr(connection, "_unlink", refused)
    assert main(["reset"]) == 1
    said = capsys.readouterr().err
    assert "could not be removed: MISCONF Errors" in said and "a server that takes writes" in said


def test_a_password_behind_the_question_mark_is_shown_to_nobody() -> None:
    assert PASSWORD not in refusal(f"redis://127.0.0.1:1/0?password={PASSWORD}&nonsense={PASSWORD}")


def test_a_container_with_everybodys_password_is_nobodys_on_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with Server() as server, server.client() as r:
        r.config_set("requirepass", connection.DEFAULT_PASSWORD)
        monkeypatch.setattr(connection, "CONTAINER", ("127.0.0.1", server.port))
        monkeypatch.setattr(connection, "workbook_password", lambda: connection.DEFAULT_PASSWORD)
        assert "container" in connection.find()[1]
        monkeypatch.setenv("JUPYTERHUB_USER", "ada")
        assert "embedded" in connection.find()[1]
        r.config_set("requirepass", PASSWORD)
        monkeypatch.setattr(connection, "workbook_password", lambda: PASSWORD)
        assert "container" in connection.find()[1]


# Chapters


ALL = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SINGLE = [name for name in FORMS if "cluster" not in name]
THOROUGH = [(name, path) for name in SINGLE for path in ALL]
RUNS = THOROUGH if os.environ.get("LABKIT_THOROUGH") else [("acl", ALL[0])]


@pytest.mark.parametrize(("name", "chapter"), RUNS, ids=[f"{name}-{path.stem[:2]}" for name, path in RUNS])
def test_a_chapter_runs_on_it(name: str, chapter: Path) -> None:
    """Strictly: it prints what is stored in it. (On clusters: test_chapters_cluster.py.)"""
    options = ["-n0", "-q", "-p", "no:cacheprovider", "-k", "Cell"]
    with FORMS[name]() as (url, server):
        command = [sys.executable, "-m", "pytest", *options, str(chapter)]
        environment = {**os.environ, "REDIS_URL": url}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        with server.client() as r:
            assert r.info("stats")["total_commands_processed"] > 100, "it was this server that it worked with"
