"""Exercises of chapter 00: the wire, a TTL on every key, names, and counting without blocking."""

from __future__ import annotations

import socket
from typing import Any

from redis.exceptions import RedisError

from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.lab import Lab

# --- encode: a command as the server wants it ---------------------------------------------------------------


def _grade_encode(encode: Any, lab: Lab) -> None:
    """A real server reads what `encode` wrote. Inline commands pass PING, and fail at the first space."""
    key, raw = lab.key("note"), lab.client(decode_responses=False)
    if not isinstance(frame := encode("PING"), bytes):
        raise Failure("frame", "a socket carries bytes", f"encode('PING') -> {frame!r}", "str.encode()")
    _send(lab, encode, "frame", ("PING",), b"+PONG\r\n", "`*1`, `$4` and what ends each line")
    cases = [
        ("frame", "hello", "the header `*3`: how many words the command has"),
        ("spaces", "two words", "the length before each word: it says where the word ends, a space does not"),
        ("bytes", "café", "`$5`: the length counts bytes, after encoding, not characters"),
        ("binary", "a\r\nb", "the length: with it a value may hold anything, line ends too"),
        ("empty", "", "a word of length 0, which is a word all the same"),
    ]
    for property, value, look_at in cases:
        _send(lab, encode, property, ("SET", key, value), b"+OK\r\n", look_at)
        if (got := raw.get(key)) != value.encode():
            raise Failure(
                property, "another value was stored", f"SET {value!r}, then GET -> {got!r}", look_at
            )


def _send(
    lab: Lab, encode: Any, property: str, words: tuple[str, ...], expected: bytes, look_at: str
) -> None:
    frame = encode(*words)
    with socket.create_connection(("127.0.0.1", lab.server.port)) as wire:
        wire.sendall(b"AUTH " + lab.server.password.encode() + b"\r\n")
        wire.recv(64)
        wire.sendall(frame)
        wire.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: wire.recv(4096), b""))
    if reply != expected:
        said = repr(reply.decode(errors="replace")) if reply else "nothing: it waits for more bytes"
        shown = f"encode({', '.join(map(repr, words))}) -> {frame!r}\nthe server answers {said}"
        raise Failure(property, "the server does not understand it", shown, look_at)


encode = Exercise(
    stem="start_here",
    name="encode",
    title="the server understands every command that you encode",
    statement="Be the client yourself: turn words into the bytes of act 2. "
    "The grader sends them to a real server.",
    answer="encode",
    stub='''def encode(*words):
    """The bytes of one command: encode("SET", "k", "v")."""
    raise NotImplementedError''',
    hints=(
        "A command is an array: `*` and the number of words, then each word as `$`, its length, and itself.",
        "Every header line and every word ends with `\\r\\n`. Look again at the raw bytes of the SET above.",
        "Encode each word first, then take its length: `é` is one character and two bytes.",
    ),
    reference='''
def encode(*words):
    """The bytes of one command: encode("SET", "k", "v")."""
    frame = b"*%d\\r\\n" % len(words)
    for word in words:
        data = word.encode()
        frame += b"$%d\\r\\n%b\\r\\n" % (len(data), data)
    return frame
''',
    wrong=(
        Wrong(
            """
def encode(*words):
    return (" ".join(words) + "\\r\\n").encode()
""",
            "spaces",
            "an inline command: a space ends the word",
        ),
        Wrong(
            """
def encode(*words):
    frame = f"*{len(words)}\\r\\n" + "".join(f"${len(word)}\\r\\n{word}\\r\\n" for word in words)
    return frame.encode()
""",
            "bytes",
            "len() of the text: é is one character and two bytes, and the server counts bytes",
        ),
        Wrong(
            """
def encode(*words):
    return b"".join(b"$%d\\r\\n%b\\r\\n" % (len(word.encode()), word.encode()) for word in words)
""",
            "frame",
            "no `*3` before the words: the server does not know that a command begins",
        ),
        Wrong(
            """
def encode(*words):
    frame = b"*%d\\n" % len(words)
    return frame + b"".join(b"$%d\\n%b\\n" % (len(word.encode()), word.encode()) for word in words)
""",
            "frame",
            "`\\n` in place of `\\r\\n`: the server waits for the rest of the line",
        ),
        Wrong(
            """
def encode(*words):
    words = [word for word in words if word]
    frame = b"*%d\\r\\n" % len(words)
    return frame + b"".join(b"$%d\\r\\n%b\\r\\n" % (len(word.encode()), word.encode()) for word in words)
""",
            "empty",
            "drops empty words: an empty text is a word of length 0, and belongs there",
        ),
        Wrong(
            """
def encode(*words):
    words = [word.replace("\\r\\n", " ") for word in words]
    frame = b"*%d\\r\\n" % len(words)
    return frame + b"".join(b"$%d\\r\\n%b\\r\\n" % (len(word.encode()), word.encode()) for word in words)
""",
            "binary",
            "replaces line ends as if they were dangerous: by its length a word may hold anything",
        ),
        Wrong(
            """
def encode(*words):
    return f"*{len(words)}\\r\\n" + "".join(f"${len(word)}\\r\\n{word}\\r\\n" for word in words)
""",
            "frame",
            "a str: a socket carries bytes, and only bytes have the length that counts",
        ),
    ),
    grade=_grade_encode,
)

