"""Sessions on Redis: who is logged in, on which devices, until when.

    store = SessionStore(r, ttl=1800, absolute_ttl=86_400)
    token = store.create("ada", device="phone")     # for the cookie: whoever has it is Ada
    session = store.get(token)                      # Session(id=…, user_id='ada', …), or None
    store.destroy_all("ada")                        # logged out everywhere

A session is a hash with a TTL; a sorted set lists the sessions of each user. What holds, and what does not,
stands in `SessionStore`. Misuse raises ValueError or TypeError before anything is sent. Sources: OWASP's
"Session Management Cheat Sheet"; on scripts and their keys, redis.io."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import secrets
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from redis import exceptions

TOKEN = re.compile(r"([0-9a-f]{12})\.([A-Za-z0-9_-]{43})")
ID = re.compile(r"[0-9a-f]{64}")


class Session(NamedTuple):
    """`id` is for lists and `revoke`: it logs nobody in. `created` is Unix time, `expires_in` in seconds."""

    id: str
    user_id: str
    created: float
    expires_in: float
    data: dict[str, Any]


def _new_secret() -> str:
    return secrets.token_urlsafe(32)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tag(user_id: str) -> str:
    return _sha256(user_id)[:12]


@cache
def _sha1(lua: str) -> str:
    return hashlib.sha1(lua.encode()).hexdigest()


def _ms(name: str, seconds: float) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} is {seconds!r}; it must be a number of seconds from 0.001 to 1e9")
    if not 0.001 <= seconds <= 1e9:
        raise ValueError(f"{name} is {seconds!r}; it must be from 0.001 to 1e9 seconds")
    return round(seconds * 1000)


def _filled(name: str, text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name} is {text!r}; it must be a str")
    if not text:
        raise ValueError(f"{name} is empty; it must be a str of one character or more")
    return text


def _packed(fields: dict[str, Any]) -> list[str]:
    """Name, JSON, name, JSON, …; "" for a field that is not to be."""
    words = []
    for name, value in fields.items():
        if name.startswith("@"):
            raise ValueError(f"the field is called {name!r}; names that begin with @ are the store's own")
        stored = "" if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)
        words += [name, stored]
    return words


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)


def _session(reply: Any) -> Session:
    """Of what GET and ACTIVE return: id, ms that are left, the hash."""
    id, left, words = reply
    fields = dict(zip(map(_text, words[::2]), words[1::2], strict=True))
    data = {name: json.loads(value) for name, value in fields.items() if not name.startswith("@")}
    return Session(_text(id), _text(fields["@user"]), int(fields["@created"]) / 1e6, left / 1000, data)


class SessionStore:
    """Sessions of users, each of whom may have any number. One store serves all threads and processes.

    What holds:

    * A token has 256 random bits, made by `create` and `rotate` alone: nobody can plant one. Redis has only
      their SHA-256, so who reads a dump can log in as nobody (but sees user ids and data: they are as given).
    * Each method is one round trip (two where the server does not know the script yet): a Lua script, which
      Redis runs without letting another in. What is no token (None, say) costs none, and opens nothing.
    * Each `get` makes the session last for `ttl` from then, but never beyond `absolute_ttl` after `create`.
      Times are in seconds, kept to the millisecond, and by the server's clock. No other method extends a
      session, and none brings back one that has ended.
    * A session counts only as long as its user's index has it. So `destroy_all` misses none, whatever else
      happens at that time; and if Redis evicts an index, the user is logged out: nothing lives on unseen.
    * The index never outlives the sessions: it expires with the last one. Nor does it outgrow them: each
      `create` and `get` drops the entries of those that have expired.
    * Data are JSON, in a field each. Of two requests that set different fields, neither undoes the other; of
      two that set the same field, the later one wins.

    What does not:

    * A log-in whose password was checked before `destroy_all` may `create` its session after it. Where that
      matters (the password was changed), check again after `create`.
    * `rotate` ends the old token at once: requests that are on their way with it are logged out, and a
      `destroy` that comes too late with it ends nothing. Rotate when rights change, not at each request.
    * With Redis down every method raises: nobody gets in unseen. After a timeout it is unknown whether it was
      done. A client that sends again by itself creates and rotates once all the same; but it may hear False
      of what it has just destroyed, repeat an `update` after another's, and repeat a `create`: a session that
      was revoked in between is there again.
    * A server that comes back without its data has logged everybody out. One that lacks the latest commands
      (a replica that takes over, a crash before the disk was written) may bring back who had just logged out.
    * Each `get` writes: it has to go to the primary. A server that is full still answers it, and destroys;
      `create` and `update` raise OutOfMemoryError.
    * `active` and `destroy_all` look at all sessions of a user in one script, and Redis serves nobody else
      meanwhile: fine for a person's devices, not for a robot that logs in a thousand times a minute.

    A token is "<tag>.<secret>". The tag is the beginning of SHA-256(user id), and hides nothing more; all
    keys of a user have it in braces, and so one slot in a cluster. With the name "session" they are

        session:{tag}:<SHA-256 of the secret>    hash: @user, @created in µs, @end in ms, and the data
        session:{tag}:user:<user id>             sorted set: ids of sessions, by the ms in which they expire

    A script on one session learns from the hash whose it is, and so which index to use: that is not among its
    KEYS, but always in their slot. A name belongs to one `ttl`: give "remember me" a name of its own.
    """

    # KEYS      session, index of its user
    # ARGV      id, ttl in ms, absolute_ttl in ms or 0; then field, value, …; "" for one that is not to be
    CREATE = """
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local ends, last = now + ARGV[2], now + ARGV[3]
    redis.call('HSET', KEYS[1], '@created', string.format('%d', time[1] * 1000000 + time[2]))
    if last > now then
        redis.call('HSET', KEYS[1], '@end', string.format('%d', last))
        ends = math.min(ends, last)
    end
    for i = 4, #ARGV, 2 do
        if ARGV[i + 1] ~= '' then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
    end
    redis.call('PEXPIREAT', KEYS[1], string.format('%d', ends))
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('(%d', now))
    redis.call('ZADD', KEYS[2], string.format('%d', ends), ARGV[1])
    redis.call('PEXPIREAT', KEYS[2], redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])
    """

    # The four scripts on one session begin with this: `expires` is false if there is no such session.
    # KEYS      session
    # ARGV      id, "session:{tag}:user:"; then what each needs
    FIND = """
    local user = redis.call('HGET', KEYS[1], '@user')
    local index = user and ARGV[2] .. user
    local expires = user and redis.call('ZSCORE', index, ARGV[1])
    """

    # ARGV[3]   ttl in ms
    # returns   nil, or: id, ms that are left, the hash
    GET = """
    if not expires then return nil end
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local ends = math.min(now + ARGV[3], redis.call('HGET', KEYS[1], '@end') or math.huge)
    if ends <= now then return nil end  -- it ends in this very millisecond
    local hash = redis.call('HGETALL', KEYS[1])  -- before Redis 7.0, if it is late, deletes it
    redis.call('PEXPIREAT', KEYS[1], string.format('%d', ends))
    redis.call('ZREMRANGEBYSCORE', index, '-inf', string.format('(%d', now))
    redis.call('ZADD', index, string.format('%d', ends), ARGV[1])
    redis.call('PEXPIREAT', index, redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2])
    return {ARGV[1], ends - now, hash}
    """

    # ARGV[3]…  field, value, …; "" for a field that is to go
    # returns   nil, or 1
    UPDATE = """
    if not expires then return nil end
    for i = 3, #ARGV, 2 do
        if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i])
        else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
    end
    return 1
    """

    # KEYS[2]   the session under its new id
    # ARGV[3]   that id
    # returns   nil, or 1: also to a client that had lost the reply, and asks again
    ROTATE = """
    if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
    if not expires then return nil end
    redis.call('RENAME', KEYS[1], KEYS[2])
    redis.call('ZREM', index, ARGV[1])
    redis.call('ZADD', index, expires, ARGV[3])
    redis.call('PEXPIREAT', index, redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2])
    return 1
    """

    # ARGV[3]   whose it must be, if it is given
    # returns   nil, or 1
    DESTROY = """
    if not expires or ARGV[3] and ARGV[3] ~= user then return nil end
    redis.call('DEL', KEYS[1])
    redis.call('ZREM', index, ARGV[1])
    redis.call('PEXPIREAT', index, redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2] or 0)
    return 1
    """

    # KEYS      index
    # ARGV      "session:{tag}:", the id to keep or ""
    # returns   how many there were
    DESTROY_ALL = """
    local ended = 0
    for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
        if id ~= ARGV[2] then
            ended = ended + redis.call('DEL', ARGV[1] .. id)
            redis.call('ZREM', KEYS[1], id)
        end
    end
    redis.call('PEXPIREAT', KEYS[1], redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or 0)
    return ended
    """

    # KEYS      index
    # ARGV      "session:{tag}:"
    # returns   id, ms that are left, the hash: of each
    ACTIVE = """
    local found = {}
    for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
        local key = ARGV[1] .. id
        local hash = redis.call('HGETALL', key)
        if #hash > 0 then found[#found + 1] = {id, redis.call('PTTL', key), hash} end
    end
    return found
    """

    def __init__(
        self,
        r: Any,
        *,
        ttl: float,
        absolute_ttl: float | None = None,
        name: str = "session",
        secret: Callable[[], str] = _new_secret,
    ) -> None:
        """Without `absolute_ttl`, a session that is used lasts. Sends nothing.

        `secret` makes 43 characters of A-Z a-z 0-9 _ -. It is there for the race explorer, whose clients have
        to use the same keys each time: leave it alone elsewhere.
        """
        command = getattr(r, "execute_command", None)
        if command is None or hasattr(r, "execute") or inspect.iscoroutinefunction(command):
            raise TypeError(f"{type(r).__name__} is no client such as redis.Redis, or is an async one")
        if set("{}") & set(_filled("name", name)):
            raise ValueError(f"name is {name!r}; it must have no braces")
        self._r, self.name, self._secret = r, name, secret
        self.ttl, self._ttl = ttl, _ms("ttl", ttl)
        self.absolute_ttl = absolute_ttl
        self._absolute = 0 if absolute_ttl is None else _ms("absolute_ttl", absolute_ttl)

    def create(self, user_id: str, /, **metadata: Any) -> str:
        """Log in: a new session with these fields (JSON values; None is left out). Its token."""
        fields = _packed(metadata)
        prefix, secret = self._prefix(user_id), self._secret()
        id = _sha256(secret)
        keys, ends = (prefix + id, self.index_key(user_id)), (self._ttl, self._absolute)
        self._run(self.CREATE, keys, id, *ends, "@user", user_id, *fields)
        return f"{_tag(user_id)}.{secret}"

    def get(self, token: object) -> Session | None:
        """The session, which lasts for another `ttl` from now; None if there is none."""
        reply = self._on(self._place(token), self.GET, self._ttl)
        return None if reply is None else _session(reply)

    def update(self, token: object, /, **fields: Any) -> bool:
        """Set these fields, and delete those that are None; the others, and the expiry, stay as they are.

        False: there is no such session.
        """
        return self._on(self._place(token), self.UPDATE, *_packed(fields)) is not None

    def rotate(self, token: object) -> str | None:
        """The session goes on under a new token, which is returned; the old one is dead.

        None: there is no such session.
        """
        if (place := self._place(token)) is None:
            return None
        secret = self._secret()
        id = _sha256(secret)
        done = self._on(place, self.ROTATE, id, also=(place[0] + id,))
        return None if done is None else f"{str(token)[:12]}.{secret}"

    def destroy(self, token: object) -> bool:
        """Log out. False: there is no such session."""
        return self._on(self._place(token), self.DESTROY) is not None

    def revoke(self, user_id: str, session_id: str) -> bool:
        """Log out one device of the list that `active` gives. False: this user has no such session."""
        prefix = self._prefix(user_id)
        place = (prefix, session_id) if isinstance(session_id, str) and ID.fullmatch(session_id) else None
        return self._on(place, self.DESTROY, user_id) is not None

    def destroy_all(self, user_id: str, except_token: object = None) -> int:
        """Log the user out everywhere, or everywhere else if one token is given. How many sessions ended."""
        _, keep = self._place(except_token) or ("", "")
        return int(self._run(self.DESTROY_ALL, (self.index_key(user_id),), self._prefix(user_id), keep))

    def active(self, user_id: str) -> list[Session]:
        """The user's sessions, newest first. Extends none of them."""
        found = self._run(self.ACTIVE, (self.index_key(user_id),), self._prefix(user_id))
        return sorted(map(_session, found), key=lambda session: -session.created)

    def key(self, token: object) -> str:
        """Where the session of this token is, or was."""
        if (place := self._place(token)) is None:
            raise ValueError("that is no token: it must be 12 hex digits, a point, and 43 characters")
        return "".join(place)

    def index_key(self, user_id: str) -> str:
        """Where the user's index is."""
        return f"{self._prefix(user_id)}user:{user_id}"

    def _prefix(self, user_id: str) -> str:
        return f"{self.name}:{{{_tag(_filled('user_id', user_id))}}}:"

    def _place(self, token: object) -> tuple[str, str] | None:
        """The two parts of its key, the second of which is its id; None for what is no token."""
        if not isinstance(token, str) or not (parts := TOKEN.fullmatch(token)):
            return None
        return f"{self.name}:{{{parts[1]}}}:", _sha256(parts[2])

    def _on(self, place: tuple[str, str] | None, lua: str, *args: Any, also: tuple[str, ...] = ()) -> Any:
        """Run it on one session."""
        if place is None:
            return None
        prefix, id = place
        return self._run(self.FIND + lua, (prefix + id, *also), id, f"{prefix}user:", *args)

    def _run(self, lua: str, keys: tuple[str, ...], *args: Any) -> Any:
        try:
            return self._r.execute_command("EVALSHA", _sha1(lua), len(keys), *keys, *args)
        except exceptions.NoScriptError:
            return self._r.execute_command("EVAL", lua, len(keys), *keys, *args)
