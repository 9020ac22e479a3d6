"""The component's manifests: derived from what is, bound by a report that the verifier accepts."""

import hashlib
import struct
from base64 import b64encode
from datetime import UTC, datetime

import pytest

from cvars.attest import load_simulated, read_snp, verify
from cvars.errors import StoreError
from cvars.lab.lab import LabGuest
from svsm_bridge.abi import EXTENSION_GUID, UEFI_MM_GUID, Registers, call_number
from svsm_bridge.manifests import (
    EXTENSION,
    FACTORY_STATE,
    PERSISTENT,
    SIMULATED,
    TLV,
    SecureBootMode,
    secure_boot_digest,
)

NONCE = bytes(range(64))


def attest_single(machine, guid, version):
    """What Linux does: operation, nonce, three buffers; (result, report and certificates, manifest)."""
    base = 0x140000
    places = {"report": base + 0x1000, "nonce": base + 0x2000, "manifest": base + 0x3000, "certs": base + 0x4000}
    machine.poke(places["nonce"], NONCE)
    operation = struct.pack("<QI4x", places["report"], 0x1000) + struct.pack("<QH6x", places["nonce"], 64)
    operation += struct.pack("<QI4x", places["manifest"], 0x1000) + struct.pack("<QI4x", places["certs"], 0x4000)
    operation += guid.bytes_le + struct.pack("<I4x", version)
    machine.poke(base, operation)
    regs = Registers(rax=call_number(1, 1), rcx=base)
    result = machine.call(regs)
    evidence = {
        "snp-report": machine.peek(places["report"], 0x4A0),
        "certs-buf": machine.peek(places["certs"], regs.rdx),
    }
    wire = {name: b64encode(value).decode() for name, value in evidence.items()}
    return result, wire, machine.peek(places["manifest"], regs.rcx)


@pytest.mark.rule("SS-17", "P37")
def test_the_guest_reads_the_freshness_mode_and_its_result(lab):
    guest: LabGuest = lab.guest()
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x01\x00")
        result, report, manifest = attest_single(running.machine, EXTENSION_GUID, 1)
        assert result == 0
        claims = EXTENSION.parse(manifest)
        assert claims.flags == PERSISTENT | FACTORY_STATE | SIMULATED
        assert (claims.rollback_protection, claims.key_source, claims.epoch) == (3, 2, 1)
        assert claims.vm_identity == hashlib.sha256(guest.vm_id.encode()).digest()
        assert claims.key_release_id != bytes(32)
        assert claims.secure_boot_digest == secure_boot_digest(None, None, None, None)
        roots = load_simulated(lab.hardware, simulation=True)
        at = datetime.fromtimestamp(lab.clock(), UTC)
        bound = hashlib.sha512(NONCE + manifest).digest()
        assert verify(read_snp(report), roots=roots, at=at, report_data=bound).verified
        other = hashlib.sha512(NONCE + manifest[:-1] + b"\x01").digest()
        assert verify(read_snp(report), roots=roots, at=at, report_data=other).rule == "SNP-BIND"
    yesterday = lab.host.copy_flash(guest)
    with guest.boot() as running:
        running.set_variable("BootOrder", b"\x02\x00")
    lab.host.replace_flash(guest, yesterday)
    with guest.boot() as running:
        _, _, manifest = attest_single(running.machine, EXTENSION_GUID, 1)
        tail = manifest[EXTENSION.sizeof() :]
        head = TLV.parse(tail)
        outcome, repaired = struct.unpack("<B3xQ", tail[4 : 4 + head.length])
        assert (head.type, outcome) == (1, 2)
        assert repaired >= 1
        assert EXTENSION.parse(manifest).flags & FACTORY_STATE == 0


def test_secure_boot_is_claimed_only_when_the_variable_says_so(lab):
    """P37: a PK alone proves nothing; here there is none, and after enrolment there is."""
    from cvars.lab.scenario import bundled, read_scenario

    guest = lab.guest()
    with guest.boot() as running:
        _, _, before = attest_single(running.machine, UEFI_MM_GUID, 0)
        for step in read_scenario(bundled("demo-first-boot"), "demo-first-boot"):
            if step.op == "call":
                running.machine.mm_request(step.request)
        _, _, after = attest_single(running.machine, UEFI_MM_GUID, 0)
        _, _, extension = attest_single(running.machine, EXTENSION_GUID, 1)
    assert struct.unpack("<II", before) == (0, 1)
    assert struct.unpack("<II", after) == (0, 7)
    claims = EXTENSION.parse(extension)
    assert (claims.secure_boot_mode, claims.boot_phase) == (1, 3)


def test_on_tdx_there_is_no_bare_report(lab):
    """S34: the report source is missing: INVALID_REQUEST, registers unchanged."""
    with lab.guest("tdx").boot() as running:
        result, _, _ = attest_single(running.machine, UEFI_MM_GUID, 0)
        assert result == 0x80000006


@pytest.mark.rule("P20", "P34", "R84")
def test_P20_P34_setup_mode_and_factory_state_show_in_the_manifest(lab):
    """A guest without keys says so; a blank disk in its place is a refusal, and never factory state again."""
    guest = lab.guest()
    blank = lab.host.copy_flash(guest)
    with guest.boot() as running:
        claims = EXTENSION.parse(attest_single(running.machine, EXTENSION_GUID, 1)[2])
        assert claims.flags & FACTORY_STATE
        assert claims.secure_boot_mode == SecureBootMode.SETUP
    for name, data in (("zeros", bytes(len(blank))), ("erased", b"\xff" * len(blank)), ("new", blank)):
        lab.host.replace_flash(guest, data)
        with pytest.raises(StoreError) as caught, guest.boot():
            pytest.fail(f"a disk of {name} was taken for this guest's")
        assert caught.value.reason in ("store.rolled_back", "store.tampered"), name
