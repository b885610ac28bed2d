"""Chapter 04, exercise everywhere: a log-out that misses no session, whatever begins or is used meanwhile."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Any

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.lock.grading import BETWEEN, LONG, Story, clocks, explored, in_time, wrong
from labkit.teach.exercises.session.grading import (
    USERS,
    Inside,
    Strangers,
    assert_mortal,
    check_mortal,
    elsewhere,
    no_scan,
)
from labkit.teach.lab import Lab

STUB = '''
class MySessions:
    """Sessions, each known by its `sid`, the hash of a token. It ends `ttl` seconds after its latest use."""

    def __init__(self, r, name, ttl):
        raise NotImplementedError

    def login(self, user, sid):  # a session of `user` begins
        raise NotImplementedError

    def get(self, sid):
        """The user of this session, which now lasts `ttl` seconds more. None if there is no such session."""
        raise NotImplementedError

    def logout(self, sid):
        """True if there was such a session: it is over now. False if there was none."""
        raise NotImplementedError

    def logout_everywhere(self, user):
        """Every session of `user` is over, and no other."""
        raise NotImplementedError
'''

REFERENCE = '''
class MySessions:
    """Sessions, each known by its `sid`, the hash of a token. It ends `ttl` seconds after its latest use.

    `name:of:user` is a set of sids, which lasts as long as the latest session in it. Scripts compute names of
    keys from what they read: all keys are on one server.
    """

    # KEYS: session. ARGV: prefix of sets, ttl in ms. Returns the user, or nothing.
    GET = """
    local user = redis.call('GETEX', KEYS[1], 'PX', ARGV[2])
    if user then redis.call('PEXPIRE', ARGV[1] .. user, ARGV[2]) end
    return user
    """
    # KEYS: session. ARGV: prefix of sets, sid. Returns 1 if there was one.
    LOGOUT = """
    local user = redis.call('GETDEL', KEYS[1])
    if not user then return 0 end
    redis.call('SREM', ARGV[1] .. user, ARGV[2])
    return 1
    """
    # KEYS: the user's set. ARGV: prefix of sessions.
    EVERYWHERE = """
    for _, sid in ipairs(redis.call('SMEMBERS', KEYS[1])) do redis.call('DEL', ARGV[1] .. sid) end
    redis.call('DEL', KEYS[1])
    """

    def __init__(self, r, name, ttl):
        self.r, self.ms = r, max(1, round(ttl * 1000))
        self.sid, self.of = f"{name}:sid:", f"{name}:of:"

    def login(self, user, sid):
        """A session of `user` begins."""
        with self.r.pipeline() as pipe:  # MULTI … EXEC
            pipe.set(self.sid + sid, user, px=self.ms)
            pipe.sadd(self.of + user, sid).pexpire(self.of + user, self.ms).execute()

    def get(self, sid):
        """The user of this session, which now lasts `ttl` seconds more. None if there is no such session."""
        return self.r.eval(self.GET, 1, self.sid + sid, self.of, self.ms)

    def logout(self, sid):
        """True if there was such a session: it is over now. False if there was none."""
        return self.r.eval(self.LOGOUT, 1, self.sid + sid, self.of, sid) == 1

    def logout_everywhere(self, user):
        """Every session of `user` is over, and no other."""
        self.r.eval(self.EVERYWHERE, 1, self.of + user, self.sid)
'''

_LOGIN = """        with self.r.pipeline() as pipe:  # MULTI … EXEC
            pipe.set(self.sid + sid, user, px=self.ms)
            pipe.sadd(self.of + user, sid).pexpire(self.of + user, self.ms).execute()