# --- remember: no key without a TTL -------------------------------------------------------------------------


def _grade_remember(remember: Any, lab: Lab) -> None:
    r, key = lab.r, lab.key("session")
    with lab.tap() as tape:
        remember(r, key, "anna", 86_400)
    call = "remember(r, key, 'anna', 86_400)"
    if (got := r.get(key)) != "anna":
        raise Failure("value", "the value is not there", f"{call}; GET -> {got!r}", "what your code stores")
    _check_ttl(r, key, 86_400, "ttl", call)
    _check_one_step(tape.commands, call)
    remember(r, key, "ben", 3_600)
    twice = f"{call}\nremember(r, key, 'ben', 3_600)"
    if (got := r.get(key)) != "ben":
        raise Failure("again", "the second call changed nothing", f"{twice}; GET -> {got!r}", "NX")
    _check_ttl(r, key, 3_600, "again", twice)
    _check_fraction(remember, r, key)


def _check_ttl(r: Any, key: str, seconds: int, property: str, call: str) -> None:
    ttl = r.ttl(key)
    if ttl == -1:
        raise Failure(
            property, "the key lives for ever", f"{call}; TTL -> -1", "the options EX and PX of SET"
        )
    if not seconds - 60 <= ttl <= seconds:
        raise Failure(property, "the key lives for another time", f"{call}; TTL -> {ttl}", "the unit")


_IN_MILLISECONDS = "PX, which counts milliseconds"


def _check_fraction(remember: Any, r: Any, key: str) -> None:
    """Bracketed by the server's clock: a pause in between can prove nothing, so then it is asked again."""
    for seconds in (0.5, 1.5):
        call = f"remember(r, key, 'cleo', {seconds})"
        for _ in range(5):
            began = _milliseconds(r)
            try:
                remember(r, key, "cleo", seconds)
                ends = r.pexpiretime(key)
            except RedisError as error:
                what = f"{seconds} seconds are refused"
                raise Failure("fraction", what, f"{call} -> {error}", _IN_MILLISECONDS) from None
            late = _milliseconds(r) - began
            if began + seconds * 1000 - 1 <= ends <= began + late + seconds * 1000 + 1:
                break
            if late < 250:
                shown = f"{call}; PTTL -> {ends - began if ends > 0 else ends}"
                raise Failure("fraction", f"{seconds} seconds became another time", shown, _IN_MILLISECONDS)


