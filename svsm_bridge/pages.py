"""Who owns a page of guest memory and who may touch it: the reverse map as hardware keeps it.

Per 4 KiB page one state byte, one rights byte for each of VMPL1..3, and, derived from both, the rights that
count right now. VMPL0 may touch every private page: hardware does not stop it, so the *service* must (2.1).
Source: APM volume 3, PVALIDATE, RMPADJUST, RMPUPDATE, PSMASH; svsm-calls 2.1, 2.3.
"""

import mmap
import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from svsm_bridge.abi import LARGE, PAGE
from svsm_bridge.errors import CoreFailure, GuestFault, InvalidAddress

R: Final = 1
W: Final = 2
XU: Final = 4
XS: Final = 8
RWX: Final = R | W | XU | XS

#: marks a page with a calling area among the rights that count
CA_MARK: Final = 0x80

LARGE_PAGES: Final = LARGE // PAGE


class Kind(IntEnum):
    """What a range of guest addresses is."""

    NONE = 0
    RAM = 1
    ROM = 2
    MMIO = 3


class State:
    """Bits of the state byte of a page; plain integers, since every access looks at them."""

    ASSIGNED: Final = 1
    VALIDATED: Final = 2
    VMSA: Final = 4
    LARGE: Final = 8
    CA: Final = 16  # some vCPU's calling area
    HELD: Final = 32  # some vCPU's VMSA, whatever the hypervisor did to the entry
    UNMAPPED: Final = 64


PRIVATE: Final = 3  # assigned and validated
_ROLES: Final = 16 | 32
_HIDDEN: Final = 4 | 32 | 64  # pages that no guest level may use, whatever its rights
_WITH_ROLE: Final = re.compile(b"[" + re.escape(bytes(b for b in range(256) if b & _ROLES)) + b"]", re.DOTALL)
_UNMAP: Final = bytes(b | 64 for b in range(256))
_ONLY_MARK: Final = bytes(b & CA_MARK for b in range(256))


class Region:
    """One range of guest addresses with its backing and the state of its pages."""

    __slots__ = ("base", "buffer", "first", "frames", "kind", "pages", "perm", "rights", "size", "state")

    def __init__(self, base: int, size: int, kind: Kind, buffer: mmap.mmap, *, private: bool, vmpl: int) -> None:
        self.base = base
        self.size = size
        self.kind = kind
        self.buffer = buffer
        self.first = base // PAGE
        self.pages = size // PAGE
        #: page index -> another frame that the hypervisor put there (a writable buffer of 4 KiB)
        self.frames: dict[int, memoryview] = {}
        usable = private and kind == Kind.RAM
        self.state = bytearray(bytes([PRIVATE if private else 0]) * self.pages)
        self.perm = [bytearray() for _ in range(4)]
        self.rights = [bytearray() for _ in range(4)]
        for level in range(1, 4):
            granted = RWX if private and level == vmpl else 0
            self.perm[level] = bytearray(bytes([granted]) * self.pages)
            self.rights[level] = bytearray(bytes([granted if usable else 0]) * self.pages)

    def refresh(self, first: int, last: int) -> None:
        """Derive the rights that count for pages ``first`` up to, not including, ``last``."""
        for index in range(first, last):
            state = self.state[index]
            usable = state & PRIVATE == PRIVATE and not state & _HIDDEN and self.kind is Kind.RAM
            mark = CA_MARK if state & State.CA else 0
            for level in range(1, 4):
                self.rights[level][index] = self.perm[level][index] | mark if usable else mark

    def set_range(self, first: int, last: int, state: int) -> None:
        """Give pages the RMP bits ``state`` and no rights for VMPL1..3; roles stay."""
        count = last - first
        roles = [(first + m.start(), m.group()[0] & _ROLES) for m in _WITH_ROLE.finditer(self.state[first:last])]
        self.state[first:last] = bytes([state]) * count
        for level in range(1, 4):
            self.perm[level][first:last] = bytes(count)
            self.rights[level][first:last] = bytes(count)
        for index, role in roles:
            self.state[index] |= role
            self.refresh(index, index + 1)

    def hide(self, first: int, last: int) -> None:
        """Mark pages as unmapped: nobody has rights until they are assigned again."""
        self.state[first:last] = self.state[first:last].translate(_UNMAP)
        for level in range(1, 4):
            self.rights[level][first:last] = self.rights[level][first:last].translate(_ONLY_MARK)


