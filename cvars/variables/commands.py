"""The variable-policy interface: register, lock, disable, dump, info; and LockVariable (R101..R112)."""

from dataclasses import dataclass, replace
from typing import Final

from cvars.variables.model import Key
from cvars.variables.policy import (
    ENTRY_BYTES,
    NO_MAXIMUM,
    VARIABLE_POLICY_ENTRY,
    VERSION,
    LockType,
    PolicyEntry,
    PolicyTable,
    register,
)
from cvars.variables.refusals import (
    AccessDenied,
    AlreadyStarted,
    BufferTooSmall,
    InvalidParameter,
    NotFound,
    Timeout,
    Unsupported,
    WriteProtected,
)
from cvars.variables.requests import (
    DisablePolicy,
    DumpPolicies,
    GetPolicyInfo,
    IsPolicyEnabled,
    LockPolicies,
    LockVariable,
    RegisterPolicy,
    UnknownPolicyCommand,
)
from cvars.variables.state import State, Step

PAGE: Final = 16327  # bytes of one dump page (R110)


@dataclass(frozen=True, slots=True)
class DumpPage:
    """Answer of Dump. Page 0 carries no data (R110)."""

    total: int
    page: bytes
    has_more: bool


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """Answer of GetInfo: the entry's head (or the state block) and a name, with its NUL unless nameless."""

    head: bytes
    name: bytes


class InfoTooSmall(BufferTooSmall):
    """The name does not fit; the head is filled in all the same (R111)."""

    def __init__(self, info: PolicyInfo) -> None:
        super().__init__(len(info.name))
        self.info = info


def register_policy(state: State, request: RegisterPolicy) -> Step:
    """Command 3."""
    policies = register(state.policies, request.entry, profile=state.profile, limits=state.limits)
    return Step(replace(state, policies=policies))


def lock_policies(state: State, _request: LockPolicies) -> Step:
    """Command 5 (R109)."""
    if state.policies.locked:
        raise WriteProtected("already locked")  # R109
    return Step(replace(state, policies=replace(state.policies, locked=True)))


def disable_policy(state: State, _request: DisablePolicy) -> Step:
    """Command 1 (R108)."""
    if not state.profile.allows_disable or state.policies.locked:
        raise WriteProtected("the policy cannot be disabled")  # R108
    if not state.policies.enabled:
        raise AlreadyStarted("disabled already")  # R108
    return Step(replace(state, policies=replace(state.policies, enabled=False)))


def is_enabled(state: State, _request: IsPolicyEnabled) -> Step:
    """Command 2."""
    return Step(state, state.policies.enabled)


def dump(state: State, request: DumpPolicies) -> Step:
    """Command 4: page 0 takes a snapshot, the others deliver it (R110)."""
    if request.page == 0:
        snapshot = b"".join(entry.raw for entry in state.policies.entries)
        kept = snapshot or None
        taken = replace(state, policies=replace(state.policies, dump=kept))
        return Step(taken, DumpPage(len(snapshot), b"", has_more=bool(snapshot)))
    held = state.policies.dump
    if held is None:
        raise Timeout("a page without a dump")  # R110
    start = (request.page - 1) * PAGE
    if start >= len(held):
        raise InvalidParameter(f"page {request.page} is beyond the dump")  # R110
    has_more = start + PAGE < len(held)
    policies = state.policies if has_more else replace(state.policies, dump=None)
    return Step(
        replace(state, policies=policies), DumpPage(len(held), held[start : start + PAGE], has_more=has_more)
    )


def policy_info(state: State, request: GetPolicyInfo) -> Step:
    """Commands 6 and 7 (R111)."""
    entry = state.policies.best(request.key)
    if entry is None:
        raise NotFound("no policy matches")  # R111
    if request.lock_on_state:
        if entry.lock is not LockType.ON_VAR_STATE or entry.state_key is None:
            raise NotFound("the policy does not lock on a variable's state")  # R111
        name = entry.state_key.name_bytes + b"\0\0"
        info = PolicyInfo(entry.raw[ENTRY_BYTES : ENTRY_BYTES + 18], name)
    else:
        name = b"" if entry.name is None else Key(entry.namespace, entry.name).name_bytes + b"\0\0"
        info = PolicyInfo(entry.raw[:ENTRY_BYTES], name)
    if request.capacity < len(name):
        raise InfoTooSmall(info)  # R111
    return Step(state, info)


def unknown_command(_state: State, _request: UnknownPolicyCommand) -> Step:
    """Any other command."""
    raise Unsupported("unknown policy command")  # R101


def without_dump(state: State) -> State:
    """Another command than a further page ends the dump (R110)."""
    if state.policies.dump is None:
        return state
    return replace(state, policies=replace(state.policies, dump=None))


def lock_variable(state: State, request: LockVariable) -> Step:
    """Function 8: a lock-now policy without other limits (R112)."""
    if state.armed:
        raise AccessDenied("LockVariable after EndOfDxe")  # R112, R19
    if not request.key.name:
        return Step(state)  # R112: an empty name locks nothing
    held = _exact(state.policies, request.key)
    if held is not None:
        if held.lock is LockType.NOW:
            return Step(state)  # R112
        raise AccessDenied("another policy is registered for this name")  # R112
    if state.policies.locked:
        raise AccessDenied("the policy interface is locked")  # R112
    name = request.key.name_bytes + b"\0\0"
    header = VARIABLE_POLICY_ENTRY.build(
        {
            "Version": VERSION,
            "Size": ENTRY_BYTES + len(name),
            "OffsetToName": ENTRY_BYTES,
            "Namespace": request.key.vendor_guid.bytes_le,
            "MinSize": 0,
            "MaxSize": NO_MAXIMUM,
            "AttributesMustHave": 0,
            "AttributesCantHave": 0,
            "LockPolicyType": LockType.NOW,
            "Padding": bytes(3),
        }
    )
    policies = register(state.policies, header + name, profile=state.profile, limits=state.limits)
    return Step(replace(state, policies=policies))


def _exact(policies: PolicyTable, key: Key) -> PolicyEntry | None:
    for entry in policies.entries:
        if entry.namespace == key.vendor_guid and entry.name == key.name:
            return entry
    return None
