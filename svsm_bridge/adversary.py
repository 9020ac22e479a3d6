"""A hostile hypervisor and hostile other vCPUs, acting between any two accesses of a call (svsm-calls 2.4).

A schedule is deterministic: the same steps, or the same seed, give the same run. For tests, and for the
socket transport when it was started for tests (S65).
"""

import json
import mmap
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from svsm_bridge.abi import (
    CORE,
    EFER_SVME,
    PAGE,
    VMSA_EFER,
    VMSA_SEV_FEATURES,
    VMSA_VMPL,
    Registers,
    call_number,
)
from svsm_bridge.dispatcher import Dispatcher
from svsm_bridge.errors import InvalidAddress, NeverResumed
from svsm_bridge.machine import Machine, Vcpu
from svsm_bridge.watch import HELD, Access


class BadSchedule(ValueError):
    """A schedule that cannot be understood."""


@dataclass(slots=True)
class World:
    """What an action may do its harm to."""

    machine: Machine
    dispatcher: Dispatcher


Action: TypeAlias = Callable[[World, Access], None]


def flip(gpa: int, data: bytes) -> Action:
    """Other bytes at ``gpa``, as the host or another process writes them into the frame."""
    return lambda world, _: world.machine.memory.host_write(gpa, data)


def revoke(gpa: int) -> Action:
    """All guest levels lose their rights to a page."""
    return lambda world, _: world.machine.memory.rmp.revoke(gpa)


def make_shared(gpa: int) -> Action:
    """The hypervisor takes a page away from the guest."""
    return lambda world, _: world.machine.memory.rmp.rmpupdate(gpa, PAGE, assigned=False)


def unmap(gpa: int) -> Action:
    """The hypervisor removes a page from the nested page table."""
    return lambda world, _: world.machine.memory.rmp.unmap(gpa, PAGE)


def remap(gpa: int, source: int) -> Action:
    """The hypervisor puts the frame of another guest page, or of the SVSM, at ``gpa``."""

    def act(world: World, _: Access) -> None:
        memory = world.machine.memory
        svsm = memory.svsm_base <= source < memory.svsm_base + memory.svsm_size
        memory.rmp.remap(gpa, memory.svsm_frame(source) if svsm else memory.frame(source))

    return act


def vcpu_call(vcpu: int, regs: Registers) -> Action:
    """Another vCPU makes a whole call of its own."""

    def act(world: World, _: Access) -> None:
        caller = world.machine.vcpus[vcpu]
        if caller.ca is not None:
            world.machine.memory.host_write(caller.ca, b"\1")
            world.dispatcher.enter(caller, regs.copy())

    return act


def to_vmsa(gpa: int, *, vcpu: int, apic_id: int, area: int) -> Action:
    """Another vCPU's CREATE_VCPU wins the race for a page."""

    def act(world: World, access: Access) -> None:
        machine = world.machine
        machine.memory.host_write(gpa, good_vmsa(machine.guest_vmpl, machine.vcpus[vcpu].sev_features))
        regs = Registers(rax=call_number(CORE, 2), rcx=gpa, rdx=area, r8=apic_id)
        vcpu_call(vcpu, regs)(world, access)

    return act


def reenter() -> Action:
    """The hypervisor enters the same vCPU's VMPL0 again in the middle of its call."""

    def act(world: World, access: Access) -> None:
        vcpu = world.machine.vcpus.get(access.vcpu)
        if vcpu is not None:
            world.dispatcher.enter(vcpu, Registers(rax=access.call))

    return act


def good_vmsa(vmpl: int, sev_features: int) -> bytes:
    """A VMSA page that CREATE_VCPU accepts."""
    page = bytearray(PAGE)
    page[VMSA_VMPL] = vmpl
    page[VMSA_EFER : VMSA_EFER + 8] = EFER_SVME.to_bytes(8, "little")
    page[VMSA_SEV_FEATURES : VMSA_SEV_FEATURES + 8] = sev_features.to_bytes(8, "little")
    return bytes(page)


@dataclass(frozen=True, slots=True)
class Step:
    """``action`` at access ``at`` (counted from 0 since the schedule began), before or after it."""

    at: int
    action: Action
    before: bool = True
    by_vcpu: bool = False


class Schedule:
    """An observer and entry filter that carries out steps. Accesses made by its own actions do not count."""

    def __init__(
        self,
        machine: Machine,
        dispatcher: Dispatcher,
        steps: Iterable[Step] = (),
        *,
        drop_entries: Iterable[int] = (),
        stop_replies: Iterable[int] = (),
        check: Callable[[], None] | None = None,
    ) -> None:
        self._world = World(machine, dispatcher)
        self._steps = list(steps)
        self._drop = set(drop_entries)
        self._stop = set(stop_replies)
        self._check = check
        self._waiting: list[tuple[Action, Access]] = []
        self._acting = False
        self.accesses: list[Access] = []
        self.entered: list[int] = []

    def __enter__(self) -> "Schedule":
        self._world.machine.watch(self)
        self._world.machine.entry_filter = self
        return self

    def __exit__(self, *_: object) -> None:
        self._world.machine.unwatch(self)
        self._world.machine.entry_filter = None

    def before(self, access: Access) -> None:
        """Steps due before this access."""
        if self._acting:
            return
        self._due(access, before=True)

    def after(self, access: Access, *, ok: bool) -> None:
        """Steps due after it, and the invariant."""
        if self._acting:
            return
        self._due(access, before=False)
        self.accesses.append(access)
        if self._check is not None and ok:
            self._check()

    def _due(self, access: Access, *, before: bool) -> None:
        now = len(self.accesses)
        held = access.op in HELD
        due = [step for step in self._steps if step.at == now and step.before == before]
        if not held:
            self._run(self._waiting)
            self._waiting = []
        for step in due:
            if step.by_vcpu and held:
                self._waiting.append((step.action, access))
            else:
                self._run([(step.action, access)])

    def _run(self, actions: Sequence[tuple[Action, Access]]) -> None:
        self._acting = True
        try:
            for action, access in actions:
                try:
                    action(self._world, access)
                except (InvalidAddress, KeyError):
                    continue  # the page is not there (any more): the adversary has missed
        finally:
            self._acting = False

    def enter(self, vcpu: Vcpu) -> bool:
        """``drop_entry``: the entry with that number does not happen."""
        if self._acting:
            return True
        self.entered.append(vcpu.apic_id)
        return len(self.entered) - 1 not in self._drop

    def leave(self, vcpu: Vcpu) -> None:
        """What waited for the rights lock happens now; ``stop_reply``."""
        if self._acting:
            return
        waiting, self._waiting = self._waiting, []
        self._run(waiting)
        if len(self.entered) - 1 in self._stop:
            raise NeverResumed(f"vCPU {vcpu.apic_id} does not run again")


