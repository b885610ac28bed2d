"""A look at some of the keys, bounded in commands and in time; and what may be said of all of them.

SCAN walks the keys in the order of their hashes, which has nothing to do with their names or ages: the first
thousand are as good as any thousand (Redis, "SCAN": every key present throughout is returned). In a cluster a
server's slots come one after another, so keys that share a hash tag come together.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import ResponseError

from labkit.rig.audit.replies import send

if TYPE_CHECKING:
    import redis

BATCH = 250
"""So many keys are asked for at once: a tenth of a millisecond or so of the server's time per SCAN."""

LENGTHS = {"hash": "HLEN", "list": "LLEN", "set": "SCARD", "zset": "ZCARD", "stream": "XLEN"}

Z = 1.959964
"""95 % of a normal distribution lie within so many standard deviations."""


class Key(NamedTuple):
    """A sampled key. `ttl` is in seconds, None for none; `bytes` and `elements` are None where unknown."""

    name: bytes
    kind: str
    ttl: float | None
    bytes: int | None
    elements: int | None = None


Refusal = tuple[bytes, ResponseError]
"""The name of a key, and why something of it was not told."""


@dataclass(frozen=True)
class Sample:
    """The keys looked at, whether these were all, and what was refused: SCAN, or something of single keys."""

    keys: tuple[Key, ...]
    complete: bool
    unlisted: ResponseError | None = None
    refusals: tuple[Refusal, ...] = ()


def most_scans(keys: int) -> int:
    """So many SCANs at most: a table that has lost most of its keys gives few of them a time."""
    return 16 + 4 * -(-keys // BATCH)


def sample(own: redis.Redis, keys: int, seconds: float, many: int) -> Sample:
    """Look at up to `keys` keys: their types, TTLs, sizes, and how many elements where that may be `many`.

    At most `most_scans(keys)` times three round trips (SCAN; TYPE, PTTL and MEMORY USAGE with five samples of
    each key; the lengths of those with at least `many` bytes, since an element takes one at the least), and
    none begins once `seconds` have passed.
    """
    found: list[Key] = []
    refusals: list[Refusal] = []
    names: set[bytes] = set()
    deadline, cursor, complete = time.monotonic() + seconds, 0, False
    for _ in range(most_scans(keys)):
        (page,) = send(own, [("SCAN", cursor, "COUNT", BATCH)])
        if isinstance(page, ResponseError):
            return Sample(tuple(found), False, page, tuple(refusals))
        cursor, new = int(page[0]), [name for name in dict.fromkeys(page[1]) if name not in names]
        wanted = new[: keys - len(names)]
        names |= set(wanted)
        looked, refused = _look(own, wanted, many)
        found += looked
        refusals += refused
        complete = cursor == 0 and len(wanted) == len(new) and not refusals
        if cursor == 0 or len(names) >= keys or time.monotonic() > deadline:
            break
    return Sample(tuple(found), complete, None, tuple(refusals))


def _look(own: redis.Redis, names: Sequence[bytes], many: int) -> tuple[list[Key], list[Refusal]]:
    """What there is of these keys (one may have gone meanwhile), and what was refused."""
    commands = [
        command
        for name in names
        for command in (("TYPE", name), ("PTTL", name), ("MEMORY", "USAGE", name, "SAMPLES", 5))
    ]
    answers = send(own, commands)
    seen, refusals = [], []
    for name, *told in zip(names, answers[::3], answers[1::3], answers[2::3], strict=True):
        refusals += [(name, one) for one in told if isinstance(one, ResponseError)]
        kind, ttl, size = (None if isinstance(one, ResponseError) else one for one in told)
        if kind is not None and ttl not in (None, -2):
            seen.append(Key(name, kind.decode(), None if ttl == -1 else ttl / 1000, size))
    large = [key for key in seen if key.kind in LENGTHS and (key.bytes is None or key.bytes >= many)]
    lengths = send(own, [(LENGTHS[key.kind], key.name) for key in large])
    long = {key.name: n for key, n in zip(large, lengths, strict=True) if isinstance(n, int)}
    both = zip(large, lengths, strict=True)
    refusals += [(key.name, one) for key, one in both if isinstance(one, ResponseError)]
    return [key._replace(elements=long.get(key.name)) for key in seen], refusals


def wilson(part: int, whole: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval for a share of which `part` of `whole` were seen.

    Good for small samples and for shares near 0 and 1, where the usual ± is not (Brown, Cai and DasGupta,
    "Interval Estimation for a Binomial Proportion", 2001). Raises ValueError for what is no share.
    """
    if not 0 <= part <= whole or not whole:
        raise ValueError(f"{part} of {whole}; there must be at least one, and no more than all")
    seen, spread = part / whole, Z * Z / whole
    middle = seen + spread / 2
    half = Z * sqrt(seen * (1 - seen) / whole + spread / whole / 4)
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if part == 0 else low), (1.0 if part == whole else high)


# Names without what is only an id

DEPTH = 4
"""So many parts of a name are told apart; what comes after them is `…`."""

FEW = 10
"""So many words at one place are told apart, whatever they are; of more, only the frequent ones."""

FREQUENT = 0.02

WORD = re.compile(r"(?!.*\d.*\d.*\d)(?![0-9a-fA-F-]{8,}$)[A-Za-z_][\w.\-]{0,31}", re.ASCII)
"""A part of a name that is a word, and no id: no more than two digits, not hexadecimal, not long."""


def shapes(names: Iterable[bytes]) -> dict[bytes, str]:
    """Names with `*` for their ids: user:1:cart and user:2:cart both are `user:*:cart`.

    A part between colons is an id if it does not look like a word, or if it is one of many rare ones (names
    of people, say). A name of mere words is its own shape; nothing is left in one but letters, digits,
    `_ . - : * …`.
    """
    parts = {name: _parts(name) for name in names}
    shaped: dict[bytes, str] = {}
    _walk(list(parts), parts, (), shaped)
    return shaped


def pattern(name: bytes, shape: str) -> str:
    """For the MATCH of SCAN: it matches the name, and tells no more of it than its shape does."""
    parts = name.decode("latin-1").split(":", DEPTH)
    both = zip(parts, shape.split(":"), strict=True)
    return ":".join("*" if word in ("*", "…") else re.sub("[{}]+", "*", part) for part, word in both)


def _parts(name: bytes) -> tuple[str, ...]:
    """Its first parts, ids already masked; the braces of a hash tag are not part of the name."""
    text = name.decode("latin-1").replace("{", "").replace("}", "")
    told = [part if WORD.fullmatch(part) else "*" for part in text.split(":", DEPTH)]
    return (*told[:DEPTH], *(["…"] if len(told) > DEPTH else []))


def _walk(
    names: list[bytes], parts: dict[bytes, tuple[str, ...]], path: tuple[str, ...], shaped: dict[bytes, str]
) -> None:
    below: dict[str, list[bytes]] = defaultdict(list)
    for name in names:
        if len(parts[name]) == len(path):
            shaped[name] = ":".join(path)
        else:
            below[parts[name][len(path)]].append(name)
    words = Counter({word: len(its) for word, its in below.items() if word != "*"})
    rare = (
        {word for word, n in words.items() if n < max(3, FREQUENT * len(names))} if len(words) > FEW else ()
    )
    together: dict[str, list[bytes]] = defaultdict(list)
    for word, its in below.items():
        together["*" if word in rare else word] += its
    for word, its in together.items():
        _walk(its, parts, (*path, word), shaped)
