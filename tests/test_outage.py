"""labkit.rig.outage: a primary killed under load, what was not served meanwhile, and what is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

import pytest

from labkit.rig.outage import Outage, Range, outage
from labkit.rig.rangewriter import FAILURES, Plan, Writer, keys
from labkit.rig.server import Cluster, ServerFailed

FOUND = Outage(
    killed="A",
    heir="A2",
    ranges=(
        Range("0–8191", True, 100, 3, 0.01, 2.51, (("no connection", 20),)),
        Range("8192–16383", False, 200, 0, 1.5, 2.5, (("CLUSTERDOWN", 7), ("MOVED", 1))),
    ),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(node_timeout=1) as made:
        yield made


def wrote_nothing(cluster: Cluster) -> bool:
    return not any(node.client().dbsize() for node in cluster.primaries)


def test_a_dead_primary_stops_everybody_for_a_while_unless_that_is_not_asked_for(cluster: Cluster) -> None:
    victim = cluster.owner(16_383).name
    found = outage(cluster, slot=16_383, before=0.1)
    cluster.revive(found.killed)
    assert found.killed == victim != found.heir == cluster.owner(16_383).name
    assert [one.name for one in found.ranges] == ["0–5460", "5461–10922", "10923–16383"]
    assert [one.hit for one in found.ranges] == [False, False, True]
    assert found.hit.seconds > 1  # the node timeout
    assert found.hit.begin < 0.5 < found.hit.end  # it begins with the kill
    assert found.hit.told("no connection") > 0
    assert all(one.told("CLUSTERDOWN") and one.acknowledged for one in found.others)
    assert wrote_nothing(cluster)


def test_what_a_lagging_replica_has_not_got_is_lost(cluster: Cluster) -> None:
    """Some 20 writes of 50 kB wait in the memory of the primary that is killed."""
    for node in cluster.nodes:
        node.config["cluster-require-full-coverage"] = "no"
    found = outage(cluster, behind=1_000_000, size=50_000, before=0.1)
    cluster.revive(found.killed)
    assert found.hit.lost == found.lost >= 1_000_000 // 50_000 - 1
    assert found.hit.lost < found.hit.acknowledged
    assert all(one.told("CLUSTERDOWN") == 0 for one in found.others)
    assert wrote_nothing(cluster)


def test_only_what_a_replica_confirms_counts_with_wait(cluster: Cluster) -> None:
    primary, over = cluster.owner(0), threading.Event()
    tag = next(f"{n}" for n in count() if cluster.owner(f"{n}") is primary)
    writer = Writer(cluster.url, [tag], Plan(size=10, wait=1, pause=0, timeout=5))
    writer.ready()
    over.set()
    for _ in range(100):  # a busy machine may take longer than WAIT waits
        writer.run(over)
        if writer.report.acknowledged:
            break
    confirmed, unconfirmed = writer.report.acknowledged, writer.errors["unconfirmed"]
    [replica] = cluster.replicas_of(primary)
    replica.freeze()
    try:
        writer.run(over)
    finally:
        replica.thaw()
    tried = len(confirmed) + unconfirmed + 1
    assert len(confirmed) == 1 and writer.report.acknowledged == confirmed
    assert writer.report.errors == {"unconfirmed": unconfirmed + 1}
    assert writer.rc.unlink(*keys([tag], range(tried))) == tried  # unconfirmed, and there


def test_a_writer_ends_though_nobody_serves_its_slots() -> None:
    with Cluster(1, 0) as lonely:
        writer = Writer(lonely.url, ["a"], Plan(size=10, wait=0, pause=0, timeout=0.05))
        lonely.kill("A")
        over = threading.Event()
        over.set()
        writer.run(over)
    begin, end = writer.report.gap
    assert end - begin >= 0.05, "the silence at its end counts"
    assert writer.report.acknowledged == []
    assert set(writer.report.errors) <= {"no connection", *(kind.__name__ for kind in FAILURES)}


def test_what_cannot_fail_over_is_refused_before_anything_is_killed() -> None:
    with Cluster(1, 0) as lonely:
        with pytest.raises(ValueError, match="A has no replica that could take over"):
            outage(lonely)
        lonely["A"].client().execute_command("CLUSTER DELSLOTS", 7)
        with pytest.raises(ValueError, match="nobody serves slot 7"):
            outage(lonely, slot=7)
        assert lonely["A"].running


def test_a_replica_that_does_not_fall_behind_is_said_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.rig.outage.PATIENCE", 0.1)
    owner = cluster.owner(0)
    with pytest.raises(ServerFailed, match=r"less than 1,000,000,000 bytes behind\. Remedy: "):
        outage(cluster, behind=1_000_000_000, before=0)
    assert owner.running and cluster.owner(0) is owner
    cluster.await_whole()


def test_an_outage_says_what_happened() -> None:
    assert repr(FOUND) == (
        "Outage(A killed, A2 promoted; without service: 0–8191 2.50 s, 8192–16383 1.00 s; lost: 3)"
    )
    assert FOUND.lost == 3 and FOUND.hit.seconds == 2.5 and FOUND.others == FOUND.ranges[1:]
    assert FOUND.others[0].told("CLUSTERDOWN") == 7 and FOUND.others[0].told("ASK") == 0
    frame = FOUND.df
    assert list(frame.columns) == ["killed", "seconds", "acknowledged", "lost", "errors"]
    assert list(frame.errors) == ["20× no connection", "7× CLUSTERDOWN, 1× MOVED"]
    assert "<td>2.50 s</td>" in FOUND._repr_html_()
