"""labkit.rig.database: the same rows on SQLite and on a real PostgreSQL; statements that count and race."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from labkit.rig.database import Database, DatabaseUnavailable
from labkit.rig.processes import processes
from labkit.rig.race import crash, explore

FIRST = {"id": 1, "name": "Brass basket 1", "category": "kitchen", "price": 11999, "stock": 41, "version": 1}
ADA = {
    "id": 100_000,
    "name": "Ada Perlman",
    "email": "ada.perlman.100000@example.org",
    "city": "Lyon",
    "version": 1,
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: Any) -> Iterator[Database]:
    """A database of this process's own: SQLite, or a real PostgreSQL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DATABASE_URL", raising=False)
        if request.param == "postgresql":
            patch.setenv("DATABASE_URL", request.getfixturevalue("postgres_url"))
        with Database() as database:
            assert database.dialect == request.param
            yield database


@pytest.fixture
def db(database: Database) -> Database:
    """As it was in the beginning, as far as tests change it."""
    database.delay = 0
    database.products.restore(*range(1, 9), 100_001)
    database.users.restore(*range(1, 9))
    for rows in (database.products, database.users):
        rows.forget_counts()
    return database


# What is in it


def test_it_says_how_much_is_in_it(db: Database) -> None:
    assert repr(db) == "Database(100,000 products, 100,000 users)"
    db.delay = 0.02
    assert repr(db) == "Database(100,000 products, 100,000 users; each read takes 20 ms more)"
    db.products.delete(3)
    assert repr(db) == "Database(99,999 products, 100,000 users; each read takes 20 ms more)"
    assert repr(db.products) == "Rows(products: 0 reads, 1 writes)"


def test_rows_are_the_same_on_every_machine(db: Database) -> None:
    assert db.products.load(1) == FIRST
    assert db.users.load(100_000) == ADA
    assert list(db.products.load(1) or {}) == list(FIRST)


