"""What the sampled keys say of all keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from redis.exceptions import ResponseError

from labkit.rig.audit.asking import Question, refused
from labkit.rig.audit.report import Big, Finding, Group, Sampled, Unseen, count, share, size
from labkit.rig.audit.sampling import Key, Sample, pattern, shapes, wilson
from labkit.rig.audit.seen import Seen

GROUPS = 50
"""So many prefixes are told of, those with the most keys; what the others have in common is `(others)`."""

BIGGEST = 10


def check(seen: Seen) -> Iterator[Finding]:
    yield from _without_ttl(seen)
    yield from _big(seen)


def summed_up(seen: Seen, sample: Sample, db: int) -> Sampled:
    """What was sampled, by prefix; what could not be, goes into `seen.unseen`."""
    _note_refusals(seen, sample)
    for other, (keys, _) in sorted(seen.databases.items()):
        if other != db:
            what = f"the names and sizes of {count(keys, 'key')} in database {other}"
            seen.unseen.append(Unseen(what, f"this client is of database {db}", "", seen.node))
    total, _ = seen.databases.get(db, (0, 0))
    shaped = shapes(key.name for key in sample.keys)
    biggest = sorted(sample.keys, key=lambda key: (-(key.bytes or 0), -(key.elements or 0), key.name))
    return Sampled(
        db,
        len(sample.keys),
        max(total, len(sample.keys)),
        sample.complete,
        _groups(sample, shaped),
        tuple(
            Big(key.name, shaped[key.name], key.kind, key.bytes, key.elements) for key in biggest[:BIGGEST]
        ),
        seen.node,
    )


def _note_refusals(seen: Seen, sample: Sample) -> None:
    if sample.unlisted is not None:
        scan = Question(("SCAN",), "which keys there are: SCAN", "+scan")
        seen.unseen.append(refused(scan, sample.unlisted, seen.node))
    hidden: dict[str, dict[bytes, ResponseError]] = {}
    for name, error in sample.refusals:
        command = str(error).partition("run the '")[2].partition("'")[0]
        hidden.setdefault(command, {}).setdefault(name, error)
    for command, errors in sorted(hidden.items()):
        keys = count(len(errors), "sampled key")
        what = f"{keys}: {command.replace('|', ' ').upper()}" if command else keys
        right = f"+{command}" if command else "%R~*"
        seen.unseen.append(refused(Question((), what, right), next(iter(errors.values())), seen.node))


def _groups(sample: Sample, shaped: dict[bytes, str]) -> tuple[Group, ...]:
    frequent = [shape for shape, _ in Counter(shaped.values()).most_common(GROUPS)]
    by_shape: dict[str, list[Key]] = {}
    for key in sample.keys:
        shape = shaped[key.name]
        by_shape.setdefault(shape if shape in frequent else "(others)", []).append(key)
    groups = []
    for shape, its in by_shape.items():
        without = sum(key.ttl is None for key in its)
        exactly = (without / len(its),) * 2
        low, high = exactly if sample.complete else wilson(without, len(its))
        groups.append(Group(shape, len(its), without, low, high))
    return tuple(sorted(groups, key=lambda group: (-group.keys, group.prefix)))


def _without_ttl(seen: Seen) -> Iterator[Finding]:
    """Forgotten where the keys of one prefix have it and have it not; else a decision, to be known."""
    limits = seen.limits
    groups = [group for group in (seen.sampled.groups if seen.sampled else ()) if _judged(seen, group)]
    mixed = [one for one in groups if one.low > limits.mixed_share and 1 - one.high > limits.mixed_share]
    never = [one for one in groups if one.without_ttl == one.keys] if not seen.evicts_everything else []
    if not mixed and not never:
        return
    told = [_told(group) for group in [*mixed, *never][:4]]
    more = len(mixed) + len(never) - len(told)
    evidence = "; ".join(told) + (f"; and {count(more, 'more prefix', 'more prefixes')}" if more > 0 else "")
    sure = "" if seen.sampled and seen.sampled.complete else " (95 % confidence)"
    reason = (
        "Some keys of a prefix have a TTL and some have none: one place that writes them forgets it, or two "
        "kinds of keys share a name."
        if mixed
        else "Without a TTL, and with nothing that evicts them, they stay until they are deleted."
    )
    yield seen.finding(
        "warning" if mixed and not seen.evicts_everything else "notice",
        "keys without TTL",
        f"{evidence}{sure}. {reason}",
        "SET key value EX seconds writes value and TTL at once; a plain SET removes a TTL (KEEPTTL keeps "
        "it). EXPIRE key seconds NX mends those that are there. Data that must stay is right to have none.",
    )


def _judged(seen: Seen, group: Group) -> bool:
    """A prefix that is only an id says nothing of what its keys are."""
    return group.keys >= seen.limits.group_enough and group.prefix[:1] not in ("*", "(")


def _told(group: Group) -> str:
    seen = f"{group.without_ttl:,} of {count(group.keys, 'key')} {group.prefix} have no TTL"
    if group.low == group.high:
        return seen
    return f"{seen}, so of all of them {share(group.low)} to {share(group.high)}"


def _big(seen: Seen) -> Iterator[Finding]:
    limits = seen.limits
    sample = seen.sample.keys if seen.sample else ()
    big = [key for key in sample if _times(seen, key) >= 1]
    if not big:
        return
    big.sort(key=lambda key: (-_times(seen, key), key.name))
    shaped = shapes(key.name for key in sample)
    told = [_one(key, shaped[key.name]) for key in big[:3]]
    worst = _times(seen, big[0])
    first = big[0]
    yield seen.finding(
        "warning" if worst >= 10 else "notice",
        "big keys",
        f"{count(len(big), 'key')} of {len(sample):,} sampled {'is' if len(big) == 1 else 'are'} larger than "
        f"{size(limits.big_bytes)} or {limits.big_elements:,} elements: {'; '.join(told)}.",
        "Reading or deleting one whole stalls everybody: use UNLINK for DEL, HSCAN, SSCAN or ZRANGE in parts "
        "for the whole; split it by hash or by time. SCAN with MATCH "
        f"{pattern(first.name, shaped[first.name])} TYPE {first.kind}, until its cursor is 0, finds it.",
    )


def _times(seen: Seen, key: Key) -> float:
    """How many times as large as large is."""
    by_bytes = (key.bytes or 0) / seen.limits.big_bytes
    return max(by_bytes, (key.elements or 0) / seen.limits.big_elements)


def _one(key: Key, shape: str) -> str:
    told = [f"a {key.kind} {shape}"]
    told += [f"of {key.elements:,} elements"] if key.elements is not None else []
    told += [f"({size(key.bytes)})"] if key.bytes is not None else []
    return " ".join(told)
