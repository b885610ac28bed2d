"""The graders of chapter 07 accept every right way, and say of a wrong one what is lost, or done twice."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from answers import changed, told_by, wrong

from labkit.rig.connection import supports
from labkit.teach import check
from labkit.teach.exercises import Verdict, load
from labkit.teach.exercises.stream.grading import GROUP, hold, idle_again, pending
from labkit.teach.lab import Lab

EXERCISES = {exercise.name: exercise for exercise in load("stream")}
_answer = partial(changed, "stream")
_wrong = partial(wrong, "stream")

_WORKER = EXERCISES["worker"].reference
_SETTLE = _WORKER[_WORKER.index("    def settle") :]


def _worker(settle: str) -> str:
    """The reference, but that it settles in another way."""
    return _WORKER.replace(_SETTLE, settle)


_WATCHES = """
    def settle(self, entry, fields):
        done = f"{self.stream}:paid:{fields['payment']}"
        while True:
            with self.r.pipeline() as pipe:
                try:
                    pipe.watch(done)
                    paid = pipe.exists(done)
                    pipe.multi()
                    if not paid:
                        pipe.set(done, entry, ex=self.REMEMBER)
                        pipe.hincrby(self.accounts, fields["to"], int(fields["amount"]))
                    pipe.xack(self.stream, self.group, entry)
                    pipe.execute()
                    return
                except redis.WatchError:
                    continue
"""

_TRIM = EXERCISES["trim"].reference
_ADD = _TRIM[_TRIM.index("    words = ") : _TRIM.index("def first_needed")]
_LUA_PAIRS = """
    local function numbers(id) local ms, n = id:match('(%d+)-(%d+)') return tonumber(ms), tonumber(n) end
    local function before(a, b)
        local ams, an = numbers(a)
        local bms, bn = numbers(b)
        return ams < bms or (ams == bms and an < bn)
    end
"""

RIGHT = {
    "worker: WATCH, again after a WatchError": _worker(_WATCHES),
    "worker: the script pays, and the acknowledgement comes after it": _WORKER.replace(
        "    return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])\n", ""
    )
    + "\n        self.r.xack(self.stream, self.group, entry)\n",
    "worker: all of a batch is acknowledged in the end": _WORKER.replace(
        "    return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])\n", ""
    ).replace(
        "        return len(entries)",
        "        if entries:\n            self.r.xack(self.stream, self.group, *[e for e, _ in entries])\n"
        "        return len(entries)",
    ),
    "worker: a whole batch in one script": _worker("""
    BATCH = '''
    for i = 3, #KEYS do
        local at = 3 * (i - 3) + 2
        if redis.call('SET', KEYS[i], 1, 'NX', 'PX', 7200000) then
            redis.call('HINCRBY', KEYS[2], ARGV[at + 1], ARGV[at + 2])
        end
        redis.call('XACK', KEYS[1], ARGV[1], ARGV[at])
    end
    '''

    def work(self):
        entries = self.read("0") or self.read(">")
        keys = [f"{self.stream}:paid:{fields['payment']}" for _, fields in entries]
        args = [word for entry, fields in entries for word in (entry, fields["to"], fields["amount"])]
        self.r.eval(self.BATCH, 2 + len(keys), self.stream, self.accounts, *keys, self.group, *args)
        return len(entries)
"""),
    "worker: a sorted set of what was paid, with moments of the server": _worker("""
    LUA = '''
    local now = tonumber(redis.call('TIME')[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 3600)
    if redis.call('ZADD', KEYS[3], 'NX', now, ARGV[3]) == 1 then
        redis.call('HINCRBY', KEYS[2], ARGV[4], ARGV[5])
    end
    redis.call('EXPIRE', KEYS[3], 3600)
    return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
    '''

    def settle(self, entry, fields):
        keys = self.stream, self.accounts, f"{self.stream}:paid"
        args = self.group, entry, fields["payment"], fields["to"], fields["amount"]
        self.r.eval(self.LUA, 3, *keys, *args)
