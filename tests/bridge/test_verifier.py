"""What the bridge attests, before the verifier that a relying party runs: B52, B59."""

import hashlib
import random
from datetime import UTC, datetime

import pytest

from cvars.attest.evidence import SnpEvidence, TdxEvidence
from cvars.attest.simulated import roots
from cvars.attest.simulated.amd_sp import SimulatedAmdSp
from cvars.attest.simulated.tdx_module import SimulatedTdx
from cvars.attest.verify import verify
from svsm_bridge.abi import UEFI_MM_GUID
from svsm_bridge.manifests import parse_services_table, parse_uefi_mm
from svsm_bridge.transports import tdx
from tests.bridge.support import OTHER
from tests.bridge.test_attestation import CERTIFICATES, MANIFEST, NONCE, REPORT, attest, attest_box
from tests.bridge.test_tdx import L2, TdReports

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture(scope="module")
def chip_folder(tmp_path_factory):
    """One installation of simulated hardware: its RSA keys take seconds to make."""
    return tmp_path_factory.mktemp("hardware")


@pytest.mark.rule("S30")
def test_B52_a_verifier_accepts_the_report_and_no_other_manifest(profile, chip_folder):
    chip = SimulatedAmdSp.load_or_create(chip_folder, random=random.Random(5).randbytes)
    guest = chip.launch(measurement=b"\x11" * 48)
    box = attest_box(profile, reports=guest)
    rax, (manifest_size, certificates_size, report_size) = attest(box)
    assert (rax, report_size) == (0, 0x4A0)
    manifest = box.peek(MANIFEST, manifest_size)
    report = box.peek(REPORT, report_size)
    table = box.peek(CERTIFICATES, certificates_size)
    assert table[: len(guest.certificates())] == guest.certificates()
    evidence = SnpEvidence(report, guest.supplied())

    def judged(nonce, said):
        return verify(
            evidence, roots=roots(chip_folder), at=NOW, report_data=hashlib.sha512(nonce + said).digest()
        )

    good = judged(NONCE, manifest)
    assert good.rule is None
    assert good.claims["snp"]["vmpl"] == 0
    assert parse_uefi_mm(parse_services_table(manifest)[UEFI_MM_GUID]) == 7
    for position in range(0, len(manifest), 17):
        flipped = bytearray(manifest)
        flipped[position] ^= 1
        assert judged(NONCE, bytes(flipped)).rule is not None
    assert judged(bytes(64), manifest).rule is not None


@pytest.mark.rule("S50")
def test_B59_a_verifier_rejects_what_l2_forged(tmp_path):
    """L2 wants a quote that says what a service report would say; L1 gave it a report over something else."""
    td = SimulatedTdx.load_or_create(tmp_path, random=random.Random(6).randbytes, clock=NOW.timestamp)
    td = td.launch(measurement=b"\x22" * 48)
    l2 = L2(attest_box(reports=TdReports()))
    nonce, lie = bytes(64), b"everything is fine"
    wanted = hashlib.sha512(nonce + lie).digest()
    l2.box.poke(OTHER, wanted)
    regs = [tdx.MR_REPORT, 0, OTHER + 0x400, OTHER, *[0] * 12]
    l2.l1.tdcall(l2.box.bsp, 2, regs)
    assert regs[0] == tdx.OK
    reported = l2.box.peek(OTHER + 0x400, 1024)[0x80:0xC0]

    def judged(report_data):
        evidence = TdxEvidence(td.quote(report_data), td.collateral())
        return verify(evidence, roots=roots(tmp_path), at=NOW, report_data=wanted)

    assert judged(wanted).rule is None  # what a service report would have been
    assert judged(reported).rule is not None
