"""The key schedule: broker key, then keys per purpose, bank and session. Source: sealed-store 6.1 (SS-18).

``store_id``, ``vm_id`` and every key encryption key (KEK) come from the broker, never from the image.
"""

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from cvars.store import suites
from cvars.store.geometry import Geometry

_KEY_CHECK: Final = b"cvars key check v1"
_BANK_INFO: Final = struct.Struct("<4sIQ32sBBQQ")
_SESSION_INFO: Final = struct.Struct("<4sQ16s")


def vm_binding(vm_id: str) -> bytes:
    """The 16 bytes that a header holds for a VM id."""
    return hashlib.sha256(b"vm" + vm_id.encode()).digest()[:16]


@dataclass(frozen=True)
class RootKeys:
    """What one KEK version opens: the header MAC, the key check, and the banks."""

    version: int
    store_id: bytes
    kek: bytes = field(repr=False)

    @cached_property
    def _prk(self) -> bytes:
        return hmac.digest(b"CVFS1" + self.store_id, self.kek, "sha512")

    def _expand(self, label: bytes) -> bytes:
        return suites.expand(self._prk, label + self.version.to_bytes(4, "little"))

    @cached_property
    def header_key(self) -> bytes:
        """Key of the header MAC."""
        return self._expand(b"hdr")

    @cached_property
    def key_check(self) -> bytes:
        """The 32 bytes at offset 256 of every header under this key."""
        return hmac.digest(self._expand(b"check"), _KEY_CHECK + self.store_id, "sha256")

    def bank(
        self, *, generation: int, bank_salt: bytes, suite: int, geometry: Geometry, bank_offset: int
    ) -> "BankKeys":
        """Keys of one bank in one generation."""
        info = _BANK_INFO.pack(
            b"bank",
            self.version,
            generation,
            bank_salt,
            suite,
            geometry.log2_frame,
            geometry.image_size,
            bank_offset,
        )
        return BankKeys(suites.expand(self._prk, info), suite)


class BankKeys:
    """The chain key and the session keys of one bank."""

    def __init__(self, bank_key: bytes, suite: int) -> None:
        self._key = bank_key
        self.suite = suite
        self._chain = HMAC(suites.expand(bank_key, b"chain"), SHA256())
        self._sessions: dict[tuple[int, bytes], suites.Sealer] = {}

    def chain_start(self, header: bytes) -> bytes:
        """Chain value before a bank's first record. ``header``: bytes 0..447, the snapshot digest zero."""
        return self.chain(b"bank", header)

    def chain(self, previous: bytes, record: bytes | memoryview) -> bytes:
        """Chain value after ``record``, tag included: the state digest of a commit."""
        chain = self._chain.copy()
        chain.update(previous)
        chain.update(record)
        return chain.finalize()

    def session(self, session: int, salt: bytes) -> suites.Sealer:
        """The sealer of a session; derived once. A scan over hostile bytes cannot make it grow for ever."""
        known = self._sessions.get((session, salt))
        if known is None:
            key = suites.expand(self._key, _SESSION_INFO.pack(b"sess", session, salt))
            if len(self._sessions) >= 64:
                self._sessions.clear()
            known = self._sessions[session, salt] = suites.sealer(self.suite, key, salt)
        return known


@dataclass(frozen=True)
class StoreKeys:
    """What the broker released for one store.

    ``keks``: 32-byte keys by key version. ``write_version``: the one that new data is sealed under (SS-18).
    """

    store_id: bytes
    vm_id: str
    keks: Mapping[int, bytes] = field(repr=False)
    write_version: int

    def __post_init__(self) -> None:
        if len(self.store_id) != 16 or any(len(k) != 32 for k in self.keks.values()):
            raise ValueError("a store id has 16 bytes, a key 32")
        if self.write_version not in self.keks:
            raise ValueError(f"key version {self.write_version} is named for writing but was not given")

    def root(self, version: int) -> RootKeys | None:
        """Keys of a version, or None when it was not released."""
        kek = self.keks.get(version)
        return None if kek is None else RootKeys(version, self.store_id, kek)

    @property
    def binding(self) -> bytes:
        """VM binding of the headers."""
        return vm_binding(self.vm_id)
