"""`appraise`: are the claims of verified evidence acceptable? No I/O and no clock."""

from collections.abc import Collection
from dataclasses import replace

from cvars.attest.policy import NO_REFERENCES
from cvars.attest.requirements import References, SnpRequirements, TdxRequirements
from cvars.attest.result import (
    AttestationResult,
    Check,
    Outcome,
    Stage,
    VerifiedEvidence,
    evaluate,
)
from cvars.attest.roots import PRODUCTION
from cvars.attest.snp import policy as snp_policy
from cvars.attest.snp.facts import Facts as SnpFacts
from cvars.attest.tdx import policy as tdx_policy
from cvars.attest.tdx.facts import Facts as TdxFacts


def appraise(
    result: AttestationResult,
    requirements: SnpRequirements | TdxRequirements,
    *,
    trust_domains: Collection[str],
    init_data: bytes | None = None,
    references: References = NO_REFERENCES,
) -> AttestationResult:
    """Judge ``result`` by ``requirements``; the new result has all checks, and may be ``accepted``.

    Args:
        result: from `verify`. One that is not authentic comes back as it is: nothing in it is believed.
        requirements: the leaf of a policy.
        trust_domains: that the policy names. There is no default (ROOT-2).
        init_data: the digest that host_data (32 bytes) or mr_config_id (48) must carry; None without init-data.
        references: sets of reference values by name.
    """
    if not isinstance(result, VerifiedEvidence) or not result.authentic or result.appraised:
        return result
    if any(check.outcome is Outcome.NO and check.stage is not Stage.BOUND for check in result.checks):
        return result
    checks = [_domain(result, requirements, trust_domains)]
    facts = result.facts
    if isinstance(requirements, SnpRequirements) and isinstance(facts, SnpFacts):
        assert facts.line is not None
        assert facts.leaf_fields is not None
        claimed = snp_policy.Claimed(
            report=facts.report,
            line=facts.line,
            leaf=facts.leaf_fields,
            crl_seen=facts.crl is not None,
            want=requirements,
            init_data=init_data,
            references=references,
        )
        checks += evaluate(snp_policy.RULES, claimed, stop=False)
    elif isinstance(requirements, TdxRequirements) and isinstance(facts, TdxFacts) and not facts.quote.sgx:
        assert facts.final is not None
        checks += evaluate(
            tdx_policy.RULES,
            tdx_policy.Claimed(
                td=facts.td,
                status=facts.final,
                tcb_info=facts.info,
                qe_identity=facts.identity,
                at=facts.at,
                want=requirements,
                init_data=init_data,
                references=references,
            ),
            stop=False,
        )
    else:
        wanted = "snp" if isinstance(requirements, SnpRequirements) else "tdx"
        checks.append(
            Check(f"{wanted.upper()}-FMT", Outcome.NO, f"the policy wants {wanted} evidence", Stage.POLICY)
        )
    return replace(result, checks=(*result.checks, *checks), appraised=True)


def _domain(result: AttestationResult, want: SnpRequirements | TdxRequirements, domains: Collection[str]) -> Check:
    """ROOT-2: the domain is one that the policy names; and a production policy cannot allow debug."""
    named = ", ".join(sorted(domains)) or "none"
    if result.trust_domain not in domains:
        detail = f"trust domain {result.trust_domain}, the policy names {named}"
        return Check("ROOT-2", Outcome.NO, detail, Stage.POLICY)
    if want.allows_debug and PRODUCTION & set(domains):
        detail = "the policy allows debug in a production trust domain"
        return Check("ROOT-2", Outcome.NO, detail, Stage.POLICY)
    return Check("ROOT-2", Outcome.OK, f"trust domain {result.trust_domain}", Stage.POLICY)
