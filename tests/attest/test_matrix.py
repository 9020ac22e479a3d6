"""Every rule of the tables refuses its own case, and nothing else would have: each check removed in turn."""

import sys

import pytest

from cvars.attest import load_simulated
from cvars.attest.result import Check, Outcome, Stage
from cvars.attest.simulated import SimulatedTdx
from cvars.attest.snp import policy as snp_policy
from cvars.attest.snp import rules as snp_rules
from cvars.attest.tdx import policy as tdx_policy
from cvars.attest.tdx import rules as tdx_rules
from tests.attest.cases_snp import snp_cases
from tests.attest.cases_tdx import tdx_cases
from tests.attest.conftest import NOW
from tests.attest.kit import Bench

APPRAISE = sys.modules["cvars.attest.appraise"]
MODULES = {"snp": (snp_rules, snp_policy), "tdx": (tdx_rules, tdx_policy)}
CASES = {"snp": snp_cases(), "tdx": tdx_cases()}
FLAT = [(tee, case) for tee, cases in CASES.items() for case in cases]


@pytest.fixture
def bench(amd, simulated_hardware, randomness, sim_roots, tmp_path_factory):
    def tdx_at(folder):
        return lambda: SimulatedTdx.load_or_create(folder, random=randomness, clock=NOW.timestamp)

    other = simulated_hardware.with_name("other-hardware")
    tdx_at(other)()
    roots = load_simulated(other, simulation=True, base=sim_roots)
    return Bench(amd, tdx_at(simulated_hardware), roots, tdx_at(other))


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_the_base_of_all_cases_is_accepted(bench, tee):
    if tee == "snp":
        attempts = [bench.snp(line, version=v) for line in ("Milan", "Genoa", "Turin") for v in (2, 3, 4, 5)]
        attempts += [bench.snp(line, vlek=True) for line in ("Milan", "Genoa", "Turin")]
        attempts += [bench.snp(crl=lambda sp: sp.revocation_list(), want={"crl": "require"})]
    else:
        attempts = [bench.td(version, events=events) for version in (4, 5) for events in (False, True)]
    for attempt in attempts:
        verdict = attempt.verdict()
        assert (verdict.rule, verdict.detail) == (None, "")
        assert verdict.accepted


@pytest.mark.parametrize(("tee", "case"), FLAT, ids=[f"{tee}-{case.id}" for tee, case in FLAT])
@pytest.mark.rule(
    "ROOT-1", "ROOT-2", "ROOT-4", "ROOT-5", "SNP-FMT", "SNP-ALG", "SNP-KEYKIND", "SNP-PROD", "SNP-CHAIN",
    "SNP-LEAF", "SNP-TIME", "SNP-CRL", "SNP-SIG", "SNP-TCBBIND", "SNP-HWID", "SNP-TCBORDER", "SNP-BIND",
    "SNP-VMPL", "SNP-DEBUG", "SNP-MA", "SNP-POLICY", "SNP-PLAT", "SNP-MEAS", "SNP-HOSTDATA", "SNP-IDKEY",
    "SNP-AUTHKEY", "SNP-SVN", "SNP-MINTCB", "SNP-MITVEC", "TDX-FMT", "TDX-HDR", "TDX-PCK", "TDX-CRL",
    "TDX-QESIG", "TDX-QEHASH", "TDX-SIG", "TDX-COLL", "TDX-COLLTIME", "TDX-QEID", "TDX-FMSPC", "TDX-SEAM",
    "TDX-TCB", "TDX-MODULE", "TDX-MERGE", "TDX-RELAUNCH", "TDX-STATUS", "TDX-EVAL", "TDX-BIND", "TDX-ATTR",
    "TDX-XFAM", "TDX-MR", "TDX-MRSEAM", "TDX-RTMR",
)  # fmt: skip
def test_a_violation_is_refused_by_its_rule_and_by_no_other(bench, monkeypatch, tee, case):
    attempt = case.make(bench)
    verdict = attempt.verdict()
    assert verdict.rule == case.rule, verdict.detail
    assert not verdict.accepted
    failed = {check.rule for check in verdict.checks if check.outcome is Outcome.NO}
    assert failed == {case.rule}
    remove(monkeypatch, tee, case.rule)
    undone = attempt.verdict()
    assert (undone.rule, undone.detail) == (None, "")
    assert undone.accepted


def remove(monkeypatch, tee, rule):
    """Take one rule out of the verifier and the appraisal of ``tee``."""
    for module in MODULES[tee]:
        monkeypatch.setattr(module, "RULES", tuple(one for one in module.RULES if one.id != rule))
    if rule == "ROOT-2":
        fine = Check("ROOT-2", Outcome.OK, "not checked", Stage.POLICY)
        monkeypatch.setattr(APPRAISE, "_domain", lambda *_: fine)


@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_each_check_removed_changes_its_own_cases_and_no_other(bench, tee):
    """The matrix, sampled: one case of each rule (and variant)."""
    seen = {}
    for case in CASES[tee]:
        seen.setdefault((case.rule, case.id.partition("-")[0]), case)
    try_the_matrix(bench, tee, list(seen.values()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_the_complete_matrix(bench, tee):
    try_the_matrix(bench, tee, CASES[tee])


def try_the_matrix(bench, tee, cases):
    """Remove each check in turn: exactly its own cases are accepted then, and every check has one."""
    attempts = {case: case.make(bench) for case in cases}
    changed = {}
    for rule in sorted({rule.id for module in MODULES[tee] for rule in module.RULES} | {"ROOT-2"}):
        with pytest.MonkeyPatch.context() as patch:
            remove(patch, tee, rule)
            accepted = {case.id for case, attempt in attempts.items() if attempt.verdict().accepted}
        assert accepted == {case.id for case in cases if rule == case.rule or rule in case.undone_by}, rule
        changed[rule] = len(accepted)
    print(f"\n{tee}: {len(changed)} checks removed in turn, {len(attempts)} cases each; accepted then: {changed}")
    assert all(changed.values())


@pytest.mark.rule("TDX-MERGE")
def test_TDX_MERGE_takes_the_worst_of_platform_module_and_qe(bench):
    from cvars.attest.tdx.tcb import STATUSES

    shipped = [s for s in STATUSES if not s.startswith("TDRelaunch")]
    for platform in shipped:
        for module in shipped:
            for qe in ("UpToDate", "OutOfDate"):
                attempt = bench.td(collateral={"status": platform, "module_status": module, "qe_status": qe})
                status = attempt.verdict().claims["tdx"]["tcb"]["status"]
                assert status == max((platform, module, qe), key=STATUSES.index)


def test_SNP_PROD_refuses_a_line_that_the_policy_does_not_list(bench):
    floors = {"product": ["Milan"], "min_tcb": {"Milan": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}}}
    verdict = bench.snp("Genoa", want=floors).verdict()
    assert verdict.rule == "SNP-PROD"  # and SNP-MINTCB has no floor for it either (K13)
    assert "SNP-MINTCB" in {check.rule for check in verdict.checks if check.outcome is Outcome.NO}
