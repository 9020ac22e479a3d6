"""Issuer paths from a signer to a trust anchor, or to their top (R69, R70, R74). Bounded (R15)."""

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from cvars.variables.pkcs7 import usable_key

MAX_DEPTH: Final = 8  # certificates of one path
MAX_ATTEMPTS: Final = 24  # signature checks of one path search

_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def der(certificate: x509.Certificate) -> bytes:
    """Its DER."""
    return certificate.public_bytes(Encoding.DER)


def issued(issuer: x509.Certificate, subject: x509.Certificate, *, rsa_floor: int) -> bool:
    """Say whether ``issuer`` signed ``subject``: names match, RSA and SHA-2 only (R70, P15)."""
    if subject.issuer != issuer.subject or usable_key(issuer, rsa_floor=rsa_floor) is None:
        return False
    try:
        if not isinstance(subject.signature_hash_algorithm, _HASHES):
            return False
        subject.verify_directly_issued_by(issuer)
    except Exception:  # a bad signature, or an algorithm that nobody here knows: not issued
        return False
    return True


def is_ca(certificate: x509.Certificate) -> bool:
    """BasicConstraints says CA (R70)."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except Exception:  # absent, or extensions that cannot be read
        return False
    return constraints.value.ca


def reaches(
    signer: x509.Certificate,
    anchors: Sequence[x509.Certificate],
    bag: Sequence[x509.Certificate],
    *,
    rsa_floor: int,
) -> bool:
    """Say whether ``signer`` is one of ``anchors`` or chains to one, through ``bag`` (R70).

    An anchor may be an intermediate or a leaf; every other issuer must be a CA.
    """
    trusted = {der(anchor) for anchor in anchors}
    attempts = 0
    paths = [(signer, frozenset({der(signer)}))]
    while paths:
        current, passed = paths.pop()
        if der(current) in trusted:
            return True
        if len(passed) >= MAX_DEPTH:
            continue
        for candidates, is_anchor in ((bag, False), (anchors, True)):
            for issuer in candidates:
                identity = der(issuer)
                if identity in passed or issuer.subject != current.issuer:
                    continue
                if not is_anchor and identity not in trusted and not is_ca(issuer):
                    continue
                attempts += 1
                if attempts > MAX_ATTEMPTS:
                    return False
                if issued(issuer, current, rsa_floor=rsa_floor):
                    paths.append((issuer, passed | {identity}))
    return False


def top_of(
    signer: x509.Certificate, bag: Sequence[x509.Certificate], *, rsa_floor: int
) -> x509.Certificate | None:
    """The end of the issuer path built from ``signer`` through ``bag`` (R74); None when it is not bounded.

    Where two carried certificates could continue the path, the one with the smaller DER is taken, so that
    the order in the message does not matter (P40).
    """
    current, passed, attempts = signer, {der(signer)}, 0
    while len(passed) <= MAX_DEPTH:
        for issuer in sorted((c for c in bag if c.subject == current.issuer), key=der):
            if der(issuer) in passed or not is_ca(issuer):
                continue
            attempts += 1
            if attempts > MAX_ATTEMPTS:
                return None
            if issued(issuer, current, rsa_floor=rsa_floor):
                current = issuer
                passed.add(der(issuer))
                break
        else:
            return current
    return None
