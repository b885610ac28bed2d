"""Containers: docker-compose.yml, and the servers of LABKIT_SERVER=docker; for real where an engine answers.

The image is that of REDIS_IMAGE, else the workbook's own, else a local stand-in called redis:local, else the
workbook's own is pulled; what needs none of them runs everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psycopg
import pytest
import redis
from redis.exceptions import ConnectionError, TimeoutError
from servers import until

import labkit
from labkit.lock import Redlock
from labkit.rig import connection, container, doctor, dotenv, watchdog
from labkit.rig import server as server_module
from labkit.rig.client import cluster_client
from labkit.rig.server import Cluster, Server, ServerFailed, find_binary
from labkit.rig.tls import secured
from labkit.teach import progress

ROOT = Path(__file__).parents[1]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
STAND_IN = "redis:local"
PASSWORD = "of-a-test"


def said(*command: str, seconds: float = 60, **options: Any) -> str:
    """What a command prints; the test fails if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return str(done.stdout).strip()


def succeeds(*command: str, seconds: float = 20) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def here(name: str, pull: bool = False) -> bool:
    """Whether that image is here, or has just been pulled."""
    return succeeds("docker", "image", "inspect", name) or (
        pull and succeeds("docker", "pull", "-q", name, seconds=180)
    )


@pytest.fixture(scope="session")
def engine() -> None:
    if not succeeds("docker", "version", "--format", "{{.Server.Version}}"):
        pytest.skip("no Docker engine answers here: `docker version` fails")


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    named = os.environ.get("REDIS_IMAGE")
    for name in [named] if named else [container.IMAGE, STAND_IN]:
        if here(name, pull=name == named):
            return name
    if not named and here(container.IMAGE, pull=True):
        return container.IMAGE
    pytest.skip(f"the image {named or container.IMAGE} is not here and cannot be pulled")


# The compose file


def health(id: str) -> str:
    """What a container's health check says."""
    return said("docker", "inspect", "--format", "{{.State.Health.Status}}", id)


class Project:
    """docker-compose.yml as a project of its own, with a password of its own."""

    def __init__(self, compose: list[str], image: str, profile: str = "", folder: Path = ROOT) -> None:
        self.name = f"labkit-test-{secrets.token_hex(4)}"
        self.command = [*compose, "-p", self.name, *(["--profile", profile] if profile else [])]
        self.folder = folder
        own = {"REDIS_IMAGE": image, "REDIS_PASSWORD": PASSWORD, "POSTGRES_PASSWORD": PASSWORD}
        self.environment = {**os.environ, **own, "LAB_TOKEN": PASSWORD}

    def __call__(self, *words: str, seconds: float = 120) -> str:
        return said(*self.command, *words, seconds=seconds, cwd=self.folder, env=self.environment)

    def id(self, service: str) -> str:
        return self("ps", "-q", service)

    def up(self, *services: str, seconds: float = 120) -> None:
        """Start them and wait until their health checks say that they are well."""
        self("up", "-d", *services, seconds=seconds)
        wanted = [self.id(service) for service in services] if services else self("ps", "-q").split()
        until(lambda: {"healthy"} == {health(one) for one in wanted}, seconds=90)

    def down(self, *words: str) -> None:
        self("down", "--timeout", "5", *words)


def compose_commands() -> list[Any]:
    return [pytest.param(words.split(), id=words) for words in ("docker compose", "docker-compose")]


@pytest.fixture
def project(image: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Project]]:
    """Makes projects; in the end nothing of them is left."""
    made: list[Project] = []

    def make(
        ports: list[int], profile: str = "", compose: list[str] | None = None, **options: Any
    ) -> Project:
        known = [compose] if compose else [["docker", "compose"], ["docker-compose"]]
        usable = [words for words in known if succeeds(*words, "version")]
        if not usable:
            pytest.skip(f"{' '.join(known[0])} is not installed")
        for port in ports:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    pytest.skip(f"port {port} of docker-compose.yml is in use")
        made.append(Project(usable[0], image, profile, **options))
        return made[-1]

    yield make
    for one in made:
        one.down("--volumes", "--remove-orphans", *(["--rmi", "local"] if "lab" in one.command else []))
        mark = f"label=com.docker.compose.project={one.name}"
        for what in ("ps -aq", "volume ls -q", "network ls -q"):
            assert said("docker", *what.split(), "--filter", mark) == ""


