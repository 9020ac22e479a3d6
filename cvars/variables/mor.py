"""Memory overwrite request and its lock (R92..R100).

The key lives in the state only: it is never readable and never stored. Source: TCG Platform Reset Attack
Mitigation 1.10 and the secure MOR definition, revision 2.
"""

import hmac
from dataclasses import replace
from typing import Final

from cvars.variables.model import Variable
from cvars.variables.names import BS, MOR, MOR_LOCK, NV, RT
from cvars.variables.profile import MorSource
from cvars.variables.refusals import AccessDenied, InvalidParameter, WriteProtected
from cvars.variables.requests import SetVariable
from cvars.variables.state import Draft, MorLock, MorState, State, Step

ATTRIBUTES: Final = NV | BS | RT
DEFINED_BITS: Final = 0x11  # ClearMemory, DisableAutoDetect
KEY_BYTES: Final = 8


def arm(draft: Draft) -> MorState:
    """EndOfDxe: offer the lock if the platform provides MOR, else take both names out of use (R92)."""
    source = draft.state.profile.mor
    provided = source is MorSource.PROVIDED or (source is MorSource.DETECT and draft.find(MOR) is not None)
    if provided:
        _show(draft, draft.state.mor.lock)
        return draft.state.mor
    draft.delete(MOR)
    draft.delete(MOR_LOCK)
    return MorState(absent=True)


def _show(draft: Draft, lock: MorLock) -> None:
    draft.put(MOR_LOCK, Variable(ATTRIBUTES, bytes([lock])), stored=False)


def check_mor(state: State, request: SetVariable) -> None:
    """Judge a write to the MOR variable itself; what passes is stored like any other (R93, R94)."""
    if request.attributes != ATTRIBUTES or len(request.data) != 1:
        raise InvalidParameter("MOR is one byte, NV BS RT")  # R93
    if request.data[0] & ~DEFINED_BITS and state.profile.refuses_mor_reserved:
        raise InvalidParameter("reserved bits of MOR")  # R93
    if state.mor.absent:
        raise WriteProtected("the platform has no MOR")  # R92
    if state.mor.lock is not MorLock.UNLOCKED:
        raise AccessDenied("MOR is locked")  # R94


def set_lock(state: State, request: SetVariable) -> Step:
    """Serve a write to the MOR lock completely (R95..R99)."""
    value = request.data
    if request.attributes == 0 or not value:
        raise WriteProtected("the MOR lock cannot be deleted")  # R95
    if request.attributes != ATTRIBUTES or len(value) not in (1, KEY_BYTES):
        raise InvalidParameter("the MOR lock takes 1 or 8 bytes, NV BS RT")  # R96
    match state.mor.lock:
        case MorLock.UNLOCKED:
            return _lock(state, value)
        case MorLock.LOCKED:
            raise AccessDenied("locked until reset")  # R98
        case MorLock.LOCKED_WITH_KEY:
            return _unlock(state, value)


def _lock(state: State, value: bytes) -> Step:
    if len(value) == 1 and value[0] > 1:
        raise InvalidParameter("the MOR lock takes 0 or 1")  # R97
    if state.mor.absent:
        raise WriteProtected("the platform has no MOR")  # R92
    if len(value) == KEY_BYTES:
        return _changed(state, MorState(MorLock.LOCKED_WITH_KEY, key=value))  # R97
    return _changed(state, MorState(MorLock(value[0])))  # R97


def _unlock(state: State, value: bytes) -> Step:
    if len(value) == 1:
        raise AccessDenied("locked with a key")  # R99
    if hmac.compare_digest(value, state.mor.key):
        return _changed(state, MorState())  # R99
    # one guess only: the refusal itself changes the state, so it is a reply, not an exception (R99)
    step = _changed(state, MorState(MorLock.LOCKED))
    return replace(step, refusal=AccessDenied("wrong key: locked until reset"))  # R99


def _changed(state: State, mor: MorState) -> Step:
    draft = Draft(state)
    _show(draft, mor.lock)
    return draft.finish(mor=mor)
