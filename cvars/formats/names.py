"""Variable names as people paste them, GUIDs as people know them (ux: "Commands")."""

import re
from typing import Final
from uuid import UUID

from cvars.errors import UsageMistake
from cvars.variables.model import Key
from cvars.variables.security import (
    CUSTOM_MODE,
    GLOBAL,
    IMAGE_SECURITY,
    SECURE_BOOT_ENABLE,
    SHIM,
)

KNOWN_GUIDS: Final = {
    GLOBAL: "global",
    IMAGE_SECURITY: "image-sec",
    SECURE_BOOT_ENABLE: "secureboot",
    CUSTOM_MODE: "custommode",
    SHIM: "shim",
    UUID("e20939be-32d4-41be-a150-897f85d49829"): "mor",
    UUID("bb983ccf-151d-40e1-a07b-4a17be168292"): "mor-lock",
    UUID("414e6bdd-e47b-47cc-b244-bb61020cf516"): "hwerr",
}
_GUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_EFIVARFS = re.compile(rf"(.+)-({_GUID})")
_EFIVAR = re.compile(rf"({_GUID})-(.+)")
_IMAGE_SECURITY_NAMES = ("db", "dbx", "dbt", "dbr")
_BITS: Final = {"NV": 1, "BS": 2, "RT": 4, "HR": 8, "AW": 0x10, "AT": 0x20, "APPEND": 0x40, "ENH": 0x80}
_SPECIFICATION = re.compile(
    "PK|KEK|SetupMode|SecureBoot|AuditMode|DeployedMode|VendorKeys|SignatureSupport|(PK|KEK|db|dbx|dbt|dbr)Default"
    "|Timeout|Lang(Codes)?|PlatformLang(Codes)?|(Con(In|Out)|ErrOut)(Dev)?|(Boot|Driver|SysPrep)Order|BootNext"
    "|BootCurrent|BootOptionSupport|(Boot|Driver|SysPrep|Key|PlatformRecovery|OsRecovery)[0-9A-F]{4}"
    "|OsRecoveryOrder|OsIndications(Supported)?|HwErrRecSupport"
)


def parse_name(text: str) -> Key:
    """``BootOrder``, ``BootOrder-GUID`` (efivarfs) or ``GUID-BootOrder`` (efivar).

    Raises:
        UsageMistake: a bare name that the UEFI specification does not own.
    """
    if match := _EFIVAR.fullmatch(text):
        return Key(UUID(match[1]), match[2])
    if match := _EFIVARFS.fullmatch(text):
        return Key(UUID(match[2]), match[1])
    if text in _IMAGE_SECURITY_NAMES:
        return Key(IMAGE_SECURITY, text)
    if _SPECIFICATION.fullmatch(text):
        return Key(GLOBAL, text)
    raise UsageMistake(
        f"{text!r} is not a name that the UEFI specification owns",
        hint=f"say whose it is: {text}-XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX",
    )


def guid_word(guid: UUID) -> str:
    """The short name of a well-known GUID, else its registry form."""
    return KNOWN_GUIDS.get(guid, str(guid))


def attribute_words(attributes: int) -> str:
    """``NV BS RT AT`` in the order of the bits."""
    return " ".join(word for word, bit in _BITS.items() if attributes & bit)


def parse_attributes(text: str) -> int:
    """``NV,BS,RT`` or a number. Raises ``UsageMistake``."""
    try:
        number = int(text, 0)
    except ValueError:
        number = None
    if number is not None:
        if not 0 <= number <= 0xFFFFFFFF:
            raise UsageMistake(f"attributes are 32 bits: {text}")
        return number
    try:
        return sum({_BITS[word.strip().upper()] for word in text.split(",")})
    except KeyError as error:
        raise UsageMistake(f"no such attribute: {error.args[0]}", hint=f"of {', '.join(_BITS)}") from None
