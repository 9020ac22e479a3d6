"""Certificates and revocation lists for simulated hardware, byte by byte, so that a test can have a wrong one.

Every certificate carries the marks of `attestation` 6.1 unless a test takes them off.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cvars.attest import der
from cvars.attest.certificates import (
    BASIC_CONSTRAINTS,
    COMMON_NAME,
    ECDSA_SHA256,
    KEY_USAGE,
    ORGANIZATION,
    PSS_SHA384,
    SIMULATION_OID,
)

NOT_BEFORE: Final = datetime(2020, 1, 1, tzinfo=UTC)
NOT_AFTER: Final = datetime(2045, 1, 1, tzinfo=UTC)
_CRL_POINTS: Final = "2.5.29.31"
_CRL_NUMBER: Final = "2.5.29.20"
_UNIT: Final = "2.5.4.11"
PSS: Final = min(PSS_SHA384, key=len)
ECDSA: Final = next(iter(ECDSA_SHA256))
MARK: Final = der.write(der.UTF8_STRING, b"simulated")

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs: a name (DER) and a key."""

    name: bytes
    key: PrivateKey


def name(common_name: str, organization: str, unit: str) -> bytes:
    """A Name with unit, organization and common name."""
    pairs = ((_UNIT, unit), (ORGANIZATION, organization), (COMMON_NAME, common_name))
    return der.write(
        der.SEQUENCE,
        *(
            der.write(
                der.SET,
                der.write(der.SEQUENCE, der.write_oid(kind), der.write(der.UTF8_STRING, text.encode())),
            )
            for kind, text in pairs
        ),
    )


def spki(key: PrivateKey) -> bytes:
    """SubjectPublicKeyInfo of the public half."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    """One Extension."""
    flag = b"\x01\x01\xff" if critical else b""
    return der.write(der.SEQUENCE, der.write_oid(oid), flag, der.write(der.OCTET_STRING, value))


def ca_extensions(crl_url: str = "") -> list[bytes]:
    """What a certificate that signs others carries."""
    usage = der.write(der.BIT_STRING, b"\x01\x06")  # keyCertSign, cRLSign
    out = [
        extension(BASIC_CONSTRAINTS, der.write(der.SEQUENCE, b"\x01\x01\xff"), critical=True),
        extension(KEY_USAGE, usage, critical=True),
    ]
    if crl_url:
        point = der.write(0xA0, der.write(0xA0, der.write(0x86, crl_url.encode())))
        out.append(extension(_CRL_POINTS, der.write(der.SEQUENCE, der.write(der.SEQUENCE, point))))
    return out


def certificate(
    issuer: Issuer,
    subject: bytes,
    public: bytes,
    extensions: Iterable[bytes],
    *,
    serial: int = 1,
    validity: tuple[datetime, datetime] = (NOT_BEFORE, NOT_AFTER),
    marked: bool = True,
    algorithm: bytes | None = None,
) -> bytes:
    """Issue a certificate (DER) for the SubjectPublicKeyInfo ``public``."""
    algorithm = algorithm or (PSS if isinstance(issuer.key, rsa.RSAPrivateKey) else ECDSA)
    listed = [*extensions, *([extension(SIMULATION_OID, MARK)] if marked else [])]
    tbs = der.write(
        der.SEQUENCE,
        b"\xa0\x03\x02\x01\x02",
        der.write_integer(serial),
        algorithm,
        issuer.name,
        der.write(der.SEQUENCE, _time(validity[0]), _time(validity[1])),
        subject,
        public,
        der.write(0xA3, der.write(der.SEQUENCE, *listed)),
    )
    return _signed(tbs, algorithm, issuer.key)


def revocation_list(
    issuer: Issuer,
    revoked: Iterable[int],
    *,
    this_update: datetime = NOT_BEFORE,
    next_update: datetime | None = NOT_AFTER,
) -> bytes:
    """Issue a version 2 revocation list (DER)."""
    algorithm = PSS if isinstance(issuer.key, rsa.RSAPrivateKey) else ECDSA
    entries = [
        der.write(der.SEQUENCE, der.write_integer(serial), _time(this_update)) for serial in sorted(revoked)
    ]
    number = der.write(0xA0, der.write(der.SEQUENCE, extension(_CRL_NUMBER, der.write_integer(1))))
    tbs = der.write(
        der.SEQUENCE,
        der.write_integer(1),
        algorithm,
        issuer.name,
        _time(this_update),
        _time(next_update) if next_update else b"",
        der.write(der.SEQUENCE, *entries) if entries else b"",
        number,
    )
    return _signed(tbs, algorithm, issuer.key)


def _signed(tbs: bytes, algorithm: bytes, key: PrivateKey) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(tbs, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())
    else:
        signature = key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return der.write(der.SEQUENCE, tbs, algorithm, der.write(der.BIT_STRING, b"\0", signature))


def _time(at: datetime) -> bytes:
    if at.year < 2050:
        return der.write(der.UTC_TIME, at.strftime("%y%m%d%H%M%SZ").encode())
    return der.write(der.GENERALIZED_TIME, at.strftime("%Y%m%d%H%M%SZ").encode())


def spl_extensions(numbers: Mapping[str, int]) -> list[bytes]:
    """INTEGER extensions by OID, as AMD writes SPLs."""
    return [extension(oid, der.write_integer(number)) for oid, number in numbers.items()]
