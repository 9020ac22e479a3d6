"""Results that a guest reads from RAX, and the errors that stand for them.

Source: AMD 58019 "SVSM result codes"; svsm-calls 1.2.
"""

from enum import IntEnum
from typing import ClassVar


class SvsmResult(IntEnum):
    """RAX after a call, zero-extended to 64 bits (S1)."""

    SUCCESS = 0
    INCOMPLETE = 0x80000000
    UNSUPPORTED_PROTOCOL = 0x80000001
    UNSUPPORTED_CALL = 0x80000002
    INVALID_ADDRESS = 0x80000003
    INVALID_FORMAT = 0x80000004
    INVALID_PARAMETER = 0x80000005
    INVALID_REQUEST = 0x80000006
    BUSY = 0x80000007


class CallError(Exception):
    """The call never reached its protocol: the guest reads ``result`` from RAX."""

    result: ClassVar[int] = SvsmResult.INVALID_REQUEST


class UnsupportedProtocol(CallError):
    """No such protocol here (S5)."""

    result = SvsmResult.UNSUPPORTED_PROTOCOL


class UnsupportedCall(CallError):
    """The protocol has no such call (S5)."""

    result = SvsmResult.UNSUPPORTED_CALL


class InvalidAddress(CallError):
    """A guest address failed S20 or S21."""

    result = SvsmResult.INVALID_ADDRESS


class InvalidParameter(CallError):
    """A parameter or a size is wrong (R3, R5)."""

    result = SvsmResult.INVALID_PARAMETER


class InvalidRequest(CallError):
    """The request cannot be served: unknown message GUID (R4), or an internal error (S8)."""

    result = SvsmResult.INVALID_REQUEST


class Busy(CallError):
    """Another vCPU holds the store; nothing happened, call again (S7, S42)."""

    result = SvsmResult.BUSY


class GuestFault(InvalidAddress):
    """A page became inaccessible during a copy: the hypervisor took it away (S27)."""


class CoreFailure(CallError):
    """A page operation said no: 0x80001000 + ``code`` of PVALIDATE or RMPADJUST."""

    INPUT: ClassVar[int] = 1
    PERMISSION: ClassVar[int] = 2
    IN_USE: ClassVar[int] = 3
    SIZE_MISMATCH: ClassVar[int] = 6
    UNCHANGED: ClassVar[int] = 0x10

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or f"page operation code {code:#x}")
        self.result = 0x80001000 + code  # type: ignore[misc]  # one class, one result per code


class GuestMustStop(Exception):
    """The store behind a handler cannot be trusted any more: every connection of the guest is closed.

    Never a result code (the guest could mistake it for a refusal); the transport calls ``on_fatal``.
    """


class NeverResumed(Exception):
    """Adversarial mode: the hypervisor does not run the caller again (``stop_reply``)."""
