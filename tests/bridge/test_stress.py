"""Many vCPUs, many guests, one server: linearisable per store, nobody sees another guest's bytes."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from svsm_bridge.abi import PAGE, Registers, call_number
from svsm_bridge.memory import sealed_memfd
from svsm_bridge.transports import wire
from svsm_bridge.transports.client import GuestClient
from svsm_bridge.transports.guest import RAM_BASE
from svsm_bridge.transports.wire import Kind
from tests.bridge.linearizable import ABSENT, Op, violation
from tests.bridge.support import BUSY, READ, WRITE, note, note_reply

ROOT = Path(__file__).resolve().parents[2]
VALUE = 40
KEYS = (b"BootOrder", b"db", b"dbx")

SERVER = """
import sys
from pathlib import Path
from svsm_bridge.transports.socket import SocketServer, listen
from tests.bridge.support import Notebook
servers = []
for n in range(int(sys.argv[2])):
    server = SocketServer(listen(Path(sys.argv[1]) / f"s{n}"), Notebook())
    server.start()
    servers.append(server)
print("ready", flush=True)
sys.stdin.read()
"""


class Guest:
    """One guest of ``vcpus`` vCPUs, spread over ``lines`` connections, each driven by one thread."""

    def __init__(self, number, path, vcpus, lines):
        self.number = number
        size = (vcpus * 2) * PAGE
        self.fd = sealed_memfd(size)
        self.machine = GuestClient.connect(path)
        self.machine.hello(roles=3, apic_ids=vcpus)
        self.machine.mem_add(self.fd, RAM_BASE, size)
        for vcpu in range(vcpus):
            self.machine.vcpu_add(vcpu, ca=RAM_BASE + vcpu * PAGE)
        self.lines = [self.machine]
        for _ in range(lines - 1):
            line = GuestClient.connect(path)
            line.hello(roles=1, guest_vmpl=0)
            line.guest_vmpl = 2
            self.lines.append(line)
        self.vcpus = vcpus
        self.history = []
        self.foreign = []
        self.busy = 0
        self.served = 0

    def threads(self, end, seed):
        share = self.vcpus // len(self.lines)
        return [
            threading.Thread(target=self.drive, args=(line, range(n * share, (n + 1) * share), end, seed + n))
            for n, line in enumerate(self.lines)
        ]

    def drive(self, line, vcpus, end, seed):
        """Keep one call of every vCPU of this connection under way."""
        rng = random.Random(seed)
        pending = {}
        counters = dict.fromkeys(vcpus, 0)
        history = []

        def ask(vcpu, again=None):
            buffer = (self.vcpus + vcpu) * PAGE
            if again is None:
                key = rng.choice(KEYS)
                if rng.random() < 0.5:
                    counters[vcpu] += 1
                    value = f"guest {self.number} vcpu {vcpu} write {counters[vcpu]}".encode().ljust(VALUE, b".")
                    again = ("write", key, value, note(WRITE, key, value), time.monotonic())
                else:
                    again = ("read", key, ABSENT, note(READ, key, bytes(VALUE)), time.monotonic())
            os.pwrite(self.fd, again[3], buffer)
            os.pwrite(self.fd, b"\1", vcpu * PAGE)
            regs = Registers(rax=call_number(4, 1), rcx=RAM_BASE + buffer, rdx=PAGE)
            pending[line.post(Kind.CALL, line.call_payload(vcpu, regs))] = (vcpu, again)

        for vcpu in vcpus:
            ask(vcpu)
        while pending:
            tag, payload = line.take()
            answered = time.monotonic()
            vcpu, asked = pending.pop(tag)
            fields = wire.call_reply.unpack(payload)
            assert fields[:2] == (vcpu, 0)
            assert os.pread(self.fd, 1, vcpu * PAGE) == b"\0"
            if fields[3] == BUSY:
                self.busy += 1
                ask(vcpu, asked)
                continue
            assert fields[3] == 0, hex(fields[3])
            kind, key, value, message, start = asked
            after = os.pread(self.fd, len(message), (self.vcpus + vcpu) * PAGE)
            status, data = note_reply(after)
            if kind == "read":
                value = ABSENT if status == 1 << 63 | 14 else data
                if value is not ABSENT and not value.startswith(f"guest {self.number} ".encode()):
                    self.foreign.append(value)
            history.append(Op(kind, key, value, start, answered))
            self.served += 1
            if answered < end:
                ask(vcpu)
        self.history += history

    def close(self):
        for line in self.lines:
            line.close()
        os.close(self.fd)


def resources(pid):
    rss = next(int(x.split()[1]) for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in x)
    return rss, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def stress(tmp_path, *, guests, vcpus, lines, seconds):
    """Run it; the guests and the samples (time, RSS KiB, fds) of the server."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(guests)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert server.stdout.readline() == b"ready\n"
        made = [Guest(n, folder / f"s{n}", vcpus, lines) for n in range(guests)]
        start = time.monotonic()
        threads = [t for g in made for t in g.threads(start + seconds, g.number * 100)]
        for thread in threads:
            thread.start()
        samples = []
        while any(thread.is_alive() for thread in threads):
            samples.append((time.monotonic() - start, *resources(server.pid)))
            time.sleep(seconds / 40)
        for thread in threads:
            thread.join()
        for guest in made:
            guest.close()
        return made, samples
    finally:
        server.stdin.close()
        server.wait(30)
        server.stdout.close()


