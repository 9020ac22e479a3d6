"""TDX: the SVSM's services by a GHCI service call from L2 to L1, mode A (svsm-calls 4).

TDCALL leaf 0 (TDG.VP.VMCALL) with R11 = 0x10005, command and response in *private* memory. L1 sees the
registers that RCX exposes and answers in R10. TDG.MR.REPORT of L2 is intercepted (S50).
"""

import hashlib
import struct
from enum import IntEnum
from typing import Final
from uuid import UUID

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from svsm_bridge.abi import (
    MM_HEADER,
    MM_HEADER_BYTES,
    PAGE,
    Registers,
    guid,
)
from svsm_bridge.dispatcher import Call, Refused
from svsm_bridge.errors import (
    Busy,
    CallError,
    GuestMustStop,
    InvalidAddress,
    InvalidParameter,
)
from svsm_bridge.machine import Machine, Vcpu
from svsm_bridge.pages import R, W
from svsm_bridge.protocols import attestation
from svsm_bridge.service import UNHURRIED, Turn, incident

SERVICE_GUID: Final = UUID("b5b2d14e-9190-4668-aeef-aa8eb9191b92")
QUERY_GUID: Final = UUID("fb6fc5e1-3378-4acb-8964-fa5ee43b9c8a")
SERVICE: Final = 0x10005
VMCALL: Final = 0
MR_REPORT: Final = 4
TDREPORT_BYTES: Final = 1024
REPORT_DATA_BYTES: Final = 64

#: R10 of TDG.VP.VMCALL, RAX of other leaves
OK: Final = 0
RETRY: Final = 1
INVALID_OPERAND: Final = 0x8000000000000000
ALIGNMENT: Final = 0x8000000000000002
UNSUPPORTED: Final = 0x8000000000000003
MODULE_OPERAND_INVALID: Final = 0xC0000100_00000000

REGISTER_NAMES: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


class Status(IntEnum):
    """Status of a service response."""

    DONE = 0
    DEVICE_ERROR = 1
    TIMEOUT = 2
    RESPONSE_TOO_SMALL = 3
    BAD_COMMAND_SIZE = 4
    BAD_RESPONSE_SIZE = 5
    BUSY = 6
    INVALID_PARAMETER = 7
    OUT_OF_RESOURCES = 8
    NOT_SUPPORTED = 0xFFFFFFFE


HEADER: Final = Struct("guid" / Bytes(16), "length" / Int32ul, "status" / Int32ul)  # both buffers, 0x18 bytes
COMMAND: Final = Struct(  # data of our service
    "version" / Int8ul,  # +0x00
    "command" / Int8ul,
    "reserved" / Int16ul,
    "body_length" / Int32ul,
    "reserved2" / Int64ul,  # +0x08
)
RESPONSE: Final = Struct(
    "version" / Int8ul,  # +0x00
    "command" / Int8ul,
    "reserved" / Int16ul,
    "result" / Int32ul,
    "body_length" / Int32ul,  # +0x08
    "reserved2" / Int32ul,
)
_header: Final = struct.Struct("<16sII")
_command: Final = struct.Struct("<BBHIQ")
_response: Final = struct.Struct("<BBHIII")

CAPABILITIES, MM, ATTEST, ATTEST_SINGLE = range(4)
COMMAND_BITMAP: Final = 0b1111


