"""What the SNP and the TDX appraisal share: allow lists, reference values, trust domains."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from cvars.attest.requirements import Measurements, Ref, ReferenceSet
from cvars.attest.result import Refused

NO_REFERENCES: Final[Mapping[str, ReferenceSet]] = MappingProxyType({})


def in_measurements(found: bytes, allowed: Measurements, references: Mapping[str, ReferenceSet], what: str) -> str:
    """A measurement against a list, a named set of reference values, or a written-out "any"."""
    if isinstance(allowed, Ref):
        known = references.get(allowed.ref)
        if known is None:
            raise Refused(f"reference values {allowed.ref!r} are not known here")
        if found.hex() not in known.measurements:
            raise Refused(f"{what} {found.hex()[:16]}… is not among the reference values {allowed.ref!r}")
        return f"{what} is among the reference values {allowed.ref!r}"
    return any_of_lists(found, allowed, what)


def any_of_lists(found: bytes, allowed: Sequence[str] | None, what: str) -> str:
    """``found`` (hex in ``allowed``), a written-out "any", or None: the evidence must carry none (all zero)."""
    if allowed is None:
        if any(found):
            raise Refused(f"{what} is set, and the policy names none")
        return f"{what} is not set"
    if allowed == "any":
        return f"{what}: any"
    if found.hex() not in allowed:
        raise Refused(f"{what} {found.hex()[:16]}… is not in the allow list")
    return f"{what} is in the allow list"


def matches_init_data(found: bytes, digest: bytes | None, what: str) -> str:
    """``found`` carries the digest of the init-data, or is zero when there is none."""
    if digest is None:
        if any(found):
            raise Refused(f"{what} is set, and no init-data was given")
        return f"{what} is zero"
    if found != digest:
        raise Refused(f"{what} is not the digest of the init-data")
    return f"{what} is the digest of the init-data"
