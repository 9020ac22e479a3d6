"""The state at power-on and after a reset (R20, R76, R82)."""

from collections.abc import Mapping
from dataclasses import replace

from cvars.errors import StoreTampered
from cvars.variables import modes
from cvars.variables.limits import Limits
from cvars.variables.model import Key, Variable
from cvars.variables.names import APPEND, ENH, MOR_LOCK, NV, is_private
from cvars.variables.profile import Profile
from cvars.variables.state import Draft, State
from cvars.variables.table import Table


def initial_state(variables: Mapping[Key, Variable], *, profile: Profile, limits: Limits) -> State:
    """The service at the start of a boot, with the non-volatile ``variables`` of its store.

    Modes are derived, CustomMode is 0, the MOR lock is gone (R20, R82). Orphan pins are dropped (R76).

    Raises:
        StoreTampered: a stored variable that no request could have stored (R76, P08).
    """
    kept: dict[Key, Variable] = {}
    for key, variable in variables.items():
        if key == MOR_LOCK:
            continue  # R20: the lock does not survive a reset
        if not variable.attributes & NV or variable.attributes & APPEND or not key.name:
            raise StoreTampered("a stored variable has impossible attributes or no name")  # P08
        private = is_private(key, variable.attributes)
        if private and variable.signer is None:
            raise StoreTampered("a private authenticated variable has no signer pin")  # R76, P17
        if variable.attributes & ENH and variable.signer is None:
            raise StoreTampered("an enhanced authenticated variable has no authority")  # R76
        if not private and not variable.attributes & ENH and variable.signer is not None:
            kept[key] = replace(variable, signer=None)  # R76
        else:
            kept[key] = variable
    draft = Draft(State(table=Table(kept.items()), profile=profile, limits=limits))
    modes.derive(draft, profile)
    return draft.finish().state


def reset(state: State) -> State:
    """Platform reset: what is non-volatile survives, everything else starts again (R20)."""
    return initial_state(stored(state), profile=state.profile, limits=state.limits)


def stored(state: State) -> dict[Key, Variable]:
    """The non-volatile variables that the store holds, private items included."""
    return {
        key: variable
        for key, variable in state.table.items()
        if variable.attributes & NV and key not in state.unstored
    }
