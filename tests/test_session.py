"""labkit.session on real servers: what a token opens, for how long, who is listed, and what ends what."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import exceptions
from redis.cluster import RedisCluster
from redis.crc import key_slot
from servers import everywhere as everywhere
from servers import until

import labkit.session
from labkit.rig.race import crash, expire, explore, lose_reply
from labkit.rig.server import Server
from labkit.rig.wire import tap
from labkit.session import Session, SessionStore

NAME = "workbook:test:session"
LONG = 1000
TAG, SECRET = "0123456789ab", "x" * 43
NO_TOKENS = [
    *(None, "", "ada", 5, f"{TAG}.{SECRET}".encode(), f"{TAG}.{SECRET}x", f"{TAG}.{SECRET[:-1]}"),
    *(f"{TAG}.{SECRET}\n", f"{TAG}.{SECRET[:-1]}é", f"{TAG}..{SECRET[:-1]}", f"{TAG}:{SECRET}"),
    *(f"{TAG.upper()}.{SECRET}", f"{'*' * 12}.{SECRET}", f"{'٠' * 12}.{SECRET}"),
]


@pytest.fixture
def store(r: redis.Redis) -> SessionStore:
    return SessionStore(r, ttl=LONG, name=NAME)


def opened(store: SessionStore, token: object) -> Session:
    session = store.get(token)
    assert session is not None
    return session


def pass_time(r: Any, seconds: float) -> None:
    """As if so many seconds had passed: every time that stands on the server moves back by as much."""
    ms = round(seconds * 1000)
    for key in sorted(r.scan_iter("*")):
        expires = r.pexpiretime(key)
        if r.type(key) == "zset":
            for id, score in r.zrange(key, 0, -1, withscores=True):
                r.zadd(key, {id: score - ms})
        elif end := r.hget(key, "@end"):
            r.hset(key, "@end", int(end) - ms)
        r.pexpireat(key, expires - ms)


def everything(r: Any) -> str:
    """All that a dump of the server shows."""
    shown = []
    for key in r.scan_iter("*"):
        shown += [
            key,
            str(r.hgetall(key) if r.type(key) == "hash" else r.zrange(key, 0, -1)),
            repr(r.dump(key)),
        ]
    return "\n".join(shown)


class TestOneSession:
    def test_a_token_opens_it(self, store: SessionStore) -> None:
        before = time.time()
        token = store.create("ada", device="phone", roles=["admin"], cart={"tea": 2})
        session = opened(store, token)
        assert session == Session(
            session.id, "ada", session.created, session.expires_in,
            {"device": "phone", "roles": ["admin"], "cart": {"tea": 2}},
        )  # fmt: skip
        assert re.fullmatch(r"[0-9a-f]{64}", session.id)
        assert abs(session.created - before) < 60
        assert session.expires_in == LONG

    def test_everything_that_json_has_comes_back(self, store: SessionStore) -> None:
        data = {"zero": 0, "no": False, "empty": "", "list": [], "nested": {"a": [1.5, "é", None]}, "": "x"}
        session = store.get(store.create("ada", **data))
        assert session is not None and session.data == data

    def test_none_is_left_out_at_creation_and_deletes_in_an_update(self, store: SessionStore) -> None:
        token = store.create("ada", device="phone", theme=None)
        assert opened(store, token).data == {"device": "phone"}
        assert store.update(token, device=None, theme="dark", never=None)
        assert opened(store, token).data == {"theme": "dark"}
        assert store.update(token)
        assert store.update(token, theme=None)
        assert opened(store, token).data == {}

    def test_arguments_may_have_any_name(self, store: SessionStore) -> None:
        token = store.create("ada", self=1, user_id=2, token=3)
        assert store.update(token, self=4, token=5, user_id=6)
        session = opened(store, token)
        assert session.user_id == "ada"
        assert session.data == {"self": 4, "user_id": 6, "token": 5}

    def test_update_leaves_the_expiry_alone(self, r: redis.Redis, store: SessionStore) -> None:
        token = store.create("ada")
        pass_time(r, 400)
        expires = r.pexpiretime(store.key(token))
        assert store.update(token, seen=1)
        assert r.pexpiretime(store.key(token)) == expires

    def test_rotation_keeps_all_but_the_token(self, r: redis.Redis) -> None:
        store = SessionStore(r, ttl=LONG, absolute_ttl=3 * LONG, name=NAME)
        old = store.create("ada", device="phone")
        pass_time(r, 400)
        before, expires, end = (
            store.active("ada")[0],
            r.pexpiretime(store.key(old)),
            r.hget(store.key(old), "@end"),
        )
        new = store.rotate(old)
        assert new is not None and new != old and new[:13] == old[:13]
        assert (r.pexpiretime(store.key(new)), r.hget(store.key(new), "@end")) == (expires, end)
        after = opened(store, new)
        assert after.id != before.id
        assert after[1:3] == before[1:3] and after.data == before.data
        assert store.get(old) is None and store.rotate(old) is None and not store.update(old, x=1)
        assert [session.id for session in store.active("ada")] == [after.id]

    def test_destroyed_once(self, r: redis.Redis, store: SessionStore) -> None:
        token = store.create("ada")
        assert store.destroy(token)
        assert not store.destroy(token)
        assert store.get(token) is None
        assert not store.update(token, x=1)
        assert store.rotate(token) is None
        assert r.dbsize() == 0

    @pytest.mark.parametrize("odd", NO_TOKENS)
    def test_what_is_no_token_is_nobodys_and_costs_nothing(
        self, r: redis.Redis, store: SessionStore, odd: Any
    ) -> None:
        store.create("ada")
        with tap(r) as tape:
            assert store.get(odd) is None
            assert store.rotate(odd) is None
            assert store.update(odd, x=1) is False
            assert store.destroy(odd) is False
            assert store.revoke("ada", odd) is False
        assert tape.round_trips == 0
        with pytest.raises(ValueError, match="no token"):
            store.key(odd)

    def test_a_token_is_of_its_user_only(self, store: SessionStore) -> None:
        ada, bob = store.create("ada"), store.create("bob")
        assert store.get(bob[:13] + ada[13:]) is None
        assert store.get(ada[:13] + "x" * 43) is None

    def test_two_stores_do_not_see_each_other(self, r: redis.Redis, store: SessionStore) -> None:
        other = SessionStore(r, ttl=LONG, name=f"{NAME}2")
        token = store.create("ada")
        assert other.get(token) is None
        assert other.destroy_all("ada") == 0
        assert store.get(token) is not None


class TestTime:
    def test_use_extends_it(self, r: redis.Redis, store: SessionStore) -> None:
        token = store.create("ada")
        for _ in range(3):
            pass_time(r, 0.7 * LONG)
            assert store.active("ada")[0].expires_in < 0.4 * LONG
            assert opened(store, token).expires_in == LONG
            assert 0.9 * LONG < r.ttl(store.key(token)) <= LONG
        pass_time(r, 1.01 * LONG)
        assert store.get(token) is None

    def test_but_not_beyond_its_absolute_end(self, r: redis.Redis) -> None:
        store = SessionStore(r, ttl=LONG, absolute_ttl=2.5 * LONG, name=NAME)
        token = store.create("ada")
        for left in (1, 1, 1, 0.7, 0.1):
            assert 0.95 * left * LONG < opened(store, token).expires_in <= left * LONG
            pass_time(r, 0.6 * LONG * (left > 0.1))
        renewed = store.rotate(token)
        assert opened(store, renewed).expires_in <= 0.1 * LONG
        assert 0 < r.ttl(store.key(renewed)) <= 0.1 * LONG
        pass_time(r, 0.11 * LONG)
        assert store.get(renewed) is None and r.dbsize() == 0

    def test_an_absolute_end_before_the_sliding_one(self, r: redis.Redis) -> None:
        store = SessionStore(r, ttl=LONG, absolute_ttl=10, name=NAME)
        token = store.create("ada")
        assert r.ttl(store.key(token)) <= 10 and opened(store, token).expires_in <= 10

    def test_it_really_ends_by_itself(self, r: redis.Redis) -> None:
        store = SessionStore(r, ttl=0.05, name=NAME)
        token = store.create("ada")
        until(lambda: r.dbsize() == 0)
        assert store.get(token) is None and not store.update(token, x=1) and store.active("ada") == []

    def test_in_its_last_millisecond_it_is_there_or_it_is_not(self, r: redis.Redis) -> None:
        store = SessionStore(r, ttl=LONG, absolute_ttl=0.003, name=NAME)
        for _ in range(200):  # Redis 7.0 lets the clock go on within a script
            token = store.create("ada")
            while (session := store.get(token)) is not None:
                assert 0 < session.expires_in <= 0.003
            assert store.get(token) is None
        until(lambda: r.dbsize() == 0)

    def test_the_longest_times_stay_whole_numbers(self, r: redis.Redis) -> None:
        store = SessionStore(r, ttl=LONG, absolute_ttl=1e9, name=NAME)
        token = store.create("ada")
        r.hset(store.key(token), "@end", 2_000_000_000_000)
        huge = SessionStore(r, ttl=1e9, name=NAME)
        assert huge.get(token) is not None
        assert r.pexpiretime(store.key(token)) == 2_000_000_000_000
        assert r.zscore(store.index_key("ada"), opened(huge, token).id) == 2_000_000_000_000


class TestAllOfAUser:
    def test_listed_newest_first_and_not_extended(self, r: redis.Redis, store: SessionStore) -> None:
        for device in ("phone", "laptop", "tablet"):
            store.create("ada", device=device)
        store.create("bob", device="watch")
        pass_time(r, 400)
        expires = {key: r.pexpiretime(key) for key in r.scan_iter("*")}
        found = store.active("ada")
        assert [session.data["device"] for session in found] == ["tablet", "laptop", "phone"]
        assert all(session.user_id == "ada" and session.expires_in <= LONG - 400 for session in found)
        assert {key: r.pexpiretime(key) for key in r.scan_iter("*")} == expires
        assert store.active("nobody") == []

    def test_logged_out_everywhere(self, r: redis.Redis, store: SessionStore) -> None:
        tokens = [store.create("ada") for _ in range(3)]
        other = store.create("bob")
        assert store.destroy_all("ada") == 3
        assert [store.get(token) for token in tokens] == [None] * 3
        assert store.get(other) is not None
        assert r.keys() == r.keys(f"*{other[:12]}*")
        assert store.destroy_all("ada") == 0

    def test_but_here(self, r: redis.Redis, store: SessionStore) -> None:
        here, *others = [store.create("ada") for _ in range(3)]
        assert store.destroy_all("ada", except_token=here) == 2
        assert store.get(here) is not None
        assert [store.get(token) for token in others] == [None] * 2
        assert r.dbsize() == 2
        assert store.destroy_all("ada", store.create("bob")) == 1, "another's token keeps nothing"
        assert store.destroy_all("bob", "odd") == 1
        assert r.dbsize() == 0

    def test_one_device_logged_out_from_the_list(self, store: SessionStore) -> None:
        phone, laptop = store.create("ada"), store.create("ada")
        lost = opened(store, phone).id
        assert not store.revoke("bob", lost)
        assert store.revoke("ada", lost)
        assert not store.revoke("ada", lost)
        assert store.get(phone) is None and store.get(laptop) is not None

    def test_users_whose_tags_are_the_same_are_kept_apart(
        self, store: SessionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(labkit.session, "_tag", lambda user_id: "0123456789ab")
        ada, bob = store.create("ada"), store.create("bob")
        assert not store.revoke("bob", opened(store, ada).id)
        assert [session.user_id for session in store.active("bob")] == ["bob"]
        assert store.destroy_all("bob", except_token=ada) == 1
        assert opened(store, ada).user_id == "ada" and store.get(bob) is None

    @pytest.mark.parametrize("user_id", ["42", "user:7", "{x}", "é 漢", "a\r\nb", "@", "x" * 500])
    def test_any_text_is_a_user(self, r: redis.Redis, store: SessionStore, user_id: str) -> None:
        token = store.create(user_id)
        assert opened(store, token).user_id == user_id
        assert [session.user_id for session in store.active(user_id)] == [user_id]
        assert len({key_slot(key.encode()) for key in r.scan_iter()}) == 1
        assert store.destroy_all(user_id) == 1 and r.dbsize() == 0

    def test_very_many_sessions(self, r: redis.Redis, store: SessionStore) -> None:
        tokens = [store.create("ada") for _ in range(3_000)]
        assert len(store.active("ada")) == 3_000
        assert store.destroy_all("ada", except_token=tokens[7]) == 2_999 and r.dbsize() == 2


class TestIndex:
    def test_expires_with_the_last_session(self, r: redis.Redis, store: SessionStore) -> None:
        short = SessionStore(r, ttl=LONG / 10, name=NAME)
        index = store.index_key("ada")
        tokens = [short.create("ada"), store.create("ada")]
        assert (
            r.pexpiretime(index) == r.pexpiretime(store.key(tokens[1])) > r.pexpiretime(store.key(tokens[0]))
        )
        short.get(tokens[0])
        assert r.pexpiretime(index) == r.pexpiretime(store.key(tokens[1]))
        store.destroy(tokens[1])
        assert r.pexpiretime(index) == r.pexpiretime(store.key(tokens[0]))
        tokens.append(store.create("ada"))
        store.destroy_all("ada", except_token=tokens[0])
        assert r.pexpiretime(index) == r.pexpiretime(store.key(tokens[0]))
        pass_time(r, LONG / 10 + 1)
        assert r.dbsize() == 0

    def test_has_no_more_entries_than_sessions(self, r: redis.Redis, store: SessionStore) -> None:
        """A hundred visits a TTL apart from each other, beside one session that is always in use."""
        kept, index = store.create("ada"), store.index_key("ada")
        for _ in range(100):
            store.create("ada")
            pass_time(r, 0.6 * LONG)
            store.get(kept)
            assert r.zcard(index) <= 3
        assert r.zcard(index) == len(store.active("ada")) == 2

    def test_without_it_nobody_is_in(self, r: redis.Redis, store: SessionStore) -> None:
        """As when it was evicted: no session goes on that `destroy_all` would not see."""
        token = store.create("ada")
        r.delete(store.index_key("ada"))
        assert store.get(token) is None and not store.update(token, x=1) and store.rotate(token) is None
        assert store.active("ada") == [] and store.destroy_all("ada") == 0
        other = store.create("ada")
        assert store.get(token) is None and store.get(other) is not None

    def test_a_session_that_was_evicted_is_not_listed_and_goes_from_the_index(
        self, r: redis.Redis, store: SessionStore
    ) -> None:
        token = store.create("ada")
        r.delete(store.key(token))
        assert store.active("ada") == [] and store.get(token) is None and not store.update(token, x=1)
        assert store.destroy_all("ada") == 0 and r.dbsize() == 0


class TestSecrets:
    def test_of_256_bits_each_another(self, store: SessionStore) -> None:
        tokens = {store.create("ada") for _ in range(500)}
        assert len(tokens) == 500
        assert all(re.fullmatch(r"[0-9a-f]{12}\.[A-Za-z0-9_-]{43}", token) for token in tokens)
        assert len({token[13:] for token in tokens}) == 500 and len({token[:12] for token in tokens}) == 1

    def test_from_the_systems_randomness(self, r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("secrets.token_urlsafe", lambda size: f"{size:0>43}")
        assert SessionStore(r, ttl=1, name=NAME).create("ada").endswith("." + "0" * 41 + "32")

    def test_never_on_the_server_nor_on_the_way_to_it(self, r: redis.Redis, store: SessionStore) -> None:
        with tap(r) as tape:
            tokens = [store.create("ada", device="phone"), store.create("ada")]
            store.get(tokens[0])
            store.update(tokens[0], x=1)
            tokens.append(store.rotate(tokens[0]) or "")
            store.destroy_all("ada", except_token=tokens[2])
        seen = everything(r) + str(tape.raw())
        assert "phone" in seen and opened(store, tokens[2]).id in seen
        assert not [token for token in tokens if token[13:] in seen or token[20:40] in seen]

    def test_what_a_dump_shows_opens_nothing(self, r: redis.Redis, store: SessionStore) -> None:
        token = store.create("ada")
        words = re.findall(r"[A-Za-z0-9_.:{}-]+", everything(r))
        found = {word[start : start + 43] for word in words for start in range(max(len(word) - 42, 1))}
        assert not [
            word for word in found | set(words) if store.get(f"{token[:12]}.{word}") or store.get(word)
        ]
        assert store.get(token) is not None


class TestTheWire:
    @pytest.mark.parametrize("options", [{}, {"decode_responses": False}, {"protocol": 2}])
    def test_one_round_trip_each_with_any_client(self, server: Server, options: dict[str, Any]) -> None:
        with server.client(**options) as r:
            r.flushall()
            store = SessionStore(r, ttl=LONG, absolute_ttl=2 * LONG, name=NAME)
            token = store.create("ada", device="é")
            store.get(token), store.update(token), store.rotate(store.create("ada")), store.active("ada")
            store.destroy(token), store.destroy_all("ada")  # the server knows all scripts now
            trips: list[Any] = []

            def one(act: Callable[..., Any], *args: Any, **more: Any) -> Any:
                with tap(r) as tape:
                    result = act(*args, **more)
                trips.append(tape.round_trips)
                return result

            token = one(store.create, "ada", device="é")
            session = one(store.get, token)
            assert session[1] == "ada" and session.data == {"device": "é"} and type(session.id) is str
            assert one(store.update, token, device="è") is True
            token = one(store.rotate, token)
            (listed,) = one(store.active, "ada")
            assert listed.data == {"device": "è"} and type(listed.id) is str
            assert one(store.revoke, "ada", listed.id) is True
            assert one(store.destroy, token) is False
            assert one(store.destroy_all, "ada") == 0
            assert trips == [1] * 8

    def test_script_flush_is_survived(self, r: redis.Redis, store: SessionStore) -> None:
        token = store.create("ada")
        for act in (store.get, store.update, store.rotate):
            r.script_flush()
            assert act(token)
        r.script_flush()
        assert len(store.active("ada")) == 1
        r.script_flush()
        assert store.destroy_all("ada") == 1

    def test_a_client_that_sends_again_creates_and_rotates_once(self, r: redis.Redis) -> None:
        class Twice:
            """Every reply is lost once."""

            def execute_command(self, *args: Any) -> Any:
                r.execute_command(*args)
                return r.execute_command(*args)

        store, twice = SessionStore(r, ttl=LONG, name=NAME), SessionStore(Twice(), ttl=LONG, name=NAME)
        r.script_flush()
        for warm in (store.rotate(store.create("ada")), store.active("ada"), store.destroy_all("ada")):
            assert warm
        token = twice.create("ada", device="phone")
        new = twice.rotate(token)
        assert opened(store, new).data == {"device": "phone"}
        assert len(store.active("ada")) == 1 and r.dbsize() == 2
        assert twice.get(new) is not None and twice.update(new, x=1)
        assert not twice.destroy(new), "it was the first that destroyed it"
        assert r.dbsize() == 0


def test_on_a_cluster() -> None:
    with Server(cluster_enabled=True) as node:
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
        with RedisCluster.from_url(node.url, protocol=3, legacy_responses=False) as cluster:
            store = SessionStore(cluster, ttl=LONG, name=NAME)
            for user_id in "abcdefgh":
                token = store.rotate(store.create(user_id, x=1))
                assert opened(store, token).data == {"x": 1} and store.update(token, x=2)
                assert [session.data for session in store.active(user_id)] == [{"x": 2}]
                assert store.revoke(user_id, opened(store, token).id)
                store.create(user_id)
                assert store.destroy_all(user_id) == 1


UNUSED = redis.Redis()


@given(
    st.text(min_size=1),
    st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1),
)
def test_all_keys_of_a_user_share_a_slot(user_id: str, name: str) -> None:
    store = SessionStore(UNUSED, ttl=1, name=name)
    tag = labkit.session._tag(user_id)
    keys = [store.index_key(user_id), *(store.key(f"{tag}.{letter * 43}") for letter in "aZ_")]
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert all(key.startswith(f"{name}:{{{tag}}}:") for key in keys) and len(set(keys)) == 4


class TestTrouble:
    def test_redis_down_lets_nobody_in(self) -> None:
        with Server() as server:
            r = server.client(retry=None, socket_timeout=5)
            store = SessionStore(r, ttl=LONG, name=NAME)
            token = store.create("ada")
            server.kill()
            acts: list[Callable[[], Any]] = [
                lambda: store.create("ada"), lambda: store.get(token), lambda: store.update(token, x=1),
                lambda: store.rotate(token), lambda: store.destroy(token), lambda: store.active("ada"),
                lambda: store.destroy_all("ada"), lambda: store.revoke("ada", "0" * 64),
            ]  # fmt: skip
            for act in acts:
                with pytest.raises(exceptions.ConnectionError):
                    act()
            assert store.get(None) is None
            server.restart()
            assert store.get(token) is None, "its memory is gone"

    def test_redis_full_still_knows_who_is_in(self) -> None:
        with Server(maxmemory_policy="noeviction") as server, server.client() as r:
            store = SessionStore(r, ttl=LONG, name=NAME)
            phone, laptop = store.create("ada"), store.create("ada")
            server.config["maxmemory"] = 1
            for act in (lambda: store.create("ada"), lambda: store.update(phone, x=1)):
                with pytest.raises(exceptions.OutOfMemoryError):
                    act()
            expires = r.pexpiretime(store.key(phone))
            assert store.get(phone) is not None and r.pexpiretime(store.key(phone)) >= expires
            assert len(store.active("ada")) == 2 and r.zcard(store.index_key("ada")) == 2
            assert store.get(renewed := store.rotate(phone)) is not None
            assert store.destroy(renewed) and store.destroy_all("ada") == 1
            assert store.get(laptop) is None and r.dbsize() == 0

    def test_a_foreign_value_in_its_place_is_an_error(self, r: redis.Redis, store: SessionStore) -> None:
        token = store.create("ada")
        r.hset(store.key(token), "x", "{garbage")
        with pytest.raises(ValueError, match="Expecting"):
            store.get(token)
        r.set(store.key(token), "x")
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            store.get(token)

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"ttl": 0}, ValueError, "ttl is 0; it must be from 0.001 to 1e9"),
            ({"ttl": float("nan")}, ValueError, "ttl is nan"),
            ({"ttl": 1, "absolute_ttl": 2e9}, ValueError, "absolute_ttl is 2000000000.0"),
            ({"ttl": "1"}, TypeError, "ttl is '1'; it must be a number"),
            ({"ttl": True}, TypeError, "ttl is True"),
            ({"ttl": 1, "name": ""}, ValueError, "name is empty"),
            ({"ttl": 1, "name": "a{b"}, ValueError, "name is 'a{b'; it must have no braces"),
            ({"ttl": 1, "name": 5}, TypeError, "name is 5"),
        ],
    )
    def test_misuse_of_the_constructor(self, options: Any, error: Any, words: str) -> None:
        with pytest.raises(error, match=re.escape(words)):
            SessionStore(redis.Redis(), **options)

    @pytest.mark.parametrize(
        "odd", [redis.Redis().pipeline(), redis.asyncio.Redis(), None], ids=["pipeline", "async", "none"]
    )
    def test_misuse_of_clients(self, odd: Any) -> None:
        with pytest.raises(TypeError, match="is no client"):
            SessionStore(odd, ttl=1)

    def test_misuse_sends_nothing(self, r: redis.Redis, store: SessionStore) -> None:
        token = store.create("ada")
        users: list[Any] = ["", None, 5, b"ada", "\ud800"]
        with tap(r) as tape:
            for user_id in users:
                for act in (store.create, store.destroy_all, store.active, store.index_key):
                    with pytest.raises((TypeError, ValueError)):
                        act(user_id)
                with pytest.raises((TypeError, ValueError)):
                    store.revoke(user_id, "0" * 64)
            bad: list[dict[str, Any]] = [
                {"@user": "eve"}, {"x": {1, 2}}, {"x": float("nan")}, {"@x": None}, {"x": b"y"}, {"\ud800": 1}
            ]  # fmt: skip
            for fields in bad:
                with pytest.raises((TypeError, ValueError)):
                    store.create("ada", **fields)
                with pytest.raises((TypeError, ValueError)):
                    store.update(token, **fields)
        assert tape.round_trips == 0
        assert len(store.active("ada")) == 1 and opened(store, token).data == {}


USERS, PICK = st.sampled_from(["ada", "bob"]), st.integers(0, 50)
DATA = st.dictionaries(st.sampled_from(["x", "y", "self"]), st.none() | st.integers() | st.text(), max_size=3)


class Model(RuleBasedStateMachine):
    """Sessions last for 10.5 units, 25.5 at most; time passes in whole ones, so it is clear who is in."""

    r: Any
    unit = 100

    def __init__(self) -> None:
        super().__init__()
        self.r.flushall()
        self.store = SessionStore(self.r, ttl=10.5 * self.unit, absolute_ttl=25.5 * self.unit, name="model")
        self.now = 0
        self.tokens: list[str] = []
        self.live: dict[str, dict[str, Any]] = {}
        self.touched = {"ada": 0, "bob": 0}

    def alive(self, user_id: str) -> list[str]:
        return [token for token, known in self.live.items() if known["user"] == user_id]

    def touch(self, token: str) -> None:
        known = self.live[token]
        known["ends"] = min(self.now + 10.5, known["last"])
        self.touched[known["user"]] = len(self.alive(known["user"]))

    @rule(user_id=USERS, data=DATA)
    def create(self, user_id: str, data: dict[str, Any]) -> None:
        token = self.store.create(user_id, **data)
        assert token not in self.tokens
        self.tokens.append(token)
        kept = {name: value for name, value in data.items() if value is not None}
        self.live[token] = {"user": user_id, "data": kept, "last": self.now + 25.5}
        self.touch(token)

    @rule(pick=PICK)
    def get(self, pick: int) -> None:
        if not self.tokens:
            return
        token = self.tokens[pick % len(self.tokens)]
        session = self.store.get(token)
        assert (session is not None) == (token in self.live)
        if session is not None:
            self.touch(token)
            self.same(session, token)

    def same(self, session: Session, token: str) -> None:
        known = self.live[token]
        assert (session.user_id, session.data) == (known["user"], known["data"])
        assert abs(session.expires_in / self.unit - (known["ends"] - self.now)) < 0.3
        assert self.store.key(token).endswith(session.id)

    @rule(pick=PICK, data=DATA)
    def update(self, pick: int, data: dict[str, Any]) -> None:
        if not self.tokens:
            return
        token = self.tokens[pick % len(self.tokens)]
        assert self.store.update(token, **data) == (token in self.live)
        if token in self.live:
            merged = {**self.live[token]["data"], **data}
            self.live[token]["data"] = {name: value for name, value in merged.items() if value is not None}

    @rule(pick=PICK)
    def rotate(self, pick: int) -> None:
        if not self.tokens:
            return
        token = self.tokens[pick % len(self.tokens)]
        new = self.store.rotate(token)
        assert (new is not None) == (token in self.live)
        if new is not None:
            self.tokens.append(new)
            self.live = {new if one == token else one: known for one, known in self.live.items()}

    @rule(pick=PICK)
    def destroy(self, pick: int) -> None:
        if self.tokens:
            token = self.tokens[pick % len(self.tokens)]
            assert self.store.destroy(token) == (self.live.pop(token, None) is not None)

    @rule(user_id=USERS, pick=PICK)
    def revoke(self, user_id: str, pick: int) -> None:
        if self.tokens:
            token = self.tokens[pick % len(self.tokens)]
            his = token in self.alive(user_id)
            assert self.store.revoke(user_id, self.store.key(token)[-64:]) == his
            if his:
                del self.live[token]

    @rule(user_id=USERS, pick=st.none() | PICK)
    def destroy_all(self, user_id: str, pick: int | None) -> None:
        kept = self.tokens[pick % len(self.tokens)] if self.tokens and pick is not None else None
        gone = [token for token in self.alive(user_id) if token != kept]
        assert self.store.destroy_all(user_id, except_token=kept) == len(gone)
        for token in gone:
            del self.live[token]

    @rule(units=st.integers(1, 9))
    def time_passes(self, units: int) -> None:
        pass_time(self.r, units * self.unit)
        self.now += units
        self.live = {token: known for token, known in self.live.items() if known["ends"] > self.now}

    @invariant()
    def the_list_is_right(self) -> None:
        for user_id in self.touched:
            found = {session.id: session for session in self.store.active(user_id)}
            assert len(found) == len(self.alive(user_id))
            for token in self.alive(user_id):
                self.same(found[self.store.key(token)[-64:]], token)

    @invariant()
    def nothing_else_is_stored(self) -> None:
        """The index never outlives the sessions, and has no more entries than there were when it was used."""
        users = [user_id for user_id in self.touched if self.alive(user_id)]
        sessions = {token: self.store.key(token) for token in self.live}
        expected = {*sessions.values(), *map(self.store.index_key, users)}
        assert set(self.r.scan_iter("*")) == expected
        for user_id in users:
            index = self.store.index_key(user_id)
            ends = [self.r.pexpiretime(sessions[token]) for token in self.alive(user_id)]
            assert self.r.pexpiretime(index) == max(ends) > 0
            assert self.r.zcard(index) <= max(self.touched[user_id], len(ends))
            for token in self.alive(user_id):
                known = self.r.zscore(index, sessions[token][-64:])
                assert known == self.r.pexpiretime(sessions[token])


def test_any_order_of_moves_is_as_the_model_says(r: redis.Redis) -> None:
    run_state_machine_as_test(
        type("Model", (Model,), {"r": r}),
        settings=settings(
            max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def at(redis: Any, secret: str = "A") -> SessionStore:
    """A store for explorations: its next token has this secret."""
    return SessionStore(redis, ttl=LONG, name="session", secret=lambda: secret * 43)


def token(secret: str, user_id: str = "ada") -> str:
    return f"{labkit.session._tag(user_id)}.{secret * 43}"


def living(redis: Any) -> set[str]:
    """Which of the secrets open a session now; looked at without extending any."""
    index = at(redis).index_key("ada")
    listed = set(redis.zrange(index, 0, -1))
    return {name for name in "ABCDE" if at(redis).key(token(name))[-64:] in listed & _hashes(redis)}


def _hashes(redis: Any) -> set[str]:
    return {key[-64:] for key in redis.scan_iter("session:*", _type="hash")}


def all_listed(redis: Any) -> bool:
    """Every session that opens is in the list of its user, and the other way round."""
    opens = {name for name in "ABCDE" if at(redis).get(token(name)) is not None}
    return {session.id for session in at(redis).active("ada")} == {
        at(redis).key(token(x))[-64:] for x in opens
    }


FAULTS = [(), (lose_reply,), (crash,), (expire,)]


@pytest.fixture(params=FAULTS, ids=lambda faults: "-".join(map(str, faults)) or "no fault")
def faults(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


class TestRaces:
    """Each claim by an exploration of every interleaving on a real server, alone and with each fault."""

    @pytest.fixture
    def safe(self, throwaway: Server, faults: tuple[str, ...]) -> Callable[..., None]:
        def safe(*actors: Any, **rules: Any) -> None:
            found = explore(actors, server=throwaway, faults=faults, **rules)
            found.assert_safe()
            assert found.total >= len(actors)

        return safe

    def test_create_and_destroy_all(self, safe: Any, faults: Any) -> None:
        """What was there before is gone; a session that is created meanwhile is gone too, or listed."""

        def log_in(redis: Any) -> str:
            return at(redis, "B").create("ada")

        def everywhere(redis: Any) -> int:
            return at(redis).destroy_all("ada")

        def holds(redis: Any, results: Any) -> bool:
            left, ended = living(redis), results[1]
            if not faults:
                assert len(left) == 2 - ended
            assert ended is None or "A" not in left
            return all_listed(redis)

        safe(log_in, everywhere, setup=lambda r: at(r, "A").create("ada"), invariant=holds)

    def test_rotation_and_use(self, safe: Any, faults: Any) -> None:
        """At any moment one of the two tokens opens the session (unless it expires), and never both."""

        def rotate(redis: Any) -> str | None:
            return at(redis, "B").rotate(token("A"))

        def use(redis: Any) -> bool:
            return at(redis).get(token("A")) is not None

        def one(redis: Any) -> bool:
            return len(living(redis)) == 1 or (expire in faults and not living(redis))

        safe(rotate, use, setup=lambda r: at(r).create("ada"), always=one, invariant=all_listed)

    def test_two_rotations_and_one_update(self, safe: Any, faults: Any) -> None:
        def rotate(secret: str) -> Callable[[Any], str | None]:
            return lambda redis: at(redis, secret).rotate(token("A"))

        def holds(redis: Any, results: Any) -> bool:
            left, told = living(redis), [made for made in results[:2] if isinstance(made, str)]
            assert len(left) == 1 or (expire in faults and len(left) == 0)
            if not faults:
                assert told == [token(*left)]
                assert (opened(at(redis), told[0]).data == {"x": 1}) == results[2]
            return len(told) <= 1 and all_listed(redis)

        def update(redis: Any) -> bool:
            return at(redis).update(token("A"), x=1)

        safe(rotate("B"), rotate("C"), update, setup=lambda r: at(r).create("ada"), invariant=holds)

    def test_rotation_and_destroy_all(self, safe: Any) -> None:
        """Nobody slips through by a new token."""

        def rotate(redis: Any) -> str | None:
            return at(redis, "B").rotate(token("A"))

        def everywhere(redis: Any) -> int:
            return at(redis).destroy_all("ada")

        def holds(redis: Any, results: Any) -> bool:
            return (results[1] is None or not living(redis)) and all_listed(redis)

        safe(rotate, everywhere, setup=lambda r: at(r).create("ada"), invariant=holds)

    def test_updates_of_different_fields(self, safe: Any, faults: Any) -> None:
        def update(**fields: Any) -> Callable[[Any], bool]:
            return lambda redis: at(redis).update(token("A"), **fields)

        def holds(redis: Any, results: Any) -> bool:
            session = at(redis).get(token("A"))
            if session is None:
                return expire in faults
            done = {name: True for name, result in zip("xy", results, strict=True) if result}
            return session.data.items() >= {"z": 0, **done}.items()

        safe(update(x=True), update(y=True), setup=lambda r: at(r).create("ada", z=0), invariant=holds)

    def test_nothing_comes_back(self, safe: Any, faults: Any) -> None:
        """Whoever is late with a destroyed session finds none, and makes none."""

        def destroy(redis: Any) -> bool:
            return at(redis).destroy(token("A"))

        def late(redis: Any) -> None:
            store = at(redis, "B")
            store.update(token("A"), x=1)
            store.get(token("A"))

        def holds(redis: Any, results: Any) -> bool:
            left = living(redis) if expire in faults else redis.dbsize()
            return results[0] is None or not left

        safe(destroy, late, setup=lambda r: at(r).create("ada"), invariant=holds)

    def test_one_device_and_the_index_of_the_others(self, safe: Any, faults: Any) -> None:
        def revoke(redis: Any) -> bool:
            return at(redis).revoke("ada", at(redis).key(token("A"))[-64:])

        def use(redis: Any) -> bool:
            return at(redis).get(token("B")) is not None

        def log_in(redis: Any) -> str:
            return at(redis, "C").create("ada")

        def index_lasts_as_long_as_they(redis: Any) -> bool:
            left = [redis.pexpiretime(at(redis).key(token(name))) for name in living(redis)]
            index = redis.pexpiretime(at(redis).index_key("ada"))
            return not left or index == max(left) or (expire in faults and index > max(left))

        def set_up(redis: Any) -> None:
            at(redis, "A").create("ada"), at(redis, "B").create("ada")

        actors = (revoke, log_in) if expire in faults else (revoke, use, log_in)  # else it takes a minute
        safe(*actors, setup=set_up, always=index_lasts_as_long_as_they, invariant=all_listed)


def test_the_explorer_finds_what_is_wrong_in_two_steps(throwaway: Server) -> None:
    """The same rule, and a store that keeps its list in a command of its own: the rule finds it."""

    def log_in(redis: Any) -> None:
        store = at(redis, "B")
        redis.hset(store.key(token("B")), "@user", "ada")
        redis.zadd(store.index_key("ada"), {store.key(token("B"))[-64:]: 2e12})

    def everywhere(redis: Any) -> None:
        index = at(redis).index_key("ada")
        for id in redis.zrange(index, 0, -1):
            redis.delete(at(redis).key(token("A"))[:-64] + id)
        redis.delete(index)

    def all_seen(redis: Any) -> bool:
        return _hashes(redis) == set(redis.zrange(at(redis).index_key("ada"), 0, -1))

    found = explore([log_in, everywhere], setup=log_in, invariant=all_seen, server=throwaway)
    assert found.verdict == "violated"


def test_a_destroy_that_comes_after_a_rotation_ends_nothing(throwaway: Server) -> None:
    """As the docstring says."""

    def rotate(redis: Any) -> str | None:
        return at(redis, "B").rotate(token("A"))

    def destroy(redis: Any) -> bool:
        return at(redis).destroy(token("A"))

    def told_the_truth(redis: Any, results: Any) -> bool:
        return [results[0] is None, bool(results[1])] == [not living(redis)] * 2

    found = explore(
        [rotate, destroy], setup=lambda r: at(r).create("ada"), invariant=told_the_truth, server=throwaway
    )
    assert found.verdict == "safe" and found.total == 2


def test_threads_that_share_a_store(r: redis.Redis, store: SessionStore) -> None:
    """Log-ins, uses, updates and log-outs at once: at the end the list is what opens."""
    tokens = [store.create("ada") for _ in range(4)]

    def visit(number: int) -> list[str]:
        mine = [store.create("ada", n=number) for _ in range(20)]
        for step, one in enumerate(mine):
            store.update(tokens[number % 4], **{f"f{number}": step})
            if step % 3 == 0:
                store.destroy(one)
            elif step % 3 == 1:
                mine[step] = store.rotate(one) or ""
        return mine

    with ThreadPoolExecutor(8) as pool:
        mine = [one for part in pool.map(visit, range(8)) for one in part]
    opens = {session.id for one in tokens + mine if (session := store.get(one)) is not None}
    assert opens == {session.id for session in store.active("ada")}
    assert len(opens) == 4 + 8 * 13 == r.zcard(store.index_key("ada"))
    for first in range(4):
        assert opened(store, tokens[first]).data == {f"f{n}": 19 for n in range(8) if n % 4 == first}
    assert store.destroy_all("ada") == len(opens) and r.dbsize() == 0
