"""Chapter 11, exercise read_many: many keys in as few round trips as there are nodes."""

from __future__ import annotations

from typing import Any

from redis.crc import key_slot
from redis.exceptions import RedisClusterException, RedisError

from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.cluster.grading import moved, one_slot
from labkit.teach.lab import Lab

STUB = '''
def read_many(rc, keys):
    """The values of these keys, in their order; None where there is no key."""
    raise NotImplementedError
'''

REFERENCE = '''
def read_many(rc, keys):
    """The values of these keys, in their order; None where there is no key."""
    with rc.pipeline() as pipe:  # it sends each node what is the node's, all of it, and then reads
        for key in keys:
            pipe.get(key)
        return pipe.execute()
'''

BY_NODE = """
def read_many(rc, keys):
    keys, by_node, found = list(keys), {}, {}
    for key in keys:
        node = rc.get_node_from_key(key)
        by_node.setdefault(node.name, (node, []))[1].append(key)
    for node, its in by_node.values():
        with rc.get_redis_connection(node).pipeline(transaction=False) as pipe:
            for key in its:
                pipe.get(key)
            found.update(zip(its, pipe.execute()))
    return [found[key] for key in keys]
"""

WRONG = (
    Wrong(
        "def read_many(rc, keys):\n    return [rc.get(key) for key in keys]\n",
        "round_trips",
        "a GET for each key: it waits once for each, not once for each node",
    ),
    Wrong(
        "def read_many(rc, keys):\n    keys = list(keys)\n    return rc.mget(keys) if keys else []\n",
        "slot",
        "MGET of keys in many slots is refused (CROSSSLOT): it is right on a single server only",
    ),
    Wrong(
        """
def read_many(rc, keys):
    with rc.pipeline(transaction=True) as pipe:
        for key in keys:
            pipe.get(key)
        return pipe.execute()
""",
        "slot",
        "MULTI for keys in many slots: a transaction is of one slot",
    ),
    Wrong(
        """
def read_many(rc, keys):
    keys, by_slot, found = list(keys), {}, {}
    for key in keys:
        by_slot.setdefault(rc.keyslot(key), []).append(key)
    for its in by_slot.values():
        found.update(zip(its, rc.mget(its)))
    return [found[key] for key in keys]
""",
        "round_trips",
        "an MGET for each slot: there may be thousands of slots, and three nodes",
    ),
    Wrong(
        """
def read_many(rc, keys):
    return [value for value in rc.mget_nonatomic(list(keys)) if value is not None]
""",
        "missing",
        "leaves out what is missing: the values no longer stand under their keys",
    ),
    Wrong(
        """
def read_many(rc, keys):
    return [value or None for value in rc.mget_nonatomic(list(keys))]
""",
        "values",
        "`value or None`: an empty text is a value, too",
    ),
    Wrong(
        """
def read_many(rc, keys):
    by_node, values = {}, []
    for key in keys:
        by_node.setdefault(rc.get_node_from_key(key).name, []).append(key)
    for name in sorted(by_node):
        values += rc.mget_nonatomic(by_node[name])
    return values
""",
        "order",
        "gives the values node by node: they no longer stand under their keys",
    ),
    Wrong(
        """
def read_many(rc, keys):
    return rc.mget_nonatomic(list(dict.fromkeys(keys)))
""",
        "twice",
        "a dict by key, and its values: a key that is asked for twice is answered once",
    ),
    Wrong(
        """
def read_many(rc, keys):
    with rc.pipeline() as pipe:
        for key in list(keys):
            pipe.exists(key)
            pipe.get(key)
        return pipe.execute()[1::2] or None
""",
        "empty",
        "None where nothing is asked for: a loop over the answer fails",
    ),
    Wrong(
        BY_NODE,
        "moved",
        "asks each node by itself, and nobody follows a MOVED",
    ),
    Wrong(
        BY_NODE.replace(
            "found.update(zip(its, pipe.execute()))",
            "replies = pipe.execute(raise_on_error=False)\n"
            "            found.update((k, v if isinstance(v, str) else None) for k, v in zip(its, replies))",
        ),
        "moved",
        'takes every error for a missing key: a MOVED becomes "there is none"',
    ),
    Wrong(
        "def read_many(rc, keys):\n    return dict(zip(keys, rc.mget_nonatomic(list(keys))))\n",
        "answer",
        "a dict in place of a list: a key that is asked for twice is there once",
    ),
)

MANY = 400
_NODES = "rc.pipeline(): it gathers the commands, sends each node all that is the node's, and then reads"
_PLACES = "what tells which value belongs to which key"


def _grade(read_many: Any, lab: Lab) -> None:
    rc: Any = lab.rc
    prefix = lab.key("item")
    keys = [f"{prefix}:{n * n % 1009}" for n in range(MANY)]  # some come twice
    stored = {key: f"value {n}" for n, key in enumerate(sorted(set(keys))) if n % 10}
    stored |= {f"{prefix}:empty": "", f"{prefix}:0": "0"}
    with rc.pipeline() as pipe:
        for key, value in stored.items():
            pipe.set(key, value)
        pipe.execute()
    keys[40:40] = [f"{prefix}:empty", f"{prefix}:none", f"{prefix}:empty"]
    _check_few(read_many, rc, prefix)
    _check_empty(read_many, rc, lab)
    _check_all(read_many, rc, lab, keys, stored)
    _check_moved(read_many, rc, lab, keys, stored)


