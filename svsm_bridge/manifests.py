"""What the service says of itself in an attestation: built from claims, and read back with care.

The standard UEFI MM manifest is exactly 8 bytes and belongs to its owner; everything else this project claims
is a second service with a GUID of its own (svsm-calls 3.2). Little-endian, sizes in bytes.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar
from uuid import UUID

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from svsm_bridge.abi import EXTENSION_GUID, SERVICES_TABLE_GUID, UEFI_MM_GUID, VTPM_GUID
from svsm_bridge.service import ManifestSource

#: services in the order of the table (S33), each with the version it has there
SERVICES: Final = ((VTPM_GUID, 0), (UEFI_MM_GUID, 0), (EXTENSION_GUID, 1))

PERSISTENT: Final = 1 << 0
SECURE_BOOT: Final = 1 << 1
DB_UPDATABLE: Final = 1 << 2
POLICY_LOCKED: Final = 1 << 3
POLICY_MAY_BE_DISABLED: Final = 1 << 4
MOR_LOCKED: Final = 1 << 5
CUSTOM_MODE: Final = 1 << 6
FACTORY_STATE: Final = 1 << 7
SIMULATED: Final = 1 << 8

TLV_BOOT_RESULT: Final = 1
TLV_CRITICAL: Final = 0x8000

EXTENSION: Final = Struct(
    "version" / Int32ul,  # +0x00
    "total_length" / Int32ul,
    "flags" / Int32ul,  # +0x08
    "store_format" / Int32ul,
    "rollback_protection" / Int8ul,  # +0x10
    "key_source" / Int8ul,
    "secure_boot_mode" / Int8ul,
    "boot_phase" / Int8ul,
    "window_ms" / Int32ul,  # +0x14
    "epoch" / Int64ul,  # +0x18
    "counter" / Int64ul,
    "vm_identity" / Bytes(32),  # +0x28
    "key_release_id" / Bytes(32),
    "tee_key_thumbprint" / Bytes(32),
    "secure_boot_digest" / Bytes(32),  # +0x88
)
TLV: Final = Struct("type" / Int16ul, "length" / Int16ul)
BOOT_RESULT: Final = Struct("outcome" / Int8ul, "reserved" / Int8ul, "reserved2" / Int16ul, "repaired" / Int64ul)
TABLE: Final = Struct("guid" / Bytes(16), "total_length" / Int32ul, "count" / Int32ul)
TABLE_ENTRY: Final = Struct("guid" / Bytes(16), "offset" / Int32ul, "length" / Int32ul)
_ZERO: Final = bytes(32)


class RollbackProtection(IntEnum):
    """How far a rollback of the store is noticed; names of sealed-store."""

    NONE = 0
    PER_BOOT = 1
    BOUNDED = 2
    CRITICAL = 3
    STRICT = 4


class KeySource(IntEnum):
    """Where the store key comes from."""

    NONE = 0
    HARDWARE = 1
    BROKER = 2
    OPERATOR = 3


class SecureBootMode(IntEnum):
    """UEFI 32.3."""

    SETUP = 0
    USER = 1
    AUDIT = 2
    DEPLOYED = 3


class BootPhase(IntEnum):
    """R16."""

    DXE = 0
    END_OF_DXE = 1
    READY_TO_BOOT = 2
    RUNTIME = 3


class BootOutcome(IntEnum):
    """SS-17: what opening the store found."""

    CLEAN = 0
    ROLLED_FORWARD = 1
    REPAIRED = 2
    CREATED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Everything that the manifests state; each claim is derived from the state it speaks of (P37).

    ``db_updatable`` counts only with ``secure_boot``. ``window_ms`` is 0 unless rollback protection is
    bounded; the three 32-byte ids are zero where they do not apply.
    """

    persistent: bool
    secure_boot: bool
    db_updatable: bool
    policy_locked: bool = False
    policy_may_be_disabled: bool = False
    mor_locked: bool = False
    custom_mode: bool = False
    factory_state: bool = False
    simulated: bool = False
    store_format: int = 1
    rollback_protection: RollbackProtection = RollbackProtection.NONE
    key_source: KeySource = KeySource.NONE
    secure_boot_mode: SecureBootMode = SecureBootMode.SETUP
    boot_phase: BootPhase = BootPhase.DXE
    window_ms: int = 0
    epoch: int = 0
    counter: int = 0
    vm_identity: bytes = _ZERO
    key_release_id: bytes = _ZERO
    tee_key_thumbprint: bytes = _ZERO
    secure_boot_digest: bytes = _ZERO
    boot_outcome: BootOutcome = BootOutcome.CLEAN
    commits_repaired: int = 0


