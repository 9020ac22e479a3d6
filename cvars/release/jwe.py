"""JWE in the one shape that KBS clients read: flattened JSON, A256GCM, byte-exact protected header.

Clients parse the header and serialise it again to compute the associated data, so its bytes are part of the
protocol (key-release 1.3). General JOSE libraries order it differently; this encoder uses the primitives of
`cryptography` and nothing else (D5).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from cvars.release.encoding import Malformed, b64url, b64url_decode, strict_json
from cvars.release.teekey import CURVES, EC_ALG, RSA_ALG, Curve, Random, TeePublicKey, ec_jwk, ec_private

MEMBERS: Final = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
_ALG: Final = EC_ALG.encode()
#: Concat-KDF other-info: algorithm id, empty apu and apv, 256 bits (RFC 7518 4.6.2)
_OTHER_INFO: Final = len(_ALG).to_bytes(4) + _ALG + bytes(4) + bytes(4) + (256).to_bytes(4)


class JweRefused(Malformed):
    """The JWE is malformed or does not open with this key."""


def concat_kdf(shared: bytes) -> bytes:
    """Concat-KDF-SHA-256, one round, 32 bytes."""
    return hashlib.sha256((1).to_bytes(4) + shared + _OTHER_INFO).digest()


def encrypt(plaintext: bytes, to: TeePublicKey, random: Random) -> dict[str, str]:
    """Encrypt ``plaintext`` to ``to`` with a fresh content key, ephemeral key and IV."""
    cek, iv = random(32), random(12)
    if isinstance(to.key, rsa.RSAPublicKey):
        header = f'{{"alg":"{RSA_ALG}","enc":"A256GCM"}}'
        wrapped = to.key.encrypt(cek, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    else:
        curve = to.curve
        assert curve is not None
        ephemeral = ec_private(random, curve)
        epk = ec_jwk(ephemeral.public_key(), curve)
        header = (
            f'{{"alg":"{EC_ALG}","enc":"A256GCM","epk":'
            f'{{"crv":"{curve.name}","kty":"EC","x":"{epk["x"]}","y":"{epk["y"]}"}}}}'
        )
        wrapped = aes_key_wrap(concat_kdf(ephemeral.exchange(ec.ECDH(), to.key)), cek)
    protected = b64url(header.encode())
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode())
    return {
        "protected": protected,
        "encrypted_key": b64url(wrapped),
        "iv": b64url(iv),
        "ciphertext": b64url(sealed[:-16]),
        "tag": b64url(sealed[-16:]),
    }


def decrypt(jwe: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Open ``jwe`` with the session key. Raises ``JweRefused``."""
    protected, wrapped, iv, ciphertext, tag = (_member(jwe, name) for name in MEMBERS)
    header = _header(protected)
    curve = next(c for c in CURVES.values() if c.curve.name == key.curve.name)
    try:
        peer = _epk(header, curve)
        cek = aes_key_unwrap(concat_kdf(key.exchange(ec.ECDH(), peer)), b64url_decode(wrapped))
        return AESGCM(cek).decrypt(
            b64url_decode(iv, size=12), b64url_decode(ciphertext) + b64url_decode(tag, size=16), protected.encode()
        )
    except (InvalidTag, InvalidUnwrap, ValueError) as error:
        raise JweRefused(f"JWE does not open: {type(error).__name__}") from None


def ciphertext_sha256(jwe: Mapping[str, Any]) -> bytes:
    """SHA-256 over ciphertext and tag bytes: what a release statement covers (key-release 4)."""
    return hashlib.sha256(
        b64url_decode(_member(jwe, "ciphertext")) + b64url_decode(_member(jwe, "tag"), size=16)
    ).digest()


def _member(jwe: Mapping[str, Any], name: str) -> str:
    if set(jwe) != set(MEMBERS) or not isinstance(jwe[name], str):
        raise JweRefused("a flattened JWE has exactly protected, encrypted_key, iv, ciphertext, tag")
    return str(jwe[name])


def _header(protected: str) -> dict[str, Any]:
    header = strict_json(b64url_decode(protected))
    if not isinstance(header, dict) or set(header) != {"alg", "enc", "epk"}:
        raise JweRefused("JWE header has other members than alg, enc, epk")
    if header["alg"] != EC_ALG or header["enc"] != "A256GCM" or not isinstance(header["epk"], dict):
        raise JweRefused("JWE algorithm is not the one of this key")
    if protected != b64url(json.dumps(header, separators=(",", ":")).encode()):
        raise JweRefused("JWE header is not in the byte-exact form")
    return header


def _epk(header: Mapping[str, Any], curve: Curve) -> ec.EllipticCurvePublicKey:
    epk = header["epk"]
    if set(epk) != {"crv", "kty", "x", "y"} or epk["kty"] != "EC" or epk["crv"] != curve.name:
        raise JweRefused("ephemeral key is not on the curve of this key")
    x, y = (int.from_bytes(b64url_decode(epk[n], size=curve.size)) for n in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, curve.curve).public_key()
