"""Throw-away servers in Docker, where there is no binary: LABKIT_SERVER=docker, as on Windows.

    LABKIT_SERVER=docker uv run jupyter lab

One container a process and image, the *machine*: it runs every `Server` of this process, each a process of
its own in there. Its first process is a small shell that takes its orders from its input, which this process
holds open. When the operating system closes that, however this process ends, the shell ends, and with it
the container and all that runs in it; Docker then removes it. No other container watches over it.

The folder of labkit.rig.watchdog is mounted in it, so data, logs and certificates are seen from both sides.
Addresses are the same inside and outside. Where the engine shares this machine's network (Linux), the
machine does too, and all is as with a server without Docker. Elsewhere (Docker Desktop) it has a network of
its own and a range of ports that Docker publishes on 127.0.0.1. Everything works there too, but for this:
Docker goes on accepting connections for a killed server, and closes them at once, where otherwise they are
refused; a closed connection is seen a little later; a review finds a server that listens to the world, since
it must; and a server cannot connect to this process, so none replicates through a `Proxy`, as some do in
chapters 08 and 11. LABKIT_DOCKER_NETWORK=host makes it share this machine's network all the same; in Docker
Desktop 4.34 or later, after "Enable host networking" among its settings (Resources, Network).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from labkit import LabkitError
from labkit.rig import dotenv, watchdog

IMAGE = "redis:8.10-alpine"
"""That of docker-compose.yml; REDIS_IMAGE, of the environment or of .env, names another, as it does there."""

MARK = "docker:"
"""`Server(binary="docker:redis:8.10-alpine")`: in a container of that image, rather than an executable."""

PUBLISHED = 48
"""How many ports a machine with a network of its own has: a cluster of six takes 12."""

# Each order is a line, each answer too: `run ID COMMAND` is answered by `ID started PID`, and in the end by
# `ID ended STATUS`; `signal ID NAME PID` by `ID told`, after STOP when the process really stands still.
_SHELL = """
while read -r order id rest; do
  case $order in
    run) (
        eval "exec $rest" </dev/null & pid=$!
        echo "$id started $pid"
        wait "$pid"
        echo "$id ended $?"
      ) & ;;
    signal)
      name=${rest% *} pid=${rest#* } state=
      kill -"$name" "$pid"
      [ "$name" != STOP ] || while [ "$state" != T ] && read -r x x state x <"/proc/$pid/stat"; do :; done
      echo "$id told" ;;
  esac
done 2>/dev/null
"""


PATIENCE = 30.0
"""For how long (s) a container may be silent."""


class NoMachine(LabkitError):
    """No container can be had: `what` is missing, and the `remedy`."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what} Remedy: {remedy}")


def wanted() -> bool:
    """Whether LABKIT_SERVER asks for Docker. Raises NoMachine for a word that it may not be."""
    word = os.environ.get("LABKIT_SERVER", "")
    if word not in ("", "docker"):
        raise NoMachine(f"LABKIT_SERVER is {word!r}.", "set it to `docker`, or unset it for no Docker.")
    return word == "docker"


def image() -> str:
    """The image to run: REDIS_IMAGE of the environment, else of .env, else that of docker-compose.yml."""
    return dotenv.setting("REDIS_IMAGE", IMAGE)


class Contained:
    """A process in a machine: what a Server needs of `watchdog.Child`. Its `pid` is the one in there."""

    def __init__(self, machine: Machine, id: str) -> None:
        self.pid = 0
        self._machine, self._id = machine, id
        self._status: int | None = None
        self._abandoned = False
        self._started, self._told, self._ended = (threading.Event() for _ in range(3))

    def poll(self) -> int | None:
        """Its exit status, 128 more than the signal that killed it; None while it runs."""
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid} in Docker", timeout or 0)
        assert self._status is not None
        return self._status

    def signal(self, name: watchdog.Signal) -> None:
        """Send it, and return when it is sent; after STOP, when it stands still. No effect after its end.

        Raises NoMachine where nothing comes of it for 30 s, as in a container that is paused.
        """
        if self._status is not None:
            return
        self._told.clear()
        self._machine.send(f"signal {self._id} {name} {self.pid}")
        deadline = time.monotonic() + PATIENCE
        while self._status is None and not self._told.wait(0.05):
            if time.monotonic() > deadline:
                raise NoMachine("The container does not answer.", "look at `docker ps`: is it paused?")

    def hear(self, what: str, number: str) -> None:
        """What the shell tells of it."""
        if what == "started":
            self.pid = int(number)
            self._started.set()
            if self._abandoned:
                self.abandon()
        elif what == "ended":
            self._status = int(number) if self._status is None else self._status
            self._started.set()
            self._ended.set()
        else:
            self._told.set()

    def await_start(self, seconds: float = 30) -> None:
        """Until it has a pid. Raises NoMachine."""
        if not self._started.wait(seconds) or not self.pid:
            raise NoMachine("The container does not answer.", "look at `docker ps`; restart the kernel.")

    def abandon(self) -> None:
        """Nobody wants it: it is killed, or will be as soon as it has a pid."""
        self._abandoned = True
        if self.pid:
            with contextlib.suppress(NoMachine):  # then it is gone already
                self._machine.send(f"signal {self._id} KILL {self.pid}")


