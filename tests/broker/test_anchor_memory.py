"""A process decides on records as it left them: never on one that another process moved, renewed or replaced."""

import contextlib
import random as random_module

import pytest
import sqlalchemy as sa

from cvars.broker import anchors as anchors_module
from cvars.broker import record as rules
from cvars.broker.anchors import AnchorStore, verify_history
from cvars.broker.database import COUNTERS, HISTORY, VMS, Cursor, Database, DatabaseDown, Statement
from cvars.broker.record import LEASE_S, RING_BYTES, Refused
from cvars.store.anchor import ORIGIN, AnchorPoint
from tests.broker.support import entry

BASE = AnchorPoint(0, b"\x10" * 32)
NOW = 1000.0


def point(counter, mark=0):
    return AnchorPoint(counter, bytes([counter, mark]) * 16)


class Replica:
    """A broker process of its own on the same database, as far as anchors go; its clock stands unless told."""

    def __init__(self, world):
        self.db = Database(world.broker.db.url.render_as_string(hide_password=False))
        self.anchors = AnchorStore(self.db, world.broker.keyring)

    def do(self, call, /, *, now=NOW, **arguments):
        rule = getattr(rules, call)
        if call in ("acquire", "advance", "renew"):
            arguments["now"] = now
        return self.anchors.apply("vm-1", lambda record: rule(record, **arguments), now=now)

    def boot(self, holder="h", **more):
        return self.do("acquire", holder=holder, instance=None, **more)

    def advance(self, start, to, *, epoch=1, holder="h", now=NOW, escrow=None):
        base = BASE if start == ORIGIN else start
        return self.do(
            "advance", epoch=epoch, holder=holder, start=start, to=to, base=base, key_version=1,
            escrow=entry() if escrow is None else escrow, now=now,
        )  # fmt: skip


@pytest.fixture
def replicas(world):
    """Two processes; both remember the record: a store at point 1 in epoch 1 of holder h."""
    world.broker.add_vm("vm-1", mode="strict")
    pair = Replica(world), Replica(world)
    pair[0].boot()
    pair[0].do("provision", epoch=1, holder="h")
    pair[0].advance(ORIGIN, point(1))
    pair[1].do("renew", epoch=1, holder="h")
    pair[0].do("renew", epoch=1, holder="h")
    yield pair
    for one in pair:
        one.db.close()


def refused(call):
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.rule


@pytest.mark.rule("K49")
def test_a_lease_that_another_process_renewed_is_live(replicas):
    ours, theirs = replicas
    theirs.do("renew", epoch=1, holder="h", now=NOW + 20)
    assert refused(lambda: ours.boot("clone", now=NOW + LEASE_S + 5)) == "ANCHOR-LEASE"
    assert ours.boot("clone", now=NOW + 20 + LEASE_S + 5).epoch == 2


@pytest.mark.rule("K50")
def test_a_session_that_another_process_fenced_is_over(replicas):
    ours, theirs = replicas
    theirs.boot("other", now=NOW + LEASE_S + 1)
    assert refused(lambda: ours.advance(point(1), point(2))) == "ANCHOR-EPOCH"
    assert refused(lambda: ours.do("renew", epoch=1, holder="h")) == "ANCHOR-EPOCH"
    assert theirs.anchors.get("vm-1").point == point(1)


def test_what_would_change_nothing_is_decided_on_the_record_as_it_is(replicas):
    ours, theirs = replicas
    ours.do("seal", epoch=1, holder="h", point=point(1))
    assert ours.do("seal", epoch=1, holder="h", point=point(1)).epoch == 1  # repeated: harmless
    theirs.boot("other", now=NOW + 1)
    assert refused(lambda: ours.do("seal", epoch=1, holder="h", point=point(1))) == "ANCHOR-EPOCH"


def test_a_refusal_rests_on_the_record_as_it_is(replicas):
    ours, theirs = replicas
    ours.do("freeze", reason="x")
    assert refused(ours.boot) == "ANCHOR-FROZEN"
    ours.do("thaw", reason="x")
    theirs.do("freeze", reason="x")
    theirs.do("thaw", reason="x")
    theirs.boot("other")
    ours.do("freeze", reason="x")
    theirs.do("thaw", reason="x")
    assert ours.boot().epoch == 6


@pytest.mark.rule("SS-16")
@pytest.mark.parametrize("what", ["history", "lease_expires"])
def test_another_record_of_the_same_version_is_another_record(replicas, what):
    """The database was restored under a running broker, and others went on from there."""
    ours, theirs = replicas
    ours.advance(point(1), point(2))
    remembered = ours.anchors.get("vm-1")
    other = {"history": bytes(32), "lease_expires": remembered.lease.expires + 1}[what]
    with theirs.db.write() as connection:
        connection.execute(sa.update(VMS).values({what: other, "counter": 1, "root": point(1).root}))
    assert refused(lambda: ours.advance(point(2), point(3))) == "ANCHOR-PREDECESSOR"
    assert theirs.anchors.get("vm-1").version == remembered.version


