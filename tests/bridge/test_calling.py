"""The calling convention: B01..B11, S1..S14."""

import pytest

from svsm_bridge.abi import Outcome, Registers, call_number, secrets_page
from svsm_bridge.service import Service
from tests.bridge.support import (
    APPEND,
    BUFFER,
    CA0,
    CA1,
    INVALID_PARAMETER,
    INVALID_REQUEST,
    SCRATCH,
    SUCCESS,
    UNSUPPORTED_CALL,
    UNSUPPORTED_PROTOCOL,
    VARIABLES,
    WRITE,
    Box,
    Untouched,
    garbage,
    mm,
    note,
    note_reply,
)


@pytest.mark.parametrize("number", [0, 1, 0xFFFFFFFF])
@pytest.mark.parametrize("protocol", [2, 3, 5, 0xFFFFFFFF])
def test_B01_B04_an_unknown_or_absent_protocol(box, protocol, number):
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(protocol, number)[0] == UNSUPPORTED_PROTOCOL


@pytest.mark.rule("S5")
@pytest.mark.parametrize(("protocol", "number"), [(0, 8), (0, 0xFFFFFFFF), (4, 0), (4, 2), (4, 0xFFFFFFFF)])
def test_B01_an_unknown_call(box, protocol, number):
    with Untouched(box, but=[(CA0, 1)]):
        assert box.call(protocol, number, rcx=0, rdx=0)[0] == UNSUPPORTED_CALL


@pytest.mark.rule("S9")
def test_B05_nothing_happens_without_a_request(box):
    regs = garbage(rax=call_number(0, 6), rcx=4 << 32 | 1)
    before = regs.copy()
    with Untouched(box):
        assert box.enter(regs) == Outcome.NOTHING_PENDING
    assert regs == before


@pytest.mark.rule("S9")
@pytest.mark.parametrize("exit_code", [0, 0x72, 0x400, 0x402, 0x404, (1 << 64) - 1])
def test_B05_another_exit_is_not_a_call(box, exit_code):
    box.poke(CA0, b"\1")
    regs = garbage(rax=call_number(0, 6), rcx=4 << 32 | 1)
    before = regs.copy()
    with Untouched(box):
        assert box.enter(regs, exit_code=exit_code) == Outcome.NOTHING_PENDING
    assert regs == before
    assert box.peek(CA0, 1) == b"\1"
    box.call(0, 6)


@pytest.mark.rule("S9")
def test_B06_the_flag_is_down_before_the_call_runs_and_other_bytes_stay():
    seen = {}
    box = Box()

    class Looking:
        def handle(self, guid, message):
            seen["area"] = box.peek(CA0, 8)
            box.poke(CA0 + 1, b"\x11\x22\x33\x44\x55\x66\x77")
            return b""

        def reset(self):
            pass

    box.service.handler = Looking()
    box.poke(CA0, b"\0\1\2\3\4\5\6\7")
    assert box.mm(note(WRITE, b"a"))[0] == SUCCESS
    assert seen["area"] == b"\0\1\2\3\4\5\6\7"
    assert box.peek(CA0, 8) == b"\0\x11\x22\x33\x44\x55\x66\x77"


@pytest.mark.rule("S12")
def test_B07_entered_twice_executed_once(box):
    assert box.mm(note(APPEND, b"a", b"x"))[0] == SUCCESS
    box.poke(BUFFER, note(APPEND, b"a", b"y"))
    box.poke(CA0, b"\1")
    regs = Registers(rax=call_number(4, 1), rcx=BUFFER, rdx=0x1000)
    assert box.enter(regs.copy()) == Outcome.SERVED
    assert box.enter(regs.copy()) == Outcome.NOTHING_PENDING
    assert box.notebook.values == {b"a".ljust(16, b"\0"): b"xy"}


def test_B07_a_flag_set_again_during_the_call_is_not_consumed():
    box = Box()

    class Ringing:
        def handle(self, guid, message):
            box.poke(CA0, b"\1")  # a second vCPU rings while the first is served
            return b""

        def reset(self):
            pass

    box.service.handler = Ringing()
    box.poke(BUFFER, note(WRITE, b"a"))
    box.poke(CA0, b"\1")
    assert box.enter(Registers(rax=call_number(4, 1), rcx=BUFFER, rdx=0x1000)) == Outcome.SERVED
    assert box.peek(CA0, 1) == b"\1"


