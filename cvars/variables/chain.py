"""Issuer paths from a signer to a trust anchor, or to their top (R69, R70, R74). Bounded (R15)."""

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cvars.variables.certificates import der_of, load, usable_key

MAX_DEPTH: Final = 8  # certificates of one path
MAX_ANCHORS: Final = 64  # that issue others; all of them are compared with the signer itself
MAX_ATTEMPTS: Final = 24  # signature checks of one path search

_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def issued(issuer: x509.Certificate, subject: x509.Certificate, *, rsa_floor: int) -> bool:
    """Say whether ``issuer`` signed ``subject``: names match, RSA and SHA-2 only (R70, P15)."""
    if usable_key(issuer, rsa_floor=rsa_floor) is None:
        return False  # R69
    try:
        if not isinstance(subject.signature_hash_algorithm, _HASHES):
            return False
        subject.verify_directly_issued_by(issuer)  # names, too
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
    anchors: Sequence[bytes],
    bag: Sequence[x509.Certificate],
    *,
    rsa_floor: int,
) -> bool:
    """Say whether ``signer`` is one of ``anchors`` (DER) or chains to one, through ``bag`` (R70).

    An anchor may be an intermediate or a leaf; every other issuer must be a CA.
    """
    trusted = set(anchors)
    if der_of(signer) in trusted:
        return True
    loaded = [certificate for anchor in anchors[:MAX_ANCHORS] if (certificate := load(anchor)) is not None]
    attempts = 0
    paths = [(signer, frozenset({der_of(signer)}))]
    while paths:
        current, passed = paths.pop()
        if len(passed) >= MAX_DEPTH:
            continue  # R15
        for issuer in (*loaded, *bag):
            identity = der_of(issuer)
            if identity in passed or issuer.subject != current.issuer:
                continue
            is_anchor = identity in trusted
            if not is_anchor and not is_ca(issuer):
                continue  # R70
            attempts += 1
            if attempts > MAX_ATTEMPTS:
                return False  # R15
            if issued(issuer, current, rsa_floor=rsa_floor):
                if is_anchor:
                    return True
                paths.append((issuer, passed | {identity}))
    return False


def top_of(
    signer: x509.Certificate, bag: Sequence[x509.Certificate], *, rsa_floor: int
) -> x509.Certificate | None:
    """The end of the issuer path built from ``signer`` through ``bag`` (R74); None when it is not bounded.

    Where two carried certificates could continue the path, the one with the smaller DER is taken, so that
    the order in the message does not matter (P40).
    """
    current, passed, attempts = signer, {der_of(signer)}, 0
    while len(passed) <= MAX_DEPTH:
        for issuer in sorted((c for c in bag if c.subject == current.issuer), key=der_of):
            if der_of(issuer) in passed or not is_ca(issuer):
                continue
            attempts += 1
            if attempts > MAX_ATTEMPTS:
                return None  # R15
            if issued(issuer, current, rsa_floor=rsa_floor):
                current = issuer
                passed.add(der_of(issuer))
                break
        else:
            return current
    return None
