"""Threats T1 to T4, T7, T8: whatever bytes change, the result is the exact state or a refusal."""

import random

import pytest

from cvars.errors import StoreError, StoreTampered, StoreWrongGuest
from cvars.store import Mode, Outcome
from cvars.store.inspecting import inspect
from tests.store.images import places, sample
from tests.store.world import World, state

MASKS = (0x01, 0x80, 0xFF, 0x10)


def verdict(base, image: bytes, *, anchored: bool) -> str:
    """Boot a damaged image: "exact", "repaired", "previous", "older", or the reason; anything else is wrong."""
    world = base.fresh()
    try:
        store = world.boot(image) if anchored else world.boot(image, mode=Mode.NONE)
    except StoreError as error:
        assert not world.medium.writes, "a refusal wrote to the image"
        assert bytes(world.medium.image) == image
        return error.reason
    found = state(store)
    if anchored:
        assert found == base.final, "a wrong state"
        return "repaired" if store.boot.outcome is Outcome.REPAIRED else "exact"
    if found == base.final:
        return "exact"
    if found == base.states[base.last - 1]:
        return "previous"
    newest = max(b.header["Generation"] for b in inspect(base.image).banks if b.header)
    parent = (
        next(b for b in inspect(base.image).banks if b.header["Generation"] == newest).header["BaseSequence"] - 1
    )
    assert found == base.states[parent], "a wrong state"
    return "older"


def flips(base, rng, count: int):
    where = places(base.image)
    for kind in ("header", "zeros", "prefix", "ciphertext", "tag", "free"):
        for _ in range(count):
            offset, length = rng.choice(where[kind])
            at = offset + rng.randrange(length)
            broken = bytearray(base.image)
            broken[at] ^= rng.choice(MASKS)
            yield kind, at, bytes(broken)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.rule("SS-4", "SS-5", "T1")
def test_a_flipped_bit_gives_the_exact_state_or_a_refusal(anchored, rng) -> None:
    base = sample()
    last = max(r.offset for b in inspect(base.image).banks for r in b.records if r.sequence == base.last)
    seen: dict[tuple[str, str], int] = {}
    for kind, at, image in flips(base, rng, 40):
        got = verdict(base, image, anchored=anchored)
        seen[kind, got] = seen.get((kind, got), 0) + 1
        if got == "previous":
            assert at >= last
        if got == "older":
            assert kind in ("header", "zeros")
    assert seen["free", "exact"] == 40
    assert {got for kind, got in seen if kind == "header"} <= {
        "older",
        "repaired",
        "store.tampered",
        "store.wrong_guest",
        "store.wrong_key",
        "store.too_old",
        "store.rolled_back",
    }
    assert not any(got == "exact" for kind, got in seen if kind != "free"), seen


@pytest.mark.exhaustive
@pytest.mark.parametrize("eighth", range(8))
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.rule("SS-4", "T1")
def test_every_byte_flipped(anchored, eighth, capsys) -> None:
    base = sample(commits=8, sessions=1, until_compacted=True)
    size = len(base.image) // 8
    counts: dict[str, int] = {}
    for at in range(eighth * size, (eighth + 1) * size):
        broken = bytearray(base.image)
        broken[at] ^= MASKS[at % len(MASKS)]
        got = verdict(base, bytes(broken), anchored=anchored)
        counts[got] = counts.get(got, 0) + 1
    with capsys.disabled():
        print(f"\nflips (anchored={anchored}, eighth {eighth}): {sum(counts.values())}, wrong 0, {counts}")


@pytest.mark.rule("SS-5", "T2", "T3")
def test_swapped_moved_and_duplicated_frames(rng, exhaustive) -> None:
    base = sample(commits=20, sessions=1)
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    offsets = [r.offset for r in newest.records if r.size == 512]
    used = range(newest.offset + 4096, newest.offset + newest.used_to, 512)
    pairs = [(a, b) for a in used for b in used if a != b]
    rng.shuffle(pairs)
    for a, b in pairs[: 60 if not exhaustive else 2000] + [
        (a, b) for a in offsets[-4:] for b in offsets[-4:] if a != b
    ]:
        frames = base.image[a : a + 512], base.image[b : b + 512]
        if frames[0] == frames[1]:
            continue
        for swap in (True, False):
            broken = bytearray(base.image)
            broken[b : b + 512] = frames[0]
            if swap:
                broken[a : a + 512] = frames[1]
            assert verdict(base, bytes(broken), anchored=False) in ("store.tampered", "previous")
            assert verdict(base, bytes(broken), anchored=True) in ("store.tampered", "repaired")


