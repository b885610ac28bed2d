"""What a failover costs, over several runs: `uv run python tests/bench_cluster.py --store`.

For each of five ways, `--runs` failovers of a cluster of three primaries with a replica each and a node
timeout of a second, the primary of slot 0 killed under load: for how long which slots were not served, and
how many acknowledged writes were lost. With `--store` the results go to notebooks/measured/11_cluster.json,
which chapter 11 shows beside its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benching import cores

from labkit.rig.connection import server_info
from labkit.rig.outage import Outage, outage
from labkit.rig.server import Cluster

RESULT = Path(__file__).parents[1] / "notebooks" / "measured" / "11_cluster.json"
LAGS: dict[str, Any] = {"behind": 1_000_000, "size": 50_000}

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "full coverage": ("yes", {}),
    "partial coverage": ("no", {}),
    "WAIT 1": ("no", {"wait": 1}),
    "a replica that lags": ("no", LAGS),
    "a replica that lags, WAIT 1": ("no", {**LAGS, "size": 500_000, "wait": 1}),
}
"""cluster-require-full-coverage, and what `outage()` is given."""


def failovers(coverage: str, options: dict[str, Any], runs: int) -> list[Outage]:
    with Cluster(node_timeout=1, cluster_require_full_coverage=coverage) as cluster:
        found = []
        for _ in range(runs):
            found.append(outage(cluster, **options))
            cluster.revive(found[-1].killed)
    return found


def figures(found: list[Outage]) -> dict[str, Any]:
    """By run: seconds without service of the dead one's slots, and of the others; acknowledged, lost."""
    return {
        "hit": [round(one.hit.seconds, 3) for one in found],
        "others": [round(max(other.seconds for other in one.others), 3) for one in found],
        "acknowledged": [one.hit.acknowledged for one in found],
        "lost": [one.lost for one in found],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--store", action="store_true", help="keep the results for chapter 11")
    options = parser.parse_args()
    with Cluster(1, 0) as cluster, cluster["A"].client() as r:
        version = server_info(r)["redis_version"]
    print(f"\nRedis {version}, {len(cores())} cores; medians and extremes of {options.runs} runs\n")
    print(f"{'':<30}{'the dead one, s':>22}{'the others, s':>22}{'acknowledged':>14}{'lost':>18}")
    results = {}
    for name, (coverage, given) in WAYS.items():
        results[name] = figures(failovers(coverage, given, options.runs))
        cells = [
            "{:.2f} ({:.2f} to {:.2f})",
            "{:.2f} ({:.2f} to {:.2f})",
            "{:,.0f}",
            "{:,.0f} ({:,.0f} to {:,.0f})",
        ]
        line = f"{name:<30}"
        for cell, width, values in zip(cells, (22, 22, 14, 18), results[name].values(), strict=True):
            line += f"{cell.format(statistics.median(values), min(values), max(values)):>{width}}"
        print(line, flush=True)
    if options.store:
        RESULT.parent.mkdir(exist_ok=True)
        stored = {"server": version, "cores": len(cores()), "node_timeout": 1, "runs": results}
        RESULT.write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
