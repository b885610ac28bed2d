"""What a board costs: `uv run python tests/bench_leaderboard.py`.

Candidates take turns on one server, every other round in the reverse order; a ratio is the median over the
rounds. Client and server share one core, because across two cores the figures jump between two states.

* Load: `add_many` against bare ZADD of 1,000-member mappings, into an empty board and into a full one (each
  of whose members gets other points), and the same scores, with their 53 bits, by bare ZADD.
* `around` against the bare script, and against the two round trips that it saves.
* Boards of 10^3 to 10^6 in turns: load, memory, top, rank, around (median µs); the same in SQLite, in memory,
  with an index on the points. Around them: listpack and skip list, and how long `renumber` holds the server.
* The PyPI package `leaderboard`, for reading, if it can be had: `uv run --with leaderboard python tests/…`.
  Its last release is of 2018, and it cannot write with the redis-py of today (ZADD's arguments were turned).

With `--store` the boards go to notebooks/measured/09_leaderboard.json, which chapter 09 shows.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benching import cores, measure, met, run_on, speed

from labkit.leaderboard import CHUNK, TICKS, Leaderboard, _sha
from labkit.rig.connection import server_info
from labkit.rig.game import scores
from labkit.rig.server import Server

ROUNDS = 10
"""In which the sizes take turns."""

RESULT = Path(__file__).parents[1] / "notebooks" / "measured" / "09_leaderboard.json"
MORE_THAN = "SELECT COUNT(*) FROM players WHERE points > (SELECT points FROM players WHERE name = ?)"
SQL = {
    "top": "SELECT name, points FROM players ORDER BY points DESC LIMIT 10",
    "rank": f"SELECT 1 + ({MORE_THAN}), points FROM players WHERE name = ?",
    "around": "SELECT name, points FROM players ORDER BY points DESC LIMIT 11 "
    f"OFFSET max(({MORE_THAN}) - 5, 0)",
}


def anybody(n: int) -> Iterator[str]:
    chance = random.Random(10)
    return cycle([f"player-{chance.randint(1, n):07d}" for _ in range(10_000)])


def chunks(points: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = iter(points.items())
    return list(iter(lambda: dict(islice(pairs, CHUNK)), {}))


def criterion(what: str, value: float, least: float = 0, most: float = float("inf")) -> None:
    bound = f"at least {least:g}" if least else f"at most {most:g}"
    print(f"  {met(least <= value <= most):7}  {what}: {value:.2f} ({bound})")


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def loads(r: Any, people: dict[str, int], rounds: int) -> dict[str, list[float]]:
    """Seconds by candidate and round. A full board gets one point more for everybody."""
    parts = chunks(people)
    more = {name: points + 1 for name, points in people.items()}
    scores = chunks({name: points - 1 / TICKS for name, points in more.items()})
    board = Leaderboard(r, "board")

    def bare(parts: list[dict[str, Any]]) -> Callable[[], Any]:
        return lambda: [r.zadd("bare", part) for part in parts]

    calls: dict[str, Callable[[], Any]] = {
        "add_many, empty": lambda: board.add_many(people),
        "bare, empty": bare(parts),
        "add_many, full": lambda: board.add_many(more),
        "bare scores, full": bare(scores),
    }
    taken: dict[str, list[float]] = {who: [] for who in calls}
    for number in range(rounds + 1):
        r.flushall()  # the bench's own server; each pair begins with an empty one
        for state in ("empty", "full"):
            pair = [who for who in calls if who.endswith(state)]
            for who in pair if number % 2 else reversed(pair):
                took = seconds(calls[who])
                if number:  # the first round is a warm-up
                    taken[who].append(took)
    assert len(board) == len(people) == r.zcard("bare")
    return taken


def show_loads(n: int, taken: dict[str, list[float]]) -> None:
    print(f"\n{n:,} members:\n")
    for who, took in taken.items():
        best = statistics.median(took)
        print(f"  {who:<20}{best:>8.2f} s{n / best:>12,.0f} a second")
    print()
    for what, one, other in (
        ("load of an empty board, of bare ZADD's rate", "add_many, empty", "bare, empty"),
        ("(only told) new points on a full board", "add_many, full", "bare scores, full"),
    ):
        criterion(what, speed(taken[one], taken[other]), least=0.9 if "empty" in one else 1e-9)


def around(r: Any, board: Leaderboard, n: int, rounds: int) -> None:
    who, sha = anybody(n), _sha(Leaderboard.AROUND)
    board.around(next(who))

    def twice() -> None:
        ahead = r.zrevrank(board.key, next(who))
        r.execute_command("ZRANGE", board.key, max(ahead - 5, 0), ahead + 5, "REV", "WITHSCORES")

    calls = {
        "around": lambda: board.around(next(who)),
        "bare script": lambda: r.evalsha(sha, 1, board.key, next(who), 5),
        "bare script, direct": lambda: r.execute_command("EVALSHA", sha, 1, board.key, next(who), 5),
        "two round trips": twice,
    }
    taken = measure(calls, rounds, 300)
    print(f"\naround, {n:,} members:\n")
    for name, took in taken.items():
        print(f"  {name:<20}{statistics.median(took) * 1e6:>8.1f} µs")
    print()
    criterion("of the bare script's rate (r.evalsha)", speed(taken["around"], taken["bare script"]), 0.9)
    of_two = 1 / speed(taken["around"], taken["two round trips"])
    print(f"  of the time of two round trips: {of_two:.2f}")


def table(people: dict[str, int]) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE players (name TEXT PRIMARY KEY, points INTEGER) WITHOUT ROWID")
    db.execute("CREATE INDEX by_points ON players (points)")
    with db:
        db.executemany("INSERT INTO players VALUES (?, ?)", people.items())
    return db


def p50(calls: dict[int, Callable[[], Any]], times: dict[int, int]) -> dict[int, float]:
    """Median µs of one call, by size; the sizes take turns."""
    taken: dict[int, list[float]] = {n: [] for n in calls}
    for _ in range(ROUNDS):
        for n, call in calls.items():
            call()
            taken[n] += [seconds(call) for _ in range(times[n] // ROUNDS)]
    return {n: round(statistics.median(took) * 1e6, 1) for n, took in taken.items()}


def in_server(r: Any, board: Leaderboard, who: Iterator[str]) -> float:
    """Mean µs of ZREVRANK, by the server's own clock."""
    r.config_resetstat()
    for name in islice(who, 1000):
        board.rank(name)
    return float(r.info("commandstats")["cmdstat_zrevrank"]["usec_per_call"])


