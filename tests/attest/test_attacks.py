"""The attack cases of key-release 7 that need no HTTP: real evidence where there is some, else simulated."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from cvars.attest import (
    SnpRequirements,
    Supplied,
    TrustRoots,
    Unreadable,
    appraise,
    load_simulated,
    read_snp,
    read_tdx,
    verify,
)
from cvars.attest.certificates import load_certificate
from cvars.attest.manifest import default_requirements
from cvars.attest.simulated import Identity, Platform, SimulatedTdx, issue
from cvars.attest.simulated.issue import Issuer
from cvars.attest.snp.report import VCEK, VLEK
from cvars.attest.snp.rules import P384_ORDER
from cvars.attest.snp.table import CERT_TABLE_ENTRY, GUIDS, read_table
from cvars.attest.tdx import eventlog
from tests.attest.conftest import NOW, REPORT_DATA
from tests.attest.kit import HOST_DATA, LINES, MEASUREMENT, Bench, put

PRODUCTION = ("amd", "intel")


@pytest.fixture
def bench(amd, simulated_hardware, randomness, sim_roots):
    def tdx_at(folder):
        return lambda: SimulatedTdx.load_or_create(folder, random=randomness, clock=NOW.timestamp)

    other = simulated_hardware.with_name("other-hardware")
    tdx_at(other)()
    roots = load_simulated(other, simulation=True, base=sim_roots)
    return Bench(amd, tdx_at(simulated_hardware), roots, tdx_at(other))


@pytest.fixture
def real(vectors, real_roots):
    """Judge a recorded case, or what a test made of it: (result, with default policy)."""
    folder = vectors / "attestation"
    cases = {case["id"]: case for case in json.loads((folder / "vectors.json").read_text())["cases"]}

    def judge(
        name, *, at=None, report=None, quote=None, leaf=None, supplied=(), roots=None, collateral=None, **want
    ):
        case = cases[name]
        files = {kind: (folder / path).read_bytes() for kind, path in case["files"].items()}
        if case["tee"] == "snp":
            leaf = files["vek"] if leaf is None else leaf
            evidence = read_snp(report or files["report"], (Supplied("unknown", leaf), *supplied))
        else:
            evidence = read_tdx(quote or files["quote"], collateral or files.get("collateral"))
        moment = at or datetime.fromtimestamp(case["evaluate_at"], UTC)
        result = verify(evidence, roots=roots or real_roots, at=moment, report_data=None)
        wanted = default_requirements(result)
        if wanted is not None and want:
            wanted = type(wanted).model_validate(wanted.model_dump(by_alias=True) | want)
        return result if wanted is None else appraise(result, wanted, trust_domains=PRODUCTION)

    judge.folder = folder
    return judge


def test_K01_evidence_for_another_nonce_is_refused(bench):
    assert bench.snp(with_={"report_data": b"\1" * 64}).verdict().rule == "SNP-BIND"
    assert bench.td(with_={"report_data": b"\1" * 64}).verdict().rule == "TDX-BIND"


def test_K05_report_data_right_in_48_bytes_and_wrong_in_the_padding_is_refused(bench):
    wanted = REPORT_DATA[:48] + bytes(16)
    assert bench.snp(with_={"report_data": wanted}).verdict().rule == "SNP-BIND"
    assert bench.td(with_={"report_data": wanted}).verdict().rule == "TDX-BIND"


@pytest.mark.parametrize("vmpl", [1, 2, 3, 0xFFFFFFFF])
def test_K11_another_vmpl_and_a_host_requested_report_are_refused(bench, vmpl):
    assert bench.snp(changed={"vmpl": vmpl}).verdict().rule == "SNP-VMPL"
    every = bench.snp(changed={"vmpl": vmpl}, want={"vmpl": [0, 1, 2, 3]}).verdict()
    assert every.accepted == (vmpl != 0xFFFFFFFF)


def test_K11_the_real_vmpl_1_report_needs_a_policy_that_says_so(real):
    assert real("milan-v3-vlek-vmpl1").rule == "SNP-VMPL"
    assert real("milan-v3-vlek-vmpl1", vmpl=[1]).accepted


def test_K12_the_real_debug_report_is_refused_even_when_the_measurement_matches(real):
    verdict = real("milan-v2-debug-policy", report_versions=[2])
    assert verdict.authentic
    assert verdict.rule == "SNP-DEBUG"
    assert {c.rule: str(c.outcome) for c in verdict.checks}["SNP-MEAS"] == "ok"


def test_K12_a_policy_that_allows_debug_is_refused_in_a_production_domain(bench):
    attempt = bench.snp(policy=0xB0000, want={"guest_policy": {"debug": True}})
    assert attempt.verdict().accepted  # simulation only
    attempt.domains = ("simulated", "amd")
    assert attempt.verdict().rule == "ROOT-2"


def test_K13_a_genuine_report_below_the_floor_is_refused_and_floors_are_per_line(real):
    high = {"bootloader": 10, "tee": 0, "snp": 24, "microcode": 84}
    turin = {"fmc": 0, "bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}
    zero = {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}
    one = {"product": ["Genoa"], "min_tcb": {"Genoa": high}}
    assert real("genoa-v3-idkey", **one).rule == "SNP-MINTCB"
    other = {"product": ["Genoa", "Milan"], "min_tcb": {"Genoa": zero, "Milan": high}}
    assert real("genoa-v3-idkey", **other).accepted
    for wrong in (
        {"product": ["Genoa", "Turin"], "min_tcb": {"Genoa": zero}},
        {"product": ["Genoa"], "min_tcb": {"Genoa": turin}},
        {"product": ["Turin"], "min_tcb": {"Turin": zero}},
        {"product": ["Genoa"], "min_tcb": {"Genoa": zero, "Turin": turin}},
    ):
        with pytest.raises(ValidationError, match="min_tcb"):
            SnpRequirements.model_validate({"measurement_in": "any"} | wrong)


def test_K14_a_reported_tcb_edited_to_match_an_older_certificate_is_refused(bench):
    sp = bench.amd("Genoa")
    older = replace(sp.reported, microcode=sp.reported.microcode - 1)
    guest = sp.launch(measurement=MEASUREMENT)
    edited = put(0x180, older.to_bytes())(guest.report(REPORT_DATA))
    leaf = Supplied("VCEK", sp.certificate(VCEK, older))
    evidence = read_snp(edited, (leaf, *guest.supplied()[1:]))
    assert verify(evidence, roots=bench.roots, at=NOW, report_data=REPORT_DATA).rule == "SNP-SIG"


def test_K14_the_same_with_the_real_genoa_report(real):
    folder = real.folder / "snp" / "genoa-v3-idkey"
    report = put(0x180, bytes((9, *bytes(5), 23, 84)))((folder / "report.bin").read_bytes())
    assert real("genoa-v3-idkey", report=report).rule == "SNP-SIG"


def test_K15_a_key_of_the_other_kind_is_refused(bench):
    sp = bench.amd("Genoa")
    sp.load_vlek("csp.invalid")
    known = sp.authorities
    vcek, vlek = sp.certificate(VCEK), sp.certificate(VLEK)
    ask, asvk, ark = Supplied("ASK", known.ask), Supplied("ASK", known.asvk), Supplied("ARK", known.ark)
    guest = sp.launch(measurement=MEASUREMENT)
    by_vcek, by_vlek = guest.report(REPORT_DATA, key=1), guest.report(REPORT_DATA, key=2)
    for report, certificates in (
        (by_vcek, (Supplied("VCEK", vlek), ask, ark)),  # a VLEK presented as VCEK
        (by_vlek, (Supplied("VLEK", vcek), asvk, ark)),  # a VCEK presented as VLEK
        (by_vcek, (Supplied("VLEK", vlek), asvk, ark)),
        (by_vlek, (Supplied("VCEK", vcek), ask, ark)),
        (by_vcek, (Supplied("VCEK", vcek), asvk, ark)),  # the ASVK in the ASK's slot
        (by_vlek, (Supplied("VLEK", vlek), ask, ark)),
    ):
        verdict = verify(read_snp(report, certificates), roots=bench.roots, at=NOW, report_data=REPORT_DATA)
        assert verdict.rule == "SNP-KEYKIND"
    both = (Supplied("VCEK", vcek), Supplied("VLEK", vlek), ark)
    for report, middle, wanted in (
        (by_vcek, ask, None),  # SIGNING_KEY chooses (2.5)
        (by_vlek, asvk, None),
        (put(0x48, b"\x1c\0\0\0")(by_vcek), ask, "SNP-KEYKIND"),  # SIGNING_KEY names neither
        (put(0x48, b"\x04\0\0\0")(by_vcek), ask, "SNP-KEYKIND"),  # it names the VLEK, the chain is the VCEK's
    ):
        verdict = verify(read_snp(report, (*both, middle)), roots=bench.roots, at=NOW, report_data=REPORT_DATA)
        assert verdict.rule == wanted


def test_K16_foreign_roots_and_crossed_lines_are_refused(bench, real, real_roots):
    other = load_simulated(tmp_path_installation(bench), simulation=True)
    attempt = bench.snp("Genoa", roots=other)
    assert attempt.verdict().rule == "SNP-CHAIN"  # a full chain of another installation
    attempt = bench.snp("Genoa", roots=real_roots)
    assert attempt.verdict().rule == "ROOT-4"  # simulated root in production
    for line in LINES:  # AMD's names, no marks, a full chain of one's own (6.4, 4)
        assert amd_lookalike(bench, line, real_roots).rule == "SNP-CHAIN"
    genoa_ask = (real.folder / "snp/certs/genoa-ask.pem").read_bytes()
    verdict = real("milan-v2-cloud-a", supplied=(Supplied("ASK", genoa_ask),))
    assert verdict.rule in ("ROOT-5", "SNP-CHAIN")
    assert not verdict.authentic
    fake_ark = fake_ark_over_a_genuine_ask(bench, real)
    missing = TrustRoots.production()
    assert real("milan-v2-cloud-a", supplied=fake_ark, roots=missing).rule == "SNP-CHAIN"


def tmp_path_installation(bench):
    """Public files of an installation that did not make the evidence."""
    return bench.other_tdx().folder.path


def amd_lookalike(bench, line, roots):
    sp = bench.amd(line)
    keys = sp.authorities
    organization = "Advanced Micro Devices"
    ark = Issuer(issue.name(f"ARK-{line}", organization, "Engineering"), keys.ark_issuer.key)
    ask = Issuer(issue.name(f"SEV-{line}", organization, "Engineering"), keys.ask_issuer.key)
    made = {
        "ARK": issue.certificate(
            ark, ark.name, issue.spki(ark.key), issue.ca_extensions(), serial=0x10000, marked=False
        ),
        "ASK": issue.certificate(
            ark, ask.name, issue.spki(ask.key), issue.ca_extensions(), serial=0x10001, marked=False
        ),
        "VCEK": sp.issue_leaf(
            VCEK,
            sp.reported,
            issuer=ask,
            subject=issue.name("SEV-VCEK", organization, "Engineering"),
            marked=False,
            extensions=[
                *(v for k, v in sp.leaf_extensions(VCEK, sp.reported).items() if not k.endswith("3704.1.4")),
                issue.extension("1.3.6.1.4.1.3704.1.4", b"\7" * (8 if line == "Turin" else 64)),
            ],
        ),
    }
    chip = (b"\7" * 8).ljust(64, b"\0") if line == "Turin" else b"\7" * 64
    report = sp.launch(measurement=MEASUREMENT).report(REPORT_DATA, changed={"chip_id": chip})
    evidence = read_snp(report, tuple(Supplied(role, data) for role, data in made.items()))
    return verify(evidence, roots=roots, at=NOW, report_data=REPORT_DATA)


def fake_ark_over_a_genuine_ask(bench, real):
    """An ARK with AMD's name and another key above the genuine ASK."""
    genuine = load_certificate(
        issue_der((real.folder / "snp/certs/milan-ark.pem").read_bytes()),
    )
    key = bench.amd("Milan").authorities.ark_issuer.key
    ark = issue.certificate(
        Issuer(genuine.subject, key), genuine.subject, issue.spki(key), issue.ca_extensions(), marked=False
    )
    ask = (real.folder / "snp/certs/milan-ask.pem").read_bytes()
    return Supplied("ASK", ask), Supplied("ARK", ark)


