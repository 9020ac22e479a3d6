"""Simulated processor and module behave as real ones (6.2, 6.3), their certificate service as KDS and PCS."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cvars.attest import FileLibrary, SnpEvidence, TdxEvidence, read_snp, verify
from cvars.attest.library import leaf_path
from cvars.attest.remote import Fetched, RemoteLibrary, chain_url, vcek_url
from cvars.attest.simulated import LaunchRefused, SimulatedAmdSp
from cvars.attest.simulated.folder import Folder
from cvars.attest.simulated.id_block import check_blocks, make_blocks
from cvars.attest.simulated.service import CertificateService
from cvars.attest.snp.products import Tcb
from cvars.attest.snp.report import VCEK, SnpReport
from tests.attest.conftest import NOW, REPORT_DATA
from tests.attest.kit import LINES, MEASUREMENT


def test_another_tcb_is_another_key_and_certificate(amd):
    sp = amd("Genoa")
    older = replace(sp.reported, microcode=1)
    assert sp.certificate(VCEK) != sp.certificate(VCEK, older)
    first, second = sp.key(VCEK, sp.reported), sp.key(VCEK, older)
    assert first.private_numbers() != second.private_numbers()
    assert first.private_numbers() == sp.key(VCEK, sp.reported).private_numbers()


def test_a_chip_is_the_same_after_a_restart_and_another_chip_is_not(simulated_hardware, randomness):
    def load(chip="chip"):
        return SimulatedAmdSp.load_or_create(simulated_hardware, product="Genoa", random=randomness, chip=chip)

    assert load().hwid == load().hwid
    assert load().certificate(VCEK) != load("other").certificate(VCEK)
    assert load().hwid != load("other").hwid


def test_the_firmware_refuses_what_real_firmware_refuses(amd):
    sp = amd("Genoa")
    for wrong in ({"policy": 0x10000}, {"host_data": b"short"}):
        with pytest.raises(LaunchRefused):
            sp.launch(measurement=MEASUREMENT, **wrong)
    guest = sp.launch(measurement=MEASUREMENT)
    for wrong in ({"vmpl": 0, "caller_vmpl": 1}, {"vmpl": 4}, {"key": 2}):
        with pytest.raises(LaunchRefused):
            guest.report(REPORT_DATA, **wrong)
    with pytest.raises(LaunchRefused):
        guest.report(b"short")
    assert SnpReport.parse(guest.report(REPORT_DATA, 2, caller_vmpl=2)).vmpl == 2


def test_a_guest_keeps_its_report_id_and_another_launch_has_another(amd):
    sp = amd("Genoa")
    guest, other = sp.launch(measurement=MEASUREMENT), sp.launch(measurement=MEASUREMENT)
    ids = [SnpReport.parse(one.report(REPORT_DATA)).report_id for one in (guest, guest, other)]
    assert ids[0] == ids[1] != ids[2]


def test_masked_chip_keys_give_an_unsigned_report(amd, sim_roots):
    sp = amd("Genoa")
    sp.mask_chip_key = True
    guest = sp.launch(measurement=MEASUREMENT)
    report = SnpReport.parse(guest.report(REPORT_DATA))
    assert report.signing_key == 7
    assert not any(report.signature_r + report.signature_s)
    result = verify(SnpEvidence(report.raw, guest.supplied()), roots=sim_roots, at=NOW, report_data=None)
    assert result.rule == "SNP-KEYKIND"


def test_an_extended_report_says_how_many_pages_it_needs(amd):
    guest = amd("Genoa").launch(measurement=MEASUREMENT)
    assert guest.extended(REPORT_DATA, 4096) == 2
    report, table = guest.extended(REPORT_DATA, 8192)
    assert len(report) == 1184
    assert table == guest.certificates()


def test_derived_keys_depend_on_what_is_selected(amd):
    sp = amd("Genoa")
    one, two = sp.launch(measurement=MEASUREMENT), sp.launch(measurement=bytes(48))
    assert one.derived_key(0) == two.derived_key(0)
    assert one.derived_key(0b1000) != two.derived_key(0b1000)
    assert one.derived_key(0b1000) == one.derived_key(0b1000)
    assert one.derived_key(0b100000) != one.derived_key(0b100000, tcb=Tcb(0, 0, 0, 0))
    with pytest.raises(LaunchRefused):
        one.derived_key(0, svn=1)


@pytest.mark.parametrize("author", [False, True])
def test_id_blocks_are_verified_before_they_mean_anything(amd, author):
    sp = amd("Genoa")
    key = ec.derive_private_key(7, ec.SECP384R1())
    other = ec.derive_private_key(8, ec.SECP384R1()) if author else None
    block, auth = make_blocks(MEASUREMENT, policy=0x30000, id_key=key, author_key=other, guest_svn=3)
    assert (len(block), len(auth)) == (96, 4096)
    identity = check_blocks(block, auth)
    guest = sp.launch(measurement=MEASUREMENT, identity=identity)
    report = SnpReport.parse(guest.report(REPORT_DATA))
    assert (report.guest_svn, report.author_key_en) == (3, author)
    assert report.id_key_digest == identity.id_key_digest
    assert any(report.author_key_digest) == author
    with pytest.raises(LaunchRefused, match="launch digest"):
        sp.launch(measurement=bytes(48), identity=identity)
    with pytest.raises(LaunchRefused, match="policy"):
        sp.launch(measurement=MEASUREMENT, identity=identity, policy=0x20000)
    for broken in (
        (block[:-1] + b"\1", auth),
        (block, auth[:0x40] + bytes(144) + auth[0xD0:]),
        (block[:-1], auth),
        (block, b"\2" + auth[1:]),
    ):
        with pytest.raises(LaunchRefused):
            check_blocks(*broken)
    if author:
        with pytest.raises(LaunchRefused, match="ID key"):
            check_blocks(block, auth[:0x680] + bytes(144) + auth[0x710:])


def test_a_changed_rtmr_is_seen(tdx):
    td = tdx.launch(measurement=MEASUREMENT)
    before = td.quote(REPORT_DATA)
    td.extend(2, b"command line")
    assert td.quote(REPORT_DATA) != before
    assert td.rtmr[2] != bytes(48)


# --- certificates at hand, and the service -----------------------------------------------------------


@pytest.mark.parametrize("line", LINES)
def test_a_report_alone_is_verified_with_the_local_store(amd, sim_roots, line):
    sp = amd(line)
    path = sp.publish()
    assert path == leaf_path(line, sp.hwid, sp.reported)
    library = FileLibrary(sp.folder.path / "public")
    evidence = read_snp(sp.launch(measurement=MEASUREMENT).report(REPORT_DATA))
    verdict = verify(evidence, roots=sim_roots, at=NOW, report_data=REPORT_DATA, library=library)
    assert verdict.verified
    assert len(library.authorities()) >= 3
    without = verify(evidence, roots=sim_roots, at=NOW, report_data=REPORT_DATA)
    assert without.rule == "SNP-KEYKIND"


@pytest.fixture
def service(amd, tdx):
    return CertificateService({line: amd(line) for line in LINES}, tdx)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def remote(service, clock):
    def get(url, seconds):
        assert seconds > 0
        answer = service.answer("/" + url.split("/", 3)[3])
        return Fetched(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.body)

    return RemoteLibrary(get, clock)


@pytest.mark.parametrize("line", LINES)
def test_certificates_come_from_the_service_and_are_remembered(amd, service, sim_roots, line):
    sp, library = amd(line), remote(service, Clock())
    evidence = read_snp(sp.launch(measurement=MEASUREMENT).report(REPORT_DATA))
    for _ in range(2):
        verdict = verify(
            evidence, roots=sim_roots, at=NOW, report_data=REPORT_DATA, library=library, crl="require"
        )
        assert (verdict.rule, verdict.detail) == (None, "")
    assert len(service.asked) == 2  # leaf and list, once each
    assert service.asked[0] == vcek_url("", line, sp.hwid, sp.reported)
    assert len(library.snp_chain(line, VCEK)) == 2


def test_urls_have_the_shape_of_the_key_distribution_service():
    tcb = Tcb(4, 0, 24, 219)
    assert vcek_url("b", "Milan", bytes(64), tcb).endswith("?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219")
    turin = vcek_url("b", "Turin", bytes(64), replace(tcb, fmc=1))
    assert f"/{'00' * 8}?fmcSPL=01&blSPL=04" in turin
    assert chain_url("b", "Genoa", 1) == "b/vlek/v1/Genoa/cert_chain"


@pytest.mark.parametrize("outage", ["unavailable", "too-many", "garbage", "another-chip"])
def test_in_an_outage_nothing_poisoned_is_kept(amd, service, sim_roots, outage):
    sp, clock = amd("Genoa"), Clock()
    library = remote(service, clock)
    evidence = read_snp(sp.launch(measurement=MEASUREMENT).report(REPORT_DATA))

    def rule():
        return verify(evidence, roots=sim_roots, at=NOW, report_data=REPORT_DATA, library=library).rule

    service.outage = outage
    assert rule() in ("SNP-KEYKIND", "SNP-CRL")
    asked = len(service.asked)
    assert rule() in ("SNP-KEYKIND", "SNP-CRL")
    if outage == "too-many":
        assert len(service.asked) == asked  # backs off
    service.outage = "none"
    clock.now += 61
    assert rule() is None
    with_own = replace(evidence, certificates=sp.launch(measurement=MEASUREMENT).supplied())
    service.outage = "unavailable"
    assert verify(with_own, roots=sim_roots, at=NOW, report_data=REPORT_DATA, library=library).rule is None


def test_collateral_comes_from_the_service(tdx, service, sim_roots):
    quote = tdx.launch(measurement=MEASUREMENT).quote(REPORT_DATA)
    library = remote(service, Clock())
    verdict = verify(TdxEvidence(quote), roots=sim_roots, at=NOW, report_data=REPORT_DATA, library=library)
    assert (verdict.rule, verdict.detail) == (None, "")
    service.outage = "garbage"
    assert (
        verify(TdxEvidence(quote), roots=sim_roots, at=NOW, report_data=None, library=library).rule == "TDX-COLL"
    )


def test_unknown_requests_are_not_found(service):
    for target in (
        "/",
        "/vcek/v1/Rome/crl",
        "/vcek/v1/Genoa/00",
        "/vlek/v1/Genoa/" + "00" * 64,
        "/tdx/certification/v4/tcb",
    ):
        assert service.answer(target).status == 404
    sp = service.processors["Genoa"]
    base = f"/vcek/v1/Genoa/{sp.hwid.hex()}"
    for query in (
        "",
        "?blSPL=1",
        "?blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=256",
        "?blSPL=x&teeSPL=0&snpSPL=1&ucodeSPL=2",
    ):
        assert service.answer(base + query).status == 400


# --- other verifiers --------------------------------------------------------------------------------


def dcap(quote, collateral, root, at):
    dcap_qvl = pytest.importorskip("dcap_qvl")
    text = collateral if isinstance(collateral, str) else collateral.decode()
    return dcap_qvl.verify_with_root_ca(quote, dcap_qvl.QuoteCollateralV3.from_json(text), root, int(at))


@pytest.mark.parametrize(("version", "body"), [(4, None), (5, 2), (5, 3)])
def test_dcap_qvl_accepts_simulated_quotes_under_the_simulated_root_only(tdx, vectors, version, body):
    quote = tdx.launch(measurement=MEASUREMENT).quote(REPORT_DATA, version, body_type=body)
    collateral = tdx.collateral().to_json()
    assert dcap(quote, collateral, tdx.root_certificate, NOW.timestamp()).status == "UpToDate"
    intel = (vectors / "attestation/tdx/certs/intel-sgx-root-ca.der").read_bytes()
    with pytest.raises(ValueError):
        dcap(quote, collateral, intel, NOW.timestamp())


@pytest.mark.parametrize("status", ["SWHardeningNeeded", "ConfigurationNeeded", "OutOfDate"])
def test_dcap_qvl_sees_the_same_status(tdx, sim_roots, status):
    quote = tdx.launch(measurement=MEASUREMENT).quote(REPORT_DATA)
    collateral = tdx.collateral(status=status, advisories=("INTEL-SA-00001",)).to_json()
    theirs = dcap(quote, collateral, tdx.root_certificate, NOW.timestamp())
    mine = verify(TdxEvidence(quote, collateral), roots=sim_roots, at=NOW, report_data=None).claims["tdx"]["tcb"]
    assert (theirs.status, list(theirs.advisory_ids)) == (mine["status"], mine["advisories"])


def test_dcap_qvl_agrees_on_all_recorded_quotes(vectors, real_roots):
    folder = vectors / "attestation"
    intel = (folder / "tdx/certs/intel-sgx-root-ca.der").read_bytes()
    compared = 0
    for case in json.loads((folder / "vectors.json").read_text())["cases"]:
        if "collateral" not in case["files"]:
            continue
        quote, collateral = ((folder / case["files"][name]).read_bytes() for name in ("quote", "collateral"))
        try:
            theirs = dcap(quote, collateral, intel, case["evaluate_at"]).status
        except ValueError as refused:
            theirs = str(refused)
        at = NOW.fromtimestamp(case["evaluate_at"], NOW.tzinfo)
        mine = verify(TdxEvidence(quote, collateral), roots=real_roots, at=at, report_data=None)
        status = mine.claims[mine.tee]["tcb"]["status"]
        if "debug" in theirs.lower():
            assert status == "OutOfDate"  # that tool refuses debug TDs outright (3.2)
        elif status is None:
            assert "No matching TCB level" in theirs
        else:
            assert theirs == status
        compared += 1
    assert compared == 4


def test_many_may_use_a_new_folder_at_once(tmp_path):
    def first_use(n):
        barrier.wait()
        return Folder(tmp_path / str(n)).secret("secret", lambda: b"%d" % n)

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        for n in range(25):
            assert set(threads.map(first_use, [n] * 8)) == {b"%d" % n}
            assert not list((tmp_path / str(n)).glob(".*.part"))
