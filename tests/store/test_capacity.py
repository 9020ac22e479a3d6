"""Exact capacity, reserved room, bounded work and memory, equal traces (SS-2, SS-23, SS-24, T15, T24)."""

import random
import tracemalloc

import pytest

from cvars.errors import EfiStatus
from cvars.store import MemoryMedium, Mode, StoreFull
from cvars.store.geometry import FRAMES
from cvars.variables.model import Key, Put, Variable
from cvars.variables.security import PRIVATE
from tests.store.world import DB, World, delete, key, put, put_key, state


@pytest.mark.parametrize("name", ["A\U0001f600", "A\ud83d\ude00", "A\ud83d", "\u00e9"])
@pytest.mark.rule("SS-23", "SS-15")
def test_a_name_costs_its_bytes_even_where_two_units_are_one_character(name) -> None:
    """What a guest may name a variable never makes the store unreadable once it compacts."""
    world = World(mode=Mode.STRICT)
    store = world.boot()
    before = store.live
    store.commit((put(name, b"value"),))
    assert store.live - before == 44 + len(name.encode("utf-16-le", "surrogatepass")) + 5
    generation = store.generation
    while store.generation < generation + 2:
        store.commit((put("Other", bytes(900)),))
    store.close()
    store = world.boot(world.image)
    assert {k.name_bytes: v.data for k, v in store.variables.items()}[put(name, b"").key.name_bytes] == b"value"


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.rule("SS-23")
def test_a_store_takes_exactly_its_capacity(frame) -> None:
    world = World(mode=Mode.PER_BOOT, size=256 * frame, frame=frame)
    store = world.boot()
    room = store.capacity * 3 // 4  # the rest is reserved
    number = 0
    while room - store.live > 2000:
        store.commit((put(f"V{number:04}", bytes(1000)),))
        number += 1
    left = room - store.live - 44 - 2
    with pytest.raises(StoreFull) as caught:
        store.commit((put("L", bytes(left + 1)),))
    assert caught.value.status is EfiStatus.OUT_OF_RESOURCES
    store.commit((put("L", bytes(left)),))
    assert store.live == room
    dbx = store.capacity - store.live - 44 - 4
    with pytest.raises(StoreFull):
        store.commit((put_key(DB, bytes(dbx + 1)),))
    store.commit((put_key(DB, bytes(dbx)),))
    assert store.live == store.capacity
    for round_number in range(60):
        store.commit((put_key(DB, bytes([round_number]) * dbx), put("L", bytes([round_number]) * left)))
    assert state(world.boot()) == state(store)


