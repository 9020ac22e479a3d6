"""Modes, windows, the lease clock, doubt (SS-13, SS-14, T19, T20; sealed-store 4 and 6.2)."""

import threading
from dataclasses import replace

import pytest

from cvars.errors import AnchorError, AnchorFenced, AnchorFrozen, AnchorUnreachable, DeviceError, NotReady
from cvars.store import Mode, Outcome, StoreConfig
from cvars.store.anchor import AnchorPoint, Receipt
from tests.store.broken_anchor import Lossy
from tests.store.world import DB, World, key, put, put_key, state


def unanchored(store, world) -> int:
    return store.point.counter - world.anchor.record.point.counter


@pytest.mark.rule("SS-14")
def test_strict_acknowledges_nothing_that_is_not_anchored() -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    for number in range(150):
        store.commit((put("A", bytes([number]) * 200),))
        assert world.anchor.record.point == store.point


@pytest.mark.rule("SS-14")
def test_critical_anchors_security_relevant_commits_and_lets_the_others_wait() -> None:
    world = World(mode=Mode.CRITICAL, extra_security=frozenset({key("Owner")}))
    store = world.boot()
    store.commit((put("BootOrder", b"1"),))
    assert unanchored(store, world) == 1
    for change in (put_key(DB, b"d"), put("Pinned", b"p", signer=bytes(32)), put("Owner", b"o")):
        store.commit((put("BootOrder", b"2"),))
        assert unanchored(store, world) > 0
        store.commit((change,))
        assert unanchored(store, world) == 0
    store.commit((put("Pinned", b"pin lost"),))
    assert unanchored(store, world) == 0, "the old variable had a pin"


@pytest.mark.rule("SS-14")
def test_bounded_never_has_more_than_w_commits_unanchored() -> None:
    world = World(mode=Mode.BOUNDED, window_commits=5, window_s=100.0)
    store = world.boot()
    highest = 0
    for number in range(40):
        store.commit((put("A", bytes([number])),))
        highest = max(highest, unanchored(store, world))
    assert highest == 5
    world2 = World(mode=Mode.BOUNDED, window_commits=5, window_s=100.0)
    anchor = Lossy(world2.anchor)
    store = world2.boot(anchor=anchor)
    anchor.default = "request"
    for number in range(5):
        store.commit((put("A", bytes([number])),))
    with pytest.raises(DeviceError):
        store.commit((put("A", b"one too many"),))
    assert store.variables[key("A")].data == b"\x04"
    anchor.default = "ok"
    store.commit((put("A", b"again"),))


@pytest.mark.rule("SS-14")
def test_bounded_never_leaves_a_commit_unanchored_for_t_seconds() -> None:
    world = World(mode=Mode.BOUNDED, window_commits=1000, window_s=2.0)
    store = world.boot()
    store.commit((put("A", b"1"),))
    wait = store.tick()
    assert wait <= 2.0
    world.clock.now += 2.0
    store.tick()
    assert unanchored(store, world) == 0
    store.commit((put("A", b"2"),))
    world.clock.now += 2.5
    store.commit((put("A", b"3"),))
    assert unanchored(store, world) == 1, "the older one was anchored first"


@pytest.mark.rule("SS-14", "T19")
def test_bounded_counts_t_from_the_oldest_commit_even_behind_an_advance_in_doubt() -> None:
    world = World(mode=Mode.BOUNDED, window_commits=1000, window_s=2.0, doubt_s=0)
    anchor = Lossy(world.anchor)
    store = world.boot(anchor=anchor)
    store.commit((put("A", b"1"),))
    world.clock.now += 2.0
    anchor.default = "request"
    store.tick()
    with pytest.raises(DeviceError):
        store.commit((put("A", b"too late"),))
    world.clock.now += 0.5
    anchor.default = "ok"
    store.tick()
    store.commit((put("A", b"2"),))
    world.clock.now += 1.0
    store._freshness._doubt = None
    anchor.script = ["request"]
    world.clock.now += 1.0
    store.tick()
    assert unanchored(store, world) == 1
    store.tick()
    assert unanchored(store, world) == 0


@pytest.mark.rule("SS-14")
def test_per_boot_anchors_at_start_with_renewals_before_compaction_and_at_close() -> None:
    world = World(mode=Mode.PER_BOOT)
    store = world.boot()
    assert unanchored(store, world) == 0
    for number in range(10):
        store.commit((put("A", bytes([number]) * 50),))
    assert unanchored(store, world) == 10
    world.clock.now += 10
    store.tick()
    assert unanchored(store, world) == 0
    generation, before = store.generation, store.point
    while store.generation == generation:
        before = store.point
        store.commit((put("A", b"x" * 400),))
    assert world.anchor.record.point == before, "the state before the compaction was anchored"
    store.close()
    assert unanchored(store, world) == 0
    assert world.anchor.record.state == "released"
    assert world.anchor.record.leased_until is None


