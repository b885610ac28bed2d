"""What persistence costs and loses, and what stalls a server: `uv run python tests/bench_production.py`.

* Crash tests: servers of each persistence killed (SIGKILL) while one client writes, many times; acknowledged
  writes that are gone, and those that were not on disk by the server's own word (WAITAOF).
* Throughput by `appendfsync`, with one client and with 50, on servers that take turns.
* Restarts with up to a million keys, from a snapshot and from commands.
* What another client waits while a million keys or members are dealt with at once, or in small pieces.

With `--store` the figures go to notebooks/measured/10_production.json, which chapter 10 shows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benching import cores, met

from labkit.rig import durability, stall
from labkit.rig.connection import server_info
from labkit.rig.restarts import restart_times
from labkit.rig.server import Server

RESULT = Path(__file__).parents[1] / "notebooks" / "measured" / "10_production.json"
WAYS = ("RDB", "AOF, rewritten", "AOF, commands")
SETTINGS = (None, "no", "everysec", "always")

FILL = """for first = 1, ARGV[1], 1000 do
    local members = {}
    for i = first, first + 999 do members[#members + 1] = 'member:' .. i end
    redis.call('SADD', KEYS[1], unpack(members))
end"""
TTL_FOR_ALL = "for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('EXPIRE', key, 3600) end"
TTL_FOR_SOME = """local cursor, keys = unpack(redis.call('SCAN', ARGV[1], 'COUNT', 500))
for _, key in ipairs(keys) do redis.call('EXPIRE', key, 3600) end
return cursor"""


def in_pieces(r: Any) -> None:
    cursor = r.eval(TTL_FOR_SOME, 0, 0)
    while cursor != "0":
        cursor = r.eval(TTL_FOR_SOME, 0, cursor)


WORKS: dict[str, Callable[[Any], object]] = {
    "KEYS *": lambda r: r.keys("*"),
    "SCAN": lambda r: set(r.scan_iter(count=500)),
    "SMEMBERS": lambda r: r.smembers("followers"),
    "SSCAN": lambda r: set(r.sscan_iter("followers", count=500)),
    "a script for all keys": lambda r: r.eval(TTL_FOR_ALL, 0),
    "a script for 500 keys": in_pieces,
    "DEL": lambda r: r.delete("doomed"),
    "UNLINK": lambda r: r.unlink("doomed"),
}


def persistence(kills: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each setting: writes a second, what SIGKILL took in all, and what was at risk at most."""
    crashes = durability.crash_tests(SETTINGS, rounds=kills, seconds=seconds)
    print(f"\n{kills} kills each:\n\n{crashes}")
    rates = {clients: durability.throughput(SETTINGS, clients=clients, rounds=20) for clients in (1, 50)}
    for clients, sweep in rates.items():
        print(f"\n{clients} clients:\n\n{sweep}")
    lost = sum(crashes.lost(setting) for setting in SETTINGS if setting)
    print(
        f"\n  {met(lost == 0):7}  acknowledged writes lost by SIGKILL, with an append-only file: {lost} (0)"
    )
    rows = []
    for setting in SETTINGS:
        tests = crashes[setting]
        at_risk = [test.at_risk for test in tests if test.at_risk is not None]
        ages = [test.at_risk_seconds for test in tests if test.at_risk_seconds is not None]
        rows.append(
            {
                "persistence": tests[0].name,
                "writes/s, 1 client": round(rates[1][setting or "RDB only"].ops_per_second),
                "50 clients": round(rates[50][setting or "RDB only"].ops_per_second),
                "acknowledged": sum(test.acknowledged for test in tests),
                "lost by SIGKILL": crashes.lost(setting),
                "at risk at most": max(at_risk, default=None),
                "for (s)": round(max(ages), 2) if ages else None,
            }
        )
    return rows


def restarts(sizes: tuple[int, ...]) -> dict[str, Any]:
    found = restart_times(sizes, ways=WAYS, rounds=3)
    print(f"\nRestarts:\n\n{found}")
    return {
        way: [list(keys), [round(s, 4) for s in seconds]] for way, (keys, seconds) in found.series.items()
    }


def stalls(size: int) -> list[dict[str, Any]]:
    with Server() as server:
        with server.client(socket_timeout=600) as r:
            r.execute_command("DEBUG", "POPULATE", size)
            r.eval(FILL, 1, "followers", size)
        doomed = dict.fromkeys(("DEL", "UNLINK"), lambda r: r.eval(FILL, 1, "doomed", 2 * size))
        found = stall.compare(server, WORKS, setup=doomed, rounds=3)
    print(f"\n{size:,} keys, {size:,} members:\n\n{found}")
    return [
        {
            "work": one.name,
            "longest wait (ms)": round(1000 * one.longest, 1),
            "of that one command (ms)": round(1000 * one.slowest.seconds, 1) if one.slowest else None,
            "the job took (ms)": round(1000 * one.during),
        }
        for one in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20, help="of servers of each setting")
    parser.add_argument("--seconds", type=float, default=3.0, help="of writing before a kill, at most")
    parser.add_argument("--n", type=int, default=1_000_000, help="keys and members")
    parser.add_argument("--store", action="store_true", help="keep the results for chapter 10")
    options = parser.parse_args()
    with Server() as server, server.client() as r:
        version = server_info(r)["redis_version"]
    fsync = durability.fsync_cost()
    print(f"Redis {version}, Python {sys.version.split()[0]}, {len(cores())} cores")
    print(f"one fsync: {1e3 * fsync:.2f} ms")
    stored = {
        "server": version,
        "cores": len(cores()),
        "fsync_ms": round(1e3 * fsync, 2),
        "kills": options.kills,
        "seconds": options.seconds,
        "members": options.n,
        "persistence": persistence(options.kills, options.seconds),
        "restarts": restarts(tuple(n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= options.n)),
        "stalls": stalls(options.n),
    }
    if options.store:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
