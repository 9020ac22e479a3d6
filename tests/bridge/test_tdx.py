"""The TDX service call: B57..B59, S50."""

import hashlib
import struct
from uuid import UUID

import pytest

from svsm_bridge.abi import PAGE, SVSM_BASE, UEFI_MM_GUID
from svsm_bridge.adversary import Schedule, Step, flip, unmap
from svsm_bridge.manifests import parse_services_table, parse_uefi_mm
from svsm_bridge.pages import RWX
from svsm_bridge.transports import tdx
from svsm_bridge.transports.tdx import (
    ALIGNMENT,
    INVALID_OPERAND,
    OK,
    UNSUPPORTED,
    Status,
    TdxFrontEnd,
    l2_report_data,
)
from tests.bridge.support import (
    APPEND,
    BIG,
    BUFFER,
    EVENTS,
    INVALID_PARAMETER,
    INVALID_REQUEST,
    OTHER,
    POLICY,
    READ,
    ROM,
    SUCCESS,
    VARIABLES,
    WRITE,
    Box,
    Untouched,
    mm,
    note,
    note_reply,
)
from tests.bridge.test_attestation import CLAIMS, Reports, attest_box, manifest_source

COMMAND, RESPONSE = BIG, BIG + 0x100000
SHARED = 1 << 51
MASK = 0xFFCC


class TdReports(Reports):
    """TDREPORTs: 1024 bytes with REPORTDATA at 0x80."""

    def report(self, report_data):
        self.asked.append(report_data)
        return bytes(0x80) + report_data + bytes(1024 - 0x80 - 64)


class L2:
    """An L2 guest and its L1."""

    def __init__(self, box=None):
        self.box = box or attest_box(reports=TdReports())
        self.l1 = TdxFrontEnd(self.box.machine)

    def raw(self, *, r10=0, r11=0x10005, r12=COMMAND, r13=RESPONSE, r14=0, r15=0, rcx=MASK, l2=2):
        regs = [0x1000 + n for n in range(16)]
        regs[0], regs[2] = 0, rcx
        regs[10:16] = r10, r11, r12, r13, r14, r15
        before = list(regs)
        self.l1.tdcall(self.box.bsp, l2, regs)
        assert regs[:10] + regs[11:] == before[:10] + before[11:]
        return regs[10]

    def service(self, number, body=b"", *, guid=tdx.SERVICE_GUID, room=0x80000, data=None, length=None, **more):
        """R10, status, length, and the response's result and body."""
        if data is None:
            data = struct.pack("<BBHIQ", 0, number, 0, len(body), 0) + body
        head = guid.bytes_le + struct.pack("<II", 24 + len(data) if length is None else length, 0)
        self.box.poke(COMMAND, head + data)
        self.box.poke(RESPONSE, guid.bytes_le + struct.pack("<II", room, Status.NOT_SUPPORTED))
        r10 = self.raw(**more)
        name, used, status = struct.unpack("<16sII", self.box.peek(RESPONSE, 24))
        assert name == guid.bytes_le
        out = self.box.peek(RESPONSE + 24, max(used - 24, 0)) if status == 0 and used <= room else b""
        return r10, status, used, out

    def mm(self, message, **more):
        """Result and message of an MM request."""
        r10, status, _, out = self.service(1, message, **more)
        assert (r10, status) == (OK, 0)
        version, number, reserved, result, size, reserved2 = struct.unpack_from("<BBHIII", out)
        assert (version, number, reserved, reserved2) == (0, 1, 0, 0)
        return result, out[16 : 16 + size]


@pytest.fixture
def l2():
    made = L2()
    yield made
    assert made.box.audit.violations == []


def test_layouts():
    assert (tdx.HEADER.sizeof(), tdx.COMMAND.sizeof(), tdx.RESPONSE.sizeof()) == (24, 16, 16)


