"""Schedules: B08, drop_entry, stop_reply, reenter, and schedules as data."""

import json
import subprocess
import sys
import time

import pytest

from svsm_bridge.abi import PAGE, Outcome, Registers, call_number
from svsm_bridge.adversary import BadSchedule, Schedule, Step, from_json, reenter, vcpu_call
from svsm_bridge.errors import NeverResumed
from svsm_bridge.memory import sealed_memfd
from svsm_bridge.transports.guest import NotEntered
from svsm_bridge.transports.inproc import InProcessGuest
from tests.bridge.support import APPEND, BUFFER, CA0, OTHER, READ, SCRATCH, WRITE, Box, Notebook, note, note_reply


def test_B08_the_hypervisor_does_not_enter(box):
    box.poke(BUFFER, note(WRITE, b"k", b"v"))
    box.poke(CA0, b"\1")
    regs = Registers(rax=call_number(4, 1), rcx=BUFFER, rdx=PAGE)
    with Schedule(box.machine, box.dispatcher, drop_entries=[0]):
        assert box.enter(regs) == Outcome.NOT_ENTERED
        assert box.peek(CA0, 1) == b"\1"
        assert regs.rax == call_number(4, 1)
        assert box.notebook.values == {}
        assert box.enter(regs) == Outcome.SERVED
    assert box.notebook.values


@pytest.mark.rule("S11")
def test_B08_the_guest_notices():
    guest = InProcessGuest(Notebook())
    with Schedule(guest.machine, guest.dispatcher, drop_entries=[0]), pytest.raises(NotEntered):
        guest.mm_request(note(WRITE, b"k", b"v"))
    guest.close()


def test_a_reply_that_never_comes(box):
    box.poke(BUFFER, note(WRITE, b"k", b"v"))
    box.poke(CA0, b"\1")
    regs = Registers(rax=call_number(4, 1), rcx=BUFFER, rdx=PAGE)
    with Schedule(box.machine, box.dispatcher, stop_replies=[0]), pytest.raises(NeverResumed):
        box.enter(regs)
    assert box.notebook.values  # the commit stands


@pytest.mark.rule("B07")
def test_entered_again_in_the_middle_of_a_call(box):
    for at in range(6):
        box.notebook.values.clear()
        step = Step(at, reenter(), by_vcpu=True)
        with Schedule(box.machine, box.dispatcher, [step]):
            assert note_reply(box.mm(note(APPEND, b"k", b"x"))[1])[0] == 0
        assert box.notebook.values == {b"k".ljust(16, b"\0"): b"x"}


def test_another_vcpu_calls_in_between(box):
    for at in range(5):
        box.notebook.values.clear()
        box.poke(OTHER, note(APPEND, b"k", b"b"))
        regs = Registers(rax=call_number(4, 1), rcx=OTHER, rdx=PAGE)
        with Schedule(box.machine, box.dispatcher, [Step(at, vcpu_call(1, regs), by_vcpu=True)]):
            box.mm(note(APPEND, b"k", b"a"))
        assert sorted(box.notebook.values[b"k".ljust(16, b"\0")]) == [97, 98]


def test_schedules_as_data(box):
    text = json.dumps(
        {
            "actions": [
                {"at": 1, "do": "flip", "gpa": SCRATCH, "bytes": "0102"},
                {"at": 2, "when": "after", "do": "revoke", "gpa": OTHER},
                {"at": 2, "do": "make_shared", "gpa": OTHER + PAGE},
                {"at": 2, "do": "unmap", "gpa": OTHER + 2 * PAGE},
                {"at": 2, "do": "remap", "gpa": OTHER + 3 * PAGE, "source": SCRATCH},
                {"at": 2, "do": "remap", "gpa": 7, "source": SCRATCH},
                {
                    "at": 3,
                    "do": "to_vmsa",
                    "gpa": OTHER + 4 * PAGE,
                    "vcpu": 1,
                    "apic_id": 2,
                    "area": OTHER + 5 * PAGE,
                },
                {"at": 3, "do": "other_vcpu_call", "vcpu": 1, "regs": {"rax": 6}},
                {"at": 3, "do": "reenter"},
            ],
            "drop_entries": [5],
            "stop_replies": [],
        }
    )
    with from_json(box.machine, box.dispatcher, text):
        box.mm(note(WRITE, b"k", b"v"))
    assert box.peek(SCRATCH, 2) == b"\1\2"
    assert box.machine.vcpus[2].vmsa_gpa == OTHER + 4 * PAGE
    assert not box.memory.rmp.state_of(OTHER + PAGE) & 3


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "{", '{"x": 1}', '{"actions": [{}]}', '{"actions": [{"at": 1, "do": "fly"}]}',
     '{"actions": [{"at": "x", "do": "reenter"}]}',
     '{"actions": [{"at": 0, "do": "flip", "gpa": 0, "bytes": "0"}]}',
     '{"actions": [{"at": 0, "do": "reenter", "when": "now"}]}', '{"drop_entries": 3}', "[" * 100000],
)  # fmt: skip
def test_schedules_that_make_no_sense(default_box, text):
    with pytest.raises(BadSchedule):
        from_json(default_box.machine, default_box.dispatcher, text)


@pytest.mark.rule("P01")
def test_B35_a_second_process_rewrites_the_shared_backing():
    """Free-running: whatever it writes when, each value stored was one of the two that it alternates."""
    from svsm_bridge.transports.guest import BUFFER_GPA, CA_GPA, RAM_BASE, RAM_BYTES

    fd = sealed_memfd(RAM_BYTES)
    notebook = Notebook()
    guest = InProcessGuest(notebook)
    guest.machine.memory.remove  # noqa: B018 - the range is replaced below
    memory = guest.machine.memory
    with memory.rights:
        memory.rmp.regions.clear()
        guest.ram = memory.add(RAM_BASE, RAM_BYTES, fd=fd).buffer
        memory.rmp.claim(CA_GPA, 16)
    offset = BUFFER_GPA - RAM_BASE
    script = (
        "import sys; from svsm_bridge.adversary import rewrite\n"
        f"print(rewrite({fd}, [({offset} + 16, [bytes.fromhex('6800000000000000'), bytes([255] * 8)]),"
        f" ({offset} + 64, [b'A' * 64, b'B' * 64]), ({offset} + 56, [bytes.fromhex('4000000000000000'),"
        " bytes([255] * 8), bytes(8)])], seed=1, seconds=0.6))"
    )
    other = subprocess.Popen([sys.executable, "-c", script], pass_fds=[fd], stdout=subprocess.PIPE)
    results = {}
    end = time.monotonic() + 20
    while other.poll() is None and time.monotonic() < end:
        rax = guest.call(Registers(rax=call_number(4, 1), rcx=BUFFER_GPA, rdx=0x1000))
        results[rax] = results.get(rax, 0) + 1
        guest.poke(BUFFER_GPA, note(WRITE, b"k", b"A" * 64)[:40])
        value = notebook.values.get(b"k".ljust(16, b"\0"), b"")
        assert set(value) <= set(b"AB")
        assert len(value) in (0, 64)
    assert int(other.stdout.read()) > 0
    other.stdout.close()
    assert set(results) <= {0, 0x80000005, 0x80000006}
    assert results.get(0, 0) > 0


def test_a_box_is_whole_after_all_that():
    box = Box()
    assert note_reply(box.mm(note(READ, b"k", b""))[1])[0] == 1 << 63 | 14
