"""Messages of the MM variable protocol: bytes to one typed request, a typed reply to bytes (R5..R12)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cvars.errors import EfiStatus, VariableError
from cvars.mm.layouts import (
    ACCESS,
    FIGURES,
    HEADER,
    INFO,
    NAME,
    PROPERTY,
    PROPERTY_FIXED,
    U64,
    Function,
)
from cvars.variables.model import Key, Variable
from cvars.variables.names import guid
from cvars.variables.profile import OddName, Profile
from cvars.variables.reads import Info
from cvars.variables.refusals import (
    BufferTooSmall,
    InvalidParameter,
    MalformedMessage,
    TruncatedMessage,
    Unsupported,
    refusal,
)
from cvars.variables.requests import (
    ExitBootServices,
    GetNextVariableName,
    GetProperty,
    GetVariable,
    LockVariable,
    Property,
    QueryVariableInfo,
    ReadyToBoot,
    Request,
    SetProperty,
    SetVariable,
)

HEAD: Final = HEADER.size
_ACCESS_END: Final = HEAD + ACCESS.size
_NAME_END: Final = HEAD + NAME.size
_SUCCESS: Final = bytes(8)


@dataclass(frozen=True, slots=True)
class GetPayloadSize:
    """Function 11: answered from the buffer's size, not from the state (R11)."""


Call: TypeAlias = Request | GetPayloadSize


class NoAnswer(Exception):
    """A message that a profile leaves unanswered: the buffer stays as it was (R7)."""


def decode_char16(raw: bytes) -> str:
    """The CHAR16 string up to its first NUL; surrogates are legal (R8, R9)."""
    return raw.decode("utf-16-le", "surrogatepass").partition("\0")[0]


def decode(message: bytes, profile: Profile) -> Call:
    """Decode a variable message of at least 16 bytes; nobody has checked anything else of it.

    Raises:
        VariableError: the status that the guest reads (R6..R8).
        NoAnswer: R7, under a profile that gives none.
    """
    (function,) = U64.unpack_from(message)
    decoder = _DECODERS.get(function)
    if decoder is None:
        raise Unsupported(f"function {function}")  # R6, R12
    return decoder(message, profile)


def _truncated(message: bytes, profile: Profile, error: VariableError) -> Exception:
    if profile.answers_truncated:
        return error
    return NoAnswer(f"{len(message)} bytes")


def _name(message: bytes, start: int, size: int, profile: Profile) -> str:
    """The name in ``size`` bytes from ``start``, which are all there (R8)."""
    if size % 2:
        if profile.odd_name is OddName.REFUSE:
            raise InvalidParameter(f"NameSize {size} is odd")  # R8
        size -= 1
    end = start + size
    if not size or message[end - 2 : end] != b"\0\0":
        raise refusal(profile.unterminated, "name without its NUL")  # R8
    if profile.keeps_name_tail:
        return message[start : end - 2].decode("utf-16-le", "surrogatepass")  # R8
    return decode_char16(message[start:end])


def _access(message: bytes, profile: Profile) -> tuple[Key, int, int, int]:
    """Functions 1 and 3: key, attributes, DataSize, and where the data begins."""
    if len(message) < _ACCESS_END:
        raise _truncated(message, profile, TruncatedMessage("access header"))  # R7
    raw, data_size, name_size, attributes = ACCESS.unpack_from(message, HEAD)
    data = _ACCESS_END + name_size
    if data + data_size > len(message):  # Python integers: nothing to overflow
        raise refusal(profile.oversize, "name and data beyond the message")  # R7
    return Key(guid(raw), _name(message, _ACCESS_END, name_size, profile)), attributes, data_size, data


def _get(message: bytes, profile: Profile) -> GetVariable:
    key, _, data_size, _ = _access(message, profile)
    return GetVariable(key, data_size)


def _set(message: bytes, profile: Profile) -> SetVariable:
    key, attributes, data_size, data = _access(message, profile)
    return SetVariable(key, attributes, message[data : data + data_size])


