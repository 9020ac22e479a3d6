"""The sealed store against a bare write and barrier of the same size in the same run (sealed-store section 8)."""

import os
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from benchmarks.harness import Figure, against_floor, spread
from cvars.lab.driver import VARIABLE_PROTOCOL, set_request
from cvars.mm.service import VariableService
from cvars.store import FileMedium, MemoryMedium, Mode, Store, StoreConfig, StoreKeys, mount
from cvars.store.geometry import Geometry
from cvars.store.header import CreationHeader
from cvars.store.medium import Medium
from cvars.store.memory_anchor import MemoryAnchor
from cvars.trace import silent
from cvars.variables.model import Journal, Key, Put, Variable

VENDOR = UUID("11111111-2222-3333-4444-555555555555")
KEYS = StoreKeys(bytes(range(16)), "bench", {1: bytes(range(32))}, 1)
MIB = 1 << 20


def put(name: str, data: bytes) -> tuple[Put, ...]:
    return (Put(Key(VENDOR, name), Variable(7, data)),)


def blank(size: int, frame: int = 1024) -> bytes:
    geometry = Geometry.of(size, frame)
    assert geometry is not None
    return CreationHeader(geometry, 0, bytes(16)).encode().ljust(size, b"\0")


class Machine:
    """One VM: its anchor and whatever medium it is given."""

    def __init__(self, mode: Mode = Mode.PER_BOOT) -> None:
        self.mode = mode
        self.anchor = MemoryAnchor("bench", KEYS.store_id, clock=time.monotonic, lease_s=3600)

    def boot(self, medium: Medium) -> Store:
        return mount(
            medium,
            keys=KEYS,
            config=StoreConfig(mode=self.mode),
            acquired=self.anchor.acquire(takeover=True),
            anchor=self.anchor,
            random=os.urandom,
            clock=time.monotonic,
            trace=silent,
            provision=True,
        )


@contextmanager
def folder(*, memory: bool = False) -> Iterator[Path]:
    base = "/dev/shm" if memory and Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="cvars-bench-", dir=base) as made:
        yield Path(made)


class Commits:
    """One commit a call. ``prepare``: what happens right before one, and is not the store's work.

    A guest's SetVariable message goes through the variable service, which stops where it would commit.
    """

    def __init__(self, store: Store, size: int, names: int = 16) -> None:
        rng = random.Random(1)
        self.store = store
        self.values = [rng.randbytes(size) for _ in range(64)]
        self.names = names
        self.number = 0
        self.service = VariableService({}, commit=self.keep)
        self.prepare()

    def keep(self, journal: Journal) -> None:
        self.journal = journal

    def prepare(self) -> None:
        self.number += 1
        key = Key(VENDOR, f"V{self.number % self.names}")
        request = set_request(key, 7, self.values[self.number % 64])[24:]
        assert self.service.handle(VARIABLE_PROTOCOL, request)[8:16] == bytes(8)

    def __call__(self) -> None:
        self.store.commit(self.journal)

    def next(self) -> None:
        self.prepare()
        self()


def bare(path: Path, size: int) -> Callable[[], None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(MIB))
    os.fsync(fd)
    data = os.urandom(size)
    at = 0

    def one() -> None:
        nonlocal at
        os.pwrite(fd, data, at)
        os.fdatasync(fd)
        at = (at + size) % (MIB - size)

    return one


def commit_figures() -> Iterator[Figure]:
    for label, memory in (("on disk", False), ("memory-backed", True)):
        with folder(memory=memory) as made:
            image = made / "image"
            image.write_bytes(blank(MIB))
            medium = FileMedium.open(image)
            store = Machine().boot(medium)
            one = Commits(store, 64)
            yield against_floor(
                f"store: 64 B commit, per-boot, {label}",
                one,
                bare(made / "bare", 1024),
                before=one.prepare,
                max_ratio=None if memory else 1.25,
                rounds=400,
            )
            medium.close()
    one = Commits(Machine().boot(MemoryMedium(blank(MIB))), 64)
    yield against_floor(
        "store: 64 B commit, per-boot, CPU",
        one,
        lambda: None,
        before=one.prepare,
        max_value=60,
        rounds=300,
        clock=time.process_time_ns,
    )
    one = Commits(Machine(Mode.STRICT).boot(MemoryMedium(blank(MIB))), 64)
    yield against_floor(
        "store: 64 B commit, strict, CPU",
        one,
        lambda: None,
        before=one.prepare,
        rounds=200,
        clock=time.process_time_ns,
    )


