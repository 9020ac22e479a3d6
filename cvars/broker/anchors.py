"""Anchor records in the database: decide (`record`), then one conditional UPDATE of the record decided on.

A process decides on the record as it wrote it last and reads only what it does not remember, or what the rules
refuse; whoever loses the race reads and decides again. No decision rests on a record that has moved on (`_SAME`).
"""

import collections
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from cvars.broker.database import HISTORY, VM_KEYS, VMS, Cursor, Database, Statement
from cvars.broker.record import RING_BYTES, RING_SLACK, Change, Lease, Record, Refused
from cvars.broker.secrets import Keyring
from cvars.release.encoding import compact, ordered
from cvars.store.anchor import AnchorPoint

_ATTEMPTS: Final = 64
_REMEMBERED: Final = 1024  # records, of about 2 KiB
_VM_NAMES: Final = tuple(c.name for c in VMS.c)
_SELECT: Final = sa.select(VMS).where(VMS.c.vm_id == sa.bindparam("b_vm"))
_READ: Final = Statement(_SELECT, "b_vm")
#: still the record that was decided on: a transition moves version and chain, a renewal the end of the lease
_SAME: Final = (
    VMS.c.vm_id == sa.bindparam("b_vm"),
    VMS.c.version == sa.bindparam("b_version"),
    VMS.c.history == sa.bindparam("b_history"),
    VMS.c.lease_expires.is_not_distinct_from(sa.bindparam("b_expires")),
)


_SAME_NAMES: Final = ("b_vm", "b_version", "b_history", "b_expires")
_UPDATE: Final = sa.update(VMS).where(*_SAME).values({name: sa.bindparam(f"v_{name}") for name in _VM_NAMES[1:]})
_UPDATE_NAMES: Final = (*(f"v_{name}" for name in _VM_NAMES[1:]), *_SAME_NAMES)
_MOVE: Final = Statement(_UPDATE, *_UPDATE_NAMES)
_RENEW: Final = Statement(
    sa.update(VMS).where(*_SAME).values(lease_expires=sa.bindparam("v_expires")), "v_expires", *_SAME_NAMES
)
_RING: Final = (
    sa.select(HISTORY.c.escrow)
    .where(HISTORY.c.vm_id == sa.bindparam("b_vm"), HISTORY.c.version >= sa.bindparam("b_from"))
    .where(HISTORY.c.escrow.is_not(None))
    .order_by(HISTORY.c.version)
)  # fmt: skip
_OLDEST: Final = Statement(
    sa.select(HISTORY.c.version, HISTORY.c.escrow_bytes, HISTORY.c.start_counter, HISTORY.c.start_root,
              HISTORY.c.key_version)
    .where(HISTORY.c.vm_id == sa.bindparam("b_vm"), HISTORY.c.version >= sa.bindparam("b_from"))
    .where(HISTORY.c.escrow.is_not(None))
    .order_by(HISTORY.c.version)
    .limit(sa.literal_column("16")).offset(sa.literal_column("0")),  # as text: constants are not parameters
    "b_vm", "b_from",
)  # fmt: skip
_LINE_NAMES: Final = tuple(c.name for c in HISTORY.c)
_APPEND: Final = Statement(sa.insert(HISTORY), *_LINE_NAMES)
_KEY: Final = Statement(sa.insert(VM_KEYS), *(c.name for c in VM_KEYS.c))
_DESTROY: Final = Statement(
    sa.delete(VM_KEYS).where(
        VM_KEYS.c.vm_id == sa.bindparam("b_vm"), VM_KEYS.c.key_version == sa.bindparam("b_key")
    ),
    "b_vm", "b_key",
)  # fmt: skip
_GONE: Final = (
    sa.update(HISTORY)
    .where(HISTORY.c.vm_id == sa.bindparam("b_vm"), HISTORY.c.version >= sa.bindparam("b_from"))
    .where(HISTORY.c.version <= sa.bindparam("b_upto"))
    .where(HISTORY.c.escrow.is_not(None))
    .values(escrow=sa.null())
)
_FORGET: Final = Statement(_GONE, "b_vm", "b_from", "b_upto")


def _joined(*, forgets: bool) -> Statement:
    """The conditional UPDATE; if it hit, the line of history, and what left the ring gone: one statement."""
    moved = _UPDATE.returning(VMS.c.vm_id).cte("moved")
    values = [sa.bindparam(f"h_{c.name}", type_=c.type).label(c.name) for c in HISTORY.c]
    insert = sa.insert(HISTORY).from_select(_LINE_NAMES, sa.select(*values).select_from(moved))
    names = *_UPDATE_NAMES, *(f"h_{name}" for name in _LINE_NAMES)
    if not forgets:
        return Statement(insert, *names)
    gone = _GONE.where(HISTORY.c.vm_id.in_(sa.select(moved.c.vm_id))).returning(HISTORY.c.version).cte("gone")
    return Statement(insert.add_cte(gone), *names, "b_from", "b_upto")


_JOINED: Final = _joined(forgets=False)
_JOINED_FORGETS: Final = _joined(forgets=True)