class PageTable:
    """All ranges of one guest, and the operations of guest hardware and hypervisor on their pages."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def find(self, gpa: int, size: int = 1) -> tuple[Region, int]:
        """The region that holds the whole range, and the offset in it.

        Regions lie below the C-bit and never wrap, so every bad range of S20 ends here.

        Raises:
            InvalidAddress: not inside one region.
        """
        for region in self.regions:
            offset = gpa - region.base
            if 0 <= offset < region.size:
                if size <= 0 or offset + size > region.size:
                    break
                return region, offset
        raise InvalidAddress(f"{size:#x} bytes at {gpa:#x} are not inside one memory range")

    def entry(self, gpa: int) -> tuple[Region, int]:
        """Region and page index of ``gpa``."""
        region, offset = self.find(gpa)
        return region, offset // PAGE

    def state_of(self, gpa: int) -> int:
        """The state byte of a page, 0 outside of every range."""
        try:
            region, index = self.entry(gpa)
        except InvalidAddress:
            return 0
        return region.state[index]

    # --- guest hardware at VMPL0 -------------------------------------------------------------------

    def _span(self, gpa: int, *, large: bool) -> tuple[Region, int, int]:
        region, offset = self.find(gpa, LARGE if large else PAGE)
        first = offset // PAGE
        return region, first, first + (LARGE_PAGES if large else 1)

    def pvalidate(self, gpa: int, *, large: bool, validate: bool) -> int:
        """PVALIDATE: 0, or code 6 (size mismatch) or 0x10 (unchanged).

        Raises:
            GuestFault: a page is not assigned to the guest or not mapped (the access faults).
        """
        region, first, last = self._span(gpa, large=large)
        for index in range(first, last):
            if region.state[index] & (State.ASSIGNED | State.UNMAPPED) != State.ASSIGNED:
                raise GuestFault(f"page {region.base + index * PAGE:#x} is not the guest's")
        if large and not all(state & State.LARGE for state in region.state[first:last]):
            return CoreFailure.SIZE_MISMATCH
        if not large and region.state[first] & State.LARGE:
            self.smash(gpa)
        changed = False
        for index in range(first, last):
            before = region.state[index]
            after = before | State.VALIDATED if validate else before & ~State.VALIDATED
            changed |= before != after
            region.state[index] = after
        if not validate:
            for level in range(1, 4):
                region.perm[level][first:last] = bytes(last - first)
        region.refresh(first, last)
        return 0 if changed else CoreFailure.UNCHANGED

    def rmpadjust(self, gpa: int, *, large: bool = False, vmpl: int, perm: int, vmsa: bool = False) -> int:
        """RMPADJUST from VMPL0: 0, or code 1 (level), 6 (size mismatch).

        Raises:
            GuestFault: a page is not private or not mapped.
        """
        if not 1 <= vmpl <= 3:
            return CoreFailure.INPUT
        region, first, last = self._span(gpa, large=large)
        for index in range(first, last):
            if region.state[index] & (PRIVATE | State.UNMAPPED) != PRIVATE:
                raise GuestFault(f"page {region.base + index * PAGE:#x} is not private")
        if large and not all(state & State.LARGE for state in region.state[first:last]):
            return CoreFailure.SIZE_MISMATCH
        if not large and region.state[first] & State.LARGE:
            self.smash(gpa)
        for index in range(first, last):
            region.perm[vmpl][index] = perm
            state = region.state[index]
            region.state[index] = state | State.VMSA if vmsa else state & ~State.VMSA
        region.refresh(first, last)
        return 0

    def revoke(self, gpa: int) -> None:
        """A higher level takes all rights of VMPL1..3 to a page away; nothing else changes."""
        region, index = self.entry(gpa)
        for level in range(1, 4):
            region.perm[level][index] = 0
        region.refresh(index, index + 1)

    # --- the hypervisor ----------------------------------------------------------------------------

    def rmpupdate(self, gpa: int, size: int, *, assigned: bool) -> None:
        """Assign pages to the guest, or take them away; both clear `validated` and all rights.

        A range of whole 2 MiB pages becomes 2 MiB entries.
        """
        region, offset = self.find(gpa, size)
        first, last = offset // PAGE, (offset + size) // PAGE
        state = State.ASSIGNED if assigned else 0
        if assigned and gpa % LARGE == 0 and size % LARGE == 0:
            state |= State.LARGE
        for large in self._large_around(region, first, last):
            self._smash(region, large)
        region.set_range(first, last, state)
        self._drop_frames(region, first, last)

    def unmap(self, gpa: int, size: int) -> None:
        """Take pages out of the nested page table: every access faults until they are assigned again."""
        region, offset = self.find(gpa, size)
        region.hide(offset // PAGE, (offset + size) // PAGE)

    def remap(self, gpa: int, frame: memoryview) -> None:
        """Put another frame at ``gpa``: assigned, not validated (the reverse map forgets the old pair)."""
        self.rmpupdate(gpa, PAGE, assigned=True)
        region, index = self.entry(gpa)
        region.frames[index] = frame

    def smash(self, gpa: int) -> None:
        """PSMASH: turn the 2 MiB entry around ``gpa`` into 512 entries of 4 KiB with the same state."""
        region, index = self.entry(gpa)
        self._smash(region, index - (region.first + index) % LARGE_PAGES)

    @staticmethod
    def _smash(region: Region, first: int) -> None:
        for index in range(first, first + LARGE_PAGES):
            region.state[index] &= ~State.LARGE & 0xFF

    @staticmethod
    def _large_around(region: Region, first: int, last: int) -> Iterator[int]:
        """First pages of 2 MiB entries that the range cuts in two."""
        for edge in {first, last}:
            start = edge - (region.first + edge) % LARGE_PAGES
            if start != edge and 0 <= start < region.pages and region.state[start] & State.LARGE:
                yield start

    @staticmethod
    def _drop_frames(region: Region, first: int, last: int) -> None:
        if region.frames:
            for index in [i for i in region.frames if first <= i < last]:
                del region.frames[index]

    # --- roles, kept by the machine ----------------------------------------------------------------

    def claim(self, gpa: int, role: int) -> None:
        """Mark a page as a calling area or as a vCPU's VMSA."""
        region, index = self.entry(gpa)
        region.state[index] |= role
        region.refresh(index, index + 1)

    def release(self, gpa: int, role: int) -> None:
        """Take the mark away."""
        region, index = self.entry(gpa)
        region.state[index] &= ~role & 0xFF
        region.refresh(index, index + 1)
