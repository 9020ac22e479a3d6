"""Core protocol: B12..B29 and the core half of B02, B03."""

import struct

import pytest

from svsm_bridge.abi import EFER_SVME, LARGE, LAUNCH_VMSA, PAGE, SVSM_BASE, SVSM_SIZE, Registers, call_number
from svsm_bridge.adversary import Schedule, Step, flip, good_vmsa, remap
from svsm_bridge.pages import RWX, R, State
from tests.bridge.support import (
    BIG,
    BIG_END,
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

IN_USE, SIZE_MISMATCH, UNCHANGED = 0x80001003, 0x80001006, 0x80001010
VALIDATE, IGNORE, TWO_MEG = 4, 8, 1


def state(box, gpa):
    return box.memory.rmp.state_of(gpa)


def perm(box, gpa, vmpl=2):
    region, index = box.memory.rmp.entry(gpa)
    return region.perm[vmpl][index]


def pages(box, entries, *, start=0, at=SCRATCH, reserved=0, count=None, vcpu=None):
    """PVALIDATE; RAX and the `next` field afterwards."""
    box.poke(at, struct.pack("<HHI", len(entries) if count is None else count, start, reserved))
    box.poke(at + 8, struct.pack(f"<{len(entries)}Q", *entries))
    rax, _ = box.call(0, 1, rcx=at, vcpu=vcpu)
    return rax, int.from_bytes(box.peek(at + 2, 2), "little")


def release(box, gpa, size=PAGE):
    """The hypervisor takes pages and gives them back: assigned, not validated."""
    box.memory.rmp.rmpupdate(gpa, size, assigned=False)
    box.memory.rmp.rmpupdate(gpa, size, assigned=True)


# --- REMAP_CA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpa", [SCRATCH + 1, SCRATCH + 8, SCRATCH + 0x800])
def test_B12_remap_misaligned(box, gpa):
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(0, 0, rcx=gpa)[0] == INVALID_PARAMETER
    assert box.call(0, 6)[0] == SUCCESS


@pytest.mark.rule("C2")
@pytest.mark.parametrize(
    "where",
    ["svsm", "svsm last", "vmsa", "other ca", "shared", "rom", "mmio", "beyond", "top", "null gap", "vmpl3 only"],
)
def test_B12_remap_to_a_bad_page(box, profile, where):
    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    box.memory.rmp.rmpupdate(SCRATCH, PAGE, assigned=False)
    box.memory.rmp.rmpadjust(SCRATCH + PAGE, vmpl=2, perm=R)
    gpa = {
        "svsm": SVSM_BASE, "svsm last": SVSM_BASE + SVSM_SIZE - PAGE, "vmsa": OTHER, "other ca": CA1,
        "shared": SCRATCH, "rom": ROM, "mmio": MMIO, "beyond": BIG_END, "top": (1 << 64) - PAGE,
        "null gap": 0, "vmpl3 only": SCRATCH + PAGE,
    }[where]  # fmt: skip
    with Untouched(box, but=[(CA0, 1)]):
        want = INVALID_PARAMETER if profile == "linux-svsm" else INVALID_ADDRESS  # C2
        assert box.call(0, 0, rcx=gpa)[0] == want
    assert box.call(0, 6)[0] == SUCCESS  # the old calling area still works


@pytest.mark.rule("C4")
def test_B13_remap(box, profile):
    box.poke(SCRATCH, b"\xff" * 16)
    assert box.call(0, 0, rcx=SCRATCH)[0] == SUCCESS
    assert box.bsp.ca == SCRATCH
    assert box.ap.ca == CA1
    assert box.peek(SCRATCH, 16) == bytes(8) + b"\xff" * 8
    assert box.mm(note(WRITE, b"k", b"v"), gpa=CA0, size=PAGE)[0] == SUCCESS  # the old page is a buffer now
    assert box.mm(note(WRITE, b"k", b"v"), gpa=SCRATCH)[0] == INVALID_ADDRESS
    want = {"coconut": INVALID_ADDRESS}.get(profile, SUCCESS)  # C4
    with Untouched(box, but=[(SCRATCH, 1)]):
        assert box.call(0, 0, rcx=SCRATCH)[0] == want


# --- PVALIDATE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "header"),
    [
        (SCRATCH, (0, 0)), (SCRATCH, (3, 3)), (SCRATCH, (3, 4)), (SCRATCH, (3, 0xFFFF)),
        (SCRATCH + 8, (511, 0)), (SCRATCH, (512, 0)), (SCRATCH + 0xFF8, (1, 0)), (SCRATCH + 0xFF0, (2, 0)),
    ],
)  # fmt: skip
def test_B14_bad_headers(box, at, header):
    box.poke(at, struct.pack("<HHI", *header, 0))
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(0, 1, rcx=at)[0] == INVALID_PARAMETER


@pytest.mark.parametrize("offset", [1, 4, 7])
def test_B14_a_misaligned_list(box, offset):
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(0, 1, rcx=SCRATCH + offset)[0] == INVALID_PARAMETER


