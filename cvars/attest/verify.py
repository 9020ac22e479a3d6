"""`verify`: is evidence authentic, and bound to this session? Bad evidence is a result, never an exception."""

from collections.abc import Collection
from datetime import datetime
from typing import Final

from cvars.attest.evidence import Evidence, SnpEvidence, Unreadable
from cvars.attest.library import EmptyLibrary, Library
from cvars.attest.result import AttestationResult, rejected
from cvars.attest.roots import TrustRoots
from cvars.attest.snp.facts import CrlMode
from cvars.attest.snp.rules import verify_snp
from cvars.attest.tdx.rules import verify_tdx

_NOTHING: Final = EmptyLibrary()


def verify(
    evidence: Evidence,
    *,
    roots: TrustRoots,
    at: datetime,
    report_data: bytes | None,
    library: Library = _NOTHING,
    crl: CrlMode = "if-present",
    extra_versions: Collection[int] = (),
) -> AttestationResult:
    """Check ``evidence`` rule by rule, up to the first violated one.

    Args:
        evidence: from `cvars.attest.evidence`.
        roots: pinned roots; they alone decide the trust domain (ROOT-1).
        at: the instant, UTC, at which certificates and collateral must be valid.
        report_data: the 64 bytes that this session expects; None (offline tools) leaves it unbound.
        library: certificates and collateral at hand.
        crl: SNP-CRL mode; TDX always needs its lists.
        extra_versions: report versions above 5 that a policy lists.
    """
    if isinstance(evidence, Unreadable):
        return rejected(evidence.tee, evidence.rule, evidence.detail)
    if isinstance(evidence, SnpEvidence):
        return verify_snp(
            evidence,
            roots=roots,
            at=at,
            report_data=report_data,
            library=library,
            crl=crl,
            extra_versions=extra_versions,
        )
    return verify_tdx(evidence, roots=roots, at=at, report_data=report_data, library=library)
