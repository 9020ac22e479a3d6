"""Where an image lives: one small interface, and files, block devices and memory behind it.

Nothing here trusts a result: short transfers are continued, interrupted calls repeated, and every other error
is a `StoreIoError` about which nothing is claimed (SS-11, T26).
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar, TypeVarTuple

from cvars.errors import StoreIoError, StoreTampered
from cvars.store.geometry import LARGEST_IMAGE

_MAX_STALLS: Final = 16
A = TypeVarTuple("A")
T = TypeVar("T")


class Medium(Protocol):
    """Raw access. Any method may raise OSError; transfers may be short."""

    def size(self) -> int:
        """Size in bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read at most ``length`` bytes; empty at the end."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write at most ``data``; return how many bytes went."""
        ...

    def flush(self) -> None:
        """Barrier: everything written before is durable afterwards."""
        ...

    def close(self) -> None:
        """Release the medium."""
        ...


def read_image(medium: Medium) -> bytes:
    """Read the whole image once into private memory (SS-6, T14). Its size is checked before and after."""
    size = _call(medium.size)
    if size > LARGEST_IMAGE:
        raise StoreTampered(
            f"the image has {size} bytes; no store is larger than {LARGEST_IMAGE}",
            hint="this is not a store: check the path",
        )
    chunks: list[bytes] = []
    at = stalls = 0
    while at < size:
        chunk = _call(medium.read, at, size - at)
        if not chunk:
            stalls += 1
            if stalls > _MAX_STALLS:
                raise StoreIoError(f"the image ends at byte {at} of {size}")
        at += len(chunk)
        chunks.append(chunk)
    if at != size or _call(medium.size) != size:
        raise StoreIoError("the image changed its size while it was read")
    return b"".join(chunks) if len(chunks) != 1 else chunks[0]


def write_all(medium: Medium, offset: int, data: bytes) -> None:
    """Write everything; one call when the medium takes it whole."""
    done = stalls = 0
    while True:
        try:
            more = medium.write(offset + done, memoryview(data)[done:] if done else data)
        except InterruptedError:
            more = 0
        except OSError as error:
            raise StoreIoError(f"write: {error.strerror or error}") from error
        done += more
        if done >= len(data):
            return
        stalls = 0 if more else stalls + 1
        if stalls > _MAX_STALLS:
            raise StoreIoError(f"the medium takes {done} of {len(data)} bytes at {offset:#x}")


def flush(medium: Medium) -> None:
    """One barrier."""
    for _ in range(_MAX_STALLS):
        try:
            return medium.flush()
        except InterruptedError:
            continue
        except OSError as error:
            raise StoreIoError(f"flush: {error.strerror or error}") from error
    raise StoreIoError(f"flush: interrupted {_MAX_STALLS} times")


def _call(method: Callable[[*A], T], *arguments: *A) -> T:
    for _ in range(_MAX_STALLS):
        try:
            return method(*arguments)
        except InterruptedError:
            continue
        except OSError as error:
            raise StoreIoError(f"{_name(method)}: {error.strerror or error}") from error
    raise StoreIoError(f"{_name(method)}: interrupted {_MAX_STALLS} times")


def _name(method: Callable[..., object]) -> str:
    return getattr(method, "__name__", "call")


class FileMedium:
    """A regular file or a block device behind an open descriptor, which it owns from now on."""

    def __init__(self, fd: int, *, where: str = "") -> None:
        self._fd = fd
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            os.close(fd)
            raise StoreIoError("not a regular file or a block device", where=where)
        self._block = stat.S_ISBLK(kind)

    @classmethod
    def open(cls, path: Path, *, writable: bool = True) -> "FileMedium":
        """Open ``path``; a writer takes an exclusive lock. Raises StoreIoError with a reason each."""
        try:
            fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise StoreIoError(f"{path}: no such file", hint="cvars store create makes one") from None
        except IsADirectoryError:
            raise StoreIoError(f"{path}: is a directory, not a store", where=str(path)) from None
        except PermissionError:
            raise StoreIoError(f"{path}: permission denied", where=str(path)) from None
        except OSError as error:
            raise StoreIoError(f"{path}: {error.strerror}", where=str(path)) from None
        if writable:
            _lock(fd, path)
        return cls(fd, where=str(path))

    def size(self) -> int:
        """Size in bytes, asked anew each time."""
        return os.lseek(self._fd, 0, os.SEEK_END) if self._block else os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """``pread``."""
        return os.pread(self._fd, length, offset)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """``pwrite``, and the advice that makes the device begin now, while the caller works on."""
        done = os.pwrite(self._fd, data, offset)
        try:
            os.posix_fadvise(self._fd, offset, done, os.POSIX_FADV_DONTNEED)
        except OSError:  # only advice: the barrier decides
            return done
        return done

    def flush(self) -> None:
        """``fdatasync``."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the descriptor, and with it the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StoreIoError(f"{path}: locked by a running guest", where=str(path)) from None
        raise StoreIoError(f"{path}: {error.strerror}", where=str(path)) from None


class MemoryMedium:
    """An image in memory that counts what is asked of it."""

    def __init__(self, image: bytes | bytearray) -> None:
        self.image = bytearray(image)
        self.writes: list[tuple[int, int]] = []
        self.barriers = 0
        self.reads = 0

    def size(self) -> int:
        """Size in bytes."""
        return len(self.image)

    def read(self, offset: int, length: int) -> bytes:
        """Copy out."""
        self.reads += 1
        return bytes(memoryview(self.image)[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Copy in; like a device, it never grows."""
        if offset + len(data) > len(self.image):
            raise OSError(errno.ENOSPC, "behind the end of the device")
        self.image[offset : offset + len(data)] = data
        self.writes.append((offset, len(data)))
        return len(data)

    def flush(self) -> None:
        """Count a barrier."""
        self.barriers += 1

    def close(self) -> None:
        """Nothing to release."""
