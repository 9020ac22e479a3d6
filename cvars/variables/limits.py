"""How much the service stores: pools, class limits, reserves (R30, R119..R121). All sizes in bytes."""

from dataclasses import dataclass
from typing import Final

from cvars.variables.model import Key, Variable
from cvars.variables.names import AT, ENH, HR, NV

HEADER: Final = 60  # per-variable overhead: the authenticated flash header of edk2 (R30)
PIN: Final = 32  # stored beside it for authenticated variables (R30)
NV_POOL: Final = 256 * 1024
CLASS_LIMIT: Final = 64 * 1024
PRIVATE_POOL: Final = 2048  # room for the service's own items (sealed-store 6.2)


def overhead(attributes: int) -> int:
    """`H` of R30."""
    return HEADER + PIN if attributes & (AT | ENH) else HEADER


def cost(key: Key, variable: Variable) -> int:
    """What one variable is charged: header, name with NUL, data, rounded up to 4 (R30, R120)."""
    raw = overhead(variable.attributes) + name_size(key) + len(variable.data)
    return -(-raw // 4) * 4


def name_size(key: Key) -> int:
    """Bytes of the name with its NUL."""
    return (2 * len(key.name) if key.name.isascii() else len(key.name_bytes)) + 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Pools, class limits and reserves.

    ``reserved``: bytes of the NV pool that only security-relevant variables may use (SS-23).
    ``boot_reserve``: bytes of the NV pool that are not given out in Runtime (R119).
    ``user_quota``: NV bytes of variables that neither the specification nor the platform defines, from
    EndOfDxe on (R119); None for no quota.
    ``max_name``: bytes of a name with its NUL, None for no limit of its own.
    """

    nv_pool: int = NV_POOL
    volatile_pool: int = NV_POOL
    hr_pool: int = 0
    max_authenticated: int = CLASS_LIMIT
    max_nv: int = CLASS_LIMIT
    max_volatile: int = CLASS_LIMIT
    max_hr: int = CLASS_LIMIT
    max_variables: int = 1024
    max_policies: int = 512
    max_policy_bytes: int = 128 * 1024
    max_properties: int = 256
    reserved: int = 0
    boot_reserve: int = 0
    user_quota: int | None = None
    max_name: int | None = None

    def __post_init__(self) -> None:
        """Pools are multiples of 4, so that R31 is exact to the byte."""
        for name in ("nv_pool", "volatile_pool", "hr_pool"):
            object.__setattr__(self, name, max(0, getattr(self, name)) // 4 * 4)
        for name in ("reserved", "boot_reserve"):
            object.__setattr__(self, name, -(-max(0, getattr(self, name)) // 4) * 4)

    @classmethod
    def for_capacity(cls, capacity: int, *, largest: int = CLASS_LIMIT, hr_pool: int = 0) -> "Limits":
        """The defaults of R121, held to what a store of ``capacity`` bytes can keep (R121, SS-23).

        ``largest`` is what its largest record holds. A quarter of the capacity is for security-relevant
        variables; 2 KiB are for private items.
        """
        pool = max(0, capacity - PRIVATE_POOL)
        common = min(NV_POOL, pool)
        errors = max(0, min(hr_pool, pool - common))
        single = min(CLASS_LIMIT, largest, common)
        return cls(
            nv_pool=common,
            hr_pool=errors,
            max_authenticated=single,
            max_nv=single,
            max_hr=min(single, errors),
            reserved=min(capacity // 4, common),
        )

    def class_limit(self, attributes: int) -> int:
        """The largest stored size, overhead included, of one variable with ``attributes`` (R30, R41)."""
        if attributes & HR:
            return self.max_hr
        if attributes & (AT | ENH):
            return self.max_authenticated
        return self.max_nv if attributes & NV else self.max_volatile


DEFAULT_LIMITS: Final = Limits()
