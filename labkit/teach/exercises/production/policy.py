"""Chapter 10, exercise policy: a memory that three kinds of keys share, and a promise that holds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from labkit.rig.eviction import POLICIES, Cache, polluted
from labkit.rig.ideal import Key
from labkit.rig.traffic import zipf
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.lab import Lab

STUB = '''
def plan(measure):
    """The policy, the kinds of keys that expire, and the hit ratio that it promises."""
    raise NotImplementedError
'''

REFERENCE = '''
def plan(measure):
    """The policy, the kinds of keys that expire, and the hit ratio that it promises."""
    # volatile: only what has a TTL is dropped, so orders get none. lfu: a report's keys are read once.
    policy, expires = "volatile-lfu", {"page", "report"}
    seen = measure(policy, expires)
    return {"policy": policy, "expires": expires, "hit_ratio": round(seen.hit_ratio - 0.01, 2)}
'''

_CHOICE = '"volatile-lfu", {"page", "report"}'
_PROMISE = "round(seen.hit_ratio - 0.01, 2)"

_RETURN = REFERENCE[REFERENCE.index("    return ") :]


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


WRONG = (
    _wrong(
        "orders",
        "allkeys-lru, as most caches have it: an order that nobody reads is what was used longest ago",
        (_CHOICE, '"allkeys-lru", {"page", "report"}'),
    ),
    _wrong(
        "orders",
        "allkeys-lfu has the best hit ratio of all, and takes orders for the least popular keys",
        (_CHOICE, '"allkeys-lfu", {"page", "report"}'),
    ),
    _wrong(
        "orders",
        "a TTL on everything: so orders may be dropped, too",
        (_CHOICE, '"volatile-lfu", {"page", "report", "order"}'),
    ),
    _wrong(
        "refused",
        "noeviction keeps every order; when the memory is full, no new one is taken",
        (_CHOICE, '"noeviction", {"page", "report"}'),
    ),
    _wrong(
        "refused",
        "a report's keys without a TTL can never be dropped, and fill the memory",
        (_CHOICE, '"volatile-lfu", {"page"}'),
    ),
    _wrong(
        "refused",
        "volatile, and nothing has a TTL: nothing can be dropped",
        (_CHOICE, '"volatile-lfu", set()'),
    ),
    _wrong(
        "hits",
        "volatile-lru: a report sweeps through the cache, since its keys were used last",
        (_CHOICE, '"volatile-lru", {"page", "report"}'),
    ),
    _wrong(
        "hits",
        "volatile-ttl drops a report's keys first, and then the oldest pages, popular or not",
        (_CHOICE, '"volatile-ttl", {"page", "report"}'),
    ),
    _wrong(
        "hits",
        "volatile-random drops popular pages as readily as reports: by chance",
        (_CHOICE, '"volatile-random", {"page", "report"}'),
    ),
    _wrong(
        "promise",
        "promises 0.9 without having measured: no day keeps what nobody has looked at",
        (_PROMISE, "0.9"),
    ),
    _wrong(
        "promise",
        "promises 0.3: whoever promises too little keeps it always, and 0.55 was asked for",
        (_PROMISE, "0.3"),
    ),
    _wrong(
        "promise",
        "promises the misses of another policy: the number says nothing about this one",
        ("measure(policy, expires)", 'measure("noeviction", {"page"})'),
        ("seen.hit_ratio - 0.01", "1 - seen.hit_ratio"),
    ),
    _wrong("answer", "per cent in place of a share: 60 is no ratio", (_PROMISE, "60")),
    _wrong(
        "answer", "the policy alone: which kinds expire matters as much", (_RETURN, "    return policy\n")
    ),
)

LIVES = {"page": 3_600, "report": 60, "order": 604_800}
"""For how long (s) each kind lives, if it has a TTL."""

ORDERS, PAGES, MEMORY = 40, 3_000, 300_000
YESTERDAY, DAYS = 7, (8, 10, 11)
"""Seeds of the traffic: what may be measured, and what is judged. On these days LFU hits in 0.59 to 0.60."""

LEAST = 0.55
"""The hit ratio that is asked for; the next best choice has 0.52. Redis samples, which makes 0.004 (σ)."""

_SHARE = "what a scan does to a policy that goes by the last use"
_EVICTABLE = "which keys the policy may drop: volatile-… only those with a TTL, allkeys-… all"


class Day(NamedTuple):
    """What came of a day: the hit ratio of the pages (0 to 1), writes refused, and orders that are gone."""

    hit_ratio: float
    refused: int
    lost: int


def kind(key: Key) -> str:
    return "page" if isinstance(key, int) else key.partition(":")[0]


def day(seed: int) -> list[Key]:
    """A day's requests: pages by Zipf's law; 40 % are for keys of a report, each of which is read once."""
    mixed = polluted(zipf(8_000, PAGES, seed=seed), 0.4, runs=1_000)
    return [key if isinstance(key, int) else key.replace("scan", "report") for key in mixed]


def run(lab: Lab, policy: str, expires: Collection[str], seed: int) -> Day:
    """A day in a small memory: orders come first, and nobody reads them until the evening."""
    orders = [f"order:{n}" for n in range(ORDERS)]

    def ttl(key: Key) -> float | None:
        return LIVES[kind(key)] if kind(key) in expires else None

    with Cache(lab.server, policy=policy, memory=MEMORY, ttl=ttl) as cache:
        cache.play(orders)
        cache.play(day(seed))
        found = cache.result()
        there = lab.r.exists(*orders)
    return Day(round(found.hit_ratio, 3), found.refused, ORDERS - there)


def _checked(policy: Any, expires: Any, look: str) -> tuple[str, frozenset[str]]:
    """Raises Failure for what is no policy, or no kinds of keys."""
    if not isinstance(policy, str) or policy not in POLICIES:
        what = f"{policy!r} is no policy of maxmemory-policy"
        raise Failure("answer", what, "they are " + ", ".join(POLICIES), look)
    if isinstance(expires, str) or not isinstance(expires, Collection) or not set(expires) <= set(LIVES):
        what = f"expires is {expires!r}: a set of some of {', '.join(map(repr, LIVES))}"
        raise Failure("answer", what, "", look)
    return policy, frozenset(expires)


def _grade(fn: Any, lab: Lab) -> None:
    look = 'what plan() returns: {"policy": …, "expires": {…}, "hit_ratio": …}'

    def measure(policy: str, expires: Collection[str]) -> Day:
        return run(
            lab, *_checked(policy, expires, "what measure() is given: a policy, a set of kinds"), YESTERDAY
        )

    answer = fn(measure)
    keys = {"policy", "expires", "hit_ratio"}
    if not isinstance(answer, dict) or set(answer) != keys:
        what = f"plan() gives {answer!r}: a dict with {', '.join(sorted(keys))} is asked for"
        raise Failure("answer", what, "", look)
    policy, expires = _checked(answer["policy"], answer["expires"], look)
    promised = answer["hit_ratio"]
    if isinstance(promised, bool) or not isinstance(promised, int | float) or not 0 <= promised <= 1:
        raise Failure("answer", f"hit_ratio is {promised!r}: a share, from 0 to 1", "", look)
    for seed in DAYS:
        _check_day(lab, policy, expires, promised, seed)


def _check_day(lab: Lab, policy: str, expires: frozenset[str], promised: float, seed: int) -> None:
    try:
        found = run(lab, policy, expires, seed)
    except ValueError as error:  # a policy of a newer Redis
        raise Failure("answer", str(error), "", "the version of the server") from None
    shown = ", ".join(sorted(expires)) or "nothing"
    story = Story(f"maxmemory-policy {policy}; a TTL has: {shown}")
    story.tell(f"{ORDERS} orders are written; 8,000 requests for pages, 5,333 for a report's keys")
    what = f"{found.lost} of {ORDERS} orders are gone: an order must stay until the shop removes it"
    story.hold(not found.lost, "orders", what, _EVICTABLE)
    story.tell(f"all {ORDERS} orders are there; {found.refused:,} writes were refused (OOM)")
    what = "when the memory is full, Redis refuses writes: new orders, too"
    story.hold(not found.refused, "refused", what, _EVICTABLE)
    story.tell(f"{100 * found.hit_ratio:.0f} % of the requests for pages hit")
    what = f"the pages hit in {100 * found.hit_ratio:.0f} %, and {100 * LEAST:.0f} % can be had"
    story.hold(found.hit_ratio >= LEAST, "hits", what, _SHARE)
    look = "what measure() tells of this very choice, and how much it differs from day to day"
    what = f"plan() promises {100 * promised:.0f} %, and {100 * LEAST:.0f} % are asked for"
    story.hold(promised >= LEAST, "promise", what, look)
    what = f"plan() promises {100 * promised:.0f} %, and on this day it is {100 * found.hit_ratio:.0f} %"
    story.hold(found.hit_ratio >= promised - 0.02, "promise", what, look)


EXERCISE = Exercise(
    stem="production",
    name="policy",
    title="A policy for a memory that three kinds of keys share",
    statement=f"""
