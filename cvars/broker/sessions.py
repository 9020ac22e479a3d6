"""Attestation sessions: issued, attesting, attested or dead (key-release 1.6).

Kept in memory; a restart makes clients attest again. Cookies and nonces are kept as hashes. ``attesting`` is taken
by compare-and-set, so two attests on one session make one decision (K34). Memory is bounded: the oldest
``issued`` session makes room, an ``attested`` one never does (K35).
"""

import hashlib
import hmac
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cvars.release.teekey import TeePublicKey

NONCE_SIZE: Final = 32
ISSUED_LIFE_S: Final = 300.0
ATTESTED_LIFE_S: Final = 24 * 3600.0


class TooManySessions(Exception):
    """No room for another session, overall or for this source."""


@dataclass(slots=True)
class Attested:
    """What was proven, once. ``vm_id`` comes from measured data only (5.4)."""

    tee: str
    key: TeePublicKey
    result: Any  # cvars.attest's AttestationResult
    evidence_digest: str
    init_data_digest: str | None
    init_data: Any
    vm_id: str | None
    instance: str | None
    token: str
    nonce: str
    runtime_data: str  # as received, re-serialised in its own order
    at: float
    evidence: Any = None  # as received; kept only where sessions outlive the process
    report_data: bytes = b""


@dataclass(slots=True)
class Session:
    """One session. ``id_hash`` = hex SHA-256 of the cookie."""

    id_hash: str
    tee: str
    nonce_hash: bytes
    created: float
    expires: float
    source: str
    state: str = "issued"
    attested: Attested | None = None
    channel_key: bytes | None = field(default=None, repr=False)
    channel_vm: str | None = None
    sequence: int = 0
    epoch: int | None = None
    key_versions: tuple[int, ...] = ()

    def knows_nonce(self, nonce: str) -> bool:
        """Constant-time comparison with the nonce that was issued."""
        return hmac.compare_digest(self.nonce_hash, hashlib.sha256(nonce.encode()).digest())


class Sessions(Protocol):
    """Where sessions live."""

    def issue(self, *, tee: str, nonce: str, source: str, now: float) -> str:
        """A new session; returns its cookie. Raises ``TooManySessions``."""
        ...

    def find(self, cookie: str, *, now: float) -> Session | None:
        """The live session of a cookie."""
        ...

    def by_hash(self, id_hash: str, *, now: float) -> Session | None:
        """The live session of a token."""
        ...

    def begin(self, session: Session) -> bool:
        """Take ``issued`` to ``attesting``; False when somebody else did."""
        ...

    def settle(self, session: Session, attested: Attested | None, *, now: float) -> None:
        """``attesting`` ends: attested, or dead when None."""
        ...

    def open_channel(
        self, session: Session, *, key: bytes, vm_id: str, epoch: int, versions: tuple[int, ...]
    ) -> None:
        """A new channel key; its sequence starts at 0."""
        ...

    def take_sequence(self, session: Session, sequence: int) -> bool:
        """Use ``sequence`` once: True when it is above all before."""
        ...

    def counts(self) -> dict[str, int]:
        """Live sessions by state."""
        ...


class MemorySessions:
    """Sessions of one process."""

    def __init__(self, random: Callable[[int], bytes], *, limit: int = 20_000, per_source: int = 5_000) -> None:
        self._random = random
        self._limit = limit
        self._per_source = per_source
        self._lock = threading.Lock()
        self._issued: OrderedDict[str, Session] = OrderedDict()  # oldest first
        self._attested: OrderedDict[str, Session] = OrderedDict()
        self._sources: dict[str, int] = {}

    def issue(self, *, tee: str, nonce: str, source: str, now: float) -> str:
        """A new session; the oldest issued ones make room."""
        cookie = self._random(16).hex()
        session = Session(
            id_hash=_hash(cookie),
            tee=tee,
            nonce_hash=hashlib.sha256(nonce.encode()).digest(),
            created=now,
            expires=now + ISSUED_LIFE_S,
            source=source,
        )
        with self._lock:
            self._expire(now)
            while self._sources.get(source, 0) >= self._per_source:
                oldest = next((s for s in self._issued.values() if s.source == source), None)
                if oldest is None:
                    raise TooManySessions("too many sessions of one source")
                self._drop(oldest)
            while len(self._issued) + len(self._attested) >= self._limit:
                if not self._issued:
                    raise TooManySessions("too many sessions")
                self._drop(next(iter(self._issued.values())))
            self._issued[session.id_hash] = session
            self._sources[source] = self._sources.get(source, 0) + 1
        return cookie

    def find(self, cookie: str, *, now: float) -> Session | None:
        """The live session of a cookie."""
        return self.by_hash(_hash(cookie), now=now)

    def by_hash(self, id_hash: str, *, now: float) -> Session | None:
        """The live session of that hash."""
        with self._lock:
            found = self._issued.get(id_hash) or self._attested.get(id_hash)
            if found is not None and found.expires <= now:
                self._drop(found)
                return None
            return found

    def begin(self, session: Session) -> bool:
        """Compare-and-set."""
        with self._lock:
            if session.state != "issued" or session.id_hash not in self._issued:
                return False
            session.state = "attesting"
            return True

    def settle(self, session: Session, attested: Attested | None, *, now: float) -> None:
        """Attested sessions move out of the reach of eviction; a failure consumes the nonce."""
        with self._lock:
            if attested is None or session.id_hash not in self._issued:
                session.state = "dead"
                self._drop(session)
                return
            del self._issued[session.id_hash]
            attested.evidence = None
            session.attested = attested
            session.state = "attested"
            session.expires = now + ATTESTED_LIFE_S
            self._attested[session.id_hash] = session

    def open_channel(
        self, session: Session, *, key: bytes, vm_id: str, epoch: int, versions: tuple[int, ...]
    ) -> None:
        """A new channel; the old key is worth nothing from here on."""
        with self._lock:
            session.channel_key, session.channel_vm, session.sequence = key, vm_id, 0
            session.epoch, session.key_versions = epoch, versions

    def take_sequence(self, session: Session, sequence: int) -> bool:
        """Compare-and-set."""
        with self._lock:
            if sequence <= session.sequence:
                return False
            session.sequence = sequence
            return True

    def counts(self) -> dict[str, int]:
        """Live sessions by state."""
        with self._lock:
            return {"issued": len(self._issued), "attested": len(self._attested)}

    def _expire(self, now: float) -> None:
        for pool in (self._issued, self._attested):
            for session in list(_expired(pool, now)):
                self._drop(session)

    def _drop(self, session: Session) -> None:
        gone = self._issued.pop(session.id_hash, None) or self._attested.pop(session.id_hash, None)
        if gone is not None:
            left = self._sources.get(gone.source, 1) - 1
            if left > 0:
                self._sources[gone.source] = left
            else:
                self._sources.pop(gone.source, None)


def _expired(pool: OrderedDict[str, Session], now: float) -> list[Session]:
    """The expired ones at the old end: both pools are in order of expiry."""
    out = []
    for session in pool.values():
        if session.expires > now:
            break
        out.append(session)
    return out


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()
