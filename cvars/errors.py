"""The three families of "no", and the exit codes of the command line.

The caller of the bridge reads RAX (`svsm_bridge.errors`); the firmware reads an EFI_STATUS inside a call
that worked (`VariableError`); the operator reads why a guest was stopped (`StoreError`) or what went wrong
outside (`CvarsError`). Messages say what was found and what was wanted; they never carry key bytes or
variable values.
"""

from enum import IntEnum
from typing import ClassVar

_ERROR = 1 << 63


class EfiStatus(IntEnum):
    """EFI_STATUS, 64 bits (UEFI 2.10 appendix D)."""

    SUCCESS = 0
    INVALID_PARAMETER = _ERROR | 2
    UNSUPPORTED = _ERROR | 3
    BAD_BUFFER_SIZE = _ERROR | 4
    BUFFER_TOO_SMALL = _ERROR | 5
    NOT_READY = _ERROR | 6
    DEVICE_ERROR = _ERROR | 7
    WRITE_PROTECTED = _ERROR | 8
    OUT_OF_RESOURCES = _ERROR | 9
    NOT_FOUND = _ERROR | 14
    ACCESS_DENIED = _ERROR | 15
    TIMEOUT = _ERROR | 18
    ALREADY_STARTED = _ERROR | 20
    ABORTED = _ERROR | 21
    SECURITY_VIOLATION = _ERROR | 26


class ExitCode(IntEnum):
    """How every command ends (ux: "Exit codes")."""

    OK = 0
    NO = 1
    USAGE = 2
    INPUT = 3
    OUTSIDE = 4
    BUG = 70
    INTERRUPTED = 130


class CvarsError(Exception):
    """Something a person must hear about: what, where, what to try.

    ``reason`` is a stable word (the trace's event names, see `docs/reasons.md`).
    """

    reason: str = "cvars.error"
    exit_code: ExitCode = ExitCode.OUTSIDE

    def __init__(
        self,
        message: str,
        *,
        where: str = "",
        hint: str = "",
        reason: str | None = None,
        exit_code: ExitCode | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        if reason is not None:
            self.reason = reason
        if exit_code is not None:
            self.exit_code = exit_code


class UsageMistake(CvarsError):
    """The command line or a configuration value is wrong."""

    reason = "usage"
    exit_code = ExitCode.USAGE


class NotYet(UsageMistake):
    """Named in the plan, not built: says so instead of pretending."""

    reason = "not_yet"


class BadInput(CvarsError):
    """The input is not what it says."""

    reason = "input.malformed"
    exit_code = ExitCode.INPUT


class OutsideFailure(CvarsError):
    """Something outside this program failed: a port, a disk, a peer."""

    reason = "outside.failed"
    exit_code = ExitCode.OUTSIDE


class VariableError(Exception):
    """The call worked and the service said no: the guest reads ``status`` from its message."""

    status: ClassVar[EfiStatus]


class DeviceError(VariableError):
    """A non-volatile change did not become durable and was taken back (R14, S41)."""

    status = EfiStatus.DEVICE_ERROR


class NotReady(VariableError):
    """The store is not open (no key yet, S41)."""

    status = EfiStatus.NOT_READY


class StoreError(CvarsError):
    """The store cannot be trusted or used. Never an EFI_STATUS: the guest stops (SS-7)."""

    reason = "store.error"
    exit_code = ExitCode.NO


class StoreTampered(StoreError):
    """Bytes the store relies on were changed, or are missing in the middle (T1..T4)."""

    reason = "store.tampered"


class StoreRolledBack(StoreError):
    """Every tag matches, but the image is older than the point the broker vouches for, and was not repaired."""

    reason = "store.rolled_back"


class StoreForked(StoreError):
    """The image left the anchored history: another branch (T6)."""

    reason = "store.forked"


class StoreWrongGuest(StoreError):
    """An image of another store or VM (T4)."""

    reason = "store.wrong_guest"


class StoreWrongKey(StoreError):
    """The key does not open this image, which is otherwise intact (key check, T16)."""

    reason = "store.wrong_key"


class StoreTooOld(StoreError):
    """Format, suite or key version below the floor, or unknown (SS-20, SS-25, T18)."""

    reason = "store.too_old"


class StoreNotProvisioned(StoreError):
    """There is no store, and no grant to create one (SS-22, T17)."""

    reason = "store.not_provisioned"


class StoreIoError(StoreError):
    """The medium failed; nothing is claimed about what it holds (SS-11, T26)."""

    reason = "store.io"
    exit_code = ExitCode.OUTSIDE


class AnchorError(StoreError):
    """The freshness anchor said no."""

    reason = "anchor.refused"


class AnchorLeased(AnchorError):
    """Another live instance holds the lease (T6)."""

    reason = "anchor.leased"


class AnchorRolledBack(AnchorError):
    """The broker is behind the image: it was restored to an older state (SS-16, T21)."""

    reason = "anchor.rolled_back"


class AnchorFenced(AnchorError):
    """A newer session exists, or the lease ran out: this instance must stop serving (SS-13, T20)."""

    reason = "anchor.fenced"


class AnchorFrozen(AnchorError):
    """An operator froze the VM (key-release 5.6)."""

    reason = "anchor.frozen"


class AnchorRetired(AnchorError):
    """The VM was retired: its key is gone (key-release 5.5)."""

    reason = "anchor.retired"


class AnchorUnreachable(AnchorError):
    """No answer from the broker: what was asked for may or may not have happened (T19)."""

    reason = "anchor.unreachable"
    exit_code = ExitCode.OUTSIDE
