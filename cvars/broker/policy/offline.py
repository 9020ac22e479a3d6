"""Policies without a service: evidence from a file, judged as the broker would."""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cvars.broker.policy.evaluate import Decision, Facts, decide
from cvars.broker.policy.load import Policy
from cvars.broker.verifier import Result, Verifier
from cvars.errors import BadInput
from cvars.release.encoding import Malformed, strict_json

_MAX: Final = 1024 * 1024
_TDX_TEE: Final = b"\x81\0\0\0"


@dataclass(frozen=True, slots=True)
class Sample:
    """One piece of evidence and its verdict at one instant. Nobody expected report data: it is not bound."""

    tee: str
    result: Result
    at: datetime

    @property
    def claims(self) -> dict[str, Any]:
        """The claims of the evidence."""
        return dict(self.result.claims.get(self.tee, {}))

    @property
    def simulated(self) -> bool:
        """Rests on simulated hardware."""
        return self.result.trust_domain == "simulated"


def read_sample(data: bytes, where: str, verifier: Verifier, *, at: datetime) -> Sample:
    """A raw report or quote, or JSON: a client's primary evidence, an attest body, or kept evidence.

    Raises ``BadInput``.
    """
    if len(data) > _MAX:
        raise BadInput("evidence of more than 1 MiB", where=where)
    if data.lstrip()[:1] != b"{":
        tee = "tdx" if data[4:8] == _TDX_TEE else "snp"
        primary: Any = base64.b64encode(data).decode()
    else:
        try:
            document = strict_json(data)
        except Malformed as error:
            raise BadInput(f"not evidence: {error}", where=where) from None
        document = document.get("evidence", document)
        document = document.get("tee-evidence", document) if isinstance(document, dict) else {}
        primary = document.get("primary_evidence", document) if isinstance(document, dict) else {}
        tee = "tdx" if isinstance(primary, dict) and "quote" in primary else "snp"
    return Sample(tee, verifier.verify(tee, primary, report_data=None, at=at), at)


def judge(
    policy: Policy, sample: Sample, verifier: Verifier, *, resource: str | None = None, vm_id: str | None = None
) -> Decision:
    """The decision about the first resource that the policy applies to, or about ``resource``."""
    pattern = policy.document.applies_to[0].split("/")
    vm = vm_id or "any-vm"
    parts = [p if p != "*" else (vm if i == 1 else "any") for i, p in enumerate(pattern)]
    path = resource or "/".join(parts)
    if len(path.split("/")) != 3:
        raise BadInput(f"not repository/type/tag: {path}")
    measured = sample.claims.get("host_data" if sample.tee == "snp" else "mr_config_id")
    now = sample.at.timestamp()
    facts = Facts(
        path=path,
        result=sample.result,
        tee=sample.tee,
        attested_at=now,
        now=now,
        init_data_digest=measured,
        measured=bytes.fromhex(measured) if measured else None,
        vm_id=vm_id or path.split("/")[1],
    )
    return decide((policy,), facts, verifier)
