"""Every single-bit flip of a real report and of a real quote is refused. What is not covered is listed here."""

import json
from datetime import UTC, datetime

import pytest

from cvars.attest import Supplied, read_snp, read_tdx, verify

#: Bits that may be flipped without a refusal because the specification does not cover them: there are none.
#: Report: 000..29F is signed, r and s are the signature, 330..49F must be zero (2.1). Quote: header and body are
#: signed, the rest is hashed or signed itself, the PEM text is canonical, what follows is zero (3.1).
UNCOVERED: frozenset[int] = frozenset()


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes((data[bit // 8] ^ 1 << bit % 8,)) + data[bit // 8 + 1 :]


def case_of(folder, name):
    return next(c for c in json.loads((folder / "vectors.json").read_text())["cases"] if c["id"] == name)


@pytest.mark.parametrize("name", ["genoa-v3-idkey", "turin-v5-idkey", "milan-v2-cloud-a", "milan-v3-vlek-vmpl1"])
@pytest.mark.rule("SNP-SIG")
def test_flips_of_a_real_snp_report(vectors, real_roots, name, rng):
    flips_of_a_report(vectors, real_roots, name, rng.sample(range(1184 * 8), 150))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["genoa-v3-idkey", "turin-v5-idkey"])
def test_every_flip_of_a_real_snp_report(vectors, real_roots, name):
    flips_of_a_report(vectors, real_roots, name, range(1184 * 8))


def flips_of_a_report(vectors, real_roots, name, bits):
    folder = vectors / "attestation"
    case = case_of(folder, name)
    files = {kind: (folder / path).read_bytes() for kind, path in case["files"].items()}
    at = datetime.fromtimestamp(case["evaluate_at"], UTC)
    leaf = (Supplied("unknown", files["vek"]),)

    def judge(report):
        return verify(read_snp(report, leaf), roots=real_roots, at=at, report_data=None)

    assert judge(files["report"]).verified
    passed = [bit for bit in bits if judge(flipped(files["report"], bit)).rule is None]
    assert set(passed) <= UNCOVERED
    print(f"\n{name}: {len(bits)} flips, {len(bits) - len(passed)} refused")


def flips_of_a_quote(vectors, real_roots, name, bits):
    folder = vectors / "attestation"
    case = case_of(folder, name)
    files = {kind: (folder / path).read_bytes() for kind, path in case["files"].items()}
    at = datetime.fromtimestamp(case["evaluate_at"], UTC)

    def judge(quote):
        return verify(read_tdx(quote, files["collateral"]), roots=real_roots, at=at, report_data=None)

    assert judge(files["quote"]).authentic
    bits = bits(len(files["quote"]) * 8)
    passed = {bit for bit in bits if judge(flipped(files["quote"], bit)).authentic}
    return files["quote"], passed, bits


@pytest.mark.rule("TDX-SIG")
@pytest.mark.parametrize("name", ["v4-b0c06f-uptodate", "v5-90c06f-no-tcb-level"])
def test_flips_of_a_real_quote(vectors, real_roots, rng, name):
    def sample(total):
        return rng.sample(range(total), 250)

    _, passed, _ = flips_of_a_quote(vectors, real_roots, name, sample)
    assert passed <= UNCOVERED


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["v4-b0c06f-uptodate", "v5-90c06f-no-tcb-level"])
def test_every_flip_of_a_real_quote(vectors, real_roots, name):
    quote, passed, bits = flips_of_a_quote(vectors, real_roots, name, range)
    assert passed <= UNCOVERED
    where = {bit // 8: quote[bit // 8 : bit // 8 + 1] for bit in sorted(passed)}
    print(f"\n{name}: {len(bits)} flips, {len(bits) - len(passed)} refused, {len(passed)} pass at {where}")
