"""Run a manifest of recorded evidence: every case and every mutation against what the manifest expects of it.

The format is that of the recorded vectors: `cases` (files, evaluate_at, primitive, fields, expected) and
`mutations` (base, target, patch, expected), paths relative to the manifest. The policy is the default one:
production domains, VMPL 0, no debug, no migration agent, report version >= 3, TCB UpToDate with collateral;
measurements as they are.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from cvars.attest.appraise import appraise
from cvars.attest.certificates import load_any
from cvars.attest.der import DerError
from cvars.attest.evidence import Evidence, SnpEvidence, Supplied, read_snp, read_tdx
from cvars.attest.fields import snp_fields, tdx_fields
from cvars.attest.requirements import SnpRequirements, TdxRequirements
from cvars.attest.result import AttestationResult, Outcome, Stage
from cvars.attest.roots import PRODUCTION, TrustRoots
from cvars.attest.snp.facts import Facts as SnpFacts
from cvars.attest.snp.hcl import parse_envelope
from cvars.attest.snp.report import SnpReport
from cvars.attest.snp.rules import verify_certificate
from cvars.attest.tdx.facts import Facts as TdxFacts
from cvars.attest.tdx.quote import Quote, TdReport
from cvars.attest.tdx.tcb import STATUSES
from cvars.attest.verify import verify
from cvars.errors import CvarsError

Read = Callable[[str], bytes]

_PRIMITIVES: Final = {
    "chain": "SNP-CHAIN",
    "report_signature": "SNP-SIG",
    "tcb_binding": "SNP-TCBBIND",
    "hwid_binding": "SNP-HWID",
    "quote_signature": "TDX-SIG",
    "qe_report_hash": "TDX-QEHASH",
    "qe_report_signature": "TDX-QESIG",
    "pck_chain_to_intel_root": "TDX-PCK",
}
_ZERO_TCB: Final = {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}
_FLOORS: Final = {"Milan": _ZERO_TCB, "Genoa": _ZERO_TCB, "Turin": _ZERO_TCB | {"fmc": 0}}
_SNP_FILES: Final = ("report", "hcl", "kbs_evidence")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the answer. ``differences`` says what is not as expected."""

    id: str
    kind: str  # case or mutation
    authentic: bool
    verdict: str  # accept, reject or n/a
    rule: str | None
    detail: str
    differences: tuple[str, ...]

    @property
    def as_expected(self) -> bool:
        """Nothing differs."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """The members that others rely on, and more."""
        return {
            "id": self.id,
            "kind": self.kind,
            "authentic": self.authentic,
            "verdict": self.verdict,
            "rule": self.rule,
            "as_expected": self.as_expected,
            "detail": self.detail,
            "differences": list(self.differences),
        }


def run(manifest: Mapping[str, Any], read: Read, roots: TrustRoots) -> list[Verdict]:
    """All cases, then all mutations. What is malformed in the manifest is a difference, not an exception."""
    cases = {case["id"]: case for case in manifest["cases"]}
    out = [_guarded(case["id"], "case", partial(_case, case, read, roots)) for case in cases.values()]
    for one in manifest.get("mutations", ()):
        out.append(_guarded(one["id"], "mutation", partial(_mutation, one, cases, read, roots)))
    return out


def _guarded(name: str, kind: str, run_one: Callable[[], Verdict]) -> Verdict:
    try:
        return run_one()
    except (KeyError, TypeError, ValueError, OSError, CvarsError) as wrong:
        text = f"the manifest's entry cannot be run: {type(wrong).__name__}: {wrong}"
        return Verdict(name, kind, False, "n/a", None, "", (text,))


def _case(case: Mapping[str, Any], read: Read, roots: TrustRoots) -> Verdict:
    files = {name: read(path) for name, path in case["files"].items()}
    result = _judge(case, files, roots)
    differences = _compare(result, case["expected"])
    differences += _compare_parse(result, case, files)
    return _verdict(case["id"], "case", result, differences, case["expected"])


def _mutation(one: Mapping[str, Any], cases: Mapping[str, Any], read: Read, roots: TrustRoots) -> Verdict:
    base, target = cases[one["base"]], one["target"]
    files = {name: read(path) for name, path in base["files"].items()}
    files[target] = patched(files[target], one["patch"])
    if target in _SNP_FILES:  # only the patched form counts
        files = {name: data for name, data in files.items() if name not in _SNP_FILES or name == target}
    result = _judge(base, files, roots)
    return _verdict(one["id"], "mutation", result, _compare(result, one["expected"]), one["expected"])


def patched(data: bytes, patch: Iterable[Mapping[str, Any]]) -> bytes:
    """Apply a recipe: ``xor`` or ``hex`` at ``offset``, ``truncate`` to a length, ``append`` bytes.

    Raises:
        ValueError: an operation that is not one of these, or outside of the data.
    """
    out = bytearray(data)
    for operation in patch:
        match dict(operation):
            case {"offset": int(at), "xor": str(text)}:
                mask = bytes.fromhex(text)
                if at < 0 or at + len(mask) > len(out):
                    raise ValueError(f"xor at {at} outside of {len(out)} bytes")
                out[at : at + len(mask)] = bytes(a ^ b for a, b in zip(out[at:], mask, strict=False))
            case {"offset": int(at), "hex": str(text)}:
                new = bytes.fromhex(text)
                if at < 0 or at + len(new) > len(out):
                    raise ValueError(f"bytes at {at} outside of {len(out)}")
                out[at : at + len(new)] = new
            case {"truncate": int(size)}:
                del out[size:]
            case {"append": str(text)}:
                out += bytes.fromhex(text)
            case other:
                raise ValueError(f"unknown patch {sorted(other)}")
    return bytes(out)


def _judge(case: Mapping[str, Any], files: Mapping[str, bytes], roots: TrustRoots) -> AttestationResult:
    """Verify and appraise with the default policy."""
    at = None if case.get("evaluate_at") is None else datetime.fromtimestamp(case["evaluate_at"], UTC)
    if not {"quote", *_SNP_FILES} & files.keys():
        return verify_certificate(files["vek"], roots=roots, at=at or datetime.now(UTC))
    evidence = _evidence(files)
    if at is None:
        at = _newest_start(evidence, roots)
    result = verify(evidence, roots=roots, at=at, report_data=_expected_report_data(files))
    want = default_requirements(result)
    return result if want is None else appraise(result, want, trust_domains=PRODUCTION)


def _evidence(files: Mapping[str, bytes]) -> Evidence:
    if "quote" in files:
        return read_tdx(files["quote"], files.get("collateral"))
    primary = next(files[name] for name in _SNP_FILES if name in files)
    beside = [(name, data) for name, data in files.items() if name not in (*_SNP_FILES, "collateral")]
    supplied = tuple(Supplied("CRL" if "crl" in name else "unknown", data) for name, data in beside)
    return read_snp(primary, supplied)


def _expected_report_data(files: Mapping[str, bytes]) -> bytes | None:
    """An HCL envelope says itself what the report data must be."""
    return parse_envelope(files["hcl"]).report_data if "hcl" in files else None


def _newest_start(evidence: Evidence, roots: TrustRoots) -> datetime:
    """For a case without a time: the moment from which all certificates of the evidence are valid."""
    probe = verify(evidence, roots=roots, at=datetime(2000, 1, 1, tzinfo=UTC), report_data=None)
    facts = probe.facts
    if isinstance(facts, TdxFacts) and facts.chain:
        return max(certificate.not_before for certificate in facts.chain)
    if isinstance(facts, SnpFacts) and facts.leaf is not None:
        return facts.leaf.not_before
    return datetime.now(UTC)


def default_requirements(result: AttestationResult) -> SnpRequirements | TdxRequirements | None:
    """The default policy with the evidence's own measurements; None when there is nothing to take them from."""
    if isinstance(result.parsed, SnpReport):
        return _snp_requirements(result.parsed)
    if isinstance(result.parsed, Quote) and isinstance(result.parsed.body, TdReport):
        return _tdx_requirements(result.parsed.body)
    return None


