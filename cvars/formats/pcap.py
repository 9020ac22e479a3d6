"""Captures of the MM variable protocol: classic pcap, link type 302 (LINKTYPE_EDK2_MM).

Each packet is a little-endian type word (1 reset, 2 request, 3 reply), then the communicate buffer: 24-byte
header and message. Source: mm-protocol section 6; the pcap file format (IETF draft-gharris-opsawg-pcap).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Final

from construct import Int16ul, Int32sl, Int32ul, Struct

from cvars.errors import BadInput

PCAP_FILE_HEADER: Final = Struct(
    "magic_number" / Int32ul,  # +0x00
    "version_major" / Int16ul,  # +0x04
    "version_minor" / Int16ul,  # +0x06
    "thiszone" / Int32sl,  # +0x08
    "sigfigs" / Int32ul,  # +0x0C
    "snaplen" / Int32ul,  # +0x10
    "network" / Int32ul,  # +0x14
)  # 0x18 bytes
PCAP_RECORD_HEADER: Final = Struct(
    "ts_sec" / Int32ul,  # +0x00
    "ts_usec" / Int32ul,  # +0x04
    "incl_len" / Int32ul,  # +0x08
    "orig_len" / Int32ul,  # +0x0C
)  # 0x10 bytes; then incl_len bytes
MAGIC: Final = 0xA1B2C3D4
LINKTYPE_EDK2_MM: Final = 302
SNAP_LENGTH: Final = 4 + 256 * 1024  # the largest buffer of R2, and the type word
COMMUNICATE_HEADER: Final = 24
MAX_PACKETS: Final = 1_000_000

_ACCESS_FUNCTIONS: Final = (1, 3)
_VARIABLE_GUID: Final = bytes.fromhex("33d532ede69909429cc02d72cdd998a7")


class PacketType(IntEnum):
    """The type word."""

    RESET = 1
    REQUEST = 2
    REPLY = 3


@dataclass(frozen=True, slots=True)
class Packet:
    """One record that is whole. ``number`` counts every record of the file from 1; ``time`` in seconds."""

    number: int
    time: float
    type: PacketType
    data: bytes


@dataclass(frozen=True, slots=True)
class Skipped:
    """One record that cannot be used, and why."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture file: its whole packets, and what was left out."""

    packets: tuple[Packet, ...]
    skipped: tuple[Skipped, ...]


def read_capture(raw: bytes, *, where: str = "") -> Capture:
    """Read a capture. A record cut by the snap length or by the end of the file is listed, never half parsed.

    Raises:
        BadInput: not a little-endian microsecond pcap of link type 302.
    """
    if len(raw) < PCAP_FILE_HEADER.sizeof():
        raise BadInput(f"{len(raw)} bytes are not a pcap file", where=where)
    header = PCAP_FILE_HEADER.parse(raw)
    if header.magic_number != MAGIC:
        raise BadInput(f"not a classic little-endian pcap file (magic {header.magic_number:#010x})", where=where)
    if header.network != LINKTYPE_EDK2_MM:
        raise BadInput(
            f"pcap of link type {header.network}, wanted {LINKTYPE_EDK2_MM} (EDK2_MM)",
            where=where,
            hint="captures are written by `--pcap`, or by the pcapfile= option of a virtual machine monitor",
        )
    packets: list[Packet] = []
    skipped: list[Skipped] = []
    at, number = PCAP_FILE_HEADER.sizeof(), 0
    fixed = PCAP_RECORD_HEADER.sizeof()
    while at < len(raw):
        number += 1
        if number > MAX_PACKETS:
            raise BadInput(f"more than {MAX_PACKETS} records", where=where)
        if len(raw) - at < fixed:
            skipped.append(Skipped(number, "record header cut by the end of the file"))
            break
        record = PCAP_RECORD_HEADER.parse(raw[at : at + fixed])
        body = raw[at + fixed : at + fixed + record.incl_len]
        if len(body) < record.incl_len:
            skipped.append(Skipped(number, "record cut by the end of the file"))
            break
        at += fixed + record.incl_len
        packet = _packet(number, record.ts_sec + record.ts_usec / 1e6, body, record.orig_len)
        (packets if isinstance(packet, Packet) else skipped).append(packet)  # type: ignore[arg-type]
    return Capture(tuple(packets), tuple(skipped))


