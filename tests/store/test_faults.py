"""A medium that fails, lies about sizes and transfers, or changes under the reader (SS-6, SS-11, T8, T14, T26)."""

import random

import pytest

from cvars.errors import DeviceError, StoreIoError
from cvars.host.media import Fault, FaultyMedium
from cvars.store import Mode
from cvars.trace import Event
from cvars.variables.model import Put
from tests.store.broken_anchor import Lossy
from tests.store.images import sample
from tests.store.test_crash import clone, nearly_full
from tests.store.workload import run
from tests.store.world import World, put, state


@pytest.mark.parametrize("fault", [Fault.SHORT, Fault.STALL, Fault.INTERRUPT])
def test_SS_11_short_and_interrupted_calls_are_continued(fault) -> None:
    base = sample(Mode.STRICT, commits=10)
    for call in range(40):
        world = base.fresh()
        medium = FaultyMedium(base.image, faults={call: fault}, read_faults={call % 3: fault})
        store = world.boot(medium=medium)
        assert state(store) == base.final
        run(store, random.Random(call), 12)
        want = state(store)
        assert state(base_again(world, bytes(medium.durable))) == want


def base_again(world: World, image: bytes):
    again = clone(world, world.anchor.record)
    return again.boot(image)


@pytest.mark.parametrize("mode", [Mode.PER_BOOT, Mode.STRICT])
@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.ERROR_AFTER])
@pytest.mark.rule("SS-11", "T26")
def test_an_error_at_any_call_is_never_taken_for_success(fault, mode) -> None:
    """One EIO: tried again byte for byte. The state is what was acknowledged, or with the failed commit."""
    base, image, record, start = nearly_full(mode)
    for call in range(60):
        world = clone(base, record)
        medium = FaultyMedium(image, faults={call: fault})
        try:
            store = world.boot(medium=medium)
        except StoreIoError:
            assert state(base_again(world, bytes(medium.durable))) == start
            continue
        acknowledged = dict(start)
        failed = []
        for number in range(6):
            change = put(f"N{number}", bytes([number]) * 90)
            try:
                store.commit((change,))
            except DeviceError:
                failed.append(change)
            else:
                acknowledged[change.key] = change.variable
        found = state(base_again(world, bytes(medium.durable)))
        assert all(found[k] == v for k, v in acknowledged.items())
        assert set(found) <= set(acknowledged) | {c.key for c in failed}


@pytest.mark.parametrize("first", range(0, 28, 3))
@pytest.mark.rule("SS-11", "T26")
def test_a_medium_that_fails_for_ever_makes_the_store_refuse_writes_and_keep_reads(first) -> None:
    base, image, record, start = nearly_full(Mode.STRICT)
    world = clone(base, record)
    medium = FaultyMedium(image, faults=dict.fromkeys(range(first, 10_000), Fault.ERROR))
    try:
        store = world.boot(medium=medium)
    except StoreIoError:
        assert state(base_again(world, bytes(medium.durable))) == start
        return
    acknowledged = dict(start)
    refused = 0
    for number in range(12):
        change = put(f"N{number % 4}", bytes([number]) * 90)
        try:
            store.commit((change,))
        except DeviceError:
            refused += 1
            assert state(store) == acknowledged, "a refused commit is not visible"
        else:
            acknowledged[change.key] = change.variable
            assert not refused, "success after a failure that was never repaired"
    assert refused
    assert state(base_again(world, bytes(medium.durable))) == acknowledged


