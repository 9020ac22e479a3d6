"""Signed answers of the broker: compact JWS by the key that measured launch data pin (key-release 4, 5.6).

Header ``{"alg","kid","typ"}`` and nothing else; ``kid`` = SHA-256 of the signer's SubjectPublicKeyInfo. One
verifying function is shared by component and tools: it looks for the pin first, then checks the signature with
a key whose digest equals the pin, and only then reads the payload.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from cvars.release.encoding import Malformed, b64url, b64url_decode, compact, strict_json

RELEASE_TYP: Final = "cvars-release+jwt"
ANCHOR_TYP: Final = "cvars-anchor+jwt"
CHECKPOINT_TYP: Final = "cvars-checkpoint+jwt"

PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


class NotTrusted(Malformed):
    """No statement, or not one by a pinned key."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs statements: Ed25519 (EdDSA) or P-256 (ES256)."""

    private: PrivateKey
    spki: bytes = field(init=False)  # DER SubjectPublicKeyInfo
    kid: str = field(init=False)  # hex SHA-256 of it: what launch data pin (``cvars.broker-key``)

    def __post_init__(self) -> None:
        if isinstance(self.private, ec.EllipticCurvePrivateKey) and self.private.curve.name != "secp256r1":
            raise ValueError("a signing key is Ed25519 or P-256")
        object.__setattr__(self, "spki", spki(self.private.public_key()))
        object.__setattr__(self, "kid", hashlib.sha256(self.spki).hexdigest())

    @property
    def alg(self) -> str:
        """EdDSA or ES256."""
        return "EdDSA" if isinstance(self.private, ed25519.Ed25519PrivateKey) else "ES256"

    def sign(self, data: bytes) -> bytes:
        """The raw JWS signature, 64 bytes."""
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(data)
        der = self.private.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        r, s = decode_dss_signature(der)
        return r.to_bytes(32) + s.to_bytes(32)

    def statement(self, typ: str, payload: Mapping[str, Any]) -> str:
        """A compact JWS over ``payload``."""
        return self.jws({"alg": self.alg, "kid": self.kid, "typ": typ}, payload)

    def jws(self, header: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
        """A compact JWS with ``header`` as given."""
        signed = f"{b64url(compact(header))}.{b64url(compact(payload))}"
        return f"{signed}.{b64url(self.sign(signed.encode()))}"


def spki(key: PublicKey) -> bytes:
    """DER SubjectPublicKeyInfo of ``key``."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pin_of(key: PublicKey) -> str:
    """Hex SHA-256 of the SPKI."""
    return hashlib.sha256(spki(key)).hexdigest()


def load_private(pem: bytes) -> SigningKey:
    """A signing key from unencrypted PKCS#8 PEM. Raises ``ValueError``."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise ValueError("a signing key is Ed25519 or P-256")
    return SigningKey(key)


def private_pem(key: PrivateKey) -> bytes:
    """Unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_public(data: bytes) -> PublicKey:
    """A verifying key from DER SPKI. Raises ``ValueError``."""
    key = serialization.load_der_public_key(data)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
        return key
    raise ValueError("a broker key is Ed25519 or P-256")


def verify_signature(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether the 64-byte raw ``signature`` over ``data`` is by ``key``."""
    if len(signature) != 64:
        return False
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
            key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_statement(
    jws: object, typ: str, keys: Collection[PublicKey], pins: Collection[str], *, max_size: int = 65536
) -> dict[str, Any]:
    """The payload of ``jws`` if a pinned key signed it.

    ``keys`` may come from anybody, the host included: a key counts only if the digest of its SPKI is in ``pins``.

    Raises:
        NotTrusted: missing, malformed, of another type, by a key that is not pinned, or a bad signature.
    """
    if not isinstance(jws, str) or jws.count(".") != 2 or len(jws) > max_size:
        raise NotTrusted("no signed statement")
    head, body, tail = jws.split(".")
    try:
        header, signature = strict_json(b64url_decode(head)), b64url_decode(tail)
    except Malformed:
        raise NotTrusted("the statement is not a compact JWS") from None
    if not isinstance(header, dict) or set(header) != {"alg", "kid", "typ"} or header["typ"] != typ:
        raise NotTrusted(f"the statement is not a {typ}")
    if header["kid"] not in pins:
        raise NotTrusted("the statement is signed by a key that is not pinned")
    key = next((k for k in keys if pin_of(k) == header["kid"]), None)
    if key is None:
        raise NotTrusted("the public key of the pinned broker is not at hand")
    if header["alg"] != ("EdDSA" if isinstance(key, ed25519.Ed25519PublicKey) else "ES256"):
        raise NotTrusted("the statement's algorithm is not the one of the pinned key")
    if not verify_signature(key, signature, f"{head}.{body}".encode()):
        raise NotTrusted("the statement's signature is not by the pinned key")
    payload = strict_json(b64url_decode(body), max_members=max_size)
    if not isinstance(payload, dict):
        raise NotTrusted("the statement's payload is not an object")
    return payload
