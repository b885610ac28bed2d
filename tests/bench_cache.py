"""What a cache costs, here and in other libraries: `uv run --group bench python tests/bench_cache.py`.

Candidates take turns in short rounds, in an order that is reversed every time; a ratio is the median over the
rounds. Two parts, each ends with its criteria and whether this run meets them:

* hits: a row of some 100 bytes from one server, all on one core, in batches of 50 (so that the asynchronous
  libraries enter their event loop once for 50 gets, one after the other). All store JSON, except cashews,
  once as it is by default (pickle) and once with JSON. A bare GET and `json.loads` is what all else adds to;
* a stampede: two processes of 16 callers each (threads; tasks where the library is asynchronous) want one key
  that is not cached, while a load takes 0.2 s, or 3 s with locks whose TTL is 1 s. Each library is asked with
  what it has against that: cashews by default and with `lock=True`, aiocache with cached_stampede, dogpile
  with a distributed lock. Counted are the loads, and how long the last caller had to wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Callable, Generator
from typing import Any
from urllib.parse import urlsplit

from benching import cores, measure, met, run_on, speed

from labkit.cache import CacheAside
from labkit.rig.processes import processes
from labkit.rig.server import Server

BATCH = 50
ROW = {
    "id": 7,
    "name": "Teapot of cast iron",
    "category": "kitchen",
    "price": 4295,
    "stock": 12,
    "version": 3,
}


def criterion(what: str, value: float, least: float) -> None:
    print(f"  {met(value >= least):7}  {what}: {value:.2f} (at least {least:g})")


def repeated(get: Callable[[Any], Any]) -> Callable[[], None]:
    """A batch of gets; the first makes sure that it is the row that comes."""

    def batch() -> None:
        for _ in range(BATCH):
            get(7)

    if get(7) != ROW or get(7) != ROW:
        raise RuntimeError(f"{get} gives {get(7)!r}")
    return batch


def awaited(loop: asyncio.AbstractEventLoop, get: Callable[[Any], Any]) -> Callable[[], None]:
    """The same, of an asynchronous get."""

    async def batch() -> None:
        for _ in range(BATCH):
            await get(7)

    async def check() -> None:
        if await get(7) != ROW or await get(7) != ROW:
            raise RuntimeError(f"{get} gives {await get(7)!r}")

    loop.run_until_complete(check())
    return lambda: loop.run_until_complete(batch())


async def load_later(key: int) -> Any:
    return ROW


def of_cashews(url: str, **options: Any) -> Callable[[Any], Any]:
    from cashews import Cache

    cache = Cache()
    cache.setup(url, **options)
    get: Callable[[Any], Any] = cache(ttl=60, key="product:{key}")(load_later)
    return get


def of_aiocache(url: str) -> Callable[[Any], Any]:
    from aiocache import Cache, cached
    from aiocache.serializers import JsonSerializer

    at = urlsplit(url)
    where = {"endpoint": at.hostname, "port": at.port, "password": at.password}
    get: Callable[[Any], Any] = cached(
        ttl=60, cache=Cache.REDIS, serializer=JsonSerializer(), namespace="aiocache", **where
    )(load_later)
    return get


def of_dogpile(url: str) -> Callable[[Any], Any]:
    from dogpile.cache import make_region

    region = make_region(serializer=lambda v: json.dumps(v).encode(), deserializer=json.loads)
    region.configure("dogpile.cache.redis", expiration_time=60, arguments={"url": url})
    get: Callable[[Any], Any] = region.cache_on_arguments()(lambda key: ROW)
    return get


def hits(rounds: int, n: int) -> None:
    loop = asyncio.new_event_loop()
    with Server() as server, server.client() as r:
        cache = CacheAside(r, lambda key: ROW, "labkit", ttl=60, timeout=10)
        script = CacheAside(r, lambda key: ROW, "script", ttl=60, timeout=10, stale=60, beta=1)
        bare = cache.r  # the same client, with the same settings
        bare.set("bare", json.dumps(ROW))
        calls = {
            "bare GET + json.loads": repeated(lambda key: json.loads(bare.get("bare"))),
            "labkit": repeated(cache.get),
            "labkit, beta and stale": repeated(script.get),
            "cashews": awaited(loop, of_cashews(server.url[:-1] + "1")),
            "cashews, JSON": awaited(loop, of_cashews(server.url[:-1] + "2", pickle_type="json")),
            "aiocache": awaited(loop, of_aiocache(server.url)),
            "dogpile.cache": repeated(of_dogpile(server.url)),
        }
        taken = measure(calls, rounds, n)
    print(f"\nA hit\n\n{'':<26}{'one get':>12}{'a second':>12}{'of bare':>10}{'of labkit':>11}")
    for name, times in taken.items():
        each = statistics.median(times) / BATCH
        ratios = (
            f"{speed(times, taken['bare GET + json.loads']):>10.2f}{speed(times, taken['labkit']):>11.2f}"
        )
        print(f"{name:<26}{each * 1e6:>9,.1f} µs{1 / each:>12,.0f}{ratios}")
    print()
    criterion("of a bare GET + json.loads", speed(taken["labkit"], taken["bare GET + json.loads"]), 0.9)
    for other in ("cashews", "cashews, JSON", "aiocache", "dogpile.cache"):
        criterion(f"times as fast as {other}", speed(taken["labkit"], taken[other]), 1)


def callers(url: str, kind: str, seconds: float, lock: int) -> Generator[None, None, Any]:
    """16 callers of one process: what they got, and when the last one had it."""
    import asyncio
    import json
    import time
    from concurrent.futures import ThreadPoolExecutor
    from urllib.parse import urlsplit

    from labkit.cache import CacheAside
    from labkit.rig.client import client

    r, at = client(url), urlsplit(url)

    def load(key: int) -> Any:
        r.incr("loads")
        time.sleep(seconds)
        return {"id": key}

    async def load_later(key: int) -> Any:
        r.incr("loads")
        await asyncio.sleep(seconds)
        return {"id": key}

    if kind == "labkit":
        get: Any = CacheAside(r, load, "labkit", ttl=60, lease=lock, timeout=10).get
    elif kind == "dogpile.cache":
        from dogpile.cache import make_region

        arguments = {"url": url, "distributed_lock": True, "lock_timeout": lock, "thread_local_lock": False}
        region = make_region(serializer=lambda v: json.dumps(v).encode(), deserializer=json.loads)
        region.configure("dogpile.cache.redis", expiration_time=60, arguments=arguments)
        get = region.cache_on_arguments()(load)
    elif kind == "aiocache":
        from aiocache import Cache, cached_stampede
        from aiocache.serializers import JsonSerializer

        where = {"endpoint": at.hostname, "port": at.port, "password": at.password}
        options = {"cache": Cache.REDIS, "serializer": JsonSerializer(), "key": "aiocache", **where}
        get = cached_stampede(lease=lock, ttl=60, **options)(load_later)
    else:
        from cashews import Cache

        cache = Cache()
        cache.setup(url)
        decorate = cache(ttl=60, key="cashews:{key}", lock=kind == "cashews, lock=True")
        get = decorate(load_later)

    async def gathered() -> list[Any]:
        return list(await asyncio.gather(*(get(7) for _ in range(16)), return_exceptions=True))

    def one(_: Any) -> Any:
        try:
            return get(7)
        except Exception as error:
            return error

    r.ping()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: time.sleep(0.01), range(16)))
        yield
        start = time.perf_counter()
        got = (
            list(pool.map(one, range(16))) if kind in ("labkit", "dogpile.cache") else asyncio.run(gathered())
        )
    return [sum(value == {"id": 7} for value in got), time.perf_counter() - start]


KINDS = ("labkit", "cashews", "cashews, lock=True", "aiocache", "dogpile.cache")


def stampede(rounds: int, seconds: float, lock: int) -> None:
    print(
        f"\nA stampede: 2 processes × 16 callers, a load takes {seconds:g} s, locks have a TTL of {lock} s\n"
    )
    print(f"{'':<26}{'loads':>16}{'served of 32':>16}{'the last had it after':>24}")
    most: dict[str, int] = {}
    for kind in KINDS:
        loads, served, waits = [], [], []
        for _ in range(rounds):
            with Server() as server, server.client() as r:
                results = processes(2, callers, server.url, kind, seconds, lock, seconds=120)
                loads.append(int(r.get("loads") or 0))
            served.append(sum(count for count, _ in results))
            waits.append(max(wait for _, wait in results))
        most[kind] = max(loads)
        told = f"{min(loads)}" if min(loads) == max(loads) else f"{min(loads)} to {max(loads)}"
        print(f"{kind:<26}{told:>16}{min(served):>16}{statistics.median(waits):>22,.2f} s")
    print(f"\n  {met(most['labkit'] == 1):7}  one load, in each of {rounds} rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--stampedes", type=int, default=3)
    options = parser.parse_args()
    everywhere = cores()
    run_on({max(everywhere)})
    hits(options.rounds, 4)
    run_on(everywhere)
    stampede(options.stampedes, 0.2, 10)
    stampede(options.stampedes, 3, 1)


if __name__ == "__main__":
    main()
