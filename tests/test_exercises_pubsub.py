"""The graders of chapter 06 accept every right way, and say of a wrong one precisely what is wrong."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from answers import changed

from labkit.teach import check, lab
from labkit.teach.exercises import Verdict, load
from labkit.teach.exercises.pubsub.grading import within
from labkit.teach.timelimit import limited

EXERCISES = {exercise.name: exercise for exercise in load("pubsub")}
_answer = partial(changed, "pubsub")

_GAPS = """
import json
import redis

class MyChannel:
    def __init__(self, r, channel):
        self.r, self.channel, self.counter = r, channel, f"number of {channel}"
        self.start, self.top, self.seen = None, 0, set()

    def subscribed(self):
        if self.start is not None:
            self.top = max(self.top, int(self.r.get(self.counter) or 0))

    def receive(self, data):
        number, text = self.read(data)
        self.start = number if self.start is None else self.start
        self.top = max(self.top, number)
        if number in self.seen:
            return None
        self.seen.add(number)
        return text

    def missing(self):
        return [] if self.start is None else sorted(set(range(self.start, self.top + 1)) - self.seen)
"""
_SPLIT = """
    def read(self, data):
        number, _, text = data.partition(" ")
        return int(number), text
"""
_MIRROR = """
class MyTotal:
    def __init__(self, r, name, subscribe):
        START

    def total(self):
        for change in self.inbox.take():
            if change["version"] > self.version:
                self.value, self.version = self.value + change["amount"], change["version"]
        return self.value
"""

RIGHT = {
    "listener: listen(), and UNSUBSCRIBE ends it": """
import threading, traceback

def listen(r, channel, handle):
    pubsub = r.pubsub(ignore_subscribe_messages=False)
    pubsub.subscribe(channel)
    messages = pubsub.listen()
    assert next(messages)["type"] == "subscribe"

    def run():
        for message in messages:
            if message["type"] == "message":
                try:
                    handle(message["data"])
                except Exception:
                    traceback.print_exc()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def stop():
        pubsub.unsubscribe()
        thread.join()
        pubsub.close()

    return stop
""",
    "listener: run_in_thread() that goes on, and PSUBSCRIBE of an escaped name": """
import re

def listen(r, channel, handle):
    pubsub = r.pubsub()
    pattern = re.sub(r"([][*?\\\\\\\\])", r"\\\\\\1", channel)
    pubsub.psubscribe(**{pattern: lambda message: handle(message["data"])})
    while pubsub.get_message(timeout=1) is None:
        pass
    thread = pubsub.run_in_thread(sleep_time=0.5, exception_handler=lambda *_: None)

    def stop():
        thread.stop()
        thread.join()

    return stop
""",
    "listener: a class that is called, waits a second each time, and has its own client": """
import threading
import redis

class listen:
    def __init__(self, r, channel, handle):
        pool = r.connection_pool
        self.r = redis.Redis(connection_pool=type(pool)(pool.connection_class, **pool.connection_kwargs))
        self.pubsub, self.go_on, self.handle = self.r.pubsub(), True, handle
        ready = threading.Event()
        self.pubsub.subscribe(channel)
        self.thread = threading.Thread(target=self.run, args=[ready])
        self.thread.start()
        ready.wait()

    def run(self, ready):
        while self.go_on:
            message = self.pubsub.get_message(timeout=1)
            if message and message["type"] == "subscribe":
                ready.set()
            elif message and message["type"] == "message":
                try:
                    self.handle(message["data"])
                except Exception as error:
                    print(error)

    def __call__(self):
        self.go_on = False
        self.thread.join()
        self.pubsub.close()
        self.r.connection_pool.disconnect()
""",
    "listener: select() on the connection and on a pipe, and one thread more that handles": """
import os, queue, select, threading

def listen(r, channel, handle):
    pubsub, texts = r.pubsub(ignore_subscribe_messages=True), queue.Queue()
    pubsub.subscribe(channel)
    while not pubsub.connection.can_read(timeout=1):
        pass
    pubsub.get_message()
    wake, waker = os.pipe()

    def read():
        while True:
            ready, _, _ = select.select([pubsub.connection._sock, wake], [], [])
            if wake in ready:
                break
            while message := pubsub.get_message():
                texts.put(message["data"])
        texts.put(None)

    def work():
        while (text := texts.get()) is not None:
            try:
                handle(text)
            except Exception:
                pass

    threads = [threading.Thread(target=read), threading.Thread(target=work)]
    for thread in threads:
        thread.start()

    def stop():
        os.write(waker, b"x")
        for thread in threads:
            thread.join()
        os.close(wake)
        os.close(waker)
        pubsub.close()

    return stop
