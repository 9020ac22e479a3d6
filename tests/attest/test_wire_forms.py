"""The wire forms of 2.7 and the recorded evidence in them."""

import base64
import json
from datetime import UTC, datetime

import pytest

from cvars.attest import SnpEvidence, Supplied, TdxEvidence, Unreadable, read_snp, read_tdx, verify
from cvars.attest.inputs import detect
from cvars.attest.snp.hcl import parse_envelope
from cvars.attest.snp.report import SnpReport
from cvars.attest.snp.trustee import write_structured
from tests.attest.conftest import NOW, REPORT_DATA


@pytest.fixture
def folder(vectors):
    return vectors / "attestation" / "snp"


def test_the_structured_form_rebuilds_the_signed_bytes(folder, real_roots):
    evidence = json.loads((folder / "genoa-v3-kbs-json/evidence.json").read_text())
    found = read_snp(evidence)
    assert isinstance(found, SnpEvidence)
    assert found.report == (folder / "genoa-v3-kbs-json/report.bin").read_bytes()
    at = datetime.fromtimestamp(1777000000, UTC)
    assert verify(found, roots=real_roots, at=at, report_data=None).verified
    assert write_structured(found.report)["attestation_report"] == evidence["attestation_report"]


@pytest.mark.parametrize("case", ["genoa-v3-idkey", "turin-v5-idkey", "milan-v2-cloud-a", "milan-v3-vlek-vmpl1"])
def test_every_recorded_report_survives_the_structured_form(folder, case):
    report = (folder / case / "report.bin").read_bytes()
    found = read_snp(json.dumps(write_structured(report)).encode())
    assert isinstance(found, SnpEvidence), found
    assert found.report == report
    assert SnpReport.parse(report).to_bytes() == report


def test_the_proxy_form_and_base64(folder):
    report = (folder / "turin-v5-idkey/report.bin").read_bytes()
    text = base64.b64encode(report).decode()
    for form in (report, text, {"snp-report": text, "certs-buf": None}, {"snp-report": text}):
        found = read_snp(form)
        assert isinstance(found, SnpEvidence)
        assert found.report == report
    for bad in (
        {"snp-report": text, "more": 1},
        {"snp-report": text[:-1]},
        {"snp-report": 1},
        text + "=",
        "\u00e9",
    ):
        assert isinstance(read_snp(bad), Unreadable)


def test_the_hcl_envelope_binds_its_runtime_data(folder, real_roots):
    raw = (folder / "milan-v2-azure-hcl/hcl-report.bin").read_bytes()
    leaf = (Supplied("unknown", (folder / "milan-v2-azure-hcl/vcek.pem").read_bytes()),)
    at = datetime.fromtimestamp(1685654539, UTC)
    assert verify(read_snp(raw, leaf), roots=real_roots, at=at, report_data=None).verified
    envelope = parse_envelope(raw)
    assert json.loads(envelope.runtime)["keys"]
    at_json = raw.index(b'"HCLAkPub"')
    changed = raw[:at_json] + b'"HCLAkPux"' + raw[at_json + 10 :]
    assert verify(read_snp(changed, leaf), roots=real_roots, at=at, report_data=None).rule == "SNP-BIND"
    for bad in (
        raw[:100],
        raw[:4] + b"\3" + raw[5:],
        raw[:0x4C8] + b"\5" + raw[0x4C9:],
        raw[:0x4CC] + b"\2" + raw[0x4CD:],
        raw[:0x4D0] + b"\xff\xff\xff\xff" + raw[0x4D4:],
        raw + b"\1",
        b"HCLA" + bytes(20000),
    ):
        assert isinstance(read_snp(bad, leaf), Unreadable)


def test_evidence_on_the_command_line_is_detected(folder, tdx, vectors):
    quote = tdx.launch(bytes(4096)).quote(REPORT_DATA)
    report = (folder / "turin-v5-idkey/report.bin").read_bytes()
    for data, kind in (
        (report, SnpEvidence),
        (base64.b64encode(report), SnpEvidence),
        (base64.encodebytes(report), SnpEvidence),
        ((folder / "milan-v2-azure-hcl/hcl-report.bin").read_bytes(), SnpEvidence),
        ((folder / "genoa-v3-kbs-json/evidence.json").read_bytes(), SnpEvidence),
        (quote, TdxEvidence),
        (base64.b64encode(quote), TdxEvidence),
        (json.dumps({"quote": base64.b64encode(quote).decode()}).encode(), TdxEvidence),
    ):
        assert isinstance(detect(data, (), None), kind)


def test_tdx_evidence_of_current_clients(tdx, sim_roots):
    td = tdx.launch(bytes(4096))
    td.extend(1, b"kernel")
    good = td.collect(REPORT_DATA)
    assert verify(read_tdx(good), roots=sim_roots, at=NOW, report_data=REPORT_DATA).verified
    as_text = good | {"collateral": json.dumps(good["collateral"])}
    assert verify(read_tdx(as_text), roots=sim_roots, at=NOW, report_data=REPORT_DATA).verified
    without_log = good | {"cc_eventlog": None}
    assert verify(read_tdx(without_log), roots=sim_roots, at=NOW, report_data=REPORT_DATA).verified
    for bad in ({}, good | {"more": 1}, good | {"quote": 5}, good | {"cc_eventlog": "!"}, [], None, 3):
        assert isinstance(read_tdx(bad), Unreadable)