class TooSmall(Exception):
    """The response buffer needs ``needed`` bytes."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"response needs {needed} bytes")
        self.needed = needed


class Outcome(Exception):
    """A service response without data: ``status`` alone."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class TdxFrontEnd:
    """L1 of a TD. An L2's index takes the place of the calling VMPL; rights are the L2 page attributes."""

    def __init__(self, machine: Machine, *, shared_bit: int = 51) -> None:
        self._machine = machine
        self._shared = 1 << shared_bit

    def tdcall(self, vcpu: Vcpu, l2: int, regs: list[int], *, turn: Turn = UNHURRIED) -> None:
        """A TDCALL of L2 number ``l2`` (1..3) with ``regs`` rax..r15, changed in place.

        Raises:
            GuestMustStop: the guest's store cannot be trusted any more.
        """
        machine = self._machine
        call = Call(machine, vcpu, Registers(rax=regs[0]), turn)
        call.vmpl = l2
        audit = machine.audit
        if audit is not None:
            audit.begin(call)
        try:
            if regs[0] == VMCALL:
                regs[10] = self._vmcall(call, regs)
            elif regs[0] == MR_REPORT:
                regs[0] = self._mr_report(call, l2, report_gpa=regs[2], data_gpa=regs[3], subtype=regs[8])
            else:
                regs[0] = MODULE_OPERAND_INVALID
        except Busy:  # nothing has happened: the caller asks again
            regs[10 if regs[0] == VMCALL else 0] = RETRY
        except GuestMustStop:
            raise
        except Exception as error:
            incident("TDX call", error)
            regs[10 if regs[0] == VMCALL else 0] = INVALID_OPERAND
        finally:
            if audit is not None:
                audit.end(call)

    # --- TDG.VP.VMCALL<Service> --------------------------------------------------------------------

    def _vmcall(self, call: Call, regs: list[int]) -> int:
        exposed = [value if regs[2] >> n & 1 else 0 for n, value in enumerate(regs)]
        if exposed[10] or exposed[11] != SERVICE:  # all 64 bits: 0x10005 cut short looks like an exit reason
            return UNSUPPORTED
        command, response, vector = exposed[12:15]
        if vector:  # blocking only
            return INVALID_OPERAND
        if (command | response) % PAGE:
            return ALIGNMENT
        shared = (command | response) & self._shared
        command, response = command & ~self._shared, response & ~self._shared
        if command == response:
            return INVALID_OPERAND
        try:
            room = self._response_room(call, response, shared=bool(shared))
            head = self._head(call, command, shared=bool(shared))
        except InvalidAddress:
            return INVALID_OPERAND
        status, data = self._serve(call, command, response, head, room, shared=bool(shared))
        length = data if isinstance(data, int) else _header.size + len(data)
        out = _header.pack(head[0], length, status)[16:]  # the caller filled the GUID in: echoed, not written
        if isinstance(data, bytes):
            out += data
        try:
            self._put(call, response + 16, out, shared=bool(shared))
        except InvalidAddress:
            return INVALID_OPERAND  # a commit stands, like a lost reply (S25)
        return OK

    def _put(self, call: Call, gpa: int, data: bytes, *, shared: bool) -> None:
        if shared:
            call.memory.device_write(gpa, data, call)
        else:
            call.write(gpa, data)

    def _head(self, call: Call, gpa: int, *, shared: bool) -> tuple[bytes, int, int]:
        """The command's header, copied once with the GUID that dispatches it."""
        size = _header.size
        raw = call.memory.device_read(gpa, size, call) if shared else call.read(gpa, size)
        name, length, reserved = _header.unpack(raw)
        return name, length, reserved

    def _response_room(self, call: Call, gpa: int, *, shared: bool) -> int:
        """Bytes that the response buffer has, all of it writable."""
        size = _header.size
        if not shared:
            call.memory.check(gpa, size, vmpl=call.vmpl, need=R | W)
        raw = call.memory.device_read(gpa + 16, 4, call) if shared else call.read(gpa + 16, 4)
        room = int.from_bytes(raw, "little")
        if not shared:
            call.memory.check(gpa, max(room, size), vmpl=call.vmpl, need=R | W)
        return room

    def _serve(
        self, call: Call, command: int, response: int, head: tuple[bytes, int, int], room: int, *, shared: bool
    ) -> tuple[int, bytes | int]:
        """Status, and data or the length needed."""
        name, length, reserved = head
        service = guid(name)
        try:
            if room < _header.size:
                return Status.BAD_RESPONSE_SIZE, _header.size
            if service == QUERY_GUID:
                return self._query(call, command, length, room, shared=shared)
            if service != SERVICE_GUID:
                return Status.NOT_SUPPORTED, b""
            if shared:  # the host could read and alter variables
                return Status.INVALID_PARAMETER, b""
            if reserved:
                return Status.INVALID_PARAMETER, b""
            return Status.DONE, self._command(call, command, length, response, room)
        except TooSmall as small:
            return Status.RESPONSE_TOO_SMALL, small.needed
        except Outcome as outcome:
            return outcome.status, b""
        except InvalidAddress:
            return Status.INVALID_PARAMETER, b""

    def _query(self, call: Call, command: int, length: int, room: int, *, shared: bool) -> tuple[int, bytes | int]:
        """Query service: a service TD (mode B) is not there, whichever GUID is asked for."""
        if length != _header.size + 20:
            return Status.BAD_COMMAND_SIZE, b""
        if room < _header.size + 20:
            return Status.RESPONSE_TOO_SMALL, _header.size + 20
        at = command + _header.size
        data = call.memory.device_read(at, 20, call) if shared else call.read(at, 20)
        return Status.DONE, data[:2] + b"\1\0" + data[4:]

    def _command(self, call: Call, command: int, length: int, response: int, room: int) -> bytes:
        """One command of our service; the data of its response.

        Raises:
            TooSmall: before any effect.
            Outcome: a status without data.
            InvalidAddress: the command's buffer fails S20 or S21.
        """
        fixed = _header.size + _command.size
        if not fixed <= length <= fixed + call.machine.service.mm_limit:
            raise Outcome(Status.BAD_COMMAND_SIZE)
        if command < response + max(room, _header.size) and response < command + length:
            raise Outcome(Status.INVALID_PARAMETER)
        call.memory.check(command, length, vmpl=call.vmpl, need=R)
        data = call.read(command + _header.size, length - _header.size)
        version, number, reserved, body_length, reserved2 = _command.unpack_from(data)
        if version or reserved or reserved2:
            raise Outcome(Status.INVALID_PARAMETER)
        if body_length != len(data) - _command.size:
            raise Outcome(Status.BAD_COMMAND_SIZE)
        body = data[_command.size :]
        room -= _header.size + _response.size
        result, reply = 0, b""
        try:
            if number == CAPABILITIES:
                reply = self._capabilities(call, body)
            elif number == MM:
                reply = self._mm(call, body, room)
            elif number in (ATTEST, ATTEST_SINGLE):
                reply = self._attest(call, body, single=number == ATTEST_SINGLE)
            else:
                raise Outcome(Status.NOT_SUPPORTED)
        except CallError as error:
            result = int(error.result) & 0xFFFFFFFF
        _require_room(room, len(reply))
        return _response.pack(0, number, 0, result, len(reply), 0) + reply

    def _capabilities(self, call: Call, body: bytes) -> bytes:
        if body:
            raise Outcome(Status.BAD_COMMAND_SIZE)
        return struct.pack("<IIQQ", 1, 1, call.machine.service.mm_limit, COMMAND_BITMAP)

    def _mm(self, call: Call, body: bytes, room: int) -> bytes:
        """The whole message as it would stand in an SNP guest's buffer."""
        service = call.machine.service
        if not MM_HEADER_BYTES <= len(body) <= service.mm_limit:
            raise InvalidParameter(f"body of {len(body)} bytes")
        header = body[:MM_HEADER_BYTES]
        length: int = MM_HEADER.unpack(header)[1]
        if length > len(body) - MM_HEADER_BYTES:
            raise InvalidParameter(f"MessageLength {length:#x} in a body of {len(body):#x} bytes")
        _require_room(room, MM_HEADER_BYTES + length)
        message = body[MM_HEADER_BYTES : MM_HEADER_BYTES + length]
        reply = service.mm(
            header,
            message,
            turn=call.turn,
            patience=call.vcpu.patience,
            longest_s=call.machine.call_deadline_s,
        )
        return header + reply + message[len(reply) :]

    def _attest(self, call: Call, body: bytes, *, single: bool) -> bytes:
        want = attestation.NONCE_BYTES + (20 if single else 0)
        if len(body) != want:
            raise InvalidParameter(f"attestation body of {len(body)} bytes")
        nonce = body[: attestation.NONCE_BYTES]
        chosen = None
        if single:
            chosen = (guid(body[64:80]), int.from_bytes(body[80:84], "little"))
            attestation.require_offered(call, *chosen)
        manifest = attestation.take_manifest(call, chosen)
        report = attestation.raw_report(call, hashlib.sha512(nonce + manifest).digest(), TDREPORT_BYTES)
        return struct.pack("<II", len(manifest), len(report)) + manifest + report

    # --- TDG.MR.REPORT -----------------------------------------------------------------------------

    def _mr_report(self, call: Call, l2: int, *, report_gpa: int, data_gpa: int, subtype: int) -> int:
        """S50: a TD report has no field for the level, so guest-chosen data never goes into one as it is."""
        if report_gpa % TDREPORT_BYTES or data_gpa % REPORT_DATA_BYTES or subtype:
            return MODULE_OPERAND_INVALID
        try:
            call.memory.check(report_gpa, TDREPORT_BYTES, vmpl=call.vmpl, need=R | W)
            data = call.read(data_gpa, REPORT_DATA_BYTES)
            report = attestation.raw_report(call, l2_report_data(l2, data), TDREPORT_BYTES)
            call.turn.begin_effect()
            call.write(report_gpa, report)
        except (InvalidAddress, Refused):
            return MODULE_OPERAND_INVALID
        return OK


def l2_report_data(index: int, data: bytes) -> bytes:
    """What stands in REPORTDATA of a report that L2 number ``index`` asked for over ``data`` (S50)."""
    mark = b"tdx-l2-report-v1" + struct.pack("<I", index) + data
    return hashlib.sha384(mark).digest() + bytes(16)


def _require_room(room: int, body: int) -> None:
    if body > room:
        raise TooSmall(_header.size + _response.size + body)
