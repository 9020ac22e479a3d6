"""What the broker needs of the attestation verifier; `cvars.attest` behind one small interface."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final, Protocol

#: names on the wire -> the verifier's word (key-release 1.1)
TEES: Final = {
    "snp": "snp",
    "tdx": "tdx",
    "az-snp-vtpm": "snp",
    "azsnpvtpm": "snp",
    "az-tdx-vtpm": "tdx",
    "aztdxvtpm": "tdx",
}


class Result(Protocol):
    """A verdict as `cvars.attest.result.AttestationResult` is one."""

    @property
    def trust_domain(self) -> str | None:
        """Which pinned root closed the chain."""
        ...

    @property
    def claims(self) -> Mapping[str, Any]:
        """Flat claims (attestation 5)."""
        ...

    @property
    def verified(self) -> bool:
        """Authentic and bound; not yet acceptable to anybody."""
        ...

    @property
    def accepted(self) -> bool:
        """After an appraisal: acceptable."""
        ...

    @property
    def rule(self) -> str | None:
        """The first failing rule."""
        ...

    @property
    def detail(self) -> str:
        """What the first failing rule found."""
        ...


class Verifier(Protocol):
    """Verification and appraisal, with this broker's roots."""

    @property
    def simulation(self) -> bool:
        """Whether simulated roots are among the roots."""
        ...

    def verify(self, tee: str, primary: Any, *, report_data: bytes | None, at: datetime) -> Result:  # noqa: ANN401
        """Authentic and bound? Never raises for bad evidence."""
        ...

    def requirements(self, tee: str, document: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """A policy leaf, checked. Raises ``ValueError``."""
        ...

    def reference(self, document: Any) -> Any:  # noqa: ANN401
        """A set of reference values, checked. Raises ``ValueError``."""
        ...

    def appraise(
        self,
        result: Any,  # noqa: ANN401
        requirements: Any,  # noqa: ANN401
        *,
        trust_domains: Collection[str],
        init_data: bytes | None,
        references: Mapping[str, Any],
    ) -> Result:
        """Acceptable? ``init_data``: what HOST_DATA or MRCONFIGID must carry."""
        ...
