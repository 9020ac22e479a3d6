"""Quotas: what a change may add to each pool (R51, R119, R120)."""

from cvars.variables.limits import cost
from cvars.variables.model import Key, Variable
from cvars.variables.names import HW_ERROR, NV
from cvars.variables.refusals import OutOfResources
from cvars.variables.security import GLOBAL, IMAGE_SECURITY
from cvars.variables.state import State
from cvars.variables.table import pool_of


def check_room(before: State, after: State) -> None:
    """Refuse a change that grows a pool, or the number of variables, beyond its limit (R51).

    A change that shrinks is always allowed, so that a full store can be emptied again.

    Raises:
        OutOfResources: no room.
    """
    limits, old, new = after.limits, before.table.usage, after.table.usage
    if new.volatile > max(limits.volatile_pool, old.volatile):
        raise OutOfResources("volatile pool")  # R51
    if new.errors > max(limits.hr_pool, old.errors):
        raise OutOfResources("error-record pool")  # R51
    pool = nv_pool(after)
    if new.nv > max(pool, old.nv):
        raise OutOfResources("non-volatile pool")  # R51
    if new.common > max(pool - max(limits.reserved, new.security), old.common):
        raise OutOfResources("room reserved for security-relevant variables")  # R51
    if len(after.table) > max(limits.max_variables, len(before.table)):
        raise OutOfResources("number of variables")  # R51
    quota = limits.user_quota
    if quota is not None and new.common != old.common and after.armed:
        used = user_bytes(after)
        if used > max(quota, user_bytes(before)):
            raise OutOfResources("user quota")  # R51


def nv_pool(state: State) -> int:
    """The common NV pool in this phase (R30)."""
    limits = state.limits
    return max(0, limits.nv_pool - limits.boot_reserve) if state.at_runtime else limits.nv_pool


def user_bytes(state: State) -> int:
    """What variables outside the specification's namespaces and the platform's properties occupy (R119)."""
    return sum(cost(key, variable) for key, variable in state.table.items() if _is_user(state, key, variable))


def _is_user(state: State, key: Key, variable: Variable) -> bool:
    return (
        bool(variable.attributes & NV)
        and pool_of(key, variable) == "common"
        and key.vendor_guid not in (GLOBAL, IMAGE_SECURITY, HW_ERROR)
        and key not in state.properties
    )
