"""What happened, in the field's own terms: the events of `trace.jsonl`.

An event never holds a variable's value or a key. ``kind`` names are the ``reason`` values of the command
line as well; they are listed in `docs/reasons.md` and never reused with another meaning.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any, ClassVar, Final, TextIO, TypeAlias
from uuid import UUID

#: said wherever simulated evidence was used
SIMULATED_NOTE: Final = "Evidence is simulated: this shows the protocol, not a hardware guarantee."


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a trace. Subclasses name their ``kind``."""

    kind: ClassVar[str] = "event"

    def as_json(self) -> dict[str, Any]:
        """Members in declaration order, bytes as lower-case hex, GUIDs in registry form."""
        return {"kind": self.kind} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


Trace: TypeAlias = Callable[[Event], None]


def silent(_event: Event) -> None:
    """Keep nothing."""


def _plain(value: Any) -> Any:  # noqa: ANN401 - any member of any event
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    return value


class JsonLines:
    """A trace sink that writes one JSON object per line and flushes it."""

    def __init__(self, out: TextIO, *, clock: Callable[[], float], **constant: Any) -> None:  # noqa: ANN401
        self._out = out
        self._clock = clock
        self._constant = constant
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Write ``event`` with the time (UTC, ISO 8601) and the constants of this sink."""
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds")
        line = json.dumps({"at": at} | self._constant | event.as_json(), ensure_ascii=True)
        with self._lock:
            self._out.write(line + "\n")
            self._out.flush()


class Recorder:
    """A trace sink that keeps events in memory, for tests and the lab."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep ``event``."""
        self.events.append(event)

    def kinds(self) -> list[str]:
        """The kinds, in order."""
        return [event.kind for event in self.events]


# --- the component and its guest -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentStarted(Event):
    """The trusted component begins its boot sequence."""

    kind = "component.started"
    tee: str
    vm_id: str
    pid: int
    simulated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentWeakened(Event):
    """A simulated component runs without ``checks``, for a test: its verdicts prove nothing."""

    kind = "component.weakened"
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentStopped(Event):
    """The trusted component ended; ``clean``: it closed the store and gave the lease back."""

    kind = "component.stopped"
    clean: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestBooted(Event):
    """The store is open and the guest is served."""

    kind = "guest.booted"
    epoch: int
    counter: int
    variables: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestBootRefused(Event):
    """The guest was not started; ``reason`` as on the command line."""

    kind = "guest.boot_refused"
    reason: str
    detail: str = ""


# --- release ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceAccepted(Event):
    """The broker accepted the evidence."""

    kind = "attest.accepted"
    trust_domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRefused(Event):
    """The broker refused the evidence or the release; ``rule`` is the first failing rule."""

    kind = "attest.refused"
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementVerified(Event):
    """A statement by the pinned broker key over the received ciphertext was verified (key-release 4)."""

    kind = "release.statement_verified"
    broker_key: str
    resource: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementRefused(Event):
    """A statement is missing or not by the pinned key: nothing was opened (K44)."""

    kind = "release.statement_refused"
    detail: str


# --- anchor ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorAcquired(Event):
    """A session was opened at the anchor."""

    kind = "anchor.acquired"
    epoch: int
    counter: int
    root: bytes
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorAdvanced(Event):
    """The anchor accepted a new point."""

    kind = "anchor.advanced"
    epoch: int
    counter: int
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorFencedEvent(Event):
    """This instance lost its lease and stopped serving (T20)."""

    kind = "anchor.fenced"
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorSealed(Event):
    """The lease was given back."""

    kind = "anchor.sealed"
    epoch: int
    counter: int


# --- store -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCreated(Event):
    """A new store was written, with the broker's grant."""

    kind = "store.created"
    image_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMounted(Event):
    """The store was read, verified and selected."""

    kind = "store.mounted"
    generation: int
    session: int
    counter: int
    root: bytes
    variables: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCommitted(Event):
    """One record is durable."""

    kind = "store.committed"
    counter: int
    root: bytes
    record_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCompacted(Event):
    """The live state was rewritten into the other bank."""

    kind = "store.compacted"
    generation: int
    counter: int
    root: bytes
    snapshot_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRolledBackEvent(Event):
    """The image is older than the anchored point; ``outcome`` is ``repaired`` or ``refused`` (SS-12)."""

    kind = "store.rolled_back"
    found: int
    anchored: int
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRolledForward(Event):
    """Commits beyond the anchored point were kept: durable, never acknowledged (section 4 item 5)."""

    kind = "store.rolled_forward"
    commits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRefused(Event):
    """The store was refused; ``reason`` is one of SS-7."""

    kind = "store.refused"
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReadOnly(Event):
    """An error made the store read-only (SS-11)."""

    kind = "store.read_only"
    detail: str


# --- variables -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableSet(Event):
    """SetVariable was accepted, and the store is durable."""

    kind = "variable.set"
    name: str
    vendor_guid: UUID
    attributes: int
    size: int
    sha384: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableDeleted(Event):
    """A variable was deleted, and the store is durable."""

    kind = "variable.deleted"
    name: str
    vendor_guid: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableRefused(Event):
    """A request was answered with an error status."""

    kind = "variable.refused"
    function: str
    name: str
    vendor_guid: UUID
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableManaged(Event):
    """The trusted side edited a store; ``bypassed``: without the authentication a guest would need (R122)."""

    kind = "variable.managed"
    name: str
    vendor_guid: UUID
    deleted: bool
    bypassed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEntered(Event):
    """The boot phase moved forward (R16)."""

    kind = "guest.phase"
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementOffered(Event):
    """PCR 7 style measurement of a Secure Boot variable (R91)."""

    kind = "measurement.offered"
    pcr: int
    name: str
    vendor_guid: UUID
    sha384: str


# --- call boundary ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CallServed(Event):
    """One call crossed the boundary. Register files are hex of 64-bit words, in the order of svsm-calls 6."""

    kind = "call.served"
    vcpu: int
    vmpl: int
    protocol: int
    call: int
    result: int
    registers_in: str = ""
    registers_out: str = ""
    duration_ns: int = 0
