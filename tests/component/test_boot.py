"""What the boot refuses, and that a boot that fails gives its lease back."""

import pytest

from cvars.component import boot as booting
from cvars.errors import StoreRolledBack, UsageMistake
from cvars.lab.lab import NV_BS_RT
from cvars.release.initdata import parse
from cvars.store.geometry import Geometry
from cvars.store.offline import creation_image
from cvars.variables.limits import overhead

VENDOR = "11111111-2222-3333-4444-555555555555"


def measured(guest, on_rollback):
    """Give ``guest`` init-data that measures ``cvars.on-rollback``."""
    guest.init_data = parse(guest.init_data.body + f'"cvars.on-rollback" = "{on_rollback}"\n')


def rolled_back(lab, guest):
    """Boot twice and put the first image back."""
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x01\x00")
    old = lab.host.copy_flash(guest)
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x02\x00")
    lab.host.replace_flash(guest, old)


@pytest.mark.rule("SS-12", "SS-20")
def test_measured_refuse_cannot_be_weakened_by_the_command_line(lab):
    guest = lab.guest(on_rollback="repair")
    measured(guest, "refuse")
    rolled_back(lab, guest)
    with pytest.raises(StoreRolledBack), guest.boot():
        pytest.fail("the host's command line weakened measured configuration")


@pytest.mark.rule("SS-12", "SS-20")
def test_the_command_line_can_be_stricter_than_what_was_measured(lab):
    guest = lab.guest(on_rollback="refuse")
    rolled_back(lab, guest)
    with pytest.raises(StoreRolledBack), guest.boot():
        pytest.fail("the operator's wish was not heard")


def test_init_data_that_names_no_vm_asks_the_broker_for_nothing(lab):
    guest = lab.guest()
    guest.init_data = parse("".join(x for x in guest.init_data.body.splitlines(True) if "vm-id" not in x))
    assert guest.init_data.vm_id is None
    with pytest.raises(UsageMistake, match="names no VM"), guest.boot():
        pytest.fail("a guest without a name booted")
    assert lab.trace.kinds(guest) == ["guest.boot_refused"]


@pytest.mark.rule("SS-20")
def test_a_typo_in_measured_configuration_is_no_weaker_setting(lab):
    guest = lab.guest()
    measured(guest, "Refuse")
    with pytest.raises(UsageMistake, match="repair or refuse"), guest.boot():
        pytest.fail("a typo was taken for repair")
    measured_again = lab.guest()
    with measured_again.boot():
        pass


@pytest.mark.parametrize("broken", ["_serving", "mount"])
def test_a_boot_that_fails_gives_its_lease_back(lab, monkeypatch, broken):
    guest = lab.guest()
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x01\x00")
    with monkeypatch.context() as patch:
        if broken == "mount":  # a refusal of the store, the real one: damage
            image = lab.host.copy_flash(guest)
            lab.host.replace_flash(guest, bytes(len(image)))
            with pytest.raises(Exception, match=r"store|header"), guest.boot():
                pass
            lab.host.replace_flash(guest, image)
        else:
            patch.setattr(booting, "_serving", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError), guest.boot():
                pass
    with guest.boot() as running:  # no anchor.leased: nobody holds it
        assert running.get_variable("BootOrder") == b"\x01\x00"


@pytest.mark.rule("R121", "SS-23")
def test_a_guest_is_told_of_no_larger_variable_than_a_record_holds(lab):
    """Frames of 512 bytes: the largest record is smaller than the class limit, and the answer says so."""
    guest = lab.guest()
    geometry = Geometry(256 << 10, 512)
    blank = creation_image(geometry, nor=False, aux=b"", request_id=bytes(16))
    lab.host.replace_flash(guest, blank)
    with guest.boot() as running:
        largest = running.firmware.query(NV_BS_RT).maximum_variable
        assert largest <= geometry.largest_body
        name = f"V-{VENDOR}"
        running.set_variable(name, bytes(largest - overhead(NV_BS_RT) - len("V\0") * 2))
        assert len(running.get_variable(name)) > 30_000
