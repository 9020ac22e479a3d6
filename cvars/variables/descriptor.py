"""EFI_VARIABLE_AUTHENTICATION_2: the head of an authenticated write (R40, R62..R65).

Source: UEFI 2.10 8.2.6. Little-endian, packed; sizes in bytes.
"""

import calendar
import struct
from dataclasses import dataclass
from typing import Final

from construct import Bytes, Int8ul, Int16sl, Int16ul, Int32ul, Struct

from cvars.variables.profile import Profile
from cvars.variables.refusals import SecurityViolation

EFI_TIME: Final = Struct(
    "Year" / Int16ul,  # +0x00
    "Month" / Int8ul,  # +0x02
    "Day" / Int8ul,  # +0x03
    "Hour" / Int8ul,  # +0x04
    "Minute" / Int8ul,  # +0x05
    "Second" / Int8ul,  # +0x06
    "Pad1" / Int8ul,  # +0x07
    "Nanosecond" / Int32ul,  # +0x08
    "TimeZone" / Int16sl,  # +0x0C
    "Daylight" / Int8ul,  # +0x0E
    "Pad2" / Int8ul,  # +0x0F
)  # 0x10 bytes
EFI_VARIABLE_AUTHENTICATION_2: Final = Struct(
    "TimeStamp" / EFI_TIME,  # +0x00
    "dwLength" / Int32ul,  # +0x10
    "wRevision" / Int16ul,  # +0x14
    "wCertificateType" / Int16ul,  # +0x16
    "CertType" / Bytes(16),  # +0x18
)  # 0x28 bytes; then CertData (dwLength - 24 bytes) and the payload
FIXED: Final = EFI_VARIABLE_AUTHENTICATION_2.sizeof()
TIME: Final = EFI_TIME.sizeof()
WIN_CERTIFICATE_FIXED: Final = 24  # dwLength counts from itself on
REVISION: Final = 0x0200
TYPE_GUID: Final = 0x0EF1
CERT_TYPE_PKCS7: Final = bytes.fromhex("9dd2af4adf68ee498aa9347d375665a7")

_CERTIFICATE: Final = struct.Struct("<IHH16s")  # the same declaration from +0x10; a test proves it
_CALENDAR: Final = struct.Struct("<HBBBBB")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor whose lengths are sound (R40); its fields are judged by `check`."""

    time: bytes
    revision: int
    certificate_type: int
    cert_type: bytes
    signed_data: bytes
    payload: bytes


def split(data: bytes) -> Descriptor:
    """Cut ``data`` into descriptor and payload (R62).

    Raises:
        SecurityViolation: too short, or dwLength is impossible (R40).
    """
    if len(data) < FIXED:
        raise SecurityViolation(f"descriptor of {len(data)} bytes")  # R40
    length, revision, kind, cert_type = _CERTIFICATE.unpack_from(data, TIME)
    if length < WIN_CERTIFICATE_FIXED:
        raise SecurityViolation(f"dwLength {length}")  # R40
    if length > len(data) - TIME:
        raise SecurityViolation(f"dwLength {length} of {len(data)}")  # R40
    end = TIME + length
    return Descriptor(data[:TIME], revision, kind, cert_type, data[FIXED:end], data[end:])


def check(descriptor: Descriptor, profile: Profile) -> None:
    """Judge the fields (R63, R64).

    Raises:
        SecurityViolation: R63, R64.
    """
    if descriptor.certificate_type != TYPE_GUID:
        raise SecurityViolation(f"wCertificateType {descriptor.certificate_type:#x}")  # R63
    if descriptor.revision != REVISION:
        raise SecurityViolation(f"wRevision {descriptor.revision:#x}")  # R63
    if descriptor.cert_type != CERT_TYPE_PKCS7:
        raise SecurityViolation("CertType is not PKCS#7")  # R63
    check_time(descriptor.time, profile)


def check_time(time: bytes, profile: Profile) -> None:
    """Judge a time stamp by itself (R64).

    Raises:
        SecurityViolation: R64.
    """
    if time[7] or any(time[8:]):
        raise SecurityViolation("time stamp with pad, fraction, zone or daylight")  # R64
    if profile.checks_calendar and not _possible(time):
        raise SecurityViolation("impossible time stamp")  # R64


def instant(time: bytes) -> tuple[int, ...]:
    """What is compared of an EFI_TIME: year to second (R65)."""
    return _CALENDAR.unpack_from(time)


def check_newer(stored: bytes, supplied: bytes) -> None:
    """Refuse a time stamp that is not strictly later (R65).

    Raises:
        SecurityViolation: R65; equal is a replay.
    """
    if instant(supplied) <= instant(stored):
        raise SecurityViolation("time stamp is not later than the stored one")  # R65


def later(a: bytes, b: bytes) -> bytes:
    """The later of two EFI_TIMEs (R61)."""
    return a if instant(a) >= instant(b) else b


def _possible(time: bytes) -> bool:
    """UEFI 2.10 8.3.1: year 1900 to 9999, and a day of that month."""
    year, month, day, hour, minute, second = instant(time)
    if not (1900 <= year <= 9999 and 1 <= month <= 12):
        return False
    return 1 <= day <= calendar.monthrange(year, month)[1] and hour < 24 and minute < 60 and second < 60
