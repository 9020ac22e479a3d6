"""GetVariable, GetNextVariableName, QueryVariableInfo (R22..R31)."""

import pytest

from cvars.variables import Limits
from cvars.variables.limits import HEADER, PIN
from cvars.variables.model import Key, Variable
from cvars.variables.names import HW_ERROR, VENDOR_KEYS_STORED
from cvars.variables.refusals import InvalidParameter, OutOfResources
from cvars.variables.requests import GetNextVariableName, GetVariable
from cvars.variables.security import PRIVATE
from tests.variables.kit import APPEND, AT, AW, BS, ENH, HR, NBR, NV, RT, A, B, Guest, key, refused
from tests.variables.pki import auth, signer


@pytest.mark.rule("R22", "P07")
def test_R22_P07_absent_and_invisible_look_the_same():
    guest = Guest()
    guest.set("BootOnly", b"x", BS)
    with refused("NOT_FOUND", guest):
        guest.get("Absent")
    with refused("NOT_FOUND", guest):
        guest.get("")
    with refused("NOT_FOUND", guest):
        guest.get("BootOnly", B)
    assert guest.value("BootOnly") == b"x"
    guest.runtime()
    with refused("NOT_FOUND", guest):
        guest.get("BootOnly")
    with refused("NOT_FOUND", guest):
        guest.get("BootOnly", capacity=0)


def test_R22_the_service_s_own_items_are_not_found():
    guest = Guest({Key(PRIVATE, "item"): Variable(NBR, b"x"), VENDOR_KEYS_STORED: Variable(NV | BS, b"\0")})
    for hidden in (Key(PRIVATE, "item"), VENDOR_KEYS_STORED):
        with refused("NOT_FOUND", guest):
            guest.get(hidden)
        assert hidden not in guest.names()


def test_R23_too_small_says_size_and_attributes():
    guest = Guest()
    guest.set("V", b"12345", NV | BS)
    for capacity in (0, 4):
        with refused("BUFFER_TOO_SMALL", guest) as caught:
            guest.get("V", capacity=capacity)
        assert (caught.value.needed, caught.value.attributes) == (5, NV | BS)
    assert guest.get("V", capacity=5).data == b"12345"


def test_R24_success_returns_data_without_descriptor_and_append():
    guest = Guest()
    guest.set("V", b"a", NBR | APPEND)
    assert guest.get("V") == Variable(NBR, b"a")
    signed = key("S")
    guest.set("S", auth(signer(0), signed, b"payload"), NBR | AT)
    assert guest.get("S").data == b"payload"
    assert guest.get("S").attributes == NBR | AT


@pytest.mark.rule("R26", "P07")
def test_R26_P07_the_previous_name_must_be_visible():
    guest = Guest()
    guest.set("BootOnly", b"x", NV | BS)
    guest.set("Always", b"x", NBR)
    with refused("INVALID_PARAMETER", guest):
        guest.ask(GetNextVariableName(key("Absent"), 100))
    guest.ask(GetNextVariableName(key("BootOnly"), 100))
    last = guest.names()[-1]
    with refused("NOT_FOUND", guest):
        guest.ask(GetNextVariableName(last, 100))
    guest.runtime()
    with refused("INVALID_PARAMETER", guest):
        guest.ask(GetNextVariableName(key("BootOnly"), 100))
    assert guest.ask(GetNextVariableName(key(""), 100)) in guest.names()


def test_R27_too_small_for_the_next_name_says_what_is_needed():
    guest = Guest()
    first = guest.names()[0]
    needed = 2 * len(first.name) + 2
    for capacity in (0, needed - 1):
        with refused("BUFFER_TOO_SMALL", guest) as caught:
            guest.ask(GetNextVariableName(key(""), capacity))
        assert caught.value.needed == needed
    assert guest.ask(GetNextVariableName(key(""), needed)) == first


def test_R28_every_visible_variable_is_named_once():
    guest = Guest()
    for number in range(50):
        guest.set(f"V{number}", b"x", (NBR, NV | BS, BS, BS | RT)[number % 4])
        guest.set(f"V{number}", b"x", (NBR, NV | BS, BS, BS | RT)[number % 4], B)
    names = guest.names()
    assert len(names) == len(set(names)) == len(guest.state.table)
    guest.runtime()
    names = guest.names()
    assert len(names) == len(set(names))
    assert set(names) == {k for k, v in guest.state.table.items() if v.attributes & RT}


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        (0, "INVALID_PARAMETER"),
        (AW, "UNSUPPORTED"),
        (AW | NBR, "UNSUPPORTED"),
        (0x100, "UNSUPPORTED"),
        (ENH, "UNSUPPORTED"),
        (NV, "INVALID_PARAMETER"),
        (NV | 0x100, "INVALID_PARAMETER"),
        (RT, "INVALID_PARAMETER"),
        (RT | NV, "INVALID_PARAMETER"),
        (HR | BS, "INVALID_PARAMETER"),
        (HR | NBR, "UNSUPPORTED"),
    ],
)
def test_R29_masks_that_are_refused(attributes, status):
    guest = Guest()
    with refused(status, guest):
        guest.query(attributes)


