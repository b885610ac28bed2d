"""Chapter 06, exercise listener: ready when it says so, alive whatever happens, gone when it is told to."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.lock.grading import Story, spoilt
from labkit.teach.exercises.pubsub.grading import (
    ON_PURPOSE,
    SOON,
    Link,
    Task,
    Watched,
    connections,
    strangers,
    watched,
    within,
)
from labkit.teach.lab import Lab

STUB = '''
def listen(r, channel, handle):
    """Call handle(text) for each message on `channel`, in a thread of its own. Gives stop(): it ends that."""
    raise NotImplementedError
'''

REFERENCE = '''
import logging
import threading

import redis

log = logging.getLogger(__name__)


def listen(r, channel, handle):
    """Call handle(text) for each message on `channel`, in a thread of its own. Gives stop(): it ends that.

    What is published after the return is handled, in order. While the connection is lost, messages are, too.
    """
    pubsub, stopped = r.pubsub(), threading.Event()
    pubsub.subscribe(channel)
    if pubsub.get_message(timeout=5) is None:  # the first thing to arrive is the server's confirmation
        pubsub.close()
        raise redis.TimeoutError(f"no confirmation for {channel} within 5 s")

    def run():
        while not stopped.is_set():
            try:
                message = pubsub.get_message(ignore_subscribe_messages=True, timeout=0.5)
            except redis.RedisError:
                log.exception("the connection for %s is lost, and what is published meanwhile", channel)
                pubsub.connection.disconnect()  # the next get_message() connects, and subscribes again
                stopped.wait(0.5)
                continue
            if message is not None:
                try:
                    handle(message["data"])
                except Exception:
                    log.exception("a message on %s could not be handled", channel)

    def stop():
        stopped.set()
        thread.join()
        pubsub.close()

    thread = threading.Thread(target=run, name=f"listener of {channel}")
    thread.start()
    return stop
'''

_WAIT = "if pubsub.get_message(timeout=5) is None:"
_TAKE = "pubsub.get_message(ignore_subscribe_messages=True, timeout=0.5)"
_GUARDED = """try:
                    handle(message["data"])
                except Exception:
                    log.exception("a message on %s could not be handled", channel)"""
_STOP = """stopped.set()
        thread.join()
        pubsub.close()"""

_IN_THREAD = """
def listen(r, channel, handle):
    pubsub = r.pubsub()
    pubsub.subscribe(**{channel: lambda message: handle(message["data"])})
    pubsub.get_message(timeout=5)
    thread = pubsub.run_in_thread(sleep_time=SLEEP, HANDLER)

    def stop():
        thread.stop()
        thread.join()

    return stop
