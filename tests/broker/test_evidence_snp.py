"""SNP evidence that must not open anything, through the HTTP API (K11..K24).

What is not authentic or not bound is refused at attest (401); what a policy does not want, at the resource (403).
"""

import base64
import dataclasses
from datetime import UTC, datetime

import pytest

from cvars.attest.evidence import Supplied
from cvars.attest.simulated import Identity
from cvars.attest.snp.products import Tcb
from cvars.attest.snp.report import VCEK, VLEK
from cvars.attest.snp.rules import P384_ORDER
from cvars.attest.snp.table import write_table
from cvars.attest.snp.trustee import write_structured
from tests.broker.real import MEASUREMENT, TCB, policy_text

DIGEST = "ab" * 48


def structured(guest, supplied=None, **report):
    """Evidence of ``guest`` with changed report fields, signed."""

    def evidence(report_data):
        return write_structured(guest.report(report_data, **report), supplied or guest.supplied())

    return evidence


def changed(guest, **fields):
    return structured(guest, changed=fields)


def raw(guest, edit=lambda report: report, table=None):
    """The raw bytes in the proxy's form, edited after signing."""

    def evidence(report_data):
        return {
            "snp-report": base64.b64encode(edit(guest.report(report_data))).decode(),
            "certs-buf": base64.b64encode(guest.certificates() if table is None else table).decode(),
        }

    return evidence


def patch(offset, data):
    return lambda report: report[:offset] + data + report[offset + len(data) :]


def outcome_raw(sample, evidence):
    return sample.outcome(evidence, key="P-521", profile="C")


def test_the_evidence_of_these_tests_is_good(sample):
    assert sample.outcome(structured(sample.snp())) == (200, "")
    assert outcome_raw(sample, raw(sample.snp())) == (200, "")
    assert sample.outcome(structured(sample.snp("Turin"))) == (200, "")


def test_K11_vmpl(sample):
    guest = sample.snp()
    for vmpl in (1, 2, 3):
        assert sample.outcome(structured(guest, vmpl=vmpl)) == (403, "SNP-VMPL")
    assert sample.outcome(changed(guest, vmpl=0xFFFFFFFF))[1] == "SNP-VMPL"
    sample.put(policy_text(snp="      vmpl: [0, 2]"))
    assert sample.outcome(structured(guest, vmpl=2)) == (200, "")
    assert sample.outcome(structured(guest, vmpl=1)) == (403, "SNP-VMPL")


def test_K12_debug(sample):
    assert sample.outcome(structured(sample.snp(policy=0xB0000))) == (403, "SNP-DEBUG")


def test_K12_a_real_debug_guest(sample, vectors, monkeypatch):
    import json

    from cvars.release import reportdata

    index = json.loads((vectors / "attestation" / "vectors.json").read_text())
    case = next(c for c in index["cases"] if c["id"] == "milan-v2-debug-policy")
    folder = vectors / "attestation" / "snp"
    report = (folder / "milan-v2-debug-policy" / "report.bin").read_bytes()
    monkeypatch.setattr(reportdata, "profile_c", lambda *_: report[0x50:0x90])
    sample.clock.now = float(case["evaluate_at"])
    pems = [(folder / "certs" / f"milan-{n}.pem").read_bytes() for n in ("ark", "ask")]
    verifier = sample.broker.verifier
    monkeypatch.setattr(
        sample.broker, "verifier", dataclasses.replace(verifier, roots=verifier.roots.with_certificates(pems))
    )
    leaf = (folder / "milan-v2-debug-policy" / "vcek.der").read_bytes()
    sample.put(
        policy_text(
            domains="amd",
            any_of=f"""  - snp:
      product: [Milan]
      report_versions: [2]
      measurement_in: ["{report[0x90:0xC0].hex()}"]
      host_data_in: ["{report[0xC0:0xE0].hex()}"]
      min_tcb: {{Milan: {{bootloader: 0, tee: 0, snp: 0, microcode: 0}}}}
""",
        )
    )
    table = write_table((Supplied("VCEK", leaf),))
    evidence = {
        "snp-report": base64.b64encode(report).decode(),
        "certs-buf": base64.b64encode(table).decode(),
    }
    assert outcome_raw(sample, lambda _: evidence) == (403, "SNP-DEBUG")


def test_K13_tcb_floor(sample):
    old = sample.amd()
    old.reported = old.committed = Tcb(10, 0, 22, 84)
    guest = old.launch(measurement=bytes.fromhex(MEASUREMENT))
    guest.launch_tcb = old.reported
    assert sample.outcome(structured(guest)) == (403, "SNP-MINTCB")
    from cvars.broker.policy.load import PolicyError

    with pytest.raises(PolicyError, match="min_tcb"):  # no floor for a line that is allowed
        sample.put(policy_text().replace(TCB.splitlines()[0], ""))
    with pytest.raises(PolicyError, match="min_tcb"):
        sample.put(policy_text().replace("product: [Genoa, Milan, Turin]", "product: [Genoa]"))
    assert sample.outcome(structured(sample.snp())) == (200, "")  # the old policy is still active