class Machine:
    """A container that runs processes, and ends with this one. Raises NoMachine where there can be none.

    The image is pulled if it is not here. What it writes belongs to the user of this process.
    """

    def __init__(self, image: str) -> None:
        self.image, self.folder = image, watchdog.get().folder
        self.mount = _mount_point(self.folder)
        engine = _engine()
        self._running: dict[str, Contained] = {}
        self._lock, self._count, self._gone = threading.Lock(), 0, False
        _fetch(engine.client, image)
        self.id, self._line, self.ports = self._begin(engine, published=not _shares_network(engine.client))
        self._thread = threading.Thread(target=self._listen, name="labkit-docker", daemon=True)
        self._thread.start()
        self.version = self.output(["redis-server", "--version"])

    def __repr__(self) -> str:
        return f"Machine({self.image}, {'gone' if self._gone else 'running'})"

    @property
    def running(self) -> bool:
        """Whether the container is there."""
        return not self._gone

    @property
    def listen(self) -> dict[str, str]:
        """What a server in it has to be told, to be reached at 127.0.0.1 from outside."""
        return {"bind": "0.0.0.0", "protected-mode": "no"} if self.ports else {"bind": "127.0.0.1"}

    def _begin(self, engine: Any, published: bool) -> tuple[str, Any, list[int]]:
        """Its id, the connection to the shell, and the ports; anew where somebody was faster to take one."""
        from docker.errors import APIError

        options = self._options(engine.client)
        for last in (False, False, True):
            ports = _free_range(PUBLISHED) if published else []
            at = {str(port): ("127.0.0.1", port) for port in ports}
            network = "bridge" if published else "host"
            try:
                container = engine.create(self.image, ports=at, network=network, **options)
                try:
                    line = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
                    engine.start(container)
                    return container.id, line, ports
                except BaseException:
                    with contextlib.suppress(APIError):
                        container.remove(force=True)
                    raise
            except APIError as error:
                if last or "already" not in str(error):
                    raise _refused(self.image, error) from None
        raise AssertionError("the last of the three returns or raises")

    def _options(self, client: Any) -> dict[str, Any]:
        return {
            "user": _user(client),
            "entrypoint": ["sh", "-c", _SHELL, "labkit"],
            "environment": {"LC_ALL": "C"},
            "labels": {"labkit": "machine"},
            "volumes": {self.folder: {"bind": self.mount, "mode": "rw"}},
            "working_dir": self.mount,
            "stdin_open": True,
            "auto_remove": True,
            "cap_drop": ["ALL"],
            "security_opt": ["label=disable", "no-new-privileges"],
        }

    def inside(self, text: str) -> str:
        """A path, or a text with paths, as it is called in the container."""
        if self.mount == self.folder or self.folder not in text:
            return text
        return text.replace(self.folder, self.mount).replace("\\", "/")

    def launch(self, command: list[str], log: Path) -> Contained:
        """Start a process; what it prints goes to `log`, a file in the machine's folder."""
        with self._lock:
            self._count += 1
            process = Contained(self, str(self._count))
            self._running[process._id] = process
        words = " ".join(shlex.quote(self.inside(word)) for word in command)
        try:
            self.send(f"run {process._id} {words} >>{shlex.quote(self.inside(str(log)))} 2>&1")
            process.await_start()
        except BaseException:  # an interrupted kernel too
            process.abandon()
            raise
        return process

    def output(self, command: list[str], seconds: float = 30) -> str:
        """What a command prints, on either channel, until it ends. Raises subprocess.TimeoutExpired."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            process = self.launch(command, log := Path(folder) / "log")
            try:
                process.wait(seconds)
            except BaseException:
                process.signal("KILL")
                raise
            return log.read_text(errors="replace")

    def send(self, order: str) -> None:
        """One order to the shell. Raises NoMachine where it is gone."""
        gone = NoMachine(
            "The container with the servers is gone.", "make new ones; `docker info` tells of the engine."
        )
        if self._gone:
            raise gone
        try:
            with self._lock:
                _socket_of(self._line).sendall(f"{order}\n".encode())
        except Exception:  # OSError; on Windows docker-py has others
            raise gone from None

    def _listen(self) -> None:
        """What the shell says, until the container ends; then nothing in it runs any more."""
        from docker.utils.socket import frames_iter

        rest = ""
        try:
            with contextlib.suppress(Exception):  # the connection's end, or what docker-py makes of it
                for _, data in frames_iter(self._line, tty=False):
                    *lines, rest = (rest + data.decode()).split("\n")
                    for line in lines:
                        self._hear(*(line + " 0").split()[:3])
        finally:
            self._gone = True
            for id in list(self._running):
                self._hear(id, "ended", "137")

    def _hear(self, id: str, what: str, number: str) -> None:
        if process := self._running.get(id):
            process.hear(what, number)
            if what == "ended":
                del self._running[id]

    def close(self, seconds: float = 10) -> None:
        """End the container and what runs in it, and wait for that."""
        line = _socket_of(self._line)
        with contextlib.suppress(Exception):  # it may be gone already
            line.shutdown(socket.SHUT_WR) if isinstance(line, socket.socket) else line.close()
        self._thread.join(seconds)

    def disown(self) -> None:
        """In a forked child: it must not hold the shell's input open."""
        self._gone = True
        with contextlib.suppress(OSError):
            os.close(_socket_of(self._line).detach())