@pytest.mark.exhaustive
@pytest.mark.rule("SS-5", "T2")
def test_all_pairs_of_frame_swaps_duplications_and_moves(capsys) -> None:
    base = sample(commits=12, sessions=1)
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    used = range(newest.offset, newest.offset + newest.used_to, 512)
    counts: dict[str, int] = {}
    for a in used:
        for b in used:
            if a == b or base.image[a : a + 512] == base.image[b : b + 512]:
                continue
            for what in ("swap", "copy", "move"):
                if what == "swap" and a > b:
                    continue
                broken = bytearray(base.image)
                broken[b : b + 512] = base.image[a : a + 512]
                if what == "swap":
                    broken[a : a + 512] = base.image[b : b + 512]
                if what == "move":
                    broken[a : a + 512] = bytes(512)
                got = verdict(base, bytes(broken), anchored=True)
                assert got != "exact"
                counts[got] = counts.get(got, 0) + 1
    with capsys.disabled():
        print(f"\nframe swaps, copies, moves: {sum(counts.values())}, wrong 0, {counts}")


@pytest.mark.rule("SS-5", "T3", "T4")
def test_records_of_another_session_generation_vm_store_or_suite_do_not_fit(rng) -> None:
    base = sample(commits=20)
    others = {
        "other store": sample(commits=20, seed=8),
        "other vm": sample(commits=20, seed=8, vm_id="vm-2"),
        "other suite": sample(commits=20, seed=9, suite=2),
    }
    early = sample(commits=20, sessions=1, until_compacted=False)
    assert early.world.store_id == base.world.store_id
    others["earlier generation"] = early
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    for other in others.values():
        for record in newest.records[1:]:
            for theirs in [r for b in inspect(other.image).banks for r in b.records if r.size == record.size][-3:]:
                broken = bytearray(base.image)
                broken[record.offset : record.offset + record.size] = other.image[
                    theirs.offset : theirs.offset + theirs.size
                ]
                assert verdict(base, bytes(broken), anchored=True) in ("store.tampered", "repaired")
                assert verdict(base, bytes(broken), anchored=False) in ("store.tampered", "previous")


def test_SS_5_T4_a_whole_bank_of_another_store_is_no_bank_here() -> None:
    base, other = sample(), sample(seed=8)
    half = len(base.image) // 2
    for bank in (0, 1):
        mixed = bytearray(base.image)
        mixed[bank * half : (bank + 1) * half] = other.image[bank * half : (bank + 1) * half]
        assert verdict(base, bytes(mixed), anchored=True) in ("exact", "repaired", "store.rolled_back")
    assert base.fresh().refused(other.image).reason == StoreWrongGuest.reason


def test_SS_5_T2_a_bank_does_not_open_in_the_other_half() -> None:
    base = sample()
    half = len(base.image) // 2
    swapped = base.image[half:] + base.image[:half]
    error = base.fresh().refused(swapped)
    assert isinstance(error, StoreTampered)
    assert "another place" in error.message


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.rule("SS-4", "T8")
def test_truncated_and_extended_images(anchored, rng) -> None:
    base = sample()
    size = len(base.image)
    lengths = {0, 1, 511, 512, 4095, 4096, size // 2, size // 2 + 512, size - 512, size - 1}
    for length in lengths | {rng.randrange(size) for _ in range(20)}:
        assert verdict(base, base.image[:length], anchored=anchored).startswith("store.")
    for extra in (1, 511, 512, 4096, size, 3 * size):
        assert verdict(base, base.image + bytes(extra), anchored=anchored).startswith("store.")


def test_T8_a_hole_punched_anywhere_in_the_log_is_seen() -> None:
    base = sample()
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    for record in newest.records[:-1]:
        broken = bytearray(base.image)
        broken[record.offset : record.offset + record.size] = bytes(record.size)
        assert verdict(base, bytes(broken), anchored=False) == "store.tampered"


def test_T7_a_log_cut_off_is_repaired_within_the_ring_or_refused() -> None:
    base = sample()
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    log = [r for r in newest.records if r.place == "log"]
    for record in log:
        broken = bytearray(base.image)
        end = newest.offset + len(base.image) // 2
        broken[record.offset : end] = bytes(end - record.offset)
        assert verdict(base, bytes(broken), anchored=True) == "repaired"


def test_T14_the_image_is_read_once_and_never_while_serving() -> None:
    world = World()
    store = world.boot()
    assert world.medium.reads == 1
    from tests.store.workload import run

    run(store, random.Random(1), 300)
    store.tick()
    store.close()
    assert world.medium.reads == 1