@pytest.mark.parametrize("r11", [0x10005 | 1 << 32, 0x10005 | 1 << 63, 0x5, 0x10002, 0x10003, 0, 0x110005])
def test_B57_all_64_bits_of_r11_count(l2, r11):
    assert l2.raw(r11=r11) == UNSUPPORTED


def test_B57_registers_outside_the_mask_read_as_zero(l2):
    assert l2.raw(rcx=MASK & ~(1 << 11)) == UNSUPPORTED
    assert l2.service(0, rcx=MASK)[:2] == (OK, 0)
    assert l2.raw(rcx=MASK & ~(1 << 12)) == INVALID_OPERAND  # the command buffer reads as 0
    assert l2.raw(r10=1) == UNSUPPORTED


@pytest.mark.parametrize("vector", [1, 31, 32, 255, 256, 1 << 63])
def test_B57_blocking_only(l2, vector):
    with Untouched(l2.box):
        assert l2.raw(r14=vector) == INVALID_OPERAND


@pytest.mark.parametrize("shift", [1, 8, 0x800])
def test_B57_misaligned_or_overlapping(l2, shift):
    with Untouched(l2.box):
        assert l2.raw(r12=COMMAND + shift) == ALIGNMENT
        assert l2.raw(r13=RESPONSE + shift) == ALIGNMENT
        assert l2.raw(r13=COMMAND) == INVALID_OPERAND
    assert l2.service(0, room=0x1000)[1] == 0
    body = bytes(0x2000)
    head = tdx.SERVICE_GUID.bytes_le + struct.pack("<II", 24 + 16 + len(body), 0)
    l2.box.poke(COMMAND, head + struct.pack("<BBHIQ", 0, 1, 0, len(body), 0) + body)
    response = COMMAND + PAGE
    l2.box.poke(response, tdx.SERVICE_GUID.bytes_le + struct.pack("<II", 0x1000, 0))
    assert l2.raw(r13=response) == OK
    assert struct.unpack_from("<II", l2.box.peek(response + 16, 8)) == (24, Status.INVALID_PARAMETER)


def test_B57_a_shared_address_is_refused(l2):
    """The host could read and alter variables: Status 7, and the store is not touched."""
    for shared in ((SHARED, SHARED), (SHARED, 0), (0, SHARED)):
        with Untouched(l2.box, but=[(COMMAND, 0x100), (RESPONSE, 0x100)]):
            got = l2.service(1, note(WRITE, b"k", b"v"), r12=COMMAND | shared[0], r13=RESPONSE | shared[1])
        assert got[:2] == (OK, Status.INVALID_PARAMETER)
    l2.box.memory.rmp.rmpupdate(COMMAND, PAGE, assigned=False)  # private by name, shared in truth
    with Untouched(l2.box, but=[(COMMAND, 0x100), (RESPONSE, 0x100)]):
        assert l2.service(1, note(WRITE, b"k", b"v"))[0] == INVALID_OPERAND


@pytest.mark.parametrize("bad", [0, SVSM_BASE, ROM, 1 << 47, (1 << 64) - PAGE])
def test_B57_addresses_that_are_not_there(l2, bad):
    with Untouched(l2.box, but=[(COMMAND, 0x100), (RESPONSE, 0x100)]):
        assert l2.raw(r12=bad) == INVALID_OPERAND
        assert l2.raw(r13=bad) == INVALID_OPERAND


@pytest.mark.rule("S2")
def test_B58_the_response_is_too_small(l2):
    message = note(APPEND, b"k", b"v")
    need = 24 + 16 + len(message)
    for room in (need - 1, 40, 24):
        with Untouched(l2.box, but=[(COMMAND, 0x100), (RESPONSE, 0x100)]):
            r10, status, used, _ = l2.service(1, message, room=room)
        assert (r10, status, used) == (OK, Status.RESPONSE_TOO_SMALL, need)
    assert l2.service(1, message, room=23)[1] == Status.BAD_RESPONSE_SIZE
    assert l2.service(1, message, room=need)[1] == 0
    assert l2.box.notebook.values[b"k".ljust(16, b"\0")] == b"v"


