"""The graders of chapter 10 accept every right way, and say of a wrong one what is lost, or open."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from answers import changed, told_by, wrong

from labkit.rig.eviction import policies
from labkit.teach import check
from labkit.teach.exercises import Failure, Verdict, load
from labkit.teach.exercises.leaderboard.grading import Heard
from labkit.teach.exercises.production import acl, diagnose, drop, policy
from labkit.teach.lab import Lab

EXERCISES = {exercise.name: exercise for exercise in load("production")}
_answer = partial(changed, "production")
_wrong = partial(wrong, "production")

_DROP = EXERCISES["drop"].reference
_LOOP = _DROP[_DROP.index("    cursor, count") :]


def _drops(*lines: str) -> str:
    """The reference, but that it has these lines for its loop."""
    return _DROP.replace(_LOOP, "".join(f"    {line}\n" for line in lines))


RIGHT = {
    "policy: tries what might do, and takes the best": """
def plan(measure):
    found = []
    for policy in ("allkeys-lru", "allkeys-lfu", "volatile-lru", "volatile-lfu", "volatile-ttl"):
        for expires in ({"page", "report"}, {"page", "report", "order"}):
            day = measure(policy, expires)
            if not day.lost and not day.refused:
                found.append((day.hit_ratio, policy, expires))
    ratio, policy, expires = max(found, key=lambda one: one[0])
    return {"policy": policy, "expires": list(expires), "hit_ratio": ratio - 0.01}
""",
    "policy: measures thrice, and promises the least": """
def plan(measure):
    choice = "volatile-lfu", ["report", "page"]
    ratio = min(measure(*choice)[0] for _ in range(3))
    return {"hit_ratio": ratio - 0.005, "policy": choice[0], "expires": tuple(choice[1])}
""",
    "drop: one key after the other": _drops(
        "return sum(r.unlink(key) for key in r.scan_iter(match=pattern, count=1000))",
    ),
    "drop: pipelines of UNLINK": _drops(
        "count = 0",
        "keys = list(r.scan_iter(match=pattern, count=5000))",
        "for at in range(0, len(keys), 400):",
        "    with r.pipeline(transaction=False) as pipe:",
        "        for key in keys[at : at + 400]:",
        "            pipe.unlink(key)",
        "        count += sum(pipe.execute())",
        "return count",
    ),
    "drop: transactions of a page": _drops(
        "count = 0",
        "keys = list(r.scan_iter(match=pattern))",
        "for at in range(0, len(keys), 1000):",
        "    with r.pipeline(transaction=True) as pipe:",
        "        pipe.unlink(*keys[at : at + 1000])",
        "        count += sum(pipe.execute())",
        "return count",
    ),
    "drop: DEL for what is small": _drops(
        "count = 0",
        "for key in r.scan_iter(match=pattern, count=1000):",
        "    small = r.type(key) == 'string'",
        "    count += r.delete(key) if small else r.unlink(key)",
        "return count",
    ),
    "drop: empties what is large, a thousand at a time, without UNLINK": _drops(
        "count = 0",
        "for key in r.scan_iter(match=pattern, count=1000):",
        "    kind, gone = r.type(key), key + ':gone'",
        "    if kind == 'string':",
        "        count += r.delete(key)",
        "        continue",
        "    count += 1",
        "    while r.exists(key):",
        "        if kind == 'set':",
        "            r.spop(key, 1000)",
        "        elif kind == 'zset':",
        "            r.zremrangebyrank(key, 0, 999)",
        "        elif kind == 'list':",
        "            r.ltrim(key, 1000, -1)",
        "        else:",
        "            r.hdel(key, *(r.hscan(key, count=1000)[1]))",
        "return count",
    ),
    "drop: a script for each page": _drops(
        "lua = '''",
        "local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 200)",
        "local count = 0",
        "for _, key in ipairs(page[2]) do count = count + redis.call('UNLINK', key) end",
        "return {page[1], count}'''",
        "cursor, count = None, 0",
        "while cursor != '0':",
        "    cursor, more = r.eval(lua, 0, cursor or '0', pattern)",
        "    count += more",
        "return count",
    ),
    "drop: out of the way first": _drops(
        "count = 0",
        "for key in list(r.scan_iter(match=pattern, count=1000)):",
        "    r.rename(key, 'trash')",
        "    count += r.unlink('trash')",
        "return count",
    ),
    "acl: everything, less what is dangerous": """
def rules(password):
    less = "-@dangerous -@admin -scan -randomkey -script -function -@connection +ping".split()
    words = "~shop:* %R~catalog:* resetchannels &shop:* +@all".split()
    return ["on", ">" + password, *words, *less, "(-@all +incr +incrby ~stats:*)"]
