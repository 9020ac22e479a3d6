"""What a verdict is: checks by rule, the first failing rule, claims. Bad evidence is a result, never an exception.

Three questions, in this order and never mixed: authentic? bound? acceptable? A `VerifiedEvidence` can only be
made by `verify`, an accepted one only by `appraise`, so that nothing can appraise what nobody verified.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Generic, NamedTuple, TypeVar

Facts = TypeVar("Facts")


class Stage(StrEnum):
    """Which of the questions a check answers; collateral belongs to the third."""

    AUTHENTIC = "authentic"
    COLLATERAL = "collateral"
    BOUND = "bound"
    POLICY = "policy"


class Outcome(StrEnum):
    """How one check ended."""

    OK = "ok"
    NO = "no"
    SKIPPED = "skipped"


class Check(NamedTuple):
    """One rule, evaluated."""

    rule: str
    outcome: Outcome
    detail: str
    stage: Stage

    def as_json(self) -> dict[str, str]:
        """The members by name."""
        return {
            "rule": self.rule,
            "outcome": str(self.outcome),
            "stage": str(self.stage),
            "detail": self.detail,
        }


class Refused(Exception):
    """Raised inside a rule only: the rule is violated. ``stage`` overrides the rule's own."""

    def __init__(self, detail: str, *, stage: Stage | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.stage = stage


class Skipped(Exception):
    """Raised inside a rule only: there was nothing to check."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Rule(Generic[Facts]):
    """One row of the specification's tables: ``check`` returns a detail, or raises `Refused` or `Skipped`."""

    id: str
    stage: Stage
    check: Callable[[Facts], str]


def evaluate(rules: Iterable[Rule[Facts]], facts: Facts, *, stop: bool) -> list[Check]:
    """Evaluate ``rules`` in order; with ``stop``, nothing after a violated one that is not about policy."""
    out: list[Check] = []
    for rule in rules:
        try:
            out.append(Check(rule.id, Outcome.OK, rule.check(facts), rule.stage))
        except Skipped as skipped:
            out.append(Check(rule.id, Outcome.SKIPPED, skipped.detail, rule.stage))
        except Refused as refused:
            out.append(Check(rule.id, Outcome.NO, refused.detail, refused.stage or rule.stage))
            if stop and out[-1].stage is not Stage.POLICY:
                break
    return out


def genuine(checks: Iterable[Check]) -> bool:
    """No rule about authenticity was violated. The rules about it come first, so all of them were evaluated."""
    return not any(check.outcome is Outcome.NO and check.stage is Stage.AUTHENTIC for check in checks)


@dataclass(frozen=True, slots=True)
class CollateralItem:
    """A certificate, list or document that the verdict rests on, with its validity window."""

    name: str
    not_before: datetime
    not_after: datetime

    def as_json(self) -> dict[str, str]:
        """Times in ISO 8601, UTC."""
        return {
            "name": self.name,
            "not_before": self.not_before.isoformat(),
            "not_after": self.not_after.isoformat(),
        }


_MADE_HERE: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """A verdict. ``accepted`` is true only after `appraise`; ``verified`` says authentic and not unbound.

    Attributes:
        tee: ``snp``, ``tdx`` or ``sgx`` (diagnostics only).
        trust_domain: of the pinned root that closed the chain (ROOT-1); None when the evidence is not authentic.
        parsed: the parsed report or quote, when there is one.
        facts: what the appraisal needs beside the claims; private to this package.
    """

    tee: str
    trust_domain: str | None
    claims: Mapping[str, Any]
    checks: tuple[Check, ...]
    collateral: tuple[CollateralItem, ...] = ()
    parsed: object = None
    facts: object = field(default=None, repr=False)
    appraised: bool = False

    @property
    def failed(self) -> Check | None:
        """The first violated check."""
        return next((check for check in self.checks if check.outcome is Outcome.NO), None)

    @property
    def rule(self) -> str | None:
        """The first failing rule."""
        return self.failed.rule if self.failed else None

    @property
    def detail(self) -> str:
        """What the first failing rule found."""
        return self.failed.detail if self.failed else ""

    @property
    def authentic(self) -> bool:
        """Question 1: genuine (or explicitly simulated) hardware made it, and nobody changed it."""
        return self.trust_domain is not None and genuine(self.checks)

    @property
    def bound(self) -> bool | None:
        """Question 2: it carries the expected report data; None when no value was expected."""
        mine = [check for check in self.checks if check.stage is Stage.BOUND]
        if not mine or mine[-1].outcome is Outcome.SKIPPED:
            return None
        return mine[-1].outcome is Outcome.OK

    @property
    def verified(self) -> bool:
        """Nothing failed so far and the evidence is authentic. Not yet a reason to release anything."""
        return isinstance(self, VerifiedEvidence) and self.authentic and self.failed is None

    @property
    def accepted(self) -> bool:
        """All three questions were answered with yes."""
        return self.appraised and self.verified

    @property
    def simulated(self) -> bool:
        """Rests on a root of simulated hardware."""
        return self.trust_domain == "simulated"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "tee": self.tee,
            "trust_domain": self.trust_domain,
            "authentic": self.authentic,
            "bound": self.bound,
            "accepted": self.accepted,
            "rule": self.rule,
            "detail": self.detail,
            "checks": [check.as_json() for check in self.checks],
            "claims": dict(self.claims),
            "collateral": [item.as_json() for item in self.collateral],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEvidence(AttestationResult):
    """A result of the verifier. Nobody else can make one."""

    made_by: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.made_by is not _MADE_HERE:
            raise TypeError("only the verifier makes a VerifiedEvidence")


def concluded(**members: Any) -> VerifiedEvidence:  # noqa: ANN401 - the members of AttestationResult
    """Make a result; for `cvars.attest.snp.rules` and `cvars.attest.tdx.rules` only."""
    return VerifiedEvidence(made_by=_MADE_HERE, **members)


def rejected(tee: str, rule: str, detail: str) -> AttestationResult:
    """The result for evidence that could not even be read."""
    check = Check(rule, Outcome.NO, detail, Stage.AUTHENTIC)
    return AttestationResult(tee=tee, trust_domain=None, claims={"tee": tee}, checks=(check,))
