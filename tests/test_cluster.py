"""labkit.rig.server.Cluster: a real cluster, its faults, its moving slots; and the client that copes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError, ResponseError, TimeoutError, WatchError
from servers import BINARIES, until
from test_server import alive

import labkit
from labkit.rig import topology
from labkit.rig.server import Cluster, Node, ServerFailed, find_binary
from labkit.rig.wire import tap

TAGS = [f"{{{tag}}}" for tag in range(40)]
"""Hash tags: forty slots all over the cluster."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Every test leaves it whole, though perhaps with other primaries."""
    with Cluster(node_timeout=1) as cluster:
        yield cluster


@pytest.fixture
def rc(cluster: Cluster) -> Iterator[Any]:
    with contextlib.closing(cluster.client()) as rc:
        rc.flushall(target_nodes="primaries")
        yield rc


def shards(cluster: Cluster) -> list[Node]:
    """The primaries that have slots."""
    return [cluster[name] for name in sorted(set(cluster.owners().values()))]


def slots_of(cluster: Cluster, node: Node) -> list[int]:
    return [slot for slot, name in cluster.owners().items() if name == node.name]


def acknowledged(rc: Any, number: int) -> dict[str, str]:
    """Write that many keys; what a replica has as well, and WAIT says so."""
    written = {f"{tag}:{part}": f"{tag}{part}" for part in range(number // len(TAGS)) for tag in TAGS}
    for key, value in written.items():
        rc.set(key, value)
    for tag in TAGS:  # on this tag's connection to its primary, all of the above is behind
        node = rc.get_node_from_key(tag)
        assert rc.get_redis_connection(node).wait(1, 5000) == 1
    return written


def read(rc: Any, keys: Any) -> dict[str, str | None]:
    """A client's first command to a node that is gone may fail: then it asks who is there."""
    found: dict[str, str | None] = {}
    for key in keys:
        try:
            found[key] = rc.get(key)
        except ConnectionError:
            found[key] = rc.get(key)
    return found


# Ready


def test_it_is_ready_in_under_six_seconds_with_its_replicas_in_sync() -> None:
    """The best of two, since the machine may be busy."""
    best = 60.0
    for _ in range(2):
        start = time.perf_counter()
        with Cluster() as cluster:
            best = min(best, time.perf_counter() - start)
            rc = cluster.client()
            rc.set("k", "v")  # it serves at once
            owner = cluster.owner("k")
            with owner.client() as r:
                assert r.wait(1, 5000) == 1, "a replica has it"
            (replica,) = cluster.replicas_of(owner)
            with replica.client() as r:
                r.readonly()
                assert r.get("k") == "v"
                assert r.info("replication")["master_link_status"] == "up"
        if best < 6:
            break
    print(f"ready after {best:.2f} s")
    assert best < 6


def test_its_nodes_have_names_and_share_the_slots(cluster: Cluster) -> None:
    with Cluster(primaries=2, replicas=2) as other:
        assert [node.name for node in other.nodes] == ["A", "B", "A2", "B2", "A3", "B3"]
        assert [node.name for node in other.primaries] == ["A", "B"]
        assert [node.name for node in other.replicas_of("A")] == ["A2", "A3"]
        assert [node.name for node in other.replicas_of(other["B"])] == ["B2", "B3"]
        assert Counter(other.owners().values()) == {"A": 8192, "B": 8192}
        assert repr(other) == "Cluster(6 of 6 nodes running)" and repr(other["A3"]) == "Node(A3, running)"
        assert other.owner("foo") == other.owner(b"foo") == other.owner(12182) == other["B"]
        assert other.owner(0) == other["A"] and other.owner("{foo}:bar") == other["B"]
        ids = {name: member.id for name, member in other.members().items()}
        assert ids == {node.name: node.id for node in other.nodes} and len({*ids.values()}) == 6
        assert not {*ids.values()} & {node.id for node in cluster.nodes}, "a cluster of its own"
    assert repr(other) == "Cluster(0 of 6 nodes running)"
    assert not other.members() and not other.owners() and not other.primaries


def test_connect_takes_its_address(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    rc = labkit.connect(cluster.url)
    assert isinstance(rc, redis.RedisCluster)
    assert "redis+cluster://:" in cluster.url and "your own server" in capsys.readouterr().out
    rc.set("workbook:there", 1)
    assert labkit.reset(rc, "workbook:there") == 1


def test_clusters_are_strangers_to_each_other_and_have_settings_of_their_own() -> None:
    durable = {"maxmemory": "10mb", "appendonly": True, "appendfsync": "always"}
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        clusters = [Cluster(replicas=0, **options) for options in (durable, {}, {})]  # type: ignore[arg-type]
        for started in pool.map(Cluster.start, clusters):
            stack.callback(started.stop)
        for number, cluster in enumerate(clusters):
            cluster.client().set("who", number)
        assert [cluster.client().get("who") for cluster in clusters] == ["0", "1", "2"]
        assert all(len(cluster.members()) == 3 for cluster in clusters)
        ports = [port for cluster in clusters for node in cluster.nodes for port in (node.port, node.bus)]
        assert len({*ports}) == 18
        with pytest.raises(ValueError, match=r"Node\(A, running\) is no node of this cluster"):
            clusters[0].kill(clusters[1]["A"])
        with clusters[0] as cluster:
            assert {node.config["maxmemory"] for node in cluster.nodes} == {str(10 * 1024 * 1024)}
            for node in cluster.nodes:
                cluster.kill(node)
            for forbidden in (cluster.client, cluster.add_primary):
                with pytest.raises(ServerFailed, match="No node of this cluster is running"):
                    forbidden()
            cluster.start()
            assert [node.name for node in cluster.primaries] == ["A", "B", "C"]
            assert cluster.client().get("who") == "0", "it was on disk"


# Faults


def test_after_a_failover_everything_that_was_replicated_is_there(cluster: Cluster, rc: Any) -> None:
    written = acknowledged(rc, 400)
    victim = cluster.owner(TAGS[0])
    (replica,) = cluster.replicas_of(victim)
    slots = slots_of(cluster, victim)
    cluster.kill(victim.name)
    assert not victim.running and repr(cluster) == "Cluster(5 of 6 nodes running)"
    heir = cluster.await_failover(victim)
    assert heir is replica and heir in cluster.primaries and victim not in cluster.primaries
    assert slots_of(cluster, heir) == slots and cluster.owner(TAGS[0]) is heir
    assert read(rc, written) == written
    assert cluster.await_failover(victim) is heir, "and again"
    with pytest.raises(ServerFailed, match=rf"not whole: {victim.name} is not running\. Remedy: revive"):
        cluster.await_whole()
    cluster.revive(victim)
    assert cluster.replicas_of(heir) == [victim] and cluster.owner(TAGS[0]) is heir
    with victim.client() as r:
        r.readonly()
        assert r.get(f"{TAGS[0]}:0") == f"{TAGS[0]}0", "it has taken over the data"
    assert read(cluster.client(), written) == written
    cluster.await_whole()


def test_a_frozen_primary_has_an_heir_and_comes_back_as_its_replica(cluster: Cluster, rc: Any) -> None:
    written = acknowledged(rc, 40)
    victim = cluster.owner(TAGS[1])
    victim.freeze()
    assert repr(victim) == f"Node({victim.name}, frozen)" and victim.running and not victim.awake
    heir = cluster.await_failover(victim)
    assert heir is not victim and cluster.owner(TAGS[1]) is heir
    with pytest.raises(ServerFailed, match=f"{victim.name} is frozen"):
        cluster.await_whole()
    assert read(cluster.client(), written) == written
    cluster.revive(victim)
    assert cluster.replicas_of(heir) == [victim]


def test_a_primary_that_is_back_before_its_heir_is_empty_and_so_are_its_replicas(cluster: Cluster) -> None:
    rc = cluster.client()
    acknowledged(rc, 40)
    victim = cluster.owner(TAGS[2])
    (replica,) = cluster.replicas_of(victim)
    cluster.kill(victim)
    cluster.revive(victim)
    assert victim in cluster.primaries
    with victim.client() as primary, replica.client() as other:
        assert primary.dbsize() == other.dbsize() == 0


def test_a_whole_shard_and_a_majority_come_back(cluster: Cluster) -> None:
    first, second, _ = shards(cluster)
    gone = [first, *cluster.replicas_of(first)]
    for node in gone:
        cluster.kill(node)
    with pytest.raises(ServerFailed, match=rf"knows no running heir of the slots that {first.name} had"):
        cluster.await_failover(first, timeout=0.1)
    slot = slots_of(cluster, second)[0]
    assert cluster.owner(slot) is second
    lost = next(slot for slot in range(topology.SLOTS) if slot not in cluster.owners())
    with pytest.raises(ServerFailed, match=rf"No running node serves slot {lost}\. Remedy"):
        cluster.owner(lost)
    with pytest.raises(ValueError, match=f"slot {lost} has no primary"):
        cluster.move_slots([lost], to=second)
    cluster.kill(second)
    cluster.revive(second, *gone)
    cluster.await_whole()


def test_a_node_whose_port_was_taken_meanwhile_comes_back_on_another(cluster: Cluster, rc: Any) -> None:
    node = cluster.replicas[0]
    port = node.port
    cluster.kill(node)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        cluster.revive(node)
        assert node.port != port
    assert node in cluster.replicas
    with cluster.nodes[0].client() as r:
        assert topology.members(r)[node.id].port == node.port, "the others know"


# Slots that move


class Load:
    """Threads that do one thing again and again, and count what goes wrong."""

    def __init__(self, act: Callable[[str, int], object], threads: int = 2) -> None:
        self.errors: Counter[str] = Counter()
        self.done = 0
        self._act, self._over = act, threading.Event()
        names = [f"{act.__name__}:{number}" for number in range(threads)]
        self._threads = [threading.Thread(target=self._run, args=(name,)) for name in names]

    def _run(self, name: str) -> None:
        number = 0
        while not self._over.is_set():
            number += 7
            try:
                self._act(name, number)
            except Exception as error:
                self.errors[f"{type(error).__name__}: {error}"] += 1
            self.done += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_slots_move_to_a_new_primary_and_no_request_fails() -> None:
    """Commands, pipelines over all nodes, transactions, commands of several keys; clients know of nothing."""
    with Cluster(replicas=0, node_timeout=10) as cluster:
        rc = cluster.client()
        counted = Counter[str]()

        def command(name: str, number: int) -> None:
            key = f"{TAGS[number % 40]}:{name}"
            assert rc.incr(key) == counted[key] + 1
            counted[key] += 1

        def pipeline(name: str, number: int) -> None:
            keys = [f"{TAGS[(number + more) % 40]}:{name}" for more in range(20)]
            with rc.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.incr(key)
                assert pipe.execute() == [counted[key] + 1 for key in keys]
            counted.update(keys)

        def transaction(name: str, number: int) -> None:
            keys = [f"{TAGS[number % 40]}:{name}:{part}" for part in range(3)]
            with rc.pipeline(transaction=True) as pipe:
                for key in keys:
                    pipe.incr(key)
                assert pipe.execute() == [counted[key] + 1 for key in keys]
            counted.update(keys)

        def several(name: str, number: int) -> None:
            keys = [f"{TAGS[number % 40]}:{name}:{part}" for part in range(3)]
            rc.mset(dict.fromkeys(keys, number))
            assert rc.mget(*keys) == [str(number)] * 3

        loads = [Load(command), Load(pipeline), Load(transaction, 1), Load(several, 1)]
        with contextlib.ExitStack() as stack:
            for load in loads:
                stack.enter_context(load)
            until(lambda: all(load.done > 100 for load in loads))
            new = cluster.add_primary()
            before = [load.done for load in loads]
            slots = {*range(0, 1000, 3), *(key_slot(tag[1:-1].encode()) for tag in TAGS[:20])}
            moved = cluster.move_slots(slots, to=new)
            until(lambda: all(load.done > done for load, done in zip(loads, before, strict=True)))
        assert [load.errors for load in loads] == [Counter()] * 4
        assert moved > 100 and {*slots_of(cluster, new)} == slots
        assert {cluster.owner(tag).name for tag in TAGS[:20]} == {"D"}
        assert {key: int(str(rc.get(key))) for key in counted} == counted, "nothing lost, nothing done twice"


def test_a_watched_key_whose_slot_moves_is_a_conflict_and_no_lost_update(cluster: Cluster, rc: Any) -> None:
    rc.set("k", 1)
    source = cluster.owner("k")
    target = next(node for node in shards(cluster) if node is not source)
    with rc.pipeline(transaction=True) as pipe:
        pipe.watch("k")
        assert pipe.get("k") == "1"
        cluster.move_slots([key_slot(b"k")], to=target)
        pipe.multi()
        pipe.set("k", 2)
        with pytest.raises(WatchError):
            pipe.execute()
    assert rc.get("k") == "1" and cluster.owner("k") is target

    def again(pipe: Any) -> None:
        pipe.multi()
        pipe.incr("k")

    assert rc.transaction(again, "k") == [2]


def test_an_interrupted_move_serves_on_and_is_completed(
    cluster: Cluster, rc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(250):
        rc.set(f"{{tag}}:{number}", number)
    slot = key_slot(b"tag")
    source = cluster.owner(slot)
    target = next(node for node in shards(cluster) if node is not source)

    def interrupted(source: redis.Redis, slot: int, to: tuple[str, int], password: str) -> int:
        keys = source.execute_command("CLUSTER GETKEYSINSLOT", slot, topology.BATCH)
        source.execute_command("MIGRATE", *to, "", 0, 5000, "AUTH", password, "KEYS", *keys)
        source.execute_command("MIGRATE", *to, "", 0, 5000, "COPY", "AUTH", password, "KEYS", "{tag}:0")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(topology, "migrate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cluster.move_slots([slot], to=target)
    assert cluster.owner(slot) is source
    with source.client() as r, target.client() as other:
        assert r.dbsize() >= 150 and other.dbsize() >= 100, "its keys are at two nodes"
    assert [rc.incr(f"{{tag}}:{number}") for number in range(250)] == list(range(1, 251))
    assert cluster.move_slots([slot], to=target) == 150
    assert cluster.owner(slot) is target
    assert [int(rc.get(f"{{tag}}:{number}")) for number in range(250)] == list(range(1, 251))
    assert cluster.move_slots([slot], to=target) == 0, "it is there"


def test_a_move_that_a_node_does_not_hear_of_in_time_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = shards(cluster)[0]
    with monkeypatch.context() as patched:
        patched.setattr(topology, "await_until", lambda unmet, seconds: "B2 does not know yet")
        with pytest.raises(
            ServerFailed, match=r"are moved, but not every node knows: B2 does not know yet\."
        ):
            cluster.move_slots(slots_of(cluster, owner)[:1], to=owner)


def test_a_primary_that_gives_its_last_slot_becomes_a_replica(cluster: Cluster, rc: Any) -> None:
    written = acknowledged(rc, 80)
    first, second, third = shards(cluster)
    cluster.move_slots(slots_of(cluster, first) + slots_of(cluster, second)[:100], to=third)
    assert cluster.primaries == [second, third] and len(cluster.owners()) == topology.SLOTS
    assert read(rc, written) == written
    with pytest.raises(
        ValueError, match=f"{first.name} is no primary; these are: {second.name}, {third.name}"
    ):
        cluster.move_slots([0], to=first)
    until(lambda: len(cluster.replicas_of(third)) == 3)
    cluster.stop()
    cluster.start()
    assert [node.name for node in cluster.primaries] == ["A", "B", "C"], "formed anew"
    assert len(cluster.nodes) == 6 and cluster.client().dbsize() == 0


# The client


@contextlib.contextmanager
def frozen(node: Node) -> Iterator[None]:
    node.freeze()
    try:
        yield
    finally:
        node.thaw()


def test_a_pipeline_sends_nothing_twice(cluster: Cluster, rc: Any) -> None:
    """redis-py's own sends each command again after an error, those that were answered too."""
    node, patient = cluster.owner("a"), cluster.client(socket_timeout=0.1)
    other = next(tag for tag in TAGS if cluster.owner(tag) is not node)
    patient.mset({"{a}n": 0})
    with frozen(node), patient.pipeline(transaction=False) as pipe:
        told = pipe.incr("{a}n").incr(f"{other}n").execute(raise_on_error=False)
    assert isinstance(told[0], TimeoutError) and told[1] == 1
    assert rc.incr("{a}n") == 2 and rc.incr(f"{other}n") == 2
    cluster.await_whole()


def test_a_transaction_sends_nothing_twice(cluster: Cluster, rc: Any) -> None:
    node, patient = cluster.owner("a"), cluster.client(socket_timeout=0.1)
    patient.mset({"{a}n": 0})
    with frozen(node), patient.pipeline(transaction=True) as pipe, pytest.raises(TimeoutError):
        pipe.incr("{a}n").incr("{a}m").execute()
    assert rc.incr("{a}n") == rc.incr("{a}m") == 2
    cluster.await_whole()


def test_a_command_sends_nothing_twice_and_the_next_one_asks_who_is_there(cluster: Cluster, rc: Any) -> None:
    node, patient = cluster.owner("a"), cluster.client(socket_timeout=0.1)
    patient.mset({"{a}n": 0})
    with frozen(node), pytest.raises(TimeoutError):
        patient.incr("{a}n")
    assert patient.incr("{a}n") == 2
    cluster.await_whole()


def test_nobody_is_asked_where_the_keys_of_a_command_are(rc: Any) -> None:
    rc.xgroup_create("{s}", "g", "0", mkstream=True)
    script = "return redis.call('INCR', KEYS[1])"
    with tap(rc) as said:
        assert rc.eval(script, 1, "{s}n") == 1
        assert rc.xreadgroup("g", "streams", {"{s}": ">"}, count=1) == {}
        assert rc.xread({"{s}": "0", "{s}2": "0"}) == {}
        with rc.pipeline(transaction=False) as pipe:
            for tag in TAGS:
                pipe.execute_command("EVAL", script, 1, tag)
            assert pipe.execute() == [1] * 40
        assert rc.zunionstore("{s}z", ["{s}x", "{s}y"]) == 0 and rc.zunion(["{s}x", "{s}y"]) == []
        assert rc.sintercard(2, ["{s}x", "{s}y"]) == 0
    assert len(said.commands) == 46 and said.round_trips == 9, "the pipeline takes one for each node"
    assert not {exchange.command[0] for exchange in said.commands} & {"COMMAND", "COMMAND GETKEYS"}
    with pytest.raises(redis.exceptions.RedisClusterException, match="same key slot"):
        rc.xread({"a": "0", "b": "0"})


def test_what_is_asked_about_all_is_answered_for_all(rc: Any) -> None:
    for tag in TAGS:
        rc.set(tag, 1)
    assert rc.dbsize() == 40 and sorted(rc.keys()) == sorted(TAGS)
    with contextlib.ExitStack() as stack:
        for tag in TAGS[:10]:
            listener = stack.enter_context(rc.pubsub())
            listener.subscribe(tag)
            until(lambda listener=listener: listener.get_message())  # type: ignore[misc]
        assert sorted(rc.pubsub_channels()) == sorted(TAGS[:10])
        assert dict(rc.pubsub_numsub(*TAGS[:11])) == {**dict.fromkeys(TAGS[:10], 1), TAGS[10]: 0}


def test_pipelines_report_the_first_error_and_keep_the_order(rc: Any) -> None:
    with rc.pipeline(transaction=False) as pipe:
        for tag in TAGS:
            pipe.set(tag, tag)
        for tag in reversed(TAGS):
            pipe.get(tag)
        assert pipe.execute()[40:] == TAGS[::-1]
    with rc.pipeline(transaction=False) as pipe:
        pipe.set("a", "x").incr("a").get("a")
        told = pipe.execute(raise_on_error=False)
    assert told[0] is True and isinstance(told[1], ResponseError) and told[2] == "x"
    with rc.pipeline(transaction=True) as pipe, pytest.raises(redis.exceptions.CrossSlotTransactionError):
        pipe.set("a", 1).set("b", 1).execute()


# Misuse


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"primaries": 0}, "primaries is 0, replicas 1; they must be 1 to 26, and 0 to 8"),
        ({"primaries": 27}, "primaries is 27"),
        ({"replicas": -1}, "replicas -1"),
        ({"replicas": 9}, "replicas 9"),
        ({"node_timeout": 0}, "node_timeout is 0; it must be 0.1 to 3600 seconds"),
        ({"node_timeout": float("nan")}, "node_timeout is nan"),
        ({"port": 1}, "port: set by labkit itself"),
        ({"masterauth": "x"}, "masterauth: set by labkit itself, the same for each node"),
        (
            {"cluster_node_timeout": 5, "cluster-enabled": True},
            "cluster-enabled, cluster-node-timeout: set by",
        ),
    ],
)
def test_numbers_that_make_no_cluster_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Cluster(**options)


def test_misuse_is_told_with_the_remedy(cluster: Cluster) -> None:
    (replica,) = cluster.replicas_of(shards(cluster)[0])
    with pytest.raises(KeyError, match=r"no node 'Q'; there are A, B, C, A2, B2, C2"):
        cluster.kill("Q")
    with pytest.raises(ValueError, match="slot 16384 has no primary; slots are 0 to 16383"):
        cluster.move_slots([5, 16384], to=shards(cluster)[0])
    with pytest.raises(ValueError, match=f"{replica.name} is no primary; these are: "):
        cluster.move_slots([5], to=replica)
    for slot in (-1, 16384):
        with pytest.raises(ValueError, match=f"slot is {slot}; slots are 0 to 16383"):
            cluster.owner(slot)
    with pytest.raises(ValueError, match=f"{replica.name} had no slots when the cluster was last whole"):
        cluster.await_failover(replica)
    with pytest.raises(ServerFailed, match=r"No failover: .* knows no running heir .*Remedy: revive\(\)"):
        cluster.await_failover(shards(cluster)[0], timeout=0)
    assert cluster.start() is cluster and len(cluster.nodes) == 6
    unstarted = Cluster()
    with pytest.raises(ServerFailed, match=r"No node of this cluster is running\. Remedy: start\(\)"):
        unstarted.client()
    with pytest.raises(ServerFailed, match=r"This server is not running\. Remedy"):
        unstarted.kill("A")
    with pytest.raises(ServerFailed, match="not whole: A is not running, B is not running"):
        unstarted.await_whole()
    unstarted.stop()


def test_a_cluster_that_does_not_start_says_why() -> None:
    with pytest.raises(ServerFailed, match="ended at once") as caught:
        Cluster(maxmemory="nonsense").start()
    assert "maxmemory" in caught.value.log
    with pytest.raises(ServerFailed, match="not whole: ") as caught:
        Cluster(repl_diskless_sync_delay=60).start(timeout=0.5)
    assert caught.value.remedy


# Nothing is left


@pytest.mark.parametrize("where", ["found", "await_until", "_await_ready"])
def test_an_interrupt_while_starting_leaves_no_server(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(primaries=1, replicas=1)
    pids: list[int] = []

    def interrupted(*_: Any, **__: Any) -> None:
        pids.extend(node.pid for node in cluster.nodes)
        raise KeyboardInterrupt

    monkeypatch.setattr(Node if where == "_await_ready" else topology, where, interrupted)
    with pytest.raises(KeyboardInterrupt), cluster:
        pass
    assert len(pids) == 2
    until(lambda: not any(map(alive, pids)))
    assert not any(node.running for node in cluster.nodes)


def test_an_interrupt_while_adding_leaves_no_server(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def interrupted(node: Node, timeout: float) -> None:
        pids.append(node.pid)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Node, "_await_ready", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cluster.add_primary()
    until(lambda: not any(map(alive, pids)))
    assert len(pids) == 1 and [node.name for node in cluster.nodes] == ["A", "B", "C", "A2", "B2", "C2"]
    cluster.await_whole()


CHILD = """
import os, sys
from labkit.rig import watchdog
from labkit.rig.server import Cluster
cluster = Cluster(primaries=1, replicas=1).start()
cluster["A2"].freeze()
print(watchdog.get().folder, *[node.pid for node in cluster.nodes], flush=True)
{end}
"""
ENDS = {
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "exit without clean-up": "os._exit(3)",
    "orderly exit": "sys.exit(0)",
    "exception": "raise RuntimeError('on purpose')",
}


FORK = """
import os, sys
from labkit.rig.server import Cluster, Server, ServerFailed
with Cluster(primaries=1, replicas=1) as cluster:
    cluster.client().set("kept", "yes")
    child = os.fork()
    if child == 0:
        for forbidden in (
            lambda: cluster.kill("A"),
            lambda: cluster.revive("A"),
            lambda: cluster["A"].freeze(),
            cluster.start,
            cluster.add_primary,
        ):
            try:
                forbidden()
            except ServerFailed as error:
                assert f"belongs to process {os.getppid()}" in str(error), error
            else:
                os._exit(1)
        assert cluster.client().get("kept") == "yes"
        assert [node.name for node in cluster.primaries] == ["A"]
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    cluster.await_whole()
    print(cluster.client().get("kept"))
"""


@pytest.fixture(scope="module")
def children() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes that each start a cluster, side by side."""
    programs = {how: CHILD.format(end=end) for how, end in ENDS.items()} | {"fork": FORK}
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        yield {
            how: stack.enter_context(subprocess.Popen([sys.executable, "-c", program], **options))
            for how, program in programs.items()
        }


@pytest.mark.parametrize("how", ENDS)
def test_no_node_outlives_its_process(children: dict[str, subprocess.Popen[str]], how: str) -> None:
    printed, _ = children[how].communicate(timeout=60)
    folder, *pids = printed.split()
    assert len(pids) == 2
    until(lambda: not any(alive(int(pid)) for pid in pids))
    until(lambda: not Path(folder).exists())


def test_a_forked_child_uses_it_and_takes_nothing_from_its_parent(
    children: dict[str, subprocess.Popen[str]],
) -> None:
    printed, errors = children["fork"].communicate(timeout=60)
    assert printed == "yes\n", errors


# On the other servers


OTHERS = [name for name, binary in BINARIES.items() if binary != find_binary().path]


@pytest.mark.parametrize("name", OTHERS)
def test_on_each_other_server(name: str) -> None:
    if BINARIES[name] is None:
        pytest.skip("LABKIT_NEWER_REDIS does not name a redis-server")
    with Cluster(binary=BINARIES[name], node_timeout=0.5) as cluster:
        rc = cluster.client()
        written = acknowledged(rc, 80)
        cluster.kill("B")
        heir = cluster.await_failover("B")
        assert heir.name == "B2"
        assert cluster.move_slots(range(4000), to=heir) > 0
        cluster.revive("B")
        assert [node.name for node in cluster.primaries] == ["A", "B2", "C"]
        assert cluster.replicas_of(heir) == [cluster["B"]]
        assert read(rc, written) == written