def test_seeds_are_the_same_in_every_dialect(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for url in ("", postgres_url):
        monkeypatch.setenv("DATABASE_URL", url)
        with Database() as db, sa.create_engine(db.url).connect() as connection:
            some = [
                sa.select(rows.c).where(rows.c.id % 7 == 0).order_by(rows.c.id)
                for rows in (db.products, db.users)
            ]
            found.append([connection.execute(select).mappings().all() for select in some])
    assert found[0] == found[1]
    products, users = found[0]
    assert [row["id"] for row in products] == [row["id"] for row in users] == list(range(7, 100_001, 7))
    assert len({row["email"] for row in users}) == len(users)
    assert all(row["stock"] >= 10 and 99 <= row["price"] < 20_000 for row in products)


def test_many_ids_are_few_statements(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(db.users.load_many(range(1, 3001))) == 3000
    assert db.users.reads == 1
    monkeypatch.setattr("labkit.rig.database._IN_ONE", 1000)
    assert list(db.users.load_many(range(2001, 0, -1))) == list(range(2001, 0, -1))
    assert db.users.reads == 4


def test_what_is_not_there_is_none_and_absent(db: Database) -> None:
    assert db.products.load(100_001) is None
    assert db.products.load_many([100_001, 2, 1, 2]).keys() == {1, 2}
    assert db.products.load_many([]) == {}
    assert db.products.save(100_001, price=1) is None
    assert db.products.save(100_001, outbox=True, price=1) is None
    assert db.outbox == []
    assert db.products.delete(100_001) is False


# Writes


def test_save_changes_some_columns_and_raises_the_version(db: Database) -> None:
    assert db.products.save(1, price=500) == {**FIRST, "price": 500, "version": 2}
    assert db.products.save(1, price=500, stock=3) == {**FIRST, "price": 500, "stock": 3, "version": 3}
    assert db.products.load(1) == {**FIRST, "price": 500, "stock": 3, "version": 3}
    assert db.products.save(1) == {**FIRST, "price": 500, "stock": 3, "version": 4}
    assert (db.products.load(2) or {})["version"] == 1


def test_save_can_let_the_database_compute(db: Database) -> None:
    saved = db.products.save(1, stock=db.products.c.stock - 1)
    assert saved == {**FIRST, "stock": 40, "version": 2}


def test_put_inserts_or_writes_over(db: Database) -> None:
    row = {"name": "Moon", "category": "sky", "price": 1, "stock": 1}
    assert db.products.put(100_001, **row) == {"id": 100_001, **row, "version": 1}
    assert db.products.put(100_001, **{**row, "price": 2}) == {"id": 100_001, **row, "price": 2, "version": 2}
    assert db.products.put(1, **row) == {"id": 1, **row, "version": 2}
    assert db.products.delete(1) is True
    assert db.products.put(1, **row) == {"id": 1, **row, "version": 1}


def test_restore_brings_back_the_beginning(db: Database) -> None:
    db.products.save(1, price=5, outbox=True)
    db.products.save(3, price=5, outbox=True)
    db.products.delete(2)
    db.products.put(100_001, name="Moon", category="sky", price=1, stock=1)
    db.products.restore(1, 100_001)
    assert db.products.load(1) == FIRST
    assert db.products.load_many([2, 100_001]) == {}
    assert [event["product"] for event in db.outbox] == [3]
    db.products.restore()
    assert repr(db) == "Database(100,000 products, 100,000 users)"
    assert db.products.load_many([1, 2, 3, 100_001]).keys() == {1, 2, 3}
    assert (db.products.load(3) or {})["version"] == 1
    assert db.outbox == []
    db.users.delete(7)
    db.products.delete(7)
    db.restore()
    assert repr(db) == "Database(100,000 products, 100,000 users)"


def test_a_row_put_with_version_1_is_restored_too(db: Database) -> None:
    db.products.delete(1)
    db.products.put(1, name="Moon", category="sky", price=1, stock=1)
    db.products.restore()
    assert db.products.load(1) == FIRST


def test_words_that_sql_knows_are_data(db: Database) -> None:
    nasty = '\'; DROP TABLE users; -- ☾ \\ %s :id "x"'
    assert (db.users.save(1, name=nasty) or {})["name"] == nasty
    assert (db.users.load(1) or {})["name"] == nasty


# The outbox


def test_an_event_comes_with_its_write(db: Database) -> None:
    db.products.save(1, price=5, outbox=True)
    saved = db.products.save(2, stock=7, outbox=True)
    assert db.outbox[1] == {"id": 2, "product": 2, "version": 2, "payload": saved}
    assert [(event["id"], event["product"]) for event in db.outbox] == [(1, 1), (2, 2)]
    assert list(db.outbox[1]["payload"]) == list(FIRST)


def test_the_oldest_event_is_taken_until_it_is_done(db: Database) -> None:
    assert db.outbox_take() is None
    for id in (1, 2):
        db.products.save(id, price=5, outbox=True)
    assert (db.outbox_take() or {})["id"] == (db.outbox_take() or {})["id"] == 1
    assert [db.outbox_done(1), db.outbox_done(1)] == [True, False]
    assert db.outbox_done((db.outbox_take() or {})["id"])
    assert db.outbox_take() is None


def test_no_event_gets_the_number_of_one_that_is_done(db: Database) -> None:
    db.products.save(1, price=5, outbox=True)
    db.outbox_done(1)
    db.products.save(1, price=6, outbox=True)
    assert [event["id"] for event in db.outbox] == [2]
    db.products.restore(1)  # and in the beginning numbers begin
    db.products.save(1, price=6, outbox=True)
    assert [event["id"] for event in db.outbox] == [1]


def test_where_the_event_fails_the_write_is_undone(db: Database) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "labkit.rig.database.OUTBOX", sa.table("nowhere", *map(sa.column, ("product", "version")))
        )
        with pytest.raises(sa.exc.SQLAlchemyError):
            db.products.save(1, price=5, outbox=True)
    assert db.products.load(1) == FIRST


# Misuse


def test_misuse_is_named(db: Database) -> None:
    with pytest.raises(ValueError, match="colour cannot be written; of products that can be category, name"):
        db.products.save(1, colour="red")
    with pytest.raises(ValueError, match="version cannot be written"):
        db.products.save(1, version=7)
    with pytest.raises(TypeError, match=r"price is '7'; it must be of type int"):
        db.products.save(1, price="7")
    with pytest.raises(TypeError, match="price is True"):
        db.products.save(1, price=True)
    with pytest.raises(ValueError, match="row is without category, name, stock"):
        db.products.put(1, price=1)
    with pytest.raises(ValueError, match="only products have one, not users"):
        db.users.save(1, outbox=True, city="Rome")
    with pytest.raises(TypeError, match="id is '1'; it must be an int"):
        db.products.load("1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="id is '1'; it must be an int"):
        db.products.delete("1")  # type: ignore[arg-type]
    for wrong in (-1, float("nan"), 61):
        with pytest.raises(ValueError, match="it must be from 0 to 60 seconds"):
            db.delay = wrong
    assert (db.products.reads, db.products.writes) == (0, 0)
    assert db.products.load(1) == FIRST


# Counts and delays


def test_statements_are_counted(db: Database) -> None:
    with db.products.counted() as counted:
        db.products.load(1)
        db.products.load_many([1, 2, 3])
        db.products.load_many([])
        db.products.save(1, price=5)
        db.products.put(1, name="Moon", category="sky", price=1, stock=1)
        db.products.delete(1)
        db.users.load(1)
        assert counted.reads == 2
    db.products.load(1)
    assert (counted.reads, counted.writes) == (2, 3)
    assert repr(counted) == "2 reads, 3 writes"
    assert (db.products.reads, db.products.writes, db.users.reads) == (3, 3, 1)
    db.products.restore(1)
    db.products.forget_counts()
    assert (db.products.reads, db.products.writes) == (0, 0)


def test_no_statement_of_any_thread_is_lost_from_the_count(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool, db.users.counted() as counted:
        assert all(pool.map(db.users.load, list(range(1, 9)) * 50))
    assert counted.reads == 400


def test_a_delay_slows_reads_only(db: Database) -> None:
    def seconds(act: Any) -> float:
        start = time.monotonic()
        act(1)
        return time.monotonic() - start

    with db.slow(0.2):
        assert db.delay == 0.2
        assert seconds(db.products.load) >= 0.2
        assert min(seconds(lambda _: db.products.save(1, price=5)) for _ in range(5)) < 0.1
    assert db.delay == 0
    assert min(seconds(db.products.load) for _ in range(5)) < 0.1


def test_slow_reads_wait_side_by_side(db: Database) -> None:
    start = time.monotonic()
    with db.slow(0.2), ThreadPoolExecutor(40) as pool:  # more than there are connections
        assert all(pool.map(db.products.load, [1] * 40))
    assert time.monotonic() - start < 40 * 0.2 / 4


# Under the explorer


def sell_slowly(db: Database) -> Any:
    def sell(redis: Any) -> None:
        row = db.products.load(1)
        assert row is not None
        db.products.save(1, stock=row["stock"] - 1)

    return sell


def test_read_modify_write_of_a_row_is_a_race(db: Database) -> None:
    result = explore(
        [sell_slowly(db)] * 2,
        setup=lambda r: db.products.restore(1),
        invariant=lambda r: (db.products.load(1) or {})["stock"] == 39,
    )
    assert result.verdict == "violated"
    assert "SQL SELECT products 1 " in repr(result.first)
    assert "-> {price: 11999, stock: 41, version: 1}" in repr(result.first)
    assert "SQL UPDATE products 1 stock=40" in repr(result.first)


def test_one_update_is_safe(db: Database) -> None:
    def sell(redis: Any) -> None:
        db.products.save(1, stock=db.products.c.stock - 1)
        redis.incr("sold")

    result = explore(
        [sell] * 2,
        setup=lambda r: db.products.restore(1),
        invariant=lambda r: (db.products.load(1) or {})["stock"] == 39,
        always=lambda r: int(r.get("sold") or 0) <= 41 - (db.products.load(1) or {})["stock"],
    )
    assert result.verdict == "safe"


def test_reduction_changes_no_verdict_of_statements(db: Database) -> None:
    for ids, verdict in (((1, 1), "violated"), ((1, 2), "safe")):

        def sell(redis: Any, id: int) -> None:
            row = db.products.load(id)
            assert row is not None
            db.products.save(id, stock=row["stock"] - 1)

        def both_sold(r: Any) -> bool:
            rows = db.products.load_many([1, 2]).values()
            return sum(int(row["stock"]) for row in rows) == 41 + 72 - 2

        actors = [lambda r, id=id: sell(r, id) for id in ids]
        for reduce in (True, False):
            setup = lambda r: db.products.restore(1, 2)  # noqa: E731
            assert explore(actors, setup=setup, invariant=both_sold, reduce=reduce).verdict == verdict


def test_a_crash_comes_between_the_database_and_redis(db: Database) -> None:
    def write_through(redis: Any) -> None:
        row = db.products.save(1, price=500)
        assert row is not None
        redis.set("product:1", row["price"])

    def agree(r: Any) -> bool:
        return bool(int(r.get("product:1")) == (db.products.load(1) or {})["price"])

    def setup(r: Any) -> None:
        db.products.restore(1)
        r.set("product:1", 11999)

    assert explore([write_through], setup=setup, invariant=agree).verdict == "safe"
    crashing = explore([write_through], setup=setup, invariant=agree, faults=[crash])
    assert crashing.verdict == "violated"
    assert re.search(r"A  SQL UPDATE products 1 price=500 .*\n +A  crashes|!A", repr(crashing.first))


def test_an_event_survives_the_crash(db: Database) -> None:
    def write(redis: Any) -> None:
        db.products.save(1, price=500, outbox=True)

    def relay(redis: Any) -> None:
        while event := db.outbox_take():
            redis.set("product:1", event["payload"]["price"])
            db.outbox_done(event["id"])

    def nothing_is_lost(r: Any) -> bool:
        changed = (db.products.load(1) or {})["version"] == 2
        return not changed or r.get("product:1") == "500" or len(db.outbox) == 1

    result = explore(
        [write, relay, relay],
        setup=lambda r: db.products.restore(1),
        invariant=nothing_is_lost,
        faults=[crash],
    )
    assert result.verdict == "safe"


def test_a_delay_does_nothing_in_an_exploration(db: Database) -> None:
    start = time.monotonic()
    with db.slow(30):
        result = explore(
            [lambda r: db.products.load(1)] * 2,
            setup=lambda r: db.products.restore(1),
            invariant=lambda r: True,
        )
    assert result.verdict == "safe"
    assert time.monotonic() - start < 30


def test_a_trace_tells_each_statement_in_a_line(db: Database) -> None:
    def everything(redis: Any) -> None:
        db.products.save(1, stock=db.products.c.stock - 1, price=5, outbox=True)
        event = db.outbox_take()
        assert event is not None
        db.outbox_done(event["id"])
        db.products.load_many([3, 2])
        db.products.delete(4)
        db.products.put(4, name="Moon", category="sky", price=1, stock=2)
        db.users.load(1)

    result = explore([everything], setup=lambda r: db.products.restore(1, 4), invariant=lambda r: False)
    assert [line.split(maxsplit=1)[1] for line in repr(result.first).splitlines()[1:-1]] == [
        "SQL UPDATE products 1 stock=stock-1 price=5 +outbox  -> {price: 5, stock: 40, version: 2}",
        "SQL SELECT outbox oldest                             -> {id: 1, product: 1, version: 2}",
        "SQL DELETE outbox 1                                  -> true",
        'SQL SELECT products 3 2                              -> {2: "version 1", 3: "version 1"}',
        "SQL DELETE products 4                                -> true",
        "SQL INSERT products 4                                -> {price: 1, stock: 2, version: 1}",
        'SQL SELECT users 1                                   -> {city: "Accra", version: 1}',
    ]


def test_what_statements_touch_is_known_to_the_explorer(db: Database) -> None:
    """Statements about different rows commute; those about one row, or the outbox, do not."""

    def count(*actors: Any) -> int:
        programs = [lambda r, act=act: act() for act in actors]
        return explore(programs, setup=lambda r: db.products.restore(1, 2), invariant=lambda r: True).runs

    save, rows = db.products.save, db.products
    assert count(lambda: save(1, price=5), lambda: save(2, price=5)) == 1
    assert count(lambda: save(1, price=5), lambda: db.users.load(1)) == 1
    assert count(lambda: rows.load(1), lambda: rows.load_many([1, 2])) == 1
    assert count(lambda: save(1, price=5), lambda: rows.load(1)) == 2
    assert count(lambda: save(2, price=5), lambda: rows.load_many([1, 2])) == 2
    assert count(lambda: rows.delete(1), lambda: rows.load(1)) == 2
    assert count(lambda: save(1, price=5), lambda: db.outbox_take()) == 1
    assert count(lambda: save(1, price=5, outbox=True), lambda: db.outbox_take()) == 2
    assert count(lambda: save(1, price=5, outbox=True), lambda: save(2, price=5, outbox=True)) == 2
    assert count(lambda: db.outbox_done(1), lambda: db.outbox) == 2


# Threads and processes


def test_threads_share_it(db: Database) -> None:
    def sell(_: int) -> None:
        assert db.products.save(1, stock=db.products.c.stock - 1, outbox=True)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(sell, range(200)))
    row = db.products.load(1)
    assert row == {**FIRST, "stock": 41 - 200, "version": 201}
    assert [event["version"] for event in db.outbox] == list(range(2, 202))


def sell_elsewhere(url: str) -> Any:
    from labkit.rig.database import Database

    db = Database(url)
    yield
    for _ in range(50):
        db.products.save(2, stock=db.products.c.stock - 1)
        db.products.save(3, stock=db.products.c.stock - 1, outbox=True)
    return [repr(db), db.products.reads, db.products.writes]


def test_processes_share_it_by_its_url(db: Database) -> None:
    answers = processes(3, sell_elsewhere, db.url, seconds=60)
    assert answers == [["Database(100,000 products, 100,000 users)", 0, 100]] * 3
    found = db.products.load_many([2, 3])
    assert [found[2]["version"], found[3]["version"]] == [151, 151]
    assert len(db.outbox) == 150
    assert db.products.writes == 0


def test_a_second_one_is_a_database_of_its_own(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if db.dialect == "postgresql":
        monkeypatch.setenv("DATABASE_URL", db.url)
    with Database() as second, Database(second.url) as attached:
        second.products.save(1, price=500)
        assert (attached.products.load(1) or {})["price"] == 500
        assert attached.url == second.url != db.url
    assert db.products.load(1) == FIRST
    assert repr(second) == "Database(closed)"
    with pytest.raises(DatabaseUnavailable, match="This database is closed"):
        second.products.load(1)


def test_a_forked_child_speaks_on_connections_of_its_own(db: Database) -> None:
    db.products.load(1)
    if (pid := os.fork()) == 0:
        try:
            right = db.products.load(1) == FIRST and db.products.save(2, price=5) is not None
            db.close()
            os._exit(0 if right else 1)
        finally:
            os._exit(2)  # whatever it raised: it is no second pytest
    killer = threading.Timer(30, os.kill, (pid, signal.SIGKILL))
    killer.start()
    ended = os.waitpid(pid, 0)[1]
    killer.cancel()  # whatever comes of it: the pid may soon be a stranger's
    assert os.waitstatus_to_exitcode(ended) == 0
    assert (db.products.load(2) or {})["version"] == 2
    assert db.products.load(1) == FIRST


# Coming and going


def test_the_file_goes_with_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    db = Database()
    folder = Path(db.url.removeprefix("sqlite:///")).parent
    assert folder.is_dir()
    del db
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("end", ["", "raise SystemExit", "import os; os.kill(os.getpid(), 9)"])
def test_the_file_goes_with_the_process(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    code = "from labkit.rig.database import Database; db = Database(); print(db.url, flush=True); " + end
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    file = Path(done.stdout.strip().removeprefix("sqlite:///"))
    assert file.name == "workbook.db", done.stderr
    assert done.returncode == (-signal.SIGKILL if "kill" in end else 0), done.stderr
    deadline = time.monotonic() + 10
    while file.parent.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not file.parent.exists()


def test_a_schema_is_free_again_when_its_process_is_killed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    code = "from labkit.rig.database import Database; db = Database(); print(db.url, flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with Database() as meanwhile:
            assert meanwhile.url != url
        process.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with Database() as db:
            if db.url == url:
                return
        time.sleep(0.02)
    pytest.fail("the schema is still locked")


def test_nobodys_own_tables_are_touched(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE public.users (id int, secret text)")
            connection.exec_driver_sql("INSERT INTO public.users VALUES (1, 'mine')")
        monkeypatch.setenv("DATABASE_URL", postgres_url + "&options=-c%20search_path%3Dpublic")
        with Database() as db, Database(os.environ["DATABASE_URL"]) as attached:
            db.users.delete(1)
            db.restore()
            assert repr(db) == repr(attached) == "Database(100,000 products, 100,000 users)"
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT * FROM public.users").all() == [(1, "mine")]
            assert connection.exec_driver_sql("SELECT to_regclass('public.products')").scalar() is None
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE public.users")
        engine.dispose()


def test_tables_with_other_columns_are_refused(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = postgres_url.replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE strange")
    strange = sa.make_url(address).set(database="strange").render_as_string(hide_password=False)
    theirs = sa.create_engine(strange)
    with theirs.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA workbook")
        connection.exec_driver_sql("CREATE TABLE workbook.users (id int, version int)")
    monkeypatch.setenv("DATABASE_URL", strange)
    for url in (None, strange):
        with pytest.raises(DatabaseUnavailable, match=r"workbook\.users has other columns .* DROP SCHEMA"):
            Database(url)
    with theirs.begin() as connection:
        names = connection.exec_driver_sql("SELECT tablename FROM pg_tables WHERE schemaname = 'workbook'")
        assert names.scalars().all() == ["users"]
    with theirs.connect() as connection:  # and no schema stays locked
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND database ="
        mine = "(SELECT oid FROM pg_database WHERE datname = 'strange')"
        assert connection.exec_driver_sql(f"{locks} {mine}").scalar() == 0
    theirs.dispose()
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE strange WITH (FORCE)")
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://me:s3cret@127.0.0.1/x", "DATABASE_URL is not the address of a PostgreSQL"),
        ("sqlite:///app.db", "DATABASE_URL is not the address of a PostgreSQL"),
        ("s3cret", "That is no address of a database"),
        ("postgresql://me:s3/cret@[::1/x", "That is no address of a database"),
        ("postgresql://me:s3cret@127.0.0.1:port/x", "That is no address of a database"),
        ("postgresql://me:s3cret@127.0.0.1:1/x", "Connection refused"),
        ("postgres://me:s3cret@127.0.0.1:1/x", "Connection refused"),
    ],
)
def test_what_cannot_be_had_is_explained(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(DatabaseUnavailable, match=f"{why}.* Remedy: ") as caught:
        Database()
    assert "s3cret" not in str(caught.value)


def test_a_wrong_password_is_explained_and_not_shown(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", re.sub(r":\w+@", ":s3cret@", postgres_url))
    with pytest.raises(DatabaseUnavailable, match=r"password authentication failed.* Remedy: ") as caught:
        Database()
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_gone_or_somebody_elses_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="nor of a SQLite file that exists"):
        Database(f"sqlite:///{tmp_path}/app.db")
    (tmp_path / "app.db").touch()
    with pytest.raises(DatabaseUnavailable, match="That file is none of the workbook's"):
        Database(f"sqlite:///{tmp_path}/app.db")
    assert (tmp_path / "app.db").read_bytes() == b""


def test_the_compose_file_has_a_postgresql_at_the_address_it_names() -> None:
    compose = (Path(__file__).parents[1] / "docker-compose.yml").read_text()
    named = re.search(r"DATABASE_URL=(\S+)", compose)
    assert named is not None
    url = sa.make_url(named[1])
    service = compose.partition("\n  postgres:\n")[2]
    assert f'"{url.host}:{url.port}:5432"' in service
    assert f"POSTGRES_USER: {url.username}\n" in service
    assert f"POSTGRES_DB: {url.database}\n" in service
    assert f"POSTGRES_PASSWORD: ${{POSTGRES_PASSWORD:-{url.password}}}\n" in service
    assert 'profiles: ["postgres"]' in service


def test_connections_that_the_server_ended_fail_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    db = Database()
    engine = sa.create_engine(db.url)
    with engine.connect() as connection:
        ended = connection.exec_driver_sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        assert (ended.scalar() or 0) >= 2
    engine.dispose()
    with pytest.raises(sa.exc.OperationalError):
        db.products.load(1)
    assert db.products.load(1) == FIRST
    db.close()
    assert caplog.records == []


def test_concurrent_first_use_makes_one(postgres_url: str) -> None:
    """Several attach to a server where nothing is yet: one makes the tables, the others wait."""
    address = sa.make_url(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE fresh")
    url = address.set(database="fresh").render_as_string(hide_password=False)
    start = threading.Barrier(4)

    def attach(_: int) -> str:
        start.wait()
        with Database(url) as db:
            return repr(db)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(attach, range(4))) == ["Database(100,000 products, 100,000 users)"] * 4
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE fresh WITH (FORCE)")
    engine.dispose()
