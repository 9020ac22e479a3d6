"""Certificates, loaded once: parsing one and setting its key up cost more than checking a signature with it.

Cached by the whole DER, a few dozen at most (R15). Only RSA keys within bounds are ever used (R69).
"""

from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding

MAX_RSA_BITS: Final = 4096
MAX_EXPONENT_BITS: Final = 33
CACHED: Final = 64


@lru_cache(maxsize=CACHED)
def load(der: bytes) -> x509.Certificate | None:
    """The certificate, or None when it is not one that can be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        # names, number and key are decoded late: here, so that nothing fails later (P08)
        _ = certificate.public_key(), certificate.subject, certificate.issuer, certificate.serial_number
    except Exception:  # whatever the decoder raises
        return None
    return certificate


def der_of(certificate: x509.Certificate) -> bytes:
    """Its DER."""
    return certificate.public_bytes(Encoding.DER)


def usable_key(certificate: x509.Certificate, *, rsa_floor: int) -> RSAPublicKey | None:
    """The RSA key of ``certificate``, if it is within the bounds of R69 and R15, else None."""
    key = certificate.public_key()
    if not isinstance(key, RSAPublicKey) or key.key_size > MAX_RSA_BITS:
        return None  # R15
    if key.public_numbers().e.bit_length() > MAX_EXPONENT_BITS:
        return None  # R15
    return key if key.key_size >= rsa_floor else None  # R69
