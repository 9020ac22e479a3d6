"""Everything that decides a future answer (R21), as one immutable value, and what one step gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

from cvars.errors import VariableError
from cvars.variables.limits import DEFAULT_LIMITS, Limits
from cvars.variables.model import Append, Change, Delete, Journal, Key, Put, Variable
from cvars.variables.names import CUSTOM, NV, SETUP_MODE
from cvars.variables.policy import PolicyTable
from cvars.variables.profile import SPEC, Profile
from cvars.variables.requests import Property
from cvars.variables.table import Table


class Phase(IntEnum):
    """Boot phases; they only move forward within a boot (R16)."""

    DXE = 0
    END_OF_DXE = 1
    READY_TO_BOOT = 2
    RUNTIME = 3


class MorLock(IntEnum):
    """State of the MOR lock; the value is what the guest reads (R92..R100)."""

    UNLOCKED = 0
    LOCKED = 1
    LOCKED_WITH_KEY = 2


@dataclass(frozen=True, slots=True)
class MorState:
    """``key``: 8 bytes while locked with one, else empty; never readable. ``absent``: both names are locked."""

    lock: MorLock = MorLock.UNLOCKED
    key: bytes = field(default=b"", repr=False)
    absent: bool = False


NO_POLICIES: Final = PolicyTable()
NO_PROPERTIES: Final[Mapping[Key, Property]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class State:
    """The service between two requests. Hand-made ones: use `initial.initial_state`.

    ``unstored``: non-volatile variables that the service derived at boot and that the store does not hold.
    ``in_doubt``: the last commit failed, so a stored value may be another than the one here (R14, R54).
    """

    table: Table = field(default_factory=Table)
    profile: Profile = SPEC
    limits: Limits = DEFAULT_LIMITS
    phase: Phase = Phase.DXE
    unstored: frozenset[Key] = frozenset()
    mor: MorState = MorState()
    policies: PolicyTable = NO_POLICIES
    properties: Mapping[Key, Property] = field(default_factory=lambda: NO_PROPERTIES)
    in_doubt: bool = False

    @property
    def at_runtime(self) -> bool:
        """After ExitBootServices (R16)."""
        return self.phase == Phase.RUNTIME

    @property
    def armed(self) -> bool:
        """The checks that bind from EndOfDxe on (R43, R107)."""
        return self.phase >= Phase.END_OF_DXE

    @property
    def in_setup_mode(self) -> bool:
        """SetupMode = 1 (R82)."""
        mode = self.table.find(SETUP_MODE)
        return mode is None or mode.data != b"\x00"

    @property
    def in_custom_mode(self) -> bool:
        """CustomMode = 1 (R87)."""
        mode = self.table.find(CUSTOM)
        return mode is not None and mode.data == b"\x01"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A value to measure (R91); ``data`` None: the variable was deleted."""

    key: Key
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of one request: the next state, the answer, what must become durable, what to measure.

    ``refusal``: the request was refused and yet changed the state, which only the MOR lock does (R99).
    """

    state: State
    reply: Any = None
    journal: Journal = ()
    measurements: tuple[Measurement, ...] = ()
    refusal: VariableError | None = None


class Draft:
    """Changes of one request, collected before anything is decided for good (R13).

    Room (R51) is checked by the caller; `finish` makes the step.
    """

    __slots__ = ("_changes", "_journal", "_measured", "_unstored", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self._changes: dict[Key, Variable | None] = {}
        self._journal: list[Change] = []
        self._measured: list[Measurement] = []
        self._unstored = set(state.unstored)

    def find(self, key: Key) -> Variable | None:
        """The variable as this draft leaves it."""
        return self._changes[key] if key in self._changes else self.state.table.find(key)

    def put(self, key: Key, variable: Variable, *, added: bytes | None = None, stored: bool = True) -> None:
        """Set ``key``. ``added``: it was an append of these bytes. ``stored`` False: derived, never journaled."""
        was_stored = key not in self._unstored
        self._changes[key] = variable
        if not variable.attributes & NV:
            return
        if not stored:
            self._unstored.add(key)
        elif added is not None and was_stored:
            self._journal.append(Append(key, added, variable))
        else:
            self._unstored.discard(key)
            self._journal.append(Put(key, variable))

    def delete(self, key: Key) -> None:
        """Remove ``key``, which exists or was derived."""
        old = self.find(key)
        if old is None:
            return
        self._changes[key] = None
        if old.attributes & NV:
            if key in self._unstored:
                self._unstored.discard(key)
            else:
                self._journal.append(Delete(key))

    def measure(self, key: Key, data: bytes | None) -> None:
        """Offer a value for measurement, once this step is published (R91)."""
        self._measured.append(Measurement(key, data))

    def finish(self, reply: Any = None, **changes: Any) -> Step:  # noqa: ANN401 - fields of State
        """The step; ``changes`` are further fields of the next state."""
        state = replace(
            self.state,
            table=self.state.table.changed(self._changes) if self._changes else self.state.table,
            unstored=frozenset(self._unstored),
            **changes,
        )
        return Step(state, reply, tuple(self._journal), tuple(self._measured))
