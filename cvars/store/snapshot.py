"""The sealed snapshot of a bank: all live variables, cut into parts. Source: sealed-store 6.1 "Snapshot".

Deterministic: header, session salt and state give the same bytes again, so the escrow of a compaction is 528
bytes and a repair can rebuild it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cvars.store import record
from cvars.store.geometry import HEADER_BLOCK, PART_CLASS, Geometry
from cvars.store.header import BankHeader
from cvars.store.keys import BankKeys
from cvars.store.operations import Malformed, encode, replay
from cvars.variables.model import Key, Put, Variable


class Damage(Exception):
    """Bytes that the store relies on do not verify. ``offset`` is bank-relative."""

    def __init__(self, offset: int, record_number: int | None, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.record_number = record_number
        self.message = message


@dataclass(frozen=True, slots=True)
class Built:
    """A snapshot ready to be written: the finished header and the sealed bytes behind the header block."""

    header: BankHeader
    sealed: bytes
    live: int


def build(
    header: BankHeader,
    keys: BankKeys,
    geometry: Geometry,
    variables: Mapping[Key, Variable],
    *,
    salt: bytes,
) -> Built:
    """Seal ``variables`` for ``header``, whose sizes and snapshot digest are filled in here."""
    encoded = [encode(Put(k, variables[k])) for k in sorted(variables, key=lambda k: k.sort_bytes)]
    stream = b"".join(encoded)
    live = len(stream)
    parts = geometry.parts_for(live)
    header = replace(
        header,
        snapshot_bytes=geometry.snapshot_bytes(parts),
        snapshot_records=parts + 1,
        snapshot_digest=bytes(32),
    )
    room = geometry.part_payload
    begins = [0] * parts
    at = 0
    for one in encoded:
        begins[at // room] += 1
        at += len(one)
    chain = keys.chain_start(header.chained_bytes)
    out: list[bytes] = []
    offset = HEADER_BLOCK
    for number in range(parts + 1):
        last = number == parts
        body = record.end_body(parts, len(encoded)) if last else stream[number * room : (number + 1) * room]
        sealed = record.seal(
            keys,
            frame=geometry.frame,
            offset=offset,
            class_index=0 if last else PART_CLASS,
            part=number,
            session=header.session,
            salt=salt,
            sequence=header.base_sequence,
            previous=chain,
            kind=record.SNAPSHOT_END if last else record.SNAPSHOT_PART,
            flags=0,
            count=0 if last else begins[number],
            live=live,
            body=body,
        )
        chain = keys.chain(chain, sealed)
        out.append(sealed)
        offset += len(sealed)
    return Built(replace(header, snapshot_digest=chain), b"".join(out), live)


@dataclass(frozen=True, slots=True)
class Read:
    """A verified snapshot."""

    variables: dict[Key, Variable]
    live: int
    salt: bytes


def read(header: BankHeader, keys: BankKeys, geometry: Geometry, bank: memoryview) -> Read:
    """Open and verify the whole snapshot of ``bank``. Raises Damage."""
    parts = header.snapshot_records - 1
    if (
        not 0 < parts <= 7 * geometry.parts_per_step
        or parts % geometry.parts_per_step
        or header.snapshot_bytes != geometry.snapshot_bytes(parts)
    ):
        raise Damage(0, None, "the header names a snapshot of a size that none has")
    chain = keys.chain_start(header.chained_bytes)
    bodies: list[bytes] = []
    counts = 0
    offset = HEADER_BLOCK
    salt: bytes | None = None
    live = 0
    for number in range(parts + 1):
        last = number == parts
        try:
            one = record.unseal(bank, offset, keys, frame=geometry.frame, offset=offset, end=len(bank))
        except Malformed as error:
            raise Damage(offset, number, str(error)) from None
        if one is None:
            raise Damage(offset, number, f"snapshot part {number}: authentication failed")
        if (
            one.kind != (record.SNAPSHOT_END if last else record.SNAPSHOT_PART)
            or one.prefix.class_index != (0 if last else PART_CLASS)
            or one.prefix.part != number
            or one.prefix.session != header.session
            or one.prefix.sequence != header.base_sequence
            or one.prefix.salt != (salt or one.prefix.salt)
            or (number and one.live != live)
            or one.flags
            or one.previous != chain
        ):
            raise Damage(offset, number, f"snapshot part {number} does not belong to this snapshot")
        if last and (one.count or one.body != record.end_body(parts, counts)):
            raise Damage(offset, number, "the snapshot's end disagrees with its parts")
        if not last:
            if bodies and one.body and len(bodies[-1]) != geometry.part_payload:
                raise Damage(offset, number, f"snapshot part {number} follows one that is not full")
            bodies.append(one.body)
            counts += one.count
        salt, live = one.prefix.salt, one.live
        chain = keys.chain(chain, bank[offset : offset + one.size])
        offset += one.size
    if chain != header.snapshot_digest:
        raise Damage(0, None, "the snapshot is not the one that the header names")
    variables: dict[Key, Variable] = {}
    stream = b"".join(bodies)
    try:
        total = replay(stream, counts, variables, 0, puts_only=True)
    except Malformed as error:
        raise Damage(HEADER_BLOCK, None, f"snapshot: {error}") from None
    if total != live or total != len(stream) or total > geometry.capacity:
        raise Damage(HEADER_BLOCK, None, "the snapshot's live bytes disagree with its content")
    assert salt is not None
    return Read(variables, live, salt)