def test_B14_510_entries_fit_a_calling_area(box):
    release(box, BIG, 510 * PAGE)
    entries = [BIG + n * PAGE | VALIDATE for n in range(510)]
    assert pages(box, entries, at=CA0 + 8) == (SUCCESS, 510)
    assert all(perm(box, BIG + n * PAGE) == RWX for n in range(510))


@pytest.mark.parametrize("where", ["gap", "svsm", "shared", "vmsa", "ca 0"])
def test_C5_the_list_is_not_accessible(box, profile, where):
    assert create(box, 2, OTHER, OTHER + PAGE) == SUCCESS
    box.memory.rmp.rmpupdate(SCRATCH, PAGE, assigned=False)
    at = {"gap": LOW_END, "svsm": SVSM_BASE, "shared": SCRATCH, "vmsa": OTHER, "ca 0": CA1}[where]
    with Untouched(box, but=[(CA0, 1)]):
        want = INVALID_PARAMETER if profile == "linux-svsm" else INVALID_ADDRESS
        assert box.call(0, 1, rcx=at)[0] == want


def test_B15_the_reserved_header_word_is_ignored(box):
    assert pages(box, [BIG | VALIDATE | IGNORE], reserved=0xFFFFFFFF) == (SUCCESS, 1)


@pytest.mark.parametrize("bit", range(4, 12))
def test_B15_reserved_entry_bits(box, bit):
    good = BIG | VALIDATE | IGNORE
    assert pages(box, [good, good | 1 << bit, good]) == (INVALID_PARAMETER, 1)


@pytest.mark.parametrize("entry", [BIG | 2 | VALIDATE, BIG | 3 | VALIDATE, BIG + PAGE | TWO_MEG | VALIDATE])
def test_C15_bad_sizes(box, profile, entry):
    want = INVALID_ADDRESS if profile == "linux-svsm" else INVALID_PARAMETER
    assert pages(box, [entry]) == (want, 0)


def test_B16_stops_at_the_first_failure_and_resumes(box):
    release(box, BIG, 5 * PAGE)
    entries = [BIG + n * PAGE | VALIDATE for n in range(5)]
    bad = [*entries[:2], LOW_END | VALIDATE, *entries[3:]]
    assert pages(box, bad) == (INVALID_ADDRESS, 2)
    done = [bool(state(box, BIG + n * PAGE) & State.VALIDATED) for n in range(5)]
    assert done == [True, True, False, False, False]
    assert pages(box, bad, start=3) == (SUCCESS, 5)
    done = [bool(state(box, BIG + n * PAGE) & State.VALIDATED) for n in range(5)]
    assert done == [True, True, False, True, True]


def test_B17_a_large_page_on_small_entries_is_split_by_the_caller(box):
    release(box, BIG + LARGE, LARGE)
    region, index = box.memory.rmp.entry(BIG + LARGE)
    for n in range(index, index + 512):
        region.state[n] &= ~State.LARGE & 0xFF
    large = BIG + LARGE | TWO_MEG | VALIDATE
    release(box, BIG)
    assert pages(box, [BIG | VALIDATE, large, BIG | VALIDATE | IGNORE]) == (SIZE_MISMATCH, 1)
    # edk2 and Linux: split the failed entry, then go on behind it
    small = [BIG + LARGE + n * PAGE | VALIDATE for n in range(512)]
    for part in (small[:256], small[256:]):
        assert pages(box, part) == (SUCCESS, 256)
    assert pages(box, [BIG | VALIDATE, large, BIG | VALIDATE | IGNORE], start=2) == (SUCCESS, 3)
    assert all(perm(box, BIG + LARGE + n * PAGE) == RWX for n in (0, 255, 511))


def test_B17_a_small_page_in_a_large_entry_is_split_by_the_hypervisor(box):
    release(box, BIG, LARGE)
    assert state(box, BIG) & State.LARGE
    assert pages(box, [BIG + 7 * PAGE | VALIDATE]) == (SUCCESS, 1)
    assert not state(box, BIG) & State.LARGE
    assert state(box, BIG + 7 * PAGE) & State.VALIDATED
    assert not state(box, BIG + 8 * PAGE) & State.VALIDATED


def test_B17_a_large_page_on_a_large_entry(box):
    release(box, BIG, LARGE)
    assert pages(box, [BIG | TWO_MEG | VALIDATE]) == (SUCCESS, 1)
    assert perm(box, BIG + 511 * PAGE) == RWX
    assert pages(box, [BIG | TWO_MEG]) == (SUCCESS, 1)
    assert perm(box, BIG) == 0
    assert not state(box, BIG) & State.VALIDATED


def test_B18_unchanged(box):
    assert pages(box, [BIG | VALIDATE]) == (UNCHANGED, 0)
    assert pages(box, [BIG | VALIDATE | IGNORE]) == (SUCCESS, 1)
    release(box, BIG)
    assert pages(box, [BIG]) == (UNCHANGED, 0)
    assert pages(box, [BIG | IGNORE]) == (SUCCESS, 1)