""",
    "gaps: a script, and every number seen": _GAPS
    + _SPLIT
    + """
    def publish(self, text):
        return self.r.register_script(
            "local n = redis.call('INCR', KEYS[1])"
            "redis.call('PUBLISH', KEYS[2], n .. ' ' .. ARGV[1])"
            "return n"
        )(keys=[self.counter, self.channel], args=[text])
""",
    "gaps: WATCH, and a transaction": _GAPS
    + _SPLIT
    + """
    def publish(self, text):
        while True:
            with self.r.pipeline() as pipe:
                try:
                    pipe.watch(self.counter)
                    number = int(pipe.get(self.counter) or 0) + 1
                    pipe.multi()
                    pipe.set(self.counter, number).publish(self.channel, f"{number} {text}").execute()
                    return number
                except redis.WatchError:
                    continue
""",
    "gaps: pipe.transaction() of redis-py, and JSON": _GAPS
    + """
    def publish(self, text):
        def next_number(pipe):
            number = int(pipe.get(self.counter) or 0) + 1
            pipe.multi()
            pipe.set(self.counter, number)
            pipe.publish(self.channel, json.dumps({"number": number, "text": text}))
            return number

        return self.r.transaction(next_number, self.counter, value_from_callable=True)

    def read(self, data):
        data = json.loads(data)
        return data["number"], data["text"]
""",
    "gaps: cjson, and a counter in a hash": _GAPS.replace(
        "self.r.get(self.counter)", "self.r.hget('numbers', self.channel)"
    )
    + """
    def publish(self, text):
        return self.r.eval(
            "local n = redis.call('HINCRBY', KEYS[1], KEYS[2], 1)"
            "redis.call('PUBLISH', KEYS[2], cjson.encode({n, ARGV[1]})) return n",
            2, "numbers", self.channel, text,
        )

    def read(self, data):
        return json.loads(data)
""",
    "snapshot: HMGET": _MIRROR.replace(
        "START",
        """self.inbox = subscribe(name)
        self.value, self.version = (int(word or 0) for word in r.hmget(name, "total", "version"))""",
    ),
    "snapshot: a transaction of two HGET": _MIRROR.replace(
        "START",
        """self.inbox = subscribe(name)
        words = r.pipeline().hget(name, "total").hget(name, "version").execute()
        self.value, self.version = (int(word or 0) for word in words)""",
    ),
    "snapshot: a script reads": _MIRROR.replace(
        "START",
        """self.inbox = subscribe(name)
        words = r.eval("return redis.call('HMGET', KEYS[1], 'total', 'version')", 1, name)
        self.value, self.version = (int(word or 0) for word in words)""",
    ),
    "snapshot: reads, subscribes, and reads again": _MIRROR.replace(
        "START",
        """before = r.hgetall(name)
        self.inbox = subscribe(name)
        state = r.hgetall(name) or before or {"total": 0, "version": 0}
        self.value, self.version = int(state["total"]), int(state["version"])""",
    ),
    "snapshot: the version first, since then a change counts twice only if nobody looks at it again": """
class MyTotal:
    def __init__(self, r, name, subscribe):
        self.inbox = subscribe(name)
        while True:
            self.version = int(r.hget(name, "version") or 0)
            self.value = int(r.hget(name, "total") or 0)
            if int(r.hget(name, "version") or 0) == self.version:
                break

    def total(self):
        new = [change for change in self.inbox.take() if change["version"] > self.version]
        self.value += sum(change["amount"] for change in new)
        return self.value
""",
    "snapshot: keeps the changes by version": """
class MyTotal:
    def __init__(self, r, name, subscribe):
        self.inbox, self.changes = subscribe(name), {}
        self.state = r.hgetall(name)

    def total(self):
        self.changes |= {change["version"]: change["amount"] for change in self.inbox.take()}
        first = int(self.state.get("version", 0))
        return int(self.state.get("total", 0)) + sum(n for v, n in self.changes.items() if v > first)
