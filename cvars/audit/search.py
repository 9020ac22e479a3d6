"""Looking for plaintext: would a byte search of what the host holds find a name or a value?

Each needle is looked for as it is, as hex (both cases) and base64 (all three alignments, both alphabets), broken
by white space or separators or not. The same inside everything that opens as zlib, gzip, bzip2, xz or a deflated
zip member, and inside runs of hex and base64 that hold such a stream or text of their own, `DEPTH` levels deep.
What cannot be opened within `OPENED_LIMIT` is an error, never "nothing found". Names: UTF-16LE and ASCII.
"""

import base64
import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from cvars.errors import BadInput
from cvars.variables.model import Key

MIN_VALUE: Final = 8
MIN_ASCII_NAME: Final = 4
#: containers within containers
DEPTH: Final = 4
#: bytes that the packed parts of one source may unfold to, all together
OPENED_LIMIT: Final = 1 << 26
_BREAKS: Final = re.compile(rb"\\[nrt]|\s")  # a line break as it is, and as JSON writes it
_SEPARATORS: Final = re.compile(rb"0x|\\x|\\[nrt]|[\s:,_-]")
_HEX_RUN: Final = re.compile(rb"[0-9A-Fa-f]{32,}")
_BASE64_RUN: Final = re.compile(rb"[A-Za-z0-9+/_-]{22,}")
_ZIP_MEMBER: Final = re.compile(rb"PK\x03\x04.{4}\x08\x00.{16}(..)(..)", re.DOTALL)  # deflated; two lengths
_URLSAFE: Final = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class Needle:
    """``label`` says what is looked for without showing it; ``form`` how it was written, in ``encoding``."""

    label: str
    form: str
    pattern: bytes
    encoding: str = "raw"


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
    yield Needle(label, f"{form}, hex", raw.hex().encode(), "hex")
    yield Needle(label, f"{form}, HEX", raw.hex().upper().encode(), "hex")
    for shift in range(3):
        # the characters that depend on raw alone, whatever stands before and after it
        whole = base64.b64encode(bytes(shift) + raw)
        start = -(-shift * 4 // 3)
        end = (shift + len(raw)) * 8 // 6
        core = whole[start:end]
        yield Needle(label, f"{form}, base64 +{shift}", core, "base64")
        yield Needle(label, f"{form}, base64url +{shift}", core.translate(bytes.maketrans(b"+/", b"-_")), "base64")


@dataclass(slots=True)
class _Opener:
    """Opens what is packed in one source, within its budget."""

    source: str
    left: int = OPENED_LIMIT
    seen: set[int] = field(default_factory=set)

    def inside(self, blob: bytes, depth: int = DEPTH) -> Iterator[tuple[str, bytes]]:
        """``blob`` itself, and everything found packed in it: (where, bytes)."""
        yield "", blob
        if not depth:
            return
        for where, opened in self._packed(blob):
            if len(opened) >= MIN_ASCII_NAME and hash(opened) not in self.seen:
                self.seen.add(hash(opened))
                for deeper, data in self.inside(opened, depth - 1):
                    yield where + deeper, data

    def _packed(self, blob: bytes) -> Iterator[tuple[str, bytes]]:
        for name, magic, make in _STREAMS:
            for found in re.finditer(re.escape(magic), blob):
                yield f" ({name} at {found.start():#x})", self._inflate(make, blob, found.start())
        for member in _ZIP_MEMBER.finditer(blob):
            start = member.end() + sum(int.from_bytes(n, "little") for n in member.groups())
            yield f" (zip at {member.start():#x})", self._inflate(_raw_deflate, blob, start)
        for run in _HEX_RUN.finditer(_SEPARATORS.sub(b"", blob)):
            for shift in range(2):
                text = run[0][shift:]
                yield f" (hex +{shift})", self._spend(bytes.fromhex(text[: len(text) // 2 * 2].decode()))
        for run in _BASE64_RUN.finditer(_BREAKS.sub(b"", blob)):
            for shift in range(4):
                text = run[0][shift:].translate(_URLSAFE)
                yield f" (base64 +{shift})", self._spend(base64.b64decode(text[: len(text) // 4 * 4]))

    def _inflate(self, make: "Callable[[], _Decompressor]", blob: bytes, start: int) -> bytes:
        """What a stream at ``start`` opens to, as far as it is sound; nothing when it is none."""
        opener, out, at = make(), b"", start
        try:
            while not opener.eof and at < len(blob):
                out += self._spend(opener.decompress(blob[at : at + _STEP], self.left + 1))
                at += _STEP
        except (zlib.error, OSError, EOFError, lzma.LZMAError):
            pass  # cut short or no stream at all: what came before is looked at
        return out

    def _spend(self, opened: bytes) -> bytes:
        self.left -= len(opened)
        if self.left < 0:
            raise BadInput(
                f"what is packed in it unfolds to more than {OPENED_LIMIT} bytes: not searched to the end",
                where=self.source,
                hint="look at that file by itself: nothing is said of it",
            )
        return opened


class _Deflate:
    """`zlib`, as the other two modules offer themselves."""

    def __init__(self, wbits: int) -> None:
        self._opener = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._opener.eof

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._opener.decompress(self._opener.unconsumed_tail + data, max_length)


_Decompressor = _Deflate | bz2.BZ2Decompressor | lzma.LZMADecompressor
_STEP: Final = 1 << 16
_XZ_MEMORY: Final = 1 << 27  # what `xz -9` needs, twice


def _wrapped_deflate() -> _Deflate:
    return _Deflate(zlib.MAX_WBITS | 32)


def _raw_deflate() -> _Deflate:
    return _Deflate(-zlib.MAX_WBITS)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


#: RFC 1950: method 8, any window, no preset dictionary, check bits that fit
_ZLIB_HEADERS: Final = [
    bytes((cmf, flags))
    for cmf in range(0x08, 0x80, 0x10)
    for flags in range(256)
    if not flags & 0x20 and (cmf << 8 | flags) % 31 == 0
]
_STREAMS: Final[tuple[tuple[str, bytes, "Callable[[], _Decompressor]"], ...]] = (
    ("gzip", b"\x1f\x8b\x08", _wrapped_deflate),
    *(("zlib", magic, _wrapped_deflate) for magic in _ZLIB_HEADERS),
    ("bzip2", b"BZh", bz2.BZ2Decompressor),
    ("xz", b"\xfd7zXZ\0", _xz),
)


def search(sources: Iterable[tuple[str, bytes]], wanted: Iterable[Needle]) -> list[Hit]:
    """Every needle in every source, first place of each. Offsets are in what was opened, without breaks.

    Raises:
        BadInput: a source unfolds to more than is opened: nothing is said of any.
    """
    patterns = list(wanted)
    hits = []
    for name, blob in sources:
        for where, data in _Opener(name).inside(blob):
            views = {"raw": data, "hex": _SEPARATORS.sub(b"", data), "base64": _BREAKS.sub(b"", data)}
            for needle in patterns:
                offset = views[needle.encoding].find(needle.pattern)
                if offset >= 0:
                    hits.append(Hit(needle, name + where, offset))
    return hits
