"""SetVariable on plain variables: the order of checks, deletes, appends, quotas (R32..R61, R119..R121)."""

import itertools

import pytest

from cvars.errors import EfiStatus, VariableError
from cvars.variables import Limits
from cvars.variables.limits import HEADER
from cvars.variables.model import Append, Delete, Put, Variable
from cvars.variables.names import HW_ERROR, READ_ONLY, SECURE_BOOT, SETUP_MODE
from cvars.variables.requests import RegisterPolicy
from cvars.variables.security import GLOBAL
from tests.mm.kit import entry
from tests.variables.kit import APPEND, AT, AW, BS, ENH, HR, NBR, NV, RT, A, B, Guest, key, refused
from tests.variables.pki import auth, descriptor, signer, time

OWN = 84  # what CustomMode, which is always there, is charged


def test_R32_an_empty_name_is_refused_first():
    for attributes in (NBR, 0x100, AW, AT):
        guest = Guest()
        with refused("INVALID_PARAMETER", guest):
            guest.set("", b"x", attributes)


def test_R33_undefined_bits_are_refused_before_all_others():
    guest = Guest()
    for attributes in (0x100, 1 << 31, 0x100 | AW, 0x100 | AT | NBR):
        with refused("INVALID_PARAMETER", guest):
            guest.set("V", b"x", attributes)


def test_R34_two_authentications_are_refused():
    for enhanced in (False, True):
        guest = Guest(enhanced=enhanced)
        with refused("INVALID_PARAMETER", guest):
            guest.set("V", b"x", NBR | AT | ENH)
        with refused("INVALID_PARAMETER", guest):
            guest.set("V", b"x", NBR | AT | ENH | AW)  # before AW


def test_R35_the_deprecated_bit_is_unsupported():
    guest = Guest()
    for attributes in (AW, AW | NBR, AW | AT | NBR, AW | RT, AW | ENH | NBR):
        with refused("UNSUPPORTED", guest):
            guest.set("V", b"x", attributes)


def test_R36_enhanced_authentication_is_an_option():
    with refused("UNSUPPORTED"):
        Guest().set("V", b"x", NBR | ENH)
    with refused("UNSUPPORTED"):
        Guest().set("V", b"x", RT | ENH)  # before R37
    with refused("INVALID_PARAMETER"):
        Guest(enhanced_refusal=EfiStatus.INVALID_PARAMETER).set("V", b"x", NBR | ENH)
    with refused("SECURITY_VIOLATION"):
        Guest(enhanced=True).set("V", b"x", NBR | ENH)


def test_R37_runtime_access_needs_boot_access():
    guest = Guest()
    for attributes in (RT, RT | NV, RT | APPEND, RT | AT, RT | HR | NV):
        with refused("INVALID_PARAMETER", guest):
            guest.set("V", b"x", attributes)


def test_R38_nv_alone_is_refused():
    guest = Guest()
    for data in (b"x", b""):
        with refused("INVALID_PARAMETER", guest):
            guest.set("V", data, NV)


def test_R39_error_records_need_a_pool():
    guest = Guest()
    for attributes in (HR, HR | BS, HR | NBR, HR | NBR | APPEND):
        with refused("INVALID_PARAMETER", guest):
            guest.set("HwErrRec0000", b"x", attributes, HW_ERROR)
    with refused("SECURITY_VIOLATION", guest):
        guest.set("HwErrRec0000", b"x", HR | NBR | AT, HW_ERROR)  # R40 comes first
    with refused("INVALID_PARAMETER", guest):
        guest.set("HwErrRec0000", descriptor(), HR | NBR | AT, HW_ERROR)
    Guest(limits=Limits(hr_pool=4096)).set("HwErrRec0000", b"x", HR | NBR, HW_ERROR)


@pytest.mark.rule("R40", "P04")
def test_R40_P04_descriptor_lengths():
    guest = Guest()
    for size in range(40):
        with refused("SECURITY_VIOLATION", guest):
            guest.set("V", descriptor()[:size], NBR | AT)
    for length in (0, 1, 23, 25, 1 << 31, (1 << 32) - 1):
        with refused("SECURITY_VIOLATION", guest):
            guest.set("V", descriptor(length=length), NBR | AT)
    with refused("SECURITY_VIOLATION", guest):
        guest.set("V", descriptor(length=24), NBR | AT)  # sound, and not signed
    with refused("SECURITY_VIOLATION", guest):
        guest.set("A" * 40000, b"", NBR | AT)  # before R41
    locked = Guest()
    locked.ask(RegisterPolicy(entry(A, "V", lock=1)))
    locked.end_of_dxe()
    for length, status in ((23, "SECURITY_VIOLATION"), (24, "WRITE_PROTECTED"), (25, "SECURITY_VIOLATION")):
        with refused(status, locked):
            locked.set("V", descriptor(length=length), NBR | AT)


