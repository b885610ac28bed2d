"""How the workbook starts: what an import loads, where JupyterLab opens, and many users on one machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labkit.rig.server import find_binary
from labkit.teach import progress

ROOT = Path(__file__).parents[1]
HEAVY = ("pandas", "numpy", "matplotlib", "ipywidgets", "IPython", "sqlalchemy", "tqdm")


def modules_after(code: str) -> set[str]:
    """What is loaded in a fresh process, beside what Python itself loads."""
    code = f"import sys; at_first = set(sys.modules)\n{code}\nprint(*set(sys.modules) - at_first)"
    environment = {**os.environ, "REDIS_URL": "embedded"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_labkit_loads_the_standard_library_at_most() -> None:
    assert modules_after("import labkit") - sys.stdlib_module_names == {"labkit"}


def test_what_is_heavy_is_loaded_when_it_is_used() -> None:
    """Not by connect() and commands, nor by graders; pandas comes with a table, matplotlib with a plot."""
    used = (
        "import labkit; r = labkit.connect(quiet=True); r.set('workbook:00:start', 1, ex=9); labkit.reset(r)"
    )
    loaded = modules_after(f"{used}\nfrom labkit.teach import check, source\nlabkit.progress()")
    assert "redis" in loaded and loaded & {*HEAVY} == set()
    assert "matplotlib" in modules_after("from labkit.show import plot")


# Where JupyterLab opens


def configured(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    c = SimpleNamespace(LabApp=SimpleNamespace(), JupyterNotebookApp=SimpleNamespace())
    exec(config.read_text(), {"c": c})
    return {**vars(c.LabApp), **vars(c.JupyterNotebookApp)}


@pytest.mark.parametrize("name", ["jupyter_lab_config.py", "jupyter_notebook_config.py"])
def test_in_the_workbooks_folder_it_opens_on_chapter_00(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What test_browser.py sees of a real JupyterLab; here, that it is so nowhere else."""
    installed, ours = Path(sys.prefix) / "etc" / "jupyter" / name, ROOT / "labkit" / "teach" / name
    assert installed.read_text() == ours.read_text(), "uv sync"
    chapter = "/lab/tree/notebooks/00_start_here.ipynb"
    assert configured(installed, ROOT, monkeypatch) == {"default_url": chapter}
    assert configured(installed, ROOT / "labkit", monkeypatch) == {}


# Many users


USERS = """
import json, multiprocessing, os, sys
from pathlib import Path
import redis
import labkit
from labkit.rig import connection, watchdog
from labkit.teach import progress

fork, (checkout, *homes) = multiprocessing.get_context("fork"), sys.argv[1:]
both, told = fork.Barrier(2, timeout=60), [fork.SimpleQueue(), fork.SimpleQueue()]
out = fork.SimpleQueue()

def tried(act):
    try:
        act()
        return "done"
    except (OSError, redis.RedisError) as error:
        return type(error).__name__

def user(number, home):
    uid = os.stat(home).st_uid
    os.setgroups([]), os.setgid(uid), os.setuid(uid)
    os.environ["HOME"] = home
    os.chdir(checkout + "/notebooks")
    r = labkit.connect(quiet=True)
    server = connection._embedded
    r.set("workbook:00:whose", number, ex=60)
    progress.record("start_here", "encode", "correct")
    told[1 - number].put((server.port, server.password, str(server._folder), watchdog.get().folder))
    port, password, folder, place = told[number].get()
    both.wait()
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    own = [watchdog.get().folder, server._folder, server._folder / "redis.conf"]
    mine = {
        "whose": r.get("workbook:00:whose"),
        "ports": server.port != port,
        "passwords": server.password != password,
        "folders": server._folder != folder,
        "list the other's folder": tried(lambda: os.listdir(place)),
        "read the other's redis.conf": tried(lambda: Path(folder, "redis.conf").read_text()),
        "without a password": tried(redis.Redis(port=port, retry=once).ping),
        "with my password": tried(redis.Redis(port=port, retry=once, password=server.password).ping),
        "modes": [oct(Path(path).stat().st_mode & 0o777) for path in own],
        "progress": str(progress.path()), "solved": labkit.progress("start_here").solved,
    }
    both.wait()
    out.put((number, mine))

labkit.connect(quiet=True).ping()  # loads here whatever is loaded late: a user may not read this Python
connection._embedded.stop()
connection._embedded = connection.last = None
labkit.progress()
each = [fork.Process(target=user, args=(n, home)) for n, home in enumerate(homes)]
for one in each: one.start()
found = dict(out.get() for _ in each)
for one in each: one.join()
print(json.dumps(found))
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can look into: a checkout that is root's, and two homes."""
    folder = Path(tempfile.mkdtemp(prefix="labkit-users-"))
    try:
        folder.chmod(0o755)
        (folder / "checkout" / "notebooks").mkdir(parents=True)
        (folder / "checkout" / "pyproject.toml").write_text('packages = ["labkit"]')
        shutil.copy(find_binary().path, folder / "redis-server")
        for uid in (20_001, 20_002):
            home = folder / str(uid)
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be two users")
def test_two_users_of_one_machine_never_meet(shared: Path) -> None:
    """At once, from one read-only checkout: a server each, closed to the other, and progress at home."""
    homes = [str(shared / "20001"), str(shared / "20002")]
    command = [sys.executable, "-W", "ignore", "-c", USERS, str(shared / "checkout"), *homes]
    environment = {**os.environ, "REDIS_URL": "embedded", "LABKIT_REDIS_SERVER": str(shared / "redis-server")}
    del environment["LABKIT_HOME"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT)
    assert done.returncode == 0 and done.stdout, done.stderr
    for number, found in json.loads(done.stdout).items():
        assert found.pop("progress") == f"{homes[int(number)]}/.labkit/progress.json"
        assert found == {
            "whose": number,
            **dict.fromkeys(("ports", "passwords", "folders"), True),
            **dict.fromkeys(("list the other's folder", "read the other's redis.conf"), "PermissionError"),
            **dict.fromkeys(("without a password", "with my password"), "AuthenticationError"),
            "modes": ["0o700", "0o700", "0o600"],
            "solved": 1,
        }
    assert not (shared / "checkout" / ".labkit").exists()


def test_progress_goes_home_from_a_checkout_that_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABKIT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "pyproject.toml").write_text('packages = ["labkit"]')
    monkeypatch.chdir(tmp_path)
    assert progress.path() == tmp_path / ".labkit" / "progress.json"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert progress.path() == tmp_path / "home" / ".labkit" / "progress.json"