"""
_CARRY_ON = "exception_handler=lambda error, pubsub, thread: None"


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return Wrong(spoilt(REFERENCE, *changes), violates, why)


def _in_thread(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return Wrong(spoilt(_IN_THREAD, *changes), violates, why)


WRONG = (
    _wrong(
        "polls",
        "asks, sleeps 10 ms, and asks: one message for each nap, a hundred wakings for nothing",
        (_TAKE, _TAKE.replace(", timeout=0.5", "")),
        (
            "            if message is not None:",
            "            stopped.wait(0.01)\n            if message is not None:",
        ),
    ),
    _wrong(
        "polls",
        "a timeout of 20 ms: fifty wakings a second while nothing arrives",
        (_TAKE, _TAKE.replace("0.5", "0.02")),
    ),
    _wrong(
        "polls",
        "asks four times a second, and sleeps in between: a message waits up to a quarter of a second",
        (_TAKE, _TAKE.replace("0.5", "0")),
        (
            "            if message is not None:",
            "            stopped.wait(0.25)\n            if message is not None:",
        ),
    ),
    _in_thread(
        "polls",
        "run_in_thread() as it is: its sleep_time is 0, and one core is busy",
        ("sleep_time=SLEEP, HANDLER", _CARRY_ON),
    ),
    _wrong("dies", "an exception of handle() ends the thread", (_GUARDED, 'handle(message["data"])')),
    _in_thread(
        "dies",
        "run_in_thread() without exception_handler: the first exception of handle() ends the thread",
        ("SLEEP, HANDLER", "0.5"),
    ),
    _wrong(
        "dies",
        "the loop is inside the try: it ends, and the thread with it",
        (
            "        while not stopped.is_set():\n            try:",
            "        try:\n            while not stopped.is_set():",
        ),
        ("                message = pubsub.get", "                message = pubsub.get"),
        (
            """            except redis.RedisError:
                log.exception("the connection for %s is lost, and what is published meanwhile", channel)
                pubsub.connection.disconnect()  # the next get_message() connects, and subscribes again
                stopped.wait(0.5)
                continue
            if message is not None:
                try:
                    handle(message["data"])
                except Exception:
                    log.exception("a message on %s could not be handled", channel)""",
            """                if message is not None:
                    handle(message["data"])
        except Exception:
            log.exception("the listener of %s ends", channel)""",
        ),
    ),
    _wrong(
        "ready",
        "SUBSCRIBE is sent, and nobody waits for the confirmation",
        (_WAIT, "if False:"),
    ),
    _wrong(
        "ready",
        "subscribes in the thread: listen() returns before that, and what is published then is lost",
        ("    pubsub.subscribe(channel)\n", ""),
        (_WAIT, "if False:"),
        ("    def run():\n", "    def run():\n        pubsub.subscribe(channel)\n"),
    ),
    _wrong(
        "thread",
        "stop() sets a flag and returns: the thread is still at work",
        ("        thread.join()\n", ""),
    ),
    _wrong(
        "thread",
        "a daemon thread that waits in listen(): it ends with the process only",
        ("while not stopped.is_set():\n", "for message in pubsub.listen():\n"),
        (
            f"message = {_TAKE}",
            'if stopped.is_set() or message["type"] != "message":\n                    continue',
        ),
        (_STOP, "stopped.set()"),
        ('channel}")', 'channel}", daemon=True)'),
    ),
    _wrong(
        "stop",
        "waits for a message that does not come: while nothing is published, stop() hangs",
        (_TAKE, _TAKE.replace("0.5", "None")),
    ),
    _wrong(
        "connection",
        "the thread ends, and its connection stays open: one more with each start",
        ("        pubsub.close()\n\n    thread", "        pubsub.unsubscribe()\n\n    thread"),
    ),
    _wrong(
        "messages",
        "`if text`: an empty message is a message, too",
        ("            if message is not None:", '            if message is not None and message["data"]:'),
    ),
    _wrong(
        "messages",
        "hands on whatever arrives: the confirmation's 1 is taken for a text",
        (_WAIT, "if not r.ping():"),
        ("ignore_subscribe_messages=True, ", ""),
        (
            "    pubsub.subscribe(channel)\n",
            "    pubsub.subscribe(channel)\n    while not r.pubsub_numsub(channel)[0][1]:\n        pass\n",
        ),
    ),
    _wrong("messages", "hands on redis-py's dict, not the text in it", ('message["data"]', "message")),
    _wrong(
        "channel",
        "PSUBSCRIBE takes the name for a pattern: news* hears news:uk as well",
        ("pubsub.subscribe", "pubsub.psubscribe"),
    ),
    _wrong(
        "order",
        "a thread for each message: what comes later may be handled first",
        ('handle(message["data"])', 'threading.Thread(target=handle, args=(message["data"],)).start()'),
    ),
)


STRANGE = "a stranger's"
"""A message of another channel."""


class _Desk:
    """What an answer's handle() has been given; it can be made to wait, and to raise."""

    def __init__(self) -> None:
        self.got = list[Any]()
        self.at_work = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def handle(self, *words: Any) -> None:
        self.at_work += 1
        try:
            self.got.append(words[0] if len(words) == 1 else words)
            self.go_on.wait(20)
            if isinstance(self.got[-1], str) and self.got[-1].startswith("bad"):
                raise ValueError(ON_PURPOSE)
        finally:
            self.at_work -= 1


