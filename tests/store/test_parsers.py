"""Parsers against any bytes, with the declarative description as oracle (section 5 item 11, T23)."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvars.errors import BadInput, StoreError
from cvars.store import Mode, escrow, operations, record
from cvars.store.checking import check
from cvars.store.header import BANK_MAGIC, INIT_MAGIC, BankHeader, CreationHeader
from cvars.store.inspecting import inspect
from cvars.store.keyfile import KeyFile, dump, parse
from cvars.store.operations import Malformed
from cvars.variables.model import Put
from tests.store.images import sample
from tests.store.world import SMALL, World, append, delete, put

HEAD = st.sampled_from([BANK_MAGIC, INIT_MAGIC, b"CVR1", b""])


@given(HEAD, st.binary(max_size=9000), st.integers(0, 3))
@pytest.mark.rule("T23")
def test_any_bytes_are_refused_with_a_reason_and_never_a_traceback(head, body, where) -> None:
    image = bytearray(SMALL)
    at = (0, SMALL // 2, 4096, SMALL // 2 + 4096)[where]
    image[at : at + len(head) + len(body)] = head + body
    base = sample()
    with pytest.raises(StoreError):
        base.fresh().boot(bytes(image))
    key_file = KeyFile({1: base.world.kek(1)}, 1, base.world.store_id, "vm-1")
    assert not check(bytes(image), key_file).sound
    inspect(bytes(image))


@given(st.binary(max_size=600))
def test_any_creation_header_parses_or_says_why(raw) -> None:
    raw = (INIT_MAGIC + raw).ljust(512, b"\0")[:512]
    with pytest.raises(ValueError, match=r"."):
        CreationHeader.parse(raw)


@given(st.binary(max_size=400), st.integers(0, 5), st.booleans())
def test_any_operations_replay_or_are_malformed(body, count, puts_only) -> None:
    try:
        live = operations.replay(body, count, {}, 0, puts_only=puts_only)
    except Malformed:
        return
    assert live <= len(body)


@given(st.binary(max_size=3000))
def test_any_ring_decodes_or_is_malformed(ring) -> None:
    try:
        entries = escrow.decode(ring)
    except Malformed:
        return
    assert escrow.encode(entries) == ring


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_announcement_parses_or_is_malformed(body, at) -> None:
    record.parse_prefix(body, at)
    try:
        parsed = record.Announcement.parse(body)
    except Malformed:
        return
    assert len(parsed.encode()) == 76


@given(st.binary(min_size=512, max_size=512))
def test_header_fields_survive_a_round_trip(raw) -> None:
    assert BankHeader.parse(raw).encode()[8:] == raw[8:448]


def malformed_records(rng: random.Random):
    """Authentic records whose content breaks one rule each: only a check of its own refuses them."""
    good = {
        "kind": record.TRANSACTION,
        "flags": 0,
        "count": 0,
        "live": None,
        "body": b"",
        "part": 0,
        "session": None,
    }
    yield "kind 0", good | {"kind": 0}
    yield "kind 6", good | {"kind": 6}
    yield "flags", good | {"flags": 2}
    yield "part", good | {"part": 1}
    yield "snapshot kind", good | {"kind": record.SNAPSHOT_PART}
    yield "snapshot end", good | {"kind": record.SNAPSHOT_END}
    yield "live bytes", good | {"live": 12345}
    yield "count", good | {"count": 3}
    yield "body behind the operations", good | {"body": b"x"}
    yield "close with a body", good | {"kind": record.CLOSE, "body": b"x"}
    yield "close with flags", good | {"kind": record.CLOSE, "flags": 1}
    yield "short announcement", good | {"kind": record.SESSION, "body": b"x", "session": 99}
    yield (
        "announcement with flags",
        good
        | {
            "kind": record.SESSION,
            "flags": 1,
            "session": 99,
            "body": record.Announcement(1, bytes(32), 1, 0, "").encode(),
        },
    )
    yield (
        "announcement of mode 9",
        good
        | {
            "kind": record.SESSION,
            "session": 99,
            "body": record.Announcement(1, bytes(32), 9, 0, "").encode(),
        },
    )
    yield (
        "announced twice",
        good
        | {
            "kind": record.SESSION,
            "body": record.Announcement(1, bytes(32), 1, 0, "").encode(),
        },
    )
    yield "data of an unannounced session", good | {"session": 99}
    yield "data of an older session", good | {"session": 0}
    grown = operations.encode(append("Nothing", b"x", b""))
    yield "append to nothing", good | {"body": grown, "count": 1}
    one = operations.encode(put("A", b"xy"))
    size = 44 + 2 + 2
    yield "live over the capacity", good | {"live": 1 << 40}
    yield "operation flags", good | {"body": one[:1] + b"\2" + one[2:], "count": 1, "live": size}
    yield "operation kind", good | {"body": b"\7" + one[1:], "count": 1, "live": size}
    yield "name of odd length", good | {"body": one[:2] + b"\3\0" + one[4:], "count": 1, "live": size}
    yield "name with a NUL", good | {"body": one[:44] + b"\0\0" + one[46:], "count": 1, "live": size}
    yield "data behind the record", good | {"body": one[:4] + b"\x09" + one[5:], "count": 1, "live": size}
    yield "two operations in one", good | {"body": one, "count": 2, "live": size}
    bad = operations.encode(append("A", b"z", b"xy"))
    yield "append with another digest", good | {"body": one + bad[:-1] + b"\0", "count": 2, "live": size + 1}
    yield (
        "append with another length",
        good | {"body": one + bad[:-36] + b"\4" + bad[-35:], "count": 2, "live": size + 1},
    )
    gone = operations.encode(delete("A"))
    yield "delete with attributes", good | {"body": one + gone[:8] + b"\1" + gone[9:], "count": 2, "live": 0}
    yield "delete of nothing", good | {"body": operations.encode(delete("Nothing")), "count": 1}


@pytest.mark.parametrize("case", list(malformed_records(random.Random(1))), ids=lambda c: c[0])
@pytest.mark.rule("SS-4", "T23")
def test_authentic_records_that_break_the_format_are_damage(case) -> None:
    _, fields = case
    world = World()
    store = world.boot()
    log = store._log
    live = fields["live"] if fields["live"] is not None else log.history.live
    raw = record.seal(
        log.history.keys,
        frame=log.history.geometry.frame,
        offset=log.history.tail,
        class_index=0,
        part=fields["part"],
        session=log.session if fields["session"] is None else fields["session"],
        salt=log._salt,
        sequence=log.history.point.counter + 1,
        previous=log.history.point.root,
        kind=fields["kind"],
        flags=fields["flags"],
        count=fields["count"],
        live=live,
        body=fields["body"],
    )
    at = log.history.header.bank_offset + log.history.tail
    image = bytearray(world.image)
    image[at : at + len(raw)] = raw
    assert world.refused(bytes(image)).reason == "store.tampered"


SNAPSHOTS = {
    "kind": {"kind": record.TRANSACTION},
    "flags": {"flags": 1},
    "part": {"part": 7},
    "session": {"session": 77},
    "sequence": {"sequence": 99},
    "salt": {"salt": b"\x55" * 16},
    "previous": {"previous": bytes(32)},
    "live": {"live": 3},
    "count": {"count": 9},
    "body": {"body": b"x" * 60},
    "class": {"class_index": 8},
}


@pytest.mark.parametrize("which", ["part", "end"])
@pytest.mark.parametrize("change", SNAPSHOTS, ids=str)
@pytest.mark.rule("SS-4", "T23")
def test_authentic_snapshots_that_break_the_format_are_damage(change, which, monkeypatch) -> None:
    """A bank sealed with the right keys, one field of one record wrong, digest and MAC made to fit."""
    from cvars.store import snapshot

    world = World(mode=Mode.NONE, size=256 << 10)
    store = world.boot()
    store.commit((put("A", b"1"),))
    real, seen = snapshot.record.seal, []

    def forged(keys, **fields):
        seen.append(fields["kind"])
        wanted = record.SNAPSHOT_END if which == "end" else record.SNAPSHOT_PART
        second = which == "end" or seen.count(record.SNAPSHOT_PART) == 2
        if fields["kind"] == wanted and second:
            fields |= SNAPSHOTS[change]
        return real(keys, **fields)

    monkeypatch.setattr(snapshot.record, "seal", forged)
    store._compact()
    monkeypatch.undo()
    assert seen.count(record.SNAPSHOT_PART) == 2
    assert world.refused(world.image).reason == "store.tampered"


def test_a_snapshot_that_holds_a_variable_twice_or_more_than_the_capacity_is_damage(monkeypatch) -> None:
    from cvars.store import snapshot

    world = World(mode=Mode.NONE)
    store = world.boot()
    store.commit((put("A", b"1"), put("B", b"2")))
    real = snapshot.encode
    monkeypatch.setattr(snapshot, "encode", lambda change: real(Put(put("A", b"").key, change.variable)))
    store._compact()
    monkeypatch.undo()
    assert world.refused(world.image).reason == "store.tampered"
    world = World(mode=Mode.NONE)
    store = world.boot()
    store._variables[put("A", b"").key] = put("A", bytes(store.capacity)).variable
    store._compact()
    assert world.refused(world.image).reason == "store.tampered"


def test_padding_that_is_not_zero_is_damage() -> None:
    world = World()
    store = world.boot()
    log = store._log
    sealer = log.history.keys.session(log.session, log._salt)
    prefix = record._PREFIX.pack(record.MAGIC, 1, 0, 0, log.session, log._salt, log.history.point.counter + 1)
    for length, tail in ((0, b"\1"), (5000, b"")):
        plain = record._INNER.pack(log.history.point.root, record.CLOSE, 0, 0, length, log.history.live)
        plain = (plain + tail).ljust(512 - 56, b"\0")
        offset = log.history.tail
        raw = prefix + sealer.seal(log.history.point.counter + 1, 0, plain, prefix + offset.to_bytes(8, "little"))
        image = bytearray(world.image)
        at = log.history.header.bank_offset + offset
        image[at : at + 512] = raw
        assert world.refused(bytes(image)).reason == "store.tampered"


def test_key_files_come_back_and_bad_ones_never_show_their_bytes(tmp_path) -> None:
    keys = sample().world.keys()
    file = tmp_path / "key"
    file.write_text(dump(keys))
    loaded = parse(file.read_bytes(), str(file))
    assert loaded.keys(store_id=b"", key_version=0) == keys
    file.write_bytes(b"K" * 32)
    raw = parse(file.read_bytes(), str(file))
    assert raw.raw
    assert raw.keys(store_id=bytes(16), key_version=4).keks == {4: b"K" * 32}
    head = 'store_id = "{}"\nvm_id = "web-1"\nkek = "{}"\n'.format("00" * 16, "00" * 32)
    toml = head + '[keks]\n2 = "%s"\n' % ("62" * 32)
    file.write_text(toml)
    assert parse(file.read_bytes(), "file").keks == {1: bytes(32), 2: b"b" * 32}
    for bad in (
        b"",
        b"SECRETSECRET",
        b"\xff" * 31,
        b"{}",
        b'{"store_id": 5}',
        b'{"kek": "00", "extra": 1}',
        b"[1]",
    ):
        file.write_bytes(bad)
        with pytest.raises(BadInput) as caught:
            parse(file.read_bytes(), str(file))
        assert "SECRET" not in caught.value.message + caught.value.where