@pytest.mark.parametrize("mode", [Mode.STRICT, Mode.CRITICAL])
@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.rule("SS-14", "T19")
def test_a_commit_in_doubt_is_refused_invisible_and_blocks_writes_until_it_is_resolved(mode, lost) -> None:
    world = World(mode=mode)
    anchor = Lossy(world.anchor)
    store = world.boot(anchor=anchor)
    store.commit((put_key(DB, b"old"),))
    anchor.default = lost if lost == "request" else "answer"
    if lost == "answer":  # the first arrives; repeating it is refused silence as well
        anchor.script = ["answer"] + ["request"] * 50
        anchor.default = "request"
    with pytest.raises(DeviceError):
        store.commit((put_key(DB, b"new"),))
    assert store.variables[DB].data == b"old"
    with pytest.raises(DeviceError):
        store.commit((put("Else", b"x"),))
    assert key("Else") not in store.variables
    anchor.script, anchor.default = [], "ok"
    world.clock.now = store._freshness.sent + 11
    store.tick()
    store.commit((put("Else", b"y"),))
    assert store.variables[DB].data == b"old", "the guest was told no, so it is no"
    want = state(store)
    store.close()
    assert state(world.boot()) == want


@pytest.mark.rule("T19")
def test_a_commit_in_doubt_may_be_present_after_a_crash_and_nothing_else_is_lost() -> None:
    for lost in ("request", "answer"):
        world = World(mode=Mode.STRICT)
        anchor = Lossy(world.anchor)
        store = world.boot(anchor=anchor)
        store.commit((put("A", b"1"),))
        anchor.script, anchor.default = [lost], "request"
        with pytest.raises(DeviceError):
            store.commit((put("A", b"2"),))
        again = world.boot(world.image)
        assert again.variables[key("A")].data == b"2"
        assert again.boot.outcome is (Outcome.ROLLED_FORWARD if lost == "request" else Outcome.CLEAN)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.rule("T19", "SS-15")
def test_any_refusal_of_the_anchor_leaves_a_commit_in_doubt_and_an_image_that_mounts(goes_on) -> None:
    """Not only a broker that is silent: the record is durable, and nothing follows it as if it were not."""
    world = World(mode=Mode.STRICT)
    store = world.boot()
    store.commit((put("A", b"1"),))
    advance = world.anchor.advance

    def refuse(**_arguments) -> Receipt:
        raise AnchorFrozen("frozen")

    world.anchor.advance = refuse
    with pytest.raises(AnchorFrozen):
        store.commit((put("A", b"22"),))
    assert store.variables[key("A")].data == b"1"
    if goes_on:
        world.anchor.advance = advance
        store.commit((put("B", b"3"),))
        assert store.variables[key("A")].data == b"1"
        want = state(store)
        store.close()
        assert state(world.boot(world.image)) == want
    else:
        with pytest.raises(AnchorFrozen):
            store.close()
        world.anchor.advance = advance
        assert world.boot(world.image).variables[key("A")].data in (b"1", b"22")


@pytest.mark.rule("T19")
def test_a_refused_commit_is_taken_back_even_across_a_compaction_and_a_crash() -> None:
    world = World(mode=Mode.STRICT)
    anchor = Lossy(world.anchor)
    store = world.boot(anchor=anchor)
    store.commit((put("A", b"first" * 100), put("B", b"b")))
    while store._log.history.room >= 2 * 512 + 1024:
        store.commit((put("Fill", bytes(30)),))
    generation = store.generation
    anchor.default = "request"
    big = put("A", b"second" * 100)
    with pytest.raises(DeviceError):
        store.commit((big, put("New", b"n")))
    anchor.default = "ok"
    store.tick()
    while store.generation == generation:
        store.commit((put("Fill", bytes(30)),))
    assert store.variables[key("A")].data == b"first" * 100
    assert key("New") not in store.variables
    assert state(world.boot(world.image)) == state(store)


