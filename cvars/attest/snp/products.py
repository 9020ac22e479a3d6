"""Product lines and what depends on them: the two layouts of a TCB version. Source: `attestation` 2.1, 2.2."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

Line: TypeAlias = Literal["Milan", "Genoa", "Turin"]
LINES: Final[tuple[Line, ...]] = ("Milan", "Genoa", "Turin")
NEXT_LINE: Final = "the line after Turin"

#: TCB layouts: component name by byte. Other bytes are reserved.
_OLD: Final = {0: "bootloader", 1: "tee", 6: "snp", 7: "microcode"}
_TURIN: Final = {0: "fmc", 1: "bootloader", 2: "tee", 3: "snp", 7: "microcode"}


def layout(line: Line) -> dict[int, str]:
    """Which byte of a TCB version is which component."""
    return _TURIN if line == "Turin" else _OLD


def components(line: Line) -> tuple[str, ...]:
    """The names of a line's TCB components."""
    return tuple(layout(line).values())


@dataclass(frozen=True, slots=True)
class Tcb:
    """A TCB version. Compared component by component, never as one integer. ``fmc`` is None before Turin."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    @staticmethod
    @lru_cache(maxsize=256)
    def parse(raw: bytes, line: Line) -> "Tcb":
        """Read the 8 bytes in ``line``'s layout."""
        return Tcb(**{name: raw[at] for at, name in layout(line).items()})

    def to_bytes(self) -> bytes:
        """The 8 bytes, in the layout that has ``fmc`` or the one that has not."""
        out = bytearray(8)
        for at, name in (_OLD if self.fmc is None else _TURIN).items():
            out[at] = getattr(self, name)
        return bytes(out)

    def at_least(self, floor: "Tcb") -> bool:
        """Every component is at least ``floor``'s."""
        return (
            self.bootloader >= floor.bootloader
            and self.tee >= floor.tee
            and self.snp >= floor.snp
            and self.microcode >= floor.microcode
            and (self.fmc or 0) >= (floor.fmc or 0)
        )

    def as_json(self) -> dict[str, int]:
        """The components by name, ``fmc`` only where the line has it."""
        first = {} if self.fmc is None else {"fmc": self.fmc}
        return first | {
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }

    def __str__(self) -> str:
        return ".".join(str(part) for part in self.as_json().values())


def line_of_cpuid(family: int, model: int) -> Line | None:
    """The line whose processors have this CPUID family and model (2.2); None when its root is not pinned."""
    if family == 0x19:
        if model <= 0x0F:
            return "Milan"
        if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return "Genoa"
    if family == 0x1A and model <= 0x11:
        return "Turin"
    return None
