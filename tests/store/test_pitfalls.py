"""Storage pitfalls that others fell into (`pitfalls` P31, P34, P35, P36), each with what would show it here."""

from itertools import pairwise

import pytest

from cvars.errors import StoreError, StoreNotProvisioned
from cvars.store import MemoryMedium, Mode
from cvars.store.inspecting import LOG, inspect
from cvars.store.record import PREFIX_BYTES
from tests.store.world import SMALL, World, blank, key, put, state


def logged(image):
    """The records that the host can tell apart, of both banks."""
    return [r for bank in inspect(image).banks for r in bank.records if r.place == LOG]


class Cuttable(MemoryMedium):
    """Keeps each write with what was there before."""

    def __init__(self, image):
        super().__init__(image)
        self.steps = []

    def write(self, offset, data):
        self.steps.append((bytes(self.image), offset, bytes(data)))
        return super().write(offset, data)


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.CRITICAL])
def test_P31_a_write_cut_at_every_byte_leaves_a_store_that_mounts(mode) -> None:
    """Of one commit: whatever part of it reached the disk, the state is the one before it or the one after it."""
    world = World(mode=mode)
    store = world.boot()
    store.commit((put("A", b"old"),))
    before, record = state(store), world.anchor.record
    medium = Cuttable(world.image)
    world.medium.write = medium.write  # type: ignore[method-assign]
    store.commit((put("A", b"new"), put("B", b"more")))
    after = state(store)
    assert before != after
    assert medium.steps
    outcomes = set()
    for image, offset, data in medium.steps:
        for cut in range(len(data) + 1):
            torn = bytearray(image)
            torn[offset : offset + cut] = data[:cut]
            world.anchor.record = record
            found = state(world.boot(bytes(torn)))
            assert found in (before, after), cut
            outcomes.add(found == after)
    assert outcomes == {False, True}


@pytest.mark.parametrize("mode", [Mode.PER_BOOT, Mode.CRITICAL, Mode.STRICT])
def test_P34_an_empty_disk_is_no_new_guest(mode) -> None:
    world = World(mode=mode)
    world.boot().close()
    for empty in (bytes(SMALL), b"\xff" * SMALL, blank(), blank(medium=1)):
        assert world.refused(empty).reason in ("store.rolled_back", "store.tampered", "anchor.rolled_back")
    new = World(mode=mode, seed=2)
    assert isinstance(new.refused(blank(), provision=False), StoreNotProvisioned)
    assert isinstance(new.refused(bytes(SMALL)), StoreNotProvisioned)
    assert not new.boot(blank()).variables


@pytest.mark.parametrize("suite", [1, 2, 3])
def test_P35_a_rewound_image_is_never_continued_under_the_same_nonce(suite) -> None:
    """As the host sees it: over many rewinds of one image, no (bank, session, sequence, part) seals two things."""
    world = World(mode=Mode.NONE, suite=suite)
    store = world.boot()
    store.commit((put("A", b"first"),))
    old = world.image
    sealed: dict[tuple[bytes, ...], set[bytes]] = {}
    for number in range(12):
        store = world.boot(old)
        for _ in range(3):
            store.commit((put("A", bytes([number]) * 40),))
        image = world.image
        for bank in inspect(image).banks:
            for one in bank.records:
                prefix = image[one.offset : one.offset + PREFIX_BYTES]
                body = image[one.offset + PREFIX_BYTES : one.offset + one.size]
                salt = image[bank.offset : bank.offset + 512]
                sealed.setdefault((salt, prefix[8:], bytes(prefix[6:8])), set()).add(body)
    assert len(sealed) > 12 * 3
    assert all(len(bodies) == 1 for bodies in sealed.values())


def test_P36_nothing_outside_the_seal_tells_attributes_times_order_or_count() -> None:
    """Two stores whose records have the same classes; all else differs. What is in the clear does not."""
    seen = []
    for names, attributes, value in (("ABC", 7, b"x"), ("AAA", 3, b"y" * 30)):
        world = World(mode=Mode.CRITICAL, seed=4)
        store = world.boot()
        for name in names:
            store.commit((put(name, value, attributes=attributes),))
        store.close()
        seen.append([(r.offset, r.size, r.session, r.sequence, r.part, r.place) for r in logged(world.image)])
    assert seen[0] == seen[1]
    assert len(seen[0]) >= 4


def test_P36_no_clear_byte_of_a_record_can_be_changed_and_no_record_moved() -> None:
    world = World(mode=Mode.CRITICAL, on_rollback="refuse")
    store = world.boot()
    for number in range(4):
        store.commit((put(f"V{number}", bytes([number]) * 20),))
    store.close()
    image, whole, record = world.image, state(store), world.anchor.record
    assert whole[key("V0")].data == bytes(20)
    records = logged(image)
    changed = []
    for one in records:
        for at in range(one.offset, one.offset + PREFIX_BYTES):
            other = bytearray(image)
            other[at] ^= 0x11
            changed.append(bytes(other))
        changed.append(image[: one.offset] + bytes(one.size) + image[one.offset + one.size :])
    for first, second in pairwise(records):
        assert first.size == second.size
        swapped = bytearray(image)
        swapped[first.offset : first.offset + first.size] = image[second.offset : second.offset + second.size]
        swapped[second.offset : second.offset + second.size] = image[first.offset : first.offset + first.size]
        changed.append(bytes(swapped))
    refused = 0
    for other in changed:
        world.anchor.record = record
        try:
            assert state(world.boot(other)) == whole
        except StoreError:
            refused += 1
    assert refused >= len(changed) - PREFIX_BYTES - 1  # only the close record, which says nothing, may be missed
