"""Verification of evidence against the same cryptographic operations done bare, in turn in the same run."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from benchmarks.harness import Figure, against_floor
from cvars.attest import SnpEvidence, TdxEvidence, read_snp, read_tdx, verify
from cvars.attest.certificates import Certificate, load_certificate, load_crl, read_pem
from cvars.attest.simulated import SimulatedAmdSp, SimulatedTdx, roots
from cvars.attest.tdx.collateral import Collateral
from cvars.attest.tdx.quote import parse_quote

REPORT_DATA = bytes(64)
CPU = time.process_time_ns  # others use this machine: what counts is the work, not the waiting
Operation = Callable[[], object]


def _by(parent: Certificate, signature: bytes, signed: bytes) -> Operation:
    """One bare signature check, its key loaded from bytes as the verifier must."""
    spki = parent.spki
    if isinstance(load_der_public_key(spki), rsa.RSAPublicKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)

        def check_rsa() -> None:
            key = load_der_public_key(spki)
            assert isinstance(key, rsa.RSAPublicKey)
            key.verify(signature, signed, pss, hashes.SHA384())

        return check_rsa

    def check_ec() -> None:
        key = load_der_public_key(spki)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))

    return check_ec


def _links(*chain: Certificate) -> list[Operation]:
    """Each certificate by the next, the last by itself."""
    return [
        _by(parent, child.signature, child.tbs)
        for child, parent in zip(chain, (*chain[1:], chain[-1]), strict=True)
    ]


def _all(operations: list[Operation]) -> Operation:
    def run() -> None:
        for operation in operations:
            operation()

    return run


def _snp_floor(evidence: SnpEvidence) -> Operation:
    """Three RSA-PSS links and the report's ECDSA."""
    leaf, middle, root = (load_certificate(one.data) for one in evidence.certificates)
    report = evidence.report
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    pair = encode_dss_signature(r, s)

    def report_signature() -> None:
        key = load_der_public_key(leaf.spki)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(pair, report[:0x2A0], ec.ECDSA(hashes.SHA384()))

    return _all([*_links(leaf, middle, root), report_signature])


def _tdx_floor(evidence: TdxEvidence) -> Operation:
    """PCK chain, QE report, quote, two lists, the signing chain, TCB info and QE identity."""
    quote = parse_quote(evidence.quote)
    chain = [load_certificate(one) for one in read_pem(quote.pck_chain)]
    assert evidence.collateral is not None
    collateral = Collateral.parse(evidence.collateral)
    signing = [load_certificate(one) for one in read_pem(collateral.tcb_info_issuer_chain)]
    point = b"\x04" + quote.attestation_key

    def pair(raw: bytes) -> bytes:
        return encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))

    def by_attestation_key() -> None:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        key.verify(pair(quote.signature), quote.signed, ec.ECDSA(hashes.SHA256()))

    operations = [*_links(*chain), *_links(*signing), by_attestation_key]
    operations.append(_by(chain[0], pair(quote.qe_signature), quote.qe_report_raw))
    for data, parent in ((collateral.root_ca_crl, chain[2]), (collateral.pck_crl, chain[1])):
        crl = load_crl(data)
        operations.append(_by(parent, crl.signature, crl.tbs))
    for signature, signed in (
        (collateral.tcb_info_signature, collateral.tcb_info),
        (collateral.qe_identity_signature, collateral.qe_identity),
    ):
        operations.append(_by(signing[0], pair(signature), signed))
    return _all(operations)


def _dcap_qvl(evidence: TdxEvidence, root: bytes) -> Operation | None:
    """The same verdict by `dcap-qvl`, where it is installed."""
    try:
        import dcap_qvl  # noqa: PLC0415
    except ImportError:
        return None
    assert evidence.collateral is not None
    text = json.dumps(json.loads(evidence.collateral))
    collateral = dcap_qvl.QuoteCollateralV3.from_json(text)
    now = int(time.time())
    return lambda: dcap_qvl.verify_with_root_ca(evidence.quote, collateral, root, now)


def figures() -> list[Figure]:
    """SNP <= 1.5x, TDX <= 1.5x of the floor, TDX <= 2x of dcap-qvl."""
    out = []
    with tempfile.TemporaryDirectory() as name:
        folder, at = Path(name), datetime.now(UTC)
        evidence = []
        for line in ("Milan", "Turin"):
            guest = SimulatedAmdSp.load_or_create(folder, product=line, random=os.urandom).launch(bytes(4096))
            evidence.append((line, read_snp(guest.report(REPORT_DATA), guest.supplied())))
        platform = SimulatedTdx.load_or_create(folder, random=os.urandom, clock=time.time)
        td = platform.launch(bytes(4096))
        trusted = roots(folder)
        for line, one in evidence:
            assert isinstance(one, SnpEvidence)

            def snp(one: SnpEvidence = one) -> bool:
                return verify(one, roots=trusted, at=at, report_data=REPORT_DATA).verified

            assert snp()
            out.append(
                against_floor(
                    f"SNP verification, {line}", snp, _snp_floor(one), max_ratio=1.5, rounds=100, clock=CPU
                )
            )
        for version in (4, 5):
            tdx = read_tdx(td.quote(REPORT_DATA, version), td.collateral())
            assert isinstance(tdx, TdxEvidence)

            def quote(tdx: TdxEvidence = tdx) -> bool:
                return verify(tdx, roots=trusted, at=at, report_data=REPORT_DATA).verified

            assert quote()
            title = f"TDX verification with collateral, quote v{version}"
            out.append(against_floor(title, quote, _tdx_floor(tdx), max_ratio=1.5, rounds=100, clock=CPU))
            other = _dcap_qvl(tdx, platform.root_certificate)
            if other is not None:
                out.append(
                    against_floor(f"{title}, against dcap-qvl", quote, other, max_ratio=2, rounds=50, clock=CPU)
                )
    return out
