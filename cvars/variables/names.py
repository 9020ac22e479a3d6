"""The words of UEFI variables: attribute bits, namespaces, and the names that the specification owns.

Source: UEFI 2.10 3.3, 8.2, 32.4; TCG Platform Reset Attack Mitigation 1.10; edk2 for the GUIDs it defines.
"""

import re
from functools import lru_cache
from typing import Final
from uuid import UUID

from cvars.variables.model import Key
from cvars.variables.security import CUSTOM_MODE, GLOBAL, IMAGE_SECURITY, SECURE_BOOT_ENABLE, VENDOR_KEYS_NV

NV: Final = 0x01  # NON_VOLATILE
BS: Final = 0x02  # BOOTSERVICE_ACCESS
RT: Final = 0x04  # RUNTIME_ACCESS
HR: Final = 0x08  # HARDWARE_ERROR_RECORD
AW: Final = 0x10  # AUTHENTICATED_WRITE_ACCESS, deprecated
AT: Final = 0x20  # TIME_BASED_AUTHENTICATED_WRITE_ACCESS
APPEND: Final = 0x40  # APPEND_WRITE, never stored (R56)
ENH: Final = 0x80  # ENHANCED_AUTHENTICATED_ACCESS
SUPPORTED: Final = NV | BS | RT | HR | AT | APPEND

HW_ERROR: Final = UUID("414e6bdd-e47b-47cc-b244-bb61020cf516")
CERT_DB: Final = UUID("d9bee56e-75dc-49d9-b4d7-b534210f637a")
MOR_CONTROL: Final = UUID("e20939be-32d4-41be-a150-897f85d49829")
MOR_CONTROL_LOCK: Final = UUID("bb983ccf-151d-40e1-a07b-4a17be168292")

MM_VARIABLE: Final = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
MM_POLICY: Final = UUID("da1b0d11-d1a7-46c4-9dc9-f3714875c6eb")
EVENT_END_OF_DXE: Final = UUID("02ce967a-dd7e-4ffc-9ee7-810cf0470880")
EVENT_READY_TO_BOOT: Final = UUID("7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b")
EVENT_EXIT_BOOT_SERVICES: Final = UUID("27abf055-b1b8-4c26-8048-748f37baa2df")

PK: Final = Key(GLOBAL, "PK")
KEK: Final = Key(GLOBAL, "KEK")
DB: Final = Key(IMAGE_SECURITY, "db")
DBX: Final = Key(IMAGE_SECURITY, "dbx")
DBT: Final = Key(IMAGE_SECURITY, "dbt")
DBR: Final = Key(IMAGE_SECURITY, "dbr")
SETUP_MODE: Final = Key(GLOBAL, "SetupMode")
SECURE_BOOT: Final = Key(GLOBAL, "SecureBoot")
AUDIT_MODE: Final = Key(GLOBAL, "AuditMode")
DEPLOYED_MODE: Final = Key(GLOBAL, "DeployedMode")
SIGNATURE_SUPPORT: Final = Key(GLOBAL, "SignatureSupport")
VENDOR_KEYS: Final = Key(GLOBAL, "VendorKeys")
VENDOR_KEYS_STORED: Final = Key(VENDOR_KEYS_NV, "VendorKeysNv")
ENABLE: Final = Key(SECURE_BOOT_ENABLE, "SecureBootEnable")
CUSTOM: Final = Key(CUSTOM_MODE, "CustomMode")
MOR: Final = Key(MOR_CONTROL, "MemoryOverwriteRequestControl")
MOR_LOCK: Final = Key(MOR_CONTROL_LOCK, "MemoryOverwriteRequestControlLock")
OS_RECOVERY_ORDER: Final = Key(GLOBAL, "OsRecoveryOrder")
LANG: Final = Key(GLOBAL, "Lang")
LANG_CODES: Final = Key(GLOBAL, "LangCodes")
PLATFORM_LANG: Final = Key(GLOBAL, "PlatformLang")
PLATFORM_LANG_CODES: Final = Key(GLOBAL, "PlatformLangCodes")

#: signature databases that Secure Boot decides with (R59, R71, R73)
KEY_STORES: Final = frozenset({PK, KEK, DB, DBX, DBT, DBR})
IMAGE_DATABASES: Final = frozenset({DB, DBX, DBT, DBR})

#: read-only to the guest in every phase (R88, R77)
READ_ONLY: Final = frozenset(
    {
        SETUP_MODE,
        SECURE_BOOT,
        SIGNATURE_SUPPORT,
        VENDOR_KEYS,
        VENDOR_KEYS_STORED,
        Key(GLOBAL, "VendorKeysNv"),
        *(Key(GLOBAL, name) for name in ("PKDefault", "KEKDefault")),
        *(Key(GLOBAL, name) for name in ("dbDefault", "dbxDefault", "dbtDefault", "dbrDefault")),
        Key(CERT_DB, "certdb"),
        Key(CERT_DB, "certdbv"),
    }
)

_OS_RECOVERY: Final = re.compile(r"OsRecovery[0-9A-F]{4}")


def is_recovery(key: Key) -> bool:
    """OsRecoveryOrder or OsRecovery#### (R71)."""
    return key.vendor_guid == GLOBAL and (key == OS_RECOVERY_ORDER or _OS_RECOVERY.fullmatch(key.name) is not None)


def is_private(key: Key, attributes: int) -> bool:
    """An authenticated variable that only its first signer may change (R74)."""
    return bool(attributes & AT) and key not in KEY_STORES and not is_recovery(key) and key not in READ_ONLY


@lru_cache(maxsize=512)
def guid(raw: bytes) -> UUID:
    """The GUID of 16 bytes in EFI order; one object per GUID, which makes comparisons cheap."""
    return UUID(bytes_le=raw)
