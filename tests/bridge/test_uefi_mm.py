"""UEFI MM: B39..B48, S40..S43."""

import struct
import threading
import time
from uuid import UUID

import pytest

from svsm_bridge.abi import PAGE, SVSM_BASE, Registers, call_number
from svsm_bridge.pages import State
from svsm_bridge.service import BUSY_IN_ROW, Service
from tests.bridge.support import (
    APPEND,
    BIG,
    BUFFER,
    BUSY,
    CA0,
    CA1,
    END_OF_DXE,
    EVENTS,
    EXIT_BOOT_SERVICES,
    INVALID_ADDRESS,
    INVALID_PARAMETER,
    INVALID_REQUEST,
    MESSAGE,
    OTHER,
    POLICY,
    READ,
    READY_TO_BOOT,
    SCRATCH,
    SUCCESS,
    VARIABLES,
    WRITE,
    Box,
    Notebook,
    Untouched,
    mm,
    note,
    note_reply,
)

LIMIT = 0x40000


@pytest.mark.rule("P03")
@pytest.mark.parametrize("rdx", [0, 23, LIMIT + 1, (1 << 32) + 0x10000, (1 << 63), (1 << 64) - 1])
def test_B39_bad_sizes(box, rdx):
    box.poke(BUFFER, note(WRITE, b"k", b"v"))
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(4, 1, rcx=BUFFER, rdx=rdx)[0] == INVALID_PARAMETER


def test_B39_the_smallest_and_the_largest(box):
    assert box.mm(mm(END_OF_DXE, b""), size=24)[0] == SUCCESS
    assert box.mm(note(WRITE, b"k", bytes(LIMIT - 64)), gpa=BIG, size=LIMIT)[0] == SUCCESS
    assert len(box.notebook.values[b"k".ljust(16, b"\0")]) == LIMIT - 64


@pytest.mark.parametrize("gpa", [BUFFER + 1, BUFFER + 0x800, CA0, CA0 + 8, CA1, CA0 + 0x800])
def test_B39_bad_addresses(box, gpa):
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(4, 1, rcx=gpa, rdx=PAGE)[0] == INVALID_ADDRESS


def test_B39_null_and_the_order_of_checks(box):
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(4, 1, rcx=0, rdx=PAGE)[0] == INVALID_PARAMETER
        assert box.call(4, 1, rcx=BUFFER + 1, rdx=0)[0] == INVALID_ADDRESS  # the address comes first


@pytest.mark.rule("P03", "R3")
@pytest.mark.parametrize(
    ("length", "want"),
    [(0, INVALID_PARAMETER), (0xFFF - 23, None), (0x1000 - 23, INVALID_PARAMETER),
     (1 << 63, INVALID_PARAMETER), ((1 << 64) - 1, INVALID_PARAMETER), ((1 << 64) - 24, INVALID_PARAMETER)],
)  # fmt: skip
def test_B40_message_length(box, length, want):
    message = mm(VARIABLES, note(WRITE, b"k", b"v")[24:], length=length)
    with Untouched(box, but=[(CA0, 1), (BUFFER, 0x100)] if want else [(CA0, 1), (BUFFER, PAGE)]):
        rax, after = box.mm(message, size=PAGE)
        assert rax == (SUCCESS if want is None else want)
        if want:
            assert after == message
        box.notebook.values.clear()


@pytest.mark.parametrize("borders", [1, 2, 15])
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_B41_messages_that_cross_pages(box, rng, borders, shift):
    data = rng.randbytes(borders * PAGE + shift - 24 - MESSAGE.size)
    rax, after = box.mm(note(WRITE, b"k", data))
    assert (rax, note_reply(after)[0]) == (SUCCESS, 0)
    assert box.notebook.values[b"k".ljust(16, b"\0")] == data
    rax, after = box.mm(note(READ, b"k", bytes(len(data))))
    assert note_reply(after) == (0, data)


def test_B41_name_and_data_at_each_offset_of_a_border(box):
    """The last 64 bytes of the first page: key, size and data start at each of them in turn."""
    for offset in range(64):
        key = bytes([offset]) * 16
        pad = PAGE - 64 + offset - 24 - MESSAGE.size
        data = bytes(pad) + bytes(range(64))
        box.mm(note(WRITE, key, data))
        assert box.notebook.values[key] == data


def test_B42_the_tail_and_the_header_stay(box):
    message = note(WRITE, b"k", b"data that the reply does not cover")
    box.poke(BUFFER, b"\x99" * 0x2000)
    rax, after = box.mm(message)
    assert rax == SUCCESS
    assert after[:24] == message[:24]
    assert after[24 + MESSAGE.size :] == message[24 + MESSAGE.size :]
    assert box.peek(BUFFER + len(message), 0x100) == b"\x99" * 0x100


