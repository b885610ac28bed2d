"""What a server says of itself, in three round trips; whatever it refuses is noted and left out.

Nothing here writes, and nothing waits: INFO, CONFIG GET, ACL LIST, ACL DRYRUN (what a user may do, without
doing it), CLIENT INFO and LIST, SLOWLOG GET, COMMAND DOCS, CLUSTER INFO.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import redis
from redis.exceptions import AskError, NoPermissionError, ResponseError

from labkit.rig.audit.limits import Limits
from labkit.rig.audit.replies import lines, pairs, plain, send
from labkit.rig.audit.report import Unseen, count
from labkit.rig.audit.seen import Seen, Slow, User

SECTIONS = (
    *("server", "clients", "memory", "persistence", "stats", "replication", "cluster", "keyspace"),
    *("errorstats", "commandstats"),
)

SETTINGS = (
    *("maxmemory", "maxmemory-policy", "save", "appendonly", "appendfsync", "bind", "port", "protected-mode"),
    *("maxclients", "client-output-buffer-limit", "slowlog-log-slower-than"),
)
"""What every server from 7.0 on has; never a setting that holds a password."""

NEWER = (
    *("tls-port", "maxmemory-clients"),
    *("enable-debug-command", "enable-module-command", "enable-protected-configs"),
)
"""What only some servers have: older ones that were built without TLS do not know tls-port."""

SLOWLOG = 128
"""So many entries of the slow log are read: as many as it holds by default."""

CLIENTS = 5000
"""With more clients, or unknown how many, CLIENT LIST is not sent: its reply could take the server long."""

USERS = 50
"""Of so many ACL users, the rights are asked for."""

DANGEROUS = {
    "KEYS": ("KEYS", "*"),
    "FLUSHALL": ("FLUSHALL",),
    "FLUSHDB": ("FLUSHDB",),
    "SHUTDOWN": ("SHUTDOWN",),
    "CONFIG SET": ("CONFIG", "SET", "maxmemory", "0"),
    "DEBUG": ("DEBUG", "SLEEP", "0"),
    "MONITOR": ("MONITOR",),
    "ACL SETUSER": ("ACL", "SETUSER", "somebody"),
}
"""What an application has no use for. Who may send ACL SETUSER may do anything: that is an administrator."""


class Question(NamedTuple):
    """A command, what it would show, and the right that an ACL user needs for it."""

    command: tuple[Any, ...]
    what: str
    right: str


def ask(own: redis.Redis, questions: dict[str, Question], node: str, unseen: list[Unseen]) -> dict[str, Any]:
    """The answers as text, by the names of the questions, in one round trip.

    None for a refused one, which is noted in `unseen`.
    """
    answers = send(own, [question.command for question in questions.values()])
    told: dict[str, Any] = {}
    for (name, question), answer in zip(questions.items(), answers, strict=True):
        told[name] = None if isinstance(answer, ResponseError) else plain(answer)
        if isinstance(answer, ResponseError):
            unseen.append(refused(question, answer, node))
    return told


def refused(question: Question, error: ResponseError, node: str) -> Unseen:
    """What is not seen since the server answered so."""
    if isinstance(error, NoPermissionError) or "NOPERM" in str(error):
        return Unseen(question.what, "no permission", question.right, node)
    if str(error).lower().startswith(("unknown command", "unknown subcommand", "err unknown")):
        return Unseen(question.what, "the server has no such command, or under another name", "", node)
    if isinstance(error, AskError):  # or MovedError: they tell an address
        return Unseen(question.what, "another node of the cluster serves these keys", "", node)
    return Unseen(question.what, str(error)[:100], "", node)


FIRST = {
    "info": Question(("INFO", *SECTIONS), "memory, persistence, replication, counters: INFO", "+info"),
    "config": Question(("CONFIG", "GET", *SETTINGS, *NEWER), "settings: CONFIG GET", "+config|get"),
    "users": Question(("ACL", "LIST"), "users and passwords: ACL LIST", "+acl|list"),
    "slow": Question(("SLOWLOG", "GET", SLOWLOG), "slow commands: SLOWLOG GET", "+slowlog|get"),
    "me": Question(("CLIENT", "INFO"), "this connection: CLIENT INFO", "+client|info"),
}
CLIENT_LIST = Question(("CLIENT", "LIST"), "the clients: CLIENT LIST", "+client|list")
CLUSTER_INFO = Question(("CLUSTER", "INFO"), "the state of the cluster: CLUSTER INFO", "+cluster|info")
DRYRUN = Question(("ACL", "DRYRUN"), "what each user may do: ACL DRYRUN", "+acl|dryrun")


def look(own: redis.Redis, node: str, limits: Limits) -> Seen:
    """Ask one server: three round trips, at most 8 + 10 · USERS commands."""
    unseen: list[Unseen] = []
    told = ask(own, FIRST, node, unseen)
    slow = told["slow"]
    seen = Seen(
        node=node,
        limits=limits,
        info=lines(told["info"] or ""),
        config=pairs(told["config"]),
        me=_client(told["me"] or ""),
        slow=None if slow is None else tuple(Slow(entry[3][0].lower(), entry[2] / 1e6) for entry in slow),
        users=None if told["users"] is None else tuple(filter(None, map(_user, told["users"]))),
        without_password=_brings_no_password(own),
        tls=issubclass(own.connection_pool.connection_class, redis.SSLConnection),
        default_nopass=any(map(_is_open_default, told["users"] or ())),
        unseen=unseen,
    )
    _note_gaps(seen)
    _ask_further(own, seen)
    _ask_rights(own, seen)
    return seen


def _note_gaps(seen: Seen) -> None:
    missing = [name for name in SETTINGS if name not in seen.config]
    if seen.config and missing:
        why = "the server does not tell them"
        seen.unseen.append(Unseen(f"settings: {', '.join(missing)}", why, "", seen.node))
    if seen.setting("slowlog-log-slower-than") == "-1":
        seen.unseen.append(Unseen("slow commands", "slowlog-log-slower-than is -1", "", seen.node))


def _ask_further(own: redis.Redis, seen: Seen) -> None:
    """What depends on the first answers: clients, if they are not too many; documents; the cluster."""
    questions = {}
    if too_many := _too_many(seen):
        seen.unseen.append(too_many)
    else:
        questions["clients"] = CLIENT_LIST
    if seen.stats:
        what = "which commands are deprecated: COMMAND DOCS"
        questions["docs"] = Question(("COMMAND", "DOCS", *sorted(seen.stats)), what, "+command|docs")
    if seen.info.get("cluster_enabled") == "1":
        questions["cluster"] = CLUSTER_INFO
    told = ask(own, questions, seen.node, seen.unseen)
    if (clients := told.get("clients")) is not None:
        seen.clients = tuple(map(_client, clients.splitlines()))
    seen.docs = {name: pairs(doc) for name, doc in pairs(told.get("docs")).items()}
    seen.cluster = lines(told.get("cluster") or "")


def _too_many(seen: Seen) -> Unseen | None:
    """Why the clients are not asked for, if so; what hides how many there are hides them, too."""
    connected = seen.number("connected_clients")
    if connected is None:
        unknown = Unseen(CLIENT_LIST.what, "how many there are is not told", "", seen.node)
        refusals = [one for one in seen.unseen if one.what == FIRST["info"].what]
        return replace(refusals[0], what=CLIENT_LIST.what) if refusals else unknown
    why = f"{connected:,} are connected: the reply would hold up the server"
    return Unseen(CLIENT_LIST.what, why, "", seen.node) if connected > CLIENTS else None


def _ask_rights(own: redis.Redis, seen: Seen) -> None:
    """Ask of each user which dangerous commands it may send, and whether it may GET and SET at all."""
    if seen.users is None:
        return
    asked = seen.users[:USERS]
    if more := len(seen.users) - len(asked):
        seen.unseen.append(Unseen(f"what {count(more, 'more user')} may do", f"only {USERS} are asked for"))
    tries = [{**DANGEROUS, "GET": ("GET", one.key), "SET": ("SET", one.key, "x")} for one in asked]
    each = [
        ("ACL", "DRYRUN", user.name, *command)
        for user, its in zip(asked, tries, strict=True)
        for command in its.values()
    ]
    answers = send(own, each)
    unknown = [one for one in answers if isinstance(one, ResponseError) and _says_nothing(one)]
    if unknown:
        seen.unseen.append(refused(DRYRUN, unknown[0], seen.node))
        return
    said = iter(plain(answers))
    mays = [frozenset(name for name in its if next(said) == "OK") for its in tries]
    seen.users = (
        *(user._replace(may=may) for user, may in zip(asked, mays, strict=True)),
        *seen.users[USERS:],
    )


def _says_nothing(error: ResponseError) -> bool:
    """Was the question refused? (That the command or the user is not there is an answer.)"""
    return isinstance(error, NoPermissionError) or "unknown" in str(error).lower()


def _user(line: str) -> User | None:
    """Of a line of ACL LIST; None for one that cannot log in. The hashes of its passwords are dropped."""
    _, name, *rules = line.split()
    nopass = "nopass" in rules
    if "on" not in rules or not (nopass or any(rule.startswith("#") for rule in rules)):
        return None
    return User(name, nopass, tuple(rule for rule in rules if not rule.startswith("#")))


def _is_open_default(line: str) -> bool:
    _, name, *rules = line.split()
    return name == "default" and "nopass" in rules


def _client(line: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in line.split())


def _brings_no_password(own: redis.Redis) -> bool:
    settings = own.connection_pool.connection_kwargs
    return not any(settings.get(name) for name in ("password", "username", "credential_provider"))