@pytest.mark.rule("SS-11")
def test_an_error_at_the_header_of_a_compaction_is_completed_or_nothing_is_written_again() -> None:
    """After the header write the old bank is never appended to again: a durable header would hide it."""
    base, image, record, start = nearly_full(Mode.PER_BOOT)
    probe = FaultyMedium(image)
    store = clone(base, record).boot(medium=probe)
    while store.generation == store._log.history.header.generation and store.generation < 3:
        store.commit((put("N", b"x" * 90),))
        if "header" in [w for w, _, n in probe.trace if n == 4096] or any(n == 4096 for _, _, n in probe.trace):
            break
    header_call = next(i for i, (what, _, n) in enumerate(probe.trace) if what == "write" and n == 4096)
    for faults in (
        {header_call: Fault.ERROR},
        {header_call: Fault.ERROR_AFTER},
        {header_call + 1: Fault.ERROR},
        dict.fromkeys(range(header_call, 10_000), Fault.ERROR_AFTER),
        dict.fromkeys(range(header_call + 1, 10_000), Fault.ERROR),
    ):
        world = clone(base, record)
        medium = FaultyMedium(image, faults=faults)
        store = world.boot(medium=medium)
        acknowledged = dict(start)
        for number in range(8):
            change = put("N", bytes([number]) * 90)
            try:
                store.commit((change,))
            except DeviceError:
                continue
            acknowledged[change.key] = change.variable
        if len(faults) > 1:
            assert store.read_only
            assert world.trace.kinds().count("store.read_only") == 1
            writes = [t for t in medium.trace if t[0] == "write"]
            with pytest.raises(DeviceError):
                store.commit((put("N", b"never"),))
            assert [t for t in medium.trace if t[0] == "write"] == writes
        for survivor in (bytes(medium.durable), bytes(medium.seen)):
            assert state(base_again(world, survivor)) == acknowledged


@pytest.mark.rule("SS-6", "T8", "T14")
def test_sizes_and_reads_that_change_are_io_errors() -> None:
    base = sample()
    size = len(base.image)
    for sizes in ((size, size - 1), (size, size * 2), (size + 512, size), (size * 2, size * 2), (size, 0)):
        world = base.fresh()
        medium = FaultyMedium(base.image, sizes=sizes)
        error = world.refused(medium=medium)
        assert isinstance(error, StoreIoError), sizes
        assert not medium.calls
    for fault in (Fault.ERROR,):
        world = base.fresh()
        medium = FaultyMedium(base.image, read_faults={0: fault})
        assert isinstance(world.refused(medium=medium), StoreIoError)
    stalled = FaultyMedium(base.image, read_faults=dict.fromkeys(range(100), Fault.STALL))
    assert isinstance(base.fresh().refused(medium=stalled), StoreIoError)
    interrupted = FaultyMedium(base.image, read_faults=dict.fromkeys(range(100), Fault.INTERRUPT))
    assert isinstance(base.fresh().refused(medium=interrupted), StoreIoError)


@pytest.mark.rule("SS-11", "T26")
def test_a_device_that_takes_no_bytes_is_an_error_not_a_loop() -> None:
    base = sample()
    world = base.fresh()
    medium = FaultyMedium(base.image, faults=dict.fromkeys(range(5, 500), Fault.STALL))
    store = world.boot(medium=medium)
    with pytest.raises(DeviceError):
        run(store, random.Random(1), 9)
    assert medium.calls < 300


@pytest.mark.rule("T10")
def test_each_record_is_flushed_before_the_next_and_a_header_only_after_its_snapshot() -> None:
    base, image, record, _ = nearly_full(Mode.PER_BOOT)
    medium = FaultyMedium(image)
    store = clone(base, record).boot(medium=medium)
    run(store, random.Random(2), 60)
    for number, (what, _, size) in enumerate(medium.trace[:-1]):
        if what == "write":
            assert medium.trace[number + 1][0] == "flush", f"call {number} of {size} bytes"


@pytest.mark.parametrize("where", ["write", "flush"])
@pytest.mark.rule("SS-3", "SS-11")
def test_a_commit_cut_off_by_a_signal_never_gives_its_sequence_to_another_record(where, monkeypatch) -> None:
    """Whatever ends a commit halfway, its nonce is used up: the next one goes into the other bank."""
    base = sample(Mode.PER_BOOT, commits=6)
    world = base.fresh()
    medium = FaultyMedium(base.image)
    store = world.boot(medium=medium)
    generation = store.generation
    real = getattr(FaultyMedium, where)

    def cut(*arguments: object) -> object:
        monkeypatch.undo()
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(FaultyMedium, where, cut)
    with pytest.raises(KeyboardInterrupt):
        store.commit((put("Cut", b"1" * 64),))
    store.commit((put("Next", b"2" * 64),))
    assert store.generation == generation + 1
    found = state(base_again(world, bytes(medium.durable)))
    assert found[put("Next", b"").key].data == b"2" * 64
    assert put("Cut", b"").key not in found


