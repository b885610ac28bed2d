"""Chapter 04, exercise sliding: a session that lasts from its latest use, in one round trip."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

import redis

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise
from labkit.teach.exercises.lock.grading import BETWEEN, LONG, Story, chance, clocks, explored, in_time, wrong
from labkit.teach.exercises.session.grading import (
    USERS,
    Inside,
    Strangers,
    assert_mortal,
    elsewhere,
    no_scan,
    said,
    system_chance,
    unseen,
)
from labkit.teach.lab import Lab

STUB = '''
class MySessions:
    """Sessions in Redis; each ends `ttl` seconds after it began or was last used. Keys begin with `name`."""

    def __init__(self, r, name, ttl):
        raise NotImplementedError

    def create(self, user):
        """A new token, a str that nobody can guess. Whoever shows it is `user` from now on."""
        raise NotImplementedError

    def get(self, token):
        """The user of this session, which now lasts `ttl` seconds more. None if there is no such session."""
        raise NotImplementedError

    def destroy(self, token):
        """True if there was such a session: it is over now. False if there was none."""
        raise NotImplementedError
'''

REFERENCE = '''
import hashlib
import secrets

class MySessions:
    """Sessions in Redis; each ends `ttl` seconds after it began or was last used. Keys begin with `name`."""

    def __init__(self, r, name, ttl):
        self.r, self.name, self.ms = r, name, max(1, round(ttl * 1000))

    def key(self, token):
        """Redis knows only the hash: what is read there is no use as a token."""
        return f"{self.name}:{hashlib.sha256(token.encode()).hexdigest()}"

    def create(self, user):
        """A new token, a str that nobody can guess. Whoever shows it is `user` from now on."""
        token = secrets.token_urlsafe(32)
        self.r.set(self.key(token), user, px=self.ms)
        return token

    def get(self, token):
        """The user of this session, which now lasts `ttl` seconds more. None if there is no such session."""
        return self.r.getex(self.key(token), px=self.ms)

    def destroy(self, token):
        """True if there was such a session: it is over now. False if there was none."""
        return self.r.delete(self.key(token)) == 1
'''

_GET = "return self.r.getex(self.key(token), px=self.ms)"
_SET = "self.r.set(self.key(token), user, px=self.ms)"
_TOKEN = "secrets.token_urlsafe(32)"
_DESTROY = "return self.r.delete(self.key(token)) == 1"
_HASH = "hashlib.sha256(token.encode()).hexdigest()"
_TWO = f"""user = self.r.get(self.key(token))
        if user is not None:
            {_SET}
        return user"""
_LUA = """return self.r.eval('''
        local user = redis.call('GET', KEYS[1])
        if user then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
        return user
        ''', 1, self.key(token), self.ms)"""
_SEEN = """pipe = self.r.pipeline()
        pipe.hget(self.key(token), "user").hincrby(self.key(token), "uses", 1)
        return pipe.pexpire(self.key(token), self.ms).execute()[0]"""
_ALL = """local user = redis.call('GET', KEYS[1])
        for _, key in ipairs(redis.call('KEYS', ARGV[2] .. ':*')) do
            redis.call('PEXPIRE', key, ARGV[1])
        end"""
_TRIPS = """user = self.r.get(self.key(token))
        self.r.pexpire(self.key(token), self.ms)
        return user"""
_ONE_EACH = """of = f"{self.name}:of:{user}"
        old = self.r.set(of, self.key(token), px=self.ms, get=True)
        self.r.delete(old or "")"""
_DELETES_ALL = """done = self.r.delete(self.key(token)) == 1
        self.r.delete(*self.r.keys(f"{self.name}:*"), "")
        return done"""
_HSET = """pipe = self.r.pipeline().hset(self.key(token), "user", user)
        pipe.pexpire(self.key(token), self.ms).execute()"""
_PIPED = """pipe = self.r.pipeline(transaction=False)
        return pipe.get(self.key(token)).pexpire(self.key(token), self.ms).execute()[0]"""
_ASKS_FIRST = """if not self.r.exists(self.key(token)):
            return False
        self.r.delete(self.key(token))
        return True"""
_REMEMBERS = """user, at = self.known.get(token, (None, 0))
        if time.monotonic() - at > 0.02:
            user = self.r.getex(self.key(token), px=self.ms)
            self.known[token] = user, time.monotonic()
        return user"""
_IN_ONE = """pipe = self.r.pipeline().hset(self.name, self.key(token), user)
        pipe.pexpire(self.name, self.ms).execute()"""
_FROM_ONE = """pipe = self.r.pipeline().hget(self.name, self.key(token))
        return pipe.pexpire(self.name, self.ms).execute()[0]"""
_JSON = (
    ("import hashlib", "import hashlib, json"),
    (_SET, 'self.r.set(self.key(token), json.dumps({"user": user, "token": token}), px=self.ms)'),
    (_GET, f'found = {_GET[7:]}\n        return found and json.loads(found)["user"]'),
)


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Any:
    return wrong(REFERENCE, violates, why, *changes)


def _token(source: str, why: str, head: str = "import hashlib") -> Any:
    return _wrong("token", why, (_TOKEN, source), ("import hashlib", f"import hashlib\n{head}"))


WRONG = (
    _wrong(
        "round_trips",
        "GET, then PEXPIRE: two round trips",
        (
            _GET,
            _TRIPS,
        ),
    ),
    _wrong("race", "GET, then SET: a session that is destroyed in between comes back to life", (_GET, _TWO)),
    _wrong(
        "race",
        "GETDEL, then SET: for a moment the session is not there",
        (_GET, _TWO.replace("self.r.get(", "self.r.getdel(")),
    ),
    _wrong("race", "a plain pipeline: the session may end between GET and PEXPIRE", (_GET, _PIPED)),
    _wrong("race", "EXISTS, then DEL: two are told that they ended the session", (_DESTROY, _ASKS_FIRST)),
    _wrong(
        "slide",
        "GET alone: a session that is in use ends all the same",
        (_GET, "return self.r.get(self.key(token))"),
    ),
    _wrong(
        "ttl",
        "the TTL comes with the first use: a session that is never used stays for ever",
        (_SET, _SET.replace(", px=self.ms", "")),
    ),
    _wrong(
        "ttl",
        "GETEX PERSIST: the TTL is gone with the first use",
        (_GET, _GET.replace("px=self.ms", "persist=True")),
    ),
    _wrong(
        "ttl",
        "EX takes whole seconds: 0.3 s become 1 s, and so do 1.9 s",
        ("px=self.ms", "ex=max(1, int(self.ms / 1000))"),
    ),
    _wrong("ttl", "EX with milliseconds: half an hour becomes three weeks", ("px=self.ms", "ex=self.ms")),
    _wrong(
        "ttl",
        "the session ends with its first minute, whatever ttl says",
        (_SET, _SET.replace("self.ms", "60_000")),
    ),
    _wrong(
        "crash",
        "SET, then PEXPIRE: a crash in between leaves a session for ever",
        (_SET, "self.r.set(self.key(token), user)\n        self.r.pexpire(self.key(token), self.ms)"),
    ),
    _wrong(
        "slide",
        "PEXPIRE GT: where a longer TTL is left, a use does not shorten it to ttl",
        (_GET, _LUA.replace("ARGV[1])", "ARGV[1], 'GT')")),
    ),
    _wrong(
        "slide",
        "adds ttl to what was left: each click makes the session longer and longer",
        (_GET, _LUA.replace("ARGV[1])", "ARGV[1] + redis.call('PTTL', KEYS[1]))")),
    ),
    _wrong(
        "scan",
        "KEYS: every session is renewed when one is used",
        (
            _GET,
            _LUA.replace("local user = redis.call('GET', KEYS[1])", _ALL).replace(
                "self.ms)", "self.ms, self.name)"
            ),
        ),
    ),
    _wrong(
        "clear",
        "the token is the name of the key: whoever lists the keys is logged in as anybody",
        (_HASH, "token"),
    ),
    _wrong(
        "clear",
        "the token in the value, beside the user: whoever reads values is logged in as anybody",
        *_JSON,
    ),
    _wrong("clear", "the token backwards: whoever reads it turns it round", (_HASH, "token[::-1]")),
    _wrong(
        "clear",
        "Base64 is no secret: whoever reads it decodes it",
        (_HASH, "base64.b64encode(token.encode()).decode()"),
        ("import hashlib", "import base64"),
    ),
    _wrong(
        "clear",
        "ROT13 is no secret: whoever reads it turns it back",
        (_HASH, "codecs.encode(token, 'rot13')"),
        ("import hashlib", "import codecs"),
    ),
    _wrong(
        "clear",
        "XOR with a constant: the constant is in the code, and XOR again gives the token",
        (_HASH, "bytes(c ^ 42 for c in token.encode()).hex()"),
    ),
    _wrong(
        "clear",
        "Base32 is no secret: whoever reads it decodes it",
        (_HASH, "base64.b32encode(token.encode()).decode()"),
        ("import hashlib", "import base64"),
    ),
    _wrong(
        "clear",
        "compressed: whoever reads it unpacks it",
        (_HASH, "zlib.compress(token.encode()).hex()"),
        ("import hashlib", "import zlib"),
    ),
    _wrong(
        "clear",
        "the letters' numbers: whoever reads them writes the letters again",
        (_HASH, "'-'.join(str(ord(c)) for c in token)"),
    ),
    _wrong(
        "clear",
        "32 of 43 letters in clear before the hash: far fewer than 120 bits are left to guess",
        (_HASH, f"token[:32] + {_HASH}"),
    ),
    _wrong(
        "hash", "hash() is another number in each process", (_HASH, "hash(token)"), ("import hashlib\n", "")
    ),
    _wrong(
        "hash",
        "CRC-32 is a checksum, no hash: another token that fits is found in no time",
        (_HASH, "zlib.crc32(token.encode())"),
        ("hashlib", "zlib"),
    ),
    _wrong(
        "hash",
        "32 bits of the hash: a token that fits is found by trying a few billion",
        (_HASH, f"{_HASH}[:8]"),
    ),
    _token("secrets.token_hex(4)", "32 bits of chance: all tokens can be tried"),
    _token(
        "str(random.getrandbits(256))",
        "random can be predicted: from some tokens one works out the next",
        "import random",
    ),
    _token("str(uuid.uuid1())", "uuid1 is time and machine: whoever knows both tries a few", "import uuid"),
    _token(
        "hashlib.sha256(f'{user}{time.time()}'.encode()).hexdigest()",
        "a hash of user and time: both can be guessed, and hashing adds no chance",
        "import time",
    ),
    _token(
        "hashlib.sha256(str(next(COUNT)).encode()).hexdigest()",
        "a hash of 0, 1, 2 …: whoever hashes them has all tokens",
        "import itertools\n\nCOUNT = itertools.count()",
    ),
    _token(
        "hashlib.sha256(secrets.token_bytes(3)).hexdigest()",
        "long, but a hash of three random bytes: all 16 million can be tried",
    ),
    _wrong(
        "shared",
        "a dict: other processes know nothing of it",
        ("max(1, round(ttl * 1000))", "{}"),
        (_SET, "self.ms[token] = user"),
        (_GET, "return self.ms.get(token)"),
        (_DESTROY, "return self.ms.pop(token, None) is not None"),
    ),
    _wrong(
        "shared",
        "a salt of its own in each object: another process looks under another name",
        ("round(ttl * 1000))", "round(ttl * 1000))\n        self.salt = secrets.token_bytes(16)"),
        ("token.encode()", "self.salt + token.encode()"),
    ),
    _wrong(
        "shared",
        "a pepper of its own in each process: another process, or the next, finds no session",
        ("token.encode()", "PEPPER + token.encode()"),
        ("class MySessions", "PEPPER = secrets.token_bytes(16)\n\nclass MySessions"),
    ),
    _wrong(
        "shared",
        "get() remembers for 20 ms: who was logged out goes on",
        ("round(ttl * 1000))", "round(ttl * 1000))\n        self.known = {}"),
        (_GET, _REMEMBERS),
        ("import hashlib", "import hashlib, time"),
    ),
    _wrong(
        "shared",
        "asks the process, not Redis: who was logged out elsewhere is still known here",
        (_SET, f"{_SET}\n        self.known[token] = user"),
        (_GET, f"found = {_GET[7:]}\n        return self.known.get(token, found)"),
        (_DESTROY, f"self.known.pop(token, None)\n        {_DESTROY}"),
        ("round(ttl * 1000))", "round(ttl * 1000))\n        self.known = {}"),
    ),
    _wrong(
        "clock",
        "PXAT by the client's clock: one that is behind ends sessions at once",
        ("import secrets", "import secrets, time"),
        (_GET, "return self.r.getex(self.key(token), pxat=round(time.time() * 1000) + self.ms)"),
    ),
    _wrong(
        "name",
        "names of keys without `name`: another store lets them in",
        ('f"{self.name}:{hash', 'f"session:{hash'),
    ),
    _wrong("user", "always the same user: whoever logs in is somebody else", (_GET, f'{_GET} and "ada"')),
    _wrong(
        "user",
        "a session for each user: the next log-in ends the one before",
        (
            _SET,
            f"{_SET}\n        {_ONE_EACH}",
        ),
    ),
    _wrong(
        "others",
        "DEL of all keys that begin with the name: one log-out ends everybody's session",
        (
            _DESTROY,
            _DELETES_ALL,
        ),
    ),
    _wrong(
        "others",
        "one hash for all sessions: whoever uses one renews them all",
        (_SET, _IN_ONE),
        (_GET, _FROM_ONE),
        (_DESTROY, "return self.r.hdel(self.name, self.key(token)) == 1"),
    ),
    _wrong(
        "unknown", "False where there is no session: the answer to that is None", (_GET, f"{_GET} or False")
    ),
    _wrong("unknown", "'' where there is no session: the answer to that is None", (_GET, f"{_GET} or ''")),
    _wrong(
        "scan",
        "SCAN for one key: it goes through all keys of the server with each click",
        (_DESTROY, "return any(self.r.delete(k) for k in self.r.scan_iter() if k == self.key(token))"),
    ),
    _wrong(
        "answer",
        "destroy() is True in every case: nobody learns that the session had ended before",
        (_DESTROY, f"{_DESTROY[7:-5]}\n        return True"),
    ),
    _wrong(
        "answer",
        "destroy() gives None: nobody learns whether there was a session",
        (_DESTROY, _DESTROY[7:-5]),
    ),
    _wrong(
        "unknown",
        "HINCRBY makes a session of a token that nobody has",
        (
            _SET,
            _HSET,
        ),
        (_GET, _SEEN),
    ),
    _wrong(
        "flushed",
        "EVALSHA alone does not survive a restart of the server",
        ("round(ttl * 1000))", "round(ttl * 1000))\n        self.sha = r.script_load(LUA)"),
        (_GET, "return self.r.evalsha(self.sha, 1, self.key(token), self.ms)"),
        ("import secrets", "import secrets\n\nLUA = \"return redis.call('GETEX', KEYS[1], 'PX', ARGV[1])\""),
    ),
)


def _grade(kind: Any, lab: Lab) -> None:
    inside = Inside(lab)
    _check_users(kind, lab, inside)
    _check_destroy(kind, lab, inside)
    _check_kept(kind, lab)
    _check_many(kind, lab)
    _check_unknown(kind, lab, inside)
    _check_times(kind, lab, inside)
    _check_neighbours(kind, lab, inside)
    in_time(lambda ttl: _slides(kind, lab, ttl), 0.24, 0.48, 0.96, 1.92)
    _check_clock(kind, lab, inside)
    _check_tokens(kind, lab)
    _check_thief(kind, lab, inside)
    _check_alike(kind, lab, inside)
    _check_crash(kind, lab, inside)
    _check_races(kind, lab, inside)
    _check_trips(kind, lab)
    _check_gap(kind, lab, inside)


def _check_users(kind: Any, lab: Lab, inside: Inside) -> None:
    """Each token tells its user, in whatever process; none is known in a store of another name."""
    name, story = lab.key("sessions"), Story()
    one, two = kind(lab.r, name, LONG), elsewhere(kind)(lab.client(), name, LONG)
    tokens = []
    hold = story.hold
    _check_none(one, lab)
    for user in (*USERS, "ada"):
        token = story.take(f"create({user!r})", partial(one.create, user))
        hold(isinstance(token, str) and token, "token", "create() gives a token, a str", "what it returns")
        tokens.append((user, token))
    apart = len({token for _, token in tokens}) == len(tokens)
    hold(apart, "token", "each session has a token of its own", "where it comes from")
    hold(inside.keys(), "shared", "Redis holds no key: other processes know nothing of it", "what `r` is for")
    for user, token in tokens:
        what, said = f"this session is {user!r}'s", f"get({story.name(token)})"
        story.lines = [f"create({user!r}) -> {story.name(token)}"]
        hold(story.call(said, one.get, token) == user, "user", what, "what is kept for each token")
        found = story.call(f"{said} in another process", two.get, token)
        hold(found == user, "shared", what, "what other processes know")
    other, what = (
        kind(lab.r, lab.key("others"), LONG),
        "a store of another name must know nothing of this token",
    )
    found = story.call(f"{said} in a store of another name", other.get, token)
    hold(found is None, "name", what, "the names of the keys")


def _check_none(store: Any, lab: Lab) -> None:
    """Where there is no session at all get() gives None, and nothing like it."""
    story = Story("nobody has logged in yet")
    found = story.call("get('no token')", store.get, "no token")
    what = f"there is no such session: get() is to give None, and gives {found!r}"
    story.hold(found is None, "unknown", what, "what get() returns where there is no key")
    lab.r.flushdb()


def _check_destroy(kind: Any, lab: Lab, inside: Inside) -> None:
    """One session ends, and no other: not of this user, not of others, nor what strangers keep."""
    lab.r.flushdb()
    name, story, look = lab.key("sessions"), Story(), "what destroy() returns, and when"
    store, strangers = kind(lab.r, name, LONG), Strangers(inside, name)
    users = ("ada", "ada", "bob")
    with no_scan(story, inside):
        tokens = [story.take(f"create({user!r})", partial(store.create, user)) for user in users]
        done = story.call("destroy(token·1)", store.destroy, tokens[0])
        story.hold(done is True, "answer", "destroy() is True if there was such a session", look)
        done = story.call("destroy(token·1)", store.destroy, tokens[0])
        story.hold(done is False, "answer", "destroy() is False where there is nothing to destroy", look)
        over = story.call("get(token·1)", store.get, tokens[0]) is None
        story.hold(over, "destroy", "a session that was destroyed is over", "which key is deleted")
        for n, user in ((2, "ada"), (3, "bob")):
            found = story.call(f"get(token·{n})", store.get, tokens[n - 1])
            look = "which keys are deleted"
            story.hold(found == user, "others", "destroy() ends another session, too", look)
    strangers.check(story)


def _check_kept(kind: Any, lab: Lab) -> None:
    """What another process ended, or what is gone from Redis, is over; once more where the machine was slow.

    Who remembers a session for some milliseconds is found only by whoever asks again before they are over.
    """
    for _ in range(20):
        began = time.monotonic()
        _end_elsewhere(kind, lab)
        if time.monotonic() < began + 0.01:
            return


def _end_elsewhere(kind: Any, lab: Lab) -> None:
    lab.r.flushdb()
    name, story = lab.key("sessions"), Story()
    store, other = kind(lab.r, name, LONG), elsewhere(kind)(lab.client(), name, LONG)
    look = "what is kept in your object, or in a variable: only Redis knows who is logged in"
    token = story.take("create('ada')", partial(store.create, "ada"))
    story.call("get(token·1)", store.get, token)
    story.call("destroy(token·1) in another process", other.destroy, token)
    found = story.call("get(token·1)", store.get, token)
    story.hold(found is None, "shared", "another process destroyed the session, and here it goes on", look)
    token = story.take("create('ada')", partial(store.create, "ada"))
    lab.r.flushdb()
    story.tell("FLUSHDB")
    found = story.call("get(token·2)", store.get, token)
    story.hold(found is None, "shared", "nothing is left in Redis, and the session goes on", look)


def _check_many(kind: Any, lab: Lab) -> None:
    """One user, on thirty devices."""
    store = kind(lab.r, lab.key("sessions"), LONG)
    found = [store.get(token) for token in [store.create("ada") for _ in range(30)]]
    story = Story(f"30 times create('ada'), and get() of each: {found.count('ada')} times 'ada'")
    story.hold(found == ["ada"] * 30, "user", "a log-in ended another session", "what is kept for each token")


def _check_unknown(kind: Any, lab: Lab, inside: Inside) -> None:
    """What is no token is None, and leaves nothing behind."""
    lab.r.flushdb()
    name, story = lab.key("sessions"), Story()
    store, hold = kind(lab.r, name, LONG), story.hold
    token = store.create("ada")
    before = inside.dump()
    odd = (token[:-1], token + "x", token.swapcase() + "-")
    for text in (*odd, "*", "?" * len(token), "ada", "", name, "ünï", "x" * 500):
        word = "a token, with some letters changed" if text in odd else repr(text[:20])
        look, story.lines = "what get() and destroy() do where there is no key", []
        found = story.call(f"get({word})", store.get, text)
        what = f"that is no token: get() is to give None, and gives {found!r}"
        hold(found is None, "unknown", what, look)
        done = story.call(f"destroy({word})", store.destroy, text)
        hold(done is False, "unknown", "that is no token, and destroy() is not False", look)
        same, what = inside.dump() == before, "a token that nobody has must change nothing in Redis"
        hold(same, "unknown", what, look)
    store.destroy(token)
    found = story.take("get(a token that was destroyed)", partial(store.get, token))
    what = "a session that is over must leave nothing in Redis"
    hold(found is None and not inside.keys(), "unknown", what, look)


def _check_left(story: Story, inside: Inside, ttl: float, since: float, property: str) -> None:
    """What is in Redis lasts `ttl` seconds from now, less what has passed since `since`."""
    ends = inside.ends()
    least = (ttl - (time.monotonic() - since)) * 1000 - 5
    for key, left in ends.items():
        story.tell(f"PTTL {said(key)} -> {left}")
        look = (
            "which commands set a TTL"
            if left < 0
            else "the unit, fractions of a second, and from when it counts"
        )
        story.hold(
            least <= left <= ttl * 1000 + 1, property, f"the session should last {ttl:g} s from now", look
        )


def _check_times(kind: Any, lab: Lab, inside: Inside) -> None:
    for ttl in (LONG, 100, 20, 1.234, 0.75):
        for left in (None, 5000, 100_000):
            lab.r.flushdb()
            store, story, since = (
                kind(lab.r, lab.key("sessions"), ttl),
                Story(f"ttl {ttl:g} s"),
                time.monotonic(),
            )
            token = story.take('create("ada")', partial(store.create, "ada"))
            _check_left(story, inside, ttl, since, "ttl")
            if left is not None:
                inside.set_left(left)
                story.tell(f"{left // 1000} s are left")
            since = time.monotonic()
            story.call("get(token·1)", store.get, token)
            for key, now in inside.ends().items():
                story.hold(
                    now >= 0, "ttl", "the session never ends", f"what get() does to the TTL of {said(key)}"
                )
            _check_left(story, inside, ttl, since, "slide")


def _check_neighbours(kind: Any, lab: Lab, inside: Inside) -> None:
    """Who uses a session renews no other; also after a restart of the process."""
    lab.r.flushdb()
    name, story = lab.key("sessions"), Story()
    store = kind(lab.r, name, LONG)
    for user in ("ada", "ada", "bob"):
        token = story.take(f"create({user!r})", partial(store.create, user))
    inside.set_left(5000)
    story.tell("5 s are left of each")
    story.call("get(token·3)", kind(lab.client(), name, LONG).get, token)
    late = [left for left in inside.each() if left > 5000]
    what = "the use of one session changed how long the others last"
    story.hold(len(late) <= 1, "others", what, "which keys get() renews")


def _slides(kind: Any, lab: Lab, ttl: float) -> bool:
    """In real time: used every half of `ttl` it goes on, and unused it ends. False: too slow a machine."""
    name = lab.key("sessions")
    store, story = kind(lab.r, name, ttl), Story(f"ttl {ttl:g} s")
    idle, before = store.create("ada"), time.monotonic()
    began = before
    token = story.take('0.00 s: create("ada")', partial(store.create, "ada"))
    for _ in range(3):
        time.sleep(0.5 * ttl)
        now = time.monotonic()
        found = story.call(f"{now - began:.2f} s: get(token·1)", store.get, token)
        if found is None and time.monotonic() > before + ttl - 0.005:
            return False
        story.hold(
            found == "ada", "slide", "a session that is used all the time ends", "what get() sets anew"
        )
        before = now
    if store.get(idle) is not None:
        story.tell("get(another session of ada's, as old, which nobody used) -> not None")
        what = "the use of one session renewed another"
        story.hold(False, "others", what, "what the TTL that get() sets belongs to: one session, or more")
    time.sleep(ttl + 0.03)
    found = story.call(f"{time.monotonic() - began:.2f} s: get(token·1)", store.get, token)
    story.hold(found is None, "ttl", "a session that nobody used for `ttl` seconds is over", "what ends it")
    return True


def _check_clock(kind: Any, lab: Lab, inside: Inside) -> None:
    """Two clients whose clocks are wrong by 100 s."""
    for skew in (100, -100):
        lab.r.flushdb()
        name, story = lab.key("sessions"), Story(f"ttl {LONG:g} s")
        with clocks(skew, kind):
            store = kind(lab.r, name, LONG)
            token = story.take(f'create("ada"), clock {skew:+d} s', partial(store.create, "ada"))
        found = story.call("get(token·1), clock right", kind(lab.client(), name, LONG).get, token)
        story.hold(
            found == "ada",
            "clock",
            "the session has just begun, and is over",
            "whose clock says when it ends",
        )
        with clocks(skew, kind):
            story.call(f"get(token·1), clock {skew:+d} s", store.get, token)
        found = story.call("get(token·1), clock right", kind(lab.client(), name, LONG).get, token)
        story.hold(
            found == "ada",
            "clock",
            "the session was used just now, and is over",
            "whose clock says when it ends",
        )
        since = time.monotonic()
        with clocks(skew, kind):
            store.get(token)
        _check_left(story, inside, LONG, since, "clock")


ENOUGH = 100
"""Bits by chance that 30 tokens must show: a random UUID has 122, and one is seen a bit too low at times."""


def _check_tokens(kind: Any, lab: Lab) -> None:
    """Tokens have 128 bits from the system's chance, and so many that differ; and so have the keys' names."""
    lab.r.flushdb()
    store, look = kind(lab.r, lab.key("sessions"), LONG), "the module `secrets`"
    inside, tokens, held = Inside(lab), [], []
    with lab.tap() as tape:
        for _ in range(30):
            with system_chance(kind) as taken:
                tokens.append(store.create("ada"))
            held.append(" ".join(word.decode("latin-1") for word in inside.dump()))
            lab.r.flushdb()
    by_server = any("GENPASS" in " ".join(exchange.command).upper() for exchange in tape.commands)
    story = Story(*tokens[:4], "…")
    what = f"a token can be guessed: {8 * sum(taken)} bits of chance were taken for it, and it needs 120"
    story.hold(by_server or sum(taken) >= 15, "token", what, look)
    bits = chance(tokens)
    what = f"tokens are too much alike: about {bits:.0f} bits of them are chance, and 120 are needed"
    story.hold(bits >= ENOUGH, "token", what, look)
    story = Story(*(text[:80] for text in held[:4]), "…")
    what = "what Redis holds of a token is so short that a thief of it finds a token that fits"
    story.hold(chance(held) >= ENOUGH, "hash", what, "hashlib.sha256, all of it")


def _check_thief(kind: Any, lab: Lab, inside: Inside) -> None:
    """Whoever reads all of Redis finds no token in it, nor the most of one."""
    lab.r.flushdb()
    store, story = kind(lab.r, lab.key("sessions"), LONG), Story()
    tokens = [store.create(user) for user in ("ada", "bob")]
    for moment in ("after create()", "after get()"):
        words = inside.dump()
        for token in tokens:
            hidden = unseen(token, words)
            look = "what is stored: a hash of the token is enough to find its session"
            shown = "\n".join(
                [f"a token: {token}", f"in Redis, {moment}:", *(f"  {said(word)}" for word in words[:6])]
            )
            story.lines = [shown]
            what = "the token, or too much of it, can be read in Redis"
            story.hold(hidden == token or len(hidden) * 4 >= ENOUGH, "clear", what, look)
            store.get(token)
    for word in words:
        text = word.decode(errors="replace")
        for part in {text, *text.split(":"), text.rpartition(":")[2]}:
            story.lines = [f"in Redis: {text}", f"get({part!r}) -> …"]
            story.hold(
                store.get(part) is None, "clear", "what is stored in Redis works as a token", "what is stored"
            )


def _check_alike(kind: Any, lab: Lab, inside: Inside) -> None:
    """Two tokens that differ in their last letter: their hashes differ in every place, and show nothing."""
    tokens, kept = [], []
    for flip in (0, 1):
        lab.r.flushdb()
        with system_chance(kind, "alike", flip):
            tokens.append(kind(lab.r, "sessions", LONG).create("ada"))
        kept.append(inside.dump())
    letters = _apart(*(token.encode() for token in tokens))
    if not 1 <= letters <= 6:
        return  # they have the time in them, or each letter is drawn for itself
    pairs = list(zip_longest(*kept, fillvalue=b""))
    story = Story()
    for token, pair in zip(tokens, zip(*pairs, strict=True), strict=True):
        story.lines += [f"a token: {token}", "in Redis:", *(f"  {_end(word)}" for word in pair[:4])]
    what = "where two tokens are alike, so is what Redis holds of them: it can be turned back into a token"
    look = "hashlib.sha256: another letter changes all of it, and nobody finds a way back"
    story.hold(sum(_apart(one, two) for one, two in pairs) >= 10, "clear", what, look)


def _end(word: bytes) -> str:
    """How a word in a counterexample ends, which is where these differ."""
    text = word.decode(errors="replace")
    return text if len(text) <= 60 else f"…{text[-59:]}"


def _apart(one: bytes, two: bytes) -> int:
    """In how many places they differ."""
    return sum(a != b for a, b in zip_longest(one, two))


def _check_crash(kind: Any, lab: Lab, inside: Inside) -> None:
    """Nothing without a TTL is left, wherever a client crashes."""
    look = "what a crash leaves behind after each of your commands"
    with system_chance(kind, "the same each time") as taken:

        def ada(r: Any) -> Any:
            taken.clear()
            store = kind(r, "sessions", LONG)
            token = store.create("ada")
            store.get(token)
            return token

        def rule(r: Any) -> None:
            assert_mortal(inside, LONG)

        if ada(lab.r) == ada(lab.r):
            cast = "A: create(), get(); it may crash"
            explored(lab, [ada], "crash", look, cast, invariant=rule, faults=[crash])
            return
    for sent in range(1, 20):  # with other keys each time no two orders can be compared
        lab.r.flushdb()
        if not _crashes(lab, ada, sent):
            return
        story = Story(f"create(), get(); the process crashes after {sent} of what it sends")
        for key, left in inside.ends().items():
            story.tell(f"PTTL {said(key)} -> {left}")
            story.hold(left >= 0, "crash", "a key never expires", look)


class _Crash(BaseException):
    """The process is gone."""


def _crashes(lab: Lab, act: Callable[[Any], Any], most: int) -> bool:
    """Let `act` send so much, and no more. False: that was all."""
    left = -1

    class Crashing(redis.Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            nonlocal left
            if left == 0:
                raise _Crash
            left -= 1
            send: Any = super().send_packed_command
            send(command, check_health)

    r = lab.client(connection_class=Crashing)
    r.ping()
    left = most
    try:
        act(r)
    except _Crash:
        return True
    return False


def _check_races(kind: Any, lab: Lab, inside: Inside) -> None:
    lab.r.flushdb()
    token = kind(lab.r, "sessions", LONG).create("ada")
    setup = inside.saved()

    def get(r: Any) -> Any:
        return kind(r, "sessions", LONG).get(token)

    def destroy(r: Any) -> Any:
        return kind(r, "sessions", LONG).destroy(token)

    def stays_over(r: Any, results: list[Any]) -> None:
        assert results[0] in ("ada", None), f"A is told that it is {results[0]!r}'s"
        assert get(r) is None, "B has destroyed the session, and A's get() brought it back to life"
        assert results[1] is True, (
            "B is told that there was no such session: A's get() took it away for a moment"
        )
        assert not inside.keys(), f"B has destroyed the session, and A's get() left {said(inside.keys()[0])}"

    def both(r: Any, results: list[Any]) -> None:
        assert results == ["ada", "ada"], (
            f"two use one session at once: A gets {results[0]!r}, B {results[1]!r}"
        )

    cast = "A: get(token). B: destroy(token)"
    explored(lab, [get, destroy], "race", BETWEEN, cast, setup=setup, invariant=stays_over)

    def one(r: Any, results: list[Any]) -> None:
        assert sorted(results) == [False, True], (
            f"two destroy one session, and only one may be told True: A is told {results[0]}, B {results[1]}"
        )

    cast = "A and B: get(token)"
    explored(lab, [get, get], "race", BETWEEN, cast, setup=setup, invariant=both)
    cast = "A and B: destroy(token)"
    explored(lab, [destroy, destroy], "race", BETWEEN, cast, setup=setup, invariant=one)


def _check_gap(kind: Any, lab: Lab, inside: Inside) -> None:
    """The last second of a session is over while get() is at work: it renews it, or there is no user."""
    lab.r.flushdb()
    token = kind(lab.r, "sessions", LONG).create("ada")
    put_back = inside.saved()

    def setup(r: Any) -> None:
        put_back(r)
        inside.set_left(1000)

    def get(r: Any) -> Any:
        return kind(r, "sessions", LONG).get(token)

    def passes(r: Any) -> None:
        inside.later(1000, r)

    def alive(r: Any, results: list[Any]) -> None:
        found = results[0]
        assert found is None or get(r) == "ada", (
            f"A is told {found!r}, and the session was not renewed: it is over"
        )

    cast = "1 s is left of the session. A: get(token). ·: that second"
    look = "whether time may pass between the reading and the new TTL: a plain pipeline is no transaction"
    explored(lab, [get, passes], "race", look, cast, setup=setup, invariant=alive)


def _check_trips(kind: Any, lab: Lab) -> None:
    """One round trip for each get(), also after a restart of the server, once a script is loaded."""
    lab.r.flushdb()
    r, story = lab.r, Story()
    store = kind(r, lab.key("sessions"), LONG)
    token = store.create("ada")
    for restarted in (False, True):
        if restarted:
            r.script_flush()
            story.tell("SCRIPT FLUSH, as a restart of the server does")
        try:
            found = story.call("get(token)", store.get, token)
        except Exception as error:
            story.tell(f"get(token) raises {type(error).__name__}: {error}")
            found = None
        story.hold(
            found == "ada", "flushed", "after a restart of the server get() fails", "EVAL, which always works"
        )
        for word in (token, "x" * len(token)):
            with lab.tap(r) as tape:
                store.get(word)
            trips = tape.round_trips
            names = ", ".join(exchange.command[0] for exchange in tape.commands)
            story.tell(f"get({'token' if word == token else 'no token'}): {names}")
            story.hold(trips <= 1, "round_trips", f"get() takes {trips} round trips", "GETEX, or a script")


EXERCISE = Exercise(
    stem="session",
    name="sliding",
    title="A session that slides, in one round trip",
    statement="""
