"""Which variables are security-relevant: anchored at once in critical mode, with reserved room in the store.

Source: sealed-store 6.2 (SS-14, SS-23).
"""

import re
from typing import Final
from uuid import UUID

from cvars.variables.model import Key, Variable

GLOBAL: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SECURE_BOOT_ENABLE: Final = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
CUSTOM_MODE: Final = UUID("c076ec0c-7028-4399-a072-71ee5c448b9f")
VENDOR_KEYS_NV: Final = UUID("9073e4e0-60ec-4b6e-9903-4c223c260f3c")
SHIM: Final = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
#: private items of the service (pins, MOR, policy inputs): never visible to the guest
PRIVATE: Final = UUID("5b0a86c9-8df5-4b23-9c46-0f6a2f3dbd11")

_NAMED: Final = frozenset(
    {
        Key(GLOBAL, "PK"),
        Key(GLOBAL, "KEK"),
        Key(GLOBAL, "OsRecoveryOrder"),
        *(Key(IMAGE_SECURITY, name) for name in ("db", "dbx", "dbt", "dbr")),
        Key(SECURE_BOOT_ENABLE, "SecureBootEnable"),
        Key(CUSTOM_MODE, "CustomMode"),
        Key(VENDOR_KEYS_NV, "VendorKeysNv"),
    }
)
_OS_RECOVERY: Final = re.compile(r"OsRecovery[0-9A-F]{4}")


def is_security_relevant(key: Key, variable: Variable | None, extra: frozenset[Key] = frozenset()) -> bool:
    """Say whether ``key`` (with its stored or new ``variable``, None on a delete) belongs to the set.

    ``extra``: what the owner adds by configuration.
    """
    return (
        key in _NAMED
        or key in extra
        or key.vendor_guid in (PRIVATE, SHIM)
        or (key.vendor_guid == GLOBAL and _OS_RECOVERY.fullmatch(key.name) is not None)
        or (variable is not None and variable.signer is not None)
    )