def services() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return found


def test_every_port_is_on_the_loopback_device_and_every_service_tells_its_health() -> None:
    assert set(services()) > {"redis", "lab", "postgres", "cluster", "cluster-f", "redlock-e"}
    for name, service in services().items():
        assert "healthcheck" in service, name
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
    ports = re.findall(r"127\.0\.0\.1:(\d+)(?:-\d+)?:\d+", COMPOSE)
    assert len(set(ports)) == len(ports) == 9


def test_what_is_stored_has_a_volume_with_a_name() -> None:
    for name, service in services().items():
        stores = name != "cluster"  # it holds the nodes' network, and no data
        assert len(service.get("volumes", [])) == stores, name
    volumes = re.findall(r"^  ([\w-]+):$", COMPOSE.partition("\nvolumes:\n")[2], re.M)
    named = {
        str(one).partition(":")[0] for service in services().values() for one in service.get("volumes", [])
    }
    assert named == {*volumes, "."}


def test_what_needs_others_does_not_come_back_without_them_when_the_engine_restarts() -> None:
    again = {name for name, service in services().items() if "restart" in service}
    assert again == {"redis", "postgres"}


def test_the_example_of_a_env_file_names_every_variable_with_its_default() -> None:
    pairs = set(re.findall(r"\$\{(\w+):-([^}]+)\}", COMPOSE))
    used = dict(pairs)
    assert len(used) == len(pairs), "two defaults of one variable"
    shown = dict(re.findall(r"^# (\w+)=(.+)$", (ROOT / ".env.example").read_text(), re.M))
    assert used == shown
    assert "workbook" == used["REDIS_PASSWORD"] == used["POSTGRES_PASSWORD"] == used["LAB_TOKEN"]
    assert used["REDIS_IMAGE"] == container.IMAGE
    assert f"ARG PYTHON_IMAGE={used['PYTHON_IMAGE']}" in (ROOT / ".docker" / "Dockerfile").read_text()


def test_the_image_of_the_lab_takes_its_packages_from_pyproject_and_is_nobodys_root() -> None:
    lines = (ROOT / ".docker" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if "pip install" in line] == [
        "RUN pip install --no-cache-dir --editable ."
    ]
    assert [line for line in lines if line.startswith("USER ")] == ["USER learner"]
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    needed = set(re.findall(r'^"(labkit/\S+)" = "etc/', (ROOT / "pyproject.toml").read_text(), re.M))
    assert needed and all(any(Path(name).match(one) for one in sent) for name in needed)


