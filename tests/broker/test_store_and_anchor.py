"""The sealed store on the real anchor client and broker: rollback, crashes, restored databases (K51, K52, K55)."""

import shutil

import pytest

from cvars.errors import AnchorRolledBack, AnchorUnreachable, StoreError, StoreRolledBack
from cvars.store import MemoryMedium, Mode, StoreConfig, StoreKeys, mount
from cvars.store.config import Outcome
from cvars.trace import Recorder
from tests.store.world import DB, blank, key, put, put_key


class Machine:
    """One VM with its flash, on a `World`'s broker."""

    def __init__(self, world, *, mode=Mode.STRICT, on_rollback="repair", vm_id="vm-1", report_id="01" * 32):
        self.world = world
        self.vm_id = vm_id
        self.mode = mode
        self.on_rollback = on_rollback
        self.report_id = report_id
        self.medium = MemoryMedium(blank())
        if world.broker.anchors.get(vm_id) is None:
            world.broker.add_vm(vm_id, mode=mode.label)

    def boot(self, *, provision=False, http=None):
        guest = self.world.guest(self.vm_id, http=http, report_id=self.report_id)
        self.trace = Recorder()
        acquired, keks, anchor = guest.boot(provision=provision)
        self.store = mount(
            self.medium,
            keys=StoreKeys(acquired.store_id, self.vm_id, keks, acquired.key_version),
            config=StoreConfig(mode=self.mode, on_rollback=self.on_rollback, doubt_s=0.3),
            acquired=acquired,
            anchor=anchor,
            random=self.world.random.randbytes,
            clock=self.world.clock,
            trace=self.trace,
            provision=provision,
            sleep=lambda s: setattr(self.world.clock, "now", self.world.clock.now + max(s, 0.001)),
        )
        return self.store

    def set(self, number: int) -> None:
        self.store.commit((put(f"Var{number % 7}", bytes([number]) * 40),))

    @property
    def image(self) -> bytes:
        return bytes(self.medium.image)

    def kinds(self):
        return [e.kind for e in self.trace.events]


@pytest.mark.parametrize("back", [1, 5])
def test_K51_a_rollback_inside_the_ring_is_repaired_to_exactly_the_anchored_state(world, back):
    machine = Machine(world)
    machine.boot(provision=True)
    images = []
    for n in range(10):
        machine.set(n)
        images.append(machine.image)
    wanted = dict(machine.store.variables)
    machine.medium.image[:] = images[-1 - back]
    world.clock.now += 31
    store = machine.boot()
    assert dict(store.variables) == wanted
    assert store.boot.outcome is Outcome.REPAIRED
    assert "store.rolled_back" in machine.kinds()


def test_K51_with_refuse_or_beyond_the_ring_it_stays_down(world):
    machine = Machine(world, on_rollback="refuse")
    machine.boot(provision=True)
    first = machine.image
    for n in range(3):
        machine.set(n)
    machine.medium.image[:] = first
    world.clock.now += 31
    with pytest.raises(StoreRolledBack):
        machine.boot()
    machine.on_rollback = "repair"
    machine.boot()  # the refusal handed the lease back; the image is untouched and inside the ring
    for n in range(60):
        machine.store.commit((put(f"Big{n % 4}", bytes([n]) * 1500),))
    now = machine.image
    machine.medium.image[:] = first
    world.clock.now += 31
    with pytest.raises(StoreRolledBack):
        machine.boot()
    machine.medium.image[:] = blank()
    with pytest.raises(StoreRolledBack):
        machine.boot()
    other = Machine(world, vm_id="vm-2", report_id="02" * 32)
    other.boot(provision=True)
    machine.medium.image[:] = other.image
    with pytest.raises(StoreError) as refused:
        machine.boot()
    assert refused.value.reason == "store.wrong_guest"
    machine.medium.image[:] = now
    machine.boot()


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_K52_a_lost_advance_is_resolved_and_nothing_acknowledged_is_lost(world, lost):
    machine = Machine(world)
    cut = {"on": False}

    def wire(method, path, headers, body):
        if cut["on"] and lost == "request":
            raise AnchorUnreachable("cut")
        answer = world.http(method, path, headers, body)
        if cut["on"]:
            raise AnchorUnreachable("cut")
        return answer

    machine.boot(provision=True, http=wire)
    machine.set(1)
    cut["on"] = True
    with pytest.raises(Exception):  # noqa: B017 - in doubt: not acknowledged
        machine.set(2)
    cut["on"] = False
    world.clock.now += 40  # the component crashed
    store = machine.boot()
    assert store.variables[key("Var1")].data == bytes([1]) * 40
    machine.set(3)
    world.clock.now += 31
    assert machine.boot().variables[key("Var3")].data == bytes([3]) * 40


def test_K52_a_crash_during_creation_starts_over(world):
    machine = Machine(world)
    pristine = machine.image
    calls = {"advance": 0}

    def wire(method, path, headers, body):
        if path.endswith("/advance"):
            calls["advance"] += 1
            raise AnchorUnreachable("cut")
        return world.http(method, path, headers, body)

    with pytest.raises(StoreError):
        machine.boot(provision=True, http=wire)
    assert calls["advance"] > 0
    assert machine.image != pristine
    world.clock.now += 31
    machine.boot(provision=True)
    machine.set(1)


def test_K55_a_restarted_broker_loses_nothing(world):
    machine = Machine(world)
    machine.boot(provision=True)
    for n in range(6):
        machine.set(n)
        if n % 2:
            world.restart()
    assert world.broker.anchors.get("vm-1").epoch == 1


def test_K55_a_restored_database_is_reported_by_the_next_guest(world, tmp_path):
    machine = Machine(world)
    machine.boot(provision=True)
    machine.set(1)
    world.close()
    shutil.copy(world.folder / "broker.db", tmp_path / "old.db")
    world.open()
    world.clock.now += 31
    machine.boot()
    machine.set(2)
    machine.set(3)
    machine.store.commit((put_key(DB, b"x" * 100),))
    world.close()
    shutil.copy(tmp_path / "old.db", world.folder / "broker.db")
    world.open()
    world.clock.now += 31
    with pytest.raises(AnchorRolledBack):
        machine.boot()
