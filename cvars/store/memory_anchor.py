"""A freshness anchor in memory: the broker's record and rules, for tests, the lab and as an oracle.

Source: key-release 5.1 to 5.4. Transitions are compare-and-set; a repeated `advance` in the same epoch gives
the same receipt; the ring drops whole items, oldest first, and never the last one.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from cvars.errors import AnchorError, AnchorFenced, AnchorFrozen, AnchorLeased, AnchorRetired
from cvars.store.anchor import ORIGIN, Acquired, AnchorPoint, Receipt
from cvars.store.escrow import RING_BYTES

NEW, ACTIVE, RELEASED, RETIRED, FROZEN = "new", "active", "released", "retired", "frozen"


@dataclass(frozen=True, slots=True)
class _Item:
    base: AnchorPoint
    to: AnchorPoint
    key_version: int
    escrow: bytes


@dataclass(frozen=True, slots=True)
class AnchorRecord:
    """Everything the broker keeps for one VM. Replacing it by an older copy is what a restored backup does."""

    vm_id: str
    store_id: bytes
    state: str = NEW
    epoch: int = 0
    point: AnchorPoint = ORIGIN
    base: AnchorPoint = ORIGIN
    ring: tuple[_Item, ...] = ()
    key_version: int = 1
    key_old: int | None = None
    #: session of the first advance under ``key_version``, while the old one still exists
    key_epoch: int | None = None
    version: int = 0
    leased_until: float | None = None
    last_advance: tuple[AnchorPoint, AnchorPoint, AnchorPoint, bytes] | None = None


class MemoryAnchor:
    """One VM's record at an anchor that never forgets. Implements `cvars.store.anchor.Anchor`."""

    def __init__(
        self,
        vm_id: str,
        store_id: bytes,
        *,
        clock: Callable[[], float],
        lease_s: float = 30.0,
        mode: str = "critical",
        ring_bytes: int = RING_BYTES,
    ) -> None:
        self.record = AnchorRecord(vm_id, store_id)
        self.floor_format = 1
        self.floor_suites: tuple[int, ...] = (1, 2, 3)
        self._clock = clock
        self._lease_s = lease_s
        self._mode = mode
        self._ring_bytes = ring_bytes

    def acquire(self, *, takeover: bool = False) -> Acquired:
        """Open a session: fences every older one. Raises AnchorLeased, AnchorFrozen, AnchorRetired."""
        now = self.record
        if now.state == FROZEN:
            raise AnchorFrozen(f"{now.vm_id} is frozen")
        if now.state == RETIRED:
            raise AnchorRetired(f"{now.vm_id} is retired")
        if now.leased_until is not None and now.leased_until > self._clock() and not takeover:
            raise AnchorLeased(f"session {now.epoch} of {now.vm_id} holds the lease")
        state = ACTIVE if now.state == RELEASED else now.state
        self._set(
            state=state,
            epoch=now.epoch + 1,
            leased_until=self._clock() + self._lease_s,
            last_advance=None,
        )
        now = self.record
        return Acquired(
            vm_id=now.vm_id,
            store_id=now.store_id,
            state=now.state,
            epoch=now.epoch,
            point=now.point,
            base=now.base,
            escrow=b"".join(item.escrow for item in now.ring),
            key_version=now.key_version,
            key_old=now.key_old,
            version=now.version,
            mode=self._mode,
            lease_s=self._lease_s,
            statement_sha256=hashlib.sha256(f"{now.vm_id} {now.epoch} {now.version}".encode()).digest(),
            floor_format=self.floor_format,
            floor_suites=self.floor_suites,
        )

    def advance(
        self,
        *,
        epoch: int,
        start: AnchorPoint,
        to: AnchorPoint,
        base: AnchorPoint,
        key_version: int,
        escrow: bytes,
    ) -> Receipt:
        """The one linearisable compare-and-swap. Raises AnchorFenced."""
        now = self._session(epoch)
        asked = (start, to, base, escrow)
        if now.last_advance != asked:
            if now.point != start or to.counter <= start.counter:
                raise AnchorFenced(
                    f"anchored is {now.point.counter}, the request moves {start.counter} to {to.counter}"
                )
            if key_version not in (now.key_version, now.key_old):
                raise AnchorError(f"key version {key_version} is not in use")
            items = (*now.ring, _Item(base, to, key_version, escrow))
            if base != start:
                items = items[-1:]
            while len(items) > 1 and sum(len(i.escrow) for i in items) > self._ring_bytes:
                items = items[1:]
            self._set(state=ACTIVE, point=to, base=items[0].base, ring=items, last_advance=asked)
            self._key_used(epoch, key_version)
        return self._renewed()

    def renew(self, *, epoch: int) -> Receipt:
        """Renew the lease. Raises AnchorFenced."""
        self._session(epoch)
        return self._renewed()

    def seal(self, *, epoch: int, point: AnchorPoint) -> Receipt:
        """Give the lease back. Raises AnchorFenced."""
        now = self._session(epoch)
        if point != now.point:
            raise AnchorFenced(f"anchored is {now.point.counter}, not {point.counter}")
        self._set(state=now.state if now.state == NEW else RELEASED, leased_until=None)
        return Receipt(epoch, point, self.record.version, 0.0)

    # --- what an operator does --------------------------------------------------------------------

    def reset(self, point: AnchorPoint) -> None:
        """Rebase the anchor: the ring is emptied, older sessions are fenced."""
        now = self.record
        self._set(
            state=ACTIVE,
            epoch=now.epoch + 1,
            point=point,
            base=point,
            ring=(),
            leased_until=None,
            last_advance=None,
        )

    def rotate(self) -> None:
        """Name a new key version for writing; the old one stays readable until it is destroyed."""
        now = self.record
        self._set(key_version=now.key_version + 1, key_old=now.key_version, key_epoch=None)

    def finalise(self) -> None:
        """Destroy the old key version; ring items under it are dropped."""
        now = self.record
        ring = tuple(item for item in now.ring if item.key_version == now.key_version)
        base = ring[0].base if ring else now.point
        self._set(key_old=None, ring=ring, base=base)

    def set_state(self, state: str) -> None:
        """Freeze, retire or reopen the VM."""
        self._set(state=state)

    # --- inside -----------------------------------------------------------------------------------

    def _key_used(self, epoch: int, key_version: int) -> None:
        now = self.record
        if now.key_old is None or key_version != now.key_version:
            return
        if now.key_epoch is None:
            self._set(key_epoch=epoch)
        elif epoch > now.key_epoch:  # a mount succeeded on it: the old key may go
            self.finalise()

    def _session(self, epoch: int) -> AnchorRecord:
        now = self.record
        if epoch != now.epoch or now.leased_until is None or now.state in (FROZEN, RETIRED):
            raise AnchorFenced(f"session {epoch} is not open; the newest is {now.epoch}")
        return now

    def _renewed(self) -> Receipt:
        self._set(leased_until=self._clock() + self._lease_s)
        now = self.record
        return Receipt(now.epoch, now.point, now.version, self._lease_s)

    def _set(self, **changes: object) -> None:
        self.record = replace(self.record, version=self.record.version + 1, **changes)  # type: ignore[arg-type]