def issue_der(pem: bytes) -> bytes:
    from cvars.attest.certificates import read_pem

    return read_pem(pem)[0]


def test_K17_an_expired_and_a_not_yet_valid_leaf_are_refused(real):
    assert real("milan-v3-vlek-vmpl1", at=datetime(2025, 12, 11, tzinfo=UTC), vmpl=[1]).rule == "SNP-TIME"
    assert real("milan-v3-vlek-vmpl1", at=datetime(2024, 12, 10, tzinfo=UTC), vmpl=[1]).rule == "SNP-TIME"


def test_K18_revocation_lists(bench):
    """Each refusal is a case of the matrix; here the modes, and that serial 0 names all leaves."""
    expired = {"crl": lambda sp: sp.revocation_list(next_update=NOW)}
    for mode in ("require", "if-present"):
        assert bench.snp(**expired, with_={"verify_options": {"crl": mode}}).verdict().rule == "SNP-CRL"
    assert bench.snp(**expired, with_={"verify_options": {"crl": "ignore"}}).verdict().accepted
    assert bench.snp(with_={"verify_options": {"crl": "require"}}).verdict().rule == "SNP-CRL"
    zero = bench.snp(crl=lambda sp: sp.revocation_list((0,)), leaf={"serial": 0})
    assert zero.verdict().rule == "SNP-CRL"
    assert bench.snp(crl=lambda sp: sp.revocation_list((0,))).verdict().accepted


