"""Proof of possession for anchor calls: a MAC that only the attested component can make (key-release 5.4).

A stolen cookie or token cannot touch the anchor (K33, K54).
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

SEQUENCE: Final = "x-cvars-sequence"
MAC: Final = "x-cvars-mac"
KEY_SIZE: Final = 32


def mac(key: bytes, method: str, path: str, sequence: int, body: bytes) -> str:
    """Hex HMAC-SHA-256 over method, path, sequence and the digest of the body bytes."""
    text = f"cvars channel v1\n{method}\n{path}\n{sequence}\n{hashlib.sha256(body).hexdigest()}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def headers(key: bytes, method: str, path: str, sequence: int, body: bytes) -> dict[str, str]:
    """The two headers of a call."""
    return {SEQUENCE: str(sequence), MAC: mac(key, method, path, sequence, body)}


def sequence_of(given: Mapping[str, str], key: bytes, method: str, path: str, body: bytes) -> int | None:
    """The sequence of an authentic call (lower-case header names), or None."""
    text = given.get(SEQUENCE, "")
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or text != str(int(text)):
        return None
    expected = mac(key, method, path, int(text), body)
    return int(text) if hmac.compare_digest(expected.encode(), given.get(MAC, "").encode()) else None