class BadManifest(ValueError):
    """A manifest or table that a verifier must not accept."""


def secure_boot_digest(pk: bytes | None, kek: bytes | None, db: bytes | None, dbx: bytes | None) -> bytes:
    """SHA-256 over PK, KEK, db, dbx, each as u64 length and bytes; absent = length 2^64-1."""
    state = hashlib.sha256()
    for value in (pk, kek, db, dbx):
        state.update(struct.pack("<Q", (1 << 64) - 1 if value is None else len(value)))
        state.update(value or b"")
    return state.digest()


def _flags(claims: Claims) -> int:
    return (
        (claims.persistent and PERSISTENT)
        | (claims.secure_boot and SECURE_BOOT)
        | (claims.secure_boot and claims.db_updatable and DB_UPDATABLE)
        | (claims.policy_locked and POLICY_LOCKED)
        | (claims.policy_may_be_disabled and POLICY_MAY_BE_DISABLED)
        | (claims.mor_locked and MOR_LOCKED)
        | (claims.custom_mode and CUSTOM_MODE)
        | (claims.factory_state and FACTORY_STATE)
        | (claims.simulated and SIMULATED)
    )


def uefi_mm_manifest(claims: Claims) -> bytes:
    """The standard manifest, version 0: u32 version, u32 flags (bits 0..2)."""
    return struct.pack("<II", 0, _flags(claims) & (PERSISTENT | SECURE_BOOT | DB_UPDATABLE))


