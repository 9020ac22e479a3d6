"""Truncated, oversized, wrong type, nested, huge: a rejected result with its rule, in bounded time."""

import base64
import contextlib
import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvars.attest import (
    Supplied,
    TdxEvidence,
    TrustRoots,
    Unreadable,
    der,
    read_snp,
    read_tdx,
    strict_json,
    verify,
)
from cvars.attest.certificates import load_any, load_certificate, load_crl, read_pem
from cvars.attest.der import DerError
from cvars.attest.evidence import FormError, SnpEvidence
from cvars.attest.measure.igvm import measure_igvm
from cvars.attest.measure.ovmf import ImageError, read_flash
from cvars.attest.measure.tdvf import measure_tdvf
from cvars.attest.result import VerifiedEvidence
from cvars.attest.snp.hcl import parse_envelope
from cvars.attest.snp.report import ATTESTATION_REPORT, SnpReport, build_report
from cvars.attest.snp.table import read_table, write_table
from cvars.attest.strict_json import JsonError
from cvars.attest.tdx import eventlog
from cvars.attest.tdx.collateral import Collateral
from cvars.attest.tdx.quote import QUOTE_HEADER, SGX_REPORT, TD_REPORT, TD_REPORT_15_TAIL, QuoteError, parse_quote
from cvars.attest.tdx.tcb import parse_qe_identity, parse_tcb_info
from tests.attest.conftest import NOW, REPORT_DATA

NOBODY = TrustRoots.production()
PARSERS = [
    (der.read, DerError),
    (load_certificate, DerError),
    (load_crl, DerError),
    (load_any, DerError),
    (read_pem, DerError),
    (read_table, FormError),
    (parse_envelope, FormError),
    (parse_quote, QuoteError),
    (parse_tcb_info, JsonError),
    (parse_qe_identity, JsonError),
    (Collateral.parse, JsonError),
    (strict_json.loads, JsonError),
    (eventlog.parse, eventlog.EventLogError),
    (measure_igvm, ImageError),
    (measure_tdvf, ImageError),
    (read_flash, ImageError),
]


@pytest.mark.parametrize(
    ("parser", "error"), PARSERS, ids=[getattr(p, "__qualname__", str(p)) for p, _ in PARSERS]
)
@given(data=st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(parser, error, data):
    for one in (data, b"\x30\x82" + data, b"{" + data, b"HCLA" + data, b"IGVM" + data):
        with contextlib.suppress(error):
            parser(one)


@given(data=st.binary(max_size=2000))
def test_any_bytes_as_evidence_are_a_rejected_result(data):
    for evidence in (read_snp(data), read_tdx(data), read_tdx(data, data), TdxEvidence(data, data, data)):
        result = verify(evidence, roots=NOBODY, at=NOW, report_data=None)
        assert not result.authentic
        assert result.rule in ("SNP-FMT", "TDX-FMT", "TDX-HDR")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40)
@given(value=json_values)
def test_any_json_as_evidence_is_a_rejected_result(value):
    for reader in (read_snp, read_tdx):
        for one in (
            value,
            {"attestation_report": value, "cert_chain": value},
            {"quote": value, "collateral": value},
        ):
            if isinstance(one, bytes):
                continue
            assert not verify(reader(one), roots=NOBODY, at=NOW, report_data=None).authentic


@given(
    name=st.sampled_from(["version", "policy", "vmpl", "report_data", "current_tcb", "signature"]),
    value=json_values,
)
def test_a_member_of_another_type_or_range_is_refused(name, value):
    from cvars.attest.snp.trustee import write_structured

    good = write_structured(build_report(version=3, cpuid_family=0x19, cpuid_model=0x11))
    assert isinstance(read_snp(good), SnpEvidence)
    good["attestation_report"][name] = value
    found = read_snp(good)
    assert isinstance(found, Unreadable) or name in ("version", "policy", "vmpl")


