"""UEFI variable semantics: a pure state machine over requests. Source: `uefi-variable-rules` R1..R125."""

from cvars.variables.initial import initial_state, reset, stored
from cvars.variables.limits import Limits
from cvars.variables.machine import step
from cvars.variables.profile import PROFILES, SPEC, Profile
from cvars.variables.state import Phase, State, Step

__all__ = [
    "PROFILES",
    "SPEC",
    "Limits",
    "Phase",
    "Profile",
    "State",
    "Step",
    "initial_state",
    "reset",
    "step",
    "stored",
]
