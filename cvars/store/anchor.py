"""The freshness anchor, as the store sees it.

One record per VM, kept by the broker: session, lease, committed point, escrow ring. The store moves the
committed point by one compare-and-swap, `advance`. Source: sealed-store section 4, key-release 5.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

ZERO_ROOT: Final = bytes(32)


class AnchorPoint(NamedTuple):
    """``counter``: sequence of a commit; ``root``: the 32-byte chain value (state digest) after it."""

    counter: int
    root: bytes


ORIGIN: Final = AnchorPoint(0, ZERO_ROOT)


@dataclass(frozen=True, slots=True)
class Acquired:
    """What a verified acquire statement says (key-release 5.4).

    ``state`` is ``new`` (a store may be created), ``active`` or ``released``. ``point`` is the last anchored
    commit, ``base`` the point before the oldest escrow entry, ``escrow`` the sealed entries after it
    (encoding: sealed-store 6.1). ``statement_sha256`` is the SHA-256 of the acquire statement's bytes.
    ``lease_s`` is the length of the lease in seconds, counted from when the request was sent.
    """

    vm_id: str
    store_id: bytes
    state: str
    epoch: int
    point: AnchorPoint
    base: AnchorPoint
    escrow: bytes
    key_version: int
    key_old: int | None
    version: int
    mode: str
    lease_s: float
    statement_sha256: bytes
    floor_format: int = 1
    floor_suites: tuple[int, ...] = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker's signed and verified answer to `advance`, `renew` or `seal`."""

    epoch: int
    point: AnchorPoint
    version: int
    lease_s: float


class Anchor(Protocol):
    """One open session at the anchor. Each method makes one attempt; the store's client retries.

    Raises, all of them:
        AnchorFenced: stale session, or not the predecessor the broker knows (HTTP 412).
        AnchorUnreachable: no answer: it may or may not have happened. Repeating is safe.
        AnchorError: another refusal (frozen, retired, bad statement).
    """

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
        """Move the committed point from ``start`` to ``to``; renews the lease. Idempotent within the epoch."""
        ...

    def renew(self, *, epoch: int) -> Receipt:
        """Renew the lease."""
        ...

    def seal(self, *, epoch: int, point: AnchorPoint) -> Receipt:
        """Give the lease back: clean shutdown, or a refused mount."""
        ...
