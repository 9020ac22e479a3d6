"""`cvars.attest` as the broker's verifier: its roots, its library, nothing else."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cvars.attest.appraise import appraise
from cvars.attest.evidence import read_snp, read_tdx
from cvars.attest.library import EmptyLibrary, Library
from cvars.attest.requirements import ReferenceSet, SnpRequirements, TdxRequirements
from cvars.attest.result import AttestationResult
from cvars.attest.roots import TrustRoots
from cvars.attest.verify import verify


@dataclass(frozen=True, slots=True)
class AttestVerifier:
    """Verification with pinned roots; ``simulation`` only as far as the roots say so (ROOT-3)."""

    roots: TrustRoots
    library: Library = field(default_factory=EmptyLibrary)

    @property
    def simulation(self) -> bool:
        """Whether a simulated root is among the roots."""
        return self.roots.simulation

    def verify(self, tee: str, primary: Any, *, report_data: bytes | None, at: datetime) -> AttestationResult:  # noqa: ANN401
        """Authentic and bound?"""
        read = read_snp if tee == "snp" else read_tdx
        return verify(read(primary), roots=self.roots, at=at, report_data=report_data, library=self.library)

    def requirements(self, tee: str, document: Mapping[str, Any]) -> SnpRequirements | TdxRequirements:
        """A policy leaf."""
        model = SnpRequirements if tee == "snp" else TdxRequirements
        return model.model_validate(dict(document))

    def reference(self, document: Any) -> ReferenceSet:  # noqa: ANN401
        """A set of reference values: a list of digests or of launch tuples."""
        values = document.get("values") if isinstance(document, Mapping) else document
        if isinstance(values, list):
            values = [{"measurement": v} if isinstance(v, str) else v for v in values]
        return ReferenceSet.model_validate({"values": values})

    def appraise(
        self,
        result: AttestationResult,
        requirements: SnpRequirements | TdxRequirements,
        *,
        trust_domains: Collection[str],
        init_data: bytes | None,
        references: Mapping[str, ReferenceSet],
    ) -> AttestationResult:
        """Acceptable?"""
        return appraise(
            result, requirements, trust_domains=trust_domains, init_data=init_data, references=references
        )