@pytest.mark.parametrize("where", ["write", "flush"])
@pytest.mark.rule("SS-8", "SS-11")
def test_a_compaction_cut_off_at_its_header_leaves_no_bank_to_append_to(where, monkeypatch) -> None:
    """The new header may be durable: what went into the old bank now would be acknowledged and hidden."""
    base, image, record, start = nearly_full(Mode.PER_BOOT)
    world = clone(base, record)
    medium = FaultyMedium(image)
    store = world.boot(medium=medium)
    real = getattr(FaultyMedium, where)

    def cut(self, *arguments: object) -> object:
        done = real(self, *arguments)
        if [size for what, _, size in self.trace if what == "write"][-1] == 4096:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(FaultyMedium, where, cut)
    with pytest.raises(KeyboardInterrupt):
        store.commit((put("Large", b"1" * 3000),))
    calls = medium.calls
    for _ in range(2):
        with pytest.raises(DeviceError):
            store.commit((put("Small", b"2"),))
    assert store.read_only
    store.close()
    assert medium.calls == calls
    assert state(base_again(world, bytes(medium.seen))) == start


def with_room_for(frames: int, *first: Put):
    """A strict store whose log has that many frames left, on a medium and an anchor that can fail."""
    base, image, record, _ = nearly_full(Mode.STRICT)
    world = clone(base, record)
    medium = FaultyMedium(image)
    anchor = Lossy(world.anchor)
    store = world.boot(medium=medium, anchor=anchor)
    for change in first:
        store.commit((change,))
    while store._log.fits(frames):
        store.commit((put("Fill", b"x" * 20),))
    return world, medium, anchor, store


@pytest.mark.rule("SS-11", "T26")
def test_a_store_that_gave_up_writing_writes_nothing_for_a_commit_in_doubt() -> None:
    """The commit could not be taken back: time and a clean end leave the medium alone, and return the lease."""
    world, medium, anchor, store = with_room_for(1)
    acknowledged = state(store)
    anchor.script = ["request"] * 100
    small = (put("Fill", b"z" * 20),)
    with pytest.raises(DeviceError):
        store.commit(small)
    anchor.script = []
    medium.faults = dict.fromkeys(range(medium.calls + 2, medium.calls + 10_000), Fault.ERROR)
    with pytest.raises(DeviceError):
        store.commit(small)
    assert store.read_only
    calls = medium.calls
    store.tick()
    store.close()
    assert medium.calls == calls
    assert world.anchor.record.leased_until is None
    found = state(base_again(world, bytes(medium.durable)))
    assert found == acknowledged | {c.key: c.variable for c in small}


@pytest.mark.rule("SS-11", "SS-15")
def test_a_store_closed_while_a_commit_cannot_be_taken_back_ends_where_its_log_ends() -> None:
    """No close record behind a change that the store does not show: its live bytes would be another state's."""
    # one frame for the commit, too few for taking it back
    world, medium, anchor, store = with_room_for(2, put("Big", b"1" * 900))
    acknowledged = state(store)
    anchor.script = ["request"] * 100
    small = (put("Big", b"2"),)
    with pytest.raises(DeviceError):
        store.commit(small)
    anchor.script = []
    medium.faults = {medium.calls: Fault.ERROR}
    store.close()
    assert world.anchor.record.leased_until is None
    found = state(base_again(world, bytes(medium.durable)))
    assert found == acknowledged | {c.key: c.variable for c in small}


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.PER_BOOT, Mode.STRICT])
@pytest.mark.rule("SS-8", "SS-15")
def test_a_trace_that_cannot_be_written_costs_a_commit_and_never_the_store(mode) -> None:
    """Whatever fails behind the barrier, the log does not run ahead of what the store believes."""
    world = World(mode=mode)
    store = world.boot()
    store.commit((put("A", b"1"),))
    before = state(store)
    full = [True]

    def trace(event: Event) -> None:
        if full and event.kind == "store.committed":
            full.clear()
            raise OSError(28, "No space left on device")

    store._trace = trace
    with pytest.raises(OSError, match="No space"):
        store.commit((put("A", b"22"), put("B", b"333")))
    assert state(store) == before
    store.commit((put("C", b"4"),))
    want = state(store)
    store.close()
    assert state(world.boot(world.image)) == want
