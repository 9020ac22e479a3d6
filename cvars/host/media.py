"""The host's storage, with every fault a hostile or broken one can have. For tests, the lab and attacks.

`FaultyMedium` keeps what readers see and what would survive a power cut apart, so that a test can enumerate
the images after a crash. `NorMedium` is flash: programming clears bits, only erasing sets them.
Source: sealed-store section 3 (T8..T15, T26) and section 5 items 2, 4 and 5.
"""

import errno
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cvars.store.medium import MemoryMedium

SECTOR: Final = 512
NOR_BLOCK: Final = 4096


class PowerLoss(BaseException):
    """The machine stops here. Not an `Exception`: nothing may handle it."""


class Fault(Enum):
    """What one call does instead of its work. Names of a call: read, write, flush."""

    SHORT = "transfer only half of what was asked (at least one byte)"
    STALL = "transfer nothing, once"
    INTERRUPT = "EINTR once, nothing done"
    ERROR = "EIO, nothing done"
    ERROR_AFTER = "EIO, although the work was done"
    DROP = "claim success, do nothing"
    MISDIRECT = "write to another place"
    DUPLICATE = "write, and write the same to another place"
    DELAY = "write only after the next flush"
    LIE = "a flush that claims success and persists nothing"
    CRASH = "power loss before the work"
    CRASH_AFTER = "power loss after the work, before it is durable"


@dataclass(slots=True)
class FaultyMedium:
    """An image with a volatile cache. ``faults``: by number of the call, counted over writes and flushes.

    Attributes:
        seen: what reads return.
        durable: what a power cut leaves for sure.
        flying: sectors written since the last honest flush, by offset.
    """

    image: bytes
    faults: Mapping[int, Fault] = field(default_factory=dict)
    read_faults: Mapping[int, Fault] = field(default_factory=dict)
    elsewhere: int = 0
    sizes: tuple[int, ...] = ()
    seen: bytearray = field(init=False)
    durable: bytearray = field(init=False)
    flying: dict[int, bytes] = field(init=False, default_factory=dict)
    calls: int = field(init=False, default=0)
    reads: int = field(init=False, default=0)
    trace: list[tuple[str, int, int]] = field(init=False, default_factory=list)
    _delayed: list[tuple[int, bytes]] = field(init=False, default_factory=list)
    _asked_size: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.seen = bytearray(self.image)
        self.durable = bytearray(self.image)

    # --- Medium -----------------------------------------------------------------------------------

    def size(self) -> int:
        """The size, or the next of ``sizes`` while there are some."""
        self._asked_size += 1
        if self._asked_size <= len(self.sizes):
            return self.sizes[self._asked_size - 1]
        return len(self.seen)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the cache, or a fault."""
        fault = self.read_faults.get(self.reads)
        self.reads += 1
        self._raise(fault)
        if fault is Fault.STALL:
            return b""
        if fault is Fault.SHORT:
            length = max(1, length // 2)
        return bytes(self.seen[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write into the cache, or do what the script says."""
        data = bytes(data)
        fault = self._next("write", offset, len(data))
        if fault is Fault.SHORT:
            data = data[: max(1, len(data) // 2)]
        if fault is Fault.STALL:
            return 0
        if offset + len(data) > len(self.seen):
            raise OSError(errno.ENOSPC, "behind the end of the device")
        if fault is Fault.DROP:
            return len(data)
        if fault is Fault.DELAY:
            self._delayed.append((offset, data))
            return len(data)
        if fault is not Fault.MISDIRECT:
            self._put(offset, data)
        if fault in (Fault.MISDIRECT, Fault.DUPLICATE):
            other = self.elsewhere % (len(self.seen) - len(data) + 1)
            self._put(other, data)
        self._after(fault)
        return len(data)

    def flush(self) -> None:
        """Make everything durable, or claim to."""
        fault = self._next("flush", 0, 0)
        if fault is not Fault.LIE:
            self.durable[:] = self.seen
            self.flying.clear()
        delayed, self._delayed = self._delayed, []
        for offset, data in delayed:
            self._put(offset, data)
        self._after(fault)

    def close(self) -> None:
        """Nothing to release."""

    # --- after a power cut ------------------------------------------------------------------------

    def survivors(self, rng: random.Random, *, exhaustive_to: int = 6, samples: int = 8) -> Iterator[bytes]:
        """Images that a power cut now may leave.

        Every subset of the sectors in flight when there are at most ``exhaustive_to``, else all prefixes and
        some random subsets; and each time one with garbage in the last sector that did not arrive.
        """
        sectors = sorted(self.flying)
        chosen: list[tuple[int, ...]]
        if len(sectors) <= exhaustive_to:
            chosen = [c for n in range(len(sectors) + 1) for c in itertools.combinations(sectors, n)]
        else:
            chosen = [tuple(sectors[:n]) for n in range(0, len(sectors) + 1, max(1, len(sectors) // 12))]
            chosen += [
                tuple(s for s in sectors if rng.random() < share)
                for share in (0.1, 0.5, 0.9)
                for _ in range(samples // 3 + 1)
            ]
        for arrived in chosen:
            yield self._survivor(arrived)
        if sectors:
            torn = bytearray(self._survivor(tuple(sectors[:-1])))
            torn[sectors[-1] : sectors[-1] + SECTOR] = rng.randbytes(SECTOR)
            yield bytes(torn)

    def _survivor(self, arrived: tuple[int, ...]) -> bytes:
        image = bytearray(self.durable)
        for at in arrived:
            image[at : at + SECTOR] = self.flying[at]
        return bytes(image)

    # --- inside -----------------------------------------------------------------------------------

    def _put(self, offset: int, data: bytes) -> None:
        self.seen[offset : offset + len(data)] = data
        first = offset // SECTOR * SECTOR
        for at in range(first, offset + len(data), SECTOR):
            self.flying[at] = bytes(self.seen[at : at + SECTOR])

    def _next(self, what: str, offset: int, length: int) -> Fault | None:
        fault = self.faults.get(self.calls)
        self.calls += 1
        self.trace.append((what, offset, length))
        self._raise(fault)
        return fault

    def _raise(self, fault: Fault | None) -> None:
        if fault is Fault.INTERRUPT:
            raise InterruptedError(errno.EINTR, "interrupted")
        if fault is Fault.ERROR:
            raise OSError(errno.EIO, "Input/output error")
        if fault is Fault.CRASH:
            raise PowerLoss

    def _after(self, fault: Fault | None) -> None:
        if fault is Fault.ERROR_AFTER:
            raise OSError(errno.EIO, "Input/output error")
        if fault is Fault.CRASH_AFTER:
            raise PowerLoss


class NorMedium(MemoryMedium):
    """NOR flash in memory: a write that would set a bit fails, and whole blocks are erased."""

    def __init__(self, image: bytes | bytearray) -> None:
        super().__init__(image)
        self.erased: dict[int, int] = {}

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Program cells. EIO when a bit would have to be set."""
        data = bytes(data)
        was = int.from_bytes(self.image[offset : offset + len(data)], "little")
        new = int.from_bytes(data, "little")
        if new & ~was:
            raise OSError(errno.EIO, "a cleared bit cannot be set without an erase")
        return super().write(offset, data)

    def erase(self, offset: int, length: int) -> None:
        """Set all bits of whole blocks."""
        if offset % NOR_BLOCK or length % NOR_BLOCK:
            raise OSError(errno.EINVAL, "only whole blocks can be erased")
        self.image[offset : offset + length] = b"\xff" * length
        for block in range(offset, offset + length, NOR_BLOCK):
            self.erased[block] = self.erased.get(block, 0) + 1