def test_B58_the_same_bytes_as_over_snp(rng):
    corpus = [
        note(WRITE, b"k", b"value"), note(READ, b"k", bytes(16)), note(READ, b"k", bytes(2)), note(READ, b"x"),
        note(APPEND, b"k", b"!"), note(77, b"k"), mm(POLICY, b"VCPC" + bytes(40)), mm(POLICY, bytes(19)),
        mm(VARIABLES, bytes(15)), mm(VARIABLES, bytes(20)), *(mm(e, b"\0") for e in EVENTS),
        mm(UUID(int=1), bytes(32)),
        mm(VARIABLES, b"", length=1), *(note(rng.choice((1, 3, 4)), b"k", rng.randbytes(40)) for _ in range(30)),
    ]  # fmt: skip
    snp, td = Box(), L2()
    for message in corpus:
        rax, after = snp.mm(message, gpa=BUFFER, size=max(len(message), 24))
        result, reply = td.mm(message)
        assert result == rax
        if rax == SUCCESS:
            assert reply == after
        else:
            assert reply == b""
    assert snp.notebook.values == td.box.notebook.values


def test_capabilities_and_bad_commands(l2):
    _, status, used, out = l2.service(0)
    assert (status, used) == (0, 24 + 16 + 24)
    assert struct.unpack("<BBHIII", out[:16]) == (0, 0, 0, 0, 24, 0)
    assert struct.unpack("<IIQQ", out[16:]) == (1, 1, 0x40000, 0b1111)
    assert l2.service(0, b"x")[1] == Status.BAD_COMMAND_SIZE
    assert l2.service(4)[1] == Status.NOT_SUPPORTED
    assert l2.service(0, length=39)[1] == Status.BAD_COMMAND_SIZE
    assert l2.service(0, length=1 << 31)[1] == Status.BAD_COMMAND_SIZE
    assert l2.service(0, data=struct.pack("<BBHIQ", 0, 0, 0, 1, 0))[1] == Status.BAD_COMMAND_SIZE
    for data in ((1, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 0, 1)):
        assert l2.service(0, data=struct.pack("<BBHIQ", *data))[1] == Status.INVALID_PARAMETER
    assert l2.service(0, guid=UUID(int=3))[1] == Status.NOT_SUPPORTED


def test_mode_b_is_not_offered(l2):
    """A service TD is not there: the Query service says so, in private or shared buffers."""
    vtpm = UUID("64590793-7852-4e52-be45-cdbb116f20f3")
    data = struct.pack("<BBH", 0, 0, 0) + vtpm.bytes_le
    for shared in (0, SHARED):
        got = l2.service(0, guid=tdx.QUERY_GUID, data=data, r12=COMMAND | shared, r13=RESPONSE | shared)
        assert got == (OK, 0, 44, b"\0\0\1\0" + vtpm.bytes_le)
    assert l2.service(0, guid=tdx.QUERY_GUID, data=data[:-1])[1] == Status.BAD_COMMAND_SIZE
    assert l2.service(0, guid=tdx.QUERY_GUID, data=data, room=43)[1:3] == (Status.RESPONSE_TOO_SMALL, 44)


def test_attestation_over_tdx(l2):
    nonce = bytes(range(64))
    _, status, _, out = l2.service(2, nonce)
    assert status == 0
    manifest_size, report_size = struct.unpack_from("<II", out, 16)
    manifest = out[24 : 24 + manifest_size]
    report = out[24 + manifest_size :][:report_size]
    assert len(report) == 1024
    assert report[0x80:0xC0] == hashlib.sha512(nonce + manifest).digest()
    assert UEFI_MM_GUID in parse_services_table(manifest)
    _, _, _, out = l2.service(3, nonce + UEFI_MM_GUID.bytes_le + struct.pack("<I", 0))
    assert parse_uefi_mm(out[24:32]) == 7
    for body in (nonce[:-1], nonce + b"x"):
        assert struct.unpack_from("<I", l2.service(2, body)[3], 4)[0] == INVALID_PARAMETER
    assert struct.unpack_from("<I", l2.service(1, mm(UUID(int=4), bytes(30)))[3], 4)[0] == INVALID_REQUEST


