"""A strict policy out of known-good evidence: everything that was seen is required, every "any" says why."""

from typing import Any

from cvars.broker.policy.offline import Sample


def suggestion(sample: Sample, *, name: str) -> str:
    """YAML text that accepts ``sample`` and as little else as can be said from one sample."""
    body = _snp(sample.claims) if sample.tee == "snp" else _tdx(sample.claims)
    head = [
        f"# suggested from one piece of {sample.tee} evidence, judged at {sample.at:%Y-%m-%dT%H:%M:%SZ}",
        f"policy: {name}",
        "version: 1",
        'applies_to: ["vms/*/store-kek"]',
        f"trust_domains: [{sample.result.trust_domain}]",
        "require:",
        "  anchor: {lease: required, max_epoch_gap: 0}   # 0: no limit on boots without an advance",
        "any_of:",
    ]
    return "\n".join([*head, *body, "release:", "  per_vm: true", ""])


def _snp(claims: dict[str, Any]) -> list[str]:
    policy, platform = claims["policy"], claims["platform"]
    tcb = claims["tcb"]["reported"]
    floor = ", ".join(f"{k}: {v}" for k, v in tcb.items() if v is not None)
    lines = [
        "  - snp:",
        f"      product: [{claims['product']}]",
        f"      report_versions: [{claims['version']}]",
        f"      signing_key: [{claims['signing_key']}]",
        f"      vmpl: [{claims['vmpl']}]",
        f'      measurement_in: ["{claims["measurement"]}"]',
    ]
    if str(claims["host_data"]).strip("0"):
        lines.append(f'      host_data_in: ["{claims["host_data"]}"]   # or init-data: whatever body was measured')
    if str(claims["id_key_digest"]).strip("0"):
        lines.append(f'      id_key_digest_in: ["{claims["id_key_digest"]}"]')
    if claims["author_key_en"]:
        lines.append(f'      author_key_digest_in: ["{claims["author_key_digest"]}"]')
    if claims["signing_key"] == "vlek":
        lines.append(f'      csp_id_in: ["{claims["csp_id"]}"]')
    lines += [
        f"      guest_svn_min: {claims['guest_svn']}",
        "      guest_policy: {debug: false, migrate_ma: false, "
        f"smt: {_flag(policy.get('smt'))}, single_socket: {_flag(policy.get('single_socket'))}, "
        f"cxl: {_flag(policy.get('cxl'))}}}",
        f"      platform: {{alias_check: {_flag(platform.get('alias_check'))}, ecc: {_flag(platform.get('ecc'))}, "
        f"tsme: any, smt: any}}   # any: memory encryption of the host and threads do not weaken the guest",
        "      min_tcb:",
        f"        {claims['product']}: {{{floor}}}",
        "      crl: if-present   # require, once revocation lists are at hand",
    ]
    return lines


def _tdx(claims: dict[str, Any]) -> list[str]:
    tcb = claims.get("tcb", {})
    lines = ["  - tdx:", f'      mr_td_in: ["{claims["mr_td"]}"]', "      rtmr:"]
    lines += [f'        {n}: {{in: ["{claims[f"rtmr{n}"]}"]}}' for n in range(4)]
    if str(claims["mr_config_id"]).strip("0"):
        lines.append(f'      mr_config_id_in: ["{claims["mr_config_id"]}"]   # or init-data')
    for name in ("mr_owner", "mr_owner_config"):
        if str(claims[name]).strip("0"):
            lines.append(f'      {name}_in: ["{claims[name]}"]')
    lines += [
        f"      tcb_status: [{tcb.get('status') or 'UpToDate'}]",
        f"      min_eval_number: {tcb.get('eval_number') or 0}",
        "      attributes: {debug: false, sept_ve_disable: true, migratable: false}",
    ]
    return lines


def _flag(value: Any) -> str:  # noqa: ANN401
    return "true" if value else "false"