def _next(message: bytes, profile: Profile) -> GetNextVariableName:
    if len(message) < _NAME_END:
        raise _truncated(message, profile, TruncatedMessage("name header"))  # R7
    raw, size = NAME.unpack_from(message, HEAD)
    room = len(message) - _NAME_END
    if size > room:
        raise refusal(profile.oversize, "name beyond the message")  # R7
    last = _NAME_END + room // 2 * 2
    if room < 2 or message[last - 2 : last] != b"\0\0":
        raise refusal(profile.unterminated, "message without a NUL at its end")  # R8
    if size % 2 and profile.odd_name is OddName.REFUSE:
        raise InvalidParameter(f"NameSize {size} is odd")  # R8
    name = message[_NAME_END : _NAME_END + size // 2 * 2].decode("utf-16-le", "surrogatepass")
    if "\0" not in name:
        raise InvalidParameter("no NUL within NameSize")  # R8
    return GetNextVariableName(Key(guid(raw), name.partition("\0")[0]), size)


def _query(message: bytes, profile: Profile) -> QueryVariableInfo:
    if len(message) < HEAD + INFO.size:
        raise _truncated(message, profile, BufferTooSmall())  # R7
    return QueryVariableInfo(INFO.unpack_from(message, HEAD)[3])


def _ready_to_boot(_message: bytes, _profile: Profile) -> ReadyToBoot:
    return ReadyToBoot()


def _exit_boot_services(_message: bytes, _profile: Profile) -> ExitBootServices:
    return ExitBootServices()


def _lock(message: bytes, _profile: Profile) -> LockVariable:
    if len(message) < _NAME_END:
        raise TruncatedMessage("name header")  # R7
    raw, size = NAME.unpack_from(message, HEAD)
    end = _NAME_END + size
    if end > len(message):
        raise TruncatedMessage("name beyond the message")  # R7
    if size < 2 or size % 2 or message[end - 2 : end] != b"\0\0":
        raise InvalidParameter("name without its NUL")  # R8
    return LockVariable(Key(guid(raw), decode_char16(message[_NAME_END:end])))


def _property(message: bytes, profile: Profile) -> tuple[Key, Property]:
    if len(message) < HEAD + PROPERTY_FIXED:
        raise _truncated(message, profile, TruncatedMessage("property header"))  # R7
    raw, size = NAME.unpack_from(message, HEAD)
    start = HEAD + PROPERTY_FIXED
    if start + size > len(message):
        raise refusal(profile.oversize, "name beyond the message")  # R7
    value = Property(*PROPERTY.unpack_from(message, _NAME_END))
    return Key(guid(raw), _name(message, start, size, profile)), value


def _set_property(message: bytes, profile: Profile) -> SetProperty:
    return SetProperty(*_property(message, profile))


def _get_property(message: bytes, profile: Profile) -> GetProperty:
    return GetProperty(_property(message, profile)[0])


def _payload_size(message: bytes, profile: Profile) -> GetPayloadSize:
    if len(message) < HEAD + U64.size:
        raise _truncated(message, profile, BufferTooSmall())  # R7
    return GetPayloadSize()


_DECODERS: Final[dict[int, Callable[[bytes, Profile], Call]]] = {
    Function.GET_VARIABLE: _get,
    Function.GET_NEXT_VARIABLE_NAME: _next,
    Function.SET_VARIABLE: _set,
    Function.QUERY_VARIABLE_INFO: _query,
    Function.READY_TO_BOOT: _ready_to_boot,
    Function.EXIT_BOOT_SERVICE: _exit_boot_services,
    Function.LOCK_VARIABLE: _lock,
    Function.VAR_CHECK_VARIABLE_PROPERTY_SET: _set_property,
    Function.VAR_CHECK_VARIABLE_PROPERTY_GET: _get_property,
    Function.GET_PAYLOAD_SIZE: _payload_size,
}


def encode(message: bytes, call: Call, reply: Any) -> bytes:  # noqa: ANN401 - the reply of any function
    """The reply that replaces ``message`` from its first byte; never longer (R10)."""
    head = message[:8] + _SUCCESS
    match call:
        case GetVariable():
            assert isinstance(reply, Variable)
            name_size = ACCESS.unpack_from(message, HEAD)[2]
            return b"".join(
                (
                    head,
                    ACCESS.pack(message[16:32], len(reply.data), name_size, reply.attributes),
                    message[_ACCESS_END : _ACCESS_END + name_size],
                    reply.data,
                )
            )
        case GetNextVariableName():
            assert isinstance(reply, Key)
            name = reply.name_bytes + b"\0\0"
            return head + NAME.pack(reply.vendor_guid.bytes_le, len(name)) + name
        case QueryVariableInfo():
            assert isinstance(reply, Info)
            return head + FIGURES.pack(reply.maximum_storage, reply.remaining, reply.maximum_variable)
        case GetProperty():
            assert isinstance(reply, Property)
            values = (reply.revision, reply.flags, reply.attributes, reply.min_size, reply.max_size)
            return head + message[HEAD:_NAME_END] + PROPERTY.pack(*values)
        case GetPayloadSize():
            return head + U64.pack(reply)
    return head


def encode_refusal(message: bytes, call: Call | None, error: VariableError) -> bytes:
    """The reply that carries ``error``; ``call`` is None when the message could not be decoded."""
    head = message[:8] + U64.pack(error.status)
    if error.status == EfiStatus.BUFFER_TOO_SMALL and isinstance(error, BufferTooSmall):
        if isinstance(call, GetVariable):  # R23
            name_size = ACCESS.unpack_from(message, HEAD)[2]
            return head + ACCESS.pack(message[16:32], error.needed, name_size, error.attributes)
        if isinstance(call, GetNextVariableName):  # R27
            return head + message[16:32] + U64.pack(error.needed)
    return head


__all__ = ["HEAD", "Call", "GetPayloadSize", "MalformedMessage", "NoAnswer", "decode", "encode", "encode_refusal"]
