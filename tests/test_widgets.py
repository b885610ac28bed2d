"""Widgets without a browser: what a moved control does, what an error shows, the static picture."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ipywidgets as ipw
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from labkit.rig.cachesim import STRATEGIES
from labkit.rig.race import crash, expire, explore
from labkit.rig.server import Server
from labkit.session import SessionStore
from labkit.show import consumers, live, plot, widgets
from labkit.show import panel as panel_parts
from labkit.show.bars import Bar, MovingBars
from labkit.show.sessions import MOST, Devices, table
from labkit.show.ticker import Ticker
from labkit.show.widgets import (
    ChannelPanel,
    ConsumersPanel,
    LiveBoard,
    Playground,
    RedlockPanel,
    Scheduler,
    SessionPanel,
)

PNG = b"\x89PNG"


def bars(count: int, kind: str) -> Figure:
    if count > 5:
        raise ValueError(f"count is {count}; at most 5")
    figure, ax = plot.figure()
    plot.bars({f"{kind} {i}": i for i in range(count)}, ax, title=kind, unit="commands")
    return figure


@pytest.fixture
def playground() -> Playground:
    controls = {
        "count": ipw.IntSlider(2, 1, 10, description="count", continuous_update=True),
        "kind": ipw.Dropdown(options=["a", "b"], description="kind"),
    }
    return Playground(controls, bars, name="bars", title="Bars to play with")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(panel_parts, "publish_display_data", lambda data, metadata: shown.append(data))
    return shown


def test_a_moved_control_changes_the_picture(playground: Playground) -> None:
    pyplot.close("all")
    playground.refresh()
    before = bytes(playground.picture.value)
    assert before.startswith(PNG)
    playground.controls["count"].value = 3
    assert bytes(playground.picture.value).startswith(PNG)
    assert bytes(playground.picture.value) != before
    assert playground.status.value == "drawn: count 3, kind a"
    assert pyplot.get_fignums() == []


def test_an_error_is_shown_and_the_last_picture_stays(playground: Playground) -> None:
    playground.refresh()
    before = bytes(playground.picture.value)
    playground.controls["count"].value = 9
    assert playground.status.value == "ValueError: count is 9; at most 5"
    assert isinstance(playground.error, ValueError)
    assert bytes(playground.picture.value) == before
    playground.controls["count"].value = 4
    assert playground.error is None


def test_an_interrupt_is_shown() -> None:
    def interrupted() -> Figure:
        raise KeyboardInterrupt

    playground = Playground({}, interrupted, name="x", title="x")
    playground.refresh()
    assert playground.status.value.startswith("Interrupted")


def test_controls_act_when_they_rest_and_parts_can_be_found(playground: Playground) -> None:
    assert playground.controls["count"].continuous_update is False
    assert playground.settings == {"count": 2, "kind": "a"}
    assert "labkit-bars" in playground.box._dom_classes
    assert "labkit-picture" in playground.picture._dom_classes
    assert "labkit-status" in playground.status._dom_classes


def test_without_a_browser_it_is_a_static_picture(
    playground: Playground, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    playground._ipython_display_()
    assert set(published[0]) == {"image/png", "text/plain"}
    assert published[0]["image/png"].startswith(PNG)
    assert published[0]["text/plain"] == "<Playground: Bars to play with>"


def test_without_a_browser_an_error_fails_the_cell(
    published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    playground = Playground({"count": ipw.IntSlider(9), "kind": ipw.Text("a")}, bars, name="x", title="x")
    with pytest.raises(ValueError, match="at most 5"):
        playground._ipython_display_()
    assert published == []


def test_in_a_browser_it_is_live(
    playground: Playground, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: True)
    playground._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in published[0]
    assert published[0]["text/plain"] == "<Playground: Bars to play with>"
    assert bytes(playground.picture.value).startswith(PNG)


def naive(r: Any) -> bool:
    """A lock without a token: whoever is late removes another's."""
    if not r.set("lock", "taken", nx=True, px=9000):
        return False
    r.incr("inside")
    r.delete("lock")
    return True


