"""Guest-physical memory as the SVSM sees it: ranges, rights, single-copy reads.

Every read hands out private ``bytes`` made in one pass; no view of guest memory leaves this module, and
nobody parses anything that the guest can still change (S22, R1, P01). Sizes and addresses in bytes.
Source: svsm-calls 2.2, 2.3, 2.4.
"""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from threading import RLock
from typing import Final

from svsm_bridge.abi import CA_RESERVED, PAGE, SVSM_BASE, SVSM_SIZE
from svsm_bridge.errors import GuestFault, InvalidAddress
from svsm_bridge.pages import CA_MARK, PRIVATE, Kind, PageTable, R, Region, State, W
from svsm_bridge.watch import FLAG_READ, FLAG_WRITE, LOCKED_READ, READ, RIGHTS, WRITE, Access, Observer

_CLOSED_TO_VMPL0: Final = PRIVATE | State.UNMAPPED

#: rights bytes that satisfy a need, to be deleted from a slice of `Region.rights`: what stays is refused
_ENOUGH: Final = {
    need: bytes(b for b in range(256) if b & need == need and not b & CA_MARK) for need in (R, W, R | W)
}

F_ADD_SEALS: Final = getattr(fcntl, "F_ADD_SEALS", 1033)
F_GET_SEALS: Final = getattr(fcntl, "F_GET_SEALS", 1034)
F_SEAL_SHRINK: Final = 2
F_SEAL_GROW: Final = 4


def sealed_memfd(size: int, name: str = "guest-ram") -> int:
    """A memfd of ``size`` bytes that nobody can shrink or grow: what MEM_ADD asks for (S60)."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
    return fd


def page_pieces(gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut a range at page borders: (address, bytes)."""
    end = gpa + size
    while gpa < end:
        piece = min(end, (gpa | (PAGE - 1)) + 1) - gpa
        yield gpa, piece
        gpa += piece


def _unmap(buffer: mmap.mmap) -> None:
    with suppress(BufferError):  # a frame of it is mapped elsewhere: goes with the last view
        buffer.close()


