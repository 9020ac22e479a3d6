"""`cvars store`: the offline tools never write to what they read, and say exactly what is wrong (SS-26)."""

import json
import sys
from collections import Counter

import pytest

from cvars.cli import main
from cvars.cli.output import SPEECH
from cvars.errors import StoreError
from cvars.store import Mode
from cvars.store.explaining import EXPLANATIONS
from cvars.store.inspecting import inspect
from cvars.store.keyfile import dump, parse
from cvars.store.rewriting import open_sound
from tests.store.images import places, sample
from tests.store.world import World, put, state


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run `cvars store …` in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cvars", "store", *map(str, arguments)])
        SPEECH.as_json = SPEECH.quiet = SPEECH.verbose = False
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.run()
        SPEECH.as_json = SPEECH.quiet = SPEECH.verbose = False
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def long_sample():
    """An image with more than 200 commits and one compaction."""
    return sample(Mode.NONE, commits=260, seed=12, sessions=1, size=512 << 10, frame=1024, until_compacted=False)


@pytest.fixture
def files(tmp_path):
    base = long_sample()
    image, key = tmp_path / "vars.store", tmp_path / "key.json"
    image.write_bytes(base.image)
    key.write_text(dump(base.world.keys()))
    return base, image, key


def damaged(base, rng, count: int):
    """(kind, image): flips by kind of used byte, swaps/moves/duplicates, truncations, flips in unused bytes."""
    where = places(base.image)
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    for number in range(count * 2):
        kind = ("header", "prefix", "ciphertext", "tag")[number % 4]
        offset, length = rng.choice(where[kind])
        yield f"flip {kind}", flipped(base.image, offset + rng.randrange(length), rng)
    used = list(range(newest.offset + 4096, newest.offset + newest.used_to, 1024))
    for number in range(count):
        a, b = rng.sample(used, 2)
        image = bytearray(base.image)
        image[b : b + 1024] = base.image[a : a + 1024]
        if number % 3 == 0:
            image[a : a + 1024] = base.image[b : b + 1024]
        elif number % 3 == 1:
            image[a : a + 1024] = bytes(1024)
        yield ("swap", "move", "duplicate")[number % 3], bytes(image)
    for _ in range(count):
        yield "truncation", base.image[: rng.randrange(len(base.image))]
    offset, length = where["free"][0]
    for _ in range(count * 2):
        yield "flip unused", flipped(base.image, offset + rng.randrange(length), rng)


def flipped(image: bytes, at: int, rng) -> bytes:
    out = bytearray(image)
    out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


@pytest.mark.rule("SS-26", "T1", "T2", "T8")
def test_fsck_and_dump_on_600_damaged_copies(cli, files, rng, exhaustive, capsys) -> None:
    base, image, key = files
    assert base.last > 200
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    assert newest.header["Generation"] == 2, "one compaction"
    code, out, _ = cli("dump", image, "--key-file", key, "--json")
    assert code == 0
    original = json.loads(out)["variables"]
    before_last = variables(base.states[base.last - 1])
    assert original == variables(base.final)
    last = newest.records[-1]
    table: Counter = Counter()
    for kind, broken in damaged(base, rng, 100 if exhaustive else 6):
        image.write_bytes(broken)
        code, out, err = cli("fsck", image, "--key-file", key, "--json")
        report = json.loads(out)
        assert "Traceback" not in out + err
        assert code == (0 if report["sound"] else 1)
        dumped, out, err = cli("dump", image, "--key-file", key, "--json")
        assert "Traceback" not in out + err
        assert dumped == code, (kind, err)
        if report["sound"]:
            got = json.loads(out)["variables"]
            hit = (
                broken[last.offset : last.offset + last.size] != base.image[last.offset : last.offset + last.size]
            )
            assert got == original or (hit and got == before_last)
            table[kind, "sound" if got == original else "sound, before the last record"] += 1
        else:
            assert report["findings"]
            assert report["findings"][0]["reason"] == json.loads(out)["reason"]
            table[kind, report["findings"][0]["reason"]] += 1
        assert image.read_bytes() == broken, "the file was changed"
    assert table["flip unused", "sound"] == (200 if exhaustive else 12)
    assert not any(
        reason == "sound" for (kind, reason) in table if kind not in ("flip unused", "move", "swap", "duplicate")
    )
    if exhaustive:
        with capsys.disabled():
            print(f"\n{sum(table.values())} damaged copies, {base.last} commits:")
            for (kind, reason), number in sorted(table.items()):
                print(f"  {kind:16} {reason:32} {number}")


