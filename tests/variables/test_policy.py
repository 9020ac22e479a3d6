"""Variable policy, LockVariable and properties (R101..R113, P28)."""

import struct
import time

import pytest

from cvars.errors import EfiStatus
from cvars.mm.service import VariableService
from cvars.variables import Limits
from cvars.variables.commands import PAGE
from cvars.variables.requests import (
    DisablePolicy,
    GetPolicyInfo,
    GetProperty,
    IsPolicyEnabled,
    LockPolicies,
    LockVariable,
    Property,
    RegisterPolicy,
    SetProperty,
)
from tests.mm.kit import POLICY, entry, name16, policy, result_of
from tests.variables.kit import APPEND, BS, NBR, NV, RT, A, B, Guest, key, refused

S = EfiStatus
FULL = 16360


def register(guest, *entries):
    for one in entries:
        guest.ask(RegisterPolicy(one))
    return guest


@pytest.fixture
def svc():
    return VariableService({}, commit=lambda _j: None)


def ask(svc, raw):
    reply = svc.handle(POLICY, raw)
    assert len(reply) <= len(raw)
    return reply + raw[len(reply) :]


# --- messages --------------------------------------------------------------------------------------


def test_R101_head_of_a_policy_message(svc):
    for raw, result in (
        (policy(2, b"\0", signature=0x43504357), S.INVALID_PARAMETER),
        (policy(2, b"\0", revision=2), S.INVALID_PARAMETER),
        (policy(2, b"\0", revision=0), S.INVALID_PARAMETER),
        (policy(2), S.INVALID_PARAMETER),  # no room for the answer
        (policy(3), S.INVALID_PARAMETER),
        (policy(4, bytes(12)), S.INVALID_PARAMETER),
        (policy(6, bytes(67)), S.INVALID_PARAMETER),
        (policy(2, bytes(16384 - 20)), 0),
        (policy(2, bytes(16384 - 19)), S.INVALID_PARAMETER),
        (policy(0), S.UNSUPPORTED),
        (policy(8, bytes(9)), S.UNSUPPORTED),
        (policy(1 << 31), S.UNSUPPORTED),
    ):
        reply = ask(svc, raw)
        assert result_of(reply) == result
        assert reply[:12] == raw[:12]
    assert ask(svc, policy(2, b"\x7f"))[20:] == b"\1"


def test_R102_the_entry_s_layout():
    raw = entry(A, "Na", low=1, high=2, must=3, cant=4, lock=3, state=(B, 7, "St"))
    assert raw == (
        struct.pack("<IHH", 0x10000, 44 + 18 + 6 + 6, 44 + 18 + 6)
        + A.bytes_le
        + struct.pack("<IIII", 1, 2, 3, 4)
        + b"\3\0\0\0"
        + B.bytes_le
        + b"\7\0"
        + name16("St")
        + name16("Na")
    )
    (one,) = register(Guest(), raw).state.policies.entries
    assert (one.namespace, one.name, one.min_size, one.max_size, one.must, one.cant) == (A, "Na", 1, 2, 3, 4)
    assert (one.lock, one.state_key, one.state_value, one.raw) == (3, key("St", B), 7, raw)


GOOD = entry(A, "Name")
STATE = entry(A, "N", lock=3, state=(B, 1, "St"))