A shop keeps three kinds of keys in one Redis, whose memory is too small for all of them:

- *page*: a cache of pages; few of them get most of the requests.
- *report*: rows of reports that run all day, each of which is read once and never again.
- *order*: open orders. The shop removes them itself. Until then nobody may, and nobody reads them.

Write `plan`. It returns `{{"policy": …, "expires": {{…}}, "hit_ratio": …}}`: the `maxmemory-policy`, which
kinds of keys are written with a TTL (a set of `"page"`, `"report"`, `"order"`; the TTLs are an hour, a minute
and a week), and a hit ratio of the pages that you promise for every day, from 0 to 1.

- No order is ever lost, and no write is ever refused.
- You promise {LEAST} or more, and keep it, within 0.02.

`measure(policy, expires)` sends yesterday's traffic through a real server with these settings, and gives
`hit_ratio`, `refused` and `lost`, the number of orders that are gone. Other days are a little different.
Redis samples, too: the same day again differs by about 0.01.
""".strip(),
    answer="plan",
    stub=STUB.strip(),
    hints=(
        "Which policies can lose an order? Which cannot, if orders have no TTL?",
        "If only keys with a TTL can be dropped, what becomes of a full memory in which nothing has one?",
        "A report's keys are the last that were used, and they were used once. Which policy drops them "
        "before a page that is read every minute?",
        'Let measure("volatile-lfu", {"page", "report"}) tell you what you can promise; leave some room.',
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=60,
)
