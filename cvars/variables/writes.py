"""SetVariable: the checks in their order, then the change (R32..R61)."""

from dataclasses import dataclass

from cvars.variables import (
    authenticated,
    descriptor,
    enhanced,
    language,
    modes,
    mor,
    policy,
    properties,
    siglist,
    uefi,
)
from cvars.variables.authenticated import Authorised
from cvars.variables.descriptor import Descriptor
from cvars.variables.enhanced import EnhancedHead
from cvars.variables.limits import name_size, overhead
from cvars.variables.model import Variable
from cvars.variables.names import (
    APPEND,
    AT,
    AW,
    BS,
    ENH,
    HR,
    IMAGE_DATABASES,
    KEK,
    MOR,
    MOR_LOCK,
    NV,
    READ_ONLY,
    RT,
    SUPPORTED,
)
from cvars.variables.refusals import (
    InvalidParameter,
    NotFound,
    Unsupported,
    WriteProtected,
    refusal,
)
from cvars.variables.requests import SetVariable
from cvars.variables.state import Draft, State, Step
from cvars.variables.storage import check_room


@dataclass(frozen=True, slots=True)
class Judged:
    """A request that passed the checks of its own form: ``payload`` is the data without a descriptor."""

    head: Descriptor | EnhancedHead | None
    payload: bytes

    @property
    def size(self) -> int:
        """Payload bytes."""
        return len(self.payload)


def set_variable(state: State, request: SetVariable) -> Step:
    """Write, append or delete; the first failing check decides the status (R32..R51).

    Raises:
        VariableError: refused, and nothing changed (R13).
    """
    key, attributes = request.key, request.attributes
    judged = _check_request(state, request)
    deletes = _deletes(attributes, judged)
    if key == MOR:
        mor.check_mor(state, request)  # R42
    if key == MOR_LOCK:
        return mor.set_lock(state, request)  # R42
    _check_rules(state, request, judged, deletes=deletes)
    if key in READ_ONLY:
        raise WriteProtected("maintained by the service")  # R44
    if modes.is_mode(state, key):
        return modes.set_mode(state, request)  # R90
    language.check_codes(state, key)
    existing = state.table.find(key)
    if existing is not None:
        if state.at_runtime and not existing.attributes & RT:
            raise WriteProtected("boot-only variable in Runtime")  # R45
        if attributes and attributes & ~APPEND != existing.attributes:
            raise InvalidParameter("attributes differ from the stored ones")  # R46
    granted = authenticated.authorise(state, request, existing, judged.head)  # R47
    return _update(state, request, existing, granted)


def _deletes(attributes: int, judged: Judged) -> bool:
    """R52; an empty append deletes nothing (R56)."""
    if not judged.size and attributes & APPEND:
        return False
    return not judged.size or not attributes & (BS | RT)


def _check_request(state: State, request: SetVariable) -> Judged:
    """What is wrong with the request whatever the state (R32..R41)."""
    attributes, limits = request.attributes, state.limits
    if not request.key.name:
        raise InvalidParameter("empty name")  # R32
    if attributes & ~(SUPPORTED | AW | ENH):
        raise InvalidParameter(f"undefined attributes {attributes:#x}")  # R33
    if attributes & AT and attributes & ENH:
        raise InvalidParameter("AT and ENH together")  # R34
    if attributes & AW:
        raise Unsupported("AW is deprecated")  # R35
    if attributes & ENH and not state.profile.enhanced:
        raise refusal(state.profile.enhanced_refusal, "ENH is not offered")  # R36
    if attributes & (RT | BS) == RT:
        raise InvalidParameter("RT without BS")  # R37
    if attributes == NV:
        raise InvalidParameter("NV alone")  # R38
    head: Descriptor | EnhancedHead | None = None
    if attributes & AT:
        head = descriptor.split(request.data)  # R40
    elif attributes & ENH:
        head = enhanced.split(request.data, state.profile)
    payload = request.data if head is None else head.payload
    if attributes & HR and not limits.hr_pool:
        raise InvalidParameter("no room for error records")  # R39
    name_bytes = name_size(request.key)
    if name_bytes + len(payload) > limits.class_limit(attributes) - overhead(attributes):
        raise InvalidParameter("name and data above the class limit")  # R41
    if limits.max_name is not None and name_bytes > limits.max_name:
        raise InvalidParameter("name above its limit")  # R41
    return Judged(head, payload)


def _check_rules(state: State, request: SetVariable, judged: Judged, *, deletes: bool) -> None:
    """UEFI-defined rules, properties, then policy; from EndOfDxe on (R43, R107)."""
    key, attributes = request.key, request.attributes
    if state.armed:
        if not deletes:
            uefi.check(key, attributes, judged.payload)
        properties.check(state.properties, key, attributes, judged.size, deletes=deletes)
    if state.armed or state.profile.policy_binds_at_once:
        policy.apply(state.policies, key, attributes, judged.size, deletes=deletes, find=state.table.find)


def _update(state: State, request: SetVariable, existing: Variable | None, granted: Authorised) -> Step:
    """Make the change, if the phase and the quotas allow it (R48..R61)."""
    key, attributes, payload = request.key, request.attributes, granted.payload
    if existing is not None and state.at_runtime and not existing.attributes & NV:
        raise WriteProtected("volatile variable in Runtime")  # R48
    if not payload and attributes & APPEND:
        return Step(state)  # R56
    draft = Draft(state)
    if not payload or not attributes & (BS | RT):
        if existing is None:
            raise NotFound("deleting what is not there")  # R49
        draft.delete(key)
    else:
        if existing is None and state.at_runtime and attributes & (NV | RT) != NV | RT:
            raise InvalidParameter("new variables in Runtime are NV and RT")  # R50
        written = _written(state, request, existing, granted)
        if written is None:
            return Step(state)  # R54
        draft.put(key, written[0], added=written[1])
        language.follow(draft, key)
    modes.after_write(draft, request, unsigned=granted.unsigned, was=existing)
    step = draft.finish()
    check_room(state, step.state)  # R51
    return step


def _written(
    state: State, request: SetVariable, existing: Variable | None, granted: Authorised
) -> tuple[Variable, bytes | None] | None:
    """The new value and, for an append, the bytes added; None when nothing changes (R54, R57..R61)."""
    key, attributes, payload = request.key, request.attributes & ~APPEND, granted.payload
    if not request.attributes & APPEND or existing is None:
        if key in IMAGE_DATABASES or key == KEK:
            payload = _once(state, payload) if request.attributes & APPEND else payload
        new = Variable(attributes, payload, granted.time, granted.signer)
        return (
            None if new == existing and not attributes & (AT | ENH) and not state.in_doubt else (new, None)
        )  # R54
    time = granted.time
    if attributes & AT:
        time = descriptor.later(existing.timestamp, granted.time)  # R61
    elif attributes & ENH:
        time = enhanced.later(existing.timestamp, granted.time)  # R61
    if key in IMAGE_DATABASES or key == KEK:
        lists = siglist.parse(payload)
        payload = siglist.merge(existing.data, lists, keeps_one=state.profile.keeps_one_duplicate)  # R59
    merged = existing.data + payload  # R58
    if name_size(key) + len(merged) > state.limits.class_limit(attributes) - overhead(attributes):
        raise InvalidParameter("merged value above the class limit")  # R58
    return Variable(attributes, merged, time, granted.signer), payload


def _once(state: State, payload: bytes) -> bytes:
    """A first append: equal entries within the payload are kept once (R57, R59)."""
    return siglist.merge(b"", siglist.parse(payload), keeps_one=state.profile.keeps_one_duplicate)
