"""A source of truth: a real SQL database with 100,000 products and as many users, the same on every machine.

    db = Database()
    db.products.load(1)                 # {'id': 1, 'name': 'Brass basket 1', …, 'version': 1}
    db.products.save(1, price=500)      # an UPDATE, committed: the row with version 2
    with db.slow(0.02), db.products.counted() as c:
        db.products.load_many([1, 2])   # 20 ms more than it takes
    c.reads                             # 1

It is SQLite, in a file that goes with the process; or PostgreSQL, where DATABASE_URL says so. Each statement
is its own transaction, and a step of an exploration (labkit.rig.race) where an actor sends it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from greenlet import getcurrent
from sqlalchemy.dialects import postgresql, sqlite

from labkit import LabkitError
from labkit.rig import watchdog
from labkit.rig.outside import outside

SEEDED = 100_000
"""So many products, and so many users."""

SCHEMA = "workbook"
"""Where all tables are on PostgreSQL: nobody's own `users` is ever touched."""

_LOCK = 0x6C61626B  # the first half of the advisory locks by which processes keep to schemas of their own
_IN_ONE = 30_000  # so many ids in one IN: SQLite takes 32,766 parameters, PostgreSQL 65,535

Row = dict[str, Any]
Insert = sqlite.Insert | postgresql.Insert


class DatabaseUnavailable(LabkitError):
    """No database could be had; the message says why, and the remedy. Passwords never appear in it."""


# --- what is in it ------------------------------------------------------------------------------------------

_METADATA = sa.MetaData()


def _table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    key = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
    return sa.Table(name, _METADATA, key, *columns, sa.Column("version", sa.Integer, nullable=False))