def test_R29_in_order():
    guest = Guest()
    with refused("UNSUPPORTED", guest):
        guest.query(AW | RT)  # before RT without BS
    with refused("INVALID_PARAMETER", guest):
        guest.query(HR | RT | NV)  # before the missing quota
    guest.runtime()
    for attributes in (BS, NV | BS, NV | BS | HR):
        with refused("INVALID_PARAMETER", guest):
            guest.query(attributes)
    guest.query(NBR)
    guest.query(BS | RT)
    Guest(limits=Limits(hr_pool=4096)).query(NBR | HR)


def test_R30_figures_count_headers_names_and_pools():
    guest = Guest()
    empty = guest.query(NBR)
    assert empty.maximum_storage == 256 * 1024
    guest.set("Name", b"12345")  # 60 + 10 + 5, rounded up to 76
    assert empty.remaining - guest.query(NBR).remaining == 76
    assert empty.maximum_variable == 64 * 1024 - HEADER
    volatile = guest.query(BS)
    guest.set("Vol", b"1", BS)  # 60 + 8 + 1, rounded up to 72
    assert volatile.remaining - guest.query(BS).remaining == 72
    assert guest.query(NBR).remaining == empty.remaining - 76
    signed = key("S")
    guest.set("S", auth(signer(0), signed, b"pay"), NBR | AT)  # 92 + 4 + 3, rounded up to 100
    assert guest.query(NBR).remaining == empty.remaining - 176
    assert guest.query(NBR | AT).maximum_variable == 64 * 1024 - HEADER - PIN
    records = Guest(limits=Limits(hr_pool=2048))
    assert records.query(NBR | HR).maximum_storage == 2048
    assert records.query(NBR | HR).maximum_variable == 2048 - HEADER
    tiny = Guest(limits=Limits(volatile_pool=0))
    assert tiny.query(BS).maximum_variable == 0
    reserve = Guest(limits=Limits(boot_reserve=4096))
    assert reserve.query(NBR).maximum_storage == 256 * 1024
    assert reserve.runtime().query(NBR).maximum_storage == 256 * 1024 - 4096


@pytest.mark.rule("R31", "P32")
@pytest.mark.parametrize("attributes", [NBR, NV | BS, BS, BS | RT, NBR | HR, NBR | AT])
@pytest.mark.parametrize("fill", [0, 1, 500, 3000, 7000])
@pytest.mark.parametrize("runtime", [False, True])
def test_R31_P32_the_figures_are_true_to_the_byte(attributes, fill, runtime):
    if runtime and (not attributes & RT or not attributes & NV):
        return
    limits = Limits(
        nv_pool=8192,
        volatile_pool=8192,
        hr_pool=8192,
        max_nv=5000,
        max_volatile=4000,
        max_hr=3000,
        max_authenticated=6000,
        reserved=1024,
        boot_reserve=512,
    )
    guest = Guest(limits=limits)
    vendor, name = (HW_ERROR, "HwErrRec0000") if attributes & HR else (A, "New")
    kind = attributes & ~AT
    for number, size in enumerate([fill // 2, fill - fill // 2]):
        if size:
            where, filler = (vendor, f"HwErrRec{number + 1:04X}") if attributes & HR else (A, f"Fill{number}")
            guest.set(filler, bytes(min(size, 2500)), kind, where)
    if runtime:
        guest.runtime()
    most = guest.query(attributes).maximum_variable

    def write(size):
        target = key(name, vendor)
        data = bytes([7]) * (size - 2 * len(name) - 2)
        if attributes & AT:
            data = auth(signer(0), target, data, attributes)
        guest.set(target, data, attributes)

    if most > 2 * len(name) + 2:
        with pytest.raises((OutOfResources, InvalidParameter)):
            write(most + 1)
        write(most)
    else:
        with pytest.raises((OutOfResources, InvalidParameter)):
            write(2 * len(name) + 3)


def test_R31_a_full_table_has_no_room():
    guest = Guest(limits=Limits(max_variables=7))
    while guest.query(NBR).maximum_variable:
        guest.set(f"V{len(guest.state.table)}", b"x")
    with refused("OUT_OF_RESOURCES", guest):
        guest.set("OneMore", b"x")


def test_reading_needs_no_copy_of_the_state():
    guest = Guest()
    guest.set("V", b"x")
    before = guest.state
    guest.ask(GetVariable(key("V"), 10))
    guest.query(NBR)
    guest.names()
    assert guest.state is before
