"""What the specification says about its own variables: names, attributes, sizes (R114..R117).

Source: UEFI 2.10 3.3 table 3.1, 3.1.3 load options, 10.3 device paths, 32.4.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cvars.variables.model import Key
from cvars.variables.names import APPEND, AT, BS, HR, HW_ERROR, NV, RT
from cvars.variables.refusals import InvalidParameter
from cvars.variables.security import CUSTOM_MODE, GLOBAL, IMAGE_SECURITY, SECURE_BOOT_ENABLE

_NBR: Final = NV | BS | RT
_BR: Final = BS | RT
END_TYPE: Final = 0x7F
END_ENTIRE: Final = 0xFF
END_INSTANCE: Final = 0x01
KEY_OPTION: Final = 10  # bytes before the keys
INPUT_KEY: Final = 4
MAX_KEYS: Final = 3  # of a Key#### option


@dataclass(frozen=True, slots=True)
class Form:
    """Attributes that a variable must have (None: any), and a judge of its data (None: any)."""

    attributes: int | None = None
    sound: Callable[[bytes], bool] | None = None


def is_device_path(data: bytes) -> bool:
    """Nodes of sound length, ended by one End Entire node that is the last (10.3.1)."""
    at = 0
    while len(data) - at >= 4:
        kind, sub, length = struct.unpack_from("<BBH", data, at)
        if length < 4 or length > len(data) - at:
            return False
        at += length
        if kind == END_TYPE:
            if length != 4 or sub not in (END_ENTIRE, END_INSTANCE):
                return False
            if sub == END_ENTIRE:
                return bool(at == len(data))
    return False


def is_load_option(data: bytes) -> bool:
    """EFI_LOAD_OPTION: attributes, list length, description, device paths (R117)."""
    if len(data) < 6:
        return False
    (paths,) = struct.unpack_from("<H", data, 4)
    end = 6
    while data[end : end + 2] != b"\0\0":
        end += 2
        if end + 2 > len(data):
            return False
    end += 2
    return paths >= 4 and end + paths <= len(data) and _begins_with_path(data[end : end + paths])


def _begins_with_path(data: bytes) -> bool:
    """A FilePathList may hold several device paths, each complete (3.1.3)."""
    at = 0
    while at < len(data):
        start = at
        while True:
            if len(data) - at < 4:
                return False
            kind, sub, length = struct.unpack_from("<BBH", data, at)
            if length < 4 or length > len(data) - at:
                return False
            at += length
            if kind == END_TYPE and sub == END_ENTIRE:
                break
        if at == start:
            return False
    return True


def is_key_option(data: bytes) -> bool:
    """EFI_KEY_OPTION: u32 KeyData, u32 CRC, u16 option number, then at most three EFI_INPUT_KEYs."""
    keys = len(data) - KEY_OPTION
    return keys >= 0 and keys % INPUT_KEY == 0 and keys // INPUT_KEY <= MAX_KEYS


def _sized(size: int) -> Callable[[bytes], bool]:
    return lambda data: len(data) == size


def _is_text(data: bytes) -> bool:
    return b"\0" in data


def _is_order(data: bytes) -> bool:
    return len(data) % 2 == 0


_GLOBAL: Final[dict[str, Form]] = {
    **dict.fromkeys(("Lang", "PlatformLang"), Form(_NBR, _is_text)),
    **dict.fromkeys(("LangCodes", "PlatformLangCodes"), Form(_BR)),
    "Timeout": Form(_NBR, _sized(2)),
    **dict.fromkeys(("ConIn", "ConOut", "ErrOut"), Form(_NBR, is_device_path)),
    **dict.fromkeys(("ConInDev", "ConOutDev", "ErrOutDev"), Form(_BR, is_device_path)),
    **dict.fromkeys(("BootOrder", "DriverOrder", "SysPrepOrder"), Form(_NBR, _is_order)),
    "BootNext": Form(_NBR, _sized(2)),
    "BootCurrent": Form(_BR, _sized(2)),
    "BootOptionSupport": Form(_BR, _sized(4)),
    "HwErrRecSupport": Form(_NBR, _sized(2)),
    "OsIndications": Form(_NBR, _sized(8)),
    "OsIndicationsSupported": Form(_BR, _sized(8)),
    **dict.fromkeys(("PK", "KEK"), Form(_NBR | AT)),
    # documented names whose form the service, or nobody, decides
    **dict.fromkeys(
        (
            "AuditMode",
            "CryptoIndications",
            "CryptoIndicationsActivated",
            "CryptoIndicationsSupported",
            "DeployedMode",
            "KEKDefault",
            "OsRecoveryOrder",
            "PKDefault",
            "PlatformRecoveryOrder",
            "SecureBoot",
            "SetupMode",
            "SignatureSupport",
            "VendorKeys",
            "VendorKeysNv",
            "dbDefault",
            "dbrDefault",
            "dbtDefault",
            "dbxDefault",
        ),
        Form(),
    ),
}
_IMAGE_SECURITY: Final = dict.fromkeys(("db", "dbx", "dbt", "dbr"), Form(_NBR | AT))
_NUMBERED: Final[tuple[tuple[str, Form], ...]] = (
    ("Boot", Form(_NBR, is_load_option)),
    ("Driver", Form(_NBR, is_load_option)),
    ("SysPrep", Form(_NBR, is_load_option)),
    ("OsRecovery", Form(_NBR | AT, is_load_option)),
    ("PlatformRecovery", Form(_BR, is_load_option)),
    ("Key", Form(_NBR, is_key_option)),
)
_HW_ERROR_RECORD: Final = Form(_NBR | HR)
_DIGITS: Final = re.compile(r"[0-9A-F]{4}")


def form_of(key: Key) -> Form | None:
    """The form of a variable in a namespace that the specification owns; None: not documented (R115)."""
    if key.vendor_guid == IMAGE_SECURITY:
        return _IMAGE_SECURITY.get(key.name)
    if key.vendor_guid == HW_ERROR:
        return _HW_ERROR_RECORD if _is_numbered(key.name, "HwErrRec") else None
    named = _GLOBAL.get(key.name)
    if named is not None:
        return named
    for prefix, form in _NUMBERED:
        if _is_numbered(key.name, prefix):
            return form
    return None


def _is_numbered(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and _DIGITS.fullmatch(name, len(prefix)) is not None


def check(key: Key, attributes: int, payload: bytes) -> None:
    """Judge a write that is not a delete (R114..R117). ``attributes`` as passed; ``payload`` without descriptor.

    Raises:
        InvalidParameter: R114..R117.
    """
    if attributes & HR and not (key.vendor_guid == HW_ERROR and _is_numbered(key.name, "HwErrRec")):
        raise InvalidParameter("HR is for HwErrRec####")  # R114
    form: Form | None
    if key.vendor_guid in (GLOBAL, IMAGE_SECURITY, HW_ERROR):
        form = form_of(key)
        if form is None:
            raise InvalidParameter("not a variable of this namespace")  # R115
    elif (key.vendor_guid, key.name) in (
        (SECURE_BOOT_ENABLE, "SecureBootEnable"),
        (CUSTOM_MODE, "CustomMode"),
    ):
        form = Form(NV | BS, _sized(1))
    else:
        return
    if form.attributes is not None and attributes & ~APPEND != form.attributes:
        raise InvalidParameter(f"wants attributes {form.attributes:#x}")  # R116
    if form.sound is not None and not form.sound(payload):
        raise InvalidParameter("data has not the form of this variable")  # R116, R117
