"""Random schedules and random calls: B28, B65. Sampled here; complete under `make test-exhaustive`."""

import random
import struct
import time

import pytest

from svsm_bridge.abi import LARGE, PAGE, SVSM_BASE, SVSM_SIZE, UEFI_MM_GUID, Outcome, Registers, call_number
from svsm_bridge.adversary import Schedule, Step, good_vmsa, random_steps, vcpu_call
from svsm_bridge.dispatcher import Dispatcher
from svsm_bridge.errors import InvalidAddress
from svsm_bridge.machine import Machine
from svsm_bridge.manifests import manifest_source
from svsm_bridge.memory import GuestMemory
from svsm_bridge.pages import RWX, R, State, W
from svsm_bridge.profile import PROFILES
from svsm_bridge.service import Service
from svsm_bridge.watch import FetchAudit
from tests.bridge.support import EVENTS, POLICY, VARIABLES, Notebook, mm, note
from tests.bridge.test_attestation import CLAIMS, Reports, certificate_table

BASE = 0x100000
PAGES = 24
CA0, CA1 = BASE, BASE + PAGE
POISON = b"\xf0\x0d\xfa\xce" * (PAGE // 4)


class Arena:
    """The smallest machine in which everything can go wrong."""

    def __init__(self, profile, *, size=PAGES * PAGE, audit=True):
        reports = Reports(certificate_table(300))
        self.notebook = Notebook()
        service = Service(self.notebook, manifests=manifest_source(lambda: CLAIMS), reports=reports)
        self.audit = FetchAudit() if audit else None
        self.machine = Machine(service, memory=GuestMemory(), profile=PROFILES[profile], audit=self.audit)
        self.memory = self.machine.memory
        self.memory.add(BASE, size)
        self.machine.add_vcpu(0, ca=CA0)
        self.machine.add_vcpu(1, ca=CA1)
        self.machine.add_vcpu(2)
        self.machine.add_vcpu(3)
        self.dispatcher = Dispatcher(self.machine)

    def invariant(self):
        """A VMSA never has guest W, no page has two roles, no role is without its owner (B28)."""
        owners = {}
        for vcpu in self.machine.vcpus.values():
            for page, role in ((vcpu.ca, State.CA), (vcpu.vmsa_gpa, State.HELD)):
                if page is not None:
                    assert page not in owners, hex(page)
                    owners[page] = role
        owners |= dict.fromkeys(self.machine.vmsas, State.HELD)
        for region in self.memory.rmp.regions:
            for index, state in enumerate(region.state):
                gpa = region.base + index * PAGE
                if state & State.HELD:
                    assert not any(region.rights[level][index] & W for level in (1, 2, 3)), hex(gpa)
                if state & State.VMSA:
                    assert not any(region.perm[level][index] & W for level in (1, 2, 3)), hex(gpa)
                role = state & (State.CA | State.HELD)
                assert role in (0, owners.get(gpa)), hex(gpa)
        for page, role in owners.items():
            assert self.memory.rmp.state_of(page) & role, hex(page)


def race(seed, profile):
    """PVALIDATE and CREATE_VCPU on the same pages, a hypervisor that interferes, at random moments."""
    rng = random.Random(seed)
    arena = Arena(profile)
    pages = [BASE + n * PAGE for n in (4, 5, 6, 7)]
    for page in pages:
        arena.memory.host_write(page, good_vmsa(2, 1))
        if rng.random() < 0.3:
            arena.memory.rmp.rmpupdate(page, PAGE, assigned=True)
    lists = BASE + 2 * PAGE
    entries = [rng.choice(pages) | rng.choice((0, 4, 8, 12)) for _ in range(rng.randrange(1, 6))]
    arena.memory.host_write(lists, struct.pack(f"<HHI{len(entries)}Q", len(entries), 0, 0, *entries))
    pvalidate = Registers(rax=call_number(0, 1), rcx=lists)
    create = Registers(rax=call_number(0, 2), rcx=rng.choice(pages), rdx=rng.choice(pages), r8=2)
    first, second = (pvalidate, create) if rng.random() < 0.5 else (create, pvalidate)
    steps = [Step(rng.randrange(8), vcpu_call(1, second), rng.random() < 0.5, by_vcpu=True)]
    steps += random_steps(rng.getrandbits(32), pages=pages, accesses=8, count=rng.randrange(4), vcpus=(0, 1))

    def check():
        # within a call that holds the rights lock roles may be half taken: what the guest can do is what counts
        for region in arena.memory.rmp.regions:
            for index, state in enumerate(region.state):
                if state & State.HELD:
                    assert not any(region.rights[level][index] & W for level in (1, 2, 3))
                if state & State.VMSA:
                    assert not any(region.perm[level][index] & W for level in (1, 2, 3))

    arena.memory.host_write(CA0, b"\1")
    with Schedule(arena.machine, arena.dispatcher, steps, check=check):
        assert arena.dispatcher.enter(arena.machine.vcpus[0], first.copy()) in Outcome
    arena.invariant()
    assert arena.audit.violations == []
    result = tuple(arena.memory.rmp.state_of(page) for page in pages)
    arena.machine.close()
    return result


def test_B28_random_schedules(profile):
    ends = {race(seed, profile) for seed in range(250)}
    assert len(ends) > 20  # the races end in many ways, all of them sound


@pytest.mark.exhaustive
def test_B28_a_hundred_thousand_schedules(profile):
    for seed in range(100_000 // 3 + 1):
        race(seed + 1_000_000, profile)


def test_B28_schedules_are_deterministic():
    assert [race(seed, "default") for seed in range(30)] == [race(seed, "default") for seed in range(30)]


class Fuzzer:
    """Random register files, memory and page states against one arena."""

    def __init__(self, profile, seed):
        self.rng = random.Random(seed)
        self.arena = Arena(profile, size=PAGES * PAGE + 2 * LARGE)
        self.profile = profile
        for page in range(4):
            self.arena.memory.svsm_frame(SVSM_BASE + page * PAGE)[:] = POISON
        self.results = {}
        self.slowest = 0.0

    def address(self):
        rng = self.rng
        kind = rng.randrange(10)
        page = BASE + rng.randrange(PAGES) * PAGE
        if kind < 5:
            return page
        if kind < 7:
            return page + rng.randrange(0, PAGE, 8)
        if kind < 8:
            return page + rng.randrange(PAGE)
        return rng.choice(
            [0, 1, SVSM_BASE, SVSM_BASE + SVSM_SIZE - PAGE, 1 << 51 | page, (1 << 64) - PAGE, BASE - PAGE,
             BASE + PAGES * PAGE + LARGE, rng.getrandbits(64), CA0 + 8, CA1 + 8]
        )  # fmt: skip

    def content(self):
        """Something that one of the calls may take for its input."""
        rng = self.rng
        kind = rng.randrange(7)
        if kind == 0:
            return good_vmsa(2, 1)
        if kind == 1:
            count = rng.randrange(1, 20)
            entries = [self.address() & ~0xFFF | rng.choice((0, 4, 8, 12, 5, 1, 2, 0x10)) for _ in range(count)]
            start = rng.choice((0, 0, 0, 1, count))
            return struct.pack(f"<HHI{count}Q", rng.choice((count, count, 511, 0)), start, 0, *entries)
        if kind == 2:
            size = rng.choice((0, PAGE, PAGE, 2 * PAGE, rng.getrandbits(14)))
            raw = struct.pack(
                "<QIIQH6xQIIQII", self.address(), size, 0, self.address(), rng.choice((64, 64, 64, 63)),
                self.address(), size, 0, self.address(), rng.choice((0, 0x4000, 0x1000, 0x4001)), 0,
            )  # fmt: skip
            return raw + rng.choice((bytes(0x18), CLAIMS.vm_identity[:16] + bytes(8)))
        guid = rng.choice((VARIABLES, VARIABLES, VARIABLES, POLICY, *EVENTS))
        if kind == 3:
            return mm(guid, rng.randbytes(rng.randrange(80)), length=rng.choice((rng.getrandbits(64), 40, 64, 0)))
        return note(rng.choice((1, 3, 4)), bytes([rng.randrange(4)]), rng.randbytes(rng.randrange(200)))

    def disturb(self):
        """The guest writes memory, or the hypervisor changes a page."""
        rng, memory = self.rng, self.arena.memory
        page = BASE + rng.randrange(2, PAGES) * PAGE
        kind = rng.randrange(12)
        if kind < 8:
            memory.host_write(page + rng.choice((0, 0, 0, 8)), self.content()[: PAGE - 8])
        elif kind == 8:
            memory.rmp.rmpupdate(page, PAGE, assigned=rng.random() < 0.8)
        elif kind == 9:
            memory.rmp.unmap(page, PAGE)
        elif kind == 10:
            source = SVSM_BASE + rng.randrange(4) * PAGE
            memory.rmp.remap(page, memory.svsm_frame(source))
        else:
            self.heal(page)

    def heal(self, page):
        """The page is good guest memory again, unless somebody holds it."""
        memory = self.arena.memory
        if memory.rmp.state_of(page) & (State.CA | State.HELD):
            return
        memory.rmp.rmpupdate(page, PAGE, assigned=True)
        memory.rmp.pvalidate(page, large=False, validate=True)
        memory.rmp.rmpadjust(page, vmpl=2, perm=RWX)

    def aim(self, regs):
        """Make the call one that most probably works, up to what else is wrong."""
        rng = self.rng
        page = BASE + rng.randrange(2, PAGES - 4) * PAGE
        for n in range(4):
            self.heal(page + n * PAGE)
        memory = self.arena.memory
        regs.rcx, regs.rdx = page, PAGE
        match regs.rax:
            case 0x1:
                entry = page + PAGE | rng.choice((0, 4, 12))
                memory.host_write(page, struct.pack("<HHIQ", 1, 0, rng.getrandbits(32), entry))
            case 0x2:
                memory.host_write(page, good_vmsa(2, 1))
                regs.rdx, regs.r8 = page + PAGE, rng.choice((2, 3))
            case 0x3:
                regs.rcx = next(iter(self.arena.machine.vmsas), page)
            case 0x100000000 | 0x100000001:
                raw = struct.pack(
                    "<QIIQH6xQIIQII", page + PAGE, PAGE, 0, page, 64, page + 2 * PAGE, PAGE, 0, 0, 0, 0
                )
                memory.host_write(page + 0x100, raw + UEFI_MM_GUID.bytes_le + bytes(8))
                regs.rcx = page + 0x100
            case _:
                key = bytes([rng.randrange(4)])
                memory.host_write(page, note(rng.choice((1, 3, 4)), key, rng.randbytes(rng.randrange(64))))
                if len(self.arena.notebook.values.get(key.ljust(16, b"\0"), b"")) > 4096:
                    self.arena.notebook.values.clear()

    def poisoned(self):
        """Bytes of the SVSM in memory that the guest may read, other than through a frame the host lent it."""
        for region in self.arena.memory.rmp.regions:
            for index in range(min(region.pages, PAGES)):
                if region.rights[2][index] & R:
                    data = self.arena.memory.host_read(region.base + index * PAGE, PAGE)
                    if POISON[:64] in data:
                        return hex(region.base + index * PAGE)
        return None

    def round(self):
        rng, arena = self.rng, self.arena
        for _ in range(rng.randrange(3)):
            self.disturb()
        for page in [v.ca for v in arena.machine.vcpus.values() if v.ca is not None]:
            if arena.memory.rmp.state_of(page) & 3 != 3 and rng.random() < 0.5:
                arena.memory.rmp.rmpupdate(page, PAGE, assigned=True)
                arena.memory.rmp.pvalidate(page, large=False, validate=True)
                arena.memory.rmp.rmpadjust(page, vmpl=2, perm=RWX)
        vcpu = arena.machine.vcpus[rng.choice((0, 0, 1, 1, 2, 3))]
        number = call_number(
            rng.choice((0, 0, 1, 4, 4, 4, 2, rng.getrandbits(32))), rng.choice((0, 1, 1, 1, 2, 3, 6, 7))
        )
        values = [rng.getrandbits(64) for _ in range(18)]
        regs = Registers(*values)
        regs.rax = number
        regs.rcx = self.address()
        regs.rdx = rng.choice((self.address(), PAGE, 0x2000, 24, 0x10000, rng.getrandbits(64)))
        regs.r8 = rng.choice((2, 3, 1, rng.getrandbits(64)))
        if rng.random() < 0.5:
            self.aim(regs)
        if vcpu.ca is not None:
            try:
                arena.memory.host_write(vcpu.ca, bytes([rng.choice((1, 1, 1, 1, 0, 2))]))
            except InvalidAddress:
                return
        before = regs.copy()
        start = time.perf_counter()
        outcome = arena.dispatcher.enter(vcpu, regs, exit_code=0x403 if rng.random() < 0.97 else 0x400)
        self.slowest = max(self.slowest, time.perf_counter() - start)
        if outcome == Outcome.SERVED:
            assert regs.rax >> 32 == 0
            self.results[regs.rax] = self.results.get(regs.rax, 0) + 1
            before.rax = regs.rax
            if regs.rax not in (0, 0x80000005) and self.profile != "linux-svsm":
                before.rcx, before.rdx, before.r8 = regs.rcx, regs.rdx, regs.r8
            for name in set(Registers.__slots__) - {"rcx", "rdx", "r8"}:
                assert getattr(regs, name) == getattr(before, name)
        else:
            assert regs == before


def fuzz(profile, calls, seed, caplog):
    fuzzer = Fuzzer(profile, seed)
    for n in range(calls):
        fuzzer.round()
        if n % 500 == 0:
            fuzzer.arena.invariant()
            assert fuzzer.poisoned() is None
        if n % 5000 == 4999:
            next_seed = fuzzer.rng.getrandbits(32)
            results, slowest = fuzzer.results, fuzzer.slowest
            assert fuzzer.arena.audit.violations == []
            fuzzer.arena.machine.close()
            fuzzer = Fuzzer(profile, next_seed)
            fuzzer.results, fuzzer.slowest = results, slowest
    assert fuzzer.arena.audit.violations == []
    assert fuzzer.slowest < 5
    assert "svsm-" not in caplog.text  # no internal error: nothing left the dispatcher as an incident
    return fuzzer.results


def test_B65_fuzzed_calls(profile, caplog):
    results = fuzz(profile, 4000, 1, caplog)
    assert {0, 0x80000001, 0x80000002, 0x80000003, 0x80000005} <= set(results)
    assert results[0] > 100


@pytest.mark.exhaustive
def test_B65_a_million_fuzzed_calls(profile, caplog):
    fuzz(profile, 1_000_000 // 3 + 1, 2, caplog)
