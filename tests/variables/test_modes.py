"""Secure Boot modes (R82..R91)."""

import itertools
import struct

import pytest

from cvars.errors import EfiStatus
from cvars.mm.service import VariableService, uefi_variable_data
from cvars.trace import Recorder
from cvars.variables.model import Delete, Put, Variable
from cvars.variables.names import (
    AUDIT_MODE,
    CUSTOM,
    DB,
    DBT,
    DBX,
    DEPLOYED_MODE,
    ENABLE,
    KEK,
    PK,
    READ_ONLY,
    SECURE_BOOT,
    SETUP_MODE,
    SIGNATURE_SUPPORT,
    VENDOR_KEYS,
    VENDOR_KEYS_STORED,
)
from cvars.variables.state import Measurement
from tests.mm.kit import VARIABLE, put, status_of
from tests.variables.kit import BS, NBR, NV, RT, Guest, refused
from tests.variables.pki import AUTH, SHA256, auth, esl, signer, time
from tests.variables.test_authenticated import HASHES, KEK_OWNER, PK_OWNER, STRANGER, user_mode, write

ON, OFF = b"\1", b"\0"


def modes(guest):
    return tuple(guest.value(name) for name in (SETUP_MODE, SECURE_BOOT, CUSTOM))


def test_R82_modes_at_start():
    assert modes(Guest()) == (ON, OFF, OFF)
    assert not Guest().has(ENABLE)
    with_pk = {PK: Variable(AUTH, esl(PK_OWNER.der), time(2020))}
    assert modes(Guest(with_pk)) == (OFF, ON, OFF)
    assert Guest(with_pk).value(ENABLE) == ON
    disabled = with_pk | {ENABLE: Variable(NV | BS, OFF)}
    assert modes(Guest(disabled)) == (OFF, OFF, OFF)
    custom = {CUSTOM: Variable(NV | BS, ON)}
    assert Guest(custom).value(CUSTOM) == OFF
    assert Guest().value(VENDOR_KEYS) == ON
    assert Guest({VENDOR_KEYS_STORED: Variable(NV | BS, OFF)}).value(VENDOR_KEYS) == OFF
    for name in (SETUP_MODE, SECURE_BOOT, SIGNATURE_SUPPORT, VENDOR_KEYS):
        assert Guest().get(name).attributes == BS | RT
    assert Guest(with_pk).get(ENABLE).attributes == Guest().get(CUSTOM).attributes == NV | BS
    kinds = Guest().value(SIGNATURE_SUPPORT)
    assert len(kinds) % 16 == 0
    assert SHA256.bytes_le in [kinds[i : i + 16] for i in range(0, len(kinds), 16)]


def test_R83_enrolling_pk_before_runtime():
    guest = Guest()
    write(guest, PK_OWNER, PK, esl(PK_OWNER.der))
    assert modes(guest) == (OFF, ON, OFF)
    assert guest.value(ENABLE) == ON
    assert guest.store[ENABLE] == Variable(NV | BS, ON)
    assert guest.power_cycle().value(SECURE_BOOT) == ON
    off = Guest()
    off.set(ENABLE, OFF, NV | BS)
    write(off, PK_OWNER, PK, esl(PK_OWNER.der))
    assert off.value(ENABLE) == ON


def test_R83_enrolling_pk_in_runtime_waits_for_the_reset():
    guest = Guest().runtime()
    write(guest, PK_OWNER, PK, esl(PK_OWNER.der))
    assert guest.value(SETUP_MODE) == OFF
    assert guest.value(SECURE_BOOT) == OFF
    assert not guest.has(ENABLE)
    with refused("SECURITY_VIOLATION", guest):
        write(guest, None, DB, HASHES[0])
    assert guest.reset().value(SECURE_BOOT) == ON


def test_R84_deleting_pk():
    guest = user_mode()
    write(guest, PK_OWNER, PK, b"")
    assert modes(guest) == (ON, OFF, OFF)
    assert not guest.has(ENABLE)
    assert guest.journals[-1] == (Delete(PK), Delete(ENABLE))
    write(guest, None, DB, HASHES[0], when=time(2025))
    late = user_mode().runtime()
    write(late, PK_OWNER, PK, b"")
    assert late.value(SETUP_MODE) == ON
    assert late.value(SECURE_BOOT) == ON
    assert ENABLE in late.store
    assert late.reset().value(SECURE_BOOT) == OFF