def counted(name: str, unit: str, value: float, limit: float, *, floor: float | None = None) -> Figure:
    ratio = value / floor if floor else None
    return Figure(name, unit, value, floor, ratio, 0.0, f"<= {limit:g} {unit}", value <= limit)


def byte_figures() -> Iterator[Figure]:
    for update, fill, limit in ((64, 25, 1.5), (64, 50, 2.4), (4096, 25, 9.0)):
        for size in (256 << 10, MIB):
            medium = MemoryMedium(blank(size))
            store = Machine().boot(medium)
            number = 0
            wanted = store.capacity * fill // 100
            names = max(1, min(16, wanted // (update + 50)))
            while store.live < wanted - names * (50 + update):
                store.commit(put(f"Fill{number}", bytes(700)))
                number += 1
            one = Commits(store, update, names).next
            for _ in range(16):
                one()
            medium.writes.clear()
            before = medium.barriers
            for _ in range(2000):
                one()
            written = sum(n for _, n in medium.writes) / 2000 / 1024
            yield counted(
                f"store: amortised per {update} B update, {size >> 10} KiB, fill {fill} %", "KiB", written, limit
            )
            single = [n for _, n in medium.writes[-1:]]
            assert single[0] == (1024 if update == 64 else 6144)
            if update == 64 and fill == 25:
                plain = medium.barriers - before - 2 * (store.generation - 1)
                yield counted(f"store: barriers per commit, {size >> 10} KiB", "", plain / 2000, 1.0)


def full_log(size: int) -> tuple[Machine, bytes]:
    machine = Machine()
    medium = MemoryMedium(blank(size))
    store = machine.boot(medium)
    one = Commits(store, 64).next
    while store._log.history.room > 3 * 1024:
        one()
    store.close()
    return machine, bytes(medium.image)


def mount_figures() -> Iterator[Figure]:
    for size, limit in ((256 << 10, 8.0), (4 * MIB, 80.0)):
        machine, image = full_log(size)
        record = machine.anchor.record
        times = []
        for _ in range(9):
            machine.anchor.record = record
            medium = MemoryMedium(image)
            start = time.process_time()
            machine.boot(medium)
            times.append((time.process_time() - start) * 1000)
        yield Figure(
            f"store: mount of a full log, CPU, {size >> 10} KiB",
            "ms",
            statistics.median(times),
            None,
            None,
            spread(times),
            f"<= {limit:g} ms",
            statistics.median(times) <= limit,
        )
        machine.anchor.record = record
        medium = MemoryMedium(image)
        tracemalloc.start()
        store = machine.boot(medium)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield counted(
            f"store: memory of a mount, {size >> 10} KiB", "KiB", peak / 1024, (2 * size + store.live) / 1024
        )


def compaction_figures() -> Iterator[Figure]:
    for live, size, limit in ((64 << 10, MIB, 5.0), (MIB, 4 * MIB, 25.0)):
        store = Machine(Mode.NONE if live < 0 else Mode.PER_BOOT).boot(MemoryMedium(blank(size)))
        number = 0
        while store.live < live:
            store.commit(put(f"V{number}", bytes(1000)))
            number += 1
        times = []
        for _ in range(9):
            start = time.process_time()
            store._compact()
            times.append((time.process_time() - start) * 1000)
        value = statistics.median(times)
        yield Figure(
            f"store: compaction CPU, {live >> 10} KiB live",
            "ms",
            value,
            None,
            None,
            spread(times),
            f"<= {limit:g} ms",
            value <= limit,
        )


def figures() -> list[Figure]:
    """All figures of the store."""
    return [*commit_figures(), *byte_figures(), *mount_figures(), *compaction_figures()]