def test_K19_a_masked_or_foreign_chip_id_is_refused_and_turin_has_8_bytes(bench, real):
    for line in LINES:
        assert bench.snp(line, changed={"chip_id": bytes(64)}).verdict().rule == "SNP-HWID"
        hwid = bench.amd(line).hwid
        assert bench.snp(line, changed={"chip_id": hwid[:7] + b"\0" + hwid[8:]}).verdict().rule == "SNP-HWID"
    assert real("turin-v5-idkey").accepted
    other = (real.folder / "snp/genoa-v3-kbs-json/vcek.der").read_bytes()
    assert real("genoa-v3-idkey", leaf=other).rule == "SNP-SIG"  # another machine's VCEK is another key
    assert (
        real("turin-v5-idkey", leaf=(real.folder / "snp/turin-vcek-only/vcek.der").read_bytes()).rule == "SNP-SIG"
    )


def test_K20_id_and_author_keys(bench, real):
    assert real("genoa-v3-idkey", id_key_digest_in=["11" * 48]).rule == "SNP-IDKEY"
    required = {"author_key_digest_in": ["11" * 48]}
    assert bench.snp(want=required).verdict().rule == "SNP-AUTHKEY"
    present = Identity(author_key_digest=b"\x11" * 48, author_key_en=True)
    assert bench.snp(want=required, identity=present).verdict().accepted
    without_enable = replace(present, author_key_en=False)
    assert bench.snp(want=required, identity=without_enable).verdict().rule == "SNP-AUTHKEY"
    assert bench.snp(want={"author_key_digest_in": "any"}, identity=without_enable).verdict().rule == "SNP-AUTHKEY"


