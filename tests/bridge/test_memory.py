"""Memory rules: B30..B38, S20..S27, pitfalls P01 and P02."""

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svsm_bridge.abi import PAGE, SVSM_BASE, SVSM_SIZE, Registers, call_number
from svsm_bridge.adversary import (
    Schedule,
    Step,
    flip,
    make_shared,
    remap,
    revoke,
    to_vmsa,
    unmap,
)
from svsm_bridge.errors import InvalidAddress
from svsm_bridge.memory import GuestMemory, page_pieces, sealed_memfd
from svsm_bridge.pages import RWX, Kind, R, State, W
from svsm_bridge.watch import DoubleFetch, FetchAudit
from tests.bridge.support import (
    BIG,
    BIG_END,
    BUFFER,
    CA0,
    CA1,
    EVENTS,
    HIGH,
    HIGH_END,
    INVALID_ADDRESS,
    INVALID_PARAMETER,
    LOW,
    LOW_END,
    MMIO,
    OTHER,
    POLICY,
    READ,
    ROM,
    ROM_WINDOW,
    SCRATCH,
    SUCCESS,
    SVSM_END,
    UNSUPPORTED_PROTOCOL,
    VARIABLES,
    WRITE,
    Box,
    Untouched,
    mm,
    note,
    note_reply,
)

WRONG = {
    0x80000003, 0x80000005,  # address, parameter: which of the two, the tests of each call say
}  # fmt: skip

#: every address of B30
ADDRESSES = [
    0, 1, LOW_END - 1, LOW_END, BIG_END - 1, BIG_END, LOW_END + PAGE, LOW - 1, SVSM_BASE - 1, SVSM_BASE,
    SVSM_BASE + SVSM_SIZE - 1, 1 << 51 | SCRATCH, 1 << 52, 1 << 63, (1 << 64) - 8, (1 << 64) - PAGE,
    (1 << 64) - 1, SVSM_BASE - 8, ROM_WINDOW - PAGE, MMIO, ROM,
]  # fmt: skip


def attestation(**fields):
    """An attestation operation of 0x40 bytes."""
    given_fields = {
        "report": 0, "report_size": 0, "nonce": OTHER, "nonce_size": 64, "manifest": 0, "manifest_size": 0,
        "certificates": 0, "certificates_size": 0,
    } | fields  # fmt: skip
    f = given_fields
    return struct.pack(
        "<QIIQH6xQIIQII", f["report"], f["report_size"], 0, f["nonce"], f["nonce_size"], f["manifest"],
        f["manifest_size"], 0, f["certificates"], f["certificates_size"], 0,
    )  # fmt: skip


@pytest.mark.parametrize("gpa", ADDRESSES, ids=hex)
def test_B30_every_pointer_of_every_call(box, gpa):
    pvalidate = struct.pack("<HHIQ", 1, 0, 0, gpa & ~0xFFF | 4)
    with Untouched(box, but=[(CA0, 1), (SCRATCH, 0x100), (OTHER, 64)]):
        for number in (0, 1, 3):
            assert box.call(0, number, rcx=gpa)[0] in WRONG
        assert box.call(0, 2, rcx=gpa, rdx=OTHER, r8=2)[0] in WRONG
        assert box.call(0, 2, rcx=OTHER, rdx=gpa, r8=2)[0] in WRONG
        box.poke(SCRATCH, pvalidate)
        assert box.call(0, 1, rcx=SCRATCH)[0] in {INVALID_ADDRESS, 0x80001010}  # 0x…1010: valid RAM below it
        for number in (0, 1):
            assert box.call(1, number, rcx=gpa)[0] == INVALID_PARAMETER
        for field in ("nonce", "report", "manifest", "certificates"):
            more = {} if field == "nonce" else {f"{field}_size": PAGE}
            box.poke(SCRATCH, attestation(**({field: gpa} | more)))
            assert box.call(1, 0, rcx=SCRATCH)[0] in WRONG
        for size in (24, PAGE, 0x10000):
            assert box.call(4, 1, rcx=gpa, rdx=size)[0] in WRONG
    assert box.mm(note(WRITE, b"k", b"alive"))[0] == SUCCESS


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (LOW - PAGE, 2 * PAGE),  # two adjacent ranges
        (LOW_END - PAGE, 2 * PAGE),  # into a gap
        (SVSM_BASE - 0x10000, 0x10001),  # one byte inside the SVSM region
        (SVSM_BASE - PAGE, 0x10000),
        (HIGH_END - PAGE, 0x10000),
    ],
)  # fmt: skip
def test_B30_B31_ranges_that_cross_a_border(box, profile, gpa, size):
    header = mm(VARIABLES, b"", length=size - 24)
    box.poke(gpa, header)
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(4, 1, rcx=gpa, rdx=size)[0] == INVALID_ADDRESS