def test_K14_mixed_tcb(sample):
    guest = sample.snp()
    older = Tcb(9, 0, 22, 80)
    leaf = Supplied("VCEK", guest.processor.certificate(VCEK, older))
    table = write_table((leaf, *guest.supplied()[1:]))
    assert outcome_raw(sample, raw(guest, patch(0x180, older.to_bytes()), table))[1] == "SNP-SIG"
    assert outcome_raw(sample, raw(guest, table=table))[1] in ("SNP-SIG", "SNP-TCBBIND")


def test_K15_kinds_of_keys(sample):
    amd = sample.amd()
    amd.load_vlek("a cloud")
    vlek = amd.launch(measurement=bytes.fromhex(MEASUREMENT))
    guest = sample.snp()
    known = amd.authorities
    as_vcek = (Supplied("VCEK", amd.certificate(VLEK)), Supplied("ASK", known.asvk), Supplied("ARK", known.ark))
    as_vlek = (Supplied("VLEK", amd.certificate(VCEK)), Supplied("ASK", known.ask), Supplied("ARK", known.ark))
    assert sample.outcome(structured(vlek, as_vcek))[0] == 401
    assert sample.outcome(structured(guest, as_vlek))[0] == 401
    wrong_middle = (
        Supplied("VCEK", amd.certificate(VCEK)),
        Supplied("ASK", known.asvk),
        Supplied("ARK", known.ark),
    )
    assert sample.outcome(structured(guest, wrong_middle))[0] == 401
    both = write_table((*vlek.supplied(), Supplied("VCEK", amd.certificate(VCEK))))
    assert outcome_raw(sample, raw(vlek, table=both))[0] in (401, 403)
    flags = patch(0x48, (1 << 2).to_bytes(4, "little"))
    assert outcome_raw(sample, raw(guest, flags, both))[0] == 401
    assert sample.outcome(structured(vlek)) == (403, "SNP-KEYKIND")  # genuine, not wanted


def test_K16_foreign_and_mixed_chains(sample, tmp_path):
    from cvars.attest.roots import TrustRoots
    from cvars.attest.simulated import SimulatedAmdSp
    from cvars.broker.attestation import AttestVerifier

    guest, turin = sample.snp(), sample.snp("Turin")
    stranger = SimulatedAmdSp.load_or_create(tmp_path / "foreign", product="Genoa", random=sample.random_bytes)
    foreign = stranger.launch(measurement=bytes.fromhex(MEASUREMENT))
    assert sample.outcome(structured(foreign))[0] == 401
    fake_root = (*guest.supplied()[:2], foreign.supplied()[2])
    assert sample.outcome(structured(guest, fake_root))[0] in (200, 401)  # our own ARK is at hand and pinned
    other_line = (guest.supplied()[0], *turin.supplied()[1:])
    assert sample.outcome(structured(guest, other_line))[0] in (200, 401)
    wrong_leaf = (turin.supplied()[0], *guest.supplied()[1:])
    assert sample.outcome(structured(guest, wrong_leaf))[0] == 401
    kept = sample.broker.verifier
    try:
        sample.broker.verifier = AttestVerifier(TrustRoots.production())
        status, rule = sample.outcome(structured(guest))
    finally:
        sample.broker.verifier = kept
    assert status == 401
    assert rule.startswith(("ROOT-", "SNP-CHAIN"))


def test_K17_validity(sample):
    guest = sample.snp()
    for validity in (
        (datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)),
        (datetime(2098, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)),
    ):
        leaf = guest.processor.issue_leaf(VCEK, guest.processor.reported, validity=validity)
        evidence = structured(guest, (Supplied("VCEK", leaf), *guest.supplied()[1:]))
        assert sample.outcome(evidence) == (401, "SNP-TIME")


def test_K18_revocation_lists(sample):
    guest = sample.snp()
    amd = guest.processor
    serial_of_ask = 2
    from cvars.attest.certificates import load_any

    serial_of_ask = load_any(amd.authorities.ask)[0].serial

    def with_crl(crl):
        return structured(guest, (*guest.supplied(), Supplied("CRL", crl)))

    past = datetime(2021, 1, 1, tzinfo=UTC)
    assert sample.outcome(with_crl(amd.revocation_list())) == (200, "")
    assert sample.outcome(with_crl(amd.revocation_list((serial_of_ask,))))[1] == "SNP-CRL"
    by_ask = amd.revocation_list(issuer=amd.authorities.ask_issuer)
    assert sample.outcome(with_crl(by_ask))[1] == "SNP-CRL"
    turin = sample.amd("Turin").revocation_list()
    assert sample.outcome(with_crl(turin))[1] == "SNP-CRL"
    sample.put(policy_text(snp="      crl: require"))
    assert sample.outcome(structured(guest)) == (403, "SNP-CRL")
    assert sample.outcome(with_crl(amd.revocation_list())) == (200, "")
    assert sample.outcome(with_crl(amd.revocation_list(next_update=past)))[1] == "SNP-CRL"
    assert sample.outcome(with_crl(amd.revocation_list(next_update=None)))[1] == "SNP-CRL"


