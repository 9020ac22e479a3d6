"""What a variable's value means, in a few words for a listing. Never raises: an odd value is shown as hex."""

import struct
from typing import Final
from uuid import UUID

from cryptography import x509

from cvars.variables.model import Key
from cvars.variables.security import GLOBAL, IMAGE_SECURITY

_X509: Final = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_HASHES: Final = {
    UUID("c1c41626-504c-4092-aca9-41f936934328"): "SHA-256",
    UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): "SHA-384",
    UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): "SHA-512",
    UUID("826ca512-cf10-4ac9-b187-be01496631bd"): "SHA-1",
}
_WORDS: Final = 60
_ORDERS: Final = ("BootOrder", "DriverOrder", "SysPrepOrder", "BootNext", "BootCurrent")
_OPTIONS: Final = ("Boot", "Driver", "SysPrep", "PlatformRecovery")
_LIST: Final = struct.Struct("<16sIII")


def meaning(key: Key, data: bytes) -> str:
    """A few words, at most about 60 characters."""
    try:
        return (_known(key, data) or _plain(data))[:_WORDS]
    except (ValueError, IndexError, struct.error):
        return _plain(data)


def _known(key: Key, data: bytes) -> str:
    name = key.name
    if key.vendor_guid == GLOBAL and name in _ORDERS and len(data) % 2 == 0:
        return ",".join(f"{n:04X}" for (n,) in struct.iter_unpack("<H", data))
    if key.vendor_guid == GLOBAL and name.startswith(_OPTIONS) and name[-4:].isalnum() and len(data) > 6:
        return _load_option(data)
    if name in ("PK", "KEK", "db", "dbx", "dbt", "dbr") and key.vendor_guid in (GLOBAL, IMAGE_SECURITY):
        return _signatures(data)
    if len(data) == 1 and data[0] < 2:
        return "on" if data[0] else "off"
    return ""


def _load_option(data: bytes) -> str:
    attributes, _length = struct.unpack_from("<IH", data)
    text = data[6:].decode("utf-16-le", "replace").partition("\0")[0]
    return f'"{text}"' + ("" if attributes & 1 else " (inactive)")


def _signatures(data: bytes) -> str:
    counts: dict[str, int] = {}
    subject = ""
    at = 0
    while at < len(data):
        kind, size, header, each = _LIST.unpack_from(data, at)
        if size < 28 or each < 16:
            raise ValueError("not a signature list")
        word = "X.509" if UUID(bytes_le=kind) == _X509 else _HASHES.get(UUID(bytes_le=kind), "other")
        counts[word] = counts.get(word, 0) + (size - 28 - header) // each
        if word == "X.509" and not subject:
            subject = _common_name(data[at + 28 + header + 16 : at + 28 + header + each])
        at += size
    text = ", ".join(f"{n} {word}" for word, n in counts.items()) or "empty"
    return text + (f": {subject}" if subject and counts == {"X.509": 1} else "")


def _common_name(der: bytes) -> str:
    name = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return f"CN={name[0].value!s}" if name else ""


def _plain(data: bytes) -> str:
    if data and all(32 <= c < 127 for c in data.rstrip(b"\0")) and data.rstrip(b"\0"):
        return repr(data.rstrip(b"\0").decode())[:60]
    return data[:24].hex() + ("…" if len(data) > 24 else "")