def variables(live: dict) -> list:
    return [
        {
            "name": k.name,
            "guid": str(k.vendor_guid),
            "attributes": v.attributes,
            "data": v.data.hex(),
            "time": v.timestamp.hex(),
            "signer": v.signer.hex() if v.signer else None,
            "private": False,
        }
        for k, v in sorted(live.items(), key=lambda item: item[0].sort_bytes)
    ]


@pytest.mark.rule("SS-22", "SS-26")
def test_create_makes_a_usable_store_with_a_key_and_a_creation_header_without(cli, tmp_path) -> None:
    key = tmp_path / "k"
    key.write_bytes(bytes(range(32)))
    usable, header = tmp_path / "a.store", tmp_path / "b.store"
    assert cli("create", usable, "--size", "256K", "--key-file", key)[0] == 0
    assert cli("fsck", usable, "--key-file", key)[0] == 0
    assert cli("create", header, "--size", "128K", "--frame", 512, "--nor")[0] == 0
    assert header.stat().st_size == 128 << 10
    code, out, _ = cli("fsck", header, "--key-file", key)
    assert code == 1
    assert "store.not_provisioned" in out
    code, out, _ = cli("inspect", header, "--json")
    assert json.loads(out)["creation"]["Medium"] == 1
    code, _, err = cli("create", usable, "--size", "256K")
    assert code == 2
    assert "exists" in err
    for size in ("100", "1000K", "64K", "banana", "1G"):
        assert cli("create", tmp_path / "x", "--size", size)[0] == 2
        assert not (tmp_path / "x").exists()
    big = tmp_path / "ticket"
    big.write_bytes(bytes(449))
    assert cli("create", tmp_path / "x", "--ticket", big)[0] == 3
    assert cli("create", tmp_path / "none" / "x")[0] == 4


def test_inspect_shows_what_a_host_can_learn_and_needs_no_key(cli, files) -> None:
    base, image, _ = files
    code, out, _ = cli("inspect", image, "-v")
    assert code == 0
    assert base.world.store_id.hex() in out
    code, out, _ = cli("inspect", image, "--json")
    seen = json.loads(out)
    newest = max((b for b in seen["banks"] if b["header"]), key=lambda b: b["header"]["Generation"])
    assert newest["records"][-1]["sequence"] == base.last
    for secret in (b"V1", b"BootOrder"):
        assert secret.decode() not in out


@pytest.mark.parametrize("verb", ["rotate", "resize", "recover"])
@pytest.mark.rule("SS-26", "SS-25", "SS-19")
def test_new_images_hold_the_state_above_the_old_numbers_and_need_a_rebase(verb, cli, tmp_path) -> None:
    base = sample(Mode.STRICT, commits=30)
    image, key, out = tmp_path / "i", tmp_path / "k", tmp_path / "new"
    image.write_bytes(base.image)
    key.write_text(dump(base.world.keys()))
    more = {"resize": ("--size", "1M", "--frame", 1024), "rotate": ("--suite", 2), "recover": ()}[verb]
    code, text, _ = cli(verb, image, "--key-file", key, "--out", out, *more, "--json")
    assert code == 0
    assert image.read_bytes() == base.image
    made = json.loads(text)
    source = open_sound(out.read_bytes(), parse(key.read_bytes(), str(key)))
    assert source.history.variables == base.final
    old = max(b.header["Generation"] for b in inspect(base.image).banks if b.header)
    head = source.history.header
    assert (head.session, head.parent, head.generation) == (0, bytes(32), old + 1)
    assert head.base_sequence == base.last + 1 == made["sequence"]
    world = base.fresh()
    world.suite = head.suite
    assert world.refused(out.read_bytes()).reason == "store.forked", "not before the rebase"
    world.anchor.reset(source.history.point)
    store = world.boot(out.read_bytes())
    assert state(store) == base.final
    store.commit((put("Goes", b"on"),))
    assert cli(verb, image, "--key-file", key, "--out", out, *more)[0] == 2, "an existing file is left alone"