@pytest.mark.rule("R103", "P28")
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        GOOD[:43],
        entry(A, "Name", version=0x10001),
        entry(A, "Name", version=0),
        entry(A, "Name", size=43),
        entry(A, "Name", size=0),
        entry(A, "Name", size=len(GOOD) + 1),
        entry(A, "Name", size=0xFFFF),
        entry(A, "Name", size=len(GOOD) - 2),  # the name is cut
        entry(A, "Name", size=len(GOOD) - 1),
        entry(A, "Name", high=0),
        entry(A, "Name", lock=4),
        entry(A, "Name", lock=255),
        entry(A, "Name", offset=43),
        entry(A, "Name", offset=45),
        entry(A, "Name", offset=0),
        entry(A, "Name", offset=0xFFFF),
        entry(A, "Name", lock=3),  # no state
        entry(A, "N", lock=0, state=(B, 1, "St")),  # a state that the type does not have
        STATE[:6] + struct.pack("<H", 60) + STATE[8:],
        STATE[:6] + struct.pack("<H", 62) + STATE[8:],  # no room for a state name
        STATE[:6] + struct.pack("<H", 66) + STATE[8:],
        STATE[:6] + struct.pack("<H", 69) + STATE[8:],
        STATE[:6] + struct.pack("<H", 70) + STATE[8:],
        entry(A, b"N\0a\0"),  # no NUL
        entry(A, b"N\0\0\0a\0\0\0"),  # a NUL before the end
        entry(A, b"\0"),
        entry(A, "#" * 256),
    ],
)
def test_R103_P28_malformed_entries(bad):
    guest = Guest()
    with refused("INVALID_PARAMETER", guest):
        guest.ask(RegisterPolicy(bad))


def test_R103_what_is_accepted():
    for good in (
        GOOD,
        GOOD + b"what follows the entry is not looked at",
        STATE,
        entry(A, None),
        entry(A, "#" * 255),
        entry(A, "V", low=9, high=1),
        entry(A, "V", high=1),
    ):
        guest = register(Guest(), good)
        assert len(guest.state.policies.entries) == 1
    with refused("INVALID_PARAMETER"):
        register(Guest(allows_min_over_max=False), entry(A, "V", low=9, high=1))


@pytest.mark.rule("R104", "P28")
def test_R104_P28_registering():
    guest = register(Guest(), entry(A, "V"), entry(A, "W#"), entry(A, None))
    with refused("ALREADY_STARTED", guest):
        register(guest, entry(A, "V", lock=1))
    register(guest, entry(A, "W#"), entry(A, None), entry(B, "V"), entry(A, "VV"), entry(A, "v"))
    assert len(guest.state.policies.entries) == 8
    with refused("ALREADY_STARTED"):
        register(Guest(repeats_wildcards=False), entry(A, "W#"), entry(A, "W#"))
    register(Guest(repeats_wildcards=False), entry(A, None), entry(A, None))
    small = register(Guest(limits=Limits(max_policies=2)), entry(A, "1"), entry(A, "2"))
    with refused("OUT_OF_RESOURCES", small):
        register(small, entry(A, "3"))
    with refused("ALREADY_STARTED", small):
        register(small, entry(A, "2"))
    tight = register(Guest(limits=Limits(max_policy_bytes=100)), entry(A, "1"), entry(A, "2"))
    with refused("OUT_OF_RESOURCES", tight):
        register(tight, entry(A, "3"))
    locked = register(Guest(), entry(A, "V"))
    locked.ask(LockPolicies())
    for bad, status in (
        (entry(A, "W", version=1), "INVALID_PARAMETER"),
        (entry(A, "W", size=43), "INVALID_PARAMETER"),
        (entry(A, "W", high=0), "WRITE_PROTECTED"),
        (entry(A, "W", lock=9), "WRITE_PROTECTED"),
        (entry(A, "W"), "WRITE_PROTECTED"),
        (entry(A, "V"), "WRITE_PROTECTED"),
    ):
        with refused(status, locked):
            register(locked, bad)
    disabled = Guest(allows_disable=True)
    disabled.ask(DisablePolicy())
    with refused("UNSUPPORTED", disabled):
        register(disabled, entry(A, "V"))
    lax = Guest(allows_disable=True, registers_while_disabled=True)
    lax.ask(DisablePolicy())
    register(lax, entry(A, "V"))


