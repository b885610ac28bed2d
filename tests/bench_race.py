"""What the race explorer costs: `uv run --group bench python tests/bench_race.py`.

Three tables, each with a criterion that is met or not. In the first everything shares one core, because
across two the figures of all candidates jump between two states:

1. Interleavings a second, against frontrun 0.7 on the same programs and the same Redis. frontrun runs them as
   its documentation does, by `frontrun python …` with `detect_io=True` and `stop_on_first=False`, each worker
   with a client that it makes; "kept" is the same with clients that are connected once (labkit gives each run
   a new client on a connection that it keeps). labkit runs without reduction. They take turns; a ratio is the
   rounds' median.
2. Where the time goes: the same interleavings with labkit's scheduler, and the bare commands by redis-py with
   no scheduler at all (empty the server, set up, every client's commands, the invariant), in rounds that
   take turns; as one runs it, and with everything on one core, where a round trip costs least and the
   scheduler weighs most. The explorer's pools do without redis-py's locks and metrics, so that it can be the
   faster one; therefore beside it a profile, by a timer that looks at the innermost Python frame.
3. How many interleavings reduction leaves of three clients with four commands, mostly on keys of their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from benching import cores, met, run_on

from labkit.rig.race import Exploration, explore
from labkit.rig.server import Server


class Program(NamedTuple):
    """Clients that are all alike, and what must hold in the end."""

    actor: Callable[[Any], Any]
    clients: int
    holds: Callable[[Any], bool]


def get_then_set(r: Any) -> None:
    seen = int(r.get("n"))
    r.set("n", seen + 1)


def decr(r: Any) -> None:
    r.decr("n")


def buy(r: Any) -> None:
    if int(r.get("stock")) > 0:
        r.decr("stock")
        r.rpush("sold", "ticket")


def three_incr(r: Any) -> None:
    for _ in range(3):
        r.incr("n")


PROGRAMS = {
    "GET, then SET: two clients": Program(get_then_set, 2, lambda r: bool(r.get("n") == "2")),
    "GET, then SET: three clients": Program(get_then_set, 3, lambda r: bool(r.get("n") == "3")),
    "DECR: two clients": Program(decr, 2, lambda r: bool(r.get("n") == "-2")),
    "buy the last ticket: two clients": Program(buy, 2, lambda r: bool(r.llen("sold") <= 1)),
}


def set_up(r: Any) -> None:
    r.mset({"n": 0, "stock": 1})


def with_labkit(program: Program, server: Server, **options: Any) -> Exploration:
    actors = [program.actor] * program.clients
    return explore(actors, setup=set_up, invariant=program.holds, server=server, **options)


# --- 1. against frontrun ------------------------------------------------------------------------------------


def inside_frontrun(url: str, name: str, kept: bool) -> None:
    """What `frontrun python` runs: one program, explored; prints what came of it as JSON."""
    import frontrun
    import redis

    program = PROGRAMS[name]
    main, *clients = (redis.Redis.from_url(url, decode_responses=True) for _ in range(program.clients + 1))
    for r in clients:
        r.ping()

    class State:
        def __init__(self) -> None:
            main.flushdb()
            set_up(main)

    def work(state: object, r: Any) -> None:
        program.actor(r if kept else redis.Redis.from_url(url, decode_responses=True))

    workers = [partial(work, r=r) for r in clients]
    start = perf_counter()
    found = frontrun.explore(
        setup=State,
        workers=workers,
        invariant=lambda state: program.holds(main),
        detect_io=True,
        stop_on_first=False,
        reproduce_on_failure=0,
        total_timeout=60,
    )
    seconds = perf_counter() - start
    print(json.dumps({"safe": found.property_holds, "rate": found.num_explored / seconds}))


def with_frontrun(name: str, server: Server, kept: bool) -> tuple[bool, float]:
    """Is it safe, and interleavings a second."""
    frontrun = shutil.which("frontrun", path=str(Path(sys.executable).parent)) or "frontrun"
    command = [frontrun, sys.executable, __file__, "--inside-frontrun", server.url, name, "kept" * kept]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["safe"], answer["rate"]


def for_a_while(name: str, server: Server, seconds: float = 1.0) -> tuple[bool, float]:
    """The same of labkit, explored again and again, start-up and all."""
    start, runs = perf_counter(), 0
    while (spent := perf_counter() - start) < seconds:
        found = with_labkit(PROGRAMS[name], server, reduce=False)
        runs += found.runs
    return found.verdict == "safe", runs / spent


def against_frontrun(rounds: int) -> None:
    print("\n1. Interleavings a second\n")
    heads = ("verdict", "labkit", "frontrun", "ratio", "kept", "ratio")
    print(f"{'program':34}" + "".join(f"{head:>10}" for head in heads) + "   same verdict")
    worst = math.inf
    with Server() as server:
        for name in PROGRAMS:
            ways = (
                partial(for_a_while, name, server),
                partial(with_frontrun, name, server, kept=False),
                partial(with_frontrun, name, server, kept=True),
            )
            rows = [[way() for way in ways] for _ in range(rounds)]
            ours, fresh, kept = (statistics.median(row[i][1] for row in rows) for i in range(3))
            ratio, to_kept = (statistics.median(row[0][1] / row[i][1] for row in rows) for i in (1, 2))
            same = len({safe for row in rows for safe, _ in row}) == 1
            verdict = "safe" if rows[0][0][0] else "violated"
            numbers = "".join(f"{number:10,.1f}" for number in (ours, fresh, ratio, kept, to_kept))
            print(f"{name:34}{verdict:>10}{numbers}   {'yes' if same else 'NO'}")
            worst = min(worst, ratio if same else 0)
    print(f"\nat least 20 times as many, with the same verdicts: {met(worst >= 20)} (the least: {worst:.1f})")


# --- 2. where the time goes ---------------------------------------------------------------------------------


def share_of_redis(rounds: int, everywhere: set[int]) -> None:
    print("\n2. Where the time goes: three clients of three INCRs, all their 1,680 interleavings\n")
    heads = ("redis-py alone", "explored", "share")
    print(f"{'µs for one interleaving':28}" + "".join(f"{head:>16}" for head in heads))
    shares = []
    for title, where in (("as one runs it", everywhere), ("everything on one core", {max(everywhere)})):
        run_on(where)
        with Server() as server:
            shares.append(_share(title, server, rounds))
    print(f"\nat least 90 % of the wall time is redis-py and its round trips: {met(min(shares) >= 0.9)}")


def _share(title: str, server: Server, rounds: int) -> float:
    """How much of the time of an exploration its bare commands take; and the profile of one."""
    program = Program(three_incr, 3, lambda r: bool(r.get("n") == "9"))
    rows = []
    with _bare(program, server) as bare:
        calls: tuple[Callable[[], int], ...] = (
            lambda: bare(1680),
            lambda: with_labkit(program, server, reduce=False).runs,
        )
        for number in range(rounds):
            took = {call: _timed(call) for call in calls[:: 1 if number % 2 else -1]}
            rows.append([took[call] for call in calls])
    alone, explored = (statistics.median(row[i] for row in rows) * 1e6 for i in (0, 1))
    share = statistics.median(one / other for one, other in rows)
    print(f"{title:28}{alone:16,.0f}{explored:16,.0f}{share:16.0%}")
    _profile(lambda: with_labkit(program, server, reduce=False))
    return share


@contextmanager
def _bare(program: Program, server: Server) -> Iterator[Callable[[int], int]]:
    """The very commands of an interleaving, without a scheduler."""
    from labkit.rig.stage import _EMPTY

    main = server.client(single_connection_client=True)
    clients = [server.client(socket_timeout=None) for _ in range(program.clients)]

    def run(times: int) -> int:
        empty = main.script_load(_EMPTY)
        for _ in range(times):
            main.execute_command("EVALSHA", empty, 0)
            set_up(main)
            for r in clients:
                program.actor(r)
            program.holds(main)
        return times

    yield run
    for r in (main, *clients):
        r.close()


def _timed(call: Callable[[], int]) -> float:
    """Seconds for each interleaving."""
    gc.collect()
    start = perf_counter()
    runs = call()
    return (perf_counter() - start) / runs


def _profile(work: Callable[[], object]) -> None:
    """Where a timer finds the program, twice a millisecond; it sees a socket's wait as redis-py's."""
    seen: Counter[str] = Counter()

    def look(_: int, frame: Any) -> None:
        module = str(frame.f_globals.get("__name__", "?")) if frame else "?"
        seen[module if module.startswith("labkit") else module.partition(".")[0]] += 1

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    parts = [f"{count / seen.total():.1%} {module}" for module, count in seen.most_common(6)]
    print(f"    profile: {', '.join(parts)}")


# --- 3. what reduction leaves -------------------------------------------------------------------------------


def own_keys(number: int, shared: int) -> Callable[[Any], None]:
    """A client of four commands, `shared` of them on a key that all use."""

    def client(r: Any) -> None:
        for i in range(4):
            r.incr("shared" if i < shared else f"own:{number}:{i}")

    return client


def reduction() -> None:
    print("\n3. What reduction leaves of three clients with four commands each\n")
    print(f"{'commands on the shared key':28} {'interleavings':>14} {'run':>7} {'share':>8}")
    full, worst = math.factorial(12) // math.factorial(4) ** 3, 0.0
    with Server() as server:
        for shared in (0, 1, 2):
            actors = [own_keys(number, shared) for number in range(3)]
            found = explore(actors, invariant=lambda r: True, server=server)
            assert found.total == full, (found.total, full)
            if shared <= 1:
                worst = max(worst, found.runs / full)
            print(f"{f'{shared} of 4':28} {found.total:14,} {found.runs:7,} {found.runs / full:8.2%}")
    print(f"\nunder 5 % where most keys are the clients' own (0 or 1 of 4 shared): {met(worst < 0.05)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--inside-frontrun", nargs=3, metavar=("URL", "PROGRAM", "KEPT"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.inside_frontrun:
        url, name, kept = args.inside_frontrun
        inside_frontrun(url, name, bool(kept))
        return
    everywhere = cores()
    run_on({max(everywhere)})
    against_frontrun(args.rounds)
    share_of_redis(2 * args.rounds + 1, everywhere)
    reduction()


if __name__ == "__main__":
    main()