Write sessions that slide, for several processes at once:

- A session lasts `ttl` seconds (fractions too) from its beginning or its latest `get`, whichever is later.
  Then it is over.
- `get` takes **one** round trip, also after a restart of the server. (Loading a script does not count.)
- `get` renews no other session, brings none back to life, and tells no user of a session that has ended.
- Of several who `destroy` one session at once, one is told True.
- Stores of other names know nothing of these sessions.
- A token has at least 120 bits of chance. (`uuid.uuid4()` has 122.)
- Whoever can read all of Redis finds no token there, and nothing that can be turned back into one.
- Every key ends by itself, also after a crash.
- No client's clock counts, and nothing goes through all keys.
""".strip(),
    answer="MySessions",
    stub=STUB.strip(),
    hints=(
        "GET, and then PEXPIRE, is two round trips. Which command reads a value and sets its TTL at once?",
        "GETEX key PX milliseconds: r.getex(key, px=…). Where there is no key it sets none. SET has px= too.",
        "secrets.token_urlsafe(32) is a token of 256 bits. random, the time and uuid1 can be guessed.",
        'Who reads Redis should not be logged in by it. Let the key be f"{name}:{hash}", with the hash by '
        "hashlib.sha256(token.encode()).hexdigest(): it is found from the token, and never the other way.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
