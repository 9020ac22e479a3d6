"""The register block of QEMU's `uefi-vars` devices: the same messages by DMA or through a data port.

In a confidential guest both modes pass through memory that the host sees, so this front-end is refused in
production mode. Source: mm-protocol 1.1; svsm-calls 5. Sizes in bytes.
"""

import struct
from enum import IntEnum
from typing import Final

from svsm_bridge.abi import MM_HEADER, MM_HEADER_BYTES
from svsm_bridge.errors import Busy, CallError, InvalidAddress, InvalidParameter, InvalidRequest
from svsm_bridge.machine import Machine
from svsm_bridge.service import UNHURRIED, InternalError, Patience

BLOCK_BYTES: Final = 32
MAGIC: Final = 0x0EF1
BUFFER_LIMIT: Final = 65536


class Register(IntEnum):
    """Offsets in the block."""

    MAGIC = 0x00
    CMD_STS = 0x02
    BUFFER_SIZE = 0x04
    DMA_BUFFER_ADDR_LO = 0x08
    DMA_BUFFER_ADDR_HI = 0x0C
    PIO_BUFFER_TRANSFER = 0x10
    PIO_BUFFER_CRC32C = 0x18
    FLAGS = 0x1C


class Command(IntEnum):
    """Values that CMD_STS takes."""

    RESET = 1
    DMA_MM = 2
    PIO_MM = 3
    PIO_ZERO_OFFSET = 4


class Status(IntEnum):
    """Values that CMD_STS gives."""

    SUCCESS = 0
    BUSY = 1
    ERR_UNKNOWN = 0x10
    ERR_NOT_SUPPORTED = 0x11
    ERR_BAD_BUFFER_SIZE = 0x12


def _table() -> tuple[int, ...]:
    out = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        out.append(crc)
    return tuple(out)


_CRC: Final = _table()


def crc32c(data: bytes | bytearray) -> int:
    """CRC-32C: reflected polynomial 0x82F63B78, initial value and final xor 0xFFFFFFFF."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


#: what may be read or written, and how wide
_WIDTHS: Final = {
    Register.MAGIC: (2,),
    Register.CMD_STS: (2,),
    Register.BUFFER_SIZE: (4,),
    Register.DMA_BUFFER_ADDR_LO: (4,),
    Register.DMA_BUFFER_ADDR_HI: (4,),
    Register.PIO_BUFFER_TRANSFER: (1, 2, 4, 8),
    Register.PIO_BUFFER_CRC32C: (4,),
    Register.FLAGS: (4,),
}


class RegisterDevice:
    """One device of ``machine``. ``use_pio`` is what FLAGS tells firmware.

    Unknown offsets and widths read as 0 and ignore writes, as unassigned device memory does.
    """

    vcpu_id = -1
    number = -1

    def __init__(self, machine: Machine, *, use_pio: bool = False, production: bool = False) -> None:
        if production:
            raise ValueError("the register device passes messages through memory that the host sees")
        self._machine = machine
        self._use_pio = use_pio
        self._patience = Patience()
        self._status = 0
        self._forget()

    def _forget(self) -> None:
        self._size = 0
        self._dma = 0
        self._port = bytearray()
        self._offset = 0

    def read(self, offset: int, width: int) -> int:
        """The guest reads ``width`` bytes at ``offset``."""
        if width not in _WIDTHS.get(offset, ()):  # type: ignore[call-overload]
            return 0
        match offset:
            case Register.MAGIC:
                return MAGIC
            case Register.CMD_STS:
                return self._status
            case Register.BUFFER_SIZE:
                return self._size
            case Register.DMA_BUFFER_ADDR_LO:
                return self._dma & 0xFFFFFFFF
            case Register.DMA_BUFFER_ADDR_HI:
                return self._dma >> 32
            case Register.PIO_BUFFER_TRANSFER:
                at = self._advance(width)
                return 0 if at is None else int.from_bytes(self._port[at : at + width], "little")
            case Register.PIO_BUFFER_CRC32C:
                return crc32c(self._port[: self._offset])
            case _:
                return int(self._use_pio)

    def write(self, offset: int, width: int, value: int) -> None:
        """The guest writes ``width`` bytes at ``offset``."""
        if width not in _WIDTHS.get(offset, ()):  # type: ignore[call-overload]
            return
        value &= (1 << 8 * width) - 1
        match offset:
            case Register.CMD_STS:
                self._status = int(self._command(value))
            case Register.BUFFER_SIZE:
                self._size = min(value, BUFFER_LIMIT)
                self._port = bytearray(self._size)
                self._offset = 0
            case Register.DMA_BUFFER_ADDR_LO:
                self._dma = self._dma >> 32 << 32 | value
            case Register.DMA_BUFFER_ADDR_HI:
                self._dma = value << 32 | self._dma & 0xFFFFFFFF
            case Register.PIO_BUFFER_TRANSFER:
                at = self._advance(width)
                if at is not None:
                    self._port[at : at + width] = value.to_bytes(width, "little")
            case _:
                return

    def _advance(self, width: int) -> int | None:
        """The data port's offset before this access; None and no move behind the end of the buffer."""
        at = self._offset
        if at + width > self._size:
            return None
        self._offset += width
        return at

    def _command(self, command: int) -> Status:
        match command:
            case Command.RESET:
                self._forget()
                return Status.SUCCESS
            case Command.DMA_MM:
                return self._message(dma=True)
            case Command.PIO_MM:
                return self._message(dma=False)
            case Command.PIO_ZERO_OFFSET:
                self._offset = 0
                return Status.SUCCESS
            case _:
                return Status.ERR_NOT_SUPPORTED

    def _message(self, *, dma: bool) -> Status:
        """One MM message; the guest's bytes are copied once, header and body apart (S22)."""
        audit = self._machine.audit
        if audit is not None:
            audit.begin(self)
        try:
            if self._size < MM_HEADER_BYTES:
                return Status.ERR_BAD_BUFFER_SIZE
            header = self._fetch(0, MM_HEADER_BYTES, dma=dma)
            length: int = MM_HEADER.unpack(header)[1]
            if length > self._size - MM_HEADER_BYTES:
                return Status.ERR_BAD_BUFFER_SIZE
            message = self._fetch(MM_HEADER_BYTES, length, dma=dma) if length else b""
            reply = self._machine.service.mm(
                header,
                message,
                turn=UNHURRIED,
                patience=self._patience,
                longest_s=self._machine.call_deadline_s,
            )
            if reply and dma:
                self._machine.memory.device_write(self._dma + MM_HEADER_BYTES, reply, self)
            elif reply:
                self._port[MM_HEADER_BYTES : MM_HEADER_BYTES + len(reply)] = reply
        except InternalError:
            return Status.ERR_UNKNOWN
        except InvalidRequest:
            return Status.ERR_NOT_SUPPORTED
        except InvalidParameter:
            return Status.ERR_BAD_BUFFER_SIZE
        except Busy:
            return Status.BUSY
        except (InvalidAddress, CallError):
            return Status.ERR_UNKNOWN
        finally:
            if audit is not None:
                audit.end(self)
        return Status.SUCCESS

    def _fetch(self, at: int, size: int, *, dma: bool) -> bytes:
        if dma:
            return self._machine.memory.device_read(self._dma + at, size, self)
        return bytes(self._port[at : at + size])


def hardware_info(mmio: int) -> bytes:
    """The record of fw_cfg file `etc/hardware-info` that announces the block at ``mmio``."""
    return struct.pack("<QQQ", 2, 8, mmio)
