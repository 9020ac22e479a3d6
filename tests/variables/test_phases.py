"""Boot phases, reset, save and restore (R16..R21)."""

import pytest

from cvars.errors import BadInput, EfiStatus, StoreTampered
from cvars.variables import Phase, initial_state
from cvars.variables.initial import reset, stored
from cvars.variables.machine import step
from cvars.variables.model import Key, Variable
from cvars.variables.names import CUSTOM, ENABLE, MOR, MOR_LOCK, PK, SECURE_BOOT, SETUP_MODE
from cvars.variables.policy import NO_MAXIMUM
from cvars.variables.requests import (
    DisablePolicy,
    DumpPolicies,
    EndOfDxe,
    ExitBootServices,
    LockVariable,
    Property,
    ReadyToBoot,
    RegisterPolicy,
    SetProperty,
    SetVariable,
)
from cvars.variables.saved import restore, save
from cvars.variables.security import GLOBAL
from tests.mm.kit import entry
from tests.variables.kit import BS, NBR, NV, RT, A, Guest, key, refused
from tests.variables.pki import auth, esl, signer


@pytest.mark.rule("R16", "P06")
def test_R16_phases_move_forward_only():
    guest = Guest()
    for request, phase in (
        (EndOfDxe(), Phase.END_OF_DXE),
        (ReadyToBoot(), Phase.READY_TO_BOOT),
        (EndOfDxe(), Phase.READY_TO_BOOT),
        (ExitBootServices(), Phase.RUNTIME),
        (ReadyToBoot(is_event=True), Phase.RUNTIME),
        (EndOfDxe(), Phase.RUNTIME),
    ):
        guest.ask(request)
        assert guest.state.phase is phase
    assert guest.reset().state.phase is Phase.DXE


@pytest.mark.rule("R17", "P25")
def test_R17_P25_ready_to_boot_and_exit_imply_end_of_dxe():
    for way in ("end_of_dxe", "ready_to_boot", "runtime"):
        guest = Guest()
        guest.set("Locked", b"1")
        guest.ask(RegisterPolicy(entry(A, "Locked", lock=1)))
        guest.set(MOR, b"\0")
        getattr(guest, way)()
        assert guest.state.armed
        assert guest.value(MOR_LOCK) == b"\0"
        with refused("WRITE_PROTECTED", guest):
            guest.set("Locked", b"2")
        with refused("WRITE_PROTECTED", guest):
            guest.ask(RegisterPolicy(entry(A, "Late")))


def test_R17_function_5_is_unsupported_in_runtime():
    guest = Guest().runtime()
    with refused("UNSUPPORTED", guest):
        guest.ask(ReadyToBoot())


def test_R17_repeats_are_harmless():
    guest = Guest().end_of_dxe()
    before = guest.state
    guest.ask(EndOfDxe())
    assert guest.state is before


def test_R18_exit_boot_services_repeats():
    guest = Guest().runtime()
    before = guest.state
    guest.ask(ExitBootServices())
    assert guest.state is before
    assert guest.state.at_runtime


def test_R19_after_end_of_dxe_the_interfaces_are_closed():
    guest = Guest().end_of_dxe()
    with refused("ACCESS_DENIED", guest):
        guest.ask(LockVariable(key("V")))
    with refused("ACCESS_DENIED", guest):
        guest.ask(SetProperty(key("V"), Property(1, 0, 0, 0, 9)))
    with refused("WRITE_PROTECTED", guest):
        guest.ask(RegisterPolicy(entry(A, "V")))
    with refused("WRITE_PROTECTED", guest):
        guest.ask(DisablePolicy())
    allowed = Guest(allows_disable=True).end_of_dxe()
    with refused("WRITE_PROTECTED", allowed):
        allowed.ask(DisablePolicy())


def everything():
    """A service with something in every part of its state."""
    guest = Guest(allows_disable=True)
    guest.set("Nv", b"kept")
    guest.set("Vol", b"gone", BS | RT)
    guest.set(PK, auth(signer(0), PK, esl(signer(0).der)), NBR | 0x20)
    guest.set("Private", auth(signer(1), key("Private"), b"mine"), NBR | 0x20)
    guest.set(CUSTOM, b"\1", NV | BS)
    guest.set(MOR, b"\1")
    guest.ask(RegisterPolicy(entry(A, "Locked", lock=1)))
    guest.ask(SetProperty(key("Prop"), Property(1, 1, 0, 0, 9)))
    guest.end_of_dxe()
    guest.set(MOR_LOCK, b"12345678")
    guest.ask(DumpPolicies(0))
    return guest