""",
}


def test_a_time_limit_in_a_thread_leaves_no_trace() -> None:
    """In Python 3.11 an exception that was taken back would make each watched thread hang."""
    thread = threading.Thread(target=limited, args=(10, lambda: None, lambda: None))
    thread.start()
    thread.join()
    exercise = EXERCISES["listener"]
    assert check.grade(exercise, exercise.build(exercise.reference)).state == "correct"


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_answers_are_accepted(name: str) -> None:
    exercise = EXERCISES[name.partition(":")[0]]
    verdict = check.grade(exercise, exercise.build(RIGHT[name]))
    assert verdict == Verdict("correct", message=exercise.title), str(verdict)


def _listener(body: str) -> Verdict:
    exercise = EXERCISES["listener"]
    return check.grade(exercise, exercise.build(f"def listen(r, channel, handle):\n{body}\n"))


def test_a_stop_that_is_none_is_said_so() -> None:
    verdict = _answer("listener", ("return stop", "return None"))
    assert verdict.message == "listen() is to give a function, stop(), and gives None", str(verdict)


def test_who_does_not_subscribe_is_told_so() -> None:
    verdict = _listener("    r.get(channel)\n    return lambda: None")
    assert (verdict.property, verdict.message) == ("deaf", "nobody is subscribed to the channel")


def test_an_error_in_a_thread_is_shown() -> None:
    """Where nobody sees what a thread prints, the verdict says what it raised."""
    verdict = _answer("listener", ('handle(message["data"])', 'handle(message["text"])'))
    assert verdict.property == "messages"
    assert "in a thread of the answer's: KeyError: 'text'" in verdict.counterexample, str(verdict)
    verdict = _answer("listener", ("while not stopped.is_set():", "while not stoped.is_set():"))
    assert "NameError: name 'stoped' is not defined" in verdict.counterexample, str(verdict)


def test_what_listen_raises_is_shown_with_its_line() -> None:
    verdict = _listener("    r.pubsub().subscribe(chanel)")
    assert verdict.property == "raises" and verdict.counterexample == "line 2: r.pubsub().subscribe(chanel)"


def test_a_listen_that_listens_itself_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    exercise = EXERCISES["listener"]
    monkeypatch.setitem(vars(exercise), "seconds", 0.5)
    body = """    pubsub = r.pubsub()
    pubsub.subscribe(channel)
    for message in pubsub.listen():
        handle(message["data"])
"""
    verdict = _listener(body)
    assert verdict.property == "hangs" and "pubsub.listen()" in verdict.counterexample, str(verdict)


def test_a_confirmation_that_is_late_is_waited_for() -> None:
    """One look, and then it returns: only what arrives in time is seen."""
    verdict = _answer(
        "listener", ("if pubsub.get_message(timeout=5) is None:", "if pubsub.get_message() and 0:")
    )
    assert verdict.property == "ready", str(verdict)


@pytest.mark.parametrize("timeout", ["0.05", "0.1"])
def test_a_short_timeout_is_polling(timeout: str) -> None:
    assert _answer("listener", ("timeout=0.5", f"timeout={timeout}")).property == "polls"


def test_a_stop_that_raises_is_told_with_its_line() -> None:
    verdict = _answer("listener", ("thread.join()", "thread.joins()"))
    assert verdict.property == "raises" and "thread.joins()" in verdict.counterexample, str(verdict)


def test_nothing_is_left_of_any_listener() -> None:
    """Threads that resist, daemons, and their connections: when the verdict is there, they are gone."""
    before = set(threading.enumerate())
    exercise = EXERCISES["listener"]
    for wrong in exercise.wrong:
        if wrong.violates in ("thread", "connection"):
            check.grade(exercise, exercise.build(wrong.source))
            assert set(threading.enumerate()) <= before, wrong.why
    stubborn = """    import threading
    def run(pubsub=r.pubsub()):
        while True:
            try:
                pubsub.subscribe(channel)
                while True:
                    pubsub.get_message(timeout=0.01)
            except BaseException:
                pass
    threading.Thread(target=run).start()
    return lambda: None