def test_K19_chip_ids(sample):
    guest = sample.snp()
    assert sample.outcome(changed(guest, chip_id=bytes(64)))[1] == "SNP-HWID"
    assert sample.outcome(changed(guest, chip_id=b"SIM-" + bytes(60)))[1] == "SNP-HWID"
    turin = sample.snp("Turin")
    dirty = turin.processor.hwid[:8] + b"\1" + bytes(55)
    assert sample.outcome(changed(turin, chip_id=dirty))[1] == "SNP-HWID"
    assert sample.outcome(structured(turin)) == (200, "")


def test_K20_id_and_author_keys(sample):
    sample.put(policy_text(snp=f'      id_key_digest_in: ["{DIGEST}"]'))
    right = Identity(id_key_digest=bytes.fromhex(DIGEST))
    assert sample.outcome(structured(sample.snp(identity=right))) == (200, "")
    assert sample.outcome(structured(sample.snp())) == (403, "SNP-IDKEY")
    assert sample.outcome(structured(sample.snp(identity=Identity(id_key_digest=b"\1" * 48)))) == (
        403,
        "SNP-IDKEY",
    )
    sample.put(policy_text(snp=f'      author_key_digest_in: ["{DIGEST}"]'))
    assert sample.outcome(structured(sample.snp())) == (403, "SNP-AUTHKEY")
    unsigned = Identity(author_key_digest=bytes.fromhex(DIGEST), author_key_en=False)
    assert sample.outcome(structured(sample.snp(identity=unsigned))) == (403, "SNP-AUTHKEY")


def test_K21_migration_agents(sample):
    assert sample.outcome(changed(sample.snp(), report_id_ma=b"\1" * 32)) == (403, "SNP-MA")
    assert sample.outcome(structured(sample.snp(policy=0x70000))) == (403, "SNP-MA")


def test_K22_edges_of_the_signature(sample):
    guest = sample.snp()
    r_at, s_at = 0x2A0, 0x2E8
    order = P384_ORDER.to_bytes(48, "little")
    for offset, data in (
        (r_at, bytes(48)),
        (s_at, bytes(48)),
        (r_at, order),
        (s_at, order),
        (r_at, b"\xff" * 48),
        (r_at + 48, b"\1"),
        (s_at + 71, b"\x80"),
        (r_at, b"\x30\x65\x02\x30" + b"\1" * 44),  # DER
    ):
        assert outcome_raw(sample, raw(guest, patch(offset, data))) == (401, "SNP-SIG"), offset

    def high_s(report):
        s = int.from_bytes(report[s_at : s_at + 48], "little")
        return patch(s_at, (P384_ORDER - s).to_bytes(48, "little"))(report)

    assert outcome_raw(sample, raw(guest, high_s)) == (200, "")  # AMD's format has no low-s rule: accepted


def test_K23_sizes_and_versions(sample):
    guest = sample.snp()
    for edit in (
        patch(0x330, b"\1"),
        patch(0x49F, b"\1"),
        lambda r: r[:-1],
        lambda r: r + b"\0",
        lambda r: r.ljust(4096, b"\0"),
        patch(0, bytes(4)),
        patch(0, (1).to_bytes(4, "little")),
        patch(0, b"\xff" * 4),
    ):
        assert outcome_raw(sample, raw(guest, edit)) == (401, "SNP-FMT")
    assert outcome_raw(sample, raw(guest, patch(0, (6).to_bytes(4, "little"))))[0] == 401


def test_K24_certificate_tables(sample):
    guest = sample.snp()
    good = guest.certificates()
    entry = good[:24]
    end = bytes(24)
    for table in (
        entry[:16] + b"\xff" * 8 + end,
        entry[:16] + (8).to_bytes(4, "little") + (40).to_bytes(4, "little") + end,
        entry * 17 + end + bytes(100),
        entry[:16] + (48).to_bytes(4, "little") + bytes(4) + end,
        entry + entry + end + bytes(3000),
        entry,
        b"\1" * 16384,
        b"\1" * 16390,
    ):
        status, rule = outcome_raw(sample, raw(guest, table=table))
        assert status == 401, table[:40]
        assert rule.startswith("SNP-"), rule
