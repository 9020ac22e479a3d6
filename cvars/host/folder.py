"""What the host holds: a folder with the pflash blobs, and the copies it chose to keep.

Everything here is the host's side: it knows no key, and it may do anything to the bytes.
"""

import os
from pathlib import Path


class HostFolder:
    """``folder`` and below it ``copies/``. Blobs are named by the guest they belong to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._copies = folder / "copies"
        self._copies.mkdir(parents=True, exist_ok=True)

    def blob(self, guest: str) -> Path:
        """The live pflash blob of ``guest``."""
        return self.folder / f"{guest}.fd"

    def keep(self, guest: str, label: str) -> Path:
        """Copy the live blob, as it is now, to ``copies/GUEST.LABEL.fd``."""
        copy = self._copies / f"{guest}.{label}.fd"
        copy.write_bytes(self.blob(guest).read_bytes())
        return copy

    def kept(self, guest: str, label: str) -> Path:
        """Where an earlier ``keep`` put its copy."""
        return self._copies / f"{guest}.{label}.fd"

    def put_back(self, guest: str, image: bytes) -> None:
        """Overwrite the live blob in place with ``image``, of any length."""
        with self.blob(guest).open("r+b") as blob:
            blob.write(image)
            blob.truncate()
            blob.flush()
            os.fsync(blob.fileno())

    def flip(self, guest: str, offset: int, mask: int = 1) -> None:
        """Change bits of one byte of the live blob."""
        with self.blob(guest).open("r+b") as blob:
            blob.seek(offset)
            byte = blob.read(1)[0]
            blob.seek(offset)
            blob.write(bytes([byte ^ mask]))
            blob.flush()
            os.fsync(blob.fileno())