"""),
    "worker: the group is created when it is first needed": _WORKER.replace(
        '        try:\n            r.xgroup_create(stream, group, id="0", mkstream=True)\n'
        "        except redis.ResponseError as error:\n"
        '            if not str(error).startswith("BUSYGROUP"):\n                raise\n',
        "",
    ).replace(
        "        reply = self.r.xreadgroup(self.group, self.name, {self.stream: after}, count=10)",
        """        args = self.group, self.name, {self.stream: after}
        try:
            reply = self.r.xreadgroup(*args, count=10)
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            try:
                self.r.xgroup_create(self.stream, self.group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            reply = self.r.xreadgroup(*args, count=10)""",
    ),
    "worker: own entries, and five new ones": _WORKER.replace(
        'self.read("0") or self.read(">")', 'self.read("0") + self.read(">")'
    ).replace("count=10", "count=5"),
    "reclaim: XPENDING, and XCLAIM with the idle time": """
def reclaim(r, stream, group, name, idle, most, dead):
    ms, taken = round(idle * 1000), []
    while len(taken) < 10:
        found = r.xpending_range(stream, group, "-", "+", 10 - len(taken), idle=ms)
        if not found:
            break
        count = {held["message_id"]: held["times_delivered"] for held in found}
        for entry, fields in r.xclaim(stream, group, name, ms, list(count)):
            if count[entry] < most:
                taken.append((entry, fields))
                continue
            with r.pipeline() as pipe:
                pipe.xadd(dead, {**fields, "from": entry}, maxlen=1000)
                pipe.xack(stream, group, entry).execute()
    return taken
""",
    "reclaim: XAUTOCLAIM, and MULTI": EXERCISES["reclaim"].reference.replace(
        """                words = [word for pair in letter.items() for word in pair]
                r.eval(BURY, 2, stream, dead, group, entry, *words)
""",
        "                r.pipeline().xadd(dead, letter).xack(stream, group, entry).execute()\n",
    ),
    "reclaim: one script": """
LUA = '''
local cursor, taken = '0-0', {}
repeat
    local reply = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], cursor, 'COUNT', 10 - #taken)
    cursor = reply[1]
    for _, entry in ipairs(reply[2]) do
        local id, fields = entry[1], entry[2]
        if redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1][4] > tonumber(ARGV[4]) then
            redis.call('XADD', KEYS[2], '*', 'from', id, unpack(fields))
            redis.call('XACK', KEYS[1], ARGV[1], id)
        else
            taken[#taken + 1] = entry
        end
    end
until cursor == '0-0' or #taken == 10
return taken
'''

def reclaim(r, stream, group, name, idle, most, dead):
    taken = r.eval(LUA, 2, stream, dead, group, name, round(idle * 1000), most)
    return [(entry, dict(zip(words[::2], words[1::2]))) for entry, words in taken]
""",
    "reclaim: XREADGROUP … CLAIM": """
def reclaim(r, stream, group, name, idle, most, dead):
    taken = []
    while len(taken) < 10:
        ms = round(idle * 1000)
        reply = r.xreadgroup(group, name, {stream: ">"}, count=10 - len(taken), claim_min_idle_time=ms)
        entries = dict(reply).get(stream, [])
        if not entries:
            break
        for entry, fields, *_ in entries:
            held = r.xpending_range(stream, group, entry, entry, 1)[0]
            if held["times_delivered"] > most:
                r.pipeline().xadd(dead, {**fields, "from": entry}).xack(stream, group, entry).execute()
            else:
                taken.append((entry, fields))
    return taken
""",
    "trim: WATCH around XLEN and XADD": _TRIM.replace(
        _ADD,
        """
    import redis

    while True:
        with r.pipeline() as pipe:
            try:
                pipe.watch(stream)
                if pipe.xlen(stream) >= most:
                    first = first_needed(r, stream)
                    if first is None or not pipe.xtrim(stream, minid=first, approximate=False):
                        return None
                    continue
                pipe.multi()
                return pipe.xadd(stream, fields).execute()[0]
            except redis.WatchError:
                continue

""",
    ),
    "trim: trims each time": _TRIM.replace(
        _ADD,
        """
    if r.exists(stream) and (first := first_needed(r, stream)):
        r.xtrim(stream, minid=first, approximate=False)
    return r.eval(ADD, 1, stream, most, *[word for pair in fields.items() for word in pair])

""",
    ),
    "trim: keeps the last that was delivered": _TRIM.replace(
        'f"{ms}-{int(number) + 1}"', 'group["last-delivered-id"]'
    ),
    "trim: looks for the stream first": _TRIM.replace(
        "    if entry is None and", "    if entry is None and r.exists(stream) and"
    ),
    "trim: all in one script": (
        """
LUA = '''
"""
        + _LUA_PAIRS
        + """
    local most = tonumber(ARGV[1])
    if redis.call('XLEN', KEYS[1]) >= most then
        local first
        for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
            local held = {}
            for i = 1, #group, 2 do held[group[i]] = group[i + 1] end
            local oldest = redis.call('XPENDING', KEYS[1], held['name'])[2]
            if not oldest then
                local ms, n = held['last-delivered-id']:match('(%d+)-(%d+)')
                oldest = ms .. '-' .. string.format('%.0f', n + 1)
            end
            if not first or before(oldest, first) then first = oldest end
        end
        if first then redis.call('XTRIM', KEYS[1], 'MINID', first) end
        if redis.call('XLEN', KEYS[1]) >= most then return false end
    end
    return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
'''

def add(r, stream, fields, most):
    return r.eval(LUA, 1, stream, most, *[word for pair in fields.items() for word in pair])
"""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_answers_are_accepted(name: str) -> None:
    exercise, lab = EXERCISES[name.partition(":")[0]], Lab()
    if "… CLAIM" in name and not _has_claim(lab):
        pytest.skip("this server's XREADGROUP has no CLAIM")
    lab.close()
    assert RIGHT[name] != exercise.reference
    verdict = check.grade(exercise, exercise.build(RIGHT[name]))
    assert verdict == Verdict("correct", message=exercise.title), str(verdict)


def _has_claim(lab: Lab) -> bool:
    version = lab.r.info("server")["redis_version"]
    return tuple(map(int, version.split(".")[:2])) >= (8, 4) and supports(lab.r, "XREADGROUP")


def test_a_payment_that_a_crash_loses_is_told_command_by_command() -> None:
    verdict = _wrong("worker", "done first")
    assert verdict.message == "when all workers have started again, p1 was never paid: it is lost"
    told = told_by(verdict)
    assert told[0] == "p1 (to eve, 5) is in the stream. A: ada.work(); she may crash, and starts again"
    assert told[-2:] == ["A SET payments:paid:p1 1-0 NX EX 3600 -> OK", "A (crashes)"]


def test_a_payment_that_is_made_twice_is_told_with_both_amounts() -> None:
    verdict = _wrong("worker", "then MULTI: in between another has paid")
    assert verdict.message == "p1 was paid twice: eve was to get 5, and has 10"
    told = told_by(verdict)
    assert [line.split()[:2] for line in told if "HINCRBY" in line] == [["B", "MULTI;"], ["A", "MULTI;"]]


def test_two_reclaimers_are_told_as_an_interleaving() -> None:
    told = told_by(_wrong("reclaim", "XCLAIM without an idle time"))
    assert [line.split()[:2] for line in told[2:]] == [
        ["A", "XPENDING"],
        ["B", "XPENDING"],
        ["B", "XCLAIM"],
        ["A", "XCLAIM"],
    ]


def test_what_is_read_between_two_questions_is_told() -> None:
    verdict = _wrong("trim", "asks first what is pending")
    assert verdict.message == "2-0 is not acknowledged, and was trimmed away"
    between = [line.split()[:2] for line in told_by(verdict)]
    assert between.index(["A", "XPENDING"]) < between.index(["B", "XREADGROUP"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("worker", ("return len(entries)", "return entries"), "work() gives [('1-0', "),
        ("worker", ("return len(entries)", "return bool(entries)"), "work() gives True"),
        ("worker", ("def work(", "def run("), "MyWorker(…) gives MyWorker, which has no method work()"),
        ("reclaim", ("    return taken", "    pass"), "reclaim() gives NoneType: a list of (id, fields)"),
        ("reclaim", ("(entry, fields))", "fields)"), "{'order': 'o1'} is no pair (id, fields)"),
        ("trim", ("    return entry\n\ndef", "    pass\n\ndef"), "add() says None, and the stream holds the"),
        ("trim", ("    return entry\n\ndef", "    return entry or False\n\ndef"), "add() gives False"),
    ],
)
def test_a_wrong_type_is_said_so(name: str, change: tuple[str, str], message: str) -> None:
    verdict = _answer(name, change)
    assert verdict.property in ("answer", "class") and verdict.message.startswith(message), str(verdict)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("worker", ("        return len(entries)", "        return len(entries.all)")),
        ("reclaim", ("    return taken", "    return taken.all")),
        ("trim", ("    return entry\n\ndef", "    return entry.all\n\ndef")),
    ],
)
def test_an_exception_is_shown_with_its_line(name: str, change: tuple[str, str]) -> None:
    verdict = _answer(name, change)
    assert verdict.property == "raises" and "AttributeError" in verdict.message
    assert change[1].split()[1] in verdict.counterexample


@pytest.mark.parametrize("block", ["0", "1", "60_000"])
def test_a_worker_that_waits_is_found_without_waiting(block: str) -> None:
    before = threading.enumerate()
    verdict = _answer("worker", ("count=10", f"count=10, block={block}"))
    assert verdict.property == "blocks" and verdict.message.startswith("work() is not to wait"), str(verdict)
    assert not [t for t in threading.enumerate() if t not in before and not t.daemon]


def test_a_reader_that_waits_in_the_explorer_is_told_so() -> None:
    read = "dict(self.r.xreadgroup(self.group, self.name, {self.stream: '>'}, count=10))"
    loop = (
        f"while not (new := {read}):\n            pass\n        entries = self.read('0') or new[self.stream]"
    )
    verdict = _answer("worker", ('entries = self.read("0") or self.read(">")', loop))
    assert verdict.property == "endless", str(verdict)


def test_a_done_key_that_two_processes_name_differently_is_refused() -> None:
    verdict = _answer("worker", ("paid:{fields", "paid:{self.name}:{fields"))
    assert verdict.property == "shared", str(verdict)


def test_a_group_that_nobody_creates_is_told_so() -> None:
    create = EXERCISES["worker"].reference
    create = create[create.index("        try:\n") : create.index("    def work")]
    verdict = _answer("worker", (create, "\n"))
    assert (verdict.property, verdict.message) == ("group", "nobody has created the group"), str(verdict)


def test_a_group_of_another_name_is_refused() -> None:
    verdict = _answer("worker", ("r, stream, group, name, accounts\n", "r, stream, name, name, accounts\n"))
    assert verdict.state == "incorrect" and verdict.property in ("group", "raises"), str(verdict)


@pytest.mark.parametrize(
    ("old", "new", "property"),
    [
        ("pipe.watch(done)", "pipe.watch(entry)", "twice"),
        (
            "                    pipe.watch(done)\n                    paid = pipe.exists(done)\n",
            "                    paid = self.r.exists(done)\n                    pipe.watch(done)\n",
            "twice",
        ),
        ("                    pipe.multi()\n", "", "lost"),
        (", ex=self.REMEMBER", "", "ttl"),
        ("                    pipe.xack(self.stream, self.group, entry)\n", "", "ack"),
    ],
)
def test_what_can_go_wrong_with_watch(old: str, new: str, property: str) -> None:
    assert old in _WATCHES
    verdict = check.grade(EXERCISES["worker"], EXERCISES["worker"].build(_worker(_WATCHES.replace(old, new))))
    assert verdict.property == property, str(verdict)


def test_lag_alone_is_no_measure_where_entries_are_pending() -> None:
    verdict = _answer("trim", ("oldest or f", "f"))
    assert verdict.property == "pending", str(verdict)


def test_entries_are_held_for_as_long_as_is_said() -> None:
    lab = Lab()
    lab.empty()
    for n in (1, 2):
        lab.r.xadd("s", {"n": n}, id=f"{n}-0")
    lab.r.xgroup_create("s", GROUP, "$")
    hold(lab.r, "s", "ada", ["1-0"], 120_000, 3)
    hold(lab.r, "s", "bob", ["2-0"])
    one, two = pending(lab.r, "s")
    assert (one["consumer"], one["times_delivered"], two["consumer"], two["times_delivered"]) == (
        "ada",
        3,
        "bob",
        1,
    )
    assert one["time_since_delivered"] >= 120_000 > two["time_since_delivered"]
    idle_again(lab.r, "s", 60_000)
    after = pending(lab.r, "s")
    assert [held["times_delivered"] for held in after] == [3, 1]
    assert all(60_000 <= held["time_since_delivered"] < 120_000 for held in after)
    lab.empty()
    lab.close()
