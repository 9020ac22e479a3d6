"""Checks that stand behind another one: each is asked alone, with bytes that only it refuses."""

from dataclasses import replace

import pytest

from cvars.errors import AnchorRolledBack, StoreIoError, StoreTooOld, StoreWrongKey
from cvars.host.media import Fault, FaultyMedium
from cvars.store import Mode, escrow, operations, record, snapshot
from cvars.store.anchor import AnchorPoint
from cvars.store.geometry import Geometry
from cvars.store.header import BankHeader
from cvars.store.log import Broken, write_snapshot
from cvars.store.operations import Malformed
from tests.store.broken_anchor import Lossy
from tests.store.images import sample
from tests.store.test_reasons import resealed
from tests.store.world import SMALL, World, blank, put


@pytest.mark.rule("SS-20", "T18")
def test_a_suite_that_only_the_broker_knows_is_too_old_here() -> None:
    base = sample()
    world = base.fresh()
    world.anchor.floor_suites = (1, 2, 3, 9)
    assert type(world.refused(resealed(base, suite=9))) is StoreTooOld


@pytest.mark.parametrize("what", ["parts_for", "snapshot_bytes"])
def test_a_snapshot_of_a_size_that_none_has_is_damage(what, monkeypatch) -> None:
    world = World(mode=Mode.NONE, size=512 << 10, frame=1024)
    store = world.boot()
    store.commit((put("A", b"1"),))
    real = getattr(Geometry, what)
    monkeypatch.setattr(Geometry, what, lambda self, n: real(self, n) + (1 if what == "parts_for" else 1024))
    store._compact()
    monkeypatch.undo()
    assert world.refused(world.image).reason == "store.tampered"


def test_live_bytes_that_all_parts_agree_on_must_be_the_contents(monkeypatch) -> None:
    world = World(mode=Mode.NONE)
    store = world.boot()
    store.commit((put("A", b"1"),))
    real = snapshot.record.seal
    monkeypatch.setattr(snapshot.record, "seal", lambda keys, **fields: real(keys, **(fields | {"live": 3})))
    store._compact()
    monkeypatch.undo()
    assert world.refused(world.image).reason == "store.tampered"


def test_a_record_does_not_open_where_it_reaches_out_of_its_bank() -> None:
    world = World()
    log = world.boot()._log
    raw = forge(world, log)
    opened = record.unseal(raw, 0, log.history.keys, frame=512, offset=log.history.tail, end=len(raw))
    assert opened is not None
    assert record.unseal(raw, 0, log.history.keys, frame=512, offset=log.history.tail, end=len(raw) - 1) is None
    assert record.unseal(raw, 0, log.history.keys, frame=512, offset=0, end=len(raw)) is None


def forge(world, log, **fields) -> bytes:
    """A record of the open session at the tail, as the key holder could seal it."""
    made = {
        "frame": log.history.geometry.frame,
        "offset": log.history.tail,
        "class_index": 0,
        "part": 0,
        "session": log.session,
        "salt": log._salt,
        "sequence": log.history.point.counter + 1,
        "previous": log.history.point.root,
        "kind": record.TRANSACTION,
        "flags": 0,
        "count": 0,
        "live": log.history.live,
        "body": b"",
    }
    return record.seal(log.history.keys, **(made | fields))


def placed(world, log, raw: bytes) -> bytes:
    image = bytearray(world.image)
    at = log.history.header.bank_offset + log.history.tail
    image[at : at + len(raw)] = raw
    return bytes(image)


def test_names_are_never_empty() -> None:
    empty = operations.encode(put("A", b""))[:44]
    with pytest.raises(Malformed):
        operations.replay(empty[:2] + b"\0\0" + empty[4:], 1, {}, 0, puts_only=False)


def test_an_announcement_of_an_older_session_is_damage() -> None:
    world = World()
    world.boot()
    store = world.boot()
    body = record.Announcement(1, bytes(32), 1, 0, "").encode()
    raw = forge(world, store._log, kind=record.SESSION, session=0, body=body)
    assert world.refused(placed(world, store._log, raw)).reason == "store.tampered"