def alone(r: Any) -> None:
    if int(r.get("inside") or 0) > 1:
        raise AssertionError("two were inside")


def press(scheduler: Scheduler, moves: str) -> None:
    for move in moves.split():
        scheduler.moves[move].click()


def test_a_scheduler_has_a_button_for_each_client_and_fault() -> None:
    scheduler = Scheduler([naive, naive], always=alone, faults=[crash, expire])
    assert list(scheduler.moves) == ["A", "B", "!A", "!B"]
    assert scheduler.moves["A"].description == "A · naive ▸ SET lock taken NX PX 9000"
    assert scheduler.moves["!A"].disabled
    press(scheduler, "A")
    assert list(scheduler.moves) == ["A", "B", "!A", "!B", "*lock"]
    assert scheduler.moves["*lock"].description == "lock expires"
    assert "labkit-expire-lock" in scheduler.moves["*lock"]._dom_classes
    assert "labkit-move-A" in scheduler.moves["A"]._dom_classes
    buttons = list(scheduler.moves.values())
    press(scheduler, "A *lock B")
    assert list(scheduler.moves.values()) == buttons


def test_a_scheduler_is_driven_to_a_violation_and_back() -> None:
    scheduler = Scheduler([naive, naive], always=alone, faults=[expire])
    before = scheduler.picture.value
    press(scheduler, "A A *lock B B")
    assert "✗ two were inside" in scheduler.status.value
    assert "✗ 5" in scheduler.picture.value
    undo, restart = (scheduler.box.children[2].children[i] for i in (0, 1))
    undo.click()
    assert "✗" not in scheduler.status.value
    assert scheduler.moves["B"].description == "B · naive ▸ INCRBY inside 1"
    restart.click()
    assert scheduler.picture.value == before
    press(scheduler, "A A A B B B")
    assert "✗ two were inside" in scheduler.status.value


def test_a_scheduler_goes_along_a_counterexample() -> None:
    found = explore([naive, naive], always=alone, faults=[expire])
    scheduler = Scheduler(found)
    assert "next step of the counterexample: A (1 of" in scheduler.forward.description
    scheduler.forward.click()
    press(scheduler, "B")
    while not scheduler.forward.disabled:
        scheduler.forward.click()
    assert scheduler.walk.trace == found.first
    assert "✗ two were inside" in scheduler.status.value
    assert scheduler.forward not in Scheduler([naive], always=alone).box.children[2].children


def test_a_scheduler_shows_errors_and_stays_where_it_is() -> None:
    def moody(r: Any) -> None:
        if r.incr("n") and broken:
            raise KeyboardInterrupt

    broken: list[int] = []
    scheduler = Scheduler([moody], always=lambda r: True)
    scheduler.press(lambda: scheduler.walk.take("B"))
    assert "ValueError: after &#x27;&#x27; the move &#x27;B&#x27; is not possible" in scheduler.status.value
    assert isinstance(scheduler.error, ValueError)
    assert scheduler.walk.moves == ()
    press(scheduler, "A")
    assert scheduler.error is None