@pytest.mark.rule("T19", "SS-15")
def test_retries_double_their_pause_and_repeat_the_same_request() -> None:
    world = World(mode=Mode.STRICT, doubt_s=5.0)
    anchor = Lossy(world.anchor)
    store = world.boot(anchor=anchor)
    anchor.script = ["answer", "request", "answer", "ok"]
    begin = world.clock.now
    store.commit((put("A", b"1"),))
    assert world.clock.now - begin == pytest.approx(0.1 + 0.2 + 0.4)
    assert world.anchor.record.point == store.point
    anchor.default = "request"
    begin = world.clock.now
    anchor.calls.clear()
    with pytest.raises(DeviceError):
        store.commit((put("A", b"2"),))
    assert 5.0 <= world.clock.now - begin <= 7.0
    assert set(anchor.calls) == {"advance"}


@pytest.mark.rule("T19", "SS-14")
def test_a_broker_that_cannot_be_reached_allows_no_mount() -> None:
    world = World()
    world.boot().close()
    anchor = Lossy(world.anchor, default="request")
    with pytest.raises(AnchorUnreachable):
        world.boot(anchor=anchor)
    assert world.boot().boot.verified


@pytest.mark.parametrize("mode", [Mode.PER_BOOT, Mode.CRITICAL])
@pytest.mark.rule("T20", "SS-13")
def test_the_local_clock_stops_acknowledging_at_25_s_and_serving_at_30_s(mode) -> None:
    world = World(mode=mode)
    anchor = Lossy(world.anchor)
    store = world.boot(anchor=anchor)
    anchor.default = "request"
    world.clock.now += 24.9
    store.commit((put("A", b"1"),))
    store.require_lease()
    world.clock.now += 0.2
    written = list(world.medium.writes)
    with pytest.raises(DeviceError):
        store.commit((put("A", b"2"),))
    assert world.medium.writes == written  # refused before anything is written
    store.require_lease()
    assert store.variables[key("A")].data == b"1"
    world.clock.now += 5
    with pytest.raises(AnchorFenced):
        store.require_lease()
    anchor.default = "ok"
    for call in (store.require_lease, store.tick, lambda: store.commit((put("A", b"3"),)), store.close):
        with pytest.raises((AnchorFenced, NotReady)):
            call()
    assert world.trace.kinds().count("anchor.fenced") == 1


@pytest.mark.rule("T20")
def test_an_instance_that_was_frozen_past_its_lease_renews_before_it_serves_or_stops() -> None:
    world = World(mode=Mode.PER_BOOT)
    alone = world.boot()
    world.clock.now += 3600
    alone.require_lease()
    alone.commit((put("A", b"1"),))
    frozen = alone
    world.clock.now += 3600
    newer = world.boot(world.image, takeover=False)
    newer.commit((put("A", b"2"),))
    with pytest.raises(AnchorFenced):
        frozen.require_lease()
    with pytest.raises(AnchorFenced):
        frozen.commit((put("A", b"3"),))


@pytest.mark.rule("T20")
def test_a_write_that_took_longer_than_the_lease_is_not_acknowledged_without_a_renewal() -> None:
    world = World(mode=Mode.PER_BOOT)
    anchor = Lossy(world.anchor)
    store = world.boot(anchor=anchor)
    store.commit((put("A", b"1"),))
    flush = world.medium.flush

    def slow() -> None:
        flush()
        world.clock.now += 26

    world.medium.flush = slow
    anchor.default = "request"
    with pytest.raises(DeviceError):
        store.commit((put("A", b"2"),))
    assert store.variables[key("A")].data == b"1"
    world.medium.flush, anchor.default = flush, "ok"
    store.commit((put("B", b"3"),))
    assert store.variables[key("A")].data == b"1"
    assert state(world.boot(world.image)) == state(store)


@pytest.mark.rule("T21")
def test_an_answer_for_another_point_or_session_fences() -> None:
    for wrong in ({"point": AnchorPoint(99, bytes(32))}, {"epoch": 7}):
        world = World(mode=Mode.STRICT)

        class Lying:
            def __init__(self, anchor):
                self._anchor, self.wrong = anchor, {}

            def advance(self, **arguments) -> Receipt:
                return replace(self._anchor.advance(**arguments), **self.wrong)

            renew = seal = advance

        anchor = Lying(world.anchor)
        store = world.boot(anchor=anchor)
        anchor.wrong = wrong
        with pytest.raises(AnchorFenced):
            store.commit((put("A", b"1"),))
        with pytest.raises(AnchorFenced):
            store.require_lease()


def test_operators_freeze_and_retire_stop_a_running_instance() -> None:
    for what in ("frozen", "retired"):
        world = World(mode=Mode.STRICT)
        store = world.boot()
        world.anchor.set_state(what)
        with pytest.raises(AnchorFenced):
            store.commit((put("A", b"1"),))
        with pytest.raises(AnchorError):
            world.boot()