def _mount_point(folder: str) -> str:
    """What that folder is called in the container: the same, unless it is no name that Linux has."""
    return folder if os.name == "posix" else "/labkit"


def _socket_of(line: Any) -> Any:
    """The socket itself: docker-py hands out a file made of it, or on Windows a pipe that is like one."""
    return getattr(line, "_sock", line)


def _engine() -> Any:
    """testcontainers' client of the engine. Raises NoMachine."""
    try:
        from testcontainers.core.docker_client import DockerClient
    except ImportError:
        raise NoMachine(
            "testcontainers is not installed.", "`uv sync`, or `pip install testcontainers`."
        ) from None
    try:
        engine = DockerClient()
        engine.client.ping()
    except Exception as error:  # docker-py's own, and those of what it stands on
        what = f"No Docker engine answers ({' '.join(str(error).split())[:160]})."
        do = "start Docker Desktop, or dockerd"
        if "Permission denied" in str(error):
            do = "let your user use Docker (on Linux: join the group `docker`, and log in again)"
        raise NoMachine(what, f"{do}; or unset LABKIT_SERVER.") from None
    return engine


def answers() -> bool:
    """Whether a Docker engine answers and testcontainers is installed."""
    try:
        _engine().client.close()
    except NoMachine:
        return False
    return True


def _fetch(client: Any, image: str) -> None:
    """Pull the image if it is not here. Raises NoMachine."""
    from docker.errors import APIError, ImageNotFound

    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(image)
        except APIError as error:
            what = f"The image {image} is not here and cannot be pulled ({_why(error)})."
            remedy = f"`docker pull {image}`, or let REDIS_IMAGE name an image that is here."
            raise NoMachine(what, remedy) from None
    except APIError as error:  # as for a name that is none
        raise _refused(image, error) from None


def _refused(image: str, error: Any) -> NoMachine:
    remedy = "correct what Docker says; REDIS_IMAGE names the image, which needs `sh` and `redis-server`."
    return NoMachine(f"No container of {image} can be started ({_why(error)}).", remedy)


def _why(error: Any) -> str:
    return " ".join(str(error.explanation or error).split())[:200]


def _shares_network(client: Any) -> bool:
    """Whether the engine's loopback device is ours: as LABKIT_DOCKER_NETWORK says, else as the engine is."""
    if word := os.environ.get("LABKIT_DOCKER_NETWORK"):
        if word not in ("host", "bridge"):
            raise NoMachine(
                f"LABKIT_DOCKER_NETWORK is {word!r}.", "set it to `host` or `bridge`, or unset it."
            )
        return word == "host"
    desktop = "Desktop" in str(client.info().get("OperatingSystem"))
    return sys.platform == "linux" and not desktop and not _rootless(client)


def _rootless(client: Any) -> bool:
    """Whether the engine runs as its user: then root in a container is that user outside."""
    return "rootless" in str(client.info().get("SecurityOptions"))


def _user(client: Any) -> str | None:
    """Who runs in the container, so that what is written there is ours; None, the image's, on Windows."""
    if not hasattr(os, "getuid"):
        return None
    return "0:0" if _rootless(client) else f"{os.getuid()}:{os.getgid()}"


def _free_range(count: int) -> list[int]:
    """So many free ports in a row, below the range of outgoing connections."""
    while True:
        first = 20_000 + secrets.randbelow(12_000 - count)
        ports = list(range(first, first + count))
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in ports:
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return ports


_lock = threading.Lock()
_machines: dict[str, Machine] = {}


def get(name: str | None = None) -> Machine:
    """The machine of this process for that image (default: `image()`), started at its first use."""
    with _lock:
        name = name or image()
        machine = _machines.get(name)
        if machine is None or not machine.running:
            machine = _machines[name] = Machine(name)
        return machine


@atexit.register
def _end() -> None:
    for machine in _machines.values():
        machine.close()
    _machines.clear()


def _disown() -> None:
    """In a forked child: the machines are its parent's."""
    global _lock
    _lock = threading.Lock()
    for machine in _machines.values():
        machine.disown()
    _machines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
