"""What a policy may require of evidence: the leaves ``snp:`` and ``tdx:`` (key-release 3.1).

Unknown keys are errors, every list is non-empty, every "any" is written out. What a leaf does not mention is
closed: no ID key, no author key, no owner, host data that matches the init-data (or is zero when there is none).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from cvars.attest.snp.products import Line, Tcb, components

_STRICT: Final = ConfigDict(extra="forbid", frozen=True, strict=True)


Hex16: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$", to_lower=True)]
Hex32: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]
Hex48: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{96}$", to_lower=True)]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}$")]
Any_: TypeAlias = Literal["any"]
Flag: TypeAlias = bool | Any_
Svn: TypeAlias = Annotated[int, Field(ge=0, le=255)]
U32: TypeAlias = Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
U64: TypeAlias = Annotated[int, Field(ge=0, le=0xFFFFFFFFFFFFFFFF)]


class _Model(BaseModel):
    model_config = _STRICT


class Ref(_Model):
    """The name of a set of reference values."""

    ref: Name


class LaunchTuple(_Model):
    """One allowed measurement and what it was computed from (`attestation` 2.8): image, vCPUs, VMM, features."""

    measurement: Hex48
    image_sha256: Hex32 | None = None
    vcpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    vcpu_type: str | None = None
    vmm: str | None = None
    guest_features: U64 | None = None
    note: str | None = None


class ReferenceSet(_Model):
    """Measurements that a policy refers to by one name."""

    values: Annotated[tuple[LaunchTuple, ...], Field(min_length=1, strict=False)]

    @property
    def measurements(self) -> frozenset[str]:
        """The allowed values, hex."""
        return frozenset(one.measurement for one in self.values)


References: TypeAlias = Mapping[str, ReferenceSet]
_List: Final = Field(min_length=1, strict=False)
Measurements: TypeAlias = Annotated[tuple[Hex48, ...], _List] | Ref | Any_
Digests48: TypeAlias = Annotated[tuple[Hex48, ...], _List] | Any_
Digests32: TypeAlias = Annotated[tuple[Hex32, ...], _List] | Any_


class GuestPolicy(_Model):
    """Guest-policy bits: a value is required, or "any". What only weakens is off unless it is written out."""

    debug: bool = False
    migrate_ma: Flag = False
    smt: Flag = "any"
    single_socket: Flag = "any"
    cxl: Flag = False
    aes256xts: Flag = "any"
    rapl_disabled: Flag = "any"
    ciphertext_hiding: Flag = "any"
    page_swap_disabled: Flag = "any"
    abi_min: Annotated[str, StringConstraints(pattern=r"^\d{1,3}\.\d{1,3}$")] | None = None


class Platform(_Model):
    """platform_info bits: true must be set, false must be clear."""

    smt: Flag = "any"
    tsme: Flag = "any"
    ecc: Flag = "any"
    rapl_disabled: Flag = "any"
    ciphertext_hiding: Flag = "any"
    alias_check: Flag = "any"
    tio: Flag = "any"


class TcbFloor(_Model):
    """The lowest acceptable component versions of one product line."""

    fmc: Svn | None = None
    bootloader: Svn
    tee: Svn
    snp: Svn
    microcode: Svn

    @property
    def tcb(self) -> Tcb:
        """As a TCB version."""
        return Tcb(self.bootloader, self.tee, self.snp, self.microcode, self.fmc)


class Mitigations(_Model):
    """Bits that must be set in the mitigation vectors (report version 5)."""

    launch: U64 = 0
    current: U64 = 0


class SnpRequirements(_Model):
    """The leaf ``snp:``."""

    product: Annotated[tuple[Line, ...], _List]
    report_versions: Annotated[tuple[Annotated[int, Field(ge=2, le=255)], ...], _List] = (3, 4, 5)
    signing_key: Annotated[tuple[Literal["vcek", "vlek"], ...], _List] = ("vcek",)
    csp_id_in: Annotated[tuple[str, ...], _List] | Any_ | None = None
    vmpl: Annotated[tuple[Annotated[int, Field(ge=0, le=3)], ...], _List] = (0,)
    measurement_in: Measurements
    host_data_in: Digests32 | Literal["init-data"] = "init-data"
    id_key_digest_in: Digests48 | None = None
    author_key_digest_in: Digests48 | None = None
    family_id: Hex16 | None = None
    image_id: Hex16 | None = None
    guest_svn_min: U32 = 0
    guest_policy: GuestPolicy = GuestPolicy()
    platform: Platform = Platform()
    min_tcb: Annotated[dict[Line, TcbFloor], Field(min_length=1)]
    mitigations: Mitigations = Mitigations()
    crl: Literal["require", "if-present", "ignore"] = "if-present"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for line in self.product:
            if line not in self.min_tcb:
                raise ValueError(f"min_tcb has no floor for {line}")  # K13
            if (self.min_tcb[line].fmc is not None) != ("fmc" in components(line)):
                raise ValueError(f"min_tcb.{line}: fmc belongs to Turin, and only there")
        if unused := set(self.min_tcb) - set(self.product):
            raise ValueError(f"min_tcb has a floor for {', '.join(sorted(unused))}, which product does not list")
        if "vlek" in self.signing_key and self.csp_id_in is None:
            raise ValueError("signing_key lists vlek: csp_id_in is needed")
        return self

    @property
    def allows_debug(self) -> bool:
        """Production policies cannot express it: the document that holds this leaf refuses it at load."""
        return self.guest_policy.debug


TcbStatus: TypeAlias = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]  # Revoked cannot be listed: it always rejects


class In(_Model):
    """An exact list, written as ``{in: [...]}``."""

    in_: Annotated[tuple[Hex48, ...], _List] = Field(alias="in")


class Rtmr(_Model):
    """The four run-time measurement registers; each is written out."""

    r0: In | Any_ = Field(alias="0")
    r1: In | Any_ = Field(alias="1")
    r2: In | Any_ = Field(alias="2")
    r3: In | Any_ = Field(alias="3")


def _text_keys(value: Any) -> Any:  # noqa: ANN401 - YAML reads the register numbers as integers
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else value


class TdAttributes(_Model):
    """TD attribute bits: a value is required, or "any"."""

    debug: bool = False
    sept_ve_disable: Flag = True
    migratable: Flag = False
    perfmon: Flag = False
    lass: Flag = "any"
    pks: Flag = "any"
    key_locker: Flag = "any"


class Xfam(_Model):
    """Extended features: exactly one value, or at most the bits of a mask (hex of the 8 little-endian bytes)."""

    exact: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{16}$", to_lower=True)] | None = None
    mask: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{16}$", to_lower=True)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.exact is None) == (self.mask is None):
            raise ValueError("xfam is either exact or a mask")
        return self


class TdxRequirements(_Model):
    """The leaf ``tdx:``."""

    mr_td_in: Measurements
    rtmr: Annotated[Rtmr, BeforeValidator(_text_keys)]
    mr_config_id_in: Digests48 | Literal["init-data"] = "init-data"
    mr_owner_in: Digests48 | None = None
    mr_owner_config_in: Digests48 | None = None
    mr_service_td_in: Digests48 | None = None
    mr_seam_in: Annotated[tuple[Hex48, ...], _List] | None = None
    tcb_status: Annotated[tuple[TcbStatus, ...], _List] = ("UpToDate",)
    tolerate_advisories: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    grace_days: Annotated[int, Field(ge=0, le=3650)] = 0
    min_eval_number: Annotated[int, Field(ge=0)] = 0
    attributes: TdAttributes = TdAttributes()
    xfam: Xfam | None = None

    @property
    def allows_debug(self) -> bool:
        """Production policies cannot express it: the document that holds this leaf refuses it at load."""
        return self.attributes.debug
