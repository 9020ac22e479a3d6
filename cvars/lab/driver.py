"""The firmware's side of the MM variable protocol: what edk2's runtime driver does, in Python.

Works over any ``exchange``: the whole communicate buffer (24-byte header and message) in, the same range out.
Source: mm-protocol sections 1.3 and 2.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cvars.errors import EfiStatus
from cvars.variables.model import Key

Exchange = Callable[[bytes], bytes]

VARIABLE_PROTOCOL: Final = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
END_OF_DXE: Final = UUID("02ce967a-dd7e-4ffc-9ee7-810cf0470880")
READY_TO_BOOT: Final = UUID("7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b")
EXIT_BOOT_SERVICES: Final = UUID("27abf055-b1b8-4c26-8048-748f37baa2df")
EVENTS: Final = {
    "end-of-dxe": END_OF_DXE,
    "ready-to-boot": READY_TO_BOOT,
    "exit-boot-services": EXIT_BOOT_SERVICES,
}

NV: Final = 0x01
BS: Final = 0x02
RT: Final = 0x04
AT: Final = 0x20
APPEND: Final = 0x40

_HEADER = struct.Struct("<16sQ")
_FUNCTION = struct.Struct("<QQ")
_ACCESS = struct.Struct("<16sQQI")
_NAME = struct.Struct("<16sQ")
_INFO = struct.Struct("<QQQII")
_GET, _NEXT, _SET, _QUERY = 1, 2, 3, 4
_FIRST_ROOM = 1024


class StatusError(Exception):
    """The service answered with an error status."""

    def __init__(self, status: int, what: str) -> None:
        self.status = status
        try:
            name = EfiStatus(status).name
        except ValueError:
            name = f"{status:#x}"
        self.name = name
        super().__init__(f"{what}: {name}")


@dataclass(frozen=True, slots=True)
class StorageInfo:
    """QueryVariableInfo: sizes in bytes."""

    maximum_storage: int
    remaining: int
    maximum_variable: int


def communicate(guid: UUID, message: bytes) -> bytes:
    """Put the 24-byte EFI_MM_COMMUNICATE_HEADER before ``message``."""
    return _HEADER.pack(guid.bytes_le, len(message)) + message


def set_request(key: Key, attributes: int, data: bytes) -> bytes:
    """The communicate buffer of one SetVariable (function 3)."""
    name = key.name_bytes + b"\0\0"
    access = _ACCESS.pack(key.vendor_guid.bytes_le, len(data), len(name), attributes)
    return communicate(VARIABLE_PROTOCOL, _FUNCTION.pack(_SET, 0) + access + name + data)


def get_request(key: Key, room: int) -> bytes:
    """The communicate buffer of one GetVariable (function 1) with ``room`` bytes for the value."""
    name = key.name_bytes + b"\0\0"
    access = _ACCESS.pack(key.vendor_guid.bytes_le, room, len(name), 0)
    return communicate(VARIABLE_PROTOCOL, _FUNCTION.pack(_GET, 0) + access + name + bytes(room))


def event_request(guid: UUID) -> bytes:
    """An event message: one zero byte, no reply."""
    return communicate(guid, b"\0")


def set_attributes(request: bytes) -> int | None:
    """The Attributes of a SetVariable request (communicate buffer), None for any other message."""
    if len(request) < 40 + _ACCESS.size or request[:16] != VARIABLE_PROTOCOL.bytes_le:
        return None
    if _FUNCTION.unpack_from(request, 24)[0] != _SET:
        return None
    return int(_ACCESS.unpack_from(request, 40)[3])


def is_get(request: bytes) -> bool:
    """Whether ``request`` is a GetVariable."""
    guid, function = request[:16], request[24:32]
    return guid == VARIABLE_PROTOCOL.bytes_le and function == _GET.to_bytes(8, "little")


def answered_value(request: bytes, reply: bytes) -> tuple[Key, bytes] | None:
    """Key and value of a GetVariable that was answered with SUCCESS, None for anything else."""
    if not is_get(request) or status_of(reply) != EfiStatus.SUCCESS:
        return None
    guid, size, name_bytes, _ = _ACCESS.unpack_from(reply, 40)
    start = 40 + _ACCESS.size
    name = reply[start : start + name_bytes].decode("utf-16-le", "surrogatepass").partition("\0")[0]
    return Key(UUID(bytes_le=guid), name), reply[start + name_bytes : start + name_bytes + size]


def written_value(request: bytes, reply: bytes) -> tuple[Key, bytes] | None:
    """Key and data of a SetVariable that was answered with SUCCESS, None for anything else."""
    if set_attributes(request) is None or status_of(reply) != EfiStatus.SUCCESS:
        return None
    guid, size, name_bytes, _ = _ACCESS.unpack_from(request, 40)
    start = 40 + _ACCESS.size
    name = request[start : start + name_bytes].decode("utf-16-le", "surrogatepass").partition("\0")[0]
    return Key(UUID(bytes_le=guid), name), request[start + name_bytes : start + name_bytes + size]


def status_of(reply: bytes) -> int:
    """EFI_STATUS of a variable function's reply (communicate buffer)."""
    return int(_FUNCTION.unpack_from(reply, _HEADER.size)[1])