@pytest.mark.parametrize("rdx", [(1 << 64) - BUFFER, (1 << 64) - BUFFER + 24, (1 << 64) - 1])
def test_B31_ranges_that_wrap(box, rdx):
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(4, 1, rcx=BUFFER, rdx=rdx)[0] == INVALID_PARAMETER  # above the limit anyway
    with pytest.raises(InvalidAddress):
        box.memory.check(BUFFER, rdx, vmpl=2, need=R)
    with pytest.raises(InvalidAddress):
        box.memory.check(BUFFER, 0, vmpl=2, need=R)


@pytest.mark.parametrize("what", ["shared", "unvalidated", "rom", "mmio", "unmapped", "remapped"])
def test_B32_pages_that_are_not_private(box, what):
    message = note(WRITE, b"k", b"by the host")
    gpa = {"rom": ROM, "mmio": MMIO}.get(what, BUFFER)
    if what in ("shared", "unvalidated"):
        box.memory.rmp.rmpupdate(gpa, PAGE, assigned=what == "unvalidated")
    elif what == "unmapped":
        box.memory.rmp.unmap(gpa, PAGE)
    elif what == "remapped":
        box.memory.rmp.remap(gpa, box.memory.frame(OTHER))
    box.poke(gpa, message)
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(4, 1, rcx=gpa, rdx=PAGE)[0] == INVALID_ADDRESS
    assert box.notebook.handled == 0


@pytest.mark.rule("S21")
@pytest.mark.parametrize("granted", [0, R, W, RWX])
def test_B33_a_less_privileged_caller(box, granted):
    """VMPL3 hands over a page of VMPL2: the service would be its confused deputy."""
    user = box.machine.add_vcpu(9, vmpl=3)
    box.memory.rmp.rmpadjust(OTHER, vmpl=3, perm=RWX)
    user.ca = OTHER
    box.memory.rmp.claim(OTHER, State.CA)
    box.memory.rmp.rmpadjust(BUFFER, vmpl=3, perm=granted)
    box.poke(BUFFER, note(WRITE, b"k", b"kernel's"))
    want = SUCCESS if granted == RWX else INVALID_ADDRESS
    image = box.peek(BUFFER, PAGE)
    assert box.call(4, 1, rcx=BUFFER, rdx=PAGE, vcpu=user)[0] == want
    if want:
        assert box.peek(BUFFER, PAGE) == image
        assert box.notebook.values == {}
    box.memory.rmp.rmpadjust(SCRATCH, vmpl=3, perm=RWX)
    box.poke(SCRATCH, attestation(nonce=BUFFER))
    rax, _ = box.call(1, 0, rcx=SCRATCH, vcpu=user)
    if not granted & R:
        assert rax == INVALID_PARAMETER


