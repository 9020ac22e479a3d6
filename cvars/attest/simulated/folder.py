"""Where an installation keeps its simulated roots: private keys in a folder of mode 0700.

Generating an RSA-4096 key takes seconds, so keys are made on first use and kept. ``public/`` holds certificates
only; it is what a verifier is given, and has the layout of `cvars.attest.library`.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from cvars.errors import OutsideFailure

README: Final = """Simulated hardware of one installation of cvars.

The keys in this folder protect nothing: whoever can read them can make evidence that this installation's
verifier calls "simulated". Never give them, or the certificates under public/, to a production broker.
"""


class Folder:
    """One installation's folder. Also safe when several processes use it for the first time at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        except OSError as wrong:
            raise OutsideFailure(f"{path}: {wrong.strerror or wrong}") from None
        self._kept(path / "README", README.encode, 0o600)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for whoever creates keys in it."""
        with (self.path / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The bytes kept under ``name``, made on first use; mode 0600."""
        return self._kept(self.path / name, make, 0o600)

    def public(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The public bytes kept under ``public/name``, made on first use."""
        return self._kept(self.path / "public" / name, make, 0o644)

    def rsa_key(self, name: str) -> rsa.RSAPrivateKey:
        """An RSA-4096 key."""
        key = self._key(name, lambda: rsa.generate_private_key(65537, 4096))
        assert isinstance(key, rsa.RSAPrivateKey)
        return key

    def ec_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """A P-256 key."""
        key = self._key(name, lambda: ec.generate_private_key(ec.SECP256R1()))
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def _key(self, name: str, make: Callable[[], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]) -> object:
        def encoded() -> bytes:
            return make().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

        return load_der_private_key(self.secret(name, encoded), None, unsafe_skip_rsa_key_validation=True)

    def _kept(self, file: Path, make: Callable[[], bytes], mode: int) -> bytes:
        try:
            if file.exists():
                return file.read_bytes()
            with self.locked():
                if not file.exists():
                    self._write(file, make(), mode)
            return file.read_bytes()
        except OSError as wrong:
            raise OutsideFailure(f"{file}: {wrong.strerror or wrong}") from None

    @staticmethod
    def _write(file: Path, data: bytes, mode: int) -> None:
        """Write atomically: nobody ever sees half a key."""
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.part")
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        part.replace(file)
