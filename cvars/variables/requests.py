"""What a guest can ask, decoded: one frozen record per function. Built by `cvars.mm`, served by `step`."""

from dataclasses import dataclass
from typing import TypeAlias

from cvars.variables.model import Key


@dataclass(frozen=True, slots=True)
class GetVariable:
    """Read; ``capacity`` is the room for the data, in bytes."""

    key: Key
    capacity: int


@dataclass(frozen=True, slots=True)
class GetNextVariableName:
    """Enumerate; an empty name starts. ``capacity`` is the room for the next name with its NUL, in bytes."""

    key: Key
    capacity: int


@dataclass(frozen=True, slots=True)
class SetVariable:
    """Write, append, or delete. ``data`` includes the authentication descriptor."""

    key: Key
    attributes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class QueryVariableInfo:
    """How much may be stored with ``attributes``."""

    attributes: int


@dataclass(frozen=True, slots=True)
class EndOfDxe:
    """Event: firmware is about to run code that the platform does not own (R17)."""


@dataclass(frozen=True, slots=True)
class ReadyToBoot:
    """Function 5, or the event (``is_event``: there is no answer to it)."""

    is_event: bool = False


@dataclass(frozen=True, slots=True)
class ExitBootServices:
    """Function 6, or the event (R18)."""


@dataclass(frozen=True, slots=True)
class LockVariable:
    """Function 8 (R112)."""

    key: Key


@dataclass(frozen=True, slots=True)
class Property:
    """VAR_CHECK_VARIABLE_PROPERTY (R113). Sizes in bytes."""

    revision: int
    flags: int
    attributes: int
    min_size: int
    max_size: int


@dataclass(frozen=True, slots=True)
class SetProperty:
    """Function 9 (R113)."""

    key: Key
    value: Property


@dataclass(frozen=True, slots=True)
class GetProperty:
    """Function 10 (R113)."""

    key: Key


@dataclass(frozen=True, slots=True)
class DisablePolicy:
    """Policy command 1 (R108)."""


@dataclass(frozen=True, slots=True)
class IsPolicyEnabled:
    """Policy command 2."""


@dataclass(frozen=True, slots=True)
class RegisterPolicy:
    """Policy command 3; ``entry``: the message from the VARIABLE_POLICY_ENTRY on (R103)."""

    entry: bytes


@dataclass(frozen=True, slots=True)
class DumpPolicies:
    """Policy command 4 (R110)."""

    page: int


@dataclass(frozen=True, slots=True)
class LockPolicies:
    """Policy command 5 (R109)."""


@dataclass(frozen=True, slots=True)
class GetPolicyInfo:
    """Policy commands 6 and, with ``lock_on_state``, 7; ``capacity``: room for the output name, bytes (R111)."""

    key: Key
    capacity: int
    lock_on_state: bool = False


@dataclass(frozen=True, slots=True)
class UnknownPolicyCommand:
    """Any other policy command: it still ends a dump (R101, R110)."""


Request: TypeAlias = (
    GetVariable
    | GetNextVariableName
    | SetVariable
    | QueryVariableInfo
    | EndOfDxe
    | ReadyToBoot
    | ExitBootServices
    | LockVariable
    | SetProperty
    | GetProperty
    | DisablePolicy
    | IsPolicyEnabled
    | RegisterPolicy
    | DumpPolicies
    | LockPolicies
    | GetPolicyInfo
    | UnknownPolicyCommand
)
