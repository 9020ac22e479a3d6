"""The driver of the attestation fuzz targets: atheris when it is installed, else random mutations of a corpus.

`python fuzz/fuzz_attest_report.py --seconds 60`. Ends 1 at the first exception that escapes, and prints its input.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cvars.attest.simulated import SimulatedAmdSp, SimulatedTdx

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors" / "attestation"
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x30, 0x7B, 0x22)


def mutate(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A few edits: bits, bytes, numbers, cuts, copies, splices."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(8):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice(_INTERESTING)
            case 2:
                out[at : at + 4] = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(out))).to_bytes(4, "little")
            case 3:
                del out[at : at + rng.randrange(1, 64)]
            case 4:
                out[at:at] = rng.randbytes(rng.randrange(1, 32))
            case 5:
                out[at:at] = out[at : at + rng.randrange(1, 256)]
            case 6 if other:
                start = rng.randrange(len(other))
                out[at : at + 64] = other[start : start + rng.randrange(1, 128)]
            case _:
                del out[at:]
    return bytes(out[: 1 << 18])


def run(target: Callable[[bytes], None], corpus: list[bytes]) -> int:
    """Fuzz ``target`` from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=20261124)
    options, rest = parser.parse_known_args()
    for one in corpus:
        target(one)
    try:
        import atheris  # noqa: PLC0415
    except ImportError:
        return _random(target, corpus, options.seconds, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(corpus):
            (Path(folder) / str(number)).write_bytes(one)
        atheris.instrument_all()
        atheris.Setup([sys.argv[0], f"-max_total_time={int(options.seconds)}", folder, *rest], target)
        atheris.Fuzz()
    return 0


def _random(target: Callable[[bytes], None], corpus: list[bytes], seconds: float, seed: int) -> int:
    rng, executions, end = random.Random(seed), 0, time.monotonic() + seconds
    pool = list(corpus)
    slowest = 0.0
    while time.monotonic() < end:
        data = mutate(rng.choice(pool), rng, rng.choice(pool))
        started = time.process_time()
        try:
            target(data)
        except Exception as escaped:
            print(f"after {executions} executions: {type(escaped).__name__}: {escaped}\n{data.hex()}")
            return 1
        slowest = max(slowest, time.process_time() - started)
        executions += 1
        if len(pool) < 512 and rng.random() < 0.01:
            pool.append(data)
    print(f"{executions} executions, no exception, slowest {slowest * 1000:.1f} ms")
    return 0


def hardware() -> tuple[SimulatedAmdSp, SimulatedTdx]:
    """Simulated hardware in a temporary folder, for corpora that do not need recorded evidence."""
    folder = Path(tempfile.gettempdir()) / f"cvars-fuzz-{os.getuid()}"
    return (
        SimulatedAmdSp.load_or_create(folder, product="Genoa", random=os.urandom),
        SimulatedTdx.load_or_create(folder, random=os.urandom, clock=time.time),
    )


def recorded(pattern: str) -> list[bytes]:
    """Recorded files, where they lie beside this checkout."""
    return [file.read_bytes() for file in sorted(VECTORS.glob(pattern))]
