"""The memory-overwrite request and its lock (R92..R100, P27)."""

import inspect

import pytest

from cvars.variables import mor
from cvars.variables.names import MOR, MOR_LOCK
from cvars.variables.profile import MorSource
from cvars.variables.saved import restore, save
from cvars.variables.state import MorLock
from tests.variables.kit import APPEND, AT, BS, NBR, NV, RT, Guest, refused

KEY = b"12345678"


def offered(**choices):
    """Firmware has made the MOR variable, and EndOfDxe has passed."""
    guest = Guest(**choices)
    guest.set(MOR, b"\0")
    return guest.end_of_dxe()


def test_R92_end_of_dxe_decides():
    guest = offered()
    assert guest.get(MOR_LOCK).data == b"\0"
    assert guest.get(MOR_LOCK).attributes == NBR
    absent = Guest().end_of_dxe()
    assert not absent.has(MOR)
    for name, data in ((MOR, b"\0"), (MOR, b"\1"), (MOR_LOCK, b"\0"), (MOR_LOCK, b"\1"), (MOR_LOCK, KEY)):
        with refused("WRITE_PROTECTED", absent):
            absent.set(name, data)
    for name, data in ((MOR, b"\2"), (MOR, b"\0\0"), (MOR_LOCK, b"\2"), (MOR_LOCK, b"12")):
        with refused("INVALID_PARAMETER", absent):
            absent.set(name, data)
    provided = Guest(mor=MorSource.PROVIDED).end_of_dxe()
    assert provided.value(MOR_LOCK) == b"\0"
    provided.set(MOR, b"\1")


@pytest.mark.rule("R92", "P27")
def test_R92_P27_a_platform_without_mor_takes_both_names_away():
    guest = Guest(mor=MorSource.ABSENT)
    guest.set(MOR, b"\1")
    guest.set(MOR_LOCK, b"\0")
    assert MOR in guest.store
    guest.end_of_dxe()
    assert not guest.has(MOR)
    assert not guest.has(MOR_LOCK)
    assert MOR not in guest.store


def test_R93_the_mor_variable_is_one_byte():
    for guest in (Guest(), offered(), Guest().end_of_dxe()):
        for data, attributes in (
            (b"", NBR),
            (b"\0\0", NBR),
            (b"\0", NV | BS),
            (b"\0", BS | RT),
            (b"\0", NBR | APPEND),
            (b"", 0),
            (b"\2", NBR),
            (b"\xee", NBR),
        ):
            with refused("INVALID_PARAMETER", guest):
                guest.set(MOR, data, attributes)
    guest = offered(refuses_mor_reserved=False)
    guest.set(MOR, b"\xff")
    for value in (b"\0", b"\1", b"\x10", b"\x11"):
        guest = offered()
        guest.set(MOR, value)
        assert guest.value(MOR) == value


@pytest.mark.parametrize("lock", [b"\1", KEY])
def test_R94_a_locked_mor_is_not_written(lock):
    guest = offered()
    guest.set(MOR, b"\1")
    guest.set(MOR_LOCK, lock)
    for value in (b"\0", b"\1"):
        with refused("ACCESS_DENIED", guest):
            guest.set(MOR, value)
    with refused("INVALID_PARAMETER", guest):
        guest.set(MOR, b"\2")
    assert guest.value(MOR) == b"\1"


@pytest.mark.parametrize("lock", [None, b"\1", KEY])
def test_R95_R96_what_no_lock_state_accepts(lock):
    guest = offered()
    if lock:
        guest.set(MOR_LOCK, lock)
    for data, attributes in ((b"", NBR), (b"", 0), (b"\0", 0), (KEY, 0), (b"", NBR | APPEND)):
        with refused("WRITE_PROTECTED", guest):
            guest.set(MOR_LOCK, data, attributes)
    for data, attributes in (
        (b"\0", NV | BS),
        (b"\0", NBR | APPEND),
        (KEY, BS | RT),
        (b"12", NBR),
        (b"1234567", NBR),
        (b"123456789", NBR),
    ):
        with refused("INVALID_PARAMETER", guest):
            guest.set(MOR_LOCK, data, attributes)
    with refused("SECURITY_VIOLATION", guest):
        guest.set(MOR_LOCK, b"\0", NBR | AT)  # R40


def test_R97_locking():
    guest = offered()
    guest.set(MOR_LOCK, b"\0")
    assert guest.state.mor.lock is MorLock.UNLOCKED
    for other in (b"\2", b"\xff"):
        with refused("INVALID_PARAMETER", guest):
            guest.set(MOR_LOCK, other)
    guest.set(MOR_LOCK, b"\1")
    assert guest.value(MOR_LOCK) == b"\1"
    for secret in (KEY, bytes(8), b"\xff" * 8):
        guest = offered()
        guest.set(MOR_LOCK, secret)
        assert guest.value(MOR_LOCK) == b"\2"
        guest.set(MOR_LOCK, secret)
        assert guest.value(MOR_LOCK) == b"\0"
    early = Guest()
    early.set(MOR_LOCK, b"\1")  # holds before EndOfDxe as well
    with refused("ACCESS_DENIED", early):
        early.set(MOR, b"\0")


def test_R98_locked_without_a_key_nothing_helps():
    guest = offered()
    guest.set(MOR_LOCK, b"\1")
    for data in (b"\0", b"\1", b"\2", KEY, bytes(8)):
        with refused("ACCESS_DENIED", guest):
            guest.set(MOR_LOCK, data)
    assert guest.value(MOR_LOCK) == b"\1"


@pytest.mark.rule("R99", "P27")
def test_R99_P27_one_guess_only():
    guest = offered()
    guest.set(MOR_LOCK, KEY)
    for data in (b"\0", b"\1", b"\2"):
        with refused("ACCESS_DENIED", guest):
            guest.set(MOR_LOCK, data)
    assert guest.value(MOR_LOCK) == b"\2"
    with refused("ACCESS_DENIED"):
        guest.set(MOR_LOCK, b"12345679")
    assert guest.value(MOR_LOCK) == b"\1"
    assert guest.state.mor.key == b""
    with refused("ACCESS_DENIED", guest):
        guest.set(MOR_LOCK, KEY)
    again = offered()
    again.set(MOR_LOCK, KEY)
    again.set(MOR_LOCK, KEY)
    assert again.state.mor == mor.MorState()
    assert again.value(MOR_LOCK) == b"\0"
    again.set(MOR, b"\1")
    assert "hmac.compare_digest" in inspect.getsource(mor)


def test_R100_only_a_reset_unlocks_and_saved_state_keeps_the_lock():
    guest = offered()
    guest.set(MOR_LOCK, b"\1")
    guest.ready_to_boot().runtime()
    with refused("ACCESS_DENIED", guest):
        guest.set(MOR_LOCK, b"\0")
    guest.state = restore(save(guest.state))
    with refused("ACCESS_DENIED", guest):
        guest.set(MOR, b"\0")
    guest.reset()
    assert guest.state.mor.lock is MorLock.UNLOCKED
    guest.set(MOR, b"\0")


@pytest.mark.rule("R99", "P27")
def test_P27_the_key_is_never_readable_and_never_stored():
    guest = offered()
    guest.set(MOR_LOCK, KEY)
    assert all(KEY not in variable.data for variable in guest.state.table.values())
    assert all(KEY not in variable.data for variable in guest.store.values())
    assert MOR_LOCK not in guest.store
    assert KEY not in repr(guest.state).encode()
    with refused("ACCESS_DENIED") as caught:
        guest.set(MOR_LOCK, b"87654321")
    assert KEY not in str(caught.value).encode()