"""
_SESSION = "        self.r.set(self.sid + sid, user, px=self.ms)\n"
_LIST = "        self.r.pipeline().sadd(self.of + user, sid).pexpire(self.of + user, self.ms).execute()\n"
_GET = "return self.r.eval(self.GET, 1, self.sid + sid, self.of, self.ms)"
_LOGOUT = "return self.r.eval(self.LOGOUT, 1, self.sid + sid, self.of, sid) == 1"
_EVERYWHERE = "self.r.eval(self.EVERYWHERE, 1, self.of + user, self.sid)"
_BY_HAND = """sids = self.r.smembers(self.of + user)
        for sid in sids:
            self.r.delete(self.sid + sid)
        self.r.delete(self.of + user)"""
_LIST_FIRST = """sids = self.r.smembers(self.of + user)
        self.r.delete(self.of + user)
        for sid in sids:
            self.r.delete(self.sid + sid)"""
_AT_ONCE = """sids = self.r.smembers(self.of + user)
        self.r.delete(self.of + user, *[self.sid + sid for sid in sids])"""
_ONE_BY_ONE = """for sid in self.r.smembers(self.of + user):
            self.r.delete(self.sid + sid)
            self.r.srem(self.of + user, sid)"""
_SET_ANEW = """user = self.r.get(self.sid + sid)
        if user is not None:
            self.login(user, sid)
        return user"""
_JSON = """        found = json.loads(self.r.get(self.of + user) or "[]")
        self.r.set(self.of + user, json.dumps([*found, sid]), px=self.ms)
"""
_JSON_ALL = """for sid in json.loads(self.r.get(self.of + user) or "[]"):
            self.r.delete(self.sid + sid)
        self.r.delete(self.of + user)"""
_TIDY = """user = self.r.getdel(self.sid + sid)
        if user is None:
            return False
        self.r.srem(self.of + user, sid)
        if self.r.scard(self.of + user) == 0:
            self.r.delete(self.of + user)
        return True"""
_KEYS = """for key in self.r.keys(self.sid + "*"):
            if self.r.get(key) == user:
                self.r.delete(key)"""
_PREFIX = (
    ("self.sid + sid", 'f"{self.sid}{user}:{sid}"'),
    (_EVERYWHERE, 'self.r.delete(*self.r.scan_iter(f"{self.sid}{user}:*"))'),
)
_NEVER_AGAIN = f"""user = {_GET[7:]}
        return user if user and not self.r.exists(self.of + user + ":out") else None"""
_PEXPIRE_SET = "    if user then redis.call('PEXPIRE', ARGV[1] .. user, ARGV[2]) end\n"
_POP = """while sid := self.r.spop(self.of + user):
            self.r.delete(self.sid + sid)"""
_LATE = """user = self.r.getex(self.sid + sid, px=self.ms)
        if user is not None:
            self.r.pexpire(self.of + user, self.ms)
        return user"""
_GENERATION = """
class MySessions:
    LOGIN = '''
    redis.call('SET', KEYS[1], (redis.call('GET', KEYS[2]) or '0') .. ' ' .. ARGV[1], 'PX', ARGV[2])
    '''
    GET = '''
    local held = redis.call('GET', KEYS[1])
    if not held then return false end
    local began, user = held:match('^(%d+) (.*)$')
    if began ~= (redis.call('GET', ARGV[2] .. user) or '0') then return false end
    if ARGV[3] == 'end' then redis.call('DEL', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
    return user
    '''

    def __init__(self, r, name, ttl):
        self.r, self.sid, self.of, self.ms = r, f"{name}:sid:", f"{name}:of:", max(1, round(ttl * 1000))

    def login(self, user, sid):
        self.r.eval(self.LOGIN, 2, self.sid + sid, self.of + user, user, self.ms)

    def get(self, sid):
        return self.r.eval(self.GET, 1, self.sid + sid, self.ms, self.of, "get")

    def logout(self, sid):
        return self.r.eval(self.GET, 1, self.sid + sid, self.ms, self.of, "end") is not None

    def logout_everywhere(self, user):
        self.r.pipeline().incr(self.of + user).pexpire(self.of + user, self.ms).execute()
"""
_PURGE = 'redis.call(\'DEL\', KEYS[1])\n    """\n\n    def __init__'


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


_DICT = """
class MySessions:
    def __init__(self, r, name, ttl):
        self.r, self.name, self.users = r, name, {}

    def login(self, user, sid):
        self.users[sid] = user

    def get(self, sid):
        return self.users.get(sid)

    def logout(self, sid):
        return self.users.pop(sid, None) is not None

    def logout_everywhere(self, user):
        self.users = {sid: other for sid, other in self.users.items() if other != user}
"""

