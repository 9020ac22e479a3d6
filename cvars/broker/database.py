"""The broker's durable state: SQLite (WAL) by default, PostgreSQL for several replicas (D8).

Every one-time or monotonic transition is one conditional UPDATE whose row count decides who won. A write is
durable before it is answered: SQLite runs with ``synchronous=FULL``, PostgreSQL with its default.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import PoolProxiedConnection

from cvars.broker.writer import PATIENCE_S, Writer
from cvars.errors import OutsideFailure, UsageMistake

T = TypeVar("T")

METADATA: Final = sa.MetaData()

#: the anchor record of key-release 5.1, one row per VM
VMS: Final = sa.Table(
    "vms",
    METADATA,
    sa.Column("vm_id", sa.String(128), primary_key=True),
    sa.Column("store_id", sa.LargeBinary(16), nullable=False),
    sa.Column("policy", sa.String(128)),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("thawed", sa.String(16)),  # the state under `frozen`
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary(32), nullable=False),
    sa.Column("from_counter", sa.BigInteger, nullable=False),  # predecessor of the last advance (idempotence)
    sa.Column("from_root", sa.LargeBinary(32), nullable=False),
    sa.Column("advance_epoch", sa.BigInteger, nullable=False),
    sa.Column("base_counter", sa.BigInteger, nullable=False),
    sa.Column("base_root", sa.LargeBinary(32), nullable=False),
    sa.Column("ring_bytes", sa.BigInteger, nullable=False),
    sa.Column("ring_from", sa.BigInteger, nullable=False),  # history version of the oldest item
    sa.Column("key_version", sa.BigInteger, nullable=False),
    sa.Column("key_old", sa.BigInteger),
    sa.Column("key_written_epoch", sa.BigInteger),  # first epoch that advanced under key_version after a rotation
    sa.Column("floor_format", sa.Integer, nullable=False),
    sa.Column("floor_suites", sa.String(32), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("lease_holder", sa.String(64)),
    sa.Column("lease_instance", sa.String(64)),
    sa.Column("lease_expires", sa.Float(53)),
    sa.Column("acquires", sa.BigInteger, nullable=False),  # since the last advance
    sa.Column("provision_epoch", sa.BigInteger, nullable=False),
    sa.Column("identity", sa.Text),  # measured identity, recorded by `enrol: first-use`
    sa.Column("history", sa.LargeBinary(32), nullable=False),
)

#: one row per transition of a record, hash-chained per VM; rows that are in the escrow ring keep their bytes
HISTORY: Final = sa.Table(
    "history",
    METADATA,
    sa.Column("vm_id", sa.String(128), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entry", sa.Text, nullable=False),  # canonical JSON
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("escrow", sa.LargeBinary),
    sa.Column("escrow_bytes", sa.Integer, nullable=False, default=0),
    sa.Column("start_counter", sa.BigInteger),  # the point before this item
    sa.Column("start_root", sa.LargeBinary(32)),
    sa.Column("key_version", sa.BigInteger),
)

#: wrapped 32-byte VM masters, one per key version: deleting the row destroys the key (SS-19)
VM_KEYS: Final = sa.Table(
    "vm_keys",
    METADATA,
    sa.Column("vm_id", sa.String(128), primary_key=True),
    sa.Column("key_version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
)

#: other secrets, wrapped
RESOURCES: Final = sa.Table(
    "resources",
    METADATA,
    sa.Column("path", sa.String(400), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("policy_digest", sa.String(64), nullable=False),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
)

#: typed policies and stock Rego texts that were uploaded; `generation` orders the changes of all replicas
POLICIES: Final = sa.Table(
    "policies",
    METADATA,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

#: reference values, JSON
REFERENCES: Final = sa.Table(
    "reference_values",
    METADATA,
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

#: releases counted against `max_uses`
USES: Final = sa.Table(
    "uses",
    METADATA,
    sa.Column("policy", sa.String(128), primary_key=True),
    sa.Column("vm_id", sa.String(128), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
)

#: counters of the installation: `policy_generation`, `schema`
COUNTERS: Final = sa.Table(
    "counters",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

#: sessions, when they are shared by replicas or kept over a restart
SESSIONS: Final = sa.Table(
    "sessions",
    METADATA,
    sa.Column("id_hash", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("expires", sa.Float(53), nullable=False, index=True),
    sa.Column("source", sa.String(64), nullable=False, index=True),
    sa.Column("tee", sa.String(16), nullable=False),
    sa.Column("nonce_hash", sa.String(64), nullable=False),
    sa.Column("sealed", sa.LargeBinary),  # token and evidence, wrapped
    sa.Column("channel", sa.LargeBinary),  # channel key, wrapped
    sa.Column("channel_vm", sa.String(128)),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger),
    sa.Column("key_versions", sa.String(64), nullable=False),
)


_KEEP: Final = 8  # of the 32 connections of the pool


class Database:
    """Connections of one broker process; not ``pooled`` for one command."""

    def __init__(self, url: str, *, pooled: bool = True) -> None:
        self._pool: dict[str, Any] = (
            {"pool_size": 16, "max_overflow": 16} if pooled else {"poolclass": sa.pool.NullPool}
        )
        self.url = sa.make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        try:
            if self.sqlite:
                self.engine = self._sqlite()
            else:
                utf8 = {"client_encoding": "utf8"}  # also of a database that was made as SQL_ASCII
                self.engine = sa.create_engine(url, connect_args=utf8, **self._pool)
        except ModuleNotFoundError as error:
            raise UsageMistake(
                f"database driver {error.name} is not installed", hint="pip install 'cvars[postgres]'"
            ) from None
        self._at_hand: list[PoolProxiedConnection] = []  # for the driver's own paths, without the pool's ceremony
        self._keep = _KEEP if pooled else 0
        self._plain = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writer = Writer(self._commit, DatabaseDown) if self.sqlite else None
        self._turn: Callable[[], contextlib.AbstractContextManager[None]] = (
            self._writer.turn if self._writer else contextlib.nullcontext
        )

    def _sqlite(self) -> Engine:
        engine = sa.create_engine(
            self.url, connect_args={"check_same_thread": False, "timeout": PATIENCE_S}, **self._pool
        )

        @sa.event.listens_for(engine, "connect")
        def configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI connection
            connection.isolation_level = None  # transactions are begun below, explicitly
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=FAST"):
                connection.execute(f"PRAGMA {pragma}")

        @sa.event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
                connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Single SELECTs, outside of a transaction."""
        with _outside(), self._plain.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction; durable when the block ends without an exception. Not within another."""
        with _outside(), self._turn(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """SELECTs that all see one instant. They wait for nobody."""
        level = "AUTOCOMMIT" if self.sqlite else "REPEATABLE READ"
        with _outside(), self.engine.connect().execution_options(isolation_level=level) as connection:
            if self.sqlite:
                connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                if self.sqlite:
                    connection.exec_driver_sql("ROLLBACK")

    def one(self, statement: "Statement", *values: object) -> tuple[Any, ...] | None:
        """The row of a SELECT, on the driver itself; columns in the statement's order."""
        rows = self.rows(statement, *values)
        return tuple(rows[0]) if rows else None

    def rows(self, statement: "Statement", *values: object) -> list[tuple[Any, ...]]:
        """All rows of a SELECT, on the driver itself."""
        found: list[tuple[Any, ...]] = self._alone(statement, values, lambda cursor: cursor.fetchall())
        return found

    def change(self, statement: "Statement", *values: object) -> int:
        """One statement as a transaction by itself, on the driver itself: how many rows it changed, durably."""
        if self.sqlite:
            return self.transaction(lambda cursor: cursor.run(statement, values))
        return self._alone(statement, values, lambda cursor: int(cursor.rowcount))

    def _alone(self, statement: "Statement", values: Sequence[object], result: Callable[[Any], T]) -> T:
        def run(connection: PoolProxiedConnection) -> T:
            driver: Any = connection.driver_connection
            if not self.sqlite:
                driver.autocommit = True
            cursor = Cursor(driver.cursor(), self.engine.dialect)
            cursor.run(statement, values)
            done = result(cursor.driver)
            if not self.sqlite:
                driver.autocommit = False
            return done

        return self._borrowed(run)

    def transaction(self, work: Callable[["Cursor"], T]) -> T:
        """``work`` in a transaction on the driver itself, for the hot path of the anchor; then it is durable.

        Statements are the same SQLAlchemy constructs as elsewhere, compiled once (`Statement`).
        """
        return self._writer.run(work) if self._writer else self._commit([work])[0]

    def _commit(self, works: Sequence[Callable[["Cursor"], T]]) -> list[T]:
        def run(connection: PoolProxiedConnection) -> list[T]:
            cursor = connection.cursor()
            if self.sqlite:
                cursor.execute("BEGIN IMMEDIATE")
            mine = Cursor(cursor, self.engine.dialect)
            done = [work(mine) for work in works]
            cursor.execute("COMMIT") if self.sqlite else connection.commit()
            return done

        return self._borrowed(run)

    def _borrowed(self, work: Callable[[PoolProxiedConnection], T]) -> T:
        """``work`` on a connection that is thrown away, with all it was in the middle of, when anything fails."""
        connection = self._taken()
        try:
            done = work(connection)
        except BaseException as error:
            connection.invalidate(error)
            dbapi: Any = self.engine.dialect.loaded_dbapi
            if isinstance(error, (dbapi.OperationalError, dbapi.InterfaceError)):
                raise DatabaseDown(f"the database does not answer: {type(error).__name__}") from error
            raise
        self._give_back(connection)
        return done

    def _taken(self) -> PoolProxiedConnection:
        """A connection, one of those at hand or from the pool."""
        try:
            return self._at_hand.pop()
        except IndexError:
            try:
                return self.engine.raw_connection()
            except (sa.exc.DBAPIError, sa.exc.TimeoutError, self.engine.dialect.loaded_dbapi.Error) as error:
                raise DatabaseDown(f"the database does not answer: {type(error).__name__}") from error

    def _give_back(self, connection: PoolProxiedConnection) -> None:
        if len(self._at_hand) < self._keep:
            self._at_hand.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Give all connections back."""
        while self._at_hand:
            self._at_hand.pop().close()
        self.engine.dispose()


class Statement:
    """A constant statement for the driver's own paths, with the ``names`` of its parameters as values come."""

    def __init__(self, construct: sa.ClauseElement, *names: str) -> None:
        self.construct, self.names = construct, names


@functools.cache
def _compiled(statement: Statement, dialect: sa.Dialect) -> tuple[str, bool]:
    """(SQL text, whether the driver takes values in order, or by name)."""
    construct, names = statement.construct, statement.names
    plain = isinstance(construct, sa.Insert) and construct.select is None
    done: Any = construct.compile(dialect=dialect, column_keys=names if plain else None)
    assert tuple(done.positiontup or names) == names
    assert set(done.params) == set(names)
    return str(done), done.positional


class Cursor:
    """A DBAPI cursor that takes our statements."""

    def __init__(self, driver: sa.engine.interfaces.DBAPICursor, dialect: sa.Dialect) -> None:
        self.driver = driver
        self._dialect = dialect

    def run(self, statement: Statement, values: Sequence[object]) -> int:
        """Execute; how many rows it changed."""
        text, in_order = _compiled(statement, self._dialect)
        self.driver.execute(text, values if in_order else dict(zip(statement.names, values, strict=True)))
        return int(self.driver.rowcount)


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """A database that does not answer is an outside failure, never a decision."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise DatabaseDown(f"the database does not answer: {type(error).__name__}") from error


class DatabaseDown(OutsideFailure):
    """The database failed: what was asked for may or may not have happened."""

    reason = "broker.database"
