"""QEMU's recorded runs of its own device, replayed through our register block (mm-protocol 1.1)."""

import pytest

from cvars.formats.vectors import read_scenarios
from cvars.mm.service import VariableService
from cvars.variables.limits import DEFAULT_LIMITS
from cvars.variables.profile import SPEC
from svsm_bridge.machine import Machine
from svsm_bridge.service import Service
from svsm_bridge.transports.registers import Command, Register, RegisterDevice

BUFFER = 0x100000


def device(*, pio):
    handler = VariableService({}, profile=SPEC, limits=DEFAULT_LIMITS, commit=lambda _: None, trace=lambda _: None)
    machine = Machine(Service(handler))
    machine.memory.add(BUFFER, 0x20000)
    return machine, setup(RegisterDevice(machine, use_pio=pio), 65536)


def setup(made, size):
    made.write(Register.CMD_STS, 2, Command.RESET)
    made.write(Register.BUFFER_SIZE, 4, size)
    made.write(Register.DMA_BUFFER_ADDR_LO, 4, BUFFER)
    return made


def transfer(machine, made, message, *, pio):
    """Status, and the same bytes afterwards."""
    if not pio:
        machine.memory.host_write(BUFFER, message)
        made.write(Register.CMD_STS, 2, Command.DMA_MM)
        return made.read(Register.CMD_STS, 2), machine.memory.host_read(BUFFER, len(message))
    padded = message.ljust(-(-len(message) // 4) * 4, b"\0")
    made.write(Register.CMD_STS, 2, Command.PIO_ZERO_OFFSET)
    for at in range(0, len(padded), 4):
        made.write(Register.PIO_BUFFER_TRANSFER, 4, int.from_bytes(padded[at : at + 4], "little"))
    made.write(Register.CMD_STS, 2, Command.PIO_MM)
    status = made.read(Register.CMD_STS, 2)
    made.write(Register.CMD_STS, 2, Command.PIO_ZERO_OFFSET)
    words = [made.read(Register.PIO_BUFFER_TRANSFER, 4) for _ in range(len(padded) // 4)]
    return status, b"".join(word.to_bytes(4, "little") for word in words)[: len(message)]


@pytest.mark.parametrize("name", ["pio", "data", "malformed", "buffer"])
def test_the_device_answers_as_qemu_s_does(vectors, name):
    """Status registers of every call, and the bytes of every call on which no difference is recorded."""
    compared = 0
    for scenario in read_scenarios((vectors / "mm" / f"{name}.jsonl").read_text().splitlines()):
        pio = scenario.operations[0].config.get("transfer") == "pio"
        if any(scenario.operations[0].config.get(k) for k in ("store", "force_secure_boot", "capacity_sensitive")):
            continue
        machine, made = device(pio=pio)
        for operation in scenario.operations[1:]:
            if operation.op == "reset":
                machine.platform_reset()
            elif operation.op == "device-setup":
                setup(made, operation.buffer_size)
            elif operation.op == "call" and len(operation.request) <= 65536:
                status, after = transfer(machine, made, operation.request, pio=pio)
                if operation.label is None and not operation.after_divergence:
                    assert status == operation.device_status, (scenario.name, operation.step)
                    if status or operation.request[24:25] in (b"\1", b"\3", b"\6", b"\5"):
                        assert after == operation.reply, (scenario.name, operation.step)
                        compared += 1
    assert compared > 5
