"""The choice points **[C]** of the rules: where known implementations differ, one field says what we do.

No profile re-creates a security defect of another implementation (D1).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Final

from cvars.errors import EfiStatus, UsageMistake


class PinKind(StrEnum):
    """What the pin of a private variable is computed from (R74)."""

    TOP = "top"  # the end of the issuer path built from the signer
    SIGNER = "signer"  # the signer certificate itself
    LAST = "last"  # the last certificate of the message, as one hypervisor service does: import only


class OddName(StrEnum):
    """What an odd NameSize means (R8)."""

    REFUSE = "refuse"
    ROUND_DOWN = "round down"


class CustomModeRule(StrEnum):
    """Until when a guest may set CustomMode (R87)."""

    BEFORE_END_OF_DXE = "before EndOfDxe"
    NEVER = "never"


class MorSource(StrEnum):
    """Whether the platform provides the memory-overwrite request (R92)."""

    DETECT = "detect"  # provided if the variable exists at EndOfDxe
    PROVIDED = "provided"
    ABSENT = "absent"


def _about(rule: str, what: str) -> dict[str, str]:
    """What a choice point decides, and the rule that leaves it open."""
    return {"rule": rule, "what": what}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One value per choice point. The defaults are profile ``spec``."""

    name: str = "spec"

    unknown_message: str = field(
        default="INVALID_REQUEST", metadata=_about("R4", "call result for an unknown message")
    )
    oversize: EfiStatus = field(default=EfiStatus.ACCESS_DENIED, metadata=_about("R7", "sizes beyond the message"))
    answers_truncated: bool = field(default=True, metadata=_about("R7", "a missing fixed part gets an error"))
    odd_name: OddName = field(default=OddName.REFUSE, metadata=_about("R8", "odd NameSize"))
    unterminated: EfiStatus = field(
        default=EfiStatus.ACCESS_DENIED, metadata=_about("R8", "name without NUL, or of size 0")
    )
    keeps_name_tail: bool = field(default=False, metadata=_about("R8", "units behind a name's first NUL are kept"))
    payload_overhead: int = field(default=40, metadata=_about("R11", "bytes that GetPayloadSize does not count"))
    enhanced: bool = field(default=False, metadata=_about("R36", "enhanced authentication is implemented"))
    enhanced_refusal: EfiStatus = field(
        default=EfiStatus.UNSUPPORTED, metadata=_about("R36", "ENH when it is not implemented")
    )
    keeps_one_duplicate: bool = field(
        default=True, metadata=_about("R59", "equal entries of one payload are kept once")
    )
    checks_calendar: bool = field(default=True, metadata=_about("R64", "impossible dates are refused"))
    checks_time_in_setup_mode: bool = field(
        default=True, metadata=_about("R65", "time stamps advance in setup mode too")
    )
    one_signer: bool = field(default=True, metadata=_about("R67", "exactly one signer, else all must verify"))
    allows_signed_attributes: bool = field(
        default=True, metadata=_about("R67", "signed attributes are verified, not refused")
    )
    rsa_floor: int = field(default=2048, metadata=_about("R69", "smallest RSA modulus, bits"))
    wants_self_signed_pk: bool = field(default=True, metadata=_about("R71", "a new PK signs itself in setup mode"))
    wants_rsa_entries: bool = field(default=True, metadata=_about("R73", "X.509 entries must hold an RSA key"))
    refuses_empty_lists: bool = field(default=True, metadata=_about("R73", "lists without entries are refused"))
    allows_many_lists: bool = field(
        default=True, metadata=_about("R73", "more than one list per call is accepted")
    )
    pin_kind: PinKind = field(default=PinKind.TOP, metadata=_about("R74", "certificate that a pin is made of"))
    custom_mode: CustomModeRule = field(
        default=CustomModeRule.BEFORE_END_OF_DXE,
        metadata=_about("R87", "guest may set CustomMode"),
    )
    audit_mode: bool = field(default=False, metadata=_about("R90", "AuditMode and DeployedMode are offered"))
    mor: MorSource = field(default=MorSource.DETECT, metadata=_about("R92", "the platform's MOR variable"))
    refuses_mor_reserved: bool = field(
        default=True, metadata=_about("R93", "reserved bits of the MOR byte are refused")
    )
    allows_min_over_max: bool = field(
        default=True, metadata=_about("R103", "a policy with minimum > maximum is accepted")
    )
    repeats_wildcards: bool = field(default=True, metadata=_about("R104", "an identical wildcard is stored again"))
    registers_while_disabled: bool = field(
        default=False, metadata=_about("R104", "policies register while disabled")
    )
    policy_binds_at_once: bool = field(default=False, metadata=_about("R107", "policies bind before EndOfDxe"))
    allows_disable: bool = field(default=False, metadata=_about("R108", "policy may be disabled before its lock"))
    couples_languages: bool = field(
        default=True, metadata=_about("R118", "PlatformLang and Lang follow each other")
    )

    def choices(self) -> Iterator[tuple[str, str, str, Any]]:
        """Each choice point: rule id, field, value, and what it decides."""
        for f in fields(self):
            if "rule" in f.metadata:
                yield f.metadata["rule"], f.name, f.metadata["what"], getattr(self, f.name)


SPEC: Final = Profile()
EDK2: Final = replace(
    SPEC,
    name="edk2",
    answers_truncated=False,
    odd_name=OddName.ROUND_DOWN,
    enhanced_refusal=EfiStatus.INVALID_PARAMETER,
    keeps_one_duplicate=False,
    checks_calendar=False,
    checks_time_in_setup_mode=False,
    refuses_empty_lists=False,
    pin_kind=PinKind.SIGNER,
    refuses_mor_reserved=False,
)
QEMU: Final = replace(
    SPEC,
    name="qemu",
    oversize=EfiStatus.BAD_BUFFER_SIZE,
    unterminated=EfiStatus.INVALID_PARAMETER,
    checks_calendar=False,
    repeats_wildcards=False,
    couples_languages=False,
)
SCT: Final = replace(SPEC, name="sct", rsa_floor=1024)

PROFILES: Final = {profile.name: profile for profile in (SPEC, EDK2, QEMU, SCT)}


def profile_named(name: str) -> Profile:
    """The profile called ``name``. Raises UsageMistake."""
    if name not in PROFILES:
        raise UsageMistake(f"no profile is called {name!r}", hint=f"there are: {', '.join(PROFILES)}")
    return PROFILES[name]