def test_R85_replacing_pk_changes_no_mode():
    guest = user_mode()
    before = modes(guest)
    write(guest, PK_OWNER, PK, esl(signer(4, "new PK").der))
    assert modes(guest) == before
    assert [type(change) for change in guest.journals[-1]] == [Put]
    with refused("SECURITY_VIOLATION", guest):
        write(guest, PK_OWNER, KEK, esl(KEK_OWNER.der))


def test_R86_a_failed_commit_moves_nothing():
    from cvars.errors import DeviceError

    def fail(_journal):
        raise DeviceError("no")

    svc = VariableService({}, commit=fail)
    data = auth(PK_OWNER, PK, esl(PK_OWNER.der))
    reply = svc.handle(VARIABLE, put(PK.vendor_guid, "PK", AUTH, data))
    assert status_of(reply) == EfiStatus.DEVICE_ERROR
    assert svc.state.in_setup_mode
    assert svc.state.table[SECURE_BOOT].data == OFF
    assert svc.variables == {}


def test_R87_custom_mode_returns_to_zero():
    guest = user_mode()
    guest.set(CUSTOM, ON, NV | BS)
    assert guest.state.in_custom_mode
    assert guest.reset().value(CUSTOM) == OFF
    guest.set(CUSTOM, ON, NV | BS)
    assert guest.power_cycle().value(CUSTOM) == OFF
    guest.set(ENABLE, OFF, NV | BS)
    assert guest.value(SECURE_BOOT) == ON
    assert guest.reset().value(SECURE_BOOT) == OFF


@pytest.mark.parametrize("target", sorted(READ_ONLY))
def test_R88_what_the_service_maintains_is_read_only(target):
    for phase, attributes in itertools.product(range(4), (BS | RT, NBR, NV | BS, 0)):
        guest = Guest().to(phase)
        with refused("WRITE_PROTECTED", guest):
            guest.set(target, ON, attributes)


def test_R89_vendor_keys_end_with_the_first_custom_change():
    for target in (PK, KEK, DB, DBX):
        guest = user_mode()
        assert guest.value(VENDOR_KEYS) == ON
        write(guest, KEK_OWNER if target not in (PK, KEK) else PK_OWNER, target, esl(signer(5).der))
        assert guest.value(VENDOR_KEYS) == ON  # authenticated
        guest.set(CUSTOM, ON, NV | BS)
        write(guest, None, target, esl(signer(6).der), when=time(2025))
        assert guest.value(VENDOR_KEYS) == OFF
        assert guest.store[VENDOR_KEYS_STORED].data == OFF
        assert guest.power_cycle().value(VENDOR_KEYS) == OFF
        guest.set(CUSTOM, ON, NV | BS)
        write(guest, None, target, esl(signer(5).der), when=time(2026))
        assert [change.key for change in guest.journals[-1]] == [target]
    setup = Guest()
    setup.set(CUSTOM, ON, NV | BS)
    write(setup, None, DB, HASHES[0])
    assert setup.value(VENDOR_KEYS) == ON  # setup mode: the vendor may be enrolling
    write(setup, None, PK, esl(PK_OWNER.der))
    assert setup.value(VENDOR_KEYS) == OFF


def audited(guest):
    return guest.value(AUDIT_MODE), guest.value(DEPLOYED_MODE), guest.value(SETUP_MODE), guest.value(SECURE_BOOT)


def test_R90_is_off_by_default():
    guest = Guest()
    assert not guest.has(AUDIT_MODE)
    guest.set(AUDIT_MODE, ON, BS | RT)  # a documented name like any other
    armed = Guest().end_of_dxe()
    armed.set(AUDIT_MODE, ON, BS | RT)
    assert armed.value(SETUP_MODE) == ON


