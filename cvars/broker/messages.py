"""Bodies of the HTTP API. Unknown members are errors; every text and list is bounded."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

B64_NONCE = Annotated[str, Field(min_length=1, max_length=128)]
Nonce = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{22,128}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
ResourcePath = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}){2}$", max_length=386),
]
Reason = Annotated[str, Field(min_length=1, max_length=200)]
Mode = Literal["none", "per-boot", "bounded", "critical", "strict"]


class Body(BaseModel):
    """Exactly these members."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class AuthRequest(Body):
    """Challenge request (key-release 1.1)."""

    version: Annotated[str, Field(max_length=32)]
    tee: Annotated[str, Field(max_length=32)]
    extra_params: Any = Field(default=None, alias="extra-params")


class AuthReply(Body):
    """``extra-params`` is the empty string: clients then use SHA-384."""

    nonce: str
    extra_params: Literal[""] = Field(alias="extra-params")


class InitDataBody(Body):
    """Measured init-data, the exact text."""

    format: Literal["toml"]
    body: Annotated[str, Field(max_length=65536)]


class RuntimeData(Body):
    """Nonce and session key; the key is checked by `cvars.release.teekey`."""

    nonce: B64_NONCE
    tee_pubkey: dict[str, Any] = Field(alias="tee-pubkey", max_length=8)


class TeeEvidence(Body):
    """``additional_evidence`` is a string: empty, or JSON."""

    primary_evidence: Any
    additional_evidence: Annotated[str, Field(max_length=262144)]


class AttestRequest(Body):
    """Evidence (key-release 1.2)."""

    init_data: InitDataBody | None = Field(default=None, alias="init-data")
    runtime_data: RuntimeData = Field(alias="runtime-data")
    tee_evidence: TeeEvidence = Field(alias="tee-evidence")


class AttestReply(Body):
    """The attestation token, a compact JWS."""

    token: str


class Jwe(Body):
    """Flattened JWE."""

    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str


class KbsError(Body):
    """Trustee's error body."""

    type: str
    detail: str


class ProblemBody(Body):
    """RFC 9457, with a stable ``reason`` and the ``rule`` that refused."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    rule: str
    request_id: str


class ReleaseRequest(Body):
    """``provision`` asks for the grant to create a store."""

    resource: ResourcePath
    nonce: Nonce
    provision: bool = False


class ReleaseReply(Body):
    """A JWE and the statement over its ciphertext."""

    jwe: Jwe
    statement: str


class AcquireRequest(Body):
    """``resume``: continue that epoch; only the same SNP instance may."""

    nonce: Nonce
    takeover: bool = False
    resume: Count | None = None


class AcquireReply(Body):
    """Channel key, escrow ring (standard base64) and the signed statement."""

    jwe: Jwe
    escrow: str
    statement: str


class Point(Body):
    """Sequence and state digest of a commit."""

    counter: Count
    root: Hex32


class AdvanceRequest(Body):
    """One compare-and-swap of the committed point (key-release 5.4)."""

    epoch: Count
    start: Point = Field(alias="from")
    to: Point
    base: Point
    key_version: Count
    escrow: Annotated[str, Field(max_length=400_000)]


class RenewRequest(Body):
    """A longer lease."""

    epoch: Count


class SealRequest(Body):
    """Give the lease back at the anchored point."""

    epoch: Count
    counter: Count
    root: Hex32


class ReceiptReply(Body):
    """A signed receipt."""

    receipt: str


class IdentityReply(Body):
    """Public keys (standard base64 of DER SPKI). A pin makes one of them count, nothing else does."""

    broker_id: str
    keys: list[str]
    simulation: bool


class AddVmRequest(Body):
    """An operator's new record."""

    vm_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]
    mode: Mode = "critical"


class ReasonRequest(Body):
    """Why; it goes into the history."""

    reason: Reason


class ResetRequest(Body):
    """``to``: another anchored point, or "new" (then with a new store id and key)."""

    reason: Reason
    to: Point | Literal["new"]


class Vm(Body):
    """An anchor record."""

    vm_id: str
    store_id: str
    mode: str
    state: str
    epoch: int
    counter: int
    root: str
    base: Point
    ring_bytes: int
    key_version: int
    key_old: int | None
    version: int
    acquires: int
    lease_expires: float | None
    history: str


class VmList(Body):
    """All of them."""

    vms: list[Vm]


class HistoryReply(Body):
    """Transitions in order, each with the hash that chains it."""

    entries: list[dict[str, Any]]


class PolicyBody(Body):
    """A typed policy, YAML; its own name must be the one in the path."""

    text: Annotated[str, Field(min_length=1, max_length=262144)]


class PolicyInfo(Body):
    """``source``: a file, or ``database``."""

    name: str
    digest: str
    applies_to: list[str]


class PolicyList(Body):
    """The active policies."""

    policies: list[PolicyInfo]
    restriction: str | None


class SecretInfo(Body):
    """A stored secret: where and which version, never what."""

    path: str
    version: int


class SecretList(Body):
    """All of them."""

    secrets: list[SecretInfo]


class DecisionList(Body):
    """The last decisions of this process, oldest first."""

    decisions: list[dict[str, Any]]


class CheckpointReply(Body):
    """A signed checkpoint, compact JWS."""

    checkpoint: str


class Done(Body):
    """It is done."""

    done: Literal[True]


class RegoBody(Body):
    """Base64url of a Rego text."""

    policy: Annotated[str, Field(min_length=1, max_length=131072)]


class AttestationPolicyBody(Body):
    """Base64url of a Rego text; ``policy_id`` is kept for compatibility."""

    type: Literal["rego"]
    policy_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    policy: Annotated[str, Field(min_length=1, max_length=131072)]
