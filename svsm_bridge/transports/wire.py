"""Messages of the cross-process transport, version 1, as they travel.

Source: svsm-calls 6. Little-endian, reserved bytes 0, sizes in bytes.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from svsm_bridge.abi import REGISTER_NAMES

MAGIC: Final = int.from_bytes(b"SVB1", "little")
VERSION: Final = 1
PAYLOAD_LIMIT: Final = 65536
PAGE_SHIFT: Final = 12
ERROR_TEXT_LIMIT: Final = 200
RANGES_LIMIT: Final = 64
MEMORY_LIMIT: Final = 16 << 30
QUEUE_LIMIT: Final = 64
PARTIAL_S: Final = 5.0
CALL_DEADLINE_S: Final = 5.0

FLAG_REPLY: Final = 1
FLAG_ERROR: Final = 2


class Kind(IntEnum):
    """Type of a message."""

    HELLO = 1
    MEM_ADD = 2
    MEM_DEL = 3
    VCPU_ADD = 4
    CALL = 5
    PAGE_STATE = 6
    PAGE_QUERY = 7
    RESET = 8
    TDVMCALL = 9
    SCHEDULE = 10
    TRACE = 11


class Code(IntEnum):
    """Error codes; MAGIC, LENGTH, VERSION, RESERVED and ORDER close the connection."""

    MAGIC = 1
    LENGTH = 2
    VERSION = 3
    ROLE = 4
    FD = 5
    OVERLAP = 6
    IN_FLIGHT = 7
    UNKNOWN_VCPU = 8
    RESERVED = 9
    LIMIT = 10
    INTERNAL = 11
    ORDER = 12


CLOSING: Final = frozenset({Code.MAGIC, Code.LENGTH, Code.VERSION, Code.RESERVED, Code.ORDER})


class Role(IntFlag):
    """Roles of a connection."""

    GUEST = 1
    MACHINE = 2


class Feature(IntFlag):
    """Features that HELLO negotiates."""

    TDX = 1
    ADVERSARIAL = 2
    TRACE = 4


class PageOp(IntEnum):
    """Operations of PAGE_STATE."""

    ASSIGN = 1
    MAKE_SHARED = 2
    UNMAP = 3
    REMAP = 4


HEADER: Final = Struct("magic" / Int32ul, "type" / Int16ul, "flags" / Int16ul, "length" / Int32ul, "tag" / Int32ul)
HELLO: Final = Struct(
    "lowest" / Int16ul,  # +0x00
    "highest" / Int16ul,
    "roles" / Int32ul,
    "features" / Int64ul,  # +0x08
    "guest_vmpl" / Int32ul,  # +0x10
    "apic_ids" / Int32ul,  # highest APIC id + 1
    "reserved" / Bytes(8),
    "client" / Bytes(32),  # +0x20
)
HELLO_REPLY: Final = Struct(
    "version" / Int16ul,  # +0x00
    "page_shift" / Int16ul,
    "roles" / Int32ul,
    "features" / Int64ul,  # +0x08
    "svsm_base" / Int64ul,  # +0x10
    "svsm_size" / Int64ul,
    "boot_ca" / Int64ul,  # +0x20
    "core_version" / Int32ul,
    "guest_vmpl" / Int8ul,  # +0x2c
    "reserved" / Bytes(3),
    "session" / Int64ul,  # +0x30
    "deadline_ms" / Int32ul,
    "payload_limit" / Int32ul,
)
MEM_ADD: Final = Struct("gpa" / Int64ul, "size" / Int64ul, "offset" / Int64ul, "kind" / Int32ul, "state" / Int32ul)
MEM_DEL: Final = Struct("gpa" / Int64ul, "size" / Int64ul)
VCPU_ADD: Final = Struct("apic_id" / Int32ul, "reserved" / Int32ul, "ca" / Int64ul, "sev_features" / Int64ul)
CALL: Final = Struct(
    "vcpu" / Int32ul,  # +0x00
    "vmpl" / Int8ul,
    "reserved" / Bytes(3),
    "exit_code" / Int64ul,  # +0x08
    *(name / Int64ul for name in REGISTER_NAMES),  # +0x10
    "reserved2" / Int64ul,  # +0xa0
)
CALL_REPLY: Final = Struct(
    "vcpu" / Int32ul,  # +0x00
    "outcome" / Int32ul,
    "ghcb_msr" / Int64ul,  # +0x08
    *(name / Int64ul for name in REGISTER_NAMES),  # +0x10
    "duration_ns" / Int64ul,  # +0xa0
)
PAGE_STATE: Final = Struct(
    "gpa" / Int64ul, "size" / Int64ul, "op" / Int32ul, "reserved" / Int32ul, "source" / Int64ul
)
PAGE_QUERY: Final = Struct("gpa" / Int64ul)
PAGE_QUERY_REPLY: Final = Struct("kind" / Int32ul, "bits" / Int32ul, "perm" / Bytes(4), "reserved" / Int32ul)
RESET: Final = Struct("kind" / Int32ul, "reserved" / Int32ul)
TDVMCALL: Final = Struct("vcpu" / Int32ul, "l2" / Int32ul, "regs" / Int64ul[16])
SWITCH: Final = Struct("on" / Int32ul, "reserved" / Int32ul)
TRACE_RECORD: Final = Struct(
    "sequence" / Int64ul, "gpa" / Int64ul, "size" / Int32ul, "vcpu" / Int16ul, "op" / Int8ul, "result" / Int8ul
)
ERROR: Final = Struct("code" / Int32ul, "detail" / Int32ul)

# The same layouts for `struct`, since every call passes here; a test holds both together (D7).
header: Final = struct.Struct("<IHHII")
hello: Final = struct.Struct("<HHIQII8s32s")
hello_reply: Final = struct.Struct("<HHIQQQQIB3sQII")
mem_add: Final = struct.Struct("<QQQII")
mem_del: Final = struct.Struct("<QQ")
vcpu_add: Final = struct.Struct("<IIQQ")
call: Final = struct.Struct("<IB3sQ18QQ")
call_reply: Final = struct.Struct("<IIQ18QQ")
page_state: Final = struct.Struct("<QQIIQ")
page_query: Final = struct.Struct("<Q")
page_query_reply: Final = struct.Struct("<II4sI")
reset: Final = struct.Struct("<II")
tdvmcall: Final = struct.Struct("<II16Q")
switch: Final = struct.Struct("<II")
trace_record: Final = struct.Struct("<QQIHBB")
error: Final = struct.Struct("<II")

PAIRS: Final = {
    "header": (HEADER, header),
    "hello": (HELLO, hello),
    "hello_reply": (HELLO_REPLY, hello_reply),
    "mem_add": (MEM_ADD, mem_add),
    "mem_del": (MEM_DEL, mem_del),
    "vcpu_add": (VCPU_ADD, vcpu_add),
    "call": (CALL, call),
    "call_reply": (CALL_REPLY, call_reply),
    "page_state": (PAGE_STATE, page_state),
    "page_query": (PAGE_QUERY, page_query),
    "page_query_reply": (PAGE_QUERY_REPLY, page_query_reply),
    "reset": (RESET, reset),
    "tdvmcall": (TDVMCALL, tdvmcall),
    "switch": (SWITCH, switch),
    "trace_record": (TRACE_RECORD, trace_record),
    "error": (ERROR, error),
}

#: fixed request sizes by type; None: any size
REQUEST_BYTES: Final[dict[int, int | None]] = {
    Kind.HELLO: hello.size,
    Kind.MEM_ADD: mem_add.size,
    Kind.MEM_DEL: mem_del.size,
    Kind.VCPU_ADD: vcpu_add.size,
    Kind.CALL: call.size,
    Kind.PAGE_STATE: page_state.size,
    Kind.PAGE_QUERY: page_query.size,
    Kind.RESET: reset.size,
    Kind.TDVMCALL: tdvmcall.size,
    Kind.SCHEDULE: None,
    Kind.TRACE: switch.size,
}


class TransportError(Exception):
    """An error reply of section 6: ``code``, ``detail`` and a sentence."""

    def __init__(self, code: int, text: str, detail: int = 0, *, tag: int = 0) -> None:
        try:
            name = Code(code).name.lower()
        except ValueError:
            name = "unknown"
        super().__init__(f"transport error {code} ({name}): {text}")
        self.code = code
        self.detail = detail
        self.text = text
        self.tag = tag
