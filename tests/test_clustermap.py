"""The cluster map without a browser: a fleet under load, its kills and refusals, and the picture of it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import pytest
from redis.crc import key_slot
from servers import until

from labkit.rig import topology
from labkit.rig.fleet import Fleet, FleetView, Seat
from labkit.rig.probes import HOT, Lane, Span
from labkit.show import clustermap, plot
from labkit.show import panel as panel_parts
from labkit.show.clustermap import ClusterMap, colour, drawn

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def shared() -> Iterator[ClusterMap]:
    before, made = set(threading.enumerate()), ClusterMap()
    made.refresh()
    yield made
    pids = [node.pid for node in made.fleet.cluster.nodes if node.running]
    made.close()
    assert set(threading.enumerate()) <= before
    assert len(pids) == 6 and not any(map(_lives, pids))


@pytest.fixture
def panel(shared: ClusterMap) -> ClusterMap:
    """All nodes run, and the load is on."""
    shared.fleet.revive_all()
    shared.fleet.load()
    shared.press(lambda: None)
    return shared


def _lives(pid: int) -> bool:
    done = subprocess.run(["kill", "-0", str(pid)], capture_output=True)
    return done.returncode == 0


def click(panel: ClusterMap, *names: str) -> str:
    """Press the buttons; what the status line says then."""
    rows = [made for row in panel.box.children[:2] for made in row.children]
    for name in names:
        next(made for made in rows if f"labkit-{name}" in made._dom_classes).click()
    return str(panel.status.value)


def suspect_after(panel: ClusterMap, ms: str) -> str:
    """So long a silence makes its nodes suspect another from now on; how long it was before."""
    nodes = [node for node in panel.fleet.cluster.nodes if node.awake]
    before = nodes[0].config["cluster-node-timeout"]
    for node in nodes:
        node.config["cluster-node-timeout"] = ms
    return before


def primary_of(view: FleetView, slot: int) -> str:
    return next(name for first, last, name in view.ranges if first <= slot <= last)


# --- a fleet, and its map -----------------------------------------------------------------------------------


def test_it_starts_when_it_is_looked_at_and_not_to_end_the_load() -> None:
    fleet = Fleet()
    try:
        fleet.load(False)
        assert not any(node.running for node in fleet.cluster.nodes)
        assert fleet.view.unserved == 0 and len(fleet.view.seats) == 6
        fleet.close()
        assert not any(node.running for node in fleet.cluster.nodes)
        assert fleet.view.unserved == 0
    finally:
        fleet.close()


def test_a_primary_is_killed_its_replica_takes_over_and_it_comes_back(panel: ClusterMap) -> None:
    fleet = panel.fleet
    until(lambda: len([seat for seat in fleet.view.seats if seat.per_second]) == 3)
    view = fleet.view
    assert not view.wrong and "3 primaries, 3 replicas · " in view.sentence
    victim, rest = primary_of(view, 0), {primary_of(view, 6000), primary_of(view, 12000)}
    heir = next(seat.name for seat in view.seats if seat.of == victim)
    usual = suspect_after(panel, "60000")  # nobody takes over while it is looked at what may not be done
    assert f"{victim} is killed · 5,461 slots have no primary" in click(panel, f"kill-{victim}")
    assert f"color:{plot.VERMILLION}" in panel.status.value
    assert ">nobody<" in panel.picture.value and primary_of(fleet.view, 0) == ""
    assert panel.switches[victim].description == f"revive {victim}"
    for other in rest:
        assert f"without {other} no majority could say" in click(panel, f"kill-{other}")
    assert f"{heir} is the last with its 5,461 slots: revive {victim} first" in click(panel, f"kill-{heir}")
    assert fleet.refused and panel.error is None

    suspect_after(panel, usual)
    until(lambda: f"{victim} is killed" in panel.status.value or f"{heir} has" in fleet.view.sentence)
    until(lambda: f"{heir} has taken over: " in fleet.view.sentence)
    view = fleet.view
    before, after = view.lanes[0].spans[-2:]
    assert (before.name, after.name) == (victim, heir) and after.gap > 0.5
    assert primary_of(view, 0) == heir and not view.unserved
    assert [seat.role for seat in view.seats if seat.name in (victim, heir)] in (
        ["killed", "primary"],
        ["primary", "killed"],
    )
    assert f"{heir} is the last with its 5,461 slots: revive {victim} first" in click(panel, f"kill-{heir}")
    assert f"{victim} is back, as a replica of {heir}" in click(panel, f"kill-{victim}")
    until(lambda: not fleet.view.wrong)
    assert f"replica of {heir}" in panel.picture.value
    assert panel.switches[victim].description == f"kill {victim}"


def test_a_replica_may_die_and_then_its_primary_may_not(panel: ClusterMap) -> None:
    view = panel.fleet.view
    primary = primary_of(view, 12000)
    replica = next(seat.name for seat in view.seats if seat.of == primary)
    assert f"{replica} is killed · 3 primaries, 2 replicas" in click(panel, f"kill-{replica}")
    assert f"{primary} is the last with its 5,461 slots: revive {replica}" in click(panel, f"kill-{primary}")
    assert panel.fleet.cluster[primary].running
    assert f"{replica} back: all nodes run" in click(panel, "all")
    assert "all nodes run ·" in click(panel, "all")


def test_load_is_spread_made_hot_and_ended(panel: ClusterMap) -> None:
    fleet = panel.fleet

    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "labkit-load"]

    assert len(ours()) == 3 and not fleet.hot
    assert "3 of 4 requests go to one key, and so to" in click(panel, "hot")
    name = primary_of(fleet.view, key_slot(HOT.encode()))
    assert panel.heat.description == "spread the load"

    def rates() -> list[float]:
        return sorted((seat.per_second for seat in fleet.view.seats if seat.name != name), reverse=True)

    until(lambda: {s.name: s.per_second for s in fleet.view.seats}[name] > 2 * rates()[0] > 0)
    assert "requests are spread over all slots again" in click(panel, "hot")
    assert "nobody sends requests" in click(panel, "load")
    assert ours() == [] and panel.go.description == "start the load"
    assert "requests/s" not in fleet.view.sentence
    assert "requests go to all slots" in click(panel, "load")
    assert len(ours()) == 3


def test_it_looks_until_nobody_watches_or_touches_it(
    panel: ClusterMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = panel.picture.value
    until(lambda: panel.picture.value != first)
    panel.box._view_count = 1
    panel.box._view_count = 0
    assert not panel._ticker.running and not panel.fleet.loaded
    panel.box._view_count = 1
    assert panel._ticker.running and not panel.fleet.loaded
    panel.end()
    panel.box._view_count = 0
    panel.box._view_count = 1
    assert not panel._ticker.running, "what labkit.reset() has ended stays so"
    assert "ended by labkit.reset()" in panel.status.value
    click(panel, "load")
    monkeypatch.setattr(clustermap, "PATIENCE", 0)
    until(lambda: not panel._ticker.running)
    assert not panel.fleet.loaded
    assert panel.error is None


def test_errors_are_shown_and_the_last_picture_stays(
    panel: ClusterMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Fleet) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(Fleet, "view", property(broken))
        assert "ConnectionError: gone" in click(panel, "load")
        before = panel.picture.value
        assert isinstance(panel.error, ConnectionError) and ">primary<" in before
        until(lambda: not panel._ticker.running)
        assert panel.picture.value == before
    panel.press(lambda: panel.fleet.kill("Z"))
    assert "KeyError" in panel.status.value
    assert "3 primaries, 3 replicas" in click(panel, "all") and panel.error is None


def test_without_a_browser_it_is_a_failover_in_a_picture_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(panel_parts, "publish_display_data", lambda data, metadata: shown.append(data))
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    timeouts: list[float] = []

    def noted(*given: Any, **options: Any) -> Fleet:
        timeouts.append(options.get("node_timeout", 0))
        return Fleet(*given, **options)

    monkeypatch.setattr(clustermap, "Fleet", noted)
    before, made = set(threading.enumerate()), ClusterMap(node_timeout=0.8)
    made._ipython_display_()
    assert timeouts == [0.8, 0.8]
    assert set(shown[0]) == {"image/svg+xml", "text/plain"}
    assert shown[0]["text/plain"] == "<ClusterMap: a cluster of 6 nodes>"
    words = texts(shown[0]["image/svg+xml"])
    assert {"killed", "A2", "−4 s"} <= set(words)
    assert set(threading.enumerate()) <= before
    assert not any(node.running for node in made.fleet.cluster.nodes)


def test_it_ends_with_the_process() -> None:
    code = """
