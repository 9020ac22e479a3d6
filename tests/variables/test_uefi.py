"""Variables that the specification defines (R114..R118, P29)."""

import struct

import pytest

from cvars.variables import Limits, uefi
from cvars.variables.names import CUSTOM, DB, DBR, DBT, DBX, ENABLE, HW_ERROR, KEK, PK
from cvars.variables.requests import SetVariable
from cvars.variables.security import GLOBAL, IMAGE_SECURITY
from tests.variables.kit import APPEND, AT, BS, HR, NBR, NV, RT, A, Guest, key, refused
from tests.variables.pki import AUTH, SHA256, auth, esl

BR = BS | RT
END = b"\x7f\xff\4\0"
NODE = b"\4\4\6\0ab"
INSTANCE = b"\x7f\1\4\0"
PATH = NODE + END


def load_option(paths=PATH, description="Boot\0", length=None, optional=b""):
    return (
        struct.pack("<IH", 1, len(paths) if length is None else length)
        + description.encode("utf-16-le")
        + (paths + optional)
    )


def key_option(keys=1, extra=b""):
    return struct.pack("<IIH", (keys & 3) << 30, 0, 1) + bytes(4 * keys) + extra


SAMPLES = {
    "Lang": (NBR, b"eng\0", [b"eng", b"e"]),
    "PlatformLang": (NBR, b"en\0", [b"en"]),
    "LangCodes": (BR, b"eng", []),
    "PlatformLangCodes": (BR, b"en;fr", []),
    "Timeout": (NBR, b"\0\0", [b"\0", b"\0\0\0"]),
    **{name: (NBR, PATH, [b"x", NODE, PATH + b"x", b"\4\4\3\0" + END]) for name in ("ConIn", "ConOut", "ErrOut")},
    **{name: (BR, NODE + INSTANCE + PATH, [NODE]) for name in ("ConInDev", "ConOutDev", "ErrOutDev")},
    **{name: (NBR, b"\0\0\1\0", [b"\0", b"\0\0\0"]) for name in ("BootOrder", "DriverOrder", "SysPrepOrder")},
    "BootNext": (NBR, b"\0\0", [b"\0", b"\0\0\0"]),
    "BootCurrent": (BR, b"\0\0", [b"\0"]),
    "BootOptionSupport": (BR, bytes(4), [bytes(3), bytes(5)]),
    "HwErrRecSupport": (NBR, b"\0\0", [b"\0"]),
    "OsIndications": (NBR, bytes(8), [bytes(7), bytes(9), bytes(4)]),
    "OsIndicationsSupported": (BR, bytes(8), [bytes(7)]),
    **{name + "00AF": (NBR, load_option(), [b"x"]) for name in ("Boot", "Driver", "SysPrep")},
    "PlatformRecovery0001": (BR, load_option(), [b"x"]),
    "Key0001": (NBR, key_option(1), [key_option(1)[:-1], b"x"]),
    "CryptoIndications": (NBR, b"anything", []),
}


@pytest.mark.rule("R116", "P29")
@pytest.mark.parametrize("name", SAMPLES)
def test_R116_P29_attributes_and_sizes(name):
    attributes, good, bad = SAMPLES[name]
    guest = Guest().end_of_dxe()
    if name != "CryptoIndications":
        for other in {NBR, BR, NV | BS, BS} - {attributes}:
            with refused("INVALID_PARAMETER", guest):
                guest.set(name, good, other, GLOBAL)
    for data in bad:
        with refused("INVALID_PARAMETER", guest):
            guest.set(name, data, attributes, GLOBAL)
    guest.set(name, good, attributes, GLOBAL)
    guest.set(name, b"", attributes, GLOBAL)  # deletes are exempt
    early = Guest()
    for data in bad:
        early.set(name, data, attributes, GLOBAL)
    elsewhere = Guest().end_of_dxe()
    for data in bad:
        elsewhere.set(name, data, NV | BS, A)


def test_R116_the_append_bit_is_not_an_attribute():
    guest = Guest().end_of_dxe()
    guest.set("BootOrder", b"\0\0", NBR, GLOBAL)
    guest.set("BootOrder", b"\1\0", NBR | APPEND, GLOBAL)
    with refused("INVALID_PARAMETER", guest):
        guest.set("BootOrder", b"\1", NBR | APPEND, GLOBAL)


@pytest.mark.parametrize("target", [PK, KEK, DB, DBX, DBT, DBR])
def test_R116_key_stores_are_runtime_variables(target):
    guest = Guest().end_of_dxe()
    payload = esl(bytes(32), kind=SHA256)
    for attributes in (NV | BS | AT, BR | AT):
        with refused("INVALID_PARAMETER", guest):
            guest.set(target, auth(None, target, payload, attributes), attributes)
    if target != PK:
        guest.set(target, auth(None, target, payload), AUTH)


@pytest.mark.parametrize("target", [ENABLE, CUSTOM])
def test_R116_presence_variables_are_one_byte(target):
    guest = Guest().end_of_dxe()
    for data, attributes in ((b"\0\0", NV | BS), (b"\0", NBR), (b"\0", BS)):
        with refused("INVALID_PARAMETER", guest):
            guest.set(target, data, attributes)


def test_R114_the_error_record_bit_is_for_error_records():
    guest = Guest(limits=Limits(hr_pool=4096)).end_of_dxe()
    for name, vendor in (
        ("HwErrRec0000", A),
        ("HwErrRec000g", HW_ERROR),
        ("HwErrRec00af", HW_ERROR),
        ("HwErrRec00000", HW_ERROR),
        ("HwErrRec", HW_ERROR),
        ("BootOrder", GLOBAL),
    ):
        with refused("INVALID_PARAMETER", guest):
            guest.set(name, b"\0\0", NBR | HR, vendor)
    guest.set("HwErrRec00AF", b"x", NBR | HR, HW_ERROR)
    with refused("INVALID_PARAMETER", guest):
        guest.set("HwErrRec00AE", b"x", NBR, HW_ERROR)
    Guest(limits=Limits(hr_pool=4096)).set("Any", b"x", NBR | HR)


