"""Keys, rotation, re-keying, suites, and the ledger of (key, nonce) pairs (SS-3, SS-18, SS-19, T22, T25)."""

import random

import pytest

from cvars.errors import StoreWrongKey
from cvars.host.media import Fault, FaultyMedium, PowerLoss
from cvars.store import Mode, StoreKeys, suites
from cvars.store.geometry import Geometry
from cvars.store.inspecting import inspect
from cvars.store.keys import RootKeys
from tests.store.images import sample
from tests.store.test_crash import clone
from tests.store.workload import run
from tests.store.world import World, put, state


def headers(image: bytes) -> list[dict]:
    return [b.header for b in inspect(image).banks if b.header]


@pytest.mark.rule("SS-19", "T25")
def test_rotation_is_online_and_the_old_key_opens_nothing_afterwards() -> None:
    world = World(mode=Mode.STRICT)
    store = world.boot()
    run(store, random.Random(1), 30)
    want = state(store)
    store.close()
    world.anchor.rotate()
    assert state(world.boot()) == want
    assert world.anchor.record.key_old == 1, "an acquire alone destroys nothing"
    old = world.keys(keks={1: world.kek(1)}, write_version=1)
    newest = max(headers(world.image), key=lambda h: h["Generation"])
    assert (newest["KeyVersion"], newest["PreviousKeyVersion"]) == (2, 1)
    store = world.boot()
    assert world.anchor.record.key_old is None, "the second boot under the new key destroyed the old one"
    assert state(store) == want
    run(store, random.Random(2), 200)
    store.close()
    assert {h["KeyVersion"] for h in headers(world.image)} == {2}, "no bank under the old key is left"
    only_new = clone(world, world.anchor.record)
    assert only_new.anchor.record.key_version == 2
    assert type(only_new.refused(world.image, keys=old)) is StoreWrongKey


@pytest.mark.rule("SS-19", "SS-9")
def test_power_loss_at_every_call_of_a_rotation(rng) -> None:
    base = sample(Mode.STRICT, commits=12)
    call = 0
    while True:
        world = base.fresh()
        world.anchor.rotate()
        medium = FaultyMedium(base.image, faults={call: Fault.CRASH if call % 2 else Fault.CRASH_AFTER})
        try:
            world.boot(medium=medium)
        except PowerLoss:
            for image in medium.survivors(rng, exhaustive_to=2, samples=1):
                again = clone(world, world.anchor.record)
                assert state(again.boot(image)) == base.final
                assert state(again.boot()) == base.final
                assert state(again.boot()) == base.final
        else:
            break
        call += 1
    assert call >= 6


@pytest.mark.rule("SS-19", "T25")
def test_a_store_can_be_rekeyed_at_every_boot() -> None:
    world = World(rekey_each_boot=True)
    store = world.boot()
    store.commit((put("A", b"1"),))
    salts = set()
    for number in range(6):
        store = world.boot()
        newest = max(headers(world.image), key=lambda h: h["Generation"])
        salts.add(newest["BankSalt"])
        assert newest["Generation"] == number + 2
    assert len(salts) == 6
    assert state(store) == {put("A", b"").key: put("A", b"1").variable}


@pytest.mark.parametrize("new", [1, 2, 3])
@pytest.mark.parametrize("old", [1, 2, 3])
@pytest.mark.rule("SS-18", "SS-20")
def test_a_suite_is_changed_at_the_next_mount(old, new) -> None:
    world = World(suite=old)
    store = world.boot()
    run(store, random.Random(old), 20)
    want = state(store)
    store = world.boot(suite=new)
    assert state(store) == want
    store.commit((put("After", b"change"),))
    newest = max(headers(world.image), key=lambda h: h["Generation"])
    assert newest["Suite"] == new
    assert state(world.boot(suite=new)) == state(store)


