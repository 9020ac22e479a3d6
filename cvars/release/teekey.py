"""The attested session key: the only key a secret is ever encrypted to.

Accepted forms (key-release 1.2): EC P-256 and P-521 with ECDH-ES+A256KW, RSA with RSA-OAEP-256, each with
exactly its members. Everything else is refused before evidence is looked at (K37, K38).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cvars.release.encoding import Malformed, b64url, b64url_decode, compact

EC_ALG: Final = "ECDH-ES+A256KW"
RSA_ALG: Final = "RSA-OAEP-256"
EXPERIMENTAL_ALG: Final = "ML-KEM-768+A192KW"

Random: TypeAlias = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Curve:
    """``size``: bytes of one coordinate."""

    name: str
    size: int
    curve: ec.EllipticCurve


CURVES: Final = {"P-256": Curve("P-256", 32, ec.SECP256R1()), "P-521": Curve("P-521", 66, ec.SECP521R1())}


class KeyRefused(Malformed):
    """Not a tee-pubkey we accept."""


@dataclass(frozen=True, slots=True)
class TeePublicKey:
    """A checked tee-pubkey. ``jwk`` holds the typed members only."""

    jwk: Mapping[str, str]
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey

    @property
    def alg(self) -> str:
        """The JWE key management algorithm."""
        return self.jwk["alg"]

    @property
    def curve(self) -> Curve | None:
        """The EC curve, or None for RSA."""
        return CURVES.get(self.jwk.get("crv", ""))

    @property
    def thumbprint(self) -> str:
        """JWK thumbprint (RFC 7638), hex SHA-256: the ``aud`` of statements, the ``holder`` of leases."""
        names = ("crv", "kty", "x", "y") if self.jwk["kty"] == "EC" else ("e", "kty", "n")
        return hashlib.sha256(compact({n: self.jwk[n] for n in names})).hexdigest()

    def coordinates(self) -> tuple[bytes, bytes]:
        """Affine x and y, big-endian, full width. Raises ``KeyRefused`` for RSA."""
        if self.jwk["kty"] != "EC":
            raise KeyRefused("RSA keys have no coordinates")
        return b64url_decode(self.jwk["x"]), b64url_decode(self.jwk["y"])


def parse(jwk: object) -> TeePublicKey:
    """Check a tee-pubkey that nobody has checked.

    Raises:
        KeyRefused: other members or algorithms, a coordinate of the wrong size or not on the curve,
            the point at infinity, an RSA modulus under 2048 bits or even, an exponent other than 65537.
    """
    if not isinstance(jwk, Mapping) or not all(isinstance(v, str) for v in jwk.values()):
        raise KeyRefused("tee-pubkey is not an object of strings")
    kty = jwk.get("kty")
    if kty == "AKP" or jwk.get("alg") == EXPERIMENTAL_ALG:
        raise KeyRefused(f"{EXPERIMENTAL_ALG} is a draft upstream and not enabled in this build")
    try:
        if kty == "EC":
            return _parse_ec(jwk)
        if kty == "RSA":
            return _parse_rsa(jwk)
    except KeyRefused:
        raise
    except (Malformed, ValueError) as error:
        raise KeyRefused(f"tee-pubkey: {error}") from None
    raise KeyRefused("tee-pubkey: kty is neither EC nor RSA")


def _parse_ec(jwk: Mapping[str, Any]) -> TeePublicKey:
    if set(jwk) != {"kty", "crv", "alg", "x", "y"}:
        raise KeyRefused("tee-pubkey: an EC key has exactly kty, crv, alg, x, y")
    if jwk["alg"] != EC_ALG or jwk["crv"] not in CURVES:
        raise KeyRefused(f"tee-pubkey: EC wants {EC_ALG} on P-256 or P-521")
    curve = CURVES[jwk["crv"]]
    x, y = (b64url_decode(jwk[n], size=curve.size) for n in ("x", "y"))
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve.curve)
    return TeePublicKey({n: jwk[n] for n in ("kty", "crv", "alg", "x", "y")}, numbers.public_key())


def _parse_rsa(jwk: Mapping[str, Any]) -> TeePublicKey:
    if set(jwk) != {"kty", "alg", "n", "e"}:
        raise KeyRefused("tee-pubkey: an RSA key has exactly kty, alg, n, e")
    if jwk["alg"] != RSA_ALG:
        raise KeyRefused(f"tee-pubkey: RSA wants {RSA_ALG}")
    n_raw, e_raw = b64url_decode(jwk["n"]), b64url_decode(jwk["e"])
    if n_raw[:1] == b"\0" or e_raw != b"\x01\x00\x01":
        raise KeyRefused("tee-pubkey: RSA wants e = 65537 and n without leading zeros")
    n = int.from_bytes(n_raw)
    if not 2048 <= n.bit_length() <= 8192 or n % 2 == 0:
        raise KeyRefused("tee-pubkey: RSA wants an odd modulus of 2048 to 8192 bits")
    return TeePublicKey({k: jwk[k] for k in ("kty", "alg", "n", "e")}, rsa.RSAPublicNumbers(65537, n).public_key())


def ec_private(random: Random, curve: Curve) -> ec.EllipticCurvePrivateKey:
    """A fresh private key out of ``random``: uniform to within 2^-64 (64 bits more than the order)."""
    wide = int.from_bytes(random(curve.size + 8))
    return ec.derive_private_key(wide % (curve.curve.group_order - 1) + 1, curve.curve)


def ec_jwk(key: ec.EllipticCurvePublicKey, curve: Curve) -> dict[str, str]:
    """The public members ``x`` and ``y`` of ``key``."""
    numbers = key.public_numbers()
    return {"x": b64url(numbers.x.to_bytes(curve.size)), "y": b64url(numbers.y.to_bytes(curve.size))}


@dataclass(frozen=True, slots=True)
class TeeKeyPair:
    """The guest's side of the session key; the private half never leaves the component."""

    private: ec.EllipticCurvePrivateKey
    public: TeePublicKey


def generate(random: Random, crv: str = "P-256") -> TeeKeyPair:
    """A fresh session key on ``crv``."""
    curve = CURVES[crv]
    private = ec_private(random, curve)
    jwk = {"kty": "EC", "crv": crv, "alg": EC_ALG} | ec_jwk(private.public_key(), curve)
    return TeeKeyPair(private, TeePublicKey(jwk, private.public_key()))
