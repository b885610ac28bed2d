"""The graders of chapter 11 accept every right way, and say of a wrong one what the cluster makes of it."""

from __future__ import annotations

import re
from functools import partial

import pytest
from answers import changed, told_by, wrong
from redis.crc import key_slot

from labkit.teach import check, lab
from labkit.teach.exercises import Verdict, load
from labkit.teach.exercises.cluster import credit
from labkit.teach.exercises.cluster.grading import cluster_down, hurried, moved
from labkit.teach.exercises.cluster.read_many import BY_NODE
from labkit.teach.lab import Lab

EXERCISES = {exercise.name: exercise for exercise in load("cluster")}
_answer = partial(changed, "cluster")
_wrong = partial(wrong, "cluster")

_KEYS = EXERCISES["keys"].reference
_SAFE = 'id.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")'
_TAG = "{{user:{self._safe(user)}}}:{what}"
_CREDIT = EXERCISES["credit"].reference
_EVAL = "return rc.eval(CREDIT, 2, account, done, amount, REMEMBER)"
_LOOP = _CREDIT[_CREDIT.index("    pause, end = ") :]

_WATCH = """with rc.pipeline(transaction=True) as pipe:
                pipe.watch(done, account)
                balance = int(pipe.get(account) or 0)  # no number: found before MULTI
                if pipe.exists(done):
                    return balance
                pipe.multi()
                pipe.set(done, 1, ex=REMEMBER)
                pipe.incrby(account, amount)
                return pipe.execute()[1]
        except redis.WatchError:
            continue"""


def _of(*changes: tuple[str, str], source: str = _KEYS) -> str:
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


