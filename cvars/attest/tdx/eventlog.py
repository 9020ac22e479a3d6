"""The TD's event log (CCEL): parsed strictly, replayed into the RTMRs, believed only after that (TDX-RTMR).

Layout: TCG PC Client Platform Firmware Profile, crypto-agile log; register index 1..4 is RTMR0..3 (UEFI 2.10,
"Virtual Platform CC Event Log"), index 0 is MRTD. Little-endian.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SHA384: Final = 0x000C
ALGORITHMS: Final = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32}
EV_NO_ACTION: Final = 3
SPEC_ID: Final = b"Spec ID Event03\0"
MAX_EVENTS: Final = 4096
RTMRS: Final = 4


class EventLogError(ValueError):
    """Not an event log."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry: the register it went into (0 = MRTD, 1..4 = RTMR0..3), its type and SHA-384 digest."""

    register: int
    kind: int
    digest: bytes
    data: bytes


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise EventLogError(f"cut short at {self.at:#x}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    @property
    def rest(self) -> bytes:
        return self.data[self.at :]


def parse(log: bytes) -> list[Event]:
    """Take a log apart; bytes after the last event are zero or FF (the unused rest of the area).

    Raises:
        EventLogError: it is not one.
    """
    reader = _Reader(log)
    _head(reader)
    events: list[Event] = []
    while (rest := reader.rest) and rest.strip(b"\0") and rest.strip(b"\xff"):
        if len(events) == MAX_EVENTS:
            raise EventLogError(f"more than {MAX_EVENTS} events")
        register, kind, count = reader.number(4), reader.number(4), reader.number(4)
        if not 1 <= count <= len(ALGORITHMS):
            raise EventLogError(f"event with {count} digests")
        digests: dict[int, bytes] = {}
        for _ in range(count):
            algorithm = reader.number(2)
            if algorithm not in ALGORITHMS or algorithm in digests:
                raise EventLogError(f"digest of algorithm {algorithm:#x}")
            digests[algorithm] = reader.take(ALGORITHMS[algorithm])
        data = reader.take(reader.number(4))
        if register > RTMRS:
            raise EventLogError(f"event for register {register}")
        if kind == EV_NO_ACTION:
            continue
        if SHA384 not in digests:
            raise EventLogError("event without a SHA-384 digest")
        events.append(Event(register, kind, digests[SHA384], data))
    return events


def _head(reader: _Reader) -> None:
    """The first entry: TCG_PCR_EVENT with a SHA-1 digest of zero and the specification's id."""
    register, kind = reader.number(4), reader.number(4)
    digest, body = reader.take(20), reader.take(reader.number(4))
    if register > RTMRS or kind != EV_NO_ACTION or any(digest) or not body.startswith(SPEC_ID):
        raise EventLogError("no specification id event")


def replay(events: Iterable[Event]) -> tuple[bytes, bytes, bytes, bytes]:
    """RTMR0..3 after all events: SHA-384(old || digest)."""
    registers = [bytes(48)] * RTMRS
    for event in events:
        if event.register:
            index = event.register - 1
            registers[index] = hashlib.sha384(registers[index] + event.digest).digest()
    return (registers[0], registers[1], registers[2], registers[3])


def write(events: Iterable[Event]) -> bytes:
    """A log with SHA-384 digests, as firmware lays it out."""
    algorithms = (1).to_bytes(4, "little") + SHA384.to_bytes(2, "little") + (48).to_bytes(2, "little")
    spec = SPEC_ID + bytes(4) + bytes((0, 2, 0, 2)) + algorithms + b"\0"
    out = (1).to_bytes(4, "little") + EV_NO_ACTION.to_bytes(4, "little") + bytes(20)
    out += len(spec).to_bytes(4, "little") + spec
    for event in events:
        out += event.register.to_bytes(4, "little") + event.kind.to_bytes(4, "little")
        out += (1).to_bytes(4, "little") + SHA384.to_bytes(2, "little") + event.digest
        out += len(event.data).to_bytes(4, "little") + event.data
    return out
