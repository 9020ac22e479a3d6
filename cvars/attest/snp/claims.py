"""The claims of an SNP report, by the names that policy and token use (`attestation` 5); bytes in hex."""

from collections.abc import Sequence
from typing import Any

from cvars.attest.result import CollateralItem
from cvars.attest.snp.leaf import Leaf
from cvars.attest.snp.products import Line
from cvars.attest.snp.report import KEY_KINDS, PLATFORM_BITS, POLICY_BITS, SnpReport


def snp_claims(
    report: SnpReport, line: Line | None, leaf: Leaf | None, domain: str | None, used: Sequence[CollateralItem]
) -> dict[str, Any]:
    """All of them. They mean something only in a result that is authentic."""
    major, minor = report.abi
    policy: dict[str, Any] = {name: report.policy_bit(name) for name in POLICY_BITS}
    tcb = {} if line is None else {name: tcb.as_json() for name, tcb in report.tcbs(line).items()}
    mit: dict[str, int | None] = {"launch": None, "current": None}
    if report.version >= 5:
        mit = {"launch": report.launch_mit_vector, "current": report.current_mit_vector}
    return {
        "tee": "snp",
        "trust_domain": domain,
        "snp": {
            "version": report.version,
            "product": line,
            "vmpl": report.vmpl,
            "guest_svn": report.guest_svn,
            "measurement": report.measurement.hex(),
            "host_data": report.host_data.hex(),
            "report_data": report.report_data.hex(),
            "report_id": report.report_id.hex(),
            "id_key_digest": report.id_key_digest.hex(),
            "author_key_digest": report.author_key_digest.hex(),
            "author_key_en": report.author_key_en,
            "family_id": report.family_id.hex(),
            "image_id": report.image_id.hex(),
            "chip_id": report.chip_id.hex(),
            "signing_key": KEY_KINDS.get(report.signing_key, str(report.signing_key)),
            "csp_id": leaf.csp_id if leaf else None,
            "policy": policy | {"abi_major": major, "abi_minor": minor, "raw": f"{report.policy:#x}"},
            "platform": {name: report.platform_bit(name) for name in PLATFORM_BITS}
            | {"raw": f"{report.platform_info:#x}"},
            "tcb": tcb,
            "mit": mit,
        },
        "collateral": {"expires": min(item.not_after for item in used).isoformat() if used else None},
    }