def _snp_requirements(report: SnpReport) -> SnpRequirements:
    return SnpRequirements.model_validate(
        {
            "product": ["Milan", "Genoa", "Turin"],
            "report_versions": [3, 4, 5],
            "signing_key": ["vcek", "vlek"],
            "csp_id_in": "any",
            "vmpl": [0],
            "measurement_in": [report.measurement.hex()],
            "host_data_in": [report.host_data.hex()],
            "id_key_digest_in": [report.id_key_digest.hex()],
            "author_key_digest_in": [report.author_key_digest.hex()] if report.author_key_en else None,
            "guest_policy": {"debug": False, "migrate_ma": False, "cxl": "any"},
            "min_tcb": _FLOORS,
        }
    )


def _tdx_requirements(td: TdReport) -> TdxRequirements:
    return TdxRequirements.model_validate(
        {
            "mr_td_in": [td.mr_td.hex()],
            "rtmr": {index: {"in": [value.hex()]} for index, value in enumerate(td.rtmr)},
            "mr_config_id_in": [td.mr_config_id.hex()],
            "mr_owner_in": [td.mr_owner.hex()],
            "mr_owner_config_in": [td.mr_owner_config.hex()],
            "mr_service_td_in": [(td.mr_service_td or bytes(48)).hex()],
        }
    )


