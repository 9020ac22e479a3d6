"""The store's side of the anchor: what is not anchored yet, retries, and the local lease clock.

Source: sealed-store section 4 and 6.2. One `advance` may be in doubt at a time; it is repeated, unchanged,
until it is answered (T19). Times are seconds of the component's own monotonic clock, counted from when a
request was *sent* (T20).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from cvars.errors import AnchorFenced, AnchorUnreachable
from cvars.store import escrow
from cvars.store.anchor import Anchor, AnchorPoint, Receipt
from cvars.trace import AnchorAdvanced, AnchorFencedEvent, AnchorSealed, Trace

#: fractions of the lease: renew, and stop acknowledging writes (10 s and 25 s of 30 s)
RENEW_AT: Final = 10 / 30
ACKNOWLEDGE_UNTIL: Final = 25 / 30
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Advance:
    start: AnchorPoint
    to: AnchorPoint
    base: AnchorPoint
    key_version: int
    ring: bytes
    data: int


class Freshness:
    """One open session at the anchor."""

    def __init__(
        self,
        anchor: Anchor,
        *,
        epoch: int,
        anchored: AnchorPoint,
        lease_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        trace: Trace,
    ) -> None:
        self._anchor = anchor
        self._clock = clock
        self._sleep = sleep
        self._trace = trace
        self.epoch = epoch
        self.anchored = anchored
        self.head = anchored
        self._renewed(clock(), lease_s)
        self.fenced = False
        #: key version that the head is sealed under; the log's owner keeps it current
        self.key_version = 0
        self._pending: deque[tuple[AnchorPoint, bytes]] = deque()
        self._pending_bytes = 0
        #: data commits that are not anchored, and when the oldest of them was made
        self.open_commits = 0
        self.oldest = 0.0
        self._doubt: _Advance | None = None
        #: when the oldest commit behind the advance in doubt was made
        self._oldest_behind: float | None = None

    # --- what is not anchored ---------------------------------------------------------------------

    def add(
        self,
        point: AnchorPoint,
        entry: bytes,
        *,
        data: bool,
        key_version: int,
        before: AnchorPoint | None = None,
    ) -> None:
        """Note a durable commit. ``before``: the point it follows, when that is not the last one noted."""
        self.key_version = key_version
        self._pending.append((before or self.head, entry))
        self._pending_bytes += len(entry) + 4
        while self._pending_bytes > escrow.RING_BYTES and len(self._pending) > 1:
            self._pending_bytes -= len(self._pending.popleft()[1]) + 4
        self.head = point
        if data:
            self.open_commits += 1
            if self.open_commits == 1:
                self.oldest = self._clock()
            if self._doubt is not None and self._oldest_behind is None:
                self._oldest_behind = self._clock()

    @property
    def in_doubt(self) -> bool:
        """Whether an advance was sent and not answered."""
        return self._doubt is not None

    # --- advance and renew ------------------------------------------------------------------------

    def advance(self, *, patience: float) -> None:
        """Anchor everything noted, retrying for ``patience`` seconds.

        Raises:
            AnchorUnreachable: still in doubt.
            AnchorFenced: for good.
        """
        if self._doubt is not None:
            self._settle(patience)
        if self.head == self.anchored:
            return
        self._doubt = _Advance(
            self.anchored,
            self.head,
            self._pending[0][0],
            self.key_version,
            escrow.encode(entry for _, entry in self._pending),
            self.open_commits,
        )
        self._pending.clear()
        self._pending_bytes = 0
        self._settle(patience)

    def _settle(self, patience: float) -> None:
        doubt = self._doubt
        assert doubt is not None
        receipt = self._retry(
            lambda: self._anchor.advance(
                epoch=self.epoch,
                start=doubt.start,
                to=doubt.to,
                base=doubt.base,
                key_version=doubt.key_version,
                escrow=doubt.ring,
            ),
            patience,
        )
        if receipt.point != doubt.to:
            self._fence()
            raise AnchorFenced(f"the broker answered for sequence {receipt.point.counter}, not {doubt.to.counter}")
        self._doubt = None
        self.anchored = doubt.to
        self.open_commits -= doubt.data
        self.oldest = self._oldest_behind if self._oldest_behind is not None else self._clock()
        self._oldest_behind = None
        self._trace(AnchorAdvanced(epoch=self.epoch, counter=doubt.to.counter, root=doubt.to.root))

    def renew(self) -> None:
        """One attempt to renew the lease: by an `advance` when something is not anchored. Raises as `advance`."""
        if self._doubt is not None or self.head != self.anchored:
            self.advance(patience=0)
        else:
            self._retry(lambda: self._anchor.renew(epoch=self.epoch), 0)

    def seal(self) -> None:
        """Give the lease back; everything noted must be anchored."""
        self._retry(lambda: self._anchor.seal(epoch=self.epoch, point=self.anchored), FIRST_PAUSE * 3)
        self._trace(AnchorSealed(epoch=self.epoch, counter=self.anchored.counter))

    def _retry(self, call: Callable[[], Receipt], patience: float) -> Receipt:
        self.check_not_fenced()
        begin = self._clock()
        pause = FIRST_PAUSE
        while True:
            sent = self._clock()
            try:
                receipt = call()
            except AnchorUnreachable:
                now = self._clock()
                left = min(patience, self.lease_s) - (now - begin)
                if left <= 0:
                    raise
                self._sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            except AnchorFenced:
                self._fence()
                raise
            if receipt.epoch != self.epoch:
                self._fence()
                raise AnchorFenced(f"the broker answered for session {receipt.epoch}, not {self.epoch}")
            self._renewed(max(self.sent, sent), receipt.lease_s or self.lease_s)
            return receipt

    # --- the lease --------------------------------------------------------------------------------

    def _renewed(self, sent: float, lease_s: float) -> None:
        self.sent, self.lease_s = sent, lease_s
        #: from then on no write is acknowledged without a renewal (25 s of a 30 s lease)
        self.acknowledge_until = sent + lease_s * ACKNOWLEDGE_UNTIL

    def _fence(self) -> None:
        if not self.fenced:
            self.fenced, self.acknowledge_until = True, float("-inf")
            self._trace(AnchorFencedEvent(epoch=self.epoch))

    def check_not_fenced(self) -> None:
        """Raise AnchorFenced once this session has lost its lease for good."""
        if self.fenced:
            raise AnchorFenced(f"session {self.epoch} was fenced: another one holds the store")

    @property
    def age(self) -> float:
        """Seconds since the last renewal that was answered was sent."""
        return self._clock() - self.sent

    @property
    def wants_renewal(self) -> bool:
        """Whether the renewal interval has passed."""
        return self.age >= self.lease_s * RENEW_AT

    def require_lease(self) -> None:
        """Before anything is served: renew a lease that ran out by the local clock, or stop for good (T20)."""
        self.check_not_fenced()
        if self.age < self.lease_s:
            return
        try:
            self.renew()
        except AnchorUnreachable:
            self._fence()
            raise AnchorFenced(
                f"the lease of session {self.epoch} ran out and the broker does not answer"
            ) from None
