"""What a host can learn from an image without any key: geometry, versions, classes, sequence numbers.

Everything here is unauthenticated: a host can write what it likes into these fields. `construct` declares the
layouts beside the engine's `struct` ones, as an independent reading (sealed-store section 8).
"""

from dataclasses import dataclass
from typing import Any, Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from cvars.store.geometry import CLASSES, FRAMES, HEADER_BLOCK, Geometry

BANK_HEADER: Final = Struct(
    "Magic" / Bytes(8),  # 0
    "Major" / Int16ul,  # 8
    "Minor" / Int16ul,
    "Suite" / Int8ul,  # 12
    "Medium" / Int8ul,
    "Log2Frame" / Int8ul,
    "Mode" / Int8ul,
    "ImageSize" / Int64ul,  # 16
    "BankOffset" / Int64ul,
    "BankSize" / Int64ul,
    "Generation" / Int64ul,  # 40
    "StoreId" / Bytes(16),  # 48
    "VmBinding" / Bytes(16),
    "KeyVersion" / Int32ul,  # 80
    "FeatureFlags" / Int32ul,
    "BaseSequence" / Int64ul,  # 88
    "Session" / Int64ul,
    "BankSalt" / Bytes(32),  # 104
    "ParentChain" / Bytes(32),
    "SnapshotLength" / Int64ul,  # 168
    "SnapshotRecords" / Int32ul,
    "PreviousKeyVersion" / Int32ul,
    "AnchorCounter" / Int64ul,  # 184
    "AnchorRoot" / Bytes(32),
    "SnapshotDigest" / Bytes(32),  # 224
    "KeyCheck" / Bytes(32),  # 256
    "Window" / Int16ul,  # 288
    "Reserved" / Bytes(158),  # 290
    "Mac" / Bytes(64),  # 448
)
RECORD_PREFIX: Final = Struct(
    "Magic" / Bytes(4),  # 0
    "Suite" / Int8ul,  # 4
    "Class" / Int8ul,
    "Part" / Int16ul,
    "Session" / Int64ul,  # 8
    "SessionSalt" / Bytes(16),  # 16
    "Sequence" / Int64ul,  # 32
)
CREATION_HEADER: Final = Struct(
    "Magic" / Bytes(8),  # 0
    "Major" / Int16ul,  # 8
    "Minor" / Int16ul,
    "Log2Frame" / Int8ul,  # 12
    "Medium" / Int8ul,
    Padding(2),
    "ImageSize" / Int64ul,  # 16
    "RequestId" / Bytes(16),  # 24
    "AuxLength" / Int16ul,  # 40
)
FREE, SNAPSHOT, LOG = "free", "snapshot", "log"


@dataclass(frozen=True, slots=True)
class SeenRecord:
    """A record's clear part, where it lies in the image."""

    offset: int
    size: int
    part: int
    session: int
    sequence: int
    place: str


@dataclass(frozen=True, slots=True)
class SeenBank:
    """A bank as an observer sees it; ``header`` holds the clear fields, None without the magic."""

    number: int
    offset: int
    header: dict[str, Any] | None
    records: tuple[SeenRecord, ...]
    used_to: int


@dataclass(frozen=True, slots=True)
class Seen:
    """All that an image shows."""

    image_size: int
    frame: int | None
    creation: dict[str, Any] | None
    banks: tuple[SeenBank, ...]


def inspect(image: bytes) -> Seen:
    """Describe ``image`` without a key. Never raises on any bytes."""
    half = len(image) // 2
    banks = tuple(_bank(image, number, offset, half) for number, offset in enumerate((0, half)))
    creation = None
    if image[:8] == b"CVFSINIT" and len(image) >= CREATION_HEADER.sizeof():
        creation = _plain(CREATION_HEADER.parse(image))
    logs = [b.header["Log2Frame"] for b in banks if b.header] + ([creation["Log2Frame"]] if creation else [])
    frame = 1 << logs[0] if logs and logs[0] < 16 else None
    return Seen(len(image), frame, creation, banks)


def _plain(parsed: Any) -> dict[str, Any]:  # noqa: ANN401 - a construct container
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in parsed.items()
        if not name.startswith("_")
    }


def _bank(image: bytes, number: int, offset: int, size: int) -> SeenBank:
    raw = memoryview(image)[offset : offset + size]
    if bytes(raw[:8]) != b"CVFSBNK1" or len(raw) < HEADER_BLOCK:
        return SeenBank(number, offset, None, (), 0)
    header = BANK_HEADER.parse(bytes(raw[: BANK_HEADER.sizeof()]))
    frame = 1 << header.Log2Frame if header.Log2Frame < 16 else 0
    records: list[SeenRecord] = []
    at = HEADER_BLOCK
    if frame in FRAMES and Geometry.of(len(image), frame):
        snapshot_end = HEADER_BLOCK + header.SnapshotLength
        while at < size:
            seen = _record(raw, at, frame, at < snapshot_end, offset)
            if seen is None:
                break
            last = records[-1] if records else None
            if seen.place == LOG and last is not None and seen.sequence != last.sequence + 1:
                break
            records.append(seen)
            at += seen.size
    return SeenBank(number, offset, _plain(header), tuple(records), at)


def _record(raw: memoryview, at: int, frame: int, in_snapshot: bool, offset: int) -> SeenRecord | None:  # noqa: FBT001
    if bytes(raw[at : at + 4]) != b"CVR1" or len(raw) - at < RECORD_PREFIX.sizeof():
        return None
    prefix = RECORD_PREFIX.parse(bytes(raw[at : at + RECORD_PREFIX.sizeof()]))
    if prefix.Class >= len(CLASSES) or at + CLASSES[prefix.Class] * frame > len(raw):
        return None
    return SeenRecord(
        offset + at,
        CLASSES[prefix.Class] * frame,
        prefix.Part,
        prefix.Session,
        prefix.Sequence,
        SNAPSHOT if in_snapshot else LOG,
    )