def test_data_behind_a_close_record_is_damage() -> None:
    world = World()
    store = world.boot()
    store.close()
    raw = forge(world, store._log)
    assert world.refused(placed(world, store._log, raw)).reason == "store.tampered"
    raw = forge(world, store._log, kind=record.CLOSE)
    assert world.refused(placed(world, store._log, raw)).reason == "store.tampered"


@pytest.mark.rule("SS-16", "T21")
def test_an_anchored_point_that_the_image_saw_and_the_broker_forgot() -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    early = world.anchor.record
    generation = store.generation
    while store.generation == generation:
        store.commit((put("A", bytes(300)),))
    world.anchor.record = replace(early, epoch=50, version=5000, leased_until=None)
    error = world.refused(world.image)
    assert type(error) is AnchorRolledBack
    assert "saw the anchor at" in error.message


@pytest.mark.rule("SS-26")
def test_an_offline_image_names_no_parent_whatever_its_header_holds() -> None:
    base = sample()
    half = len(base.image) // 2
    raw = next(base.image[o : o + 512] for o in (0, half) if base.image[o : o + 8] == b"CVFSBNK1")
    header = replace(BankHeader.parse(raw), base_sequence=5, parent=b"\1" * 32)
    assert header.parent_point == AnchorPoint(4, b"\1" * 32)
    assert replace(header, session=0).parent_point is None
    assert replace(header, base_sequence=0).parent_point is None