@pytest.mark.parametrize(
    "change", ["missing", "extra", "short", "long", "negative", "huge", "true", "fmc", "twice"]
)
def test_the_structured_form_is_strict(change):
    from cvars.attest.snp.trustee import write_structured

    value = write_structured(build_report(version=3, cpuid_family=0x19), (Supplied("VCEK", b"x"),))
    report = value["attestation_report"]
    match change:
        case "missing":
            del report["host_data"]
        case "extra":
            report["more"] = 1
        case "short":
            report["host_data"].pop()
        case "long":
            report["host_data"].append(0)
        case "negative":
            report["host_data"][0] = -1
        case "huge":
            report["policy"] = 1 << 64
        case "true":
            report["vmpl"] = True
        case "fmc":
            report["current_tcb"]["fmc"] = 1
        case "twice":
            value["cert_chain"] *= 2
    assert isinstance(read_snp(value), Unreadable)


def test_json_limits():
    for text in (
        "[" * 17 + "]" * 17,
        "[" * 100_000,
        '{"a":1,"a":2}',
        '{"a":NaN}',
        '{"a":-Infinity}',
        '{"a":18446744073709551616}',
        '{"a":-9223372036854775809}',
        "9" * 5000,
        '"\\ud800"',
        b"\xff",
        "{" + ",".join(f'"{n}":0' for n in range(4097)) + "}",
        '{"a":"\\\\","b":' + "[" * 17 + "]" * 17 + "}",
        " " * (512 * 1024 + 1),
    ):
        with pytest.raises(JsonError):
            strict_json.loads(text)
    for text in (
        "[" * 16 + "]" * 16,
        '{"a":18446744073709551615}',
        '["[[[[[[[[[[[[[[[[[[[[[["]',
        '["\\"[[[[[[[[[[[[[[[[[["]',
    ):
        assert strict_json.loads(text) is not None


def test_a_million_certificates_cost_nothing():
    one = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    started = time.process_time()
    with pytest.raises(DerError):
        read_pem(one * 1_000_000)
    many = tuple(Supplied("unknown", one) for _ in range(100_000))
    result = verify(SnpEvidence(build_report(version=3), many), roots=NOBODY, at=NOW, report_data=None)
    assert not result.authentic
    chain = [{"cert_type": "VCEK", "data": [0]}] * 100_000
    assert isinstance(read_snp({"attestation_report": {}, "cert_chain": chain}), Unreadable)
    assert time.process_time() - started < 2


def test_limits_of_evidence(tdx):
    big = base64.b64encode(bytes(17 * 1024)).decode()
    assert isinstance(read_tdx(big), Unreadable)
    assert isinstance(read_tdx({"quote": big}), Unreadable)
    assert isinstance(read_snp({"snp-report": big}), Unreadable)
    quote = tdx.launch(bytes(4096)).quote(REPORT_DATA)
    log = base64.b64encode(bytes(300 * 1024)).decode()
    assert isinstance(read_tdx({"quote": base64.b64encode(quote).decode(), "cc_eventlog": log}), Unreadable)
    huge = verify(read_tdx(quote, b" " * (300 * 1024)), roots=NOBODY, at=NOW, report_data=None)
    assert not huge.accepted


@pytest.mark.rule("ROOT-1")
def test_nobody_but_the_verifier_makes_a_verified_result():
    with pytest.raises(TypeError):
        VerifiedEvidence(tee="snp", trust_domain="amd", claims={}, checks=(), made_by=object())


def test_the_layouts_have_the_specified_sizes_and_the_fast_ones_agree(rng):
    assert ATTESTATION_REPORT.sizeof() == 1184
    assert (QUOTE_HEADER.sizeof(), TD_REPORT.sizeof(), SGX_REPORT.sizeof()) == (48, 584, 384)
    assert TD_REPORT.sizeof() + TD_REPORT_15_TAIL.sizeof() == 648
    for _ in range(20):
        raw = rng.randbytes(1184)
        slow, fast = ATTESTATION_REPORT.parse(raw), SnpReport.parse(raw)
        assert all(getattr(fast, field.name) == slow[field.name] for field in ATTESTATION_REPORT.subcons)
        assert fast.to_bytes() == raw
    for wrong in ({"chip_id": bytes(63)}, {"chipid": bytes(64)}):
        with pytest.raises(ValueError, match=r"not a report's chip_?id"):
            build_report(**wrong)


