"""Where things lie in an image: two equal banks, frames, record classes. Source: sealed-store section 6.

All sizes are in bytes. A bank is a 4 KiB header block, a sealed snapshot, then an append-only log.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

HEADER_BYTES: Final = 512
HEADER_BLOCK: Final = 4096
FRAMES: Final = (512, 1024, 2048, 4096)
#: an image is a multiple of 256 frames, at least 256 and at most 8192 of them
FRAME_STEP: Final = 256
MAX_FRAMES: Final = 8192
SMALLEST_IMAGE: Final = FRAMES[0] * FRAME_STEP
LARGEST_IMAGE: Final = FRAMES[-1] * MAX_FRAMES
DEFAULT_IMAGE: Final = 1 << 20
DEFAULT_FRAME: Final = 1024
#: length of a record in frames, by class index
CLASSES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 66)
LARGEST_CLASS: Final = CLASSES[-1]
#: a snapshot part is 16 frames
PART_FRAMES: Final = 16
PART_CLASS: Final = CLASSES.index(PART_FRAMES)
#: prefix 40, inner header 48, tag 16
RECORD_OVERHEAD: Final = 104


@dataclass(frozen=True, slots=True)
class Geometry:
    """An image of ``image_size`` bytes in frames of ``frame`` bytes. Only `of` makes valid ones."""

    image_size: int
    frame: int

    @classmethod
    def of(cls, image_size: int, frame: int) -> "Geometry | None":
        """Return the geometry, or None when no store has it."""
        if frame not in FRAMES:
            return None
        frames, rest = divmod(image_size, frame)
        if rest or frames % FRAME_STEP or not FRAME_STEP <= frames <= MAX_FRAMES:
            return None
        return cls(image_size, frame)

    @property
    def log2_frame(self) -> int:
        """9 to 12."""
        return self.frame.bit_length() - 1

    @property
    def bank_size(self) -> int:
        """Half of the image."""
        return self.image_size // 2

    @property
    def offsets(self) -> tuple[int, int]:
        """Where the banks begin."""
        return (0, self.bank_size)

    def other(self, bank_offset: int) -> int:
        """The other bank's offset."""
        return self.bank_size - bank_offset

    @property
    def part_bytes(self) -> int:
        """Size of a sealed snapshot part."""
        return PART_FRAMES * self.frame

    @property
    def part_payload(self) -> int:
        """Bytes of operations that one snapshot part holds."""
        return self.part_bytes - RECORD_OVERHEAD

    @property
    def parts_per_step(self) -> int:
        """Parts in an eighth of the bank: the steps in which a snapshot's size shows."""
        return self.bank_size // 8 // self.part_bytes

    @property
    def largest_body(self) -> int:
        """Bytes of operations that the largest record holds: the limit of one commit."""
        return LARGEST_CLASS * self.frame - RECORD_OVERHEAD

    @property
    def capacity(self) -> int:
        """Live bytes that the store accepts: bank minus header, largest record and an eighth (SS-23)."""
        return self.bank_size - HEADER_BLOCK - LARGEST_CLASS * self.frame - self.bank_size // 8

    def parts_for(self, operations_bytes: int) -> int:
        """Number of snapshot parts for that many bytes of operations: whole eighths, at least one."""
        used = -(-operations_bytes // self.part_payload)
        return max(1, -(-used // self.parts_per_step)) * self.parts_per_step

    def snapshot_bytes(self, parts: int) -> int:
        """From the end of the header block to the end of SNAPSHOT_END."""
        return parts * self.part_bytes + self.frame

    def class_for(self, body_bytes: int) -> int | None:
        """The smallest class that holds a body of that size; None when none does."""
        frames = -(-(body_bytes + RECORD_OVERHEAD) // self.frame)
        return bisect_left(CLASSES, frames) if frames <= LARGEST_CLASS else None