def test_R90_the_modes_of_chapter_32():
    guest = user_mode(audit_mode=True)
    assert audited(guest) == (OFF, OFF, OFF, ON)
    assert guest.get(AUDIT_MODE).attributes == BS | RT
    guest.set(AUDIT_MODE, ON, BS | RT)
    assert audited(guest) == (ON, OFF, ON, OFF)
    assert not guest.has(PK)
    assert PK not in guest.store
    with refused("WRITE_PROTECTED", guest):
        guest.set(DEPLOYED_MODE, ON, BS | RT)
    with refused("WRITE_PROTECTED", guest):
        guest.set(AUDIT_MODE, ON, BS | RT)
    write(guest, PK_OWNER, PK, esl(PK_OWNER.der), when=time(2025))
    assert audited(guest) == (OFF, ON, OFF, ON)
    for name, value in itertools.product((AUDIT_MODE, DEPLOYED_MODE), (ON, OFF)):
        with refused("WRITE_PROTECTED", guest):
            guest.set(name, value, BS | RT)
    write(guest, PK_OWNER, PK, b"", when=time(2026))
    assert audited(guest) == (OFF, OFF, ON, OFF)
    guest.set(AUDIT_MODE, ON, BS | RT)
    assert audited(guest) == (ON, OFF, ON, OFF)


def test_R90_deployed_mode_is_set_in_user_mode():
    setup = Guest(audit_mode=True)
    with refused("WRITE_PROTECTED", setup):
        setup.set(DEPLOYED_MODE, ON, BS | RT)
    guest = user_mode(audit_mode=True)
    guest.set(DEPLOYED_MODE, ON, BS | RT)
    assert audited(guest) == (OFF, ON, OFF, ON)
    late = user_mode(audit_mode=True).runtime()
    for name in (AUDIT_MODE, DEPLOYED_MODE):
        with refused("WRITE_PROTECTED", late):
            late.set(name, ON, BS | RT)
        with refused("WRITE_PROTECTED", late):
            late.set(name, OFF, BS | RT)
        for value in (b"\2", b"\xff"):
            with refused("INVALID_PARAMETER", guest):
                guest.set(name, value, BS | RT)
        for value, attributes in ((b"", BS | RT), (ON, NBR), (b"\1\1", BS | RT), (ON, 0)):
            with refused("WRITE_PROTECTED", guest):
                guest.set(name, value, attributes)


def test_R91_boot_time_changes_are_offered_for_measurement():
    guest = user_mode()
    assert [name for name, _ in guest.measured] == ["db", "KEK", "dbx", "PK", "SecureBoot"]
    assert guest.measured[-1] == ("SecureBoot", ON)
    assert guest.measured[0] == ("db", guest.value(DB))
    guest.measured.clear()
    write(guest, PK_OWNER, DBT, HASHES[0], when=time(2024))
    write(guest, PK_OWNER, DBT, b"", when=time(2025))
    write(guest, PK_OWNER, DBX, b"", when=time(2025))
    guest.set("Other", b"x")
    assert guest.measured == [("dbt", HASHES[0]), ("dbx", None)]
    guest.runtime()
    write(guest, PK_OWNER, DB, HASHES[0], when=time(2026))
    assert len(guest.measured) == 2


def test_R91_the_hook_gets_uefi_variable_data():
    offered, trace = [], Recorder()
    svc = VariableService({}, commit=lambda _j: None, trace=trace, measure=offered.append)
    data = auth(None, DB, HASHES[0])
    assert status_of(svc.handle(VARIABLE, put(DB.vendor_guid, "db", AUTH, data))) == 0
    assert offered == [Measurement(DB, HASHES[0])]
    raw = uefi_variable_data(offered[0])
    assert raw == DB.vendor_guid.bytes_le + struct.pack("<QQ", 2, len(HASHES[0])) + b"d\0b\0" + HASHES[0]
    assert "measurement.offered" in trace.kinds()
    assert uefi_variable_data(Measurement(DB, None))[24:32] == bytes(8)
    with refused("SECURITY_VIOLATION"):
        write(user_mode(), STRANGER, DB, HASHES[0])
