"""The state machine: one request, one step (R13). Pure: no I/O, no clock, no randomness."""

from collections.abc import Callable
from typing import Any, Final

from cvars.variables import commands, phases, properties, reads, requests, writes
from cvars.variables.requests import Request
from cvars.variables.state import State, Step

_SERVE: Final[dict[type, Callable[[State, Any], Step]]] = {
    requests.GetVariable: reads.get_variable,
    requests.GetNextVariableName: reads.get_next,
    requests.SetVariable: writes.set_variable,
    requests.QueryVariableInfo: reads.query_info,
    requests.EndOfDxe: phases.end_of_dxe,
    requests.ReadyToBoot: phases.ready_to_boot,
    requests.ExitBootServices: phases.exit_boot_services,
    requests.LockVariable: commands.lock_variable,
    requests.SetProperty: properties.set_property,
    requests.GetProperty: properties.get_property,
    requests.DisablePolicy: commands.disable_policy,
    requests.IsPolicyEnabled: commands.is_enabled,
    requests.RegisterPolicy: commands.register_policy,
    requests.DumpPolicies: commands.dump,
    requests.LockPolicies: commands.lock_policies,
    requests.GetPolicyInfo: commands.policy_info,
    requests.UnknownPolicyCommand: commands.unknown_command,
}


def step(state: State, request: Request) -> Step:
    """Apply ``request`` to ``state``.

    Raises:
        VariableError: refused, and nothing changed (R13).
    """
    return _SERVE[type(request)](state, request)