""",
    "acl: a hash in place of the password, and each command by name": """
import hashlib

def rules(password):
    names = '''set get mget incr hset hgetall lpush zadd zrange sadd xadd expire unlink del rename copy
    publish subscribe unsubscribe ping multi exec discard eval evalsha exists ttl'''.split()
    return (
        "on", "#" + hashlib.sha256(password.encode()).hexdigest(), "%RW~shop:*", "%R~catalog:*", "&shop:*",
        *("+" + name for name in names), "(+incrby +incr %RW~stats:*)",
    )
""",
    "acl: by the types of data": """
def rules(password):
    kinds = "string hash list set sortedset stream bitmap geo hyperloglog".split()
    return [
        "reset", "on", ">" + password, "~shop:*", "%R~catalog:*", "&shop:*", *(f"+@{kind}" for kind in kinds),
        *"+expire +ttl +unlink +del +exists +rename +copy +@transaction +@pubsub".split(),
        *"+eval +evalsha +ping".split(),
        "-@dangerous", "(~stats:* +incr +incrby)",
    ]
""",
    "diagnose: section by section, and CONFIG GET": """
def diagnose(r):
    found = []
    if r.info("errorstats").get("errorstat_OOM", {}).get("count", 0) > 0:
        found.append("full")
    stats = r.info("stats")
    hits, misses = stats["keyspace_hits"], stats["keyspace_misses"]
    if stats["evicted_keys"] and hits / max(1, hits + misses) < 0.5:
        found.append("thrashing")
    bare = total = 0
    for held in r.info("keyspace").values():
        bare, total = bare + held["keys"] - held["expires"], total + held["keys"]
    if bare * 2 > total:
        found.append("forever")
    clients = r.client_list()
    if len(clients) > 0.8 * int(r.config_get("maxclients")["maxclients"]):
        found.append("leak")
    if max(int(one["omem"]) for one in clients) > 1_000_000:
        found.append("deaf")
    if r.info("persistence")["rdb_last_bgsave_status"] == "err":
        found.append("unsaved")
    if r.info("commandstats").get("cmdstat_keys", {}).get("calls"):
        found.append("sweeping")
    return found