def test_a_closed_store_refuses_everything_and_closing_twice_is_nothing() -> None:
    world = World()
    store = world.boot()
    store.close()
    store.close()
    with pytest.raises(NotReady):
        store.commit((put("A", b"1"),))
    assert store.tick() > 0


def test_commits_and_ticks_of_several_threads_do_not_mix() -> None:
    world = World(mode=Mode.BOUNDED, window_commits=3)
    store = world.boot()
    failures = []

    def work(name: str) -> None:
        try:
            for number in range(60):
                store.commit((put(name, bytes([number]) * 50),))
                store.tick()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"T{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert state(world.boot(world.image)) == {key(f"T{n}"): put("", bytes([59]) * 50).variable for n in range(3)}


def test_configurations_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"on_rollback": "ignore"},
        {"suite": 4},
        {"window_commits": 0},
        {"window_s": 0.0},
        {"engine": "x" * 33},
        {"skip_checks": frozenset({"everything"})},
    ):
        with pytest.raises(ValueError, match=r"."):
            StoreConfig(**wrong)


def test_SS_14_without_an_anchor_only_mode_none_mounts() -> None:
    world = World(mode=Mode.STRICT)
    from cvars.store import mount

    with pytest.raises(ValueError, match="needs an anchor"):
        mount(
            world.medium,
            keys=world.keys(),
            config=StoreConfig(mode=Mode.STRICT),
            acquired=None,
            anchor=None,
            random=world.random.randbytes,
            clock=world.clock,
            trace=world.trace,
        )


@pytest.mark.parametrize("wrote", [Mode.NONE, Mode.PER_BOOT, Mode.BOUNDED, Mode.CRITICAL, Mode.STRICT])
@pytest.mark.parametrize("reads", [Mode.PER_BOOT, Mode.BOUNDED, Mode.CRITICAL, Mode.STRICT])
@pytest.mark.rule("SS-14", "SS-15", "SS-20")
def test_a_stricter_setting_does_not_lock_out_what_an_honest_session_wrote(wrote, reads) -> None:
    world = World(mode=wrote)
    store = world.boot(anchor=world.anchor)
    for number in range(14):
        store.commit((put("A", bytes([number])),))
    assert state(world.boot(mode=reads)) == state(store)


@pytest.mark.parametrize(
    ("mode", "allowed"), [(Mode.STRICT, 1), (Mode.BOUNDED, 4), (Mode.PER_BOOT, 12), (Mode.CRITICAL, 12)]
)
@pytest.mark.rule("SS-14", "SS-16", "T7")
def test_commits_beyond_the_anchored_point_are_held_to_what_their_mode_allows(mode, allowed) -> None:
    """Roll the broker back commit by commit under one image: item 5 of section 4."""
    world = World(mode=mode, window_commits=4)
    store = world.boot()
    records = [world.anchor.record]
    for number in range(12):
        store.commit((put("A", bytes([number])),))
        store._advance(0)
        records.append(world.anchor.record)
    image = world.image
    for back, record in enumerate(reversed(records)):
        world.anchor.record = record
        if back <= allowed:
            assert world.boot(image).boot.rolled_forward == back
        else:
            assert world.refused(image).reason == "anchor.rolled_back"


@pytest.mark.rule("SS-14", "T7")
def test_critical_allows_one_security_relevant_commit_beyond_and_only_as_the_last() -> None:
    world = World(mode=Mode.CRITICAL)
    store = world.boot()
    start = world.anchor.record
    store.commit((put("A", b"1"),))
    store.commit((put_key(DB, b"2"),))
    good = world.image
    store.commit((put("A", b"3"),))
    bad = world.image
    world.anchor.record = start
    assert state(world.boot(good))[DB].data == b"2"
    world.anchor.record = start
    assert world.refused(bad).reason == "anchor.rolled_back"


@pytest.mark.rule("SS-13", "T6")
def test_data_of_a_session_that_was_never_announced_to_the_anchor_is_refused() -> None:
    world = World(mode=Mode.PER_BOOT)
    first = world.boot()
    first.commit((put("A", b"1"),))
    first.close()
    before = world.anchor.record
    second = world.boot()
    second.commit((put("A", b"2"),))
    world.anchor.record = replace(before, epoch=9, version=99, leased_until=None)
    assert world.refused(world.image).reason == "anchor.rolled_back"