def test_K21_a_report_with_a_migration_agent_is_refused_by_default(bench):
    migrated = {"changed": {"report_id_ma": b"\1" * 32}, "policy": 0x70000}
    assert bench.snp(**migrated).verdict().rule == "SNP-MA"
    assert bench.snp(**migrated, want={"guest_policy": {"migrate_ma": "any"}}).verdict().accepted


def test_K22_signature_edge_cases(bench):
    sp = bench.amd("Genoa")
    report = sp.launch(measurement=MEASUREMENT, host_data=HOST_DATA).report(REPORT_DATA)
    r = int.from_bytes(report[0x2A0:0x2E8], "little")
    s = int.from_bytes(report[0x2E8:0x330], "little")

    def signed(r, s):
        return put(0x2A0, r.to_bytes(72, "little") + s.to_bytes(72, "little"))(report)

    def rule(raw):
        evidence = read_snp(raw, sp.launch(measurement=MEASUREMENT).supplied())
        return verify(evidence, roots=bench.roots, at=NOW, report_data=REPORT_DATA).rule

    assert rule(signed(r, s)) is None
    assert rule(signed(r, P384_ORDER - s)) is None  # high s: AMD's format has no low-s rule
    for wrong in (
        (0, s),
        (r, 0),
        (0, 0),
        (P384_ORDER, s),
        (r, P384_ORDER),
        (r + P384_ORDER, s),
        (r, s + P384_ORDER),
    ):
        assert rule(signed(*wrong)) == "SNP-SIG"
    for wrong in ((r | 1 << 384, s), (r, s | 1 << 575)):
        assert rule(signed(*wrong)) == "SNP-SIG"
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    smuggled = encode_dss_signature(r, s).ljust(144, b"\0")
    assert rule(put(0x2A0, smuggled)(report)) == "SNP-SIG"


