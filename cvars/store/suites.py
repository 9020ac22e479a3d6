"""The three record ciphers behind one shape. Source: sealed-store 6 "Suites" and 6.1 "Nonces".

A suite never sees a random nonce: (session key, sequence, part) is unique by construction (SS-3), and the
default suite tolerates misuse.
"""

import hmac
import struct
from collections.abc import Callable
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from cvars.errors import StoreTooOld

GCM_SIV: Final = 1
XCHACHA: Final = 2
GCM_PER_RECORD: Final = 3
NAMES: Final = {
    GCM_SIV: "AES-256-GCM-SIV",
    XCHACHA: "XChaCha20-Poly1305",
    GCM_PER_RECORD: "AES-256-GCM, a key per record",
}
SUITES: Final = tuple(NAMES)
_SIV_NONCE: Final = struct.Struct("<QHxx")
_RECORD_INFO: Final = struct.Struct("<3sQH")
_ZERO_NONCE: Final = bytes(12)


class Sealer(Protocol):
    """Seals and opens the records of one session in one bank."""

    def seal(self, sequence: int, part: int, plain: bytes, associated: bytes) -> bytes:
        """Return ciphertext and tag."""
        ...

    def open(self, sequence: int, part: int, sealed: bytes | memoryview, associated: bytes) -> bytes | None:
        """Return the plaintext, or None when the tag does not match."""
        ...


class _GcmSiv:
    def __init__(self, key: bytes, _salt: bytes) -> None:
        try:
            self._cipher = AESGCMSIV(key)
        except UnsupportedAlgorithm:
            raise StoreTooOld(
                "suite 1 (AES-256-GCM-SIV) is not offered by this OpenSSL",
                hint="it needs OpenSSL 3.2 or newer; the wheels of the cryptography package bring one",
            ) from None

    def seal(self, sequence: int, part: int, plain: bytes, associated: bytes) -> bytes:
        return self._cipher.encrypt(_SIV_NONCE.pack(sequence, part), plain, associated)

    def open(self, sequence: int, part: int, sealed: bytes | memoryview, associated: bytes) -> bytes | None:
        try:
            return self._cipher.decrypt(_SIV_NONCE.pack(sequence, part), sealed, associated)
        except InvalidTag:
            return None


class _XChaCha:
    def __init__(self, key: bytes, salt: bytes) -> None:
        self._key = key
        self._salt = salt

    def _nonce(self, sequence: int, part: int) -> bytes:
        return self._salt + ((sequence << 16 | part) & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")

    def seal(self, sequence: int, part: int, plain: bytes, associated: bytes) -> bytes:
        return crypto_aead_xchacha20poly1305_ietf_encrypt(
            plain, associated, self._nonce(sequence, part), self._key
        )

    def open(self, sequence: int, part: int, sealed: bytes | memoryview, associated: bytes) -> bytes | None:
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                bytes(sealed), associated, self._nonce(sequence, part), self._key
            )
        except CryptoError:
            return None


class _GcmPerRecord:
    def __init__(self, key: bytes, _salt: bytes) -> None:
        self._key = key

    def _cipher(self, sequence: int, part: int) -> AESGCM:
        return AESGCM(expand(self._key, _RECORD_INFO.pack(b"rec", sequence, part)))

    def seal(self, sequence: int, part: int, plain: bytes, associated: bytes) -> bytes:
        return self._cipher(sequence, part).encrypt(_ZERO_NONCE, plain, associated)

    def open(self, sequence: int, part: int, sealed: bytes | memoryview, associated: bytes) -> bytes | None:
        try:
            return self._cipher(sequence, part).decrypt(_ZERO_NONCE, sealed, associated)
        except InvalidTag:
            return None


_SEALERS: Final[dict[int, Callable[[bytes, bytes], Sealer]]] = {
    GCM_SIV: _GcmSiv,
    XCHACHA: _XChaCha,
    GCM_PER_RECORD: _GcmPerRecord,
}


def sealer(suite: int, session_key: bytes, session_salt: bytes) -> Sealer:
    """Return the sealer of one session. Raises StoreTooOld when this system does not offer the suite."""
    return _SEALERS[suite](session_key, session_salt)


def expand(key: bytes, info: bytes) -> bytes:
    """``HMAC-SHA-512(key, info || 0x01)[0:32]``: the only expansion of format 1."""
    return hmac.digest(key, info + b"\x01", "sha512")[:32]