def test_R105_the_best_match_alone_applies():
    def sizes(name, *entries, vendor=A):
        guest = register(Guest(), *entries).end_of_dxe()
        out = []
        for size in range(1, 10):
            try:
                guest.set(name, bytes(size), guid=vendor)
            except Exception:
                continue
            out.append(size)
        return out

    def only(size):
        return {"low": size, "high": size}

    space, three, two, exact = (
        entry(A, None, **only(1)),
        entry(A, "V###", **only(2)),
        entry(A, "V#0#", **only(3)),
        entry(A, "V000", **only(4)),
    )
    for order in ((space, three, two, exact), (exact, two, three, space)):
        assert sizes("V000", *order) == [4]
        assert sizes("V101", *order) == [3]
        assert sizes("V111", *order) == [2]
        assert sizes("W", *order) == [1]
        assert sizes("V1111", *order) == [1]
        assert sizes("V11", *order) == [1]
        assert len(sizes("V000", *order, vendor=B)) == 9
    for digit in "09afAF":
        assert sizes(f"V00{digit}", entry(A, "V00#", **only(2))) == [2]
    for other in ("G", "g", "#", "０", " ", "\u0666"):
        assert len(sizes(f"V00{other}", entry(A, "V00#", **only(2)))) == 9
    first, second = entry(A, "V#00", **only(5)), entry(A, "V0#0", **only(6))
    assert sizes("V000", first, second) == [5]
    assert sizes("V000", second, first) == [6]
    many = entry(A, "#" * 255, **only(7))
    assert sizes("0" * 255, space, many) == [1]  # both have priority 255: the first registered
    assert sizes("0" * 255, many, space) == [7]


def test_R106_what_a_policy_forbids():
    guest = register(Guest(), entry(A, "V", low=2, high=4, must=NV, cant=RT)).end_of_dxe()
    for data, attributes in (
        (b"1", NV | BS),
        (b"12345", NV | BS),
        (b"123", BS),
        (b"123", NBR),
        (b"1", NV | BS | APPEND),
    ):
        with refused("INVALID_PARAMETER", guest):
            guest.set("V", data, attributes)
    guest.set("V", b"12", NV | BS)
    guest.set("V", b"1234", NV | BS)
    guest.set("V", b"", NV | BS)  # deletes are exempt
    append = register(Guest(), entry(A, "V", cant=APPEND), entry(A, "W", must=APPEND)).end_of_dxe()
    with refused("INVALID_PARAMETER", append):
        append.set("V", b"x", NBR | APPEND)
    with refused("INVALID_PARAMETER", append):
        append.set("W", b"x")
    append.set("W", b"x", NBR | APPEND)


def test_R106_locks_hold_for_deletes_too():
    guest = Guest()
    guest.set("Now", b"x")
    guest.set("State", b"x")
    register(
        guest,
        entry(A, "Now", lock=1),
        entry(A, "New", lock=1),
        entry(A, "Create", lock=2),
        entry(A, "State", lock=3, state=(B, 7, "S")),
    ).end_of_dxe()
    for name in ("Now", "New"):
        for data, attributes in ((b"y", NBR), (b"", NBR), (b"", 0), (b"y", NBR | APPEND)):
            with refused("WRITE_PROTECTED", guest):
                guest.set(name, data, attributes)
    guest.set("Create", b"1")
    for data in (b"2", b"1", b""):
        with refused("WRITE_PROTECTED", guest):
            guest.set("Create", data)
    for state, locked in ((None, False), (b"\6", False), (b"\7\7", False), (b"\7", True)):
        if state is not None:
            guest.set("S", state, guid=B)
        if locked:
            for data in (b"y", b""):
                with refused("WRITE_PROTECTED", guest):
                    guest.set("State", data)
        else:
            guest.set("State", b"z" + (state or b""))
    bad_size = register(Guest(), entry(A, "V", high=1, lock=1)).end_of_dxe()
    with refused("INVALID_PARAMETER", bad_size):
        bad_size.set("V", b"22")  # size first, then the lock
    with refused("WRITE_PROTECTED", bad_size):
        bad_size.set("V", b"2")


def test_R106_size_is_that_of_the_payload():
    from tests.variables.pki import auth, signer

    guest = register(Guest(), entry(A, "P", low=3, high=3)).end_of_dxe()
    target = key("P")
    with refused("INVALID_PARAMETER", guest):
        guest.set("P", auth(signer(0), target, b"12"), NBR | 0x20)
    guest.set("P", auth(signer(0), target, b"123"), NBR | 0x20)