def test_the_fast_layouts_of_a_quote_agree_with_the_declared_ones(tdx):
    for version, body in ((4, None), (5, 2), (5, 3)):
        raw = tdx.launch(bytes(4096)).quote(REPORT_DATA, version, body_type=body, header={"user_data": b"u" * 20})
        quote, header = parse_quote(raw), QUOTE_HEADER.parse(raw[:48])
        assert all(getattr(quote, field.name) == header[field.name] for field in QUOTE_HEADER.subcons)
        at = 48 if version == 4 else 54
        declared = TD_REPORT.parse(raw[at : at + 584])
        for field in TD_REPORT.subcons:
            mine = getattr(quote.body, field.name)
            assert (list(mine) if field.name == "rtmr" else mine) == declared[field.name]
        enclave = SGX_REPORT.parse(quote.qe_report_raw)
        for name in ("cpu_svn", "misc_select", "attributes", "mr_enclave", "mr_signer", "isv_prod_id", "isv_svn"):
            assert getattr(quote.qe_report, name) == enclave[name]


def test_the_strict_reader_agrees_with_cryptography_on_real_certificates(vectors):
    import warnings

    from cryptography import x509

    folder = vectors / "attestation"
    seen = 0
    for file in sorted([*folder.rglob("*.pem"), *folder.rglob("*vcek*.der"), *folder.rglob("*vlek.der")]):
        for mine in load_any(file.read_bytes()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # serial number 0
                try:
                    theirs = x509.load_der_x509_certificate(mine.der)
                except ValueError:
                    continue  # a release that refuses serial 0: that is what the strict reader is for
                assert theirs.serial_number == mine.serial
                assert theirs.not_valid_before_utc == mine.not_before
                assert theirs.not_valid_after_utc == mine.not_after
                assert theirs.tbs_certificate_bytes == mine.tbs
                assert theirs.signature == mine.signature
                assert theirs.issuer.public_bytes() == mine.issuer
                assert theirs.subject.public_bytes() == mine.subject
                assert {e.oid.dotted_string for e in theirs.extensions} == mine.extensions.keys()
            seen += 1
    assert seen >= 15
    for file in sorted(folder.rglob("*crl*.der")):
        mine, theirs = load_crl(file.read_bytes()), x509.load_der_x509_crl(file.read_bytes())
        assert {entry.serial_number for entry in theirs} == mine.revoked
        assert theirs.next_update_utc == mine.next_update
        assert theirs.tbs_certlist_bytes == mine.tbs


@pytest.mark.parametrize(
    "bad",
    [
        b"\x02\x02\x00\x01",  # not minimal
        b"\x02\x00",
        b"\x02\x02\xff\xff",
    ],
)
def test_integers_are_minimal(bad):
    with pytest.raises(DerError):
        der.integer(der.read(bad))


@pytest.mark.parametrize(
    "bad", [b"\x30\x80\x00\x00", b"\x30\x81\x05" + bytes(5), b"\x30\x82\x00\x85" + bytes(0x85)]
)
def test_lengths_are_definite_and_minimal(bad):
    with pytest.raises(DerError):
        der.read(bad)


@given(numbers=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=6), first=st.integers(0, 2))
def test_object_identifiers_round_trip(numbers, first):
    if first < 2:
        numbers[0] %= 40
    dotted = ".".join(map(str, (first, *numbers)))
    assert der.oid(der.read(der.write_oid(dotted))) == dotted


@given(value=st.integers(-(1 << 100), 1 << 100))
def test_integers_round_trip(value):
    assert der.integer(der.read(der.write_integer(value))) == value


def test_times():
    assert der.time(der.read(b"\x17\x0d491231235959Z")) == datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert der.time(der.read(b"\x17\x0d500101000000Z")) == datetime(1950, 1, 1, tzinfo=UTC)
    for bad in (
        b"\x17\x0d491331235959Z",
        b"\x17\x0b4912312359Z",
        b"\x18\x0f20491231235959+",
        b"\x0c\x0d491231235959Z",
    ):
        with pytest.raises(DerError):
            der.time(der.read(bad))


def test_a_table_round_trips(amd):
    supplied = amd("Genoa").launch(bytes(4096)).supplied()
    assert read_table(write_table(supplied)) == supplied


def test_results_are_json(amd, sim_roots):
    guest = amd("Genoa").launch(bytes(4096))
    result = verify(
        read_snp(guest.report(REPORT_DATA), guest.supplied()), roots=sim_roots, at=NOW, report_data=None
    )
    text = json.loads(json.dumps(result.as_json()))
    assert text["trust_domain"] == "simulated"
    assert text["bound"] is None