@pytest.mark.rule("R115", "P29")
def test_R115_P29_only_documented_names():
    guest = Guest().end_of_dxe()
    for name, vendor in (
        ("NotDefined", GLOBAL),
        ("Boot00", GLOBAL),
        ("Boot00af", GLOBAL),
        ("Boot00000", GLOBAL),
        ("bootorder", GLOBAL),
        ("db", GLOBAL),
        ("PK", IMAGE_SECURITY),
        ("dbq", IMAGE_SECURITY),
        ("Timeout", HW_ERROR),
    ):
        with refused("INVALID_PARAMETER", guest):
            guest.set(name, b"\0\0", NBR, vendor)
        Guest().set(name, b"\0\0", NBR, vendor)
    guest.set("NotDefined", b"\0\0", NBR, A)
    old = Guest()
    old.set("NotDefined", b"x", NBR, GLOBAL)
    old.end_of_dxe()
    old.set("NotDefined", b"", NBR, GLOBAL)


@pytest.mark.parametrize(
    ("option", "sound"),
    [
        (load_option(), True),
        (load_option(optional=b"anything"), True),
        (load_option(paths=END), True),
        (load_option(paths=PATH + PATH), True),
        (load_option(paths=NODE + INSTANCE + PATH), True),
        (load_option(description="\0"), True),
        (b"", False),
        (b"\1\0\0\0\4", False),
        (load_option(description="no end"), False),
        (load_option()[:-1], False),
        (load_option(paths=b""), False),
        (load_option(paths=END, length=3), False),
        (load_option(paths=PATH, length=6), False),
        (load_option(length=len(PATH) + 1), False),
        (load_option(paths=NODE + NODE), False),
        (load_option(paths=b"\4\4\3\0" + END), False),
        (load_option(paths=b"\4\4\xff\xff" + END), False),
        (struct.pack("<IH", 1, 4) + b"a\0b", False),
        (struct.pack("<IH", 1, 4) + b"\0a\0\0" + END, True),
    ],
)
def test_R117_load_options(option, sound):
    guest = Guest().end_of_dxe()
    if sound:
        guest.set("Boot0000", option, NBR, GLOBAL)
    else:
        with refused("INVALID_PARAMETER", guest):
            guest.set("Boot0000", option or b"x", NBR, GLOBAL)
    assert uefi.is_load_option(option) is sound


def test_R116_key_options():
    for keys, sound in ((0, True), (1, True), (3, True), (4, False)):
        assert uefi.is_key_option(key_option(keys)) is sound
    assert not uefi.is_key_option(key_option(1, b"x"))
    assert not uefi.is_key_option(bytes(9))


def test_device_paths_end_once_and_at_the_end():
    for good in (END, PATH, NODE + INSTANCE + NODE + END):
        assert uefi.is_device_path(good)
    for bad in (b"", b"\x7f", NODE, END + END, b"\x7f\xff\5\0x", b"\x7f\2\4\0" + END, b"\4\4\0\0" + END):
        assert not uefi.is_device_path(bad)


def test_R118_languages_follow_each_other():
    guest = Guest()
    guest.set("LangCodes", b"engfra\0", BR, GLOBAL)
    guest.set("Lang", b"eng\0", NBR, GLOBAL)
    assert not guest.has("PlatformLang", GLOBAL)  # not before both lists are there
    guest.set("PlatformLangCodes", b"en;fr\0", BR, GLOBAL)
    guest.set("Lang", b"fra\0", NBR, GLOBAL)
    assert guest.value("PlatformLang", GLOBAL) == b"fr\0"
    assert [change.key.name for change in guest.journals[-1]] == ["Lang", "PlatformLang"]
    guest.set("PlatformLang", b"en\0", NBR, GLOBAL)
    assert guest.value("Lang", GLOBAL) == b"eng\0"
    guest.set("PlatformLang", b"de\0", NBR, GLOBAL)  # not supported: nothing follows
    assert guest.value("Lang", GLOBAL) == b"eng\0"
    guest.runtime()
    for name in ("LangCodes", "PlatformLangCodes"):
        with refused("WRITE_PROTECTED", guest):
            guest.set(name, b"x", BR, GLOBAL)
    fresh = Guest().runtime()
    with refused("WRITE_PROTECTED", fresh):
        fresh.set("LangCodes", b"eng", BR, GLOBAL)
    off = Guest(couples_languages=False)
    off.set("LangCodes", b"eng\0", BR, GLOBAL)
    off.set("PlatformLangCodes", b"en\0", BR, GLOBAL)
    off.set("Lang", b"eng\0", NBR, GLOBAL)
    assert not off.has("PlatformLang", GLOBAL)


def test_R118_both_or_neither():
    guest = Guest()
    guest.set("LangCodes", b"engfra\0", BR, GLOBAL)
    guest.set("PlatformLangCodes", b"en;fr\0", BR, GLOBAL)
    need = guest.state.table.usage.nv
    small = Guest(limits=Limits(nv_pool=need + 76))  # one of the two fits
    small.set("LangCodes", b"engfra\0", BR, GLOBAL)
    small.set("PlatformLangCodes", b"en;fr\0", BR, GLOBAL)
    with refused("OUT_OF_RESOURCES", small):
        small.ask(SetVariable(key("Lang", GLOBAL), NBR, b"fra\0"))
    assert not small.has("Lang", GLOBAL)
    assert not small.has("PlatformLang", GLOBAL)