@pytest.mark.rule("S10", "C1")
@pytest.mark.parametrize("value", [2, 0x80, 0xFF])
def test_B09_other_pending_values(box, profile, value):
    box.poke(CA0, bytes([value]))
    regs = garbage(rax=call_number(0, 6), rcx=4 << 32 | 1)
    served = profile != "linux-svsm"
    assert box.enter(regs) == (Outcome.SERVED if served else Outcome.NOTHING_PENDING)
    assert box.peek(CA0, 1) == (b"\0" if served else bytes([value]))
    assert (regs.rax == SUCCESS) == served


@pytest.mark.rule("S12", "S13")
def test_B10_another_vcpu_is_entered(box):
    box.poke(CA0, b"\1")
    regs = garbage(rax=call_number(0, 6), rcx=4 << 32 | 1)
    before = regs.copy()
    assert box.enter(regs, box.ap) == Outcome.NOTHING_PENDING
    assert regs == before
    assert (box.peek(CA0, 1), box.peek(CA1, 1)) == (b"\1", b"\0")


@pytest.mark.rule("B03")
@pytest.mark.parametrize(
    ("protocol", "version", "answer"),
    [
        (0, 1, 0x0000000100000001),
        (1, 1, 0x0000000100000001),
        (4, 1, 0x0000000100000001),
        *((p, v, 0) for p in (0, 1, 4) for v in (0, 2, 0xFFFFFFFF)),
        *((p, 1, 0) for p in (2, 3, 5, 0xFFFFFFFF)),
    ],
)
def test_B11_query_protocol(box, rng, protocol, version, answer):
    for _ in range(3):
        trash = {name: rng.getrandbits(64) for name in ("rdx", "r8", "r9")}
        rax, regs = box.call(0, 6, rcx=protocol << 32 | version, **trash)
        assert (rax, regs.rcx) == (SUCCESS, answer)
        assert (regs.rdx, regs.r8, regs.r9) == (trash["rdx"], trash["r8"], trash["r9"])


def test_S8_an_internal_error_is_a_refusal_and_the_next_call_is_served(box, caplog):
    handler = box.service.handler

    class Broken:
        def handle(self, guid, message):
            raise KeyError("a secret value")

        def reset(self):
            pass

    box.service.handler = Broken()
    with Untouched(box, but=[(CA0, 1), (BUFFER, 0x100)]):
        assert box.mm(note(WRITE, b"a"))[0] == INVALID_REQUEST
    assert "svsm-" in caplog.text
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text  # P38
    box.service.handler = handler
    assert box.mm(note(WRITE, b"a"))[0] == SUCCESS


def test_S8_R10_a_reply_longer_than_its_request_is_never_written(box):
    class Long:
        def handle(self, guid, message):
            return message + b"!"

        def reset(self):
            pass

    box.service.handler = Long()
    assert box.mm(note(WRITE, b"a")) == (INVALID_REQUEST, note(WRITE, b"a"))


def test_a_request_and_its_answer(box):
    assert note_reply(box.mm(note(WRITE, b"k", b"value"))[1])[0] == 0
    rax, reply = box.mm(mm(VARIABLES, note(1, b"k", bytes(32))[24:]))
    assert rax == SUCCESS
    assert note_reply(reply) == (0, b"value")


def test_calls_below_the_smallest_limit_are_a_configuration_error():
    with pytest.raises(ValueError, match="firmware"):
        Service(None, mm_limit=0xFFFF)
    assert Box().call(4, 1, rcx=SCRATCH, rdx=23)[0] == INVALID_PARAMETER


def test_1_4_the_secrets_page_hides_the_keys_of_higher_levels():
    page = secrets_page(
        svsm_base=0x8000000000, svsm_size=0x1000000, caa=CA0, guest_vmpl=2, vmpcks=bytes(range(128))
    )
    assert len(page) == 4096
    assert page[0x20:0x60] == bytes(64)
    assert page[0x60:0xA0] == bytes(range(64, 128))
    assert page[0x140:0x160] == (
        (0x8000000000).to_bytes(8, "little") + (0x1000000).to_bytes(8, "little") + CA0.to_bytes(8, "little")
        + b"\1\0\0\0" + b"\2\0\0\0"
    )  # fmt: skip
