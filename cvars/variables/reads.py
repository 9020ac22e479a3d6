"""GetVariable, GetNextVariableName, QueryVariableInfo (R22..R31)."""

from dataclasses import dataclass, replace
from typing import Final

from cvars.variables import enhanced
from cvars.variables.limits import overhead
from cvars.variables.model import Key, Variable
from cvars.variables.names import AT, AW, BS, ENH, HR, NV, RT, SUPPORTED
from cvars.variables.refusals import BufferTooSmall, InvalidParameter, NotFound, Unsupported
from cvars.variables.requests import GetNextVariableName, GetVariable, QueryVariableInfo
from cvars.variables.state import Phase, State, Step
from cvars.variables.storage import nv_pool, user_bytes
from cvars.variables.table import is_hidden

_RUNTIME: Final = Phase.RUNTIME


@dataclass(frozen=True, slots=True)
class Info:
    """Answer of QueryVariableInfo, bytes (R30)."""

    maximum_storage: int
    remaining: int
    maximum_variable: int


def get_variable(state: State, request: GetVariable) -> Step:
    """Read one variable (R22..R25)."""
    found = visible(state, request.key)
    if found is None:
        raise NotFound("absent")  # R22
    if found.attributes & ENH:
        found = replace(found, data=enhanced.shown(found))  # R25
    if request.capacity < len(found.data):
        raise BufferTooSmall(len(found.data), found.attributes)  # R23
    return Step(state, found)


def visible(state: State, key: Key) -> Variable | None:
    """The variable as this phase shows it to a guest, or None (R22, R28)."""
    found = state.table.find(key)
    if found is None or (state.phase == _RUNTIME and not found.attributes & RT) or is_hidden(key):
        return None
    return found


def get_next(state: State, request: GetNextVariableName) -> Step:
    """Name the variable after ``request.key`` (R26..R28)."""
    try:
        following = state.table.after(request.key if request.key.name else None, runtime=state.at_runtime)
    except KeyError:
        raise InvalidParameter("the previous variable does not exist") from None  # R26
    if following is None:
        raise NotFound("end of the list")  # R26
    needed = len(following.name_bytes) + 2
    if request.capacity < needed:
        raise BufferTooSmall(needed)  # R27
    return Step(state, following)


def query_info(state: State, request: QueryVariableInfo) -> Step:
    """Report room for variables with ``request.attributes`` (R29, R30)."""
    attributes = request.attributes
    supported = SUPPORTED | (ENH if state.profile.enhanced else 0)
    if attributes == 0:
        raise InvalidParameter("no attributes")  # R29
    if attributes & AW:
        raise Unsupported("AW is deprecated")  # R29
    if not attributes & supported:
        raise Unsupported("no supported attribute")  # R29
    if attributes & supported == NV:
        raise InvalidParameter("NV alone")  # R29
    if attributes & (RT | BS) == RT:
        raise InvalidParameter("RT without BS")  # R29
    if state.at_runtime and not attributes & RT:
        raise InvalidParameter("boot-only attributes in Runtime")  # R29
    if attributes & HR:
        if not attributes & NV:
            raise InvalidParameter("HR without NV")  # R29
        if not state.limits.hr_pool:
            raise Unsupported("no room for error records")  # R29
    return Step(state, room_for(state, attributes & supported))


def room_for(state: State, attributes: int) -> Info:
    """The figures of R30, so that R31 holds to the byte."""
    limits, usage = state.limits, state.table.usage
    pool = pool_size(state, attributes)
    if not attributes & NV:
        remaining = pool - usage.volatile
    elif attributes & HR:
        remaining = pool - usage.errors
    elif attributes & (AT | ENH):  # always security-relevant: pins, or the key stores (SS-23)
        remaining = pool - usage.nv
    else:
        remaining = pool - max(limits.reserved, usage.security) - usage.common
        if limits.user_quota is not None and state.armed:
            remaining = min(remaining, limits.user_quota - user_bytes(state))
    remaining = max(0, remaining)
    head = overhead(attributes)
    largest = max(0, min(limits.class_limit(attributes), remaining) - head)
    if len(state.table) >= limits.max_variables:
        largest = 0  # R31: no new variable would be accepted
    return Info(pool, remaining, largest)


def pool_size(state: State, attributes: int) -> int:
    """The pool that variables with ``attributes`` live in, in this phase (R30, R119)."""
    if not attributes & NV:
        return state.limits.volatile_pool
    return state.limits.hr_pool if attributes & HR else nv_pool(state)
