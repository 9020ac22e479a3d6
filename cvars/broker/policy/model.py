"""The policy language (key-release 3.1): unknown keys are errors, lists not empty, every "any" written out."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
MAX_PART: Final = 128
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,64}$")]
Domain = Literal["amd", "intel", "simulated"]


class Strict(BaseModel):
    """No unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InitDataRequirement(Strict):
    """``digest_in``: hex digests of allowed init-data bodies, by the algorithm that each names."""

    digest_in: Annotated[list[Hex], Field(min_length=1)]


class AnchorRequirement(Strict):
    """What the freshness anchor must say.

    ``lease: required`` releases only to the lease holder. ``max_epoch_gap``: acquisitions since the last
    advance, 0 = no limit. ``takeover: allow`` lets a guest that asks for it fence a live one.
    ``enrol: first-use`` lets an unknown VM make its own record, bound to what was measured.
    """

    lease: Literal["required", "any"]
    max_epoch_gap: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    takeover: Literal["allow", "refuse"] = "refuse"
    enrol: Literal["admin", "first-use"] = "admin"


class Require(Strict):
    """Conditions beside the evidence itself. ``max_token_age`` in seconds."""

    max_token_age: Annotated[int, Field(ge=1, le=86400)] | None = None
    init_data: InitDataRequirement | Literal["any"] = "any"
    anchor: AnchorRequirement | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None

    @field_validator("not_before", "not_after", mode="after")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)

    @model_validator(mode="after")
    def _ordered(self) -> "Require":
        if self.not_before and self.not_after and self.not_before >= self.not_after:
            raise ValueError("not_before is not before not_after: this policy can never allow")
        return self


class Release(Strict):
    """``max_uses``: releases per VM, null for no limit. ``per_vm``: the part after the repository is the VM's id.

    ``rate``: ``N/s``, ``N/min`` or ``N/h`` per VM and broker process.
    """

    max_uses: Annotated[int, Field(ge=1)] | None = None
    per_vm: bool
    rate: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}/(s|min|h)$")] | None = None


class Alternative(Strict):
    """One leaf: requirements for one kind of evidence, in the words of `cvars.attest`."""

    snp: dict[str, Any] | None = None
    tdx: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Alternative":
        if (self.snp is None) == (self.tdx is None):
            raise ValueError("each member of any_of has exactly one of snp, tdx")
        return self


class PolicyDocument(Strict):
    """One policy."""

    policy: Annotated[str, Field(pattern=NAME)]
    version: Annotated[int, Field(ge=1)]
    applies_to: Annotated[list[str], Field(min_length=1)]
    trust_domains: Annotated[list[Domain], Field(min_length=1)]
    require: Require = Require()
    any_of: Annotated[list[Alternative], Field(min_length=1)]
    release: Release

    @field_validator("applies_to")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            parts = pattern.split("/")
            if len(parts) != 3 or not all(p == "*" or is_part(p) for p in parts):
                raise ValueError(f"{pattern!r} is not repository/type/tag (a part may be *)")
        return value


def is_part(text: str) -> bool:
    """Whether ``text`` may be a part of a resource path."""
    return len(text) <= MAX_PART and text.isascii() and PART.fullmatch(text) is not None


def matches(pattern: str, path: str) -> bool:
    """Whether ``path`` (three parts) fits ``pattern``; * matches one part only."""
    return all(p in ("*", part) for p, part in zip(pattern.split("/"), path.split("/"), strict=True))
