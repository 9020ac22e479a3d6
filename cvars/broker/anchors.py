"""Anchor records in the database: read, decide (`record`), then one conditional UPDATE on the version.

Whoever loses the race reads again and decides again, so that no decision rests on a record that has moved on.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from cvars.broker.database import HISTORY, VM_KEYS, VMS, Cursor, Database
from cvars.broker.record import RING_BYTES, RING_SLACK, Change, Lease, Record, Refused
from cvars.broker.secrets import Keyring
from cvars.release.encoding import compact
from cvars.store.anchor import AnchorPoint

_ATTEMPTS: Final = 64
_SELECT: Final = sa.select(VMS).where(VMS.c.vm_id == sa.bindparam("b_vm"))


@functools.cache
def _update(names: tuple[str, ...]) -> sa.Update:
    """The conditional UPDATE of these columns."""
    return (
        sa.update(VMS)
        .where(VMS.c.vm_id == sa.bindparam("b_vm"), VMS.c.version == sa.bindparam("b_version"))
        .values({name: sa.bindparam(name) for name in names})
    )


@functools.cache
def _joined(names: tuple[str, ...], *, forgets: bool) -> sa.Insert:
    """The conditional UPDATE; if it hit, the line of history, and what left the ring gone: one statement."""
    moved = _update(names).returning(VMS.c.vm_id).cte("moved")
    values = [sa.bindparam(f"h_{c.name}", type_=c.type).label(c.name) for c in HISTORY.c]
    line = sa.select(*values).select_from(moved)
    insert = sa.insert(HISTORY).from_select([c.name for c in HISTORY.c], line)
    if not forgets:
        return insert
    gone = _FORGET.where(HISTORY.c.vm_id.in_(sa.select(moved.c.vm_id))).returning(HISTORY.c.version).cte("gone")
    return insert.add_cte(gone)


_RENEW: Final = (
    sa.update(VMS)
    .where(VMS.c.vm_id == sa.bindparam("b_vm"), VMS.c.version == sa.bindparam("b_version"))
    .values(lease_expires=sa.bindparam("b_expires"))
)
_RING: Final = (
    sa.select(HISTORY.c.version, HISTORY.c.escrow, HISTORY.c.escrow_bytes, HISTORY.c.start_counter,
              HISTORY.c.start_root, HISTORY.c.key_version)
    .where(HISTORY.c.vm_id == sa.bindparam("b_vm"), HISTORY.c.version >= sa.bindparam("b_from"))
    .where(HISTORY.c.escrow.is_not(None))
    .order_by(HISTORY.c.version)
)  # fmt: skip
_RING_SIZES: Final = (
    sa.select(HISTORY.c.version, HISTORY.c.escrow_bytes, HISTORY.c.start_counter, HISTORY.c.start_root,
              HISTORY.c.key_version)
    .where(HISTORY.c.vm_id == sa.bindparam("b_vm"), HISTORY.c.version >= sa.bindparam("b_from"))
    .where(HISTORY.c.escrow.is_not(None))
    .order_by(HISTORY.c.version)
    .limit(sa.literal_column("16")).offset(sa.literal_column("0"))  # as text: constants are not parameters
)  # fmt: skip
_APPEND: Final = sa.insert(HISTORY)
_KEY: Final = sa.insert(VM_KEYS)
_DESTROY: Final = sa.delete(VM_KEYS).where(
    VM_KEYS.c.vm_id == sa.bindparam("b_vm"), VM_KEYS.c.key_version == sa.bindparam("b_key")
)
_NAMES: Final = tuple(c.name for c in VMS.c)
_FORGET: Final = (
    sa.update(HISTORY)
    .where(HISTORY.c.vm_id == sa.bindparam("b_vm"), HISTORY.c.version >= sa.bindparam("b_from"))
    .where(HISTORY.c.version <= sa.bindparam("b_upto"))
    .where(HISTORY.c.escrow.is_not(None))
    .values(escrow=sa.null())
)


class Exists(Exception):
    """A record of that name is there already."""


class AnchorStore:
    """All anchor records of one database."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._db = database
        self._keyring = keyring

    def get(self, vm_id: str) -> Record | None:
        """The record as it is now."""
        row = self._db.one(_SELECT, {"b_vm": vm_id})
        return None if row is None else _record(row)

    def all(self) -> list[Record]:
        """Every record, by name."""
        with self._db.read() as connection:
            return [_record(row) for row in connection.execute(sa.select(VMS).order_by(VMS.c.vm_id))]

    def read_consistent(self, vm_id: str) -> tuple[Record, bytes]:
        """Record and ring of one instant."""
        with self._db.write() as connection:
            record = _record(connection.execute(_SELECT, {"b_vm": vm_id}).one())
            ring = b"".join(
                bytes(r.escrow) for r in connection.execute(_RING, {"b_vm": vm_id, "b_from": record.ring_from})
            )
        return record, ring

    def enrol(self, record: Record, *, now: float, reason: str) -> Record:
        """Create the record and its VM master. Raises ``Exists``."""
        entry = _entry(record.vm_id, 1, now, "enrol", {"reason": reason, "identity": record.identity})
        digest = _link(bytes(32), entry)
        after = record._replace(version=1, history=digest)
        try:
            with self._db.write() as connection:
                connection.execute(sa.insert(VMS), dict(zip(_NAMES, _row(after), strict=True)))
                connection.execute(_KEY, self._fresh_key(record.vm_id, record.key_version))
                connection.execute(sa.insert(HISTORY), _history(after, entry, digest))
        except sa.exc.IntegrityError:
            raise Exists(record.vm_id) from None
        return after

    def apply(self, vm_id: str, decide: Callable[[Record], Change], *, now: float) -> Record:
        """Decide on the record and make it durable. Raises ``Refused``; 404 when there is no such record."""
        for _ in range(_ATTEMPTS):
            done = self._attempt(vm_id, decide, now)
            if done is not None:
                return done
        raise Refused(503, "broker.busy", "ANCHOR-BUSY", "too much contention on one record")

    def _attempt(self, vm_id: str, decide: Callable[[Record], Change], now: float) -> Record | None:
        """Read, decide and write; None when somebody else was faster.

        SQLite does it in one transaction. On PostgreSQL a change of record, history and ring is one statement
        and a transaction by itself; only keys that come or go need more.
        """
        if not self._db.sqlite:
            with self._db.statements() as cursor:
                found, change = self._decided(cursor, vm_id, decide)
                if not change.destroy and change.create is None:
                    return self._write(cursor, found, change, now, joined=True)
        with self._db.transaction() as cursor:
            found, change = self._decided(cursor, vm_id, decide)
            return self._write(cursor, found, change, now, joined=False)

    @staticmethod
    def _decided(cursor: Cursor, vm_id: str, decide: Callable[[Record], Change]) -> tuple[Record, Change]:
        row = cursor.run(_SELECT, {"b_vm": vm_id}).fetchone()
        if row is None:
            raise Refused(404, "anchor.unknown", "ANCHOR-UNKNOWN", "no record of that name")
        found = _record(row)
        return found, decide(found)

    def _write(self, cursor: Cursor, found: Record, change: Change, now: float, *, joined: bool) -> Record | None:
        if change.same:
            return change.record
        where = {"b_vm": found.vm_id, "b_version": found.version}
        if change.renewal:  # a longer lease is no transition of the record: no version, no history
            assert change.record.lease is not None
            done = cursor.run(_RENEW, where | {"b_expires": change.record.lease.expires})
            return change.record if done.rowcount == 1 else None
        version = change.record.version + 1
        entry = _entry(found.vm_id, version, now, change.kind, change.detail)
        digest = _link(change.record.history, entry)
        ring, forget = self._ring(cursor, change, version)
        after = change.record._replace(version=version, history=digest, **ring)
        columns = zip(_NAMES, _row(after), _row(found), strict=True)
        changed = {name: value for name, value, before in columns if value != before}
        names, line = tuple(changed), _history(after, entry, digest, change)
        gone = {"b_from": found.ring_from, "b_upto": forget}
        if joined:
            both = where | changed | {f"h_{name}": value for name, value in line.items()}
            statement = _joined(names, forgets=forget > 0)
            return after if cursor.run(statement, both | gone if forget else both).rowcount == 1 else None
        if cursor.run(_update(names), where | changed).rowcount != 1:
            return None
        cursor.run(_APPEND, line)
        if forget:
            cursor.run(_FORGET, where | gone)
        for key_version in change.destroy:
            cursor.run(_DESTROY, {"b_vm": found.vm_id, "b_key": key_version})
        if change.create is not None:
            cursor.run(_KEY, self._fresh_key(found.vm_id, change.create))
        return after

    def _ring(self, cursor: Cursor, change: Change, version: int) -> tuple[dict[str, Any], int]:
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
        for number, length, counter, root, key_version in _oldest(cursor, record):
            if size <= RING_BYTES and (change.drop_below is None or key_version >= change.drop_below):
                base = AnchorPoint(counter, bytes(root))
                break
            forget, size = number, size - length
        start = max(record.ring_from, forget + 1)
        return {"ring_bytes": size, "ring_from": start, "base": base}, forget

    def _fresh_key(self, vm_id: str, key_version: int) -> dict[str, Any]:
        wrapped = self._keyring.wrap(self._keyring.random(32), f"vm-master/{vm_id}/{key_version}".encode())
        return {"vm_id": vm_id, "key_version": key_version, "wrapped": wrapped}

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


def _oldest(cursor: Cursor, record: Record) -> Iterator[tuple[Any, ...]]:
    """The rows of the ring, oldest first: some leave it, and then several at once."""
    start = record.ring_from
    while rows := cursor.run(_RING_SIZES, {"b_vm": record.vm_id, "b_from": start}).fetchall():
        yield from rows
        start = rows[-1][0] + 1


def _entry(vm_id: str, version: int, now: float, kind: str, detail: dict[str, Any]) -> bytes:
    return compact({"vm_id": vm_id, "version": version, "at": round(now, 3), "kind": kind, "detail": detail})


def _link(previous: bytes, entry: bytes) -> bytes:
    return hashlib.sha256(previous + entry).digest()


def _history(after: Record, entry: bytes, digest: bytes, change: Change | None = None) -> dict[str, Any]:
    item = change.item if change else None
    return {
        "vm_id": after.vm_id,
        "version": after.version,
        "entry": entry.decode(),
        "hash": digest,
        "escrow": item.data if item else None,
        "escrow_bytes": len(item.data) if item else 0,
        "start_counter": item.start.counter if item else None,
        "start_root": item.start.root if item else None,
        "key_version": item.key_version if item else None,
    }


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