def extension_manifest(claims: Claims, *, more: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """This project's manifest, version 1, with TLV 1 (boot result) and ``more`` TLVs."""
    result = BOOT_RESULT.build(
        {"outcome": claims.boot_outcome, "reserved": 0, "reserved2": 0, "repaired": claims.commits_repaired}
    )
    tail = b""
    for kind, value in ((TLV_BOOT_RESULT, result), *more):
        tail += TLV.build({"type": kind, "length": len(value)}) + value
    fixed = {name: getattr(claims, name) for name in _COPIED}
    head = {"version": 1, "total_length": EXTENSION.sizeof() + len(tail), "flags": _flags(claims)}
    return bytes(EXTENSION.build(head | fixed)) + tail


_COPIED: Final = tuple(
    field.name for field in EXTENSION.subcons if field.name not in ("version", "total_length", "flags")
)


def manifest_source(claims: Callable[[], Claims]) -> ManifestSource:
    """A manifest source over claims that are taken anew for every manifest, under the store lock (S32)."""

    def source(service: UUID, version: int) -> bytes | None:
        if (service, version) == (UEFI_MM_GUID, 0):
            return uefi_mm_manifest(claims())
        if (service, version) == (EXTENSION_GUID, 1):
            return extension_manifest(claims())
        return None

    return source


def services_table(services: Sequence[tuple[UUID, bytes]]) -> bytes:
    """The GUID table of ATTEST_SERVICES (S33); 24 bytes without a service."""
    offset = TABLE.sizeof() + len(services) * TABLE_ENTRY.sizeof()
    entries, data = b"", b""
    for service, manifest in services:
        entry = {"guid": service.bytes_le, "offset": offset + len(data), "length": len(manifest)}
        entries += TABLE_ENTRY.build(entry)
        data += manifest
    head = {
        "guid": SERVICES_TABLE_GUID.bytes_le,
        "total_length": offset + len(data),
        "count": len(services),
    }
    return bytes(TABLE.build(head)) + entries + data


# --- readers, for verifiers ----------------------------------------------------------------------------


def parse_services_table(raw: bytes) -> dict[UUID, bytes]:
    """Read a GUID table; services we do not know are returned like any other.

    Raises:
        BadManifest: another GUID, lengths that disagree with the bytes, overlapping or repeated services.
    """
    if len(raw) < TABLE.sizeof():
        raise BadManifest(f"table of {len(raw)} bytes")
    head = TABLE.parse(raw)
    if head.guid != SERVICES_TABLE_GUID.bytes_le or head.total_length != len(raw):
        raise BadManifest("not a services table, or its length is wrong")
    data_start = TABLE.sizeof() + head.count * TABLE_ENTRY.sizeof()
    if data_start > len(raw):
        raise BadManifest(f"{head.count} entries do not fit {len(raw)} bytes")
    services: dict[UUID, bytes] = {}
    end = data_start
    for n in range(head.count):
        entry = TABLE_ENTRY.parse(raw[TABLE.sizeof() + n * TABLE_ENTRY.sizeof() :])
        if entry.offset != end or entry.offset + entry.length > len(raw):
            raise BadManifest(f"service {n} lies at {entry.offset:#x}, expected {end:#x}")
        end = entry.offset + entry.length
        service = UUID(bytes_le=entry.guid)
        if service in services:
            raise BadManifest(f"service {service} is there twice")
        services[service] = raw[entry.offset : end]
    if end != len(raw):
        raise BadManifest("bytes behind the last service")
    return services


def parse_uefi_mm(raw: bytes) -> int:
    """Flags of the standard manifest.

    Raises:
        BadManifest: not exactly 8 bytes of version 0, or bit 2 without bit 1.
    """
    if len(raw) != 8:
        raise BadManifest(f"UEFI MM manifest of {len(raw)} bytes, version 0 has 8")
    version, flags = struct.unpack("<II", raw)
    if version or (flags & DB_UPDATABLE and not flags & SECURE_BOOT):
        raise BadManifest(f"UEFI MM manifest version {version}, flags {flags:#x}")
    return int(flags)


def parse_extension(raw: bytes) -> Claims:
    """Read our extension manifest.

    Raises:
        BadManifest: cut, another version, values out of range, an unknown critical TLV.
    """
    if len(raw) < EXTENSION.sizeof():
        raise BadManifest(f"extension manifest of {len(raw)} bytes")
    fixed = EXTENSION.parse(raw)
    if fixed.version != 1 or fixed.total_length != len(raw):
        raise BadManifest(f"extension manifest version {fixed.version}, length {fixed.total_length}")
    outcome, repaired = BootOutcome.CLEAN, 0
    at = EXTENSION.sizeof()
    while at < len(raw):
        if at + TLV.sizeof() > len(raw):
            raise BadManifest("a TLV is cut")
        tlv = TLV.parse(raw[at:])
        value = raw[at + TLV.sizeof() : at + TLV.sizeof() + tlv.length]
        if len(value) != tlv.length:
            raise BadManifest(f"TLV {tlv.type:#x} is cut")
        if tlv.type == TLV_BOOT_RESULT:
            if len(value) != BOOT_RESULT.sizeof():
                raise BadManifest(f"boot result of {len(value)} bytes")
            result = BOOT_RESULT.parse(value)
            outcome, repaired = _member(BootOutcome, result.outcome), result.repaired
        elif tlv.type >= TLV_CRITICAL:
            raise BadManifest(f"critical TLV {tlv.type:#x} is unknown")
        at += TLV.sizeof() + tlv.length
    flags = fixed.flags
    return Claims(
        persistent=bool(flags & PERSISTENT),
        secure_boot=bool(flags & SECURE_BOOT),
        db_updatable=bool(flags & DB_UPDATABLE),
        policy_locked=bool(flags & POLICY_LOCKED),
        policy_may_be_disabled=bool(flags & POLICY_MAY_BE_DISABLED),
        mor_locked=bool(flags & MOR_LOCKED),
        custom_mode=bool(flags & CUSTOM_MODE),
        factory_state=bool(flags & FACTORY_STATE),
        simulated=bool(flags & SIMULATED),
        store_format=fixed.store_format,
        rollback_protection=_member(RollbackProtection, fixed.rollback_protection),
        key_source=_member(KeySource, fixed.key_source),
        secure_boot_mode=_member(SecureBootMode, fixed.secure_boot_mode),
        boot_phase=_member(BootPhase, fixed.boot_phase),
        window_ms=fixed.window_ms,
        epoch=fixed.epoch,
        counter=fixed.counter,
        vm_identity=fixed.vm_identity,
        key_release_id=fixed.key_release_id,
        tee_key_thumbprint=fixed.tee_key_thumbprint,
        secure_boot_digest=fixed.secure_boot_digest,
        boot_outcome=outcome,
        commits_repaired=repaired,
    )


_Member = TypeVar("_Member", bound=IntEnum)


def _member(kind: type[_Member], value: int) -> _Member:
    try:
        return kind(value)
    except ValueError as error:
        raise BadManifest(f"{kind.__name__} {value} is unknown") from error
