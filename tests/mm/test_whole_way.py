"""The service behind the real call boundary and in front of the real store (R1..R3, R14, R124, R125)."""

import struct

import pytest

from cvars.errors import StoreRolledBack
from cvars.formats import qemu_json
from cvars.mm.service import VariableService
from cvars.variables.model import Variable
from cvars.variables.names import DBX, KEK
from tests.bridge.support import (
    BUFFER,
    INVALID_ADDRESS,
    INVALID_PARAMETER,
    INVALID_REQUEST,
    LOW_END,
    SUCCESS,
    UNSUPPORTED_CALL,
    UNSUPPORTED_PROTOCOL,
    Box,
    mm,
)
from tests.mm.kit import POLICY, VARIABLE, access, entry, following, get, message, policy, put, status_of
from tests.store.world import World
from tests.variables.kit import A
from tests.variables.pki import AUTH, SHA256, auth, esl, time
from tests.variables.test_authenticated import KEK_OWNER, PRIVATE, STRANGER, Guest, write


def boxed(**options):
    service = VariableService({}, commit=lambda _j: None, **options)
    return Box(handler=service), service


REQUESTS = [
    (VARIABLE, put(A, "V", 7, b"value")),
    (VARIABLE, get(A, "V", 5)),
    (VARIABLE, get(A, "V", 0)),
    (VARIABLE, following(A, "", 512)),
    (VARIABLE, message(4, bytes(24) + struct.pack("<I", 7))),
    (VARIABLE, message(11, bytes(8))),
    (POLICY, policy(3, entry(A, "L", lock=1))),
    (POLICY, policy(2, b"\0")),
    (VARIABLE, message(5)),
    (VARIABLE, message(6)),
    (VARIABLE, access(3, A, "V", 7, b"x", data_size=1 << 40)),
]


@pytest.mark.rule("R1", "P01")
def test_R1_P01_no_byte_of_a_request_is_read_twice():
    box, _ = boxed()
    for guid, body in REQUESTS:
        rax, _ = box.mm(mm(guid, body))
        assert rax == SUCCESS
    assert box.audit.violations == []
    assert box.audit.calls


def test_R1_the_service_works_on_its_private_copy():
    """Memory that changes behind the copy changes nothing: the handler holds immutable bytes."""
    held = []

    class Spy(VariableService):
        def handle(self, header_guid, raw):
            held.append(raw)
            box.poke(BUFFER, b"\xff" * 200)
            return super().handle(header_guid, raw)

    service = Spy({}, commit=lambda _j: None)
    box = Box(handler=service)
    box.mm(mm(VARIABLE, put(A, "V", 7, b"value")))
    assert type(held[0]) is bytes
    assert [v.data for k, v in service.variables.items() if k.name == "V"] == [b"value"]


def test_R2_calls_and_their_errors():
    box, _ = boxed()
    good = mm(VARIABLE, message(11, bytes(8)))
    for gpa, size, result in (
        (BUFFER, 0x10000, SUCCESS),
        (BUFFER, 256 * 1024, SUCCESS),
        (BUFFER, 256 * 1024 + 1, INVALID_PARAMETER),
        (BUFFER, 1 << 60, INVALID_PARAMETER),
        (BUFFER, 23, INVALID_PARAMETER),
        (BUFFER, 0, INVALID_PARAMETER),
        (0, 0x1000, INVALID_PARAMETER),
        (BUFFER + 8, 0x1000, INVALID_ADDRESS),
        (LOW_END - 0x1000, 0x2000, INVALID_ADDRESS),
        ((1 << 64) - 0x1000, 0x2000, INVALID_ADDRESS),
    ):
        box.poke(BUFFER, good)
        rax, _ = box.call(4, 1, rcx=gpa, rdx=size)
        assert rax == result, (hex(gpa), size)
    assert box.call(4, 2, rcx=BUFFER, rdx=0x1000)[0] == UNSUPPORTED_CALL
    assert box.call(99, 1, rcx=BUFFER, rdx=0x1000)[0] == UNSUPPORTED_PROTOCOL


def test_R3_R4_R5_message_length_and_unknown_messages_leave_memory_alone():
    box, _ = boxed()
    body = message(11, bytes(8))
    for raw, result in (
        (mm(VARIABLE, body, length=0x1000 - 24), SUCCESS),
        (mm(VARIABLE, body, length=0x1000 - 23), INVALID_PARAMETER),
        (mm(VARIABLE, body, length=(1 << 64) - 1), INVALID_PARAMETER),
        (mm(VARIABLE, body, length=15), INVALID_PARAMETER),
        (mm(A, body), INVALID_REQUEST),
    ):
        box.poke(BUFFER, bytes(64) + b"\xaa" * 64)
        rax, after = box.mm(raw, size=0x1000)
        assert rax == result
        if result != SUCCESS:
            assert after == raw


@pytest.mark.rule("R14", "R125", "P24")
def test_R14_R125_a_rolled_back_store_is_noticed_and_holds_values_and_pins_together():
    """The host puts back an image from before dbx and a private variable were written."""
    world = World()
    store = world.boot()
    VariableService(dict(store.variables), commit=store.commit).handle(VARIABLE, put(A, "Before", 7, b"x"))
    store.close()
    old = bytes(world.medium.image)
    store = world.boot()
    service = VariableService(dict(store.variables), commit=store.commit)
    revoked = auth(None, DBX, esl(bytes(32), kind=SHA256))
    assert status_of(service.handle(VARIABLE, put(DBX.vendor_guid, "dbx", AUTH, revoked))) == 0
    data = auth(STRANGER, PRIVATE, b"mine")
    assert status_of(service.handle(VARIABLE, put(A, "Private", AUTH, data))) == 0
    assert store.variables[PRIVATE] == Variable(AUTH, b"mine", time(2024), store.variables[PRIVATE].signer)
    assert store.variables[PRIVATE].signer is not None
    store.close()
    assert isinstance(world.refused(old, on_rollback="refuse"), StoreRolledBack)


@pytest.mark.rule("R124", "R76", "P17")
def test_R124_export_and_import_keep_values_times_and_pins():
    guest = Guest()
    write(guest, None, KEK, esl(KEK_OWNER.der))
    write(guest, STRANGER, PRIVATE, b"mine")
    guest.set("Plain", b"x")
    text, losses = qemu_json.write(guest.store)
    assert losses == ()
    again = qemu_json.read(text)
    assert again.losses == ()
    assert again.variables == guest.store
    imported = Guest(again.variables)
    assert imported.get(PRIVATE) == guest.get(PRIVATE)
    assert imported.get(PRIVATE) == Variable(AUTH, b"mine", time(2024), guest.get(PRIVATE).signer)
