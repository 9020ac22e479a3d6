"""SQLite's one writer: threads take turns, one transaction for all who wait."""

import sqlite3
import threading
import time

import pytest
import sqlalchemy as sa

from cvars.broker import record as rules
from cvars.broker import writer as writer_module
from cvars.broker.database import COUNTERS, DatabaseDown, Statement
from cvars.broker.writer import Writer


class Ledger:
    """Transactions over a list: what one commits, and what it undoes when a piece of work fails."""

    def __init__(self):
        self.kept, self.transactions = [], []

    def commit(self, works):
        self.transactions.append(len(works))
        mine = list(self.kept)
        done = [work(mine) for work in works]
        self.kept = mine
        return done


def waiting(writer, works):
    """``works`` while somebody else has the turn, then all together: their results or errors, in order."""
    ended = [None] * len(works)

    def one(n):
        try:
            ended[n] = writer.run(works[n])
        except BaseException as error:  # also what ends a thread
            ended[n] = error

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(works))]
    with writer.turn():
        for n, thread in enumerate(threads):
            thread.start()
            while len(writer._waiting) <= n:
                time.sleep(0.001)
    for thread in threads:
        thread.join(30)
    assert not writer._waiting
    return ended


def adding(n):
    return lambda ledger: ledger.append(n) or n


def failing(error):
    def work(ledger):
        ledger.append("half")
        raise error

    return work


def test_alone_and_together():
    ledger = Ledger()
    writer = Writer(ledger.commit, DatabaseDown)
    assert writer.run(adding(0)) == 0
    assert waiting(writer, [adding(n) for n in range(1, 6)]) == [1, 2, 3, 4, 5]
    assert ledger.transactions == [1, 5]
    assert sorted(ledger.kept) == [0, 1, 2, 3, 4, 5]


def test_no_more_than_so_many_share_a_transaction(monkeypatch):
    monkeypatch.setattr(writer_module, "_TOGETHER", 4)
    ledger = Ledger()
    assert waiting(Writer(ledger.commit, DatabaseDown), [adding(n) for n in range(9)]) == list(range(9))
    assert ledger.transactions == [4, 4, 1]


def test_whoever_comes_last_commits_what_waits_before_it(monkeypatch):
    monkeypatch.setattr(writer_module, "_TOGETHER", 4)
    ledger = Ledger()
    writer = Writer(ledger.commit, DatabaseDown)
    writer._waiting.extend(writer_module._Job(adding(n)) for n in range(6))
    assert writer.run(adding(6)) == 6
    assert ledger.kept == list(range(7))
    assert ledger.transactions == [4, 3]


def test_who_fails_fails_alone():
    ledger = Ledger()
    broken = KeyError("mine")
    ended = waiting(Writer(ledger.commit, DatabaseDown), [adding(0), failing(broken), adding(2)])
    assert ended == [0, broken, 2]
    assert ledger.kept == [0, 2]
    assert ledger.transactions == [3, 1, 1, 1]


def test_a_database_that_is_down_is_asked_once_for_all():
    ledger = Ledger()
    down = DatabaseDown("gone")
    writer = Writer(ledger.commit, DatabaseDown)
    assert waiting(writer, [adding(0), failing(down), adding(2)]) == [down] * 3
    assert ledger.kept == []
    assert ledger.transactions == [3]
    with pytest.raises(DatabaseDown):
        writer.run(failing(down))
    assert writer.run(adding(1)) == 1  # the turn was given back


def test_only_the_thread_that_was_interrupted_is():
    ledger = Ledger()
    writer = Writer(ledger.commit, DatabaseDown)
    ended = waiting(writer, [adding(0), failing(KeyboardInterrupt()), adding(2)])
    assert sorted(map(type, ended), key=str) == [KeyboardInterrupt, DatabaseDown, DatabaseDown]
    assert ledger.kept == []
    assert writer.run(adding(1)) == 1  # the turn was given back
    with pytest.raises(KeyboardInterrupt):
        writer.run(failing(KeyboardInterrupt()))
    assert writer.run(adding(3)) == 3


