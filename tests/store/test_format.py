"""Exact bytes of format 1: layouts, key schedule, geometry, what the host can and cannot read."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvars.store import Mode, operations, record
from cvars.store.geometry import FRAMES, Geometry
from cvars.store.header import BANK_MAGIC, BankHeader, CreationHeader, crc32c
from cvars.store.inspecting import BANK_HEADER, CREATION_HEADER, RECORD_PREFIX, inspect
from cvars.variables.model import Key
from tests.store.oracle import CLASSES, INNER, OPERATION, Oracle
from tests.store.workload import run
from tests.store.world import SMALL, World, key, put, state

ALL = [g for frame in FRAMES for n in range(256, 8193, 256) if (g := Geometry.of(n * frame, frame))]


def test_layouts_have_the_sizes_of_the_tables() -> None:
    assert BANK_HEADER.sizeof() == 512
    assert RECORD_PREFIX.sizeof() == record.PREFIX_BYTES == 40
    assert INNER.subcons[0].sizeof() + 16 == record.INNER_BYTES == 48
    assert OPERATION.sizeof() == operations.OPERATION_BYTES == 44
    assert CREATION_HEADER.sizeof() == 42
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(min_size=504, max_size=504))
def test_SS_4_the_engine_and_the_declaration_read_the_same_header(rest) -> None:
    raw = BANK_MAGIC + rest
    ours, declared = BankHeader.parse(raw), BANK_HEADER.parse(raw)
    assert (ours.major, ours.minor, ours.suite, ours.medium) == (
        declared.Major,
        declared.Minor,
        declared.Suite,
        declared.Medium,
    )
    assert (ours.log2_frame, ours.mode, ours.image_size) == (declared.Log2Frame, declared.Mode, declared.ImageSize)
    assert (ours.bank_offset, ours.bank_size, ours.generation) == (
        declared.BankOffset,
        declared.BankSize,
        declared.Generation,
    )
    assert (ours.store_id, ours.vm_binding, ours.key_version, ours.flags) == (
        declared.StoreId,
        declared.VmBinding,
        declared.KeyVersion,
        declared.FeatureFlags,
    )
    assert (ours.base_sequence, ours.session, ours.bank_salt, ours.parent) == (
        declared.BaseSequence,
        declared.Session,
        declared.BankSalt,
        declared.ParentChain,
    )
    assert (ours.snapshot_bytes, ours.snapshot_records, ours.previous_key_version) == (
        declared.SnapshotLength,
        declared.SnapshotRecords,
        declared.PreviousKeyVersion,
    )
    assert (ours.anchored.counter, ours.anchored.root) == (declared.AnchorCounter, declared.AnchorRoot)
    assert (ours.snapshot_digest, ours.key_check, ours.window, ours.reserved) == (
        declared.SnapshotDigest,
        declared.KeyCheck,
        declared.Window,
        declared.Reserved,
    )
    assert ours.encode() == raw[:448]


@given(st.binary(min_size=36, max_size=36), st.sampled_from([b"CVR1", b"CVR2"]))
def test_the_engine_and_the_declaration_read_the_same_record_prefix(rest, magic) -> None:
    ours, declared = record.parse_prefix(magic + rest, 0), RECORD_PREFIX.parse(magic + rest)
    if magic != b"CVR1" or declared.Class >= len(CLASSES):
        assert ours is None
    else:
        assert (ours.suite, ours.class_index, ours.part, ours.session, ours.salt, ours.sequence) == (
            declared.Suite,
            declared.Class,
            declared.Part,
            declared.Session,
            declared.SessionSalt,
            declared.Sequence,
        )


@pytest.mark.parametrize("suite", [1, 2, 3])
@pytest.mark.parametrize(("frame", "frames"), [(512, 256), (1024, 256), (512, 768), (2048, 256), (4096, 256)])
@pytest.mark.rule("SS-18", "SS-25")
def test_an_independent_reader_finds_the_same_state_and_digest(suite, frame, frames) -> None:
    world = World(size=frame * frames, frame=frame, suite=suite, mode=Mode.PER_BOOT)
    rng = random.Random(suite * frame)
    live: dict = {}
    for _ in range(3):
        store = world.boot()
        run(store, rng, 90, live)
        oracle = Oracle(world.image, world.store_id, world.vm_id, {1: world.kek(1)})
        assert oracle.variables == state(store)
        assert (oracle.counter, oracle.root) == (store.point.counter, store.point.root)
        store.close()
    assert store.generation > 1 or frames * frame > SMALL


def test_SS_1_no_name_value_guid_or_count_is_readable_in_the_image() -> None:
    world = World()
    store = world.boot()
    for number in range(40):
        store.commit((put(f"SecretName{number}", b"a very secret value" * 9),))
    image = world.image
    for needle in (
        "SecretName".encode("utf-16-le"),
        b"secret value",
        key("x").vendor_guid.bytes_le,
        b"SecretName",
    ):
        assert needle not in image
    assert bytes(64) not in image[image.index(BANK_MAGIC) + 512 + 4096 :][:20000]


def test_SS_1_an_empty_and_a_small_store_look_alike_without_a_key() -> None:
    shapes = []
    for count in (0, 1, 20):
        world = World(mode=Mode.NONE, rekey_each_boot=True)
        store = world.boot()
        store.commit(tuple(put(f"V{n}", b"x" * 50) for n in range(count)) or (put("V", b""),))
        store.close()
        world.boot()
        bank = max((b for b in inspect(world.image).banks if b.header), key=lambda b: b.header["Generation"])
        shapes.append([(r.offset, r.size, r.place) for r in bank.records])
    assert shapes[0] == shapes[1] == shapes[2]


def test_SS_23_SS_24_every_geometry_holds_its_capacity_and_then_the_largest_record() -> None:
    assert len(ALL) == 4 * 32
    for geometry in ALL:
        parts = geometry.parts_for(geometry.capacity)
        used = 4096 + geometry.snapshot_bytes(parts)
        assert used + 66 * geometry.frame <= geometry.bank_size, geometry
        assert geometry.parts_per_step * geometry.part_bytes * 8 == geometry.bank_size
        assert parts <= 7 * geometry.parts_per_step
    assert Geometry.of(256 << 10, 1024).capacity == 42 << 10
    assert Geometry.of(1 << 20, 1024).capacity == 378 << 10


@pytest.mark.parametrize(
    ("size", "frame"),
    [
        (0, 512),
        (SMALL, 256),
        (SMALL, 1024),
        (SMALL + 512, 512),
        (128 * 1024, 8192),
        (8448 * 1024, 1024),
        (-SMALL, 512),
    ],
)
def test_other_geometries_are_refused(size, frame) -> None:
    assert Geometry.of(size, frame) is None


def test_SS_22_the_creation_header_carries_geometry_and_a_ticket_and_nothing_else() -> None:
    geometry = Geometry.of(SMALL, 512)
    header = CreationHeader(geometry, 1, bytes(range(16)), b"ticket" * 9)
    raw = header.encode()
    assert len(raw) == 512
    assert CreationHeader.parse(raw) == header
    declared = CREATION_HEADER.parse(raw)
    assert (declared.Log2Frame, declared.Medium, declared.ImageSize) == (9, 1, SMALL)
    assert (declared.RequestId, declared.AuxLength) == (bytes(range(16)), 54)
    for at in range(512):
        broken = bytearray(raw)
        broken[at] ^= 0x10
        with pytest.raises(ValueError, match=r"."):
            CreationHeader.parse(bytes(broken))


names = st.text(st.characters(min_codepoint=1, max_codepoint=0xFFFF), min_size=1, max_size=20)


@given(names, st.binary(max_size=50), st.integers(0, 2**32 - 1), st.none() | st.binary(min_size=32, max_size=32))
def test_operations_come_back_from_their_bytes(name, data, attributes, signer) -> None:
    one = put(name, data, attributes=attributes, signer=signer)
    encoded = operations.encode(one)
    assert len(encoded) == operations.cost(one.key, one.variable)
    back: dict[Key, object] = {}
    assert operations.replay(encoded, 1, back, 0, puts_only=True) == len(encoded)
    assert back == {one.key: one.variable}
