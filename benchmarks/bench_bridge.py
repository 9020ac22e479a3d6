"""The call boundary: in process, through the socket against an empty echo, and memory of idle guests."""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from uuid import UUID

from benchmarks.harness import Figure, against_floor
from cvars.mm import service as mm_service
from cvars.variables.limits import DEFAULT_LIMITS
from cvars.variables.model import Key, Variable
from cvars.variables.profile import SPEC
from svsm_bridge.abi import MM_HEADER, UEFI_MM, Registers, call_number
from svsm_bridge.transports.client import GuestClient
from svsm_bridge.transports.guest import BUFFER_BYTES, BUFFER_GPA, RAM_BASE
from svsm_bridge.transports.inproc import InProcessGuest
from svsm_bridge.transports.socket import SocketServer, listen

VARIABLES = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IDLE_GUESTS = 1000


def variables() -> "mm_service.VariableService":
    """A service with BootOrder in it."""
    stored = {Key(GLOBAL, "BootOrder"): Variable(7, b"\x01\x00\x02\x00")}
    return mm_service.VariableService(
        stored, profile=SPEC, limits=DEFAULT_LIMITS, commit=lambda _: None, trace=lambda _: None
    )


def get_boot_order() -> bytes:
    """GetVariable(BootOrder) with room for 64 bytes."""
    name = "BootOrder\0".encode("utf-16-le")
    body = (1).to_bytes(8, "little") + bytes(8) + GLOBAL.bytes_le + (64).to_bytes(8, "little")
    body += len(name).to_bytes(8, "little") + bytes(4) + name + bytes(64)
    return MM_HEADER.pack(VARIABLES.bytes_le, len(body)) + body


def _in_process() -> Figure:
    service = variables()
    guest = InProcessGuest(service)
    message = get_boot_order()
    body = message[24:]
    vcpu = guest.machine.vcpus[0]
    regs = Registers(rax=call_number(UEFI_MM, 1), rcx=BUFFER_GPA, rdx=BUFFER_BYTES)

    def boundary() -> None:
        guest.poke(BUFFER_GPA, message)
        guest.ram[0] = 1
        file = regs.copy()
        guest.dispatcher.enter(vcpu, file)
        assert file.rax == 0

    name = "bridge: GetVariable in process, registers to registers"
    return against_floor(
        name, boundary, lambda: service.handle(VARIABLES, body), max_value=35, rounds=400, inner=20
    )


def _serve(folder: str, ready: Connection, guests: int) -> None:
    server = SocketServer(listen(Path(folder) / "run" / "s"), variables if guests else variables())
    server.start()
    ready.send(os.getpid())
    ready.recv()
    server.stop()
    ready.send(True)


@contextmanager
def _server(guests: int = 0) -> Iterator[tuple[Path, int]]:
    """A server in a process of its own: path of the socket, process id."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(folder, there, guests))
        process.start()
        pid = here.recv()
        try:
            yield Path(folder) / "run" / "s", pid
        finally:
            here.send(None)
            here.recv()
            process.join()


def _socket() -> Figure:
    message = get_boot_order()
    with _server() as (path, _):
        guest = GuestClient.start(path)
        regs = Registers(rax=call_number(UEFI_MM, 1), rcx=BUFFER_GPA, rdx=BUFFER_BYTES)

        def served() -> None:
            guest.poke(BUFFER_GPA, message)
            guest.ram[0] = 1
            assert guest.enter_raw(0, regs).regs.rax == 0

        def echo() -> None:  # the same request and reply with nothing pending
            guest.enter_raw(0, regs)

        assert guest.ram_base == RAM_BASE
        name = "bridge: GetVariable by socket, against an empty CALL"
        figure = against_floor(name, served, echo, max_ratio=1.6, rounds=300, inner=10)
        guest.close()
    return figure


def _rss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def _idle() -> Figure:
    import resource  # noqa: PLC0415

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8 * IDLE_GUESTS
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted if hard < 0 else min(wanted, hard)), hard))
    count = min(IDLE_GUESTS, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100) // 4)
    with _server(guests=count) as (path, pid):
        empty = _rss(pid)
        guests = []
        for _ in range(count):
            guest = GuestClient.start(path)
            assert guest.mm_request(get_boot_order())
            guests.append(guest)
        time.sleep(0.2)
        full = statistics.median(_rss(pid) for _ in range(3))
        for guest in guests:
            guest.close()
    want = 1024 * count / IDLE_GUESTS
    name = f"bridge: RSS of a server with {count} idle guests"
    return Figure(name, "MiB", full, empty, full / empty, 0.0, f"<= {want:g} MiB", full <= want)


def figures() -> list[Figure]:
    """All of this room."""
    return [_in_process(), _socket(), _idle()]