def sizes(r: Any, loads: dict[int, tuple[float, float]]) -> dict[str, dict[str, Any]]:
    """What chapter 09 shows of each size; `loads` are the seconds that add_many and bare ZADD took."""
    r.flushall()
    boards = {n: Leaderboard(r, f"board:{n}") for n in loads}
    who = {n: anybody(n) for n in loads}
    found: dict[int, dict[str, Any]] = {}
    for n, board in boards.items():
        board.add_many(scores(n))
        size = r.memory_usage(board.key, samples=0)
        load, bare = loads[n]
        found[n] = {"load": round(load, 4), "bare": round(bare, 4), "bytes": round(size / n, 1)}
    own: dict[int, list[float]] = {n: [] for n in loads}
    for _ in range(ROUNDS):
        for n, board in boards.items():
            own[n].append(in_server(r, board, who[n]))
    calls: dict[str, Callable[[int], Callable[[], Any]]] = {
        "top": lambda n: boards[n].top,
        "rank": lambda n: lambda: boards[n].rank(next(who[n])),
        "around": lambda n: lambda: boards[n].around(next(who[n])),
    }
    for n in loads:
        found[n]["server_us"] = round(statistics.median(own[n]), 2)
    for what, call in calls.items():
        for n, us in p50({n: call(n) for n in loads}, dict.fromkeys(loads, 2000)).items():
            found[n][what] = us
    for n, sql in in_sqlite(list(loads), who).items():
        found[n]["sqlite"] = sql
    return {str(n): figures for n, figures in found.items()}