def test_a_commit_in_doubt_is_forgotten(replicas, monkeypatch):
    ours, theirs = replicas
    whole = ours.db.transaction if ours.db.sqlite else ours.db.change

    def lost(*arguments):
        whole(*arguments)
        raise DatabaseDown("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(ours.db, "transaction" if ours.db.sqlite else "change", lost)
        with pytest.raises(DatabaseDown):
            ours.advance(point(1), point(2))
    assert not ours.anchors._last
    again = ours.advance(point(1), point(2))  # it did happen: idempotent
    assert (again.point, again.version) == (point(2), theirs.anchors.get("vm-1").version)


def test_an_advance_of_a_remembered_record_reads_nothing(replicas, monkeypatch):
    ours, theirs = replicas
    ran = []
    whole = Cursor.run
    monkeypatch.setattr(
        Cursor, "run", lambda cursor, statement, given: ran.append(statement) or whole(cursor, statement, given)
    )
    ours.advance(point(1), point(2))
    ours.advance(point(2), point(3))
    assert len(ran) == (4 if ours.db.sqlite else 2)
    assert not any(isinstance(statement.construct, sa.Select) for statement in ran)
    theirs.advance(point(3), point(4))
    ran.clear()
    ours.advance(point(4), point(5))
    assert sum(isinstance(statement.construct, sa.Select) for statement in ran) == 1


def test_many_items_leave_the_ring_at_once(replicas):
    ours, _ = replicas
    item = entry(bytes(1020))
    for n in range(1, 50):
        ours.advance(point(n), point(n + 1), escrow=item)
    after = ours.advance(point(50), point(51), escrow=item * 40)
    record, ring = ours.anchors.read_consistent("vm-1")
    assert record == after
    assert record.ring_bytes == len(ring) <= RING_BYTES
    kept = len(ring) // len(item) - 40
    assert 0 < kept < 50 - 16  # those that left were read in several goes
    assert record.base == point(50 - kept)
    with ours.db.read() as connection:  # what left it is gone
        held = connection.scalars(sa.select(HISTORY.c.version).where(HISTORY.c.escrow.is_not(None))).all()
    assert min(held) == record.ring_from
    assert len(held) == kept + 1


def test_record_and_ring_are_of_one_instant(replicas, monkeypatch):
    ours, theirs = replicas
    made, moved = anchors_module._record, []

    def between(row):
        if not moved:
            moved.append(True)
            theirs.advance(point(1), point(2))
        return made(row)

    with monkeypatch.context() as patch:
        patch.setattr(anchors_module, "_record", between)
        record, ring = ours.anchors.read_consistent("vm-1")
    assert moved
    assert (record.point, record.ring_bytes, len(ring)) == (point(1), len(ring), len(entry()))
    record, ring = ours.anchors.read_consistent("vm-1")
    assert (record.point, len(ring)) == (point(2), 2 * len(entry()))


def test_a_record_that_always_moves_on_is_given_up(replicas, monkeypatch):
    ours, _ = replicas
    monkeypatch.setattr(ours.anchors, "_moved", lambda *_: None)
    with pytest.raises(Refused) as caught:
        ours.do("renew", epoch=1, holder="h")
    assert (caught.value.status, caught.value.rule) == (503, "ANCHOR-BUSY")


def test_connections_are_given_back_as_they_were_taken(world):
    """One connection serves statements that are transactions by themselves and those that are not, in turn."""
    insert = Statement(sa.insert(COUNTERS), "name", "value")
    with contextlib.closing(Database(world.broker.db.url.render_as_string(hide_password=False))) as db:

        def half(cursor):
            cursor.run(insert, ("half", 1))
            raise ZeroDivisionError

        def half_by_the_pool():
            with db.write() as connection:
                connection.execute(sa.insert(COUNTERS), {"name": "half", "value": 1})
                raise ZeroDivisionError

        assert db.change(insert, "whole", 1) == 1
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                db.transaction(half)
            with pytest.raises(db.engine.dialect.loaded_dbapi.IntegrityError):
                db.change(insert, "whole", 1)
            with pytest.raises(ZeroDivisionError):
                half_by_the_pool()
        with db.read() as connection:
            names = set(connection.scalars(sa.select(COUNTERS.c.name)))
        assert "whole" in names
        assert "half" not in names
        assert db.engine.pool.checkedout() == 0


def test_every_transition_is_written_with_its_names_in_order(world):
    """`verify_history` sorts them."""
    world.broker.add_vm("vm-1", mode="strict")
    one = Replica(world)
    one.do("acquire", holder="h", instance="i")
    one.do("acquire", holder="h", instance="i", resume=1)
    one.do("provision", epoch=1, holder="h")
    one.advance(ORIGIN, point(1))
    one.do("rotate", reason="x")
    start = point(1)
    one.do("advance", epoch=1, holder="h", start=start, to=point(2), base=start, key_version=2, escrow=entry())
    one.do("finalise", reason="x")
    one.do("seal", epoch=1, holder="h", point=point(2))
    one.do("freeze", reason="x")
    one.do("thaw", reason="x")
    one.do("reset", point=point(3), store_id=bytes(16), reason="x")
    one.do("retire", reason="x")
    one.do("reset", point=None, store_id=bytes(16), reason="x")
    history = one.anchors.history("vm-1")
    assert {entry["kind"] for entry in history} == {
        "enrol", "acquire", "resume", "provision", "advance", "rotate", "finalise", "seal", "freeze", "thaw",
        "reset", "retire",
    }  # fmt: skip
    assert verify_history(history) is None
    one.db.close()


def test_no_more_records_are_remembered_than_allowed(world, monkeypatch):
    monkeypatch.setattr(anchors_module, "_REMEMBERED", 2)
    anchors = world.broker.anchors
    for name in ("vm-1", "vm-2", "vm-3"):
        world.broker.add_vm(name, mode="strict")
        anchors.apply(name, lambda r: rules.acquire(r, holder="h", instance=None, now=NOW), now=NOW)
    assert list(anchors._last) == ["vm-2", "vm-3"]
    anchors.apply("vm-2", lambda r: rules.renew(r, epoch=1, holder="h", now=NOW), now=NOW)
    assert list(anchors._last) == ["vm-3", "vm-2"]


@pytest.mark.rule("K59")
def test_replicas_that_remember_decide_as_one_that_reads(replicas, world):
    """Random calls through two processes and through one that remembers nothing: the same answers and records."""
    rng = random_module.Random(20261125)
    reads = Replica(world)  # on a record of its own
    fresh = rules.Record(vm_id="vm-0", store_id=bytes(16), mode="strict")
    reads.anchors.enrol(fresh, now=NOW, reason="x")
    world.broker.anchors.enrol(fresh._replace(vm_id="vm-9"), now=NOW, reason="x")

    def outcome(anchors, vm_id, change, now):
        try:
            record = anchors.apply(vm_id, change, now=now)
        except Refused as error:
            return error.rule
        assert record == anchors.get(vm_id)  # and so is what is remembered
        return record._replace(vm_id="", history=b"", store_id=b"")

    now, moved, refusals = NOW, 0, 0
    for step in range(400):
        now += rng.choice([0, 0, 1, 10, 31])
        at = reads.anchors.get("vm-0")
        epoch, holder = max(0, at.epoch - rng.choice([0, 0, 0, 0, 1])), rng.choice(["a", "a", "b"])
        to = AnchorPoint(at.point.counter + rng.choice([1, 1, 1, 0]), bytes([step % 256]) * 32)
        base = BASE if at.point == ORIGIN else at.point
        sealed, named = entry() * rng.choice([1, 1, 200]), {"epoch": epoch, "holder": holder}
        old = rng.choice([at.key_version, at.key_version, at.key_old or at.key_version])
        changes = {
            "acquire": {"holder": holder, "instance": None, "now": now},
            "provision": named,
            "advance": named | {"start": at.point, "to": to, "base": base, "key_version": old, "escrow": sealed,
                                "now": now},
            "renew": named | {"now": now},
            "seal": named | {"point": at.point},
            "freeze": {"reason": "x"}, "thaw": {"reason": "x"}, "rotate": {"reason": "x"},
            "finalise": {"reason": "x"},
        }  # fmt: skip
        name = rng.choices(list(changes), [20, 10, 60, 20, 10, 2, 10, 3, 3])[0]

        def change(record, name=name, arguments=changes[name]):
            return getattr(rules, name)(record, **arguments)

        reads.anchors._last.clear()
        wanted = outcome(reads.anchors, "vm-0", change, now)
        assert outcome(rng.choice(replicas).anchors, "vm-9", change, now) == wanted, (step, name)
        moved += not isinstance(wanted, str)
        refusals += isinstance(wanted, str)
    assert moved > 100
    assert refusals > 50
    assert verify_history(reads.anchors.history("vm-9")) is None
    with contextlib.closing(reads.db):
        assert reads.anchors.read_consistent("vm-9")[1] == reads.anchors.read_consistent("vm-0")[1]