@pytest.mark.rule("R41", "P05")
def test_R41_P05_name_and_data_stay_within_the_class_limit():
    guest = Guest(limits=Limits(max_nv=1000, max_volatile=500, max_authenticated=2000))
    room = 1000 - HEADER - 4
    guest.set("V", bytes(room))
    with refused("INVALID_PARAMETER", guest):
        guest.set("V", bytes(room + 1))
    with refused("INVALID_PARAMETER", guest):
        guest.set("V" * 221, bytes(1), BS)
    guest.set("V" * 219, b"", BS | APPEND)
    guest.set("W" * 218, bytes(2), BS)
    named = Guest(limits=Limits(max_name=10))
    named.set("1234", b"x")
    with refused("INVALID_PARAMETER", named):
        named.set("12345", b"x")
    long = Guest()
    long.set("n" * 1023, b"x")
    long.set("n" * 1024, b"x")
    with refused("INVALID_PARAMETER", long):
        long.set("n" * 32738, b"")  # a delete too


def test_R42_mor_comes_before_the_rules_and_policies():
    from cvars.variables.names import MOR, MOR_LOCK

    guest = Guest()
    guest.ask(RegisterPolicy(entry(MOR.vendor_guid, None, lock=1)))
    guest.end_of_dxe()
    with refused("INVALID_PARAMETER", guest):
        guest.set(MOR, b"\0\0")
    with refused("WRITE_PROTECTED", guest):
        guest.set(MOR_LOCK, b"")
    with refused("INVALID_PARAMETER", Guest()):
        Guest().set(MOR, b"\0", BS | RT)


def test_R43_rules_then_properties_then_policy_once_armed():
    from cvars.variables.requests import Property, SetProperty

    def made():
        guest = Guest()
        guest.ask(SetProperty(key("Timeout", GLOBAL), Property(1, 0, NBR, 1, 1)))
        guest.ask(SetProperty(key("V"), Property(1, 1, 0, 0, 9)))
        guest.ask(RegisterPolicy(entry(A, "V", high=1)))
        guest.ask(RegisterPolicy(entry(A, "W", high=1)))
        return guest

    early = made()
    early.set("Timeout", b"123", NBR, GLOBAL)
    early.set("V", b"long")
    early.set("W", b"long")
    late = made().end_of_dxe()
    with refused("INVALID_PARAMETER", late):
        late.set("Timeout", b"12", NBR, GLOBAL)  # the property wants one byte, the specification two
    with refused("WRITE_PROTECTED", late):
        late.set("V", b"long")  # the property decides before the policy
    with refused("INVALID_PARAMETER", late):
        late.set("W", b"long")
    late.set("W", b"1")
    with refused("SECURITY_VIOLATION", late):
        late.set("SetupMode", b"\0", NBR | AT, GLOBAL)  # R40 first


def test_R43_comes_before_R44():
    guest = Guest()
    guest.ask(RegisterPolicy(entry(GLOBAL, "SetupMode", high=1)))
    guest.end_of_dxe()
    with refused("INVALID_PARAMETER", guest):
        guest.set(SETUP_MODE, b"\0\0", BS | RT)


def test_R44_the_service_s_variables_are_read_only_in_every_phase():
    for phase in range(4):
        guest = Guest().to(phase)
        for name in (SETUP_MODE, SECURE_BOOT):
            for data in (b"", b"\1"):
                with refused("WRITE_PROTECTED", guest):
                    guest.set(name, data, BS | RT)


def test_R44_comes_before_R46():
    guest = Guest()
    with refused("WRITE_PROTECTED", guest):
        guest.set(SETUP_MODE, b"\0", NBR)