def test_R107_checks_bind_from_end_of_dxe_on():
    for phase in range(4):
        guest = register(Guest(), entry(A, "V", lock=1)).to(phase)
        if phase == 0:
            guest.set("V", b"x")
        else:
            with refused("WRITE_PROTECTED", guest):
                guest.set("V", b"x")
    at_once = register(Guest(policy_binds_at_once=True), entry(A, "V", lock=1))
    with refused("WRITE_PROTECTED", at_once):
        at_once.set("V", b"x")


def test_R108_disabling():
    guest = Guest()
    with refused("WRITE_PROTECTED", guest):
        guest.ask(DisablePolicy())
    assert guest.ask(IsPolicyEnabled()) is True
    allowed = register(Guest(allows_disable=True), entry(A, "V", lock=1))
    allowed.ask(DisablePolicy())
    assert allowed.ask(IsPolicyEnabled()) is False
    with refused("ALREADY_STARTED", allowed):
        allowed.ask(DisablePolicy())
    allowed.end_of_dxe().set("V", b"x")
    with refused("WRITE_PROTECTED", allowed):
        allowed.ask(DisablePolicy())
    locked = Guest(allows_disable=True)
    locked.ask(LockPolicies())
    with refused("WRITE_PROTECTED", locked):
        locked.ask(DisablePolicy())


def test_R109_locking():
    guest = Guest()
    guest.ask(LockPolicies())
    with refused("WRITE_PROTECTED", guest):
        guest.ask(LockPolicies())
    ended = Guest().end_of_dxe()
    with refused("WRITE_PROTECTED", ended):
        ended.ask(LockPolicies())


# --- dump ------------------------------------------------------------------------------------------


def dump(svc, page, size=FULL):
    raw = policy(4, struct.pack("<IIIB", page, 0xAAAAAAAA, 0xBBBBBBBB, 0xCC)).ljust(size, b"\xee")
    reply = ask(svc, raw)
    _, total, length, more = struct.unpack_from("<IIIB", reply, 20)
    return result_of(reply), total, length, more, reply[33 : 33 + length] if result_of(reply) == 0 else b""