"""
    assert _listener(stubborn).property == "polls"
    assert set(threading.enumerate()) <= before
    assert lab._server is not None
    with lab._server.client() as r:
        assert [one["cmd"] for one in r.client_list() if one["cmd"] != "client|list"] == []


NO_TEXT = "message 4 arrives, and receive() does not give its text, 'four'"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("return self.r.eval(", "self.r.eval("), "publish() is to give the number of the message, 1, and gives None"),  # noqa: E501
        (("return text", "return"), NO_TEXT),
        (("return text", "return number"), NO_TEXT),
        (("sorted(self.lost)", "self.lost"), "missing() is to give a list of numbers, and gives set()"),
        (("json.dumps(text)", "json.dumps('x')"), NO_TEXT),
    ],
)  # fmt: skip
def test_what_is_given_is_said_as_it_is(change: tuple[str, str], said: str) -> None:
    assert _answer("gaps", change).message == said


def test_a_channel_that_gets_nothing_is_said_so() -> None:
    verdict = _answer("gaps", ("redis.call('PUBLISH', ARGV[1]", "redis.call('PUBLISH', 'news'"))
    assert verdict.message == "publish() is to publish one message on the channel, and has published 0"


def test_a_receiver_that_knows_what_was_published_in_its_process_is_found_out() -> None:
    """What a class keeps in itself is not shared between processes."""
    count = ("self._expect(int(self.r.get(self.counter) or 0) + 1)", "self._expect(MyChannel.latest + 1)")
    keep = (
        "return self.r.eval(self.PUBLISH, 1, self.counter, self.channel, json.dumps(text))",
        "MyChannel.latest = self.r.eval(self.PUBLISH, 1, self.counter, self.channel, json.dumps(text))\n"
        "        return MyChannel.latest",
    )
    shared = ("    # KEYS: the counter.", "    latest = 0\n\n    # KEYS: the counter.")
    assert _answer("gaps", count, keep, shared).state == "incorrect"


def test_the_order_of_two_publishers_is_shown_step_by_step() -> None:
    wrong = EXERCISES["gaps"].wrong[0]
    verdict = check.grade(EXERCISES["gaps"], EXERCISES["gaps"].build(wrong.source))
    told = [line.split()[:2] for line in verdict.counterexample.splitlines()[2:]]
    assert told == [["A", "INCRBY"], ["B", "INCRBY"], ["B", "PUBLISH"], ["A", "PUBLISH"]], str(verdict)


def test_a_script_that_publishes_twice_is_refused() -> None:
    twice = (
        'return number\n    """',
        "redis.call('PUBLISH', ARGV[1], '[0,0]')\n    return number\n    \"\"\"",
    )
    assert _answer("gaps", twice).property == "message"


def test_a_subscription_that_is_too_late_is_shown_step_by_step() -> None:
    wrong = EXERCISES["snapshot"].wrong[0]
    verdict = check.grade(EXERCISES["snapshot"], EXERCISES["snapshot"].build(wrong.source))
    told = [line.split()[:2] for line in verdict.counterexample.splitlines()[2:]]
    assert told == [
        ["A", "HGETALL"],
        ["B", "total"],
        ["B", "total"],
        ["A", "SUBSCRIBE"],
        ["A", "inbox.take()"],
    ]
    assert verdict.message == "the total is 4623, and A's is 123: +4000 and +500 never reached it"


@pytest.mark.parametrize(
    ("change", "property"),
    [
        (("return self.value", "return str(self.value)"), "number"),
        (("        return self.value", "        self.value"), "number"),
        (("        for change", "        self.inbox.take()\n        for change"), "lost"),
        (('int(state.get("total", 0))', 'state.get("total", 0)'), "number"),
        (("subscribe(name)", "subscribe()"), "raises"),
        (("subscribe(name)", 'subscribe("total")'), "channel"),
        (("                self.version = change", "                self.version += change"), "lost"),
    ],
)
def test_what_goes_wrong_with_a_total(change: tuple[str, str], property: str) -> None:
    verdict = _answer("snapshot", change)
    assert verdict.property == property, str(verdict)


@pytest.mark.parametrize("name", EXERCISES)
def test_no_subscription_is_left(name: str) -> None:
    exercise = EXERCISES[name]
    check.grade(exercise, exercise.build(exercise.reference))
    with lab.Lab().server.client() as r:
        assert [one for one in r.client_list() if int(one["sub"]) or int(one["psub"])] == []


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_that_was_begun_is_not_attempted(name: str) -> None:
    exercise = EXERCISES[name]
    begun = exercise.stub.replace("raise NotImplementedError", "x = 1\n    raise NotImplementedError", 1)
    begun = begun if name == "listener" else exercise.stub + "\n    more = 1\n"
    assert check.grade(exercise, exercise.build(begun)) == Verdict("not attempted")
    assert len(exercise.hints) >= 3


def test_a_thread_that_ends_with_the_confirmation_is_told_so() -> None:
    verdict = _listener("""    import threading
    pubsub = r.pubsub()
    pubsub.subscribe(channel)
    def run():
        for message in pubsub.listen():
            handle(message["data"].upper())
    threading.Thread(target=run).start()
    return pubsub.close""")
    assert verdict.property == "deaf" and "AttributeError" in verdict.counterexample, str(verdict)


def test_the_reference_listens_again_when_its_connection_was_lost() -> None:
    exercise, bench, got = EXERCISES["listener"], lab.Lab(), list[str]()
    channel = bench.key("news")
    stop = exercise.build(exercise.reference)(bench.client(), channel, got.append)
    try:
        bench.r.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert within(2000, lambda: bench.r.publish(channel, "after it") > 0)
        assert within(2000, lambda: "after it" in got)
    finally:
        stop()
        bench.close()
