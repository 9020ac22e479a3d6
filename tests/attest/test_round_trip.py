"""Simulated evidence goes through the verifier of real evidence, byte for byte in the real formats (6.4)."""

import pytest

from cvars.attest import TrustRoots, read_snp, read_tdx, verify
from cvars.attest.snp.report import SnpReport
from cvars.attest.tdx.quote import TdReport, parse_quote
from tests.attest.conftest import NOW, REPORT_DATA

LINES = ("Milan", "Genoa", "Turin")


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("vlek", [False, True])
def test_a_simulated_report_is_authentic_under_its_root_only(amd, sim_roots, line, version, vlek):
    sp = amd(line)
    if vlek:
        sp.load_vlek("csp.invalid")
    if line == "Turin" and version == 2 and vlek:
        pytest.skip("version 2 with a masked chip id cannot be told (SNP-PROD)")
    guest = sp.launch(bytes(8192))
    evidence = read_snp(guest.report(REPORT_DATA, version=version), guest.supplied())
    result = verify(evidence, roots=sim_roots, at=NOW, report_data=REPORT_DATA)
    assert (result.rule, result.detail) == (None, "")
    assert result.verified
    assert result.bound
    assert not result.accepted  # nobody appraised it
    assert result.trust_domain == "simulated"
    assert result.claims["snp"]["product"] == line
    assert SnpReport.parse(evidence.report).to_bytes() == evidence.report
    refused = verify(evidence, roots=TrustRoots.production(), at=NOW, report_data=REPORT_DATA)
    assert refused.rule == "ROOT-4"
    assert not refused.authentic


@pytest.mark.parametrize("form", ["structured", "table"])
def test_wire_forms_of_a_simulated_guest(amd, sim_roots, form):
    guest = amd("Turin").launch(bytes(4096))
    if form == "structured":
        evidence = read_snp(guest.collect(REPORT_DATA))
    else:
        import base64

        b64 = lambda data: base64.b64encode(data).decode()  # noqa: E731
        evidence = read_snp({"snp-report": b64(guest.report(REPORT_DATA)), "certs-buf": b64(guest.certificates())})
    assert verify(evidence, roots=sim_roots, at=NOW, report_data=REPORT_DATA).verified


@pytest.mark.parametrize(("version", "body"), [(4, None), (5, 2), (5, 3)])
def test_a_simulated_quote_is_authentic_under_its_root_only(tdx, sim_roots, version, body):
    td = tdx.launch(bytes(4096))
    quote = td.quote(REPORT_DATA, version, body_type=body)
    evidence = read_tdx(quote, td.collateral())
    result = verify(evidence, roots=sim_roots, at=NOW, report_data=REPORT_DATA)
    assert (result.rule, result.detail) == (None, "")
    assert result.verified
    assert result.trust_domain == "simulated"
    assert result.claims["tdx"]["tcb"]["status"] == "UpToDate"
    parsed = parse_quote(quote).body
    assert isinstance(parsed, TdReport)
    assert parsed.to_bytes() in quote
    assert verify(evidence, roots=TrustRoots.production(), at=NOW, report_data=REPORT_DATA).rule == "ROOT-4"
