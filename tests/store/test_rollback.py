"""Rollback of images, forks, clones, lost writes, a broker that forgot (T5, T6, T11..T13, T20, T21)."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from cvars.errors import (
    AnchorFenced,
    AnchorRolledBack,
    DeviceError,
    NotReady,
    StoreError,
    StoreForked,
    StoreRolledBack,
)
from cvars.host.media import Fault, FaultyMedium
from cvars.store import MemoryMedium, Mode, Outcome
from cvars.store.memory_anchor import MemoryAnchor
from tests.store.images import sample
from tests.store.workload import run
from tests.store.world import DB, World, put, put_key, state


def history(commits: int, *, mode=Mode.STRICT, seed=3) -> tuple[World, list[tuple[int, bytes]], dict]:
    """A run whose image is kept after every commit."""
    world = World(mode=mode, seed=seed)
    rng = random.Random(seed)
    store = world.boot()
    images = [(store.point.counter, world.image)]
    live: dict = {}
    for _ in range(commits):
        run(store, rng, 1, live)
        images.append((store.point.counter, world.image))
    store.close()
    return world, images, state(store)


@pytest.mark.parametrize("commits", [60, pytest.param(300, marks=pytest.mark.exhaustive)])
@pytest.mark.rule("SS-12", "T5")
def test_every_historic_image_is_repaired_within_the_ring_and_refused_outside(commits, capsys) -> None:
    world, images, final = history(commits)
    record = replace(world.anchor.record, leased_until=None)
    counts: Counter = Counter()
    for counter, image in images:
        world.anchor.record = record
        inside = counter >= record.base.counter
        world.trace.events.clear()
        try:
            store = world.boot(image)
        except StoreRolledBack:
            counts["refused outside the ring"] += 1
            assert not inside, counter
            assert not world.medium.writes
            event = next(e for e in world.trace.events if e.kind == "store.rolled_back")
            assert (event.found, event.anchored, event.outcome) == (counter, record.point.counter, "refused")
        else:
            counts["repaired inside the ring"] += 1
            assert inside, counter
            assert state(store) == final
            assert store.boot.outcome is Outcome.REPAIRED
            assert (store.boot.found, store.boot.anchored) == (counter, record.point.counter)
            event = next(e for e in world.trace.events if e.kind == "store.rolled_back")
            assert (event.found, event.outcome) == (counter, "repaired")
            world.anchor.record = replace(world.anchor.record, leased_until=None)
            assert state(world.boot()) == final
            assert world.trace.kinds().count("store.rolled_back") == 1, "a repaired image is an ordinary one"
        world.anchor.record = record
        assert isinstance(world.refused(image, on_rollback="refuse"), StoreRolledBack)
        counts["refused with --on-rollback refuse"] += 1
    assert counts["repaired inside the ring"] > 20
    if commits == 300:
        assert counts["refused outside the ring"] > 20
        with capsys.disabled():
            print(f"\n{commits}-commit run, every historic image: {dict(counts)}")


def test_T5_an_image_from_before_the_ring_is_refused_with_both_counters() -> None:
    world, images, _ = history(150)
    world.anchor.record = replace(world.anchor.record, leased_until=None)
    error = world.refused(images[2][1])
    assert type(error) is StoreRolledBack
    assert str(images[2][0]) in error.message
    assert str(world.anchor.record.point.counter) in error.message


def test_SS_12_a_ring_whose_bytes_were_damaged_repairs_nothing() -> None:
    world, images, _ = history(30)
    good = replace(world.anchor.record, leased_until=None)
    for item in range(len(good.ring) - 3, len(good.ring)):
        ring = list(good.ring)
        broken = bytearray(ring[item].escrow)
        broken[100] ^= 1
        ring[item] = replace(ring[item], escrow=bytes(broken))
        world.anchor.record = replace(good, ring=tuple(ring))
        assert isinstance(world.refused(images[-5][1]), StoreRolledBack)


@pytest.mark.rule("SS-13", "T6")
def test_two_live_clones_only_the_newer_one_commits() -> None:
    for mode in (Mode.STRICT, Mode.CRITICAL, Mode.PER_BOOT, Mode.BOUNDED):
        world = World(mode=mode)
        first = world.boot()
        first.commit((put("Who", b"first"),))
        image = world.image
        second = world.boot(image)
        second.commit((put("Who", b"second"),))
        world.clock.now += 11
        with pytest.raises(AnchorFenced):
            first.tick()
        with pytest.raises(AnchorFenced):
            first.commit((put_key(DB, b"first again"),))
        with pytest.raises((AnchorFenced, NotReady)):
            first.commit((put("Who", b"first at last"),))
        with pytest.raises(AnchorFenced):
            first.require_lease()
        second.commit((put("Who", b"second again"),))


@pytest.mark.rule("SS-13", "T6")
def test_the_image_of_the_fenced_clone_is_a_fork() -> None:
    world = World(mode=Mode.PER_BOOT)
    first = world.boot()
    first.commit((put("Who", b"first"),))
    mine = world.medium
    second = world.boot(world.image)
    for number in range(3):
        first_medium, world.medium = world.medium, mine
        first.commit((put("Who", bytes([number])),))
        world.medium = first_medium
        second.commit((put("Other", bytes([number])),))
    second.close()
    assert type(world.refused(bytes(mine.image))) is StoreForked
    assert state(world.boot(bytes(first_medium.image)))[put("Who", b"").key].data == b"first"


def test_T12_a_stale_record_that_resurfaces_behind_a_new_session_is_no_commit() -> None:
    world = World(mode=Mode.PER_BOOT)
    world.boot().close()
    before = world.image
    store = world.boot()
    store.commit((put("A", b"1"),))
    store.commit((put("A", b"2"),))
    late = [(o, bytes(world.medium.image[o : o + n])) for o, n in world.medium.writes[-3:]]
    # the disk loses both, a new session begins, and then the old writes arrive behind it
    world.anchor.record = replace(world.anchor.record, leased_until=None)
    fresh = world.boot(before)
    assert state(fresh) == {}
    image = bytearray(world.image)
    for offset, data in late[2:]:
        image[offset : offset + len(data)] = data
    again = world.boot(bytes(image))
    assert state(again) == {}
    # over the announcement itself: another branch
    image = bytearray(before)
    for offset, data in late:
        image[offset : offset + len(data)] = data
    error = world.refused(bytes(image))
    assert type(error) is StoreForked


@pytest.mark.parametrize("lost", range(1, 19))
@pytest.mark.rule("SS-15", "T11", "T13")
def test_a_flush_that_lies_about_acknowledged_commits_is_repaired(lost) -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    images = [world.image]
    for number in range(18):
        store.commit((put(f"V{number % 5}", bytes([number]) * 70),))
        images.append(world.image)
    want = state(store)
    again = world.boot(images[-1 - lost])
    assert state(again) == want
    assert again.boot.outcome is Outcome.REPAIRED
    assert again.boot.commits_repaired == lost


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.MISDIRECT, Fault.DELAY, Fault.DUPLICATE])
@pytest.mark.rule("SS-15", "T11", "T12", "T13")
def test_dropped_delayed_duplicated_and_misdirected_writes(fault, rng, exhaustive) -> None:
    """An acknowledged commit is there again, or the refusal says so."""
    outcomes: Counter = Counter()
    base = sample(Mode.STRICT, commits=10)
    for call in range(0, 60, 1 if exhaustive else 3):
        for elsewhere in (0, 5000, 70000, 90000) if fault in (Fault.MISDIRECT, Fault.DUPLICATE) else (0,):
            world = base.fresh()
            medium = FaultyMedium(base.image, faults={call: fault}, elsewhere=elsewhere * 512)
            acknowledged = dict(base.final)
            store = world.boot(medium=medium)
            generator = random.Random(call)
            for number in range(30):
                one = put(f"N{generator.randrange(5)}", bytes([number]) * generator.randrange(1, 400))
                try:
                    store.commit((one,))
                except DeviceError:
                    continue
                acknowledged[one.key] = one.variable
            image = bytes(medium.seen)
            try:
                again = world.boot(image)
            except StoreError as error:
                assert not world.medium.writes
                outcomes[error.reason] += 1
            else:
                assert state(again) == acknowledged, (call, elsewhere)
                outcomes[again.boot.outcome.name] += 1
    assert outcomes["CLEAN"] + outcomes["REPAIRED"] > 0
    assert set(outcomes) <= {"CLEAN", "REPAIRED", "store.tampered", "store.rolled_back"}, outcomes


@pytest.mark.rule("SS-16", "T21")
def test_a_broker_restored_from_a_backup_is_detected_whatever_the_image_did_since() -> None:
    for sessions_since, commits in ((0, 2), (0, 40), (1, 3), (2, 200)):
        world = World(mode=Mode.STRICT)
        store = world.boot()
        store.commit((put("A", b"0"),))
        backup = world.anchor.record
        for _ in range(sessions_since):
            store = world.boot()
            run(store, random.Random(1), commits, {})
        for number in range(commits):
            store.commit((put("B", bytes([number % 256]) * 300),))
        world.anchor.record = backup
        error = world.refused(world.image)
        assert isinstance(error, AnchorRolledBack | StoreForked), (sessions_since, commits)
        if sessions_since:
            assert type(error) is AnchorRolledBack


def test_SS_16_T21_a_version_of_the_brokers_record_from_the_future_is_refused() -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    store.close()
    world.anchor.record = replace(world.anchor.record, version=world.acquired.version - 2)
    assert type(world.refused(world.image)) is AnchorRolledBack


def test_SS_15_the_authorised_way_out_is_a_rebase() -> None:
    world, images, _ = history(150)
    world.anchor.record = replace(world.anchor.record, leased_until=None)
    _counter, image = images[5]
    assert isinstance(world.refused(image), StoreRolledBack)
    reader = World(mode=Mode.NONE)
    reader.store_id, reader.master = world.store_id, world.master
    point = reader.boot(image)
    from tests.store.oracle import Oracle

    oracle = Oracle(image, world.store_id, world.vm_id, {1: world.kek(1)})
    world.anchor.reset(type(point.point)(oracle.counter, oracle.root))
    store = world.boot(image)
    assert state(store) == oracle.variables
    store.commit((put("Again", b"alive"),))
    store.close()
    assert world.boot().boot.outcome is Outcome.CLEAN


def test_SS_15_boot_loops_never_make_a_store_unmountable() -> None:
    """Announcements fill the log: the state is anchored, the bank compacted, and the boot goes on."""
    world = World(mode=Mode.CRITICAL)
    store = world.boot()
    store.commit((put("Keep", b"me"),))
    for number in range(300):
        store = world.boot()
        assert state(store)[put("Keep", b"").key].data == b"me"
        if number % 3 == 0:
            world.anchor.record = replace(world.anchor.record, leased_until=None)
    assert store.generation > 2


@pytest.mark.rule("SS-17")
def test_the_boot_result_says_what_happened() -> None:
    world = World(mode=Mode.PER_BOOT)
    first = world.boot()
    assert (first.boot.outcome, first.boot.verified) == (Outcome.CREATED, True)
    first.commit((put("A", b"1"),))
    second = world.boot()
    assert (second.boot.outcome, second.boot.rolled_forward, second.boot.mode) == (
        Outcome.ROLLED_FORWARD,
        1,
        Mode.PER_BOOT,
    )
    assert "anchor.advanced" in world.trace.kinds()
    assert world.boot().boot.outcome is Outcome.CLEAN
    none = World(mode=Mode.NONE)
    assert none.boot().boot.verified is False


@pytest.mark.rule("SS-12")
def test_an_anchor_comparison_that_is_skipped_accepts_any_image_and_says_unverified() -> None:
    world, images, _ = history(150)
    world.anchor.record = replace(world.anchor.record, leased_until=None)
    store = world.boot(images[5][1], skip_checks=frozenset({"anchor-comparison"}))
    assert store.boot.verified is False
    store.commit((put("X", b"1"),))
    store.close()


def test_the_other_checks_can_be_skipped_one_by_one_by_tests_that_prove_verdicts() -> None:
    base = sample()
    broken = bytearray(base.image)
    from cvars.store.inspecting import inspect

    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    log = [r for r in newest.records if r.place == "log"]
    broken[log[2].offset + 100] ^= 1
    assert base.fresh().refused(bytes(broken)).reason == "store.tampered"
    store = base.fresh().boot(bytes(broken), skip_checks=frozenset({"record-authentication"}))
    assert store.boot.outcome is Outcome.REPAIRED
    other = sample(seed=8)
    assert base.fresh().refused(other.image).reason == "store.wrong_guest"
    skipped = base.fresh().refused(other.image, skip_checks=frozenset({"vm-binding"}))
    assert skipped.reason == "store.wrong_key"


def test_the_memory_anchor_repeats_receipts_and_drops_whole_items() -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    anchor: MemoryAnchor = world.anchor
    for number in range(250):
        store.commit((put("V", bytes([number]) * 300),))
        size = sum(len(i.escrow) for i in anchor.record.ring)
        assert size <= 64 << 10
        assert anchor.record.ring[-1].to == store.point
    start, to, base, ring = anchor.record.last_advance
    version = anchor.record.version
    receipt = anchor.advance(epoch=store.session, start=start, to=to, base=base, key_version=1, escrow=ring)
    assert receipt.point == to
    assert anchor.record.version == version + 1, "only the lease moved"
    with pytest.raises(AnchorFenced):
        anchor.advance(epoch=store.session - 1, start=to, to=to, base=to, key_version=1, escrow=b"")
    assert isinstance(MemoryMedium(b"").size(), int)