PRODUCTS = _table(
    "products",
    sa.Column("name", sa.String, nullable=False),
    sa.Column("category", sa.String, nullable=False),
    sa.Column("price", sa.Integer, nullable=False),  # cents
    sa.Column("stock", sa.Integer, nullable=False),
)
USERS = _table(
    "users",
    sa.Column("name", sa.String, nullable=False),
    sa.Column("email", sa.String, nullable=False),
    sa.Column("city", sa.String, nullable=False),
)
OUTBOX = sa.Table(
    "outbox",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("product", sa.Integer, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sqlite_autoincrement=True,  # as on PostgreSQL, no number is ever given twice
)

_MAKES = ["Brass", "Oak", "Linen", "Clay", "Steel", "Wool", "Glass", "Paper", "Cedar", "Cork"]
_THINGS = ["atlas", "basket", "candle", "drum", "easel", "flute", "globe", "hammock"]
_KINDS = ["books", "kitchen", "home", "music", "art", "music", "books", "garden"]
_FIRST = ["Ada", "Alan", "Barbara", "Edsger", "Frances", "Grace", "Ken", "Radia"]
_LAST = ["Allen", "Dijkstra", "Hopper", "Lovelace", "Perlman", "Thompson", "Turing", "Knuth"]
_CITIES = ["Accra", "Bergen", "Cusco", "Dakar", "Hanoi", "Lyon", "Osaka", "Quito"]


def _one_of(words: list[str], number: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    quoted = ((i, sa.literal_column(f"'{word}'", sa.String)) for i, word in enumerate(words))
    return sa.case(dict(quoted), value=number % len(words))


def _seeds(table: sa.Table, n: sa.ColumnElement[Any]) -> list[sa.ColumnElement[Any]]:
    """The columns of row `n` as it is in the beginning: the same integers on every database."""
    text = sa.cast(n, sa.String)
    if table is PRODUCTS:
        name = _one_of(_MAKES, n // 8) + " " + _one_of(_THINGS, n) + " " + text
        values = [name, _one_of(_KINDS, n), n * 7919 % 200 * 100 + 99, n * 31 % 90 + 10]
    else:
        first, last = _one_of(_FIRST, n), _one_of(_LAST, n // 8)
        email = sa.func.lower(first + "." + last) + "." + text + "@example.org"
        values = [first + " " + last, email, _one_of(_CITIES, n // 3)]
    return [n, *values, sa.literal_column("1", sa.Integer)]


def _numbers() -> sa.ColumnElement[Any]:
    """1, 2, … SEEDED: a recursive common table expression."""
    numbers = sa.select(sa.literal_column("1", sa.Integer).label("n")).cte("numbers", recursive=True)
    return numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < SEEDED)).c.n


# --- the tables ---------------------------------------------------------------------------------------------


class Counted:
    """How many statements have read and written a table since the `with` block began; after it, in it."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._start = rows, (rows.reads, rows.writes)
        self._end: tuple[int, int] | None = None

    @property
    def reads(self) -> int:
        """SELECTs."""
        return (self._end or (self._rows.reads, 0))[0] - self._start[0]

    @property
    def writes(self) -> int:
        """INSERTs, UPDATEs and DELETEs."""
        return (self._end or (0, self._rows.writes))[1] - self._start[1]

    def __repr__(self) -> str:
        return f"{self.reads:,} reads, {self.writes:,} writes"


class Rows:
    """The rows of a table. A row is a dict; its `version` is 1 at first, and rises with every write.

    Each method is one statement, committed when it returns, and one step of an exploration. Every SELECT
    counts in `reads`, every other statement in `writes`: of this process, over all its threads.
    """

    def __init__(self, db: Database, table: sa.Table, told: tuple[str, ...]) -> None:
        self._db, self._table, self._told = db, table, told
        self._lock = threading.Lock()
        self.reads = self.writes = 0
        self._by_id = sa.select(table).where(table.c.id == sa.bindparam("id"))
        self._by_ids = sa.select(table).where(table.c.id.in_(sa.bindparam("ids", expanding=True)))
        self._where_id = table.c.id == sa.bindparam("this")
        this = sa.select(sa.cast(sa.bindparam("this"), sa.Integer).label("n")).subquery().c.n
        self._seed_one, self._seed_all = self._seed(this), self._seed(_numbers())
        pairs = zip(table.c, _seeds(table, table.c.id), strict=True)
        differs = [column != seed for column, seed in pairs if column is not table.c.id]
        self._delete_changed = table.delete().where(sa.or_(~table.c.id.between(1, SEEDED), *differs))

    def __repr__(self) -> str:
        return f"Rows({self._table.name}: {self.reads:,} reads, {self.writes:,} writes)"

    @property
    def c(self) -> Any:
        """The columns, for changes that the database computes: `save(1, stock=rows.c.stock - 1)`."""
        return self._table.c

    def load(self, id: int) -> Row | None:
        """That row, or None. One SELECT."""
        row: Row | None = self._read([id], lambda: self._rows(self._by_id, id=id).get(id), self._tell)
        return row

    def load_many(self, ids: Iterable[int]) -> dict[int, Row]:
        """Those rows by id, in the order asked for; an id that is not there is not in it.

        One SELECT … IN (for each 30,000 ids).
        """
        found: dict[int, Row] = {}
        asked = list(dict.fromkeys(ids))
        for start in range(0, len(asked), _IN_ONE):
            batch = asked[start : start + _IN_ONE]
            found |= self._read(batch, partial(self._rows, self._by_ids, ids=batch), self._tell_many)
        return {id: found[id] for id in asked if id in found}

    def save(self, id: int, *, outbox: bool = False, **changes: Any) -> Row | None:
        """UPDATE that row, its version + 1; the new row, or None where there is none.

        With `outbox` (products only), an event with the new row goes to `db.outbox` in the same transaction.
        """
        if outbox and self._table is not PRODUCTS:
            raise ValueError(f"outbox is True; only products have one, not {self._table.name}")
        values = {**self._checked(changes), "version": self._table.c.version + 1}
        update = self._table.update().where(self._where_id).values(values).returning(self._table)
        act = (lambda: self._with_event(update, id)) if outbox else (lambda: self._one(update, this=id))
        said = [f"{name}={_spelled(value)}" for name, value in changes.items()]
        saved: Row | None = self._write("UPDATE", id, act, self._tell, said, ["outbox"] if outbox else [])
        return saved

    def put(self, id: int, **row: Any) -> Row:
        """INSERT the row, or write over the one that is there, its version + 1; the new row.

        A row that was deleted, and is put again, begins with version 1 again.
        """
        values = self._checked(row)
        if missing := sorted(self._writable - values.keys()):
            raise ValueError(
                f"row is without {', '.join(missing)}; a whole row is put, save() changes a part"
            )
        insert = self._db._insert(self._table).values(id=id, version=1, **values)
        over = {**values, "version": self._table.c.version + 1}
        upsert = insert.on_conflict_do_update(index_elements=["id"], set_=over).returning(self._table)
        put: Row = self._write("INSERT", id, lambda: self._one(upsert), self._tell)
        return put

    def delete(self, id: int) -> bool:
        """DELETE that row; whether it was there."""
        delete = self._table.delete().where(self._where_id).returning(self._table)
        deleted: bool = self._write("DELETE", id, lambda: self._one(delete, this=id) is not None, None)
        return deleted

    def restore(self, *ids: int) -> None:
        """Those rows as they were in the beginning, and no event about them; without ids, all rows.

        For the `setup` of an exploration (name the ids there: it is quicker), and between experiments. It
        counts as no statement, and is no step.
        """
        with self._db._transaction() as connection:
            self._restore(connection, ids)

    def forget_counts(self) -> None:
        """Begin to count from 0."""
        with self._lock:
            self.reads = self.writes = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counted]:
        """Count the statements of a block, of all threads: `with rows.counted() as c: …`, then `c.reads`."""
        counted = Counted(self)
        try:
            yield counted
        finally:
            counted._end = (self.reads, self.writes)

    @property
    def _writable(self) -> set[str]:
        return set(self._table.c.keys()) - {"id", "version"}

    def _checked(self, values: Row) -> Row:
        for name, value in values.items():
            if name not in self._writable:
                possible = ", ".join(sorted(self._writable))
                raise ValueError(f"{name} cannot be written; of {self._table.name} that can be {possible}")
            kind = self._table.c[name].type.python_type
            if type(value) is not kind and not isinstance(value, sa.ColumnElement):
                raise TypeError(f"{name} is {value!r}; it must be of type {kind.__name__}")
        return values

    def _read(self, ids: list[int], act: Callable[[], Any], show: Callable[[Any], Any]) -> Any:
        _check_ids(ids)
        with self._lock:
            self.reads += 1
        name = self._table.name
        found = outside(
            ["SQL", "SELECT", name, *map(str, ids)], act, reads=[f"{name} {i}" for i in ids], show=show
        )
        if self._db.delay and getattr(getcurrent(), "actor", None) is None:
            time.sleep(self._db.delay)
        return found

    def _write(
        self,
        verb: str,
        id: int,
        act: Callable[[], Any],
        show: Callable[[Any], Any] | None,
        said: Iterable[str] = (),
        also: Iterable[str] = (),
    ) -> Any:
        _check_ids([id])
        with self._lock:
            self.writes += 1
        name, plus = self._table.name, [f"+{other}" for other in also]
        touched = [f"{name} {id}", *also]
        return outside(["SQL", verb, name, str(id), *said, *plus], act, writes=touched, show=show)

    def _rows(self, select: sa.Select[Any], **parameters: Any) -> dict[int, Row]:
        with self._db._connection() as connection:
            return {row["id"]: dict(row) for row in connection.execute(select, parameters).mappings()}

    def _one(self, statement: Any, **parameters: Any) -> Row | None:
        with self._db._connection() as connection:
            return _first(connection.execute(statement, parameters))

    def _with_event(self, update: Any, id: int) -> Row | None:
        with self._db._transaction() as connection:
            row = _first(connection.execute(update, {"this": id}))
            if row is not None:
                connection.execute(OUTBOX.insert().values(product=id, version=row["version"], payload=row))
            return row

    def _restore(self, connection: sa.Connection, ids: Sequence[int] = ()) -> None:
        """Delete the rows, or of all rows those that differ from their seeds; then insert what is missing."""
        if ids:
            connection.execute(self._table.delete().where(self._table.c.id.in_(ids)))
            connection.execute(self._seed_one, [{"this": i} for i in ids])
        else:
            connection.execute(self._delete_changed)
            connection.execute(self._seed_all)
        if self._table is PRODUCTS:
            about = OUTBOX.c.product.in_(ids) if ids else sa.true()
            connection.execute(OUTBOX.delete().where(about))
            connection.execute(self._db._restart_outbox)

    def _seed(self, n: sa.ColumnElement[Any]) -> Insert:
        seeds = sa.select(*_seeds(self._table, n)).where(n.between(1, SEEDED))
        insert = self._db._insert(self._table).from_select(list(self._table.c.keys()), seeds)
        seeded: Insert = insert.on_conflict_do_nothing()
        return seeded

    def _tell(self, row: Row | None) -> Row | None:
        return row and {name: row[name] for name in self._told}

    def _tell_many(self, rows: dict[int, Row]) -> dict[int, str]:
        return {id: f"version {row['version']}" for id, row in sorted(rows.items())}


def _check_ids(ids: Iterable[int]) -> None:
    for id in ids:
        if type(id) is not int:
            raise TypeError(f"id is {id!r}; it must be an int")


def _first(result: sa.Result[Any]) -> Row | None:
    row = result.mappings().first()
    return None if row is None else dict(row)


def _spelled(value: Any) -> str:
    """A new value as a trace shows it, without what is plain: `stock-1`."""
    if isinstance(value, sa.ColumnElement):
        return re.sub(
            r"\b(products|users)\.| ", "", str(value.compile(compile_kwargs={"literal_binds": True}))
        )
    return str(value)


# --- the database -------------------------------------------------------------------------------------------


class Database:
    """`Database()`: a database of this process's own, as it was in the beginning. `Database(url)`: one that
    exists, such as another process's `db.url`, as it is now.

    `delay` is so many seconds that each read takes more: time.sleep after the SELECT. It is 0 at first, and
    does nothing in an exploration, where others may come after each step anyway. Threads and greenlets may
    share a Database; another process makes one from the url.

    On SQLite the file goes with the process that made it. On PostgreSQL the tables stay, in the schema
    `workbook`, or `workbook_2`, … while other processes use that one. Commits do not wait for the disk.

    Raises DatabaseUnavailable where there is none; a transaction pooler (PgBouncer) before it will not do.
    """

    def __init__(self, url: str | None = None) -> None:
        self._delay = 0.0
        self._pid = os.getpid()
        with _explained():
            self._opened = _open(url)
        self._engine = self._opened.engine
        self._end = weakref.finalize(self, _close, self._pid, self._opened)
        self._insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[self.dialect]
        self._restart_outbox = sa.text(_RESTART_OUTBOX[self.dialect])
        self.products = Rows(self, PRODUCTS, ("price", "stock", "version"))
        self.users = Rows(self, USERS, ("city", "version"))
        try:
            with _explained():
                self._make(anew=url is None)
        except BaseException:  # an interrupted kernel too: no schema stays locked
            self.close()
            raise

    def __repr__(self) -> str:
        if not self._end.alive:
            return "Database(closed)"
        with self._connection() as connection:
            counts = [
                f"{connection.scalar(sa.select(sa.func.count()).select_from(table)):,} {table.name}"
                for table in (PRODUCTS, USERS)
            ]
        slow = f"; each read takes {self.delay * 1000:g} ms more" if self.delay else ""
        return f"Database({', '.join(counts)}{slow})"

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Its address, with the password: `Database(url)` in another process is the same database."""
        return self._engine.url.render_as_string(hide_password=False)

    @property
    def dialect(self) -> str:
        """ "sqlite" or "postgresql"."""
        return self._engine.dialect.name

    @property
    def delay(self) -> float:
        """Seconds that each read takes more, in this process."""
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        if not 0 <= seconds <= 60:
            raise ValueError(f"delay is {seconds!r}; it must be from 0 to 60 seconds")
        self._delay = seconds

    @contextlib.contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Each read of a block, of all threads, takes so many seconds more."""
        before, self.delay = self.delay, seconds
        try:
            yield
        finally:
            self.delay = before

    @property
    def outbox(self) -> list[Row]:
        """The events that wait, oldest first: id, product, version, and payload (the row). A SELECT."""
        select = sa.select(OUTBOX).order_by(OUTBOX.c.id)
        return outside(["SQL", "SELECT", "outbox"], lambda: self._all(select), reads=["outbox"])

    def outbox_take(self) -> Row | None:
        """The oldest event, or None. It stays there until `outbox_done`. A SELECT."""
        select = sa.select(OUTBOX).order_by(OUTBOX.c.id).limit(1)
        said = ["SQL", "SELECT", "outbox", "oldest"]
        return outside(said, lambda: next(iter(self._all(select)), None), reads=["outbox"], show=_tell_event)

    def outbox_done(self, id: int) -> bool:
        """Delete that event; whether it was there. A DELETE."""
        delete = OUTBOX.delete().where(OUTBOX.c.id == id).returning(OUTBOX.c.id)
        return outside(
            ["SQL", "DELETE", "outbox", str(id)], lambda: bool(self._all(delete)), writes=["outbox"]
        )

    def restore(self) -> None:
        """Everything as it was in the beginning. It counts as no statement, and is no step."""
        with self._transaction() as connection:
            self.products._restore(connection)
            self.users._restore(connection)

    def close(self) -> None:
        """Give all connections back, and remove the file or unlock the schema if it is this process's own."""
        self._end()

    def _all(self, statement: Any) -> list[Row]:
        with self._connection() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def _connection(self) -> sa.Connection:
        """For single statements: each is its own transaction."""
        if not self._end.alive:
            raise DatabaseUnavailable("This database is closed. Remedy: make another Database().")
        if self._pid != os.getpid():  # a forked child must not speak on its parent's connections
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        return self._engine.connect()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """For several: committed at the end, or rolled back. Its first statement must write."""
        level = {"sqlite": "SERIALIZABLE", "postgresql": "READ COMMITTED"}[self.dialect]
        with self._connection().execution_options(isolation_level=level) as connection, connection.begin():
            yield connection

    def _make(self, anew: bool) -> None:
        """Tables and seeds, where they are missing; with `anew`, all as it was in the beginning."""
        with self._transaction() as connection:
            if schema := self._opened.schema:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK, 0)))
                connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
            missing = not sa.inspect(connection).has_table(PRODUCTS.name)
            if missing and not schema and not anew:
                raise DatabaseUnavailable(
                    "That file is none of the workbook's. Remedy: take a Database's url."
                )
            _METADATA.create_all(connection)
            self._check_columns(connection)
            if anew or missing:
                self.products._restore(connection)
                self.users._restore(connection)

    def _check_columns(self, connection: sa.Connection) -> None:
        """Refuse tables that are somebody else's, or an older workbook's: nothing in them may be changed."""
        seen = sa.inspect(connection)
        for table in _METADATA.sorted_tables:
            if [column["name"] for column in seen.get_columns(table.name)] != table.c.keys():
                where = self._opened.schema or "main"
                raise DatabaseUnavailable(
                    f"{where}.{table.name} has other columns than the workbook's. Remedy: if nobody needs "
                    f"it, DROP SCHEMA {where} CASCADE."
                )


_RESTART_OUTBOX = {
    "sqlite": "DELETE FROM sqlite_sequence WHERE name = 'outbox' AND NOT EXISTS (SELECT 1 FROM outbox)",
    "postgresql": "SELECT setval('outbox_id_seq', 1, false) WHERE NOT EXISTS (SELECT 1 FROM outbox)",
}
"""An empty outbox numbers from 1 again, so that what is restored is the same as the first time."""


def _tell_event(event: Row | None) -> Row | None:
    return event and {name: event[name] for name in ("id", "product", "version")}


class _Opened(NamedTuple):
    """An engine, PostgreSQL's schema, and what is this process's own: a folder, or what locks a schema."""

    engine: sa.Engine
    schema: str = ""
    folder: Path | None = None
    lock: sa.Connection | None = None


def _open(url: str | None) -> _Opened:
    named = os.environ.get("DATABASE_URL") if url is None else url
    if url is None and not named:
        return _own_sqlite()
    address = _address(named or "")
    if address.get_backend_name() == "postgresql":
        return _own_postgresql(address) if url is None else _attach_postgresql(address)
    if url is None:
        raise DatabaseUnavailable(
            "DATABASE_URL is not the address of a PostgreSQL. Remedy: write "
            "postgresql+psycopg://user:password@host:port/name, or unset it: SQLite needs no address."
        )
    if address.get_backend_name() != "sqlite" or not Path(address.database or "").is_file():
        raise DatabaseUnavailable(
            "url is neither the address of a PostgreSQL nor of a SQLite file that exists. Remedy: take the "
            "url of a Database that is open; a SQLite file goes with the process that made it."
        )
    return _Opened(_sqlite(address))


def _address(url: str) -> sa.URL:
    try:
        address = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # their messages may quote a password
        raise DatabaseUnavailable(
            "That is no address of a database. Remedy: write postgresql+psycopg://user:password@host:port/name"
            "; a / ? # : or @ in a password must be percent-encoded."
        ) from None
    ours = address.drivername.partition("+")[0] in ("postgres", "postgresql")
    return address.set(drivername="postgresql+psycopg") if ours else address


def _own_sqlite() -> _Opened:
    folder = Path(tempfile.mkdtemp(dir=watchdog.get().folder))
    engine = _sqlite(sa.URL.create("sqlite", database=str(folder / "workbook.db")))
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    return _Opened(engine, folder=folder)


def _sqlite(address: sa.URL) -> sa.Engine:
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", connect_args={"timeout": 30}, **_POOL)

    @sa.event.listens_for(engine, "connect")
    def settle(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    return engine


_POOL: dict[str, Any] = {"pool_size": 4, "max_overflow": 12}  # a few processes together stay under 100


def _own_postgresql(address: sa.URL) -> _Opened:
    """The first schema that no other process uses; an advisory lock keeps it while the connection is open."""
    lock = _postgresql(address, poolclass=sa.pool.NullPool).connect()
    taken = (lock.scalar(sa.select(sa.func.pg_try_advisory_lock(_LOCK, n))) for n in itertools.count(1))
    number = next(n for n, is_ours in enumerate(taken, 1) if is_ours)
    schema = SCHEMA if number == 1 else f"{SCHEMA}_{number}"
    return _Opened(_postgresql(_within(address, schema), **_POOL), schema, lock=lock)


def _attach_postgresql(address: sa.URL) -> _Opened:
    found = re.search(_SEARCH_PATH, _options(address))
    schema = found[1] if found else SCHEMA
    return _Opened(_postgresql(_within(address, schema), **_POOL), schema)


_SEARCH_PATH = rf"-c search_path=({SCHEMA}(?:_\d+)?) -c synchronous_commit=off"


def _options(address: sa.URL) -> str:
    return " ".join(address.normalized_query.get("options", ()))


def _within(address: sa.URL, schema: str) -> sa.URL:
    """The address with that schema as the only one in which tables are looked for."""
    given = re.sub(_SEARCH_PATH, "", _options(address)).strip()
    options = f"{given} -c search_path={schema} -c synchronous_commit=off".strip()
    return address.update_query_dict({"options": options})


def _postgresql(address: sa.URL, **options: Any) -> sa.Engine:
    patience = {} if "connect_timeout" in address.query else {"connect_timeout": 5}
    return sa.create_engine(address, isolation_level="AUTOCOMMIT", connect_args=patience, **options)


def _close(pid: int, opened: _Opened) -> None:
    if pid != os.getpid():  # a forked child: all that is its parent's
        return
    opened.engine.dispose()
    if opened.lock is not None:
        opened.lock.close()
    if opened.folder is not None:
        shutil.rmtree(opened.folder, ignore_errors=True)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What goes wrong while a database is opened, as one sentence with a remedy."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        said = " ".join(str(error.orig).split()).partition(" Is the server running")[0].rstrip(". ")
        raise DatabaseUnavailable(
            f"The database cannot be used: {said}. Remedy: start it, correct its address, or unset "
            "DATABASE_URL to use SQLite."
        ) from error
