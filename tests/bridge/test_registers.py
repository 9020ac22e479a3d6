"""The register device of QEMU's uefi-vars: MMIO block, DMA and PIO (mm-protocol 1.1)."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svsm_bridge.transports.registers import Command, Register, RegisterDevice, Status, crc32c, hardware_info
from tests.bridge.support import (
    BUFFER,
    EVENTS,
    LOW_END,
    POLICY,
    READ,
    VARIABLES,
    WRITE,
    Box,
    mm,
    note,
    note_reply,
)


class Firmware:
    """What edk2's driver does with the block."""

    def __init__(self, *, pio, size=65536):
        self.box = Box()
        self.device = RegisterDevice(self.box.machine, use_pio=pio)
        self.pio = pio
        assert self.device.read(Register.MAGIC, 2) == 0x0EF1
        self.command(Command.RESET)
        self.device.write(Register.BUFFER_SIZE, 4, size)
        assert self.device.read(Register.FLAGS, 4) == int(pio)
        if not pio:
            self.device.write(Register.DMA_BUFFER_ADDR_LO, 4, BUFFER & 0xFFFFFFFF)
            self.device.write(Register.DMA_BUFFER_ADDR_HI, 4, BUFFER >> 32)

    def command(self, value):
        self.device.write(Register.CMD_STS, 2, value)
        return self.device.read(Register.CMD_STS, 2)

    def mm(self, message, *, width=4):
        """Status, and the same number of bytes afterwards."""
        if not self.pio:
            self.box.poke(BUFFER, message)
            return self.command(Command.DMA_MM), self.box.peek(BUFFER, len(message))
        padded = message.ljust(-(-len(message) // width) * width, b"\0")
        self.command(Command.PIO_ZERO_OFFSET)
        for at in range(0, len(padded), width):
            word = int.from_bytes(padded[at : at + width], "little")
            self.device.write(Register.PIO_BUFFER_TRANSFER, width, word)
        assert self.device.read(Register.PIO_BUFFER_CRC32C, 4) == crc32c(padded)
        status = self.command(Command.PIO_MM)
        self.command(Command.PIO_ZERO_OFFSET)
        out = b"".join(
            self.device.read(Register.PIO_BUFFER_TRANSFER, width).to_bytes(width, "little")
            for _ in range(len(padded) // width)
        )
        assert self.device.read(Register.PIO_BUFFER_CRC32C, 4) == crc32c(out)
        return status, out[: len(message)]


@pytest.fixture(params=["dma", "pio"])
def firmware(request):
    made = Firmware(pio=request.param == "pio")
    yield made
    assert made.box.audit.violations == []


def test_crc32c():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


def test_hardware_info():
    assert hardware_info(0xFEF10000) == bytes.fromhex("0200000000000000 0800000000000000 0000f1fe00000000")


def test_requests_and_replies_as_over_the_svsm(firmware, rng):
    snp = Box()
    corpus = [note(WRITE, b"k", b"value"), note(READ, b"k", bytes(9)), note(READ, b"x", b""),
              mm(POLICY, b"VCPC" + bytes(40)), *(mm(event, b"\0") for event in EVENTS),
              *(note(rng.choice((1, 3, 4)), b"k", rng.randbytes(31)) for _ in range(10))]  # fmt: skip
    for message in corpus:
        status, after = firmware.mm(message)
        assert (status, after) == (Status.SUCCESS, snp.mm(message)[1])


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_each_width_of_the_data_port(width):
    firmware = Firmware(pio=True)
    firmware.mm(note(WRITE, b"k", b"value"), width=width)
    assert note_reply(firmware.mm(note(READ, b"k", bytes(8)), width=width)[1]) == (0, b"value")


@pytest.mark.parametrize(
    ("message", "status"),
    [(mm(UUID(int=1), bytes(32)), Status.ERR_NOT_SUPPORTED),
     (mm(VARIABLES, bytes(15)), Status.ERR_BAD_BUFFER_SIZE),
     (mm(POLICY, bytes(19)), Status.ERR_BAD_BUFFER_SIZE),
     (mm(VARIABLES, b"", length=65513), Status.ERR_BAD_BUFFER_SIZE),
     (mm(VARIABLES, b"", length=(1 << 64) - 1), Status.ERR_BAD_BUFFER_SIZE),
     (mm(VARIABLES, b"", length=(1 << 64) - 24), Status.ERR_BAD_BUFFER_SIZE)],
)  # fmt: skip
def test_errors_leave_the_buffer_alone(firmware, message, status):
    assert firmware.mm(message) == (status, message)


def test_buffers_that_are_missing_or_small(firmware):
    firmware.device.write(Register.BUFFER_SIZE, 4, 23)
    assert firmware.command(Command.DMA_MM) == Status.ERR_BAD_BUFFER_SIZE
    assert firmware.command(Command.PIO_MM) == Status.ERR_BAD_BUFFER_SIZE
    firmware.device.write(Register.BUFFER_SIZE, 4, 0xFFFFFFFF)
    assert firmware.device.read(Register.BUFFER_SIZE, 4) == 65536
    assert firmware.command(9) == Status.ERR_NOT_SUPPORTED
    assert firmware.command(Command.RESET) == Status.SUCCESS
    assert firmware.device.read(Register.BUFFER_SIZE, 4) == 0
    assert firmware.command(Command.DMA_MM) == Status.ERR_BAD_BUFFER_SIZE


def test_the_port_stops_at_the_end_of_its_buffer():
    firmware = Firmware(pio=True, size=32)
    for _ in range(10):
        firmware.device.write(Register.PIO_BUFFER_TRANSFER, 8, 0x1122334455667788)
    assert firmware.device.read(Register.PIO_BUFFER_TRANSFER, 8) == 0
    firmware.command(Command.PIO_ZERO_OFFSET)
    assert firmware.device.read(Register.PIO_BUFFER_TRANSFER, 8) == 0x1122334455667788


def test_dma_to_nowhere():
    firmware = Firmware(pio=False)
    for gpa in (LOW_END, (1 << 64) - 1, 0):
        firmware.device.write(Register.DMA_BUFFER_ADDR_LO, 4, gpa & 0xFFFFFFFF)
        firmware.device.write(Register.DMA_BUFFER_ADDR_HI, 4, gpa >> 32)
        assert firmware.command(Command.DMA_MM) == Status.ERR_UNKNOWN
    assert firmware.device.read(Register.DMA_BUFFER_ADDR_HI, 4) == 0


def test_dma_sees_all_guest_memory():
    """No notion of page rights: that is why production refuses it."""
    firmware = Firmware(pio=False)
    firmware.box.memory.rmp.rmpupdate(BUFFER, 0x1000, assigned=False)
    assert firmware.mm(note(WRITE, b"k", b"v"))[0] == Status.SUCCESS
    with pytest.raises(ValueError, match="host sees"):
        RegisterDevice(firmware.box.machine, production=True)


def test_an_internal_error_and_a_busy_store(firmware, monkeypatch):
    def broken(*_):
        raise KeyError

    monkeypatch.setattr(firmware.box.notebook, "handle", broken)
    assert firmware.mm(note(WRITE, b"k"))[0] == Status.ERR_UNKNOWN
    firmware.box.service.turn_s = 0.001
    with firmware.box.service.lock:
        assert firmware.mm(note(WRITE, b"k"))[0] == Status.BUSY


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 40), st.sampled_from([0, 1, 2, 3, 4, 8]), st.integers(0, 1 << 64)),
        max_size=40,
    )
)
def test_any_accesses_are_answered(accesses):
    device = RegisterDevice(_BOX.machine)
    for write, offset, width, value in accesses:
        if write:
            device.write(offset, width, value)
        else:
            assert 0 <= device.read(offset, width) < 1 << 8 * max(width, 1)


_BOX = Box()