class _Grader:
    """One listener after the other, on a client and a channel of their own."""

    def __init__(self, listen: Any, lab: Lab, link: Link, threads: Watched) -> None:
        self.listen, self.lab, self.link, self.threads = listen, lab, link, threads
        self.publisher = lab.r
        self.begin()

    def begin(self) -> None:
        self.channel = f"{self.lab.key('news')}[1]*"
        self.known = connections(self.lab)
        self.r = self.link.client(self.lab)
        self.desk = _Desk()
        self.story = Story("stop = listen(r, channel, handle)")

    def start(self) -> Any:
        """The answer's stop(), once somebody listens."""
        stop = self.listen(self.r, self.channel, self.desk.handle)
        what = f"listen() is to give a function, stop(), and gives {stop!r}"
        self.story.hold(callable(stop), "stop", what, "what listen() returns")
        return stop

    def heard(self) -> int:
        return int(self.publisher.pubsub_numsub(self.channel)[0][1] + self.publisher.pubsub_numpat())

    def publish(self, *texts: str, channel: str = "") -> None:
        for text in texts:
            self.publisher.publish(channel or self.channel, text)
            self.story.tell(f"PUBLISH {'another channel' if channel else 'channel'} {text!r}")

    def tell(self, *lines: str) -> None:
        """Begin the story anew: what was checked before is of no interest."""
        self.story.lines = ["stop = listen(r, channel, handle)", *lines]

    def wait(self, *texts: str) -> list[Any]:
        """What has been handled, when these have been, or cannot be any more."""
        got = self.desk.got
        ends = {texts[-1], STRANGE}
        within(
            SOON, lambda: len(got) >= len(texts) or any(one in ends for one in map(str, got)) or self.deaf()
        )
        within(20, lambda: len(got) >= len(texts))
        return list(got)

    def deaf(self) -> bool:
        """Can nothing arrive any more?"""
        return not (self.heard() and self.threads.alive) or bool(self.threads.complaints)

    def told(self) -> None:
        self.story.tell(f"handled: {', '.join(map(repr, self.desk.got)) or 'nothing'}")

    def check_listens(self) -> Any:
        """Each message of this channel, as it is, in order; and nothing else."""
        stop = self.start()
        what = "nobody is subscribed to the channel"
        within(SOON, lambda: self.heard() or not self.threads.alive)
        self.story.hold(self.heard(), "deaf", what, "r.pubsub(), and its subscribe()")
        self.check_idle()
        self.tell()
        texts = ("one", "", "0", "2", "zwei Wörter")
        self.publish(STRANGE, channel=self.channel.replace("[1]*", "1:other"))
        self.publish(*texts)
        got = self.wait(*texts)
        self.told()
        look = "what PSUBSCRIBE makes of [ ] * ? in a name; SUBSCRIBE takes it as it is"
        what = (
            "a message of another channel is handled: this channel's name has [1]* in it, but is no pattern"
        )
        self.story.hold(STRANGE not in got, "channel", what, look)
        what = f"{len(texts)} messages are published, and handle() is to get these texts, each once"
        look = 'what get_message() and listen() give: a dict with "type" and "data", or None'
        self.story.hold(sorted(map(repr, got)) == sorted(map(repr, texts)), "messages", what, look)
        return stop

    def check_idle(self) -> None:
        """While nothing arrives nothing is done but to wait for it."""
        how = self.threads.polls()
        what = "the thread that listens has ended before a message came"
        self.story.hold(self.threads.alive, "deaf", what, "what it does with what arrives first")
        self.tell(f"nothing is published: {how}")
        what = "it polls: while nothing arrives, it asks again and again whether something has"
        look = "get_message(timeout=…), which waits that long, and returns as soon as there is a message"
        self.story.hold(not how, "polls", what, look)

    def check_survives(self) -> None:
        """An exception of handle() concerns that message only."""
        self.desk.got.clear()
        texts = ("bad", "good", "bad again", "the last one")
        self.tell("handle() raises ValueError for the first and the third message")
        self.publish(*texts)
        got = self.wait(*texts)
        self.told()
        if not self.threads.alive:
            self.story.tell("the thread has ended")
        what = "handle() raises an exception for one message, and the next ones are not handled"
        look = "where that exception goes: a `try` around handle(), inside the loop"
        self.story.hold(sorted(got) == sorted(texts), "dies", what, look)

    def check_order(self) -> None:
        """The second message waits until the first has been handled."""
        self.desk.got.clear()
        self.desk.go_on.clear()
        self.tell("handle() takes its time")
        texts = ("slow", "next", "third")
        self.publish(*texts)
        within(SOON, lambda: self.desk.at_work)
        overtaken = within(15, lambda: self.desk.at_work > 1)
        self.desk.go_on.set()
        if overtaken:
            self.story.tell("handle() is still at work on one when it is called for another")
        what = "two messages are handled at the same time: what comes later may be finished first"
        self.story.hold(not overtaken, "order", what, "how many threads call handle(): it is to be one")
        got = self.wait(*texts)
        self.told()
        what = "messages are handled in another order than they were published, or not all of them"
        self.story.hold(got == list(texts), "order", what, "what stands between the connection and handle()")

    def check_stops(self, stop: Any, idle: bool = True) -> None:
        """It ends by itself, soon; and when it has, there is no thread and no connection."""
        self.tell(f"stop() is called {'while nothing arrives' if idle else 'while handle() is at work'}")
        task = Task(stop)
        if not idle:
            task.done(15)
            self.check_gone(task)
            self.desk.go_on.set()
        look = "what the thread waits for, how long, and who could wake it"
        what = "stop() has not returned after 3 s: the thread waits for a message, and none comes"
        self.story.hold(task.done(), "stop", what, look)
        task.result()
        self.check_gone(task)
        self.check_connection()

    def check_gone(self, task: Task) -> None:
        """If stop() has returned, no thread is left."""
        if not task.returned.is_set():
            return
        task.result()
        left = [thread for thread in self.threads.alive if thread.is_alive()]
        for _ in left:
            self.story.tell("stop() has returned: a thread that listen() started is alive")
        what = "stop() has returned, and the thread goes on"
        look = "thread.join(); a daemon thread ends with the process, and not before"
        self.story.hold(not left, "thread", what, look)

    def check_connection(self) -> None:
        self.r.connection_pool.disconnect(inuse_connections=False)  # what it keeps for others is no fault
        gone = within(20, lambda: not strangers(self.lab, self.known))
        for one in [] if gone else strangers(self.lab, self.known):
            self.story.tell(one)
        look = "pubsub.close(): UNSUBSCRIBE keeps the connection, and nobody else can have it"
        self.story.hold(gone, "connection", "stop() has returned, and the connection is still open", look)

    def check_ready(self) -> Any:
        """SUBSCRIBE is stuck on its way: listen() must not have returned before it has arrived."""
        self.begin()
        self.link.hold()
        task = Task(partial(self.listen, self.r, self.channel, self.desk.handle))
        within(SOON, lambda: task.returned.is_set() or self.link.holds_something)
        task.done(25)
        if task.returned.is_set():
            task.result()
            heard = self.publisher.publish(self.channel, "at once")
            self.story.tell(f"SUBSCRIBE has not reached the server yet: PUBLISH channel 'at once' -> {heard}")
            what = "listen() has returned before the server had confirmed: the next message is lost"
            look = "the confirmation: the first thing that arrives on the connection, of type subscribe"
            self.story.hold(heard, "ready", what, look)
        self.link.release()
        what = "listen() does not return when the server has confirmed"
        self.story.hold(task.done(), "ready", what, "what listen() waits for")
        stop = task.result()
        self.story.hold(callable(stop), "stop", f"listen() gives {stop!r}", "what listen() returns")
        self.publish("at once")
        got = self.wait("at once")
        self.told()
        what = "the first message after the return of listen() is lost"
        self.story.hold(got == ["at once"], "ready", what, "what else is thrown away with the confirmation")
        return stop

    def check_stops_at_work(self, stop: Any) -> None:
        """stop() waits until handle() has done what it is at."""
        self.desk.go_on.clear()
        try:
            self.publish("slow")
            within(SOON, lambda: self.desk.at_work)
            self.check_stops(stop, idle=False)
        finally:
            self.desk.go_on.set()