def filled(svc, total):
    """Register policies of ``total`` bytes in all, a multiple of 1 from 46 on."""
    made, number = b"", 0
    while len(made) < total:
        left = total - len(made)
        size = left if left <= 1000 else 500
        odd = size % 2
        body = entry(A, f"{number:04}" + "x" * ((size - odd - 44 - 10) // 2))
        assert odd == 0
        assert result_of(ask(svc, policy(3, body))) == 0
        made, number = made + body, number + 1
    return made


@pytest.mark.rule("R110", "P28")
@pytest.mark.parametrize("total", [46 + 8, PAGE - 1, PAGE + 1, 2 * PAGE, 2 * PAGE - 2, 2 * PAGE + 2])
def test_R110_P28_pages(svc, total):
    made = filled(svc, total)
    assert dump(svc, 0) == (0, total, 0, 1, b"")
    pages = -(-total // PAGE)
    got = b""
    for page in range(1, pages + 1):
        result, said, length, more, data = dump(svc, page)
        assert (result, said, length) == (0, total, len(data))
        assert more == (page < pages)
        got += data
    assert got == made
    assert dump(svc, 1)[0] == S.TIMEOUT


def test_R110_pages_in_any_order_and_their_refusals(svc):
    filled(svc, 2 * PAGE + 100)
    assert dump(svc, 1)[0] == S.TIMEOUT
    assert dump(svc, 0)[0] == 0
    assert dump(svc, 4)[0] == S.INVALID_PARAMETER
    assert dump(svc, 0xFFFFFFFF)[0] == S.INVALID_PARAMETER
    assert dump(svc, 1, FULL - 1)[0] == S.INVALID_PARAMETER
    assert dump(svc, 2)[2] == dump(svc, 1)[2] == PAGE
    assert dump(svc, 2)[2] == PAGE
    assert dump(svc, 3)[2] == 100
    assert dump(svc, 2)[0] == S.TIMEOUT
    for other in (policy(2, b"\0"), policy(99), policy(1), policy(6, bytes(100))):
        dump(svc, 0)
        ask(svc, other)
        assert dump(svc, 1)[0] == S.TIMEOUT
    dump(svc, 0)
    ask(svc, policy(2, b"\0", revision=7))  # no command at all
    assert dump(svc, 1)[0] == 0
    dump(svc, 0)
    ask(svc, policy(3, entry(A, "Later")))
    assert dump(svc, 0)[1] > 2 * PAGE + 100
    empty = VariableService({}, commit=lambda _j: None)
    assert dump(empty, 0) == (0, 0, 0, 0, b"")
    assert dump(empty, 1)[0] == S.TIMEOUT
    assert dump(empty, 0, FULL - 1)[0] == S.INVALID_PARAMETER


# --- info ------------------------------------------------------------------------------------------


def info(svc, name, room, *, command=6, vendor=A, size=None, length=None):
    raw_name = name16(name) if isinstance(name, str) else name
    given = len(raw_name) if size is None else size
    head = vendor.bytes_le + struct.pack("<II", given, room) + b"\xdd" * 44
    raw = policy(command, head + raw_name).ljust(20 + 68 + len(raw_name) + min(room, 4096), b"\xee")
    return ask(svc, raw if length is None else raw[:length])


@pytest.mark.rule("R101", "R111", "P28")
def test_R111_P28_info_of_the_best_match(svc):
    exact, wild, space = entry(A, "V0", low=3), entry(A, "V#"), entry(A, None)
    locked = entry(B, "L", lock=3, state=(A, 9, "State"))
    for one in (exact, wild, space, locked):
        assert result_of(ask(svc, policy(3, one))) == 0
    for name, best, found in (("V0", exact, "V0"), ("V1", wild, "V#"), ("Other", space, None)):
        reply = info(svc, name, 100)
        assert result_of(reply) == 0
        given = name16(found) if found else b""
        assert struct.unpack_from("<II", reply, 36) == (len(name16(name)), len(given))
        assert reply[44:88] == best[:44]
        start = 88 + len(name16(name))
        assert reply[start : start + len(given)] == given
        assert reply[start + len(given) :] == b"\xee" * (100 - len(given))
    small = info(svc, "V0", 5)
    assert result_of(small) == S.BUFFER_TOO_SMALL
    assert struct.unpack_from("<II", small, 36) == (6, 6)
    assert small[44:88] == exact[:44]
    assert small[88:] == name16("V0") + b"\xee" * 5
    assert result_of(info(svc, "Other", 0)) == 0  # nameless: size 0
    absent = info(svc, "X", 9, vendor=B)
    assert result_of(absent) == S.NOT_FOUND
    assert absent[44:88] == b"\xdd" * 44
    state = info(svc, "L", 100, command=7, vendor=B)
    assert result_of(state) == 0
    assert state[44:62] == locked[44:62]
    assert state[62:88] == b"\xdd" * 26
    assert state[88 + 4 : 88 + 4 + 12] == name16("State")
    assert result_of(info(svc, "L", 11, command=7, vendor=B)) == S.BUFFER_TOO_SMALL
    assert result_of(info(svc, "V0", 100, command=7)) == S.NOT_FOUND
    assert result_of(info(svc, "X", 100, command=7, vendor=B)) == S.NOT_FOUND
    for bad in (
        {"name": b"V\0"},
        {"name": b""},
        {"name": b"V\0\0"},
        {"name": "V0", "size": 5},
        {"name": "V0", "size": 0xFFFFFFFF},
        {"name": "V0", "room": 0xFFFFFFFF},
        {"name": "V0", "room": 0xFFFFFFFA, "size": 6},
        {"name": "V0", "room": 10, "length": 88 + 6 + 9},
    ):
        assert result_of(info(svc, **({"room": 10} | bad))) == S.INVALID_PARAMETER, bad


def test_R112_lock_variable():
    guest = Guest()
    guest.set("V", b"x")
    guest.ask(LockVariable(key("V")))
    guest.ask(LockVariable(key("V")))
    assert len(guest.state.policies.entries) == 1
    guest.ask(LockVariable(key("")))
    register(guest, entry(A, "W", lock=2), entry(A, "X", lock=1))
    with refused("ACCESS_DENIED", guest):
        guest.ask(LockVariable(key("W")))
    guest.ask(LockVariable(key("X")))
    guest.end_of_dxe()
    for data in (b"y", b""):
        with refused("WRITE_PROTECTED", guest):
            guest.set("V", data)
    guest.set("Other", bytes(5000))
    for name in ("V", "New"):
        with refused("ACCESS_DENIED", guest):
            guest.ask(LockVariable(key(name)))
    locked = Guest()
    locked.ask(LockPolicies())
    with refused("ACCESS_DENIED", locked):
        locked.ask(LockVariable(key("V")))


# --- properties ------------------------------------------------------------------------------------


def test_R113_properties():
    guest = Guest()
    with refused("INVALID_PARAMETER", guest):
        guest.ask(SetProperty(key("V"), Property(2, 0, 0, 0, 9)))
    with refused("INVALID_PARAMETER", guest):
        guest.ask(SetProperty(key(""), Property(1, 0, 0, 0, 9)))
    with refused("NOT_FOUND", guest):
        guest.ask(GetProperty(key("V")))
    ranged = Property(1, 0, NBR, 2, 4)
    guest.ask(SetProperty(key("V"), ranged))
    guest.ask(SetProperty(key("Any"), Property(1, 0, 0, 1, 1)))
    guest.ask(SetProperty(key("Read"), Property(1, 1, 0, 0, 9)))
    guest.ask(SetProperty(key("Boot####"), Property(1, 0, 0, 3, 3)))
    assert guest.ask(GetProperty(key("V"))) == ranged
    assert guest.ask(GetProperty(key("Boot00FA"))).min_size == 3
    for other in ("Boot00fa", "Boot000", "BootXXXX", "Boot####x"):
        with refused("NOT_FOUND", guest):
            guest.ask(GetProperty(key(other)))
    guest.set("V", b"1", BS)
    guest.set("Read", b"1")
    guest.end_of_dxe()
    for data in (b"2", b""):
        with refused("WRITE_PROTECTED", guest):
            guest.set("Read", data)
    guest.set("V", b"", BS)  # deletes are exempt from sizes and attributes
    for data, attributes in ((b"12", NV | BS), (b"1", NBR), (b"12345", NBR)):
        with refused("INVALID_PARAMETER", guest):
            guest.set("V", data, attributes)
    guest.set("V", b"12", NBR | APPEND)
    guest.set("Any", b"1", BS)
    with refused("INVALID_PARAMETER", guest):
        guest.set("Boot0001", b"1")
    guest.set("Boot0001", b"123")
    guest.set("Boot000g", b"1")


@pytest.mark.rule("R15", "P09")
def test_R15_P09_the_worst_table_of_wildcards_costs_little():
    guest = Guest()
    long = "V" * 7000
    with refused("OUT_OF_RESOURCES"):
        for number in range(600):
            register(guest, entry(A, long[: 6000 + number] + "#" * 255 + long[: 1000 - number]))
    guest.end_of_dxe()
    begin = time.process_time()
    guest.set(long[:6000] + "0" * 255 + long[:1000], b"x")
    assert time.process_time() - begin < 0.010


@pytest.mark.rule("R15", "P09")
def test_R15_P09_properties_are_bounded():
    guest = Guest(limits=Limits(max_properties=2))
    for number in range(2):
        guest.ask(SetProperty(key(f"V{number}"), Property(1, 0, 0, 0, 9)))
    with refused("OUT_OF_RESOURCES", guest):
        guest.ask(SetProperty(key("V2"), Property(1, 0, 0, 0, 9)))
    guest.ask(SetProperty(key("V1"), Property(1, 1, 0, 0, 9)))
    assert GetPolicyInfo(key("V"), 1).lock_on_state is False