def test_B34_the_audit_sees_a_double_fetch():
    audit = FetchAudit()
    box = Box(observer=None)
    box.machine.watch(audit)

    class Fetching:
        vcpu_id, number = 0, 7

    call = Fetching()
    audit.begin(call)
    box.memory.read(BUFFER, 24, vmpl=2, caller=call)
    box.memory.read(BUFFER + 24, 100, vmpl=2, caller=call)
    for gpa, size in ((BUFFER + 23, 1), (BUFFER, 1), (BUFFER + 123, 5), (BUFFER, 0x100)):
        with pytest.raises(DoubleFetch):
            box.memory.read(gpa, size, vmpl=2, caller=call)
    assert len(audit.violations) == 4
    audit.end(call)
    box.memory.read(BUFFER, 24, vmpl=2, caller=call)


MESSAGES = {
    "write": note(WRITE, b"k", b"value"),
    "read": note(READ, b"k", bytes(32)),
    "policy": mm(POLICY, b"VCPC" + bytes(40)),
    **{f"event {n}": mm(event, b"\0") for n, event in enumerate(EVENTS)},
    "short": mm(VARIABLES, bytes(15)),
    "none": mm(VARIABLES, b""),
}


@pytest.mark.rule("P01", "B34")
@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_B35_P01_every_byte_is_read_once_and_the_first_read_counts(profile, name):
    """An adversary changes every byte of the message right after, and only after, it was read."""
    message = MESSAGES[name]
    box = Box(profile)
    box.notebook.values[b"k".ljust(16, b"\0")] = b"stored"
    want = box.mm(message)
    values = dict(box.notebook.values)

    class Flipping:
        """Replaces what a call has just read."""

        def before(self, access):
            pass

        def after(self, access, *, ok):
            if access.op == "read" and ok:
                box.memory.host_write(access.gpa, b"\xee" * access.size)

    box.notebook.values = {b"k".ljust(16, b"\0"): b"stored"}
    box.machine.watch(Flipping())
    rax, after = box.mm(message)
    assert rax == want[0]
    assert box.notebook.values == values
    untouched = b"\xee" * len(message)
    if rax == SUCCESS and want[1] != message:
        reply = want[1][24:]
        assert all(a in (r, u) for a, r, u in zip(after[24:], reply, untouched[24:], strict=True))
    assert after[:24] == untouched[:24]
    assert box.audit.violations == []


@pytest.mark.parametrize("offset", range(0, 72, 8))
def test_B35_a_header_field_is_flipped_between_the_two_copies(profile, offset):
    """MessageLength, GUID, function and sizes: flipped after the first read, at every access."""
    box = Box(profile)
    message = note(WRITE, b"k", b"value")
    for at in range(8):
        box.notebook.values.clear()
        evil = flip(BUFFER + offset, b"\xff" * 8)
        box.poke(BUFFER, message)
        with Schedule(box.machine, box.dispatcher, [Step(at, evil)]) as schedule:
            rax, _ = box.mm(message)
        reads = [n for n, a in enumerate(schedule.accesses) if a.op == "read"]
        if reads and at > reads[offset >= 24 and len(reads) > 1]:
            assert rax == SUCCESS
            assert box.notebook.values == {b"k".ljust(16, b"\0"): b"value"}
    assert box.audit.violations == []


HOSTILE = {
    "revoke": revoke(BUFFER),
    "unmap": unmap(BUFFER),
    "make shared": make_shared(BUFFER),
    "remap": remap(BUFFER, SCRATCH),
    "remap to the SVSM": remap(BUFFER, SVSM_BASE),
    "to vmsa": to_vmsa(BUFFER, vcpu=1, apic_id=2, area=OTHER),
}


