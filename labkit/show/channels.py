"""Who hears what: the same messages by pub/sub and by a stream, to people who come and go.

audience = Audience(r, "workbook:06:panel")
audience.come("ada")
audience.publish(2)
audience.leave("ada")
audience.heard()            # {"pub/sub": {"ada": ("at once", "at once"), …}, "stream": {…}}
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ipywidgets as ipw

from labkit.pubsub import Subscription, publish, subscribe
from labkit.show import plot
from labkit.show.panel import WIDE, Pressed, button, png, row

PEOPLE = ("ada", "bob", "carol")

MOST = 16
"""So many messages are shown, the newest."""

KEEP, TTL = 1000, 3600
"""So many entries stay in the stream, and so long (s)."""


class Audience:
    """People who are there, or not, while messages are published to the channel `name` and to a stream.

    Who comes subscribes, and reads the stream on from where he left it (at first: from its beginning). Who
    leaves does neither any more. `said` is what came of the last act. `close()` ends the subscriptions, and
    removes the stream.
    """

    def __init__(self, r: Any, name: str) -> None:
        self.r, self.name, self.stream = r, name, f"{name}:stream"
        self._news = threading.Condition()
        self._there: dict[str, Subscription] = {}
        self._begin()

    def _begin(self) -> None:
        self.count = 0
        self.said = "nobody is there yet"
        self._heard: dict[str, set[int]] = {person: set() for person in PEOPLE}
        self._read: dict[str, dict[int, str]] = {person: {} for person in PEOPLE}
        self._last = dict.fromkeys(PEOPLE, "0")

    def is_there(self, person: str) -> bool:
        return person in self._there

    def come_or_go(self, person: str) -> None:
        """The one that is possible."""
        (self.leave if self.is_there(person) else self.come)(person)

    def come(self, person: str) -> None:
        """Subscribe, then read what is new in the stream: between the two nothing is lost."""
        note = _noting(self._heard[person], self._news)
        self._there[person] = subscribe(self.r, self.name, note)
        new = self._read_on(person, "later")
        self.said = (
            f"{person} is there, and reads {_messages(new)} from the stream; pub/sub brings none of them"
        )
        if not new:
            self.said = f"{person} is there"

    def leave(self, person: str) -> None:
        self._there.pop(person).close()
        self.said = f"{person} has left"

    def publish(self, count: int = 1) -> None:
        """Send messages to the channel and the stream, and wait until those who are there have them."""
        receivers = 0
        for _ in range(count):
            self.count += 1
            event = {"n": self.count}
            self.r.xadd(self.stream, event, maxlen=KEEP)
            receivers = publish(self.r, self.name, event)
        self.r.expire(self.stream, TTL)
        wanted = [self._heard[person] for person in self._there]
        with self._news:
            self._news.wait_for(lambda: all(self.count in heard for heard in wanted), timeout=2)
        for person in self._there:
            self._read_on(person, "at once")
        which = (
            f"message {self.count}" if count == 1 else f"messages {self.count - count + 1} to {self.count}"
        )
        self.said = f"{which}: PUBLISH found {receivers} subscriber{'s' * (receivers != 1)}"

    def _read_on(self, person: str, how: str) -> int:
        """What has been added to the stream since this person read it; how much that was."""
        new = self.r.xrange(self.stream, f"({self._last[person]}")
        for id, fields in new:
            self._last[person] = id
            self._read[person][int(fields["n"])] = how
        return len(new)

    def heard(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """What became of each message, for each person; as `plot.heard` takes it."""
        numbers = range(1, self.count + 1)
        by_channel = {
            person: tuple("at once" if n in heard else "never" for n in numbers)
            for person, heard in self._heard.items()
        }
        by_stream = {
            person: tuple(read.get(n, "not yet") for n in numbers) for person, read in self._read.items()
        }
        return {"pub/sub": by_channel, "stream": by_stream}

    def start_again(self) -> None:
        """Everybody leaves, nothing has been published."""
        self.close()
        self._begin()

    def close(self) -> None:
        """End the subscriptions, and remove the stream if there may be one."""
        while self._there:
            self._there.popitem()[1].close()
        if self.count:
            self.r.delete(self.stream)
            self._begin()


def _noting(heard: set[int], news: threading.Condition) -> Callable[[str, Any], None]:
    """A callback that knows no Audience: so that one that is no longer used can go."""

    def note(_: str, event: Any) -> None:
        if isinstance(event, Mapping) and isinstance(event.get("n"), int):
            with news:
                heard.add(event["n"])
                news.notify_all()

    return note


def _messages(count: int) -> str:
    return f"{count} message{'s' * (count != 1)}"


class ChannelPanel(Pressed):
    """Three people who come, leave, and come back, while you publish: what each hears, and reads.

    Each message goes both ways: to the channel `name`, and to the stream `name:stream`, which is kept for an
    hour. Who is there listens to both. The picture shows the newest 16 messages. Subscriptions end with
    `close()` or the kernel. Errors are shown in the status line, and kept in `.error`.

    In the browser the parts are found by their classes: `labkit-channels`, `-picture`, `-status`, `-ada`,
    `-bob`, `-carol` (each comes, or leaves), `-publish`, `-publish-5`, `-again`.
    """

    def __init__(self, r: Any, name: str = "workbook:06:panel") -> None:
        super().__init__()
        self.audience = audience = Audience(r, name)
        self.title = "pub/sub beside a stream"
        self.picture = ipw.Image(format="png", layout=WIDE)
        self.people = {person: self._add(person, partial(audience.come_or_go, person)) for person in PEOPLE}
        acts = (
            self._add("publish", audience.publish, "publish"),
            self._add("publish-5", partial(audience.publish, 5), "publish 5"),
            self._add("again", audience.start_again, "start again"),
        )
        self._put_together("channels", row(*self.people.values()), row(*acts))

    def _add(self, css: str, act: Callable[[], object], text: str = "") -> Any:
        made = button(text, css, lambda: self.press(act))
        made.layout.width = "10em"
        return made

    def close(self) -> None:
        """End the subscriptions, and remove the stream."""
        self.audience.close()

    def refresh(self) -> None:
        for person, made in self.people.items():
            made.description = f"{person} {'leaves' if self.audience.is_there(person) else 'comes'}"
        self.picture.value = self._drawn("Who hears what")
        self._say(self.audience.said, wrong=False)

    def _drawn(self, title: str) -> bytes:
        audience = self.audience
        first = max(1, audience.count - MOST + 1)
        groups = {
            group: {person: states[first - 1 :] for person, states in people.items()}
            for group, people in audience.heard().items()
        }
        figure, ax = plot.figure(0.5)
        plot.heard(groups, ax, title=title, first=first)
        return png(figure)

    def _static(self) -> dict[str, Any]:
        """Bob comes late, ada leaves and comes back; nothing is left behind."""
        audience = self.audience
        try:
            for person, count in (("ada", 2), ("bob", 2), ("ada", 2), ("ada", 1)):
                audience.come_or_go(person)
                audience.publish(count)
            return {"image/png": self._drawn("Who was away: pub/sub lost it, the stream kept it")}
        finally:
            audience.start_again()
