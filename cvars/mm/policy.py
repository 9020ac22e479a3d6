"""Messages of the variable-policy handler (R101, R110, R111)."""

from typing import Any, Final

from cvars.errors import EfiStatus, VariableError
from cvars.mm.layouts import (
    DUMP,
    POLICY,
    POLICY_INFO,
    POLICY_INFO_FIXED,
    POLICY_MESSAGE_MAX,
    POLICY_REVISION,
    POLICY_SIGNATURE,
    U64,
    Command,
)
from cvars.mm.variable import decode_char16
from cvars.variables.commands import PAGE, DumpPage, InfoTooSmall, PolicyInfo
from cvars.variables.model import Key
from cvars.variables.names import guid
from cvars.variables.refusals import InvalidParameter
from cvars.variables.requests import (
    DisablePolicy,
    DumpPolicies,
    GetPolicyInfo,
    IsPolicyEnabled,
    LockPolicies,
    RegisterPolicy,
    Request,
    UnknownPolicyCommand,
)

HEAD: Final = POLICY.size
_RESULT: Final = 12  # offset of Result
_DUMP_END: Final = HEAD + DUMP.size
_INFO_END: Final = HEAD + POLICY_INFO_FIXED


def decode(message: bytes) -> Request:
    """Decode a policy message of at least 20 bytes.

    Raises:
        InvalidParameter: signature, revision, length, or a name (R101, R110, R111).
    """
    if len(message) > POLICY_MESSAGE_MAX:
        raise InvalidParameter(f"policy message of {len(message)} bytes")  # R101
    signature, revision, command, _ = POLICY.unpack_from(message)
    if signature != POLICY_SIGNATURE:
        raise InvalidParameter("policy signature")  # R101
    if revision != POLICY_REVISION:
        raise InvalidParameter(f"policy revision {revision}")  # R101
    match command:
        case Command.DISABLE:
            return DisablePolicy()
        case Command.IS_ENABLED:
            if len(message) < HEAD + 1:
                raise InvalidParameter("no room for the answer")  # R101
            return IsPolicyEnabled()
        case Command.REGISTER:
            return RegisterPolicy(message[HEAD:])
        case Command.DUMP:
            if len(message) < _DUMP_END + PAGE:
                raise InvalidParameter("no room for a page")  # R110
            return DumpPolicies(DUMP.unpack_from(message, HEAD)[0])
        case Command.LOCK:
            return LockPolicies()
        case Command.GET_INFO | Command.GET_LOCK_VAR_STATE_INFO:
            return _info(message, lock_on_state=command == Command.GET_LOCK_VAR_STATE_INFO)
    return UnknownPolicyCommand()


def _info(message: bytes, *, lock_on_state: bool) -> GetPolicyInfo:
    if len(message) < _INFO_END:
        raise InvalidParameter("no room for the answer")  # R101
    raw, size, capacity = POLICY_INFO.unpack_from(message, HEAD)
    if _INFO_END + size + capacity > len(message):
        raise InvalidParameter("names beyond the message")  # R111
    name = message[_INFO_END : _INFO_END + size]
    if size < 2 or size % 2 or name[-2:] != b"\0\0":
        raise InvalidParameter("input name without its NUL")  # R111
    return GetPolicyInfo(Key(guid(raw), decode_char16(name)), capacity, lock_on_state)


def ends_dump(message: bytes) -> bool:
    """Say whether ``message`` is another command than Dump, which ends a dump (R110)."""
    signature, revision, command, _ = POLICY.unpack_from(message)
    is_command = bool(signature == POLICY_SIGNATURE and revision == POLICY_REVISION)
    return is_command and command != Command.DUMP


def encode(message: bytes, request: Request, reply: Any) -> bytes:  # noqa: ANN401 - the reply of any command
    """The reply that replaces ``message`` from its first byte; never longer (R10)."""
    head = message[:_RESULT] + bytes(8)
    match request:
        case IsPolicyEnabled():
            return head + bytes([bool(reply)])
        case DumpPolicies(page):
            assert isinstance(reply, DumpPage)
            return head + DUMP.pack(page, reply.total, len(reply.page), reply.has_more) + reply.page
        case GetPolicyInfo():
            assert isinstance(reply, PolicyInfo)
            return _with_info(message, head, reply, fits=True)
    return head


def encode_refusal(message: bytes, error: VariableError) -> bytes:
    """The reply that carries ``error``."""
    head = message[:_RESULT] + U64.pack(error.status)
    if error.status == EfiStatus.BUFFER_TOO_SMALL and isinstance(error, InfoTooSmall):
        return _with_info(message, head, error.info, fits=False)  # R111
    return head


def _with_info(message: bytes, head: bytes, info: PolicyInfo, *, fits: bool) -> bytes:
    raw, size, _ = POLICY_INFO.unpack_from(message, HEAD)
    filled = head + POLICY_INFO.pack(raw, size, len(info.name)) + info.head
    if fits:
        filled += message[len(filled) : _INFO_END + size] + info.name
    return filled
