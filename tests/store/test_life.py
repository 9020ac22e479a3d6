"""A store's ordinary life: create, commit, compact, close, mount again."""

from itertools import pairwise

import pytest

from cvars.errors import StoreNotProvisioned
from cvars.store import Mode, Outcome
from cvars.store.geometry import CLASSES, RECORD_OVERHEAD
from cvars.store.operations import OPERATION_BYTES
from cvars.variables.model import Variable
from tests.store.world import DB, World, append, delete, key, put, put_key, state

MODES = [Mode.PER_BOOT, Mode.BOUNDED, Mode.CRITICAL, Mode.STRICT, Mode.NONE]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suite", [1, 2, 3])
def test_SS_8_what_was_acknowledged_is_there_after_the_next_boot(mode, suite) -> None:
    world = World(mode=mode, suite=suite)
    store = world.boot()
    assert store.boot.outcome is Outcome.CREATED
    store.commit((put("BootOrder", b"\x01\x00"), put("Timeout", b"\x05")))
    store.commit((append("BootOrder", b"\x02\x00", b"\x01\x00"),))
    store.commit((put_key(DB, b"d" * 500),))
    store.commit((delete("Timeout"),))
    want = {
        key("BootOrder"): Variable(7, b"\x01\x00\x02\x00"),
        DB: Variable(0x27, b"d" * 500, bytes(range(16))),
    }
    assert state(store) == want
    store.close()
    again = world.boot()
    assert state(again) == want
    assert again.boot.outcome is Outcome.CLEAN
    assert again.boot.verified is (mode is not Mode.NONE)


@pytest.mark.parametrize("mode", MODES)
def test_SS_9_a_crash_after_each_commit_keeps_what_was_acknowledged(mode) -> None:
    world = World(mode=mode)
    world.boot()
    want = {}
    for number in range(30):
        store = world.boot()
        assert state(store) == want
        change = put(f"V{number % 7}", bytes([number]) * (number * 9))
        store.commit((change,))
        want[change.key] = change.variable


@pytest.mark.parametrize("frame", [512, 1024, 2048, 4096])
def test_SS_24_the_log_is_compacted_into_the_other_bank_and_back(frame) -> None:
    world = World(size=256 * frame, frame=frame)
    store = world.boot()
    for number in range(400):
        store.commit((put(f"V{number % 5}", bytes([number % 251]) * 300),))
    assert store.generation > 3
    want = state(store)
    assert state(world.boot()) == want
    assert world.trace.kinds().count("store.compacted") == store.generation - 1


def test_SS_22_a_creation_header_without_a_grant_is_not_provisioned() -> None:
    world = World()
    assert isinstance(world.refused(provision=False), StoreNotProvisioned)
    assert world.anchor.record.leased_until is None, "the lease was handed back"


@pytest.mark.rule("SS-2", "T15")
@pytest.mark.parametrize("frame", [512, 1024, 4096])
def test_a_record_has_the_smallest_class_that_holds_it(frame) -> None:
    """By one byte around each class; the padding is what hides sizes inside of it."""
    world = World(mode=Mode.PER_BOOT, size=1024 * frame, frame=frame)
    store = world.boot()
    for frames, next_frames in pairwise(CLASSES):
        if frames * frame > store.capacity:
            break
        room = frames * frame - RECORD_OVERHEAD - OPERATION_BYTES - 2
        for data, size in ((room, frames), (room + 1, next_frames)):
            world.medium.writes.clear()
            store.commit((put("X", bytes(data)),))
            assert world.medium.writes[-1][1] == size * frame
            store.commit((put("X", b""),))
    want = state(store)
    store.close()
    assert state(world.boot()) == want


def test_SS_8_one_commit_is_one_write_of_one_record_and_one_barrier() -> None:
    world = World(mode=Mode.PER_BOOT, size=1 << 20, frame=1024)
    store = world.boot()
    for number in range(50):
        world.medium.writes.clear()
        before = world.medium.barriers
        store.commit((put("X", bytes([number]) * 64),))
        assert [size for _, size in world.medium.writes] == [1024]
        assert world.medium.barriers == before + 1
