"""labkit.reset(): the chapter is at its start, in this process alone, and nothing else has been touched."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

from labkit.rig.ending import KINDS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("module", "name", "method"), KINDS)
def test_what_is_ended_is_there_by_that_name(module: str, name: str, method: str) -> None:
    assert callable(getattr(getattr(import_module(module), name), method))


def run(folder: Path, code: str) -> list[str]:
    """The lines that a process of its own prints: reset() ends whatever its process has, a test's too."""
    begin = """
        import os, threading, labkit
        from labkit.rig.ending import end_all
        from labkit.rig.server import Cluster, Server, ServerFailed
        def gone(pid):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            return False
        def threads():
            return sorted({t.name.split()[0] for t in threading.enumerate()} - {"MainThread"})
    """
    (folder / "code.py").write_text(textwrap.dedent(begin) + textwrap.dedent(code))
    command, env = [sys.executable, str(folder / "code.py")], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_servers_links_workers_and_subscriptions_end_and_the_client_stays(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        from labkit.pubsub import subscribe
        from labkit.rig.processes import spawn
        from labkit.rig.proxy import Proxy

        def work():
            import time
            time.sleep(600)

        r = labkit.connect(quiet=True)
        r.mset({"workbook:05:a": 1, "workbook:07:b": 2, "stranger": 3})
        alone, twin = Server().start(), Server().start()
        twin.freeze()
        link = Proxy(alone)
        link.client().ping()
        worker = spawn(work)
        sub = subscribe(r, "workbook:06:news", print)
        pids = [alone.pid, twin.pid, worker.pid]
        print(labkit.reset(prefix="workbook:05:"), alone.running, worker.alive, sub.alive)
        print(labkit.reset(r), alone.running, worker.alive, sub.alive)
        r.set("workbook:07:b", 2)
        print(labkit.reset(), alone.running, twin.running, worker.alive, sub.alive, link)
        print([gone(pid) for pid in pids], threads(), r.keys("*"))
        print(labkit.reset(), r.ping(), alone.start().client().ping(), spawn(work).alive)
    """,
    ) == [
        "1 True True True",
        "1 True True True",
        "1 False False False False Proxy(closed)",
        "[True, True, True] [] ['stranger']",
        "0 True True True",
    ]


def test_the_server_or_cluster_in_use_stays_whatever_way_leads_to_it(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        from labkit.rig.proxy import Proxy

        a, b, other = Server().start(), Server().start(), Server().start()
        link = Proxy(b)
        labkit.connect(a.url, quiet=True)
        labkit.reset()
        print(a.running, b.running, other.running)
        b.start(), other.start()
        link = Proxy(b)
        labkit.connect(link.url, quiet=True).set("workbook:05:x", 1)
        print(labkit.reset(), a.running, b.running, other.running, "open" in repr(link))

        used, other = (Cluster(primaries=1, replicas=0).start() for _ in range(2))
        rc = labkit.connect(used.url, quiet=True)
        rc.set("workbook:11:x", 1)
        print(labkit.reset(), used, other, rc.dbsize())
    """,
    ) == [
        "True False False",
        "1 False True False True",
        "1 Cluster(1 of 1 nodes running) Cluster(0 of 1 nodes running) 0",
    ]


def test_a_socket_leads_to_the_server_in_use_and_so_does_tls(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        import tempfile
        from pathlib import Path
        from labkit.rig import tls

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "s")
            a, b, other = Server(unixsocket=path).start(), Server(unixsocket="s").start(), Server().start()
            for server in a, b:
                place = Path(server._folder, server._settings["unixsocket"])
                labkit.connect(f"unix://:{server.password}@{place}", quiet=True).set("workbook:05:x", 1)
                print(labkit.reset(), a.running, b.running, other.running)
                b.start(), other.start()
        for own in (True, False) if tls.has_tls() else (False,):
            with tls.secured(own=own) as endpoint:
                url = f"{endpoint.url}?ssl_ca_certs={endpoint.certificates.ca}"
                labkit.connect(url, quiet=True).set("workbook:05:x", 1)
                print(labkit.reset(), endpoint.server.running, other.running)
                other.start()
    """,
    )
    assert said[:2] == ["1 True False False", "1 False True False"]
    assert said[2:] and set(said[2:]) == {"1 True False"}


def test_a_server_that_nobody_refers_to_any_more_ends(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        import gc
        from labkit.rig.proxy import Proxy
        labkit.connect(quiet=True)
        pids = [Server().start().pid, Cluster(1, 0).start()["A"].pid]
        link = Proxy(lost := Server().start())
        pids.append(lost.pid)
        ended = Server().start()
        ended.kill()
        del lost, ended
        gc.collect()
        print(sum(type(one) is Server for one in gc.get_objects()), [gone(pid) for pid in pids])
        labkit.reset()
        gc.collect()
        print(sum(type(one) is Server for one in gc.get_objects()), [gone(pid) for pid in pids])
    """,
    ) == ["3 [False, False, False]", "1 [True, True, True]"]