def judge(guests):
    for guest in guests:
        assert guest.foreign == []
        assert guest.served == len(guest.history) > 0
        assert violation(guest.history) is None


def test_S43_short_stress(tmp_path):
    guests, _ = stress(tmp_path, guests=4, vcpus=8, lines=4, seconds=1.5)
    judge(guests)
    swapped = with_two_replies_swapped(guests[0].history)
    assert violation(swapped) is not None


@pytest.mark.exhaustive
def test_S43_64_vcpus_and_16_guests_for_a_minute(tmp_path, record_property):
    guests, samples = stress(tmp_path, guests=16, vcpus=64, lines=4, seconds=60)
    judge(guests)
    end = samples[-1][0]
    second = [s for s in samples if end / 4 <= s[0] < end / 2]
    last = [s for s in samples if s[0] >= end * 3 / 4]
    rss = [sum(s[1] for s in part) / len(part) for part in (second, last)]
    slope = (rss[1] - rss[0]) / (end / 2)
    calls = sum(g.served for g in guests)
    busy = sum(g.busy for g in guests)
    print(f"\n{calls} calls, {busy} BUSY; RSS {rss[0]:.0f} -> {rss[1]:.0f} KiB, slope {slope:.2f} KiB/s")
    record_property("rss_slope_kib_s", slope)
    assert {s[2] for s in second} == {s[2] for s in last}
    assert rss[1] <= rss[0] * 1.01 + 512


# --- the checker itself --------------------------------------------------------------------------------


def with_two_replies_swapped(history):
    """Swap the answers of the earliest and the latest read of one key that do not overlap."""
    for key in KEYS:
        reads = sorted((op for op in history if op.kind == "read" and op.key == key), key=lambda op: op.asked)
        for a, b in ((reads[0], b) for b in reversed(reads)):
            writes = [op for op in history if op.kind == "write" and op.value == b.value]
            if a.value != b.value and writes and writes[0].asked > a.answered:
                rest = [op for op in history if op is not a and op is not b]
                return [
                    *rest,
                    Op("read", key, b.value, a.asked, a.answered),
                    Op("read", key, a.value, b.asked, b.answered),
                ]
    raise AssertionError("nothing to swap")


def op(kind, value, asked, answered):
    return Op(kind, b"k", value, asked, answered)


@pytest.mark.parametrize(
    ("history", "good"),
    [
        ([op("write", b"a", 0, 1), op("read", b"a", 2, 3)], True),
        ([op("read", ABSENT, 0, 1), op("write", b"a", 2, 3)], True),
        ([op("write", b"a", 0, 1), op("read", ABSENT, 2, 3)], False),
        ([op("read", b"a", 0, 1), op("write", b"a", 2, 3)], False),
        ([op("write", b"a", 0, 1), op("write", b"b", 2, 3), op("read", b"a", 4, 5)], False),
        ([op("write", b"a", 0, 9), op("write", b"b", 0, 9), op("read", b"a", 1, 2), op("read", b"b", 3, 4)], True),
        (
            [op("write", b"a", 0, 9), op("write", b"b", 0, 9), op("read", b"a", 1, 2), op("read", b"b", 3, 4),
             op("read", b"a", 5, 6)], False,
        ),
        ([op("write", b"a", 0, 1), op("read", b"a", 5, 6), op("write", b"b", 2, 3)], False),
        ([op("read", b"x", 0, 1)], False),
        ([op("write", b"a", 0, 1), op("write", b"a", 2, 3)], False),
    ],
)  # fmt: skip
def test_the_checker_on_small_histories(history, good):
    assert (violation(history) is None) == good


def test_the_checker_agrees_with_trying_every_order():
    """Every history of up to five random operations, against brute force."""
    from itertools import permutations

    rng = random.Random(5)
    verdicts = set()
    for _ in range(1500):
        count = rng.randrange(2, 6)
        ops, values = [], [ABSENT]
        for n in range(count):
            asked = rng.randrange(10)
            answered = asked + rng.randrange(1, 5) + 0.5
            if rng.random() < 0.5:
                value = bytes([n])
                values.append(value)
                ops.append(op("write", value, asked, answered))
            else:
                ops.append(op("read", rng.choice(values), asked, answered))

        def possible(order):
            if any(later.answered < earlier.asked for i, later in enumerate(order) for earlier in order[:i]):
                return False
            now = ABSENT
            for step in order:
                if step.kind == "write":
                    now = step.value
                elif step.value != now:
                    return False
            return True

        want = any(possible(order) for order in permutations(ops))
        assert (violation(ops) is None) == want, ops
        verdicts.add(want)
    assert verdicts == {True, False}