@pytest.mark.rule("SS-26", "SS-15")
def test_recover_takes_out_what_precedes_the_damage(cli, files, tmp_path) -> None:
    base, image, key = files
    newest = max((b for b in inspect(base.image).banks if b.header), key=lambda b: b.header["Generation"])
    victim = [r for r in newest.records if r.place == "log"][4]
    broken = bytearray(base.image)
    broken[victim.offset + 200] ^= 4
    image.write_bytes(broken)
    out = tmp_path / "new"
    code, text, _ = cli("recover", image, "--key-file", key, "--out", out)
    assert code == 0
    assert f"{base.last - victim.sequence} later records" in text
    source = open_sound(out.read_bytes(), parse(key.read_bytes(), str(key)))
    assert source.history.variables == base.states[victim.sequence - 1]
    assert source.history.header.base_sequence == base.last + 1
    for verb in ("rotate", "dump"):
        extra = ("--out", tmp_path / "x") if verb == "rotate" else ()
        code, _, err = cli(verb, image, "--key-file", key, *extra)
        assert code == 1
        assert "recover" in err
    image.write_bytes(bytes(512 << 10))
    assert cli("recover", image, "--key-file", key, "--out", tmp_path / "y")[0] == 1


@pytest.mark.rule("SS-25", "SS-23")
def test_resize_refuses_what_does_not_fit(cli, tmp_path) -> None:
    world = World(mode=Mode.NONE, size=256 << 10, frame=1024)
    store = world.boot()
    for number in range(30):
        store.commit((put(f"V{number}", bytes(900)),))
    image, key = tmp_path / "i", tmp_path / "k"
    image.write_bytes(world.image)
    key.write_text(dump(world.keys()))
    code, _, err = cli(
        "resize", image, "--key-file", key, "--out", tmp_path / "o", "--size", "128K", "--frame", 512
    )
    assert code == 2
    assert "holds" in err
    assert cli("resize", image, "--key-file", key, "--out", tmp_path / "o", "--size", "300K")[0] == 2
    assert not (tmp_path / "o").exists()


def test_rotate_to_another_key_file(cli, files, tmp_path) -> None:
    base, image, key = files
    other = tmp_path / "other.json"
    other.write_text(dump(base.world.keys(keks={7: base.world.kek(7)}, write_version=7)))
    out = tmp_path / "o"
    assert cli("rotate", image, "--key-file", key, "--new-key-file", other, "--out", out)[0] == 0
    assert cli("fsck", out, "--key-file", other)[0] == 0
    code, text, _ = cli("fsck", out, "--key-file", key)
    assert code == 1
    assert "store.wrong_key" in text
    other.write_text(dump(World(seed=99).keys()))
    code, _, err = cli("rotate", image, "--key-file", key, "--new-key-file", other, "--out", tmp_path / "p")
    assert code == 1
    assert "another store" in err


def test_wrong_keys_are_named_and_bad_key_files_refused(cli, files, tmp_path) -> None:
    _, image, _ = files
    wrong = tmp_path / "w"
    for content, reason in (
        (dump(long_sample().world.keys(keks={1: bytes(32)})), "store.wrong_key"),
        (dump(World(seed=5).keys()), "store.wrong_guest"),
    ):
        wrong.write_text(content)
        code, out, _ = cli("fsck", image, "--key-file", wrong)
        assert code == 1
        assert reason in out
    wrong.write_text("not a key")
    assert cli("fsck", image, "--key-file", wrong)[0] == 3


def test_every_reason_of_the_store_and_the_anchor_is_explained(cli) -> None:
    def all_of(cls):
        return {cls.reason} | {r for sub in cls.__subclasses__() for r in all_of(sub)}

    reasons = {r for r in all_of(StoreError) if r.startswith(("store.", "anchor."))} - {"store.error"}
    assert reasons <= set(EXPLANATIONS)
    for reason in EXPLANATIONS:
        code, out, _ = cli("explain", reason)
        assert code == 0
        assert "way out" in out
    assert cli("explain", "store.strange")[0] == 2
