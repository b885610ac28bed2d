"""Chapter 08, exercise election: one leader at most."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.lock.grading import (
    BETWEEN,
    LONG,
    PUT_BACK,
    Story,
    check_left,
    check_refused,
    check_third,
    expires,
    explored,
    spoilt,
)
from labkit.teach.lab import Lab

ELECTION_STUB = '''
class MyElection:
    """Candidate `me` for `key`, which holds the leader's name until `ttl` seconds after its last campaign."""

    def __init__(self, r, key, me, ttl):
        raise NotImplementedError

    def campaign(self):
        """True if `me` leads now: it becomes leader, or stays it for `ttl` seconds more. One round trip."""
        raise NotImplementedError

    def resign(self):
        """True if `me` led: now nobody does. False if not: then nothing changes."""
        raise NotImplementedError
'''

ELECTION = '''
class MyElection:
    """Candidate `me` for `key`, which holds the leader's name until `ttl` seconds after its last campaign."""

    CAMPAIGN = """
    local leader = redis.call('GET', KEYS[1])
    if leader and leader ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
    """
    RESIGN = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])
    """

    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.me, self.ms = r, key, me, max(1, round(ttl * 1000))

    def campaign(self):
        """True if `me` leads now: it becomes leader, or stays it for `ttl` seconds more. One round trip."""
        return self.r.eval(self.CAMPAIGN, 1, self.key, self.me, self.ms) == 1

    def resign(self):
        """True if `me` led: now nobody does. False if not: then nothing changes."""
        return self.r.eval(self.RESIGN, 1, self.key, self.me) == 1
'''

_CAMPAIGN = "        return self.r.eval(self.CAMPAIGN, 1, self.key, self.me, self.ms) == 1"
_RESIGN = "return self.r.eval(self.RESIGN, 1, self.key, self.me) == 1"
_STAY = "if self.r.get(self.key) != self.me:\n            return False\n        "


def _campaign(*lines: str) -> str:
    """The reference with another campaign()."""
    return spoilt(ELECTION, (_CAMPAIGN, "\n".join(f"        {line}" for line in lines)))


_LEADS = "if leader and leader ~= ARGV[1] then"
_LESS = "redis.call('PEXPIRE', KEYS[1], math.max(1, redis.call('PTTL', KEYS[1]) - 1000))"
_RENEW = "'PX', ARGV[2])"
_LONGER = (
    "if leader then redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT') "
    "else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end"
)
_TTL_IN_MS = "round(self.ttl * 1000)", "self.ms"

ELECTION_WRONG = (
    Wrong(
        _campaign(
            "if self.r.setnx(self.key, self.me):",
            "    return bool(self.r.pexpire(self.key, self.ms))",
            "return self.r.eval(self.CAMPAIGN, 1, self.key, self.me, self.ms) == 1",
        ),
        "crash",
        "SETNX, then PEXPIRE: a crash in between, and there is never a leader again",
    ),
    Wrong(
        _campaign(
            "if self.r.get(self.key) not in (None, self.me):",
            "    return False",
            "return bool(self.r.set(self.key, self.me, px=self.ms))",
        ),
        "race",
        "GET, then SET: two see that nobody leads, and both become leader",
    ),
    Wrong(
        _campaign(
            "if self.r.set(self.key, self.me, nx=True, px=self.ms):",
            "    return True",
            "return self.r.get(self.key) == self.me and bool(self.r.pexpire(self.key, self.ms))",
        ),
        "race",
        "renewal by GET, then PEXPIRE: it believes that it leads, and lengthens another's time",
    ),
    Wrong(
        _campaign(
            "if getattr(self, 'leading', False):",
            "    return bool(self.r.pexpire(self.key, self.ms))",
            "self.leading = bool(self.r.set(self.key, self.me, nx=True, px=self.ms))",
            "return self.leading",
        ),
        "two",
        "who has led once renews without asking whose the key is by now",
    ),
    Wrong(
        _campaign("return bool(self.r.set(self.key, self.me, px=self.ms))"),
        "two",
        "SET without NX: whoever comes last leads, and the one before does not know",
    ),
    Wrong(
        _campaign("return bool(self.r.set(self.key, self.me, nx=True, px=self.ms))"),
        "stay",
        "SET NX alone: the leader's own name stands there, so it is refused",
    ),
    Wrong(
        _campaign(
            "return self.r.set(self.key, self.me, nx=True, get=True, px=self.ms) in (None, self.me)",
        ),
        "renew",
        "the leader is told True, and its TTL is not renewed: in the middle of its term it ends",
    ),
    Wrong(
        _campaign(
            "with self.r.pipeline() as pipe:",
            "    pipe.set(self.key, self.me, nx=True).pexpire(self.key, self.ms).get(self.key)",
            "    return pipe.execute()[-1] == self.me",
        ),
        "takeover",
        "the others renew a dead leader's time with each attempt",
    ),
    Wrong(
        _campaign(
            "return bool(self.r.set(self.key, self.me, nx=True, px=self.ms)) or \\",
            "    self.r.eval(self.CAMPAIGN, 1, self.key, self.me, self.ms) == 1",
        ),
        "round_trips",
        "safe, but two round trips to stay leader",
    ),
    Wrong(
        spoilt(ELECTION, (_RESIGN, "return self.r.delete(self.key) == 1")),
        "resign",
        "DEL without a check: anybody can depose the leader",
    ),
    Wrong(
        spoilt(ELECTION, (_RESIGN, f"{_STAY}return self.r.delete(self.key) == 1")),
        "race",
        "GET, then DEL: deposes the one that came after",
    ),
    Wrong(
        spoilt(ELECTION, ("'SET', KEYS[1], ARGV[1], 'PX', ARGV[2])", "'SET', KEYS[1], ARGV[1])")),
        "ttl",
        "no TTL: a dead leader leads for ever",
    ),
    Wrong(
        spoilt(ELECTION, ("'PX'", "'EX'"), ("round(ttl * 1000)", "round(ttl)")),
        "ttl",
        "whole seconds: a leader of 0.3 s leads for 1 s",
    ),
    Wrong(
        spoilt(
            ELECTION,
            ("class MyElection:", "import hashlib\n\nclass MyElection:"),
            (
                "        self.r, self.key",
                "        self.sha = r.script_load(self.CAMPAIGN)\n        self.r, self.key",
            ),
            ("self.r.eval(self.CAMPAIGN,", "self.r.evalsha(self.sha,"),
        ),
        "flushed",
        "EVALSHA alone does not survive a restart of the server",
    ),
    Wrong(
        spoilt(ELECTION, (_LEADS, _LEADS.replace(" then", " and redis.call('PTTL', KEYS[1]) > 4000 then"))),
        "two",
        "takes over while the leader has time left: for that long two believe that they lead",
    ),
    Wrong(
        spoilt(ELECTION, (_LEADS, _LEADS.replace("then", f"then {_LESS}"))),
        "refused",
        "each attempt of the others takes a second from the leader",
    ),
    Wrong(
        spoilt(ELECTION, (_RENEW, "'PX', ARGV[2] + math.max(0, redis.call('PTTL', KEYS[1])))")),
        "renew",
        "adds to what was left: a leader that campaigns often leads long after its death",
    ),
    Wrong(
        spoilt(ELECTION, (_RENEW, "'PX', leader and 60000 or ARGV[2])")),
        "renew",
        "a minute, whatever ttl says: a dead leader is succeeded far too late",
    ),
    Wrong(
        spoilt(
            ELECTION,
            ("redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])", _LONGER),
        ),
        "renew",
        "GT: only ever longer, where the leader has a shorter ttl than before",
    ),
    Wrong(
        spoilt(ELECTION, (_RESIGN, PUT_BACK.replace("self.token", "self.me").replace(*_TTL_IN_MS))),
        "race",
        "GETDEL, and put back another's name: in between a third candidate leads as well",
    ),
    Wrong(
        spoilt(ELECTION, (_LEADS, _LEADS.replace("leader ~= ARGV[1]", "leader:find(ARGV[1], 1, true) ~= 1"))),
        "two",
        "compares the beginning only: worker-1 takes worker-10's place, and both believe they lead",
    ),
    Wrong(
        _campaign(
            "try:",
            "    self.led = self.r.evalsha(self.sha, 1, self.key, self.me, self.ms) == 1",
            "except Exception:",
            "    pass",
            "return self.led",
        ).replace(
            "        self.r, self.key",
            "        self.sha = r.script_load(self.CAMPAIGN)\n        self.r, self.key",
        ),
        "flushed",
        "answers from memory when a call fails: it believes that it leads, and nobody does",
    ),
)


def _grade_election(kind: Any, lab: Lab) -> None:
    for ttl in (LONG, 0.75):
        key, story, since = lab.key("leader"), Story(f"ttl {ttl:g} s"), time.monotonic()
        leads = story.call("ada.campaign()", kind(lab.r, key, "ada", ttl).campaign)
        story.hold(leads, "vacant", "nobody leads, so ada becomes leader", "what campaign() returns")
        check_left(story, lab.r, key, ttl, since)
    _check_reign(kind, lab)
    _check_resign(kind, lab)
    _check_campaign_race(kind, lab)
    _check_succession_race(kind, lab)
    _check_resign_race(kind, lab)
    _check_third_candidate(kind, lab)
    _check_campaign_trips(kind, lab)
    _check_restart(kind, lab)


def _check_reign(kind: Any, lab: Lab) -> None:
    """Ada becomes leader, stays it, and comes back when bob leads."""
    r, key, story = lab.r, lab.key("leader"), Story()
    ada, bob = kind(lab.client(), key, "ada", LONG), kind(lab.client(), key, "bob", LONG)
    hold, whose = story.hold, "how campaign() knows who leads"
    story.call("ada.campaign()", ada.campaign)
    leader = story.call("GET key", r.get, key)
    hold(leader == "ada", "name", "the key holds the leader's name", "the value that you write")
    hold(not story.call("bob.campaign()", bob.campaign), "two", "two leaders at once", whose)
    hold(r.get(key) == "ada", "two", f"ada led, and the key now holds {r.get(key)!r}", whose)
    for name in ("Ada", "ad", "adam", "a.a"):
        leads = story.call(f"{name}.campaign()", kind(lab.client(), key, name, LONG).campaign)
        hold(not leads, "two", f"ada leads, and {name} is told to lead: that is another name", whose)
        story.lines.pop()
    hold(story.call("ada.campaign()", ada.campaign), "stay", "who leads stays leader by the same call", whose)
    _check_time_left(kind, lab)
    expires(r, key)
    story.tell("ada's time is up")
    hold(story.call("bob.campaign()", bob.campaign), "vacant", "nobody leads, so bob becomes leader", whose)
    leads = story.call("ada.campaign()", ada.campaign)
    what, look = "bob leads by now, and ada is told that she leads", "what your object remembers from before"
    hold(not leads and r.get(key) == "bob", "two", what, look)


def _check_time_left(kind: Any, lab: Lab) -> None:
    """The leader's campaign counts its time anew, and nobody else's changes it."""
    r = lab.r
    for ttl, left in itertools.product((LONG, 20, 0.75), (5000, 100_000)):
        key = lab.key("leader")
        ada = kind(lab.client(), key, "ada", ttl)
        ada.campaign()
        r.pexpire(key, left)
        story = Story(f"ttl {ttl:g} s. ada leads, and has {left // 1000} s left: PTTL key -> {left}")
        since = time.monotonic()
        story.call("ada.campaign()", ada.campaign)
        check_left(
            story, r, key, ttl, since, ("renew", "what is set where `me` leads already: `ttl`, from now")
        )
    r.flushdb()
    key, story = lab.key("leader"), Story("ada leads")
    ada, bob = (kind(lab.client(), key, who, LONG) for who in ("ada", "bob"))
    ada.campaign()
    got = "two", "ada's time is not up, and bob leads"
    check_refused(story, r, "bob.campaign()", lambda: bool(bob.campaign()), got, "takeover")


def _check_resign(kind: Any, lab: Lab) -> None:
    r, key, story = lab.r, lab.key("leader"), Story()
    ada, bob = kind(lab.client(), key, "ada", LONG), kind(lab.client(), key, "bob", LONG)
    look = "how resign() knows who leads"
    story.call("ada.campaign()", ada.campaign)
    resigned = story.call("bob.resign()", bob.resign)
    leader = story.call("GET key", r.get, key)
    what = "bob does not lead; his resign() must change nothing, and is False"
    story.hold(leader == "ada" and not resigned, "resign", what, look)
    resigned = story.call("ada.resign()", ada.resign)
    left = story.call("EXISTS key", r.exists, key)
    story.hold(resigned and not left, "resign", "ada led; after resign(), True, nobody does", look)
    leads = story.call("bob.campaign()", bob.campaign)
    story.hold(leads, "vacant", "nobody leads, so bob becomes leader", "what resign() leaves behind")
    resigned = story.call("ada.resign()", ada.resign)
    what = "ada leads no more; her resign() must change nothing, and is False"
    story.hold(r.get(key) == "bob" and not resigned, "resign", what, look)


def _candidate(kind: Any, name: str, ttl: float) -> Callable[[Any], bool]:
    return lambda r: bool(kind(r, "leader", name, ttl).campaign())


def _check_campaign_race(kind: Any, lab: Lab) -> None:
    names = ("ada", "bob")

    def rule(r: Any, results: list[Any]) -> None:
        assert results.count(True) < 2, "A and B both lead"
        leader = r.get("leader")
        for name, leads in zip(names, results, strict=True):
            assert not leads or leader == name, f"{name} was told to lead, and the key holds {leader!r}"
        assert any(results) or None in results, "nobody leads, and both are refused"

    def mortal(r: Any, results: list[Any]) -> None:
        rule(r, results)
        assert r.pttl("leader") != -1, "the leader's name never expires: nobody ever takes over"

    actors = [_candidate(kind, name, LONG) for name in names]
    cast = "A: ada.campaign(). B: bob.campaign()"
    explored(lab, actors, "race", BETWEEN, cast, invariant=rule)
    look, cast = "what a crash leaves behind after each of your commands", cast + "; either may crash"
    explored(lab, actors, "crash", look, cast, invariant=mortal, faults=[crash])


def _check_succession_race(kind: Any, lab: Lab) -> None:
    """Ada renews while her time is up and bob takes over. Each has a TTL of its own, to tell them apart."""

    def bob(r: Any) -> tuple[int, bool]:
        left = expires(r, "leader")
        return left, _candidate(kind, "bob", 20.0)(r)

    def rule(r: Any, results: list[Any]) -> None:
        ada_leads, (left, bob_leads) = results
        leader = r.get("leader")
        assert left > 40 or not (ada_leads and bob_leads), "A and B both lead"
        if bob_leads:
            assert leader == "bob", f"B leads, and then the key holds {leader!r}"
            assert 0 < r.pttl("leader") <= 20_000, "B leads, and A has changed for how long"
        else:
            assert ada_leads and leader == "ada", "A's time was up, and neither A nor B leads"

    cast = "ada leads. A: ada.campaign(). B: bob.campaign(), once ada's time is up"
    setup, ada = _candidate(kind, "ada", 40.0), _candidate(kind, "ada", LONG)
    explored(lab, [ada, bob], "race", BETWEEN, cast, setup=setup, invariant=rule)


def _check_resign_race(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> bool:
        return bool(kind(r, "leader", "ada", LONG).resign())

    def bob(r: Any) -> tuple[int, bool]:
        left = expires(r, "leader")
        return left, _candidate(kind, "bob", LONG)(r)

    def rule(r: Any, results: list[Any]) -> None:
        resigned, (left, leads) = results
        assert leads, "nobody leads, and B is refused"
        assert r.get("leader") == "bob", "B leads, and A's resign() has deposed it"
        led = "led" if left == -2 else "led no more"
        assert resigned == (left == -2), f"resign() says {resigned}, and A {led}"

    cast = "ada leads. A: ada.resign(). B: bob.campaign(), once ada's time is up"
    setup = _candidate(kind, "ada", LONG)
    explored(lab, [ada, bob], "race", BETWEEN, cast, setup=setup, invariant=rule)


def _check_third_candidate(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> Any:
        me = kind(r, "leader", "ada", LONG)
        return me.resign if me.campaign() else None

    def bob(r: Any) -> bool:
        expires(r, "leader")
        return _candidate(kind, "bob", LONG)(r)

    cast = (
        "A: ada.campaign(). B: bob.campaign(), once A's time is up. Then A: ada.resign(). C: cyd.campaign()"
    )
    what = "B leads, and C leads too: A's resign() deposed B for a moment"
    check_third(lab, ada, bob, _candidate(kind, "cyd", LONG), (cast, what))


def _check_campaign_trips(kind: Any, lab: Lab) -> None:
    r, key = lab.client(), lab.key("leader")
    ada, bob = kind(r, key, "ada", LONG), kind(r, key, "bob", LONG)
    warm = kind(r, lab.key("leader"), "ada", LONG)
    warm.campaign()
    for what, who in (("become leader", ada), ("stay leader", ada), ("be refused", bob)):
        with lab.tap(r) as tape:
            who.campaign()
        if tape.round_trips != 1:
            said = ", ".join(exchange.command[0] for exchange in tape.commands)
            message = f"to {what} takes {tape.round_trips} round trips"
            raise Failure("round_trips", message, said, "EVAL: a script may ask and write in one round trip")


def _check_restart(kind: Any, lab: Lab) -> None:
    """The server has forgotten its scripts: a call works all the same, and soon in one round trip again."""
    r, key, look = lab.client(), lab.key("leader"), "EVAL, which always works; or what catches NoScriptError"
    ada, bob = kind(r, key, "ada", LONG), kind(r, key, "bob", LONG)
    for who in (ada, bob):
        who.campaign()
    for name, who, leads in (("ada", ada, True), ("bob", bob, False), ("ada", ada, True)):
        r.script_flush()
        lab.r.pexpire(key, 5000)
        story, since = Story("ada leads, and the server has forgotten all scripts"), time.monotonic()
        try:
            told = story.call(f"{name}.campaign()", who.campaign)
        except Exception as error:
            what, said = "after a restart of the server a call fails", f"{type(error).__name__}: {error}"
            raise Failure("flushed", what, said, look) from None
        what = "after a restart of the server campaign() does not say who leads"
        story.hold(bool(told) == leads, "flushed", what, look)
        if leads:
            check_left(story, lab.r, key, LONG, since, ("flushed", look))
        with lab.tap(r) as tape:
            who.campaign()
        trips = f"the second campaign() after a restart takes {tape.round_trips} round trips"
        story.hold(tape.round_trips == 1, "round_trips", trips, "what loads the script again, and how often")


EXERCISE = Exercise(
    stem="lock",
    name="election",
    title="One leader, or none, but never two",
    statement="Several processes, each with a name of its own, want a leader. `key` holds the leader's "
    "name, and expires `ttl` seconds (fractions too) after the leader's latest `campaign()`. "
    "Every candidate calls `campaign()` again and again: who leads stays leader by it, and if "
    "nobody leads the caller does. A leader that died is succeeded when its time is up, whatever "
    "the others did meanwhile. `campaign()` is one round trip, but that it may load a script "
    "first, also after a restart of the server. `resign()` ends only one's own leadership.",
    answer="MyElection",
    stub=ELECTION_STUB.strip(),
    hints=(
        "There are three cases: nobody leads, you lead, another leads. What must each of them "
        "write, and which must write nothing?",
        "SET with NX and PX is right for the first case alone. In the second you must be sure, "
        "at the moment of writing, that the name is still yours.",
        "Who leads is asked and written in one step: r.eval(lua, 1, key, me, milliseconds). Here "
        "the name itself may be the token: to campaign twice is meant to be the same as once.",
        "local leader = redis.call('GET', KEYS[1]); if leader and leader ~= ARGV[1] then return "
        "0 end; then SET … PX. (A missing key is false in Lua.) resign() is the "
        "compare-and-delete of a lock.",
    ),
    reference=ELECTION.strip(),
    wrong=ELECTION_WRONG,
    grade=_grade_election,
)
