"""The attestation token: an EAR-shaped JWT that this broker signed and only this broker believes (key-release 2).

ES256, header with ``kid`` and, for compatibility, ``jwk``; an embedded ``jwk`` is never a reason to trust (K10).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from cvars import __version__
from cvars.release.encoding import Malformed, b64url_decode, strict_json
from cvars.release.statements import SigningKey, verify_signature
from cvars.release.teekey import CURVES, ec_jwk

LIFE_S: Final = 300
PROFILE: Final = "tag:github.com,2024:confidential-containers/Trustee"
_TIERS: Final = ((96, "contraindicated"), (32, "warning"), (2, "affirming"), (0, "none"))


class TokenRefused(Malformed):
    """Not a token of this broker, or past its time."""


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """``key`` is P-256; simulated evidence is signed with ``simulated_key``, never with ``key``."""

    key: SigningKey
    broker_id: str
    simulated_key: SigningKey | None = None
    life_s: int = LIFE_S
    _headers: Mapping[str, Mapping[str, Any]] = field(init=False, repr=False)  # by kid

    def __post_init__(self) -> None:
        headers = {k.kid: _header(k) for k in (self.key, self.simulated_key) if k is not None}
        object.__setattr__(self, "_headers", headers)

    def issue(
        self,
        *,
        now: float,
        session: str,
        trust_domain: str,
        tee: str,
        claims: Mapping[str, Any],
        runtime_data: Mapping[str, Any],
        report_data: bytes,
        init_data: bytes,
        init_data_claims: Mapping[str, Any] | None,
        epoch: int | None = None,
    ) -> str:
        """A token for one attested session."""
        simulated = trust_domain == "simulated"
        signer = self.simulated_key if simulated else self.key
        if signer is None:
            raise TokenRefused("no token key for this trust domain")
        vector = {
            "instance-identity": 0,
            "configuration": 2,
            "executables": 3,
            "file-system": 0,
            "hardware": 32 if simulated else 2,
            "runtime-opaque": 0,
            "storage-opaque": 0,
            "sourced-data": 0,
        }
        worst = max(vector.values())
        payload = {
            "eat_profile": PROFILE,
            "iat": int(now),
            "exp": int(now) + self.life_s,
            "iss": self.issuer(simulated=simulated),
            "jti": session[:32],
            "ear.verifier-id": {"developer": "cvars", "build": f"cvars {__version__}"},
            "submods": {
                "cpu0": {
                    "ear.status": next(name for least, name in _TIERS if worst >= least),
                    "ear.trustworthiness-vector": vector,
                    "ear.appraisal-policy-id": "cvars-authentic-and-bound",
                    "ear.veraison.annotated-evidence": {
                        tee: dict(claims),
                        "report_data": report_data.hex(),
                        "init_data": init_data.hex(),
                        "init_data_claims": init_data_claims,
                        "runtime_data_claims": dict(runtime_data),
                    },
                }
            },
            "cvars": {"trust_domain": trust_domain, "session": session, "anchor_epoch": epoch},
        }
        return signer.jws(self._headers[signer.kid], payload)

    def issuer(self, *, simulated: bool) -> str:
        """The ``iss`` of a trust domain."""
        return f"{self.broker_id}/simulated" if simulated else self.broker_id

    def session_of(self, token: str, *, now: float) -> str:
        """The session hash in a token that this broker signed. Raises ``TokenRefused`` (K10)."""
        if len(token) > 65536 or token.count(".") != 2:
            raise TokenRefused("not a compact JWS")
        head, body, tail = token.split(".")
        try:
            header, signature = strict_json(b64url_decode(head)), b64url_decode(tail)
        except Malformed:
            raise TokenRefused("not a compact JWS") from None
        if not isinstance(header, dict) or header.get("alg") != "ES256":
            raise TokenRefused("not signed with ES256")
        signer = next(
            (k for k in (self.key, self.simulated_key) if k is not None and k.kid == header.get("kid")), None
        )
        if signer is None or not verify_signature(
            signer.private.public_key(), signature, f"{head}.{body}".encode()
        ):
            raise TokenRefused("not signed by this broker")
        payload = strict_json(b64url_decode(body))
        if payload["iss"] != self.issuer(simulated=signer is self.simulated_key):
            raise TokenRefused("issued for another trust domain")
        if not payload["iat"] - 60 <= now < payload["exp"]:
            raise TokenRefused("expired")
        return str(payload["cvars"]["session"])


def _header(signer: SigningKey) -> dict[str, Any]:
    public = signer.private.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    jwk = {"alg": "ES256", "crv": "P-256", "kid": signer.kid, "kty": "EC"} | ec_jwk(public, CURVES["P-256"])
    return {"alg": "ES256", "jwk": jwk, "kid": signer.kid, "typ": "JWT"}
