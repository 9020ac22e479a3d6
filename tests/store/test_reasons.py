"""Every refusal: its own reason, in its order, the image untouched (SS-7), and no downgrade (SS-20)."""

import hmac
import os
from dataclasses import replace

import pytest

from cvars.errors import (
    AnchorLeased,
    AnchorRolledBack,
    StoreIoError,
    StoreNotProvisioned,
    StoreRolledBack,
    StoreTampered,
    StoreTooOld,
    StoreWrongGuest,
    StoreWrongKey,
)
from cvars.store import FileMedium, Mode, StoreKeys, suites
from cvars.store.header import BANK_MAGIC, BankHeader
from cvars.store.inspecting import inspect
from tests.store.images import sample
from tests.store.world import SMALL, World, blank, put, state


def resealed(base, **changes) -> bytes:
    """The newest header changed by somebody who holds the key: only the field's own check can refuse it."""
    image = bytearray(base.image)
    half = len(image) // 2
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    for offset in (0, half):
        if offset != newest.offset:
            image[offset : offset + 4096] = bytes(4096)
    header = BankHeader.parse(bytes(image[newest.offset : newest.offset + 512]))
    root = base.world.keys().root(1)
    image[newest.offset : newest.offset + 512] = replace(header, **changes).seal(root.header_key)
    return bytes(image)


def test_SS_7_T4_another_vms_store_is_the_wrong_guest() -> None:
    base = sample()
    world = base.fresh()
    other = sample(seed=9, vm_id="vm-2")
    assert type(world.refused(other.image)) is StoreWrongGuest


def test_SS_7_T4_the_same_key_and_store_id_under_another_vm_id_is_the_wrong_guest() -> None:
    base = sample()
    world = base.fresh()
    keys = StoreKeys(base.world.store_id, "vm-2", {1: base.world.kek(1)}, 1)
    assert type(world.refused(base.image, keys=keys)) is StoreWrongGuest


def test_SS_7_T16_another_key_is_the_wrong_key_not_tampering() -> None:
    world = sample().fresh()
    keys = world.keys(keks={1: bytes(32)})
    assert type(world.refused(sample().image, keys=keys)) is StoreWrongKey


def test_SS_7_a_key_version_that_was_not_released_is_the_wrong_key() -> None:
    world = sample().fresh()
    keys = world.keys(keks={2: world.kek(2)}, write_version=2)
    assert type(world.refused(sample().image, keys=keys)) is StoreWrongKey


def test_SS_7_T17_a_blank_image_is_refused_and_never_formatted() -> None:
    for filler in (b"\0", b"\xff"):
        world = World()
        assert type(world.refused(filler * SMALL)) is StoreNotProvisioned
        used = sample().fresh()
        error = used.refused(filler * SMALL)
        assert type(error) is StoreRolledBack
        assert used.trace.events[-2].found == 0
        assert type(World(mode=Mode.NONE).refused(filler * SMALL)) is StoreNotProvisioned


def test_SS_22_T17_a_creation_header_does_not_bring_a_used_store_back_to_its_beginning() -> None:
    world = sample().fresh()
    assert type(world.refused(blank())) is StoreRolledBack


def test_SS_16_T21_a_new_anchor_beside_a_used_store_is_a_broker_that_forgot() -> None:
    base = sample(commits=12, sessions=1, until_compacted=False)
    world = World()
    world.store_id, world.master = base.world.store_id, base.world.master
    assert type(world.refused(base.image)) is AnchorRolledBack
    world.anchor.record = replace(world.anchor.record, epoch=50, version=5000, leased_until=None)
    assert type(world.refused(base.image)) is AnchorRolledBack
    both = blank()[: SMALL // 2] + base.image[SMALL // 2 :]
    assert type(world.refused(both)) is AnchorRolledBack


def test_SS_22_a_damaged_creation_header_is_tampering() -> None:
    image = bytearray(blank())
    image[30] ^= 1
    assert type(World().refused(bytes(image))) is StoreTampered
    assert type(World().refused(blank() + bytes(512))) is StoreTampered


def test_SS_7_the_lease_of_another_instance_is_named() -> None:
    world = World()
    world.boot()
    with pytest.raises(AnchorLeased):
        world.boot(takeover=False)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"suite": 9}, StoreTooOld),
        ({"suite": 0}, StoreTooOld),
        ({"minor": 1}, StoreTooOld),
        ({"flags": 1}, StoreTooOld),
        ({"flags": 1 << 31}, StoreTooOld),
        ({"medium": 2}, StoreTampered),
        ({"mode": 5}, StoreTampered),
        ({"log2_frame": 10}, StoreTampered),
        ({"log2_frame": 255}, StoreTampered),
        ({"image_size": SMALL * 2}, StoreTampered),
        ({"bank_size": SMALL}, StoreTampered),
        ({"bank_offset": 4096}, StoreTampered),
        ({"key_check": bytes(32)}, StoreTampered),
        ({"reserved": bytes(157) + b"\1"}, StoreTampered),
        ({"snapshot_records": 3}, StoreTampered),
        ({"snapshot_records": 0}, StoreTampered),
        ({"snapshot_bytes": 1 << 40}, StoreTampered),
        ({"generation": 77}, StoreTampered),
        ({"bank_salt": bytes(32)}, StoreTampered),
        ({"base_sequence": 5}, StoreTampered),
        ({"session": 0}, StoreTampered),
        ({"parent": bytes(32)}, StoreTampered),
        ({"snapshot_digest": bytes(32)}, StoreTampered),
        ({"window": 3}, StoreTampered),
        ({"previous_key_version": 8}, StoreTampered),
        ({"store_id": bytes(16)}, StoreWrongGuest),
        ({"vm_binding": bytes(16)}, StoreWrongGuest),
        ({"key_version": 3}, StoreWrongKey),
        ({"major": 2}, StoreTooOld),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.rule("SS-4", "SS-20", "T18", "T23")
