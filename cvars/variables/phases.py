"""Boot phases: EndOfDxe, ReadyToBoot, ExitBootServices (R16..R18)."""

from dataclasses import replace

from cvars.variables import mor
from cvars.variables.refusals import Unsupported
from cvars.variables.requests import EndOfDxe, ExitBootServices, ReadyToBoot
from cvars.variables.state import Draft, Phase, State, Step


def end_of_dxe(state: State, _request: EndOfDxe) -> Step:
    """Event: arm the checks, lock the policy interface, decide about MOR (R17). Repeats are harmless."""
    return _advance(state, Phase.END_OF_DXE)


def ready_to_boot(state: State, request: ReadyToBoot) -> Step:
    """Function 5 or its event; implies EndOfDxe (R17, P25)."""
    if state.at_runtime and not request.is_event:
        raise Unsupported("ReadyToBoot in Runtime")  # R17
    return _advance(state, Phase.READY_TO_BOOT)


def exit_boot_services(state: State, _request: ExitBootServices) -> Step:
    """Function 6 or its event; the phases that were skipped count as passed (R16, R18)."""
    return _advance(state, Phase.RUNTIME)


def _advance(state: State, phase: Phase) -> Step:
    if state.phase >= phase:
        return Step(state)  # R16: only forward
    if state.armed:
        return Step(replace(state, phase=phase))
    draft = Draft(state)
    lock = mor.arm(draft)  # R92
    return draft.finish(phase=phase, mor=lock, policies=replace(state.policies, locked=True, dump=None))