class Exists(Exception):
    """A record of that name is there already."""


class AnchorStore:
    """All anchor records of one database."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._db = database
        self._keyring = keyring
        self._last: collections.OrderedDict[str, Record] = collections.OrderedDict()  # as this process left them

    def get(self, vm_id: str) -> Record | None:
        """The record as it is now."""
        row = self._db.one(_READ, vm_id)
        return None if row is None else _record(row)

    def all(self) -> list[Record]:
        """Every record, by name."""
        with self._db.read() as connection:
            return [_record(row) for row in connection.execute(sa.select(VMS).order_by(VMS.c.vm_id))]

    def read_consistent(self, vm_id: str) -> tuple[Record, bytes]:
        """Record and ring of one instant."""
        with self._db.snapshot() as connection:
            record = _record(connection.execute(_SELECT, {"b_vm": vm_id}).one())
            items = connection.scalars(_RING, {"b_vm": vm_id, "b_from": record.ring_from})
            ring = b"".join(map(bytes, items))
        return record, ring

    def enrol(self, record: Record, *, now: float, reason: str) -> Record:
        """Create the record and its VM master. Raises ``Exists``."""
        entry = _entry(record.vm_id, 1, now, "enrol", {"identity": record.identity, "reason": reason})
        digest = _link(bytes(32), entry)
        after = record._replace(version=1, history=digest)
        try:
            with self._db.write() as connection:
                connection.execute(sa.insert(VMS).values(_row(after)))
                connection.execute(sa.insert(VM_KEYS).values(self._fresh_key(record.vm_id, record.key_version)))
                connection.execute(sa.insert(HISTORY).values(_line(after, entry, digest)))
        except sa.exc.IntegrityError:
            raise Exists(record.vm_id) from None
        return after

    def apply(self, vm_id: str, decide: Callable[[Record], Change], *, now: float) -> Record:
        """Decide on the record and make it durable. Raises ``Refused``; 404 when there is no such record."""
        known = self._last.pop(vm_id, None)  # whatever fails now is read anew
        for _ in range(_ATTEMPTS):
            found, change = self._decided(vm_id, known, decide)
            done = found if change.same else self._moved(found, change, now)
            if done is not None:
                self._last[vm_id] = done
                if len(self._last) > _REMEMBERED:
                    self._last.popitem(last=False)
                return done
            known = None
        raise Refused(503, "broker.busy", "ANCHOR-BUSY", "too much contention on one record")

    def _decided(
        self, vm_id: str, known: Record | None, decide: Callable[[Record], Change]
    ) -> tuple[Record, Change]:
        """The change, and the record it rests on: ``known``, or as it is now where that does not do."""
        if known is not None:
            try:
                change = decide(known)
            except Refused:  # perhaps not as it is by now
                pass
            else:
                if not change.same:  # what writes nothing would not notice that the record moved on
                    return known, change
        found = self.get(vm_id)
        if found is None:
            raise Refused(404, "anchor.unknown", "ANCHOR-UNKNOWN", "no record of that name")
        return found, decide(found)

    def _moved(self, found: Record, change: Change, now: float) -> Record | None:
        """The record after the change, durably, if it still is what was ``found``; None when it is not.

        All is made before the transaction, which others wait for. On PostgreSQL record, history and ring are one
        statement; only keys that come or go take several.
        """
        same = found.vm_id, found.version, found.history, found.lease and found.lease.expires
        if change.renewal:  # a longer lease is no transition of the record: no version, no history
            assert change.record.lease is not None
            return change.record if self._db.change(_RENEW, change.record.lease.expires, *same) else None
        version = change.record.version + 1
        entry = _entry(found.vm_id, version, now, change.kind, change.detail)
        digest = _link(change.record.history, entry)
        ring, forget = self._ring(change, version)
        after = change.record._replace(version=version, history=digest, **ring)
        move, line = _row(after)[1:] + same, _line(after, entry, digest, change)
        gone = found.ring_from, forget
        fresh = None if change.create is None else self._fresh_key(found.vm_id, change.create)
        if not self._db.sqlite and not change.destroy and fresh is None:
            joined = (_JOINED_FORGETS, *move, *line, *gone) if forget else (_JOINED, *move, *line)
            return after if self._db.change(*joined) else None

        def write(cursor: Cursor) -> bool:
            if cursor.run(_MOVE, move) != 1:
                return False
            cursor.run(_APPEND, line)
            if forget:
                cursor.run(_FORGET, (found.vm_id, *gone))
            for key_version in change.destroy:
                cursor.run(_DESTROY, (found.vm_id, key_version))
            if fresh is not None:
                cursor.run(_KEY, fresh)
            return True

        return after if self._db.transaction(write) else None

    def _ring(self, change: Change, version: int) -> tuple[dict[str, Any], int]:
        """The ring after the change: (its members of the record, history version to forget up to, or 0)."""
        record, added = change.record, len(change.item.data) if change.item else 0
        if change.restart:
            return {"ring_bytes": added, "ring_from": version}, version - 1
        if change.item is None and change.drop_below is None:
            return {}, 0
        size = record.ring_bytes + added
        if change.drop_below is None and size <= RING_BYTES + RING_SLACK:
            return {"ring_bytes": size}, 0
        base, forget = change.item.start if change.item else record.point, 0
        for number, length, counter, root, key_version in self._oldest(record):
            if size <= RING_BYTES and (change.drop_below is None or key_version >= change.drop_below):
                base = AnchorPoint(counter, bytes(root))
                break
            forget, size = number, size - length
        start = max(record.ring_from, forget + 1)
        return {"ring_bytes": size, "ring_from": start, "base": base}, forget

    def _oldest(self, record: Record) -> Iterator[tuple[Any, ...]]:
        """The rows of the ring, oldest first: some leave it, and then several at once."""
        start = record.ring_from
        while rows := self._db.rows(_OLDEST, record.vm_id, start):
            yield from rows
            start = rows[-1][0] + 1

    def _fresh_key(self, vm_id: str, key_version: int) -> tuple[str, int, bytes]:
        """The columns of `VM_KEYS`."""
        wrapped = self._keyring.wrap(self._keyring.random(32), f"vm-master/{vm_id}/{key_version}".encode())
        return vm_id, key_version, wrapped

    def store_keys(self, vm_id: str, versions: Sequence[int]) -> list[bytes] | None:
        """The derived 32-byte store keys, in that order; None when one was destroyed."""
        with self._db.read() as connection:
            query = sa.select(VM_KEYS.c.key_version, VM_KEYS.c.wrapped).where(VM_KEYS.c.vm_id == vm_id)
            found = {row.key_version: bytes(row.wrapped) for row in connection.execute(query)}
        if not all(version in found for version in versions):
            return None
        out = []
        for version in versions:
            master = self._keyring.unwrap(found[version], f"vm-master/{vm_id}/{version}".encode())
            out.append(self._keyring.store_key(master, vm_id, version))
        return out

    def history(self, vm_id: str, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """The transitions of a record in order, each with its hash in hex."""
        query = (
            sa.select(HISTORY.c.entry, HISTORY.c.hash)
            .where(HISTORY.c.vm_id == vm_id, HISTORY.c.version > after)
            .order_by(HISTORY.c.version)
            .limit(limit)
        )
        with self._db.read() as connection:
            return [json.loads(r.entry) | {"hash": bytes(r.hash).hex()} for r in connection.execute(query)]


def verify_history(entries: Sequence[dict[str, Any]]) -> int | None:
    """The version of the first entry that breaks the chain, or None (a complete history from version 1)."""
    previous = bytes(32)
    for number, line in enumerate(entries, 1):
        entry = {k: v for k, v in line.items() if k != "hash"}
        previous = _link(previous, compact(entry))
        if line["hash"] != previous.hex() or line["version"] != number:
            return number
    return None


def _entry(vm_id: str, version: int, now: float, kind: str, detail: dict[str, Any]) -> bytes:
    return ordered({"at": round(now, 3), "detail": detail, "kind": kind, "version": version, "vm_id": vm_id})


def _link(previous: bytes, entry: bytes) -> bytes:
    return hashlib.sha256(previous + entry).digest()


def _line(after: Record, entry: bytes, digest: bytes, change: Change | None = None) -> tuple[Any, ...]:
    """The columns of `HISTORY`, in their order."""
    line = after.vm_id, after.version, entry.decode(), digest
    item = change.item if change else None
    if item is None:
        return *line, None, 0, None, None, None
    return *line, item.data, len(item.data), item.start.counter, item.start.root, item.key_version


def _row(record: Record) -> tuple[Any, ...]:
    """The columns of `VMS`, in their order."""
    point, previous, base = record.point, record.previous, record.base
    holder, instance, expires = record.lease or (None, None, None)
    return (
        record.vm_id,
        record.store_id,
        record.policy,
        record.mode,
        record.state,
        record.thawed,
        record.epoch,
        point.counter,
        point.root,
        previous.counter,
        previous.root,
        record.advance_epoch,
        base.counter,
        base.root,
        record.ring_bytes,
        record.ring_from,
        record.key_version,
        record.key_old,
        record.key_written_epoch,
        record.floor_format,
        ",".join(map(str, record.floor_suites)),
        record.version,
        holder,
        instance,
        expires,
        record.acquires,
        record.provision_epoch,
        record.identity,
        record.history,
    )


def _record(row: Sequence[Any]) -> Record:
    """The opposite: points and lease are two and three columns, the rest is one each."""

    def point(at: int) -> AnchorPoint:
        return AnchorPoint(row[at], bytes(row[at + 1]))

    suites = tuple(map(int, row[20].split(",")))
    lease = Lease(*row[22:25]) if row[22] else None
    return Record._make((
        row[0], bytes(row[1]), *row[2:7], point(7), point(9), row[11], point(12), *row[14:20], suites, row[21],
        lease, *row[25:28], bytes(row[28]),
    ))  # fmt: skip
