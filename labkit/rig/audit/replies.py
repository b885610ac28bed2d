"""Replies as they are: the same for RESP2 and RESP3, and whatever the client makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from redis.client import NEVER_DECODE


def plainly(r: redis.Redis) -> redis.Redis:
    """A client over the same connections whose replies nothing has changed: bytes, lists, numbers."""
    own = redis.Redis(connection_pool=r.connection_pool)
    own.response_callbacks = {}  # type: ignore[assignment]
    return own


def send(own: redis.Redis, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Commands in one round trip; a refused one gives its error. Without any, none is made."""
    if not commands:
        return []
    with own.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command, **{NEVER_DECODE: True})
        answers: list[Any] = pipe.execute(raise_on_error=False)
    return answers


def plain(value: Any) -> Any:
    """The same with text for bytes, however deep."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def pairs(value: Any) -> dict[str, Any]:
    """A map, which RESP2 writes as a list."""
    if isinstance(value, dict):
        return value
    return dict(zip(value[::2], value[1::2], strict=True)) if value else {}


def fields(line: str) -> dict[str, str]:
    """`keys=5,expires=0`, as in INFO."""
    return dict(part.partition("=")[::2] for part in line.split(","))


def lines(text: str) -> dict[str, str]:
    """`name:value` in each line, as in INFO."""
    return dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
