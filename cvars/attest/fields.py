"""The fields of evidence by the names of the recorded vectors: what a manifest compares."""

from typing import Any

from cvars.attest.snp.facts import Facts as SnpFacts
from cvars.attest.snp.report import KEY_KINDS
from cvars.attest.tdx.facts import Facts as TdxFacts
from cvars.attest.tdx.quote import SgxReport, TdReport


def snp_fields(facts: SnpFacts) -> dict[str, Any]:
    """Of an SNP report."""
    report = facts.report
    cpuid = None
    if report.version >= 3:
        cpuid = {
            "family": report.cpuid_family,
            "model": report.cpuid_model,
            "stepping": report.cpuid_stepping,
        }
    return {
        "version": report.version,
        "product": facts.line,
        "guest_svn": report.guest_svn,
        "vmpl": report.vmpl,
        "policy": f"{report.policy:#x}",
        "policy_debug": report.policy_bit("debug"),
        "policy_migrate_ma": report.policy_bit("migrate_ma"),
        "policy_smt": report.policy_bit("smt"),
        "policy_single_socket": report.policy_bit("single_socket"),
        "platform_info": f"{report.platform_info:#x}",
        "signing_key": KEY_KINDS.get(report.signing_key),
        "signature_algo": report.signature_algo,
        "mask_chip_key": report.mask_chip_key,
        "author_key_en": report.author_key_en,
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "chip_id": report.chip_id.hex(),
        **{f"{name}_tcb": tcb.as_json() for name, tcb in facts.tcbs.items()},
        "cpuid": cpuid,
        "launch_mit_vector": report.launch_mit_vector if report.version >= 5 else None,
        "current_mit_vector": report.current_mit_vector if report.version >= 5 else None,
        "csp_id": facts.leaf_fields.csp_id if facts.leaf_fields else None,
    }


def tdx_fields(facts: TdxFacts) -> dict[str, Any]:
    """Of a TDX (or SGX) quote."""
    quote, pck = facts.quote, facts.pck
    out: dict[str, Any] = {
        "quote_version": quote.version,
        "tee_type": f"{quote.tee_type:#x}",
        "body_type": quote.body_type,
        "attestation_key_type": quote.attestation_key_type,
        "fmspc": pck.fmspc.hex() if pck else None,
        "pce_svn": pck.pce_svn if pck else None,
        "pce_id": pck.pce_id.hex() if pck else None,
        "ppid": pck.ppid.hex() if pck else None,
        "pck_ca": facts.chain[1].common_name if len(facts.chain) > 1 else None,
        "report_data": quote.body.report_data.hex(),
    }
    return out | (_sgx(quote.body) if isinstance(quote.body, SgxReport) else _td(quote.body))


def _td(td: TdReport) -> dict[str, Any]:
    out: dict[str, Any] = {
        "tee_tcb_svn": td.tee_tcb_svn.hex(),
        "mr_seam": td.mr_seam.hex(),
        "mr_signer_seam": td.mr_signer_seam.hex(),
        "seam_attributes": td.seam_attributes.to_bytes(8, "little").hex(),
        "td_attributes": td.td_attributes.to_bytes(8, "little").hex(),
        "debug": td.attribute("debug"),
        "xfam": td.xfam.to_bytes(8, "little").hex(),
        "mr_td": td.mr_td.hex(),
        "mr_config_id": td.mr_config_id.hex(),
        "mr_owner": td.mr_owner.hex(),
        "mr_owner_config": td.mr_owner_config.hex(),
        "rtmr": [value.hex() for value in td.rtmr],
    }
    if td.tee_tcb_svn2 is not None and td.mr_service_td is not None:
        out |= {"tee_tcb_svn2": td.tee_tcb_svn2.hex(), "mr_service_td": td.mr_service_td.hex()}
    return out


def _sgx(body: SgxReport) -> dict[str, Any]:
    return {
        "mr_enclave": body.mr_enclave.hex(),
        "mr_signer": body.mr_signer.hex(),
        "isv_prod_id": body.isv_prod_id,
        "isv_svn": body.isv_svn,
        "debug": body.debug,
    }
