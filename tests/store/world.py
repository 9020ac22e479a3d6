"""A small world for store tests: one VM, its anchor, its medium, a clock that only tests move."""

import random
from uuid import UUID

from cvars.errors import StoreError
from cvars.store import MemoryMedium, Mode, StoreConfig, StoreKeys, mount
from cvars.store.geometry import Geometry
from cvars.store.header import CreationHeader
from cvars.store.memory_anchor import MemoryAnchor
from cvars.trace import Recorder
from cvars.variables.model import Append, Delete, Key, Put, Variable
from cvars.variables.security import IMAGE_SECURITY

VENDOR = UUID("11111111-2222-3333-4444-555555555555")
SMALL = 128 << 10
DB = Key(IMAGE_SECURITY, "db")


class Clock:
    """Seconds that pass only when told; sleeping passes them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def key(name: str) -> Key:
    return Key(VENDOR, name)


def put(name: str, data: bytes, *, attributes: int = 7, signer: bytes | None = None) -> Put:
    return Put(key(name), Variable(attributes, data, signer=signer))


def put_key(which: Key, data: bytes) -> Put:
    return Put(which, Variable(0x27, data, bytes(range(16))))


def delete(name: str) -> Delete:
    return Delete(key(name))


def append(name: str, added: bytes, before: bytes) -> Append:
    return Append(key(name), added, Variable(7, before + added))


def blank(size: int = SMALL, frame: int = 512, *, medium: int = 0) -> bytes:
    geometry = Geometry.of(size, frame)
    assert geometry is not None
    image = bytearray(b"\xff" * size if medium else size)
    image[:512] = CreationHeader(geometry, medium, bytes(16)).encode()
    image[512:4096] = bytes(4096 - 512)
    return bytes(image)


class World:
    def __init__(
        self,
        *,
        mode: Mode = Mode.CRITICAL,
        size: int = SMALL,
        frame: int = 512,
        suite: int = 1,
        seed: int = 1,
        vm_id: str = "vm-1",
        medium: int = 0,
        lease_s: float = 30.0,
        **config,
    ) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.vm_id = vm_id
        self.store_id = self.random.randbytes(16)
        self.master = self.random.randbytes(32)
        self.mode, self.suite = mode, suite
        self.config = config
        self.anchor = MemoryAnchor(vm_id, self.store_id, clock=self.clock, lease_s=lease_s)
        self.medium = MemoryMedium(blank(size, frame, medium=medium))
        self.trace = Recorder()

    def kek(self, version: int) -> bytes:
        import hashlib

        return hashlib.sha256(self.master + bytes([version])).digest()

    def keys(self, acquired=None, **changes) -> StoreKeys:
        write = acquired.key_version if acquired else 1
        versions = [v for v in (write, acquired.key_old if acquired else None) if v]
        made = {
            "store_id": self.store_id,
            "vm_id": self.vm_id,
            "keks": {v: self.kek(v) for v in versions},
            "write_version": write,
        }
        return StoreKeys(**(made | changes))

    def boot(
        self,
        image: bytes | None = None,
        *,
        medium=None,
        anchor=None,
        takeover: bool = True,
        keys: StoreKeys | None = None,
        provision: bool = True,
        **config,
    ):
        """Acquire and mount. ``image`` replaces what the medium holds; ``anchor`` wraps the anchor's calls."""
        if image is not None:
            self.medium = MemoryMedium(image)
        mode = config.pop("mode", self.mode)
        settings = StoreConfig(mode=mode, suite=config.pop("suite", self.suite), **(self.config | config))
        acquired = None
        if mode is not Mode.NONE or anchor is not None:
            acquired = self.anchor.acquire(takeover=takeover)
        self.acquired = acquired
        return mount(
            medium or self.medium,
            keys=keys or self.keys(acquired),
            config=settings,
            acquired=acquired,
            anchor=(anchor or self.anchor) if acquired else None,
            random=self.random.randbytes,
            clock=self.clock,
            trace=self.trace,
            provision=provision,
            sleep=self.clock.sleep,
        )

    def refused(self, image: bytes | None = None, **how) -> StoreError:
        """Boot, expect a refusal, and check that nothing was written."""
        try:
            self.boot(image, **how)
        except StoreError as error:
            medium = how.get("medium") or self.medium
            if isinstance(medium, MemoryMedium):
                assert not medium.writes, "a refusal wrote to the image"
            return error
        raise AssertionError("the boot was not refused")

    @property
    def image(self) -> bytes:
        return bytes(self.medium.image)


def state(store) -> dict:
    return dict(store.variables)