def test_B19_the_page_is_empty_before_the_guest_may_look(box):
    """The hypervisor maps a frame of the SVSM into the guest and lets the guest validate it."""
    secret = box.memory.svsm_frame(SVSM_BASE + 5 * PAGE)
    secret[:] = b"\x5e" * PAGE
    box.memory.rmp.remap(BIG, secret)
    seen = []
    region, index = box.memory.rmp.entry(BIG)
    adjust = box.memory.rmp.rmpadjust

    def watching(gpa, **how):
        if how["perm"]:
            seen.append(bytes(secret))
        return adjust(gpa, **how)

    box.memory.rmp.rmpadjust = watching
    assert pages(box, [BIG | VALIDATE]) == (SUCCESS, 1)
    assert seen == [bytes(PAGE)]
    assert box.peek(BIG, PAGE) == bytes(PAGE)
    assert region.perm[2][index] == RWX


def test_C6_a_window_may_be_read_only_and_is_not_zeroed(box, profile):
    for gpa in (0xA0000, 0xBF000, 0xC0000, 0xFF000):
        box.poke(gpa, b"rom!")
        box.memory.rmp.rmpupdate(gpa, PAGE, assigned=True)
        assert pages(box, [gpa | VALIDATE]) == (SUCCESS, 1)
        zeroed = profile == "linux-svsm" and gpa < 0xC0000
        assert (box.peek(gpa, 4) == bytes(4)) == zeroed


@pytest.mark.parametrize("action", [0, VALIDATE, IGNORE, VALIDATE | IGNORE])
def test_B20_entries_that_meet_the_convention_s_own_pages(box, action):
    assert create(box, 2, BIG, BIG + PAGE) == SUCCESS
    bad = [SVSM_BASE, SVSM_BASE + SVSM_SIZE - PAGE, BIG, BIG + PAGE, CA0, CA1]
    large = [SVSM_BASE - LARGE, SVSM_BASE, BIG]
    for entry in [*bad, *(gpa | TWO_MEG for gpa in large)]:
        with Untouched(box, but=[(CA0, 1), (SCRATCH, 32)]):
            assert pages(box, [entry | action]) == (INVALID_ADDRESS, 0), hex(entry)


def test_B21_the_list_changes_while_it_is_processed(box):
    release(box, BIG, 4 * PAGE)
    entries = [BIG + n * PAGE | VALIDATE for n in range(3)]
    evil = struct.pack("<4Q", *[BIG + 3 * PAGE | VALIDATE] * 4)
    for at in range(12):
        release(box, BIG, 4 * PAGE)
        steps = [Step(at, flip(SCRATCH + 8, evil)), Step(at, flip(SCRATCH, b"\x09\0"))]
        with Schedule(box.machine, box.dispatcher, steps) as schedule:
            rax, done = pages(box, entries)
        read = [n for n, access in enumerate(schedule.accesses) if access.op == "read"]
        if at > read[-1]:  # both parts of the list were copied before: the first values count
            assert (rax, done) == (SUCCESS, 3)
            assert not state(box, BIG + 3 * PAGE) & State.VALIDATED
    assert len(schedule.accesses) >= 7


def test_B22_the_list_invalidates_its_own_page(box):
    box.memory.rmp.rmpupdate(BIG, LARGE, assigned=True)
    assert pages(box, [BIG | TWO_MEG | VALIDATE]) == (SUCCESS, 1)
    with Untouched(box, but=[(CA0, 1), (SCRATCH, 32), (BIG, 32)]):
        assert pages(box, [SCRATCH]) == (INVALID_PARAMETER, 0)
        assert pages(box, [BIG | TWO_MEG], at=BIG) == (INVALID_PARAMETER, 0)
        assert pages(box, [BIG | TWO_MEG], at=BIG) == (INVALID_PARAMETER, 0)


def test_a_lower_level_cannot_validate_or_empty_pages_of_the_guest(box):
    """Confused deputy: VMPL3 asks for a page of VMPL2 to be validated again, hence zeroed."""
    user = box.machine.add_vcpu(9, ca=None, vmpl=3)
    box.memory.rmp.rmpadjust(SCRATCH, vmpl=3, perm=RWX)
    box.memory.rmp.rmpadjust(OTHER, vmpl=3, perm=RWX)
    user.ca = OTHER
    box.memory.rmp.claim(OTHER, State.CA)
    box.poke(BIG, b"kernel")
    for entry in (BIG | VALIDATE | IGNORE, BIG):
        assert pages(box, [entry], vcpu=user) == (INVALID_ADDRESS, 0)
    assert box.peek(BIG, 6) == b"kernel"


# --- CREATE_VCPU, DELETE_VCPU --------------------------------------------------------------------------


def create(box, apic_id, vmsa, area, *, vcpu=None, content=None):
    if content is None:
        content = good_vmsa(box.machine.guest_vmpl, 1)
    if content:
        box.poke(vmsa, content)
    return box.call(0, 2, rcx=vmsa, rdx=area, r8=0x55 << 32 | apic_id, vcpu=vcpu)[0]


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