# --- schedules as data ---------------------------------------------------------------------------------


def _action(step: dict[str, Any]) -> Action:
    gpa = step.get("gpa", 0)
    match step["do"]:
        case "flip":
            return flip(gpa, bytes.fromhex(step["bytes"]))
        case "revoke":
            return revoke(gpa)
        case "make_shared":
            return make_shared(gpa)
        case "unmap":
            return unmap(gpa)
        case "remap":
            return remap(gpa, step["source"])
        case "to_vmsa":
            return to_vmsa(gpa, vcpu=step["vcpu"], apic_id=step["apic_id"], area=step["area"])
        case "other_vcpu_call":
            return vcpu_call(step["vcpu"], Registers(**step["regs"]))
        case "reenter":
            return reenter()
        case other:
            raise BadSchedule(f"no action {other!r}")


def from_json(machine: Machine, dispatcher: Dispatcher, text: str) -> Schedule:
    """A schedule from the JSON of a SCHEDULE message.

    ``{"actions": [{"at": 3, "when": "before", "do": "flip", "gpa": 4096, "bytes": "00ff"}, ...],
    "drop_entries": [0], "stop_replies": [1]}``; ``do`` is one of flip, revoke, make_shared, unmap, remap
    (source), to_vmsa (vcpu, apic_id, area), other_vcpu_call (vcpu, regs), reenter.

    Raises:
        BadSchedule: not that.
    """
    try:
        data = json.loads(text)
        unknown = set(data) - {"actions", "drop_entries", "stop_replies"}
        if unknown:
            raise BadSchedule(f"unknown members {sorted(unknown)}")
        steps = []
        for step in data.get("actions", []):
            if step.get("when", "before") not in ("before", "after"):
                raise BadSchedule(f"when is {step['when']!r}")
            by_vcpu = step["do"] in ("to_vmsa", "other_vcpu_call", "reenter")
            steps.append(Step(int(step["at"]), _action(step), step.get("when", "before") == "before", by_vcpu))
        return Schedule(
            machine,
            dispatcher,
            steps,
            drop_entries=map(int, data.get("drop_entries", [])),
            stop_replies=map(int, data.get("stop_replies", [])),
        )
    except BadSchedule:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadSchedule(f"not a schedule: {type(error).__name__}") from error


def random_steps(
    seed: int, *, pages: Sequence[int], accesses: int, count: int, vcpus: Sequence[int]
) -> list[Step]:
    """``count`` random harmful steps on ``pages`` within ``accesses`` accesses."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible adversary
    steps = []
    for _ in range(count):
        page, at, before = rng.choice(pages), rng.randrange(accesses), rng.random() < 0.5
        kind = rng.randrange(8)
        action: Action
        by_vcpu = kind >= 6
        match kind:
            case 0:
                action = flip(page + rng.randrange(PAGE - 8), rng.randbytes(8))
            case 1:
                action = revoke(page)
            case 2:
                action = make_shared(page)
            case 3:
                action = unmap(page)
            case 4 | 5:
                action = remap(page, rng.choice(pages))
            case 6:
                action = to_vmsa(page, vcpu=rng.choice(vcpus), apic_id=rng.choice((2, 3)), area=rng.choice(pages))
            case _:
                regs = Registers(rax=call_number(CORE, rng.choice((0, 1, 2, 3))), rcx=page, rdx=rng.choice(pages))
                action = vcpu_call(rng.choice(vcpus), regs)
        steps.append(Step(at, action, before, by_vcpu))
    return steps


def rewrite(fd: int, spots: Sequence[tuple[int, Sequence[bytes]]], *, seed: int, seconds: float) -> int:
    """Free-running mode: rewrite the backing ``fd`` at (offset, values) from another process.

    Returns how many writes were made.
    """
    rng = random.Random(seed)  # noqa: S311
    size = max(offset + max(map(len, values)) for offset, values in spots)
    end, writes = time.monotonic() + seconds, 0
    with mmap.mmap(fd, -(-size // PAGE) * PAGE, mmap.MAP_SHARED) as backing:
        while time.monotonic() < end:
            for _ in range(256):
                offset, values = spots[rng.randrange(len(spots))]
                value = values[rng.randrange(len(values))]
                backing[offset : offset + len(value)] = value
                writes += 1
    return writes
