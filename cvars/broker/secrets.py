"""Secrets at rest: AES-256-GCM under a master key, bound to where they belong (key-release 6).

A wrapped secret is ``key id (8) || nonce (12) || ciphertext and tag``; the key id is the start of the master
key's SHA-256, so that a rewrap after rotation can be resumed. Plaintext lives in one request only.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cvars.errors import BadInput

KEY_SIZE: Final = 32
_ID: Final = 8
_NONCE: Final = 12
_STORE_KEY: Final = b"cvars store key v1"


class WrongMasterKey(BadInput):
    """A secret was wrapped under a master key that is not configured, or was changed."""

    reason = "broker.wrong_master_key"


@dataclass(slots=True)
class Keyring:
    """``master`` wraps; ``old`` keys still unwrap until everything is rewrapped."""

    master: bytes = field(repr=False)
    random: Callable[[int], bytes]
    old: Sequence[bytes] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if any(len(key) != KEY_SIZE for key in (self.master, *self.old)):
            raise BadInput(f"a master key has {KEY_SIZE} bytes")

    def wrap(self, secret: bytes, binding: bytes) -> bytes:
        """Encrypt ``secret`` for the place that ``binding`` names."""
        nonce = self.random(_NONCE)
        return key_id(self.master) + nonce + AESGCM(self.master).encrypt(nonce, secret, binding)

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        """Decrypt. Raises ``WrongMasterKey``."""
        key = next((k for k in (self.master, *self.old) if key_id(k) == wrapped[:_ID]), None)
        if key is None:
            raise WrongMasterKey("a secret was wrapped under a master key that is not configured")
        try:
            return AESGCM(key).decrypt(wrapped[_ID : _ID + _NONCE], wrapped[_ID + _NONCE :], binding)
        except InvalidTag:
            raise WrongMasterKey("a wrapped secret was changed or moved") from None

    def current(self, wrapped: bytes) -> bool:
        """Whether ``wrapped`` is under the present master key."""
        return wrapped[:_ID] == key_id(self.master)

    @staticmethod
    def store_key(master: bytes, vm_id: str, version: int) -> bytes:
        """The store key of ``version``: HKDF-SHA-256(VM master, label, vm_id || version u32 little-endian)."""
        info = vm_id.encode() + version.to_bytes(4, "little")
        return HKDF(hashes.SHA256(), 32, salt=_STORE_KEY, info=info).derive(master)


def key_id(key: bytes) -> bytes:
    """What names a master key in wrapped secrets: tells nothing about it."""
    return hashlib.sha256(b"cvars master key id" + key).digest()[:_ID]