from labkit.show.widgets import ClusterMap
panel = ClusterMap()
panel.press(lambda: None)
print(*(node.pid for node in panel.fleet.cluster.nodes))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 6
    until(lambda: not any(map(_lives, pids)))


@pytest.mark.parametrize(("primaries", "replicas"), [(2, 1), (7, 1), (3, 0), (3, 3)])
def test_what_no_failover_can_be_shown_with_is_refused(primaries: int, replicas: int) -> None:
    with pytest.raises(ValueError, match=f"primaries is {primaries}, replicas {replicas}; they must be"):
        ClusterMap(primaries, replicas)


# --- the picture --------------------------------------------------------------------------------------------

SEATS = (
    Seat("A", False, "", 0, 0.0),
    Seat("A2", True, "A", 0, 0.0),
    Seat("B", True, "", 10924, 120.0),
)
LANES = (
    Lane(0, 5459, (Span("A", 9.0, 3.0),), silent=3.0),
    Lane(5460, 16383, (Span("C", 30.0, 8.0), Span("B", 6.0, 0.0, gap=2.0))),
)
VIEW = FleetView(SEATS, ((0, 5459, ""), (5460, 16383, "B")), LANES, ((0, False), (16383, True)), True, 9.0)


def texts(svg: str) -> list[str]:
    return [(element.text or "").strip() for element in ET.fromstring(svg).iter() if element.text]


