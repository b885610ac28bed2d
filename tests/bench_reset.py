"""How long labkit.reset() takes, by what a chapter has going; run by hand: python tests/bench_reset.py"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot
import pandas
from benching import met

import labkit
from labkit.leaderboard import Leaderboard
from labkit.pubsub import subscribe
from labkit.rig.ending import end_all
from labkit.rig.processes import spawn
from labkit.rig.proxy import Proxy
from labkit.rig.server import Cluster, Server
from labkit.show import widgets

ALLOWED = 1.0
"""Seconds."""

LOADED = (matplotlib.pyplot, pandas)
"""What a chapter has imported: all of its objects are looked through."""


def nothing(r: Any) -> list[Any]:
    return []


def ten_servers(r: Any) -> list[Any]:
    return [Server(appendonly=n < 5).start() for n in range(10)]


def hundred_thousand_keys(r: Any) -> list[Any]:
    for first in range(0, 100_000, 10_000):
        r.mset({f"workbook:05:{n}": "x" * 20 for n in range(first, first + 10_000)})
    return []


def a_chapter(r: Any) -> list[Any]:
    """Two clusters of six nodes, ten servers, four each of workers, links and listeners, and six widgets."""
    clusters = [Cluster(node_timeout=1).start() for _ in range(2)]
    servers = ten_servers(r)
    workers = [spawn(_work) for _ in range(4)]
    links = [Proxy(server) for server in servers[:4]]
    listeners = [subscribe(r, f"workbook:06:{n}", print) for n in range(4)]
    panels: list[Any] = [widgets.ChannelPanel(r), widgets.ConsumersPanel(r), widgets.RedlockPanel()]
    panels += [
        widgets.EvictionLab(),
        widgets.ClusterMap(),
        widgets.LiveBoard(Leaderboard(r, "workbook:09:x")),
    ]
    for panel in panels:
        panel.press(lambda: None)
    panels[-1].press(panels[-1].start)
    return [*clusters, *servers, *workers, *links, *listeners, *panels]


def _work() -> None:
    import time

    time.sleep(600)


def timed(prepare: Callable[[Any], list[Any]], r: Any) -> tuple[int, int, float]:
    kept = prepare(r)
    start = time.perf_counter()
    keys = labkit.reset()
    return len(kept), keys, time.perf_counter() - start


def main() -> None:
    r = labkit.connect()
    print(f"{'what there is':24} {'things':>7} {'keys':>8} {'median of 3, s':>15}")
    for prepare in (nothing, hundred_thousand_keys, ten_servers, a_chapter):
        r = labkit.connect(quiet=True)
        end_all(r)
        rounds = sorted((timed(prepare, r) for _ in range(3)), key=lambda one: one[2])
        things, keys, seconds = rounds[1]
        verdict = met(seconds < ALLOWED)
        print(f"{prepare.__name__.replace('_', ' '):24} {things:7} {keys:8,} {seconds:15.3f}  {verdict}")


if __name__ == "__main__":
    main()