def _packet(number: int, time: float, body: bytes, original: int) -> Packet | Skipped:
    if len(body) < original:
        return Skipped(number, f"cut by the snap length: {len(body)} of {original} bytes")
    if len(body) < 4:
        return Skipped(number, f"no type word in {len(body)} bytes")
    word = int.from_bytes(body[:4], "little")
    if word not in list(PacketType):
        return Skipped(number, f"unknown type {word}")
    kind, data = PacketType(word), body[4:]
    if kind is not PacketType.RESET and len(data) < COMMUNICATE_HEADER:
        return Skipped(number, f"{len(data)} bytes hold no message header")
    return Packet(number, time, kind, data)


class CaptureWriter:
    """Writes packets as they happen, each flushed. ``clock`` gives seconds since the epoch.

    ``redact``: the data of GetVariable replies and SetVariable requests is written as zeros (P38).
    """

    def __init__(self, out: BinaryIO, clock: Callable[[], float], *, redact: bool = False) -> None:
        self._out = out
        self._clock = clock
        self._redact = redact
        out.write(
            PCAP_FILE_HEADER.build(
                {
                    "magic_number": MAGIC,
                    "version_major": 2,
                    "version_minor": 4,
                    "thiszone": 0,
                    "sigfigs": 0,
                    "snaplen": SNAP_LENGTH,
                    "network": LINKTYPE_EDK2_MM,
                }
            )
        )
        out.flush()

    def reset(self) -> None:
        """Record a platform reset."""
        self._write(PacketType.RESET, b"")

    def request(self, data: bytes) -> None:
        """Record a request: header and message."""
        self._write(PacketType.REQUEST, redacted(data) if self._redact else data)

    def reply(self, data: bytes) -> None:
        """Record a reply: header and message."""
        self._write(PacketType.REPLY, redacted(data) if self._redact else data)

    def _write(self, kind: PacketType, data: bytes) -> None:
        body = kind.to_bytes(4, "little") + data
        kept = body[:SNAP_LENGTH]
        now = self._clock()
        seconds = int(now)
        head = PCAP_RECORD_HEADER.build(
            {
                "ts_sec": seconds & 0xFFFFFFFF,
                "ts_usec": int((now - seconds) * 1e6),
                "incl_len": len(kept),
                "orig_len": len(body),
            }
        )
        self._out.write(head + kept)
        self._out.flush()


def redacted(data: bytes) -> bytes:
    """``data`` with what follows the name of a GetVariable or SetVariable message zeroed; sizes stay."""
    fixed = COMMUNICATE_HEADER + 16 + 36
    if data[:16] != _VARIABLE_GUID or len(data) < COMMUNICATE_HEADER + 8:
        return data
    if int.from_bytes(data[24:32], "little") not in _ACCESS_FUNCTIONS or len(data) < fixed:
        return data
    name_size = int.from_bytes(data[64:72], "little")
    start = min(len(data), fixed + name_size)
    return data[:start] + bytes(len(data) - start)


def join_captures(parts: Iterable[bytes], out: BinaryIO) -> None:
    """Write the whole packets of ``parts`` to one capture, times kept. Raises ``BadInput`` as `read_capture`."""
    time = 0.0
    writer = CaptureWriter(out, clock=lambda: time)
    for part in parts:
        for packet in read_capture(part).packets:
            time = packet.time
            if packet.type is PacketType.RESET:
                writer.reset()
            elif packet.type is PacketType.REQUEST:
                writer.request(packet.data)
            else:
                writer.reply(packet.data)
