"""EFI_SMM_VARIABLE_PROTOCOL and policy messages, as the guest lays them out.

Source: edk2 MdeModulePkg/Include/Guid/SmmVariableCommon.h and VarCheckPolicyMmi.h, whose field names these are.
Little-endian, packed, UINTN = 8 bytes. Sizes are in bytes; a name's size includes its NUL. Hot paths decode
with the `struct.Struct` beside a declaration; a test proves that both agree.
"""

import struct
from enum import IntEnum
from typing import Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

EFI_MM_COMMUNICATE_HEADER: Final = Struct(
    "HeaderGuid" / Bytes(16),  # +0x00
    "MessageLength" / Int64ul,  # +0x10, of what follows
)  # 0x18 bytes; then the message
SMM_VARIABLE_COMMUNICATE_HEADER: Final = Struct(
    "Function" / Int64ul,  # +0x00
    "ReturnStatus" / Int64ul,  # +0x08
)  # 0x10 bytes; then the payload
SMM_VARIABLE_COMMUNICATE_ACCESS_VARIABLE: Final = Struct(
    "Guid" / Bytes(16),  # +0x00
    "DataSize" / Int64ul,  # +0x10
    "NameSize" / Int64ul,  # +0x18
    "Attributes" / Int32ul,  # +0x20
)  # 0x24 bytes; then CHAR16 Name[NameSize / 2] and UINT8 Data[DataSize]
SMM_VARIABLE_COMMUNICATE_GET_NEXT_VARIABLE_NAME: Final = Struct(
    "Guid" / Bytes(16),  # +0x00
    "NameSize" / Int64ul,  # +0x10
)  # 0x18 bytes; then CHAR16 Name[]. LockVariable has the same form
SMM_VARIABLE_COMMUNICATE_QUERY_VARIABLE_INFO: Final = Struct(
    "MaximumVariableStorageSize" / Int64ul,  # +0x00
    "RemainingVariableStorageSize" / Int64ul,  # +0x08
    "MaximumVariableSize" / Int64ul,  # +0x10
    "Attributes" / Int32ul,  # +0x18
)  # 0x1C bytes; edk2 sends 0x20
SMM_VARIABLE_COMMUNICATE_VAR_CHECK_VARIABLE_PROPERTY: Final = Struct(
    "Guid" / Bytes(16),  # +0x00
    "NameSize" / Int64ul,  # +0x10
    "Revision" / Int16ul,  # +0x18
    "Property" / Int16ul,  # +0x1A
    "Attributes" / Int32ul,  # +0x1C
    "MinSize" / Int64ul,  # +0x20
    "MaxSize" / Int64ul,  # +0x28
)  # 0x30 bytes; then CHAR16 Name[]
VAR_CHECK_POLICY_COMM_HEADER: Final = Struct(
    "Signature" / Int32ul,  # +0x00, "VCPC"
    "Revision" / Int32ul,  # +0x04
    "Command" / Int32ul,  # +0x08
    "Result" / Int64ul,  # +0x0C
)  # 0x14 bytes
VAR_CHECK_POLICY_COMM_DUMP_PARAMS: Final = Struct(
    "PageRequested" / Int32ul,  # +0x00
    "TotalSize" / Int32ul,  # +0x04
    "PageSize" / Int32ul,  # +0x08
    "HasMore" / Int8ul,  # +0x0C
)  # 0x0D bytes; then the page
VAR_CHECK_POLICY_COMM_GET_INFO_PARAMS: Final = Struct(
    "VendorGuid" / Bytes(16),  # +0x00
    "InputVariableNameSize" / Int32ul,  # +0x10
    "OutputVariableNameSize" / Int32ul,  # +0x14
    "OutputPolicyEntry" / Bytes(44),  # +0x18
)  # 0x44 bytes; then the input name and room for the output name

HEADER: Final = struct.Struct("<QQ")
ACCESS: Final = struct.Struct("<16sQQI")
NAME: Final = struct.Struct("<16sQ")
INFO: Final = struct.Struct("<QQQI")
FIGURES: Final = struct.Struct("<QQQ")
PROPERTY: Final = struct.Struct("<HHIQQ")
U64: Final = struct.Struct("<Q")
POLICY: Final = struct.Struct("<IIIQ")
DUMP: Final = struct.Struct("<IIIB")
POLICY_INFO: Final = struct.Struct("<16sII")

#: pairs that must say the same
TWINS: Final = (
    (SMM_VARIABLE_COMMUNICATE_HEADER, HEADER),
    (SMM_VARIABLE_COMMUNICATE_ACCESS_VARIABLE, ACCESS),
    (SMM_VARIABLE_COMMUNICATE_GET_NEXT_VARIABLE_NAME, NAME),
    (SMM_VARIABLE_COMMUNICATE_QUERY_VARIABLE_INFO, INFO),
    (VAR_CHECK_POLICY_COMM_HEADER, POLICY),
    (VAR_CHECK_POLICY_COMM_DUMP_PARAMS, DUMP),
)

COMMUNICATE_HEADER_BYTES: Final = EFI_MM_COMMUNICATE_HEADER.sizeof()
PROPERTY_FIXED: Final = SMM_VARIABLE_COMMUNICATE_VAR_CHECK_VARIABLE_PROPERTY.sizeof()
POLICY_INFO_FIXED: Final = VAR_CHECK_POLICY_COMM_GET_INFO_PARAMS.sizeof()
POLICY_SIGNATURE: Final = 0x43504356
POLICY_REVISION: Final = 1
POLICY_MESSAGE_MAX: Final = 16 * 1024  # R101


class Function(IntEnum):
    """SMM_VARIABLE_FUNCTION_* (R6)."""

    GET_VARIABLE = 1
    GET_NEXT_VARIABLE_NAME = 2
    SET_VARIABLE = 3
    QUERY_VARIABLE_INFO = 4
    READY_TO_BOOT = 5
    EXIT_BOOT_SERVICE = 6
    GET_STATISTICS = 7
    LOCK_VARIABLE = 8
    VAR_CHECK_VARIABLE_PROPERTY_SET = 9
    VAR_CHECK_VARIABLE_PROPERTY_GET = 10
    GET_PAYLOAD_SIZE = 11
    INIT_RUNTIME_VARIABLE_CACHE_CONTEXT = 12
    SYNC_RUNTIME_CACHE = 13
    GET_RUNTIME_CACHE_INFO = 14


class Command(IntEnum):
    """VAR_CHECK_POLICY_COMMAND_* (R101)."""

    DISABLE = 1
    IS_ENABLED = 2
    REGISTER = 3
    DUMP = 4
    LOCK = 5
    GET_INFO = 6
    GET_LOCK_VAR_STATE_INFO = 7
