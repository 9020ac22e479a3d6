"""The claims of a TDX quote, by the names that policy and token use (`attestation` 5); bytes in hex."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cvars.attest.result import CollateralItem
from cvars.attest.tdx.quote import ATTRIBUTE_BITS, SgxReport, TdReport

if TYPE_CHECKING:
    from cvars.attest.tdx.facts import Facts


def tdx_claims(facts: "Facts", domain: str | None, used: Sequence[CollateralItem]) -> dict[str, Any]:
    """All of them. They mean something only in a result that is authentic."""
    quote, pck = facts.quote, facts.pck
    common: dict[str, Any] = {
        "quote_version": quote.version,
        "body": quote.body_type,
        "report_data": quote.body.report_data.hex(),
        "tcb": {
            "status": facts.final.status if facts.final else None,
            "date": facts.final.date.isoformat() if facts.final else None,
            "advisories": list(facts.final.advisories) if facts.final else [],
            "eval_number": facts.tcb_info.evaluation if facts.tcb_info else None,
            "platform_status": facts.platform.status if facts.platform else None,
            "module_status": facts.module.status if facts.module else None,
            "qe_status": facts.qe_status.status if facts.qe_status else None,
        },
        "fmspc": pck.fmspc.hex() if pck else None,
        "ppid_hash": hashlib.sha256(pck.ppid).hexdigest() if pck else None,
    }
    tee = "sgx" if quote.sgx else "tdx"
    return {
        "tee": tee,
        "trust_domain": domain,
        tee: common | (_sgx(quote.body) if isinstance(quote.body, SgxReport) else _td(quote.body)),
        "collateral": {"expires": min(item.not_after for item in used).isoformat() if used else None},
    }


def _td(td: TdReport) -> dict[str, Any]:
    return {
        "tee_tcb_svn": td.tee_tcb_svn.hex(),
        "mr_td": td.mr_td.hex(),
        **{f"rtmr{index}": value.hex() for index, value in enumerate(td.rtmr)},
        "mr_seam": td.mr_seam.hex(),
        "mr_signer_seam": td.mr_signer_seam.hex(),
        "mr_config_id": td.mr_config_id.hex(),
        "mr_owner": td.mr_owner.hex(),
        "mr_owner_config": td.mr_owner_config.hex(),
        "mr_service_td": td.mr_service_td.hex() if td.mr_service_td is not None else None,
        "attributes": {name: td.attribute(name) for name in ATTRIBUTE_BITS}
        | {"raw": td.td_attributes.to_bytes(8, "little").hex()},
        "xfam": td.xfam.to_bytes(8, "little").hex(),
    }


def _sgx(body: SgxReport) -> dict[str, Any]:
    return {
        "mr_enclave": body.mr_enclave.hex(),
        "mr_signer": body.mr_signer.hex(),
        "isv_prod_id": body.isv_prod_id,
        "isv_svn": body.isv_svn,
        "debug": body.debug,
    }
