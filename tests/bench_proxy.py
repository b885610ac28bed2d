"""How accurate and how fast the proxy is; run by hand: python tests/bench_proxy.py"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from labkit.rig.proxy import Proxy
from labkit.rig.server import Server

ASKED = (0.2, 0.5, 1, 2, 5, 10, 20, 50)


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def pipeline_of_100(r: Any) -> Callable[[], Any]:
    def run() -> None:
        pipe = r.pipeline(transaction=False)
        for i in range(100):
            pipe.set(f"k{i}", "v" * 10)
        pipe.execute()

    return run


def added_delay(direct: Any, through: Any, link: Proxy, ms: float, rounds: int) -> float:
    """Median of a PING through the link, less that of a direct PING, measured in turns."""
    link.delay(ms)
    pairs = [(timed(direct.ping), timed(through.ping)) for _ in range(rounds)]
    direct_ms, through_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    return float(through_ms - direct_ms)


def rate_ratio(direct: Any, through: Any, link: Proxy, rounds: int) -> float:
    """Rate of a 100-command pipeline through the link without delay, as a share of the direct rate."""
    link.delay(0)
    a, b = pipeline_of_100(direct), pipeline_of_100(through)
    pairs = [(timed(a), timed(b)) for _ in range(rounds)]
    direct_ms, through_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    return float(direct_ms / through_ms)


def main() -> None:
    with Server() as server, Proxy(server) as link:
        direct, through = server.client(), link.client()
        direct.ping(), through.ping()
        print(f"{'asked ms':>9} {'median ms':>10} {'error ms':>9} {'allowed ms':>11}")
        for ms in ASKED:
            found = added_delay(direct, through, link, ms, rounds=int(min(400, 1500 / ms)))
            allowed = 0.1 * ms + 0.3
            verdict = "ok" if abs(found - ms) <= allowed else "TOO FAR"
            print(f"{ms:9g} {found:10.3f} {found - ms:+9.3f} {allowed:11.2f}  {verdict}")
        ratio = rate_ratio(direct, through, link, rounds=500)
        print(f"100-command pipeline, no delay: {ratio:.2f} of the direct rate (allowed: 0.50)")


if __name__ == "__main__":
    main()
