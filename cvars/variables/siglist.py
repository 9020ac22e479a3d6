"""EFI_SIGNATURE_LIST: the format of PK, KEK, db, dbx, dbt, dbr (R59, R73, R81).

Source: UEFI 2.10 32.4.1. Little-endian, packed; sizes in bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from construct import Bytes, Int32ul, Struct
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from cvars.variables.certificates import load
from cvars.variables.names import guid
from cvars.variables.profile import Profile
from cvars.variables.refusals import InvalidParameter

EFI_SIGNATURE_LIST: Final = Struct(
    "SignatureType" / Bytes(16),  # +0x00
    "SignatureListSize" / Int32ul,  # +0x10
    "SignatureHeaderSize" / Int32ul,  # +0x14
    "SignatureSize" / Int32ul,  # +0x18
)  # 0x1C bytes; then the header and the entries {SignatureOwner 16, SignatureData}
HEADER: Final = EFI_SIGNATURE_LIST.sizeof()
OWNER: Final = 16
MAX_CERTIFICATES: Final = 64  # of one payload: each is parsed (R15)
_FAST: Final = struct.Struct("<16sIII")  # the same declaration; a test proves it

X509: Final = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256: Final = UUID("c1c41626-504c-4092-aca9-41f936934328")
SHA384: Final = UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01")
SHA512: Final = UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a")
RSA2048: Final = UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6")
EXTERNAL_MANAGEMENT: Final = UUID("452e8ced-dfff-4b8c-ae01-5118862e682c")

#: size of SignatureData by type, None for any (R73)
DATA_BYTES: Final[dict[UUID, int | None]] = {
    X509: None,
    UUID("826ca512-cf10-4ac9-b187-be01496631bd"): 20,  # SHA-1
    UUID("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd"): 28,  # SHA-224
    SHA256: 32,
    SHA384: 48,
    SHA512: 64,
    RSA2048: 256,
    UUID("67f8444f-8743-48f1-a328-1eaab8736080"): 256,  # RSA-2048 with SHA-1
    UUID("e2b36190-879b-4a3d-ad8d-f2e7bba32784"): 256,  # RSA-2048 with SHA-256
    UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed"): 48,  # X.509 TBS SHA-256 and a time
    UUID("7076876e-80c2-4ee6-aad2-28b349a6865b"): 64,  # X.509 TBS SHA-384 and a time
    UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): 80,  # X.509 TBS SHA-512 and a time
    EXTERNAL_MANAGEMENT: 1,  # R81
}


@dataclass(frozen=True, slots=True)
class SignatureList:
    """One list. ``entries`` are SignatureOwner and SignatureData together, ``size`` bytes each."""

    type: UUID
    size: int
    entries: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The list as bytes, without a list header."""
        body = b"".join(self.entries)
        return _FAST.pack(self.type.bytes_le, HEADER + len(body), 0, self.size) + body

    @property
    def certificates(self) -> Iterator[bytes]:
        """The DER of its X.509 entries."""
        if self.type == X509:
            for entry in self.entries:
                yield entry[OWNER:]


def parse(data: bytes) -> tuple[SignatureList, ...]:
    """Split a signature database into its lists; any type, the structure strictly (R73).

    Raises:
        InvalidParameter: malformed (R73).
    """
    lists = []
    at = 0
    while at < len(data):
        if len(data) - at < HEADER:
            raise InvalidParameter("signature list header cut short")  # R73
        kind, list_size, header_size, size = _FAST.unpack_from(data, at)
        if list_size < HEADER + header_size or list_size > len(data) - at:
            raise InvalidParameter(f"signature list of {list_size} bytes")  # R73
        if header_size:
            raise InvalidParameter("signature list with a header")  # R73
        if size < OWNER:
            raise InvalidParameter(f"signature entries of {size} bytes")  # R73
        if (list_size - HEADER) % size:
            raise InvalidParameter("signature list is not a multiple of its entries")  # R73
        first = at + HEADER
        at += list_size
        lists.append(SignatureList(guid(kind), size, tuple(data[i : i + size] for i in range(first, at, size))))
    return tuple(lists)


def check(data: bytes, *, is_pk: bool, profile: Profile) -> tuple[SignatureList, ...]:
    """Parse ``data`` and hold it to everything that R73 asks of a guest's payload.

    Raises:
        InvalidParameter: R73.
    """
    lists = parse(data)
    certificates_seen = 0
    for one in lists:
        if one.type not in DATA_BYTES:
            raise InvalidParameter(f"unknown signature type {one.type}")  # R73
        wanted = DATA_BYTES[one.type]
        if wanted is not None and one.size != OWNER + wanted:
            raise InvalidParameter(f"signature entries of {one.size} bytes")  # R73
        if not one.entries and profile.refuses_empty_lists:
            raise InvalidParameter("signature list without entries")  # R73
        for der in one.certificates:
            certificates_seen += 1
            if certificates_seen > MAX_CERTIFICATES:
                raise InvalidParameter("too many X.509 entries in one payload")  # R15
            if not _holds_key(der, rsa_only=profile.wants_rsa_entries):
                raise InvalidParameter("X.509 entry is not a certificate with an RSA key")  # R73
    if len(lists) > 1 and not profile.allows_many_lists:
        raise InvalidParameter("more than one signature list")  # R73
    if is_pk and sum(len(one.entries) for one in lists) != 1:
        raise InvalidParameter("PK holds exactly one entry")  # R73
    return lists


def merge(old: bytes, new: tuple[SignatureList, ...], *, keeps_one: bool) -> bytes:
    """The bytes to append to ``old``: entries of ``new`` that it does not hold yet (R59).

    ``keeps_one``: equal entries within ``new`` are kept once.

    Raises:
        InvalidParameter: ``old`` is damaged; it is never silently replaced (P22, P23).
    """
    seen = {(one.type, one.size, entry) for one in parse(old) for entry in one.entries}
    out = []
    for one in new:
        left = []
        for entry in one.entries:
            identity = (one.type, one.size, entry)
            if identity in seen:
                continue  # R59
            left.append(entry)
            if keeps_one:
                seen.add(identity)
        if left:
            out.append(SignatureList(one.type, one.size, tuple(left)).encode())
    return b"".join(out)


def certificates(data: bytes) -> list[bytes]:
    """The DER of every X.509 entry of a stored database; nothing of a damaged one (fails closed)."""
    try:
        return [der for one in parse(data) for der in one.certificates]
    except InvalidParameter:
        return []


def _holds_key(der: bytes, *, rsa_only: bool) -> bool:
    certificate = load(der)
    return certificate is not None and (not rsa_only or isinstance(certificate.public_key(), RSAPublicKey))
