"""Chapter 10, exercise acl: rules for a user who may do his work, and nothing else, by whatever way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import redis

from labkit.rig.client import client
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.lock.grading import wrong
from labkit.teach.lab import Lab

STUB = '''
def rules(password):
    """Rules of ACL SETUSER for the shop's user, in their order: a list of texts."""
    raise NotImplementedError
'''

REFERENCE = '''
def rules(password):
    """Rules of ACL SETUSER for the shop's user, in their order: a list of texts."""
    return [
        "on", f">{password}",
        "~shop:*", "%R~catalog:*",                  # its own keys; of the catalog, reading
        "resetchannels", "&shop:*",
        "-@all", "+@read", "+@write", "+@transaction", "+@pubsub", "+ping", "+eval", "+evalsha",
        "-@dangerous", "-function", "-scan", "-randomkey",  # after what they take away from
        "(+incr +incrby ~stats:*)",                 # a selector: these two commands, on these keys
    ]
'''

_KEYS = '"~shop:*", "%R~catalog:*",'
_CATEGORIES = '"-@all", "+@read", "+@write", "+@transaction", "+@pubsub", "+ping", "+eval", "+evalsha",'
_LESS = '"-@dangerous", "-function", "-scan", "-randomkey",'
_SELECTOR = '"(+incr +incrby ~stats:*)",'
_CHANNELS = '"resetchannels", "&shop:*",'
_PASSWORD = '"on", f">{password}",'


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


WRONG = (
    _wrong("keys", "~* gives every key: whoever gets in by the shop gets everything", (_KEYS, '"~*",')),
    _wrong(
        "catalog",
        "the catalog may be written, too: ~ is reading and writing",
        ('"%R~catalog:*"', '"~catalog:*"'),
    ),
    _wrong("allowed", "no pattern for the catalog: the program cannot do its work", ('"%R~catalog:*",', "")),
    _wrong(
        "stats",
        "the counters' keys among the other keys: so all commands may touch them",
        (_KEYS, '"~shop:*", "%R~catalog:*", "~stats:*",'),
        (_SELECTOR, ""),
    ),
    _wrong(
        "stats", "+@write in the selector lets SET overwrite a counter", (_SELECTOR, '"(+@write ~stats:*)",')
    ),
    _wrong("allowed", "INCR reads, too: %W~ is too little", (_SELECTOR, '"(+incr +incrby %W~stats:*)",')),
    _wrong("allowed", "no rule for the counters: the program cannot do its work", (_SELECTOR, "")),
    _wrong(
        "admin",
        "takes away some commands by name: the list of the dangerous is longer, and grows",
        (_LESS, '"-flushall", "-flushdb", "-keys", "-scan", "-randomkey",'),
    ),
    _wrong(
        "admin",
        "takes the dangerous away first, and gives them back with what follows: order matters",
        ('"-@all",', '"-@all", ' + _LESS),
        (f"{_LESS}  # after", "  # after"),
    ),
    _wrong(
        "names", "KEYS is gone with the dangerous, SCAN is not: it tells every key's name", (', "-scan"', "")
    ),
    _wrong("names", "RANDOMKEY tells a name, too", (', "-randomkey"', "")),
    _wrong(
        "keys", "~catalog* also fits catalogs:1: the colon ends the name", ('"%R~catalog:*"', '"%R~catalog*"')
    ),
    _wrong("keys", "~stats* also fits statsd:1: the colon ends the name", ("~stats:*", "~stats*")),
    _wrong(
        "channels",
        "&shop* also fits shopping: the colon ends the name",
        (_CHANNELS, '"resetchannels", "&shop*",'),
    ),
    _wrong(
        "channels", "&* gives every channel: it may hear what the others say", (_CHANNELS, '"allchannels",')
    ),
    _wrong(
        "allowed",
        "no & rule: after `reset` no channel is allowed, and PUBLISH is refused",
        (_CHANNELS, '"resetchannels",'),
    ),
    _wrong("password", "nopass: whoever knows the name is in", (_PASSWORD, '"on", "nopass",')),
    _wrong(
        "password",
        "a second password beside the first: whoever has read this rule is in",
        (_PASSWORD, '"on", f">{password}", ">letmein",'),
    ),
    _wrong(
        "password", "no `on`: a user that was not switched on cannot log in", (_PASSWORD, 'f">{password}",')
    ),
    _wrong(
        "allowed",
        "takes all scripting away: EVAL is his to use, within his own rights",
        (', "+eval", "+evalsha"', ""),
    ),
    _wrong(
        "rule",
        "+@publish: there is no such category, and the server refuses the whole rule",
        ('"+@pubsub"', '"+@publish"'),
    ),
    _wrong(
        "answer",
        "one text in place of a list: ACL SETUSER takes one rule in each argument",
        ("    return [", '    return " ".join(['),
        ("    ]\n", "    ])\n"),
    ),
)

Command = tuple[str, ...]

ALLOWED: dict[str, tuple[Command, ...]] = {
    "its own keys": (
        ("SET", "shop:cart:1", "3", "EX", "60"),
        ("GET", "shop:cart:1"),
        ("MGET", "shop:cart:1", "shop:cart:2"),
        ("INCR", "shop:n"),
        ("HSET", "shop:order:1", "price", "5"),
        ("HGETALL", "shop:order:1"),
        ("LPUSH", "shop:jobs", "1"),
        ("ZADD", "shop:best", "1", "a"),
        ("ZRANGE", "shop:best", "0", "-1"),
        ("SADD", "shop:seen", "1"),
        ("XADD", "shop:log", "*", "a", "1"),
        ("EXPIRE", "shop:cart:1", "60"),
        ("UNLINK", "shop:cart:1"),
        ("DEL", "shop:cart:2"),
        ("RENAME", "shop:n", "shop:m"),
    ),
    "to read the catalog": (
        ("GET", "catalog:1"),
        ("HGETALL", "catalog:book"),
        ("ZRANGE", "catalog:top", "0", "9"),
        ("COPY", "catalog:1", "shop:copy", "REPLACE"),
    ),
    "to count": (("INCR", "stats:views"), ("INCRBY", "stats:views", "5")),
    "its channels": (("PUBLISH", "shop:events", "hello"), ("SUBSCRIBE", "shop:events")),
    "scripts, transactions, PING": (
        ("PING",),
        ("MULTI",),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "shop:cart:1"),
    ),
}

REFUSED: dict[str, tuple[Command, ...]] = {
    "keys": (
        ("GET", "secret:1"),
        ("SET", "secret:1", "x"),
        ("DEL", "secret:1"),
        ("MGET", "shop:cart:1", "secret:1"),
        ("COPY", "secret:1", "shop:stolen"),
        ("RENAME", "secret:1", "shop:stolen"),
        ("LMOVE", "secret:jobs", "shop:jobs", "LEFT", "RIGHT"),
        ("SUNIONSTORE", "shop:stolen", "secret:set"),
        ("SORT", "shop:jobs", "STORE", "secret:sorted"),
        ("GET", "shopping:1"),
        ("GET", "catalogs:1"),
        ("INCR", "statsd:1"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "secret:1"),
        ("INCR", "secret:n"),
    ),
    "catalog": (
        ("SET", "catalog:1", "x"),
        ("DEL", "catalog:1"),
        ("EXPIRE", "catalog:1", "1"),
        ("GETDEL", "catalog:1"),
        ("COPY", "shop:cart:1", "catalog:1", "REPLACE"),
        ("RENAME", "catalog:1", "shop:mine"),
        ("ZUNIONSTORE", "catalog:top", "1", "shop:best"),
        ("INCRBY", "catalog:1", "1"),
    ),
    "stats": (
        ("GET", "stats:views"),
        ("SET", "stats:views", "0"),
        ("DEL", "stats:views"),
        ("COPY", "stats:views", "shop:views"),
        ("EXPIRE", "stats:views", "1"),
        ("DECR", "stats:views"),
    ),
    "channels": (
        ("PUBLISH", "admin", "x"),
        ("PUBLISH", "shopping", "x"),
        ("SUBSCRIBE", "admin"),
        ("PSUBSCRIBE", "*"),
        ("SPUBLISH", "admin", "x"),
    ),
    "admin": (
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("ACL", "LIST"),
        ("ACL", "SETUSER", "shop", "allkeys"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "LIST"),
        ("DEBUG", "SLEEP", "0"),
        ("SHUTDOWN",),
        ("REPLICAOF", "NO", "ONE"),
        ("MONITOR",),
        ("SAVE",),
        ("SWAPDB", "0", "1"),
        ("INFO",),
        ("SLOWLOG", "GET"),
        ("SCRIPT", "FLUSH"),
        ("FUNCTION", "FLUSH"),
        ("FUNCTION", "LOAD", "x"),
        ("MIGRATE", "localhost", "1", "shop:n", "0", "10"),
        ("RESTORE", "shop:n", "0", "x"),
        ("SORT", "shop:jobs"),
    ),
    "names": (("KEYS", "*"), ("SCAN", "0"), ("RANDOMKEY",)),
}

SNEAKY = (
    ("a script that names the key itself", "return redis.call('GET', 'secret:1')", "keys"),
    ("a script that builds the key's name", "return redis.call('GET', 'sec' .. 'ret:1')", "keys"),
    ("a script that writes to the catalog", "return redis.call('SET', 'catalog:1', 'x')", "catalog"),
    ("a script that goes through all names", "return redis.call('SCAN', 0)", "names"),
    ("a script that reads a counter by GET", "return redis.call('GET', 'stats:views')", "stats"),
    ("a script that empties the server", "return redis.call('FLUSHALL')", "admin"),
)
"""What a check of the words of a command alone does not see: (what it is, the script, what it must not)."""

_LOOK = {
    "keys": "which patterns follow ~, and in which brackets they stand",
    "catalog": "%R~pattern: keys that may only be read",
    "stats": "a selector, (…): commands and keys of its own, for both together",
    "names": "which commands tell the names of keys: ACL CAT keyspace, and @dangerous does not have them all",
    "channels": "&pattern: without resetchannels a user has what he had before",
    "admin": "ACL CAT dangerous; and that a rule changes only what the rules before it have given",
    "allowed": "what the commands need: a category, a key to read or to write, a channel",
}
USER = "shop"


def _grade(fn: Any, lab: Lab) -> None:
    password = "correct-horse-battery-staple"
    given = fn(password)
    look = "what rules() returns: a list, each rule a text of its own"
    if (
        isinstance(given, str)
        or not isinstance(given, Sequence)
        or not all(isinstance(one, str) for one in given)
    ):
        raise Failure("answer", f"rules() gives {given!r}: a list of texts is asked for", "", look)
    r: Any = lab.r
    try:
        _check_rules(r, list(given), password)
        _check_login(lab, list(given), password)
    finally:
        r.execute_command("ACL DELUSER", USER)


def _check_rules(r: Any, given: list[str], password: str) -> None:
    """What Redis would say to each command, without running it."""
    shown = " ".join(given).replace(password, "…")
    try:
        r.execute_command("ACL SETUSER", USER, "reset", *given)
    except redis.ResponseError as error:
        look = "the words of ACL SETUSER: redis.io, ACL"
        raise Failure("rule", f"Redis does not take these rules: {error}", shown, look) from None
    for what, commands in ALLOWED.items():
        for command in commands:
            said = r.execute_command("ACL DRYRUN", USER, *command)
            if said != "OK":
                raise _failure(
                    "allowed", f"the shop may do this ({what}), and is refused", command, shown, said
                )
    for property, commands in REFUSED.items():
        for command in commands:
            if r.execute_command("COMMAND INFO", command[0])[0] is None:
                continue  # this server has no such command
            if r.execute_command("ACL DRYRUN", USER, *command) == "OK":
                raise _failure(property, "this is not the shop's to do, and it may", command, shown, "OK")


def _failure(property: str, what: str, command: Command, shown: str, said: str) -> Failure:
    told = f"ACL SETUSER {USER} reset {shown}\nACL DRYRUN {USER} {' '.join(command)}\n-> {said}"
    return Failure(property, what, told, _LOOK[property])


def _check_login(lab: Lab, given: list[str], password: str) -> None:
    """The user logs in, does his work, and tries by script what his words do not tell."""
    story = f"ACL SETUSER {USER} reset {' '.join(given).replace(password, '…')}"
    r: Any = lab.r
    look = "on, and > before the one password"
    for word, works in ((password, True), ("wrong", False), ("", False), (USER, False)):
        entered = _enters(lab, word)
        told = "the right password" if works else repr(word)
        what = f"with {told} the user {'does not get in' if works else 'gets in'}"
        if entered != works:
            raise Failure("password", what, story, look)
    if (count := len(r.acl_getuser(USER)["passwords"])) != 1:
        raise Failure("password", f"{count} passwords let the user in: one is asked for", story, look)
    r.mset({"secret:1": "s", "catalog:1": "c", "stats:views": 1, "shop:cart:1": "mine"})
    with _client(lab, password) as user:
        own = user.eval("return redis.call('GET', KEYS[1])", 1, "shop:cart:1")
        assert own == "mine"
        for said, script, property in SNEAKY:
            with contextlib.suppress(redis.ResponseError):
                reply = user.eval(script, 0)
                shown = f"{story}\n{USER}: EVAL {script!r} 0 -> {str(reply)[:60]!r}"
                what = f"{said} gets through"
                raise Failure(property, what, shown, _LOOK[property])


@contextlib.contextmanager
def _client(lab: Lab, password: str) -> Iterator[Any]:
    url = f"redis://{USER}:{quote(password)}@127.0.0.1:{lab.server.port}/0"
    with client(url) as user:
        yield user


def _enters(lab: Lab, password: str) -> bool:
    with _client(lab, password) as user:
        try:
            user.ping()
        except redis.AuthenticationError:
            return False
        except redis.ResponseError as error:
            return not str(error).startswith(("WRONGPASS", "NOAUTH"))
        return True


def _listed(commands: Sequence[Command]) -> str:
    names = list(dict.fromkeys(command[0] for command in commands))
    return ", ".join(f"`{name}`" for name in names)


EXERCISE = Exercise(
    stem="production",
    name="acl",
    title="Rules for a user who may do his work, and nothing else",
    statement=f"""
The shop's program logs in as a user of its own. Write `rules(password)`: the rules that follow
`ACL SETUSER shop reset`, a list of texts. The user gets in with this password alone, and then:

- On keys `shop:…` he may do all that reads or writes data ({_listed(ALLOWED["its own keys"])} and so on).
- Keys `catalog:…` he may read, and copy from; he changes none of them.
- Keys `stats:…` he may count up, by `INCR` and `INCRBY`. He may not `GET` them, set or delete them. (The
  answer of `INCR` does tell him the count.)
- Other keys are none of his business, and neither are their names (`KEYS`, `SCAN`, `RANDOMKEY`).
- Channels: `shop:…`, and no other, for `PUBLISH` and `SUBSCRIBE`.
- `PING`, `MULTI`, and scripts by `EVAL` are his to use; a script may do what he may, and no more.
- Nothing that is for administrators: {_listed(REFUSED["admin"])}.
""".strip(),
    answer="rules",
    stub=STUB.strip(),
    hints=(
        "ACL CAT lists the categories, ACL CAT dangerous what is in one. Rules are read from left to right: "
        "what comes later changes what was given before.",
        "~shop:* is for reading and writing. %R~catalog:* is for reading alone.",
        "A selector, (+incr +incrby ~stats:*), has commands and keys of its own. A command is allowed if the "
        "user's other rules allow all of it, or one selector does.",
        "-@all +@read +@write … -@dangerous leaves SCAN, RANDOMKEY and FUNCTION: they are not in @dangerous. "
        "Channels: resetchannels, then &shop:*. ACL DRYRUN shop GET secret:1 says what Redis would say.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=20,
)
