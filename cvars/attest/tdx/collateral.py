"""Collateral: the nine-member JSON of common tools, signed over its exact bytes. Source: `attestation` 3.2."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cvars.attest import strict_json
from cvars.attest.evidence import MAX_COLLATERAL
from cvars.attest.strict_json import JsonError, text

MEMBERS: Final = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)


@dataclass(frozen=True, slots=True)
class Collateral:
    """The nine members, decoded from hex where they are hex. Empty: absent."""

    pck_crl_issuer_chain: bytes  # PEM
    root_ca_crl: bytes  # DER
    pck_crl: bytes  # DER
    tcb_info_issuer_chain: bytes  # PEM
    tcb_info: bytes  # exact JSON bytes
    tcb_info_signature: bytes  # r || s
    qe_identity_issuer_chain: bytes  # PEM
    qe_identity: bytes  # exact JSON bytes
    qe_identity_signature: bytes  # r || s

    @staticmethod
    @lru_cache(maxsize=16)
    def parse(raw: bytes) -> "Collateral":
        """Read the JSON object; the same bytes serve many machines and are read once.

        Raises:
            JsonError: not an object of texts, or hex that is none.
        """
        value = strict_json.loads(raw, max_bytes=MAX_COLLATERAL)
        if not isinstance(value, dict):
            raise JsonError("collateral is an object")
        return Collateral(
            pck_crl_issuer_chain=_text(value, "pck_crl_issuer_chain"),
            root_ca_crl=_hex(value, "root_ca_crl"),
            pck_crl=_hex(value, "pck_crl"),
            tcb_info_issuer_chain=_text(value, "tcb_info_issuer_chain"),
            tcb_info=_text(value, "tcb_info"),
            tcb_info_signature=_hex(value, "tcb_info_signature"),
            qe_identity_issuer_chain=_text(value, "qe_identity_issuer_chain"),
            qe_identity=_text(value, "qe_identity"),
            qe_identity_signature=_hex(value, "qe_identity_signature"),
        )

    def to_json(self) -> bytes:
        """The nine-member JSON text."""
        hexed = {"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"}
        members = {
            name: getattr(self, name).hex() if name in hexed else getattr(self, name).decode("utf-8")
            for name in MEMBERS
        }
        return json.dumps(members).encode()


def _text(value: dict[str, Any], name: str) -> bytes:
    return text(value.get(name, ""), name).encode()


def _hex(value: dict[str, Any], name: str) -> bytes:
    try:
        return bytes.fromhex(text(value.get(name, ""), name))
    except ValueError:
        raise JsonError(f"{name} is not hex") from None
