"""Power loss at every call, with every subset of sectors in flight, and again in recovery (SS-9, SS-10)."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import pytest

from cvars.host.media import Fault, FaultyMedium, NorMedium, PowerLoss
from cvars.store import Mode, Outcome
from cvars.store.memory_anchor import AnchorRecord
from cvars.variables.model import Delete
from tests.store.workload import run
from tests.store.world import DB, SMALL, World, append, delete, put, put_key, state

MODES = (Mode.NONE, Mode.PER_BOOT, Mode.BOUNDED, Mode.CRITICAL, Mode.STRICT)


@cache
def nearly_full(mode: Mode) -> tuple[World, bytes, AnchorRecord, dict]:
    """A store whose next few commits compact it."""
    world = World(mode=mode, seed=5)
    store = world.boot()
    rng = random.Random(5)
    run(store, rng, 20)
    while store._log.history.room > 3 * 512 + 512:
        store.commit((put("Fill", rng.randbytes(40)),))
    store.close()
    return world, world.image, world.anchor.record, state(store)


def journals() -> list[tuple]:
    return [
        (put("A", b"1" * 30),),
        (put_key(DB, b"2" * 700), put("B", b"3")),
        (append("A", b"4" * 20, b"1" * 30), delete("B")),
        (put("C", b"5" * 300),),
    ]


def after(before: dict, journal) -> dict:
    out = dict(before)
    for change in journal:
        if isinstance(change, Delete):
            del out[change.key]
        else:
            out[change.key] = change.variable
    return out


@dataclass
class Run:
    acknowledged: dict
    pending: dict
    medium: FaultyMedium
    anchor: AnchorRecord
    crashed: bool


def crash_at(mode: Mode, call: int, fault: Fault) -> tuple[World, Run]:
    base, image, record, start = nearly_full(mode)
    world = clone(base, record)
    medium = FaultyMedium(image, faults={call: fault})
    now = pending = start
    try:
        store = world.boot(medium=medium)
        for journal in journals():
            pending = after(now, journal)
            store.commit(journal)
            now = pending
        store.close()
    except PowerLoss:
        return world, Run(now, pending, medium, world.anchor.record, True)
    return world, Run(now, now, medium, world.anchor.record, False)


def clone(base: World, record: AnchorRecord) -> World:
    world = World(mode=base.mode)
    world.store_id, world.master = base.store_id, base.master
    world.anchor.record = replace(record, leased_until=None)
    return world


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.rule("SS-9", "SS-10", "SS-15", "T9", "T10")
def test_power_loss_at_every_call_with_subsets_of_sectors(mode, rng, exhaustive, capsys) -> None:
    counts: Counter = Counter()
    call = 0
    while True:
        for fault in (Fault.CRASH, Fault.CRASH_AFTER):
            world, crashed = crash_at(mode, call, fault)
            if not crashed.crashed:
                assert counts["crash points"] > 20
                if exhaustive:
                    with capsys.disabled():
                        print(f"\ncrash points, mode {mode.label}: {dict(counts)}, wrong 0")
                return
            counts["crash points"] += 1
            survivors = crashed.medium.survivors(rng, exhaustive_to=8 if exhaustive else 3, samples=3)
            for image in survivors:
                counts["images"] += 1
                world = clone(world, crashed.anchor)
                store = world.boot(image)
                assert state(store) in (crashed.acknowledged, crashed.pending), (call, fault)
                if counts["images"] % (3 if exhaustive else 25) == 0:
                    nested(world, image, crashed, rng, counts)
        call += 1


def nested(world, image, crashed, rng, counts) -> None:
    """Power loss at each call of the recovery itself; the boot after it must do as well."""
    found = None
    call = 0
    while True:
        again = clone(world, crashed.anchor)
        medium = FaultyMedium(image, faults={call: Fault.CRASH if call % 2 else Fault.CRASH_AFTER})
        try:
            store = again.boot(medium=medium)
        except PowerLoss:
            record = again.anchor.record
            for survivor in medium.survivors(rng, exhaustive_to=2, samples=1):
                counts["nested images"] += 1
                last = clone(again, record)
                got = state(last.boot(survivor))
                assert got in (crashed.acknowledged, crashed.pending)
        else:
            found = state(store)
            break
        call += 1
    assert found in (crashed.acknowledged, crashed.pending)


@pytest.mark.rule("SS-10", "SS-12")
def test_power_loss_during_a_repair_leaves_a_later_point_of_the_ring(rng, exhaustive, capsys) -> None:
    world = World(mode=Mode.STRICT, seed=6)
    store = world.boot()
    generator = random.Random(6)
    while store._log.history.room > 4 * 512:
        store.commit((put("Fill", generator.randbytes(40)),))
    old = world.image
    generation = store.generation
    while store.generation < generation + 2:  # the ring spans two compactions
        store.commit((put("Fill", generator.randbytes(40)),))
    store.commit((put("End", b"here"),))
    want = state(store)
    record = replace(world.anchor.record, leased_until=None)
    images = 0
    call = 0
    while True:
        again = clone(world, record)
        medium = FaultyMedium(old, faults={call: Fault.CRASH_AFTER if call % 2 else Fault.CRASH})
        try:
            done = again.boot(medium=medium)
        except PowerLoss:
            for survivor in medium.survivors(rng, exhaustive_to=4 if exhaustive else 1, samples=1):
                images += 1
                last = clone(world, replace(again.anchor.record, leased_until=None))
                store = last.boot(survivor)
                assert state(store) == want
        else:
            assert state(done) == want
            assert done.boot.outcome is Outcome.REPAIRED
            break
        call += 1 if exhaustive else 3
    assert images > 30
    if exhaustive:
        with capsys.disabled():
            print(f"\npower loss during a repair over two compactions: {call} points, {images} images, wrong 0")


@pytest.mark.rule("SS-22", "T17")
def test_power_loss_during_creation_starts_over_or_goes_on(rng) -> None:
    call = 0
    while True:
        world = World(mode=Mode.STRICT)
        medium = FaultyMedium(world.image, faults={call: Fault.CRASH if call % 2 else Fault.CRASH_AFTER})
        try:
            world.boot(medium=medium)
            break
        except PowerLoss:
            record = world.anchor.record
            for image in medium.survivors(rng, exhaustive_to=1, samples=2):
                again = clone(world, record)
                store = again.boot(image)
                assert state(store) == {}
                assert bytes(again.medium.image[:4096]) == bytes(4096)
                store.commit((put("First", b"1"),))
                assert state(again.boot()) == state(store)
        call += 1
    assert call >= 8


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("mode", [Mode.PER_BOOT, Mode.CRITICAL, Mode.STRICT, Mode.BOUNDED])
@pytest.mark.rule("SS-9", "SS-15", "T19")
def test_power_loss_at_every_message_to_the_anchor(mode, when) -> None:
    """The table of section 4: anchor not updated, or updated and the answer lost."""
    stop = 0
    while True:
        base, image, record, start = nearly_full(mode)
        world = clone(base, record)
        anchor = Cut(world.anchor, stop, when)
        now = pending = start
        try:
            store = world.boot(image, anchor=anchor)
            for journal in journals():
                pending = after(now, journal)
                store.commit(journal)
                now = pending
            store.close()
        except PowerLoss:
            again = clone(world, world.anchor.record)
            assert state(again.boot(world.image)) in (now, pending)
        else:
            assert stop >= 3
            return
        stop += 1


class Cut:
    """An anchor at whose n-th message the machine loses power."""

    def __init__(self, anchor, stop: int, when: str) -> None:
        self._anchor, self._left, self._when = anchor, stop, when

    def _call(self, method, **arguments):
        self._left -= 1
        if self._left < 0 and self._when == "before":
            raise PowerLoss
        answer = method(**arguments)
        if self._left < 0:
            raise PowerLoss
        return answer

    def advance(self, **arguments):
        return self._call(self._anchor.advance, **arguments)

    def renew(self, **arguments):
        return self._call(self._anchor.renew, **arguments)

    def seal(self, **arguments):
        return self._call(self._anchor.seal, **arguments)


@pytest.mark.rule("SS-24", "SS-9")
def test_nor_flash_is_erased_before_it_is_written_and_evenly() -> None:
    world = World(mode=Mode.STRICT, medium=1)
    world.medium = NorMedium(world.image)
    store = world.boot()
    rng = random.Random(1)
    live = run(store, rng, 300)
    want = state(store)
    erased = world.medium.erased
    assert max(erased.values()) - min(erased.values()) <= 1
    half = SMALL // 2
    assert {b // half for b in erased} == {0, 1}
    for number in range(30):  # torn tails: cells behind the last record are no longer blank
        torn = bytearray(world.image)
        tail = store._log.history.header.bank_offset + store._log.history.tail
        if number % 2 and store._log.history.room > 512:
            torn[tail : tail + 512] = rng.randbytes(512)
        world.medium = NorMedium(torn)
        store = world.boot()
        assert state(store) == want
        run(store, rng, 3, live)
        want = state(store)


def test_nor_flash_sets_no_bit_without_an_erase_of_whole_blocks() -> None:
    """The medium above is one on which a mistake shows."""
    flash = NorMedium(b"\xff" * 16384)
    flash.write(10, b"\xf0\x0f")
    flash.write(10, b"\x30\x00")
    with pytest.raises(OSError, match="erase"):
        flash.write(10, b"\x31\x00")
    for offset, length in ((1, 4096), (0, 4095), (512, 512)):
        with pytest.raises(OSError, match="whole blocks"):
            flash.erase(offset, length)
    assert flash.image[10:12] == b"\x30\x00"
    flash.erase(0, 8192)
    assert bytes(flash.image) == b"\xff" * 16384
    assert flash.erased == {0: 1, 4096: 1}
