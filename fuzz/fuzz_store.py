"""Fuzz the store's parsers: any bytes are refused with a reason, and the declaration agrees with the engine.

Runs under atheris when it is installed (`python fuzz/fuzz_store.py`), else on random mutations of golden images
for `--seconds N`.
"""

import argparse
import contextlib
import gzip
import json
import random
import sys
import time
from pathlib import Path

from cvars.errors import StoreError
from cvars.store import MemoryMedium, Mode, StoreConfig, StoreKeys, mount
from cvars.store.checking import check
from cvars.store.header import BANK_MAGIC, BankHeader
from cvars.store.inspecting import BANK_HEADER, inspect
from cvars.store.keyfile import KeyFile
from cvars.trace import silent

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"


def corpus() -> list[tuple[bytes, StoreKeys]]:
    out = []
    for file in sorted(GOLDEN.glob("*.json")):
        about = json.loads(file.read_text())
        keks = {int(v): bytes.fromhex(k) for v, k in about["keks"].items()}
        keys = StoreKeys(bytes.fromhex(about["store_id"]), about["vm_id"], keks, about["key_version"])
        out.append((gzip.decompress(file.with_suffix(".fd.gz").read_bytes()), keys))
    return out


def one_input(image: bytes, keys: StoreKeys) -> None:
    """Everything that reads untrusted bytes, once."""
    inspect(image)
    check(image, KeyFile(dict(keys.keks), keys.write_version, keys.store_id, keys.vm_id))
    for offset in (0, len(image) // 2):
        raw = image[offset : offset + 512]
        if len(raw) == 512 and raw[:8] == BANK_MAGIC:
            assert BankHeader.parse(raw).generation == BANK_HEADER.parse(raw).Generation
    with contextlib.suppress(StoreError):
        mount(
            MemoryMedium(image),
            keys=keys,
            config=StoreConfig(mode=Mode.NONE),
            acquired=None,
            anchor=None,
            random=random.Random(0).randbytes,
            clock=time.monotonic,
            trace=silent,
        )


def mutate(image: bytes, rng: random.Random) -> bytes:
    out = bytearray(image)
    for _ in range(rng.randrange(1, 6)):
        at = rng.choice((rng.randrange(len(out)), rng.randrange(512), len(out) // 2 + rng.randrange(8192)))
        match rng.randrange(4):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8, rng.randbytes(8)))
            case 2:
                source = rng.randrange(len(out))
                out[at : at + 512] = out[source : source + 512]
            case _:
                del out[rng.randrange(len(out)) :]
                return bytes(out)
    return bytes(out[: len(image)])


def main() -> int:
    seeds = corpus()
    try:
        import atheris  # noqa: PLC0415 - optional
    except ImportError:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--seconds", type=float, default=10)
        parser.add_argument("--seed", type=int, default=1)
        asked = parser.parse_args()
        rng, until, runs = random.Random(asked.seed), time.monotonic() + asked.seconds, 0
        while time.monotonic() < until:
            image, keys = rng.choice(seeds)
            one_input(mutate(image, rng), keys)
            runs += 1
        print(f"{runs} inputs, no failure")
        return 0

    def target(data: bytes) -> None:
        image, keys = seeds[len(data) % len(seeds)]
        provider = atheris.FuzzedDataProvider(data)
        out = bytearray(image)
        while provider.remaining_bytes() > 4:
            at = provider.ConsumeIntInRange(0, len(out) - 1)
            out[at : at + 1] = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 16))
        one_input(bytes(out), keys)

    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