def _asked(read_many: Any, rc: Any, keys: Any, call: str) -> list[Any]:
    """What it gives, which is to be a list."""
    with one_slot(call, "which slots the keys are in: a command is of one slot"):
        found = read_many(rc, keys)
    if not isinstance(found, list | tuple):
        what = f"it gives {type(found).__name__}: a list of values is asked for"
        raise Failure("answer", what, call, "what read_many() returns")
    return list(found)


def _check_few(read_many: Any, rc: Any, prefix: str) -> None:
    """Five keys, of which one is there twice, one is not, and one is empty."""
    names = ("a", "b", "none", "empty", "a")
    for name, value in (("a", "1"), ("b", "2")):
        rc.set(f"{prefix}:{name}", value)
    due, call = ["1", "2", None, "", "1"], f"read_many(rc, {list(names)})"
    found = _asked(read_many, rc, [f"{prefix}:{name}" for name in names], call)
    told = f"{call} -> {found!r}\nasked for: {due!r}"
    if len(found) == 4 and None not in found:
        raise Failure("missing", "a key that does not exist is not in the answer", told, "None, in its place")
    if len(found) == 4:
        raise Failure("twice", "a key that was asked for twice is answered once", told, _PLACES)
    if sorted(map(repr, found)) == sorted(map(repr, due)) and found != due:
        raise Failure("order", "the values are not in the order of the keys", told, _PLACES)
    if found != due:
        raise Failure("values", "these are not the values of the keys", told, "an empty text is a value, too")


def _check_empty(read_many: Any, rc: Any, lab: Lab) -> None:
    """No keys: no round trip."""
    call = "read_many(rc, [])"
    with lab.tap(rc) as tape:
        try:
            found = read_many(rc, [])
        except (RedisError, RedisClusterException, ValueError, IndexError) as error:
            what = f"with no keys at all it raises {type(error).__name__}: {str(error)[:80].rstrip('.')}"
            raise Failure("empty", what, call, "an answer before you ask: []") from None
    if found not in ([], ()) or tape.round_trips:
        what = f"no keys: [] is the answer, and needs no round trip; it took {tape.round_trips}"
        raise Failure("empty", what, f"{call} -> {found!r}", "an answer before you ask: []")


def _check_all(read_many: Any, rc: Any, lab: Lab, keys: list[str], stored: dict[str, str]) -> None:
    """Hundreds of keys, from an iterator: one round trip for each node at most."""
    nodes = len({rc.get_node_from_key(key).name for key in keys})
    slots = len({key_slot(key.encode()) for key in keys})
    call = f"read_many(rc, {len(keys)} keys in {slots} slots of {nodes} nodes)"
    with lab.tap(rc) as tape:
        found = _asked(read_many, rc, iter(keys), call)
    _compare(found, keys, stored, call, "values", _PLACES)
    if tape.round_trips > nodes:
        what = f"it took {tape.round_trips} round trips; {nodes} suffice, one for each node"
        raise Failure("round_trips", what, call, _NODES)


def _compare(
    found: list[Any],
    keys: list[str],
    stored: dict[str, str],
    call: str,
    property: str,
    look: str,
    when: str = "",
) -> None:
    if len(found) != len(keys):
        what = f"{when}it gives {len(found)} values for {len(keys)} keys"
        raise Failure(property, what, call, look)
    for place, (key, value) in enumerate(zip(keys, found, strict=True), 1):
        if value != stored.get(key):
            what = f"{when}key number {place} holds {stored.get(key)!r}, and the answer says {value!r}"
            raise Failure(property, what, call, look)


def _check_moved(read_many: Any, rc: Any, lab: Lab, keys: list[str], stored: dict[str, str]) -> None:
    """Four keys' slots are another node's, and the client has not heard of it."""
    elsewhere = [key for key in dict.fromkeys(keys) if stored.get(key)][5:9]
    call = f"{len(elsewhere)} slots have moved; read_many(rc, {len(keys)} keys)"
    look = "who follows a MOVED: rc does, the client of a single node does not"
    with moved(lab, elsewhere):
        try:
            found = _asked(read_many, rc, keys, call)
        except RedisError as error:
            if "MOVED" not in str(error) and type(error).__name__ != "MovedError":
                raise
            raise Failure("moved", "a slot has moved, and your code raises MOVED", call, look) from None
        _compare(found, keys, stored, call, "moved", look, "a slot has moved: ")


EXERCISE = Exercise(
    stem="cluster",
    name="read_many",
    title="Many keys in as few round trips as there are nodes",
    statement="""
Read many keys that are spread over the cluster. `rc` is a RedisCluster.

- `read_many(rc, keys)` gives a list of the values, in the order of `keys`: None where there is no key, and
  each value as often as its key is asked for.
- `keys` may be an iterator, too: it can be gone through only once.
- It takes one round trip for each node at most, however many keys and slots there are; none for no keys.
- If slots have moved to another node meanwhile, the answer is right all the same (that may take more round
  trips).
""".strip(),
    answer="read_many",
    stub=STUB.strip(),
    hints=(
        "MGET of keys in several slots is refused: CROSSSLOT. One GET after the other waits for each reply "
        "before it sends the next.",
        "Several commands can be on the way at once: a pipeline. That of a RedisCluster sorts them by node.",
        "rc.pipeline(), a get(key) for each key, execute(): replies come in the order of the commands, and a "
        "MOVED is followed.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=20,
)
