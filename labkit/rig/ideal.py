"""Caches without a server, as bounds for real ones: an exact LRU, and one that knows what will be asked for.

ideal(zipf(20_000, keys=3000), entries=500)                  # 0.82: nobody can beat it
ideal(zipf(20_000, keys=3000), 500, "exact LRU")             # 0.69: what Redis's sampling comes near to
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

__all__ = ["RULES", "Key", "ideal"]

Key = int | str
"""An int is the rank of a page, and is counted; a str is a key of something else, and is not: a scan's."""


def ideal(
    keys: Sequence[Key], entries: int, rule: Literal["exact LRU", "clairvoyant"] | str = "clairvoyant"
) -> float:
    """The hit ratio of the pages in a cache of so many entries, simulated: no server, no sampling.

    "exact LRU" drops what was used longest ago. "clairvoyant" drops what will be needed last, which nobody
    can know and nobody can beat (Belady 1966): the upper bound. ValueError for another rule, or no entries.
    """
    if entries < 1 or rule not in RULES:
        raise ValueError(f"entries is {entries!r}, rule {rule!r}; 1 or more, and one of {', '.join(RULES)}")
    return RULES[rule](keys, entries)


def _exact_lru(keys: Sequence[Key], entries: int) -> float:
    held: OrderedDict[Key, None] = OrderedDict()
    pages = hits = 0
    for key in keys:
        hit = key in held
        held[key] = None
        held.move_to_end(key)
        if len(held) > entries:
            held.popitem(last=False)
        pages, hits = pages + isinstance(key, int), hits + (hit and isinstance(key, int))
    return hits / pages if pages else 0.0


def _clairvoyant(keys: Sequence[Key], entries: int) -> float:
    never, following, soonest = len(keys), [0] * len(keys), dict[Key, int]()
    for at in range(len(keys) - 1, -1, -1):
        following[at] = soonest.get(keys[at], never)
        soonest[keys[at]] = at
    held: dict[Key, int] = {}
    last: list[tuple[int, int, Key]] = []
    pages = hits = 0
    for at, key in enumerate(keys):
        hit = key in held
        pages, hits = pages + isinstance(key, int), hits + (hit and isinstance(key, int))
        while not hit and len(held) >= entries:
            needed, _, other = heapq.heappop(last)
            if held.get(other) == -needed:  # else it was asked for since
                del held[other]
        held[key] = following[at]
        heapq.heappush(last, (-following[at], at, key))
    return hits / pages if pages else 0.0


RULES = {"exact LRU": _exact_lru, "clairvoyant": _clairvoyant}
"""Caches without a server, for `ideal`, and for the `bounds` of `labkit.rig.eviction.compare`."""
