"""MRTD: the build-time measurement of a TD. Source: Intel TDX Module ABI, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND."""

import hashlib
from typing import Final

PAGE: Final = 4096
CHUNK: Final = 256
_ADD: Final = b"MEM.PAGE.ADD".ljust(16, b"\0")
_EXTEND: Final = b"MR.EXTEND".ljust(16, b"\0")


class Mrtd:
    """SHA-384 over 128-byte records: one per added page, three per extended chunk of 256 bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha384()

    def add(self, gpa: int) -> None:
        """TDH.MEM.PAGE.ADD of the page at ``gpa``: its address is measured, its contents are not."""
        self._hash.update(_ADD + gpa.to_bytes(8, "little") + bytes(104))

    def extend(self, gpa: int, page: bytes) -> None:
        """TDH.MR.EXTEND of all 16 chunks of a page."""
        for at in range(0, len(page), CHUNK):
            self._hash.update(_EXTEND + (gpa + at).to_bytes(8, "little") + bytes(104))
            self._hash.update(page[at : at + CHUNK])

    def region(self, gpa: int, data: bytes, *, extend: bool) -> None:
        """Add whole pages from ``gpa`` on; each is extended directly after it was added."""
        for at in range(0, len(data), PAGE):
            self.add(gpa + at)
            if extend:
                self.extend(gpa + at, data[at : at + PAGE])

    @property
    def value(self) -> bytes:
        """48 bytes."""
        return self._hash.digest()


def flash_mrtd(image: bytes) -> bytes:
    """MRTD of an image whose last byte lies below 4 GiB, all pages added and extended."""
    if not image or len(image) % PAGE:
        raise ValueError(f"an image of {len(image)} bytes is not whole pages")
    mrtd = Mrtd()
    mrtd.region((1 << 32) - len(image), image, extend=True)
    return mrtd.value
