"""What a variable is, and what a commit changes. Shared by the rules, the store and the formats."""

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

NO_TIME: Final = bytes(16)


class Key(NamedTuple):
    """A variable's identity: vendor GUID and name. A tuple, since every call hashes and compares some.

    ``name`` holds 16-bit units (UCS-2 decoded with ``surrogatepass``) without the NUL; compared bit for bit (R9).
    """

    vendor_guid: UUID
    name: str

    @property
    def name_bytes(self) -> bytes:
        """The name as UCS-2LE, without its NUL."""
        return self.name.encode("utf-16-le", "surrogatepass")

    @property
    def sort_bytes(self) -> bytes:
        """Order of a snapshot: the GUID in EFI byte order, then the name's bytes (sealed-store 6.1)."""
        return self.vendor_guid.bytes_le + self.name_bytes


@dataclass(frozen=True, slots=True)
class Variable:
    """The stored part of a variable.

    ``timestamp`` is the 16-byte EFI_TIME of the last authenticated write, zeros without one. ``signer`` is the
    32-byte pin of a private authenticated variable in the store's encoding (R74), else None.
    """

    attributes: int
    data: bytes
    timestamp: bytes = NO_TIME
    signer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """The whole new value."""

    key: Key
    variable: Variable


@dataclass(frozen=True, slots=True)
class Delete:
    """The variable and its pin are gone."""

    key: Key


@dataclass(frozen=True, slots=True)
class Append:
    """``added`` bytes were appended; ``variable`` is the resulting one."""

    key: Key
    added: bytes
    variable: Variable


Change: TypeAlias = Put | Delete | Append
Journal: TypeAlias = tuple[Change, ...]