def _milliseconds(r: Any) -> int:
    seconds, microseconds = r.time()
    return int(seconds * 1000 + microseconds // 1000)


def _check_one_step(commands: Any, call: str) -> None:
    """One command, or a transaction: else a crash in between leaves a key without a TTL."""
    names = [exchange.command[0].upper() for exchange in commands]
    if len(names) > 1 and not (names[0] == "MULTI" and names[-1] == "EXEC"):
        shown = f"{call} sends {', then '.join(names)}"
        raise Failure(
            "one step", "a crash in between leaves a key for ever", shown, "SET, which takes a TTL itself"
        )


remember = Exercise(
    stem="start_here",
    name="remember",
    title="every key that you write has a TTL, from its first moment",
    statement="No key without a TTL, from its first moment: also if your program dies between two commands. "
    "Half a second is a time, too, and so is one and a half.",
    answer="remember",
    stub='''def remember(r, key, value, seconds):
    """Store value at key for that many seconds; a second call replaces both."""
    raise NotImplementedError''',
    hints=(
        "SET takes the TTL in the same command, so there is no moment without one.",
        "EX counts whole seconds. Which option counts milliseconds?",
        "px=round(seconds * 1000) turns 0.5 s into 500 ms.",
    ),
    reference='''
def remember(r, key, value, seconds):
    """Store value at key for that many seconds; a second call replaces both."""
    r.set(key, value, px=max(1, round(seconds * 1000)))
''',
    wrong=(
        Wrong(
            "def remember(r, key, value, seconds):\n    r.set(key, value)\n",
            "ttl",
            "SET without EX or PX: the key lives for ever",
        ),
        Wrong(
            "def remember(r, key, value, seconds):\n    r.set(key, value)\n    r.expire(key, seconds)\n",
            "one step",
            "SET, then EXPIRE: a crash in between leaves a key for ever",
        ),
        Wrong(
            "def remember(r, key, value, seconds):\n    r.set(key, value, px=int(seconds))\n",
            "ttl",
            "PX with seconds: a day becomes 86 seconds",
        ),
        Wrong(
            "def remember(r, key, value, seconds):\n    r.set(key, value, ex=int(seconds), nx=True)\n",
            "again",
            "NX writes only where nothing is: the second call changes nothing",
        ),
        Wrong(
            "def remember(r, key, value, seconds):\n    r.set(key, value, ex=int(seconds))\n",
            "fraction",
            "EX counts whole seconds: 0.5 becomes 0, which the server refuses",
        ),
        Wrong(
            "def remember(r, key, value, seconds):\n    r.set(key, value, ex=max(1, int(seconds)))\n",
            "fraction",
            "max(1, …) hides the refusal: 0.5 s become 1 s",
        ),
        Wrong(
            """
def remember(r, key, value, seconds):
    if seconds < 1:
        r.set(key, value, px=round(seconds * 1000))
    else:
        r.set(key, value, ex=int(seconds))
""",
            "fraction",
            "PX below a second and EX above: 1.5 s become 1 s",
        ),
        Wrong(
            "def remember(r, key, value, seconds):\n    r.set(key, str(seconds), ex=int(seconds))\n",
            "value",
            "stores the seconds in place of the value",
        ),
    ),
    grade=_grade_remember,
)

# --- pattern: names that SCAN can find ----------------------------------------------------------------------


def _grade_pattern(pattern: Any, lab: Lab) -> None:
    r = lab.r
    cases = [
        ("own", "7", "what stands before and after the user in a key"),
        ("neighbour", "7", "the colon that ends the user's part"),
        ("elsewhere", "42", "where the user stands in the name, and where else 42 may stand"),
        ("glob", "ann*", "`*`, `?` and `[` in a user's name: a backslash takes their meaning"),
        (
            "glob",
            "a\\b",
            "a backslash in a user's name: it takes the meaning of what follows, so it needs one too",
        ),
        ("glob", "[b]en?", "`*`, `?` and `[` in a user's name: a backslash takes their meaning"),
    ]
    users = ["7", "70", "17", "42", "ann", "ann*", "anna", "[b]en?", "ben1", "b", "a\\b", "ab"]
    names = [f"workbook:00:user:{user}:{what}" for user in users for what in ("name", "cart", "order:42:sum")]
    for name in names:
        r.set(name, "x", ex=60)
    for property, user, look_at in cases:
        wanted = {name for name in names if name.startswith(f"workbook:00:user:{user}:")}
        found = set(r.scan_iter(match=pattern(user), count=100))
        if property == "own":
            found &= wanted
        if wrong := sorted(wanted - found, key=len):
            raise Failure(
                property, "a key of this user is missed", _shown(pattern, user, "misses", wrong[0]), look_at
            )
        if wrong := sorted(found - wanted, key=len):
            raise Failure(
                property, "a key of somebody else is found", _shown(pattern, user, "finds", wrong[0]), look_at
            )


def _shown(pattern: Any, user: str, verb: str, key: str) -> str:
    return f"pattern({user!r}) -> {pattern(user)!r} {verb} {key}"


pattern = Exercise(
    stem="start_here",
    name="pattern",
    title="SCAN MATCH finds all keys of one user, and nobody else's",
    statement="Keys are named `workbook:00:user:<user>:<what>`. Which pattern finds all keys of one "
    "user, and nobody else's?",
    answer="pattern",
    stub='''def pattern(user):
    """The MATCH pattern for all keys workbook:00:user:<user>:<what> of one user."""
    raise NotImplementedError''',
    hints=(
        "Write out everything that is fixed; leave to `*` only what is not.",
        "User 7 is not user 70: which character ends the user's part of the name?",
        "A user may be called `ann*`. In a pattern, `\\*` stands for the star itself.",
    ),
    reference='''
import re


def pattern(user):
    """The MATCH pattern for all keys workbook:00:user:<user>:<what> of one user."""
    quoted = re.sub(r"([*?\\[\\]\\\\])", r"\\\\\\1", user)
    return f"workbook:00:user:{quoted}:*"
''',
    wrong=(
        Wrong(
            'def pattern(user):\n    return f"workbook:00:user:{user}*"\n',
            "neighbour",
            "no colon after the user: 7* is 70, too",
        ),
        Wrong(
            'def pattern(user):\n    return f"workbook:00:*:{user}:*"\n',
            "elsewhere",
            "a * before the user: order:42 has a 42 as well",
        ),
        Wrong('def pattern(user):\n    return f"*{user}*"\n', "neighbour", "*7*: whatever has a 7 anywhere"),
        Wrong(
            'def pattern(user):\n    return f"workbook:00:user:{user}:*"\n',
            "glob",
            "ann* stands for anna, too",
        ),
        Wrong(
            'def pattern(user):\n    return f"workbook:00:user:{user}"\n',
            "own",
            "no * at the end: that is one name, and no key is called so",
        ),
        Wrong(
            'def pattern(user):\n    return f"workbook:00:user:{user}:?"\n',
            "own",
            "? is one character, and most names are longer",
        ),
        Wrong(
            """
def pattern(user):
    user = user.replace("*", "\\\\*")
    return f"workbook:00:user:{user}:*"
""",
            "glob",
            "quotes the star alone: ?, [ and \\ have a meaning, too",
        ),
        Wrong(
            """
import re


def pattern(user):
    quoted = re.sub(r"([*?\\[\\]])", r"\\\\\\1", user)
    return f"workbook:00:user:{quoted}:*"
""",
            "glob",
            "quotes *, ? and [ but not \\: a backslash in the name takes the meaning of the next one",
        ),
    ),
    grade=_grade_pattern,
)

# --- count: the size of a namespace, without blocking -------------------------------------------------------

_MOST = 1_000
_SCRIPTS = {"EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"}


def _grade_count(count: Any, lab: Lab) -> None:
    r, prefix = lab.r, lab.key("visit")
    few = {f"{prefix}:{i}": "x" for i in range(40)}
    with r.pipeline(transaction=False) as pipe:
        pipe.mset(few)
        pipe.mset({f"{lab.key('other')}:{i}": "x" for i in range(5_000)})
        pipe.execute()
    with lab.tap() as tape:
        found = count(r, f"{prefix}:*")
    _check_commands(tape.commands)
    if found != len(few):
        shown = f"40 keys of 5,040 match; count(r, pattern) -> {found!r}"
        raise Failure(
            "all", "not every key is counted once", shown, "the cursor: only 0 says that SCAN has ended"
        )
    _grade_twice(count, lab, prefix)


def _check_commands(commands: Any) -> None:
    for exchange in commands:
        name, *words = (word.upper() for word in exchange.command)
        if name == "KEYS":
            raise Failure("keys", "KEYS stops every other client", "sent: KEYS", "SCAN, or scan_iter")
        if name in _SCRIPTS:
            shown = f"sent: {name}"
            raise Failure(
                "keys", "a script stops every other client until it ends", shown, "SCAN, or scan_iter"
            )
        asked = int(words[words.index("COUNT") + 1]) if name == "SCAN" and "COUNT" in words else 10
        if asked > _MOST:
            shown = f"sent: {name} … COUNT {asked:,}"
            raise Failure(
                "step",
                f"one step looks at more than {_MOST:,} keys",
                shown,
                "COUNT: the longest stall of the others",
            )


def _grade_twice(count: Any, lab: Lab, prefix: str) -> None:
    """While the server resizes its table, SCAN may return a key twice. This client makes sure that one is."""
    r: Any = lab.client()
    send = r.execute_command
    seen: list[str] = []

    def stutter(*words: Any, **options: Any) -> Any:
        reply = send(*words, **options)
        if str(words[0]).upper() != "SCAN":
            return reply
        cursor, page = reply
        page, seen[:] = [*seen, *page], page[:1] or seen
        return cursor, page

    r.execute_command = stutter
    if (found := count(r, f"{prefix}:*")) != 40:
        shown = f"SCAN returns some of 40 keys twice; count(r, pattern) -> {found!r}"
        raise Failure("twice", "a key is counted twice", shown, "SCAN's promise: every key at least once")


count = Exercise(
    stem="start_here",
    name="count",
    title="you count keys without stopping anybody",
    statement="How many keys match a pattern? Look at no more than 1,000 keys in a step, count every "
    "key, and count none twice. Let the other clients in between two steps.",
    answer="count",
    stub='''def count(r, pattern):
    """How many keys match the pattern; in steps of at most 1,000 keys."""
    raise NotImplementedError''',
    hints=(
        "`r.scan_iter(match=..., count=...)` asks SCAN again until its cursor is 0.",
        "COUNT is how many keys one SCAN looks at. 10 by default: many round trips. 1,000 is a good step.",
        "SCAN may return a key twice. Which Python type keeps each only once?",
    ),
    reference='''
def count(r, pattern):
    """How many keys match the pattern; in steps of at most 1,000 keys."""
    return len(set(r.scan_iter(match=pattern, count=1000)))
''',
    wrong=(
        Wrong(
            "def count(r, pattern):\n    return len(r.keys(pattern))\n",
            "keys",
            "KEYS: everybody waits while the server looks at all keys",
        ),
        Wrong(
            """
def count(r, pattern):
    return r.eval("return #redis.call('KEYS', ARGV[1])", 0, pattern)
""",
            "keys",
            "KEYS in a script: a script is one step, so everybody waits all the same",
        ),
        Wrong(
            "def count(r, pattern):\n    return r.dbsize()\n",
            "all",
            "DBSIZE counts every key, whatever its name is",
        ),
        Wrong(
            "def count(r, pattern):\n    return len(r.scan(0, match=pattern, count=1000)[1])\n",
            "all",
            "one SCAN: that is one page, and the cursor says that there are more",
        ),
        Wrong(
            """
def count(r, pattern):
    cursor, found = r.scan(0, match=pattern, count=10)
    total = set(found)
    while found:
        cursor, found = r.scan(cursor, match=pattern, count=10)
        total |= set(found)
    return len(total)
""",
            "all",
            "stops at an empty page: a page may be empty, only cursor 0 is the end",
        ),
        Wrong(
            "def count(r, pattern):\n    return len(set(r.scan_iter(match=pattern, count=1_000_000)))\n",
            "step",
            "SCAN with a COUNT of a million: one long step, like KEYS",
        ),
        Wrong(
            "def count(r, pattern):\n    return sum(1 for _ in r.scan_iter(match=pattern, count=1000))\n",
            "twice",
            "counts what SCAN gives: it may give a key twice",
        ),
    ),
    grade=_grade_count,
)

EXERCISES = (encode, remember, pattern, count)
