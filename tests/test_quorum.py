"""Five servers and two clients: what is measured, what is seen, and who has the lock when servers fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from labkit.lock import Redlock
from labkit.rig.quorum import Quorum, TimedConnection
from labkit.rig.server import Server


def redlock(clients: list[Any]) -> Redlock:
    return Redlock(clients, "lock", ttl=20, timeout=1)


@pytest.fixture
def quorum() -> Iterator[Quorum]:
    with Quorum(redlock) as five:
        yield five


def column(quorum: Quorum, name: str) -> list[Any]:
    return [getattr(seat, name) for seat in quorum.view.seats]


def test_nothing_starts_before_it_is_used_and_nothing_is_left() -> None:
    quorum = Quorum(redlock)
    quorum.close()
    servers = list(quorum.servers)
    assert [server.running for server in servers] == [True] * 5
    quorum.close()
    assert [server.running for server in servers] == [False] * 5
    assert quorum.view.sentence == "5 servers, of which 3 are a majority"
    quorum.close()


def test_a_majority_and_what_it_took(quorum: Quorum) -> None:
    assert quorum.acquire("A")
    view = quorum.view
    assert view.sentence == "A has the lock: 5 of 5 said yes"
    assert column(quorum, "said") == ["yes"] * 5
    assert column(quorum, "holder") == ["A"] * 5
    assert all(0 < seat.seconds <= view.took for seat in view.seats if seat.seconds)
    assert None not in column(quorum, "seconds")
    assert view.took + view.validity <= 0.99 * view.ttl
    assert [name for name, _ in view.left] == ["A"]
    assert not quorum.acquire("B")
    assert quorum.view.sentence == "B does not get the lock: 0 of 5 said yes, 3 are needed"
    assert quorum.release("A")
    assert quorum.view.sentence == "A gave the lock back: 5 of 5 had it"
    assert column(quorum, "holder") == [""] * 5


def test_kill_two_kill_three_and_revive(quorum: Quorum) -> None:
    for number in (0, 1):
        quorum.kill_or_revive(number)
    assert quorum.acquire("A")
    assert column(quorum, "said") == ["no connection"] * 2 + ["yes"] * 3
    assert column(quorum, "holder") == ["?"] * 2 + ["A"] * 3
    assert quorum.release("A")
    quorum.kill(2)
    assert not quorum.acquire("A")
    assert quorum.view.sentence == "A does not get the lock: 2 of 5 said yes, 3 are needed"
    assert column(quorum, "holder") == ["?"] * 3 + [""] * 2  # taken back at once
    quorum.kill_or_revive(2)
    assert quorum.acquire("A")


def test_a_frozen_server_costs_the_timeout(quorum: Quorum) -> None:
    quorum.freeze_or_thaw(4)
    assert quorum.acquire("A")
    view = quorum.view
    assert [view.seats[4].said, view.seats[4].state, view.seats[4].seconds] == ["no answer", "frozen", None]
    assert view.timeout <= view.took < view.ttl - view.validity
    quorum.freeze_or_thaw(4)
    assert quorum.view.seats[4].state == "up"
    assert quorum.release("A")
    assert column(quorum, "holder") == [""] * 5


def test_servers_that_forget_grant_it_twice(quorum: Quorum) -> None:
    assert quorum.acquire("A")
    for number in range(3):
        quorum.kill(number)
        quorum.revive(number)
    assert quorum.acquire("B")
    assert quorum.view.twice
    assert quorum.view.sentence == "A and B both have the lock"
    assert column(quorum, "holder") == ["B"] * 3 + ["A"] * 2


def test_servers_that_remember_do_not() -> None:
    with Quorum(redlock, appendonly=True) as quorum:
        assert quorum.acquire("A")
        for number in range(3):
            quorum.kill(number)
            quorum.revive(number)
        assert not quorum.acquire("B")
        assert column(quorum, "holder") == ["A"] * 5


def test_nothing_to_give_back(quorum: Quorum) -> None:
    assert not quorum.release("B")
    assert quorum.view.sentence == "B had no lock to give back"
    assert quorum.acquire("A")
    for server in quorum.servers:
        with server.client() as r:
            r.delete("lock")
    assert not quorum.release("A")
    assert quorum.view.sentence == "the lock was no longer A's"


def test_switches_say_what_they_would_do(quorum: Quorum) -> None:
    quorum.kill(0)
    quorum.freeze(1)
    assert quorum.view.switches[:3] == [("revive S1", ""), ("kill S2", "thaw S2"), ("kill S3", "freeze S3")]
    quorum.kill_or_revive(1)
    assert quorum.state(1) == "killed"


def test_a_timed_connection_notes_commands_and_no_handshake() -> None:
    with Server() as server:
        log: list[list[float]] = []
        with server.client(connection_class=TimedConnection, log=log) as r:
            r.set("k", "v")
            with pytest.raises(Exception, match="WRONGTYPE"):
                r.lpush("k", "v")
            r.pipeline(transaction=False).get("k").execute()
    assert [len(moments) for moments in log] == [2, 2, 2]
    assert all(sent < read for sent, read in log)
