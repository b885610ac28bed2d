"""labkit.rig.load: commands a second and the CPU of each server."""

from __future__ import annotations

import pytest
from redis.crc import key_slot
from redis.exceptions import OutOfMemoryError

from labkit.rig import topology
from labkit.rig.load import Load, Turn, _counted, load
from labkit.rig.server import Cluster


def test_every_primary_is_kept_busy_and_counted() -> None:
    with Cluster(2, 0) as cluster:
        for node in cluster.nodes:
            node.client().config_resetstat()
        found = load({"two": cluster}, seconds=0.2, members=100)["two"]
        calls = [node.client().info("commandstats")["cmdstat_sintercard"]["calls"] for node in cluster.nodes]
        assert sum(calls) == found.commands > 0
        assert min(calls) > 0
        assert list(found.cpu) == ["A", "B"] and min(found.cpu.values()) > 0
        assert found.seconds > 0.1, "half of what was asked for, were one process late"
        assert not any(node.client().dbsize() for node in cluster.nodes)


def test_a_primary_whose_only_slot_is_that_of_no_short_number_is_kept_busy_too() -> None:
    short = {key_slot(f"{n}".encode()) for n in range(topology.SLOTS)}
    with Cluster(2, 0) as cluster:
        its = [slot for slot, name in cluster.owners().items() if name == "B"]
        cluster.move_slots({*its} - {next(slot for slot in its if slot not in short)}, to="A")
        found = load({"two": cluster}, seconds=0.1, members=100)["two"]
        assert list(found.cpu) == ["A", "B"]


def test_no_set_stays_where_the_next_cluster_takes_none() -> None:
    with Cluster(1, 0) as first, Cluster(1, 0) as full:
        full["A"].config["maxmemory"] = 1
        with pytest.raises(OutOfMemoryError):
            load({1: first, 2: full})
        assert first["A"].client().dbsize() == 0


def test_a_cluster_without_slots_is_refused() -> None:
    with Cluster(1, 0) as cluster:
        cluster["A"].client().execute_command("CLUSTER FLUSHSLOTS")
        with pytest.raises(ValueError, match="no primary with slots"):
            load({1: cluster})


def test_rounds_and_processes_are_put_together() -> None:
    """Two processes, two rounds; the time of a round is from the first to the last, and so is its CPU."""
    one = [Turn(0, 0.0, 1.0, 10, [5.0], [5.5]), Turn(0, 3.0, 4.0, 10, [6.0], [6.5])]
    two = [Turn(0, 0.5, 1.5, 20, [5.1], [5.75]), Turn(0, 3.0, 4.5, 20, [6.0], [6.75])]
    found = _counted(["A"], [*one, *two], workers=2)
    assert found.commands == 60 and found.seconds == 1.5 + 1.5
    assert found.cpu == {"A": pytest.approx(0.75 / 3 + 0.75 / 3)}


def test_a_load_says_what_it_is() -> None:
    found = Load(3000, 1.5, {"A": 0.5, "B": 0.25})
    assert found.per_second == 2000 and found.cores == 0.75
    assert found.per_cpu_second == pytest.approx(2000 / 0.75)
    assert repr(found) == "Load(2,000 commands/s; CPU: A 50%, B 25% of a core)"
    assert found.df.cpu.to_dict() == {"A": 0.5, "B": 0.25}
    assert "<th>A, share of a core</th><td>50%</td>" in found._repr_html_()