RIGHT = {
    "keys: the id as it is, behind a word": _of((_SAFE, "id")),
    "keys: quoted": _of((_SAFE, "__import__('urllib.parse').parse.quote(id, safe='')")),
    "keys: a digest in place of the id": _of(
        (_SAFE, "__import__('hashlib').sha256(id.encode()).hexdigest()")
    ),
    "keys: Base64, the tag first after the shop": _of(
        (_SAFE, "__import__('base64').urlsafe_b64encode(id.encode()).decode()"),
        ('f"{self.shop}:product:', 'f"{self.shop}:{{p{product}}}:'),
    ),
    "keys: 16,384 groups": _of(
        (_TAG, "{{{__import__('zlib').crc32(user.encode()) % 16384}}}:{what}:{self._safe(user)}")
    ),
    "read_many: the client has it": ("def read_many(rc, keys):\n    return rc.mget_nonatomic(list(keys))\n"),
    "read_many: MGET for each slot, in a pipeline": """
def read_many(rc, keys):
    keys, by_slot, found = list(keys), {}, {}
    for key in keys:
        by_slot.setdefault(rc.keyslot(key), []).append(key)
    with rc.pipeline() as pipe:
        for its in by_slot.values():
            pipe.execute_command("MGET", *its)
        for its, values in zip(by_slot.values(), pipe.execute()):
            found.update(zip(its, values))
    return [found[key] for key in keys]
""",
    "read_many: node after node, and a MOVED is asked again": _of(
        (
            "found.update(zip(its, pipe.execute()))",
            "for key, reply in zip(its, pipe.execute(raise_on_error=False)):\n"
            "                found[key] = rc.get(key) if isinstance(reply, Exception) else reply",
        ),
        source=BY_NODE,
    ),
    "read_many: a tuple": "def read_many(rc, keys):\n    return tuple(rc.mget_nonatomic(list(keys)))\n",
    "credit: WATCH, MULTI, EXEC": _of((_EVAL, _WATCH), source=_CREDIT),
    "credit: a script that is registered, and Retry": _of(
        (
            _LOOP,
            """
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry

    script = rc.register_script(CREDIT)
    retry = Retry(ExponentialBackoff(cap=1, base=0.02), 30, supported_errors=OUTAGE)
    return retry.call_with_retry(
        lambda: script(keys=[account, done], args=[amount, REMEMBER]), lambda error: None
    )
""",
        ),
        source=_CREDIT,
    ),
    "credit: a sorted set with moments of the server": _of(
        (":done:{operation}", ":done"),
        (
            "if redis.call('EXISTS', KEYS[2]) == 0 then",
            "local now = tonumber(redis.call('TIME')[1])\n"
            "redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[2])\n"
            "if not redis.call('ZSCORE', KEYS[2], ARGV[3]) then",
        ),
        (
            "redis.call('SET', KEYS[2], 1, 'EX', ARGV[2])",
            "redis.call('ZADD', KEYS[2], now, ARGV[3])\n    redis.call('EXPIRE', KEYS[2], ARGV[2])",
        ),
        ("amount, REMEMBER)", "amount, REMEMBER, operation)"),
        source=_CREDIT,
    ),
    "credit: the same pause each time, a number of attempts, another way to sleep": _of(
        ("    while True:\n", "    for attempt in range(240):\n"),
        ("if time.monotonic() > end:", "if attempt == 239:"),
        ("time.sleep(pause * random.uniform(0.5, 1))", "__import__('threading').Event().wait(0.05)"),
        source=_CREDIT,
    ),
    "credit: names imported on their own, a deadline on the calendar": _of(
        ("import time\n", "from time import sleep\nfrom datetime import datetime, timedelta\n"),
        ("time.monotonic() + PATIENCE", "datetime.now() + timedelta(seconds=PATIENCE)"),
        ("time.monotonic() > end", "datetime.now() > end"),
        ("time.sleep(", "sleep("),
        source=_CREDIT,
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_answers_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "WATCH" not in name:  # to the others a failover is what it is to the reference
        monkeypatch.setattr(credit, "_check_failover", lambda answer, bench: None)
    exercise = EXERCISES[name.partition(":")[0]]
    assert RIGHT[name] != exercise.reference
    verdict = check.grade(exercise, exercise.build(RIGHT[name]))
    assert verdict == Verdict("correct", message=exercise.title), str(verdict)


# --- what is told -------------------------------------------------------------------------------------------


def test_an_empty_tag_is_told_with_the_slots() -> None:
    verdict = _wrong("keys", "an id as it is")
    assert verdict.message == "the keys of the user '' are in 3 slots"
    told = told_by(verdict)
    assert told[0].endswith(":{}:profile'") and told[3].startswith("CLUSTER KEYSLOT ")
    name, slot = told[3].removeprefix("CLUSTER KEYSLOT ").split(" -> ")
    assert key_slot(name.encode()) == int(slot)


def test_a_hot_slot_is_told_with_its_number() -> None:
    verdict = _wrong("keys", "one tag for the whole shop")
    assert verdict.message == "a hot slot: of 20,000 users, 20,000 are in one slot; 40 may be"


def test_an_uneven_part_of_the_slots_is_found() -> None:
    """No slot has many, but half of the slots have nothing."""
    half = """
    @staticmethod
    def _tag(user):
        from redis.crc import key_slot
        return next(t for n in range(99) if key_slot((t := f"{n}:{user}").encode()) < 8192)
"""
    safe = ("{{user:{self._safe(user)}}}", "{{u:{self._tag(self._safe(user))}}}")
    tag = ('key_slot((t := f"{n}', 'key_slot((t := f"u:{n}')
    back = ("8192)", "8192)[2:]")
    verdict = _answer(
        "keys", safe, ("    @staticmethod\n", _of(tag, back, source=half) + "\n    @staticmethod\n")
    )
    assert (verdict.property, verdict.message) == ("hot", "they are spread unevenly over the slots"), str(
        verdict
    )


def test_round_trips_are_counted_on_the_wire() -> None:
    verdict = _wrong("read_many", "a GET for each key")
    assert verdict.message == "it took 403 round trips; 3 suffice, one for each node"


def test_a_crash_is_told_command_by_command() -> None:
    verdict = _wrong("credit", "done first")
    assert verdict.message == "a crash, and a second attempt: op-1 was never applied, and counts as done"
    told = [line.split()[0] for line in told_by(verdict)]
    assert told == ["A:", "SET", "A", "credit(rc,", "GET"]


def test_done_and_not_added_is_found_when_the_account_is_mended() -> None:
    verdict = _wrong("credit", "says done before it adds")
    assert verdict.message.startswith("op-1 failed, and counts as done: ")
    told = [re.sub(r"ada\d+", "ada", line) for line in told_by(verdict)[-2:]]
    assert told == ["credit(rc, '{ada}', 5, 'op-1') -> 0", "GET {ada} -> 0"]


def test_moments_that_nobody_takes_out_are_told() -> None:
    verdict = _wrong("credit", "from which nothing is removed")
    assert verdict.message.endswith(":done still holds op-1: it grows as long as others are added")
    assert told_by(verdict)[-2].endswith("are a day older:")


def test_a_product_that_is_named_like_a_cart_is_told() -> None:
    told = told_by(_wrong("keys", "ends in the name as it is"))
    assert told[0].startswith("profile('7') -> ") and told[1].startswith("product('{user:7}:profile') -> ")


def test_two_at_once_are_told_as_an_interleaving() -> None:
    told = told_by(_wrong("credit", "asks, then MULTI"))
    between = told.index("(B does all of it)")
    assert told[between - 1].startswith("EXISTS") and told[between + 1] == "MULTI"


def test_how_long_it_tried_is_told() -> None:
    verdict = _wrong("credit", "gives up after a second")
    assert re.match(r"after \d\.\d s of an outage of 9 s your code gives up: Conn", verdict.message)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("keys", ("def cart(", "def basket("), "MyKeys(…) gives MyKeys, which has no method cart()"),
        ("read_many", ("return pipe.execute()", "pipe.execute()"), "it gives NoneType: a list of values"),
        ("credit", (_EVAL, f"{_EVAL} + 0.0"), "credit() gives 5.0: the balance is asked for"),
    ],
)
def test_a_wrong_type_is_said_so(name: str, change: tuple[str, str], message: str) -> None:
    verdict = _answer(name, change)
    assert verdict.property == "answer" and verdict.message.startswith(message), str(verdict)


