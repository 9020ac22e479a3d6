"""CREATE_VCPU, DELETE_VCPU and what is not offered: B23..B27, B29."""

import pytest

from svsm_bridge.abi import EFER_SVME, LAUNCH_VMSA, PAGE, SVSM_BASE, Registers, call_number
from svsm_bridge.adversary import Schedule, Step, flip, good_vmsa, remap
from svsm_bridge.pages import RWX, R, State
from tests.bridge.support import (
    BUFFER,
    CA0,
    CA1,
    HIGH,
    INVALID_ADDRESS,
    INVALID_PARAMETER,
    INVALID_REQUEST,
    LOW_END,
    MMIO,
    OTHER,
    ROM,
    SCRATCH,
    SUCCESS,
    UNSUPPORTED_CALL,
    WRITE,
    Box,
    Untouched,
    note,
    note_reply,
)
from tests.bridge.test_core import IN_USE, create, perm, state

# --- CREATE_VCPU, DELETE_VCPU --------------------------------------------------------------------------


def test_B26_the_form_that_firmware_uses(box):
    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    ap = box.machine.vcpus[2]
    assert (ap.ca, ap.vmsa_gpa, ap.vmpl) == (OTHER + PAGE, OTHER, 2)
    assert perm(box, OTHER) == R
    assert state(box, OTHER) & (State.VMSA | State.HELD) == State.VMSA | State.HELD
    assert box.mm(note(WRITE, b"k", b"from the new vCPU"), vcpu=ap)[0] == SUCCESS


@pytest.mark.rule("C18")
@pytest.mark.parametrize("wrong", ["vmpl 0", "vmpl 1", "vmpl 3", "svme", "features"])
def test_B23_a_bad_vmsa_is_given_back(box, profile, wrong):
    content = bytearray(good_vmsa(2, 1))
    if wrong.startswith("vmpl"):
        content[0xCA] = int(wrong[-1])
    elif wrong == "svme":
        content[0xD0:0xD8] = (~EFER_SVME & (1 << 64) - 1).to_bytes(8, "little")
    else:
        content[0x3B0] = 3
    accepted = wrong == "features" and profile == "linux-svsm"  # C18
    assert create(box, 2, OTHER, OTHER + PAGE, content=bytes(content)) == (
        SUCCESS if accepted else INVALID_PARAMETER
    )
    if not accepted:
        assert perm(box, OTHER) == RWX
        assert box.machine.vcpus[2].ca is None
        assert box.mm(note(WRITE, b"k", b"v"), gpa=OTHER, size=PAGE)[0] == SUCCESS
        assert box.mm(note(WRITE, b"k", b"v"), gpa=OTHER + PAGE, size=PAGE)[0] == SUCCESS


def test_B24_only_the_checked_copy_is_used(box):
    """Another process maps the backing and rewrites the VMSA right after the check."""
    box.poke(OTHER, good_vmsa(2, 1))
    evil = flip(OTHER, good_vmsa(0, 1))
    for at in range(8):
        with Schedule(box.machine, box.dispatcher, [Step(at, evil, before=False)]) as schedule:
            rax = create(box, 2, OTHER, OTHER + PAGE)
        copied = [n for n, access in enumerate(schedule.accesses) if access.op == "locked-read"]
        ap = box.machine.vcpus[2]
        if copied and at >= copied[0]:
            assert rax == SUCCESS
            assert ap.vmsa == good_vmsa(2, 1)
            assert ap.vmpl == 2
        if rax == SUCCESS:
            assert box.call(0, 3, rcx=OTHER)[0] == SUCCESS


def test_B24_the_guest_cannot_write_the_page_that_is_being_checked(box):
    seen = []

    class Looking:
        def before(self, access):
            if access.op == "locked-read":
                seen.append([perm(box, OTHER, level) for level in (1, 2, 3)])

        def after(self, access, *, ok):
            pass

    box.machine.watch(Looking())
    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    assert seen == [[0, 0, 0]]