@pytest.mark.rule("C13", "R4", "R5")
@pytest.mark.parametrize(
    ("guid", "length", "want"),
    [(UUID(int=0), 32, INVALID_REQUEST), (UUID(int=(1 << 128) - 1), 0, INVALID_REQUEST),
     *((event, n, SUCCESS) for event in EVENTS for n in (0, 1, 64)),
     (VARIABLES, 15, INVALID_PARAMETER), (VARIABLES, 0, INVALID_PARAMETER), (POLICY, 19, INVALID_PARAMETER)],
)  # fmt: skip
def test_B43_guids_and_short_messages(box, guid, length, want):
    message = mm(guid, b"\x5a" * length)
    with Untouched(box, but=[(CA0, 1), (BUFFER, PAGE)]):
        assert box.mm(message) == (want, message)


@pytest.mark.rule("S40")
def test_B44_uefi_errors_leave_rax_alone(box):
    rax, after = box.mm(note(READ, b"missing", bytes(8)))
    assert (rax, note_reply(after)[0]) == (SUCCESS, 1 << 63 | 14)


@pytest.mark.rule("S7", "S42")
def test_B44_busy_is_transient(profile):
    """While the store is held: BUSY within 50 ms, at most 100 in a row, then the call waits its turn."""
    box = Box(profile, service=Service(Notebook(), turn_s=0.0005))
    box.service.lock.acquire()
    message = note(WRITE, b"k", b"v")
    box.poke(BUFFER, message)
    with Untouched(box, but=[(CA0, 1)]):
        for _ in range(BUSY_IN_ROW):
            assert box.call(4, 1, rcx=BUFFER, rdx=PAGE)[0] == BUSY
    start = time.monotonic()
    threading.Timer(0.05, box.service.lock.release).start()
    assert box.call(4, 1, rcx=BUFFER, rdx=PAGE)[0] == SUCCESS
    assert time.monotonic() - start > 0.04
    assert box.bsp.patience.busy_in_row == 0


def test_B45_every_append_happens_once(profile):
    """Two vCPUs append 1000 times each while somebody keeps taking the store away from them."""
    notebook = Notebook()
    box = Box(profile, service=Service(notebook, turn_s=0.0001))
    box.machine.unwatch(box.audit)
    box.machine.audit = None
    stop = threading.Event()
    busy = [0, 0]

    def hold():
        while not stop.is_set():
            with box.service.lock:
                stop.wait(0.0005)
            stop.wait(0.0003)

    def append(vcpu, buffer, mark):
        message = note(APPEND, b"k", mark)
        regs = Registers(rax=call_number(4, 1), rcx=buffer, rdx=PAGE)
        for _ in range(1000):
            box.poke(buffer, message)
            while True:
                box.poke(vcpu.ca, b"\1")
                file = regs.copy()
                box.enter(file, vcpu)
                if file.rax != BUSY:
                    break
                busy[vcpu.apic_id] += 1
            assert file.rax == SUCCESS

    holder = threading.Thread(target=hold)
    writers = [
        threading.Thread(target=append, args=(box.bsp, BUFFER, b"a")),
        threading.Thread(target=append, args=(box.ap, OTHER, b"b")),
    ]
    for thread in (holder, *writers):
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    holder.join()
    value = notebook.values[b"k".ljust(16, b"\0")]
    assert sum(busy) > 0
    assert (value.count(b"a"), value.count(b"b"), len(value)) == (1000, 1000, 2000)


def test_B46_a_firmware_boot(box):
    """edk2: probe, one 64 KiB buffer for everything, three events, ExitBootServices, the OS goes on."""
    assert box.call(0, 6, rcx=4 << 32 | 1)[1].rcx == 0x100000001
    boot = [
        note(READ, b"BootOrder", bytes(16)),
        note(WRITE, b"BootOrder", b"\1\0"),
        mm(END_OF_DXE, b"\0"),
        note(READ, b"BootOrder", bytes(16)),
        mm(READY_TO_BOOT, b"\0"),
        note(WRITE, b"BootNext", b"\2\0"),
        mm(EXIT_BOOT_SERVICES, b"\0"),
        note(READ, b"BootNext", bytes(2)),
    ]
    sized = MESSAGE.pack
    replies = [
        boot[0][:24] + sized(READ, 1 << 63 | 14, b"BootOrder".ljust(16, b"\0"), 0) + boot[0][64:],
        boot[1][:24] + sized(WRITE, 0, b"BootOrder".ljust(16, b"\0"), 2) + boot[1][64:],
        boot[2],
        boot[3][:24] + sized(READ, 0, b"BootOrder".ljust(16, b"\0"), 2) + b"\1\0" + boot[3][66:],
        boot[4],
        boot[5][:24] + sized(WRITE, 0, b"BootNext".ljust(16, b"\0"), 2) + boot[5][64:],
        boot[6],
        boot[7][:24] + sized(READ, 0, b"BootNext".ljust(16, b"\0"), 2) + b"\2\0",
    ]
    for message, reply in zip(boot, replies, strict=True):
        box.poke(BUFFER, message)
        assert box.call(4, 1, rcx=BUFFER, rdx=0x10000)[0] == SUCCESS
        assert box.peek(BUFFER, len(message)) == reply
    assert box.notebook.events == [END_OF_DXE, READY_TO_BOOT, EXIT_BOOT_SERVICES]