def test_without_a_browser_a_scheduler_is_the_table(
    published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    Scheduler([naive, naive], always=alone)._ipython_display_()
    found = explore([naive, naive], always=alone, faults=[expire])
    Scheduler(found)._ipython_display_()
    Scheduler(found)._ipython_display_()
    assert published[0]["text/plain"] == "<Scheduler: A · naive, B · naive>"
    assert "<li><code>B · naive ▸ SET lock taken NX PX 9000</code></li>" in published[0]["text/html"]
    assert "two were inside" in published[1]["text/html"]
    assert published[1] == published[2]


def test_in_a_browser_a_scheduler_is_live(
    published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: True)
    Scheduler([naive, naive], always=alone)._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in published[0]


@pytest.fixture
def panel() -> Iterator[RedlockPanel]:
    made = RedlockPanel(ttl=20)
    yield made
    made.close()


def button(panel: RedlockPanel, css: str) -> Any:
    """The button that a reader would press."""
    rows = [made for row in panel.box.children[:3] for made in row.children]
    return next(made for made in rows if f"labkit-{css}" in made._dom_classes)


def test_a_panel_shows_a_majority_and_the_lack_of_one(panel: RedlockPanel) -> None:
    panel.refresh()
    first = bytes(panel.picture.value)
    assert first.startswith(PNG)
    assert "5 servers, of which 3 are a majority" in panel.status.value
    button(panel, "kill-1").click()
    button(panel, "freeze-2").click()
    assert [button(panel, css).description for css in ("kill-1", "freeze-1", "freeze-2")] == [
        "revive S1",
        "–",
        "thaw S2",
    ]
    assert button(panel, "freeze-1").disabled
    button(panel, "acquire-A").click()
    assert "A has the lock: 3 of 5 said yes · A: " in panel.status.value
    button(panel, "release-A").click()
    button(panel, "kill-3").click()
    button(panel, "acquire-A").click()
    assert "A does not get the lock: 2 of 5 said yes, 3 are needed" in panel.status.value
    assert bytes(panel.picture.value) != first
    assert panel.error is None


def test_a_panel_shows_errors(panel: RedlockPanel) -> None:
    panel.press(lambda: panel.quorum.kill(7))
    assert "IndexError" in panel.status.value
    assert isinstance(panel.error, IndexError)
    button(panel, "release-B").click()
    assert panel.error is None


def test_without_a_browser_a_panel_is_a_picture_and_leaves_no_server(
    panel: RedlockPanel, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    panel._ipython_display_()
    assert set(published[0]) == {"image/png", "text/plain"}
    assert published[0]["text/plain"] == "<RedlockPanel: five servers, two clients>"
    assert panel.quorum._servers == []


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cache_is_drawn_for_each_way_of_writing(server: Server, strategy: str) -> None:
    pyplot.close("all")
    cache = widgets.cache(server)
    assert list(cache.controls) == ["strategy", "skew", "ttl", "jitter", "size"]
    figure = cache.draw(**{**cache.settings, "strategy": strategy})
    said = figure.axes[0].get_title(loc="left")
    assert said.startswith(f"{strategy[0].upper()}{strategy[1:]}: ")
    assert said.endswith(" writes")
    assert widgets.png(figure).startswith(PNG)
    assert pyplot.get_fignums() == []


def test_a_cache_is_drawn_at_the_ends_of_its_sliders(server: Server) -> None:
    cache = widgets.cache(server)
    for end in ("min", "max"):
        for name in ("skew", "jitter"):
            cache.controls[name].unobserve_all()
            cache.controls[name].value = getattr(cache.controls[name], end)
        for name, which in (("ttl", 0 if end == "min" else -1), ("size", 0)):
            cache.controls[name].unobserve_all()
            cache.controls[name].value = cache.controls[name].options[which]
        cache.refresh()
        assert cache.error is None, cache.status.value
        assert bytes(cache.picture.value).startswith(PNG)


def test_a_cache_without_a_server_has_one_of_its_own() -> None:
    cache = widgets.cache()
    cache.refresh()
    assert cache.error is None
    assert cache.status.value.startswith("drawn: strategy write, then delete, Zipf skew 1.0, TTL (ms) 400")


@pytest.fixture
def store(r: Any) -> SessionStore:
    return SessionStore(r, ttl=60)


@pytest.fixture
def sessions(store: SessionStore) -> SessionPanel:
    made = SessionPanel(store)
    made.refresh()
    return made


def click(panel: Any, *names: str) -> str:
    """Press the buttons; what the status line says then."""
    rows = [made for row in panel.box.children[:-2] for made in row.children]
    for name in names:
        next(made for made in rows if f"labkit-{name}" in made._dom_classes).click()
    return str(panel.status.value)


def test_sessions_begin_are_used_and_end(sessions: SessionPanel, store: SessionStore) -> None:
    assert "ada is logged in nowhere" in sessions.picture.value
    assert "ada may log in" in sessions.status.value
    assert "phone has no token: it never logged in" in click(sessions, "use-phone")
    assert "laptop is logged in for 60 s" in click(sessions, "login-phone", "login-laptop")
    assert sessions.picture.value.count("<tr") == 3
    assert "phone is let in, and stays logged in for 60 s from now" in click(sessions, "use-phone")
    assert "phone: 1 session ended" in click(sessions, "logout-phone")
    assert "<b>phone</b>" not in sessions.picture.value
    assert "phone is not logged in" in click(sessions, "use-phone")
    assert "color:#D55E00" in sessions.status.value
    assert "1 session from before still counts" in click(sessions, "login-laptop")
    assert "ada has 2 sessions" in click(sessions, "look")
    assert "color:#D55E00" not in sessions.status.value
    assert "logged out everywhere: 2 sessions ended" in click(sessions, "everywhere")
    assert store.active("ada") == []
    assert sessions.error is None


def test_sessions_of_others_stay(sessions: SessionPanel, store: SessionStore) -> None:
    token = store.create("bob", device="phone")
    click(sessions, "login-phone", "everywhere")
    assert store.get(token) is not None


def test_sessions_show_errors_and_the_last_picture_stays(server: Server) -> None:
    with Server() as other:
        panel = SessionPanel(SessionStore(other.client(), ttl=60))
        click(panel, "login-phone")
        before = panel.picture.value
        assert "<b>phone</b>" in before
        other.kill()
        assert "ConnectionError" in click(panel, "login-laptop")
        assert panel.error is not None
        assert panel.picture.value == before
        panel.refresh()
        other.start()
        assert "laptop is logged in" in click(panel, "login-laptop")
        assert panel.error is None


def test_bars_say_how_much_is_left_of_the_whole(store: SessionStore) -> None:
    store.create("ada", device="<b>odd</b>")
    (session,) = store.active("ada")
    html = table([session._replace(expires_in=15.0)], user_id="ada", ttl=60)
    assert "labkit-shrink 60s linear -45.000s both" in html
    assert "labkit-left-60 60s linear -45.000s both" in html
    assert "labkit-fade 0.3s 15.000s forwards" in html
    assert "&lt;b&gt;odd&lt;/b&gt;" in html
    assert "<b>odd</b>" not in html
    over = table([session._replace(expires_in=61.0), session._replace(expires_in=-1)], user_id="ada", ttl=60)
    assert "linear 0.000s both" in over
    assert "linear -60.000s both" in over
    assert "… and 3 more" in table([session] * (MOST + 3), user_id="ada", ttl=60)


def test_without_a_browser_sessions_are_a_picture_and_nothing_is_left(
    store: SessionStore, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    SessionPanel(store, "bob")._ipython_display_()
    assert set(published[0]) == {"image/png", "text/plain"}
    assert published[0]["text/plain"] == "<SessionPanel: the sessions of bob>"
    assert store.active("bob") == []


def test_in_a_browser_sessions_are_live(
    sessions: SessionPanel, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: True)
    sessions._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in published[0]


def test_devices_keep_their_tokens(store: SessionStore) -> None:
    devices = Devices(store, "ada")
    devices.log_in("tablet")
    assert store.get(devices.tokens["tablet"]) is not None
    devices.log_out("tablet")
    assert store.get(devices.tokens["tablet"]) is None
    devices.use("tablet")
    assert devices.refused
    devices.log_out("phone")
    assert (devices.said, devices.refused) == ("phone: 0 sessions ended", False)


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- a ticker, and bars that move ---------------------------------------------------------------------------


class Clock:
    def __init__(self, last: int = 10**9) -> None:
        self.beats, self.last = 0, last
        self.ticker = Ticker(self.beat, 0.1)

    def beat(self) -> bool:
        self.beats += 1
        return self.beats < self.last


def test_a_ticker_calls_until_it_is_stopped_and_again() -> None:
    before, clock = set(threading.enumerate()), Clock()
    assert not clock.ticker.running
    began = time.monotonic()
    clock.ticker.start()
    eventually(lambda: clock.beats >= 3)
    assert time.monotonic() - began >= 0.2  # not faster than ten times a second
    clock.ticker.start()
    assert clock.ticker.running
    clock.ticker.stop()
    clock.ticker.stop()
    assert set(threading.enumerate()) <= before
    assert not clock.ticker.running


def test_a_ticker_ends_by_itself_and_with_its_owner() -> None:
    before, clock = set(threading.enumerate()), Clock(last=2)
    clock.ticker.start()
    eventually(lambda: set(threading.enumerate()) <= before)
    assert clock.beats == 2
    clock.last = 10**9
    clock.ticker.start()
    assert not set(threading.enumerate()) <= before
    del clock
    gc.collect()
    eventually(lambda: set(threading.enumerate()) <= before)
    with pytest.raises(ValueError, match=r"interval is 0\.01"):
        Ticker(Clock().beat, 0.01)


def test_bars_change_by_a_style_sheet_while_the_page_stays() -> None:
    bars = MovingBars(3, ranks=True)
    first, second = Bar("ada", "#000000", 10, 1.0, 0, "▲ <x>"), Bar("<b>", "#FFFFFF", 5, 0.5, 1)
    bars.show([first, second])
    page = bars._rows.value
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "--place:0;--share:1.0000;--labkit-number:10;opacity:1;z-index:1" in bars._now.value
    assert '--note:"▲ \\3c x\\3e "' in bars._now.value
    bars.show([Bar("ada", "#000000", 10, 0.5, 1), Bar("<b>", "#FFFFFF", 20, 1.0, 0, faint=True)])
    assert bars._rows.value == page
    assert "--place:0;--share:1.0000;--labkit-number:20;opacity:0.6;z-index:2" in bars._now.value
    bars.show([first])
    assert ".labkit-row-1{--place:3;opacity:0}" in bars._now.value  # out of sight, below
    bars.show([first, Bar("new", "#000000", 1, 7.0, 2)])
    assert "labkit-row-2" in bars._rows.value
    assert "--place:2;--share:1.0000" in bars._now.value


# --- a live board -------------------------------------------------------------------------------------------


class Place(NamedTuple):
    rank: int
    member: str
    points: int


class Board:
    """What a LiveBoard needs of a leaderboard."""

    def __init__(self) -> None:
        self.points: dict[str, int] = {}
        self.broken = False

    def top(self, n: int = 10) -> list[Place]:
        if self.broken:
            raise ConnectionError("gone")
        ordered = sorted(self.points.items(), key=lambda item: -item[1])
        return [Place(rank, *item) for rank, item in enumerate(ordered, 1)][:n]

    def rank(self, member: str) -> Place | None:
        return next((place for place in self.top(99) if place.member == member), None)

    def increment(self, member: str, by: int = 1) -> int:
        self.points[member] = self.points.get(member, 0) + by
        return self.points[member]

    def remove(self, *members: str) -> int:
        return sum(self.points.pop(member, None) is not None for member in members)

    def __len__(self) -> int:
        return len(self.points)


@pytest.fixture
def board() -> Iterator[LiveBoard]:
    before, made = set(threading.enumerate()), LiveBoard(Board(), 12)
    made.refresh()
    yield made
    made.close()
    assert set(threading.enumerate()) <= before


def test_a_board_is_started_boosted_and_paused(board: LiveBoard) -> None:
    assert "nobody has scored yet" in board.status.value
    click(board, "start")
    assert board.go.description == "pause"
    board.speed.value = 10
    eventually(lambda: len(board.board) >= 11)
    board.player.value = "hana"
    click(board, "boost")
    assert board.game.boosted("hana")
    board.board.increment("zoe", 9999)
    eventually(lambda: "playing · zoe leads · hana: " in board.status.value)
    assert "paused · zoe leads · hana: " in click(board, "start")
    seconds = board.game.seconds
    assert not board._ticker.running
    assert board.go.description == "start"
    assert "nobody" not in click(board, "again")
    assert list(board.board.points) == ["zoe"]
    assert board.game.seconds == 0 < seconds


def test_a_name_keeps_its_colour_and_who_climbs_is_marked(
    board: LiveBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bars() -> dict[str, Bar]:
        board.refresh()
        return {bar.name: bar for bar in shown[-1]}

    shown: list[Any] = []
    monkeypatch.setattr(board.bars, "show", shown.append)
    board.board.points = {"ada": 20, "bob": 10}
    first = bars()
    assert (first["ada"].place, first["bob"].share, first["bob"].note) == (0, 0.5, "")
    board.board.points["bob"] = 40
    board.game.boost("ada")
    second = bars()
    assert (second["bob"].place, second["bob"].note, second["ada"].note) == (0, "▲", "boost ")
    assert {name: bar.colour for name, bar in first.items()} == {
        name: bar.colour for name, bar in second.items()
    }
    assert first["ada"].colour != first["bob"].colour
    assert len(set(live.COLOURS)) == 12


def test_a_board_that_does_not_answer_halts_the_game_and_says_so(board: LiveBoard) -> None:
    click(board, "start")
    board.board.broken = True
    eventually(lambda: not board._ticker.running)
    assert "ConnectionError: gone" in board.status.value
    assert isinstance(board.error, ConnectionError)
    assert not board.playing
    board.board.broken = False
    assert "paused" in click(board, "boost")
    assert board.error is None


def test_a_game_ends_when_nobody_watches_or_touches_it(
    board: LiveBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.box._view_count = 1
    click(board, "start")
    board.box._view_count = 0
    assert not board._ticker.running
    assert board.go.description == "start"
    monkeypatch.setattr(live, "PATIENCE", 0.5)
    click(board, "start")
    eventually(lambda: not board._ticker.running)
    assert "paused" in board.status.value
    monkeypatch.undo()
    click(board, "start")
    board.box.close()
    assert not board._ticker.running
    with pytest.raises(ValueError, match="places is 0"):
        LiveBoard(Board(), places=0)


def test_a_running_game_ends_with_the_process() -> None:
    code = """
import test_widgets as t
live = t.LiveBoard(t.Board())
live.start()
print(live.playing)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="tests", timeout=60
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_without_a_browser_a_board_is_a_picture_and_its_players_leave(
    board: LiveBoard, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    board._ipython_display_()
    assert set(published[0]) == {"image/png", "text/plain"}
    assert published[0]["text/plain"] == "<LiveBoard: a game of 12 players>"
    assert board.board.points == {}
    board.board.increment("zoe", 10)
    board._ipython_display_()
    assert board.board.points == {"zoe": 10}  # somebody's board is shown as it is


# --- who hears what -----------------------------------------------------------------------------------------


@pytest.fixture
def channels(r: Any) -> Iterator[ChannelPanel]:
    before, made = set(threading.enumerate()), ChannelPanel(r)
    made.refresh()
    yield made
    made.close()
    assert set(threading.enumerate()) <= before
    assert r.keys("*") == []


def test_who_comes_late_or_leaves_misses_messages_of_a_channel_only(channels: ChannelPanel) -> None:
    assert "nobody is there yet" in channels.status.value
    assert "message 1: PUBLISH found 1 subscriber" in click(channels, "ada", "publish")
    assert "bob is there, and reads 1 message from the stream" in click(channels, "bob")
    assert "messages 2 to 6: PUBLISH found 2 subscribers" in click(channels, "publish-5")
    assert "ada has left" in click(channels, "ada")
    click(channels, "publish", "ada")
    heard = channels.audience.heard()
    here, late = "at once", "later"
    assert heard["pub/sub"]["ada"] == (*[here] * 6, "never")
    assert heard["pub/sub"]["bob"] == ("never", *[here] * 6)
    assert heard["pub/sub"]["carol"] == ("never",) * 7
    assert heard["stream"]["ada"] == (*[here] * 6, late)
    assert heard["stream"]["bob"] == (late, *[here] * 6)
    assert heard["stream"]["carol"] == ("not yet",) * 7
    assert [made.description for made in channels.people.values()] == [
        "ada leaves",
        "bob leaves",
        "carol comes",
    ]
    assert bytes(channels.picture.value).startswith(PNG)
    channels.audience.r.publish("workbook:06:panel", "a stranger's")
    click(channels, *["publish-5"] * 3)
    assert len(channels.audience.heard()["pub/sub"]["ada"]) == 22
    assert "nobody is there yet" in click(channels, "again")
    assert channels.error is None


def test_channels_show_errors(server: Server) -> None:
    with Server() as other:
        panel = ChannelPanel(other.client())
        click(panel, "publish")
        other.kill()
        assert "ConnectionError" in click(panel, "ada")
        assert panel.error is not None
        other.start()
        assert "ada is there" in click(panel, "ada")
        panel.close()


def test_without_a_browser_channels_are_a_picture_and_nothing_is_left(
    channels: ChannelPanel, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    channels._ipython_display_()
    assert set(published[0]) == {"image/png", "text/plain"}
    assert published[0]["text/plain"] == "<ChannelPanel: pub/sub beside a stream>"


# --- workers to kill ----------------------------------------------------------------------------------------


def test_a_worker_is_killed_and_each_message_has_its_effect_once(r: Any) -> None:
    before, panel = set(threading.enumerate()), ConsumersPanel(r, workers=2)
    panel.crew.idle, panel.crew.pause = 0.3, 0.02
    panel.refresh()
    assert "2 workers wait for messages" in panel.status.value
    click(panel, "publish")
    eventually(lambda: panel.crew.view.pending[0])
    click(panel, "kill-1")
    assert panel.switches[0].description == "revive worker 1"
    assert panel.crew.view.alive == (False, True)
    eventually(lambda: "dead worker" in panel.status.value or panel.crew.view.applied == 100)
    click(panel, "kill-1")
    assert panel.switches[0].description == "kill worker 1"
    eventually(lambda: "all 100 of 100 applied, 0 of them twice" in panel.status.value)
    assert r.hvals("workbook:07:panel:applied") == ["1"] * 100
    assert all(r.ttl(key) > 0 for key in r.keys("*"))
    assert panel.error is None
    eventually(lambda: not panel._ticker.running)  # nothing changes any more
    panel.close()
    assert r.keys("*") == []
    assert set(threading.enumerate()) <= before


def test_a_crew_says_what_is_left() -> None:
    view = consumers.CrewView((True, False), (3, 4), 2, 100, 90, 0, 95)
    assert view.sentence == "90 of 100 applied, 0 of them twice; 4 are in a dead worker's hands"
    view = consumers.CrewView((True, False), (3, 1), 2, 100, 93, 0, 95)
    assert view.sentence == "93 of 100 applied, 0 of them twice; 1 is in a dead worker's hands"
    view = consumers.CrewView((True, True), (3, 0), 2, 100, 95, 1, 95)
    assert view.sentence == "95 of 100 applied, 1 of them twice; 5 to go"


def test_a_crew_takes_a_client_of_one_server(server: Server) -> None:
    with pytest.raises(ValueError, match="workers is 9"):
        ConsumersPanel(server.client(), workers=9)
    with pytest.raises(TypeError, match="int is no client of a single server"):
        ConsumersPanel(3)


def test_consumers_show_errors() -> None:
    with Server() as other:
        panel = ConsumersPanel(other.client(), workers=1)
        other.kill()
        panel.refresh()
        assert "ConnectionError" in panel.status.value
        assert panel.error is not None


def test_without_a_browser_consumers_are_a_picture_and_nothing_is_left(
    r: Any, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    ConsumersPanel(r)._ipython_display_()
    assert set(published[0]) == {"image/png", "text/plain"}
    assert published[0]["text/plain"] == "<ConsumersPanel: 4 worker processes of one group>"
    assert r.keys("*") == []
