"""Everybody who looks at guest memory accesses: the audit of double fetches, adversaries, traces.

Source: svsm-calls 2.4 and S22; pitfall P01.
"""

from bisect import bisect_left
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol

READ: Final = "read"
WRITE: Final = "write"
FLAG_READ: Final = "flag-read"  # byte 0 of a calling area
FLAG_WRITE: Final = "flag-write"
LOCKED_READ: Final = "locked-read"  # with the rights lock held: no other vCPU can act
RIGHTS: Final = "rights"  # with the rights lock held
READS: Final = frozenset({READ, FLAG_READ, LOCKED_READ})
HELD: Final = frozenset({LOCKED_READ, RIGHTS})


@dataclass(frozen=True, slots=True)
class Access:
    """One touch of guest memory, ``op`` one of the names below.

    ``caller`` names the call that touches (vCPU and RAX), or is None outside of calls. ``n`` counts the
    accesses of the memory from 0.
    """

    n: int
    op: str
    gpa: int
    size: int
    vcpu: int
    call: int
    caller: object = None


class Observer(Protocol):
    """Is told of every access before and after it happens, with no lock held unless the call writes rights."""

    def before(self, access: Access) -> None:
        """The access is about to happen."""
        ...

    def after(self, access: Access, *, ok: bool) -> None:
        """The access has happened, or failed (not ``ok``)."""
        ...


class Observers:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def before(self, access: Access) -> None:
        """Tell each."""
        for observer in self._observers:
            observer.before(access)

    def after(self, access: Access, *, ok: bool) -> None:
        """Tell each."""
        for observer in self._observers:
            observer.after(access, ok=ok)


class DoubleFetch(AssertionError):
    """A guest byte was read twice in one call (S22)."""


class FetchAudit:
    """Keeps the intervals of bytes that each call has read, and fails on an overlap (S22).

    A violation is raised in the call and kept in ``violations``, since a dispatcher turns exceptions of a
    call into results (S8).
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.calls = 0
        self._lock = Lock()
        self._owner: dict[int, object] = {}
        self._read: dict[int, list[tuple[int, int]]] = {}

    def begin(self, caller: object) -> None:
        """A call starts: nothing read yet."""
        with self._lock:
            self.calls += 1
            self._owner[id(caller)] = caller
            self._read[id(caller)] = []

    def end(self, caller: object) -> None:
        """The call is over: forget what it read."""
        with self._lock:
            self._owner.pop(id(caller), None)
            self._read.pop(id(caller), None)

    def before(self, access: Access) -> None:
        """Check a read against everything that its call has read so far."""
        if access.op not in READS or access.caller is None:
            return
        with self._lock:
            spans = self._read.get(id(access.caller))
            if spans is None:
                return
            start, end = access.gpa, access.gpa + access.size
            at = bisect_left(spans, (start, start))
            for span in spans[max(at - 1, 0) : at + 1]:
                if span[0] < end and start < span[1]:
                    again = f"{start:#x}..{end:#x} after {span[0]:#x}..{span[1]:#x}"
                    text = f"call {access.call:#x} reads bytes twice: {again}"
                    self.violations.append(text)
                    raise DoubleFetch(text)
            spans.insert(at, (start, end))

    def after(self, access: Access, *, ok: bool) -> None:
        """Nothing to do."""