def in_sqlite(ns: list[int], who: dict[int, Iterator[str]]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        tables = {}
        for n in ns:
            people, start = scores(n), time.perf_counter()
            tables[n] = stack.enter_context(contextlib.closing(table(people)))
            found[n] = {"load": round(time.perf_counter() - start, 4)}
        times = {n: min(max(20_000_000 // n, 40), 2000) for n in ns}

        def ask(n: int, what: str) -> Callable[[], Any]:
            named = SQL[what].count("?")
            return lambda: tables[n].execute(SQL[what], [next(who[n])] * named).fetchall()

        for what in SQL:
            for n, us in p50({n: ask(n, what) for n in ns}, times).items():
                found[n][what] = us
    return found


def show_sizes(boards: dict[str, dict[str, Any]]) -> None:
    print(f"\n{'members':>9}{'load':>9}{'bytes':>8}", end="")
    print(
        "".join(f"{what:>10}" for what in ("top", "rank", "around", "(server)", *SQL)),
        "the last three: SQLite",
    )
    for n, found in boards.items():
        print(f"{int(n):>9,}{found['load']:>7.2f} s{found['bytes']:>8.0f}", end="")
        figures = [found[what] for what in ("top", "rank", "around", "server_us")]
        figures += [found["sqlite"][what] for what in SQL]
        print("".join(f"{us:>7,.0f} µs" for us in figures[:3]), f"{figures[3]:>6.1f} µs", end="")
        print("".join(f"{us:>7,.0f} µs" for us in figures[4:]))


def representations(r: Any) -> None:
    print("\nlistpack and skip list:\n")
    for n in (10, 100, 128, 129, 200, 1000):
        board = Leaderboard(r, f"small {n}")
        board.add_many(scores(n))
        each = r.memory_usage(board.key, samples=0) / n
        print(f"  {n:>6,} members {each:>6.0f} bytes each  {r.object('encoding', board.key)}")


def peer(r: Any, n: int, rounds: int) -> None:
    """The package `leaderboard` on the same board, for reading."""
    try:
        kind: Any = importlib.import_module("leaderboard.leaderboard").Leaderboard
    except ImportError:
        print("\n(the package `leaderboard` is not here: not compared)")
        return
    board, who = Leaderboard(r, f"board:{n}"), anybody(n)
    theirs = kind(board.key, connection=r)
    try:
        theirs.rank_member("somebody", 1)
    except Exception as error:
        print(f"\nleaderboard.rank_member: {type(error).__name__}: {str(error)[:90]}")
    calls: dict[str, Callable[[], Any]] = {
        "top, labkit": lambda: board.top(10),
        "top, leaderboard": lambda: theirs.leaders(1, page_size=10),
        "rank, labkit": lambda: board.rank(next(who)),
        "rank, leaderboard": lambda: theirs.score_and_rank_for(next(who)),
        "around, labkit": lambda: board.around(next(who)),
        "around, leaderboard": lambda: theirs.around_me(next(who), page_size=11),
    }
    print("\nbeside the package `leaderboard` (it gives no ties by time):\n")
    for name, took in measure(calls, rounds, 300).items():
        print(f"  {name:<22}{statistics.median(took) * 1e6:>8.1f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5, help="of loads; four times as many of single calls")
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--server", help="another redis-server's binary")
    parser.add_argument("--store", action="store_true", help="keep the results for chapter 09")
    options = parser.parse_args()
    everywhere = cores()
    run_on({max(everywhere)})
    took: dict[int, tuple[float, float]] = {}
    with Server(binary=options.server) as server, server.client(socket_timeout=60) as r:
        version = server_info(r)["redis_version"]
        print(f"Redis {version}, Python {sys.version.split()[0]}, {len(everywhere)} cores, one of them used")
        for n in (size for size in (10**3, 10**4, 10**5, 10**6) if size <= options.n):
            taken = loads(r, scores(n), options.rounds)
            ours, bare = (statistics.median(taken[who]) for who in ("add_many, empty", "bare, empty"))
            took[n] = ours, bare
            if n == options.n:
                show_loads(n, taken)
        boards = sizes(r, took)
        show_sizes(boards)
        board = Leaderboard(r, f"board:{max(took)}")
        around(r, board, options.n, 4 * options.rounds)
        peer(r, options.n, 2 * options.rounds)
        print(f"\nrenumber of {options.n:,} members: {seconds(board.renumber):.2f} s")
        representations(r)
    if options.store:
        RESULT.parent.mkdir(exist_ok=True)
        stored = {"server": version, "cores": len(everywhere), "boards": boards}
        RESULT.write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
