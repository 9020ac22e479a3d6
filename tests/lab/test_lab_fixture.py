"""The fixture `lab`: the real parts in one process."""

import pytest

from cvars.errors import AnchorLeased, StoreRolledBack, StoreTampered, StoreWrongGuest
from cvars.lab.driver import StatusError


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_boot_order_survives(lab, tee):
    guest = lab.guest(tee=tee)
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x01\x00")
    with guest.boot() as running:
        assert running.get_variable("BootOrder") == b"\x01\x00"
        assert [key.name for key in running.names() if key.name == "BootOrder"] == ["BootOrder"]


@pytest.mark.rule("T5", "SS-12")
@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_a_rolled_back_store_keeps_the_guest_down(lab, tee):
    """The host keeps yesterday's flash and puts it back (threat T5)."""
    guest = lab.guest(tee=tee, on_rollback="refuse")
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x01\x00")
    yesterday = lab.host.copy_flash(guest)
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x02\x00")
    lab.host.replace_flash(guest, yesterday)
    with pytest.raises(StoreRolledBack), guest.boot():
        pytest.fail("the guest runs on a store that the host rolled back")
    assert "store.rolled_back" in lab.trace.kinds(guest)
    assert lab.trace.kinds(guest)[-1] == "guest.boot_refused"
    assert lab.host.copy_flash(guest) == yesterday


@pytest.mark.rule("T5", "SS-12")
def test_a_rolled_back_store_is_repaired_and_reported(lab):
    guest = lab.guest()
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x01\x00")
    yesterday = lab.host.copy_flash(guest)
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x02\x00")
    lab.host.replace_flash(guest, yesterday)
    with guest.boot() as running:
        assert running.get_variable("BootOrder") == b"\x02\x00"
    assert "store.rolled_back" in lab.trace.kinds(guest)


@pytest.mark.rule("T1")
def test_a_flipped_bit_keeps_the_guest_down(lab):
    guest = lab.guest()
    with guest.boot() as running:
        for number in range(4):
            running.set_variable(f"Boot{number:04X}-8be4df61-93ca-11d2-aa0d-00e098032b8c", bytes(40))
    half = len(lab.host.copy_flash(guest)) // 2
    log = lab.host.copy_flash(guest).index(b"CVR1", half + 0x4400)
    lab.host.flip(guest, log + 100)
    with pytest.raises(StoreTampered), guest.boot():
        pytest.fail("the guest runs on changed bytes")


@pytest.mark.rule("T4")
def test_another_guests_store_is_refused(lab):
    one, other = lab.guest(), lab.guest()
    for guest in (one, other):
        with guest.boot() as running:
            running.set_variable("BootOrder", b"\x01\x00")
    lab.host.replace_flash(one, lab.host.copy_flash(other))
    with pytest.raises(StoreWrongGuest), one.boot():
        pytest.fail("the guest runs on another guest's store")


@pytest.mark.rule("T6", "SS-13")
def test_a_clone_of_a_live_guest_is_refused(lab):
    guest = lab.guest()
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x01\x00")
        with pytest.raises(AnchorLeased), guest.boot():
            pytest.fail("two guests run on one store")
        running.set_variable("BootOrder", b"\x02\x00")


@pytest.mark.rule("T20", "SS-13")
def test_a_fenced_guest_stops_and_its_writes_are_not_acknowledged(lab):
    """Power cut without a word, the lease runs out, another instance starts: the first must never say success."""
    from cvars.lab.lab import RunningGuest
    from svsm_bridge.errors import GuestMustStop

    guest = lab.guest(mode="strict")
    old = RunningGuest(guest.start())
    old.set_variable("BootOrder", b"\x01\x00")
    lab.clock.sleep(31)
    with guest.boot() as running:
        assert running.get_variable("BootOrder") == b"\x01\x00"
        with pytest.raises(GuestMustStop):
            old.set_variable("BootOrder", b"\x03\x00")
        assert running.get_variable("BootOrder") == b"\x01\x00"
    assert "anchor.fenced" in lab.trace.kinds(guest)


def test_a_status_is_an_error_of_its_own_family(lab):
    with lab.guest().boot() as running, pytest.raises(StatusError, match="NOT_FOUND"):
        running.get_variable("BootNext")