""",
    "diagnose: SLOWLOG, MEMORY STATS and ACL LOG, too": EXERCISES["diagnose"].reference.replace(
        "    info =",
        "    r.slowlog_get(), r.memory_stats(), r.acl_log(), r.latency_latest(), r.scan()\n    info =",
    ),
}


@pytest.mark.parametrize("how", RIGHT)
def test_right_answers_are_accepted(how: str) -> None:
    exercise = EXERCISES[how.partition(":")[0]]
    verdict = check.grade(exercise, exercise.build(RIGHT[how]))
    assert verdict.state == "correct", str(verdict)


def is_wrong(verdict: Verdict, property: str) -> list[str]:
    assert (verdict.state, verdict.property) == ("incorrect", property), str(verdict)
    return told_by(verdict)


# --- policy -------------------------------------------------------------------------------------------------


def test_what_a_policy_does_is_told() -> None:
    told = is_wrong(_wrong("policy", "allkeys-lru"), "orders")
    assert told[0] == "maxmemory-policy allkeys-lru; a TTL has: page, report"
    told = is_wrong(_wrong("policy", "by chance"), "hits")
    assert told[2] == "all 40 orders are there; 0 writes were refused (OOM)"
    assert told[3].endswith("of the requests for pages hit")


@pytest.mark.parametrize(
    ("policy", "expires"),
    [('"lru"', '{"page"}'), ('"volatile-lfu"', '"page"'), ('"volatile-lfu"', '{"pages"}'), ("None", "set()")],
)
def test_what_is_no_choice_is_said(policy: str, expires: str) -> None:
    is_wrong(_answer("policy", ('"volatile-lfu", {"page", "report"}', f"{policy}, {expires}")), "answer")
    code = f"def plan(measure): return {{'policy': {policy}, 'expires': {expires}, 'hit_ratio': 0.58}}"
    is_wrong(check.grade(EXERCISES["policy"], EXERCISES["policy"].build(code)), "answer")


def test_a_policy_of_a_newer_redis_is_said() -> None:
    verdict = _answer(
        "policy",
        ("seen = measure(policy, expires)", ""),
        ('"volatile-lfu", {', '"volatile-lrm", {'),
        ("round(seen.hit_ratio - 0.01, 2)", "0.58"),
    )
    lab = Lab()
    try:
        known = "volatile-lrm" in policies(lab.server)
    finally:
        lab.close()
    is_wrong(verdict, "hits" if known else "answer")


def test_one_choice_stands_out(lab: Lab) -> None:
    """By more than runs of one day differ, so chance refuses no right answer, and accepts no wrong one."""
    days = (policy.YESTERDAY, *policy.DAYS)
    best = [policy.run(lab, "volatile-lfu", {"page", "report"}, seed) for seed in days]
    assert all(day.lost == day.refused == 0 for day in best)
    assert min(day.hit_ratio for day in best) > policy.LEAST + 0.02
    assert best[0].hit_ratio - min(day.hit_ratio for day in best) < 0.02, "what is measured can be promised"
    for other in ("volatile-ttl", "volatile-lru", "volatile-random"):
        found = [policy.run(lab, other, {"page", "report"}, seed).hit_ratio for seed in policy.DAYS]
        assert max(found) < policy.LEAST - 0.01


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    made.empty()
    yield made
    made.empty()
    made.close()


# --- drop ---------------------------------------------------------------------------------------------------


def test_what_a_step_goes_through_is_told() -> None:
    told = is_wrong(_wrong("drop", "DEL frees"), "stalls")
    assert told[-1].startswith("DEL customer:42:")
    assert told[-1].endswith("elements")
    told = is_wrong(_wrong("drop", "a script is one step"), "stalls")
    assert told[-1].startswith("EVAL with ")


@pytest.mark.parametrize(
    ("said", "cost"),
    [
        ("UNLINK big", 1),
        ("UNLINK big small", 2),
        ("DEL big", 5001),
        ("DEL small big", 5002),
        ("SMEMBERS big", 5000),
        ("SPOP big 1000", 1000),
        ("SREM big 1 2 3", 5),
        ("SUNIONSTORE other big", 5001),
        ("COPY big other", 5001),
        ("SET big 1", 5000),
        ("EXPIRE big 0", 5001),
        ("PEXPIRE big 1", 5001),
        ("RENAME small big", 5001),
        ("SCAN 0 COUNT 7000", 7000),
        ("SCAN 0", 10),
        ("SCARD big", 1),
        ("NONSENSE big", 1),
        ("GETDEL small", 1),
    ],
)
def test_a_command_costs_what_it_goes_through(lab: Lab, said: str, cost: int) -> None:
    lab.r.sadd("big", *range(5000))
    lab.r.set("small", 1)
    found = drop.cost(lab.r, said.split())
    assert found == cost or (said.startswith(("SET", "RENAME")) and cost - 1 <= found <= cost + 1)


def test_steps_are_what_others_wait_for() -> None:
    def heard(*lines: str) -> list[Heard]:
        return [Heard(line.startswith("lua "), line.removeprefix("lua ").split()) for line in lines]

    found = list(
        drop.steps(heard("SCAN 0", "EVAL x 0", "lua DEL a", "lua DEL b", "MULTI", "DEL c", "EXEC", "DEL d"))
    )
    assert [(step.name, len(step.inner)) for step in found] == [
        ("SCAN", 1),
        ("EVAL", 2),
        ("MULTI", 1),
        ("DEL", 1),
    ]
    assert list(drop.steps(heard("EVAL x 0"))) == [drop.Step("EVAL", ())]
    assert drop.plain(r"a\x00\"b\n") == 'a\x00"b\n'


def test_settings_are_put_back(lab: Lab) -> None:
    before = lab.r.config_get("*")
    told = is_wrong(_wrong("drop", "lets DEL be UNLINK"), "config")
    assert told[-1] == "CONFIG GET lazyfree-lazy-user-del -> 'yes'; before: 'no'"
    after = lab.r.config_get("*")
    assert {name for name in before if before[name] != after[name]} == set()


# --- acl ----------------------------------------------------------------------------------------------------


def test_what_redis_says_is_told() -> None:
    told = is_wrong(_wrong("acl", "the catalog may be written"), "catalog")
    assert told[1:] == ["ACL DRYRUN shop SET catalog:1 x", "-> OK"]
    told = is_wrong(_wrong("acl", "no rule for the counters"), "allowed")
    assert told[1] == "ACL DRYRUN shop INCR stats:views"


@pytest.mark.parametrize(
    ("old", "new", "property"),
    [
        ('"%R~catalog:*", ', '"(+@read ~catalog:*)",', "allowed"),  # COPY needs both in one
        ('"~shop:*"', '"~shop*"', "keys"),
        ('"~shop:*"', '"%R~shop:*"', "allowed"),
        ('"%R~catalog:*"', '"%R~*"', "keys"),
        ('"+eval", "+evalsha"', '"+@scripting", "+function"', "admin"),
        ('"-@dangerous", ', '"-@dangerous", "+sort", ', "admin"),
        ('"-@dangerous", ', '"-@dangerous", "+config|get", ', "admin"),
        ('"-@dangerous", ', '"-@dangerous", "+client", ', "admin"),
        ('"&shop:*"', '"&shop:*", "&*"', "channels"),
        ('f">{password}"', 'f">{password}", ">hunter2"', "password"),
        ('"(+incr +incrby ~stats:*)"', '"(+incr +incrby +get ~stats:*)"', "stats"),
        ('"(+incr +incrby ~stats:*)"', '"(+incr +incrby ~*)"', "keys"),
        ('f">{password}"', 'f">{password.upper()}"', "password"),
    ],
)
def test_one_rule_too_many_or_too_few(old: str, new: str, property: str) -> None:
    is_wrong(_answer("acl", (old, new)), property)


def test_no_user_is_left(lab: Lab) -> None:
    _wrong("acl", "every key")
    assert lab.r.execute_command("ACL USERS") == ["default"]


def test_scripts_try_what_no_dry_run_sees(lab: Lab) -> None:
    """Redis holds a script to its user's rights, command by command: seen, and not only believed."""
    words = EXERCISES["acl"].build(EXERCISES["acl"].reference)("pw")
    lab.r.execute_command("ACL SETUSER", acl.USER, "reset", *words, "allkeys", "+@all")
    try:
        for _, script, _ in acl.SNEAKY[:3]:
            with acl._client(lab, "pw") as user:
                user.eval(script, 0)
        with pytest.raises(Failure) as failure:
            acl._check_login(lab, [*words, "allkeys", "+@all"], "pw")
        assert failure.value.property == "keys"
        assert "secret:1" in failure.value.counterexample
    finally:
        lab.r.execute_command("ACL DELUSER", acl.USER)