def _grade(listen: Any, lab: Lab) -> None:
    link = Link()
    with watched(lab, link) as threads:
        grader = _Grader(listen, lab, link, threads)
        stop = grader.check_listens()
        grader.check_survives()
        grader.check_order()
        grader.check_stops(stop)
        stop = grader.check_ready()
        grader.check_stops_at_work(stop)


EXERCISE = Exercise(
    stem="pubsub",
    name="listener",
    title="A listener that is ready, survives, and ends",
    statement="""
Write `listen(r, channel, handle)`. It calls `handle(text)` for each message on `channel`, from a thread
of its own, and returns a function `stop()`, which takes nothing and ends it.

- When `listen` has returned, the server has confirmed the subscription: no message published after that
  is lost.
- `handle` gets the text of each message, the empty one too: in order, one at a time, each once, and
  nothing else.
- `channel` is a name, not a pattern, whatever characters are in it.
- When `handle` raises an exception, that message is done with; the next ones are handled all the same.
- While nothing arrives, the thread waits for its connection, and does nothing else: it looks at it twice
  a second at most, and does not sleep, so that a message is handled as soon as it is there.
- `stop()` returns within two seconds, also while nothing arrives. (If `handle` is at work, it waits for
  it.) Then the thread has ended, and the connection is closed.
""".strip(),
    answer="listen",
    stub=STUB.strip(),
    hints=(
        "pubsub = r.pubsub(); pubsub.subscribe(channel) sends SUBSCRIBE, and does not wait. The "
        "server's confirmation is the first thing that pubsub.get_message(timeout=5) gives.",
        "get_message(timeout=0.5) waits in the socket: it returns as soon as a message is there, and "
        "with None when none has come. So a loop around it looks twice a second, and can ask in between"
        " whether it is to end.",
        "A `try` around handle(), inside the loop, decides what becomes of one message. A `try` around "
        "the loop ends the listener with the first exception.",
        "stop(): set a threading.Event that the loop asks for, join() the thread, and then "
        "pubsub.close(), since the connection is the listener's own.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
