"""A mounted store: commit, anchor, renew, close.

Source: sealed-store sections 2, 4 and 6. One write and one barrier per commit; in the modes that ask for it
the anchor is advanced before success is reported. Thread-safe: `tick` runs beside the guest's calls.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from cvars.errors import (
    AnchorUnreachable,
    DeviceError,
    EfiStatus,
    NotReady,
    StoreIoError,
    VariableError,
)
from cvars.store import operations, record
from cvars.store.anchor import AnchorPoint
from cvars.store.config import Boot, StoreConfig
from cvars.store.freshness import Freshness
from cvars.store.geometry import RECORD_OVERHEAD
from cvars.store.log import Broken, Log
from cvars.store.selection import Mode
from cvars.trace import StoreCommitted, StoreReadOnly, Trace
from cvars.variables.model import Append, Change, Delete, Journal, Key, Put, Variable
from cvars.variables.security import is_security_relevant

_NAMES_KEPT: Final = 4096
#: a quarter of the capacity is kept for security-relevant variables (SS-23)
RESERVED_SHARE: Final = 4


class StoreFull(VariableError):
    """The change does not fit: capacity, reserved room or the largest record (SS-23)."""

    status = EfiStatus.OUT_OF_RESOURCES


class Store:
    """One mounted store. Only `mount` makes one."""

    def __init__(
        self,
        log: Log,
        *,
        config: StoreConfig,
        boot: Boot,
        freshness: Freshness | None,
        attached: bool,
        clock: Callable[[], float],
        trace: Trace,
    ) -> None:
        self._log = log
        self._config = config
        self._freshness = freshness
        self._attached = attached and freshness is not None
        #: which commits are anchored before success is reported (section 4 item 4)
        self._anchors_all = self._attached and config.mode is Mode.STRICT
        self._anchors_security = self._attached and config.mode is Mode.CRITICAL
        self._bounded = self._attached and config.mode is Mode.BOUNDED
        self._clock = clock
        self._trace = trace
        self._lock = threading.RLock()
        self._by_name: dict[Key, bool] = {}
        self._geometry = log.history.geometry
        self._smallest = self._geometry.frame - RECORD_OVERHEAD
        #: live bytes that fit (SS-23)
        self.capacity = self._geometry.capacity
        #: bytes of operations that one commit may have
        self.largest = self._geometry.largest_body
        self._variables = log.history.variables
        self._live = log.history.live
        self._security_live = sum(
            operations.cost(k, v)
            for k, v in self._variables.items()
            if self._is_security(k) or v.signer is not None
        )
        #: a commit that is durable and was not acknowledged: it is taken back once it is anchored (empty: it was)
        self._doubt: Journal | None = None
        self._closed = False
        self.boot = boot
        self.read_only = False

    # --- what the component reads -----------------------------------------------------------------

    @property
    def variables(self) -> Mapping[Key, Variable]:
        """All live variables, private items included, as far as they were acknowledged. A live view."""
        return MappingProxyType(self._variables)

    @property
    def live(self) -> int:
        """Live bytes in use."""
        return self._live

    @property
    def mode(self) -> Mode:
        """Freshness mode of this session."""
        return self._config.mode

    @property
    def session(self) -> int:
        """Session number: the anchor's epoch."""
        return self._log.session

    @property
    def point(self) -> AnchorPoint:
        """Sequence and state digest of the last durable commit."""
        return self._log.history.point

    @property
    def anchored(self) -> AnchorPoint | None:
        """The last anchored point; None when the anchor does not vouch for this session."""
        return self._freshness.anchored if self._attached and self._freshness else None

    @property
    def generation(self) -> int:
        """Generation of the active bank."""
        return self._log.history.header.generation

    # --- commit -----------------------------------------------------------------------------------

    def commit(self, journal: Journal) -> None:
        """Make ``journal`` durable (and anchored, where the mode asks for it), then visible.

        Raises:
            StoreFull: it does not fit; nothing happened.
            DeviceError: refused, and the state is what it was.
            StoreError: the guest stops (fenced, lease over).
        """
        if not journal:
            return
        with self._lock:
            self._require_writable()
            live, security_live, security = self._measure(journal)
            body = operations.encode_all(journal)
            # most commits are of the smallest class
            class_index = 0 if len(body) <= self._smallest else self._geometry.class_for(len(body))
            if class_index is None or len(journal) > 0xFFFF:
                raise StoreFull(f"a commit of {len(body)} bytes is larger than the largest record")
            freshness = self._freshness
            if freshness is not None and (self._bounded or self._clock() >= freshness.acknowledge_until):
                self._keep_window(freshness)
            self._write(class_index, body, len(journal), live, security=security, doubt=journal)
            if freshness is not None:
                # anchor first where the mode says so; only then is the change visible (section 4 item 4)
                try:
                    if self._anchors_all or (self._anchors_security and security):
                        self._advance(self._config.doubt_s)
                    if self._clock() >= freshness.acknowledge_until:
                        freshness.renew()
                except AnchorUnreachable as error:
                    raise DeviceError(f"durable, but not anchored: {error.message}") from None
            operations.apply(journal, self._variables)
            self._live, self._security_live = live, security_live
            self._doubt = None

    def _measure(self, journal: Journal) -> tuple[int, int, bool]:
        """Live bytes and security-relevant live bytes after ``journal``, and whether it concerns the latter."""
        live, security_live, security = self._live, self._security_live, False
        overlay: dict[Key, Variable | None] = {}
        for change in journal:
            key = change.key
            old = overlay[key] if key in overlay else self._variables.get(key)
            new = None if isinstance(change, Delete) else change.variable
            _check_change(change, old)
            by_name = self._by_name.get(key)
            if by_name is None:
                by_name = self._is_security(key)
            if old is not None:
                was = operations.cost(key, old)
                live -= was
                if by_name or old.signer is not None:
                    security_live -= was
                    security = True
            if new is not None:
                now = operations.cost(key, new)
                live += now
                if by_name or new.signer is not None:
                    security_live += now
                    security = True
            if len(journal) > 1:
                overlay[key] = new
        if live > self.capacity and live > self._live:
            raise StoreFull(f"{live} live bytes of {self.capacity}")
        others = live - security_live
        if others > self._live - self._security_live:
            room = self.capacity - max(self.capacity // RESERVED_SHARE, security_live)
            if others > room:
                raise StoreFull(f"{others} bytes of {room} that are not reserved")
        return live, security_live, security

    def _is_security(self, key: Key) -> bool:
        """Whether the name alone makes it security-relevant."""
        known = self._by_name.get(key)
        if known is None:
            if len(self._by_name) > _NAMES_KEPT:
                self._by_name.clear()
            known = self._by_name[key] = is_security_relevant(key, None, self._config.extra_security)
        return known

    def _keep_window(self, freshness: Freshness) -> None:
        """Before a write: the lease must allow the acknowledgement, bounded mode its W and T."""
        try:
            if self._clock() >= freshness.acknowledge_until:
                freshness.require_lease()
                freshness.renew()
            if self._bounded and self._window_used(freshness):
                self._advance(self._config.doubt_s)
        except AnchorUnreachable as error:
            raise DeviceError(f"not anchored, and the window is used up: {error.message}") from None

    def _window_used(self, freshness: Freshness) -> bool:
        return freshness.open_commits > 0 and (
            freshness.open_commits >= self._config.window_commits
            or self._clock() - freshness.oldest >= self._config.window_s
        )

    def _write(
        self, class_index: int, body: bytes, count: int, live: int, *, security: bool, doubt: Journal
    ) -> None:
        """One record: one write, one barrier. Compacts first when the log has no room.

        ``doubt``: what is in doubt from the moment the record is durable.
        """
        kind = record.TRANSACTION
        try:
            if not self._log.fits(class_index):
                self._compact()
            try:
                self._append(kind, class_index, body, count, live, security=security, doubt=doubt)
            except StoreIoError:
                self._compact()  # no other record takes that sequence in the old bank
                self._append(kind, class_index, body, count, live, security=security, doubt=doubt)
        except AnchorUnreachable as error:
            raise DeviceError(f"the log is full and the state cannot be anchored: {error.message}") from None
        except Broken as error:
            self._give_up_writing(error)
            raise DeviceError(f"the medium failed for good: {error.message}") from None
        except StoreIoError as error:
            raise DeviceError(f"the medium failed: {error.message}") from None

    def _append(
        self,
        kind: int,
        class_index: int,
        body: bytes,
        count: int,
        live: int,
        *,
        security: bool,
        doubt: Journal | None,
    ) -> None:
        begun = self._log.begin(kind, class_index, body, count=count, live=live, security=security)
        # what needs no barrier is done while the medium writes
        point, raw = begun.point, begun.raw
        event = StoreCommitted(counter=point.counter, root=point.root, record_bytes=len(raw))
        data, key_version = kind == record.TRANSACTION, self._log.key_version
        self._log.finish(begun)
        self._doubt = doubt
        if self._attached and self._freshness is not None:
            self._freshness.add(point, raw, data=data, key_version=key_version)
        self._trace(event)

    def _compact(self) -> None:
        """Anchor the present state, then rewrite it into the other bank (section 4 item 6)."""
        if self._attached:
            self._advance(self._config.doubt_s)
        anchored = self._freshness.anchored if self._freshness else self._log.history.header.anchored
        variables = self._variables
        if self._doubt:  # the log is ahead of what was acknowledged
            variables = dict(variables)
            operations.apply(self._doubt, variables)
        point, entry = self._log.compact(variables, anchored)
        if self._freshness is not None and self._attached:
            self._freshness.add(point, entry, data=False, key_version=self._log.key_version)

    def _advance(self, patience: float) -> None:
        assert self._freshness is not None
        self._freshness.advance(patience=patience)

    def _give_up_writing(self, error: StoreIoError) -> None:
        if not self.read_only:
            self.read_only = True
            self._trace(StoreReadOnly(detail=error.message))

    # --- doubt ------------------------------------------------------------------------------------

    def _require_writable(self) -> None:
        if self._closed:
            raise NotReady("the store is closed")
        if self._freshness is not None and self._freshness.fenced:
            self._freshness.check_not_fenced()
        if self._doubt is not None and not self.read_only:
            try:
                self._settle(self._config.doubt_s)
            except AnchorUnreachable as error:
                raise DeviceError(f"an earlier commit is in doubt: {error.message}") from None
        if self.read_only:
            raise DeviceError("the store is read-only since a write failed")

    def _settle(self, patience: float) -> None:
        """Resolve a commit in doubt: anchor it, then take it back, because the guest was told "no" (R14).

        Raises AnchorUnreachable: still in doubt.
        """
        doubt = self._doubt
        if doubt is None:
            return
        self._confirm(patience)
        if doubt:
            back = operations.inverse(doubt, self._variables)
            body = operations.encode_all(back)
            class_index = self._geometry.class_for(len(body))
            if class_index is None:
                self._give_up_writing(StoreIoError("a refused commit is too large to be taken back"))
                self._doubt = None
                return
            if back:
                self._write(class_index, body, len(back), self._live, security=True, doubt=())
            self._doubt = ()
            self._confirm(patience)
        self._doubt = None

    def _confirm(self, patience: float) -> None:
        if self._attached:
            self._advance(patience)
        elif self._freshness is not None:
            self._freshness.renew()

    # --- time -------------------------------------------------------------------------------------

    def require_lease(self) -> None:
        """Before anything is served, reads included: raises AnchorFenced once the lease is lost (T20)."""
        with self._lock:
            if self._freshness is not None:
                self._freshness.require_lease()

    def tick(self) -> float:
        """Renew, anchor what is due, settle doubts. Returns the seconds until it wants to be called again.

        Raises AnchorFenced: the guest stops. An unreachable broker is no error here.
        """
        with self._lock:
            freshness = self._freshness
            if self._closed or freshness is None:
                return 60.0
            freshness.require_lease()
            try:
                if self._doubt is not None:
                    self._settle(0)
                late = self._bounded and self._window_used(freshness)
                if self._attached and (freshness.in_doubt or late or freshness.wants_renewal):
                    self._advance(0)
                if freshness.wants_renewal:
                    freshness.renew()
            except (AnchorUnreachable, DeviceError):
                return min(1.0, self._config.window_s / 4)
            if self._bounded and freshness.open_commits:
                return max(0.05, self._config.window_s / 2 - (self._clock() - freshness.oldest))
            return max(0.1, freshness.lease_s / 3 - freshness.age)

    # --- close ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write the close record, anchor it, give the lease back. The medium stays its owner's.

        Raises what `tick` and the anchor raise; the store is closed in any case.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._freshness is not None:
                self._freshness.check_not_fenced()
            if self._doubt is not None:
                with contextlib.suppress(DeviceError):  # the medium failed: what is in doubt stays, anchored
                    self._settle(self._config.doubt_s)
            if self._doubt is None and not self.read_only and self._log.fits(0):
                with contextlib.suppress(StoreIoError):
                    self._append(record.CLOSE, 0, b"", 0, self._live, security=False, doubt=None)
            if self._freshness is not None:
                if self._attached:
                    self._advance(self._config.doubt_s)
                self._freshness.seal()


def _check_change(change: Change, old: Variable | None) -> None:
    """Refuse a journal whose replay would be damage: that would make the store unreadable."""
    if not isinstance(change, Put):
        if old is None:
            raise ValueError("a journal deletes or appends to nothing")
        if isinstance(change, Append) and old.data + change.added != change.variable.data:
            raise ValueError("a journal's append does not give its result")
    name = change.key.name
    if not name or "\0" in name:
        raise ValueError("a journal names no variable")
