"""Variable policy: entries, best match, what the winner forbids (R102..R107).

Source: edk2 MdeModulePkg/Include/Protocol/VariablePolicy.h, whose field names these are.
Little-endian, packed. Sizes in bytes; a name's size includes its NUL.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final
from uuid import UUID

from construct import Bytes, Int8ul, Int16ul, Int32ul, Struct

from cvars.variables.limits import Limits
from cvars.variables.model import Key, Variable
from cvars.variables.names import guid
from cvars.variables.profile import Profile
from cvars.variables.refusals import (
    AlreadyStarted,
    InvalidParameter,
    OutOfResources,
    Unsupported,
    WriteProtected,
)

VARIABLE_POLICY_ENTRY: Final = Struct(
    "Version" / Int32ul,  # +0x00
    "Size" / Int16ul,  # +0x04
    "OffsetToName" / Int16ul,  # +0x06
    "Namespace" / Bytes(16),  # +0x08
    "MinSize" / Int32ul,  # +0x18
    "MaxSize" / Int32ul,  # +0x1C
    "AttributesMustHave" / Int32ul,  # +0x20
    "AttributesCantHave" / Int32ul,  # +0x24
    "LockPolicyType" / Int8ul,  # +0x28
    "Padding" / Bytes(3),  # +0x29
)  # 0x2C bytes; then the lock policy and the name
VARIABLE_LOCK_ON_VAR_STATE_POLICY: Final = Struct(
    "Namespace" / Bytes(16),  # +0x00
    "Value" / Int8ul,  # +0x10
    "Padding" / Int8ul,  # +0x11
)  # 0x12 bytes; then the state name with its NUL
ENTRY_BYTES: Final = VARIABLE_POLICY_ENTRY.sizeof()
STATE_BYTES: Final = VARIABLE_LOCK_ON_VAR_STATE_POLICY.sizeof()
VERSION: Final = 0x00010000
NO_MAXIMUM: Final = 0xFFFFFFFF
WILDCARDS: Final = 255  # of one name at most (R103)
NAMESPACE_PRIORITY: Final = 255  # a nameless entry matches its namespace last (R105)
_HEX: Final = frozenset("0123456789abcdefABCDEF")


class LockType(IntEnum):
    """VARIABLE_POLICY_TYPE_*."""

    NONE = 0
    NOW = 1
    ON_CREATE = 2
    ON_VAR_STATE = 3


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """One registered policy. ``raw`` is the entry as registered, byte for byte: dumps return it (R110).

    ``name`` None: the whole namespace. An empty name is a name, and matches nothing.
    """

    raw: bytes = field(repr=False)
    namespace: UUID
    name: str | None
    min_size: int
    max_size: int
    must: int
    cant: int
    lock: LockType
    state_key: Key | None = None
    state_value: int = 0

    def priority(self, key: Key) -> int | None:
        """How well this entry matches ``key``: 0 is exact, None is not at all (R105)."""
        if self.namespace != key.vendor_guid:
            return None
        if self.name is None:
            return NAMESPACE_PRIORITY
        if "#" not in self.name:
            return 0 if self.name == key.name else None
        if len(self.name) != len(key.name):
            return None
        wild = 0
        for mine, theirs in zip(self.name, key.name, strict=True):
            if mine == "#":
                if theirs not in _HEX:
                    return None
                wild += 1
            elif mine != theirs:
                return None
        return wild


@dataclass(frozen=True, slots=True)
class PolicyTable:
    """All policies of this boot. ``dump``: the snapshot that pages are cut from, None without one (R110)."""

    entries: tuple[PolicyEntry, ...] = ()
    locked: bool = False
    enabled: bool = True
    dump: bytes | None = field(default=None, repr=False)

    def best(self, key: Key) -> PolicyEntry | None:
        """The entry with the lowest priority number; the first registered of equals (R105)."""
        winner, lowest = None, NAMESPACE_PRIORITY + 1
        for entry in self.entries:
            priority = entry.priority(key)
            if priority is not None and priority < lowest:
                winner, lowest = entry, priority
        return winner

    def with_entry(self, entry: PolicyEntry) -> "PolicyTable":
        """This table and one more entry."""
        return replace(self, entries=(*self.entries, entry))


def _name(raw: bytes) -> str | None:
    """A CHAR16 string that ends with its first NUL exactly at the end of ``raw``, else None."""
    if len(raw) % 2 or len(raw) < 2:
        return None
    name = raw.decode("utf-16-le", "surrogatepass")
    return name[:-1] if name.find("\0") == len(name) - 1 else None


def parse_entry(raw: bytes, *, locked: bool, profile: Profile) -> PolicyEntry:
    """Parse the VARIABLE_POLICY_ENTRY that ``raw`` begins with (R102, R103).

    ``locked``: the interface is locked, which is answered after the version and size checks (R104).

    Raises:
        InvalidParameter: malformed (R103).
        WriteProtected: locked (R104).
    """
    if len(raw) < ENTRY_BYTES:
        raise InvalidParameter(f"policy entry of {len(raw)} bytes")  # R103
    header = VARIABLE_POLICY_ENTRY.parse(raw)
    if header.Version != VERSION:
        raise InvalidParameter(f"policy version {header.Version:#x}")  # R103
    if header.Size < ENTRY_BYTES or header.Size > len(raw):
        raise InvalidParameter(f"policy size {header.Size} of {len(raw)}")  # R103
    if locked:
        raise WriteProtected("the policy interface is locked")  # R104
    if header.MaxSize == 0:
        raise InvalidParameter("policy with maximum size 0")  # R103
    if header.MinSize > header.MaxSize and not profile.allows_min_over_max:
        raise InvalidParameter("policy with minimum above maximum")  # R103
    if header.LockPolicyType not in iter(LockType):
        raise InvalidParameter(f"lock type {header.LockPolicyType}")  # R103
    if header.OffsetToName > header.Size:
        raise InvalidParameter("policy name begins behind the entry")  # R103
    lock = LockType(header.LockPolicyType)
    state_key, state_value = None, 0
    if lock is LockType.ON_VAR_STATE:
        state_name = header.OffsetToName - ENTRY_BYTES - STATE_BYTES
        if state_name < 2:
            raise InvalidParameter("no room for the state variable's name")  # R103
        block = VARIABLE_LOCK_ON_VAR_STATE_POLICY.parse(raw[ENTRY_BYTES:])
        parsed = _name(raw[ENTRY_BYTES + STATE_BYTES : header.OffsetToName])
        if parsed is None:
            raise InvalidParameter("the state variable's name does not end at the policy's name")  # R103
        state_key, state_value = Key(guid(block.Namespace), parsed), block.Value
    elif header.OffsetToName != ENTRY_BYTES:
        raise InvalidParameter(f"policy name at {header.OffsetToName}")  # R103
    name: str | None = None
    if header.OffsetToName != header.Size:
        name = _name(raw[header.OffsetToName : header.Size])
        if name is None:
            raise InvalidParameter("the policy's name does not end with the entry")  # R103
        if name.count("#") > WILDCARDS:
            raise InvalidParameter("more than 255 wildcards")  # R103
    return PolicyEntry(
        raw=raw[: header.Size],
        namespace=guid(header.Namespace),
        name=name,
        min_size=header.MinSize,
        max_size=header.MaxSize,
        must=header.AttributesMustHave,
        cant=header.AttributesCantHave,
        lock=lock,
        state_key=state_key,
        state_value=state_value,
    )


def register(table: PolicyTable, raw: bytes, *, profile: Profile, limits: Limits) -> PolicyTable:
    """Add the entry that ``raw`` begins with (R103, R104); number and bytes of all entries are bounded (R15)."""
    entry = parse_entry(raw, locked=table.locked, profile=profile)
    if not table.enabled and not profile.registers_while_disabled:
        raise Unsupported("the policy is disabled")  # R104
    for other in table.entries:
        if entry.name is None or (other.namespace, other.name) != (entry.namespace, entry.name):
            continue
        if "#" not in entry.name or not profile.repeats_wildcards:
            raise AlreadyStarted("this name has a policy")  # R104
    if len(table.entries) >= limits.max_policies:
        raise OutOfResources("too many policies")  # R104
    if sum(len(other.raw) for other in table.entries) + len(entry.raw) > limits.max_policy_bytes:
        raise OutOfResources("too many bytes of policies")  # R104, R15
    return table.with_entry(entry)


def apply(
    table: PolicyTable,
    key: Key,
    attributes: int,
    size: int,
    *,
    deletes: bool,
    find: Callable[[Key], Variable | None],
) -> None:
    """Let the best matching policy judge a write of ``size`` payload bytes (R105, R106).

    ``attributes`` as passed, APPEND included; ``find`` looks a variable up, whatever the phase.

    Raises:
        InvalidParameter, WriteProtected: R106.
    """
    if not table.enabled:
        return
    entry = table.best(key)
    if entry is None:
        return
    if not deletes:
        if not entry.min_size <= size <= entry.max_size:
            raise InvalidParameter(f"policy wants {entry.min_size}..{entry.max_size} bytes")  # R106
        if attributes & entry.must != entry.must:
            raise InvalidParameter(f"policy wants attributes {entry.must:#x}")  # R106
        if attributes & entry.cant:
            raise InvalidParameter(f"policy forbids attributes {entry.cant:#x}")  # R106
    if entry.lock is LockType.NOW:
        raise WriteProtected("locked by policy")  # R106
    if entry.lock is LockType.ON_CREATE and find(key) is not None:
        raise WriteProtected("locked by policy once created")  # R106
    if entry.lock is LockType.ON_VAR_STATE and entry.state_key is not None:
        state = find(entry.state_key)
        if state is not None and state.data == bytes([entry.state_value]):
            raise WriteProtected("locked by policy in this state")  # R106
