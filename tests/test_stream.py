"""labkit.stream on real servers: nothing lost, nothing applied twice, whoever crashes, hangs or comes again.

The commands of Redis 8.4 and 8.6 (CLAIM, IDMP) are tested too where LABKIT_NEWER_REDIS names such a server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import pytest
import redis
from redis import exceptions
from redis.cluster import RedisCluster
from servers import BINARIES, NEWER, Path, until
from servers import each_path as each_path
from servers import of_path as of_path

from labkit.rig.connection import supports
from labkit.rig.processes import Worker, spawn
from labkit.rig.proxy import Proxy
from labkit.rig.race import Exploration, crash, explore, lose_reply
from labkit.rig.server import Server
from labkit.rig.wire import tap
from labkit.stream import Consumer, Effects, Entry, GroupLost, HandlerFailed, Lag, Producer, Report


@pytest.fixture
def t(throwaway: Server) -> Iterator[redis.Redis]:
    with throwaway.client() as r:
        r.flushall()
        yield r


Make = Callable[..., Consumer]


def count(entry: Entry, effects: Any) -> None:
    effects.hincrby("{s}:applied", str(entry.event["n"]), 1)


@pytest.fixture
def make(r: redis.Redis, path: Path) -> Make:
    def make(handler: Any = count, name: str = "a", **options: Any) -> Consumer:
        return Consumer(r, "{s}", "g", name, handler, **{"block": 0.02, "newer": path.newer, **options})

    return make


@pytest.fixture
def producer(r: redis.Redis, path: Path) -> Producer:
    return Producer(r, "{s}", newer=path.newer)


def numbers(n: int) -> Iterator[dict[str, int]]:
    return ({"n": i} for i in range(n))


def once(n: int) -> dict[str, str]:
    return {str(i): "1" for i in range(n)}


def fail(entry: Entry, effects: Any) -> None:
    effects.incr("{s}:never")
    raise LookupError(f"no {entry.event['n']}")


def fields_of(r: Any, stream: str) -> list[dict[str, str]]:
    return [fields for _, fields in r.xrange(stream)]


class TestProducer:
    def test_events_are_json_by_field_and_ids_rise(self, r: redis.Redis, producer: Producer) -> None:
        first = producer.add({"name": "ü", "list": [1, None], "n": 1.5})
        second = producer.add({"n": 2}, key="k")
        assert r.xrange("{s}") == [
            (first, {"name": '"\\u00fc"', "list": "[1,null]", "n": "1.5"}),
            (second, {"n": "2", "@key": "k"}),
        ]
        assert r.ttl("{s}") == -1

    def test_many_in_order_in_pipelines(self, r: redis.Redis, producer: Producer) -> None:
        producer.add({"n": -1})
        with tap(r) as said:
            ids = producer.add_many(numbers(2500))
        assert said.round_trips == 3
        assert r.xlen("{s}") == 2501 and len(set(ids)) == 2500
        assert r.xrange("{s}", ids[1234], ids[1234]) == [(ids[1234], {"n": "1234"})]
        assert producer.add_many([]) == []

    def test_bounded(self, r: redis.Redis, path: Path) -> None:
        Producer(r, "{exact}", maxlen=100, exact=True).add_many(numbers(2050))
        assert r.xlen("{exact}") == 100
        Producer(r, "{roughly}", maxlen=100).add_many(numbers(2050))
        assert 100 <= r.xlen("{roughly}") < 200

    def test_trim_keeps_what_any_group_needs(self, r: redis.Redis, producer: Producer, make: Make) -> None:
        assert (producer.trim(), producer.backlog()) == (0, 0)
        ids = producer.add_many(numbers(1000))
        assert (producer.trim(), producer.backlog()) == (0, 1000)
        make(batch=600).poll()
        slow = Consumer(r, "{s}", "slow", "a", fail, batch=300, block=0)
        slow.poll()
        assert producer.backlog() == 1000
        assert producer.trim() == 0
        r.xack("{s}", "slow", *ids[:250])
        assert producer.backlog() == 750
        assert 150 <= producer.trim() <= 250
        assert r.xrange("{s}", ids[250], ids[250])
        assert producer.trim() == 0
        for _ in range(2):
            slow.poll()
        r.xack("{s}", "slow", *ids)
        assert 599 - 250 - 100 <= producer.trim() <= 599 - 100
        assert r.xrange("{s}", ids[599], ids[599])

    @pytest.mark.single_server("loses an answer on the way, by a proxy before one server")
    def test_a_name_adds_once_although_the_answer_was_lost(self, r: redis.Redis, path: Path) -> None:
        newer = path.newer is None and supports(r, "XADD", "IDMP")
        with Proxy(r) as link, link.client() as far:
            named = Producer(far, "{s}", name="shop", newer=path.newer)
            named.add({"n": 0})
            named.add({"n": 1})
        assert r.xlen("{s}") >= 2
        key = fields_of(r, "{s}")[0].get("@key")
        assert (key is None) == newer

    def test_a_name_and_a_key_is_one_entry_where_the_server_compares(
        self, r: redis.Redis, path: Path
    ) -> None:
        newer = path.newer is None and supports(r, "XADD", "IDMP")
        named = Producer(r, "{s}", name="shop", newer=path.newer)
        ids = {named.add({"n": 1}, key="k") for _ in range(3)}
        assert len(ids) == r.xlen("{s}") == (1 if newer else 3)
        named.add({"n": 1}, key="other")
        Producer(r, "{s}", name="second shop", newer=path.newer).add({"n": 1}, key="k")
        assert r.xlen("{s}") == (3 if newer else 5)

    def test_misuse(self, t: redis.Redis) -> None:
        producer = Producer(t, "{s}")
        for event, error in (({}, ValueError), ([], TypeError), ({"@key": 1}, ValueError)):
            with pytest.raises(error):
                producer.add(event)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="not JSON compliant"):
            producer.add({"n": float("nan")})
        with pytest.raises(ValueError, match="maxlen is 0; it must be from 1"):
            Producer(t, "{s}", maxlen=0)
        with pytest.raises(TypeError, match="maxlen is '5'"):
            Producer(t, "{s}", maxlen="5")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="name is ''"):
            Producer(t, "{s}", name="")
        with pytest.raises(TypeError, match="key is ''"):
            producer.add({"n": 1}, key="")
        with pytest.raises(TypeError, match="Pipeline is no client"):
            Producer(t.pipeline(), "{s}")
        t.set("{s}:text", "x")
        for do in (Producer(t, "{s}:text").backlog, Producer(t, "{s}:text").trim):
            with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
                do()
        assert not t.exists("{s}")


class TestConsumer:
    def test_handled_applied_and_acknowledged(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        ids, seen = producer.add_many(numbers(3)), list[Entry]()

        def handle(entry: Entry, effects: Any) -> None:
            seen.append(entry)
            effects.hincrby("{s}:applied", entry.event["n"], 1).rpush("{s}:order", entry.id)
            assert len(effects) == 2
            assert not r.exists("{s}:applied")  # nothing runs before the acknowledgement

        consumer = make(handle)
        assert consumer.lag() == Lag(3, 0, None)
        assert consumer.poll() == 3
        assert seen == [Entry(id, {"n": n}, id, 1) for n, id in enumerate(ids)]
        assert r.hgetall("{s}:applied") == once(3) and r.lrange("{s}:order", 0, -1) == ids
        assert consumer.lag() == Lag(0, 0, None)
        assert consumer.report == Report(handled=3, applied=3)
        assert consumer.poll() == 0
        assert sorted(r.keys()) == ["{s}", "{s}:applied", "{s}:order"]

    def test_a_batch_is_two_round_trips(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add_many(numbers(400))
        consumer = make(idle=60)
        consumer.poll()
        with tap(r) as said:
            assert [consumer.poll() for _ in range(3)] == [100] * 3
        assert said.round_trips == 6

    def test_members_share_and_groups_do_not(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add_many(numbers(40))
        one, two = make(batch=10), make(name="b", batch=10)
        while one.poll() + two.poll():
            pass
        assert (one.report.applied, two.report.applied) == (20, 20)
        other = Consumer(r, "{s}", "other", "a", count, block=0)
        assert other.poll() == 40
        assert set(r.hvals("{s}:applied")) == {"2"}

    def test_start_at_the_end(self, make: Make, producer: Producer) -> None:
        producer.add({"n": 0})
        consumer = make(start="$")
        assert consumer.poll() == 0
        producer.add({"n": 1})
        assert consumer.poll() == 1

    def test_what_a_dead_one_left_is_taken_over(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        ids = producer.add_many(numbers(250))
        dead = make(name="dead", batch=250)
        dead._with_group(dead._receive)  # and then it crashed
        seen = list[Entry]()

        def handle(entry: Entry, effects: Any) -> None:
            seen.append(entry)
            count(entry, effects)

        consumer = make(handle, idle=0.05)
        assert consumer.run(until_idle=True).reclaimed == 250
        assert [entry.id for entry in seen] == ids and {entry.deliveries for entry in seen} == {2}
        assert r.hgetall("{s}:applied") == once(250)

    def test_what_is_in_hands_is_left_there(self, make: Make, producer: Producer) -> None:
        producer.add_many(numbers(3))
        holder = make(name="holder")
        holder._with_group(holder._receive)
        other = make(idle=60)
        assert other.poll() == 0
        waiting, pending, oldest = other.lag()
        assert (waiting, pending) == (0, 3) and oldest is not None and 0 < oldest < 30

    def test_a_slow_one_has_lost_its_entries_but_effects_are_once(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add_many(numbers(3))
        other = make(name="b", idle=0.05)

        def slow(entry: Entry, effects: Any) -> None:
            count(entry, effects)
            until(lambda: other.poll() == 3 or other.report.applied == 3)

        consumer = make(slow)
        consumer.poll()
        assert r.hgetall("{s}:applied") == once(3)
        assert (consumer.report.skipped, other.report.applied) == (3, 3)

    def test_two_entries_with_one_key_count_once_in_each_group(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        for n in range(3):
            producer.add({"n": n}, key="order-1")
        consumer = make(remember=100)
        assert consumer.poll() == 3
        assert consumer.report == Report(handled=3, applied=1, skipped=2)
        assert r.hgetall("{s}:applied") == once(1)
        assert consumer.done_key("order-1") == "{s}:done:g:order-1"
        assert 50 < r.ttl("{s}:done:g:order-1") <= 100
        Consumer(r, "{s}", "other", "a", count, block=0).poll()
        assert r.hgetall("{s}:applied") == {"0": "2"}
        r.delete("{s}:done:g:order-1")
        producer.add({"n": 7}, key="order-1")
        consumer.poll()
        assert r.hget("{s}:applied", "7") == "1"

    def test_long_work_is_settled_on_the_way(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add_many(numbers(3))
        applied = []

        def handle(entry: Entry, effects: Any) -> None:
            applied.append(r.hlen("{s}:applied"))
            count(entry, effects)
            time.sleep(0.11)

        make(handle).poll()
        assert applied == [0, 1, 2]

    def test_on_a_client_that_does_not_decode(self, server: Server, path: Path, producer: Producer) -> None:
        producer.add_many(numbers(5))
        for protocol, legacy in ((2, True), (2, False), (3, True), (3, False)):
            group = f"{protocol}{legacy}"
            with server.client(decode_responses=False, protocol=protocol, legacy_responses=legacy) as raw:
                dead = Consumer(raw, "{s}", group, "dead", count, batch=2, newer=path.newer)
                dead._with_group(dead._receive)
                consumer = Consumer(
                    raw, "{s}", group, "a", count, idle=0.03, block=0.02, deliveries=2, newer=path.newer
                )
                report = consumer.run(until_idle=True)
                assert (report.applied, report.reclaimed) == (5, 2)
                assert consumer.lag() == Lag(0, 0, None) and consumer.tidy(0) >= 1

    def test_entries_leave_when_all_groups_have_them(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add_many(numbers(5))
        consumer = make(delete=True, batch=3)
        other = Consumer(r, "{s}", "other", "a", count, block=0, delete=True, newer=consumer._newer)
        assert other.lag().waiting == 5
        consumer.poll()
        newer = consumer._newer is None and supports(r, "XDELEX")
        assert r.xlen("{s}") == (5 if newer else 2)
        assert other.poll() == (5 if newer else 2)
        assert r.xlen("{s}") == (2 if newer else 0)
        consumer.poll()
        assert r.xlen("{s}") == 0

    def test_lag_is_counted_where_the_server_does_not_know_it(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        ids = producer.add_many(numbers(12_000))
        consumer = make(batch=10)
        consumer.poll()
        r.xdel("{s}", ids[500])
        assert r.xinfo_groups("{s}")[0]["lag"] is None
        assert consumer.lag() == Lag(11_989, 0, None)
        assert producer.backlog() == 11_999  # an upper bound

    def test_trimmed_before_it_was_read_it_is_missed(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add_many(numbers(1000))
        consumer = make(batch=10)
        consumer.poll()
        r.xtrim("{s}", maxlen=100, approximate=False)
        assert (consumer.lag().waiting, producer.backlog()) == (100, 100)
        assert consumer.run(until_idle=True).applied == 100
        assert sorted(map(int, r.hkeys("{s}:applied"))) == [*range(10), *range(900, 1000)]
        assert consumer.report.trimmed == 0

    def test_a_group_that_began_in_the_middle(self, make: Make, producer: Producer) -> None:
        ids = producer.add_many(numbers(100))
        assert make(start=ids[59]).lag().waiting == 40

    def test_trimmed_while_pending_it_leaves_the_list(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        ids = producer.add_many(numbers(5))
        holder = make(name="holder")
        held = holder._with_group(holder._receive)
        r.xtrim("{s}", minid=ids[3], approximate=False)
        consumer = make(idle=0.03)
        report = consumer.run(until_idle=True)
        assert (report.applied, report.trimmed, report.reclaimed) == (2, 3, 2)
        assert len(held) == 5 and r.hkeys("{s}:applied") == ["3", "4"]

    def test_a_group_that_vanished_is_created_again_and_reported(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add({"n": 0})
        consumer = make()
        consumer.poll()
        for lose in (("DEL", "{s}"), ("XGROUP DESTROY", "{s}", "g")):
            r.execute_command(*lose)
            assert consumer.poll() + consumer.poll() <= 1
            assert isinstance(consumer.errors[-1], GroupLost)
            consumer.errors.clear()
            producer.add({"n": 1})
            assert consumer.poll() == 1
            assert not consumer.errors
        r.delete("{s}")
        assert consumer.lag() == Lag(0, 0, None)

    def test_tidy_removes_names_without_pending(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add_many(numbers(4))
        gone, holder = make(name="gone", batch=2), make(name="holder", batch=1)
        gone.poll()
        holder._receive()
        consumer = make()
        consumer.poll()
        assert consumer.tidy() == 0
        until(lambda: consumer.tidy(0.005) * 0 + len(r.xinfo_consumers("{s}", "g")) == 1)
        assert [one["name"] for one in r.xinfo_consumers("{s}", "g")] == ["holder"]
        assert consumer.lag().pending == 1


class TestPoison:
    def test_it_comes_again_and_then_goes_to_the_dead_letters(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        id = producer.add({"n": 1, "text": "x"}, key="k")
        seen = []

        def handle(entry: Entry, effects: Any) -> None:
            seen.append(entry.deliveries)
            fail(entry, effects)

        consumer = make(handle, deliveries=3, idle=0.02)
        report = consumer.run(until_idle=True)
        assert seen == [1, 2, 3]
        assert report == Report(handled=3, failed=3, dead=1, reclaimed=2)
        [letter] = fields_of(r, consumer.dead)
        assert letter == {
            "n": "1", "text": '"x"', "@key": "k", "@id": id, "@group": "g", "@deliveries": "3",
            "@error": "no 1", "@type": "LookupError",
        }  # fmt: skip
        assert not r.exists("{s}:never", consumer.done_key("k"))
        error = consumer.errors[-1]
        assert isinstance(error, HandlerFailed) and isinstance(error.__cause__, LookupError)
        assert str(error) == f"entry {id}, delivery 3: LookupError: no 1"
        again = make()  # a person has corrected the handler
        r.execute_command("XADD", "{s}", "*", *chain(*letter.items()))
        assert again.poll() == 1 and r.hgetall("{s}:applied") == {"1": "1"}

    def test_others_go_on(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add_many(numbers(10))

        def handle(entry: Entry, effects: Any) -> None:
            count(entry, effects)
            if entry.event["n"] == 4:
                raise ValueError

        consumer = make(handle, idle=60)
        assert consumer.poll() == 9
        assert r.hlen("{s}:applied") == 9
        assert consumer.lag()[:2] == (0, 1)

    def test_what_killed_its_consumers_goes_there_unhandled(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add({"n": 1})
        for _ in range(2):
            victim = make(name="victim", idle=0)
            victim._with_group(victim._receive)
        consumer = make(fail, deliveries=2, idle=0.02)
        report = consumer.run(until_idle=True)
        assert report == Report(dead=1, reclaimed=1)
        assert fields_of(r, "{s}:dead")[0]["@type"] == "Crashed"

    def test_what_is_no_event_goes_there_at_once(self, r: redis.Redis, make: Make) -> None:
        make().poll()
        r.execute_command("XADD", "{s}", "*", "n", b"\xff")
        for text in ("no json", "[" * 100_000, "NaN", "1"):
            r.xadd("{s}", {"n": text})
        consumer = make()
        assert consumer.poll() == 5
        assert r.hgetall("{s}:applied") == {"1": "1"} and r.xlen("{s}:dead") == 4

    def test_what_was_read_together_with_it_is_not_put_aside(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        class Killed(BaseException):
            pass

        def handle(entry: Entry, effects: Any) -> None:
            if entry.event["n"] == 4:
                raise Killed
            count(entry, effects)

        producer.add_many(numbers(10))
        for _ in range(6):
            with suppress(Killed):
                make(handle, idle=0, deliveries=5).poll()
        assert r.hgetall("{s}:applied") == {n: "1" for n in once(10) if n != "4"}
        [letter] = fields_of(r, "{s}:dead")
        assert (letter["n"], letter["@type"], letter["@deliveries"]) == ("4", "Crashed", "6")

    def test_what_slow_workers_have_not_begun_is_not_put_aside(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        """Each stands still in its first entry, until the next has taken over all of them."""
        crew = [make(name=f"{n}", idle=0, deliveries=3) for n in range(6)]

        def handle(entry: Entry, effects: Any) -> None:
            count(entry, effects)
            if entry.event["n"] == 0 and crew:
                crew.pop().poll()

        for worker in crew:
            worker.handler = handle
        producer.add_many(numbers(20))
        crew.pop().poll()
        assert [letter["n"] for letter in fields_of(r, "{s}:dead")] == ["0"], "three have begun it"
        assert r.hgetall("{s}:applied") == {n: "1" for n in once(20) if n != "0"}

    def test_an_event_of_thousands_of_fields_is_kept_whole(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add({f"f{n}": n for n in range(4500)})
        producer.add({"n": 1})
        consumer = make(lambda entry, effects: fail(entry, effects) if "n" not in entry.event else None)
        consumer.deliveries = 1
        assert consumer.poll() == 2 and consumer.lag() == Lag(0, 0, None)
        [letter] = fields_of(r, "{s}:dead")
        assert len(json.loads(letter["@fields"])) == 9000 and letter["@type"] == "KeyError"

    def test_a_refused_effect_is_not_tried_again(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        r.set("{s}:text", "x")
        producer.add_many(numbers(3))

        def handle(entry: Entry, effects: Any) -> None:
            count(entry, effects)
            if entry.event["n"] == 1:
                effects.lpush("{s}:text", 1).incr("{s}:never")

        consumer = make(handle)
        assert consumer.poll() == 3
        assert consumer.report == Report(handled=3, applied=2, dead=1)
        assert r.hgetall("{s}:applied") == once(3) and not r.exists("{s}:never")
        producer.add({"n": 1}, key="again")
        producer.add({"n": 1}, key="again")
        assert consumer.poll() == 2 and r.hget("{s}:applied", "1") == "2", (
            "what is sent twice is not tried twice"
        )
        assert "WRONGTYPE" in fields_of(r, "{s}:dead")[0]["@error"] and "WRONGTYPE" in str(consumer.errors[0])
        assert consumer.lag() == Lag(0, 0, None)

    @pytest.mark.parametrize("effect", [("EVAL", "return 1", 0), ("NOSUCH",), ("GET",), ("BLPOP", "x", 0)])
    def test_what_can_be_no_effect(self, r: redis.Redis, make: Make, producer: Producer, effect: Any) -> None:
        producer.add_many(numbers(2))

        def handle(entry: Entry, effects: Any) -> None:
            effects.execute_command(*effect) if entry.event["n"] == 0 else count(entry, effects)

        consumer = make(handle)
        consumer.poll()
        assert r.hgetall("{s}:applied") == {"1": "1"}
        assert r.xlen("{s}:dead") == 1 or effect[0] == "BLPOP"  # which newer servers run, without waiting

    def test_effects_of_any_form(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add({"n": 1})

        def handle(entry: Entry, effects: Any) -> None:
            effects.hset("hash", mapping={"a": 1, "b": 2.5}).sadd("set", *range(4000))
            effects.set("raw", b"\x00\xff", ex=100).execute_command("OBJECT NOSUCH", "none")
            effects.zadd("zset", {"ada": 1}).xadd("stream", {"a": "b"}).execute_command(b"EXPIRE", "hash", 60)

        consumer = make(handle)
        assert consumer.poll() == 1
        assert r.hgetall("hash") == {"a": "1", "b": "2.5"} and r.scard("set") == 4000
        assert r.xlen("stream") == 0  # OBJECT NOSUCH is refused: what came before it is applied
        assert consumer.report.dead == 1

    @pytest.mark.parametrize("word", [None, True, [1], object()])
    def test_words_that_cannot_be_sent_fail_in_the_handler(self, word: Any) -> None:
        with pytest.raises(TypeError, match=r"SET has .*; it must be str, bytes, int or float"):
            Effects().execute_command("SET", "k", word)
        with pytest.raises(ValueError, match="SADD has 6002 words"):
            Effects().sadd("k", *range(6000))
        with pytest.raises(UnicodeEncodeError):
            Effects().set("k", "\ud800")

    def test_an_error_that_is_no_text_is_kept(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        def handle(entry: Entry, effects: Any) -> None:
            raise LookupError(entry.event["n"])

        producer.add({"n": "\ud800"})
        assert make(handle, deliveries=1).poll() == 1
        assert fields_of(r, "{s}:dead")[0]["@error"] == r"\ud800"

    def test_a_user_who_may_not_do_all_of_it_does_nothing(
        self, r: redis.Redis, server: Server, make: Make, producer: Producer
    ) -> None:
        producer.add({"n": 0}, key="k")
        for refused in ("xadd", "set"):
            r.acl_setuser(
                "worker",
                enabled=True,
                nopass=True,
                keys=["*"],
                categories=["+@all"],
                commands=[f"-{refused}"],
            )
            with server.client(username="worker", password="x") as shy:
                consumer = Consumer(shy, "{s}", "g", "a", count, block=0, newer=make()._newer)
                consumer._created = False
                with pytest.raises(exceptions.ResponseError, match=f"(?i)no permission for {refused}"):
                    consumer.poll()
            assert r.xpending("{s}", "g")["pending"] == 1 and not r.exists("{s}:applied")
            r.xgroup_destroy("{s}", "g")
        r.acl_deluser("worker")

    def test_keys_of_two_groups_are_two(self, r: redis.Redis, producer: Producer) -> None:
        producer.add({"n": 1}, key="17")
        producer.add({"n": 2}, key="eu:17")
        for group in ("mail:eu", "mail"):
            consumer = Consumer(r, "{s}", group, "a", count, block=0)
            assert consumer.poll() == 2 and consumer.report.applied == 2

    def test_dead_letters_are_bounded(self, t: redis.Redis) -> None:
        Producer(t, "{s}").add_many(numbers(11_000))
        consumer = Consumer(t, "{s}", "g", "a", fail, deliveries=1, block=0, batch=1000)
        while consumer.poll():
            pass
        assert consumer.report.dead == 11_000
        assert 10_000 <= t.xlen("{s}:dead") <= 10_200


class TestRunning:
    def test_stop_ends_it_within_block(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add({"n": 0})
        for way in ("stop", "event"):
            consumer, event = make(block=0.5, idle=600), threading.Event()
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(consumer.run, event)
                until(lambda: r.info("clients")["blocked_clients"] == 1)
                consumer.stop() if way == "stop" else event.set()
                assert running.result(20).applied == (way == "stop")
            assert not consumer._stopping  # it can run again

    def test_what_was_not_begun_is_handed_back(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add_many(numbers(10))

        def handle(entry: Entry, effects: Any) -> None:
            count(entry, effects)
            if entry.event["n"] == 3:
                consumer.stop()

        consumer = make(handle, idle=600)
        assert consumer.run().applied == 4
        assert r.hgetall("{s}:applied") == once(4)
        seen = list[int]()
        other = make(lambda entry, effects: seen.append(entry.deliveries), name="b", idle=600)
        other.stop()  # nothing runs that could be stopped
        assert other.poll() == 6 and seen == [1] * 6

    @pytest.mark.parametrize("options", [{"decode_responses": False}, {"protocol": 2}])
    def test_handed_back_by_clients_of_all_kinds(
        self, r: redis.Redis, server: Server, path: Path, producer: Producer, options: dict[str, Any]
    ) -> None:
        producer.add_many(numbers(3))

        def handle(entry: Entry, effects: Any) -> None:
            count(entry, effects)
            consumer.stop()

        with server.client(**options) as other:
            consumer = Consumer(other, "{s}", "g", "a", handle, block=0, idle=600, newer=path.newer)
            assert consumer.run().applied == 1
        assert [entry["times_delivered"] for entry in r.xpending_range("{s}", "g", "-", "+", 10)] == [0, 0]

    def test_what_others_have_taken_over_is_not_handed_back(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add_many(numbers(3))
        other = make(name="b", idle=0)

        def handle(entry: Entry, effects: Any) -> None:
            other._with_group(other._receive)
            consumer.stop()

        consumer = make(handle, idle=600)
        consumer.run()
        held = r.xpending_range("{s}", "g", "-", "+", 10)
        assert [(entry["consumer"], entry["times_delivered"]) for entry in held] == [("b", 2)] * 2

    @pytest.mark.single_server("redis-py's cluster client connects, and so fails, when it is made")
    def test_a_wrong_password_is_no_outage(self, server: Server) -> None:
        with server.client(username="stranger") as stranger:
            consumer = Consumer(stranger, "{s}", "g", "a", count)
            with pytest.raises(exceptions.AuthenticationError):
                consumer.run()
            with pytest.raises(exceptions.AuthenticationError):
                Producer(stranger, "{s}", name="p").add({"n": 1})

    def test_a_stream_that_is_deleted_while_it_waits(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        consumer = make(block=1)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(consumer.run)
            until(lambda: r.info("clients")["blocked_clients"] == 1)
            r.delete("{s}")
            until(lambda: r.exists("{s}"))
            producer.add({"n": 1})
            until(lambda: r.exists("{s}:applied"))
            consumer.stop()
            assert running.result(20).applied == 1
        assert isinstance(consumer.errors[0], GroupLost)

    def test_what_was_trimmed_leaves_the_list_also_of_a_busy_stream(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add_many(numbers(5))
        dead = make(name="dead")
        dead._with_group(dead._receive)
        r.xtrim("{s}", maxlen=0)
        consumer = make(idle=0.01)

        def round_after_round() -> bool:
            producer.add({"n": 9})
            consumer.poll()
            return consumer.report.trimmed == 5

        until(round_after_round)
        assert consumer.lag() == Lag(0, 0, None)

    def test_blocking_longer_than_the_sockets_patience(
        self, server: Server, path: Path, producer: Producer
    ) -> None:
        for patience in (0.05, 0.3):
            with server.client(socket_timeout=patience) as hasty:
                consumer = Consumer(
                    hasty, "{s}", f"{patience}", "a", count, start="$", block=5, newer=path.newer
                )
                start = time.monotonic()
                assert [consumer.poll() for _ in range(3)] == [0] * 3
                assert time.monotonic() - start < 10
                producer.add({"n": 1})
                assert consumer.run(until_idle=True).applied == 1

    def test_a_taken_over_entry_ends_the_wait(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add({"n": 0})
        dead = make(name="dead")
        dead._with_group(dead._receive)
        consumer, start = make(block=30, idle=0.2), time.monotonic()
        until(lambda: consumer.poll() == 1)
        assert time.monotonic() - start < 10

    def test_a_server_that_has_lost_its_memory(self) -> None:
        with Server() as server, server.client(socket_timeout=1) as r:
            r.set("x", 1)
            consumer = Consumer(r, "{s}", "g", "a", count, block=0.05, idle=60)
            Producer(r, "{s}").add({"n": 1})
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(consumer.run)
                until(lambda: r.hgetall("{s}:applied") == {"1": "1"})
                server.kill()
                until(lambda: any(isinstance(error, exceptions.ConnectionError) for error in consumer.errors))
                server.start()
                Producer(r, "{s}").add({"n": 2})
                until(lambda: r.hgetall("{s}:applied") == {"2": "1"})
                consumer.stop()
                assert running.result(20).applied == 2
            assert any(isinstance(error, GroupLost) for error in consumer.errors)

    def test_dead_letters_that_are_no_stream(self, t: redis.Redis) -> None:
        Producer(t, "{s}").add({"n": 1})
        t.set("{s}:dead", "text")
        consumer = Consumer(t, "{s}", "g", "a", count)
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            consumer.run()
        assert consumer.lag().pending == 1 and not t.exists("{s}:applied")

    def test_a_server_that_is_full(self) -> None:
        with Server() as server, server.client() as r:
            Producer(r, "{s}").add_many(numbers(3))
            consumer = Consumer(r, "{s}", "g", "a", count, block=0)
            consumer.lag()
            server.config["maxmemory"] = "1"
            with pytest.raises(exceptions.OutOfMemoryError):
                Producer(r, "{s}").add({"n": 4})
            assert consumer.poll() == 3 and r.hgetall("{s}:applied") == once(3)

    def test_without_blocking_it_does_not_spin(self, t: redis.Redis) -> None:
        consumer = Consumer(t, "{s}", "g", "a", count, block=0)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(consumer.run)
            until(lambda: t.exists("{s}"))
            begin, before = time.monotonic(), t.info("stats")["total_commands_processed"]
            time.sleep(0.2)
            asked = t.info("stats")["total_commands_processed"] - before
            assert asked <= 2 * (time.monotonic() - begin) / 0.015 + 5
            consumer.stop()
            running.result(20)

    def test_other_errors_are_raised(self, t: redis.Redis) -> None:
        t.set("{s}", "text")
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            Consumer(t, "{s}", "g", "a", count).run()

    def test_an_interrupt_goes_through_and_nothing_was_settled(
        self, r: redis.Redis, make: Make, producer: Producer
    ) -> None:
        producer.add_many(numbers(3))

        def handle(entry: Entry, effects: Any) -> None:
            count(entry, effects)
            if entry.event["n"] == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(handle).run()
        assert not r.exists("{s}:applied")
        assert make(idle=0.02).run(until_idle=True).applied == 3
        assert r.hgetall("{s}:applied") == once(3)

    def test_a_flushed_script_cache_is_survived(self, r: redis.Redis, make: Make, producer: Producer) -> None:
        producer.add({"n": 1})
        r.script_flush()
        assert make().poll() == 1

    @pytest.mark.single_server("redis-py's cluster client itself needs COMMAND")
    def test_a_server_that_will_not_say_is_taken_for_an_older_one(self, server: Server, path: Path) -> None:
        with server.client() as admin:
            admin.acl_setuser(
                "shy", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-command"]
            )
            with server.client(username="shy", password="x") as shy:
                Producer(shy, "shy", name="p").add({"n": 1})
                assert Consumer(shy, "shy", "g", "a", count, delete=True).poll() == 1

    def test_on_a_cluster(self) -> None:
        with Server(cluster_enabled=True) as node:
            node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: "cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
            with RedisCluster.from_url(node.url, protocol=3, legacy_responses=False) as cluster:
                for work in (Producer, partial(Consumer, group="g", name="a", handler=count)):
                    with pytest.raises(ValueError, match=r"in a cluster it must hold a \{hash tag\}"):
                        work(cluster, "s")
                producer = Producer(cluster, "{s}", maxlen=1000, name="p")
                producer.add_many(numbers(250))

                def handle(entry: Entry, effects: Any) -> None:
                    if entry.event["n"] == 7:
                        raise LookupError
                    effects.hincrby("{s}:applied", entry.event["n"], 1)

                dead = Consumer(cluster, "{s}", "g", "dead", handle)
                dead._with_group(dead._receive)
                consumer = Consumer(cluster, "{s}", "g", "a", handle, idle=0.05, block=0.02, deliveries=2)
                report = consumer.run(until_idle=True)
                assert (report.applied, report.dead, report.reclaimed) == (249, 1, 100)
                assert consumer.lag() == Lag(0, 0, None)
                assert (producer.backlog(), producer.trim()) == (0, 200)

    @pytest.mark.parametrize("binary", BINARIES.values(), ids=BINARIES)
    def test_a_cluster_uses_what_its_servers_know(self, binary: str | None) -> None:
        if binary is None:
            pytest.skip("LABKIT_NEWER_REDIS does not name a redis-server")
        with Server(binary=binary, cluster_enabled=True) as node, node.client() as r:
            r.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: "cluster_state:ok" in r.execute_command("CLUSTER", "INFO"))
            with RedisCluster.from_url(node.url, protocol=3, legacy_responses=False) as cluster:
                Producer(cluster, "{s}").add_many(numbers(3))
                groups = [
                    Consumer(cluster, "{s}", group, "a", lambda *_: None, block=0, delete=True)
                    for group in ("one", "two")
                ]
                groups[1].lag()
                assert groups[0].poll() == 3
                assert groups[1].poll() == (3 if supports(r, "XDELEX") else 0)
                assert r.xlen("{s}") == 0

    def test_a_cluster_whose_node_is_gone_for_a_while(self) -> None:
        with Server(cluster_enabled=True) as node:
            node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: "cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
            options: dict[str, Any] = {"socket_timeout": 0.5, "legacy_responses": False, "protocol": 3}
            with RedisCluster.from_url(node.url, **options) as cluster, ThreadPoolExecutor(1) as pool:
                consumer = Consumer(cluster, "{s}", "g", "a", lambda *_: None, block=0.05)
                running = pool.submit(consumer.run)
                until(lambda: node.client().exists("{s}"))
                node.kill()
                until(lambda: consumer.errors)
                node.start()
                until(lambda: "cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
                producer = Producer(cluster, "{s}", name="p")
                until(lambda: producer.add({"n": 1}))
                until(lambda: consumer.report.applied)
                consumer.stop()
                running.result(20)

    def test_misuse(self, t: redis.Redis) -> None:
        for options, message in (
            ({"batch": 0}, "batch is 0; it must be from 1 to 10000"),
            ({"idle": -1}, "idle is -1; it must be from 0"),
            ({"deliveries": 0}, "deliveries is 0"),
            ({"remember": 0}, "remember is 0"),
        ):
            wrong: dict[str, Any] = options
            with pytest.raises(ValueError, match=message):
                Consumer(t, "{s}", "g", "a", count, **wrong)
        with pytest.raises(ValueError, match=r"dead is '{s}', the stream itself"):
            Consumer(t, "{s}", "g", "a", count, dead="{s}")
        for args, message in (
            ((t, "", "g", "a", count), "stream is ''"),
            ((t, "{s}", "", "a", count), "group is ''"),
            ((t, "{s}", "g", None, count), "name is None"),
            ((t, "{s}", "g", "a", None), "handler is None"),
            ((None, "{s}", "g", "a", count), "NoneType is no client"),
        ):
            with pytest.raises(TypeError, match=message):
                Consumer(*args)
        assert t.keys() == []


class TestRaces:
    """All interleavings, by the race explorer. `idle=0`: whatever is pending may be taken over at once."""

    @staticmethod
    def explored(
        entries: int = 2, handler: Any = count, same_key: bool = False, again: bool = False, **options: Any
    ) -> Exploration:

        def consumer(r: Any, name: str) -> Consumer:
            options: dict[str, Any] = {
                "block": 0,
                "idle": 0,
                "deliveries": 9 if handler is count else 1,
                "newer": False,
            }
            return Consumer(r, "{s}", "g", name, handler, **options)

        def setup(r: Any) -> None:
            r.xgroup_create("{s}", "g", "0", mkstream=True)
            for n in range(entries):
                r.xadd("{s}", {"n": n, **({"@key": "k"} if same_key else {})}, id=f"{n + 1}-0")

        def worker(name: str) -> Callable[[Any], None]:
            def work(redis: Any) -> None:
                made = consumer(redis, name)
                made._created = True  # leaves the first step out, which is the same for all
                try:
                    made.poll()
                except exceptions.TimeoutError:
                    if not again:
                        raise
                    made.poll()

            return work

        def invariant(r: Any) -> None:
            survivor = consumer(r, "survivor")
            while survivor.poll():
                pass
            if handler is count:
                assert r.hgetall("{s}:applied") == ({"0": "1"} if same_key else once(entries)), r.hgetall(
                    "{s}:applied"
                )
            else:
                assert sorted(fields["@id"] for fields in fields_of(r, "{s}:dead")) == ["1-0", "2-0"]
            assert survivor.lag() == Lag(0, 0, None)

        return explore([worker(name) for name in "ab"], setup=setup, invariant=invariant, **options)

    @pytest.mark.parametrize("fault", [crash, lose_reply])
    def test_between_reading_effect_and_acknowledgement(self, fault: str) -> None:
        found = self.explored(faults=[fault])
        found.assert_safe()
        assert found.total > 100

    def test_a_lost_reply_and_the_same_consumer_goes_on(self) -> None:
        self.explored(entries=1, faults=[lose_reply], again=True).assert_safe()

    def test_dead_letters_by_two_at_once(self) -> None:
        self.explored(handler=fail, faults=[crash]).assert_safe()

    def test_two_entries_with_one_key(self) -> None:
        self.explored(same_key=True, faults=[crash]).assert_safe()

    def test_effect_and_acknowledgement_apart_are_not_safe(self) -> None:
        """So the explorer would see it."""

        def naive(redis: Any) -> None:
            found = redis.xreadgroup("g", "a", {"{s}": ">"}) or {
                "{s}": redis.xautoclaim("{s}", "g", "a", 0)[1]
            }
            for id, fields in found["{s}"]:
                redis.hincrby("{s}:applied", fields["n"], 1)
                redis.xack("{s}", "g", id)

        def setup(r: Any) -> None:
            r.xgroup_create("{s}", "g", "0", mkstream=True)
            r.xadd("{s}", {"n": 0}, id="1-0")

        def invariant(r: Any) -> None:
            naive(r)
            assert r.hgetall("{s}:applied") == once(1)

        for faults in ((), (crash,)):
            assert explore([naive, naive], setup=setup, invariant=invariant, faults=faults).violations
        assert explore([naive], setup=setup, invariant=invariant, faults=[crash]).violations

    def test_a_producer_that_asks_again_with_its_key(self) -> None:
        def add(redis: Any) -> None:
            producer = Producer(redis, "{s}", newer=False)
            try:
                producer.add({"n": 0}, key="k")
            except exceptions.TimeoutError:
                producer.add({"n": 0}, key="k")

        def invariant(r: Any) -> None:
            consumer = Consumer(r, "{s}", "g", "a", count, block=0, newer=False)
            consumer.poll()
            assert r.hgetall("{s}:applied") == once(1)

        explore([add, add], invariant=invariant, faults=[lose_reply]).assert_safe()

    @pytest.mark.skipif(NEWER is None, reason="needs XADD … IDMP of Redis 8.6")
    @pytest.mark.parametrize("newer", [True, False])
    def test_a_named_producer_asks_again_by_itself(self, newer: bool) -> None:
        def add(redis: Any) -> None:
            producer = Producer(redis, "{s}", name="shop", newer=newer)
            producer.add({"n": 0}, key="k")
            producer.add_many([{"n": 1}, {"n": 2}])

        def invariant(r: Any) -> None:
            if newer:
                assert r.xlen("{s}") == 3
            Consumer(r, "{s}", "g", "a", count, block=0, newer=False).poll()
            assert r.hgetall("{s}:applied") == once(3)

        with Server(binary=NEWER) as server:
            explore([add], invariant=invariant, faults=[lose_reply], server=server).assert_safe()


def killed_worker(url: str, name: str, idle: float, every: int) -> Generator[None, None, Any]:
    """Works until the group has nothing left, but stands still in the midst of certain entries, once each."""
    import json
    import time

    from labkit.rig.client import client
    from labkit.stream import Consumer

    r, side = client(url), client(url)

    def handle(entry: Entry, effects: Any) -> None:
        n = entry.event["n"]
        effects.hincrby("applied", n, 1).incrby("sum", n)
        if n % every == every // 2 + 17 and side.set(f"seen:{n}", name, nx=True, ex=600):
            side.rpush("in the midst", json.dumps([name, entry.id]))
            time.sleep(600)  # until it is killed: it has read, and it will not settle

    consumer = Consumer(r, "events", "group", name, handle, batch=50, block=0.05, idle=idle)
    yield
    return consumer.run(until_idle=True)


class KillRun(NamedTuple):
    """`applied`: how many entries were applied once; `twice`: more than once; `lost`: never."""

    kills: int
    applied: int
    twice: int
    lost: int
    reclaimed: int
    seconds: float


def kill_run(
    server: Server, n: int = 10_000, kills: int = 20, workers: int = 4, idle: float = 0.3
) -> KillRun:
    """`n` entries, so many workers at any time, each killed while it is in the midst of an entry."""
    began = time.monotonic()
    with server.client() as r, ThreadPoolExecutor(2) as pool:
        r.flushall()
        Producer(r, "events").add_many(numbers(n))

        def start(number: int) -> None:
            name = f"worker-{number}"
            alive[name] = pool.submit(spawn, killed_worker, server.url, name, idle, n // kills)

        alive = dict[str, Future[Worker]]()
        for number in range(workers):
            start(number)
        for number in range(kills):
            _, said = r.blpop("in the midst", 8) or pytest.fail("no worker came to an entry")
            name, id = json.loads(said)
            assert r.xpending_range("events", "group", id, id, 1), "it is settled, yet its handler is at it"
            with alive.pop(name).result() as worker:
                worker.kill()
            start(workers + number)
        reports = []
        for coming in alive.values():
            with coming.result() as worker:
                reports.append(Report(*worker.result(60)))
        applied = r.hgetall("applied")
        once = sum(times == "1" for times in applied.values())
        assert int(r.get("sum")) == sum(range(n)) or once < n
        assert Consumer(r, "events", "group", "watcher", count).lag() == Lag(0, 0, None)
        reclaimed = sum(report.reclaimed for report in reports)
    seconds = time.monotonic() - began
    return KillRun(kills, once, len(applied) - once, n - len(applied), reclaimed, seconds)


def test_ten_thousand_entries_and_twenty_workers_killed_in_the_midst_of_one(
    throwaway: Server, record_property: Callable[[str, object], None]
) -> None:
    run = kill_run(throwaway)
    record_property("summary", f"stream: {run}")
    assert (run.kills, run.applied, run.twice, run.lost) == (20, 10_000, 0, 0)
    assert run.reclaimed >= 1  # by those who were alive at the end