def test_R45_boot_only_variables_are_protected_in_runtime():
    guest = Guest()
    guest.set("V", b"x", NV | BS)
    guest.runtime()
    for data, attributes in ((b"y", NV | BS), (b"", NV | BS), (b"", 0), (b"y", NBR), (b"y", NV | BS | APPEND)):
        with refused("WRITE_PROTECTED", guest):
            guest.set("V", data, attributes)


@pytest.mark.rule("R46", "P13")
def test_R46_P13_attributes_of_an_existing_variable_stay():
    guest = Guest()
    guest.set("V", b"x", NBR)
    for attributes in (NV | BS, BS | RT, BS, NBR | AT, APPEND, NV | BS | APPEND):
        with refused("SECURITY_VIOLATION" if attributes & AT else "INVALID_PARAMETER", guest):
            guest.set("V", b"y", attributes)
    with refused("INVALID_PARAMETER", guest):
        guest.set("V", auth(signer(0), key("V"), b"y", NBR | AT), NBR | AT)
    with refused("INVALID_PARAMETER", guest):
        guest.set("V", b"", NV | BS)  # deletes too
    guest.set("V", b"y", NBR | APPEND)
    assert guest.value("V") == b"xy"
    guest.set("V", b"ignored", 0)
    assert not guest.has("V")


def test_R48_volatile_variables_are_protected_in_runtime():
    guest = Guest()
    guest.set("V", b"x", BS | RT)
    guest.runtime()
    for data, attributes in ((b"y", BS | RT), (b"x", BS | RT), (b"", BS | RT), (b"", 0), (b"", BS | RT | APPEND)):
        with refused("WRITE_PROTECTED", guest):
            guest.set("V", data, attributes)


def test_R49_deleting_what_is_not_there_is_not_found():
    for phase in range(4):
        guest = Guest().to(phase)
        for data, attributes in ((b"", NBR), (b"", BS), (b"x", 0), (b"", 0), (b"x", APPEND)):
            with refused("NOT_FOUND", guest):
                guest.set("Absent", data, attributes)


def test_R50_new_variables_in_runtime_are_nv_and_rt():
    guest = Guest().runtime()
    for attributes in (BS, NV | BS, BS | RT, BS | RT | APPEND):
        with refused("INVALID_PARAMETER", guest):
            guest.set("V", b"x", attributes)
    guest.set("V", b"x", NBR)


@pytest.mark.rule("R51", "R119", "P32")
def test_R51_P32_each_pool_is_full_on_its_own():
    own = Guest().state.table.usage.volatile
    guest = Guest(limits=Limits(nv_pool=1000 + OWN, volatile_pool=own + 400, hr_pool=400))
    guest.set("A", bytes(600))
    guest.set("B", bytes(300), BS)
    guest.set("HwErrRec0000", bytes(200), NBR | HR, HW_ERROR)
    for attributes, vendor, name in ((NBR, A, "C"), (BS, A, "C"), (NBR | HR, HW_ERROR, "HwErrRec0001")):
        with refused("OUT_OF_RESOURCES", guest):
            guest.set(name, bytes(500 if attributes == BS else 290), attributes, vendor)
    with refused("OUT_OF_RESOURCES", guest):
        guest.set("A", bytes(1000 - 60 - 4 + 1))
    guest.set("A", bytes(500))
    guest.set("A", bytes(1000 - 60 - 4))
    guest.set("A", b"")
    guest.set("C", bytes(290))


def test_R51_the_number_of_variables_is_bounded():
    guest = Guest(limits=Limits(max_variables=8))
    for number in range(8 - len(guest.state.table)):
        guest.set(f"V{number}", b"x")
    with refused("OUT_OF_RESOURCES", guest):
        guest.set("More", b"x")
    with refused("OUT_OF_RESOURCES", guest):
        guest.set("More", b"x", BS)
    guest.set("V0", b"y")
    guest.set("V0", b"")
    guest.set("More", b"x")


