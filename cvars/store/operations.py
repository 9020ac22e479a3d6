"""The operations of a commit: put, delete, append. Source: sealed-store 6.1 "Operation, 44 bytes".

kind u8, flags u8, name length u16, data length u32, attributes u32, vendor GUID 16, EFI_TIME 16; then the
signer digest if flagged, the name (UCS-2LE, no NUL), the data; an append ends with the resulting length u32
and the SHA-256 of the resulting value.
"""

import hashlib
import hmac
import struct
from codecs import utf_16_le_encode
from functools import lru_cache
from typing import Final
from uuid import UUID

from cvars.variables.model import NO_TIME, Append, Change, Delete, Journal, Key, Put, Variable

PUT: Final = 1
DELETE: Final = 2
APPEND: Final = 3
SIGNED: Final = 1
OPERATION_BYTES: Final = 44
SIGNER_BYTES: Final = 32
_FIXED: Final = struct.Struct("<BBHII16s16s")
_RESULT: Final = struct.Struct("<I32s")
_UNPACK: Final = _FIXED.unpack_from


class Malformed(ValueError):
    """Authenticated bytes that do not follow the format: damage, never skipped."""


def cost(key: Key, variable: Variable) -> int:
    """Live bytes of a variable: what its put takes in a snapshot (SS-23)."""
    name = key.name
    signed = SIGNER_BYTES if variable.signer is not None else 0
    # a surrogate pair is two units of the name and one character of it
    units = 2 * len(name) if name.isascii() else len(key.name_bytes)
    return OPERATION_BYTES + signed + units + len(variable.data)


def encode(change: Change) -> bytes:
    """Encode one change."""
    guid, name = change.key
    raw_name = utf_16_le_encode(name, "surrogatepass")[0]
    if isinstance(change, Delete):
        return _FIXED.pack(DELETE, 0, len(raw_name), 0, 0, _guid_bytes(guid.int), NO_TIME) + raw_name
    kind, variable, result = PUT, change.variable, b""
    data = value = variable.data
    if isinstance(change, Append):
        kind, data = APPEND, change.added
        result = _RESULT.pack(len(value), hashlib.sha256(value).digest())
    signer = variable.signer
    fixed = _FIXED.pack(
        kind,
        0 if signer is None else SIGNED,
        len(raw_name),
        len(data),
        variable.attributes,
        _guid_bytes(guid.int),
        variable.timestamp,
    )
    return b"".join((fixed, signer or b"", raw_name, data, result))


def encode_all(journal: Journal) -> bytes:
    """Encode a commit; most have one change."""
    return encode(journal[0]) if len(journal) == 1 else b"".join(map(encode, journal))


@lru_cache(maxsize=256)
def _guid_bytes(number: int) -> bytes:
    return UUID(int=number).bytes_le


@lru_cache(maxsize=256)
def _guid(raw: bytes) -> UUID:
    return UUID(bytes_le=raw)


@lru_cache(maxsize=1024)
def _name(raw: bytes) -> str:
    if len(raw) % 2 or not raw:
        raise Malformed(f"a name of {len(raw)} bytes")
    name = raw.decode("utf-16-le", "surrogatepass")
    if "\0" in name:
        raise Malformed("a name with a NUL")
    return name


def _decode_name(raw: bytes) -> str:
    try:
        return _name(raw)
    except UnicodeDecodeError:
        raise Malformed("a name that is not UCS-2") from None


def replay(body: bytes, count: int, variables: dict[Key, Variable], live: int, *, puts_only: bool) -> int:
    """Apply ``count`` operations to ``variables`` in place; return the live bytes afterwards.

    An operation that reaches behind the body is seen at the end; a variable that a snapshot holds twice by the
    live bytes, which its caller compares.

    Raises Malformed: the bytes are authentic but do not follow the format; ``variables`` is then useless.
    """
    at, end = 0, len(body)
    for _ in range(count):
        if end - at < OPERATION_BYTES:
            raise Malformed("operations end early")
        kind, flags, name_bytes, data_bytes, attributes, guid, time = _UNPACK(body, at)
        at += OPERATION_BYTES
        signer = None
        if flags == SIGNED:
            signer = body[at : at + SIGNER_BYTES]
            at += SIGNER_BYTES
        elif flags:
            raise Malformed(f"operation flags {flags:#x}")
        name_end = at + name_bytes
        data_end = name_end + data_bytes
        key = Key(_guid(guid), _decode_name(body[at:name_end]))
        old = variables.get(key)
        if kind == PUT:
            data = body[name_end:data_end]
            at = data_end
        elif kind == APPEND and not puts_only:
            if old is None or end - data_end < _RESULT.size:
                raise Malformed("an append to nothing")
            data = old.data + body[name_end:data_end]
            length, digest = _RESULT.unpack_from(body, data_end)
            if length != len(data) or not hmac.compare_digest(digest, hashlib.sha256(data).digest()):
                raise Malformed("an append does not give the value it names")
            at = data_end + _RESULT.size
        elif kind == DELETE and not puts_only:
            if old is None or data_bytes or attributes or flags or time != NO_TIME:
                raise Malformed("a delete of nothing")
            at = data_end
            del variables[key]
            live -= cost(key, old)
            continue
        else:
            raise Malformed(f"operation kind {kind}")
        variable = Variable(attributes, data, time, signer)
        variables[key] = variable
        live += cost(key, variable) - (cost(key, old) if old is not None else 0)
    if at != end:
        raise Malformed("bytes behind the last operation")
    return live


def apply(journal: Journal, variables: dict[Key, Variable]) -> None:
    """Apply a journal that the rules made to ``variables`` in place."""
    for change in journal:
        if isinstance(change, Delete):
            del variables[change.key]
        else:
            variables[change.key] = change.variable


def inverse(journal: Journal, variables: dict[Key, Variable]) -> Journal:
    """The changes that lead from the state after ``journal`` back to ``variables``."""
    after = dict(variables)
    apply(journal, after)
    back: list[Change] = []
    for key in dict.fromkeys(change.key for change in journal):
        old, new = variables.get(key), after.get(key)
        if old is not None and old != new:
            back.append(Put(key, old))
        elif old is None and new is not None:
            back.append(Delete(key))
    return tuple(back)
