"""The sealed variable store on the host's pflash blob. Source: `sealed-store` SS-1..SS-26, T1..T26.

Others use these names: `mount` gives a `Store` on a `Medium`; keys and settings come in as `StoreKeys` and
`StoreConfig`; the anchor is `cvars.store.anchor.Anchor`.
"""

from cvars.store.config import Boot, Outcome, StoreConfig
from cvars.store.engine import Store, StoreFull
from cvars.store.keys import StoreKeys
from cvars.store.medium import FileMedium, Medium, MemoryMedium
from cvars.store.mounting import mount
from cvars.store.selection import Mode

__all__ = [
    "Boot",
    "FileMedium",
    "Medium",
    "MemoryMedium",
    "Mode",
    "Outcome",
    "Store",
    "StoreConfig",
    "StoreFull",
    "StoreKeys",
    "mount",
]
