"""Every single-bit flip of a real report and of a real quote is refused. What is not covered is listed here."""

import json
import random
from datetime import UTC, datetime

import pytest

from cvars.attest import Supplied, read_snp, read_tdx, verify
from cvars.attest.tdx.quote import parse_quote

#: bits that may be flipped without a refusal, because the specification does not cover them. There are none in a
#: report: 000..29F is signed, r and s are the signature, 330..49F must be zero (2.1).
SNP_UNCOVERED: frozenset[int] = frozenset()


def pem_free_bits(quote: bytes) -> set[int]:
    """Bits of a quote that carry no meaning: base64 padding bits and the white space of the PEM chain.

    The chain is text around the certificates (3.1); what counts is the DER inside, which signatures cover.
    """
    parsed = parse_quote(quote)
    start = quote.index(parsed.pck_chain)
    free = set()
    whitespace = b" \t\n\r\x0b\x0c"
    for offset, byte in enumerate(parsed.pck_chain):
        for bit in range(8):
            changed = byte ^ 1 << bit
            if byte in whitespace and changed in whitespace:
                free.add((start + offset) * 8 + bit)
    for at in range(len(parsed.pck_chain) - 1):
        if parsed.pck_chain[at + 1 : at + 2] == b"=" and parsed.pck_chain[at : at + 1] != b"=":
            free |= {(start + at) * 8 + bit for bit in range(8)}  # the unused low bits of the last character
    return free


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes((data[bit // 8] ^ 1 << bit % 8,)) + data[bit // 8 + 1 :]


def case_of(folder, name):
    return next(c for c in json.loads((folder / "vectors.json").read_text())["cases"] if c["id"] == name)


@pytest.mark.parametrize("name", ["genoa-v3-idkey", "turin-v5-idkey", "milan-v2-cloud-a", "milan-v3-vlek-vmpl1"])
@pytest.mark.rule("SNP-SIG")
def test_flips_of_a_real_snp_report(vectors, real_roots, name, exhaustive, rng):
    folder = vectors / "attestation"
    case = case_of(folder, name)
    files = {kind: (folder / path).read_bytes() for kind, path in case["files"].items()}
    at = datetime.fromtimestamp(case["evaluate_at"], UTC)
    leaf = (Supplied("unknown", files["vek"]),)

    def judge(report):
        return verify(read_snp(report, leaf), roots=real_roots, at=at, report_data=None)

    assert judge(files["report"]).verified
    bits = range(1184 * 8) if exhaustive else rng.sample(range(1184 * 8), 150)
    passed = [bit for bit in bits if judge(flipped(files["report"], bit)).rule is None]
    assert set(passed) <= SNP_UNCOVERED
    print(f"\n{name}: {len(bits)} flips, {len(bits) - len(passed)} refused")


@pytest.mark.exhaustive
def test_every_flip_of_a_real_snp_report(vectors, real_roots):
    test_flips_of_a_real_snp_report(vectors, real_roots, "genoa-v3-idkey", exhaustive=True, rng=random.Random(0))


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

    quote, passed, _ = flips_of_a_quote(vectors, real_roots, name, sample)
    assert passed <= pem_free_bits(quote)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["v4-b0c06f-uptodate", "v5-90c06f-no-tcb-level"])
def test_every_flip_of_a_real_quote(vectors, real_roots, name):
    quote, passed, bits = flips_of_a_quote(vectors, real_roots, name, range)
    assert passed <= pem_free_bits(quote)
    where = {bit // 8: quote[bit // 8 : bit // 8 + 1] for bit in sorted(passed)}
    print(f"\n{name}: {len(bits)} flips, {len(bits) - len(passed)} refused, {len(passed)} pass at {where}")