@pytest.mark.rule("R51", "R119")
def test_R119_reserves_and_the_user_quota():
    guest = Guest(limits=Limits(nv_pool=2000 + OWN, boot_reserve=500))
    guest.set("A", bytes(1200))
    guest.runtime()
    with refused("OUT_OF_RESOURCES", guest):
        guest.set("B", bytes(300))
    guest.set("A", bytes(1199))  # shrinking is always possible
    user = Guest(limits=Limits(user_quota=1000))
    user.set("Early", bytes(1500))
    user.end_of_dxe()
    with refused("OUT_OF_RESOURCES", user):
        user.set("Late", b"x")
    assert user.query(NBR).maximum_variable == 0
    user.set("Timeout", b"12", NBR, GLOBAL)
    user.set("Early", bytes(100))
    user.set("Late", b"x")
    reserved = Guest(limits=Limits(nv_pool=1000 + OWN, reserved=400 + OWN))
    with refused("OUT_OF_RESOURCES", reserved):
        reserved.set("A", bytes(600))
    target = key("Mine")
    reserved.set(target, auth(signer(0), target, bytes(600)), NBR | AT)
    with refused("OUT_OF_RESOURCES", reserved):
        reserved.set("A", bytes(240))
    reserved.set("A", bytes(200))


@pytest.mark.rule("R120", "P09")
def test_R120_P09_many_tiny_variables_are_charged_their_headers():
    guest = Guest(limits=Limits(nv_pool=4000 + OWN, max_variables=10_000))
    written = 4000 // 72
    for number in range(written):
        guest.set(f"{number:03}", b"x")
    with refused("OUT_OF_RESOURCES", guest):
        guest.set("one more", b"x")
    before = guest.state.table.usage
    guest.power_cycle()
    assert guest.state.table.usage.common == before.common
    for number in range(written):
        guest.set(f"{number:03}", b"")
    assert guest.state.table.usage.common == 0


def test_R121_defaults():
    limits = Limits()
    assert (limits.nv_pool, limits.max_variables, limits.max_name, limits.hr_pool) == (262144, 1024, None, 0)
    for attributes in (NBR, BS, NBR | AT):
        assert limits.class_limit(attributes) == 65536
    small = Limits.for_capacity(42 * 1024)
    assert small.nv_pool == 42 * 1024 - 2048
    assert small.reserved == 42 * 1024 // 4
    assert small.class_limit(NBR) <= small.nv_pool
    assert Limits.for_capacity(378 * 1024).nv_pool == 256 * 1024
    assert Limits.for_capacity(378 * 1024, largest=10_000).class_limit(NBR | AT) == 10_000
    assert Limits.for_capacity(10).nv_pool == 0
    largest = Guest()
    largest.set("V", bytes(65536 - 24 - 16 - 36 - 4))  # what a 64 KiB message carries


def test_R52_a_delete_is_an_empty_payload_or_no_access():
    for data, attributes in ((b"", NBR), (b"", 0), (b"x", 0)):
        guest = Guest()
        guest.set("V", b"x")
        guest.set("V", data, attributes)
        assert not guest.has("V")
        assert guest.journals[-1] == (Delete(key("V")),)


def test_R54_an_identical_rewrite_commits_nothing():
    guest = Guest()
    guest.set("V", b"x")
    before = guest.state
    guest.set("V", b"x")
    assert guest.state is before
    assert len(guest.journals) == 1
    guest.set("V", b"y")
    assert len(guest.journals) == 2
    guest.set("V", b"y", NBR | APPEND)
    assert guest.value("V") == b"yy"
    target = key("S")
    guest.set("S", auth(signer(0), target, b"p", when=time(2020)), NBR | AT)
    guest.set("S", auth(signer(0), target, b"p", when=time(2021)), NBR | AT)
    assert len(guest.journals) == 5


def test_R55_a_deleted_variable_comes_back_with_any_attributes():
    guest = Guest()
    for attributes in (NBR, BS, BS | RT, NV | BS):
        guest.set("V", b"x", attributes)
        assert guest.get("V").attributes == attributes
        guest.set("V", b"", attributes)


def test_R56_append_is_never_stored_and_an_empty_one_changes_nothing():
    guest = Guest()
    for name in ("Absent", "V"):
        before = guest.state
        guest.set(name, b"", NBR | APPEND)
        guest.set(name, b"", BS | APPEND) if name == "Absent" else None
        assert guest.state is before
        guest.set("V", b"x")
    guest.set("V", b"y", NBR | APPEND)
    assert guest.get("V").attributes == NBR
    target = key("S")
    with refused("SECURITY_VIOLATION", guest):
        guest.set("S", auth(None, target, b""), NBR | AT | APPEND)
    guest.set("S", auth(signer(0), target, b"", NBR | AT | APPEND), NBR | AT | APPEND)
    assert not guest.has("S")


