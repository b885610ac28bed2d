"""What the workbook needs of an ACL user on a server of the reader's own, and what a given user lacks.

    ACL SETUSER workbook on >PASSWORD ~workbook:* &workbook:* &workbook:06:shop:*
        +@all -@admin -@dangerous -function -script +script|load +script|exists
    REDIS_URL=redis://workbook:PASSWORD@host:6379/0

Such a user reads and writes no other key, hears no other channel, and can neither reconfigure the server nor
empty it: CONFIG, FLUSHALL, KEYS, INFO, MONITOR, SLOWLOG and CLIENT LIST are among what it may not, and so are
FUNCTION and SCRIPT FLUSH, which take away what others have loaded. Where a chapter shows those, it shows them
on throw-away servers. SCAN does tell it the names of other keys.
Who subscribes to a pattern needs this very pattern among the rights: so that of chapter 06 stands there.
https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/
"""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from labkit import PREFIX

__all__ = ["RIGHTS", "missing", "remedy"]

PATTERN = f"{PREFIX}06:shop:*"

RIGHTS = (
    f"~{PREFIX}* &{PREFIX}* &{PATTERN} "
    "+@all -@admin -@dangerous -function -script +script|load +script|exists"
)
"""`ACL SETUSER workbook on >PASSWORD` + these: the prefix alone, and nothing that changes others' things."""

ASKED = (
    *("SET {} 1", "GET {}", "DEL {}", "UNLINK {}", "EXPIRE {} 1", "HSET {} a 1", "RPUSH {} a", "SADD {} a"),
    *("ZADD {} 1 a", "PFADD {} a", "BLPOP {} 1", "XADD {} * a 1", "OBJECT ENCODING {}", "MEMORY USAGE {}"),
    *("SCAN 0", "DBSIZE", "COMMAND INFO GET", "COMMAND DOCS GET", "PUBLISH {} a", "SUBSCRIBE {}"),
    *(
        f"PSUBSCRIBE {PATTERN}",
        "PUBSUB NUMPAT",
        "SPUBLISH {} a",
        "EVAL return 0",
        "EVALSHA a 0",
        "SCRIPT LOAD a",
        "CLIENT ID",
    ),
)
"""Of each group of commands that the chapters send, one or more; {} stands for a key or a channel."""


def missing(r: Any) -> tuple[str, ...]:
    """The rights that this client's user lacks, as ACL SETUSER takes them: ("~workbook:*", "+eval").

    The commands are queued in a MULTI that is never executed: the server refuses to queue what the user may
    not, and runs nothing. Two round trips, over a connection that is made for them; each refusal is a line in
    the server's ACL LOG. Of a cluster, one node is asked. A server that has no MULTI is not asked. Raises
    ReadOnlyError for a replica, which takes no writes from anybody.
    """
    node = r.get_default_node().redis_connection if hasattr(r, "get_default_node") else r
    connection = node.connection_pool.connection_class(**node.connection_pool.connection_kwargs)
    try:
        connection.connect()
        (begun,) = _ask(connection, "MULTI")
        if isinstance(begun, NoPermissionError):
            return ("+multi",)
        if isinstance(begun, ResponseError):
            return ()
        answers = _ask(connection, *(command.format(f"{PREFIX}rights") for command in ASKED))
    finally:
        connection.disconnect()
    for answer in answers:
        if isinstance(answer, ReadOnlyError):
            raise answer
    refused = [one for one in zip(answers, ASKED, strict=True) if isinstance(one[0], NoPermissionError)]
    return tuple(dict.fromkeys(_right(str(error), command) for error, command in refused))


def _ask(connection: Any, *commands: str) -> list[Any]:
    """Send them in one go; the replies, errors among them."""
    connection.send_packed_command(connection.pack_commands([command.split() for command in commands]))
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(connection.read_response())
        except ResponseError as error:
            answers.append(error)
    return answers


def _right(refusal: str, command: str) -> str:
    """What NOPERM says is missing, as ACL SETUSER takes it; worded differently before Redis 7.2."""
    if named := re.search(r"'([^']+)' command", refusal):
        return f"+{named[1]}"
    if "channel" in refusal:
        return f"&{PATTERN}" if command.endswith(PATTERN) else f"&{PREFIX}*"
    return f"~{PREFIX}*"


def remedy(lacking: tuple[str, ...], user: str) -> str:
    """A sentence with the commands that give the user what it lacks, or all that the workbook needs."""
    give = " ".join(lacking)
    return (
        f"user {user} has no permissions for {give}. Remedy: give this user those: ACL SETUSER {user} "
        f"{give}; or make one for the workbook: ACL SETUSER workbook on >PASSWORD {RIGHTS}"
    )