@pytest.mark.rule("SS-23", "T24")
def test_a_full_store_still_takes_a_revocation() -> None:
    world = World(mode=Mode.CRITICAL, size=256 << 10, frame=1024)
    store = world.boot()
    number = 0
    try:
        while True:
            store.commit((put(f"Junk{number}", bytes(500)),))
            number += 1
    except StoreFull:
        pass
    assert number > 40
    store.commit((put_key(DB, bytes(store.capacity // 4 - 200)),))
    store.commit((Put(Key(PRIVATE, "pin"), Variable(3, bytes(40))),))
    with pytest.raises(StoreFull):
        store.commit((put("Junk", bytes(500)),))
    store.commit((put("Junk1", bytes(400)),))
    store.commit((delete("Junk2"),))


@pytest.mark.rule("SS-23")
def test_growing_security_relevant_variables_take_room_from_the_others() -> None:
    world = World(mode=Mode.NONE)
    store = world.boot()
    store.commit((put_key(DB, bytes(store.capacity // 2)),))
    others = store.capacity - store.live
    with pytest.raises(StoreFull):
        store.commit((put("A", bytes(others - 44 - 2 + 1)),))
    store.commit((put("A", bytes(others - 44 - 2)),))


@pytest.mark.rule("SS-23")
def test_a_commit_larger_than_the_largest_record_is_refused_whole() -> None:
    world = World(mode=Mode.NONE, size=1 << 20, frame=1024)
    store = world.boot()
    store.commit((put("Big", bytes(66 * 1024 - 104 - 44 - 6)),))
    with pytest.raises(StoreFull):
        store.commit((put("Big", bytes(66 * 1024 - 104 - 44 - 6 + 1)),))
    with pytest.raises(StoreFull):
        store.commit(tuple(put(f"B{n}", bytes(30_000)) for n in range(3)))
    store.commit((put("Max", bytes(65536)),))
    assert set(store.variables) == {key("Big"), key("Max")}


@pytest.mark.rule("SS-24", "T24")
def test_compaction_cannot_be_forced_into_a_storm() -> None:
    """At full capacity a commit of the smallest class costs at most a bank in 66 frames."""
    world = World(mode=Mode.PER_BOOT, size=256 << 10, frame=1024)
    store = world.boot()
    store.commit((put("A", bytes(store.capacity * 3 // 4 - 44 - 2)),))
    store.commit((put_key(DB, bytes(store.capacity - store.live - 44 - 4)),))
    world.medium.writes.clear()
    for number in range(400):
        store.commit((put_key(DB, bytes([number % 256]) * len(store.variables[DB].data)),))
    written = sum(size for _, size in world.medium.writes)
    size = 16 * 1024
    assert written / 400 < size * 3


@pytest.mark.rule("SS-24")
def test_memory_stays_under_twice_the_image_and_the_state() -> None:
    world = World(mode=Mode.PER_BOOT, size=4 << 20, frame=1024)
    store = world.boot()
    rng = random.Random(1)
    for number in range(1200):
        store.commit((put(f"V{number % 50}", rng.randbytes(600)),))
    store.close()
    image = world.image
    world.medium = MemoryMedium(image)
    tracemalloc.start()
    store = world.boot()
    peak = tracemalloc.get_traced_memory()[1]
    for number in range(300):
        store.commit((put(f"V{number % 50}", rng.randbytes(600)),))
    steady, later = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 2 * len(image) + store.live * 4
    assert steady <= len(image) // 2, "the image is not kept"
    assert later <= 2 * len(image) + store.live * 4


@pytest.mark.parametrize("mode", [Mode.PER_BOOT, Mode.STRICT])
@pytest.mark.rule("SS-2", "T15")
def test_two_workloads_of_equal_classes_give_equal_traces(mode) -> None:
    """Different names, GUIDs, values, kinds of change; the same size classes: nothing shows."""
    traces = []
    for names, filler, seed in (("ABCDEFGH", 0x00, 1), ("WXYZQRST", 0xFF, 2)):
        world = World(mode=mode, seed=seed)
        store = world.boot()
        rng = random.Random(9)
        for number in range(400):
            size = rng.choice((10, 100, 340, 500, 1200))
            which = names[rng.randrange(8)]
            store.commit((put(which, bytes([filler]) * (size + seed - 1)),))
            if number % 50 == 49:
                world.clock.now += 11
                store.tick()
        store.close()
        traces.append(world.medium.writes)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 400


@pytest.mark.rule("SS-2")
def test_sizes_show_only_as_classes() -> None:
    world = World(mode=Mode.NONE, size=1 << 20, frame=1024)
    store = world.boot()
    shown = set()
    for size in range(1, 60_000, 700):
        world.medium.writes.clear()
        store.commit((put("A", bytes(size)),))
        if len(world.medium.writes) == 1:
            shown.add(world.medium.writes[0][1] // 1024)
    assert shown <= {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 66}
    assert len(shown) > 9


def test_journals_that_would_poison_the_store_never_reach_it() -> None:
    world = World(mode=Mode.NONE)
    store = world.boot()
    from tests.store.world import append

    before = world.image
    for journal in (
        (delete("Nothing"),),
        (append("Nothing", b"x", b""),),
        (put("", b"x"),),
        (put("a\0b", b"x"),),
    ):
        with pytest.raises(ValueError, match="journal"):
            store.commit(journal)
    assert world.image == before
    store.commit(())
    assert world.image == before
    store.commit((put("A", b"1"), append("A", b"2", b"1"), delete("A"), put("A", b"3")))
    assert state(world.boot()) == {key("A"): put("A", b"3").variable}