@pytest.mark.parametrize("size", [0, 1, 1183, 1185, 4096])
def test_K23_reports_of_other_sizes_are_refused(bench, size):
    raw = (bench.amd("Genoa").launch(measurement=MEASUREMENT).report(REPORT_DATA) * 4)[:size]
    assert verify(read_snp(raw), roots=bench.roots, at=NOW, report_data=None).rule == "SNP-FMT"


@pytest.mark.parametrize("version", [0, 1, 6, 0xFFFFFFFF])
def test_K23_unknown_versions_are_refused_unless_the_policy_lists_them(bench, version):
    attempt = bench.snp(changed={"version": version})
    assert attempt.verdict().rule == "SNP-FMT"
    if version == 6:
        attempt.verify_options = {"extra_versions": (6,)}
        assert attempt.verdict().rule == "SNP-FMT"  # the policy does not list it
        attempt.requirements["report_versions"] = [6]
        assert attempt.verdict().accepted
    if version == 1:
        attempt.verify_options = {"extra_versions": (1,)}
        assert attempt.verdict().rule == "SNP-FMT"


@pytest.mark.parametrize("at", [0x330, 0x400, 0x49F])
def test_K23_bytes_behind_the_signature_are_refused(bench, at):
    assert bench.broken_snp(put(at, b"\1")).verdict().rule == "SNP-FMT"


def table_entry(guid, offset, length):
    return CERT_TABLE_ENTRY.build({"guid": guid.bytes_le, "offset": offset, "length": length})


def test_K24_certificate_tables(bench):
    ask, vcek = (guid for guid, role in GUIDS.items() if role in ("VCEK", "ASK"))
    end, first = bytes(24), table_entry
    good = first(ask, 72, 4) + first(vcek, 76, 4) + end + b"AAAABBBB"
    assert [one.role for one in read_table(good)] == ["ASK", "VCEK"]
    assert read_table(end) == ()
    for bad in (
        first(vcek, 0xFFFFFFF0, 0x20) + end,  # offset + length overflows 32 bits
        first(vcek, 48, 5) + end + b"AAAA",
        first(vcek, 0, 4) + end + b"AAAA",  # in the header
        first(vcek, 24, 4) + end + b"AAAA",
        first(ask, 72, 4) + first(vcek, 74, 4) + end + b"AAAABBBB",  # overlapping
        first(vcek, 48, 0) + end + b"AAAA",  # empty certificate
        first(vcek, 72, 4) + first(vcek, 76, 4) + end + b"AAAABBBB",  # twice
        first(vcek, 24, 4) + b"AAAA",  # no end
        b"",
        first(vcek, 72, 4) + bytes(16) + b"\1" + bytes(7) + b"AAAA",  # end with an offset
        b"".join(first(vcek, 0, 0) for _ in range(17)) + end,
    ):
        assert isinstance(from_table(bad), Unreadable), bad
    started = time.process_time()
    million = first(vcek, 72, 4) * 1_000_000
    assert isinstance(from_table(million), Unreadable)
    assert time.process_time() - started < 0.5


def from_table(table: bytes):
    import base64

    text = base64.b64encode(table).decode()
    found = read_snp({"snp-report": base64.b64encode(bytes(1184)).decode(), "certs-buf": text})
    if isinstance(found, Unreadable):
        assert found.rule == "SNP-FMT"
    return found


