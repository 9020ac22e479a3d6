"""One sealed record: 40 bytes in clear, ciphertext padded to its class, 16-byte tag.

Source: sealed-store section 6 "Record". The associated data is the prefix and the bank-relative offset, so a
record opens only where it was written (SS-5); the previous chain value is inside the ciphertext.
"""

import struct
from dataclasses import dataclass
from typing import Final

from cvars.store.geometry import CLASSES, RECORD_OVERHEAD
from cvars.store.keys import BankKeys
from cvars.store.operations import Malformed

MAGIC: Final = b"CVR1"
SESSION: Final = 1
TRANSACTION: Final = 2
SNAPSHOT_PART: Final = 3
SNAPSHOT_END: Final = 4
CLOSE: Final = 5
SECURITY: Final = 1
PREFIX_BYTES: Final = 40
INNER_BYTES: Final = 48
TAG_BYTES: Final = 16
ENGINE_BYTES: Final = 32
_PREFIX: Final = struct.Struct("<4sBBHQ16sQ")
_INNER: Final = struct.Struct("<32sBBHIQ")
_OFFSET: Final = struct.Struct("<Q")
_SESSION_BODY: Final = struct.Struct("<Q32sBBH32s")
_END_BODY: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a record shows to anybody."""

    suite: int
    class_index: int
    part: int
    session: int
    salt: bytes
    sequence: int

    @property
    def frames(self) -> int:
        """Length in frames."""
        return CLASSES[self.class_index]


@dataclass(frozen=True, slots=True)
class Opened:
    """An authentic record."""

    prefix: Prefix
    previous: bytes
    kind: int
    flags: int
    count: int
    live: int
    body: bytes
    size: int


def parse_prefix(raw: bytes | memoryview, at: int) -> Prefix | None:
    """Read the clear part at ``at``, or None when no record can begin there."""
    if raw[at : at + 4] != MAGIC or len(raw) - at < PREFIX_BYTES:
        return None
    _, suite, class_index, part, session, salt, sequence = _PREFIX.unpack_from(raw, at)
    if class_index >= len(CLASSES):
        return None
    return Prefix(suite, class_index, part, session, salt, sequence)


def seal(
    keys: BankKeys,
    *,
    frame: int,
    offset: int,
    class_index: int,
    part: int,
    session: int,
    salt: bytes,
    sequence: int,
    previous: bytes,
    kind: int,
    flags: int,
    count: int,
    live: int,
    body: bytes,
) -> bytes:
    """Seal one record for the bank-relative ``offset``. ``body`` fits the class."""
    prefix = _PREFIX.pack(MAGIC, keys.suite, class_index, part, session, salt, sequence)
    plain = _INNER.pack(previous, kind, flags, count, len(body), live) + body
    plain = plain.ljust(CLASSES[class_index] * frame - PREFIX_BYTES - TAG_BYTES, b"\0")
    return prefix + keys.session(session, salt).seal(sequence, part, plain, prefix + _OFFSET.pack(offset))


def unseal(
    raw: bytes | memoryview, at: int, keys: BankKeys, *, frame: int, offset: int, end: int
) -> Opened | None:
    """Open the record at ``raw[at:]`` whose bank-relative offset is ``offset``; None: not authentic there.

    ``end``: where ``raw`` stops to belong to the bank. Raises Malformed: authentic, but not format 1.
    """
    prefix = parse_prefix(raw, at)
    if prefix is None or prefix.suite != keys.suite:
        return None
    size = CLASSES[prefix.class_index] * frame
    if at + size > end:
        return None
    associated = bytes(raw[at : at + PREFIX_BYTES]) + _OFFSET.pack(offset)
    sealed = raw[at + PREFIX_BYTES : at + size]
    plain = keys.session(prefix.session, prefix.salt).open(prefix.sequence, prefix.part, sealed, associated)
    if plain is None:
        return None
    previous, kind, flags, count, body_bytes, live = _INNER.unpack_from(plain)
    body_end = INNER_BYTES + body_bytes
    if plain.count(0, body_end) != len(plain) - body_end:  # negative when the length is wrong
        raise Malformed("a record's length is wrong or its padding is not zero")
    if not SESSION <= kind <= CLOSE or flags & ~SECURITY:
        raise Malformed(f"record kind {kind}, flags {flags:#x}")
    return Opened(prefix, previous, kind, flags, count, live, plain[INNER_BYTES:body_end], size)


@dataclass(frozen=True, slots=True)
class Announcement:
    """Body of a session record: who writes from here on, and under which mode."""

    anchor_version: int
    statement_sha256: bytes
    mode: int
    window: int
    engine: str

    def encode(self) -> bytes:
        """76 bytes."""
        return _SESSION_BODY.pack(
            self.anchor_version, self.statement_sha256, self.mode, 0, self.window, self.engine.encode()
        )

    @classmethod
    def parse(cls, body: bytes) -> "Announcement":
        """Parse an authentic body."""
        if len(body) != _SESSION_BODY.size:
            raise Malformed(f"a session body of {len(body)} bytes")
        version, statement, mode, zero, window, engine = _SESSION_BODY.unpack(body)
        if zero or mode > 4:
            raise Malformed(f"a session of mode {mode}")
        return cls(version, statement, mode, window, engine.rstrip(b"\0").decode("ascii", "replace"))


def end_body(parts: int, operations: int) -> bytes:
    """Body of SNAPSHOT_END."""
    return _END_BODY.pack(parts, operations)


ANNOUNCEMENT_BYTES: Final = RECORD_OVERHEAD + _SESSION_BODY.size