class VariableDriver:
    """Variable services as firmware offers them, over ``exchange``.

    Every method raises ``StatusError`` with what the service answered.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def signal(self, event: UUID) -> None:
        """Send EndOfDxe, ReadyToBoot or ExitBootServices."""
        self._exchange(event_request(event))

    def set(self, key: Key, attributes: int, data: bytes) -> None:
        """SetVariable."""
        self._check(self._exchange(set_request(key, attributes, data)), f"SetVariable {key.name}")

    def delete(self, key: Key) -> None:
        """Delete a variable that needs no signature: SetVariable with its own attributes and no data."""
        attributes, _data = self.get(key)
        self.set(key, attributes, b"")

    def get(self, key: Key) -> tuple[int, bytes]:
        """GetVariable: attributes and value. Asks again with the size it is told, as edk2 does."""
        room = _FIRST_ROOM
        while True:
            reply = self._exchange(get_request(key, room))
            _guid, size, name_bytes, attributes = _ACCESS.unpack_from(reply, 40)
            if status_of(reply) == EfiStatus.BUFFER_TOO_SMALL and size > room:
                room = size
                continue
            self._check(reply, f"GetVariable {key.name}")
            start = 40 + _ACCESS.size + name_bytes
            return attributes, reply[start : start + size]

    def walk(self) -> Iterator[Key]:
        """GetNextVariableName until NOT_FOUND."""
        guid, name = bytes(16), b"\0\0"
        room = _FIRST_ROOM
        while True:
            message = _NAME.pack(guid, room) + name.ljust(room, b"\0")
            reply = self._exchange(communicate(VARIABLE_PROTOCOL, _FUNCTION.pack(_NEXT, 0) + message))
            status = status_of(reply)
            next_guid, size = _NAME.unpack_from(reply, 40)
            if status == EfiStatus.NOT_FOUND:
                return
            if status == EfiStatus.BUFFER_TOO_SMALL and size > room:
                room = size
                continue
            self._check(reply, "GetNextVariableName")
            guid, name = next_guid, reply[64 : 64 + size]
            yield Key(UUID(bytes_le=guid), name.decode("utf-16-le", "surrogatepass").partition("\0")[0])

    def query(self, attributes: int) -> StorageInfo:
        """QueryVariableInfo."""
        message = _FUNCTION.pack(_QUERY, 0) + _INFO.pack(0, 0, 0, attributes, 0)
        reply = self._exchange(communicate(VARIABLE_PROTOCOL, message))
        self._check(reply, "QueryVariableInfo")
        return StorageInfo(*_INFO.unpack_from(reply, 40)[:3])

    @staticmethod
    def _check(reply: bytes, what: str) -> None:
        status = status_of(reply)
        if status != EfiStatus.SUCCESS:
            raise StatusError(status, what)