@pytest.mark.parametrize(
    ("old", "new", "property"),
    [
        (
            "                pipe.watch(done, account)\n                balance = int(pipe.get",
            "                balance = int(rc.get",
            "race",
        ),
        ("except redis.WatchError", "except ZeroDivisionError", "raises"),
        (", ex=REMEMBER", "", "ttl"),
        (
            "                balance = int(pipe.get(account) or 0)  # no number: found before MULTI\n"
            "                if pipe.exists(done):\n                    return balance\n",
            "                if pipe.exists(done):\n                    return int(pipe.get(account))\n",
            "lost",
        ),
    ],
)
def test_what_can_go_wrong_with_watch(old: str, new: str, property: str) -> None:
    exercise = EXERCISES["credit"]
    asks = _of((old, new), source=_WATCH)
    if "rc.get" in new:
        asks = asks.replace("pipe.exists", "rc.exists")
    source = _of((_EVAL, asks), source=_CREDIT)
    verdict = check.grade(exercise, exercise.build(source))
    assert verdict.property == property, str(verdict)


def test_who_stays_with_a_node_that_died_is_found_by_the_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows a MOVED, but asks the dead primary until its time is up."""
    monkeypatch.setattr(credit, "_check_outages", lambda answer, bench: None)  # so that its time may be short
    node = "rc.get_redis_connection(rc.get_node_from_key(account))"
    follows = f"""try:
                return node.eval(CREDIT, 2, account, done, amount, REMEMBER)
            except redis.exceptions.MovedError:
                {_EVAL}"""
    verdict = _answer(
        "credit",
        ("    pause, end = 0.02,", f"    node = {node}\n    pause, end = 0.02,"),
        (_EVAL, follows),
        ("PATIENCE, REMEMBER = 20", "PATIENCE, REMEMBER = 1"),
    )
    assert verdict.property == "failover", str(verdict)
    assert verdict.message.startswith("its replica takes over, and your code raises ConnectionError")


# --- the graders' cluster -----------------------------------------------------------------------------------


def test_the_cluster_is_shared_emptied_and_replaced_where_an_answer_broke_it() -> None:
    exercise = EXERCISES["read_many"]
    reads = "return rc.mget_nonatomic(list(keys))"
    check.grade(exercise, exercise.build(f"def read_many(rc, keys):\n    rc.set('left', 1)\n    {reads}\n"))
    first, bench = lab._cluster, Lab()
    assert first is not None and bench.cluster is first
    assert bench.rc.dbsize() == 0
    bench.close()
    shuts = "rc.get_redis_connection(rc.get_primaries()[0]).shutdown(nosave=True)"
    verdict = check.grade(exercise, exercise.build(f"def read_many(rc, keys):\n    {shuts}\n    {reads}\n"))
    assert verdict.state == "incorrect", str(verdict)
    assert check.grade(exercise, exercise.build(exercise.reference)).state == "correct"
    assert lab._cluster is not first


def test_who_waits_for_the_cluster_is_woken_when_the_time_is_up() -> None:
    waits = "def read_many(rc, keys):\n    rc.blpop('nothing', 0)\n"
    exercise = EXERCISES["read_many"]
    limited = type(exercise)(**{**vars(exercise), "seconds": 0.5})
    assert check.grade(limited, limited.build(waits)).property == "hangs"
    bench = Lab()
    assert bench.rc.ping()
    bench.close()


def test_an_outage_is_one_and_slots_come_back() -> None:
    bench = Lab()
    rc, key = bench.rc, "bank:{ada}"
    rc.set(key, 1)
    owner = bench.cluster.owner(key).name
    with cluster_down(bench, key) as end, hurried(None) as passing:
        with pytest.raises(Exception, match="cluster is down"):
            rc.get(key)
        assert passing.slept >= 0.25  # the client's own pause has passed without waiting
        end()
        assert rc.get(key) == "1"
    with moved(bench, [key]):
        assert bench.cluster.owner(key).name != owner
        assert rc.get(key) == "1"
    assert bench.cluster.owner(key).name == owner
    bench.close()