def test_a_forked_child_ends_nothing_of_its_parents(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        from labkit.pubsub import subscribe
        from labkit.rig import watchdog
        from labkit.rig.database import Database
        from labkit.rig.processes import spawn
        from labkit.rig.proxy import Proxy

        def work():
            import time
            time.sleep(600)

        r = labkit.connect(quiet=True)
        server, cluster, frozen = Server().start(), Cluster(1, 0).start(), Server().start()
        link, sub = Proxy(server), subscribe(r, "workbook:06:news", print)
        workers = spawn(work), spawn(work)
        workers[0].freeze()
        frozen.freeze()
        pipe = watchdog.get().pipe
        if not (child := os.fork()):
            ours, theirs = os.pipe()
            os.dup2(theirs, pipe)  # another file has the number that the watchdog's had
            os.set_blocking(ours, False)
            try:
                labkit.reset()
                os.read(ours, 100)
            except BlockingIOError:
                os._exit(0)
            finally:
                os._exit(1)
        print(os.waitpid(child, 0)[1], r.ping(), link.client().ping(), cluster.client().ping())
        print(server.running, frozen.running, [one.alive for one in workers], sub.alive)
        print([gone(one.pid) for one in (server, frozen, cluster["A"], *workers)])
        r.publish("workbook:06:news", '"still heard"')
        import time
        while not sub.received:
            time.sleep(0.01)
        print(labkit.reset(), [one.alive for one in workers], server.running, frozen.running)
    """,
    )[-5:] == [
        "0 True True True",
        "True True [True, True] True",
        "[False, False, False, False, False]",
        "workbook:06:news still heard",
        "0 [False, False] False False",
    ]


def test_a_subscription_whose_callback_does_not_return_is_told(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        from labkit.pubsub import subscribe
        r, free, at = labkit.connect(quiet=True), threading.Event(), threading.Event()
        sub = subscribe(r, "workbook:06:news", lambda *_: at.set() or free.wait())
        server = Server().start()
        r.publish("workbook:06:news", "1")
        at.wait(5)
        try:
            labkit.reset()
        except labkit.LabkitError as error:
            print(error, server.running)
        free.set()
        print(labkit.reset())
    """,
    ) == [
        "Subscription('workbook:06:news', closed: 0 received, 0 failed, 0 gaps) has not ended. "
        "Remedy: let its callback return. False",
        "0",
    ]


def test_another_process_of_the_same_user_keeps_its_own(tmp_path: Path) -> None:
    theirs = "from labkit.rig.server import Server; s = Server().start(); print(s.url, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", theirs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout is not None
        url = other.stdout.readline().strip()
        assert run(
            tmp_path,
            f"""
            from labkit.rig.client import client
            r = labkit.connect(quiet=True)
            labkit.reset()
            print(client({url!r}).ping())
        """,
        ) == ["True"]
        other.communicate("\n", timeout=30)


def test_live_widgets_halt_say_so_and_begin_anew(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        from labkit.leaderboard import Leaderboard
        from labkit.show import widgets

        r = labkit.connect(quiet=True)
        live = widgets.LiveBoard(Leaderboard(r, "workbook:09:live"))
        lab, people = widgets.EvictionLab(), widgets.ChannelPanel(r)
        crew = widgets.ConsumersPanel(r, workers=1)
        lab.refresh(), crew.press(crew.crew.publish), live.press(live.start)
        people.press(lambda: people.audience.come("ada"))
        people.press(people.audience.publish)
        lab.press(lab._pause_or_go_on)
        panels = [live, lab, people, crew]
        print("labkit-ticker" in threads(), crew.crew.is_alive(0), lab.trial._server.running)
        print(labkit.reset() > 0, threads(), crew.crew.is_alive(0), lab.trial._server.running)
        print(all("ended by labkit.reset()" in one.status.value for one in panels), [p.error for p in panels])
        print(live.go.description, live.playing, list(r.scan_iter("workbook:*")))
        lab.press(lab._pause_or_go_on), people.press(people.audience.publish), live.press(lambda: None)
        print([one.error for one in (live, lab, people)], lab.trial.now.policy, people.audience.count)
    """,
    ) == [
        "True True True",
        "True [] False False",
        "True [None, None, None, None]",
        "start False []",
        "[None, None, None] allkeys-lru 1",
    ]


def test_nothing_is_imported_for_it_and_what_cannot_be_ended_saves_no_other(tmp_path: Path) -> None:
    assert run(
        tmp_path,
        """
        import sys
        labkit.connect(quiet=True)
        labkit.reset()
        print({"labkit.show.panel", "labkit.pubsub", "labkit.rig.web", "matplotlib"} & set(sys.modules))

        class Stubborn(Server):
            def stop(self):
                raise ServerFailed("not this one.")

        kept = []
        try:
            Server(port=1)
        except ValueError as error:
            kept.append(error)  # with its traceback, in which the half-made server is
        labkit.reset()
        bad, good = Stubborn().start(), Server().start()
        try:
            labkit.reset()
        except ServerFailed as error:
            print(error, bad.running, good.running)
        bad.kill()
    """,
    ) == ["set()", "not this one. True False"]
