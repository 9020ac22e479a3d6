"""Enhanced authenticated variables, EFI_VARIABLE_AUTHENTICATION_3 (R25, R36): an option, off by default.

Source: UEFI 2.10 8.2.5. Little-endian, packed; sizes in bytes. A variable's authority is the certificate that
signed its creation, or the one that a later update names; it is kept as SHA-256 of its tbsCertificate. Only
PKCS#7 certificates are accepted.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final

from construct import Int8ul, Int32ul, Struct
from cryptography import x509

from cvars.variables import descriptor, pkcs7
from cvars.variables.model import Variable
from cvars.variables.names import APPEND, ENH
from cvars.variables.profile import Profile
from cvars.variables.refusals import SecurityViolation, Unsupported
from cvars.variables.requests import SetVariable

EFI_VARIABLE_AUTHENTICATION_3: Final = Struct(
    "Version" / Int8ul,  # +0x00
    "Type" / Int8ul,  # +0x01
    "MetadataSize" / Int32ul,  # +0x02, of everything before the payload
    "Flags" / Int32ul,  # +0x06
)  # 0x0A bytes; then EFI_TIME or a nonce, the new certificate if Flags say so, the signing certificate
EFI_VARIABLE_AUTHENTICATION_3_CERT_ID: Final = Struct(
    "Type" / Int8ul,  # +0x00
    "IdSize" / Int32ul,  # +0x01
)  # 0x05 bytes; then the identifier
FIXED: Final = EFI_VARIABLE_AUTHENTICATION_3.sizeof()
VERSION: Final = 1
TIMESTAMP_TYPE: Final = 1
NONCE_TYPE: Final = 2
UPDATE_CERT: Final = 0x00000001
CERT_ID_SHA256: Final = 1
MAX_NONCE: Final = 1024
NONCE_MARK: Final = b"\xff"  # in Pad2 of what is stored as the timestamp: no EFI_TIME has it


@dataclass(frozen=True, slots=True)
class EnhancedHead:
    """A descriptor whose lengths are sound. ``secondary`` is the EFI_TIME or the nonce structure, as signed.

    ``stored`` is what is kept of it: the time, or a mark and a digest of the nonce.
    """

    is_nonce: bool
    secondary: bytes
    stored: bytes
    new: bytes | None
    new_signed_data: bytes
    signed_data: bytes
    payload: bytes


def split(data: bytes, profile: Profile) -> EnhancedHead:
    """Cut ``data`` into descriptor and payload.

    Raises:
        SecurityViolation: malformed.
        Unsupported: a zero nonce asks the platform for randomness, which this service has none of.
    """
    if len(data) < FIXED:
        raise SecurityViolation(f"enhanced descriptor of {len(data)} bytes")  # R40
    head = EFI_VARIABLE_AUTHENTICATION_3.parse(data)
    if head.Version != VERSION or head.Type not in (TIMESTAMP_TYPE, NONCE_TYPE):
        raise SecurityViolation("enhanced descriptor of another version or type")  # R63
    if head.Flags & ~UPDATE_CERT or not FIXED <= head.MetadataSize <= len(data):
        raise SecurityViolation("enhanced descriptor with impossible sizes or flags")  # R40
    metadata, payload = data[: head.MetadataSize], data[head.MetadataSize :]
    is_nonce = head.Type == NONCE_TYPE
    secondary, at = (_nonce if is_nonce else _time)(metadata, profile)
    new, new_signed_data = None, b""
    if head.Flags & UPDATE_CERT:
        begin = at
        new_signed_data, at = _certificate(metadata, at)
        new = metadata[begin:at]
    signed_data, at = _certificate(metadata, at)
    if at != len(metadata):
        raise SecurityViolation("bytes left over in the enhanced descriptor")  # R66
    stored = hashlib.sha256(secondary).digest()[:15] + NONCE_MARK if is_nonce else secondary
    return EnhancedHead(is_nonce, secondary, stored, new, new_signed_data, signed_data, payload)


def _time(metadata: bytes, profile: Profile) -> tuple[bytes, int]:
    end = FIXED + descriptor.TIME
    if len(metadata) < end:
        raise SecurityViolation("enhanced descriptor without its time")  # R40
    time = metadata[FIXED:end]
    descriptor.check_time(time, profile)  # R64
    return time, end


def _nonce(metadata: bytes, _profile: Profile) -> tuple[bytes, int]:
    if len(metadata) < FIXED + 4:
        raise SecurityViolation("enhanced descriptor without its nonce")  # R40
    (size,) = struct.unpack_from("<I", metadata, FIXED)
    end = FIXED + 4 + size
    if not 0 < size <= MAX_NONCE or end > len(metadata):
        raise SecurityViolation(f"nonce of {size} bytes")  # R40
    if not any(metadata[FIXED + 4 : end]):
        raise Unsupported("no randomness for a nonce")
    return metadata[FIXED:end], end


def _certificate(metadata: bytes, at: int) -> tuple[bytes, int]:
    """One WIN_CERTIFICATE_UEFI_GUID: its SignedData, and where it ends."""
    if len(metadata) - at < descriptor.WIN_CERTIFICATE_FIXED:
        raise SecurityViolation("certificate header cut short")  # R40
    length, revision, kind, cert_type = struct.unpack_from("<IHH16s", metadata, at)
    if not descriptor.WIN_CERTIFICATE_FIXED <= length <= len(metadata) - at:
        raise SecurityViolation(f"certificate of {length} bytes")  # R40
    if (revision, kind, cert_type) != (
        descriptor.REVISION,
        descriptor.TYPE_GUID,
        descriptor.CERT_TYPE_PKCS7,
    ):
        raise SecurityViolation("certificate of another type")  # R63
    return metadata[at + descriptor.WIN_CERTIFICATE_FIXED : at + length], at + length


def authorise(
    request: SetVariable, existing: Variable | None, head: EnhancedHead, profile: Profile
) -> tuple[bytes, bytes]:
    """Verify an enhanced write; what to keep of time or nonce, and the authority from now on.

    Raises:
        SecurityViolation: replayed, or not signed by the authority.
    """
    if existing is not None:
        _check_fresh(request, existing, head)
    prefix = request.key.name_bytes + request.key.vendor_guid.bytes_le + request.attributes.to_bytes(4, "little")
    body = prefix + head.secondary
    signer = _identity(head.signed_data, body + (head.new or b"") + head.payload, profile)
    if existing is not None and (existing.signer is None or not hmac.compare_digest(existing.signer, signer)):
        raise SecurityViolation("signed by another than the variable's authority")  # R75
    if head.new is None:
        return head.stored, signer
    return head.stored, _identity(head.new_signed_data, body + head.payload, profile)


def _check_fresh(request: SetVariable, existing: Variable, head: EnhancedHead) -> None:
    if head.is_nonce != (existing.timestamp[15:] == NONCE_MARK):
        raise SecurityViolation("time and nonce do not follow each other")  # R65
    if head.is_nonce:
        if hmac.compare_digest(existing.timestamp, head.stored):
            raise SecurityViolation("the nonce is the current one")  # R65
    elif not request.attributes & APPEND:
        descriptor.check_newer(existing.timestamp, head.secondary)  # R65


def _identity(signed_data: bytes, content: bytes, profile: Profile) -> bytes:
    """SHA-256 of the tbsCertificate of whoever signed ``content``."""
    message = pkcs7.parse(
        signed_data,
        allows_signed_attributes=profile.allows_signed_attributes,
        one_signer=profile.one_signer,
    )
    return certificate_id(pkcs7.signer_of(message, content, rsa_floor=profile.rsa_floor))


def certificate_id(certificate: x509.Certificate) -> bytes:
    """What identifies an authority: SHA-256 of its tbsCertificate."""
    return hashlib.sha256(certificate.tbs_certificate_bytes).digest()


def later(existing: bytes, supplied: bytes) -> bytes:
    """What is kept after an append: the later time, or the new nonce (R61)."""
    return supplied if supplied[15:] == NONCE_MARK else descriptor.later(existing, supplied)


def shown(variable: Variable) -> bytes:
    """What a guest reads: the certificate identifier, then the data (R25)."""
    if not variable.attributes & ENH or variable.signer is None:
        return variable.data
    head = EFI_VARIABLE_AUTHENTICATION_3_CERT_ID.build({"Type": CERT_ID_SHA256, "IdSize": len(variable.signer)})
    return bytes(head) + variable.signer + variable.data
