"""What serves one guest's requests, and in which order: one request at a time per store (S43).

All front-ends of a guest share one ``Service``. No guest memory is touched and no rights lock is held while
the store lock is (S24).
"""

import itertools
import logging
import traceback
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, Protocol
from uuid import UUID

from svsm_bridge.abi import guid
from svsm_bridge.errors import Busy, CallError, GuestMustStop
from svsm_bridge.handlers import MmHandler

LOG: Final = logging.getLogger("svsm_bridge")

#: S7, S42: how long a call waits for its turn, and after how many BUSY answers in a row it just waits
TURN_S: Final = 0.050
BUSY_IN_ROW: Final = 100

#: bytes of the largest message buffer (3.5): edk2 sends 64 KiB, nothing smaller may be refused
MM_LIMIT: Final = 0x40000
MM_LIMIT_LEAST: Final = 0x10000


class CaptureSink(Protocol):
    """Takes the messages of one guest: 24-byte header and message, request and reply alternating."""

    def reset(self) -> None:
        """The platform was reset."""
        ...

    def request(self, message: bytes) -> None:
        """A request as the guest sent it."""
        ...

    def reply(self, message: bytes) -> None:
        """The same bytes after the service answered."""
        ...


class ReportSource(Protocol):
    """Where attestation reports come from: the platform, or simulated hardware."""

    def report(self, report_data: bytes) -> bytes:
        """A report for VMPL 0 over 64 bytes (S30); any exception means it failed (S34)."""
        ...

    def certificates(self) -> bytes:
        """The host's certificate table, empty when it supplied none (S31)."""
        ...


class ManifestSource(Protocol):
    """What services say of themselves; called under the store lock (S32)."""

    def __call__(self, service: UUID, version: int) -> bytes | None:
        """The manifest, or None when the service is not offered in that version."""
        ...


class Turn(Protocol):
    """The life of one call as its transport sees it (S62)."""

    def begin_effect(self) -> None:
        """The call is about to change something: from here on it is finished, whatever the clock says.

        Raises:
            Busy: too late, the caller has been told BUSY already.
        """
        ...


@dataclass(slots=True)
class Patience:
    """How often in a row one vCPU was told BUSY (S7)."""

    busy_in_row: int = 0


_incidents: Final = itertools.count(1)


def incident(what: str, error: BaseException) -> str:
    """Log an internal error under an id, by type and place only: a message could carry a value (P38, S8)."""
    name = f"svsm-{next(_incidents):06}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"
    LOG.error("%s: %s: %s at %s", name, what, type(error).__name__, place)
    return name


class InternalError(CallError):
    """Something of ours went wrong; the guest reads INVALID_REQUEST and is served on (S8)."""


@dataclass(slots=True)
class Service:
    """One guest's handler and what goes with it. ``mm_limit`` in bytes of a message buffer."""

    handler: MmHandler
    manifests: ManifestSource | None = None
    reports: ReportSource | None = None
    capture: CaptureSink | None = None
    mm_limit: int = MM_LIMIT
    turn_s: float = TURN_S
    lock: Lock = field(default_factory=Lock)
    report_lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if self.mm_limit < MM_LIMIT_LEAST:
            raise ValueError(f"message limit {self.mm_limit} is below {MM_LIMIT_LEAST}, which firmware sends")

    def take_turn(self, lock: Lock, patience: Patience, longest_s: float) -> None:
        """Acquire ``lock`` as S7 and S42 want it.

        Raises:
            Busy: not within 50 ms, and this vCPU has not been told so 100 times in a row.
        """
        if lock.acquire(blocking=False):
            patience.busy_in_row = 0
            return
        waits = longest_s if patience.busy_in_row >= BUSY_IN_ROW else self.turn_s
        if not lock.acquire(timeout=waits):
            patience.busy_in_row += 1
            raise Busy("another vCPU holds the store")
        patience.busy_in_row = 0

    def mm(self, header: bytes, message: bytes, *, turn: Turn, patience: Patience, longest_s: float) -> bytes:
        """Serve one MM message; the reply is never longer than ``message`` (R10).

        Raises:
            CallError: not executed (R4, R5), or BUSY (S42), or an internal error (S8).
            GuestMustStop: the store cannot be trusted any more.
        """
        if self.lock.acquire(blocking=False):
            patience.busy_in_row = 0
        else:
            self.take_turn(self.lock, patience, longest_s)
        try:
            turn.begin_effect()
            if self.capture is not None:
                self._captured("request", header + message)
            try:
                reply = self.handler.handle(guid(header[:16]), message)
            except (CallError, GuestMustStop):
                raise
            except Exception as error:
                raise InternalError(incident("message handler", error)) from error
            if len(reply) > len(message):
                raise InternalError(incident("message handler", ValueError("reply longer than its request")))
            if self.capture is not None:
                self._captured("reply", header + reply + message[len(reply) :])
            return reply
        finally:
            self.lock.release()

    def reset(self) -> None:
        """Platform reset (R20)."""
        with self.lock:
            self._captured("reset")
            self.handler.reset()

    def power_off(self) -> None:
        """The guest is gone: volatile state goes with it (R20, S63); nothing to capture."""
        with self.lock:
            self.handler.reset()

    def _captured(self, what: str, *message: bytes) -> None:
        """Hand a message to the capture; one that cannot be written ends the capture, never the guest."""
        if self.capture is None:
            return
        try:
            getattr(self.capture, what)(*message)
        except (OSError, ValueError) as error:
            incident("capture ended", error)
            self.capture = None


class Unhurried:
    """A turn without a deadline."""

    def begin_effect(self) -> None:
        """Always in time."""


UNHURRIED: Final = Unhurried()