# --- diagnose -----------------------------------------------------------------------------------------------


def test_what_befell_the_server_is_told() -> None:
    told = is_wrong(_wrong("diagnose", "looks at database 0"), "forever")
    assert told == [
        "a cache, in use",
        "forever: more than half of all keys have no TTL",
        "diagnose(r) -> {}",
    ]
    told = is_wrong(_wrong("diagnose", "cures, too"), "harm")
    assert told[-1] == "diagnose(r) sends CONFIG RESETSTAT"


@pytest.mark.parametrize("name", diagnose.NAMES)
def test_each_illness_is_asked_for_and_each_false_alarm_is_one(name: str) -> None:
    never = (f'"{name}": ', f'"{name}": False and ')
    assert is_wrong(_answer("diagnose", never), name)[1].startswith(f"{name}: ")
    always = (f'"{name}": ', f'"{name}": True or ')
    assert is_wrong(_answer("diagnose", always), "alarm")[0] == "a cache, in use"


@pytest.mark.parametrize(
    "command",
    [
        "KEYS *",
        "MONITOR",
        "CONFIG REWRITE",
        "FLUSHALL",
        "SLOWLOG RESET",
        "CLIENT NO-EVICT on",
        "MEMORY PURGE",
        "EVAL x 0",
        "DEL a",
        "DEBUG SLEEP 0",
        "LATENCY RESET",
    ],
)
def test_what_is_no_mere_look_is_harm(command: str) -> None:
    ask = f"    try:\n        r.execute_command({command!r})\n    except Exception:\n        pass\n    info ="
    told = is_wrong(_answer("diagnose", ("    info =", ask)), "harm")
    assert told[-1] == f"diagnose(r) sends {command}"


@pytest.mark.parametrize("save", ["save", "bgsave"])
def test_who_has_saved_is_told_and_the_next_answer_is_graded(save: str) -> None:
    is_wrong(_answer("diagnose", ("    info =", f"    r.{save}()\n    info =")), "harm")
    exercise = EXERCISES["diagnose"]
    verdict = check.grade(exercise, exercise.build(exercise.reference))
    assert verdict.state == "correct", str(verdict)


def test_a_patient_is_cured(lab: Lab) -> None:
    before = lab.r.config_get("*")
    with diagnose._patient(lab) as patient:
        patient.healthy()
        for name in diagnose.NAMES:
            assert getattr(patient, name)() is not False, name
        reference: Any = EXERCISES["diagnose"].build(EXERCISES["diagnose"].reference)
        assert reference(lab.r) == set(diagnose.NAMES)
    assert lab.r.config_get("*") == before
    assert lab.r.dbsize() == 0
    assert not patient.rdb.exists()
    assert reference(lab.r) == set()
