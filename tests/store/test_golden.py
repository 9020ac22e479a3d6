"""Golden images of every released format version stay readable (SS-25)."""

import gzip
import json
from uuid import UUID

import pytest

from cvars.store import MemoryMedium, Mode, StoreKeys
from cvars.store.anchor import Acquired, AnchorPoint
from cvars.store.checking import check
from cvars.store.keyfile import KeyFile
from cvars.variables.model import Key, Variable
from tests.store.golden import CASES, FOLDER, build
from tests.store.oracle import Oracle
from tests.store.world import World, put, state


def load(name: str) -> tuple[bytes, dict, dict]:
    image = gzip.decompress((FOLDER / f"{name}.fd.gz").read_bytes())
    about = json.loads((FOLDER / f"{name}.json").read_text())
    variables = {
        Key(UUID(v["guid"]), bytes.fromhex(v["name"]).decode("utf-16-le", "surrogatepass")): Variable(
            v["attributes"],
            bytes.fromhex(v["data"]),
            bytes.fromhex(v["time"]),
            bytes.fromhex(v["signer"]) if v["signer"] else None,
        )
        for v in about["variables"]
    }
    return image, about, variables


def keys_of(about: dict) -> StoreKeys:
    keks = {int(v): bytes.fromhex(k) for v, k in about["keks"].items()}
    return StoreKeys(bytes.fromhex(about["store_id"]), about["vm_id"], keks, about["key_version"])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.rule("SS-25")
def test_a_golden_image_mounts_reads_and_goes_on(case) -> None:
    image, about, variables = load(case.name)
    keys = keys_of(about)
    oracle = Oracle(image, keys.store_id, keys.vm_id, dict(keys.keks))
    assert oracle.variables == variables
    world = World(mode=Mode.NONE, suite=case.suite)
    world.medium = MemoryMedium(image)
    store = world.boot(keys=keys)
    assert state(store) == variables
    store.commit((put("Later", b"engine"),))
    assert state(world.boot(keys=keys)) == variables | {put("Later", b"").key: put("", b"engine").variable}
    report = check(image, KeyFile(dict(keys.keks), keys.write_version, keys.store_id, keys.vm_id))
    assert report.sound
    assert report.history.point == AnchorPoint(about["sequence"], bytes.fromhex(about["root"]))


@pytest.mark.parametrize("case", [c for c in CASES if c.mode is not Mode.NONE], ids=lambda c: c.name)
@pytest.mark.rule("SS-25", "SS-12")
def test_a_golden_image_mounts_against_its_anchor(case) -> None:
    image, about, variables = load(case.name)
    world = World(mode=Mode.STRICT, suite=case.suite)
    anchor = about["anchor"]
    point = AnchorPoint(anchor["counter"], bytes.fromhex(anchor["root"]))
    from dataclasses import replace

    world.anchor.record = replace(
        world.anchor.record,
        state="active",
        epoch=anchor["epoch"],
        version=anchor["version"],
        point=point,
        base=point,
        key_version=about["key_version"],
    )
    world.store_id = bytes.fromhex(about["store_id"])
    assert Acquired.__dataclass_fields__
    store = world.boot(image, keys=keys_of(about))
    assert state(store) == variables
    assert store.boot.verified


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.name)
def test_SS_25_the_engine_still_writes_the_same_bytes(case) -> None:
    image, about, _ = load(case.name)
    again, about_again = build(case)
    assert again == image
    assert about_again == about