@pytest.mark.rule("S23", "S25", "S27")
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_B36_the_page_goes_away_between_copy_in_and_copy_out(profile, name):
    box = Box(profile)
    secret = box.memory.svsm_frame(SVSM_BASE)
    secret[:] = b"\x77" * PAGE
    message = note(WRITE, b"k", b"value")
    outcomes = set()
    for at in range(6):
        box = Box(profile)
        box.poke(SCRATCH, b"\x33" * PAGE)
        by_vcpu = name == "to vmsa"
        box.poke(BUFFER, message)
        box.poke(CA0, b"\1")
        regs = Registers(rax=call_number(4, 1), rcx=BUFFER, rdx=0x1000)
        with Schedule(box.machine, box.dispatcher, [Step(at, HOSTILE[name], by_vcpu=by_vcpu)]) as schedule:
            box.enter(regs)
        acted = at < len(schedule.accesses) + 1
        wrote = any(a.op == "write" and a.gpa >= BUFFER for a in schedule.accesses)
        outcomes.add((regs.rax, bool(box.notebook.values)))
        if regs.rax == INVALID_ADDRESS:
            assert box.peek(SCRATCH, PAGE) == b"\x33" * PAGE
            assert bytes(secret) == b"\x77" * PAGE
            if name == "to vmsa":
                assert box.memory.rmp.state_of(BUFFER) & State.VMSA
        assert acted or wrote
    assert (INVALID_ADDRESS, False) in outcomes  # before the copy: refused
    assert (INVALID_ADDRESS, True) in outcomes  # after it: the commit stands (S25)


def test_B37_a_fault_in_the_second_of_sixteen_pages(box):
    message = note(WRITE, b"k", bytes(15 * PAGE))
    box.poke(BUFFER, message)
    box.poke(CA0, b"\1")
    regs = Registers(rax=call_number(4, 1), rcx=BUFFER, rdx=0x10000)
    # accesses: flag read, flag write, header, then the body page by page
    with Schedule(box.machine, box.dispatcher, [Step(4, unmap(BUFFER + PAGE))]) as schedule:
        box.enter(regs)
    assert regs.rax == INVALID_ADDRESS
    assert box.notebook.values == {}
    assert schedule.accesses[-1].gpa == BUFFER + PAGE


@pytest.mark.rule("S26", "P02")
@pytest.mark.parametrize("size", [24, 40, 64, 4096, 0x10000])
def test_B38_P02_nothing_but_the_reply_is_written(box, size):
    """Guest memory is filled with a pattern: what changes is the reply and nothing else."""
    box.notebook.values[b"k".ljust(16, b"\0")] = b"stored"
    for base in (mm(VARIABLES, b""), note(READ, b"k", bytes(6)), note(WRITE, b"w"), mm(POLICY, b"\xa5" * 44)):
        if len(base) > size:
            continue
        message = base[:16] + struct.pack("<Q", size - 24) + base[24:]
        message = message.ljust(size, b"\xa5")
        box.poke(BUFFER, b"\xa5" * 0x10000 + b"\xa5" * PAGE)
        rax, after = box.mm(message, size=size)
        tail = box.peek(BUFFER + size, 0x10000 + PAGE - size)
        assert tail == b"\xa5" * len(tail)
        assert after[:24] == message[:24]
        if rax == SUCCESS:
            _, value = note_reply(after) if size >= 64 else (0, b"")
            reply = 40 + len(value)
            assert after[24 + reply :] == message[24 + reply :]
        else:
            assert after == message


@given(
    gpa=st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from(ADDRESSES)),
    size=st.one_of(st.integers(0, 1 << 20), st.integers(0, (1 << 64) - 1)),
    vmpl=st.integers(1, 3),
)
@settings(max_examples=300)
def test_S20_any_range_is_inside_one_region_or_refused(gpa, size, vmpl):
    box = _BOX
    try:
        box.memory.check(gpa, size, vmpl=vmpl, need=R | W)
    except InvalidAddress:
        return
    assert vmpl == 2
    assert size > 0
    inside = [r for r in box.memory.rmp.regions if r.base <= gpa and gpa + size <= r.base + r.size]
    assert [r.kind for r in inside] == [Kind.RAM]
    for area in (CA0, CA1):
        assert not (gpa < area + 8 and area < gpa + size)


_BOX = Box()