@pytest.mark.docker
@pytest.mark.parametrize("compose", compose_commands())
def test_the_workbooks_redis_is_found_and_keeps_its_data(
    compose: list[str], project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = project([6390], compose=compose)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
    one.up()
    bound = said("docker", "inspect", "--format", "{{json .NetworkSettings.Ports}}", one.id("redis"))
    assert json.loads(bound)["6379/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "6390"}]
    r, place = connection.find()
    assert place == "the container of docker-compose.yml"
    r.set("workbook:kept", "yes")
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=6390, password="another").ping()
    one.down()
    with pytest.raises(ConnectionError):
        r.ping()
    one.up()
    assert r.get("workbook:kept") == "yes"
    r.close()


@pytest.mark.docker
def test_the_cluster_is_formed_once_and_keeps_its_data(project: Callable[..., Project]) -> None:
    one = project([*range(6392, 6398)], profile="cluster")
    wanted = ["cluster", *(f"cluster-{letter}" for letter in "abcdef")]
    keys = [f"workbook:{number}" for number in range(100)]

    def synchronous() -> bool:
        """A replica is listed for its slots once it has its primary's data."""
        with cluster_client(f"redis+cluster://:{PASSWORD}@127.0.0.1:6392") as rc:
            return len(rc.get_primaries()) == len(rc.get_replicas()) == 3

    one.up(*wanted)
    until(synchronous)
    with cluster_client(f"redis+cluster://:{PASSWORD}@127.0.0.1:6392") as rc:
        for key in keys:
            rc.set(key, key)
    one.down()
    one.up(*wanted)
    with cluster_client(f"redis+cluster://:{PASSWORD}@127.0.0.1:6392") as rc:
        assert [rc.get(key) for key in keys] == keys
    until(synchronous)
    one("kill", "cluster-d")  # the file says that the health check tells it
    cluster = one.id("cluster")
    until(lambda: health(cluster) == "unhealthy", seconds=90)
    one.up(*wanted)
    until(synchronous)


@pytest.mark.docker
def test_redlock_works_with_one_of_five_killed_and_not_with_three(project: Callable[..., Project]) -> None:
    one = project([*range(6401, 6406)], profile="redlock")
    names = [f"redlock-{letter}" for letter in "abcde"]
    one.up(*names)
    clients = [
        labkit.connect(f"redis://:{PASSWORD}@127.0.0.1:{port}", quiet=True) for port in range(6401, 6406)
    ]

    def votes() -> tuple[bool | None, ...]:
        lock = Redlock(clients, f"workbook:{secrets.token_hex(4)}", ttl=20, timeout=2)
        held = lock.acquire(wait=0)
        assert held == (lock.votes.count(True) >= 3)
        if held:
            assert lock.release()
        return lock.votes

    assert votes() == (True, True, True, True, True)
    clients[4].set("workbook:kept", "yes")
    one("kill", names[0])
    assert votes() == (None, True, True, True, True)
    one("kill", *names[1:3])
    assert votes() == (None, None, None, True, True)
    one.down()
    one.up(*names)
    assert clients[4].get("workbook:kept") == "yes"
    assert votes() == (True, True, True, True, True)


@pytest.mark.docker
def test_postgres_keeps_its_data(project: Callable[..., Project]) -> None:
    if not here(name := services()["postgres"]["image"], pull=True):
        pytest.skip(f"the image {name} is not here and cannot be pulled")
    one = project([6391], profile="postgres")
    url = f"postgresql://workbook:{PASSWORD}@127.0.0.1:6391/workbook"
    one.up("postgres")
    with psycopg.connect(url) as db:
        db.execute("create table kept (n int)")
    one.down()
    one.up("postgres")
    with psycopg.connect(url) as db:
        assert db.execute("select count(*) from kept").fetchone() == (0,)


def copied(to: Path) -> None:
    """What git would commit, as a folder of the user 1000:1000."""
    listed = said("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    if os.getuid() == 0:
        for path in [to, *to.rglob("*")]:
            os.chown(path, 1000, 1000)


def status(token: str) -> int:
    """What JupyterLab in the container answers to one who knows that token."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:8890/api/status?token={token}") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.docker
def test_the_lab_runs_the_workbook_and_keeps_what_is_written(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    """Takes minutes, for pip; so only where its base image is named, or all is to be tested."""
    base = os.environ.get("PYTHON_IMAGE") or ("python:3.13-slim" if os.environ.get("LABKIT_THOROUGH") else "")
    if not base or not here(base, pull=True):
        pytest.skip(f"{base or 'PYTHON_IMAGE'}: no base image to build JupyterLab's from")
    copied(tmp_path)
    one = project([6390, 8890], profile="lab", folder=tmp_path)
    if os.getuid() != 0:
        one.environment["LAB_USER"] = f"{os.getuid()}:{os.getgid()}"
    one("build", "lab", seconds=900)
    one.up("redis", "lab")
    assert (status(PASSWORD), status("another")) == (200, 403)
    run = functools.partial(one, "exec", "-T", "lab")
    assert run("id", "-u") != "0"
    assert "REDIS_URL: your own server" in run("python", "-c", "import labkit; labkit.connect()")
    copy = tmp_path / "notebooks" / "copy.ipynb"
    execute = "jupyter nbconvert --to notebook --execute notebooks/00_start_here.ipynb --output copy"
    run(*execute.split(), seconds=300)
    stored = (tmp_path / "notebooks" / "00_start_here.ipynb").read_text()
    assert copy.read_text().count('"output_type"') >= stored.count('"output_type"') > 20
    assert copy.stat().st_uid == (os.getuid() or 1000)
    run("python", "-c", "from labkit.teach import progress; progress.record('lock', 'renew', 'correct')")
    one.down()
    one.up("redis", "lab")
    assert "renew" in (tmp_path / ".labkit" / "progress.json").read_text() and copy.exists()


# The shell that the servers' container runs, and what there is without an engine


def test_a_container_that_stands_still_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is paused: nobody waits for ever for what it does not do."""
    monkeypatch.setattr(container, "PATIENCE", 0.1)
    process = container.Contained(mock.Mock(), "1")
    with pytest.raises(container.NoMachine, match=r"does not answer.*is it paused\?"):
        process.signal("KILL")


def test_a_user_who_may_not_use_docker_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr("testcontainers.core.docker_client.DockerClient", refused)
    with pytest.raises(container.NoMachine, match="join the group `docker`"):
        container._engine()


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[str]]:
    """It, without a container, in this machine's own sh."""
    with subprocess.Popen(
        ["sh", "-c", container._SHELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process
        process.communicate(timeout=10)


def test_the_shell_starts_stops_and_tells(shell: subprocess.Popen[str], tmp_path: Path) -> None:
    assert shell.stdin and shell.stdout
    name = tmp_path / "a file's name"
    shell.stdin.write(f"""run 7 sh -c 'echo "$1"; exec sleep 50' x 'two  words' >>"{name}" 2>&1\n""")
    id, what, pid = shell.stdout.readline().split()
    assert (id, what) == ("7", "started")
    until(lambda: name.exists() and name.read_text() == "two  words\n")
    for order in ("STOP", "CONT"):
        shell.stdin.write(f"signal 7 {order} {pid}\n")
        assert shell.stdout.readline() == "7 told\n"
        assert (Path(f"/proc/{pid}/stat").read_text().split()[2] == "T") == (order == "STOP")
    shell.stdin.write(f"signal 7 KILL {pid}\n")  # two tell of that, and either may be first
    assert {shell.stdout.readline() for _ in range(2)} == {"7 told\n", "7 ended 137\n"}
    shell.stdin.write(f"signal 7 STOP {pid}\nrun 8 no-such-program\n")
    assert [shell.stdout.readline().split()[:2] for _ in range(3)] == [
        ["7", "told"],
        ["8", "started"],
        ["8", "ended"],
    ]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[container.Machine, subprocess.Popen[bytes]]]:
    """One without a container, and its shell: this machine's own. Its connection ends with an odd error."""
    import docker.utils.socket

    def frames(line: socket.socket, tty: bool) -> Iterator[tuple[int, bytes]]:
        while data := line.recv(4096):
            yield 1, data
        raise RuntimeError("as docker-py has it on Windows")

    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        subprocess.Popen(
            ["sh", "-c", container._SHELL], stdin=theirs.fileno(), stdout=theirs.fileno()
        ) as shell,
    ):
        theirs.close()
        monkeypatch.setenv("LABKIT_DOCKER_NETWORK", "host")
        monkeypatch.setattr(container, "_engine", lambda: SimpleNamespace(client=None))
        monkeypatch.setattr(container, "_fetch", lambda client, image: None)
        monkeypatch.setattr(container.Machine, "_begin", lambda self, engine, published: ("id", ours, []))
        monkeypatch.setattr(docker.utils.socket, "frames_iter", frames)
        try:
            yield container.Machine("none"), shell
        finally:
            shell.kill()


def children(pid: int) -> list[int]:
    """Those that run."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in listed if Path(f"/proc/{one}/stat").read_text().split()[2] != "Z"]


def test_what_did_not_start_in_time_is_killed_when_it_does(
    machine: tuple[container.Machine, subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    it, shell = machine
    until(lambda: not children(shell.pid))
    shell.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", lambda self, timeout=None: self.is_set())
        with pytest.raises(container.NoMachine, match="does not answer"):
            it.launch(["sleep", "50"], tmp_path / "log")
    shell.send_signal(signal.SIGCONT)
    assert it.output(["echo", "well"]) == "well\n"
    until(lambda: not children(shell.pid))


def test_when_the_container_goes_its_processes_have_ended(
    machine: tuple[container.Machine, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    it, shell = machine
    process = it.launch(["sleep", "50"], tmp_path / "log")
    own = process.pid
    until(lambda: len(children(shell.pid)) == 1)  # the one of `redis-server --version` may not be gone yet
    (subshell,) = children(shell.pid)
    assert process.poll() is None and it.running
    for pid in (shell.pid, subshell, own):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(10) == 137 and not it.running
    process.signal("STOP")  # no effect, no error, no waiting
    with pytest.raises(container.NoMachine, match="is gone"):
        it.launch(["true"], tmp_path / "log")


def test_what_is_abandoned_in_a_container_that_goes_does_not_end_the_listener(
    machine: tuple[container.Machine, subprocess.Popen[bytes]],
) -> None:
    it, _ = machine
    process = container.Contained(it, "7")
    it._gone = True
    process.abandon()
    process.hear("started", "1")  # NoMachine here would end the thread that listens
    assert process.pid == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("REDIS_IMAGE=one\nREDIS_IMAGE=two:2\n", "two:2"),
        ("\ufeffexport REDIS_IMAGE = 'a # b' # of mine\r\n", "a # b"),
        ("REDIS_IMAGE=two:2 # of mine\n", "two:2"),
        ('REDIS_IMAGE=""\n', container.IMAGE),
        ("REDIS_IMAGE=\nREDIS_PASSWORD=x\n", container.IMAGE),
        ("REDIS_IMAGE= # none\n", container.IMAGE),
        ("# REDIS_IMAGE=one\nMY_REDIS_IMAGE=one\n", container.IMAGE),
        (None, container.IMAGE),
    ],
)
def test_the_image_is_read_from_a_env_file(
    text: str | None, found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dotenv, "FILE", tmp_path / ".env")
    if text is not None:
        (tmp_path / ".env").write_text(text, encoding="utf-8")
    monkeypatch.delenv("REDIS_IMAGE", raising=False)
    assert container.image() == found
    monkeypatch.setenv("REDIS_IMAGE", "of the environment")
    assert container.image() == "of the environment"


def test_without_an_engine_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_SERVER", "docker")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("REDIS_IMAGE", "not-started-yet")
    with pytest.raises(
        ServerFailed, match=r"No Docker engine answers .*Remedy: start Docker Desktop, or dockerd"
    ):
        Server()
    monkeypatch.setattr(connection, "_embedded", None)  # one that runs would be taken again
    with pytest.raises(connection.RedisUnavailable, match="No Docker engine answers") as caught:
        connection.find("embedded")
    assert [place for place, _ in caught.value.tried] == ["embedded"], "nothing else was tried"
    assert not container.answers()


def test_without_testcontainers_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_SERVER", "docker")
    monkeypatch.setenv("REDIS_IMAGE", "not-started-yet")
    monkeypatch.setitem(sys.modules, "testcontainers.core.docker_client", None)
    with pytest.raises(ServerFailed, match=r"testcontainers is not installed\. Remedy: .*pip install"):
        Server()


@pytest.mark.parametrize("name", ["LABKIT_SERVER", "LABKIT_DOCKER_NETWORK"])
def test_a_word_that_they_may_not_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "nonsense")
    with pytest.raises(container.NoMachine, match=f"{name} is 'nonsense'. Remedy: set it to `"):
        container.wanted() if name == "LABKIT_SERVER" else container._shares_network(None)


@pytest.mark.parametrize("answers", [True, False])
def test_where_there_is_no_binary_docker_is_named_if_it_answers(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABKIT_SERVER", raising=False)
    monkeypatch.setattr(server_module, "binaries", list)
    monkeypatch.setattr(container, "answers", lambda: answers)
    with pytest.raises(ServerFailed) as caught:
        find_binary()
    assert ("LABKIT_SERVER=docker" in caught.value.remedy) is answers


@pytest.mark.parametrize(
    ("told", "shared"),
    [
        ({"OperatingSystem": "Debian GNU/Linux 12 (bookworm)", "SecurityOptions": ["name=seccomp"]}, True),
        ({"OperatingSystem": "Docker Desktop"}, False),
        ({"OperatingSystem": "Fedora Linux 42", "SecurityOptions": ["name=rootless"]}, False),
    ],
)
def test_which_engines_share_the_network(
    told: dict[str, object], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        def info(self) -> dict[str, object]:
            return told

    monkeypatch.delenv("LABKIT_DOCKER_NETWORK", raising=False)
    assert container._shares_network(Engine()) is (shared and sys.platform == "linux")
    rootless = "rootless" in str(told)
    assert container._user(Engine()) == ("0:0" if rootless else f"{os.getuid()}:{os.getgid()}")


def ignores(pid: int, which: signal.Signals) -> bool:
    said = Path(f"/proc/{pid}/status").read_text()
    ignored = int(re.findall(r"^SigIgn:\s*(\w+)$", said, re.M)[0], 16)
    return bool(ignored >> which - 1 & 1)


def test_the_watchdog_of_a_system_without_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("")
    with (
        subprocess.Popen(["sleep", "50"]) as kept,
        subprocess.Popen(["sleep", "50"]) as killed,
        subprocess.Popen(
            [sys.executable, "-c", watchdog._PROGRAM, str(folder)], stdin=subprocess.PIPE
        ) as dog,
    ):
        until(lambda: ignores(dog.pid, signal.SIGINT))
        dog.send_signal(signal.SIGINT)  # Ctrl-C, in the console that it shares with this process
        dog.communicate(f"+ {kept.pid}\n+ {killed.pid}\n- {kept.pid}\n".encode(), timeout=20)
        assert killed.wait(10) == -signal.SIGKILL
        assert kept.poll() is None
        kept.kill()
    assert not folder.exists()


WITHOUT_POSIX = """
import importlib, multiprocessing.util, os, pkgutil, signal, subprocess, sys
import IPython, httpx, ipywidgets, matplotlib.pyplot, nbclient, pandas, redis, sqlalchemy
import tqdm, trustme, uvicorn
for name in "fcntl", "pwd", "grp", "resource", "termios":
    sys.modules[name] = None
for name in "fork", "register_at_fork", "waitid", "getuid", "geteuid", "getgid", "setsid", "killpg":
    delattr(os, name)
for name in "SIGKILL", "SIGSTOP", "SIGCONT", "SIGALRM", "SIGUSR1", "SIGHUP", "setitimer", "pthread_kill":
    delattr(signal, name)
import labkit
names = [module.name for module in pkgutil.walk_packages(labkit.__path__, "labkit.")]
for name in names:
    if not name.endswith(("__main__", "_config")):
        importlib.import_module(name)
print(len(names))
"""


def test_every_module_can_be_imported_where_there_is_no_posix() -> None:
    """As on Windows: no fork, no fcntl, few signals."""
    assert int(said(sys.executable, "-c", WITHOUT_POSIX, cwd=ROOT)) > 60


def test_progress_is_kept_where_no_file_can_be_locked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    progress.record("lock", "renew", "correct")
    assert "renew" in (tmp_path / "progress.json").read_text()


def test_doctor_names_testcontainers_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(doctor, "_first_line", lambda *command: "29.1.0")
    assert "pip install" not in doctor._docker().found
    monkeypatch.setitem(sys.modules, "testcontainers", None)
    assert doctor._docker().found.endswith("in Docker, too (after `pip install testcontainers`)")


# Throw-away servers in Docker


@pytest.fixture(scope="module", params=["this machine's network", "ports published, as on Windows"])
def in_docker(image: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """LABKIT_SERVER=docker, on Linux and as it is elsewhere: the folder has another name inside there."""
    with pytest.MonkeyPatch.context() as patch:
        container._end()
        patch.setenv("LABKIT_SERVER", "docker")
        patch.setenv("REDIS_IMAGE", image)
        if "published" in request.param:
            patch.setenv("LABKIT_DOCKER_NETWORK", "bridge")
            patch.setattr(container, "_mount_point", lambda folder: "/labkit")
        else:
            patch.setenv("LABKIT_DOCKER_NETWORK", "host")
        yield request.param
        id = container.get().id
        container._end()
    until(lambda: not succeeds("docker", "inspect", id))


@pytest.mark.docker
def test_servers_are_processes_of_one_container(in_docker: str) -> None:
    with Server() as one, Server.several(3) as three:
        machine = container.get()
        listed = said("docker", "ps", "-q", "--no-trunc", "--filter", "label=labkit=machine").splitlines()
        assert machine.id in listed
        top = said("docker", "top", machine.id, "-eo", "pid,comm")
        assert top.count("redis-server") == 4
        for number, server in enumerate([one, *three]):
            server.client().set("who", number)
        assert [server.client().get("who") for server in [one, *three]] == ["0", "1", "2", "3"]
        assert one._folder is not None and (one._folder / "redis.log").stat().st_uid == os.getuid()
        kept = one._folder
    assert not kept.exists() and repr(one) == "Server(stopped)"
    assert "redis-server" not in said("docker", "top", machine.id, "-eo", "pid,comm")


@pytest.mark.docker
def test_kill_freeze_thaw_and_restart(in_docker: str) -> None:
    with Server() as server:
        r = server.client(socket_timeout=0.3)
        r.set("kept", "no")
        port = server.port
        server.freeze()
        assert server.running
        with pytest.raises(TimeoutError):
            r.get("kept")
        server.thaw()
        assert r.get("kept") == "no"
        server.freeze()
        server.kill()
        assert not server.running
        with pytest.raises(ConnectionError):
            r.get("kept")
        server.restart()
        assert server.port == port and r.get("kept") is None
        r.set("kept", "no")
        server.restart()  # in an orderly way, this time
        assert r.get("kept") is None


@pytest.mark.docker
def test_what_was_on_disk_comes_back(in_docker: str) -> None:
    with Server(appendonly=True, appendfsync="always") as server:
        server.client().set("kept", "yes")
        server.kill()
        assert server._folder is not None and list((server._folder / "appendonlydir").iterdir())
        server.restart()
        assert server.client().get("kept") == "yes"


@pytest.mark.docker
def test_a_server_that_does_not_start_says_why(in_docker: str) -> None:
    with (
        pytest.raises(ServerFailed, match=r"(?s)redis-server ended at once\. Remedy.*maxmemory"),
        Server(maxmemory="x"),
    ):
        pass
    with pytest.raises(ServerFailed, match=r"not running\. Remedy: start"):
        Server().kill()


@pytest.mark.docker
def test_one_that_ends_by_itself_is_seen_to_have_ended(in_docker: str) -> None:
    with Server() as server:
        server.client().shutdown(nosave=True)
        until(lambda: not server.running)
        with pytest.raises(ServerFailed, match="not running"):
            server.freeze()
        server.start()
        assert server.client().ping()


@pytest.mark.docker
def test_one_without_a_password_is_reached_too(in_docker: str) -> None:
    with Server() as server:
        server.config["requirepass"] = ""
        assert redis.Redis(port=server.port).ping()


@pytest.mark.docker
def test_a_port_that_is_taken_is_exchanged(in_docker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as first:
        free = server_module._free_port
        ports = iter([first.port])
        monkeypatch.setattr(server_module, "_free_port", lambda binary: next(ports, None) or free(binary))
        with Server() as second:
            assert second.port != first.port and second.client().ping()


@pytest.mark.docker
def test_one_whose_container_was_killed_starts_again_in_another(in_docker: str) -> None:
    with Server() as server:
        said("docker", "kill", container.get().id)
        until(lambda: not server.running)
        server.start()
        assert server.client().ping()


@pytest.mark.docker
def test_a_cluster_fails_over_and_becomes_whole_again(in_docker: str) -> None:
    with Cluster() as cluster:
        rc = cluster.client()
        rc.set("a", 1)
        owner = cluster.owner("a")
        owner.kill()
        heir = cluster.await_failover(owner)
        assert heir is not owner and heir.client().role()[0] in ("master", b"master")
        cluster.revive(owner)
        assert cluster.owner("a") is heir
        heir.freeze()
        assert cluster.await_failover(heir) is owner
        cluster.revive(heir)
        assert rc.set("a", 2)


@pytest.mark.docker
def test_tls_finds_its_certificates(in_docker: str) -> None:
    with secured() as endpoint, endpoint.client() as r:
        assert r.ping()


@pytest.mark.docker
def test_doctor_says_which_servers_would_be_used(in_docker: str) -> None:
    (check,) = doctor._binaries()
    assert check.state == "ok"
    assert check.found.endswith(f"(Docker, {container.image()}); the throw-away servers use Docker's")
    assert "LABKIT_SERVER=docker: the throw-away servers run in Docker" in doctor._docker().found


@pytest.mark.docker
def test_a_binary_that_is_named_runs_here(in_docker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("LABKIT_SERVER")
        path = find_binary().path
    assert container.wanted()
    with Server(binary=path) as server:
        assert server.binary == path and isinstance(server._process, watchdog.Child)


@pytest.mark.docker
def test_an_image_that_is_not_to_be_had(engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_SERVER", "docker")
    monkeypatch.setenv("REDIS_IMAGE", "localhost:1/none:none")
    with pytest.raises(
        ServerFailed, match=r"localhost:1/none:none .* cannot be pulled .*Remedy: `docker pull"
    ):
        Server()


ORPHANS = """
import multiprocessing, os, sys, time
import labkit
from labkit.rig import container, watchdog
from labkit.rig.server import Server, ServerFailed
labkit.connect()
servers = [Server(appendonly=True).start() for _ in range(2)]
servers[1].freeze()
fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
fork.start()
child = os.fork()
if child == 0:
    try:
        servers[0].kill()
    except ServerFailed as error:
        os._exit("belongs to process" not in str(error))
assert os.waitpid(child, 0)[1] == 0 and servers[0].client().ping()
print(watchdog.get().folder, fork.pid, container.get().id, flush=True)
{end}
"""


@pytest.mark.docker
@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("fork.kill(); raise RuntimeError('on purpose')", "exception"),
    ],
)
def test_the_container_goes_with_its_process(image: str, end: str, how: str) -> None:
    """Also with a frozen server in it, and with a forked child that lives on."""
    env = {**os.environ, "REDIS_URL": "embedded", "LABKIT_SERVER": "docker", "REDIS_IMAGE": image}
    program = [sys.executable, "-c", ORPHANS.format(end=end)]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        output, errors = process.communicate(timeout=60) if how != "SIGKILL" else ("", "")
        lines = output.splitlines() or [process.stdout.readline() for _ in range(2)] if process.stdout else []
        assert len(lines) == 2, errors
        folder, fork, id = lines[1].split()
        process.wait(20)
    try:
        assert "embedded" in lines[0]
        until(lambda: not succeeds("docker", "inspect", id))
        until(lambda: not Path(folder).exists())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(fork), signal.SIGKILL)


@pytest.mark.docker
def test_a_chapter_runs_with_its_servers_in_docker(image: str) -> None:
    chapter = str(ROOT / "notebooks" / "06_pubsub.ipynb")
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "-k", "Cell", chapter]
    own, begin = f"labkit-test:{secrets.token_hex(4)}", f"{time.time():.0f}"  # others may run containers, too
    said("docker", "tag", image, own)
    try:
        env = {**os.environ, "REDIS_URL": "embedded", "LABKIT_SERVER": "docker", "REDIS_IMAGE": own}
        said(*command, seconds=300, cwd=ROOT, env=env)
        span = ["--since", begin, "--until", f"{time.time():.0f}", "--filter", "event=create"]
        events = [*span, "--filter", f"image={own}", "--format", "{{.Actor.Attributes.labkit}}"]
        assert "machine" in said("docker", "events", *events).split(), "no container was made"
    finally:
        said("docker", "rmi", own)
