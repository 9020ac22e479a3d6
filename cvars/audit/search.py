"""Looking for plaintext: would a byte search of what the host holds find a name or a value?

Each needle is looked for as it is, as hex (both cases) and base64 (all three alignments, both alphabets), and
inside every zlib or gzip stream (one level deep). Names are looked for in UTF-16LE and ASCII.
"""

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cvars.variables.model import Key

MIN_VALUE: Final = 8
MIN_ASCII_NAME: Final = 4
_INFLATED_LIMIT: Final = 1 << 24
_MAGIC: Final = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


@dataclass(frozen=True, slots=True)
class Needle:
    """``label`` says what is looked for without showing it; ``form`` how it was written."""

    label: str
    form: str
    pattern: bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """``needle`` was found in ``source`` at ``offset``."""

    needle: Needle
    source: str
    offset: int


def needles(variables: Mapping[Key, bytes]) -> list[Needle]:
    """Everything to look for. Short values and ASCII names are found by chance: left out."""
    out: list[Needle] = []
    for key, value in variables.items():
        out += _forms(f"name {key.name}", "UTF-16", key.name_bytes)
        ascii_name = key.name.encode("ascii", "ignore")
        if len(ascii_name) >= MIN_ASCII_NAME and ascii_name.decode() == key.name:
            out += _forms(f"name {key.name}", "ASCII", ascii_name)
        if len(value) >= MIN_VALUE:
            out += _forms(f"value of {key.name}", "raw", value)
    return out


def _forms(label: str, form: str, raw: bytes) -> Iterator[Needle]:
    yield Needle(label, form, raw)
    if len(raw) < MIN_ASCII_NAME:
        return
    yield Needle(label, f"{form}, hex", raw.hex().encode())
    yield Needle(label, f"{form}, HEX", raw.hex().upper().encode())
    for shift in range(3):
        # the characters that depend on raw alone, whatever stands before and after it
        whole = base64.b64encode(bytes(shift) + raw)
        start = -(-shift * 4 // 3)
        end = (shift + len(raw)) * 8 // 6
        core = whole[start:end]
        yield Needle(label, f"{form}, base64 +{shift}", core)
        yield Needle(label, f"{form}, base64url +{shift}", core.translate(bytes.maketrans(b"+/", b"-_")))


def unpacked(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """``blob`` and everything inside it that looks like and opens as a zlib or gzip stream."""
    yield "", blob
    for magic in _MAGIC:
        offset = blob.find(magic)
        while offset >= 0:
            opened = _inflate(blob[offset:])
            if opened:
                yield f" (inflated at {offset:#x})", opened
            offset = blob.find(magic, offset + 1)


def _inflate(stream: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(stream, _INFLATED_LIMIT)
    except zlib.error:
        return b""


def search(sources: Iterable[tuple[str, bytes]], wanted: Iterable[Needle]) -> list[Hit]:
    """Every needle in every source, first place of each."""
    patterns = list(wanted)
    hits = []
    for name, blob in sources:
        for suffix, data in unpacked(blob):
            for needle in patterns:
                offset = data.find(needle.pattern)
                if offset >= 0:
                    hits.append(Hit(needle, name + suffix, offset))
    return hits
