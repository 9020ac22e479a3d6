"""Evaluation: total, no I/O, no clock but the passed-in time. Every leaf answers allow, or deny with a rule."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cvars.broker.policy.load import Policy
from cvars.broker.policy.model import AnchorRequirement, matches
from cvars.broker.verifier import Result, Verifier


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decision may look at. ``lease_held``: this session holds the live lease; None: do not ask yet."""

    path: str
    result: Result
    tee: str
    attested_at: float
    now: float
    init_data_digest: str | None = None
    measured: bytes | None = None
    vm_id: str | None = None
    lease_held: bool | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One leaf of one policy: ``rule`` is None when it allows."""

    policy: str
    leaf: str
    rule: str | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The whole decision, with all leaves."""

    allowed: bool
    rule: str | None
    detail: str
    verdicts: tuple[Verdict, ...]
    policies: tuple[Policy, ...]

    @property
    def digests(self) -> str:
        """Names and digests of the policies that decided, for statement and audit."""
        return ",".join(f"{p.name}@{p.digest[:16]}" for p in self.policies)

    @property
    def anchor(self) -> AnchorRequirement:
        """The strictest anchor requirement of all attached policies."""
        found = [p.document.require.anchor for p in self.policies if p.document.require.anchor is not None]
        gaps = [a.max_epoch_gap for a in found if a.max_epoch_gap]
        every = len(found) == len(self.policies) and bool(found)
        return AnchorRequirement(
            lease="required" if any(a.lease == "required" for a in found) else "any",
            max_epoch_gap=min(gaps, default=0),
            takeover="allow" if every and all(a.takeover == "allow" for a in found) else "refuse",
            enrol="first-use" if every and all(a.enrol == "first-use" for a in found) else "admin",
        )


def attached(policies: Iterable[Policy], path: str) -> tuple[Policy, ...]:
    """The policies whose patterns match ``path``."""
    return tuple(p for p in policies if any(matches(pattern, path) for pattern in p.document.applies_to))


def decide(policies: Sequence[Policy], facts: Facts, verifier: Verifier) -> Decision:
    """All attached policies must allow; none attached means no."""
    mine = attached(policies, facts.path)
    if not mine:
        verdict = Verdict("", "applies_to", "POL-NONE", "no policy is attached to this resource")
        return Decision(False, verdict.rule, verdict.detail, (verdict,), ())
    verdicts = [v for policy in mine for v in _judge(policy, facts, verifier)]
    first = next((v for v in verdicts if v.rule is not None), None)
    return Decision(
        first is None, first.rule if first else None, first.detail if first else "", tuple(verdicts), mine
    )


def _judge(policy: Policy, facts: Facts, verifier: Verifier) -> list[Verdict]:
    out: list[Verdict] = []

    def leaf(name: str, ok: Any, rule: str, detail: str) -> None:  # noqa: ANN401
        out.append(Verdict(policy.name, name, None if ok else rule, "" if ok else detail))

    document, require = policy.document, policy.document.require
    leaf(
        "trust_domains",
        facts.result.verified and facts.result.trust_domain in document.trust_domains,
        "POL-DOMAIN",
        f"trust domain {facts.result.trust_domain}, policy wants {', '.join(document.trust_domains)}",
    )
    if require.max_token_age is not None:
        age = facts.now - facts.attested_at
        leaf("require.max_token_age", age <= require.max_token_age, "POL-AGE", f"attested {age:.0f} s ago")
    if require.init_data != "any":
        leaf(
            "require.init_data",
            facts.init_data_digest in require.init_data.digest_in,
            "POL-INITDATA",
            f"init-data digest {facts.init_data_digest}",
        )
    now = datetime.fromtimestamp(facts.now, UTC)
    if require.not_before is not None:
        leaf("require.not_before", now >= require.not_before, "POL-NOTBEFORE", f"{now:%Y-%m-%dT%H:%M:%SZ}")
    if require.not_after is not None:
        leaf("require.not_after", now < require.not_after, "POL-NOTAFTER", f"{now:%Y-%m-%dT%H:%M:%SZ}")
    if document.release.per_vm:
        leaf(
            "release.per_vm",
            facts.vm_id is not None and facts.path.split("/")[1] == facts.vm_id,
            "POL-PERVM",
            f"the measured VM is {facts.vm_id}",
        )
    if require.anchor is not None and require.anchor.lease == "required" and facts.lease_held is not None:
        leaf("require.anchor.lease", facts.lease_held, "POL-LEASE", "this session does not hold the lease")
    out.append(_any_of(policy, facts, verifier))
    return out


def _any_of(policy: Policy, facts: Facts, verifier: Verifier) -> Verdict:
    """One of the leaves of this kind of evidence must accept it; the nearest miss is named."""
    misses: list[tuple[int, str, str]] = []
    for number, candidate in enumerate(policy.leaves):
        if candidate.tee != facts.tee:
            continue
        appraised = verifier.appraise(
            facts.result,
            candidate.requirements,
            trust_domains=policy.document.trust_domains,
            init_data=facts.measured,
            references=policy.references,
        )
        if appraised.accepted:
            return Verdict(policy.name, f"any_of[{number}].{candidate.tee}", None)
        misses.append((number, appraised.rule or "POL-EVIDENCE", appraised.detail))
    if not misses:
        return Verdict(policy.name, "any_of", "POL-TEE", f"no alternative for {facts.tee}")
    number, rule, detail = misses[0]
    return Verdict(policy.name, f"any_of[{number}].{facts.tee}", rule, detail)