def test_R57_append_creates():
    guest = Guest()
    guest.set("V", b"x", NBR | APPEND)
    assert guest.journals == [(Put(key("V"), Variable(NBR, b"x")),)]
    target = key("S")
    guest.set("S", auth(signer(0), target, b"p", NBR | AT | APPEND, time(2016)), NBR | AT | APPEND)
    assert guest.get("S").timestamp == time(2016)


@pytest.mark.rule("R58", "P30")
def test_R58_P30_every_limit_holds_for_the_merged_value():
    guest = Guest(limits=Limits(max_nv=1000, nv_pool=1500 + OWN))
    guest.set("V", bytes(900))
    with refused("INVALID_PARAMETER", guest):
        guest.set("V", bytes(37), NBR | APPEND)
    guest.set("W", bytes(400))
    with refused("OUT_OF_RESOURCES", guest):
        guest.set("W", bytes(100), NBR | APPEND)
    guest.set("V", bytes(32), NBR | APPEND)
    assert isinstance(guest.journals[-1][0], Append)
    assert guest.value("V") == bytes(932)
    guest.power_cycle()
    assert guest.value("V") == bytes(932)


ATTRIBUTES = range(256)


def expected(attributes, exists, phase):
    """The table of R32..R50 for a two-byte, unsigned value; written from the rules, not from the code."""
    if attributes & AT and attributes & ENH:
        return "INVALID_PARAMETER"  # R34
    if attributes & AW:
        return "UNSUPPORTED"  # R35
    if attributes & ENH:
        return "UNSUPPORTED"  # R36
    if attributes & RT and not attributes & BS:
        return "INVALID_PARAMETER"  # R37
    if attributes == NV:
        return "INVALID_PARAMETER"  # R38
    if attributes & AT:
        return "SECURITY_VIOLATION"  # R40
    if attributes & HR:
        return "INVALID_PARAMETER"  # R39
    if exists is not None:
        if phase == 3 and not exists & RT:
            return "WRITE_PROTECTED"  # R45
        if attributes and attributes & ~APPEND != exists:
            return "INVALID_PARAMETER"  # R46
        if phase == 3 and not exists & NV:
            return "WRITE_PROTECTED"  # R48
        return "SUCCESS"
    if not attributes & (BS | RT):
        return "NOT_FOUND"  # R49, R52
    if phase == 3 and attributes & (NV | RT) != NV | RT:
        return "INVALID_PARAMETER"  # R50
    return "SUCCESS"


@pytest.mark.rule("R33", "R34", "R35", "R36", "R37", "R38", "R39", "R40", "R45", "R46", "R48", "R49", "R50")
@pytest.mark.parametrize("phase", range(4))
@pytest.mark.parametrize("exists", [None, NBR, NV | BS, BS, BS | RT])
def test_all_256_attributes_absent_and_present_in_four_phases(phase, exists):
    base = Guest()
    if exists is not None:
        base.set("V", b"old", exists)
    base.to(phase)
    for attributes in ATTRIBUTES:
        guest = Guest()
        guest.state, guest.store = base.state, dict(base.store)
        wanted = expected(attributes, exists, phase)
        if wanted != "SUCCESS":
            with refused(wanted, guest):
                guest.set("V", b"12", attributes)
            continue
        guest.set("V", b"12", attributes)
        now = guest.state.table.find(key("V"))
        if attributes == 0:
            assert now is None
        else:
            data = b"old12" if attributes & APPEND and exists is not None else b"12"
            assert now == Variable(attributes & ~APPEND, data)


@pytest.mark.rule("R13")
def test_R13_a_refused_request_changes_nothing_whatever_it_was():
    names = ["V", "SetupMode", "PK", ""]
    for name, attributes, data, phase in itertools.product(
        names, (0, 1, 7, 0x27, 0x67, 0x90), (b"", b"x"), range(4)
    ):
        guest = Guest()
        guest.set("V", b"old")
        guest.to(phase)
        before, store = guest.state, dict(guest.store)
        try:
            guest.set(name, data, attributes, GLOBAL if name != "V" else A)
        except VariableError:
            assert guest.state is before
            assert guest.store == store


def test_the_vendor_is_part_of_the_name():
    guest = Guest()
    guest.set("V", b"a", guid=A)
    guest.set("V", b"b", guid=B)
    assert (guest.value("V", A), guest.value("V", B)) == (b"a", b"b")
    assert set(READ_ONLY) >= {SETUP_MODE}