def _verdict(
    name: str, kind: str, result: AttestationResult, differences: list[str], expected: Mapping[str, Any]
) -> Verdict:
    verdict = "n/a" if expected.get("default_policy") == "n/a" else "accept" if result.accepted else "reject"
    return Verdict(name, kind, result.authentic, verdict, result.rule, result.detail, tuple(differences))


def _compare(result: AttestationResult, expected: Mapping[str, Any]) -> list[str]:
    out = []
    if result.authentic != expected["authentic"]:
        out.append(f"authentic is {result.authentic}, expected {expected['authentic']}")
    policy = expected.get("default_policy", "n/a")
    verdict = "accept" if result.accepted else "reject"
    if policy not in ("n/a", verdict):
        out.append(f"verdict is {verdict} ({result.rule}: {result.detail}), expected {policy}")
    elif policy == "reject" and expected.get("reasons") and not _a_reason(result, expected["reasons"]):
        out.append(f"rule is {result.rule} ({result.detail}), expected {' or '.join(expected['reasons'])}")
    if "tcb_status" in expected:
        found = result.claims.get(result.tee, {}).get("tcb", {}).get("status")
        if found != expected["tcb_status"]:
            out.append(f"TCB status is {found}, expected {expected['tcb_status']}")
    return out


def _a_reason(result: AttestationResult, reasons: Iterable[str]) -> bool:
    """The first failing rule is one of ``reasons``; among policy rules, which have no order, any failing one."""
    wanted = {reason.partition(":")[0] for reason in reasons}
    wanted |= {"TDX-STATUS" for reason in reasons if reason.partition(":")[2] in STATUSES}
    failed = [check for check in result.checks if check.outcome is Outcome.NO]
    names = [check.rule for check in failed if check is failed[0] or check.stage is Stage.POLICY]
    return any(name in wanted for name in names)


def _compare_parse(result: AttestationResult, case: Mapping[str, Any], files: Mapping[str, bytes]) -> list[str]:
    """Fields, single checks, validity, and the equality of wire forms."""
    out = []
    found: dict[str, Any] = {}
    if isinstance(result.facts, SnpFacts):
        found = snp_fields(result.facts)
    elif isinstance(result.facts, TdxFacts):
        found = tdx_fields(result.facts)
    for name, wanted in case.get("fields", {}).items():
        if name not in found:
            out.append(f"field {name}: not read")
        elif found[name] != wanted:
            out.append(f"field {name}: {found[name]}, expected {wanted}")
    passed = {check.rule for check in result.checks if check.outcome is Outcome.OK}
    for name, wanted in case.get("primitive", {}).items():
        if wanted is not None and (_PRIMITIVES.get(name) in passed) != wanted:
            out.append(f"{name}: {not wanted}, expected {wanted}")
    for name, member in (("vek_not_before", "not_before"), ("vek_not_after", "not_after")):
        if case.get(name) is not None and "vek" in files:
            try:
                stamp = getattr(load_any(files["vek"])[0], member).timestamp()
            except DerError as wrong:
                stamp = str(wrong)
            if stamp != case[name]:
                out.append(f"{name}: {stamp}, expected {case[name]}")
    if "report" in files:
        for name in ("hcl", "kbs_evidence"):
            other = read_snp(files[name]) if name in files else None
            if other is not None and (not isinstance(other, SnpEvidence) or other.report != files["report"]):
                out.append(f"{name} does not yield the report's bytes")
    return out