WRONG = (
    Wrong(_DICT, "shared", "a dict: other processes know nothing of it"),
    _wrong(
        "crash",
        "RENAME takes the set away, and after a crash nobody knows it",
        (
            _EVERYWHERE,
            """try:
            self.r.rename(self.of + user, self.of + user + ":out")
        except Exception:
            return
        sids = self.r.smembers(self.of + user + ":out")
        self.r.delete(self.of + user + ":out", *[self.sid + sid for sid in sids])""",
        ),
    ),
    _wrong(
        "race", "SMEMBERS, then DEL of the set: who logs in meanwhile is forgotten", (_EVERYWHERE, _BY_HAND)
    ),
    _wrong(
        "race",
        "one DEL for all, but SMEMBERS before it: who logs in between the two is on no list",
        (_EVERYWHERE, _AT_ONCE),
    ),
    _wrong(
        "crash",
        "the set goes first: after a crash nobody knows the sessions that are left",
        (_EVERYWHERE, _LIST_FIRST),
        (_LOGIN, _SESSION + _LIST),
    ),
    _wrong(
        "crash", "SPOP, then DEL: a session that was taken from the set, and lives on", (_EVERYWHERE, _POP)
    ),
    _wrong(
        "race",
        "the set first, then the session: a log-out in between finds nothing to end, and it begins",
        (_LOGIN, _LIST + _SESSION),
        (_EVERYWHERE, _ONE_BY_ONE),
    ),
    _wrong(
        "race",
        "the set, then the session, each by itself: in between the set is deleted, and it is on no list",
        (_LOGIN, _LIST + _SESSION),
    ),
    _wrong("race", "get() writes the session anew, after it was ended", (_GET, _SET_ANEW)),
    _wrong(
        "race",
        "a list in JSON: two who log in at once overwrite each other",
        ("class MySessions", "import json\n\nclass MySessions"),
        (_LOGIN, _SESSION + _JSON),
        (_EVERYWHERE, _JSON_ALL),
        ("    redis.call('SREM', ARGV[1] .. user, ARGV[2])\n", ""),
    ),
    _wrong(
        "race",
        "logout() deletes a set that it found empty: who logs in between the two is on no list",
        (_LOGOUT, _TIDY),
    ),
    _wrong("scan", "KEYS finds them all, and stops the server meanwhile", (_EVERYWHERE, _KEYS)),
    _wrong(
        "ttl",
        "the set has no TTL: it stays for ever when its user never comes back",
        (".pexpire(self.of + user, self.ms)", ""),
    ),
    _wrong(
        "ttl",
        "the set gets its TTL in get() only: a user who never clicks leaves it for ever",
        (".pexpire(self.of + user, self.ms)", ""),
        ("with self.r.pipeline() as pipe:  # MULTI … EXEC", "with self.r.pipeline() as pipe:"),
    ),
    _wrong(
        "ttl",
        "sessions without a TTL: whoever never logs out is logged in for ever",
        ("user, px=self.ms)", "user)"),
        ("'GETEX', KEYS[1], 'PX', ARGV[2])", "'GET', KEYS[1])"),
    ),
    _wrong(
        "ttl",
        "a day for the set, whatever ttl says: it ends before long sessions, or long after short ones",
        (".pexpire(self.of + user, self.ms)", ".expire(self.of + user, 86_400)"),
        (_PEXPIRE_SET, ""),
    ),
    _wrong(
        "listed",
        "get() lengthens the session, and not the set: it ends first, and the session is on no list",
        (_PEXPIRE_SET, ""),
    ),
    _wrong(
        "listed",
        "the set gets its TTL with the first session only: it ends while later ones live on",
        (".pexpire(self.of + user, self.ms)", ".pexpire(self.of + user, self.ms, nx=True)"),
        (_PEXPIRE_SET, ""),
    ),
    _wrong(
        "listed",
        "the set gets its TTL with the first session, and from get(): a second one may outlast it",
        (".pexpire(self.of + user, self.ms)", ".pexpire(self.of + user, self.ms, nx=True)"),
    ),
    _wrong(
        "listed",
        "lengthens the set only after half of its time: by then a session may outlast it",
        ("    if user then", "    if user and redis.call('PTTL', ARGV[1] .. user) < ARGV[2] / 2 then"),
    ),
    _wrong(
        "listed",
        "GETEX, then PEXPIRE of the set: a crash in between, and the set ends before the session",
        (_GET, _LATE),
    ),
    Wrong(_GENERATION, "slide", "a generation that ends before its sessions, and begins at 0 again"),
    _wrong(
        "crash",
        "SADD, and PEXPIRE in another round trip: a crash in between leaves a set for ever",
        (
            ".pexpire(self.of + user, self.ms).execute()",
            ".execute()\n        self.r.pexpire(self.of + user, self.ms)",
        ),
    ),
    _wrong(
        "slide",
        "get() does not slide: a session that is in use ends all the same",
        ("'GETEX', KEYS[1], 'PX', ARGV[2])", "'GET', KEYS[1])"),
    ),
    _wrong("name", "FLUSHDB: everybody is logged out, whoever they are", (_EVERYWHERE, "self.r.flushdb()")),
    _wrong(
        "others",
        "one set for all users: one user's log-out ends everybody's sessions",
        ('f"{name}:of:"', 'f"{name}:of"'),
        ("self.of + user", "self.of"),
        (".. user, ", ", "),
    ),
    _wrong(
        "over",
        "deletes the list, not what is on it: all sessions live on, and nobody knows them",
        (_EVERYWHERE, "self.r.delete(self.of + user)"),
    ),
    _wrong(
        "over",
        "ends the newest session only: the thief's is an older one",
        (_LOGIN, _SESSION + "        self.r.set(self.of + user, sid, px=self.ms)\n"),
        (_EVERYWHERE, "self.r.delete(self.sid + (self.r.getdel(self.of + user) or ''))"),
        ("    redis.call('SREM', ARGV[1] .. user, ARGV[2])\n", ""),
    ),
    _wrong(
        "over",
        "ends a hundred sessions at most: the rest lives on",
        ("redis.call('SMEMBERS', KEYS[1])", "redis.call('SRANDMEMBER', KEYS[1], 100)"),
    ),
    _wrong(
        "over",
        "kept in the process: other processes' sessions go on",
        (
            _EVERYWHERE,
            "for sid in [s for s, u in self.mine.items() if u == user]:\n            self.logout(sid)",
        ),
        ("self.r, self.ms = r,", "self.mine = {}\n        self.r, self.ms = r,"),
        (_LOGIN, f"{_LOGIN}        self.mine[sid] = user\n"),
    ),
    _wrong(
        "over",
        "kept in the class: each process knows its own sessions",
        (_EVERYWHERE, "self.r.delete('', *[self.sid + sid for sid in self.mine.pop(user, [])])"),
        ("    def __init__", "    mine = {}\n\n    def __init__"),
        (_LOGIN, f"{_LOGIN}        self.mine.setdefault(user, []).append(sid)\n"),
    ),
    _wrong(
        "answer",
        "logout() is True in every case: nobody learns that the session had ended before",
        (_LOGOUT, f"{_LOGOUT[7:-5]}\n        return True"),
    ),
    _wrong("user", "always the same user: whoever logs in is somebody else", (_GET, f'{_GET} and "ada"')),
    _wrong(
        "again",
        "remembers that the user is out: no later session of theirs counts any more",
        (_EVERYWHERE, f"{_EVERYWHERE}\n        self.r.set(self.of + user + ':out', 1, px=self.ms)"),
        (
            _GET,
            _NEVER_AGAIN,
        ),
    ),
)


