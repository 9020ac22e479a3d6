"""Run a fuzz target under atheris when it is installed, else on seeded mutations of its corpus."""

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SEED = 20261124
MAX_BYTES = 4096


@contextlib.contextmanager
def instrumented() -> Iterator[None]:
    """Imports inside are instrumented for coverage, where atheris is installed."""
    try:
        import atheris  # noqa: PLC0415 - optional
    except ImportError:
        yield
        return
    with atheris.instrument_imports(include=["cvars", "svsm_bridge"]):
        yield


def run(one_input: Callable[[bytes], None], corpus: list[bytes]) -> None:
    """Fuzz until told to stop; ends with the number of executions. A finding is an exception."""
    try:
        import atheris  # noqa: PLC0415 - optional
    except ImportError:
        _mutate(one_input, corpus)
        return
    folder = next((Path(a) for a in sys.argv[1:] if not a.startswith("-")), None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(corpus):
            (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


def _mutate(one_input: Callable[[bytes], None], corpus: list[bytes]) -> None:
    seconds = 10.0
    if "--seconds" in sys.argv:
        seconds = float(sys.argv[sys.argv.index("--seconds") + 1])
    rng = random.Random(SEED)
    pool = list(corpus)
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = bytearray(rng.choice(pool))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0 if data:
                    data[at % len(data)] = rng.randrange(256)
                case 1:
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 2:
                    del data[at : at + rng.randrange(1, 9)]
                case _:
                    other = rng.choice(pool)
                    cut = rng.randrange(len(other) + 1)
                    data[at:] = other[cut:]
        raw = bytes(data[:MAX_BYTES])
        try:
            one_input(raw)
        except Exception:
            print(f"finding after {done} executions: {raw.hex()}", file=sys.stderr)
            raise
        done += 1
        if done % 50 == 0 and len(pool) < 500:
            pool.append(raw)
    print(f"{done} executions in {seconds:g} s, no finding (seed {SEED}, no coverage: atheris is not installed)")
