"""The EFI_STATUS answers of the service, one exception per status. Messages are for the host's log only (R78)."""

from cvars.errors import EfiStatus, VariableError


class InvalidParameter(VariableError):
    """A parameter is wrong in itself."""

    status = EfiStatus.INVALID_PARAMETER


class Unsupported(VariableError):
    """Known, and not offered here."""

    status = EfiStatus.UNSUPPORTED


class TruncatedMessage(VariableError):
    """The fixed part of a message is not all there (R7)."""

    status = EfiStatus.BAD_BUFFER_SIZE


class BufferTooSmall(VariableError):
    """The caller's room is too small; says what is needed (R23, R27).

    ``needed`` is in bytes; ``attributes`` those of the variable, when one was read.
    """

    status = EfiStatus.BUFFER_TOO_SMALL

    def __init__(self, needed: int = 0, attributes: int = 0) -> None:
        super().__init__(f"{needed} bytes needed")
        self.needed = needed
        self.attributes = attributes


class WriteProtected(VariableError):
    """The variable, or the interface, is read-only now."""

    status = EfiStatus.WRITE_PROTECTED


class OutOfResources(VariableError):
    """A quota is used up (R51)."""

    status = EfiStatus.OUT_OF_RESOURCES


class NotFound(VariableError):
    """Absent, or not to be seen (R22)."""

    status = EfiStatus.NOT_FOUND


class AccessDenied(VariableError):
    """A lock says no."""

    status = EfiStatus.ACCESS_DENIED


class MalformedMessage(AccessDenied):
    """Sizes disagree with the message (R7, R8)."""


class Timeout(VariableError):
    """A dump page without a dump (R110)."""

    status = EfiStatus.TIMEOUT


class AlreadyStarted(VariableError):
    """Registered before (R104)."""

    status = EfiStatus.ALREADY_STARTED


class Aborted(VariableError):
    """A lookup that a policy needs failed (R106)."""

    status = EfiStatus.ABORTED


class SecurityViolation(VariableError):
    """Authentication failed: one status for every cause (R78)."""

    status = EfiStatus.SECURITY_VIOLATION


_BY_STATUS: dict[EfiStatus, type[VariableError]] = {
    kind.status: kind
    for kind in (
        InvalidParameter,
        Unsupported,
        TruncatedMessage,
        WriteProtected,
        OutOfResources,
        NotFound,
        AccessDenied,
        Timeout,
        AlreadyStarted,
        Aborted,
        SecurityViolation,
    )
}


def refusal(status: EfiStatus, message: str) -> VariableError:
    """The error of a ``status`` that a choice point decides."""
    if status == EfiStatus.BUFFER_TOO_SMALL:
        return BufferTooSmall()
    return _BY_STATUS[status](message)