def test_work_that_was_taken_along_and_lost_is_not_waited_for(monkeypatch):
    writer = Writer(Ledger().commit, DatabaseDown)
    monkeypatch.setattr(writer, "_lead", lambda jobs: None)  # cut off before it did anything
    assert [type(error) for error in waiting(writer, [adding(0), adding(1)])] == [DatabaseDown] * 2
    monkeypatch.undo()
    assert writer.run(adding(2)) == 2


def test_nobody_waits_for_a_turn_forever(monkeypatch):
    monkeypatch.setattr(writer_module, "PATIENCE_S", 0.01)
    writer = Writer(Ledger().commit, DatabaseDown)
    with writer.turn(), pytest.raises(DatabaseDown), writer.turn():
        pass
    with writer.turn():
        pass


def test_threads_of_a_broker_never_find_the_database_busy(world):
    """The connections do not wait at all here, so whoever did not wait for a turn would fail."""
    broker = world.broker
    broker.db.engine.dispose()
    broker.db._at_hand.clear()

    @sa.event.listens_for(broker.db.engine, "connect")
    def impatient(connection, _record):
        connection.execute("PRAGMA busy_timeout=0")

    names = [f"vm-{n}" for n in range(8)]
    for name in names:
        broker.add_vm(name, mode="strict")
    errors, barrier = [], threading.Barrier(len(names))

    def guest(name):
        barrier.wait()
        try:
            for n in range(25):
                now = world.clock() + n
                broker.operate(name, lambda r, at=now: rules.acquire(r, holder="h", instance=None, now=at))
                broker.operate(name, lambda r, at=now: rules.renew(r, epoch=r.epoch, holder="h", now=at + 1))
                with broker.db.write() as connection:
                    connection.execute(sa.insert(COUNTERS), {"name": f"{name}-{n}", "value": n})
        except (DatabaseDown, sqlite3.Error) as error:
            errors.append(error)

    threads = [threading.Thread(target=guest, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert {broker.anchors.get(name).epoch for name in names} == {25}


def test_what_fails_leaves_no_transaction_open(world):
    db = world.broker.db
    insert = Statement(sa.insert(COUNTERS), "name", "value")
    with pytest.raises(ZeroDivisionError):
        db.transaction(lambda cursor: cursor.run(insert, ("x", 1)) / 0)
    with db.read() as connection:
        assert connection.execute(sa.select(COUNTERS).where(COUNTERS.c.name == "x")).first() is None
    assert db.change(insert, "x", 1) == 1
    other = sqlite3.connect(world.folder / "broker.db", timeout=0, isolation_level=None)
    assert other.execute("SELECT value FROM counters WHERE name = 'x'").fetchone() == (1,)  # durable, not open
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    other.close()


@pytest.mark.parametrize("error", [sqlite3.OperationalError, sqlite3.InterfaceError])
def test_an_error_of_the_database_is_an_outside_failure(world, error):
    def work(cursor):
        raise error("x")

    with pytest.raises(DatabaseDown):
        world.broker.db.transaction(work)


def test_no_connection_to_be_had_is_an_outside_failure(world, monkeypatch):
    def none():
        raise sa.exc.TimeoutError

    world.broker.db._at_hand.clear()
    monkeypatch.setattr(world.broker.db.engine, "raw_connection", none)
    with pytest.raises(DatabaseDown):
        world.broker.anchors.get("vm-1")


def test_few_connections_are_kept_at_hand(world):
    db = world.broker.db
    for connection in [db._taken() for _ in range(12)]:
        db._give_back(connection)
    assert len(db._at_hand) == 8


def test_a_database_that_another_process_holds_is_down_until_it_is_free(world):
    db = world.broker.db
    db.engine.dispose()
    db._at_hand.clear()
    sa.event.listen(db.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=0"))
    insert = Statement(sa.insert(COUNTERS), "name", "value")
    other = sqlite3.connect(world.folder / "broker.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseDown):
        db.change(insert, "x", 1)
    with pytest.raises(DatabaseDown), db.write():
        pass
    other.execute("ROLLBACK")
    other.close()
    assert db.change(insert, "x", 1) == 1