def test_each_header_field_has_a_check_of_its_own_even_under_a_valid_mac(change, what) -> None:
    base = sample()
    image = resealed(base, **change)
    assert type(base.fresh().refused(image, mode=Mode.NONE)) is what


def test_SS_20_T18_downgrade_table() -> None:
    """Older format, removed suite, weaker mode: the image decides none of it."""
    base = sample()
    world = base.fresh()
    world.anchor.floor_suites = (2, 3)
    assert type(world.refused(base.image, suite=2)) is StoreTooOld
    world = base.fresh()
    world.anchor.floor_format = 2
    assert type(world.refused(base.image)) is StoreTooOld
    world = base.fresh()
    world.anchor.floor_suites = (1,)
    assert type(world.refused(base.image, suite=3)) is StoreTooOld
    world = base.fresh()
    world.anchor.floor_suites = (1,)
    other = sample(suite=2)
    world = other.fresh()
    world.anchor.floor_suites = (1,)
    assert type(world.refused(other.image, suite=1)) is StoreTooOld
    # the mode that an image names is its writer's, never this session's
    weak = sample(Mode.PER_BOOT)
    world = weak.fresh()
    store = world.boot(weak.image, mode=Mode.STRICT)
    assert store.mode is Mode.STRICT
    store.commit((put("X", b"1"),))
    assert store.anchored == store.point


def test_SS_20_an_unknown_major_version_is_too_old_even_without_a_valid_mac() -> None:
    base = sample()
    image = bytearray(base.image)
    for offset in (0, len(image) // 2):
        if image[offset : offset + 8] == BANK_MAGIC:
            image[offset + 8] = 9
    assert type(base.fresh().refused(bytes(image))) is StoreTooOld


def test_SS_7_short_and_huge_images_are_refused_before_they_are_read(tmp_path) -> None:
    for size in (0, 100, 4096, SMALL - 1):
        assert type(World(mode=Mode.NONE).refused(bytes(size))) is StoreNotProvisioned
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 48 << 20)
    medium = FileMedium.open(huge)
    error = World().refused(medium=medium)
    assert type(error) is StoreTampered
    assert "no store is larger" in error.message
    medium.close()


def test_SS_7_directories_missing_files_and_locked_files_are_store_io(tmp_path) -> None:
    messages = set()
    for path in (tmp_path, tmp_path / "none", "/dev/null"):
        with pytest.raises(StoreIoError) as caught:
            FileMedium.open(path)
        messages.add(caught.value.message.removeprefix(str(path)))
    file = tmp_path / "image"
    file.write_bytes(blank())
    held = FileMedium.open(file)
    with pytest.raises(StoreIoError, match="locked by a running guest") as caught:
        FileMedium.open(file)
    messages.add(caught.value.message)
    held.close()
    FileMedium.open(file).close()
    if os.getuid():
        file.chmod(0)
        with pytest.raises(StoreIoError, match="permission denied"):
            FileMedium.open(file)
    assert len(messages) == 4


def test_SS_7_a_device_without_permission_is_store_io(monkeypatch, tmp_path) -> None:
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreIoError, match="permission denied"):
        FileMedium.open(tmp_path / "x")


def test_SS_7_an_openssl_without_gcm_siv_is_said_in_one_sentence(monkeypatch) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm

    def refuse(_key):
        raise UnsupportedAlgorithm("AES-SIV is not supported")

    base = sample()
    monkeypatch.setattr(suites, "AESGCMSIV", refuse)
    error = base.fresh().refused(base.image)
    assert type(error) is StoreTooOld
    assert "not offered by this OpenSSL" in error.message
    assert type(World().refused()) is StoreTooOld


def test_SS_21_T16_the_same_image_opens_only_with_the_brokers_ids() -> None:
    base = sample()
    world = base.fresh()
    store = world.boot(base.image)
    assert state(store) == base.final
    header = BankHeader.parse(world.image[: len(world.image) // 2][:512])
    if header.store_id == world.store_id:
        root = world.keys().root(1)
        assert header.key_check == root.key_check
        assert hmac.compare_digest(header.key_check, root.key_check)


def test_SS_18_T16_a_key_that_opened_an_old_image_never_seals_new_data() -> None:
    base = sample()
    world = base.fresh()
    world.anchor.rotate()
    store = world.boot(base.image)
    assert state(store) == base.final
    before = len(world.medium.writes)
    store.commit((put("After", b"rotation"),))
    newest = max((b for b in inspect(world.image).banks if b.header), key=lambda b: b.header["Generation"])
    assert newest.header["KeyVersion"] == 2
    for offset, _ in world.medium.writes:
        assert newest.offset <= offset < newest.offset + SMALL // 2, "something was sealed under the old key"
    assert len(world.medium.writes) > before


def test_SS_7_a_refusal_hands_the_lease_back_and_is_traced() -> None:
    base = sample()
    world = base.fresh()
    world.refused(sample(seed=9).image)
    assert world.anchor.record.leased_until is None
    assert world.trace.kinds()[-1] == "store.refused"
    assert state(world.boot(base.image, takeover=False)) == base.final
