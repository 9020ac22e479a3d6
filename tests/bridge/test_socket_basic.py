"""The socket transport: a guest boots, is served, resets, powers off."""

import hashlib
from uuid import UUID

import pytest

from svsm_bridge.abi import UEFI_MM_GUID, Outcome, Registers, call_number
from svsm_bridge.errors import GuestMustStop
from svsm_bridge.manifests import manifest_source
from svsm_bridge.service import Service
from svsm_bridge.transports.client import GuestClient, ServerGone, TransportError
from svsm_bridge.transports.guest import CA_GPA, CallFailed
from svsm_bridge.transports.inproc import InProcessGuest
from svsm_bridge.transports.socket import SocketServer
from tests.bridge.support import WRITE, Notebook, mm, note, note_reply
from tests.bridge.test_attestation import CLAIMS, Reports, certificate_table


@pytest.fixture(params=["socket", "in process"])
def guest(request, serve):
    notebook = Notebook()
    by_socket = request.param == "socket"
    made = GuestClient.start(serve(notebook).path) if by_socket else InProcessGuest(notebook)
    made.notebook = notebook
    yield made
    made.close()


def test_a_guest_is_served(guest):
    assert guest.query_protocol(4) == 0x100000001
    assert guest.query_protocol(2) == 0
    assert note_reply(guest.mm_request(note(WRITE, b"k", b"value")))[0] == 0
    assert note_reply(guest.mm_request(note(1, b"k", bytes(16)))) == (0, b"value")
    with pytest.raises(CallFailed, match="0x80000006"):
        guest.mm_request(mm(UUID(int=7), b"x" * 32))
    guest.reset()
    assert guest.notebook.resets == 2


def test_S63_the_last_machine_connection_is_power_off(serve):
    notebook = Notebook()
    server = serve(notebook)
    first = GuestClient.start(server.path)
    second = GuestClient.connect(server.path)
    assert second.hello(roles=1, guest_vmpl=0).boot_ca == CA_GPA
    first.close()
    with pytest.raises(ServerGone):
        list(map(second.page_query, iter(int, 1)))  # until it is noticed
    second.close()
    assert server.wait_closed()
    assert notebook.resets == 2
    third = GuestClient.start(server.path)
    assert third.query_protocol(4)
    third.close()


def test_a_guest_that_must_stop_is_cut_off(serve):
    class Rotten(Notebook):
        def handle(self, guid, message):
            raise GuestMustStop("the store is not the one that was written")

    heard = []
    server = serve(Rotten(), on_fatal=heard.append)
    client = GuestClient.start(server.path)
    with pytest.raises(ServerGone):
        client.mm_request(note(WRITE, b"k", b"v"))
    client.close()
    assert server.wait_closed()
    assert [str(why) for why in heard] == ["the store is not the one that was written"]


def test_each_guest_of_a_factory_has_its_own_store(serve):
    server = serve(Notebook)
    a, b = GuestClient.start(server.path), GuestClient.start(server.path)
    a.mm_request(note(WRITE, b"k", b"of a"))
    status, _ = note_reply(b.mm_request(note(1, b"k", bytes(16))))
    assert status == 1 << 63 | 14
    with pytest.raises(TransportError, match="error 12"):
        GuestClient.connect(server.path).hello(roles=1, guest_vmpl=0)
    a.close()
    b.close()


def test_a_call_that_was_not_requested(serve):
    client = GuestClient.start(serve().path)
    reply = client.enter_raw(0, Registers(rax=call_number(0, 6), rcx=4 << 32 | 1))
    assert reply.outcome == Outcome.NOTHING_PENDING
    assert reply.regs.rax == call_number(0, 6)
    assert reply.ghcb_msr == 0x17
    client.close()


def test_S65_production_refuses_the_transport(serve):
    with pytest.raises(ValueError, match="production"):
        SocketServer(None, Notebook(), production=True)


@pytest.mark.parametrize("table", [b"", certificate_table(900, 1100), certificate_table(9000)])
def test_a_guest_attests(serve, table):
    source = manifest_source(lambda: CLAIMS)
    server = serve(reports=Reports(table), manifests=source)
    over_socket = GuestClient.start(server.path)
    direct = InProcessGuest(Service(Notebook(), manifests=source, reports=Reports(table)))
    for guest in (over_socket, direct):
        got = guest.attest(bytes(64))
        assert got.report[0x50:0x90] == hashlib.sha512(bytes(64) + got.manifest).digest()
        assert got.certificates == table
        assert len(guest.attest(bytes(64), service=(UEFI_MM_GUID, 0)).manifest) == 8
        with pytest.raises(CallFailed, match="UNSUPPORTED_PROTOCOL"):
            guest.attest(bytes(64), service=(UUID(int=1), 0))
        with pytest.raises(CallFailed, match="INVALID_PARAMETER"):
            guest.attest(bytes(63))
        guest.close()