@pytest.mark.rule("S50")
def test_B59_l2_cannot_forge_a_service_report(l2):
    """L2 asks for a TD report over SHA-512(nonce || manifest) of its own making."""
    nonce, manifest = bytes(64), b"anything it likes"
    forged = hashlib.sha512(nonce + manifest).digest()
    data_gpa, report_gpa = OTHER, OTHER + 0x400
    l2.box.poke(data_gpa, forged)
    regs = [tdx.MR_REPORT, 0, report_gpa, data_gpa, *[0] * 12]
    l2.l1.tdcall(l2.box.bsp, 2, regs)
    assert regs[0] == OK
    report = l2.box.peek(report_gpa, 1024)
    assert report[0x80:0xC0] != forged
    assert report[0x80:0xC0] == l2_report_data(2, forged)
    assert report[0xB0:0xC0] == bytes(16)
    assert l2_report_data(1, forged) != l2_report_data(2, forged)
    for bad in ({2: report_gpa + 8}, {3: data_gpa + 8}, {8: 1}, {2: SVSM_BASE}, {3: SVSM_BASE}):
        regs = [tdx.MR_REPORT, 0, report_gpa, data_gpa, *[0] * 12]
        for index, value in bad.items():
            regs[index] = value
        l2.l1.tdcall(l2.box.bsp, 2, regs)
        assert regs[0] == tdx.MODULE_OPERAND_INVALID
    regs = [7] + [0] * 15
    l2.l1.tdcall(l2.box.bsp, 2, regs)
    assert regs[0] == tdx.MODULE_OPERAND_INVALID


def test_l2_rights_are_those_of_its_index(l2):
    assert l2.service(0, l2=3)[0] == INVALID_OPERAND
    for at in range(0, 0x80000, PAGE):
        l2.box.memory.rmp.rmpadjust(COMMAND + at, vmpl=3, perm=RWX)
        l2.box.memory.rmp.rmpadjust(RESPONSE + at, vmpl=3, perm=RWX)
    assert l2.service(0, l2=3)[:2] == (OK, 0)


@pytest.mark.rule("S22")
def test_every_byte_of_a_command_is_read_once(l2):
    message = note(WRITE, b"k", b"value")
    for at in range(8):
        l2.box.notebook.values.clear()
        evil = [Step(at, flip(COMMAND + spot, b"\xff" * 4), before=False) for spot in (0, 16, 24, 28, 40, 56, 100)]
        with Schedule(l2.box.machine, l2.box.dispatcher, evil):
            l2.service(1, message)
        assert set(l2.box.notebook.values.values()) <= {b"value"}
    with Schedule(l2.box.machine, l2.box.dispatcher, [Step(3, unmap(RESPONSE))]):
        assert l2.service(1, message)[0] == INVALID_OPERAND  # the commit stands, like a lost reply


def test_an_internal_error_is_an_answer(l2):
    def broken(*_):
        raise KeyError

    l2.box.service.manifests = broken
    assert l2.service(2, bytes(64))[0] == INVALID_OPERAND
    l2.box.service.manifests = manifest_source(lambda: CLAIMS)
    assert l2.service(2, bytes(64))[:2] == (OK, 0)
    l2.box.service.lock.acquire()
    assert struct.unpack_from("<I", l2.service(1, note(WRITE, b"k"))[3], 4)[0] == 0x80000007
    l2.box.service.lock.release()
    assert note_reply(l2.mm(note(WRITE, b"k"))[1])[0] == 0
