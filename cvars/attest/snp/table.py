"""The host's certificate table of an extended report. The host controls every byte. `attestation` 2.5."""

from itertools import pairwise
from typing import Final
from uuid import UUID

from construct import Bytes, Int32ul, Struct

from cvars.attest.evidence import MAX_EVIDENCE, FormError, Role, Supplied

MAX_ENTRIES: Final = 16

CERT_TABLE_ENTRY: Final = Struct(
    "guid" / Bytes(16),  # 0x00, mixed-endian; all zero ends the table
    "offset" / Int32ul,  # 0x10, from the start of the table
    "length" / Int32ul,  # 0x14, bytes
)
ENTRY_BYTES: Final = 24

GUIDS: Final[dict[UUID, Role]] = {
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ARK",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ASK",
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "VCEK",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "VLEK",
    UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"): "CRL",
}
EXTRA_PLATFORM_INFO: Final = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")


def read_table(table: bytes) -> tuple[Supplied, ...]:
    """The entries that we know, in order; unknown GUIDs are ignored.

    Raises:
        FormError: too large, too many entries, no end, an entry outside or in the header, twice, or empty.
    """
    if len(table) > MAX_EVIDENCE:
        raise FormError(f"certificate table of {len(table)} bytes, at most {MAX_EVIDENCE}")
    entries: list[tuple[UUID, int, int]] = []
    at = 0
    while True:
        if at + ENTRY_BYTES > len(table):
            raise FormError("certificate table without its end")
        entry = CERT_TABLE_ENTRY.parse(table[at : at + ENTRY_BYTES])
        at += ENTRY_BYTES
        if not any(entry.guid):
            if entry.offset or entry.length:
                raise FormError("the last entry of the certificate table is not all zero")
            break
        if len(entries) == MAX_ENTRIES:
            raise FormError(f"certificate table with more than {MAX_ENTRIES} entries")
        entries.append((UUID(bytes_le=entry.guid), entry.offset, entry.length))
    if len({guid for guid, _, _ in entries}) != len(entries):
        raise FormError("certificate table names a GUID twice")
    out = []
    for guid, offset, length in entries:
        if length == 0 or offset < at or offset + length > len(table):
            raise FormError(f"certificate {guid} at {offset:#x}, {length} bytes, is not inside the table")
        if guid in GUIDS:
            out.append(Supplied(GUIDS[guid], table[offset : offset + length]))
    spans = sorted((offset, offset + length) for _, offset, length in entries)
    if any(end > start for (_, end), (start, _) in pairwise(spans)):
        raise FormError("certificates of the table overlap")
    return tuple(out)


def write_table(certificates: tuple[Supplied, ...]) -> bytes:
    """A table of these certificates, as a host hands it over."""
    guids = {role: guid for guid, role in GUIDS.items()}
    at = ENTRY_BYTES * (len(certificates) + 1)
    header, body = b"", b""
    for one in certificates:
        header += CERT_TABLE_ENTRY.build(
            {"guid": guids[one.role].bytes_le, "offset": at + len(body), "length": len(one.data)}
        )
        body += one.data
    return header + bytes(ENTRY_BYTES) + body