class GuestMemory:
    """All memory of one guest. ``rights`` is the rights lock of S24.

    Raises ``InvalidAddress`` from every access that S20 or S21 refuses, ``GuestFault`` when a page goes away
    while it is copied (S27).
    """

    def __init__(
        self,
        *,
        phys_bits: int = 48,
        c_bit: int = 51,
        svsm: tuple[int, int] = (SVSM_BASE, SVSM_SIZE),
        observer: Observer | None = None,
    ) -> None:
        self.phys_bits = phys_bits
        self.c_bit = c_bit
        self.svsm_base, self.svsm_size = svsm
        self.rmp = PageTable()
        self.rights = RLock()
        self.observer = observer
        self._svsm_frames: dict[int, bytearray] = {}
        self._count = count()
        self.closed = False

    # --- ranges ------------------------------------------------------------------------------------

    def add(
        self, gpa: int, size: int, *, kind: Kind = Kind.RAM, private: bool = True, vmpl: int = 2,
        fd: int | None = None, offset: int = 0,
    ) -> Region:  # fmt: skip
        """Add a range backed by ``fd`` (mapped shared; not closed) or by anonymous memory.

        ``private``: assigned and validated, with all rights for ``vmpl``; else shared with the host.

        Raises:
            InvalidAddress: not page aligned, beyond the physical width, or overlapping another range or the
                SVSM region.
        """
        if size <= 0 or (gpa | size) % PAGE or gpa < 0 or gpa + size > 1 << self.phys_bits:
            raise InvalidAddress(f"range {gpa:#x}+{size:#x} is not page aligned, empty or too high")
        if gpa < self.svsm_base + self.svsm_size and self.svsm_base < gpa + size:
            raise InvalidAddress(f"range {gpa:#x}+{size:#x} overlaps the SVSM region")
        with self.rights:
            for other in self.rmp.regions:
                if gpa < other.base + other.size and other.base < gpa + size:
                    raise InvalidAddress(f"range {gpa:#x}+{size:#x} overlaps {other.base:#x}+{other.size:#x}")
            backing = mmap.mmap(-1 if fd is None else fd, size, mmap.MAP_SHARED, offset=offset)
            region = Region(gpa, size, kind, backing, private=private, vmpl=vmpl)
            self.rmp.regions.append(region)
        return region

    def remove(self, gpa: int, size: int) -> None:
        """Take one range away, exactly as it was added.

        Raises:
            InvalidAddress: no such range, or a vCPU's calling area or VMSA lies in it.
        """
        with self.rights:
            for region in self.rmp.regions:
                if (region.base, region.size) == (gpa, size):
                    if any(state & (State.CA | State.HELD) for state in region.state):
                        raise InvalidAddress(f"range {gpa:#x} holds a calling area or a VMSA")
                    self.rmp.regions.remove(region)
                    region.frames.clear()
                    _unmap(region.buffer)
                    return
        raise InvalidAddress(f"no range {gpa:#x}+{size:#x}")

    def close(self) -> None:
        """Unmap everything."""
        with self.rights:
            self.closed = True
            for region in self.rmp.regions:
                region.frames.clear()
            for region in self.rmp.regions:
                _unmap(region.buffer)
            self.rmp.regions.clear()

    def svsm_frame(self, gpa: int) -> memoryview:
        """The SVSM's own frame at ``gpa``: memory that no guest address reaches, unless the hypervisor lies."""
        if not self.svsm_base <= gpa < self.svsm_base + self.svsm_size:
            raise InvalidAddress(f"{gpa:#x} is not SVSM memory")
        return memoryview(self._svsm_frames.setdefault(gpa // PAGE, bytearray(PAGE)))

    def frame(self, gpa: int) -> memoryview:
        """The frame behind a guest page, as the hypervisor can hand it to `PageTable.remap`."""
        region, index = self.rmp.entry(gpa)
        return region.frames.get(index) or memoryview(region.buffer)[index * PAGE : (index + 1) * PAGE]

    # --- checks ------------------------------------------------------------------------------------

    def _checked(self, gpa: int, size: int, vmpl: int, need: int) -> tuple[Region, int]:
        region = self.rmp.regions[0] if self.rmp.regions else None
        offset = gpa - region.base if region is not None else -1
        if region is None or not 0 <= offset < offset + size <= region.size:
            region, offset = self.rmp.find(gpa, size)
        first, last = offset >> 12, (offset + size - 1) >> 12
        rights = region.rights[vmpl]
        if first == last:
            enough = rights[first] & (need | CA_MARK) == need
        else:
            enough = not rights[first : last + 1].translate(None, _ENOUGH[need])
        if not enough:
            self._examine(region, gpa, size, vmpl, need)
        return region, offset

    def _examine(self, region: Region, gpa: int, size: int, vmpl: int, need: int) -> None:
        """Look page by page: a calling area is allowed from its byte 8 on, everything else is refused."""
        for at, piece in page_pieces(gpa, size):
            index = (at - region.base) // PAGE
            rights = region.rights[vmpl][index]
            if rights & need != need:
                raise InvalidAddress(f"page {at:#x} is not private or VMPL{vmpl} lacks rights {need}")
            if rights & CA_MARK and at % PAGE < CA_RESERVED and piece:
                raise InvalidAddress(f"{at:#x} lies in the first bytes of a calling area")

    def check(self, gpa: int, size: int, *, vmpl: int, need: int) -> None:
        """S20 and S21 for a whole range, without touching a byte of it."""
        with self.rights:
            self._checked(gpa, size, vmpl, need)

    def is_ram(self, gpa: int) -> bool:
        """Guest RAM that is neither a calling area nor a VMSA, shared or not."""
        with self.rights:
            try:
                region, index = self.rmp.entry(gpa)
            except InvalidAddress:
                return False
            return region.kind is Kind.RAM and not region.state[index] & (State.CA | State.HELD | State.VMSA)

    # --- the guest's bytes -------------------------------------------------------------------------

    def read(self, gpa: int, size: int, *, vmpl: int, caller: object = None) -> bytes:
        """Copy ``size`` bytes in one pass into memory that the guest cannot reach (S20-S23)."""
        if self.observer is not None:
            return self._read_watched(gpa, size, vmpl, caller)
        with self.rights:
            region, offset = self._checked(gpa, size, vmpl, R)
            if region.frames:
                return b"".join(self._piece(region, at, n) for at, n in page_pieces(gpa, size))
            return region.buffer[offset : offset + size]

    def write(self, gpa: int, data: bytes, *, vmpl: int, caller: object = None) -> None:
        """Copy ``data`` out; nothing is written unless the whole range passes (S20-S25)."""
        if self.observer is not None:
            self._write_watched(gpa, data, vmpl, caller)
            return
        with self.rights:
            region, offset = self._checked(gpa, len(data), vmpl, W)
            if region.frames:
                for at, n in page_pieces(gpa, len(data)):
                    self._put(region, at, data[at - gpa : at - gpa + n])
            else:
                region.buffer[offset : offset + len(data)] = data

    def _piece(self, region: Region, gpa: int, size: int) -> bytes:
        """Bytes of one page, wherever its frame is."""
        offset = gpa - region.base
        frame = region.frames.get(offset // PAGE)
        if frame is not None:
            return bytes(frame[offset % PAGE : offset % PAGE + size])
        return region.buffer[offset : offset + size]

    def _put(self, region: Region, gpa: int, data: bytes) -> None:
        offset = gpa - region.base
        frame = region.frames.get(offset // PAGE)
        if frame is not None:
            frame[offset % PAGE : offset % PAGE + len(data)] = data
        else:
            region.buffer[offset : offset + len(data)] = data

    def _watched(self, op: str, gpa: int, size: int, caller: object, act: Callable[[], bytes]) -> bytes:
        observer = self.observer
        if observer is None:
            return act()
        vcpu, call = getattr(caller, "vcpu_id", -1), getattr(caller, "number", -1)
        access = Access(next(self._count), op, gpa, size, vcpu, call, caller)
        observer.before(access)
        try:
            done = act()
        except InvalidAddress:
            observer.after(access, ok=False)
            raise
        observer.after(access, ok=True)
        return done

    def _read_watched(self, gpa: int, size: int, vmpl: int, caller: object) -> bytes:
        """Page by page, so that an adversary can act between any two pages."""
        with self.rights:
            self._checked(gpa, size, vmpl, R)

        def one(at: int, n: int) -> bytes:
            with self.rights:
                try:
                    region, _ = self._checked(at, n, vmpl, R)
                except InvalidAddress as gone:
                    raise GuestFault(f"page {at:#x} went away during a copy") from gone
                return self._piece(region, at, n)

        return b"".join(
            self._watched(READ, at, n, caller, lambda at=at, n=n: one(at, n))  # type: ignore[misc]
            for at, n in page_pieces(gpa, size)
        )

    def _write_watched(self, gpa: int, data: bytes, vmpl: int, caller: object) -> None:
        with self.rights:
            self._checked(gpa, len(data), vmpl, W)

        def one(at: int, n: int) -> bytes:
            with self.rights:
                try:
                    region, _ = self._checked(at, n, vmpl, W)
                except InvalidAddress as gone:
                    raise GuestFault(f"page {at:#x} went away during a copy") from gone
                self._put(region, at, data[at - gpa : at - gpa + n])
            return b""

        for at, n in page_pieces(gpa, len(data)):
            self._watched(WRITE, at, n, caller, lambda at=at, n=n: one(at, n))  # type: ignore[misc]

    # --- VMPL0's own accesses ----------------------------------------------------------------------

    def _private(self, gpa: int, size: int) -> Region:
        region, offset = self.rmp.find(gpa, size)
        for index in range(offset // PAGE, (offset + size - 1) // PAGE + 1):
            if region.state[index] & _CLOSED_TO_VMPL0 != PRIVATE:
                raise GuestFault(f"page {region.base + index * PAGE:#x} is not private")
        return region

    def load_flag(self, gpa: int, caller: object = None) -> int:
        """Read byte 0 of a calling area, once (S9)."""
        if self.observer is None:
            with self.rights:
                region, offset = self.rmp.find(gpa)
                if region.state[offset // PAGE] & _CLOSED_TO_VMPL0 == PRIVATE and not region.frames:
                    return region.buffer[offset]
        return self._watched(FLAG_READ, gpa, 1, caller, lambda: self.svsm_read(gpa, 1))[0]

    def store_u8(self, gpa: int, value: int, caller: object = None) -> None:
        """Store one byte and no other (S9)."""
        if self.observer is None:
            with self.rights:
                region, offset = self.rmp.find(gpa)
                if region.state[offset // PAGE] & _CLOSED_TO_VMPL0 == PRIVATE and not region.frames:
                    region.buffer[offset] = value
                    return

        def put() -> bytes:
            self.svsm_write(gpa, bytes([value]))
            return b""

        self._watched(FLAG_WRITE, gpa, 1, caller, put)

    def svsm_read(self, gpa: int, size: int) -> bytes:
        """VMPL0 reads a private page whatever the rights of lower levels."""
        with self.rights:
            region = self._private(gpa, size)
            return b"".join(self._piece(region, at, n) for at, n in page_pieces(gpa, size))

    def svsm_write(self, gpa: int, data: bytes) -> None:
        """VMPL0 writes a private page."""
        with self.rights:
            region = self._private(gpa, len(data))
            for at, n in page_pieces(gpa, len(data)):
                self._put(region, at, data[at - gpa : at - gpa + n])

    def svsm_copy(self, gpa: int, size: int, caller: object) -> bytes:
        """Copy a private page that the guest can no longer write, seen by the observer as a read (S22)."""
        return self._watched(LOCKED_READ, gpa, size, caller, lambda: self.svsm_read(gpa, size))

    def note_rights(self, gpa: int, size: int, caller: object) -> None:
        """Rights of a range are about to change: tell the observer."""
        if self.observer is not None:
            self._watched(RIGHTS, gpa, size, caller, bytes)

    # --- a device, which has no notion of page rights (svsm-calls 5) -------------------------------

    def device_read(self, gpa: int, size: int, caller: object) -> bytes:
        """DMA from guest memory, copied once; any range that exists.

        Raises:
            InvalidAddress: not inside one range.
        """
        return self._watched(READ, gpa, size, caller, lambda: self.host_read(gpa, size))

    def device_write(self, gpa: int, data: bytes, caller: object) -> None:
        """DMA to guest memory."""

        def put() -> bytes:
            self.host_write(gpa, data)
            return b""

        self._watched(WRITE, gpa, len(data), caller, put)

    # --- somebody outside: tests, the hypervisor, another process that maps the backing -------------

    def host_read(self, gpa: int, size: int) -> bytes:
        """Read the frames behind a range, whatever the rights. Not for the SVSM."""
        with self.rights:
            region, _ = self.rmp.find(gpa, size)
            return b"".join(self._piece(region, at, n) for at, n in page_pieces(gpa, size))

    def host_write(self, gpa: int, data: bytes) -> None:
        """Write the frames behind a range, whatever the rights. Not for the SVSM."""
        with self.rights:
            region, _ = self.rmp.find(gpa, len(data))
            for at, n in page_pieces(gpa, len(data)):
                self._put(region, at, data[at - gpa : at - gpa + n])