def test_S20_the_first_bytes_of_a_calling_area(default_box):
    box = default_box
    box.memory.check(CA0 + 8, PAGE - 8, vmpl=2, need=R | W)
    for gpa, size in ((CA0, 8), (CA0 + 7, 1), (CA0 + 7, 100), (CA0 + 8, PAGE), (CA0 - PAGE, PAGE + 1)):
        with pytest.raises(InvalidAddress):
            box.memory.check(gpa, size, vmpl=2, need=R)


def test_2_3_the_backing_is_sealed_and_shared():
    fd = sealed_memfd(2 * PAGE)
    memory = GuestMemory()
    memory.add(0, 2 * PAGE, fd=fd)
    os.pwrite(fd, b"from another process", PAGE)
    assert memory.read(PAGE, 20, vmpl=2) == b"from another process"
    memory.write(0, b"back", vmpl=2)
    assert os.pread(fd, 4, 0) == b"back"
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)
    memory.close()
    with pytest.raises(InvalidAddress):
        memory.read(0, 1, vmpl=2)


def test_2_3_no_view_of_guest_memory_leaves(box):
    assert type(box.memory.read(BUFFER, 16, vmpl=2)) is bytes
    box.memory.rmp.remap(SCRATCH, box.memory.frame(OTHER))
    assert type(box.memory.host_read(SCRATCH, 16)) is bytes
    assert box.mm(note(WRITE, b"k", b"v"))[0] == SUCCESS


def test_ranges_are_added_and_removed_exactly(box):
    for gpa, size in ((LOW, PAGE), (LOW_END - PAGE, 2 * PAGE), (SVSM_BASE - PAGE, 2 * PAGE), (1, PAGE), (0, 0)):
        with pytest.raises(InvalidAddress):
            box.memory.add(gpa, size)
    with pytest.raises(InvalidAddress):
        box.memory.add(1 << 48, PAGE)
    box.memory.add(LOW_END, PAGE)
    with pytest.raises(InvalidAddress):
        box.memory.remove(LOW_END, 2 * PAGE)
    box.memory.remove(LOW_END, PAGE)
    with pytest.raises(InvalidAddress):  # calling areas live there
        box.memory.remove(LOW, LOW_END - LOW)
    assert box.call(5, 0)[0] == UNSUPPORTED_PROTOCOL


def test_page_pieces():
    assert list(page_pieces(PAGE - 1, PAGE + 2)) == [(PAGE - 1, 1), (PAGE, PAGE), (2 * PAGE, 1)]
    assert list(page_pieces(HIGH, PAGE)) == [(HIGH, PAGE)]
    assert list(page_pieces(SVSM_END, 1)) == [(SVSM_END, 1)]


def test_a_range_of_other_frames_is_read_and_written_in_place(box):
    box.memory.rmp.remap(BIG + PAGE, box.memory.frame(OTHER))
    box.memory.rmp.pvalidate(BIG + PAGE, large=False, validate=True)
    box.memory.rmp.rmpadjust(BIG + PAGE, vmpl=2, perm=RWX)
    data = bytes(range(256)) * 48
    box.memory.write(BIG, data, vmpl=2)
    assert box.memory.read(BIG, len(data), vmpl=2) == data
    assert box.peek(OTHER, PAGE) == data[PAGE : 2 * PAGE]
    memory = GuestMemory()
    memory.add(0, 4 * PAGE)
    memory.rmp.remap(PAGE, memory.frame(3 * PAGE))
    memory.rmp.pvalidate(PAGE, large=False, validate=True)
    memory.rmp.rmpadjust(PAGE, vmpl=2, perm=RWX)
    memory.write(PAGE - 4, b"\1" * 8, vmpl=2)  # without an observer
    assert memory.read(PAGE - 4, 8, vmpl=2) == b"\1" * 8
    assert memory.host_read(3 * PAGE, 4) == b"\1" * 4
    assert box.call(5, 0)[0] == UNSUPPORTED_PROTOCOL