RINGS = {
    "as it should be": {},
    "another parent": {"parent": bytes(32)},
    "another sequence": {"base_sequence": 90},
    "a generation that is not newer": {"generation": 1},
    "the bank that it came from": {"bank_offset": SMALL // 2},
    "another frame": {"log2_frame": 10},
    "another image size": {"image_size": SMALL * 2},
    "session 0": {"session": 0},
}


@pytest.mark.parametrize("which", RINGS)
@pytest.mark.rule("SS-12", "SS-5")
def test_a_compaction_in_the_ring_must_follow_even_when_its_root_is_the_anchored_one(which) -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    store.commit((put("A", b"1"),))
    log, root = store._log, world.keys().root(1)
    before = log.history.point
    old = log.history.header
    draft = replace(
        old,
        bank_offset=0,
        generation=2,
        base_sequence=before.counter + 1,
        parent=before.root,
        bank_salt=bytes(32),
    )
    draft = replace(draft, **RINGS[which])
    history, raw, _ = write_snapshot(draft, root, log.history.geometry, dict(store.variables), log._salt)
    entry = raw + log._salt
    acquired = replace(
        world.acquired, point=history.point, base=before, escrow=escrow.encode([entry]), epoch=9, version=99
    )
    if which == "another sequence":
        acquired = replace(acquired, point=AnchorPoint(90, history.point.root))
    fresh = reread(world)
    repair = escrow.plan(fresh, acquired, world.keys())
    assert (repair is not None) is (which == "as it should be")


def reread(world):
    from cvars.store.survey import survey

    return survey(world.image, world.keys()).banks[0].read()


@pytest.mark.rule("SS-12")
def test_a_ring_whose_header_mac_or_snapshot_digest_is_wrong_repairs_nothing() -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    log, root = store._log, world.keys().root(1)
    before = log.history.point
    draft = replace(
        log.history.header, bank_offset=0, generation=2, base_sequence=before.counter + 1, parent=before.root
    )
    history, raw, _ = write_snapshot(draft, root, log.history.geometry, {}, log._salt)
    acquired = replace(world.acquired, point=history.point, base=before)
    good = escrow.encode([raw + log._salt])
    assert escrow.plan(reread(world), replace(acquired, escrow=good), world.keys()) is not None
    forged = raw[:-1] + bytes([raw[-1] ^ 1])
    bad = escrow.encode([forged + log._salt])
    assert escrow.plan(reread(world), replace(acquired, escrow=bad), world.keys()) is None
    other = replace(history.header, snapshot_digest=b"\7" * 32)
    bad = escrow.encode([other.seal(root.header_key) + log._salt])
    point = AnchorPoint(other.base_sequence, other.snapshot_digest)
    assert escrow.plan(reread(world), replace(acquired, escrow=bad, point=point), world.keys()) is None


@pytest.mark.rule("SS-12")
def test_a_ring_entry_longer_than_its_record_repairs_nothing() -> None:
    world = World(mode=Mode.STRICT)
    log = world.boot()._log
    before, keys = log.history.point, log.history.keys
    raw = forge(world, log)
    for entry, root, follows in (
        (raw, keys.chain(before.root, raw), True),
        (raw + bytes(512), keys.chain(before.root, raw + bytes(512)), False),
        (raw, bytes(32), False),
    ):
        point = AnchorPoint(before.counter + 1, root)
        acquired = replace(world.acquired, point=point, base=before, escrow=escrow.encode([entry]))
        assert (escrow.plan(reread(world), acquired, world.keys()) is not None) is follows


def test_rings_that_are_no_entries_are_malformed() -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    image = world.image
    store.commit((put("A", b"1"),))
    last = world.anchor.record.ring[-1]
    world.anchor.record = replace(
        world.anchor.record, ring=(replace(last, escrow=b"\5\0\0\0abc"),), leased_until=None
    )
    assert world.refused(image).reason.startswith("store.")
    for ring in (b"\5\0\0\0abc", b"\4\0\0\0CVR1", b"\1\0", b"\3\0\0\0abc", b"\xff\xff\xff\xff"):
        with pytest.raises(Malformed):
            escrow.decode(ring)


@pytest.mark.rule("SS-12")
def test_a_ring_that_starts_behind_the_image_or_at_another_base_is_no_ring_for_it() -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    image = world.image
    for number in range(3):
        store.commit((put("A", bytes([number])),))
    record_now = world.anchor.record
    other = replace(record_now, base=AnchorPoint(record_now.base.counter + 2, bytes(32)), leased_until=None)
    world.anchor.record = other
    assert world.refused(image).reason == "store.rolled_back"


@pytest.mark.rule("SS-7", "SS-22")
def test_a_creation_header_beside_a_bank_that_does_not_open_is_not_a_licence_without_an_anchor() -> None:
    base = sample(Mode.NONE, commits=6, sessions=1, until_compacted=False)
    image = blank()[: SMALL // 2] + base.image[SMALL // 2 :]
    world = base.fresh()
    keys = world.keys(keks={1: bytes(32)})
    assert type(world.refused(image, keys=keys)) is StoreWrongKey


@pytest.mark.rule("T20")
def test_the_lease_counts_from_when_the_request_was_sent() -> None:
    world = World(mode=Mode.PER_BOOT)

    class Slow(Lossy):
        def renew(self, **arguments):
            answer = self.anchor.renew(**arguments)
            world.clock.now += 12
            return answer

    anchor = Slow(world.anchor)
    store = world.boot(anchor=anchor)
    world.clock.now += 11
    store.tick()
    assert store._freshness.age == 12
    anchor.default = "request"
    world.clock.now += 12.9
    store.commit((put("A", b"1"),))
    world.clock.now += 5.2
    store._freshness._anchor = Lossy(world.anchor, default="request")
    with pytest.raises(Exception, match="lease of session"):
        store.require_lease()


@pytest.mark.rule("SS-11", "T26")
def test_a_bank_whose_record_failed_takes_no_other_record() -> None:
    base = sample(Mode.PER_BOOT, commits=6)
    world = base.fresh()
    medium = FaultyMedium(base.image)
    log = world.boot(medium=medium)._log
    medium.faults = dict.fromkeys(range(medium.calls, 10_000), Fault.ERROR)
    with pytest.raises(StoreIoError):
        log.finish(log.begin(record.TRANSACTION, 0, b"", count=0, live=log.history.live, security=False))
    medium.faults = {}
    with pytest.raises(Broken):
        log.finish(log.begin(record.TRANSACTION, 0, b"", count=0, live=log.history.live, security=False))


@pytest.mark.rule("SS-24")
def test_every_compaction_attempt_takes_a_new_generation_even_after_one_that_failed() -> None:
    base = sample(Mode.PER_BOOT, commits=6)
    world = base.fresh()
    medium = FaultyMedium(base.image)
    store = world.boot(medium=medium)
    before = store.generation
    medium.faults = {medium.calls: Fault.ERROR}
    with pytest.raises(StoreIoError):
        store._compact()
    store._compact()
    assert store.generation == before + 2


FORGED = {
    "nothing": {},
    "medium": {"medium": 2},
    "mode": {"mode": 5},
    "bank size": {"bank_size": SMALL},
    "bank offset": {"bank_offset": SMALL // 2},
    "image size": {"image_size": SMALL * 2},
    "frame": {"log2_frame": 10},
    "key check": {"key_check": bytes(32)},
    "reserved": {"reserved": bytes(157) + b"\1"},
}


@pytest.mark.parametrize("which", FORGED)
@pytest.mark.rule("SS-4", "SS-20", "T23")
def test_a_bank_that_is_whole_but_for_one_field_of_its_header_is_refused(which) -> None:
    """MAC, chain and snapshot all fit the forged header, as only the key holder could make it."""
    world = World(mode=Mode.NONE)
    store = world.boot()
    store.commit((put("A", b"1"),))
    log, root = store._log, world.keys().root(1)
    draft = replace(log.history.header, bank_offset=0, generation=2, base_sequence=9, bank_salt=bytes(32))
    real = Geometry.of(SMALL, 512)
    keys = root.bank(generation=2, bank_salt=bytes(32), suite=1, geometry=real, bank_offset=0)
    built = snapshot.build(replace(draft, **FORGED[which]), keys, real, dict(store.variables), salt=log._salt)
    bank = built.header.seal(root.header_key) + bytes(4096 - 512) + built.sealed
    image = bank.ljust(SMALL, b"\0")
    if which == "nothing":
        assert dict(world.boot(image).variables) == dict(store.variables)
        spoiled = image[:600] + b"\1" + image[601:]
        assert world.refused(spoiled).reason == "store.tampered"
    else:
        assert world.refused(image).reason == "store.tampered"


def test_snapshot_parts_that_are_not_full_are_damage(monkeypatch) -> None:
    world = World(mode=Mode.NONE)
    store = world.boot()
    store.commit((put("A", bytes(6000)),))
    store.commit((put("B", bytes(6000)),))
    full = Geometry.part_payload.fget
    monkeypatch.setattr(Geometry, "part_payload", property(lambda self: full(self) - 100))
    store._compact()
    monkeypatch.undo()
    assert world.refused(world.image).reason == "store.tampered"


@pytest.mark.rule("SS-4", "SS-5")
def test_a_record_that_does_not_chain_is_damage_in_the_log_and_in_the_ring() -> None:
    for wrong in ({"previous": bytes(32)}, {"sequence": 77}):
        world = World(mode=Mode.STRICT)
        log = world.boot()._log
        raw = forge(world, log, **wrong)
        assert world.refused(placed(world, log, raw)).reason == "store.tampered"
        before = log.history.point
        point = AnchorPoint(wrong.get("sequence", before.counter + 1), log.history.keys.chain(before.root, raw))
        acquired = replace(world.acquired, point=point, base=before, escrow=escrow.encode([raw]))
        assert escrow.plan(reread(world), acquired, world.keys()) is None


def test_a_snapshot_digest_that_is_not_the_snapshots_is_damage_even_without_a_log() -> None:
    world = World(mode=Mode.NONE)
    store = world.boot()
    store._compact()
    header = store._log.history.header
    image = bytearray(world.image)
    other = replace(header, snapshot_digest=b"\1" * 32).seal(world.keys().root(1).header_key)
    image[header.bank_offset : header.bank_offset + 512] = other
    assert world.refused(bytes(image)).reason == "store.tampered"


@pytest.mark.rule("SS-16", "T21")
def test_a_session_that_the_broker_has_not_opened_yet_is_a_broker_that_forgot() -> None:
    world = World(mode=Mode.STRICT)
    for _ in range(4):
        store = world.boot()
    store.close()
    good = replace(world.anchor.record, leased_until=None, version=5000)
    for epoch, fine in ((good.epoch, True), (good.epoch - 1, False), (1, False)):
        image = world.image
        world.anchor.record = replace(good, epoch=epoch)
        if fine:
            assert world.boot(image).boot.verified
            world.medium.image[:] = image
            world.medium.writes.clear()
        else:
            error = world.refused(image)
            assert type(error) is AnchorRolledBack
            assert "names session" in error.message