def test_SS_18_keys_of_other_purposes_ids_versions_and_places_differ() -> None:
    shape = Geometry.of(128 << 10, 512)
    kek, store_id = bytes(range(32)), bytes(range(16))
    seen: list[bytes] = []

    def bank(root: RootKeys, **changes) -> bytes:
        made = {"generation": 1, "bank_salt": bytes(32), "suite": 1, "geometry": shape, "bank_offset": 0}
        return root.bank(**(made | changes))._key

    root = RootKeys(1, store_id, kek)
    seen += [root.header_key, root.key_check, bank(root)]
    for other in (RootKeys(2, store_id, kek), RootKeys(1, bytes(16), kek), RootKeys(1, store_id, bytes(32))):
        seen += [other.header_key, other.key_check, bank(other)]
    for change in (
        {"generation": 2},
        {"bank_salt": bytes(31) + b"\1"},
        {"suite": 2},
        {"geometry": Geometry.of(256 << 10, 512)},
        {"geometry": Geometry.of(256 << 10, 1024)},
        {"bank_offset": 65536},
    ):
        seen.append(bank(root, **change))
    assert len(set(seen)) == len(seen)
    keys = root.bank(generation=1, bank_salt=bytes(32), suite=1, geometry=shape, bank_offset=0)
    sealed = {keys.session(s, salt).seal(1, 0, b"x" * 32, b"") for s in (1, 2) for salt in (bytes(16), b"\1" * 16)}
    assert len(sealed) == 4


def test_key_material_never_shows_in_a_repr() -> None:
    keys = StoreKeys(bytes(16), "vm", {1: b"K" * 32}, 1)
    assert "KKKK" not in repr(keys)
    assert "KKKK" not in repr(keys.root(1))
    with pytest.raises(ValueError, match="named for writing"):
        StoreKeys(bytes(16), "vm", {1: bytes(32)}, 2)
    with pytest.raises(ValueError, match="16 bytes"):
        StoreKeys(bytes(15), "vm", {1: bytes(32)}, 1)


class Ledger:
    """Every (key, nonce) that sealed something, and what it sealed."""

    def __init__(self, monkeypatch) -> None:
        self.used: dict[tuple, bytes] = {}
        self.repeated = 0
        real = suites.sealer

        def recording(suite, key, salt):
            inner = real(suite, key, salt)
            ledger = self

            class Recording:
                def seal(self, sequence, part, plain, associated):
                    out = inner.seal(sequence, part, plain, associated)
                    entry = (suite, key, sequence, part) + ((salt,) if suite == 2 else ())
                    if ledger.used.setdefault(entry, out) != out:
                        ledger.repeated += 1
                    return out

                open = staticmethod(inner.open)

            return Recording()

        monkeypatch.setattr(suites, "sealer", recording)


@pytest.mark.parametrize("suite", [1, 2, 3])
@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.rule("SS-3", "T22", "P35")
def test_no_key_and_nonce_seal_two_things_over_clones_rollbacks_crashes_and_a_stuck_rng(
    suite, stuck, monkeypatch, rng
) -> None:
    ledger = Ledger(monkeypatch)
    world = World(mode=Mode.PER_BOOT, suite=suite)
    if stuck:

        class Stuck(random.Random):
            def randbytes(self, n):
                return b"\xaa" * n

        world.random = Stuck()
    first = world.boot()
    images = [world.image]
    generator = random.Random(1)
    for round_number in range(14):
        run(first, generator, 25, {})
        images.append(world.image)
        # a clone of any older image, with a broker restored to match it or not
        chosen = rng.choice(images)
        try:
            clone_store = world.boot(chosen)
        except Exception:
            world.anchor.record = type(world.anchor.record)(
                world.vm_id, world.store_id, epoch=world.anchor.record.epoch
            )
            world = fresh_like(world)
            first = world.boot()
            images = [world.image]
            continue
        run(clone_store, random.Random(round_number), 25, {})
        first = clone_store
        if round_number % 4 == 3:
            medium = FaultyMedium(world.image, faults={9: Fault.CRASH_AFTER})
            try:
                run(world.boot(medium=medium), generator, 25, {})
            except PowerLoss:
                first = world.boot(bytes(medium.durable))
    assert len(ledger.used) > 400
    assert ledger.repeated == 0


def fresh_like(world: World) -> World:
    """The same VM with a new, blank image: creation starts over in a later session."""
    again = World(mode=world.mode, suite=world.suite)
    again.store_id, again.master, again.random = world.store_id, world.master, world.random
    again.anchor.record = world.anchor.record
    return again
