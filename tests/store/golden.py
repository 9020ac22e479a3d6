"""Golden images of format 1: `python -m tests.store.golden` writes missing ones, and never changes one.

A released format stays readable for ever (SS-25). Every image comes with its keys, its anchor and its state.
"""

import gzip
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from cvars.host.media import NorMedium
from cvars.store import Mode
from tests.store.workload import run
from tests.store.world import World, blank, put

FOLDER = Path(__file__).resolve().parents[1] / "data" / "golden"


@dataclass(frozen=True)
class Case:
    name: str
    size: int
    frame: int
    suite: int
    mode: Mode
    commits: int
    medium: int = 0
    rotate: bool = False
    close: bool = True


CASES = (
    Case("v1-128k-512-siv", 128 << 10, 512, 1, Mode.CRITICAL, 180),
    Case("v1-256k-1024-xchacha", 256 << 10, 1024, 2, Mode.STRICT, 160),
    Case("v1-512k-2048-gcm", 512 << 10, 2048, 3, Mode.PER_BOOT, 60),
    Case("v1-1m-4096-siv", 1 << 20, 4096, 1, Mode.BOUNDED, 20),
    Case("v1-128k-512-nor", 128 << 10, 512, 1, Mode.CRITICAL, 150, medium=1),
    Case("v1-128k-512-rotated", 128 << 10, 512, 1, Mode.CRITICAL, 30, rotate=True),
    Case("v1-128k-512-unanchored", 128 << 10, 512, 1, Mode.NONE, 40),
    Case("v1-128k-512-crashed", 128 << 10, 512, 1, Mode.PER_BOOT, 25, close=False),
)


def build(case: Case) -> tuple[bytes, dict]:
    """The image and what belongs to it; the same bytes every time."""
    world = World(mode=case.mode, size=case.size, frame=case.frame, suite=case.suite, seed=11, engine="golden 1")
    world.medium.image[:] = blank(case.size, case.frame, medium=case.medium)
    if case.medium:
        world.medium = NorMedium(world.image)
    rng = random.Random(case.name)
    live: dict = {}
    store = world.boot()
    run(store, rng, case.commits // 2, live)
    store.commit((put("Näme\ud800", b"lone surrogate"),))
    store.close()
    if case.rotate:
        world.anchor.rotate()
    store = world.boot()
    run(store, rng, case.commits // 2, live)
    if case.close:
        store.close()
    record = world.anchor.record
    return world.image, {
        "store_id": world.store_id.hex(),
        "vm_id": world.vm_id,
        "key_version": store._log.history.header.key_version,
        "keks": {str(v): world.kek(v).hex() for v in (1, 2)},
        "suite": case.suite,
        "mode": case.mode.label,
        "sequence": store.point.counter,
        "root": store.point.root.hex(),
        "anchor": {
            "epoch": record.epoch,
            "version": record.version,
            "counter": record.point.counter,
            "root": record.point.root.hex(),
        },
        "variables": [
            {
                "name": k.name.encode("utf-16-le", "surrogatepass").hex(),
                "guid": str(k.vendor_guid),
                "attributes": v.attributes,
                "data": v.data.hex(),
                "time": v.timestamp.hex(),
                "signer": v.signer.hex() if v.signer else None,
            }
            for k, v in sorted(store.variables.items(), key=lambda item: item[0].sort_bytes)
        ],
    }


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        file = FOLDER / f"{case.name}.fd.gz"
        if file.exists():
            print(f"{file.name}: kept")
            continue
        image, about = build(case)
        file.write_bytes(gzip.compress(image, 9, mtime=0))
        (FOLDER / f"{case.name}.json").write_text(json.dumps(about, indent=1) + "\n")
        print(f"{file.name}: {file.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
