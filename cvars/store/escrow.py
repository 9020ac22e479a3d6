"""The broker's escrow ring: sealed bytes of the last commits, and how a store is repaired from them.

Source: sealed-store 4 item 7 and 6.1 "Escrow encoding". Everything is checked before the first byte is
written; each entry is then written with the flushes of the original.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cvars.store import record, snapshot
from cvars.store.anchor import Acquired, AnchorPoint
from cvars.store.geometry import HEADER_BLOCK, HEADER_BYTES
from cvars.store.header import BANK_MAGIC, BankHeader, header_block, mac_matches
from cvars.store.history import History, begin
from cvars.store.keys import StoreKeys
from cvars.store.operations import Malformed
from cvars.store.snapshot import Damage

RING_BYTES: Final = 64 << 10
COMPACTION_BYTES: Final = HEADER_BYTES + 16


def encode(entries: Iterable[bytes | memoryview]) -> bytes:
    """Each entry as u32 length and bytes."""
    return b"".join(len(e).to_bytes(4, "little") + e for e in entries)


def decode(ring: bytes) -> tuple[bytes, ...]:
    """Split a ring. Raises Malformed: the broker's bytes are not entries."""
    entries: list[bytes] = []
    at = 0
    while at < len(ring):
        size = int.from_bytes(ring[at : at + 4], "little")
        entry = ring[at + 4 : at + 4 + size]
        if len(entry) != size or sequence_of(entry) is None:
            raise Malformed(f"escrow entry {len(entries)} is not a record or a bank header")
        entries.append(entry)
        at += 4 + size
    return tuple(entries)


def sequence_of(entry: bytes) -> int | None:
    """The sequence that an entry claims; None when it is neither kind of entry."""
    if entry[:8] == BANK_MAGIC and len(entry) == COMPACTION_BYTES:
        return BankHeader.parse(entry[:HEADER_BYTES]).base_sequence
    prefix = record.parse_prefix(entry, 0)
    return None if prefix is None else prefix.sequence


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a repair, at an image offset, followed by a barrier."""

    offset: int
    data: bytes
    erases: bool = False


@dataclass(frozen=True, slots=True)
class Repair:
    """A checked plan: writes in order, and the history they lead to."""

    writes: tuple[Write, ...]
    history: History
    commits: int


def plan(history: History, acquired: Acquired, keys: StoreKeys) -> Repair | None:
    """Replay the ring behind ``history``'s last commit, in memory.

    None unless the last commit is a point of the ring and the entries after it end exactly at the anchored
    root. ``history`` itself is moved: read the bank again to go on with it.
    """
    entries = decode(acquired.escrow)
    if history.point.counter < acquired.base.counter:
        return None
    if history.point.counter == acquired.base.counter and history.point.root != acquired.base.root:
        return None
    wanted = [e for e in entries if (sequence_of(e) or 0) > history.point.counter]
    writes: list[Write] = []
    now = history
    commits = 0
    try:
        for entry in wanted:
            if entry[:8] == BANK_MAGIC:
                now = _compaction(now, entry, keys, writes)
            else:
                commits += _record(now, entry, writes)
    except (Damage, Malformed):
        return None
    if now.point != acquired.point:
        return None
    return Repair(tuple(writes), now, commits)


def _record(now: History, entry: bytes, writes: list[Write]) -> bool:
    one = record.unseal(
        entry, 0, now.keys, frame=now.geometry.frame, offset=now.tail, end=min(len(entry), now.room)
    )
    if one is None or one.size != len(entry):
        raise Malformed("an escrow entry does not open here")
    at = now.header.bank_offset + now.tail
    commit = now.accept(one, entry)
    writes.append(Write(at, entry))
    return commit.kind == record.TRANSACTION


def _compaction(now: History, entry: bytes, keys: StoreKeys, writes: list[Write]) -> History:
    raw, salt = entry[:HEADER_BYTES], entry[HEADER_BYTES:]
    header = BankHeader.parse(raw)
    root = keys.root(header.key_version)
    if root is None or not mac_matches(raw, root.header_key):
        raise Malformed("an escrow header does not verify")
    if (
        header.parent_point != now.point
        or header.generation <= now.header.generation
        or header.bank_offset != now.geometry.other(now.header.bank_offset)
        or header.geometry != now.geometry
    ):
        raise Malformed("an escrow header does not follow; a creation never does")
    bank_keys = root.bank(
        generation=header.generation,
        bank_salt=header.bank_salt,
        suite=header.suite,
        geometry=now.geometry,
        bank_offset=header.bank_offset,
    )
    built = snapshot.build(header, bank_keys, now.geometry, now.variables, salt=salt)
    if built.header != header:
        raise Malformed("an escrow header names another snapshot")
    writes.append(Write(header.bank_offset + HEADER_BLOCK, built.sealed, erases=True))
    writes.append(Write(header.bank_offset, header_block(raw)))
    return begin(header, bank_keys, now.geometry, snapshot.Read(now.variables, built.live, salt), raw)


def ring_points(history: History, acquired: Acquired) -> set[AnchorPoint]:
    """Points of the ring that ``history``'s keys can name: the base, and the point before each entry."""
    points = {acquired.base, acquired.point}
    try:
        entries = decode(acquired.escrow)
    except Malformed:
        return points
    offsets = {c.point.counter: c.offset for c in history.commits}
    for entry in entries:
        sequence = sequence_of(entry) or 0
        if entry[:8] == BANK_MAGIC:
            parent = BankHeader.parse(entry[:HEADER_BYTES]).parent_point
            if parent is not None:
                points.add(parent)
            continue
        for offset in {offsets.get(sequence), history.tail} - {None}:
            try:
                one = record.unseal(
                    entry,
                    0,
                    history.keys,
                    frame=history.geometry.frame,
                    offset=offset or 0,
                    end=len(entry),
                )
            except Malformed:
                continue
            if one is not None:
                points.add(AnchorPoint(sequence - 1, one.previous))
    return points