def test_K25_another_qe_report_another_key_other_auth_data(real):
    folder = real.folder / "tdx"
    mine = bytearray((folder / "v4-b0c06f-uptodate/quote.bin").read_bytes())
    theirs = (folder / "v4-50806f-debug-td/quote.bin").read_bytes()
    qe, key, auth = 770, 700, 770 + 384 + 64 + 2
    swapped = bytes(mine[:qe]) + theirs[qe : qe + 448] + bytes(mine[qe + 448 :])
    assert real("v4-b0c06f-uptodate", quote=swapped).rule == "TDX-QESIG"
    swapped = bytes(mine[:key]) + theirs[key : key + 64] + bytes(mine[key + 64 :])
    assert real("v4-b0c06f-uptodate", quote=swapped).rule == "TDX-QEHASH"
    mine[auth] ^= 1
    assert real("v4-b0c06f-uptodate", quote=bytes(mine)).rule == "TDX-QEHASH"


def test_K26_qe_identity(bench):
    for change in ({"mr_signer": bytes(32)}, {"attributes": bytes((0x13, *bytes(15)))}):
        assert bench.td(quote={"qe": change}).verdict().rule == "TDX-QEID"
    assert bench.td(platform=Platform(qe_isv_svn=1)).verdict().rule == "TDX-QEID"


@pytest.mark.parametrize(
    ("collateral", "status"),
    [
        ({"status": "OutOfDate"}, "OutOfDate"),
        ({"module_status": "OutOfDate"}, "OutOfDate"),
        ({"status": "SWHardeningNeeded"}, "SWHardeningNeeded"),
        ({"status": "SWHardeningNeeded", "module_status": "OutOfDate"}, "OutOfDate"),
        ({"status": "OutOfDate", "module_status": "UpToDate"}, "OutOfDate"),
        ({"status": "Revoked"}, "Revoked"),
        ({"module_status": "Revoked"}, "Revoked"),
    ],
)
def test_K27_statuses_against_policies_that_do_and_do_not_list_them(bench, collateral, status):
    attempt = bench.td(collateral=collateral)
    verdict = attempt.verdict()
    assert verdict.claims["tdx"]["tcb"]["status"] == status
    assert verdict.rule == "TDX-STATUS"
    attempt.requirements["tcb_status"] = ["UpToDate", "SWHardeningNeeded", "OutOfDate"]
    assert attempt.verdict().accepted == (status != "Revoked")
    with pytest.raises(ValidationError):
        bench.td(want={"tcb_status": ["Revoked"]}).verdict()


def test_K27_grace_period_counts_from_the_date_of_the_level(bench):
    attempt = bench.td(collateral={"status": "OutOfDate"}, want={"grace_days": 300})  # level of 2025-08-13
    assert attempt.verdict().accepted
    attempt.requirements["grace_days"] = 292
    assert attempt.verdict().rule == "TDX-STATUS"
    revoked = bench.td(collateral={"status": "Revoked"}, want={"grace_days": 3000})
    assert revoked.verdict().rule == "TDX-STATUS"


def test_K28_no_tcb_level_is_unsupported_and_not_out_of_date(real):
    verdict = real("v5-90c06f-no-tcb-level", tcb_status=["UpToDate", "OutOfDate"])
    assert (verdict.rule, verdict.authentic) == ("TDX-TCB", True)
    assert "not supported" in verdict.detail


