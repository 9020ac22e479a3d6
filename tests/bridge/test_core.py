"""Core protocol: B12..B29 and the core half of B02, B03."""

import struct

import pytest

from svsm_bridge.abi import LARGE, PAGE, SVSM_BASE, SVSM_SIZE
from svsm_bridge.adversary import Schedule, Step, flip, good_vmsa
from svsm_bridge.pages import RWX, R, State
from tests.bridge.support import (
    BIG,
    BIG_END,
    CA0,
    CA1,
    INVALID_ADDRESS,
    INVALID_PARAMETER,
    LOW_END,
    MMIO,
    OTHER,
    ROM,
    SCRATCH,
    SUCCESS,
    WRITE,
    Untouched,
    note,
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


def create(box, apic_id, vmsa, area, *, vcpu=None, content=None):
    if content is None:
        content = good_vmsa(box.machine.guest_vmpl, 1)
    if content:
        box.poke(vmsa, content)
    return box.call(0, 2, rcx=vmsa, rdx=area, r8=0x55 << 32 | apic_id, vcpu=vcpu)[0]


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