def _grade(kind: Any, lab: Lab) -> None:
    inside = Inside(lab)
    _check_users(kind, lab)
    _check_logout(kind, lab)
    _check_everywhere(kind, lab, inside)
    _check_empty(kind, lab)
    _check_many(kind, lab)
    _check_paths(kind, lab, inside)
    _check_listed(kind, lab, inside)
    _check_half_way(kind, lab, inside)
    in_time(lambda ttl: _slides(kind, lab, ttl), 0.24, 0.48, 0.96, 1.92)
    _check_clock(kind, lab)
    _check_crash(kind, lab, inside)
    _check_races(kind, lab)
    _check_lists(kind, lab)


def _sids(n: int) -> list[str]:
    return [secrets.token_hex(32) for _ in range(n)]


class _Told:
    """A store and a story: each call is told, with names for the sids."""

    def __init__(self, kind: Any, lab: Lab, ttl: float = LONG) -> None:
        lab.r.flushdb()
        self.story, self.name = Story(), lab.key("sessions")
        self.store = kind(lab.r, self.name, ttl)
        self.other = elsewhere(kind)(lab.client(), self.name, ttl)
        self.sids: dict[str, str] = {}

    def login(self, user: str, *labels: str) -> None:
        for label in labels:
            self.sids[label] = secrets.token_hex(32)
            self.story.tell(f"login({user!r}, {label})")
            self.store.login(user, self.sids[label])

    def get(self, label: str, user: str | None, property: str, what: str, look: str) -> None:
        """What get() gives must be `user`, in this process and in another."""
        found = self.story.call(f"get({label})", self.store.get, self.sids[label])
        self.story.hold(found == user, property, what, look)
        line = self.story.lines.pop()
        found = self.story.call(f"get({label}) in another process", self.other.get, self.sids[label])
        self.story.hold(found == user, "shared" if user else property, what, look)
        self.story.lines[-1] = line

    def everywhere(self, user: str) -> None:
        self.story.tell(f"logout_everywhere({user!r})")
        self.other.logout_everywhere(user)