def test_a_map_says_who_serves_what_and_when_nobody_did() -> None:
    svg = drawn(VIEW, ground="white")
    words = texts(svg)
    assert words.count("nobody") == 1
    assert {"A", "A2", "B", "killed", "replica of A", "primary", "120/s"} <= set(words)
    assert {"0–5459", "5460–16383", "3.0 s", "2.0 s", "−16 s", "−4 s", "now"} <= set(words)
    assert "10,924 slots" in svg
    (root,) = [ET.fromstring(svg)]
    assert root.get("aria-label") == "5,460 slots have no primary for 3.0 s: a replica is to take over"
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    assert (width, root.get("role")) == (1000, "img") and 350 < height < 600
    quiet = drawn(FleetView(SEATS, ((0, 16383, "B"),), (), (), False, 9.0))
    assert "now" not in texts(quiet) and "nobody" not in texts(quiet)


@pytest.mark.parametrize(
    ("first", "last", "area"),
    [
        (0, 0, 1),
        (5, 9, 5),
        (100, 200, 101),
        (127, 128, 2),
        (0, topology.SLOTS - 1, topology.SLOTS),
        (300, 5460, 5161),
    ],
)
def test_slots_are_as_large_as_they_are_many(first: int, last: int, area: int) -> None:
    """Each piece of the outline is a rectangle: M x y h… v1, or to a place: H… V…; in columns and rows."""
    pieces = re.findall(r"M(\d+) (\d+)(h|H)(\d+)(v|V)(\d+)", clustermap._path(first, last))
    total = 0
    for x, y, across, wide, down, high in pieces:
        width = int(wide) - (int(x) if across == "H" else 0)
        total += width * (int(high) - (int(y) if down == "V" else 0))
    assert total == area


def test_each_node_has_a_colour_of_its_own() -> None:
    names = [f"{letter}{rank}" for letter in "ABCDEF" for rank in ("", "2", "3")]
    assert len({colour(name) for name in names}) == len(names)
    assert plot.VERMILLION not in {colour(name) for name in names}


def test_a_fleet_says_what_is_wrong() -> None:
    served = ((0, 16383, "B"),)
    silent = FleetView(SEATS, served, LANES[:1], (), True, 9.0)
    assert silent.sentence == "requests are refused for 3.0 s, although each slot has a primary"
    heir = FleetView(SEATS, served, LANES[1:], (), True, 9.0)
    assert heir.sentence == "B has taken over: 2.00 s without service"
    before = FleetView(SEATS, served, LANES[1:], (), True, 5.0)
    assert before.heir is None and "1 primaries, 1 replica · " in before.sentence
    assert FleetView(SEATS, served, (), (), False, 9.0).sentence == "1 primaries, 1 replica"