def test_B25_two_vcpus_create_with_the_same_pages(box):
    """Same VMSA, same calling area, crossed: the second call comes at every point of the first."""
    from svsm_bridge.adversary import vcpu_call

    a, b, c = OTHER, OTHER + PAGE, OTHER + 2 * PAGE
    for second in ((a, c), (c, b), (b, a)):
        for at in range(6):
            box.poke(a, good_vmsa(2, 1))
            box.poke(b, good_vmsa(2, 1))
            box.poke(c, good_vmsa(2, 1))
            regs = Registers(rax=call_number(0, 2), rcx=second[0], rdx=second[1], r8=3)
            with Schedule(box.machine, box.dispatcher, [Step(at, vcpu_call(1, regs), before=True, by_vcpu=True)]):
                create(box, 2, a, b, content=b"")
            up = [v for v in (box.machine.vcpus[2], box.machine.vcpus[3]) if v.ca is not None]
            assert len(up) == 1
            roles = [page for v in box.machine.vcpus.values() for page in (v.ca, v.vmsa_gpa) if page is not None]
            assert len(roles) == len(set(roles))
            for page in (a, b, c):
                held = state(box, page) & (State.CA | State.HELD)
                assert held != State.CA | State.HELD
            assert box.call(0, 3, rcx=up[0].vmsa_gpa)[0] == SUCCESS


@pytest.mark.rule("C14")
def test_B26_bad_pages(box, profile):
    assert create(box, 2, OTHER, OTHER) == INVALID_ADDRESS
    assert create(box, 2, OTHER, CA1) == INVALID_ADDRESS
    assert create(box, 2, CA1, OTHER, content=b"") == INVALID_ADDRESS
    assert create(box, 77, OTHER, OTHER + PAGE) == INVALID_PARAMETER
    want = INVALID_PARAMETER if profile == "linux-svsm" else INVALID_ADDRESS  # C14
    assert create(box, 2, OTHER, OTHER + PAGE + 8) == want
    assert create(box, 2, OTHER + 0x800, OTHER + PAGE) == want
    for bad in (SVSM_BASE, LOW_END, ROM, MMIO, 1 << 52, (1 << 64) - PAGE):
        assert create(box, 2, bad, OTHER, content=b"") == INVALID_ADDRESS
        assert create(box, 2, OTHER, bad) == INVALID_ADDRESS
    assert box.mm(note(WRITE, b"k", b"v"), gpa=OTHER, size=PAGE)[0] == SUCCESS


def test_a_lower_level_cannot_make_a_vcpu_of_the_guest_s_level(box):
    user = box.machine.add_vcpu(9, vmpl=3)
    for page in (OTHER, OTHER + PAGE, OTHER + 2 * PAGE):
        box.memory.rmp.rmpadjust(page, vmpl=3, perm=RWX)
    user.ca = OTHER + 2 * PAGE
    box.memory.rmp.claim(user.ca, State.CA)
    assert create(box, 2, OTHER, OTHER + PAGE, vcpu=user) == INVALID_PARAMETER
    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    assert box.call(0, 3, rcx=OTHER, vcpu=user)[0] == INVALID_PARAMETER


def test_B27_delete(box):
    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    assert box.call(0, 3, rcx=OTHER + 1)[0] == INVALID_PARAMETER
    assert box.call(0, 3, rcx=SCRATCH)[0] == INVALID_PARAMETER
    assert box.call(0, 3, rcx=LAUNCH_VMSA)[0] == INVALID_PARAMETER
    assert box.call(0, 3, rcx=OTHER, vcpu=box.machine.vcpus[2])[0] == IN_USE  # itself
    assert box.call(0, 3, rcx=OTHER)[0] == SUCCESS
    assert box.call(0, 3, rcx=OTHER)[0] == INVALID_PARAMETER  # twice
    assert perm(box, OTHER) == RWX
    assert not state(box, OTHER) & (State.VMSA | State.HELD)
    assert not state(box, OTHER + PAGE) & State.CA
    assert not int.from_bytes(box.peek(OTHER + 0xD0, 8), "little") & EFER_SVME
    assert box.machine.vcpus[2].ca is None