def _check_users(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    story, look = told.story, "what is stored for each session, and where"
    sessions = [(f"s{n}", user) for n, user in enumerate((*USERS, "ada"), 1)]
    for label, user in sessions:
        told.login(user, label)
    for label, user in sessions:
        told.get(label, user, "user", f"this session is {user!r}'s", look)
    look = "what get() and logout() do where there is no session"
    for text in (*_sids(1), "", "*"):
        story.lines.clear()
        found = story.call(f"get({text[:8]!r})", told.store.get, text)
        what = f"there is no such session: get() is to give None, and gives {found!r}"
        story.hold(found is None, "user", what, look)
        done = story.call(f"logout({text[:8]!r})", told.store.logout, text)
        story.hold(done is False, "answer", "logout() is False where there is no such session", look)
    story.lines, look = ["login('ada', s1)"], "the names of the keys"
    other = kind(lab.r, lab.key("others"), LONG)
    found = story.call("get(s1) in a store of another name", other.get, told.sids["s1"])
    story.hold(found is None, "name", "a store of another name must know nothing of it", look)
    story.tell("logout_everywhere('ada') in a store of another name")
    other.logout_everywhere("ada")
    told.get("s1", "ada", "name", "a store of another name must leave it alone", look)


def _check_logout(kind: Any, lab: Lab) -> None:
    told, look = _Told(kind, lab), "what logout() returns, and when"
    for label, user in (("s1", "ada"), ("s2", "ada"), ("s3", "bob")):
        told.login(user, label)
    done = told.story.call("logout(s1)", told.other.logout, told.sids["s1"])
    told.story.hold(done is True, "answer", "logout() is True if there was such a session", look)
    done = told.story.call("logout(s1)", told.store.logout, told.sids["s1"])
    told.story.hold(done is False, "answer", "logout() is False where there is no such session", look)
    told.get("s1", None, "over", "a session that was logged out goes on", "which key logout() deletes")
    for label, user in (("s2", "ada"), ("s3", "bob")):
        told.get(label, user, "others", "logout() ends another session, too", "which keys logout() deletes")


def _check_everywhere(kind: Any, lab: Lab, inside: Inside) -> None:
    """Each user in turn, among others whose names are alike; and log-ins work again afterwards."""
    for user in USERS:
        told = _Told(kind, lab)
        strangers, others = Strangers(inside, told.name), [other for other in USERS if other != user]
        with no_scan(told.story, inside):
            for other in others:
                told.login(other, f"{other}'s session")
            told.story.lines = [f"login(…) of {', '.join(others)}"]
            told.login(user, "s1", "s2")
            told.everywhere(user)
        what, look = (
            f"{user!r} is logged out everywhere, and this session goes on",
            "whether every session is found",
        )
        for label in ("s1", "s2"):
            told.get(label, None, "over", what, f"{look}, also those that another process began")
        for other in others:
            look = "which keys belong to a user"
            told.get(f"{other}'s session", other, "others", "another user is logged out", look)
        strangers.check(told.story)
        _check_again(told, user)


def _check_again(told: _Told, user: str) -> None:
    """They log in anew, and out everywhere."""
    told.login(user, "s3")
    look = "what logout_everywhere() leaves behind"
    told.get("s3", user, "again", "a session that began afterwards is not affected", look)
    told.get("s1", None, "over", "a session that was ended is back", look)
    told.everywhere(user)
    for label in ("s1", "s3"):
        told.get(label, None, "over", "logged out everywhere once more, and this session goes on", look)


def _check_empty(kind: Any, lab: Lab) -> None:
    """What Redis does not know is over."""
    told = _Told(kind, lab)
    told.login("ada", "s1")
    lab.r.flushdb()
    told.story.tell("FLUSHDB")
    look = "what is kept in your object, or in a variable: only Redis knows who is logged in"
    told.get("s1", None, "shared", "nothing is left in Redis, and the session goes on", look)


def _check_many(kind: Any, lab: Lab) -> None:
    """Some hundreds of sessions."""
    told, sids = _Told(kind, lab), _sids(300)
    for sid in sids:
        told.store.login("ada", sid)
    told.story.tell(f"login('ada', …), {len(sids)} times")
    told.everywhere("ada")
    alive = sum(told.store.get(sid) is not None for sid in sids)
    told.story.tell(f"get(…) of each: {alive} are alive")
    told.story.hold(
        not alive, "over", f"{alive} of {len(sids)} sessions go on", "whether every session is found"
    )


def _check_paths(kind: Any, lab: Lab, inside: Inside) -> None:
    """After each kind of call, every key has a TTL, of `ttl` at most."""
    for ttl in (LONG, 20.5, 100):
        told = _Told(kind, lab, ttl)
        told.story.tell(f"ttl {ttl:g} s")

        def mortal(ttl: float = ttl, told: _Told = told) -> None:
            check_mortal(told.story, inside, ttl)

        for label in ("s1", "s2", "s3"):
            told.login("ada", label)
            mortal()
        inside.set_left(1000)
        told.story.tell("1 s is left of each key")
        for label in ("s1", "s2", "s3"):
            told.story.call(f"get({label})", told.store.get, told.sids[label])
        mortal()
        told.story.call("logout(s1)", told.store.logout, told.sids["s1"])
        mortal()
        told.everywhere("ada")
        mortal()
        told.store.get(told.sids["s2"])
        told.login("ada", "s4")
        mortal()


LISTED = "what remembers the sessions of a user: which calls set its TTL?"


def _check_listed(kind: Any, lab: Lab, inside: Inside) -> None:
    """A session that is used for long is found all the same: on whatever list it is, that lasts as long."""
    told = _Told(kind, lab)
    for label in ("s1", "s2"):
        told.login("ada", label)
    _use(told, inside)
    told.everywhere("ada")
    told.get("s1", None, "listed", "a session that was used all the time is not found any more", LISTED)
    told = _Told(kind, lab)
    told.login("ada", "s1")
    _later(told, inside, 0.6)
    told.login("ada", "s2")
    _later(told, inside, 0.6)
    told.everywhere("ada")
    told.get("s2", None, "listed", "a session that has not ended is not found any more", LISTED)
    told = _Told(kind, lab)
    told.login("ada", "s1")
    _later(told, inside, 0.3)
    told.story.call("get(s1)", told.store.get, told.sids["s1"])
    _later(told, inside, 0.8)
    told.everywhere("ada")
    told.get("s1", None, "listed", "a session that has not ended is not found any more", LISTED)
    told = _Told(kind, lab)
    told.login("ada", "s0")
    told.everywhere("ada")
    told.login("ada", "s1")
    _use(told, inside)


def _later(told: _Told, inside: Inside, part: float) -> None:
    """So much of a ttl is over."""
    inside.later(int(LONG * 1000 * part))
    told.story.tell(f"{part * LONG:g} s later")


def _use(told: _Told, inside: Inside) -> None:
    """s1 is used for long."""
    for _ in range(4):
        _later(told, inside, 0.6)
        found = told.story.call("get(s1)", told.store.get, told.sids["s1"])
        what = "a session that is used every 0.6 ttl ends"
        told.story.hold(found == "ada", "slide", what, "what get() sets anew")


def _check_half_way(kind: Any, lab: Lab, inside: Inside) -> None:
    """get() crashes in the last second of a session. If that goes on, so does what remembers it."""

    def store(r: Any) -> Any:
        return kind(r, "sessions", LONG)

    def setup(r: Any) -> None:
        store(r).login("ada", "s1")
        inside.set_left(1000)

    def found(r: Any) -> None:
        inside.later(1000)
        store(r).logout_everywhere("ada")
        assert store(r).get("s1") is None, "s1 goes on, and what remembers it has ended: it is on no list"

    cast = "1 s is left of s1. A: get(s1); it may crash. 1 s later: logout_everywhere('ada')"
    look = "which of its commands get() sends first: the list must never end before the session"
    get = partial(_get, kind)
    explored(lab, [get], "listed", look, cast, setup=setup, invariant=found, faults=[crash])


def _get(kind: Any, r: Any) -> Any:
    return kind(r, "sessions", LONG).get("s1")


def _slides(kind: Any, lab: Lab, ttl: float) -> bool:
    """In real time: ada's session is used all the time; bob logs in once more. False: too slow a machine."""
    told = _Told(kind, lab, ttl)
    before = time.monotonic()
    told.story.tell(f"ttl {ttl:g} s")
    for user in ("ada", "bob", "cyd"):
        told.login(user, f"{user}'s session")
    for _ in range(3):
        time.sleep(0.5 * ttl)
        now = time.monotonic()
        told.story.tell("0.5 ttl later")
        for user in ("ada", "bob"):
            found = told.story.call(f"get({user}'s session)", told.store.get, told.sids[f"{user}'s session"])
            if found is None and time.monotonic() > before + ttl - 0.005:
                return False
            told.story.hold(
                found == user, "slide", "a session that is used all the time ends", "what get() sets anew"
            )
        before = now
    told.get(
        "cyd's session", None, "ttl", "a session that nobody used for `ttl` seconds goes on", "what ends it"
    )
    told.login("bob", "another of bob's")
    for user in ("ada", "bob"):
        told.everywhere(user)
        told.get(
            f"{user}'s session",
            None,
            "listed",
            "a session that was used all the time is not found any more",
            "what remembers it",
        )
    told.get("another of bob's", None, "listed", "the latest session is not found", "what remembers it")
    return True


def _check_clock(kind: Any, lab: Lab) -> None:
    """A client whose clock is wrong by 100 s logs in, and out everywhere."""
    for skew in (100, -100):
        told = _Told(kind, lab)
        look = "whose clock says when a session ends"
        told.login("ada", "s1")
        with clocks(skew, kind):
            told.story.tell(f"by a clock that is wrong by {skew:+d} s:")
            told.login("ada", "s2")
            told.story.call("get(s1)", told.store.get, told.sids["s1"])
        told.story.tell("by a clock that is right:")
        for label in ("s1", "s2"):
            told.get(label, "ada", "clock", "the session was used just now, and is over", look)
        with clocks(skew, kind):
            told.story.tell(f"by a clock that is wrong by {skew:+d} s:")
            told.story.tell("logout_everywhere('ada')")
            told.store.logout_everywhere("ada")
        for label in ("s1", "s2"):
            told.get(label, None, "clock", "ada is logged out everywhere, and this session goes on", look)


def _check_races(kind: Any, lab: Lab) -> None:
    """While ada is logged out everywhere: she logs in once more; she uses a session; she logs one out."""

    def store(r: Any) -> Any:
        return kind(r, "sessions", LONG)

    def setup(r: Any) -> None:
        store(r).login("ada", "s1")
        store(r).login("bob", "b1")

    def all_out(r: Any, results: list[Any]) -> None:
        assert store(r).get("s1") is None, "s1 was there before, and goes on"
        store(r).logout_everywhere("ada")
        what = "s2 began meanwhile, and is on no list: even the next logout_everywhere() misses it"
        assert store(r).get("s2") is None, what
        assert store(r).get("s1") is None, "s1 was ended, and is back"
        assert store(r).get("b1") == "bob", "bob is logged out, too"

    def everywhere(r: Any) -> None:
        store(r).logout_everywhere("ada")

    meanwhile = {
        "login('ada', s2)": lambda r: store(r).login("ada", "s2"),
        "get(s1)": lambda r: store(r).get("s1"),
        "logout(s1)": lambda r: store(r).logout("s1"),
        "logout_everywhere('ada')": everywhere,
    }
    for said, actor in meanwhile.items():
        cast = f"s1 is a session of ada's. A: {said}. B: logout_everywhere('ada')"
        explored(lab, [actor, everywhere], "race", BETWEEN, cast, setup=setup, invariant=all_out)


def _check_lists(kind: Any, lab: Lab) -> None:
    """What happens to one session meanwhile forgets no other."""

    def store(r: Any) -> Any:
        return kind(r, "sessions", LONG)

    def setup(r: Any) -> None:
        store(r).login("ada", "s1")

    def found(r: Any, results: list[Any]) -> None:
        assert store(r).get("s2") == "ada", "s2 has begun, and is not there"
        store(r).logout_everywhere("ada")
        for sid in ("s1", "s2", "s3"):
            assert store(r).get(sid) is None, f"{sid} is on no list: logout_everywhere() misses it"

    def login(r: Any) -> None:
        store(r).login("ada", "s2")

    meanwhile = {
        "login('ada', s3)": lambda r: store(r).login("ada", "s3"),
        "get(s1)": lambda r: store(r).get("s1"),
        "logout(s1)": lambda r: store(r).logout("s1"),
    }
    for said, actor in meanwhile.items():
        cast = f"s1 is a session of ada's. A: {said}. B: login('ada', s2). Later: logout_everywhere('ada')"
        explored(lab, [actor, login], "race", BETWEEN, cast, setup=setup, invariant=found)


def _check_crash(kind: Any, lab: Lab, inside: Inside) -> None:
    """After a crash no key stays for ever, and log out everywhere can be done again."""

    def store(r: Any) -> Any:
        return kind(r, "sessions", LONG)

    def setup(r: Any) -> None:
        store(r).login("ada", "s1")

    def everywhere(r: Any) -> None:
        store(r).logout_everywhere("ada")

    def one(r: Any) -> None:
        store(r).login("ada", "s3")
        store(r).get("s3")
        store(r).logout("s3")

    def mortal(r: Any) -> None:
        assert_mortal(inside, LONG)

    def again(r: Any) -> None:
        mortal(r)
        everywhere(r)
        assert store(r).get("s1") is None, "A crashed; it is done again, and does not find s1 any more"

    look, cast = (
        "what a crash leaves behind after each of your commands",
        "A: login(), get(), logout(); it may crash",
    )
    explored(lab, [one], "crash", look, cast, invariant=mortal, faults=[crash])
    cast = "s1 is ada's. A: logout_everywhere('ada'); it may crash, and is done again"
    explored(lab, [everywhere], "crash", look, cast, setup=setup, invariant=again, faults=[crash])


EXERCISE = Exercise(
    stem="session",
    name="everywhere",
    title="Log out everywhere, without a gap",
    statement="""
Write `login`, `get`, `logout` and `logout_everywhere`, for many users in many processes:

- A session ends `ttl` seconds after its latest use.
- `logout_everywhere` ends every session of that user which began before it, and no other user's.
- A session that begins at the same moment may go on. The next `logout_everywhere` must find it.
- No session comes back to life.
- A client may crash anywhere. Then the same call, made again, does the rest.
- Whatever remembers the sessions of a user lasts as long as they do, also if `get` stops half way.
- Every key has a TTL of at most `ttl`, and nothing goes through all keys of the server.

It is one server, so scripts may compute names of keys. `sid` is not the token, but its hash.
""".strip(),
    answer="MySessions",
    stub=STUB.strip(),
    hints=(
        "KEYS would look at everybody's sessions. What could remember, for each user, which they are?",
        "A set for each user: SADD in login(), SMEMBERS and DEL in logout_everywhere(). What if somebody "
        "logs in after the SMEMBERS, and before the set is deleted?",
        "Write session and set in one step (MULTI … EXEC: r.pipeline()), and let one script read the "
        "set, and delete its sessions and the set itself.",
        "The set must not end before the sessions that are on it: whatever lengthens a session sets the "
        "TTL of the set anew, so get() is a script, too: GETEX, and if there is a user, PEXPIRE of the "
        "set.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=40,
)
