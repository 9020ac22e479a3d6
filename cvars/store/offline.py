"""Offline tools on whole images in memory: none writes to the file it reads (SS-26).

Source: sealed-store SS-26 and 6.2 (offline images carry session 0 and are accepted only after a rebase).
"""

import time
from collections.abc import Callable
from pathlib import Path

from cvars.store.config import StoreConfig
from cvars.store.geometry import Geometry
from cvars.store.header import MEDIUM_FILE, MEDIUM_NOR, CreationHeader, header_block
from cvars.store.keyfile import KeyFile
from cvars.store.medium import FileMedium, MemoryMedium, read_image
from cvars.store.mounting import mount
from cvars.store.selection import Mode
from cvars.trace import silent


def read_file(path: Path) -> bytes:
    """Read an image file, open for reading only. Raises StoreIoError, StoreTampered (too large)."""
    medium = FileMedium.open(path, writable=False)
    try:
        return read_image(medium)
    finally:
        medium.close()


def creation_image(geometry: Geometry, *, nor: bool, aux: bytes, request_id: bytes) -> bytes:
    """An image that holds a creation header only (SS-22). NOR: everything behind its block is erased."""
    header = CreationHeader(geometry, MEDIUM_NOR if nor else MEDIUM_FILE, request_id, aux).encode()
    return header_block(header).ljust(geometry.image_size, b"\xff" if nor else b"\0")


def create_unanchored(blank: bytes, key_file: KeyFile, *, suite: int, random: Callable[[int], bytes]) -> bytes:
    """Turn a creation image into a store in mode ``none``."""
    medium = MemoryMedium(blank)
    store = mount(
        medium,
        keys=key_file.keys(store_id=random(16), key_version=1),
        config=StoreConfig(mode=Mode.NONE, suite=suite),
        acquired=None,
        anchor=None,
        random=random,
        clock=time.monotonic,
        trace=silent,
        provision=True,
    )
    store.close()
    return bytes(medium.image)
