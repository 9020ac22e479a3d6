"""What evidence must carry in REPORT_DATA: the nonce and the session key, bound by one hash.

Source: key-release 1.2. Every value is 64 bytes. For texts under ASCII names, `compact` is canonical JSON.
"""

import hashlib
from typing import Final

from cvars.release.encoding import b64_decode, compact
from cvars.release.teekey import KeyRefused, TeePublicKey

SIZE: Final = 64


def profile_t(nonce: str, key: TeePublicKey, additional_evidence: str = "") -> bytes:
    """Trustee's binding: SHA-384 of canonical JSON, zero-padded to 64 bytes (K05)."""
    text = compact({"additional-evidence": additional_evidence, "nonce": nonce, "tee-pubkey": dict(key.jwk)})
    return hashlib.sha384(text).digest().ljust(SIZE, b"\0")


def device(nonce: str, key: TeePublicKey) -> bytes:
    """What additional evidence is bound to: as `profile_t`, without the additional evidence."""
    text = compact({"nonce": nonce, "tee-pubkey": dict(key.jwk)})
    return hashlib.sha384(text).digest().ljust(SIZE, b"\0")


def profile_c(nonce: str, key: TeePublicKey) -> bytes:
    """COCONUT-SVSM's binding: SHA-512(x || y || nonce), P-521 coordinates of 66 bytes each."""
    if key.jwk.get("crv") != "P-521":
        raise KeyRefused("profile C wants a P-521 key")
    x, y = key.coordinates()
    return hashlib.sha512(x + y + b64_decode(nonce)).digest()