def test_K29_collateral(real, bench):
    """Each kind of bad collateral is a case of the matrix; here real collateral out of its time, and mixed up."""
    name = "v4-b0c06f-uptodate"
    assert real(name, at=datetime(2025, 6, 19, 10, 32, 27, tzinfo=UTC)).accepted
    assert real(name, at=datetime(2025, 6, 19, 10, 32, 26, tzinfo=UTC)).rule in ("TDX-COLLTIME", "TDX-CRL")
    assert real(name, at=datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)).rule in ("TDX-COLLTIME", "TDX-CRL")
    folder = real.folder / "tdx"
    own = json.loads((folder / name / "collateral.json").read_text())
    sgx = json.loads((folder / "sgx-v3-00a06711-confswhardening/collateral.json").read_text())
    mixed = own | {name: sgx[name] for name in ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain")}
    assert real(name, collateral=json.dumps(mixed).encode()).rule == "TDX-FMSPC"
    text = json.dumps(json.loads(own["tcb_info"]))  # the same value in other bytes
    assert real(name, collateral=json.dumps(own | {"tcb_info": text}).encode()).rule == "TDX-COLL"
    for member in own:
        verdict = real(name, collateral=json.dumps({k: v for k, v in own.items() if k != member}).encode())
        assert verdict.rule == ("TDX-CRL" if member.endswith("_crl") else "TDX-COLL"), member


def test_K30_the_real_debug_td_is_refused_even_when_the_policy_lists_out_of_date(real):
    verdict = real("v4-50806f-debug-td", tcb_status=["UpToDate", "OutOfDate"])
    assert (verdict.rule, verdict.authentic) == ("TDX-ATTR", True)


def test_K31_lengths_and_nesting(real, bench):
    base = (real.folder / "tdx/v4-b0c06f-uptodate/quote.bin").read_bytes()
    size = int.from_bytes(base[632:636], "little")
    fields = {
        "signature data length": (632, 4, (0, 1, size - 1, size + 1, 0xFFFFFFFF)),
        "certification type": (764, 2, (0, 5, 7)),
        "certification size": (766, 4, (0, size, 0xFFFFFFFF)),
        "auth data length": (770 + 384 + 64, 2, (0, 31, 33, 0xFFFF)),
    }
    for what, (at, width, values) in fields.items():
        for value in values:
            raw = put(at, value.to_bytes(width, "little"))(base)
            assert real("v4-b0c06f-uptodate", quote=raw).rule in ("TDX-FMT", "TDX-PCK"), (what, value)
    inner = 770 + 384 + 64 + 2 + 32
    nested = put(inner, (6).to_bytes(2, "little"))(base)  # a type 6 inside a type 6
    assert real("v4-b0c06f-uptodate", quote=nested).rule == "TDX-FMT"
    assert real("v4-b0c06f-uptodate", quote=base[:-1] + b"\1").rule == "TDX-FMT"
    assert real("v4-b0c06f-uptodate", quote=base + bytes(16 * 1024)).rule == "TDX-FMT"
    for length in range(0, len(base) - 60, 97):
        assert real("v4-b0c06f-uptodate", quote=base[: length or 1]).rule == "TDX-FMT"
    assert real("sgx-v3-00a06711-confswhardening").rule == "TDX-HDR"


def test_K32_event_logs(bench):
    assert bench.td(events=True).verdict().accepted
    assert bench.td(events=True, log=eventlog.write([])).verdict().rule == "TDX-RTMR"
    good = [eventlog.Event(2, 0x0D, b"\1" * 48, b"kernel")]
    assert bench.td(events=True, log=eventlog.write(good)).verdict().rule == "TDX-RTMR"
    big = bench.td(log=eventlog.write([]) + b"\xff" * (300 * 1024)).verdict()
    assert big.rule == "TDX-RTMR"


def test_K16_a_simulated_chain_without_its_marks_fails_on_the_pin(tdx, real_roots):
    """6.4, 4: Intel's names, marks stripped, everything else right."""
    organization = "Intel Corporation"
    root = Issuer(issue.name("Intel SGX Root CA", organization, "x"), tdx.root.key)
    ca = Issuer(issue.name("Intel SGX PCK Platform CA", organization, "x"), tdx.authority.key)
    tdx.root_certificate = issue.certificate(
        root, root.name, issue.spki(root.key), issue.ca_extensions(), marked=False
    )
    tdx.authority_certificate = issue.certificate(
        root, ca.name, issue.spki(ca.key), issue.ca_extensions(), marked=False
    )
    pck = tdx.pck(issuer=ca, subject=issue.name("Intel SGX PCK Certificate", organization, "x"), marked=False)
    quote = tdx.launch(measurement=MEASUREMENT).quote(REPORT_DATA, pck=pck)
    verdict = verify(read_tdx(quote), roots=real_roots, at=NOW + timedelta(1), report_data=None)
    assert verdict.rule == "ROOT-4"  # by the FMSPC
    tdx_unmarked = quote.replace(b"SIM-", b"AAAA")
    assert not verify(read_tdx(tdx_unmarked), roots=real_roots, at=NOW, report_data=None).authentic