def test_B27_C7_a_running_vcpu(box, profile):
    """It is served while another vCPU deletes it: refused at once, or waited for."""
    import threading

    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    inside, go_on = threading.Event(), threading.Event()

    class Slow:
        def handle(self, guid, message):
            inside.set()
            assert go_on.wait(10)
            return b""

        def reset(self):
            pass

    box.service.handler = Slow()
    thread = threading.Thread(target=box.mm, args=(note(WRITE, b"k"),), kwargs={"vcpu": box.machine.vcpus[2]})
    thread.start()
    assert inside.wait(10)
    if profile == "coconut":
        threading.Timer(0.05, go_on.set).start()
        assert box.call(0, 3, rcx=OTHER)[0] == SUCCESS
        assert go_on.is_set()
    else:
        assert box.call(0, 3, rcx=OTHER)[0] == IN_USE
        go_on.set()
    thread.join(10)


def test_C7_waiting_ends_with_busy():
    box = Box("coconut")
    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    box.machine.call_deadline_s = 0.02
    box.machine.vcpus[2].calls.add(object())
    assert box.call(0, 3, rcx=OTHER)[0] == 0x80000007


def test_B29_not_offered(box):
    with Untouched(box, but=[(CA0, 1)]):
        for number in (4, 5):
            assert box.call(0, number, rcx=SCRATCH)[0] == UNSUPPORTED_CALL
        rax, regs = box.call(0, 7, rcx=0xFF01)
        assert (rax, regs.rcx) == (SUCCESS, 0)
        for rcx in (0, 2, 0xFFFFFFFFFFFFFFFE):
            rax, regs = box.call(0, 7, rcx=rcx)
            assert (rax, regs.rcx) == (INVALID_REQUEST, rcx)


@pytest.mark.rule("S1", "S3", "S4", "B02", "B03")
def test_B02_B03_only_outputs_change_whatever_the_unused_registers_hold(box, rng):
    """For each call the result is the same with any garbage in registers that it does not read."""
    for number, regs in ((0, {"rcx": SVSM_BASE}), (3, {"rcx": SCRATCH}), (6, {"rcx": 4 << 32 | 1})):
        results = set()
        for _ in range(5):
            trash = {name: rng.getrandbits(64) for name in ("rdx", "r8", "r9")}
            rax, after = box.call(0, number, **(trash | regs))
            results.add(rax)
            assert {name: getattr(after, name) for name in trash} == trash
            if number != 6:
                assert after.rcx == regs["rcx"]
        assert len(results) == 1


def test_create_again_moves_the_vcpu(box):
    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    assert create(box, 2, OTHER + 2 * PAGE, OTHER + 3 * PAGE) == SUCCESS
    assert not state(box, OTHER + PAGE) & State.CA
    assert box.call(0, 3, rcx=OTHER)[0] == SUCCESS
    assert box.machine.vcpus[2].ca == OTHER + 3 * PAGE


def test_a_frame_that_moved_away_under_the_calling_area(box):
    """The hypervisor remaps a calling area: the vCPU cannot call, others can, nothing crashes."""
    from svsm_bridge.abi import Outcome

    with Schedule(box.machine, box.dispatcher, [Step(0, remap(CA0, HIGH))]):
        box.poke(CA0, b"\1")
        assert box.enter(Registers(rax=call_number(0, 6))) == Outcome.NO_CALLING_AREA
    assert note_reply(box.mm(note(WRITE, b"k", b"v"), vcpu=box.ap, gpa=BUFFER)[1])[0] == 0


@pytest.mark.rule("B27")
def test_a_vcpu_that_is_being_entered_cannot_be_moved_or_deleted(box):
    """Another vCPU replaces or deletes it between the read of its flag and the clearing (found by schedules)."""
    from svsm_bridge.abi import Outcome
    from svsm_bridge.adversary import vcpu_call

    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    ap = box.machine.vcpus[2]
    box.poke(OTHER + 2 * PAGE, good_vmsa(2, 1))
    for number, regs in ((3, {"rcx": OTHER}), (2, {"rcx": OTHER + 2 * PAGE, "rdx": OTHER + 3 * PAGE, "r8": 2})):
        for at in range(2):
            box.poke(ap.ca, b"\1")
            evil = vcpu_call(1, Registers(rax=call_number(0, number), **regs))
            with Schedule(box.machine, box.dispatcher, [Step(at, evil, by_vcpu=True)]):
                file = Registers(rax=call_number(0, 6), rcx=4 << 32 | 1)
                assert box.enter(file, ap) == Outcome.SERVED
            assert (ap.ca, ap.vmsa_gpa) == (OTHER + PAGE, OTHER)