def test_R20_reset_drops_what_is_volatile_and_derives_the_rest():
    guest = everything()
    guest.reset()
    state = guest.state
    assert state.phase is Phase.DXE
    assert state.policies.entries == ()
    assert not state.policies.locked
    assert state.policies.dump is None
    assert not state.properties
    assert state.mor.lock == 0
    assert not guest.has("Vol")
    assert not guest.has(MOR_LOCK)
    assert guest.value(CUSTOM) == b"\0"
    assert guest.value(SETUP_MODE) == b"\0"
    assert guest.value(SECURE_BOOT) == b"\1"
    assert guest.value("Nv") == b"kept"
    assert guest.get("Private").signer is not None
    assert guest.get("Private").timestamp == guest.store[key("Private")].timestamp != bytes(16)
    guest.ask(RegisterPolicy(entry(A, "Again")))


@pytest.mark.rule("R21", "R100", "P26")
def test_R21_P26_restore_keeps_every_lock():
    guest = everything()
    saved = save(guest.state)
    fresh = Guest()
    fresh.state = restore(saved)
    assert fresh.state == guest.state
    assert save(fresh.state) == saved
    for request, status in (
        (SetVariable(key("Locked"), NBR, b"x"), "WRITE_PROTECTED"),
        (SetVariable(key("Prop"), NBR, b"x"), "WRITE_PROTECTED"),
        (SetVariable(MOR, NBR, b"\0"), "ACCESS_DENIED"),
        (RegisterPolicy(entry(A, "V")), "WRITE_PROTECTED"),
        (LockVariable(key("V")), "ACCESS_DENIED"),
        (SetVariable(CUSTOM, NV | BS, b"\0"), "SECURITY_VIOLATION"),
    ):
        with refused(status):
            step(fresh.state, request)
    assert step(fresh.state, DumpPolicies(1)).reply.page
    unlocked = step(fresh.state, SetVariable(MOR_LOCK, NBR, b"12345678"))
    assert unlocked.state.mor.lock == 0


def test_R21_a_weaker_phase_is_refused():
    guest = Guest().ready_to_boot()
    saved = save(guest.state)
    for weaker in (Phase.DXE, Phase.END_OF_DXE):
        with pytest.raises(BadInput, match="READY_TO_BOOT"):
            restore(saved, phase=weaker)
    assert restore(saved, phase=Phase.RUNTIME).at_runtime


def test_R21_other_bytes_are_refused():
    good = save(everything().state)
    for bad in (b"", b"{}", b"[]", b"[" * 100_000, good.replace(b'"version":1', b'"version":2'), good[:-5]):
        with pytest.raises(BadInput):
            restore(bad)
    for at in range(0, len(good), 97):
        mutated = good[:at] + b"!" + good[at + 1 :]
        try:
            restore(mutated)
        except BadInput:
            continue


@pytest.mark.rule("R76", "P08", "P17")
def test_R76_P08_P17_impossible_stored_variables_stop_the_boot():
    def start(k, variable):
        guest = Guest()
        return initial_state({k: variable}, profile=guest.profile, limits=guest.limits)

    for k, variable in (
        (key("Private"), Variable(NBR | 0x20, b"x")),  # an AT variable that lost its pin is no first write
        (key("Volatile"), Variable(BS | RT, b"x")),
        (key("Append"), Variable(NBR | 0x40, b"x")),
        (key(""), Variable(NBR, b"x")),
        (key("Enhanced"), Variable(NBR | 0x80, b"x")),
    ):
        with pytest.raises(StoreTampered):
            start(k, variable)
    assert start(key("Orphan"), Variable(NBR, b"x", signer=bytes(32))).table[key("Orphan")].signer is None
    assert start(PK, Variable(NBR | 0x20, b"x", signer=bytes(32))).table[PK].signer is None


def test_what_the_service_derives_is_not_in_the_store():
    guest = Guest({PK: Variable(NBR | 0x20, b"x")})
    assert guest.value(ENABLE) == b"\1"
    assert stored(guest.state) == guest.store == {PK: Variable(NBR | 0x20, b"x")}
    guest.set(ENABLE, b"\0", NV | BS)
    assert guest.store[ENABLE].data == b"\0"
    assert stored(guest.state) == guest.store
    assert reset(guest.state).table[SECURE_BOOT].data == b"\0"


def test_a_derived_variable_is_deleted_without_a_trace_in_the_store():
    guest = Guest({PK: Variable(NBR | 0x20, b"x")})
    guest.set(ENABLE, b"", NV | BS)
    assert guest.journals == []
    assert not guest.has(ENABLE)


def test_policy_limits_have_the_specification_s_maximum():
    assert NO_MAXIMUM == 0xFFFFFFFF
    assert EfiStatus.SUCCESS == 0
    assert Key(GLOBAL, "PK") == PK
