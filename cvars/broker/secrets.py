"""Secrets at rest: AES-256-GCM under a master key, bound to where they belong (key-release 6).

A wrapped secret is ``key id (8) || nonce (12) || ciphertext and tag``; the key id tells nothing about the master
key, and lets a rewrap after rotation be resumed. Plaintext lives in one request only. A master key is 32 bytes in
this process (`LocalKey`), or an object on a PKCS#11 token (`cvars.broker.hsm`).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cvars.errors import BadInput, OutsideFailure

KEY_SIZE: Final = 32
ID_LABEL: Final = b"cvars master key id"
_SALT_LABEL: Final = b"cvars claim salt"
_ID: Final = 8
_NONCE: Final = 12
_TAG: Final = 16
_STORE_KEY: Final = b"cvars store key v1"


class WrongMasterKey(BadInput):
    """A secret was wrapped under a master key that is not configured, or was changed."""

    reason = "broker.wrong_master_key"


class MasterKeyDown(OutsideFailure):
    """The token with the master key does not answer; the broker tries again at the next request."""

    reason = "broker.master_key_down"


class MasterKey(Protocol):
    """A key that wraps secrets, wherever it lives."""

    def encrypt(self, nonce: bytes, secret: bytes, binding: bytes) -> bytes:
        """AES-256-GCM: ciphertext and 16-byte tag. Raises ``MasterKeyDown``."""
        ...

    def decrypt(self, nonce: bytes, sealed: bytes, binding: bytes) -> bytes:
        """The opposite. Raises ``WrongMasterKey``, ``MasterKeyDown``."""
        ...

    def derive(self, label: bytes) -> bytes:
        """32 bytes that only this key gives for ``label``. Raises ``MasterKeyDown``."""
        ...

    def close(self) -> None:
        """Let go of what holds the key."""
        ...


@dataclass(frozen=True, slots=True)
class LocalKey:
    """32 bytes in this process: from a file, the environment or a systemd credential."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_SIZE:
            raise BadInput(f"a master key has {KEY_SIZE} bytes")

    def encrypt(self, nonce: bytes, secret: bytes, binding: bytes) -> bytes:
        """AES-256-GCM."""
        return AESGCM(self.key).encrypt(nonce, secret, binding)

    def decrypt(self, nonce: bytes, sealed: bytes, binding: bytes) -> bytes:
        """Raises ``WrongMasterKey``."""
        try:
            return AESGCM(self.key).decrypt(nonce, sealed, binding)
        except InvalidTag:
            raise WrongMasterKey("a wrapped secret was changed or moved") from None

    def derive(self, label: bytes) -> bytes:
        """SHA-256 over label and key."""
        return hashlib.sha256(label + self.key).digest()

    def close(self) -> None:
        """Nothing to let go of."""


class Keyring:
    """``master`` wraps; ``old`` keys still unwrap until everything is rewrapped."""

    def __init__(self, master: MasterKey, random: Callable[[int], bytes], old: Sequence[MasterKey] = ()) -> None:
        self.random = random
        self.salt = master.derive(_SALT_LABEL)  # of claims that would identify a machine
        self._master = master
        self._master_id = key_id(master)
        self._keys = (*old, master)
        self._by_id = {key_id(key): key for key in self._keys}

    def wrap(self, secret: bytes, binding: bytes) -> bytes:
        """Encrypt ``secret`` for the place that ``binding`` names. Raises ``MasterKeyDown``."""
        nonce = self.random(_NONCE)
        return self._master_id + nonce + self._master.encrypt(nonce, secret, binding)

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        """Decrypt. Raises ``WrongMasterKey``, ``MasterKeyDown``."""
        if len(wrapped) < _ID + _NONCE + _TAG:
            raise WrongMasterKey("a wrapped secret was cut off")
        key = self._by_id.get(wrapped[:_ID])
        if key is None:
            raise WrongMasterKey("a secret was wrapped under a master key that is not configured")
        return key.decrypt(wrapped[_ID : _ID + _NONCE], wrapped[_ID + _NONCE :], binding)

    def current(self, wrapped: bytes) -> bool:
        """Whether ``wrapped`` is under the present master key."""
        return wrapped[:_ID] == self._master_id

    def close(self) -> None:
        """End the sessions with tokens."""
        for key in self._keys:
            key.close()

    @staticmethod
    def store_key(master: bytes, vm_id: str, version: int) -> bytes:
        """The store key of ``version``: HKDF-SHA-256(VM master, label, vm_id || version u32 little-endian)."""
        info = vm_id.encode() + version.to_bytes(4, "little")
        return HKDF(hashes.SHA256(), 32, salt=_STORE_KEY, info=info).derive(master)


def key_id(key: MasterKey) -> bytes:
    """What names a master key in wrapped secrets (8 bytes): tells nothing about it."""
    return key.derive(ID_LABEL)[:_ID]
