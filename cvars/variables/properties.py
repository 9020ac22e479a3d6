"""VarCheck variable properties (R113). Source: edk2 MdeModulePkg/Include/Protocol/VarCheck.h."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cvars.variables.model import Key
from cvars.variables.names import APPEND
from cvars.variables.refusals import (
    AccessDenied,
    InvalidParameter,
    NotFound,
    OutOfResources,
    WriteProtected,
)
from cvars.variables.requests import GetProperty, Property, SetProperty
from cvars.variables.state import Draft, State, Step

REVISION: Final = 1
READ_ONLY: Final = 0x0001
WILDCARD: Final = "####"
_DIGITS: Final = re.compile(r"[0-9A-F]{4}")  # upper case only, unlike a policy's # (R113)


def find(properties: Mapping[Key, Property], key: Key) -> Property | None:
    """The property of ``key``: its own, or that of the pattern with ``####`` in place of four digits."""
    found = properties.get(key)
    if found is None and properties and _DIGITS.fullmatch(key.name[-4:]):
        found = properties.get(Key(key.vendor_guid, key.name[:-4] + WILDCARD))
    return found


def check(properties: Mapping[Key, Property], key: Key, attributes: int, size: int, *, deletes: bool) -> None:
    """Hold a write of ``size`` payload bytes to its property (R113).

    Raises:
        WriteProtected, InvalidParameter: R113.
    """
    wanted = find(properties, key)
    if wanted is None:
        return
    if wanted.flags & READ_ONLY:
        raise WriteProtected("read-only by property")  # R113
    if deletes:
        return
    if wanted.attributes and attributes & ~APPEND != wanted.attributes:
        raise InvalidParameter(f"property wants attributes {wanted.attributes:#x}")  # R113
    if not wanted.min_size <= size <= wanted.max_size:
        raise InvalidParameter(f"property wants {wanted.min_size}..{wanted.max_size} bytes")  # R113


def set_property(state: State, request: SetProperty) -> Step:
    """Function 9."""
    if request.value.revision != REVISION:
        raise InvalidParameter(f"property revision {request.value.revision}")  # R113
    if not request.key.name:
        raise InvalidParameter("property without a name")  # R113
    if state.armed:
        raise AccessDenied("properties are set before EndOfDxe")  # R19
    if request.key not in state.properties and len(state.properties) >= state.limits.max_properties:
        raise OutOfResources("too many properties")  # R15
    properties = MappingProxyType({**state.properties, request.key: request.value})
    return Draft(state).finish(properties=properties)


def get_property(state: State, request: GetProperty) -> Step:
    """Function 10."""
    found = find(state.properties, request.key)
    if found is None:
        raise NotFound("no property")  # R113
    return Step(state, found)
