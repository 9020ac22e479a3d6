"""Messages as a guest builds them, by hand: nothing here uses the codec under test."""

import struct
from uuid import UUID

VARIABLE = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
POLICY = UUID("da1b0d11-d1a7-46c4-9dc9-f3714875c6eb")


def name16(name):
    return name.encode("utf-16-le", "surrogatepass") + b"\0\0"


def message(function, payload=b"", status=0):
    return struct.pack("<QQ", function, status) + payload


def access(function, guid, name, attributes=0, data=b"", *, data_size=None, name_size=None):
    raw = name16(name) if isinstance(name, str) else name
    size = len(data) if data_size is None else data_size
    head = guid.bytes_le + struct.pack("<QQI", size, len(raw) if name_size is None else name_size, attributes)
    return message(function, head + raw + data)


def get(guid, name, room):
    return access(1, guid, name, data=bytes(room))


def put(guid, name, attributes, data):
    return access(3, guid, name, attributes, data)


def following(guid, name, capacity, room=None):
    raw = name16(name)
    return message(
        2, guid.bytes_le + struct.pack("<Q", capacity) + raw.ljust(room or max(capacity, len(raw)), b"\0")
    )


def policy(command, payload=b"", signature=0x43504356, revision=1, result=0):
    return struct.pack("<IIIQ", signature, revision, command, result) + payload


def entry(
    guid,
    name,
    *,
    low=0,
    high=0xFFFFFFFF,
    must=0,
    cant=0,
    lock=0,
    state=None,
    version=0x10000,
    size=None,
    offset=None,
):
    middle = b""
    if state is not None:
        state_guid, value, state_name = state
        middle = state_guid.bytes_le + bytes([value, 0]) + name16(state_name)
    raw = name16(name) if isinstance(name, str) else (name or b"")
    start = 44 + len(middle)
    head = struct.pack(
        "<IHH16sIIIIB3x",
        version,
        start + len(raw) if size is None else size,
        start if offset is None else offset,
        guid.bytes_le,
        low,
        high,
        must,
        cant,
        lock,
    )
    return head + middle + raw


def status_of(reply):
    return int.from_bytes(reply[8:16], "little")


def result_of(reply):
    return int.from_bytes(reply[12:20], "little")