def test_B47_runtime(box):
    """The OS moves the calling areas, reuses the old ones, and calls from another vCPU in between."""
    assert box.mm(mm(EXIT_BOOT_SERVICES, b"\0"))[0] == SUCCESS
    assert box.call(0, 0, rcx=SCRATCH)[0] == SUCCESS
    box.poke(CA0, b"\xab" * PAGE)  # data now, even where the flag was
    assert box.mm(note(WRITE, b"a", b"1"))[0] == SUCCESS
    assert box.call(0, 0, rcx=OTHER, vcpu=box.ap)[0] == SUCCESS
    for n in range(5):
        box.memory.rmp.rmpupdate(BIG, PAGE, assigned=True)
        box.poke(SCRATCH + 8, struct.pack("<HHIQ", 1, 0, 0xFFFF, BIG | 4))
        assert box.call(0, 1, rcx=SCRATCH + 8)[0] == SUCCESS
        assert box.mm(note(APPEND, b"a", bytes([n])), vcpu=box.ap)[0] == SUCCESS
        assert box.call(1, 0, rcx=SCRATCH + 8)[0] == INVALID_PARAMETER
    assert box.mm(note(READ, b"a", bytes(8)))[1][64:70] == b"1\0\1\2\3\4"
    assert box.notebook.events == [EXIT_BOOT_SERVICES]
    assert box.peek(CA0, PAGE) == b"\xab" * PAGE


@pytest.mark.rule("C12")
def test_B48_the_tail_of_the_buffer_is_svsm_memory(box, profile):
    gpa = SVSM_BASE - 2 * PAGE
    message = note(WRITE, b"k", b"inside")
    want = SUCCESS if profile == "coconut" else INVALID_ADDRESS
    assert box.mm(message, gpa=gpa, size=0x10000)[0] == want
    assert bool(box.notebook.values) == (want == SUCCESS)
    if want == SUCCESS:
        crossing = mm(VARIABLES, note(WRITE, b"k")[24:], length=2 * PAGE)
        assert box.mm(crossing, gpa=gpa, size=0x10000)[0] == INVALID_ADDRESS


def test_C12_touched_bytes_need_rights_for_the_reply(profile):
    """With `touched bytes only`, too, nothing is done for a buffer that cannot take the answer."""
    box = Box(profile)
    box.memory.rmp.rmpadjust(BUFFER, vmpl=2, perm=1)
    with Untouched(box, but=[(CA0, 1), (BUFFER, 0x100)]):
        assert box.mm(note(WRITE, b"k", b"v"), size=PAGE)[0] == INVALID_ADDRESS
    assert box.memory.rmp.state_of(BUFFER) & State.VALIDATED


def test_S43_each_vcpu_sees_its_own_writes(box):
    for n in range(4):
        vcpu = (box.bsp, box.ap)[n % 2]
        box.mm(note(WRITE, b"k", bytes([n])), vcpu=vcpu)
        assert note_reply(box.mm(note(READ, b"k", b"\0"), vcpu=vcpu)[1]) == (0, bytes([n]))


@pytest.mark.rule("S41")
def test_S41_B44_storage_that_is_down_is_a_status_in_the_message(box):
    """The service answers NOT_READY or DEVICE_ERROR itself; RAX stays SUCCESS, never BUSY."""
    for status in (1 << 63 | 6, 1 << 63 | 7):

        class Offline(Notebook):
            def handle(self, guid, message, status=status):
                return struct.pack("<QQ", 3, status)

        box.service.handler = Offline()
        rax, after = box.mm(note(WRITE, b"k", b"v"))
        assert (rax, note_reply(after)[0]) == (SUCCESS, status)


def test_S6_busy_and_incomplete_never_follow_an_effect(profile):
    """A service that says BUSY after it changed something would be executed twice: it is not believed."""
    box = Box(profile, service=Service(Notebook(), turn_s=0.0005))
    box.service.lock.acquire()
    box.poke(BUFFER, note(APPEND, b"k", b"x"))
    assert box.call(4, 1, rcx=BUFFER, rdx=PAGE)[0] == BUSY
    assert box.service.handler.handled == 0
    box.service.lock.release()
    assert box.call(4, 1, rcx=BUFFER, rdx=PAGE)[0] == SUCCESS
    assert box.service.handler.values == {b"k".ljust(16, b"\0"): b"x"}


def test_S24_no_rights_lock_is_held_while_a_request_is_processed(box):
    """A page operation of another vCPU does not wait for a slow commit."""
    done = []

    class Slow(Notebook):
        def handle(self, guid, message):
            def other():
                done.append(box.call(0, 0, rcx=SCRATCH, vcpu=box.ap)[0])

            thread = threading.Thread(target=other)
            thread.start()
            thread.join(5)
            assert not thread.is_alive()
            return b""

    box.service.handler = Slow()
    assert box.mm(note(WRITE, b"k"))[0] == SUCCESS
    assert done == [SUCCESS]
