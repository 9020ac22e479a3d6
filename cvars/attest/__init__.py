"""SEV-SNP and TDX evidence: parse, verify, appraise, measure, simulate. Source: `attestation`.

The way in: ``read_snp``/``read_tdx`` make evidence of what arrived, ``verify`` says whether it is authentic and
bound, ``appraise`` whether a policy accepts it. Bad evidence is a result, never an exception.
"""

from cvars.attest.appraise import appraise
from cvars.attest.evidence import (
    Evidence,
    SnpEvidence,
    Supplied,
    TdxEvidence,
    Unreadable,
    read_snp,
    read_tdx,
)
from cvars.attest.library import EmptyLibrary, FileLibrary, Library
from cvars.attest.requirements import LaunchTuple, ReferenceSet, SnpRequirements, TdxRequirements
from cvars.attest.result import AttestationResult, Check, CollateralItem, Outcome, Stage, VerifiedEvidence
from cvars.attest.roots import RootRefused, TrustRoots, check_domains, load_simulated, with_simulated
from cvars.attest.verify import verify

__all__ = [
    "AttestationResult",
    "Check",
    "CollateralItem",
    "EmptyLibrary",
    "Evidence",
    "FileLibrary",
    "LaunchTuple",
    "Library",
    "Outcome",
    "ReferenceSet",
    "RootRefused",
    "SnpEvidence",
    "SnpRequirements",
    "Stage",
    "Supplied",
    "TdxEvidence",
    "TdxRequirements",
    "TrustRoots",
    "Unreadable",
    "VerifiedEvidence",
    "appraise",
    "check_domains",
    "load_simulated",
    "read_snp",
    "read_tdx",
    "verify",
    "with_simulated",
]
