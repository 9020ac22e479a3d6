"""Who may administer: bearer tokens of configured keys, and a closed list of role, method and path (1.4, K43).

EdDSA, ES256 or RS256 by a configured public key; never ``none``, never a symmetric algorithm. A path pattern
matches in full: ``*`` is one part, ``**`` any rest.
"""

from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from cvars.broker.config import AdminRule, BrokerConfig, ConfigMistake
from cvars.broker.problems import Problem
from cvars.release.encoding import Malformed, b64url_decode, strict_json
from cvars.release.statements import verify_signature

MAX_LIFE_S: Final = 24 * 3600
MAX_TOKEN: Final = 8192

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that signs admin tokens, with the checks that go with it."""

    key: PublicKey
    issuer: str | None = None
    audience: str | None = None

    @property
    def alg(self) -> str:
        """The one algorithm that this key is good for."""
        if isinstance(self.key, rsa.RSAPublicKey):
            return "RS256"
        return "EdDSA" if isinstance(self.key, ed25519.Ed25519PublicKey) else "ES256"

    def signed(self, signature: bytes, data: bytes) -> bool:
        """Whether ``signature`` over ``data`` is by this key."""
        if not isinstance(self.key, rsa.RSAPublicKey):
            return verify_signature(self.key, signature, data)
        try:
            self.key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Admin:
    """The access control of one broker. ``allow_all`` exists only in simulation on loopback."""

    keys: tuple[TrustedKey, ...] = ()
    rules: tuple[AdminRule, ...] = ()
    allow_all: bool = False

    def authorise(self, authorization: str, *, method: str, path: str, now: float) -> str:
        """The role that may do this. Raises ``Problem`` 401 or 403."""
        if self.allow_all and not authorization:
            return "simulation"
        role = self._role(authorization, now)
        for rule in self.rules:
            if rule.role == role and method in rule.methods and path_matches(rule.path, path):
                return role
        raise Problem(
            403, "ADMIN-ACL", f"{role} may not {method} {path}", kind="AdminAuthAccess", reason="admin.refused"
        )

    def _role(self, authorization: str, now: float) -> str:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or len(token) > MAX_TOKEN:
            raise _no("no bearer token")
        parts = token.strip().split(".")
        if len(parts) != 3:
            raise _no("not a compact JWS")
        try:
            header, payload = strict_json(b64url_decode(parts[0])), strict_json(b64url_decode(parts[1]))
            signature = b64url_decode(parts[2])
        except Malformed:
            raise _no("not a compact JWS") from None
        if not isinstance(header, dict) or not isinstance(payload, dict):
            raise _no("not a compact JWS")
        signed = f"{parts[0]}.{parts[1]}".encode()
        for trusted in self.keys:
            if header.get("alg") == trusted.alg and trusted.signed(signature, signed):
                return _claims(trusted, payload, now)
        raise _no("not signed by a configured key")


def _claims(trusted: TrustedKey, payload: dict[str, Any], now: float) -> str:
    issued, expires, role = payload.get("iat"), payload.get("exp"), payload.get("role")
    for value in (issued, expires):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _no("iat and exp are needed")
    assert isinstance(issued, int | float)
    assert isinstance(expires, int | float)
    if not issued - 60 <= now < expires or expires - issued > MAX_LIFE_S:
        raise _no("expired, not yet valid, or valid for too long")
    if trusted.issuer is not None and payload.get("iss") != trusted.issuer:
        raise _no("another issuer")
    audience = payload.get("aud")
    if trusted.audience is not None and trusted.audience not in (
        audience if isinstance(audience, list) else [audience]
    ):
        raise _no("another audience")
    if not isinstance(role, str):
        raise _no("no role")
    return role


def _no(detail: str) -> Problem:
    return Problem(401, "ADMIN-TOKEN", detail, kind="AdminAuthAccess", reason="admin.refused")


def path_matches(pattern: str, path: str) -> bool:
    """Full match, part by part."""
    wanted, parts = pattern.split("/"), path.split("/")
    if wanted and wanted[-1] == "**":
        wanted.pop()
        if len(parts) <= len(wanted):
            return False
        parts = parts[: len(wanted)]
    return len(wanted) == len(parts) and all(w in ("*", p) for w, p in zip(wanted, parts, strict=True))


def load_admin(config: BrokerConfig) -> Admin:
    """Keys and rules as configured. Raises ``ConfigMistake``."""
    keys: list[TrustedKey] = []
    for entry in config.admin.keys:
        path = config.path(entry.file)
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigMistake(f"admin.keys: {error}", where=str(path)) from None
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name != "secp256r1":
            raise ConfigMistake("admin.keys: an EC key is P-256", where=str(path))
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
            raise ConfigMistake("admin.keys: an RSA key has at least 2048 bits", where=str(path))
        if not isinstance(key, PublicKey):
            raise ConfigMistake("admin.keys: Ed25519, P-256 or RSA", where=str(path))
        keys.append(TrustedKey(key, entry.issuer, entry.audience))
    return Admin(tuple(keys), tuple(config.admin.rules), config.admin.allow_all)
